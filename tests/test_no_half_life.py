"""Whatever part of the daemon fails in a way nobody expected, all of it ends, with a code and one line."""

import pytest

from kwsd.errors import INTERNAL, IO
from kwsd.recording import DEMO

# Put into a real daemon as it starts: after a while, one of its parts meets what nobody thought of.
BROKEN = """
import functools, importlib, itertools
owner = functools.reduce(getattr, "{where}".split(".")[:-1], importlib.import_module("{module}"))
sound, calls = getattr(owner, "{where}".split(".")[-1]), itertools.count()

def broken(*given, **more):
    if next(calls) >= {after}:
        raise LookupError("nobody thought of this")
    return sound(*given, **more)

setattr(owner, sound.__name__, broken)
"""
PARTS = {
    "inference": ("kwsd.pipeline", "Pipeline.advance", 10, INTERNAL),
    "what comes of it": ("kwsd.daemon", "Daemon._on_progress", 0, INTERNAL),
    "the thread of a recording": ("kwsd.inlet", "Inlet.write", 30, IO),
    "standard output": ("kwsd.sinks.stdout", "Stdout._next", 1, INTERNAL),
    "a heartbeat": ("kwsd.daemon", "Daemon._beat", 1, INTERNAL),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_nobody_expected_ends_all_of_it(part, kwsd, tmp_path):
    module, where, after, code = PARTS[part]
    (tmp_path / "sitecustomize.py").write_text(BROKEN.format(module=module, where=where, after=after))
    result = kwsd(
        "run", "--source", DEMO, "--set", "events.heartbeat_s=0.5", more={"PYTHONPATH": str(tmp_path)}, timeout=20
    )
    result.refused(code, "nobody thought of this")
