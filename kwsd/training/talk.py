"""Talk, in which no keyword is said, and noise, for training and its validation; and what is said in the talk."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kwsd.audio_format import WINDOW
from kwsd.errors import AudioError
from kwsd.paths import kind_of
from kwsd.recording import read_recording
from kwsd.training.decoded import to_int16
from kwsd.training.folder import BACKGROUND, files, lines, recordings
from kwsd.training.labels import spoken_keywords
from kwsd.training.truth import read_truth, truth_beside, without

SILENCE_PART = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "testing": (0.9, 1.0)}  # of every noise recording
MANY = 20  # folders side by side: each is somebody's, not some corpus


def load_talk(folder: Path, labels: tuple[str, ...]) -> tuple[dict[Path, NDArray[np.int16]], int]:
    """All recordings under a folder as 16-bit samples, each (samples,), by path, and how many were left out.

    Where one of the labels is spoken would teach the network that a keyword is none. If a `.tsv` (start_s, end_s,
    keyword) lies beside a recording, the stretches in which one is are cut out of it; if a `transcripts.tsv` (path,
    text) in the folder or one above a recording says that one is, the recording is left out.
    Raises AudioError if nothing is left, or a `.tsv` cannot be understood.
    """
    spoken = transcripts(folder)
    found = recordings(folder.resolve())
    paths = [p for p in found if truth_beside(p).exists() or not spoken_keywords(spoken.get(p, ""), labels)]
    pieces = {}
    for path in tqdm(paths, desc=folder.name, unit="file", leave=False, disable=None):
        said = read_truth(path) if labels and truth_beside(path).exists() else []
        pieces[path] = without(to_int16(read_recording(path)), said, labels)
    if not pieces:
        raise AudioError(f"{folder}: no recordings (WAV, FLAC, Ogg, MP3) to use in there")
    return pieces, len(found) - len(paths)


def transcribed(folder: Path, recordings: Iterable[Path]) -> set[Path]:
    """Those recordings under a folder of which somebody wrote down what is said."""
    spoken = transcripts(folder)
    return {path for path in recordings if path in spoken or truth_beside(path).exists()}


Parted = tuple[list[NDArray[np.int16]], list[NDArray[np.int16]]]  # recordings (samples,) to train and to validate on


def part_talk(pieces: dict[Path, NDArray[np.int16]], held_out: float) -> Parted:
    """Talk to train on and talk to validate on: that share is held out. Where there are many folders side by side, each
    is taken for a speaker's, and the last of them are held out; elsewhere what comes last of each folder's recordings,
    in the order of their names, so that speakers are hardly in both."""
    parts = list(_part(pieces, 0, held_out))
    return [piece for to_train, _ in parts for piece in to_train], [piece for _, rest in parts for piece in rest]


def _part(pieces: dict[Path, NDArray[np.int16]], depth: int, held_out: float) -> Iterator[Parted]:
    """What is under one folder, whose path has so many parts."""
    below: dict[str, dict[Path, NDArray[np.int16]]] = {}  # by the folder in it; "": lies in it itself
    for path, samples in pieces.items():
        folders = path.parent.parts[depth:]
        below.setdefault(folders[0] if folders else "", {})[path] = samples
    here = below.pop("", {})
    if len(below) >= MANY:
        theirs = [list(recordings.values()) for _, recordings in sorted(below.items())]
        end = round(len(theirs) * (1.0 - held_out))
        yield list(chain(*theirs[:end])), list(chain(*theirs[end:]))
    else:
        for recordings in below.values():
            yield from _part(recordings, depth + 1, held_out)
    if here:
        yield _cut_at(list(here.values()), round(sum(samples.size for samples in here.values()) * (1.0 - held_out)))


def _cut_at(recordings: Sequence[NDArray[np.int16]], end: int) -> Parted:
    """What comes before so many samples, and what after them."""
    before, after = [], []
    for recording in recordings:
        before.append(recording[: max(end, 0)])
        after.append(recording[max(end, 0) :])
        end -= recording.size
    return [piece for piece in before if piece.size], [piece for piece in after if piece.size]


@dataclass(frozen=True)
class Noise:
    """Where recordings of noise lie: in the `_background_noise_` of Speech Commands, and in folders of more."""

    data: Path | None  # the root of Speech Commands
    folders: tuple[Path, ...] = ()

    def part(self, subset: str) -> NDArray[np.int16]:
        """The part of every recording that belongs to a subset, end to end. Raises AudioError if there are none."""
        return np.concatenate(list(chain(*self.parts(subset))))

    def parts(self, subset: str) -> list[list[NDArray[np.int16]]]:
        """The same by the folder it is from, recording by recording."""
        return [[_cut_out(noise, subset) for noise in place] for place in self._places]

    def by_recording(self, subset: str) -> list[NDArray[np.int16]]:
        """The same by the recording it is from, where that is a second or more; if it is of none, end to end."""
        return [part for part in chain(*self.parts(subset)) if part.size >= WINDOW] or [self.part(subset)]

    @cached_property
    def _places(self) -> list[list[NDArray[np.int16]]]:
        places = [background for root in (self.data, *self.folders) if root and (background := _background(root))]
        places += [folder for folder in self.folders if not _background(folder)]
        if not places:
            place = f"{self.data}: no _background_noise_ in the data set; " if self.data else ""
            raise AudioError(f"{place}name recordings of noise with --noise")
        return [list(load_talk(place, ())[0].values()) for place in places]


def _cut_out(noise: NDArray[np.int16], subset: str) -> NDArray[np.int16]:
    first, last = SILENCE_PART[subset]
    return noise[int(first * noise.size) : int(last * noise.size)]


def _background(root: Path) -> Path | None:
    background = root / "SpeechCommands/speech_commands_v0.02" / BACKGROUND
    return background if background.exists() else None


def transcribed_talk(folder: Path, labels: tuple[str, ...]) -> tuple[dict[Path, Counter[str]], int]:
    """The recordings under a folder, each with how often which of the labels is spoken in it, and how many were left
    out because nobody wrote down what is. In a folder without any transcript nothing is known to be spoken.

    Raises AudioError if there are no recordings, or what is written down cannot be understood."""
    paths = recordings(folder.resolve())
    if not paths:
        raise AudioError(f"{folder}: no recordings (WAV, FLAC, Ogg, MP3) to use in there")
    spoken = transcripts(folder)
    spoken |= {p: " ".join(word.keyword for word in read_truth(p)) for p in paths if truth_beside(p).exists()}
    kept = {path: spoken_keywords(spoken.get(path, ""), labels) for path in paths if path in spoken or not spoken}
    if not kept:
        why = next(lost_transcripts(folder), "write transcripts.tsv (path, text) for what is in there")
        raise AudioError(f"{folder}: of none of its recordings is known what is said; {why}")
    return kept, len(paths) - len(kept)


def transcripts(folder: Path) -> dict[Path, str]:
    """What is spoken in the recordings under a folder, as far as a `transcripts.tsv` (path, text) in it, under it or
    the nearest above it says. Raises AudioError if one cannot be read as UTF-8."""
    return {path: text for _, path, text in _transcribed_lines(folder)}


def lost_transcripts(folder: Path) -> Iterator[str]:
    """What is to be told of lines of a `transcripts.tsv` that name no recording."""
    named: dict[Path, list[Path]] = {}
    for listing, path, _ in _transcribed_lines(folder):
        named.setdefault(listing, []).append(path)
    for listing, paths in named.items():
        lost = [path for path in paths if kind_of(path) is None]
        if lost:
            yield (
                f"{listing}: {len(lost)} of {len(paths)} lines name no recording, such as "
                f"{os.path.relpath(lost[0], listing.parent)[:80]}; a line is path, tab, text, the path from there"
            )


def _transcribed_lines(folder: Path) -> Iterator[tuple[Path, Path, str]]:
    """Every line about something under a folder: the list it stands in, the recording, and what is said there."""
    folder = folder.resolve()
    listings = [parent / "transcripts.tsv" for parent in folder.parents]
    above = [listing for listing in listings if listing.exists()][:1]
    for listing in (*above, *(path for path in files(folder) if path.name == "transcripts.tsv")):
        for line in filter(str.strip, lines(listing)):
            name, _, text = line.partition("\t")
            path = _named(listing, name, folder)
            if path.is_relative_to(folder):
                yield listing, path, text


def _named(listing: Path, name: str, folder: Path) -> Path:
    """What a line means, as it is found in a folder whose own path has no `..` and no link in it."""
    path = Path(os.path.normpath(listing.parent / name))
    through_a_link = Path(name).is_absolute() and not path.is_relative_to(folder) and kind_of(path) is not None
    return path.resolve() if through_a_link else path
