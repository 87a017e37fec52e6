"""`kwsd mix`: long recordings of known words, to try a model on as the daemon would meet them."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples
from kwsd.errors import IO, USAGE, AudioError, ConfigError, KwsdError
from kwsd.paths import FOLDER, check_writable, kind_of
from kwsd.training import augment
from kwsd.training.dataset import Clips, load_subset
from kwsd.training.decoded import to_int16
from kwsd.training.talk import Noise
from kwsd.training.truth import Word, truth_beside, write_truth

HISS_DBFS = -66.0  # the microphone's own noise, always there
WORD_DBFS = -26.0  # level of every word where there is a signal-to-noise ratio to keep
PIECE_S = 10.0  # background comes in pieces of this length, each from another place
ECHO_S = 0.5  # room for a reverberant word to die away
LONGEST_PAUSE_S, LONGEST_S = 3600.0, 86_400.0  # of all of it
MOST_DB = 200.0  # words over background, or under it
DECAYS_S = (0.01, 60.0)  # reverberation that can be reckoned with
DIRECT_DB = 3.0  # direct sound over echo in a reverberant room


@dataclass(frozen=True)
class Mixture:
    """How to build a recording. The same values give the same samples."""

    words: int
    keywords: tuple[str, ...] = ()  # in turn; none: all words there are
    pause_s: tuple[float, float] = (1.5, 2.5)  # between clips, drawn uniformly
    snr_db: float | None = None  # word over background; None: no background, and words at their own level
    decay_s: float = 0.0  # reverberation time (RT60); 0: as recorded
    seed: int = 0


def mix(
    mixture: Mixture,
    data: Path | None,
    subset: str,
    noise: tuple[Path, ...],
    words: tuple[Path, ...] = (),
    *,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[NDArray[np.float32], list[Word]]:
    """The recording (samples,) in ±1, and the words in it with the times at which they sound: of clips of Speech
    Commands under `data` and of somebody's own `words`. None comes again before all of its word have come; where some
    do, that is said.

    Raises AudioError if there are no clips of a keyword; ConfigError for a mixture that cannot be.
    """
    _check(mixture)
    clips = load_subset(data, words, subset)
    for note in clips.told:
        say(note)
    keywords = mixture.keywords or tuple(sorted(set(clips.words)))
    rng = np.random.default_rng(mixture.seed)
    generator = torch.Generator().manual_seed(mixture.seed)
    decks = {keyword: _shuffled(_rows(clips, keyword, subset), rng) for keyword in keywords[: mixture.words]}
    pieces, drawn, truth, at = [], list[int](), list[Word](), 0
    for i in range(mixture.words):
        keyword = keywords[i % len(keywords)]
        row = next(decks[keyword])
        drawn.append(row)
        start, end = (int(edge) for edge in clips.spans[row])
        sound = _clip(clips, row, mixture, generator)
        pause = np.zeros(samples(rng.uniform(*mixture.pause_s)), np.float32)
        at += pause.size
        truth.append(Word(round((at + start) / SAMPLE_RATE, 3), round((at + end) / SAMPLE_RATE, 3), keyword))
        at += sound.size
        pieces += [pause, sound]
    again = _repeated(drawn, clips)
    if again:
        say(f"some recordings come several times, and are no further evidence: {', '.join(again)}")
    recording = np.concatenate([*pieces, np.zeros(2 * SAMPLE_RATE, np.float32)])
    if mixture.snr_db is not None:
        background = background_of(Noise(data, noise).part(subset), recording.size, rng)
        recording += background * _amplitude(WORD_DBFS - mixture.snr_db)
    recording += rng.standard_normal(recording.size).astype(np.float32) * _amplitude(HISS_DBFS)
    return np.clip(recording, -1.0, 1.0), truth


def _check(mixture: Mixture) -> None:
    """Raises ConfigError for a mixture that cannot be."""
    shortest, longest = mixture.pause_s
    seconds = mixture.words * (longest + WINDOW / SAMPLE_RATE + ECHO_S)
    for option, value, fits, wanted in (
        ("--count", mixture.words, mixture.words >= 1, "at least 1"),
        (
            "--pause", f"{shortest:g} {longest:g}", 0 <= shortest <= longest <= LONGEST_PAUSE_S,
            f"from 0 to {LONGEST_PAUSE_S:g} s, the shortest first",
        ),
        ("--count", mixture.words, seconds <= LONGEST_S, "with such pauses more than a day; make several"),
        ("--snr", mixture.snr_db, abs(mixture.snr_db or 0.0) <= MOST_DB, f"from {-MOST_DB:g} to {MOST_DB:g} dB"),
        (
            "--reverb", mixture.decay_s, mixture.decay_s == 0 or DECAYS_S[0] <= mixture.decay_s <= DECAYS_S[1],
            f"0, or from {DECAYS_S[0]:g} to {DECAYS_S[1]:g} s",
        ),
        ("--seed", mixture.seed, 0 <= mixture.seed < 1 << 63, "from 0 to 2^63 - 1"),
    ):  # fmt: skip
        if not fits:
            raise ConfigError(f"{option} {value}: {wanted}", exit_code=USAGE)


def check_place(path: Path) -> None:
    """Raises KwsdError if `write` could not write there."""
    if not path.name:
        raise ConfigError(f"mix: {path} names no file", exit_code=USAGE)
    folder = next((place for place in (path, truth_beside(path)) if kind_of(place) == FOLDER), None)
    if folder:
        raise ConfigError(f"mix: {folder} is a folder; name another file", exit_code=USAGE)
    if not soundfile.check_format(path.suffix.removeprefix(".")):
        raise ConfigError(f"mix: {path} is no kind of recording; name a .wav or .flac file", exit_code=USAGE)
    if truth_beside(path).exists() and not path.exists():
        raise ConfigError(
            f"{truth_beside(path)}: is there already, of another recording; name {path.stem} otherwise", exit_code=USAGE
        )
    check_writable(path, "name another place")


def write(recording: NDArray[np.float32], truth: list[Word], path: Path) -> None:
    """An audio file, and beside it a .tsv of its words. Raises KwsdError if they cannot be written; then what was there
    stays."""
    check_place(path)
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")  # its ending says the format
    try:
        soundfile.write(unfinished, to_int16(recording), SAMPLE_RATE)
        if not _is_whole(unfinished, recording.size):  # what is written on closing may fail unheard
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        write_truth(unfinished, truth)
        unfinished.replace(path)
        truth_beside(unfinished).replace(truth_beside(path))
    except (OSError, soundfile.LibsndfileError) as error:
        why = str(error).replace(unfinished.name, path.name)
        raise KwsdError(f"{path}: cannot be written ({why}); name another, or make room", exit_code=IO) from None
    finally:
        for left in (unfinished, truth_beside(unfinished)):
            with suppress(OSError):
                left.unlink()


def _is_whole(path: Path, frames: int) -> bool:
    try:
        return sum(len(block) for block in soundfile.blocks(path, 1 << 16, dtype="int16")) >= frames
    except soundfile.LibsndfileError:
        return False


def _rows(clips: Clips, keyword: str, subset: str) -> NDArray[np.intp]:
    rows = clips.said_whole([keyword])  # nobody says half a word
    if not rows.size:
        raise AudioError(f"{keyword}: no {subset} clips of it; choose other --labels")
    return rows


def _shuffled(rows: NDArray[np.intp], rng: np.random.Generator) -> Iterator[int]:
    """All of them in an order by chance, and when they are exhausted in another."""
    while True:
        yield from rng.permutation(rows).tolist()


def _repeated(drawn: list[int], clips: Clips) -> list[str]:
    """Of the words of which some clip was drawn more than once: how often they were, and how many clips."""
    times, of = (Counter(clips.words[row] for row in rows) for rows in (drawn, set(drawn)))
    return [
        f"{word} {n} times, of {of[word]} recording{'s' if of[word] > 1 else ''}"
        for word, n in times.items()
        if n > of[word]
    ]


def _clip(clips: Clips, row: int, mixture: Mixture, generator: torch.Generator) -> NDArray[np.float32]:
    sound = torch.from_numpy(clips.samples[row].astype(np.float32) / np.float32(32768.0))[None]  # (1, 16000)
    if mixture.decay_s:
        room = augment.Ranges(
            reverberant=1.0, decay_s=(mixture.decay_s, mixture.decay_s), direct_db=(DIRECT_DB, DIRECT_DB)
        )
        sound = torch.nn.functional.pad(sound, (0, samples(ECHO_S)))
        sound = augment.reverberate(sound, generator, room)
    if mixture.snr_db is not None:
        start, end = clips.spans[row]
        sound = sound * float(_amplitude(WORD_DBFS)) / augment.rms(sound[:, start:end])
    return np.asarray(sound[0].numpy())


def background_of(noise: NDArray[np.int16], size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Pieces of noise end to end, each at a root-mean-square amplitude of 1: (size,)."""
    length = min(samples(PIECE_S), noise.size)
    pieces = []
    for _ in range(-(-size // length)):
        start = int(rng.integers(0, noise.size - length + 1))
        piece = noise[start : start + length].astype(np.float32)
        pieces.append(piece / max(float(np.sqrt(np.mean(piece**2))), 1.0))
    return np.concatenate(pieces)[:size]


def _amplitude(dbfs: float) -> np.float32:
    return np.float32(10.0 ** (dbfs / 20.0))
