"""Counts only grow, whatever is reloaded, and are told in words and numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsd.event import (
    AudioFault,
    AudioHealed,
    AudioLost,
    AudioRestored,
    BrokerRestored,
    Heard,
    Overrun,
    Rejected,
    Reload,
    RunnerUp,
    Shutdown,
    StreamJoined,
    StreamState,
)
from kwsd.load import LagMeter
from kwsd.metrics import COUNTED, LAG_BUCKETS_S, MOST_LABELS, Counters, Metric, lag_histogram, lines, stream_gauges

ADDED = st.lists(st.tuples(st.sampled_from(["mic", "tap"]), st.integers(0, 5)), max_size=20)


def counted(counters, name, more=None):
    return next(metric.values for metric in counters.metrics(more) if metric.name == name)


@given(ADDED, ADDED)
def test_what_another_one_counted_is_added_and_may_be_taken_in(mine, theirs):
    counters, other = Counters(), Counters()
    for to, added in ((counters, mine), (other, theirs)):
        for stream, count in added:
            to.add("blocks", stream, count=count)
    total = {}
    for stream, count in mine + theirs:
        total[stream] = total.get(stream, 0) + count
    expected = {(stream,): count for stream, count in total.items()}
    assert counted(counters, "blocks", other) == expected
    counters.absorb(other)
    assert counted(counters, "blocks") == expected


def test_names_without_end_are_counted_together():
    counters = Counters()
    for n in range(2 * MOST_LABELS):
        counters.add("losses", f"room {n}")
    counters.add("losses", "room 0")
    values = counted(counters, "losses")
    assert len(values) == MOST_LABELS + 1 and sum(values.values()) == 2 * MOST_LABELS + 1
    assert values["other",] == MOST_LABELS and values["room 0",] == 2


MIC = ("mic",)
EVENTS = [
    (Overrun(stream="mic", skipped_windows=3, lost_samples=5, device_overflows=2), {
        "overruns": {MIC: 1}, "windows_skipped": {MIC: 3}, "samples_lost": {MIC: 5}, "device_overflows": {MIC: 2}}),
    (AudioLost(stream="mic", reason="x"), {"losses": {MIC: 1}}),
    (AudioRestored(stream="mic", gap_s=1.0), {"reconnects": {MIC: 1}}),
    (AudioFault(stream="mic", fault="quiet", meaning="x", lasted_s=1.0, level_dbfs=-90.0), {
        "faults": {("mic", "quiet"): 1}}),
    (AudioHealed(stream="mic", fault="quiet", lasted_s=1.0), {}),
    (StreamJoined(stream="tap", rate=16_000, channels=1), {"satellites": {(): 1}}),
    (BrokerRestored(broker="mqtt://host", gap_s=1.0, dropped=4), {"mqtt_dropped": {("mqtt://host",): 4}}),
    (Reload(ok=False, error="x"), {"reloads": {("no",): 1}}),
    (Reload(ok=True), {"reloads": {("yes",): 1}}),
    (Rejected(stream="mic", keyword="go", score=0.5, threshold=0.7, reason="margin", at_s=1.0), {
        "rejections": {("go", "margin"): 1}}),
    (Shutdown(reason="x", detections=3), {}),
]  # fmt: skip


@pytest.mark.parametrize(("event", "expected"), EVENTS, ids=[type(event).__name__ for event, _ in EVENTS])
def test_an_event_counts_for_what_it_says(event, expected):
    counters = Counters()
    counters.note(event)
    assert {metric.name: metric.values for metric in counters.metrics() if any(metric.values.values())} == expected


def test_clients_of_the_moment_count_as_one_stream():
    counters = Counters()
    for number in range(3):
        name = f"wyoming 127.0.0.1 {number}"
        heard = Heard(
            stream=name, keyword="go", score=0.9, threshold=0.7, runner_up=RunnerUp("no", 0.1),
            start_s=1.0, end_s=1.5, latency_ms=None, level_dbfs=-20.0, model="m",
        )  # fmt: skip
        counters.note(heard, passing=True)
        counters.note(Overrun(stream=name, skipped_windows=1, lost_samples=0, device_overflows=0), passing=True)
    assert counted(counters, "detections") == {("clients", "go"): 3}
    assert counted(counters, "overruns") == {("clients",): 3}


def test_every_count_is_there_from_the_start_and_only_of_known_names():
    assert [metric.name for metric in Counters().metrics()] == list(COUNTED)
    assert counted(Counters(), "windows_scored") == {(): 0}
    with pytest.raises(KeyError):
        Counters().add("nonsense")


@given(st.lists(st.floats(0, 12), max_size=100))
def test_lags_are_sorted_into_buckets_that_hold_those_below_them(lags):
    meter = LagMeter()
    meter.note(lags)
    histogram = lag_histogram(meter)
    assert [most for most, _ in histogram.buckets] == [*LAG_BUCKETS_S, float("inf")]
    for most, count in histogram.buckets[:-1]:
        assert count == sum(lag <= most for lag in lags) or any(0 < most - lag < 1e-3 for lag in lags)
    assert histogram.buckets[-1][1] == len(lags)
    assert histogram.total == pytest.approx(sum(min(lag, 10.0) for lag in lags), abs=0.001 * len(lags) + 1e-9)


def test_meters_add_up():
    one, other = LagMeter(), LagMeter()
    one.note([0.1, 0.2])
    other.note([0.3])
    one.take_in(other)
    assert (one.windows, one.within_ms(200), one.total_s) == (3, 2, pytest.approx(0.6))


def test_how_streams_are_is_told_in_seconds_and_decibels_of_those_that_have_any():
    states = (
        StreamState(stream="mic", heard_s=9.0, lag_ms=250, level_dbfs=-30.0, floor_dbfs=-60.0),
        StreamState(stream="tap", heard_s=0.0, lag_ms=4000, level_dbfs=None, ailment="lost"),
    )
    assert {metric.name: metric.values for metric in stream_gauges(states, 200.0)} == {
        "hears": {("mic",): 1.0, ("tap",): 0.0},
        "audio_age_seconds": {("mic",): 0.25, ("tap",): 4.0},
        "level_dbfs": {("mic",): -30.0},
        "noise_floor_dbfs": {("mic",): -60.0},
        "hop_seconds": {(): 0.2},
    }


def test_people_get_a_line_for_each_value():
    meter = LagMeter()
    meter.note([0.02, 0.3])
    counters = Counters()
    counters.add("detections", "mic", "stop", count=3)
    told = list(lines([*counters.metrics(), Metric("ready", "gauge", "", (), {(): 1.0}), lag_histogram(meter)]))
    assert "detections (stream=mic, keyword=stop): 3" in told
    assert "ready: 1" in told
    assert told[-1].startswith("lag_seconds: 0 within 0.01 s, 1 within 0.025 s") and told[-1].endswith(", of 2")
