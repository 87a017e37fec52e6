"""The words that are really said in a recording: a .tsv (start_s, end_s, keyword) beside it."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import samples
from kwsd.errors import NO_PERMISSION, AudioError
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
    """Put the words of a recording beside it. Raises OSError if that cannot be; then what was there stays."""
    path = truth_beside(recording)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        _write(unfinished, truth)
        unfinished.replace(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


def _write(path: Path, truth: Sequence[Word]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
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
            words = list(_words(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), path))
    except FileNotFoundError:
        raise AudioError(f"{recording}: which words are in it should stand in {path.name} beside it") from None
    except PermissionError:
        raise AudioError(f"{path}: permission denied; make it readable", exit_code=NO_PERMISSION) from None
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise AudioError(f"{path}: is not UTF-8; save it as UTF-8") from None
    return sorted(words, key=lambda word: word.start_s)


def _words(rows: "csv.DictReader[str]", path: Path) -> Iterator[Word]:
    """Raises AudioError for a line that makes no sense."""
    try:
        for row in rows:
            word = Word(float(row["start_s"]), float(row["end_s"]), row["keyword"])
            if not 0 <= word.start_s < word.end_s < inf or not word.keyword:
                raise ValueError
            yield word
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        if isinstance(error, UnicodeError):
            raise
        number = rows.reader.line_num  # of the line that was read: rows.line_num is that of the last row that was whole
        raise AudioError(f"{path}:{number}: not start_s, end_s, keyword, parted by tabs; mend the line") from None


def without(recording: NDArray[np.int16], truth: Sequence[Word], labels: tuple[str, ...]) -> NDArray[np.int16]:
    """A recording (samples,) without the stretches in which one of the labels is said."""
    keep = np.ones(recording.size, bool)
    for word in truth:
        if spoken_keywords(word.keyword, labels):
            keep[max(samples(word.start_s - MARGIN_S), 0) : samples(word.end_s + MARGIN_S)] = False
    return recording[keep]
