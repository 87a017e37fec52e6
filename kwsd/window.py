"""Which windows of which streams are due. Pure hop arithmetic."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import WINDOW
from kwsd.ring import Indices, RingBuffer

NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Due:
    """Windows in turns: the first of every stream, then the second of every stream that has one, ..."""

    streams: Indices  # (n,)
    ends: Indices  # (n,) sample index one past the window's last
    skipped: Indices  # (streams,) windows given up because they came too late
    distinct: int  # streams among them, which are the first so many windows

    def __len__(self) -> int:
        return len(self.streams)


class WindowSchedule:
    """Windows end at the multiples of `hop` samples, so a replayed recording gets the very same windows."""

    def __init__(self, streams: int, hop: int, max_batch: int, live: NDArray[np.bool_]) -> None:
        self.hop, self.max_batch = hop, max_batch
        self.live = live  # (streams,) whether late windows are skipped; a source that can wait is made to
        self.next_end = np.full(streams, -WINDOW, np.int64)  # (streams,) no window that ends before is due
        self._none_skipped = np.zeros(streams, np.int64)
        self._gaps = -1  # of the ring, when `next_end` was last made to reach over none

    def start_at(self, samples: Indices) -> None:
        """No window that ends before these sample indices (streams,) is due."""
        np.maximum(self.next_end, samples, out=self.next_end)
        self._gaps = -1

    def take(self, ring: RingBuffer) -> Due:
        """Everything that is due, at most `max_batch` windows per stream.

        Of a live stream that is further behind, the newest windows are skipped, so that what was begun is
        finished and the next batch starts at the present.
        """
        first = self.first_due(ring)  # (streams,)
        ahead = ring.written - first  # (streams,) samples; none is due where it is negative
        streams = np.flatnonzero(ahead >= 0)
        if not len(streams):
            return Due(NOTHING, NOTHING, self._none_skipped, 0)
        due = np.maximum(ahead // self.hop + 1, 0)  # (streams,)
        taken = np.minimum(due, self.max_batch)  # (streams,)
        skipped = np.where(self.live, due - taken, 0)  # (streams,)
        in_turns, turn = self._in_turns(taken)
        ends = first[in_turns] + turn * self.hop
        first += (taken + skipped) * self.hop
        return Due(in_turns, ends, skipped, int(np.count_nonzero(taken)))

    def exhausted(self, ring: RingBuffer) -> bool:
        """Whether no window is due in any stream."""
        return bool((ring.written < self.first_due(ring)).all())

    def first_due(self, ring: RingBuffer) -> Indices:
        """Where the next window of each stream ends: the first that reaches over no gap, at a multiple of the hop."""
        if self._gaps != ring.gaps:
            self._gaps = ring.gaps  # before the gaps themselves: one that comes now is looked at next
            earliest = np.maximum(self.next_end, ring.unbroken_from + WINDOW)  # (streams,)
            self.next_end[:] = -(-earliest // self.hop) * self.hop
        return self.next_end

    @staticmethod
    def _in_turns(taken: Indices) -> tuple[Indices, Indices]:
        """Stream and turn of every window: every stream's turn 0, then every stream's turn 1, …"""
        turns = np.arange(taken.max(initial=0))
        turn, stream = np.nonzero(turns[:, None] < taken)
        return stream, turn
