"""Lags are counted to the millisecond, and the hop follows the load without swinging."""

import contextlib
import itertools
import math
import os
import threading
import time

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from kwsd.config import FileConfig, PcmConfig, load_config
from kwsd.engines import load_spotter
from kwsd.listening import Listening, Reports
from kwsd.load import CALM_LOOKS, LONGEST_CALM, LONGEST_MS, TOGETHER_S, Arrival, LagMeter, Load, Overload
from kwsd.recording import DEMO, read_recording
from kwsd.rest import LATE_S, SLACK_S, wait_s

PATIENCE_S = 40.0


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200), st.sampled_from([50.0, 95.0, 99.0, 100.0]))
def test_a_percentile_is_the_lag_that_so_many_do_not_exceed(lags, percent):
    meter = LagMeter()
    for lag in lags:
        meter.note([lag])
    told = meter.percentile_ms(percent)
    within = np.mean(np.ceil(np.array(lags) * 1000) <= told) * 100
    assert within >= percent - 1e-9
    assert told == 0 or np.mean(np.ceil(np.array(lags) * 1000) <= told - 1) * 100 < percent
    assert meter.windows == len(lags)


def test_many_lags_at_once_count_as_each():
    meter = LagMeter()
    meter.note(np.array([0.001, 0.002, 0.002, 0.5]))
    assert (meter.windows, meter.percentile_ms(75), meter.percentile_ms(100)) == (4, 2, 500)


def test_of_nothing_there_is_no_percentile():
    assert LagMeter().percentile_ms(99) is None


@pytest.mark.parametrize(("lag", "told"), [(-0.01, 0), (1e6, LONGEST_MS)])
def test_lags_out_of_range_count_as_the_nearest(lag, told):
    meter = LagMeter()
    meter.note([lag])
    assert meter.percentile_ms(99) == told


def stretches(looks, hop_ms=100.0):
    overload = Overload(hop_ms)
    return [overload.look(share, lag) for share, lag in looks]


def test_busy_but_in_time_changes_nothing():
    assert stretches([(0.99, 150.0)] * 10) == [1] * 10


def test_late_for_want_of_time_stretches_the_hop_step_by_step_and_no_further():
    assert stretches([(0.99, 900.0)] * 4) == [2, 4, 4, 4]


@pytest.mark.parametrize(
    ("share", "lag_ms", "stretch"),
    [(0.9, 900.0, 1), (0.901, 900.0, 2), (0.99, 200.0, 1), (0.99, 201.0, 2)],
)
def test_the_hop_is_stretched_beyond_nine_tenths_of_the_time_and_two_hops_of_lag(share, lag_ms, stretch):
    assert stretches([(share, lag_ms)]) == [stretch]


@pytest.mark.parametrize(("share", "lag_ms", "stretch"), [(0.749, 400.0, 1), (0.75, 400.0, 2), (0.749, 401.0, 2)])
def test_the_hop_is_shortened_below_three_quarters_of_the_time_and_in_time(share, lag_ms, stretch):
    assert stretches([(0.99, 900.0)] + [(share, lag_ms)] * CALM_LOOKS)[-1] == stretch


def test_late_without_being_busy_is_no_overload():
    """Somebody else took the processor, or a satellite sent a burst."""
    assert stretches([(0.3, 900.0)] * 10) == [1] * 10


def test_what_is_late_is_measured_in_hops():
    assert stretches([(0.99, 300.0), (0.99, 300.0)]) == [2, 2]


def test_after_calm_seconds_the_hop_is_shortened_step_by_step():
    calm = [(0.2, 50.0)] * CALM_LOOKS
    assert stretches([(0.99, 900.0)] * 2 + calm * 2) == [2, 4] + [4] * (CALM_LOOKS - 1) + [2] * CALM_LOOKS + [1]


def test_calm_must_last():
    nearly = [(0.2, 50.0)] * (CALM_LOOKS - 1) + [(0.8, 50.0)]
    assert stretches([(0.99, 900.0)] + nearly * 4)[1:] == [2] * 4 * CALM_LOOKS


def test_a_shorter_hop_that_proves_too_short_is_tried_again_less_and_less_often():
    overload, tries, shorter = Overload(100.0), [], 0
    overload.look(0.99, 900.0)
    for look in range(1000):
        before = overload.stretch
        share, lag = (0.5, 50.0) if before == 2 else (0.99, 900.0)  # twice the hop is enough, the hop itself never
        if overload.look(share, lag) < before:
            tries.append(look - shorter)
            shorter = look
    assert tries == [CALM_LOOKS - 1, 10 + 1, 20 + 1, 40 + 1, 80 + 1, *[LONGEST_CALM + 1] * 5]


def test_after_a_try_that_lasted_the_next_one_comes_as_soon_as_the_first():
    looks = [(0.99, 900.0)] + [(0.5, 50.0)] * (CALM_LOOKS + 60) + [(0.99, 900.0)] + [(0.5, 50.0)] * CALM_LOOKS
    assert stretches(looks)[-CALM_LOOKS - 1 :] == [2] * CALM_LOOKS + [1]


def test_where_no_audio_comes_the_hop_is_shortened_again():
    assert stretches([(0.99, 900.0)] + [(0.0, None)] * CALM_LOOKS)[-1] == 1


# --- when audio came, and what scoring it comes to ---


def test_the_last_lump_came_at_once_and_what_was_before_it_in_real_time():
    arrival = Arrival()
    arrival.note(0, 10.0)
    arrival.note(1600, 10.1)
    assert [arrival.of(sample) for sample in (800, 1600, 1601, 3200)] == pytest.approx([9.95, 10.0, 10.1, 10.1])
    arrival.note(3200, 10.1 + TOGETHER_S / 2)
    arrival.note(4800, 10.1 + TOGETHER_S)
    assert arrival.of(1600) == pytest.approx(10.0) and arrival.of(3200) == arrival.of(6400) == arrival.at


def test_a_second_that_was_full_and_late_stretches_the_hop_and_counts_for_no_other():
    load = Load(100.0, 0.0)
    load.note(3, 0.0, 0.95)
    load.note_lags(np.array([0.9] * 3))
    assert not load.look(0.99)
    assert load.look(1.0) and (load.overload.stretch, load.lag_ms, load.lags_ever.windows) == (2, 900, 3)
    assert [load.look(1.0 + second) for second in range(1, CALM_LOOKS + 1)] == [False] * (CALM_LOOKS - 1) + [True]
    assert (load.overload.stretch, load.lag_ms, load.lags_ever.windows) == (1, None, 3)


def test_how_busy_it_was_is_a_share_of_the_time_since_the_last_look():
    load = Load(100.0, 0.0)
    load.note(3, 0.0, 1.2)
    load.note_lags(np.array([0.9]))
    assert not load.look(2.0)


def test_a_turn_that_found_no_window_has_scored_none():
    load = Load(100.0, 1.0)
    load.note(0, 1.0, 5.0)
    assert (load.windows, load.scored_at) == (0, 1.0)
    load.note(2, 5.0, 6.0)
    assert (load.windows, load.scored_at) == (2, 6.0)


def test_whoever_asks_for_lags_gets_those_since_it_was_asked_before():
    load = Load(100.0, 0.0)
    load.note(3, 0.0, 0.1)
    load.note_lags(np.array([0.1, 0.2]))
    asked = [load.lags(), load.lags()]
    assert [(lags.scored, lags.windows) for lags in asked] == [(3, 2), (0, 0)]


# --- a block that is late ---


@pytest.mark.parametrize("late_s", [0.0005, 0.004, 0.02, 0.1, 0.4])
def test_a_block_that_is_late_is_not_looked_for_over_and_over_nor_found_much_later(late_s):
    came_s, now, looks = 0.1 + late_s, 0.0, 0
    while now < came_s:
        now += wait_s(0.1 - now)
        looks += 1
    assert now - came_s <= max(late_s, LATE_S)
    assert looks <= 2 + math.log2(max(late_s / SLACK_S, 1.0))


# --- a model that is too slow for a while ---


class Slowed:
    """The shipped model, which takes longer for every window while it is told to."""

    engine = "slow"

    def __init__(self, spotter):
        self.info, self._spotter, self.seconds = spotter.info, spotter, 0.0
        self.states, self.score = spotter.states, spotter.score

    def begin(self, *given):
        time.sleep(self.seconds)
        return self._spotter.begin(*given)

    def advance(self, samples, states, streams, hops):
        time.sleep(self.seconds * hops)
        return self._spotter.advance(samples, states, streams, hops)


def wait_for(what):
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextlib.contextmanager
def on_tape(folder, speech):
    """A recording that is played in real time."""
    soundfile.write(folder / "tape.wav", speech, 16_000)
    yield FileConfig(path=str(folder / "tape.wav"))


@contextlib.contextmanager
def through_a_pipe(folder, speech):
    """A writer that keeps time, as a recorder does; were it made to wait, it would lose what is said."""
    pipe, over = folder / "pipe", threading.Event()
    os.mkfifo(pipe)

    def write():
        samples = (speech * 32767).astype("<i2")
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", 0) as writer:
            begun = time.monotonic()
            for start in range(0, len(samples), 1600):
                writer.write(samples[start : start + 1600].tobytes())
                if over.wait(max(0.0, begun + (start + 1600) / 16_000 - time.monotonic())):
                    return

    threading.Thread(target=write, daemon=True).start()
    try:
        yield PcmConfig(path=str(pipe))
    finally:
        over.set()


@pytest.mark.parametrize("played", [on_tape, through_a_pipe])
def test_a_daemon_that_cannot_keep_up_looks_less_often_says_so_and_comes_back(tmp_path, played):
    speech = read_recording(DEMO)
    with played(tmp_path, np.tile(speech, 4)) as stream:
        looks_less_often_and_comes_back(msgspec.structs.replace(load_config(None, environment={}), streams=(stream,)))


def looks_as_often_as_it_can(listening):
    """For two seconds: at twice the hop at most, and soon after the audio came."""
    listening.load.lags()
    begun = time.monotonic()
    time.sleep(2.0)
    lags = listening.load.lags()
    return 0 < lags.windows <= (time.monotonic() - begun) / 0.2 + 2 and lags.percentile_ms(99.0) < 600


def looks_less_often_and_comes_back(config):
    overloads, heard, skipped, lost = [], [], [], []

    def progress(progress):
        heard.extend((event.keyword, event.start_s) for event in progress.heard)
        skipped.extend(progress.overruns)

    listening = Listening(
        config, Reports(progress, lambda *failed: lost.append(failed), lambda _: None, overload=overloads.append)
    )
    slowed = Slowed(load_spotter(config.model_path, "cpu").first)  # a cascade is slow only where words are
    slowed.seconds = 0.13
    listening.start(slowed)
    try:
        wait_for(lambda: overloads)
        assert overloads[0].hop_ms == 200.0 and overloads[0].lag_ms > 200
        wait_for(lambda: looks_as_often_as_it_can(listening))
        wait_for(lambda: len({word for word, _ in heard}) >= 2)  # what is served meanwhile is understood
        slowed.seconds = 0.0
        wait_for(lambda: overloads[-1].hop_ms == 100.0)
        before = len(heard)
        wait_for(lambda: len(heard) >= before + 2)
    finally:
        listening.stop()
    hops = [100.0, *(event.hop_ms for event in overloads)]
    assert all(later / sooner in {0.5, 2.0} for sooner, later in itertools.pairwise(hops)), hops
    assert not lost


def test_scoring_waits_where_more_is_heard_than_is_dealt_with(tmp_path):
    tape = tmp_path / "tape.wav"
    soundfile.write(tape, np.tile(read_recording(DEMO), 10), 16_000)
    config = load_config(None, environment={})
    config = msgspec.structs.replace(config, streams=(FileConfig(path=str(tape), realtime=False),))
    heard, over, untold = [], [], []

    def progress(progress):
        heard.extend(progress.heard)
        untold.append(progress)

    listening = Listening(
        config, Reports(progress, lambda *_: None, over.append, behind=lambda: len(untold) > 3 and not over)
    )
    listening.start(load_spotter(config.model_path, "cpu"))
    try:
        wait_for(lambda: len(untold) > 3)
        time.sleep(0.3)
        assert len(untold) == 4, "and so much of the tape is left as it is"
        while not over:
            untold.clear()
            time.sleep(0.001)
    finally:
        listening.stop()
    assert len(heard) == 100, "nothing is lost by waiting"


def test_other_keywords_that_come_just_as_the_hop_changes_are_taken_up_with_their_model(tmp_path):
    config = load_config(None, ("streams=[]", f"listen.on=[unix:{tmp_path}/audio.sock]"), environment={})
    over, overloads = [], []
    reports = Reports(lambda _: None, lambda *_: None, over.append, overload=overloads.append)
    first = load_spotter(config.model_path, "cpu").first
    listening = Listening(config, reports)
    other = Slowed(first)
    other.info = msgspec.structs.replace(first.info, labels=("Hugo", *first.info.labels[1:]), thresholds={"Hugo": 0.5})

    def look(*_):
        if not overloads:
            listening.replace(msgspec.structs.replace(config, keywords=("Hugo",)), other)
            listening.load.overload.stretch = 2
        return listening.load.overload.stretch

    listening.load.overload.look = look
    listening.start(first)
    try:
        wait_for(lambda: over or (overloads and listening._pipeline.rules.keywords == ("Hugo",)))
        assert not over and listening._pipeline.schedule.hop == 3200
    finally:
        listening.stop()


def test_who_waits_for_others_can_be_stopped(tmp_path):
    tape = tmp_path / "tape.wav"
    soundfile.write(tape, read_recording(DEMO), 16_000)
    config = load_config(None, environment={})
    config = msgspec.structs.replace(config, streams=(FileConfig(path=str(tape), realtime=False),))
    listening = Listening(config, Reports(lambda _: None, lambda *_: None, lambda _: None, behind=lambda: True))
    listening.start(load_spotter(config.model_path, "cpu"))
    time.sleep(0.1)
    listening.stop()
    listening._thread.join(PATIENCE_S)
    assert not listening._thread.is_alive()
