"""Scored hop by hop or as whole windows, posteriors are the same, and no due window is lost without being counted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsd.artefact import ArtefactInfo
from kwsd.audio_format import WINDOW
from kwsd.ring import RingBuffer
from kwsd.scoring import HopScorer, WindowScorer, make_scorer
from kwsd.window import WindowSchedule

HOP = 1600
STEP = 160
CAPACITY = 3 * WINDOW
AMPLE = 60 * WINDOW  # more than is ever written here


def ramp(stream, start, end):
    """Samples [start, end) of a signal in which every sample says where it belongs; float32 holds them exactly."""
    return (np.arange(start, end) + 1 + 1_000_000 * stream).astype(np.float32)


def hearing(windows):
    """What a window holds: its first sample, its last, and how often it does not go up by one: (n, 3)."""
    breaks = (np.diff(windows, axis=1) != 1).sum(1)
    return np.stack([windows[:, 0], windows[:, -1], breaks], 1).astype(np.float32)


def heard(stream, end):
    """The same of the window that ends there, by arithmetic."""
    return [*ramp(stream, end - WINDOW, end)[[0, -1]].tolist(), 0.0]


class Whole:
    """Hears whole windows, and writes down how many it was given."""

    engine = "arithmetic"

    def __init__(self, step=None):
        self.info = ArtefactInfo(
            format=1, architecture="ramp", labels=("first", "last", "breaks"), sample_rate=16_000, window=WINDOW,
            features=None, step=step, thresholds={}, figures=(), data="", licence="", weights_sha256="0" * 64,
        )  # fmt: skip
        self.asked = []

    def score(self, windows):
        self.asked.append(("score", len(windows)))
        return hearing(windows)


class ByHops(Whole):
    """Hears the same from a state, which is the last window; whatever was never begun is not a number."""

    def states(self, streams):
        return np.full((streams, WINDOW), np.nan, np.float32)

    def begin(self, windows, states, streams):
        self._asked_well(streams, windows, WINDOW)
        self.asked.append(("begin", streams.tolist()))
        states[streams] = windows
        return hearing(windows)

    def advance(self, samples, states, streams, hops):
        hop = samples.shape[1] // hops
        self._asked_well(streams, samples, hops * hop)
        self.asked.append(("advance", streams.tolist(), hops))
        posteriors = np.empty((len(streams), hops, 3), np.float32)
        for i in range(hops):
            states[streams] = np.hstack([states[streams], samples[:, i * hop : (i + 1) * hop]])[:, -WINDOW:]
            posteriors[:, i] = hearing(states[streams])
        return posteriors

    def _asked_well(self, streams, samples, size):
        # Networks fail on an empty batch, and take all streams to be in order.
        assert samples.shape == (len(streams), size) and len(streams)
        assert streams.tolist() == sorted(set(streams.tolist()))
        assert samples.dtype == np.float32 and samples.flags.c_contiguous


class Room:
    """Rings full of ramps, and a scorer that listens to what is due in them."""

    def __init__(self, by, live=(False,), hop=HOP, max_batch=16, capacity=CAPACITY):
        self.ring = RingBuffer(len(live), capacity)
        self.schedule = WindowSchedule(len(live), hop, max_batch, np.array(live))
        self.spotter = by(STEP)
        self.scorer = HopScorer(self.spotter, len(live), hop) if by is ByHops else WindowScorer(self.spotter)

    def write(self, samples, stream=0):
        at = int(self.ring.written[stream])
        self.ring.write(stream, ramp(stream, at, at + samples))
        return self

    def skip(self, samples, stream=0):
        self.ring.skip(stream, samples)
        return self

    def listen(self, *late):
        """[(stream, end)] scored and the numbers skipped; checks that each was scored on its own samples and that
        every due window is one or the other. `late` is written when the windows have been found to be due."""
        due = self.schedule.take(self.ring)
        for samples, stream in late:
            self.write(samples, stream)
        before = due.streams.copy(), due.ends.copy(), due.skipped.copy()
        scored = self.scorer.score(self.ring, due)
        assert all(map(np.array_equal, before, (due.streams, due.ends, due.skipped)))
        listed = list(zip(scored.streams.tolist(), scored.ends.tolist(), strict=True))
        assert scored.posteriors.dtype == np.float32
        assert len(scored) == len(listed) == len(scored.posteriors)
        for (stream, end), posterior in zip(listed, scored.posteriors.tolist(), strict=True):
            assert posterior == heard(stream, end), (stream, end)
        all_due = list(zip(due.streams.tolist(), due.ends.tolist(), strict=True))
        assert listed == [window for window in all_due if window in set(listed)]  # in the same order
        for stream, skipped in enumerate(scored.skipped.tolist()):
            kept, wanted = ([s for s, _ in some].count(stream) for some in (listed, all_due))
            assert kept + skipped == wanted + due.skipped[stream]
        return listed, scored.skipped.tolist()

    def ends(self, *late):
        """Of one stream: the ends of the windows scored, and the number skipped."""
        listed, skipped = self.listen(*late)
        return [end for _, end in listed], skipped[0]


either = pytest.mark.parametrize("by", [Whole, ByHops])


# --- which form ---


@pytest.mark.parametrize(
    ("spotter", "hop", "scorer"),
    [
        (ByHops(160), 1600, HopScorer),
        (ByHops(160), 160, HopScorer),
        (ByHops(160), 1000, WindowScorer),  # not a multiple of the step
        (ByHops(160), 80, WindowScorer),
        (ByHops(None), 1600, WindowScorer),  # says itself that it takes whole windows only
        (Whole(None), 1600, WindowScorer),
        (Whole(160), 1600, WindowScorer),  # says that it can be advanced, but cannot
    ],
)
def test_hop_by_hop_where_the_model_can_and_the_hop_fits_else_by_whole_windows(spotter, hop, scorer):
    assert type(make_scorer(spotter, 2, hop)) is scorer


# --- every window is scored on its own samples ---


@either
@pytest.mark.parametrize("hop", [160, 1600, 4800, 16_000])
def test_each_window_is_heard_as_it_was_written(by, hop):
    room, ends = Room(by, hop=hop, max_batch=100), []
    for _ in range(9):
        scored, skipped = room.write(5_000).ends()
        ends += scored
        assert skipped == 0
    assert ends == [end for end in range(0, 45_001, hop) if end >= WINDOW]


@either
def test_the_ring_may_come_round_in_the_middle_of_a_window(by):
    room = Room(by, capacity=2 * WINDOW)
    ends = [end for _ in range(50) for end in room.write(1_999).ends()[0]]
    assert ends == list(range(16_000, 50 * 1_999, HOP))


@either
def test_streams_take_turns(by):
    room = Room(by, live=(True, True, True))
    room.write(17_600, stream=0).write(1_000, stream=1).write(19_200, stream=2)
    windows = [(0, 16_000), (2, 16_000), (0, 17_600), (2, 17_600), (2, 19_200)]
    assert room.listen() == (windows, [0, 0, 0])
    assert room.write(15_000, stream=1).write(1_600, stream=2).listen() == ([(1, 16_000), (2, 20_800)], [0, 0, 0])


@either
def test_a_lead_in_is_heard_as_silence(by):
    room = Room(by)
    room.ring.lead_in(0, WINDOW)
    room.write(1_700)
    scored = room.scorer.score(room.ring, room.schedule.take(room.ring))
    assert scored.ends.tolist() == [0, 1600]
    # Nothing but zeros, none of which is one more than the last; then 1, 2, 3, … behind one zero fewer.
    assert scored.posteriors.tolist() == [[0, 0, WINDOW - 1], [0, 1600, WINDOW - HOP - 1]]


@either
def test_of_a_late_stream_windows_that_the_schedule_skipped_are_counted_once(by):
    room = Room(by, live=(True,), max_batch=3).write(16_000 + 9 * HOP)  # ten windows
    assert room.ends() == ([16_000, 17_600, 19_200], 7)
    assert room.write(2 * HOP).ends() == ([32_000, 33_600], 0)


@either
@pytest.mark.parametrize("hop", [1600, 16_000])
@pytest.mark.parametrize("lost", [0, 100, 1600, 16_000, 90_000])
def test_after_a_gap_no_window_mixes_what_lies_on_its_sides(by, hop, lost):
    room = Room(by, hop=hop).write(32_000)
    room.ends()
    gap = 32_000 + lost
    ends, skipped = room.skip(lost).write(34_000).ends()
    assert ends == [end for end in range(0, gap + 34_001, hop) if end >= gap + WINDOW]
    assert skipped == 0


# --- no more is computed than is new ---


def test_a_stream_is_begun_once_and_then_advanced():
    room = Room(ByHops)
    for _ in range(4):
        room.write(HOP * 10 if not room.spotter.asked else HOP).ends()
    assert room.spotter.asked == [("begin", [0])] + 3 * [("advance", [0], 1)]


def test_hops_that_came_together_are_advanced_over_together():
    room = Room(ByHops).write(WINDOW + 4 * HOP)
    room.ends()
    room.write(3 * HOP).ends()
    assert room.spotter.asked == [("begin", [0]), ("advance", [0], 4), ("advance", [0], 3)]


def test_streams_with_as_many_new_hops_are_advanced_over_together():
    room = Room(ByHops, live=(True,) * 4)
    for stream in range(4):
        room.write(WINDOW, stream)
    room.listen()
    for stream, hops in enumerate((2, 1, 2, 0)):  # the third has fallen behind the first, the last stands still
        room.write(hops * HOP, stream)
    room.listen()
    begun, *advanced = room.spotter.asked
    assert begun == ("begin", [0, 1, 2, 3])
    assert sorted(advanced) == [("advance", [0, 2], 2), ("advance", [1], 1)]


def test_a_gap_begins_its_own_stream_anew_and_no_other():
    room = Room(ByHops, live=(True, True)).write(WINDOW, 0).write(WINDOW, 1)
    room.listen()
    assert room.skip(0, stream=0).write(WINDOW, 0).write(HOP, 1).listen() == ([(0, 32_000), (1, 17_600)], [0, 0])
    assert room.write(HOP, 0).write(HOP, 1).listen() == ([(0, 33_600), (1, 19_200)], [0, 0])
    assert room.spotter.asked == [
        ("begin", [0, 1]), ("begin", [0]), ("advance", [1], 1), ("advance", [0, 1], 1)
    ]  # fmt: skip


def test_over_windows_skipped_by_the_schedule_the_state_goes_on_in_one_stride():
    room = Room(ByHops, live=(True,), max_batch=2).write(WINDOW + 5 * HOP)
    assert room.ends() == ([16_000, 17_600], 4)
    assert room.write(HOP).ends() == ([25_600], 0)
    assert room.spotter.asked == [("begin", [0]), ("advance", [0], 1), ("advance", [0], 1)]


def test_over_a_second_of_skipped_windows_the_state_is_begun_anew():
    room = Room(ByHops, live=(True,), max_batch=1).write(WINDOW + 10 * HOP)
    assert room.ends() == ([16_000], 10)
    assert room.write(HOP).ends() == ([33_600], 0)
    assert room.spotter.asked == [("begin", [0]), ("begin", [0])]


# --- overwritten while we looked ---


@pytest.mark.parametrize("live", [True, False])
def test_of_overwritten_windows_whole_ones_are_scored_and_the_others_counted(live):
    room = Room(Whole, live=(live,), max_batch=100).write(CAPACITY + 2 * HOP)
    assert room.ends() == (list(range(16_000, CAPACITY + 2 * HOP + 1, HOP))[2:], 2)


def test_a_stream_that_can_wait_counts_overwritten_windows_batch_by_batch():
    room = Room(Whole, max_batch=3).write(CAPACITY + 4 * HOP)
    assert room.ends() == ([], 3)
    assert room.ends() == ([22_400, 24_000], 1)


def test_hop_by_hop_what_follows_an_overwritten_window_waits_for_the_next_batch():
    room = Room(ByHops, max_batch=3).write(CAPACITY + 4 * HOP)
    assert room.ends() == ([], 3)
    assert room.ends() == ([], 3)  # the first of them is overwritten, and a state goes on from the one before only
    assert room.ends() == ([25_600, 27_200, 28_800], 0)


@either
def test_nothing_is_asked_of_the_network_where_everything_was_overwritten(by):
    room = Room(by, live=(False, False)).write(WINDOW, 0).write(WINDOW + HOP, 1)
    assert room.listen((CAPACITY, 0), (CAPACITY, 1)) == ([], [1, 2])
    assert room.spotter.asked == []


def test_new_samples_overwritten_before_they_were_read_are_counted_and_the_state_is_begun_anew():
    room = Room(ByHops, max_batch=2).write(WINDOW)
    room.ends()
    room.write(2 * HOP)
    assert room.ends((CAPACITY, 0)) == ([], 2)
    assert room.spotter.asked == [("begin", [0])]
    while not (ends := room.ends()[0]):
        pass
    assert ends == [36_800, 38_400]  # the first batch that lies whole in the ring: sample 19,200 is its oldest
    assert room.spotter.asked[1:] == [("begin", [0]), ("advance", [0], 1)]


def test_a_stream_that_was_overwritten_takes_no_other_with_it():
    room = Room(ByHops, live=(False,) * 3)
    for stream in range(3):
        room.write(WINDOW, stream)
    room.listen()
    for stream in range(3):
        room.write(HOP, stream)
    windows = [(0, 17_600), (2, 17_600)]
    assert room.listen((CAPACITY, 1)) == (windows, [0, 1, 0])


# --- any history ---


histories = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "listen", "listen", "skip", "late"]),
        st.integers(0, 2),
        st.sampled_from([0, 1, 160, 1599, 1600, 3200, 5000, 16_000, 30_001]),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(
    live=st.tuples(*[st.booleans()] * 3),
    hop=st.sampled_from([160, 800, 1600, 4800, 16_000]),
    max_batch=st.integers(1, 12),
    capacity=st.sampled_from([2 * WINDOW, CAPACITY, AMPLE]),
    history=histories,
)
def test_of_any_history_both_forms_give_the_same_posteriors_and_lose_no_window_uncounted(
    live, hop, max_batch, capacity, history
):
    # `listen` holds every posterior against arithmetic, and every count against what was due.
    rooms = [Room(by, live, hop, max_batch, capacity) for by in (Whole, ByHops)]
    for step, stream, samples in [*history, ("listen", 0, 0), ("listen", 0, 0)]:
        results = []
        for room in rooms:
            if step == "write":
                room.write(samples, stream)
            elif step == "skip":
                room.skip(samples, stream)
            else:
                results.append(room.listen(*[(samples, stream)] if step == "late" else []))
        if results and capacity == AMPLE:  # nothing was overwritten
            assert results[0] == results[1]
            assert not np.array(results[0][1])[~np.array(live)].any()
