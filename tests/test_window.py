"""Windows end at the multiples of the hop, over all streams in turns, and none is left out without being counted."""

import numpy as np
import pytest
from c_parts import both_forms
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsd import compiled, compiled_window, window
from kwsd.audio_format import WINDOW
from kwsd.compiled_window import CompiledSchedule, make_schedule
from kwsd.ring import RingBuffer
from kwsd.window import WindowSchedule

HOP = 1600
CAPACITY = 3 * WINDOW


form = both_forms(globals(), "WindowSchedule", make_schedule, compiled_window.PART)


class Room:
    """Rings that fill, and the schedule that looks at how far."""

    def __init__(self, live=(True,), hop=HOP, max_batch=16):
        self.ring = RingBuffer(len(live), CAPACITY)
        self.schedule = WindowSchedule(len(live), hop, max_batch, np.array(live))

    def write(self, samples, stream=0):
        self.ring.write(stream, np.zeros(samples, np.float32))
        return self

    def skip(self, samples, stream=0):
        self.ring.skip(stream, samples)
        return self

    def take(self):
        """[(stream, end of window)] and the numbers skipped; checks that the first of every stream come first."""
        due = self.schedule.take(self.ring)
        taken = list(zip(due.streams.tolist(), due.ends.tolist(), strict=True))
        assert len(due) == len(taken)
        firsts = {}
        for row, (stream, _) in enumerate(taken):
            firsts.setdefault(stream, row)
        assert list(firsts.values()) == list(range(due.distinct))
        return taken, due.skipped.tolist()

    def ends(self):
        """Of one stream: the ends of the windows, and the number skipped."""
        taken, skipped = self.take()
        return [end for _, end in taken], skipped[0]


# --- hop arithmetic ---


@pytest.mark.parametrize(
    ("hop", "written", "ends"),
    [
        (1600, 0, []),
        (1600, 15_999, []),  # one sample short of a window
        (1600, 16_000, [16_000]),
        (1600, 17_599, [16_000]),  # one sample short of a hop
        (1600, 17_600, [16_000, 17_600]),
        (1600, 20_801, [16_000, 17_600, 19_200, 20_800]),
        (16_000, 40_000, [16_000, 32_000]),
        (3000, 25_000, [18_000, 21_000, 24_000]),  # no hop ends with the first whole window
        (7000, 22_000, [21_000]),
        (160, 16_500, [16_000, 16_160, 16_320, 16_480]),
    ],
)
def test_windows_end_at_the_multiples_of_the_hop_from_the_first_whole_one_on(hop, written, ends):
    assert Room(hop=hop).write(written).ends() == (ends, 0)


@pytest.mark.parametrize("hop", [160, 1600, 3000, 7000, 16_000])
@pytest.mark.parametrize("block", [1, 320, 1600, 4096, 10_000], ids=lambda block: f"blocks of {block}")
def test_the_same_windows_are_due_however_the_audio_arrives(hop, block):
    room, ends = Room(hop=hop, max_batch=100), []
    total = 16_700 if block == 1 else 45_000
    room.write(16_000 - 50)
    for at in range(16_000 - 50, total, block):
        room.write(min(block, total - at))
        taken, skipped = room.ends()
        ends += taken
        assert skipped == 0
    assert ends == [end for end in range(0, total + 1, hop) if end >= WINDOW]


def test_a_window_is_handed_out_once():
    room = Room().write(17_600)
    assert room.ends() == ([16_000, 17_600], 0)
    assert room.ends() == ([], 0)
    assert room.write(1_599).ends() == ([], 0)
    assert room.write(1).ends() == ([19_200], 0)


def test_no_window_before_the_start_asked_for():
    room = Room().write(20_000)
    room.schedule.start_at(np.array([17_601]))
    assert room.ends() == ([19_200], 0)


def test_a_start_never_leads_back_to_windows_handed_out_already():
    room = Room().write(17_600)
    room.take()
    room.schedule.start_at(np.array([16_000]))
    assert room.ends() == ([], 0)


def test_a_schedule_goes_on_where_another_one_stood():
    room = Room().write(20_000)
    assert room.ends() == ([16_000, 17_600, 19_200], 0)
    successor = WindowSchedule(1, 3_000, 16, np.array([True]))
    successor.start_at(room.schedule.next_end)
    room.schedule = successor
    room.write(5_000)
    assert room.ends() == ([21_000, 24_000], 0)


# --- the lead-in ---


def test_with_a_lead_in_windows_are_due_from_sample_0_on():
    room = Room()
    room.ring.lead_in(0, WINDOW)
    room.write(4_000)
    assert room.ends() == ([0, 1600, 3200], 0)
    assert room.write(13_000).ends() == (list(range(4800, 17_001, 1600)), 0)


def test_without_a_lead_in_no_window_begins_before_the_first_sample():
    assert Room().write(15_999).ends() == ([], 0)


# --- several streams ---


def test_streams_take_turns():
    room = Room(live=(True, True, True))
    room.write(17_600, stream=0).write(1_000, stream=1).write(19_200, stream=2)
    taken, skipped = room.take()
    assert taken == [(0, 16_000), (2, 16_000), (0, 17_600), (2, 17_600), (2, 19_200)]
    assert skipped == [0, 0, 0]


def test_streams_advance_on_their_own():
    room = Room(live=(True, True))
    assert room.write(16_000, stream=1).take() == ([(1, 16_000)], [0, 0])
    assert room.write(17_600, stream=0).take() == ([(0, 16_000), (0, 17_600)], [0, 0])
    assert room.write(1_600, stream=0).write(1_600, stream=1).take() == ([(0, 19_200), (1, 17_600)], [0, 0])


# --- too late ---


def test_a_live_stream_takes_what_was_begun_skips_the_newest_counts_it_and_goes_on_at_the_present():
    room = Room(live=(True,), max_batch=3).write(16_000 + 9 * 1600)  # ten windows
    assert room.ends() == ([16_000, 17_600, 19_200], 7)
    assert room.ends() == ([], 0)
    assert room.write(1600).ends() == ([32_000], 0)


def test_a_stream_that_can_wait_skips_nothing_however_late():
    room = Room(live=(False,), max_batch=3).write(16_000 + 6 * 1600)  # seven windows
    assert room.ends() == ([16_000, 17_600, 19_200], 0)
    assert room.ends() == ([20_800, 22_400, 24_000], 0)
    assert room.ends() == ([25_600], 0)
    assert room.ends() == ([], 0)


def test_only_the_late_and_live_streams_skip():
    room = Room(live=(True, False, True), max_batch=2)
    room.write(20_800, stream=0).write(20_800, stream=1).write(17_600, stream=2)
    taken, skipped = room.take()
    assert taken == [(s, end) for end in (16_000, 17_600) for s in (0, 1, 2)]
    assert skipped == [2, 0, 0]
    assert room.take() == ([(1, 19_200), (1, 20_800)], [0, 0, 0])


# --- gaps ---


@pytest.mark.parametrize(
    ("before", "lost", "after", "ends"),
    [
        (17_600, 0, 15_999, []),  # not a whole window behind the gap
        (17_600, 0, 16_000, [33_600]),
        (17_600, 1600, 16_000, [35_200]),
        (17_000, 100, 17_000, [33_600]),  # begins at 17_600, the first multiple behind the gap that is whole
        (1_000, 0, 16_600, [17_600]),  # no whole window before the gap either
    ],
)
def test_after_a_gap_no_window_mixes_what_lies_on_its_sides(before, lost, after, ends):
    room = Room().write(before)
    room.take()
    assert room.skip(lost).write(after).ends() == (ends, 0)


def test_a_gap_in_one_stream_is_none_in_the_others():
    room = Room(live=(True, True)).write(17_600, stream=0).write(17_600, stream=1)
    room.take()
    room.skip(0, stream=0).write(1600, stream=0).write(1600, stream=1)
    assert room.take() == ([(1, 19_200)], [0, 0])


# --- nothing is lost without being counted ---


def test_between_two_windows_lie_exactly_as_many_hops_as_were_counted():
    room, last = Room(live=(True,), max_batch=2), 16_000 - HOP
    for samples in (16_000, 1600, 8_000, 300, 20_000, 1_299, 1, 9_999, 1600, 40_000, 1600):
        ends, skipped = room.write(samples).ends()
        for end in ends:
            assert end - last == HOP
            last = end
        last += skipped * HOP
    assert last == int(room.ring.written[0]) // HOP * HOP


class Diary:
    """What the windows of one stream should be, found by trying every multiple of the hop."""

    def __init__(self, live, hop, max_batch):
        self.live, self.hop, self.max_batch = live, hop, max_batch
        self.written = self.gap = self.done = 0  # samples; windows that end before `done` are dealt with

    def take(self):
        ends = range(0, self.written + 1, self.hop)
        due = [end for end in ends if end >= self.done and end - WINDOW >= self.gap]
        taken, late = due[: self.max_batch], due[self.max_batch :]
        if not self.live:
            late = []
        if due:
            self.done = (taken + late)[-1] + 1
        return taken, len(late)


steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "take", "take", "skip"]),
        st.integers(0, 2),
        st.sampled_from([0, 1, 160, 1599, 1600, 5000, 16_000, 30_001]),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=100)
@given(
    live=st.tuples(*[st.booleans()] * 3),
    hop=st.sampled_from([800, 1600, 3000, 7001, 16_000]),
    max_batch=st.integers(1, 12),
    steps=steps,
)
def test_of_any_history_every_window_behind_the_last_gap_is_handed_out_or_counted(live, hop, max_batch, steps):
    room = Room(live, hop, max_batch)
    diaries = [Diary(alive, hop, max_batch) for alive in live]
    for step, stream, samples in [*steps, ("take", 0, 0), ("take", 0, 0)]:
        diary = diaries[stream]
        if step == "write":
            room.write(samples, stream)
            diary.written += samples
        elif step == "skip":
            room.skip(samples, stream)
            diary.written += samples
            diary.gap = diary.written
        else:
            expected = [diary.take() for diary in diaries]
            taken, skipped = room.take()
            assert [[end for s, end in taken if s == stream] for stream in range(3)] == [ends for ends, _ in expected]
            assert skipped == [count for _, count in expected]


@settings(deadline=None, max_examples=30)
@given(
    writes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6_000)), max_size=30),
    max_batch=st.integers(1, 4),
)
def test_many_streams_at_once_get_the_windows_each_gets_alone(writes, max_batch):
    together = Room((True, False, True, False), HOP, max_batch)
    alone = [Room((live,), HOP, max_batch) for live in together.schedule.live]
    for stream, samples in writes:
        together.write(samples, stream)
        alone[stream].write(samples)
        taken, skipped = together.take()
        for i, room in enumerate(alone):
            assert ([end for s, end in taken if s == i], skipped[i]) == room.ends()


@settings(deadline=None, max_examples=200)
@given(
    live=st.lists(st.booleans(), min_size=1, max_size=5),
    max_batch=st.integers(1, 6),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(-9000, 30_000)), max_size=25),
)
def test_compiled_it_takes_what_numpy_takes_in_the_same_order(live, max_batch, steps):
    ring = RingBuffer(len(live), 20 * WINDOW)
    forms = window.WindowSchedule, make_schedule
    one, other = (make(len(live), HOP, max_batch, np.array(live)) for make in forms)
    assert isinstance(other, CompiledSchedule) or compiled.library(*compiled_window.PART) is None
    for stream, samples in steps:
        if samples < 0:
            ring.skip(stream % len(live), -samples)
        else:
            ring.write(stream % len(live), np.zeros(samples, np.float32))
        dues = [schedule.take(ring) for schedule in (one, other)]
        for name in ("streams", "ends", "skipped", "distinct"):
            np.testing.assert_array_equal(*(getattr(due, name) for due in dues), name)
        np.testing.assert_array_equal(one.next_end, other.next_end)
