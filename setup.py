"""The one thing setup.cfg cannot say: what is compiled. Where there is no C compiler kwsd goes without, and slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "kwsd.engines._native",
            ["kwsd/engines/native.c"],
            depends=[f"kwsd/engines/native_{part}.h" for part in ("core", "tcn", "bcresnet")],
            extra_compile_args=["-O3", "-Wno-psabi"],
            extra_link_args=["-s"],
            optional=True,
        ),
        Extension(
            "kwsd._compiled",
            ["kwsd/debouncer.c", "kwsd/ears.c", "kwsd/quiet.c", "kwsd/window.c"],
            extra_compile_args=["-O3"],
            extra_link_args=["-s"],
            optional=True,
        ),
    ]
)
