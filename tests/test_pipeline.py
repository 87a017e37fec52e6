"""The stages in a row, with the shipped model and the shipped recording."""

from collections import Counter

import msgspec
import numpy as np
import pytest

from kwsd.artefact import read_info
from kwsd.cascade import Answers
from kwsd.config import KeywordConfig, load_config
from kwsd.engines import load_spotter
from kwsd.errors import ConfigError
from kwsd.event import Heard, Rejected
from kwsd.inlet import Inlet
from kwsd.pipeline import MOST_TOLD_PER_S, Pipeline, StreamInfo, make_ring, make_rules
from kwsd.recording import DEMO, read_recording
from kwsd.scoring import CascadeScorer, HopScorer, WindowScorer

RATE = 16_000


@pytest.fixture(scope="module")
def config():
    return load_config(None, environment={})


@pytest.fixture(scope="module")
def spotter(config):
    return load_spotter(config.model_path, "cpu")


def make(config, spotter, streams=1, live=True):
    ring = make_ring(config, streams)
    inlets = [Inlet(ring, i, RATE, 1, None) for i in range(streams)]
    return Pipeline(
        config, spotter, ring, inlets, [StreamInfo(f"room{i}", live, False) for i in range(streams)]
    ), inlets


def hear(pipeline, inlets, tape, block=1600):
    heard, overruns = [], []
    for start in range(0, tape.size - block, block):
        for inlet in inlets:
            inlet.write(tape[start : start + block, None])
        progress = pipeline.advance()
        heard += progress.heard
        overruns += progress.overruns
    return heard, overruns


def test_every_stream_hears_what_it_would_hear_alone(config, spotter):
    tape = read_recording(DEMO)
    alone, _ = hear(*make(config, spotter), tape)
    together, _ = hear(*make(config, spotter, streams=3), tape)
    assert len(alone) >= 7
    for room in range(3):
        here = [(h.keyword, h.start_s, h.end_s) for h in together if h.stream == f"room{room}"]
        assert here == [(h.keyword, h.start_s, h.end_s) for h in alone]


@pytest.mark.parametrize("block", [1600, 500, 7_000], ids=lambda block: f"blocks of {block}")
def test_hop_by_hop_the_same_is_heard_as_in_whole_windows(config, spotter, block):
    tape = read_recording(DEMO)
    by_hops, inlets = make(config, spotter)
    assert isinstance(by_hops.scorer, CascadeScorer) and isinstance(by_hops.scorer._first, HopScorer)
    expected, _ = hear(by_hops, inlets, tape, block)
    by_windows, inlets = make(config, spotter)
    stages = (WindowScorer(stage) for stage in (spotter.first, spotter.second))
    by_windows.scorer = CascadeScorer(spotter, *stages, Answers(spotter, 1, by_windows.rules.hop))
    heard, _ = hear(by_windows, inlets, tape, block)
    assert [(h.keyword, h.start_s, h.end_s) for h in heard] == [(h.keyword, h.start_s, h.end_s) for h in expected]
    assert [h.score for h in heard] == pytest.approx([h.score for h in expected], abs=2e-3)  # of three decimals
    assert len(heard) >= 7


def test_a_live_stream_that_is_not_listened_to_says_what_it_skipped(config, spotter):
    pipeline, [inlet] = make(config, spotter)
    inlet.write(np.zeros((int(3.5 * RATE), 1), np.float32))  # 26 windows at once
    [overrun] = pipeline.advance().overruns
    assert overrun.stream == "room0"
    assert overrun.skipped_windows == 26 - config.window.max_batch


def test_a_stream_that_loses_audio_all_the_time_says_so_once_a_second(config, spotter):
    pipeline, inlets = make(config, spotter)
    told, overflows = 0, 0
    for _ in range(100):  # two seconds of 20 ms blocks, each after an overflow
        inlets[0].overflow()
        inlets[0].write(np.zeros((320, 1), np.float32))
        for overrun in pipeline.advance().overruns:
            told += 1
            overflows += overrun.device_overflows
    assert 2 <= told <= 3
    inlets[0].end()
    overflows += sum(overrun.device_overflows for overrun in pipeline.advance().overruns)
    assert overflows == 100, "all are counted in the end"


def test_of_many_streams_that_lose_audio_each_says_so_less_often_and_none_is_forgotten(config, spotter):
    streams = 3 * MOST_TOLD_PER_S
    pipeline, inlets = make(config, spotter, streams)
    told, overflows = Counter(), 0
    for _ in range(40):  # 4 s of 100 ms blocks, each after an overflow
        for inlet in inlets:
            inlet.overflow()
            inlet.write(np.zeros((1600, 1), np.float32))
        for overrun in pipeline.advance().overruns:
            told[overrun.stream] += 1
            overflows += overrun.device_overflows
    assert set(told.values()) == {2}, "at once, and after three seconds"
    for inlet in inlets:
        inlet.end()
    overflows += sum(overrun.device_overflows for overrun in pipeline.advance().overruns)
    assert overflows == 40 * streams


def test_windows_that_were_skipped_are_told_once_and_none_of_them_to_who_comes_next(config, spotter):
    single = msgspec.structs.replace(config, window=msgspec.structs.replace(config.window, max_batch=1))
    pipeline, [inlet] = make(single, spotter)

    def skipped(hops, times=1):
        told = []
        for _ in range(times):
            inlet.write(np.zeros((hops * 1600, 1), np.float32))
            told += [overrun.skipped_windows for overrun in pipeline.advance().overruns]
        return told

    assert skipped(10) == [] and skipped(3) == [2]
    assert skipped(3) == [], "not again within a second"
    assert skipped(1, times=20) == [2]
    assert skipped(3) == [2] and skipped(3) == []
    pipeline.forget(0)
    assert skipped(1, times=12) == []


def test_what_one_stream_was_told_is_not_kept_from_who_comes_next(config, spotter):
    debouncer = msgspec.structs.replace(config.debouncer, refractory_ms=60_000.0)
    pipeline, inlets = make(msgspec.structs.replace(config, debouncer=debouncer), spotter)
    for _ in range(2):
        heard, _ = hear(pipeline, inlets, read_recording(DEMO)[: 4 * RATE])
        assert [word.keyword for word in heard] == ["stop"]
        pipeline.forget(0)


def test_a_stream_is_scored_to_its_end_only_with_the_window_that_ends_there(config, spotter):
    pipeline, [inlet] = make(config, spotter)
    inlet.write(np.zeros((RATE, 1), np.float32))
    inlet.pump()
    assert not pipeline.scored_all_of(0)
    pipeline.advance()
    assert pipeline.scored_all_of(0)


def test_times_are_those_of_the_stream_wherever_it_begins_in_the_ring(config, spotter):
    keywords = {"all": KeywordConfig(), "stop": KeywordConfig(threshold=1.0)}
    events = msgspec.structs.replace(config.events, rejected=True)
    config = msgspec.structs.replace(config, keywords=keywords, events=events)

    def told(begins):
        ring = make_ring(config, 1)
        ring.skip(0, begins)
        inlet = Inlet(ring, 0, RATE, 1, None)
        pipeline = Pipeline(config, spotter, ring, [inlet], [StreamInfo("room", True, False, origin=inlet.origin)])
        return hear(pipeline, [inlet], read_recording(DEMO)[: 9 * RATE])[0]

    def times(event):
        return (event.start_s, event.end_s) if isinstance(event, Heard) else event.at_s

    at_once, later = told(0), told(RATE)
    assert [times(event) for event in later] == [times(event) for event in at_once]
    assert {type(event) for event in later} == {Heard, Rejected}


def test_a_pipeline_that_takes_over_tells_no_loss_twice(config, spotter):
    pipeline, [inlet] = make(config, spotter)
    inlet.overflow()
    assert [overrun.device_overflows for overrun in pipeline.advance().overruns] == [1]
    successor = Pipeline(config, spotter, pipeline.ring, [inlet], pipeline.streams)
    successor.take_over(pipeline)
    inlet.write(np.zeros((2 * RATE, 1), np.float32))
    assert successor.advance().overruns == []


def test_a_pipeline_that_takes_over_tells_no_word_twice(config, spotter):
    tape = read_recording(DEMO)
    first, inlets = make(config, spotter)
    heard = []
    pipeline = first
    for n, start in enumerate(range(0, tape.size - 1600, 1600)):
        inlets[0].write(tape[start : start + 1600, None])
        heard += pipeline.advance().heard
        if n % 7 == 6:
            successor = Pipeline(config, spotter, first.ring, inlets, first.streams)
            successor.take_over(pipeline)
            pipeline = successor
    keywords = [h.keyword for h in heard]
    assert len(keywords) == len(set(keywords)), "the recording says each word once"


@pytest.mark.parametrize("every", [5, 9, 23])
def test_the_hop_may_change_while_words_are_said(config, spotter, every):
    tape = read_recording(DEMO)
    pipeline, inlets = make(config, spotter)
    steady, _ = hear(*make(config, spotter), tape)
    heard, wide = [], msgspec.structs.replace(config, window=msgspec.structs.replace(config.window, hop_ms=200.0))
    for n, start in enumerate(range(0, tape.size - 1600, 1600)):
        inlets[0].write(tape[start : start + 1600, None])
        heard += pipeline.advance().heard
        if n % every == every - 1:
            other = wide if n // every % 2 == 0 else config
            successor = Pipeline(other, spotter, pipeline.ring, inlets, pipeline.streams)
            successor.take_over(pipeline)
            pipeline = successor
    keywords = [h.keyword for h in heard]
    assert len(keywords) == len(set(keywords)), "the recording says each word once"
    assert len(set(keywords) & {h.keyword for h in steady}) >= len(steady) - 1


def test_a_keyword_takes_its_own_rules_and_the_model_s_threshold_otherwise(config):
    info = read_info(config.model_path)
    own = {"stop": KeywordConfig(threshold=0.5, refractory_ms=2000), "go": KeywordConfig(isolation_speech_s=2.0)}
    rules = make_rules(msgspec.structs.replace(config, keywords=own), info)
    assert rules.keywords == ("stop", "go")
    assert rules.threshold.tolist() == pytest.approx([0.5, info.thresholds["go"]])
    assert rules.refractory.tolist() == [32_000, 8_000]
    assert rules.isolation_speech.tolist() == [19_200, 32_000]


def test_a_model_that_does_not_know_other_speech_is_judged_by_the_last_second_alone(config):
    info = read_info(config.model_path)
    changed = msgspec.structs.replace(config.debouncer, wary_s=5.0, wary_threshold=0.9)
    config = msgspec.structs.replace(config, debouncer=changed, keywords={"stop": KeywordConfig()})
    knows = make_rules(config, info)
    assert (knows.isolation_speech.tolist(), knows.wary, knows.wary_threshold) == ([19_200], 80_000, 0.9)
    does_not = make_rules(config, msgspec.structs.replace(info, labels=("stop", "go")))
    assert (does_not.isolation_speech.tolist(), does_not.wary) == ([-1], 0)


def test_where_nothing_is_looked_back_on_other_speech_is_no_matter(config):
    debouncer = msgspec.structs.replace(config.debouncer, isolation_s=0.0, isolation_speech_s=0.0)
    rules = make_rules(msgspec.structs.replace(config, debouncer=debouncer), read_info(config.model_path))
    assert set(rules.isolation_speech.tolist()) == {-1}


def test_of_less_than_a_hop_no_mean_is_taken(config):
    debouncer = msgspec.structs.replace(config.debouncer, smoothing_ms=10.0)
    rules = make_rules(msgspec.structs.replace(config, debouncer=debouncer), read_info(config.model_path))
    assert rules.smoothing == 1


def test_with_all_among_the_keywords_the_others_are_listened_for_too():
    config = load_config(None, environment={})
    info = read_info(config.model_path)
    own = {"all": KeywordConfig(margin=0.3), "stop": KeywordConfig(threshold=0.5), "go": KeywordConfig(margin=0.1)}
    rules, usual = make_rules(msgspec.structs.replace(config, keywords=own), info), make_rules(config, info)
    assert rules.keywords == usual.keywords
    assert rules.thresholds == usual.thresholds | {"stop": 0.5}
    margins = dict(zip(rules.keywords, rules.margin.tolist(), strict=True))
    assert margins == pytest.approx(dict.fromkeys(usual.keywords, 0.3) | {"go": 0.1})


def test_who_says_more_of_one_word_on_the_command_line_still_hears_all():
    stop = "keywords.stop.threshold=0.9"
    config = load_config(None, (stop,), {"KWSD_KEYWORDS__GO__MARGIN": "0.2"})
    assert config.keywords == {
        "all": KeywordConfig(), "go": KeywordConfig(margin=0.2), "stop": KeywordConfig(threshold=0.9)
    }  # fmt: skip
    config = load_config(None, ("keywords=all", stop), {"KWSD_KEYWORDS__GO__MARGIN": "0.2"})
    assert config.keywords == {"all": KeywordConfig(), "stop": KeywordConfig(threshold=0.9)}


def test_who_named_some_words_hears_those_whatever_more_is_said_of_one():
    config = load_config(None, ("keywords=[stop, go]", "keywords.stop.threshold=0.9"), {})
    assert config.keywords == {"stop": KeywordConfig(threshold=0.9), "go": KeywordConfig()}


def test_keywords_in_a_list_are_as_the_model_recommends(config):
    info = read_info(config.model_path)
    rules = make_rules(msgspec.structs.replace(config, keywords=("stop", "go", "stop")), info)
    assert rules.keywords == ("stop", "go")
    assert rules.threshold.tolist() == pytest.approx([info.thresholds["stop"], info.thresholds["go"]])


def test_by_default_the_release_is_no_higher_than_a_threshold(config):
    keywords = {"stop": KeywordConfig(threshold=0.3), "go": KeywordConfig(threshold=0.6)}
    rules = make_rules(msgspec.structs.replace(config, keywords=keywords), read_info(config.model_path))
    assert rules.release.tolist() == pytest.approx([0.3, 0.4])


def test_a_threshold_of_nothing_is_refused(config):
    keywords = {"stop": KeywordConfig(threshold=0.0)}
    with pytest.raises(ConfigError, match=r"stop\.threshold: with a threshold of 0 anything would be it"):
        make_rules(msgspec.structs.replace(config, keywords=keywords), read_info(config.model_path))


def test_a_release_above_a_recommended_threshold_is_refused(config):
    debouncer = msgspec.structs.replace(config.debouncer, release=0.99)
    with pytest.raises(ConfigError, match=r"release 0\.99 is above its threshold"):
        make_rules(msgspec.structs.replace(config, debouncer=debouncer), read_info(config.model_path))


# --- a microphone that was lost over a word ---


@pytest.mark.parametrize("cut_s", [2.1, 2.2, 2.3])
def test_a_word_of_which_a_gap_took_a_part_is_not_put_together(config, spotter, cut_s):
    """ "stop" is said from 2.0 to 2.44 s. The device is lost in it, and opened again: neither the halves side by side
    nor what was said before the gap makes a word after it."""
    speech = read_recording(DEMO)[: 9 * RATE]
    ring = make_ring(config, 1)
    inlet = Inlet(ring, 0, RATE, 1, None)
    pipeline = Pipeline(config, spotter, ring, [inlet], [StreamInfo("mic", True, False)])
    heard = []

    def feed(samples):
        for piece in np.array_split(samples, max(1, len(samples) // 1600)):
            inlet.write(piece[:, None])
            heard.extend(pipeline.advance().heard)

    cut = round(cut_s * RATE)
    feed(speech[:cut])
    told = len(heard)
    inlet.reopen(RATE, 1)
    feed(speech[cut:])
    after = [word.keyword for word in heard[told:]]
    assert told == 0 or heard[0].keyword == "stop"
    assert after == ["yes", "up"], "what came whole is heard, and nothing else"
