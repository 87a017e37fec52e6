"""The ring hands out what was written, or says that it cannot."""

import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsd.ring import RingBuffer

CAPACITY = 8
PERIOD = 2**20  # whole numbers up to 2**24 are exact in float32


def ramp(start, end):
    """Samples [start, end) of a signal in which every sample says where it belongs."""
    return (np.arange(start, end) % PERIOD).astype(np.float32)


def ring_with(*blocks, capacity=CAPACITY):
    """One stream, with blocks of these lengths of the ramp written; a negative one is a gap of that length."""
    ring = RingBuffer(1, capacity)
    for length in blocks:
        at = int(ring.written[0])
        if length < 0:
            ring.skip(0, -length)
        else:
            ring.write(0, ramp(at, at + length))
    return ring


def read(ring, start, end, stream=0):
    """Samples [start, end) as a list, or None if the ring cannot vouch for them."""
    out = np.full(end - start, np.nan, np.float32)
    return out.tolist() if ring.read(stream, start, out) else None


# --- what was written ---


@pytest.mark.parametrize(
    "blocks",
    [(5,), (1, 1, 1, 1, 1), (8,), (3, 5), (6, 6), (8, 8), (7, 7, 7), (5, 5, 5, 5, 5), (1,) * 20, (20,), (3, 20, 3)],
    ids=str,
)
def test_everything_still_in_place_reads_as_written_however_it_wraps(blocks):
    ring = ring_with(*blocks)
    end = sum(blocks)
    oldest = max(0, end - CAPACITY)
    for start in range(oldest, end):
        for stop in range(start + 1, end + 1):
            assert read(ring, start, stop) == ramp(start, stop).tolist()


@pytest.mark.parametrize(
    ("blocks", "start", "end", "told"),
    [
        ((), 0, 1, False),  # nothing is there
        ((5,), 0, 5, True),
        ((5,), 0, 6, False),  # the last one is not there yet
        ((5,), 5, 6, False),
        ((8,), 0, 8, True),  # exactly full
        ((8, 1), 0, 8, False),  # the first one is overwritten
        ((8, 1), 1, 9, True),
        ((5, 20), 16, 24, False),  # a block longer than the ring leaves its end
        ((5, 20), 17, 25, True),
        ((5,), -1, 3, False),  # before the beginning
        ((4, -2, 4), 0, 4, False),  # before a gap
        ((4, -2, 4), 4, 6, False),  # the gap itself
        ((4, -2, 4), 3, 8, False),  # both sides
        ((4, -2, 4), 5, 8, False),
        ((4, -2, 4), 6, 10, True),  # behind it
        ((4, -2), 4, 6, False),  # nothing behind it yet
    ],
)
def test_a_read_succeeds_exactly_for_what_is_in_place_and_unbroken(blocks, start, end, told):
    assert (read(ring_with(*blocks), start, end) is not None) is told


def test_samples_keep_their_index_over_a_gap():
    ring = ring_with(3, -4, 2)
    assert ring.written[0] == 9
    assert ring.unbroken_from[0] == 7
    assert read(ring, 7, 9) == [7.0, 8.0]


def test_a_gap_of_unknown_length_parts_what_lies_on_its_sides():
    ring = RingBuffer(1, CAPACITY)
    ring.write(0, ramp(0, 4))
    ring.skip(0)
    ring.write(0, ramp(4, 8))
    assert read(ring, 3, 5) is None
    assert read(ring, 4, 8) == ramp(4, 8).tolist()


def test_a_gap_longer_than_the_ring_leaves_nothing_to_read():
    ring = ring_with(8, -100)
    assert all(read(ring, start, start + 1) is None for start in range(110))


def test_an_empty_block_changes_nothing():
    ring = ring_with(5, 0)
    assert ring.written[0] == 5
    assert read(ring, 0, 5) == ramp(0, 5).tolist()


def test_the_oldest_sample_is_the_first_that_can_be_read():
    for blocks in [(5,), (8, 3), (4, -2, 3), (4, -2, 8, 3)]:
        ring = ring_with(*blocks)
        oldest, end = ring.oldest(0), int(ring.written[0])
        assert read(ring, oldest, end) == ramp(oldest, end).tolist()
        assert read(ring, oldest - 1, end) is None


def test_samples_may_be_rows_of_channels():
    ring = RingBuffer(1, CAPACITY, channels=2)
    frames = ramp(0, 30).reshape(15, 2)
    for start, end in [(0, 5), (5, 11), (11, 15)]:
        ring.write(0, frames[start:end])
    out = np.zeros((6, 2), np.float32)
    assert ring.written.tolist() == [15]
    assert ring.read(0, 9, out)
    assert np.array_equal(out, frames[9:])
    assert not ring.read(0, 6, out)  # overwritten


def test_bytes_are_written_like_an_array():
    ring = RingBuffer(1, CAPACITY)
    append = ring.appender(0)
    append(ramp(0, 6).tobytes())
    append(memoryview(ramp(6, 11).tobytes()))
    assert read(ring, 3, 11) == ramp(3, 11).tolist()


def test_a_block_may_be_reused_as_soon_as_write_returns():
    ring, block = RingBuffer(1, CAPACITY), ramp(0, 4)
    ring.write(0, block)
    block[:] = -1.0
    assert read(ring, 0, 4) == ramp(0, 4).tolist()


def test_streams_know_nothing_of_each_other():
    ring = RingBuffer(3, CAPACITY)
    ring.write(0, ramp(0, 5))
    ring.write(2, ramp(100, 103))
    ring.skip(2, 1)
    ring.write(2, ramp(200, 202))
    assert ring.written.tolist() == [5, 0, 6]
    assert ring.unbroken_from.tolist() == [0, 0, 4]
    assert read(ring, 0, 5, stream=0) == ramp(0, 5).tolist()
    assert read(ring, 0, 1, stream=1) is None
    assert read(ring, 4, 6, stream=2) == [200.0, 201.0]


# --- lead-in ---


def test_without_a_lead_in_there_is_nothing_before_the_first_sample():
    assert read(ring_with(3), -2, 2) is None


def test_a_lead_in_reads_as_silence_before_the_first_sample():
    ring = RingBuffer(1, CAPACITY)
    ring.lead_in(0, 4)
    assert read(ring, -4, 0) == [0.0] * 4
    ring.write(0, ramp(1, 4))
    assert read(ring, -4, 3) == [0.0] * 4 + [1.0, 2.0, 3.0]
    assert read(ring, -5, 3) is None


def test_a_lead_in_is_overwritten_like_any_other_audio():
    ring = RingBuffer(1, CAPACITY)
    ring.lead_in(0, 4)
    ring.write(0, ramp(1, 7))
    assert read(ring, -2, 6) == [0.0] * 2 + ramp(1, 7).tolist()
    assert read(ring, -3, 4) is None


# --- against an obviously correct model ---


class History:
    """A ring that forgets nothing but what lies before a gap: a list in which None is a sample nobody can have."""

    def __init__(self, lead_in):
        self.lead_in, self.samples = lead_in, [0.0] * lead_in

    def gap(self, length):
        self.samples = [None] * (len(self.samples) + length)

    @property
    def end(self):
        return len(self.samples) - self.lead_in

    def read(self, start, end):
        if end > self.end or start < self.end - CAPACITY or start < -self.lead_in:
            return None
        there = self.samples[start + self.lead_in : end + self.lead_in]
        return None if None in there else there


def spans_around(end):
    """Every span of at most a ring's length that lies near the end of what was written."""
    starts = range(end - 2 * CAPACITY, end + 2)
    return [(start, start + length) for start in starts for length in range(1, CAPACITY + 1)]


@settings(deadline=None, max_examples=100)
@given(
    lead_in=st.integers(0, CAPACITY),
    steps=st.lists(st.tuples(st.sampled_from(["write", "skip"]), st.integers(0, 2 * CAPACITY + 1)), max_size=8),
)
def test_any_history_reads_as_if_nothing_were_ever_forgotten(lead_in, steps):
    ring, history = RingBuffer(1, CAPACITY), History(lead_in)
    ring.lead_in(0, lead_in)
    for step, length in steps:
        if step == "write":
            block = ramp(history.end + 1, history.end + 1 + length)  # never 0.0, which is what a lead-in reads as
            ring.write(0, block)
            history.samples += block.tolist()
        else:
            ring.skip(0, length)
            history.gap(length)
        for start, end in spans_around(history.end):
            assert read(ring, start, end) == history.read(start, end), (start, end)


@settings(deadline=None, max_examples=100)
@given(
    hop=st.sampled_from([1, 2, 4, 8]),
    steps=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["write", "skip"]), st.integers(0, 2 * CAPACITY)), max_size=12
    ),
    ends=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5 * CAPACITY)), max_size=6),
    size=st.integers(1, CAPACITY),
)
def test_spans_of_many_streams_gathered_at_once_are_what_each_reads(hop, steps, ends, size):
    ring = RingBuffer(3, CAPACITY, hop=hop)
    for stream, step, length in steps:
        at = int(ring.written[stream])
        if step == "write":
            ring.write(stream, ramp(at, at + length) + 1000 * stream)
        else:
            ring.skip(stream, length)
    streams, until = (np.array(column, np.int64).reshape(-1) for column in (list(zip(*ends, strict=True)) or [[], []]))
    samples, whole = ring.gather(streams, until, size)
    assert samples.shape == (len(ends), size)
    for (stream, end), row, there in zip(ends, samples.tolist(), whole.tolist(), strict=True):
        assert (row if there else None) == read(ring, end - size, end, stream)


# --- two threads ---


class Interrupted(np.ndarray):
    """An array after whose copying in something else happens, as if on another thread."""

    def __array_finalize__(self, origin):
        self.after_a_copy_in = getattr(origin, "after_a_copy_in", lambda: None)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.after_a_copy_in()


class Watched:
    """A ring's memory; before a copy into it something else happens."""

    def __init__(self, ring, look):
        self.memory, self.look = ring._bytes[0], look
        ring._bytes[0] = self
        ring._append[0] = ring.appender(0)

    def __len__(self):
        return len(self.memory)

    def __setitem__(self, key, value):
        self.look()
        self.memory[key] = value


@pytest.mark.parametrize("length", [1, 3, 8, 13])
def test_a_reader_in_the_middle_of_a_write_is_refused_what_is_being_overwritten(length):
    ring = ring_with(5, 8)  # 5 … 12 are in place, and the ring has wrapped
    seen = []

    def look():
        seen.append([read(ring, start, 13) is not None for start in range(5, 13)])

    Watched(ring, look)
    ring.write(0, ramp(13, 13 + length))
    assert seen  # before each copy
    for told in seen:
        assert told == [start >= 5 + length for start in range(5, 13)]


def test_a_reader_in_the_middle_of_a_write_is_not_given_what_is_still_to_come():
    ring, told = ring_with(5), []
    Watched(ring, lambda: told.append(read(ring, 4, 6)))
    ring.write(0, ramp(5, 8))
    assert told
    assert set(told) == {None}
    assert read(ring, 4, 6) == [4.0, 5.0]


@pytest.mark.parametrize(("overwritten", "told"), [(0, True), (2, True), (3, False), (8, False), (20, False)])
def test_a_read_during_which_the_writer_caught_up_is_refused(overwritten, told):
    ring = ring_with(5, 8)  # 5 … 12 are in place
    out = np.zeros(5, np.float32).view(Interrupted)
    out.after_a_copy_in = lambda: ring.write(0, ramp(13, 13 + overwritten)) if ring.written[0] == 13 else None
    assert ring.read(0, 7, out) is told


def test_a_read_during_which_a_gap_came_is_refused():
    ring = ring_with(8)
    out = np.zeros(4, np.float32).view(Interrupted)
    out.after_a_copy_in = lambda: ring.skip(0)
    assert not ring.read(0, 4, out)


class Writer(threading.Thread):
    """Writes the ramp without ever waiting, in blocks of changing length."""

    def __init__(self, ring, lengths):
        super().__init__(daemon=True)
        self._ring, self._lengths = ring, lengths
        self._stop_now = threading.Event()

    def run(self):
        signal, at = ramp(0, PERIOD + max(self._lengths)), 0
        while not self._stop_now.is_set():
            for length in self._lengths:
                self._ring.write(0, signal[at : at + length])
                at = (at + length) % PERIOD

    def __enter__(self):
        self.start()

    def __exit__(self, *_):
        self._stop_now.set()
        self.join()


@pytest.fixture
def restless():
    """Threads take turns as often as the interpreter can manage."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_no_torn_repeated_or_skipped_sample_is_handed_out_while_another_thread_writes():
    capacity, span, enough = 32_768, 16_000, 100
    ring = RingBuffer(1, capacity)
    random = np.random.default_rng(1)
    lengths = random.integers(1, 4_000, 100).tolist()
    out = np.zeros(span, np.float32)
    whole = overtaken = 0
    wrong = []
    deadline = time.monotonic() + 60.0
    with Writer(ring, lengths):
        while min(whole, overtaken) < enough and time.monotonic() < deadline:
            start = int(ring.written[0]) - capacity + int(random.integers(0, capacity - span))
            if start < 0:
                continue
            if not ring.read(0, start, out):
                overtaken += 1
                continue
            whole += 1
            if not np.array_equal(out, ramp(start, start + span)):
                wrong.append(start)
    assert not wrong
    assert whole >= enough
    assert overtaken >= enough
