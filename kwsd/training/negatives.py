"""Long recordings in which no keyword is said: drawn from by chance, and where a network takes them for one."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kwsd.audio_format import WINDOW

HARD = 0.1  # of the windows that are looked through: these are drawn from
NEARBY = 1600  # samples by which a hard window is shifted, at most


def to_float(samples: NDArray[np.int16]) -> Tensor:
    """16-bit samples to float32 in ±1."""
    return torch.from_numpy(np.ascontiguousarray(samples)).float().mul_(1.0 / 32768.0)


def crops(recording: NDArray[np.int16], n: int, rng: np.random.Generator) -> Tensor:
    """n one-second pieces of a long recording from anywhere: (n, 16000)."""
    if recording.size <= WINDOW:
        recording = np.resize(recording, WINDOW)
    return windows_at(recording, rng.integers(0, recording.size - WINDOW + 1, n))


def windows_at(recording: NDArray[np.int16], starts: NDArray[np.int64]) -> Tensor:
    """The second that begins at each of these samples: (starts, 16000)."""
    return to_float(np.lib.stride_tricks.sliding_window_view(recording, WINDOW)[starts])


class Negatives:
    """Windows from one or several groups of recordings, each of 16-bit samples (samples,)."""

    def __init__(
        self, groups: Sequence[Sequence[NDArray[np.int16]]], *, hard: float = 0.0, checked: int | None = None
    ) -> None:
        """Every group comes up as often as any other, however long it is, and in it a recording the oftener the longer
        it is; no window is of two recordings. One under a second is repeated.

        The share `hard` of what is drawn are such windows as `mine` found. It looks only in the first `checked`
        recordings, by default in all: where nobody knows what is said, a network is surest of keywords that really are.
        """
        recordings = [one if one.size >= WINDOW else np.resize(one, WINDOW) for group in groups for one in group]
        self.samples = recordings[0] if len(recordings) == 1 else np.concatenate(recordings)
        sizes = np.array([recording.size for recording in recordings])
        self._ends = np.cumsum(sizes)  # (recordings,) samples, as all that follows
        self._first, self._room = self._ends - sizes, sizes - WINDOW + 1
        bounds = np.concatenate([[0], self._ends])  # before the first recording, and behind each
        begin = np.cumsum([0, *map(len, groups)])
        self._groups: NDArray[np.int64] = bounds[begin]  # (groups + 1,) where each begins, and the last ends
        self.checked = int(bounds[-1 if checked is None else checked])
        self._hard_share, self._hard = hard, list[NDArray[np.int64]]()  # where such windows of a group begin

    def by_chance(self, n: int, rng: np.random.Generator) -> Tensor:
        """Windows (n, 16000) from anywhere."""
        return windows_at(self.samples, self._anywhere(n, rng))

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """Windows (n, 16000), first from anywhere and then the hard ones."""
        hard = round(self._hard_share * n) if self._hard else 0
        starts = np.concatenate([self._anywhere(n - hard, rng), self._nearby(self._hard, hard, rng)])
        return windows_at(self.samples, starts)

    def mine(self, surest: Callable[[Tensor], Tensor], most: int, batch: int, rng: np.random.Generator) -> None:
        """Hard negative mining (Sung & Poggio 1998): look through as many windows as `most`, of every group as many,
        for what is taken for keywords first; drawn by chance, it hardly comes up. `surest` says of windows
        (batch, 16000) how likely each is one (batch,)."""
        if not self._hard_share:
            return
        looked_at = [starts for starts in self._to_look_at(most, rng) if starts.size]
        if not looked_at:
            return
        starts = np.concatenate(looked_at)
        parts = np.array_split(starts, math.ceil(starts.size / batch))
        likely = np.concatenate([surest(windows_at(self.samples, part)).cpu().numpy() for part in parts])
        of_groups = np.split(likely, np.cumsum([group.size for group in looked_at])[:-1])
        self._hard = [
            group[np.argsort(-sure, kind="stable")[: max(1, round(HARD * group.size))]]
            for group, sure in zip(looked_at, of_groups, strict=True)
        ]

    def _to_look_at(self, most: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Where windows of each group begin; none of a group of which hardly anything may be looked at."""
        ends = self._groups[1:].clip(max=self.checked)
        for first, end in zip(self._groups[:-1], ends, strict=True):
            n = min(most // len(ends), (end - first) // WINDOW) if end - first >= 2 * WINDOW else 0
            yield self._within(rng.integers(first, end, n) if n else self._groups[:0], rng)

    def _anywhere(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        group = rng.integers(0, len(self._groups) - 1, n)
        return self._within(rng.integers(self._groups[group], self._groups[group + 1]), rng)

    def _within(self, samples: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Where windows begin that lie anywhere in the recordings that these samples are of."""
        recording = np.searchsorted(self._ends, samples, side="right")
        return np.asarray(self._first[recording] + rng.integers(0, self._room[recording]))

    def _nearby(self, groups: list[NDArray[np.int64]], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Where n windows begin that lie near some of these, in the same recording, of every group as often."""
        if not n:
            return self._groups[:0]
        sizes = np.array([group.size for group in groups])
        group = rng.integers(0, len(groups), n)
        starts = np.concatenate(groups)[(np.cumsum(sizes) - sizes)[group] + rng.integers(0, sizes[group])]
        recording = np.searchsorted(self._ends, starts, side="right")
        first, last = self._first[recording], self._first[recording] + self._room[recording] - 1
        return np.asarray(np.clip(starts + rng.integers(-NEARBY, NEARBY + 1, n), first, last))
