"""What was heard, kept as recordings of a second each: to listen to, to sort, and to train on."""

import asyncio
import errno
import heapq
import logging
import os
import re
import threading
import time
import wave
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import msgspec
import numpy as np

from kwsd.aside import start
from kwsd.audio_format import SAMPLE_RATE
from kwsd.errors import IO, NO_PERMISSION, ConfigError, KwsdError
from kwsd.event import Heard, Line, Verdict, id_of, iso
from kwsd.paths import FILE, kind_of
from kwsd.ring import Samples

log = logging.getLogger("kwsd")

HEARD, REJECTED = "heard", "rejected"  # folders for what was told, and for near misses
SORTED = "sorted"  # for what somebody listened to: it stays, however much it becomes
QUEUE = 64  # clips kept for a disk that is slow; then the oldest go
CLOSE_S = 1.0  # how long `close` waits for the disk
LOOK_S = 0.005
ROOM = 0.95  # share that remains where it was too much, so that not every clip has us look through the folder
SHOWN = 120  # characters of what is no clip
LONGEST_NAME = 120  # bytes of a stream's or a keyword's name: a file's may have 255
OURS = re.compile(r".*_nohash_([0-9A-HJKMNP-TV-Z]{26})\.wav", re.DOTALL)  # files that we may delete, and their ids
PLACE = re.compile(rf"({HEARD}|{REJECTED})/([^/.][^/]*)/([^/.][^/]*)", re.DOTALL)  # of one, below the folder
SIXTEEN_BITS = 32768.0


class Kept(NamedTuple):
    """A clip that was written. Sorts by age."""

    id: str
    size: int  # bytes
    path: Path
    written: float  # seconds since the epoch


class Clip(msgspec.Struct, frozen=True, kw_only=True):
    """One to listen to."""

    clip: str  # its place: heard/stop/mic_nohash_….wav
    time: str
    stream: str
    keyword: str
    told: bool  # else it is a near miss


class Clips:
    """`folder/heard/<keyword>/<stream>_nohash_<id>.wav`, and `rejected` for near misses: the window that decided, at
    16 kHz and 16 bits, named as `kwsd train --words` wants it. A thread of its own writes them, and deletes the oldest
    where all take more than `most` bytes. What cannot be written is lost, and `problem` says why."""

    def __init__(self, folder: Path, most: int) -> None:
        """Raises ConfigError if nothing can be written there."""
        self._folder, self._most = folder, most
        self.problem: str | None = None
        _make_folder(folder)
        self._queue: deque[tuple[Path, Samples]] = deque()
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="clips", daemon=True)
        start(self._thread)

    def keep(self, verdict: Verdict, line: Line, window: Samples) -> None:
        """What was heard in a window (n,), and the line that tells of it. Never waits."""
        kind = HEARD if isinstance(verdict, Heard) else REJECTED
        name = f"{_part(verdict.stream)}_nohash_{id_of(line)}.wav"
        with self._ready:
            if len(self._queue) >= QUEUE:
                path, _ = self._queue.popleft()
                self._fail(path, "the disk is too slow")
            self._queue.append((self._folder / kind / _part(verdict.keyword) / name, window))
            self._ready.notify()

    def latest(self, count: int) -> list[Clip]:
        """Those that nobody has sorted yet, the newest first. Looks through the folder."""
        newest = heapq.nlargest(count, _kept_in(self._folder))
        return [_described(kept) for kept in newest]

    def path_of(self, place: str) -> Path:
        """Where a clip of `latest` is. Raises KwsdError for what is none, or not there any more."""
        found = PLACE.fullmatch(place)
        path = self._folder / place
        if found is None or OURS.fullmatch(found[3]) is None or kind_of(path) != FILE:
            raise KwsdError(f"{place[:SHOWN]}: no such clip; perhaps it was sorted, or deleted as the oldest")
        return path

    def sort(self, place: str, word: str) -> None:
        """Put a clip where `kwsd train --words` looks for this word. Raises KwsdError if that cannot be."""
        path = self.path_of(place)
        folder = self._folder / SORTED / _part(word)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.rename(folder / path.name)
        except OSError as error:
            raise KwsdError(f"{place}: cannot be moved to {folder} ({error.strerror})", exit_code=IO) from None

    async def close(self) -> None:
        """Write what is queued, but do not wait long for a disk that hangs."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        begun = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - begun < CLOSE_S:
            await asyncio.sleep(LOOK_S)

    def _write_all(self) -> None:
        taken = self._most  # at most, as long as nobody has looked
        while (clip := self._next()) is not None:
            path, window = clip
            try:
                taken += _write(path, window)
                if taken > self._most:
                    taken = self._make_room()
                self.problem = None
            except OSError as error:
                self._fail(path, error.strerror or str(error))

    def _next(self) -> tuple[Path, Samples] | None:
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._closed)
            return self._queue.popleft() if self._queue else None

    def _fail(self, path: Path, reason: str) -> None:
        self.problem = f"clips in {self._folder}: {reason}"
        log.warning("clips: %s: %s", path, reason)

    def _make_room(self) -> int:
        """Delete the oldest where all take too much; bytes that remain. Somebody may have sorted clips meanwhile."""
        kept = sorted(_kept_in(self._folder))
        taken = sum(clip.size for clip in kept)
        enough = self._most * ROOM if taken > self._most else taken
        for clip in kept:
            if taken <= enough:
                break
            clip.path.unlink(missing_ok=True)
            taken -= clip.size
        return taken


def _make_folder(folder: Path) -> None:
    """Raises ConfigError if there can be no clips in it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # voices: nobody else's business
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ConfigError(
            f"sinks.clips.folder: {folder}: cannot be written ({error.strerror}); name a folder that kwsd may write to",
            exit_code=NO_PERMISSION if isinstance(error, PermissionError) else IO,
        ) from None


def _kept_in(folder: Path) -> Iterator[Kept]:
    for path in (*folder.glob(f"{HEARD}/*/*.wav"), *folder.glob(f"{REJECTED}/*/*.wav")):
        ours = OURS.fullmatch(path.name)
        if ours is not None:
            with suppress(OSError):  # somebody was faster
                found = path.stat()
                yield Kept(ours[1], found.st_size, path, found.st_mtime)


def _described(kept: Kept) -> Clip:
    kind, keyword, name = kept.path.parts[-3:]
    stream = name[: -len(f"_nohash_{kept.id}.wav")]
    return Clip(
        clip=f"{kind}/{keyword}/{name}",
        time=iso(kept.written),
        stream=unquote(stream),
        keyword=unquote(keyword),
        told=kind == HEARD,
    )


def _write(path: Path, window: Samples) -> int:
    """Bytes written. Whole or not at all: half a word would be learnt."""
    for folder in (path.parents[1], path.parent):  # but not the one the config names: it may lie on a disk that is gone
        folder.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    samples = np.clip(np.round(window * SIXTEEN_BITS), -SIXTEEN_BITS, SIXTEEN_BITS - 1).astype("<i2")
    try:
        with unfinished.open("wb") as file, wave.open(file) as recording:
            recording.setparams((1, samples.itemsize, SAMPLE_RATE, samples.size, "NONE", ""))
            recording.writeframes(samples.tobytes())
        unfinished.rename(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise
    return path.stat().st_size


def _part(name: str) -> str:
    """A name as part of a path."""
    safe = name.replace("%", "%25").replace("/", "%2F")
    safe = f"%2E{safe[1:]}" if safe.startswith(".") else safe
    return safe.encode()[:LONGEST_NAME].decode(errors="ignore")
