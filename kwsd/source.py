"""Where samples come from: what every source can do, and audio files. They know nothing of words."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from kwsd.aside import start
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.errors import IO, AudioError, KwsdError
from kwsd.inlet import Inlet
from kwsd.pcm import Frames

BLOCK_S = 0.02  # of audio a file delivers at once
TAIL_S = WINDOW / SAMPLE_RATE  # silence after a source that ends, so that its last word crosses the window


class Source(Protocol):
    """One stream of audio. `start` returns at once; blocks then arrive in the inlet from another thread."""

    channel: int | None  # which to listen to, from 0; None: the mean of all
    live: bool  # real time: what is not taken in time is lost. Else it can be made to wait
    lead_in: bool  # counts as preceded by silence
    may_be_deaf: bool  # it comes from a microphone; a recording may be as silent as it likes

    @property
    def rate(self) -> int:
        """Hz."""
        ...

    @property
    def channels(self) -> int:
        """In every block."""
        ...

    @property
    def block_s(self) -> float | None:
        """It delivers every so many seconds and wakes nobody; None: it wakes whoever waits for a block."""
        ...

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...

    def recover(self) -> bool:
        """It is lost: begin to open it again, in the background. False if that is not for this source."""
        ...

    @property
    def failure(self) -> KwsdError | None:
        """Why it delivers nothing, if it ought to."""
        ...

    @property
    def attempts(self) -> int:
        """To open it again, ever."""
        ...

    @property
    def fatal(self) -> KwsdError | None:
        """Why it cannot be had again as long as this process lives."""
        ...


class Reader:
    """Delivers blocks from a thread of its own, in real time or as fast as they are taken."""

    block_s: float | None = None
    may_be_deaf = False
    attempts = 0
    fatal = None

    def __init__(self, rate: int, channels: int, *, realtime: bool) -> None:
        self.rate, self.channels, self.live = rate, channels, realtime
        self._realtime = realtime
        self._stop = threading.Event()
        self._failure: KwsdError | None = None
        self._thread: threading.Thread | None = None

    def blocks(self) -> Iterator[Frames]:
        """The audio, block by block, until it ends. Raises KwsdError where it cannot go on."""
        raise NotImplementedError

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        """Begin to deliver."""
        thread = threading.Thread(target=self._deliver, args=(inlet, wake), name="source", daemon=True)
        start(thread)
        self._thread = thread  # now that it can be joined: a daemon that ends amid a reload stops what just starts

    def stop(self) -> None:
        """Deliver no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=0.5)

    def recover(self) -> bool:
        """What broke off stays so."""
        return False

    @property
    def failure(self) -> KwsdError | None:
        """Set when the audio broke off."""
        return self._failure

    def _deliver(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        begun, delivered = time.monotonic(), 0
        try:
            for block in self.delivered():
                delivered += len(block)
                if self._realtime:
                    self._stop.wait(max(0.0, begun + delivered / self.rate - time.monotonic()))
                while not self._realtime and inlet.room < 1.0 and not self._stop.is_set():
                    time.sleep(0.005)
                if self._stop.is_set():
                    return
                inlet.write(block)
                wake()
        except Exception as error:  # a thread's top: nothing may die unheard
            self._failure = AudioError(f"reading audio failed: {error!r}", exit_code=IO)
        finally:
            inlet.end()
            wake()

    def delivered(self) -> Iterator[Frames]:
        """All blocks, then a second of silence, so that the last word crosses the whole window.

        Where the audio breaks off, `failure` says why, and what came before is still heard to its end.
        Where none came at all there is nothing to hear, and no silence is made up.
        """
        any_came, failure = False, None
        try:
            for block in self.blocks():
                any_came = True
                yield block
        except KwsdError as error:
            failure = error
        size = round(BLOCK_S * self.rate)
        for _ in range(round(TAIL_S / BLOCK_S) if any_came else 0):
            yield np.zeros((size, self.channels), np.float32)
        self._end_with(failure)  # not before: who is lost is not listened to

    def _end_with(self, failure: KwsdError | None) -> None:
        self._failure = failure


def printable(name: str) -> str:
    """A file's name as a stream's: with ? for what has no letter, which JSON and terminals could not bear."""
    return "".join(letter if letter.isprintable() else "?" for letter in name)


class AudioFile(Reader):
    """A WAV, FLAC or Ogg file of any rate. Counts as preceded and followed by a second of silence."""

    lead_in = True

    def __init__(self, path: Path, channel: int | None, *, realtime: bool) -> None:
        """Raises AudioError if the file cannot be read, or lacks the channel."""
        from kwsd.recording import check_channel, open_recording

        self._recording = open_recording(path)
        super().__init__(self._recording.samplerate, self._recording.channels, realtime=realtime)
        self._path, self.name = path, printable(path.name)
        self.channel = channel
        check_channel(path, self._recording.channels, channel)

    def blocks(self) -> Iterator[Frames]:
        """The file's frames; AudioError after the last where the file is cut short."""
        from kwsd.recording import is_truncated, read_blocks

        read = 0
        with self._recording:
            for block in read_blocks(self._recording, round(BLOCK_S * self.rate)):
                check_finite(block, str(self._path), read)
                read += len(block)
                yield block
            truncated = is_truncated(self._recording, read)
        if truncated:
            raise AudioError(
                f"{self._path}: is cut short after {read / self.rate:.2f} s; all there is was listened to", exit_code=IO
            )


class Recordings(Reader):
    """Audio files one after the other without a break, mixed to mono, at 16 kHz."""

    lead_in = True
    channel = None
    name = "recordings"

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(SAMPLE_RATE, 1, realtime=False)
        self._paths = paths

    def blocks(self) -> Iterator[Frames]:
        """The files' frames. Raises AudioError where one cannot be read to its end."""
        from kwsd.recording import read_recording

        size = round(BLOCK_S * self.rate)
        for path in self._paths:
            recording = read_recording(path)[:, None]
            yield from (recording[start : start + size] for start in range(0, len(recording), size))


def check_finite(block: Frames, name: str, before: int) -> None:
    """Raises AudioError at the first sample that is not a number."""
    if not np.isfinite(block).all():
        row = int(np.argwhere(~np.isfinite(block))[0][0])
        raise AudioError(
            f"{name}: sample {before + row} is not a number (NaN or infinite); repair the recording", exit_code=IO
        )
