"""The word in a window is found by its energy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsd.audio_format import WINDOW
from kwsd.span import FRAME, frame_levels_dbfs, is_whole, level_dbfs, noise_level, word_span

NOISE = 0.001


def tone(samples, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * 440 / 16_000 * np.arange(samples))).astype(np.float32)


def window(*utterances, noise=NOISE):
    """A second of faint noise with tones in it, each (first sample, one past its last) or with an amplitude too."""
    made = (np.random.default_rng(3).standard_normal(WINDOW) * noise).astype(np.float32)
    for start, end, *amplitude in utterances:
        made[start:end] += tone(end - start, *amplitude)
    return made


# --- level ---


@pytest.mark.parametrize(
    ("samples", "dbfs"),
    [
        (np.ones(100), 0.0),
        (np.full(100, -1.0), 0.0),
        (np.full(100, 0.1), -20.0),
        (tone(16_000, 1.0), -3.01),  # a sine at full scale
        (tone(16_000, 0.01), -43.01),
        (np.zeros(100), -120.0),
        (np.full(100, 1e-9), -120.0),  # nothing is quieter than digital silence
        (np.zeros(0), -120.0),
    ],
)
def test_the_level_is_root_mean_square_relative_to_full_scale(samples, dbfs):
    assert level_dbfs(samples.astype(np.float32)) == pytest.approx(dbfs, abs=0.01)


def test_the_levels_of_frames_are_those_of_their_samples():
    samples = window((3_000, 9_000))[:15_999]
    levels = frame_levels_dbfs(samples)
    assert levels.shape == (99,)  # an unfinished frame has none
    assert levels.tolist() == pytest.approx([level_dbfs(samples[i * FRAME : (i + 1) * FRAME]) for i in range(99)])
    assert frame_levels_dbfs(np.zeros(320, np.float32)).tolist() == [-120.0, -120.0]


# --- word ---


@pytest.mark.parametrize(
    ("utterances", "span"),
    [
        ([(4_000, 9_600)], (4_000, 9_600)),
        ([(4_100, 9_500)], (4_000, 9_600)),  # whole frames of 10 ms
        ([(0, 3_200)], (0, 3_200)),  # cut off at the beginning
        ([(12_800, 16_000)], (12_800, 16_000)),  # cut off at the end
        ([(3_200, 4_800), (6_400, 8_000)], (3_200, 8_000)),  # a pause of 100 ms is inside the word
        ([(3_200, 4_800), (6_400, 8_000), (9_600, 11_200)], (3_200, 11_200)),  # and so is a second one
        ([(1_600, 3_200), (8_000, 11_200, 0.6)], (8_000, 11_200)),  # one of 300 ms is not: the louder word
        ([(1_600, 3_200, 0.6), (8_000, 11_200)], (1_600, 3_200)),
        ([(1_600, 3_200, 0.6), (8_000, 9_600), (14_400, 16_000)], (1_600, 3_200)),
        ([(0, 1_600), (6_400, 8_000), (12_800, 14_400, 0.6)], (12_800, 14_400)),
        ([(4_000, 6_400, 0.5), (6_400, 9_600, 0.05)], (4_000, 9_600)),  # 20 dB under the loudest is the word still
        ([(4_000, 6_400, 0.5), (6_400, 9_600, 0.005)], (4_000, 6_400)),  # 40 dB under it is not
    ],
)
def test_a_word_reaches_as_far_as_its_energy(utterances, span):
    assert word_span(window(*utterances)) == span


def test_a_frame_far_under_the_loudest_is_not_the_word_even_in_digital_silence():
    assert word_span(window((4_000, 6_400, 0.5), (6_400, 9_600, 0.05), noise=0.0)) == (4_000, 9_600)
    assert word_span(window((4_000, 6_400, 0.5), (6_400, 9_600, 0.005), noise=0.0)) == (4_000, 6_400)


def test_a_pause_is_bridged_up_to_120_ms():
    for pause, bridged in [(11, True), (12, False)]:  # whole frames of silence between the two parts
        again = 4_800 + pause * FRAME
        found = word_span(window((3_200, 4_800, 0.5), (again, again + 320, 0.4)))
        assert found == (3_200, again + 320 if bridged else 4_800)


def test_loud_noise_round_a_word_is_not_the_word():
    start, end = word_span(window((4_800, 9_600, 0.5), noise=0.05))
    assert (start, end) == (4_800, 9_600)


def test_the_loudness_of_a_recording_does_not_matter():
    loud = window((4_800, 9_600))
    assert word_span(loud) == word_span(loud * np.float32(0.01)) == (4_800, 9_600)


def test_digital_silence_has_no_word_and_so_all_of_it_is_told():
    assert word_span(np.zeros(WINDOW, np.float32)) == (0, WINDOW)


def test_less_than_a_frame_is_told_whole():
    assert word_span(tone(FRAME - 1)) == (0, FRAME - 1)


@pytest.mark.parametrize(
    ("utterances", "whole"),
    [
        ([(4_000, 9_600)], True),
        ([(12_800, 16_000)], False),  # goes on beyond the end
        ([(0, 3_200)], False),  # began before the beginning
        ([(0, 3_200, 0.02), (3_200, 9_600, 0.5)], True),  # begins softly at the very edge
        ([(6_400, 12_000, 0.5), (12_000, 16_000, 0.04)], True),  # dies away at the very edge
        ([(0, 16_000)], False),  # nothing stands out
        ([], False),
        ([(0, 4_000), (5_600, 9_600), (11_200, 16_000)], True),  # sound from edge to edge: who knows
    ],
)
def test_a_word_is_whole_where_it_does_not_go_on_beyond_an_edge(utterances, whole):
    assert is_whole(window(*utterances)) is whole
    assert is_whole(window(*utterances) * np.float32(0.02)) is whole, "whatever its level"


def test_of_nothing_no_word_is_whole():
    assert not is_whole(np.zeros(0, np.float32))
    assert not is_whole(np.zeros(WINDOW, np.float32))


@settings(deadline=None, max_examples=100)
@given(
    levels=st.lists(st.sampled_from([0.0, 0.0, 1e-4, 0.01, 0.1, 1.0]), min_size=1, max_size=40),
    extra=st.integers(0, FRAME - 1),
)
def test_a_span_lies_within_any_window_and_holds_its_loudest_frame(levels, extra):
    samples = np.repeat(np.array(levels, np.float32), FRAME)
    samples = np.concatenate([samples, np.zeros(extra, np.float32)])
    start, end = word_span(samples)
    assert 0 <= start < end <= len(samples)
    loudest = int(np.argmax(frame_levels_dbfs(samples))) * FRAME
    assert start <= loudest < end
    assert math.isfinite(level_dbfs(samples[start:end]))


@given(st.lists(st.floats(-120, 0), min_size=1, max_size=40))
def test_the_level_of_the_noise_is_what_a_tenth_is_under(levels):
    levels = np.array(levels)
    assert noise_level(levels) == pytest.approx(float(np.percentile(levels, 10)), abs=1e-9)
