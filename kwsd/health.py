"""Is this a microphone that hears? From the samples alone: what a muted, broken or overdriven one delivers. Pure."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLAT = 1.5 / 32768  # peak to peak: nothing but a constant, in 16 bits
CLIPPED = 0.99  # of full scale
CLIPPED_SHARE = 0.01  # of the samples
PATTERN = 64  # samples that must agree before a longer look is worth it
MOST_PERIODS = 32  # looked at longer
NEXT_TO_NOTHING = 1e-12  # mean square, -120 dBFS

NONSENSE = "no numbers"
SILENCE = "digital silence"
CONSTANT = "constant"
STUCK = "stuck"
CLIPPING = "clipping"
QUIET = "quiet"
MEANING = {
    NONSENSE: "samples that are not numbers: a broken microphone or driver",
    SILENCE: "every sample is zero: muted, or not connected",
    CONSTANT: "every sample is the same: a broken microphone or driver",
    STUCK: "the same buffer over and over: a hung driver",
    CLIPPING: "too loud all the time: turn its gain down",
    QUIET: "hardly any sound, not even noise: muted, or its gain is down",
}


def fault_in(samples: NDArray[np.float32], floor_dbfs: float) -> str | None:
    """What is wrong with some audio (n,) in ±1 of one channel, at the rate it was recorded with; None if nothing is.

    A level under the floor counts as wrong.
    """
    low, high = float(samples.min()), float(samples.max())
    if not math.isfinite(high - low):
        return NONSENSE
    if high - low <= FLAT and (low == high == 0.0 or abs(low + high) > FLAT):
        return SILENCE if low == high == 0.0 else CONSTANT
    if repeats(samples):
        return STUCK
    if max(-low, high) >= CLIPPED and np.count_nonzero(np.abs(samples) >= CLIPPED) > CLIPPED_SHARE * samples.size:
        return CLIPPING
    if 10.0 * math.log10(max(power(samples), NEXT_TO_NOTHING)) < floor_dbfs:
        return QUIET
    return None


def power(samples: NDArray[np.float32]) -> float:
    """Mean square of audio (n,) without what a constant has, which may be far more."""
    changing = samples - np.float32(samples.mean())
    return float(np.einsum("i,i->", changing, changing)) / samples.size


def repeats(samples: NDArray[np.float32]) -> bool:
    """Whether audio (n,) is one piece over and over, sample for sample, at least twice. No microphone hears that."""
    half = samples.size // 2
    if half <= PATTERN:
        return False
    at = half + int(samples[half:-PATTERN].argmax())  # where it is highest, there are few others like it
    periods = half - np.flatnonzero(samples[at - half : at] == samples[at])[::-1]
    for offset in range(1, PATTERN):
        if not periods.size:  # as nearly always, soon
            return False
        periods = periods[samples[at + offset - periods] == samples[at + offset]]
    return any(np.array_equal(samples[period:], samples[:-period]) for period in periods[:MOST_PERIODS].tolist())


@dataclass(frozen=True)
class Finding:
    """A fault that lasted so long that it must be told, or one told that is over."""

    fault: str
    over: bool
    lasted_s: float


class Health:
    """Of one stream: told of it piece by piece, it says a fault once, and once when it is over."""

    def __init__(self, dead_after_s: float) -> None:
        """A fault is told when something was wrong for so many seconds."""
        self.dead_after_s = dead_after_s
        self.fault: str | None = None  # told, and not over
        self._ill_s = 0.0  # since it was well, or, of a fault that took another's place, since that began
        self._seen: str | None = None
        self._seen_s = 0.0  # for how long, without a break

    def note(self, fault: str | None, seconds: float) -> Finding | None:
        """What so many seconds were like."""
        self._seen_s = seconds + (self._seen_s if fault == self._seen else 0.0)
        self._seen = fault
        if fault is None:
            over, lasted_s, self.fault, self._ill_s = self.fault, self._ill_s, None, 0.0
            return Finding(over, over=True, lasted_s=lasted_s) if over else None
        self._ill_s += seconds
        # A muted microphone whose last bit flickers is silent by one second and quiet by the next.
        lasted_s = self._ill_s if self.fault is None else self._seen_s
        if fault == self.fault or lasted_s < self.dead_after_s:
            return None
        self.fault, self._ill_s = fault, lasted_s
        return Finding(fault, over=False, lasted_s=lasted_s)
