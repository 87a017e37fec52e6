"""`kwsd eval --stream`: how often the daemon misses words, and how often it hears what nobody said.

Long recordings go through the shipped ring, windows, spotter and debouncer. A detection between a word's start and
0.75 s after its end is a hit of that word, one at most; any other detection is a false accept.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kwsd.audio_format import SAMPLE_RATE
from kwsd.config import Config
from kwsd.debouncer import Debouncer, Detection, Rules
from kwsd.errors import AudioError
from kwsd.pipeline import NO_LIMIT, make_rules
from kwsd.recording import open_recording
from kwsd.replay import Trace, trace
from kwsd.spotter import Spotter
from kwsd.training.dataset import talk_paths
from kwsd.training.evaluate import Rate
from kwsd.training.mix import Word, read_truth

HIT_S = 0.75  # a detection this long after a word's end still belongs to it
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99)


@dataclass(frozen=True)
class Outcome:
    """What came of the words and the talk under one set of rules."""

    said: tuple[str, ...]  # every true word
    hit: tuple[bool, ...]  # whether it was heard
    mistaken: tuple[str | None, ...]  # the other word that was heard in its place
    latencies_s: tuple[float, ...]  # of the hits: from a word's end to the end of the window that decided
    false_accepts: tuple[str, ...]  # keywords heard where none was said
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
class Material:
    """Traces of recordings, and the words that are said in each."""

    traces: Sequence[Trace]
    words: Sequence[Sequence[Word]]

    @property
    def hours(self) -> float:
        return sum(trace.samples for trace in self.traces) / SAMPLE_RATE / 3600


@dataclass(frozen=True)
class StreamEvaluation:
    """A model on recordings of words and on talk without any."""

    rules: Rules
    labels: tuple[str, ...]
    words: Material
    talk: Material
    left_out: int  # recordings of talk in which a keyword is spoken, by their transcripts

    def at(self, threshold: float | None = None, isolated: bool = True) -> tuple[Outcome, Outcome]:
        """What came of the words and of the talk; with the model's own thresholds, or the same for all."""
        rules = self.rules
        if threshold is not None:
            flat = np.full_like(rules.threshold, threshold)
            rules = dataclasses.replace(rules, threshold=flat, release=np.minimum(rules.release, flat))
        if not isolated:
            rules = dataclasses.replace(rules, isolation_speech=np.full_like(rules.isolation_speech, NO_LIMIT))
        return judge(self.words, rules, self.labels), judge(self.talk, rules, self.labels)


def evaluate_stream(
    config: Config, spotter: Spotter, recordings: Sequence[Path], negatives: Sequence[Path]
) -> StreamEvaluation:
    """Run recordings with a .tsv of their words, and folders of talk, through the daemon's pipeline.

    Raises AudioError if one cannot be read, or there is nothing to measure.
    """
    rules = make_rules(config, spotter.info)
    truths = [read_truth(path) for path in recordings]
    for path in recordings:
        open_recording(path).close()  # a bad one is told at once, not after those before it
    talk, left_out = [], 0
    for folder in negatives:
        paths, without = talk_paths(folder, rules.keywords, checked=True)
        talk += paths
        left_out += without
    if not recordings and not talk:
        raise AudioError("nothing to measure: name recordings of words, or folders of talk with --negatives")

    def traces(paths: Sequence[Path], what: str) -> list[Trace]:
        return [trace(config, spotter, p) for p in tqdm(paths, desc=what, unit="file", leave=False, disable=None)]

    return StreamEvaluation(
        rules=rules,
        labels=spotter.info.labels,
        words=Material(traces(recordings, "words"), truths),
        talk=Material(traces(talk, "talk"), [[] for _ in talk]),
        left_out=left_out,
    )


def judge(material: Material, rules: Rules, labels: tuple[str, ...]) -> Outcome:
    """Decide by the rules, and compare with what was said."""
    said, hit, mistaken, latencies, false = [], [], [], [], []
    heard: list[list[Detection]] = [[] for _ in material.traces]
    for detection in decide(material.traces, rules, labels):
        heard[detection.stream].append(detection)
    for words, detections in zip(material.words, heard, strict=True):
        left = list(detections)
        for word in (word for word in words if word.keyword in rules.keywords):
            near = [d for d in left if word.start_s <= d.end / SAMPLE_RATE <= word.end_s + HIT_S]
            mine = next((d for d in near if d.keyword == word.keyword), None)
            other = next((d.keyword for d in near if d.keyword != word.keyword), None)
            said.append(word.keyword)
            hit.append(mine is not None)
            mistaken.append(other if mine is None else None)
            if mine is not None:
                left.remove(mine)
                latencies.append(mine.end / SAMPLE_RATE - word.end_s)
        false += [d.keyword for d in left]
    return Outcome(tuple(said), tuple(hit), tuple(mistaken), tuple(latencies), tuple(false), material.hours)


def decide(traces: Sequence[Trace], rules: Rules, labels: tuple[str, ...]) -> Iterator[Detection]:
    """Every recording a stream, all of them side by side."""
    debouncer = Debouncer(rules, labels, len(traces))
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


def threshold_for(evaluation: StreamEvaluation, budget: float) -> float | None:
    """The lowest threshold, the same for all words, with at most `budget` false accepts per hour of talk; None if
    there is none. The whole range is looked at, as a higher threshold may by chance give one more."""
    within = [t for t in THRESHOLDS if evaluation.at(t)[1].per_hour[0] <= budget]
    return min(within, default=None)


# --- report -------------------------------------------------------------------------------------------------


def table(evaluation: StreamEvaluation) -> str:
    """For people."""
    words, talk = evaluation.at()
    lines = []
    if words.said:
        lines += [f"{'words missed (FRR)':24s} {words.missed()}"]
        lines += [f"  {keyword:22s} {words.missed(keyword)}" for keyword in dict.fromkeys(words.said)]
        wrong = sum(1 for word in words.mistaken if word)
        lines += [f"{'wrong word instead':24s} {Rate(wrong, len(words.said))}"]
        lines += [f"{'false between them':24s} {_per_hour(words)}"]
        if words.latencies_s:
            p50, p95 = np.percentile(words.latencies_s, (50, 95))
            lines += [f"{'end of word → detection':24s} p50 {p50:.2f} s  p95 {p95:.2f} s of audio"]
    if talk.hours:
        lines += [f"{'false on talk (FA/h)':24s} {_per_hour(talk)}, {evaluation.left_out} recordings left out"]
    lines += ["", f"{'threshold':>9s} {'FRR':>7s} {'FA/h':>7s}   without isolation: {'FRR':>7s} {'FA/h':>7s}"]
    for threshold, with_rule, without in curve(evaluation):
        figures = [f"{100 * frr:6.1f}% {rate:7.2f}" for frr, rate in (with_rule, without)]
        lines += [f"{threshold:9.3f} {figures[0]}   {'':18s} {figures[1]}"]
    return "\n".join(lines)


def curve(evaluation: StreamEvaluation) -> list[tuple[float, tuple[float, float], tuple[float, float]]]:
    """For every threshold FRR and FA/h, with isolation as configured and without."""
    points = []
    for threshold in THRESHOLDS:
        pairs = []
        for isolated in (True, False):
            words, talk = evaluation.at(threshold, isolated)
            pairs.append((words.missed().value, (talk if talk.hours else words).per_hour[0]))
        points.append((threshold, pairs[0], pairs[1]))
    return points


def as_dict(evaluation: StreamEvaluation) -> dict[str, Any]:
    """For JSON."""
    words, talk = evaluation.at()
    keywords = list(dict.fromkeys(words.said))
    return {
        "thresholds": dict(zip(evaluation.rules.keywords, evaluation.rules.threshold.tolist(), strict=True)),
        "words": words.as_dict(),
        "per_word": {k: {"missed": words.missed(k).right, "of": words.missed(k).of} for k in keywords},
        "talk": talk.as_dict() | {"left_out": evaluation.left_out},
        "curve": [
            {"threshold": t, "frr": a, "fa_per_hour": b, "frr_no_isolation": c, "fa_per_hour_no_isolation": d}
            for t, (a, b), (c, d) in curve(evaluation)
        ],
    }


def draw_curve(evaluation: StreamEvaluation, path: Path) -> None:
    """The detection error trade-off, with and without isolation."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = curve(evaluation)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    for which, name in ((1, "isolation as configured"), (2, "without isolation")):
        pairs = np.array([point[which] for point in points])  # (thresholds, 2)
        axes.plot(pairs[:, 1], 100 * pairs[:, 0], marker="o", markersize=3, label=name)
        for (threshold, *_), (frr, rate) in list(zip(points, pairs.tolist(), strict=True))[::3]:
            axes.annotate(f"{threshold:g}", (rate, 100 * frr), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=-0.05)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("false accepts per hour of talk")
    axes.set_ylabel("words missed, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _per_hour(outcome: Outcome) -> str:
    rate, low, high = outcome.per_hour
    which = ", ".join(f"{k} {outcome.false_accepts.count(k)}" for k in dict.fromkeys(outcome.false_accepts))
    return f"{rate:6.2f}  [{low:.2f}, {high:.2f}]  {len(outcome.false_accepts)} in {outcome.hours:.2f} h" + (
        f" ({which})" if which else ""
    )
