"""Due windows to posteriors, in whichever form the model has: whole windows, or only what is new since the last."""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import WINDOW
from kwsd.cascade import Answers, Cascade
from kwsd.ring import Indices, RingBuffer
from kwsd.spotter import HopSpotter, Scores, Spotter
from kwsd.window import Due

NOWHERE = np.iinfo(np.int64).min // 2  # the sample index of a state that was never begun


@dataclass(frozen=True)
class Scored:
    """What became of the due windows, in the same order."""

    streams: Indices  # (n,)
    ends: Indices  # (n,)
    posteriors: Scores  # (n, labels)
    skipped: Indices  # (streams,) windows given up: those that came too late, and those overwritten while we read

    def __len__(self) -> int:
        return len(self.streams)


class Scorer(Protocol):
    """Reads the samples it needs out of the ring and scores them."""

    def score(self, ring: RingBuffer, due: Due) -> Scored:
        """Raises ModelError if the network fails."""
        ...

    def take_over(self, old: "Scorer") -> None:
        """Go on where another scorer stood: with the same spotter, on the same ring."""
        ...


def make_scorer(spotter: Spotter, streams: int, hop: int) -> Scorer:
    """Incremental where the model can be advanced by this hop, else by whole windows."""
    if isinstance(spotter, Cascade):
        first, second = (make_scorer(stage, streams, hop) for stage in (spotter.first, spotter.second))
        return CascadeScorer(spotter, first, second, Answers(spotter, streams, hop))
    step = spotter.info.step
    if isinstance(spotter, HopSpotter) and step is not None and hop % step == 0:
        return HopScorer(spotter, streams, hop)
    return WindowScorer(spotter)


class WindowScorer:
    """Every window as a whole: for any model and any hop."""

    def __init__(self, spotter: Spotter) -> None:
        self._spotter = spotter

    def score(self, ring: RingBuffer, due: Due) -> Scored:
        """Raises ModelError if the network fails."""
        windows, whole = ring.gather(due.streams, due.ends, WINDOW)
        posteriors = np.zeros((len(due), len(self._spotter.info.labels)), np.float32)
        if whole.any():
            posteriors[whole] = self._spotter.score(windows[whole])
        return _scored(due, posteriors, whole)

    def take_over(self, old: Scorer) -> None:
        """Whole windows need nothing of those before."""


class HopScorer:
    """Only the samples that are new since a stream's last window; after a start or a gap a whole window once. What lies
    between two windows may be more than a hop: those in between were skipped.

    The state of all streams is one array in the spotter's care; here is only where each stands.
    """

    def __init__(self, spotter: HopSpotter, streams: int, hop: int) -> None:
        assert spotter.info.step is not None
        self._spotter, self._hop, self._step = spotter, hop, spotter.info.step
        self._states = spotter.states(streams)
        self._at = np.full(streams, NOWHERE, np.int64)  # (streams,) sample index up to which the state has heard

    def take_over(self, old: Scorer) -> None:
        """Go on from the states another scorer of the same spotter has, whatever its hop."""
        if isinstance(old, HopScorer):
            self._states, self._at = old._states, old._at

    def score(self, ring: RingBuffer, due: Due) -> Scored:
        """Raises ModelError if the network fails."""
        streams, ends = due.streams, due.ends
        firsts = due.distinct  # windows are in turns: the first of every stream come first
        new = ends[:firsts] - self._at[streams[:firsts]]  # (firsts,) samples since its state
        if firsts and firsts == len(due) and (new == self._hop).all():  # as nearly always
            samples, read = ring.gather(streams, ends, self._hop)
            if read.all():
                scores = self._spotter.advance(samples, self._states, streams, 1)[:, 0]
                self._at[streams] = ends
                return Scored(streams, ends, scores, due.skipped)
        elif firsts == 1 and new[0] == self._hop:  # several of one microphone, as nearly always in a quiet room
            rows, scores = self._advance(ring, due, np.arange(len(due))[None], self._hop)
            if rows.size:
                return Scored(streams, ends, scores[0], due.skipped)
        posteriors = np.zeros((len(due), len(self._spotter.info.labels)), np.float32)
        whole = np.zeros(len(due), np.bool_)
        goes_on = (new > 0) & (new < WINDOW) & (new % self._step == 0)
        fresh = np.flatnonzero(~goes_on)
        if fresh.size:
            windows, read = ring.gather(streams[fresh], ends[fresh], WINDOW)
            windows, fresh = windows[read], fresh[read]
        if fresh.size:
            posteriors[fresh] = self._spotter.begin(windows, self._states, streams[fresh])
            self._at[streams[fresh]] = ends[fresh]
            whole[fresh] = True
        behind = new[goes_on & (new != self._hop)]  # windows were left out, or the hop was another
        for size in sorted(set(behind.tolist())):
            rows, scores = self._advance(ring, due, np.flatnonzero(goes_on & (new == size))[:, None], size)
            posteriors[rows], whole[rows] = scores, True
        for run in self._runs(due, ~whole):
            rows, scores = self._advance(ring, due, run, self._hop)
            posteriors[rows], whole[rows] = scores, True
        return _scored(due, posteriors, whole)

    def _advance(self, ring: RingBuffer, due: Due, run: NDArray[np.intp], hop: int) -> tuple[NDArray[np.intp], Scores]:
        """Score rows (streams, hops) of which each follows the one before, the first the stream's state, by `hop`
        samples: those that could be read (n, hops), and their posteriors (n, hops, labels)."""
        hops, last = run.shape[1], run[:, -1]
        samples, read = ring.gather(due.streams[last], due.ends[last], hop * hops)
        rows, last = run[read], last[read]
        if not rows.size:
            return rows, np.zeros((*rows.shape, len(self._spotter.info.labels)), np.float32)
        posteriors = self._spotter.advance(samples[read], self._states, due.streams[last], hops)
        self._at[due.streams[last]] = due.ends[last]
        return rows, posteriors

    def _runs(self, due: Due, wanted: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
        """Rows that go on from where their stream stands: for each number of hops, (streams, hops)."""
        rows = np.flatnonzero(wanted)
        if due.distinct == len(due):  # one window per stream, as nearly always
            rows = rows[self._at[due.streams[rows]] == due.ends[rows] - self._hop]
            return [rows[:, None]] if rows.size else []
        rows = rows[np.argsort(due.streams[rows], kind="stable")]  # by stream, then by time
        runs: dict[int, list[NDArray[np.intp]]] = {}
        for run in np.split(rows, np.flatnonzero(np.diff(due.streams[rows])) + 1):
            if run.size and self._at[due.streams[run[0]]] == due.ends[run[0]] - self._hop:
                runs.setdefault(len(run), []).append(run)
        return [np.stack(same) for same in runs.values()]


class CascadeScorer:
    """Each network in whichever form it has; the second goes on from the window it was asked about last."""

    def __init__(self, cascade: Cascade, first: Scorer, second: Scorer, answers: Answers) -> None:
        self._cascade, self._first, self._second, self._answers = cascade, first, second, answers

    def score(self, ring: RingBuffer, due: Due) -> Scored:
        """Raises ModelError if a network fails."""
        scored = self._first.score(ring, due)
        suspects = self._cascade.suspects(scored.posteriors)
        if not suspects.size:
            return scored
        posteriors, whole = scored.posteriors, np.ones(len(scored), np.bool_)
        for rows in _in_turns(scored.streams, suspects):
            asked = self._questions(scored, rows)
            if asked.size:
                self._ask(ring, scored, asked, whole)
            known = rows[whole[rows]]
            posteriors = self._cascade.judged(posteriors, known, self._answers.of(scored.streams[known]))
        return _whole(replace(scored, posteriors=posteriors), whole)

    def _questions(self, scored: Scored, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Those of the rows, of distinct streams, for which the last answer of their stream does not hold."""
        windows = zip(
            scored.streams[rows].tolist(), scored.ends[rows].tolist(), scored.posteriors[rows].tolist(), strict=True
        )
        return rows[[not self._answers.hold(*window) for window in windows]]

    def _ask(self, ring: RingBuffer, scored: Scored, rows: NDArray[np.intp], whole: NDArray[np.bool_]) -> None:
        """Have the second's answers about windows of distinct streams. Those it could not read are not `whole`."""
        streams = scored.streams[rows]
        told = self._second.score(ring, Due(streams, scored.ends[rows], np.zeros_like(scored.skipped), len(rows)))
        if len(told) < len(rows):
            whole[rows] = np.isin(streams, told.streams)
            rows = rows[whole[rows]]
        windows = zip(told.streams.tolist(), told.ends.tolist(), scored.posteriors[rows].tolist(), strict=True)
        for window, answer in zip(windows, self._cascade.ordered(told.posteriors), strict=True):
            self._answers.note(*window, answer)

    def take_over(self, old: Scorer) -> None:
        """Go on where another scorer of the same cascade stood."""
        if isinstance(old, CascadeScorer):
            self._first.take_over(old._first)
            self._second.take_over(old._second)
            if old._answers.hop == self._answers.hop:
                self._answers = old._answers


def _in_turns(streams: Indices, rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Rows with one of each of their `streams` (n,), in ascending order, then those with the next of each, ..."""
    if len(rows) == 1 or (np.diff(streams[rows]) > 0).all():  # one of each, as nearly always
        return [rows]
    rows = rows[np.argsort(streams[rows], kind="stable")]
    first = np.searchsorted(streams[rows], streams[rows])  # where in them each one's stream begins
    turn = np.arange(len(rows)) - first
    return [rows[turn == n] for n in range(int(turn.max()) + 1)]


def _scored(due: Due, posteriors: Scores, whole: NDArray[np.bool_]) -> Scored:
    return _whole(Scored(due.streams, due.ends, posteriors, due.skipped), whole)


def _whole(scored: Scored, whole: NDArray[np.bool_]) -> Scored:
    """Leave out what was overwritten while we looked: a loss like any other."""
    if whole.all():
        return scored
    lost = np.bincount(scored.streams[~whole], minlength=len(scored.skipped))
    return Scored(scored.streams[whole], scored.ends[whole], scored.posteriors[whole], scored.skipped + lost)
