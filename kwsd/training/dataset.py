"""Clips of words: those of Speech Commands, and somebody's own; parted by who speaks."""

import hashlib
import os
import shutil
import tarfile
import unicodedata
import warnings
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kwsd.artefact import UNKNOWN
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, AudioError
from kwsd.training.decoded import Said, decoded
from kwsd.training.folder import BACKGROUND, files, lines, recordings

FOREIGN = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm", ".caf")  # sound that nobody here can read
SUBSETS = ("training", "validation", "testing")
VERSION = "speech_commands_v0.02"
LONG_S = 5.0  # of a recording of one word: in a longer one there are probably several
SHARES = 2**27  # that Speech Commands parts speakers into


@dataclass(frozen=True)
class Clips:
    """One-second clips. Every array's first axis is the clip."""

    samples: NDArray[np.int16]  # (clips, 16000), padded or trimmed at the end
    words: tuple[str, ...]  # what was said
    speakers: tuple[str, ...]
    spans: NDArray[np.int32]  # (clips, 2): first sample of the word, one past its last
    paths: tuple[str, ...]
    skipped: tuple[str, ...]  # why each unreadable clip was left out
    whole: NDArray[np.bool_]  # (clips,): whether all of the word is in the clip, as far as one can tell
    told: tuple[str, ...] = ()  # what else one should know of their folder

    def __len__(self) -> int:
        return len(self.words)

    def take(self, rows: NDArray[np.intp]) -> "Clips":
        """The clips of these rows."""
        return Clips(
            self.samples[rows],
            tuple(self.words[i] for i in rows),
            tuple(self.speakers[i] for i in rows),
            self.spans[rows],
            tuple(self.paths[i] for i in rows),
            self.skipped,
            self.whole[rows],
            self.told,
        )

    def said_whole(self, words: Sequence[str]) -> NDArray[np.intp]:
        """The rows of clips that have all of one of these words; of a word without any such clip all rows."""
        said = np.array(self.words)
        none_whole = ~np.isin(said, said[self.whole])
        return np.flatnonzero(np.isin(said, np.array(words)) & (self.whole | none_whole))


def load_clips(root: Path, subset: str, *, download: bool = False, limit: int | None = None) -> Clips:
    """A subset of Speech Commands, split as its own lists say, decoded once and cached.

    With a `limit` only every n-th clip is taken, so that about that many remain. Clips that
    cannot be read are named in `skipped`.
    Raises AudioError if the data set is not there, or a subset is empty.
    """
    listing = _listing(root, subset, download)
    if limit:
        listing = listing[:: -(-len(listing) // limit)]
    if not listing:
        raise AudioError(f"{root}: no clips in the {subset} subset of Speech Commands")
    return _clips(listing, subset, cut_up=True)


def load_words(folder: Path, subset: str) -> Clips:
    """A subset of somebody's own recordings, `folder/<word>/*.wav` (FLAC, Ogg, MP3; any rate and length), decoded once.

    Who speaks is what the name begins with, up to `_nohash_` as in Speech Commands, or the folder between:
    `folder/<word>/<speaker>/*.wav`; a recording with neither has a speaker of its own. Speakers are parted into
    subsets by a hash of their name, as in Speech Commands, unless `validation_list.txt` and `testing_list.txt` lie in
    the folder; the recordings of a single speaker are parted by a hash of their own names, and so are those of a word
    of which none would be to train on, but for one at least. A subset may be empty.
    Of folders whose name begins with `_` only `_unknown_` is read. In `told` is which others there are, but for the
    noise of Speech Commands, which recordings are of a kind that cannot be read, which words are parted otherwise, what
    lies beside the folders, what lists name and is not there, and of which recordings most is not used.
    Raises AudioError if the folder holds no such recordings.
    """
    [own] = _parted([folder])
    return _subset(own, subset)


def load_subset(
    data: Path | None, words: Sequence[Path], subset: str, *, download: bool = False, limit: int | None = None
) -> Clips:
    """A subset of Speech Commands, if `data` names it, and of folders of somebody's own recordings, as one set: who
    is in one of them only is not alone. Of their own, none that is of another subset as well, under another name.

    Raises AudioError if it is empty, or a recording is of two words.
    """
    folders = _parted(words)
    earlier = [_subset(own, part) for part in SUBSETS[: SUBSETS.index(subset)] for own in folders]
    own = [_subset(own, subset) for own in folders]
    parts = [_without_copies(join(own), earlier, subset)] if own else []
    if data:
        parts.append(load_clips(data, subset, download=download, limit=limit))
    clips = join(parts)
    if not len(clips) and any(map(len, own)):
        raise AudioError(f"{clips.told[-1]}: none is left; record more")
    if not len(clips) and clips.skipped:
        raise AudioError(f"none of the {subset} clips can be used; the first: {clips.skipped[0]}")
    if not len(clips):
        where = ", ".join(map(str, words))
        raise AudioError(f"{where}: no {subset} clips; record more, or write validation_list.txt and testing_list.txt")
    return clips


def join(parts: Sequence[Clips]) -> Clips:
    """All clips of some sets as one."""
    return Clips(
        np.concatenate([part.samples for part in parts]),
        tuple(word for part in parts for word in part.words),
        tuple(speaker for part in parts for speaker in part.speakers),
        np.concatenate([part.spans for part in parts]),
        tuple(path for part in parts for path in part.paths),
        tuple(reason for part in parts for reason in part.skipped),
        np.concatenate([part.whole for part in parts]),
        tuple(dict.fromkeys(note for part in parts for note in part.told)),
    )


def digests(clips: Clips) -> NDArray[np.int64]:
    """What tells each clip from any other, of which path it may be: (clips,)."""
    whole = b"".join(hashlib.blake2b(samples.data, digest_size=8).digest() for samples in clips.samples)
    return np.frombuffer(whole, np.int64)


def _without_copies(clips: Clips, earlier: Sequence[Clips], subset: str) -> Clips:
    """Without those which to the last bit are clips of an earlier subset. Raises AudioError if one is of two words."""
    sets = (*earlier, clips)
    digests = [[hashlib.sha256(samples.data).digest() for samples in some.samples] for some in sets]
    first: dict[bytes, tuple[str, str]] = {}  # where each was met first: its path, and the word
    for some, theirs in zip(sets, digests, strict=True):
        for digest, path, word in zip(theirs, some.paths, some.words, strict=True):
            known, its_word = first.setdefault(digest, (path, word))
            if word != its_word:
                raise AudioError(f"{path}: is the same recording as {known}, of another word; delete one of the two")
    *before, here = digests
    known_already = set().union(*before)
    copies = [row for row, digest in enumerate(here) if digest in known_already]
    if not copies:
        return clips
    copy, known = clips.paths[copies[0]], first[here[copies[0]]][0]
    note = f"{subset}: {len(copies)} clips left out, which are known under other names, as {copy} is {known}"
    left = clips.take(np.setdiff1d(np.arange(len(clips)), copies))
    return replace(left, told=(*left.told, note))


def _said_in(folder: Path, found: Sequence[Path]) -> tuple[list[Said], tuple[str, ...]]:
    """What is said in the recordings found in a folder, and what is to be told of all else that is in there. Raises
    AudioError if no word is."""
    listing = [Said(path, _word(path, folder), _speaker(path, folder)) for path in found if path.parent != folder]
    listing = [said for said in listing if said.word[0] != "."]
    special = sorted({said.word for said in listing if said.word[0] == "_"} - {UNKNOWN, BACKGROUND})
    told = tuple(f"{folder / word}: is no word; name noise and silence with --noise" for word in special)
    foreign = sorted(path for path in files(folder) if path.suffix.lower() in FOREIGN)
    told += tuple(f"{path}: cannot be read; convert it: ffmpeg -i {path.name} {path.stem}.wav" for path in foreign)
    listing = [said for said in listing if said.word not in (*special, BACKGROUND)]
    if not listing and foreign:
        raise AudioError(f"{folder}: no recordings in there but such as {told[-1]}")
    if not listing:
        example = f"{folder.resolve().name}/stop/1.wav"
        raise AudioError(f"{folder}: no recordings in there; put them into a folder per word: {example}")
    beside = [path for path in found if path.parent == folder]
    if beside:
        told += (f"{beside[0]}{_and_more(beside)}: of which word? put it into a folder that is called so",)
    return listing, told


@dataclass
class _Own:
    """A folder of somebody's own recordings."""

    folder: Path
    listing: list[Said]
    names: list[str]  # of each, in the folder
    listed: dict[str, set[str]] | None  # what its own lists say
    told: tuple[str, ...]
    subsets: list[str]  # of each


def _own(folder: Path) -> _Own:
    """Not parted yet. Raises AudioError if no word is said in there."""
    found = recordings(folder)
    listing, told = _said_in(folder, found)
    listed, more = _listed(folder, {path.relative_to(folder).as_posix() for path in found})
    names = [said.path.relative_to(folder).as_posix() for said in listing]
    return _Own(folder, listing, names, listed, told + more, [])


def _parted(folders: Sequence[Path]) -> list[_Own]:
    """Folders parted as if they were one, and what is to be told of how."""
    owns = [_own(folder) for folder in folders]
    alone = len({said.speaker for own in owns for said in own.listing}) == 1
    for own in owns:
        keys = own.names if alone else [said.speaker for said in own.listing]
        own.subsets = [_subset_of(name, key, own.listed) for name, key in zip(own.names, keys, strict=True)]
    if not alone:
        _have_all_learnt(owns)
    return owns


def _have_all_learnt(owns: Sequence[_Own]) -> None:
    """Parts the recordings of words that nobody would train on by their own names."""
    learnt = _learnt(owns)
    unheard: dict[str, list[tuple[_Own, int]]] = {}
    for own in owns:
        for i, said in enumerate(own.listing):
            if own.listed is None and said.word not in learnt:
                own.subsets[i] = _subset_of(own.names[i], own.names[i], None)
                unheard.setdefault(said.word, []).append((own, i))
    for word in unheard.keys() - _learnt(owns):
        own, i = min(unheard[word], key=lambda place: _share(place[0].names[place[1]]))
        own.subsets[i] = "training"
    for own in owns:
        if own.listed is None:
            own.told += tuple(_known_voices(own.folder, own.listing, unheard))


def _subset(own: _Own, subset: str) -> Clips:
    wanted = [said for said, part in zip(own.listing, own.subsets, strict=True) if part == subset]
    if not wanted:
        nothing = np.zeros((0, WINDOW), np.int16), (), (), np.zeros((0, 2), np.int32), (), (), np.zeros(0, bool)
        return Clips(*nothing, own.told)
    clips = _clips(wanted, subset, cut_up=False)
    return replace(clips, told=(*own.told, *clips.told))


def _learnt(owns: Sequence[_Own]) -> set[str]:
    """The words of which there are recordings to train on."""
    parted = (pair for own in owns for pair in zip(own.listing, own.subsets, strict=True))
    return {said.word for said, part in parted if part == "training"}


def _known_voices(folder: Path, listing: Sequence[Said], words: Container[str]) -> Iterator[str]:
    """What is told of words that would not be learnt if speakers were parted by their names."""
    speakers: dict[str, set[str]] = {}
    for said in listing:
        if said.word in words:
            speakers.setdefault(said.word, set()).add(said.speaker)
    for word, who in sorted(speakers.items()):
        yield (
            f"{folder / word}: by the hash of their names {', '.join(sorted(who))} would only be tested on; so that "
            "the word is learnt, its recordings are parted by their own names, and tested on known voices"
        )


def _and_more(paths: Sequence[object]) -> str:
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""


def _word(path: Path, folder: Path) -> str:
    """Composed, as labels are: some file systems and archives take letters apart."""
    return unicodedata.normalize("NFC", path.relative_to(folder).parts[0])


def _speaker(path: Path, folder: Path) -> str:
    between = path.relative_to(folder).parts[1:-1]  # the word's folder and the file
    return between[0] if between else path.stem.partition("_nohash_")[0]


def _listed(folder: Path, recordings: set[str]) -> tuple[dict[str, set[str]] | None, tuple[str, ...]]:
    """The paths that the folder's own lists name for each subset, None if it has no lists; and what is to be told of
    lines that name none of the recordings."""
    lists = {subset: folder / f"{subset}_list.txt" for subset in ("validation", "testing")}
    if not any(path.exists() for path in lists.values()):
        return None, ()
    named = {subset: _paths_in(path) if path.exists() else {} for subset, path in lists.items()}
    told = []
    for subset, paths in named.items():
        lost = [line for path, line in paths.items() if path not in recordings]
        if lost:
            told.append(
                f"{lists[subset]}: {len(lost)} of {len(paths)} lines name no recording in the folder, "
                f"such as {lost[0]}; a line is a path from there, word/file.wav"
            )
    return {subset: set(paths) for subset, paths in named.items()}, tuple(told)


def _paths_in(listing: Path) -> dict[str, str]:
    """The lines of a list, by the path that each means."""
    return {os.path.normpath(line.strip()): line for line in lines(listing) if line.strip()}


def _subset_of(name: str, key: str, listed: dict[str, set[str]] | None) -> str:
    """Of the recording with this name in its folder."""
    if listed is not None:
        return next((subset for subset, names in listed.items() if name in names), "training")
    share = _share(key)
    return "validation" if share < 0.1 else "testing" if share < 0.2 else "training"


def _share(key: str) -> float:
    """A hash, from 0 to 1 (Warden 2018): what has the same key stays in one subset, however much is added later.
    Reckoned as there, so that somebody who is in Speech Commands as well is in the same subset of both."""
    return int(hashlib.sha1(os.fsencode(key), usedforsecurity=False).hexdigest(), 16) % SHARES / (SHARES - 1)


def _clips(listing: Sequence[Said], subset: str, *, cut_up: bool) -> Clips:
    """`cut_up` says that the clips are seconds out of longer recordings, and not always the right ones: recordings made
    one by one may well begin and end with the word."""
    samples, index = decoded(listing, subset)
    return Clips(
        samples,
        tuple(index["words"].tolist()),
        tuple(index["speakers"].tolist()),
        index["spans"],
        tuple(index["paths"].tolist()),
        tuple(index["skipped"].tolist()),
        index["whole"] if cut_up else np.ones(len(index["whole"]), bool),
        ()
        if cut_up
        else (*_of_long_ones(index["paths"][index["seconds"] > LONG_S].tolist()), *_of_phrases(index, subset)),
    )


def _of_phrases(index: dict[str, NDArray[Any]], subset: str) -> tuple[str, ...]:
    """What one should know of words of which recordings have more than a window holds."""
    too_much = (index["sounding"] > WINDOW / SAMPLE_RATE) & (index["seconds"] <= LONG_S)
    said, cut = Counter(index["words"].tolist()), counts(index["words"][too_much].tolist())
    told = ", ".join(f"{word} {n} of {said[word]}" for word, n in cut.items())
    what = f"{subset}: recordings in which more sounds than a window of {WINDOW / SAMPLE_RATE:g} s holds"
    return (f"{what}: {told}; only the loudest piece of each is taken, so say it faster, or less",) if told else ()


def _of_long_ones(paths: list[str]) -> tuple[str, ...]:
    """What one should know of recordings of a word in which there are probably several."""
    what = f"over {LONG_S:g} s; of a recording only the loudest word is taken: kwsd record --source cuts it up"
    return (f"{paths[0]}{_and_more(paths)}: {what}",) if paths else ()


def _listing(root: Path, subset: str, download: bool) -> list[Said]:
    """Every clip in a subset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchaudio.datasets import SPEECHCOMMANDS  # type: ignore[import-untyped]

    archive = root.resolve() / "SpeechCommands"
    try:
        if download and not (archive / VERSION).exists():
            unpacked = root.resolve() / ".unfinished"  # an unpacking that was interrupted is begun anew
            shutil.rmtree(unpacked, ignore_errors=True)
            unpacked.mkdir(parents=True)
            SPEECHCOMMANDS(root.resolve(), folder_in_archive=unpacked.name, download=True)
            archive.mkdir(exist_ok=True)
            (unpacked / VERSION).rename(archive / VERSION)
            unpacked.rmdir()
        clips = SPEECHCOMMANDS(root.resolve(), subset=subset)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        if download:
            raise AudioError(f"{root}: cannot download Speech Commands ({error})", exit_code=IO) from None
        raise AudioError(
            f"{root}: no Speech Commands data set (SpeechCommands/speech_commands_v0.02) there; "
            "name the folder that holds it with --data, or let kwsd train fetch it with --download"
        ) from None
    # The metadata's third field is the word; the fifth, which the article takes, numbers the utterance.
    fields = (clips.get_metadata(i) for i in range(len(clips)))
    return [Said(archive / path, word, speaker) for path, _, word, speaker, _ in fields]


def counts(words: Sequence[str]) -> dict[str, int]:
    """How many clips there are of each word, most first."""
    return dict(Counter(words).most_common())
