"""Long recordings in which no keyword is said: drawn from by chance, and where a network takes them for one."""

import math
from collections.abc import Callable, Sequence

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
    """Windows from one or several groups of recordings, each of 16-bit samples (samples,), end to end."""

    def __init__(self, groups: Sequence[NDArray[np.int16]], *, hard: float = 0.0, checked: int | None = None) -> None:
        """Every group comes up as often as any other, however long it is; under a second it is repeated.

        The share `hard` of what is drawn are such windows as `mine` found. It looks only in the first `checked`
        samples, by default in all: where nobody knows what is said, a network is surest of keywords that really are.
        """
        long_enough = [np.resize(group, max(group.size, WINDOW)) for group in groups]
        self.samples = long_enough[0] if len(long_enough) == 1 else np.concatenate(long_enough)
        sizes = np.array([group.size for group in long_enough])
        self._first, self._room = np.cumsum(sizes) - sizes, sizes - WINDOW + 1  # (groups,) samples
        self._hard_share, self._hard = hard, np.zeros(0, np.int64)  # where such windows begin
        self.checked = self.samples.size if checked is None else checked

    def by_chance(self, n: int, rng: np.random.Generator) -> Tensor:
        """Windows (n, 16000) from anywhere."""
        return windows_at(self.samples, self._anywhere(n, rng))

    def draw(self, n: int, rng: np.random.Generator) -> Tensor:
        """Windows (n, 16000), first from anywhere and then the hard ones."""
        hard = round(self._hard_share * n) if self._hard.size else 0
        nearby = rng.choice(self._hard, hard) + rng.integers(-NEARBY, NEARBY + 1, hard) if hard else self._hard[:0]
        starts = np.concatenate([self._anywhere(n - hard, rng), nearby.clip(0, self.checked - WINDOW)])
        return windows_at(self.samples, starts)

    def mine(self, surest: Callable[[Tensor], Tensor], most: int, batch: int, rng: np.random.Generator) -> None:
        """Hard negative mining (Sung & Poggio 1998): look through as many windows as `most` for what is taken for
        keywords first; drawn by chance, it hardly comes up. `surest` says of windows (batch, 16000) how likely each is
        one (batch,)."""
        if not self._hard_share or self.checked < 2 * WINDOW:
            return
        starts = rng.integers(0, self.checked - WINDOW + 1, min(most, self.checked // WINDOW))
        parts = np.array_split(starts, math.ceil(starts.size / batch))
        likely = np.concatenate([surest(windows_at(self.samples, part)).cpu().numpy() for part in parts])
        self._hard = starts[np.argsort(-likely, kind="stable")[: max(1, round(HARD * starts.size))]]

    def _anywhere(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        group = rng.integers(0, len(self._first), n)
        return np.asarray(self._first[group] + rng.integers(0, self._room[group]))
