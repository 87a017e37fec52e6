"""Where in a window the word is: its first and last sample, from energy alone. Pure."""

import math

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import SAMPLE_RATE

FRAME = SAMPLE_RATE // 100  # samples: 10 ms
DYNAMICS_DB = 25.0  # a frame this far under the loudest is no longer the word
LONGEST_PAUSE = 12  # frames: stops and plosives inside a word are silent for up to about 100 ms
EDGE = 3  # frames at the edge of a recording: where they are loud, the word goes on beyond
LOUD_DB = 20.0  # so far under the loudest frame at most
LEAST_DYNAMICS_DB = 10.0  # from the quiet frames to the loud ones: with less there is no word to be heard
QUIETEST_DBFS = -120.0  # what digital silence counts as


def level_dbfs(samples: NDArray[np.float32]) -> float:
    """Root-mean-square level of samples in ±1, in dB relative to full scale."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if samples.size else 0.0
    return max(10.0 * math.log10(power), QUIETEST_DBFS) if power > 0.0 else QUIETEST_DBFS


def frame_levels_dbfs(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Level of every whole 10 ms frame in dBFS: (n,) → (n // FRAME,)."""
    frames = samples[: samples.size // FRAME * FRAME].reshape(-1, FRAME)
    power = np.mean(np.square(frames, dtype=np.float64), axis=1)
    return np.asarray(10.0 * np.log10(np.maximum(power, 10.0 ** (QUIETEST_DBFS / 10.0))))


def noise_level(levels: NDArray[np.float64]) -> float:
    """The level that a tenth of some are under, as `numpy.percentile` has it, which is not there for 10 ms when it is
    asked for the first time: while somebody waits for the first word to be told."""
    ordered, place = np.sort(levels), 0.1 * (levels.size - 1)
    low, high = ordered[[int(place), math.ceil(place)]].tolist()
    return float(low + (high - low) * (place - int(place)))


def word_span(window: NDArray[np.float32]) -> tuple[int, int]:
    """First sample of the loudest utterance in a window, and one past its last: 0 ≤ start < end ≤ n.

    The utterance is grown from the loudest frame in both directions over frames that stand out from the
    window's noise floor and lie within 25 dB of the loudest, bridging pauses of up to 120 ms.
    """
    levels = frame_levels_dbfs(window)
    if levels.size == 0:
        return 0, window.size
    peak = int(np.argmax(levels))
    floor = noise_level(levels)
    bar = max(levels[peak] - DYNAMICS_DB, floor + 0.25 * (levels[peak] - floor))
    speech = np.flatnonzero(levels >= bar)
    after = speech[speech >= peak]
    before = speech[speech <= peak][::-1]
    return _reach(before) * FRAME, (_reach(after) + 1) * FRAME


def is_whole(recording: NDArray[np.float32]) -> bool:
    """Whether a recording of one word has all of it: it does not go on loudly at one of the edges, and something stands
    out at all. Where there is sound all over from edge to edge one cannot tell, and it counts as whole."""
    levels = frame_levels_dbfs(recording)
    if levels.size == 0 or float(np.subtract(*np.percentile(levels, (95, 10)))) < LEAST_DYNAMICS_DB:
        return False
    start, end = word_span(recording)
    at_start, at_end = start <= FRAME, end >= (levels.size - 1) * FRAME
    if at_start == at_end:
        return True
    edge = levels[:EDGE] if at_start else levels[-EDGE:]
    return float(edge.mean()) <= float(levels.max()) - LOUD_DB


def _reach(frames: NDArray[np.intp]) -> int:
    """The last of the frames, walking away from the first, before a pause that is too long."""
    pauses = np.flatnonzero(np.abs(np.diff(frames)) > LONGEST_PAUSE)
    return int(frames[pauses[0]] if pauses.size else frames[-1])
