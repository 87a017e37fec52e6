"""The audio callback puts every block where it belongs, in Python and compiled, and compiled it waits for nobody."""

import ctypes
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_server import SoundServer, missing

from kwsd import compiled, ears
from kwsd.ears import CompiledEars, Ears, make_ears
from kwsd.inlet import Inlet
from kwsd.ring import RingBuffer

OVERFLOWED = 2  # PortAudio's flag
RATE = 4000  # so that a ring is small

LIBRARY = compiled.library(*ears.PART)
needs_c = pytest.mark.skipif(LIBRARY is None, reason="no C compiler: kwsd was installed without what it compiles")


def inlets(*channels_listened_to, channels=1):
    ring = RingBuffer(len(channels_listened_to), 16_000 * 6)
    return [Inlet(ring, i, RATE, channels, channel) for i, channel in enumerate(channels_listened_to)]


def hear(opening, block, overflowed=False):
    """As PortAudio calls it: (frames, channels)."""
    if opening.address is None:
        opening.hear(block.tobytes(), len(block), None, SimpleNamespace(input_overflow=overflowed))
        return
    call = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p
    )(opening.address)
    flags = OVERFLOWED if overflowed else 0
    assert call(block.ctypes.data, None, len(block), None, flags, opening.given) == 0, "PortAudio is to go on"


def ramp(start, end, channels):
    frames = (np.arange(start, end) % (1 << 23)).astype(np.float32)[:, None]  # which float32 holds exactly
    return np.ascontiguousarray(frames + 1e5 * np.arange(channels, dtype=np.float32))


def state(inlet):
    ring = inlet.native
    return ring.ends[0], ring.oldest(0), inlet.blocks, inlet.overflows, ring._samples.tolist()


@needs_c
@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(st.tuples(st.sampled_from([0, 1, 7, 400, 3999, 16_000, 16_001, 20_000]), st.booleans()), max_size=9),
    channels=st.integers(1, 3),
    rooms=st.integers(1, 2),
)
def test_compiled_it_writes_what_python_writes_where_python_writes_it(steps, channels, rooms):
    told = []
    for make in (Ears, lambda rooms: CompiledEars(rooms, 2, LIBRARY)):
        streams, at = inlets(*[0] * rooms, channels=channels), 0
        opening = make(streams)
        for frames, overflowed in steps:
            hear(opening, ramp(at, at + frames, channels), overflowed)
            at += frames
        told.append([state(inlet) for inlet in streams])
    assert told[0] == told[1]


FORMS = [
    pytest.param(Ears, id="python"),
    pytest.param(lambda rooms: CompiledEars(rooms, 2, LIBRARY), id="compiled", marks=needs_c),
]


@pytest.mark.parametrize("make", FORMS)
def test_what_is_delivered_after_it_was_closed_counts_no_more(make):
    (inlet,) = inlets(None)
    opening = make([inlet])
    hear(opening, ramp(0, 100, 1))
    opening.close()
    hear(opening, ramp(100, 200, 1), overflowed=True)
    assert (inlet.blocks, inlet.native.ends[0], inlet.overflows) == (1, 100, 0)


@pytest.mark.parametrize("make", FORMS)
def test_one_that_is_added_gets_what_comes_from_then_on(make):
    first, second = inlets(None, None)
    opening = make([first])
    hear(opening, ramp(0, 100, 1))
    opening.add(second)
    hear(opening, ramp(100, 300, 1))
    assert (first.native.ends[0], second.native.ends[0]) == (300, 200)
    assert second.native._samples[0, :200].tolist() == ramp(100, 300, 1).tolist()


@pytest.mark.parametrize("make", FORMS)
def test_of_a_source_that_was_opened_again_the_new_ring_is_written(make):
    (inlet,) = inlets(None)
    first = make([inlet])
    hear(first, ramp(0, 100, 1))
    first.close()
    inlet.reopen(2 * RATE, 2)
    hear(make([inlet]), ramp(0, 50, 2))
    assert inlet.is_anew and inlet.native.ends[0] == 100 and inlet.blocks == 2
    inlet.pump()
    assert inlet.native.ends[0] == 50 and inlet.rate == 2 * RATE


@needs_c
def test_it_says_how_long_the_last_blocks_took():
    (inlet,) = inlets(None)
    opening = CompiledEars([inlet], 1, LIBRARY)
    for heard in range(ears.TIMES + 9):
        assert len(opening.took_us()) == min(heard, ears.TIMES)
        hear(opening, ramp(0, 10, 1))
    assert all(0.0 <= took < 1e5 for took in opening.took_us())


@needs_c
def test_what_a_reader_is_given_was_never_being_written_over():
    """One thread writes without the interpreter lock, as fast as it goes, and this one reads."""
    (inlet,) = inlets(None)
    opening, ring, stop = CompiledEars([inlet], 1, LIBRARY), inlet.native, threading.Event()

    def write():
        at = 0
        while not stop.is_set():
            hear(opening, ramp(at, at + 4000, 1))
            at += 4000

    writer = threading.Thread(target=write)
    writer.start()
    out, given = np.zeros((3000, 1), np.float32), 0
    try:
        while given < 2000:
            start = max(0, ring.ends[0] - (12_000 if given % 2 else 3000))  # soon to be written over, or just written
            if ring.read(0, start, out):
                given += 1
                assert np.array_equal(out, ramp(start, start + 3000, 1))
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("library", ["kwsd._nowhere", "json"])
def test_where_nothing_was_compiled_the_callback_is_python(monkeypatch, library):
    monkeypatch.setattr(compiled, "LIBRARY", library)
    compiled.library.cache_clear()
    try:
        assert type(make_ears(inlets(None), 1)) is Ears
    finally:
        compiled.library.cache_clear()


# --- at a real device ---

WAITS_FOR_NOBODY = """
    import ctypes, sys, time
    from kwsd import ears
    from kwsd.inlet import Inlet
    from kwsd.microphone import Microphone
    from kwsd.ring import RingBuffer

    if sys.argv[1] == "python":
        ears.library = lambda *_: None
    microphone = Microphone("default", None, 20.0)
    inlet = Inlet(RingBuffer(1, 100_000), 0, microphone.rate, microphone.channels, None)
    microphone.start(inlet, lambda: None)
    while inlet.blocks < 5:
        time.sleep(0.01)
    before, since = inlet.blocks, time.monotonic()
    sys.setswitchinterval(10.0)  # who waits for the interpreter lock is not given it before we have looked
    ctypes.PyDLL(None).usleep(1_000_000)  # and keeps the lock
    meanwhile, lasted_s = inlet.blocks - before, time.monotonic() - since
    sys.setswitchinterval(0.0005)
    time.sleep(0.5)
    inlet.pump()
    print(round(meanwhile / lasted_s), inlet.blocks - before, inlet.overflows, len(microphone.took_us()))
    microphone.stop()
"""


@pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it")
@pytest.mark.parametrize("form", ["python", pytest.param("compiled", marks=needs_c)])
def test_while_python_is_busy_a_compiled_callback_goes_on_hearing(tmp_path, form):
    server = SoundServer(tmp_path)
    server.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(WAITS_FOR_NOBODY), form],
            env=server.environment, capture_output=True, check=True, text=True, timeout=60,
        )  # fmt: skip
    finally:
        server.kill()
    in_a_second, blocks, overflows, timed = map(int, done.stdout.split())
    assert blocks > 30, "it goes on afterwards in either form"
    if form == "compiled":
        assert 20 < in_a_second < 70 and overflows == 0 and timed > 30
    else:
        assert in_a_second < 10 and timed == 0
