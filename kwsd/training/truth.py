"""The words that are really said in a recording: a .tsv (start_s, end_s, keyword) beside it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import samples
from kwsd.errors import AudioError
from kwsd.training.labels import spoken_keywords

MARGIN_S = 0.2  # around a word: where it begins and ends is seldom known better


@dataclass(frozen=True)
class Word:
    """A word, or words, and when they sound."""

    start_s: float
    end_s: float
    keyword: str


def truth_beside(recording: Path) -> Path:
    """Where the words of a recording stand."""
    return recording.with_suffix(".tsv")


def write_truth(recording: Path, truth: Sequence[Word]) -> None:
    """Put the words of a recording beside it. Raises OSError if that cannot be."""
    with truth_beside(recording).open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        lines.writerow(("start_s", "end_s", "keyword"))
        lines.writerows((word.start_s, word.end_s, word.keyword) for word in truth)


def read_truth(recording: Path) -> list[Word]:
    """The words in a recording, in time order.

    Raises AudioError if there is no .tsv beside it, or a line makes no sense.
    """
    path = truth_beside(recording)
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError):
        raise AudioError(f"{recording}: which words are in it should stand in {path.name} beside it") from None
    words = []
    for number, row in enumerate(rows, 2):
        try:
            word = Word(float(row["start_s"]), float(row["end_s"]), row["keyword"])
        except (KeyError, TypeError, ValueError):
            word = Word(0.0, -1.0, "")
        if not 0 <= word.start_s < word.end_s or not word.keyword:
            raise AudioError(f"{path}:{number}: not start_s, end_s, keyword, parted by tabs; mend the line")
        words.append(word)
    return sorted(words, key=lambda word: word.start_s)


def without(recording: NDArray[np.int16], truth: Sequence[Word], labels: tuple[str, ...]) -> NDArray[np.int16]:
    """A recording (samples,) without the stretches in which one of the labels is said."""
    keep = np.ones(recording.size, bool)
    for word in truth:
        if spoken_keywords(word.keyword, labels):
            keep[max(samples(word.start_s - MARGIN_S), 0) : samples(word.end_s + MARGIN_S)] = False
    return recording[keep]
