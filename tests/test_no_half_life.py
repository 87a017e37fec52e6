"""Whatever part of the daemon fails in a way nobody expected, all of it ends, with a code and one line."""

import pytest

from kwsd.errors import INTERNAL
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
    "inference": ("kwsd.pipeline", "Pipeline.advance", 10),
    "what comes of it": ("kwsd.daemon", "Daemon._on_progress", 0),
    "the thread of a recording": ("kwsd.inlet", "Inlet.write", 30),
    "standard output": ("kwsd.sinks.stdout", "Stdout._next", 1),
    "a heartbeat": ("kwsd.daemon", "Daemon._beat", 1),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_nobody_expected_ends_all_of_it(part, kwsd, tmp_path):
    module, where, after = PARTS[part]
    (tmp_path / "sitecustomize.py").write_text(BROKEN.format(module=module, where=where, after=after))
    result = kwsd(
        "run", "--source", DEMO, "--set", "events.heartbeat_s=0.5", more={"PYTHONPATH": str(tmp_path)}, timeout=20
    )
    assert "nobody thought of this" in result.complaint
    assert result.code != 0 and (result.code == INTERNAL or part == "the thread of a recording")
