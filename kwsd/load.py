"""How much there is to do, and what to do about it: how late windows are scored, and how often they should be. Pure."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import SAMPLE_RATE

TOGETHER_S = 0.005  # what comes so soon after something else was written with it
LOOK_EVERY_S = 1.0  # how often load is looked at
LONGEST_MS = 10_000  # later than this counts as this
STRETCHES = (1, 2, 4)  # times the hop
FULL_SHARE = 0.9  # of the time spent on scoring: more cannot be done
FREE_SHARE = 0.75  # so little that a shorter hop may be tried: what it costs, only trying tells
LATE_HOPS = 2.0  # p99 of the lag
CALM_LOOKS = 5  # in a row, before the hop becomes shorter again
LONGEST_CALM = 160  # looks: so long after tries that failed
SOON = 10  # looks: a try has failed if the hop must be stretched again within so many


class Arrival:
    """When the audio of a stream came: the last lump of it at once, and what came before, for all one knows, in real
    time. `note` belongs to who writes, `of` to whoever asks."""

    __slots__ = ("_before", "_start", "at")

    def __init__(self, sample: int = 0, at: float = 0.0) -> None:
        self._start, self._before, self.at = sample, at, at  # where the last lump begins; monotonic s

    def note(self, sample: int, at: float) -> None:
        """What begins with this sample came now."""
        if at - self.at > TOGETHER_S:
            self._start, self._before = sample, self.at
        self.at = at

    def of(self, sample: int) -> float:
        """When a stream had come as far as this sample, one past the last of a window (monotonic s)."""
        return self.at if sample > self._start else self._before - (self._start - sample) / SAMPLE_RATE


class LagMeter:
    """From the arrival of a window's last sample until its score: a histogram by the millisecond."""

    def __init__(self) -> None:
        self._counts = np.zeros(LONGEST_MS + 1, np.int64)
        self.scored = 0  # windows, those of which no lag is noted among them

    def note(self, lags_s: NDArray[np.float64] | Sequence[float]) -> None:
        """Lags of windows (n,) in seconds."""
        np.add.at(self._counts, np.clip(np.ceil(np.asarray(lags_s) * 1000.0), 0, LONGEST_MS).astype(np.int64), 1)

    def take_in(self, other: "LagMeter") -> None:
        """Note all that another one did."""
        self._counts += other._counts

    @property
    def windows(self) -> int:
        """How many were noted."""
        return int(self._counts.sum())

    @property
    def total_s(self) -> float:
        """Their lags together, each to the millisecond."""
        return float(self._counts @ np.arange(LONGEST_MS + 1)) / 1000.0

    def within_ms(self, lag: int) -> int:
        """How many were at most so late."""
        return int(self._counts[: lag + 1].sum())

    def percentile_ms(self, percent: float) -> int | None:
        """The lag that so many percent of the windows do not exceed; None if there were none."""
        total = self.windows
        if not total:
            return None
        return int(np.searchsorted(np.cumsum(self._counts), total * percent / 100.0))


class Overload:
    """Looked at once a second. Where more comes than can be scored, the hop is stretched, step by step, and shortened
    again when there is time."""

    def __init__(self, hop_ms: float) -> None:
        self.hop_ms = hop_ms
        self.stretch = 1
        self._calm = 0
        self._wanted_calm = CALM_LOOKS
        self._since_shorter = SOON  # looks

    def look(self, share: float, lag_ms: float | None) -> int:
        """The stretch from now on, after a second in which a share of the time went into scoring and `lag_ms` was the
        99th percentile of the lag."""
        step = STRETCHES.index(self.stretch)
        late = lag_ms is not None and lag_ms > LATE_HOPS * self.hop_ms * self.stretch
        self._calm = self._calm + 1 if share < FREE_SHARE and not late else 0
        self._since_shorter += 1
        if late and share > FULL_SHARE and step + 1 < len(STRETCHES):
            failed = self._since_shorter <= SOON
            self._wanted_calm = min(2 * self._wanted_calm, LONGEST_CALM) if failed else CALM_LOOKS
            self.stretch = STRETCHES[step + 1]
        elif step and self._calm >= self._wanted_calm:
            self.stretch, self._calm, self._since_shorter = STRETCHES[step - 1], 0, 0
        return self.stretch


class Load:
    """What scoring comes to: how much of the time it takes, how late windows are, and so how far apart they should be.
    The inference thread notes and looks; anybody may ask."""

    def __init__(self, hop_ms: float, now: float) -> None:
        """Windows so far apart, if there is time, from now on (monotonic s)."""
        self.overload = Overload(hop_ms)
        self.windows = 0  # scored, ever
        self.scored_at = now  # the last of them
        self.lags_ever = LagMeter()  # but for the last second
        self.lag_ms: int | None = None  # p99 of the second that was looked at last
        self._lags, self._told = LagMeter(), LagMeter()  # of this second, and since they were asked for
        self._busy_s, self._looked_at = 0.0, now

    def lags(self) -> LagMeter:
        """Of the windows scored since this was last asked."""
        lags, self._told = self._told, LagMeter()
        return lags

    def note(self, windows: int, begun: float, now: float) -> None:
        """So many were scored between then and now, in a turn that may have found none."""
        self._busy_s += now - begun
        if windows:
            self.windows += windows
            self.scored_at = now
            self._told.scored += windows

    def note_lags(self, lags_s: NDArray[np.float64]) -> None:
        """How late (n,) of them were, in seconds."""
        self._lags.note(lags_s)
        self._told.note(lags_s)

    def look(self, now: float) -> bool:
        """Once a second, see whether there is more to do than time: whether windows are to be further apart from now
        on, or closer."""
        if now - self._looked_at < LOOK_EVERY_S:
            return False
        share, self.lag_ms = self._busy_s / (now - self._looked_at), self._lags.percentile_ms(99.0)
        self.lags_ever.take_in(self._lags)
        self._lags, self._busy_s, self._looked_at = LagMeter(), 0.0, now
        before = self.overload.stretch
        return self.overload.look(share, self.lag_ms) != before
