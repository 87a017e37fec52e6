"""The one thing setup.cfg cannot say: what is compiled. Where there is no C compiler kwsd goes without, and slower."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "kwsd.engines._tcn",
            ["kwsd/engines/tcn.c"],
            depends=["kwsd/engines/tcn_kernel.h"],
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
