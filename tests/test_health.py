"""What a microphone that cannot hear delivers, told from what one that hears does."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import Running, clean_environment

from kwsd.health import CLIPPING, CONSTANT, MEANING, NONSENSE, QUIET, SILENCE, STUCK, Finding, Health, fault_in, repeats
from kwsd.recording import DEMO, read_recording

RATE = 48_000
FLOOR = -85.0
rng = np.random.default_rng(1)
TIMES = np.arange(RATE) / RATE


def noise(level_dbfs, seed=2, samples=RATE):
    return (np.random.default_rng(seed).normal(size=samples) * 10 ** (level_dbfs / 20)).astype(np.float32)


def in_16_bits(samples):
    return (np.round(np.clip(samples, -1, 1) * 32767) / 32768).astype(np.float32)


SICK = {
    "not a number": (np.full(RATE, np.nan, np.float32), NONSENSE),
    "infinity, once": (np.where(np.arange(RATE) == 100, np.inf, 0.1).astype(np.float32), NONSENSE),
    "zeros": (np.zeros(RATE, np.float32), SILENCE),
    "an offset alone": (np.full(RATE, 0.1, np.float32), CONSTANT),
    "an offset that flickers by one step": (in_16_bits(0.1 + noise(-110)), CONSTANT),
    "full scale": (np.ones(RATE, np.float32), CONSTANT),
    "a buffer of 50 ms": (np.tile(noise(-30, samples=2400), 20), STUCK),
    "a buffer whose length does not divide the second": (np.tile(noise(-30, samples=1023), 50)[:RATE], STUCK),
    "half a second twice": (np.tile(noise(-30, samples=RATE // 2), 2), STUCK),
    "a buffer of a quiet room in 16 bits": (np.tile(in_16_bits(noise(-75, samples=4800)), 10), STUCK),
    "an overdriven sine": (np.clip(3 * np.sin(2 * np.pi * 123.4567 * TIMES), -1, 1).astype(np.float32), CLIPPING),
    "noise far too loud": (np.clip(noise(0), -1, 1), CLIPPING),
    "the last bit": (in_16_bits(noise(-96)), QUIET),
    "very quiet": (noise(-90), QUIET),
    "very quiet on an offset": (0.2 + noise(-90), QUIET),
}
WELL = {
    "a quiet room": noise(-70),
    "a quiet room in 16 bits": in_16_bits(noise(-80)),
    "a room on an offset": 0.3 + noise(-60),
    "loud music": np.clip(noise(-12), -1, 1),
    "a sine": (0.5 * np.sin(2 * np.pi * 439.7 * TIMES)).astype(np.float32),
    "nearly all zeros": np.where(np.random.default_rng(3).random(RATE) < 0.01, 0.01, 0.0).astype(np.float32),
    "a click in silence": np.eye(1, RATE, 100, dtype=np.float32)[0],
    "a buffer twice, then something else": np.concatenate(
        [np.tile(noise(-30, samples=20_000), 2), noise(-30, 5, 8000)]
    ),
    "speech": read_recording(DEMO)[30_000:46_000],
}


@pytest.mark.parametrize("name", SICK)
def test_a_deaf_microphone_is_known_by_what_it_delivers(name):
    samples, fault = SICK[name]
    assert fault_in(samples, FLOOR) == fault
    assert fault in MEANING


@pytest.mark.parametrize("name", WELL)
def test_one_that_hears_is_left_alone(name):
    assert fault_in(WELL[name], FLOOR) is None


@pytest.mark.parametrize(
    ("share", "peak", "fault"),
    [(0.01, 1.0, None), (0.0101, 1.0, CLIPPING), (0.2, 0.99, CLIPPING), (0.2, 0.989, None), (0.2, -1.0, CLIPPING)],
)
def test_clipped_is_what_is_nearly_at_full_scale_for_more_than_a_hundredth_of_the_time(share, peak, fault):
    samples = np.clip(noise(-30), -0.5, 0.5)
    samples[: round(share * RATE)] = peak
    assert fault_in(np.random.default_rng(4).permutation(samples), FLOOR) == fault


@pytest.mark.parametrize("seed", range(20))
def test_an_offset_neither_hides_a_fault_nor_makes_one(seed):
    assert fault_in(np.float32(0.2) + noise(-95, seed), FLOOR) == QUIET
    assert fault_in(np.float32(0.3) + noise(-80, seed), FLOOR) is None


@given(st.integers(1, 400), st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 100]))
def test_whatever_is_repeated_is_found(period, seed, values):
    piece = np.random.default_rng(seed).integers(0, values, period).astype(np.float32)
    assert repeats(np.resize(piece, 1_000))


@given(st.integers(65, 400), st.integers(0, 2**32 - 1))
def test_one_sample_that_differs_is_enough_not_to_be_a_repetition(period, seed):
    piece = np.random.default_rng(seed).normal(size=period).astype(np.float32)
    samples = np.resize(piece, 1_000)
    samples[seed % 1_000] += 1.0
    assert not repeats(samples)


def test_too_little_to_tell_is_no_repetition():
    assert not repeats(np.zeros(100, np.float32))


def findings(*faults, dead_after_s=3.0):
    health = Health(dead_after_s)
    return [health.note(fault, 1.0) for fault in faults]


def test_a_fault_is_told_once_when_it_has_lasted():
    assert findings(*[QUIET] * 10) == [None, None, Finding(QUIET, over=False, lasted_s=3.0), *[None] * 7]


def test_one_that_passes_sooner_is_not_told():
    assert findings(QUIET, QUIET, None, QUIET, QUIET, None) == [None] * 6


def test_when_it_is_over_that_is_told_once_with_how_long_it_was():
    assert findings(*[STUCK] * 5, None, None)[-2:] == [Finding(STUCK, over=True, lasted_s=5.0), None]


def test_another_fault_in_its_place_is_told_when_it_has_lasted():
    told = findings(*[SILENCE] * 3, *[CLIPPING] * 4, None)
    assert told[2] == Finding(SILENCE, over=False, lasted_s=3.0)
    assert told[5] == Finding(CLIPPING, over=False, lasted_s=3.0)
    assert told[7] == Finding(CLIPPING, over=True, lasted_s=4.0)


def test_faults_that_take_turns_are_one():
    told = findings(*[SILENCE, QUIET] * 4, None, QUIET, None)
    assert [finding for finding in told if finding] == [
        Finding(SILENCE, over=False, lasted_s=3.0),
        Finding(SILENCE, over=True, lasted_s=8.0),
    ]


def test_a_second_of_something_else_does_not_end_it():
    told = findings(*[SILENCE] * 3, QUIET, *[SILENCE] * 3, None)
    assert [finding for finding in told if finding] == [
        Finding(SILENCE, over=False, lasted_s=3.0),
        Finding(SILENCE, over=True, lasted_s=7.0),
    ]


# --- a real daemon at the end of a pipe ---

PIECE_S = 0.1


def piped(name):
    """0.9 s of 16 kHz, as a pipe brings it: so often does the buffer fit."""
    samples, fault = SICK[name]
    return (np.clip(samples[:14_400], -1, 1 - 1 / 32768) * 32768).astype("<i2"), fault


@pytest.mark.parametrize(
    "name", ["zeros", "an offset alone", "a buffer of 50 ms", "noise far too loud", "the last bit"]
)
def test_a_daemon_says_so_once_and_once_when_it_is_over(name, tmp_path):
    second, fault = piped(name)
    room = (noise(-50, samples=3 * 16_000) * 32768).astype("<i2")
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Running("--source", "-", "--set", "capture.dead_after_s=2", environment=environment) as daemon:

        def feed(sound, times):
            whole = np.tile(sound, times)
            for piece in np.array_split(whole, round(len(whole) / 16_000 / PIECE_S)):
                daemon.process.stdin.write(piece.tobytes())
                daemon.process.stdin.flush()
                time.sleep(PIECE_S)

        while not daemon.events:  # else what came while it began would come at once, and be examined but once
            feed(room[:3200], 1)
        feed(second, 5)
        feed(room, 1)
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    told = [(event["type"], event["fault"]) for event in daemon.events if "fault" in event]
    assert told == [("audio_fault", fault), ("audio_healed", fault)]
    assert any("is deaf: " in line for line in daemon.errors) and any("hears again" in line for line in daemon.errors)
