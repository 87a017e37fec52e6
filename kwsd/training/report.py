"""`kwsd eval --stream`: its figures as text, JSON, a picture and a page."""

import base64
import html
import io
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kwsd.errors import USAGE, ConfigError
from kwsd.paths import check_writable
from kwsd.training.evaluate import Rate
from kwsd.training.streaming import LOOKING_BACK, Outcome, StreamEvaluation

WORD_COLUMNS = (
    "word", "threshold", "missed", "95 % interval", "words", "heard instead", "false between words", "false on talk",
)  # fmt: skip
CURVE_KEYS = (
    "frr",
    "fa_per_hour",
    *(f"{figure}_no_{rule}" for rule in LOOKING_BACK for figure in ("frr", "fa_per_hour")),
)
CURVE_COLUMNS = (
    "threshold", "missed, %", "false per hour",
    *itertools.chain(*((f"without {rule}: missed, %", "false per hour") for rule in LOOKING_BACK)),
)  # fmt: skip
MANY = 0.05  # of the words: more than so many that wariness costs say that the model hears them everywhere
EVERYWHERE = "this model hears words everywhere: train it longer, with more talk"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
:root { color-scheme: light dark }
table { border-collapse: collapse; margin: 1rem 0 } img { max-width: 100%; background: white }
th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #8885 } th:first-child { text-align: left }
"""


def table(evaluation: StreamEvaluation) -> str:
    """For people."""
    lines = [
        _summary(evaluation),
        "",
        f"{'threshold':>9s} {'FRR':>7s} {'FA/h':>7s}"
        + "".join(f"   without {rule}: {'FRR':>7s} {'FA/h':>7s}" for rule in LOOKING_BACK),
    ]
    for threshold, (as_configured, *others) in evaluation.curve:
        lines += [f"{threshold:9.3f}{_figures(as_configured)}"]
        for rule, other in zip(LOOKING_BACK, others, strict=True):
            lines[-1] += f"   {'':{len(rule) + 9}s}{_figures(other)}"
    return "\n".join(lines)


def _figures(pair: tuple[float, float]) -> str:
    frr, rate = pair
    return f" {_or_dash(frr, '7.1%')} {_or_dash(rate, '7.2f')}"


def _or_dash(figure: float, form: str) -> str:
    """A figure, or a dash of the same width where there was nothing to take it over."""
    text = f"{figure:{form}}"
    return "–".rjust(len(text)) if math.isnan(figure) else text


def _summary(evaluation: StreamEvaluation) -> str:
    words, talk = evaluation.at()
    lines = []
    if words.said:
        lines += [f"{'words missed (FRR)':24s} {words.missed()}"]
        lines += [f"  {keyword:22s} {words.missed(keyword)}" for keyword in dict.fromkeys(words.said)]
        wrong = sum(1 for word in words.mistaken if word)
        lines += [f"{'wrong word instead':24s} {Rate(wrong, len(words.said))}"]
        lines += [f"{'false between them':24s} {_per_hour(words)}"]
        lines += [f"{f'missed without {rule}':24s} {_missed_without(evaluation, rule)}" for rule in LOOKING_BACK]
        if words.latencies_s:
            p50, p95 = np.percentile(words.latencies_s, (50, 95))
            lines += [f"{'end of word → detection':24s} p50 {p50:.2f} s  p95 {p95:.2f} s of audio"]
    if talk.hours:
        how = " end to end" if evaluation.continuous else ""
        lines += [
            f"{'false on talk (FA/h)':24s} {_per_hour(talk)}{how}, {evaluation.left_out} not transcribed left out"
        ]
    return "\n".join(lines)


def _missed_without(evaluation: StreamEvaluation, rule: str) -> str:
    many = rule == "wariness" and heard_everywhere(evaluation)
    return f"{evaluation.at(without=rule)[0].missed()}{f'; {EVERYWHERE}' if many else ''}"


def heard_everywhere(evaluation: StreamEvaluation, threshold: float | None = None) -> bool:
    """Whether wariness costs many words, with the model's own thresholds or the same for all."""
    wary, without = (evaluation.at(threshold, without=rule)[0].missed() for rule in (None, "wariness"))
    return wary.value - without.value > MANY


def as_dict(evaluation: StreamEvaluation) -> dict[str, Any]:
    """For JSON."""
    words, talk = evaluation.at()
    keywords = list(dict.fromkeys(words.said))
    return {
        "thresholds": evaluation.rules.thresholds,
        "words": words.as_dict(),
        "per_word": {k: {"missed": words.missed(k).right, "of": words.missed(k).of} for k in keywords},
        "without": {rule: {"missed": evaluation.at(without=rule)[0].missed().right} for rule in LOOKING_BACK},
        "talk": talk.as_dict() | {"left_out": evaluation.left_out, "continuous": evaluation.continuous},
        "curve": [
            {"threshold": threshold}
            | dict(zip(CURVE_KEYS, (None if math.isnan(x) else x for x in itertools.chain(*pairs)), strict=True))
            for threshold, pairs in evaluation.curve
        ],
    }


def check_place(path: Path) -> None:
    """Raises KwsdError if `write` could not write there."""
    from matplotlib.backend_bases import FigureCanvasBase

    kind = path.suffix.removeprefix(".").lower()
    if kind != "html" and kind not in FigureCanvasBase.get_supported_filetypes():
        raise ConfigError(f"--report {path}: is no kind of picture; name .html or .png", exit_code=USAGE)
    check_writable(path, "name another place", in_place=True)


def write(evaluation: StreamEvaluation, path: Path) -> None:
    """A page, if the name ends in .html, else the picture in it. Raises OSError or ValueError if it cannot be."""
    if path.suffix.lower() == ".html":
        path.write_text(page(evaluation), encoding="utf-8")
    else:
        draw_curve(evaluation, path)


def page(evaluation: StreamEvaluation) -> str:
    """One HTML file with everything in it."""
    picture = io.BytesIO()
    draw_curve(evaluation, picture)
    image = base64.b64encode(picture.getvalue()).decode()
    return "\n".join([
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>kwsd eval</title><style>{STYLE}</style>',
        f"<h1>Words missed against false accepts</h1>\n<pre>{html.escape(_summary(evaluation))}</pre>",
        f'<img alt="misses against false accepts" src="data:image/png;base64,{image}">',
        f"<h2>Word by word</h2>\n{_html_table(WORD_COLUMNS, _word_rows(evaluation))}",
        f"<h2>Threshold by threshold</h2>\n{_html_table(CURVE_COLUMNS, _curve_rows(evaluation))}</html>\n",
    ])  # fmt: skip


def _word_rows(evaluation: StreamEvaluation) -> Iterator[list[str]]:
    words, talk = evaluation.at()
    for keyword, threshold in zip(evaluation.rules.keywords, evaluation.rules.threshold.tolist(), strict=True):
        missed = words.missed(keyword)
        low, high = missed.interval
        figures = [f"{missed.value:.1%}", f"{low:.1%} to {high:.1%}", f"{missed.right} of {missed.of}"]
        instead = {other for word, other in zip(words.said, words.mistaken, strict=True) if word == keyword and other}
        false = words.false_accepts.count(keyword), talk.false_accepts.count(keyword) if talk.hours else "–"
        figures = figures if missed.of else ["", "", "none said"]
        yield [keyword, f"{threshold:.3g}", *figures, ", ".join(sorted(instead)), *map(str, false)]


def _curve_rows(evaluation: StreamEvaluation) -> Iterator[list[str]]:
    for threshold, pairs in evaluation.curve:
        figures = [(_or_dash(100 * frr, ".1f"), _or_dash(rate, ".2f")) for frr, rate in pairs]
        yield [f"{threshold:.3g}", *itertools.chain(*figures)]


def _html_table(head: Sequence[str], rows: Iterable[list[str]]) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        first, *rest = (html.escape(cell) for cell in cells)
        return f"<tr><th>{first}</th>{''.join(f'<{kind}>{cell}</{kind}>' for cell in rest)}</tr>"

    return "<table>" + "\n".join([line(head, "th"), *(line(row, "td") for row in rows)]) + "</table>"


def draw_curve(evaluation: StreamEvaluation, path: Path | io.BytesIO) -> None:
    """The detection error trade-off, with and without the rules that look back."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = evaluation.curve
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    for which, name in enumerate(("as configured", *(f"without {rule}" for rule in LOOKING_BACK))):
        pairs = np.array([pairs[which] for _, pairs in points])  # (thresholds, 2)
        axes.plot(pairs[:, 1], 100 * pairs[:, 0], marker="o", markersize=3, label=name)
        for (threshold, _), (frr, rate) in list(zip(points, pairs.tolist(), strict=True))[::3]:
            axes.annotate(f"{threshold:g}", (rate, 100 * frr), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlim(left=-0.05)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"false accepts per hour {'of talk' if evaluation.talk.hours else 'between the words'}")
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
