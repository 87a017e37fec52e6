"""`kwsd record`: words said one after the other, each cut out into a file of its own, for `kwsd train --words`."""

import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from kwsd.artefact import UNKNOWN
from kwsd.aside import in_time
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, USAGE, AudioError, ConfigError, KwsdError
from kwsd.health import CLIPPED, CLIPPED_SHARE
from kwsd.inlet import Inlet
from kwsd.ring import RingBuffer, Samples
from kwsd.source import Source
from kwsd.span import FRAME, frame_levels_dbfs, level_dbfs, noise_level

LOUD_DB = 12.0  # over the noise floor: somebody says something
QUIETEST_DBFS = -60.0  # nothing under this is said to us
FLOOR = 200  # frames of 10 ms that the noise floor is of
PAUSE = 40  # frames without a sound after which a word is over
SHORTEST, LONGEST = 8, 120  # frames: less is a click, more is no single word
MARGIN = 30  # frames before and after the word that are kept
SILENT_S = 10.0  # after which one is asked whether the microphone hears anything
FIRST_S = 5.0  # for the first block
DEAD_S = 3.0  # without another: it is gone
ATTENTIVE_S = 1.0  # a look counts for so long at most: who was stopped himself cannot blame the microphone
LOOK_S = 0.05


@dataclass(frozen=True)
class Utterance:
    """Something that was said between two pauses."""

    samples: Samples  # (n,) at 16 kHz, with a little of the pauses around it
    took_s: float
    problem: str = ""  # why it is no good

    @property
    def level_dbfs(self) -> float:
        """Of all of it."""
        return level_dbfs(self.samples)


class Cutter:
    """Finds utterances in samples at 16 kHz, as they come."""

    def __init__(self) -> None:
        self._samples = np.zeros(0, np.float32)  # of whole frames that are not done with
        self._levels = np.zeros(0)  # (frames,) of them, in dBFS
        self._rest = np.zeros(0, np.float32)  # of a frame that is not whole yet
        self._next = 0  # frame to look at
        self._begun: int | None = None  # frame at which an utterance began
        self._last_loud = 0
        self._bar = 0.0  # level in dBFS over which somebody speaks

    def feed(self, samples: Samples) -> Iterator[Utterance]:
        """What is complete with these samples (n,)."""
        samples = np.concatenate([self._rest, samples])
        whole = samples.size // FRAME * FRAME
        self._rest = samples[whole:]
        self._samples = np.concatenate([self._samples, samples[:whole]])
        self._levels = np.concatenate([self._levels, frame_levels_dbfs(samples[:whole])])
        while self._next < self._levels.size:
            said = self._look_at(self._next)
            self._next += 1
            if said is not None:
                yield said
        self._forget()

    def _look_at(self, frame: int) -> Utterance | None:
        too_long = self._begun is not None and frame - self._begun > LONGEST + PAUSE
        if self._begun is None or too_long:  # a noise that stays belongs to the room
            before = self._levels[max(frame - FLOOR, 0) : frame]
            self._bar = max(noise_level(before) + LOUD_DB, QUIETEST_DBFS) if before.size else 0.0
        if too_long:
            self._begun = frame - LONGEST - PAUSE  # the rest need not be kept
        if self._levels[frame] >= self._bar:
            self._begun = frame if self._begun is None else self._begun
            self._last_loud = frame
        if self._begun is None or frame - self._last_loud < PAUSE:
            return None
        begun, self._begun = self._begun, None
        return self._cut(begun, self._last_loud + 1)

    def _cut(self, first: int, end: int) -> Utterance | None:
        if end - first < SHORTEST:
            return None
        samples = self._samples[max(first - MARGIN, 0) * FRAME : (end + MARGIN) * FRAME]
        problem = ""
        if end - first > LONGEST:
            problem = "too long for a word; say it alone, in a quiet room"
        elif float(np.mean(np.abs(samples) >= CLIPPED)) > CLIPPED_SHARE:
            problem = "too loud, so that it is clipped; turn the microphone down, or step back"
        return Utterance(samples, (end - first) * FRAME / SAMPLE_RATE, problem)

    def _forget(self) -> None:
        """What neither a floor nor an utterance will be of."""
        needed = self._next - FLOOR if self._begun is None else min(self._begun - MARGIN, self._next - FLOOR)
        gone = max(needed, 0)
        self._samples, self._levels = self._samples[gone * FRAME :], self._levels[gone:]
        self._next, self._last_loud = self._next - gone, self._last_loud - gone
        self._begun = None if self._begun is None else self._begun - gone


def utterances(source: Source, tell: Callable[[str], None]) -> Generator[Utterance]:
    """What is said into a source, until it ends. Raises KwsdError where it breaks off."""
    ring = RingBuffer(1, 4 * WINDOW)
    inlet = Inlet(ring, 0, source.rate, source.channels, source.channel, block_s=source.block_s)
    cutter, came = Cutter(), threading.Event()
    read = heard_at = ring.ends[0]
    silent_s = 0.0
    in_time(lambda: source.start(inlet, came.set))
    inlet.wrote_at = looked_at = time.monotonic()  # to open it may have taken a while
    try:
        while not inlet.drained:
            came.wait(LOOK_S)  # a microphone wakes nobody
            came.clear()
            now = time.monotonic()
            silent_s = 0.0 if inlet.wrote_at > looked_at else silent_s + min(now - looked_at, ATTENTIVE_S)
            looked_at = now
            if not inlet.ended and silent_s > (DEAD_S if inlet.blocks else FIRST_S):
                raise source.failure or AudioError("the microphone is gone; kwsd doctor says more", exit_code=IO)
            inlet.pump(1.0)
            samples = np.zeros(ring.ends[0] - read, np.float32)
            whole = ring.read(0, read, samples)
            read += samples.size
            for utterance in cutter.feed(samples) if whole else ():
                heard_at = read
                yield utterance
            if source.live and read - heard_at > SILENT_S * SAMPLE_RATE:
                heard_at = read
                tell(f"  nothing was said for {SILENT_S:.0f} s; kwsd doctor says what the microphone hears")
    finally:
        source.stop()
    if source.failure is not None:
        raise source.failure


@dataclass(frozen=True)
class Shelf:
    """Where words of a speaker are kept: `folder/<word>/<speaker>_nohash_<n>.wav`, 16 kHz, 16 bits."""

    folder: Path
    speaker: str

    def make_room(self, words: Sequence[str]) -> None:
        """Raises KwsdError if there can be no such folders: better told before anybody speaks."""
        try:
            for word in words:
                (self.folder / word).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KwsdError(f"{self.folder}: {error.strerror}; choose another folder", exit_code=IO) from None

    def keep(self, word: str, samples: Samples) -> Path:
        """Beside what there is. Raises KwsdError if it cannot be written."""
        names = (self.folder / word / f"{self.speaker}_nohash_{n}.wav" for n in itertools.count())
        path = next(path for path in names if not path.exists())
        unfinished = path.with_name(f".{path.name}")  # else half a word would be learnt
        try:
            soundfile.write(unfinished, samples, SAMPLE_RATE, subtype="PCM_16")
            unfinished.rename(path)
        except (OSError, soundfile.LibsndfileError) as error:
            with suppress(OSError):
                unfinished.unlink()
            raise KwsdError(f"{path}: cannot be written ({error}); make room", exit_code=IO) from None
        return path


def record(
    source: Source, shelf: Shelf, words: Sequence[str], count: int | None, tell: Callable[[str], None]
) -> dict[str, int]:
    """Has each word said `count` times, in turns, and keeps what is said; of a recording of one word, without a count,
    as often as it is said. How many there are of each.

    Raises KwsdError if the source breaks off, or something cannot be kept.
    """
    in_turns = itertools.cycle(words)
    kept = dict.fromkeys(words, 0)
    with closing(utterances(source, tell)) as heard:
        for word in itertools.islice(in_turns, count * len(words)) if count else in_turns:
            if count:
                tell(f"say: {word} ({kept[word] + 1} of {count})")
            good = next((one for one in heard if _is_good(one, tell)), None)
            if good is None:
                break
            path = shelf.keep(word, good.samples)
            kept[word] += 1
            tell(f"  {good.took_s:.2f} s, {good.level_dbfs:.0f} dBFS: {path}")
    return kept


def check(words: Sequence[str], speaker: str) -> None:
    """Raises ConfigError for what cannot be a folder of a word, or part of a file's name."""
    for word in words:
        if word != UNKNOWN and (not word.strip() or "/" in word or "," in word or word[0] in "._"):
            raise ConfigError(f"{word!r}: cannot be a label; write a word, or {UNKNOWN} for others", exit_code=USAGE)
    repeated = {word for word in words if list(words).count(word) > 1}
    if repeated:
        raise ConfigError(f"{', '.join(sorted(repeated))}: is given more than once", exit_code=USAGE)
    if not speaker or "/" in speaker or "_nohash_" in speaker:
        raise ConfigError(f"--speaker {speaker!r}: a name without a slash or _nohash_", exit_code=USAGE)


def _is_good(utterance: Utterance, tell: Callable[[str], None]) -> bool:
    if utterance.problem:
        tell(f"  {utterance.took_s:.2f} s, {utterance.level_dbfs:.0f} dBFS: {utterance.problem}; once more")
    return not utterance.problem
