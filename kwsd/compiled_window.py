"""window.c for Python: the arithmetic of window.py, compiled."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from kwsd.compiled import NUMBER, POINTER, filled, library
from kwsd.ring import RingBuffer
from kwsd.window import NOTHING, Due, WindowSchedule


class _Schedule(ctypes.Structure):
    """As in window.c."""

    _fields_ = (
        *((name, NUMBER) for name in ("streams", "hop", "max_batch")),
        *((name, POINTER) for name in ("live", "next_end", "skipped", "due", "in_turns", "ends")),
        *((name, NUMBER) for name in ("distinct", "lost")),
    )


PART = "window", ctypes.sizeof(_Schedule), "take"


class CompiledSchedule(WindowSchedule):
    """A WindowSchedule whose `take` is compiled."""

    def __init__(self, streams: int, hop: int, max_batch: int, live: NDArray[np.bool_], compiled: ctypes.CDLL) -> None:
        super().__init__(streams, hop, max_batch, np.ascontiguousarray(live))
        self._compiled = compiled.window_take
        self._compiled.restype, self._compiled.argtypes = NUMBER, [POINTER, POINTER]
        most = streams * max_batch
        self._streams, self._ends = np.empty(most, np.int64), np.empty(most, np.int64)
        self._skipped, self._due = np.zeros(streams, np.int64), np.zeros(streams, np.int64)
        self._state = filled(
            _Schedule,
            streams=streams,
            hop=hop,
            max_batch=max_batch,
            live=self.live,
            next_end=self.next_end,
            skipped=self._skipped,
            due=self._due,
            in_turns=self._streams,
            ends=self._ends,
            distinct=0,
            lost=0,
        )
        self._where = ctypes.addressof(self._state)

    def take(self, ring: RingBuffer) -> Due:
        """Everything that is due, at most `max_batch` windows per stream, as WindowSchedule says it."""
        self.first_due(ring)
        count = self._compiled(self._where, ring.ends.buffer_info()[0])
        if not count:
            return Due(NOTHING, NOTHING, self._none_skipped, 0)
        skipped = self._skipped.copy() if self._state.lost else self._none_skipped
        return Due(self._streams[:count].copy(), self._ends[:count].copy(), skipped, self._state.distinct)


def make_schedule(streams: int, hop: int, max_batch: int, live: NDArray[np.bool_]) -> WindowSchedule:
    """Compiled, where that was."""
    compiled = library(*PART)
    if compiled is None:
        return WindowSchedule(streams, hop, max_batch, live)
    return CompiledSchedule(streams, hop, max_batch, live, compiled)
