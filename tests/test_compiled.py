"""What is compiled is clean C: no warning, no byte touched that is nobody's, and kwsd goes without where it must."""

import json
import shutil
import subprocess
import sys

import pytest
from c_parts import TOP, WITHOUT, build, walk_with_guards

from kwsd.recording import DEMO

PARTS = ["debouncer", "ears", "quiet", "window"]
SOURCES = [TOP / "kwsd" / f"{part}.c" for part in PARTS]

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason=WITHOUT)

WALK = """
import ctypes
import numpy as np
from kwsd import compiled, compiled_debouncer, compiled_window, debouncer, ears, powers
from kwsd.inlet import Inlet
from kwsd.ring import RingBuffer

compiled.LIBRARY = "with_guards"
rng = np.random.default_rng(0)

labels = ("_silence_", "_unknown_", "stop", "up", "down")
for streams, smoothing, isolation in ((1, 1, 0), (3, 4, 8_000), (40, 2, 1600)):
    per_keyword = {name: np.full(3, value, kind) for name, value, kind in (
        ("threshold", 0.3, "f4"), ("release", 0.1, "f4"), ("margin", 0.0, "f4"), ("min_hits", 1, "i8"),
        ("refractory", 1600, "i8"), ("isolation_speech", 8_000, "i8"),
    )}
    rules = debouncer.Rules(
        labels[2:], isolation=isolation, wary=isolation, wary_threshold=0.4, smoothing=smoothing, hop=1600,
        **per_keyword,
    )
    judge = compiled_debouncer.make_debouncer(rules, labels, streams)
    assert isinstance(judge, compiled_debouncer.CompiledDebouncer)
    fired = 0
    for hop in range(1, 200):
        ends = np.full(streams, 16_000 + 1600 * (hop + hop // 50))
        fired += len(list(judge.step(np.arange(streams), ends, rng.dirichlet(np.full(5, 0.2), streams).astype("f4"))))
        judge.stirs
    assert fired > streams

for streams, most in ((1, 1), (1, 8), (30, 3)):
    ring = RingBuffer(streams, 100_000)
    schedule = compiled_window.make_schedule(streams, 1600, most, np.arange(streams) % 2 == 0)
    assert isinstance(schedule, compiled_window.CompiledSchedule)
    taken = 0
    for _ in range(100):
        for stream in range(streams):
            ring.write(stream, np.zeros(rng.integers(0, 20_000), "f4"))
        taken += len(schedule.take(ring))
    assert taken > 50 * streams

for channels in (1, 2):
    ring = RingBuffer(2, 100_000)
    rooms = [Inlet(ring, i, 8_000, channels, i % channels) for i in range(2)]
    opening = ears.make_ears(rooms, 2)
    assert isinstance(opening, ears.CompiledEars)
    pointer, number = ctypes.c_void_p, ctypes.c_ulong
    hear = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, number, pointer, number, pointer)(opening.address)
    for frames in (0, 1, 800, 31_999, 32_000, 40_000, 7, *[800] * 600):
        block = np.zeros((frames, channels), "f4")
        hear(block.ctypes.data, None, frames, None, 2 * (frames == 1), opening.given)
    opening.close()
    for room in rooms:
        loud = powers.make_powers(room.native, room.rate, room.channel)
        for first in range(room.native.ends[0] - 16_000, room.native.ends[0] - 8_000, 401):
            assert loud(first, powers.AT_MOST) is not None
    compiled.fence()
print("walked")
"""


def test_all_parts_are_looked_at():
    assert sorted(path.stem for path in (TOP / "kwsd").glob("*.c")) == PARTS
    assert all(f"kwsd/{part}.c" in (TOP / "setup.py").read_text(encoding="utf-8") for part in PARTS)


def test_the_compiler_has_nothing_to_say(tmp_path):
    assert build(tmp_path, "parts", SOURCES, "-O3", "-std=gnu11", "-Wall", "-Wextra", "-Wconversion") == ""


def test_no_byte_is_touched_that_is_nobodys(tmp_path):
    walk_with_guards(tmp_path, SOURCES, WALK)


def untimed(lines):
    return [{key: value for key, value in json.loads(line).items() if key not in ("id", "time")} for line in lines]


def test_without_it_kwsd_hears_the_same(kwsd, environment, tmp_path):
    nothing = "import sys; from kwsd import compiled, cli; compiled.LIBRARY = 'kwsd._nowhere'; sys.exit(cli.main())"
    without = subprocess.run(
        [sys.executable, "-c", nothing, "replay", DEMO],
        cwd=tmp_path, capture_output=True, check=True, text=True, timeout=60, env=environment,
    )  # fmt: skip
    told = untimed(without.stdout.splitlines())
    assert told == untimed(kwsd("replay", DEMO).out.splitlines())
    assert [event["type"] for event in told].count("detection") == 10
