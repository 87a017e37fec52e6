"""Speech Commands clips and long recordings, decoded once and kept as 16-bit samples."""

import hashlib
import os
import shutil
import tarfile
import time
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kwsd.artefact import UNKNOWN
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, AudioError, KwsdError
from kwsd.recording import read_recording
from kwsd.span import FRAME, frame_levels_dbfs, is_whole, noise_level, word_span
from kwsd.training.labels import spoken_keywords
from kwsd.training.truth import read_truth, truth_beside, without

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
FOREIGN = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm", ".caf")  # sound that nobody here can read
SUBSETS = ("training", "validation", "testing")
SILENCE_PART = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "testing": (0.9, 1.0)}  # of every noise recording
SILENT = 8  # of 32768, from the lowest sample to the highest: nothing was recorded
LONG_S = 5.0  # of a recording of one word: in a longer one there are probably several
NEARLY_DB = 25.0  # under the loudest 10 ms: hardly a breath or an echo
CLICK = 7  # times 10 ms: what is no longer is no speech
UNUSED_S = 30 * 86_400.0  # after which what was decoded is deleted
DECODERS = 4  # threads: decoding is mostly waiting for the disk
BACKGROUND = "_background_noise_"
SHARES = 2**27  # that Speech Commands parts speakers into
MANY = 20  # folders side by side: each is somebody's, not some corpus


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


def cache_folder() -> Path:
    """Where decoded data sets are kept: `$XDG_CACHE_HOME/kwsd`, by default `~/.cache/kwsd`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kwsd"


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
    return _decoded(listing, subset, cut_up=True)


def load_words(folder: Path, subset: str) -> Clips:
    """A subset of somebody's own recordings, `folder/<word>/*.wav` (FLAC, Ogg, MP3; any rate and length), decoded once.

    Who speaks is what the name begins with, up to `_nohash_` as in Speech Commands, or the folder between:
    `folder/<word>/<speaker>/*.wav`; a recording with neither has a speaker of its own. Speakers are parted into
    subsets by a hash of their name, as in Speech Commands, unless `validation_list.txt` and `testing_list.txt` lie in
    the folder; the recordings of a single speaker are parted by a hash of their own names, and so are those of a word
    of which none would be to train on. A subset may be empty.
    Of folders whose name begins with `_` only `_unknown_` is read. In `told` is which others there are, but for the
    noise of Speech Commands, which recordings are of a kind that cannot be read, which words are parted otherwise, what
    lies beside the folders, what lists name and is not there, and of which recordings most is not used.
    Raises AudioError if the folder holds no such recordings.
    """
    recordings = _recordings(folder)
    listing = [(path, _word(path, folder), _speaker(path, folder)) for path in recordings if path.parent != folder]
    listing = [row for row in listing if row[1][0] != "."]
    special = sorted({word for _, word, _ in listing if word[0] == "_" and word not in (UNKNOWN, BACKGROUND)})
    told = tuple(f"{folder / word}: is no word; name noise and silence with --noise" for word in special)
    foreign = sorted(path for path in _files(folder) if path.suffix.lower() in FOREIGN)
    told += tuple(f"{path}: cannot be read; convert it: ffmpeg -i {path.name} {path.stem}.wav" for path in foreign)
    listing = [row for row in listing if row[1] not in (*special, BACKGROUND)]
    if not listing and foreign:
        raise AudioError(f"{folder}: no recordings in there but such as {told[-1]}")
    if not listing:
        example = f"{folder.resolve().name}/stop/1.wav"
        raise AudioError(f"{folder}: no recordings in there; put them into a folder per word: {example}")
    listed, lost = _listed(folder, {path.relative_to(folder).as_posix() for path in recordings})
    told += lost
    beside = [path for path in recordings if path.parent == folder]
    if beside:
        told += (f"{beside[0]}{_and_more(beside)}: of which word? put it into a folder that is called so",)
    alone = len({speaker for _, _, speaker in listing}) == 1
    keys = [path.relative_to(folder).as_posix() if alone else speaker for path, _, speaker in listing]
    subsets = [_subset_of(row[0], key, folder, listed) for row, key in zip(listing, keys, strict=True)]
    if listed is None and not alone:
        learnt = {word for (_, word, _), part in zip(listing, subsets, strict=True) if part == "training"}
        for i, (path, word, _) in enumerate(listing):
            if word not in learnt:
                subsets[i] = _subset_of(path, path.relative_to(folder).as_posix(), folder, None)
        now_learnt = {word for (_, word, _), part in zip(listing, subsets, strict=True) if part == "training"}
        told += tuple(_known_voices(folder, listing, now_learnt - learnt))
    wanted = [row for row, part in zip(listing, subsets, strict=True) if part == subset]
    if not wanted:
        nothing = np.zeros((0, WINDOW), np.int16), (), (), np.zeros((0, 2), np.int32), (), (), np.zeros(0, bool)
        return Clips(*nothing, told)
    clips = _decoded(wanted, subset, cut_up=False)
    return replace(clips, told=(*told, *clips.told))


def load_subset(
    data: Path | None, words: Sequence[Path], subset: str, *, download: bool = False, limit: int | None = None
) -> Clips:
    """A subset of Speech Commands, if `data` names it, and of folders of somebody's own recordings, as one set. Of
    their own, none that is of another subset as well, under another name.

    Raises AudioError if it is empty, or a recording is of two words.
    """
    earlier = [load_words(folder, part) for part in SUBSETS[: SUBSETS.index(subset)] for folder in words]
    own = [load_words(folder, subset) for folder in words]
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


def _known_voices(folder: Path, listing: Sequence[tuple[Path, str, str]], words: set[str]) -> Iterator[str]:
    """What is told of words that would not be learnt if speakers were parted by their names."""
    speakers: dict[str, set[str]] = {}
    for _, word, speaker in listing:
        if word in words:
            speakers.setdefault(word, set()).add(speaker)
    for word, who in sorted(speakers.items()):
        yield (
            f"{folder / word}: by the hash of their names {', '.join(sorted(who))} would only be tested on; so that "
            "the word is learnt, its recordings are parted by their own names, and tested on known voices"
        )


def _recordings(folder: Path) -> list[Path]:
    """All under a folder. Raises AudioError if it is no folder, or nobody may look into it."""
    try:
        next(folder.iterdir(), None)
    except NotADirectoryError:
        raise AudioError(f"{folder}: is a file; name the folder that it lies in") from None
    except OSError as error:
        raise AudioError(f"{folder}: {error.strerror}; name a folder of recordings") from None
    return sorted(path for path in _files(folder) if path.suffix.lower() in SUFFIXES)


def _and_more(paths: Sequence[object]) -> str:
    return f" and {len(paths) - 1} more" if len(paths) > 1 else ""


def _files(folder: Path) -> Iterator[Path]:
    """All under a folder, through links as well, but none twice."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in names)


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
    return {os.path.normpath(line.strip()): line for line in _lines(listing) if line.strip()}


def _lines(listing: Path) -> list[str]:
    """Raises AudioError if it cannot be read as UTF-8."""
    try:
        return listing.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise AudioError(f"{listing}: {error.strerror}", exit_code=IO) from None
    except UnicodeDecodeError:
        raise AudioError(f"{listing}: is not UTF-8; save it as UTF-8") from None


def _subset_of(path: Path, key: str, folder: Path, listed: dict[str, set[str]] | None) -> str:
    if listed is not None:
        name = path.relative_to(folder).as_posix()
        return next((subset for subset, names in listed.items() if name in names), "training")
    # Warden 2018: what has the same key stays in one subset, however much is added later. Reckoned as there, so that
    # somebody who is in Speech Commands as well is in the same subset of both.
    share = int(hashlib.sha1(os.fsencode(key), usedforsecurity=False).hexdigest(), 16) % SHARES / (SHARES - 1)
    return "validation" if share < 0.1 else "testing" if share < 0.2 else "training"


def _decoded(listing: Sequence[tuple[Path, str, str]], subset: str, *, cut_up: bool) -> Clips:
    """`cut_up` says that the clips are seconds out of longer recordings, and not always the right ones: recordings made
    one by one may well begin and end with the word."""
    cache = cache_folder() / f"{subset}-{_fingerprint(path for path, _, _ in listing)}"
    kept = _kept(cache)
    if kept is None:
        shutil.rmtree(cache, ignore_errors=True)  # or it could not be replaced
        _decode(listing, cache)
        kept = _kept(cache)
    if kept is None:
        raise KwsdError(f"{cache}: the decoded clips cannot be read; set XDG_CACHE_HOME", exit_code=IO)
    samples, index = kept
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


def _kept(cache: Path) -> tuple[NDArray[np.int16], dict[str, NDArray[Any]]] | None:
    """The samples (clips, 16000) that were decoded before, and by name what else is known of each clip; None if they
    were not, or what is there is damaged."""
    try:
        with np.load(cache / "index.npz") as index:
            kept = np.load(cache / "samples.npy"), dict(index)
    except (OSError, ValueError, EOFError, LookupError, BadZipFile, zlib.error):
        return None
    with suppress(OSError):  # it may be somebody else's
        os.utime(cache)
    return kept


def _delete_unused(caches: Path) -> None:
    """What was decoded once, and not needed for a long time."""
    for cache in caches.iterdir():
        with suppress(OSError):
            if time.time() - cache.stat().st_mtime > UNUSED_S:
                shutil.rmtree(cache)


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


def _listing(root: Path, subset: str, download: bool) -> list[tuple[Path, str, str]]:
    """(path, word, speaker) of every clip in a subset."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchaudio.datasets import SPEECHCOMMANDS  # type: ignore[import-untyped]

    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        clips = SPEECHCOMMANDS(root.resolve(), subset=subset, download=download)
    except (RuntimeError, OSError, tarfile.TarError) as error:
        if download:
            raise AudioError(f"{root}: cannot download Speech Commands ({error})", exit_code=IO) from None
        raise AudioError(
            f"{root}: no Speech Commands data set (SpeechCommands/speech_commands_v0.02) there; "
            "name the folder that holds it with --data, or let kwsd train fetch it with --download"
        ) from None
    # The metadata's third field is the word; the fifth, which the article takes, numbers the utterance.
    fields = (clips.get_metadata(i) for i in range(len(clips)))
    archive = root.resolve() / "SpeechCommands"
    return [(archive / path, word, speaker) for path, _, word, speaker, _ in fields]


def _fingerprint(paths: Iterator[Path]) -> str:
    """A name for exactly these files as they are now: path, size, and times at which they or who may read them were
    changed."""
    digest = hashlib.sha256(b"clips 8")
    for path in paths:
        status = path.stat() if path.exists() else None
        known = f"{path}\0{status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)}\n"
        digest.update(os.fsencode(known))  # names may be of another encoding
    return digest.hexdigest()[:16]


def to_int16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """±1 to 16 bits; what was 16 bits before comes back exactly."""
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


def fit(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Any length to 16000 samples of 16 bits: zeros at the end, or the second around the loudest utterance."""
    first = 0
    if samples.size > WINDOW:
        start, end = word_span(samples)
        first = min(max((start + end - WINDOW) // 2, 0), samples.size - WINDOW)
    kept = to_int16(samples[first : first + WINDOW])
    return np.pad(kept, (0, WINDOW - len(kept)))


def sounding_s(recording: NDArray[np.float32]) -> float:
    """From the first to the last 10 ms that are nearly as loud as the loudest, in seconds, but for clicks."""
    levels = frame_levels_dbfs(recording)
    if levels.size == 0:
        return 0.0
    loudest, floor = float(levels.max()), noise_level(levels)
    loud = np.flatnonzero(levels >= max(loudest - NEARLY_DB, (loudest + floor) / 2.0))
    runs = [run for run in np.split(loud, np.flatnonzero(np.diff(loud) > 1) + 1) if run.size > CLICK]
    return float((runs[-1][-1] + 1 - runs[0][0]) * FRAME / SAMPLE_RATE) if runs else 0.0


def _decode(listing: Sequence[tuple[Path, str, str]], cache: Path) -> None:
    """Decode all clips into the cache; it appears whole or not at all."""
    samples = np.zeros((len(listing), WINDOW), np.int16)
    whole, seconds, sounding = np.zeros(len(listing), bool), np.zeros(len(listing)), np.zeros(len(listing))
    kept, skipped = [], []

    def read(row: int) -> str | None:
        path = listing[row][0]
        try:
            recording = read_recording(path)
        except KwsdError as error:
            return str(error)
        samples[row], whole[row], seconds[row] = fit(recording), is_whole(recording), recording.size / SAMPLE_RATE
        sounding[row] = sounding_s(recording)
        silent = int(samples[row].max()) - int(samples[row].min()) <= SILENT
        return f"{path}: is silent; record it again, or delete it" if silent else None

    with ThreadPoolExecutor(DECODERS) as pool:
        results = pool.map(read, range(len(listing)))
        progress = tqdm(results, total=len(listing), desc="decode", unit="clip", leave=False, disable=None)
        for row, failure in enumerate(progress):
            if failure:
                skipped.append(failure)
            else:
                kept.append(row)
    spans = np.array([word_span(samples[row].astype(np.float32)) for row in kept], np.int32).reshape(-1, 2)
    words, speakers, paths = (np.array([str(listing[row][field]) for row in kept], str) for field in (1, 2, 0))
    unfinished = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        np.savez(
            unfinished / "index.npz",
            words=words, speakers=speakers, spans=spans, paths=paths, skipped=np.array(skipped, dtype=str),
            whole=whole[kept], seconds=seconds[kept], sounding=sounding[kept],
        )  # fmt: skip
        np.save(unfinished / "samples.npy", samples[kept] if skipped else samples)
        for file in unfinished.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        unfinished.rename(cache)
        _delete_unused(cache.parent)
    except OSError as error:
        if not (cache / "samples.npy").exists():  # or another run was faster
            raise KwsdError(
                f"{cache}: cannot keep the decoded clips ({error}); set XDG_CACHE_HOME", exit_code=IO
            ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def counts(words: Sequence[str]) -> dict[str, int]:
    """How many clips there are of each word, most first."""
    return dict(Counter(words).most_common())


def load_talk(folder: Path, labels: tuple[str, ...]) -> tuple[dict[Path, NDArray[np.int16]], int]:
    """All recordings under a folder as 16-bit samples, each (samples,), by path, and how many were left out.

    Where one of the labels is spoken would teach the network that a keyword is none. If a `.tsv` (start_s, end_s,
    keyword) lies beside a recording, the stretches in which one is are cut out of it; if a `transcripts.tsv` (path,
    text) in the folder or one above a recording says that one is, the recording is left out.
    Raises AudioError if nothing is left, or a `.tsv` cannot be understood.
    """
    spoken = transcripts(folder)
    recordings = _recordings(folder.resolve())
    paths = [p for p in recordings if truth_beside(p).exists() or not spoken_keywords(spoken.get(p, ""), labels)]
    pieces = {}
    for path in tqdm(paths, desc=folder.name, unit="file", leave=False, disable=None):
        said = read_truth(path) if labels and truth_beside(path).exists() else []
        pieces[path] = without(to_int16(read_recording(path)), said, labels)
    if not pieces:
        raise AudioError(f"{folder}: no recordings (WAV, FLAC, Ogg, MP3) to use in there")
    return pieces, len(recordings) - len(paths)


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
    paths = _recordings(folder.resolve())
    if not paths:
        raise AudioError(f"{folder}: no recordings (WAV, FLAC, Ogg, MP3) to use in there")
    spoken = transcripts(folder)
    spoken |= {p: " ".join(word.keyword for word in read_truth(p)) for p in paths if truth_beside(p).exists()}
    kept = {path: spoken_keywords(spoken.get(path, ""), labels) for path in paths if path in spoken or not spoken}
    return kept, len(paths) - len(kept)


def transcripts(folder: Path) -> dict[Path, str]:
    """What is spoken in the recordings under a folder, as far as a `transcripts.tsv` (path, text) in it, under it or
    the nearest above it says. Raises AudioError if one cannot be read as UTF-8."""
    folder = folder.resolve()
    listings = [parent / "transcripts.tsv" for parent in folder.parents]
    above = [listing for listing in listings if listing.exists()][:1]
    spoken = {}
    for listing in (*above, *(path for path in _files(folder) if path.name == "transcripts.tsv")):
        for line in _lines(listing):
            path, _, text = line.partition("\t")
            if (listing.parent / path).is_relative_to(folder):
                spoken[listing.parent / path] = text
    return spoken
