"""Of streams that hear one another's words, as microphones in rooms with open doors do, which one tells of a word: that
in which it was loudest. Pure: it is told what time it is, and reads no clock."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from kwsd.config import ArbitrationConfig, is_among
from kwsd.event import AlsoHeard, Heard, Rejected, Verdict
from kwsd.ring import Samples

SAME_S = 1.0  # between streams: who hears a word so much later than others did still hears theirs
KEPT_S = 10.0  # for so long it is known what was said, should windows of others be scored late
REASON = "arbitration"  # of whom another stream told


@dataclass(frozen=True)
class Candidate:
    """A word as one stream heard it."""

    heard: Heard
    sound: Samples | None  # its window (16000,), where clips are kept
    at: float  # when that window had been said, s
    since: float  # when we were told, s


@dataclass
class Round:
    """A word, and the streams of a group that heard it."""

    group: int
    opened_at: float  # when the first heard it, s
    candidates: list[Candidate] = field(default_factory=list)
    decided: bool = False

    @property
    def streams(self) -> set[str]:
        """That heard it so far."""
        return {candidate.heard.stream for candidate in self.candidates}


@dataclass(frozen=True)
class Ruling:
    """What is to be told, and its sound."""

    verdict: Verdict
    sound: Samples | None


class Arbiter:
    """`hear` what a stream heard, and `settle` when `next_at` has come; both say what is to be told.

    A word waits `wait_ms` for the other streams of its group, and no longer than until all have heard it. The stream in
    which it was loudest tells of it, and names the others; what those heard is `rejected`, even where they took it for
    another word. Who hears the same word later still is too late.
    """

    def __init__(self, config: ArbitrationConfig) -> None:
        self._groups, self._gain_db = config.groups, config.gain_db
        self._wait_s = config.wait_ms / 1000
        self._rounds: list[Round] = []  # the oldest first; decided ones as long as somebody may be late

    @property
    def next_at(self) -> float | None:
        """When the next word has waited long enough, s; None: none waits."""
        return min((each.opened_at + self._wait_s for each in self._rounds if not each.decided), default=None)

    def hear(self, heard: Heard, sound: Samples | None, at: float, now: float, there: Iterable[str]) -> list[Ruling]:
        """What one of the streams that are `there` heard, in a window that had been said `at` some time, s."""
        group = self.group_of(heard.stream)
        if group is None:
            return [Ruling(heard, sound)]
        self._rounds = [each for each in self._rounds if not each.decided or now - each.opened_at <= KEPT_S]
        candidate = Candidate(heard, sound, at, now)
        found = self._round_of(group, candidate)
        if found is None:
            found = Round(group, at)
            self._rounds.append(found)
        found.candidates.append(candidate)
        if found.decided:
            return [_overruled(candidate)]
        heard_it = found.streams
        all_have = all(name in heard_it or self.group_of(name) != group for name in there)
        return self._decide(found, now) if all_have else []

    def settle(self, now: float, *, at_once: bool = False) -> list[Ruling]:
        """The words that have waited long enough by now, s, or all that wait."""
        return [
            ruling
            for each in self._rounds
            if not each.decided and (at_once or now >= each.opened_at + self._wait_s)
            for ruling in self._decide(each, now)
        ]

    def group_of(self, stream: str) -> int | None:
        """Which of the groups a stream is in, from 0: the first that names it."""
        return next((i for i, group in enumerate(self._groups) if is_among(stream, group)), None)

    def _round_of(self, group: int, candidate: Candidate) -> Round | None:
        """That in which other streams heard what this one did, the latest first. A stream that is in it has said its
        word: this is another."""
        for each in reversed(self._rounds):
            if each.group == group and candidate.heard.stream not in each.streams and self._is_same(each, candidate):
                return each
        return None

    def _is_same(self, found: Round, candidate: Candidate) -> bool:
        """While the others are waited for, whatever was heard is one word, which some took for another."""
        apart_s = abs(candidate.at - found.opened_at)
        if not found.decided and apart_s <= self._wait_s:
            return True
        return apart_s <= SAME_S and candidate.heard.keyword in {each.heard.keyword for each in found.candidates}

    def _decide(self, found: Round, now: float) -> list[Ruling]:
        ranked = sorted(found.candidates, key=self._rank, reverse=True)
        best, others = ranked[0], ranked[1:]
        waited_ms = round((now - best.since) * 1000)
        winner = msgspec.structs.replace(
            best.heard,
            also_heard=tuple(_also(each.heard) for each in others),
            latency_ms=None if best.heard.latency_ms is None else best.heard.latency_ms + waited_ms,
        )
        found.decided = True
        return [Ruling(winner, best.sound), *map(_overruled, others)]

    def _rank(self, candidate: Candidate) -> tuple[float, float]:
        heard = candidate.heard
        return heard.level_dbfs + self._gain_db.get(heard.stream, 0.0), heard.score


def _also(heard: Heard) -> AlsoHeard:
    return AlsoHeard(heard.stream, heard.keyword, heard.score, heard.level_dbfs)


def _overruled(candidate: Candidate) -> Ruling:
    heard = candidate.heard
    rejected = Rejected(
        stream=heard.stream,
        keyword=heard.keyword,
        score=heard.score,
        threshold=heard.threshold,
        reason=REASON,
        at_s=heard.end_s,
    )
    return Ruling(rejected, candidate.sound)
