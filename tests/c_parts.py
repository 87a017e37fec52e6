"""What tests of compiled parts share: each test asked in both forms, and C built with guards around its memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from kwsd import compiled

TOP = Path(compiled.__file__).parent.parent
WITHOUT = "no C compiler: kwsd was installed without what it compiles"


def both_forms(place, name, make, part):
    """A fixture for a module with the globals `place`: all its tests have `name` as imported, then as compiled."""

    @pytest.fixture(scope="module", autouse=True, params=["numpy", "compiled"])
    def form(request):
        if request.param == "compiled" and compiled.library(*part) is None:
            pytest.skip(WITHOUT)
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "compiled":
                patch.setitem(place, name, make)
            yield

    return form


def build(folder, name, sources, *options):
    """A library of this name in a folder. What the compiler says."""
    done = subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", *options, *map(str, sources), "-o", str(folder / f"{name}.so"), "-lm"],
        capture_output=True, check=False, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def walk_with_guards(folder, sources, walk, *arguments):
    """Build `with_guards`, and run a script that walks through it and then says so: no byte may be touched that is
    nobody's."""
    guard = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(guard).is_absolute():
        pytest.skip("the C compiler has no libasan")
    build(folder, "with_guards", sources, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    environment = {
        "LD_PRELOAD": guard, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{folder}:{TOP}",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", walk, *arguments],
        capture_output=True, check=False, text=True, env=environment, timeout=400,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "walked\n"), done.stderr
