"""`kwsd eval --stream`: how often the daemon misses words, and how often it hears what nobody said.

Long recordings go through the shipped ring, windows, spotter and debouncer. A detection between a word's start and
0.75 s after its end is a hit of that word, one at most; any other detection is a false accept. Where only a transcript
is known, the keywords in it are forgiven anywhere in the recording, once for every time they are spoken.

Recordings of talk are heard each on its own, so that each begins after a silence, as somebody does who was asked; or
end to end, as a radio talks.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.compiled_debouncer import make_debouncer
from kwsd.config import Config
from kwsd.debouncer import Detection, Rules
from kwsd.errors import USAGE, AudioError, ConfigError
from kwsd.pipeline import NO_LIMIT, make_rules
from kwsd.recording import open_recording, read_recording
from kwsd.replay import Trace, trace
from kwsd.spotter import Spotter
from kwsd.training.evaluate import Rate
from kwsd.training.labels import label_of
from kwsd.training.talk import transcribed_talk
from kwsd.training.truth import Word, read_truth

HIT_S = 0.75  # a detection this long after a word's end still belongs to it
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.91, 0.92, 0.93, 0.94, 0.95, 0.97, 0.99)
FEW_WORDS = 20  # of a keyword: too few to choose a threshold of its own
PLANS = 20  # with as many false accepts, that are looked at further
LOOKING_BACK = ("isolation", "wariness")  # the rules that look back beyond the last second
# A threshold, and FRR and FA/h by all rules and without each of these.
Points = list[tuple[float, list[tuple[float, float]]]]


@dataclass(frozen=True)
class Outcome:
    """What came of the words and the talk under one set of rules."""

    said: tuple[str, ...]  # every true word
    hit: tuple[bool, ...]  # whether it was heard
    mistaken: tuple[str | None, ...]  # the other word that was heard in its place
    latencies_s: tuple[float, ...]  # of the hits: from a word's end to the end of the window that first decided
    false_accepts: tuple[str, ...]  # keywords heard where none was said
    false_in: tuple[int, ...]  # the recording that each of them was heard in
    hours: float  # of recordings

    def missed(self, keyword: str | None = None) -> Rate:
        """The false reject rate, of one keyword or all."""
        hits = [hit for word, hit in zip(self.said, self.hit, strict=True) if keyword in (None, word)]
        return Rate(hits.count(False), len(hits))

    @property
    def per_hour(self) -> tuple[float, float, float]:
        """False accepts per hour, with the exact 95 % interval (Garwood 1936)."""
        low, high = poisson_interval(len(self.false_accepts))
        hours = self.hours or math.nan
        return len(self.false_accepts) / hours, low / hours, high / hours

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures: dict[str, Any] = {"hours": round(self.hours, 4), "false_accepts": len(self.false_accepts)}
        if self.hours:
            rate, low, high = self.per_hour
            figures |= {"false_accepts_per_hour": rate, "low": low, "high": high}
        if self.said:
            low, high = self.missed().interval
            figures |= {
                "words": len(self.said),
                "missed": self.missed().right,
                "frr": self.missed().value,
                "frr_low": low,
                "frr_high": high,
                "wrong_word": sum(1 for word in self.mistaken if word),
                "latency_ms": {
                    f"p{q}": round(float(np.percentile(self.latencies_s, q)) * 1000) for q in (50, 95)
                } if self.latencies_s else None,
            }  # fmt: skip
        return figures


@dataclass(frozen=True)
class Stretch:
    """A part of what is heard in which keywords are said nobody knows where."""

    end: int  # sample index one past its last
    spoken: Counter[str]  # how often which


EVERYTHING = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Material:
    """Traces of recordings, the words that are said in each, and those that are said nobody knows where."""

    traces: Sequence[Trace]
    words: Sequence[Sequence[Word]]
    forgiven: Sequence[Sequence[Stretch]] | None = None  # of each trace, one after the other; None: nothing is
    folders: Sequence[Path] | None = None  # that each trace was named by; None: all by the same

    @property
    def hours(self) -> float:
        return sum(self.hours_of.values())

    @cached_property
    def hours_of(self) -> dict[Path, float]:
        """The hours of each folder."""
        hours: dict[Path, float] = {}
        for heard, folder in zip(self.traces, self.folder_of, strict=True):
            hours[folder] = hours.get(folder, 0.0) + heard.samples / SAMPLE_RATE / 3600
        return hours

    @property
    def folder_of(self) -> Sequence[Path]:
        """The folder of each trace."""
        return self.folders or [Path()] * len(self.traces)


@dataclass(frozen=True)
class StreamEvaluation:
    """A model on recordings of words and on talk without any."""

    rules: Rules
    labels: tuple[str, ...]
    words: Material
    talk: Material
    left_out: int  # recordings of talk nobody transcribed
    continuous: bool = False  # whether those of a folder are heard end to end

    def at(self, threshold: float | None = None, without: str | None = None) -> tuple[Outcome, Outcome]:
        """What came of the words and of the talk; with the model's own thresholds, or the same for all; and without one
        of the rules that look back."""
        key = threshold, without
        if key not in self._outcomes:
            rules = self.rules
            if threshold is not None:
                flat = np.full_like(rules.threshold, threshold)
                rules = dataclasses.replace(rules, threshold=flat, release=np.minimum(rules.release, flat))
            if without == "isolation":
                rules = dataclasses.replace(rules, isolation_speech=np.full_like(rules.isolation_speech, NO_LIMIT))
            elif without == "wariness":
                rules = dataclasses.replace(rules, wary=0)
            self._outcomes[key] = judge(self.words, rules, self.labels), judge(self.talk, rules, self.labels)
        return self._outcomes[key]

    def false_accepts(self, threshold: float, keyword: str | None = None) -> tuple[int, ...]:
        """How often some keyword, or this one, was heard falsely on the talk of each folder."""
        talk, folder_of = self.at(threshold)[1], self.talk.folder_of
        places = zip(talk.false_accepts, talk.false_in, strict=True)
        counted = Counter(folder_of[place] for false, place in places if keyword in (None, false))
        return tuple(counted[folder] for folder in self.talk.hours_of)

    @cached_property
    def _outcomes(self) -> dict[tuple[float | None, str | None], tuple[Outcome, Outcome]]:
        return {}

    @cached_property
    def curve(self) -> Points:
        """For every threshold FRR and FA/h, by the rules as configured and without each of those that look back."""
        points = []
        for threshold in THRESHOLDS:
            pairs = []
            for without in (None, *LOOKING_BACK):
                words, talk = self.at(threshold, without)
                pairs.append((words.missed().value, (talk if talk.hours else words).per_hour[0]))
            points.append((threshold, pairs))
        return points


def evaluate_stream(
    config: Config, spotter: Spotter, recordings: Sequence[Path], negatives: Sequence[Path], *, continuous: bool = False
) -> StreamEvaluation:
    """Run recordings with a .tsv of their words, and folders of talk, through the daemon's pipeline. `continuous` has
    the recordings of a folder follow each other without a break.

    Raises AudioError if one cannot be read, or there is nothing to measure.
    """
    rules = make_rules(config, spotter.info)
    truths = [[_listened_for(word, rules.keywords) for word in read_truth(path)] for path in recordings]
    for path in recordings:
        open_recording(path).close()  # a bad one is told at once, not after those before it
    said = {word.keyword for truth in truths for word in truth}
    if recordings and said.isdisjoint(rules.keywords):
        raise ConfigError(
            f"{recordings[0]}: none of its words ({', '.join(sorted(said))}) is one that is listened for "
            f"({', '.join(rules.keywords)}); have kwsd mix make one with --labels",
            exit_code=USAGE,
        )
    talk: dict[Path, Counter[str]] = {}
    named_by: dict[Path, Path] = {}
    left_out = 0
    for folder in negatives:
        spoken, without = transcribed_talk(folder, rules.keywords)
        talk |= spoken
        named_by |= dict.fromkeys(spoken, folder)
        left_out += without
    if not recordings and not talk:
        raise AudioError("nothing to measure: name recordings of words, or folders of talk with --negatives")

    def traces(groups: Sequence[Sequence[Path]], what: str) -> list[Trace]:
        return [trace(config, spotter, *g) for g in tqdm(groups, desc=what, unit="file", leave=False, disable=None)]

    groups = _by_folder(talk) if continuous else [[path] for path in talk]
    return StreamEvaluation(
        rules=rules,
        labels=spotter.info.labels,
        words=Material(traces([[path] for path in recordings], "words"), truths),
        talk=Material(
            traces(groups, "talk"),
            [[] for _ in groups],
            [_stretches(group, talk) for group in groups],
            [named_by[group[0]] for group in groups],
        ),
        left_out=left_out,
        continuous=continuous,
    )


def _listened_for(word: Word, keywords: Sequence[str]) -> Word:
    """A word that is said, as the model's labels write it."""
    return dataclasses.replace(word, keyword=label_of(word.keyword, keywords))


def said_seldom(evaluation: StreamEvaluation) -> list[str]:
    """Words of which too few were said to choose a threshold by."""
    said = Counter(word.keyword for words in evaluation.words.words for word in words)
    return [keyword for keyword in evaluation.rules.keywords if said[keyword] < FEW_WORDS]


def _by_folder(paths: Iterable[Path]) -> list[list[Path]]:
    folders: dict[Path, list[Path]] = {}
    for path in paths:
        folders.setdefault(path.parent, []).append(path)
    return list(folders.values())


def _stretches(group: Sequence[Path], talk: Mapping[Path, Counter[str]]) -> list[Stretch]:
    """What is spoken in each of the recordings that are heard end to end."""
    if len(group) == 1:
        return [Stretch(EVERYTHING, talk[group[0]])]
    ends = np.cumsum([read_recording(path).size for path in group])
    return [Stretch(int(end), talk[path]) for end, path in zip(ends, group, strict=True)]


def judge(material: Material, rules: Rules, labels: tuple[str, ...]) -> Outcome:
    """Decide by the rules, and compare with what was said."""
    said, hit, mistaken = [], [], []
    latencies, false, false_in = list[float](), list[str](), list[int]()
    heard: list[list[Detection]] = [[] for _ in material.traces]
    for detection in decide(material.traces, rules, labels):
        heard[detection.stream].append(detection)
    forgiven = material.forgiven or [() for _ in material.traces]
    for i, (words, detections, stretches) in enumerate(zip(material.words, heard, forgiven, strict=True)):
        known = [word for word in words if word.keyword in rules.keywords]
        hits, left = _match(known, detections)
        for word, mine in zip(known, hits, strict=True):
            said.append(word.keyword)
            hit.append(mine is not None)
            mistaken.append(next((d.keyword for d in left if _is_near(word, d)), None) if mine is None else None)
        latencies += _latencies_s(known, hits, left)
        false += _unforgiven(left, stretches)
        false_in += [i] * (len(false) - len(false_in))
    return Outcome(
        tuple(said), tuple(hit), tuple(mistaken), tuple(latencies), tuple(false), tuple(false_in), material.hours
    )


def _match(words: Sequence[Word], detections: Sequence[Detection]) -> tuple[list[Detection | None], list[Detection]]:
    """Which detection is the hit of each word, and those that are none's. The last word has the first choice, and takes
    the last: as many are matched as can be, and each with the word it came behind."""
    left, hits = list(detections), list[Detection | None]()
    for word in reversed(words):
        mine = next((d for d in reversed(left) if d.keyword == word.keyword and _is_near(word, d)), None)
        hits.append(mine)
        if mine is not None:
            left.remove(mine)
    return hits[::-1], left


def _latencies_s(words: Sequence[Word], hits: Sequence[Detection | None], left: Sequence[Detection]) -> Iterator[float]:
    """Of the words that were heard: of one that was heard twice, of the first time, if that was not another's."""
    spare, before = list(left), 0
    for word, mine in zip(words, hits, strict=True):
        if mine is not None:
            earlier = [
                d for d in spare if d.keyword == word.keyword and before < d.end < mine.end and _is_near(word, d)
            ]
            first = min(earlier, key=lambda detection: detection.end, default=mine)
            if first is not mine:
                spare[spare.index(first)] = mine
            before = first.end
            yield first.end / SAMPLE_RATE - word.end_s


def _unforgiven(detections: Sequence[Detection], stretches: Sequence[Stretch]) -> Iterator[str]:
    """The keywords that were heard oftener than they were spoken in the stretch they lie in."""
    middles = np.array([d.end - WINDOW // 2 for d in detections])  # sample indices
    where = np.searchsorted([stretch.end for stretch in stretches], middles, side="right")
    where = where.clip(max=max(len(stretches) - 1, 0))  # the last word may be heard in the silence behind it
    for i, stretch in enumerate(stretches or (Stretch(EVERYTHING, Counter()),)):
        heard = Counter(d.keyword for d, at in zip(detections, where, strict=True) if at == i)
        yield from (heard - stretch.spoken).elements()


def _is_near(word: Word, detection: Detection) -> bool:
    return word.start_s <= detection.end / SAMPLE_RATE <= word.end_s + HIT_S


def decide(traces: Sequence[Trace], rules: Rules, labels: tuple[str, ...]) -> Iterator[Detection]:
    """Every recording a stream, all of them side by side."""
    debouncer = make_debouncer(rules, labels, len(traces))
    for step in range(max((len(t.ends) for t in traces), default=0)):
        running = np.array([i for i, t in enumerate(traces) if step < len(t.ends)])
        ends = np.array([traces[i].ends[step] for i in running])
        yield from debouncer.step(running, ends, np.stack([traces[i].posteriors[step] for i in running]))


def poisson_interval(events: int) -> tuple[float, float]:
    """The 95 % interval of a mean of which `events` were counted (Garwood 1936)."""

    def at_most(n: int, mean: float) -> float:
        return math.fsum(math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(n + 1))

    def solve(n: int, share: float) -> float:
        low, high = 1e-9, 2.0 * n + 20.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(n, middle) > share else (low, middle)
        return (low + high) / 2

    return (0.0 if events == 0 else solve(events - 1, 0.975)), solve(events, 0.025)


Cost = tuple[int, int]  # words missed and mistaken; thresholds of words of which few were said, in thousandths
Falses = tuple[int, ...]  # false accepts on the talk of each folder
Plan = tuple[Cost, dict[str, float]]  # what thresholds cost, and the thresholds


def threshold_for(evaluation: StreamEvaluation, budget: float) -> float | None:
    """The lowest threshold, the same for all words, with at most `budget` false accepts per hour of each folder's talk;
    None if there is none. The whole range is looked at, as a higher threshold may by chance give one more."""
    hours = evaluation.talk.hours_of.values()
    if not hours or not all(hours):
        return None
    within = [
        threshold
        for threshold in THRESHOLDS
        if all(false <= budget * long for false, long in zip(evaluation.false_accepts(threshold), hours, strict=True))
    ]
    return min(within, default=None)


def thresholds_for(evaluation: StreamEvaluation, budget: float) -> dict[str, float]:
    """For each keyword the threshold with which together the fewest words are missed and mistaken, at no more than
    `budget` false accepts per hour of each folder's talk, and so of all of it; empty if there are none.

    A keyword's hits and false accepts hardly depend on the others' thresholds, so each is looked at by itself, and
    what the budget allows is shared out where it saves most. To be on the safe side a threshold has the false accepts
    of the next lower one. Keywords of which few words were said get the threshold that suits all, or the next one that
    is within the budget; and where there is too little talk in a folder for that to allow even one false accept, none
    gets a lower one.
    """
    allowed = [math.floor(budget * hours) for hours in evaluation.talk.hours_of.values()]
    said = Counter(evaluation.at()[0].said)
    lowest = threshold_for(evaluation, budget)
    if lowest is None:
        return {}
    for_all = THRESHOLDS[min(THRESHOLDS.index(lowest) + 1, len(THRESHOLDS) - 1)]
    plans: dict[Falses, Plan] = {(0,) * len(allowed): ((0, 0), {})}
    for keyword in evaluation.rules.keywords:
        choices = _choices(evaluation, keyword)
        if said[keyword] < FEW_WORDS:  # too few to count misses: what a threshold costs is how high it is
            choices = [(false, (0, round(1000 * at)), at) for false, _, at in choices if at >= for_all]
        elif not all(allowed):
            choices = [choice for choice in choices if choice[2] >= for_all]
        longer: dict[Falses, Plan] = {}
        for false_before, (cost_before, thresholds) in plans.items():
            for false, cost, threshold in choices:
                total = tuple(map(sum, zip(false_before, false, strict=True)))
                plan = (cost_before[0] + cost[0], cost_before[1] + cost[1]), thresholds | {keyword: threshold}
                affordable = all(n <= most for n, most in zip(total, allowed, strict=True))
                if affordable and (total not in longer or plan[0] <= longer[total][0]):
                    longer[total] = plan
        plans = _cheapest(longer)
    safe = min(plans.values(), key=lambda plan: plan[0], default=None)
    return safe[1] if safe else dict.fromkeys(evaluation.rules.keywords, lowest)


def _cheapest(plans: dict[Falses, Plan]) -> dict[Falses, Plan]:
    """Of those with as many false accepts in all folders together, some that cost least: of several folders there would
    be ever so many."""
    kept: dict[int, dict[Falses, Plan]] = {}
    for false, plan in sorted(plans.items(), key=lambda item: item[1][0]):
        alike = kept.setdefault(sum(false), {})
        if len(alike) < PLANS:
            alike[false] = plan
    return {false: plan for alike in kept.values() for false, plan in alike.items()}


def _choices(evaluation: StreamEvaluation, keyword: str) -> list[tuple[Falses, Cost, float]]:
    """(false accepts on talk, what it costs, threshold), the highest threshold last."""
    choices = []
    lower = THRESHOLDS[0]
    for threshold in THRESHOLDS:
        words = evaluation.at(threshold)[0]
        either = zip(*(evaluation.false_accepts(at, keyword) for at in (threshold, lower)), strict=True)
        mistaken = words.missed(keyword).right + words.false_accepts.count(keyword)
        choices.append((tuple(map(max, either)), (mistaken, 0), threshold))
        lower = threshold
    return choices
