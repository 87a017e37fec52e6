"""debouncer.c for Python: the rules of debouncer.py, compiled."""

import ctypes
from collections.abc import Iterator, Sequence

import numpy as np

from kwsd.compiled import NUMBER, POINTER, at, filled, library
from kwsd.debouncer import OTHER_SPEECH, STIRRING, Debouncer, Detection, NearMisses, Rules
from kwsd.ring import Indices
from kwsd.spotter import Scores

AT_ONCE = 32  # windows that there is always room for
FIRED = np.dtype(
    [(name, "i8") for name in ("row", "keyword", "runner_up")]
    + [(name, "f4") for name in ("score", "threshold", "runner_up_score")],
    align=True,
)  # as in debouncer.c


class _State(ctypes.Structure):
    """As in debouncer.c."""

    _fields_ = (
        *((name, NUMBER) for name in ("streams", "labels", "keywords", "smoothing", "lookback", "hop", "unknown")),
        *((name, NUMBER) for name in ("wary_hops", "word_hops", "unrest")),
        *((name, ctypes.c_float) for name in ("stirring", "other_speech", "wary_threshold")),
        *((name, POINTER) for name in ("columns", "threshold", "release", "low", "near", "margin")),
        *((name, POINTER) for name in ("min_hits", "refractory", "isolation_speech", "recent")),
        *((name, POINTER) for name in ("speech", "stirred")),
        *((name, POINTER) for name in ("count", "last_end", "stirring_now", "unsettled", "hits", "fired_at")),
        *((name, POINTER) for name in ("armed", "smoothed")),
    )


PART = "debouncer", 65536 * FIRED.itemsize + ctypes.sizeof(_State), "step", "stirs"


class CompiledDebouncer(Debouncer):
    """A Debouncer whose `step` is compiled. The state is the same, and so are the decisions."""

    def __init__(self, rules: Rules, labels: Sequence[str], streams: int, compiled: ctypes.CDLL) -> None:
        """Raises ValueError as Debouncer does."""
        super().__init__(rules, labels, streams)
        self._compiled = compiled.debouncer_step
        self._compiled.restype = NUMBER
        self._compiled.argtypes = [POINTER, NUMBER, POINTER, POINTER, POINTER, POINTER]
        self._stirs = compiled.debouncer_stirs
        self._stirs.restype, self._stirs.argtypes = NUMBER, [POINTER]
        self._rows = max(AT_ONCE, streams)
        # Where windows are put: to ask an array where it lies takes longer than to copy a few.
        self._streams, self._ends = np.zeros(self._rows, np.int64), np.zeros(self._rows, np.int64)
        self._posteriors = np.zeros((self._rows, len(labels)), np.float32)
        self._fired = np.zeros(self._rows * len(rules.keywords), FIRED)
        self._held = {
            "columns": self._columns.astype(np.int64),
            "smoothed": np.zeros(len(labels), np.float32),
            "low": self._low.astype(np.float32),
            "near": self._near.astype(np.float32),
            **{name: getattr(rules, name).astype(np.float32) for name in ("threshold", "release", "margin")},
            **{name: getattr(rules, name).astype(np.int64) for name in ("min_hits", "refractory", "isolation_speech")},
        }
        self._state = filled(
            _State,
            streams=streams,
            labels=len(labels),
            keywords=len(rules.keywords),
            smoothing=rules.smoothing,
            lookback=self._speech.shape[1],
            hop=rules.hop,
            unknown=self._unknown,
            wary_hops=self._stirred.shape[1],
            word_hops=self._word_hops,
            unrest=self._unrest,
            stirring=STIRRING,
            other_speech=OTHER_SPEECH,
            wary_threshold=rules.wary_threshold,
            recent=self._recent,
            speech=self._speech,
            stirred=self._stirred,
            count=self._count,
            last_end=self._last_end,
            stirring_now=self._stirring,
            unsettled=self._unsettled,
            hits=self._hits,
            fired_at=self._fired_at,
            armed=self._armed,
            **self._held,
        )
        self._arguments = (
            ctypes.addressof(self._state),
            *(at(array) for array in (self._streams, self._ends, self._posteriors, self._fired)),
        )

    @property
    def stirs(self) -> bool:
        """Whether in any stream the next window may decide something, as far as anybody knows."""
        return bool(self._stirs(self._arguments[0]))

    def step(self, streams: Indices, ends: Indices, posteriors: Scores) -> Iterator[Detection]:
        """Windows (n,) with posteriors (n, labels), in time order within a stream; any number per stream."""
        found: list[Detection] = []
        for first in range(0, len(streams), self._rows):
            rows = slice(first, first + self._rows)
            found += self._judge_all(streams[rows], ends[rows], posteriors[rows])
        return iter(found)

    def _judge_all(self, streams: Indices, ends: Indices, posteriors: Scores) -> list[Detection]:
        n = len(streams)
        self._streams[:n], self._ends[:n], self._posteriors[:n] = streams, ends, posteriors
        state, *windows = self._arguments
        count = self._compiled(state, n, *windows)
        assert count >= 0, "a stream without a state"
        return [
            Detection(
                stream=int(streams[row]),
                keyword=self.rules.keywords[keyword],
                score=score,
                threshold=threshold,
                runner_up=self.labels[runner_up],
                runner_up_score=runner_up_score,
                end=int(ends[row]),
            )
            for row, keyword, runner_up, score, threshold, runner_up_score in self._fired[:count].tolist()
        ]


def make_debouncer(rules: Rules, labels: Sequence[str], streams: int, near: NearMisses | None = None) -> Debouncer:
    """Compiled, unless near misses are wanted or it was not. Raises ValueError as Debouncer does."""
    compiled = library(*PART)
    if compiled is None or near is not None:
        return Debouncer(rules, labels, streams, near)
    return CompiledDebouncer(rules, labels, streams, compiled)
