"""From posteriors to detections: smooth, judge, fire once, re-arm. Pure, in samples, vectorised over streams."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwsd.artefact import UNKNOWN
from kwsd.audio_format import WINDOW
from kwsd.ring import Indices
from kwsd.spotter import Scores

Flags = NDArray[np.bool_]

STIRRING = 0.1  # posterior of a keyword from which something may become of it
OTHER_SPEECH = 0.6  # posterior of `_unknown_` above which a window is taken for it: 94 % of talk, 4 to 12 % of music
UNREST = 0.12  # share of hops in which keywords may stir and nothing come of it; where it is more, as in music, be wary
LONG_AGO = np.iinfo(np.int64).min // 2


@dataclass(frozen=True)
class Rules:
    """When a score becomes a detection. Arrays have one entry per keyword."""

    keywords: tuple[str, ...]
    threshold: Scores  # score at which a keyword is a candidate
    release: Scores  # score under which it is armed again
    margin: Scores  # lead over the runner-up
    min_hits: Indices  # consecutive windows a candidate must last
    refractory: Indices  # samples from firing until it may be armed again
    isolation_speech: Indices  # samples of other speech allowed within `isolation`; negative: any
    isolation: int  # samples looked back on
    wary: int  # samples looked back on for what stirred and was no keyword; 0: nothing is
    wary_threshold: float  # the least threshold where that was much
    smoothing: int  # windows in the mean
    hop: int  # samples between windows

    @property
    def near(self) -> Scores:
        """Scores half way from the release level to the threshold: from there on it is like a word, told or not."""
        return np.asarray((self.release + self.threshold) / 2, np.float32)

    @property
    def thresholds(self) -> dict[str, float]:
        """By keyword, as they were configured: float32 has more digits than meaning."""
        return {word: round(score, 4) for word, score in zip(self.keywords, self.threshold.tolist(), strict=True)}


@dataclass(frozen=True)
class Detection:
    """A keyword was said."""

    stream: int
    keyword: str
    score: float
    threshold: float
    runner_up: str  # the label next to it
    runner_up_score: float
    end: int  # sample index one past the window that decided


@dataclass(frozen=True)
class NearMiss:
    """A keyword scored well and was not told."""

    stream: int
    keyword: str
    score: float  # the best it reached
    threshold: float
    reason: str  # the rule that was in the way, of the windows that came furthest: one of REASONS
    end: int  # sample index one past the window that scored best


REASONS = ("threshold", "margin", "min_hits", "isolation", "refractory")  # in the order the rules are asked


class Debouncer:
    """State for n streams, kept in arrays. `step` is the whole story; each rule is one method."""

    def __init__(self, rules: Rules, labels: Sequence[str], streams: int, near: "NearMisses | None" = None) -> None:
        """With `near`, what almost was a detection is noted there.

        Raises ValueError for a keyword that is no label, or isolation without a label for other speech."""
        self.rules, self.labels, self.near = rules, tuple(labels), near
        self._columns = np.array([self.labels.index(keyword) for keyword in rules.keywords], np.intp)
        self._unknown = self.labels.index(UNKNOWN) if UNKNOWN in self.labels else -1
        if self._unknown < 0 and (rules.isolation_speech >= 0).any():
            raise ValueError(f"isolation needs a model with the label {UNKNOWN}")
        lookback = max(1, rules.isolation // rules.hop)
        shape = (streams, len(rules.keywords))
        self._low, self._near = np.minimum(rules.release, rules.threshold), rules.near
        self._recent = np.zeros((streams, rules.smoothing, len(self.labels)), np.float32)
        self._speech = np.zeros((streams, lookback), np.bool_)  # was it other speech, per hop
        self._stirred = np.zeros((streams, max(1, rules.wary // rules.hop)), np.bool_)  # per hop; less what was a word
        self._unrest = int(self._stirred.shape[1] * (UNREST if rules.wary else 1))  # hops; more are no calm
        self._count = np.zeros(streams, np.int64)  # windows since the last gap
        self._last_end = np.full(streams, LONG_AGO, np.int64)
        self._word_hops = min(self._stirred.shape[1], WINDOW // rules.hop + 1)  # what stirred so shortly before was it
        self._hits = np.zeros(shape, np.int64)
        self._stirring = np.zeros(streams, np.bool_)  # a keyword may begin in the last window
        self._armed = np.ones(shape, np.bool_)
        self._unsettled = np.zeros(streams, np.bool_)  # not all armed, or hits or near misses pending
        self._fired_at = np.full(shape, LONG_AGO, np.int64)

    @property
    def stirs(self) -> bool:
        """Whether in any stream the next window may decide something, as far as anybody knows."""
        return bool(self._stirring.any()) or not self._count.any()

    def inherit(self, old: "Debouncer") -> None:
        """Remember what another debouncer fired on the same streams, so that no word is told twice."""
        for mine, keyword in enumerate(self.rules.keywords):
            if keyword in old.rules.keywords:
                theirs = old.rules.keywords.index(keyword)
                self._armed[:, mine] = old._armed[:, theirs]
                self._fired_at[:, mine] = old._fired_at[:, theirs]
        self._unsettled[:] = ~self._armed.all(1)

    def remember(self, old: "Debouncer", next_ends: Indices) -> None:
        """Go on with the windows another debouncer of the same model heard last, as if they had come at this hop; the
        next one of each stream ends at `next_ends` (streams,)."""
        if old.labels != self.labels:
            return
        hop, theirs_hop, every = self.rules.hop, old.rules.hop, np.arange(len(old._count))
        heard = old._count * theirs_hop // hop  # (streams,) windows, had they come at this hop
        heard[next_ends - old._last_end > max(hop, theirs_hop)] = 0  # there is a gap between them
        self._count[:] = heard
        for mine, theirs, newest in (
            (self._recent, old._recent, -1), (self._speech, old._speech, 0), (self._stirred, old._stirred, 0)
        ):  # fmt: skip
            for back in range(mine.shape[1]):
                there = min(back * hop // theirs_hop, theirs.shape[1] - 1)
                at = (old._count + newest - there) % theirs.shape[1]  # (streams,)
                mine[every, (self._count + newest - back) % mine.shape[1]] = theirs[every, at]
        self._last_end[:] = np.where(heard > 0, next_ends - hop, LONG_AGO)

    def needed(self, streams: Indices) -> Scores:
        """The thresholds of now: (n, keywords). Where keywords stirred again and again and nothing like a word came of
        it, as over music, one that seems to be said is less likely to be."""
        wary = self._stirred[streams].sum(1, keepdims=True) > self._unrest  # (n, 1)
        least = np.float32(self.rules.wary_threshold)
        return np.where(wary, np.maximum(self.rules.threshold, least), self.rules.threshold)

    def scores(self, streams: Indices) -> Scores:
        """The mean posteriors of keywords judged last: (n, keywords); zero while there are too few windows."""
        mean = self._recent[streams].mean(1)[:, self._columns]
        return np.asarray(np.where(self._known(streams), mean, np.float32(0.0)))

    def reset(self, streams: Indices) -> None:
        """These streams begin anew: nothing was heard in them yet."""
        self._last_end[streams] = LONG_AGO  # what was heard is forgotten, as over a gap
        self._armed[streams] = True
        self._unsettled[streams] = self._stirring[streams] = False
        self._fired_at[streams] = LONG_AGO

    def step(self, streams: Indices, ends: Indices, posteriors: Scores) -> Iterator[Detection]:
        """Windows (n,) with posteriors (n, labels), in time order within a stream; any number per stream."""
        for rows in _turns(streams):
            yield from self._step(streams[rows], ends[rows], posteriors[rows])

    def _step(self, streams: Indices, ends: Indices, posteriors: Scores) -> Iterator[Detection]:
        """One window each of distinct streams."""
        self._forget_across_gaps(streams, ends)
        smoothed = self._smooth(streams, posteriors)  # (n, labels)
        self._note_speech(streams, posteriors)
        awake = self._awake(streams, smoothed)
        if awake.size:
            yield from self._judge(streams[awake], ends[awake], smoothed[awake])
        self._note_stirring(streams, posteriors, smoothed)

    def _judge(self, streams: Indices, ends: Indices, smoothed: Scores) -> Iterator[Detection]:
        """The rules, for streams in which one of them may change something."""
        scores = smoothed[:, self._columns]  # (n, keywords)
        rivals = _runners_up(smoothed)[:, self._columns]  # (n, keywords) index of a label
        needed = self.needed(streams)  # (n, keywords)
        over = (scores >= needed) & self._known(streams)
        ahead = over & (scores >= np.take_along_axis(smoothed, rivals, 1) + self.rules.margin)
        lasting = self._lasting(streams, ahead)
        alone = lasting & self._isolated(streams)
        fired = self._fire_once(streams, ends, alone)
        self._rearm(streams, ends, scores)
        self._unsettled[streams] = ~self._armed[streams].all(1) | self._hits[streams].any(1)
        if self.near is not None:
            passed = np.add.reduce([over, ahead, lasting, alone], dtype=np.int64)  # each implies the last
            self.near.note(streams, ends, scores, fired, needed=needed, passed=passed)
            self._unsettled[streams] |= self.near.pending(streams)
        for row, keyword in np.argwhere(fired).tolist():
            rival = int(rivals[row, keyword])
            yield Detection(
                stream=int(streams[row]),
                keyword=self.rules.keywords[keyword],
                score=float(scores[row, keyword]),
                threshold=float(needed[row, keyword]),
                runner_up=self.labels[rival],
                runner_up_score=float(smoothed[row, rival]),
                end=int(ends[row]),
            )

    def _forget_across_gaps(self, streams: Indices, ends: Indices) -> None:
        """What was heard before a gap says nothing about after it. Armed and refractory stay: they prevent doubles."""
        broken = ends - self._last_end[streams] != self.rules.hop
        self._last_end[streams] = ends
        if broken.any():
            self._count[streams[broken]] = 0
            self._hits[streams[broken]] = 0
            self._speech[streams[broken]] = self._stirred[streams[broken]] = False
            if self.near is not None:
                self.near.forget(streams[broken])

    def _smooth(self, streams: Indices, posteriors: Scores) -> Scores:
        """Mean over the last windows: (n, labels); zero until there are enough of them."""
        window = self.rules.smoothing
        self._recent[streams, self._count[streams] % window] = posteriors
        self._count[streams] += 1
        mean = np.add.reduce(self._recent[streams], 1) / np.float32(window)
        unknown = self._count[streams] < window
        if unknown.any():
            mean[unknown] = 0.0
        return np.asarray(mean)

    def _known(self, streams: Indices) -> Flags:
        """Whether there are windows enough for a mean; before that a score is not low but unknown. (n, 1)."""
        return np.asarray(self._count[streams, None] >= self.rules.smoothing)

    def _awake(self, streams: Indices, smoothed: Scores) -> NDArray[np.intp]:
        """Rows in which something may be said or not all is armed. In the others, as nearly always, no rule changes
        anything."""
        said = (smoothed[:, self._columns] >= self._low).any(1)
        return np.flatnonzero(said | self._unsettled[streams])

    def _lasting(self, streams: Indices, ahead: Flags) -> Flags:
        """Above the threshold and ahead of the runner-up for enough windows in a row: (n, keywords)."""
        self._hits[streams] = np.where(ahead, self._hits[streams] + 1, 0)
        return np.asarray(self._hits[streams] >= self.rules.min_hits)

    def _note_speech(self, streams: Indices, posteriors: Scores) -> None:
        """Whether the model took most of the window for other speech than the keywords."""
        if self._unknown >= 0:
            other = posteriors[:, self._unknown] > OTHER_SPEECH
            self._speech[streams, self._count[streams] % self._speech.shape[1]] = other

    def _note_stirring(self, streams: Indices, posteriors: Scores, smoothed: Scores) -> None:
        """Whether more may come of this window than of silence. Not of a keyword that was told and is still high: first
        it must fall. Of what is like a word nobody need be wary: who was not heard says it again."""
        high = posteriors[:, self._columns] >= STIRRING  # (n, keywords)
        if high.any():
            high &= self._armed[streams] | (smoothed[:, self._columns] < self.rules.release)
        self._stirring[streams] = high.any(1)
        hops = self._stirred.shape[1]
        self._stirred[streams, self._count[streams] % hops] = self._stirring[streams]
        words = streams[(smoothed[:, self._columns] >= self._near).any(1)]
        if words.size:
            self._stirred[words[:, None], (self._count[words, None] - np.arange(self._word_hops)) % hops] = False

    def _isolated(self, streams: Indices) -> Flags:
        """Said on its own: little other speech in the time looked back on.

        A command is other speech as well, for the windows that cut it: about half a second. (n, keywords).
        """
        speech = self._speech[streams].sum(1, keepdims=True) * self.rules.hop  # (n, 1) samples
        return np.asarray((speech <= self.rules.isolation_speech) | (self.rules.isolation_speech < 0))

    def _fire_once(self, streams: Indices, ends: Indices, candidates: Flags) -> Flags:
        """Candidates that are armed fire and disarm themselves, and nobody else: (n, keywords)."""
        fired = candidates & self._armed[streams]
        self._armed[streams] &= ~fired
        self._fired_at[streams] = np.where(fired, ends[:, None], self._fired_at[streams])
        return fired

    def _rearm(self, streams: Indices, ends: Indices, scores: Scores) -> None:
        """Armed again once the score fell below the release level and the refractory time is over."""
        rested = ends[:, None] - self._fired_at[streams] >= self.rules.refractory
        self._armed[streams] |= (scores < self.rules.release) & rested & self._known(streams)


class NearMisses:
    """What came halfway from the release level to the threshold or further, and then fell without being told."""

    def __init__(self, rules: Rules, streams: int) -> None:
        self._rules = rules
        shape = (streams, len(rules.keywords))
        self._best = np.zeros(shape, np.float32)  # score; 0: nothing pending
        self._best_end = np.zeros(shape, np.int64)
        self._needed = np.zeros(shape, np.float32)  # the threshold then
        self._passed = np.zeros(shape, np.int64)  # rules, by the window that came furthest
        self._told = np.zeros(shape, np.bool_)  # a detection: no miss
        self._found: list[NearMiss] = []

    def note(
        self, streams: Indices, ends: Indices, scores: Scores, fired: Flags, *, needed: Scores, passed: Indices
    ) -> None:
        """One window each of distinct streams: scores, what fired, thresholds and rules passed, each (n, keywords)."""
        high = scores >= self._rules.near
        better = high & (scores > self._best[streams])
        self._best[streams] = np.where(better, scores, self._best[streams])
        self._best_end[streams] = np.where(better, ends[:, None], self._best_end[streams])
        self._needed[streams] = np.where(better, needed, self._needed[streams])
        self._passed[streams] = np.where(high, np.maximum(self._passed[streams], passed), self._passed[streams])
        self._told[streams] |= fired
        fallen = (self._best[streams] > 0) & (scores < self._rules.release)
        for row, keyword in np.argwhere(fallen & ~self._told[streams]).tolist():
            at = int(streams[row]), keyword
            self._found.append(
                NearMiss(
                    stream=at[0],
                    keyword=self._rules.keywords[keyword],
                    score=float(self._best[at]),
                    threshold=float(self._needed[at]),
                    reason=REASONS[self._passed[at]],
                    end=int(self._best_end[at]),
                )
            )
        for state in (self._best, self._passed, self._told):
            state[streams] = np.where(fallen, 0, state[streams])

    def forget(self, streams: Indices) -> None:
        """What was pending before a gap."""
        self._best[streams] = self._passed[streams] = 0
        self._told[streams] = False

    def pending(self, streams: Indices) -> Flags:
        """In which something is still high: (n,)."""
        return np.asarray(self._best[streams].any(1))

    def take(self) -> list[NearMiss]:
        """Those found since this was last asked."""
        found, self._found = self._found, []
        return found


def _turns(streams: Indices) -> Iterator[slice]:
    """Runs of rows in which no stream occurs twice, in order: a stream's next window comes after those of streams with
    a greater number."""
    if len(streams) == 1:
        yield slice(0, 1)
        return
    starts = [0, *(np.flatnonzero(np.diff(streams) <= 0) + 1).tolist(), len(streams)] if len(streams) else []
    for start, end in itertools.pairwise(starts):
        yield slice(start, end)


def _runners_up(smoothed: Scores) -> NDArray[np.intp]:
    """For every label the best of the others: (n, labels) → (n, labels) indices."""
    best = smoothed.argmax(1)[:, None]  # (n, 1)
    others = smoothed.copy()
    np.put_along_axis(others, best, -1.0, 1)
    second = others.argmax(1)[:, None]  # (n, 1)
    return np.asarray(np.where(np.arange(smoothed.shape[1]) == best, second, best))
