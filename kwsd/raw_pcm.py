"""Raw samples from a pipe: when to read it, who writes into it, and that the next writer begins with a whole sample."""

import array
import errno
import fcntl
import logging
import os
import select
import stat
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from kwsd.errors import IO, NO_PERMISSION, AudioError, ConfigError, KwsdError
from kwsd.inlet import Inlet
from kwsd.pause import Pause
from kwsd.pcm import Frames, PcmDecoder
from kwsd.source import TAIL_S, Reader, check_finite

log = logging.getLogger("kwsd")

READ_S = 0.5  # of audio read from a pipe at once, if so much is there
MOST_S = 0.4  # waited for at once; more than inference ever waits for
SOON_S = 0.003  # until the inference thread says what it waits for next
PAUSED_S = 0.25  # what comes so much later than it should was not kept from us, but written later
DRIFT = 0.02  # of what it comes later, this counts for a slower clock
ROOMY_S = 0.1  # of audio that fits a pipe of which one need not see the first byte at once
RECORDINGS = (b"RIFF", b"fLaC", b"OggS", b"FORM")  # what begins so is none of raw samples, but a file
TRUST_S = 2.0  # a writer is looked at so long, to tell whether it keeps time
FASTER = 0.25  # than time: one that writes so much faster can be made to wait, and loses nothing by it
BEHIND_S = 0.002  # the last piece of what is waited for is there by then, if the writer keeps time
PART_S = 0.02  # until the rest of a sample is looked for
READ_SIZE = 65_536  # bytes of what nobody listens to
BACKLOG_S = 0.005  # how often is looked whether all was taken
FIRST_S = 5.0  # after the start nobody writes into a FIFO: it is lost
WRITER_S = 0.25  # how often a FIFO without a writer is opened anew: it may be another one of that name
PIPE_HINT = "pipe audio into kwsd, e.g. arecord -f S16_LE -r 16000 -c 1 | kwsd run --source -"


class RawPcm(Reader):
    """Headerless interleaved samples from stdin (`-`), a FIFO or a file. A FIFO without a writer may be lost until
    another one comes."""

    lead_in = False
    may_be_deaf = True

    def __init__(
        self, path: str, rate: int, channels: int, sample_format: str, channel: int | None, *, reopen: bool = False
    ) -> None:
        """`reopen`: when the writer of a FIFO goes, wait for the next. Raises AudioError if there is no such pipe,
        ConfigError if stdin is a terminal."""
        super().__init__(rate, channels, realtime=False)
        self.channel = channel
        self._path, self._name = path, "stdin" if path == "-" else path
        self._format = sample_format
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # rung to stop
        self._closing = threading.Lock()
        try:
            self._fd = self._open()
        except KwsdError:
            os.close(self._bell)
            raise
        self._reopens = reopen and path != "-" and _is_fifo(self._fd)
        self._waits, self._noticed = False, threading.Event()  # for a writer, and whether that was seen
        self._pause, self._paused = Pause(time.monotonic()), False  # the writer that keeps time has
        self._heard = False  # anything, ever
        self._broke: KwsdError | None = None  # what the last writer did wrong
        self._orphaned = 0  # bytes in the pipe of writers that were gone before it was opened anew
        self._inlet: Inlet | None = None
        self._begin()

    def _begin(self) -> None:
        """With what is open now."""
        self._came = False  # anything, from whoever writes now
        self._decoder = PcmDecoder(self._format, self.channels)
        self._read_frames, self._pace = 0, Pace(self.rate)
        if self._inlet is not None:
            self._inlet.keeps_time = False  # as far as is known of who writes next
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._writers = select.poll()  # which it says when they are gone, or we are to stop, and nothing else
        self._writers.register(self._fd, 0)
        self._writers.register(self._bell, select.POLLIN)

    def _open(self) -> int:
        path = self._path
        if path == "-":
            if sys.stdin is None or sys.stdin.closed:
                raise AudioError(f"stdin: is closed; {PIPE_HINT}")
            if os.isatty(0):
                raise ConfigError(f"stdin: is a terminal; {PIPE_HINT}")
            return 0
        try:
            # A FIFO without a writer would block until one comes; with O_NONBLOCK it opens, and poll waits.
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise AudioError(f"{path}: no such file or FIFO; create it with mkfifo") from None
        except PermissionError:
            raise AudioError(f"{path}: permission denied", exit_code=NO_PERMISSION) from None
        except OSError as error:
            raise AudioError(f"{path}: cannot be opened ({error.strerror})") from None

    def blocks(self) -> Iterator[Frames]:
        """Frames until the writer closes; an incomplete last frame is dropped and said."""
        frame = self._decoder.frame  # bytes
        read = 0
        while not self._stop.is_set():
            chunk = self._read(round(READ_S * self.rate) * frame)
            if chunk is None:
                if self._has_paused():
                    return
                continue
            if not chunk:
                break
            if not read:
                self._look_at_beginning(chunk)
            block = self._decoder.frames(chunk)
            if self._decoder.may_be_infinite:
                check_finite(block, self._name, read)
            read += len(block)
            if len(block):
                self._heard = True
                yield block
        if read == 0 and not (self._reopens or self._heard) and not self._stop.is_set():
            raise AudioError(f"{self._name}: ended before a single sample came; pipe audio into it")
        rest = len(self._decoder.rest)
        if rest and not self._reopens:
            raise AudioError(
                f"{self._name}: ended inside a sample ({rest} of {frame} bytes); the rest was listened to",
                exit_code=0,
            )

    def _look_at_beginning(self, chunk: bytes) -> None:
        """A recording is no raw samples: its header would pass for some, and what follows may be of another rate."""
        if chunk.startswith(RECORDINGS):
            log.warning(
                "%s: begins as a recording does (%s), and is taken for raw samples, %s, %d Hz, %d channels; "
                "name a recording with --source FILE, or write it without a header",
                self._name,
                chunk[:4].decode(),
                self._format,
                self.rate,
                self.channels,
            )

    def _has_paused(self) -> bool:
        """Whether somebody who keeps time writes nothing: what is written next is nothing that goes on. Or whether
        nobody was there from the beginning."""
        assert self._inlet is not None
        if self._came:
            keeps_time = self._inlet.keeps_time or not self._pace.is_judged
            self._paused = keeps_time and self._pause.look(time.monotonic())
            return self._paused
        return self._reopens and not self._inlet.blocks and time.monotonic() - self._inlet.wrote_at > FIRST_S

    def delivered(self) -> Iterator[Frames]:
        """What each writer writes, and a second of silence after it."""
        yield from super().delivered()
        while (self._reopens or self._paused) and not self._stop.is_set():
            self._be_lost(self._why_lost())
            came = False
            while not (came or self._stop.is_set()):
                self._wait_for_a_writer()
                for block in super().delivered():
                    came = True
                    yield block
                if not self._reopens:
                    break

    def _end_with(self, failure: KwsdError | None) -> None:
        """Where it reopens, or its writer may go on, this is not the end."""
        self._broke = failure
        if not (self._reopens or self._paused):
            super()._end_with(failure)

    def _why_lost(self) -> str:
        assert self._inlet is not None
        if self._paused:
            return f"{self._name}: whoever writes into it has paused; waiting for more"
        nobody = f"{self._name}: nobody writes into it {'any more' if self._inlet.blocks else 'yet'}"
        return f"{self._broke or nobody}; waiting for the next who writes into it"

    def _be_lost(self, why: str) -> None:
        """Until that was noticed. What the next writer writes meanwhile is in the pipe."""
        assert self._inlet is not None
        while self._came and not self._paused and not self._stop.is_set():  # one whose samples are none
            with suppress(KwsdError):
                self._read(READ_SIZE)
        while self._inlet.backlog and not self._stop.is_set():  # what came before the gap is listened to first
            time.sleep(BACKLOG_S)
        self._waits = True
        self._failure = AudioError(why, exit_code=IO)
        self._noticed.wait()
        self._noticed.clear()
        self._paused = False
        self._inlet.reopen(self.rate, self.channels, ahead_s=TAIL_S if self._inlet.blocks else 0.0)

    def recover(self) -> bool:
        """Begin to wait for the next writer, if that is all."""
        waits, self._waits = self._waits, False
        if waits:
            self._failure = None
            self._noticed.set()
        return waits

    def _wait_for_a_writer(self) -> None:
        assert self._inlet is not None
        while not self._stop.is_set():
            if self._reopens:
                self._open_anew()
            if self._poll.poll(WRITER_S * 1000):
                if waiting := _waiting(self._fd):  # which was recorded before it was written
                    self._inlet.is_back(waiting / self._decoder.frame / self.rate)
                    return
                if not self._reopens:
                    return  # it has ended
                self._stop.wait(WRITER_S)

    def _open_anew(self) -> None:
        """Whoever makes the FIFO may have made it anew. The old one is closed last: what is in it must not be lost."""
        with self._closing:
            if self._stop.is_set():
                return
            try:
                fd = self._open()
                self._orphaned = self._left_in(fd)
            except AudioError:
                return
            if not _is_fifo(fd):
                os.close(fd)
                return
            os.close(self._fd)
            self._fd = fd
            self._begin()

    def _left_in(self, fd: int) -> int:
        """Bytes in a FIFO just opened anew whose writers are gone, which only the old descriptor knows. Less than a
        sample is nobody's, and taken out: whoever writes next must not be heard from the midst of one on."""
        if not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            return 0
        left = _waiting(fd)  # first: who writes after that is none of them
        if not any(event & select.POLLHUP for _, event in self._poll.poll(0)):
            return 0
        if 0 < left < self._decoder.frame:
            os.read(fd, left)
            return 0
        return left

    def start(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        """Begin to deliver."""
        self._inlet = inlet
        super().start(inlet, wake)

    def stop(self) -> None:
        """Deliver no more, and let the writer know."""
        self._stop.set()
        self._noticed.set()
        with self._closing:
            if self._bell >= 0:
                os.eventfd_write(self._bell, 1)
        super().stop()
        self._close()

    def _deliver(self, inlet: Inlet, wake: Callable[[], None]) -> None:
        super()._deliver(inlet, wake)
        self._close()

    def _close(self) -> None:
        with self._closing:
            fd, bell, self._fd, self._bell = self._fd, self._bell, -1, -1
        if fd > 0:  # stdin stays
            os.close(fd)
        if bell >= 0:
            os.close(bell)

    def _read(self, size: int) -> bytes | None:
        """Bytes, b'' at the end, None if nothing came for a while."""
        try:
            if self._came and not self._orphaned:
                self._let_the_rest_come()
            ready = self._poll.poll(100)
            if not ready and not (self._reopens and self._came):
                return None  # but a writer that was gone before we opened hangs up unseen
            if self._orphaned:
                return self._read_orphans(size)
            whole = self._let_the_rest_come()
            part = whole == 0 and ready and ready[0][1] == select.POLLIN  # of a sample
            if part:
                self._stop.wait(PART_S)
            if part or self._stop.is_set():  # then what is there is for whoever reads it next
                return None
            chunk = os.read(self._fd, min(size, whole or size))
            self._came = bool(chunk)
            self._read_frames += len(chunk) // self._decoder.frame
            if whole is None and chunk:  # a socket, whose writer keeps time or does not as well
                self._judge(self._read_frames)
            self._pause.note(time.monotonic(), len(chunk) / self._decoder.frame / self.rate)
            return chunk
        except BlockingIOError:
            return None
        except OSError as error:
            if self._stop.is_set():
                return b""
            if error.errno == errno.EISDIR:
                raise AudioError(f"{self._name}: is a folder") from None
            raise AudioError(f"{self._name}: cannot be read ({error.strerror})", exit_code=IO) from None

    def _read_orphans(self, size: int) -> bytes | None:
        """As `_read`: what writers left that are gone. A part of a sample at its end is nobody's."""
        whole = self._orphaned // self._decoder.frame * self._decoder.frame
        chunk = os.read(self._fd, min(size, whole) or self._orphaned)
        self._orphaned -= len(chunk)
        self._came = self._came or whole > 0
        return chunk if whole else None

    def _judge(self, frames: int) -> None:
        """So many have come of whoever writes now."""
        self._pace.note(frames)
        if self._inlet is not None:
            self._inlet.keeps_time = self._pace.keeps_time

    def _let_the_rest_come(self) -> int | None:
        """Something came, or did before: wait until as much did as somebody waits for, since to read twice costs twice
        as much, and so does to look. No writer is made to wait: before half the pipe is full, it is read; and none that
        goes is waited for. Returns the bytes of whole frames that came; a part of one stays in the pipe, for whoever
        reads it next after a reload must not begin inside a sample. None: it is no pipe."""
        fd, frame = self._fd, self._decoder.frame
        room = _pipe_size(fd) // frame if fd >= 0 else 0  # else it was closed meanwhile
        if self._inlet is None or not room:
            return None
        there, roomy = _waiting(fd) // frame, room > ROOMY_S * self.rate
        if not there and roomy and self._inlet.missing <= 0:  # what was read last is not looked at yet
            time.sleep(SOON_S)
            there = _waiting(fd) // frame
        missing = min(self._inlet.missing, room // 2, there + int(MOST_S * self.rate)) - there
        if there:
            self._judge(self._read_frames + there)
        if missing > 0 and (there or (self._came and roomy)):
            due_s = self._pace.due_in(self._read_frames + there + missing) + BEHIND_S
            if due_s > 0.0:
                self._writers.poll(1000 * min(due_s, MOST_S))
            there = _waiting(fd) // frame
        return there * frame


class Pace:
    """How a writer keeps time, by when its samples were seen: as soon as they were written, or later."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._begun_at: float | None = None  # when its first sample must have been written, monotonic s
        self.keeps_time = False  # as a microphone does: what it writes is late if it is not heard soon
        self.is_judged = False  # else it was not looked at for long enough to tell
        self._judged_at, self._ahead_s = 0.0, 0.0  # monotonic s, and how much it was faster than time since

    def note(self, frames: int) -> None:
        """So many have come by now, since the first."""
        now = time.monotonic()
        begun_at = now - frames / self._rate
        if self._begun_at is None:
            self._begun_at, self._judged_at = begun_at, now
        self._ahead_s += max(0.0, self._begun_at - begun_at)
        is_faster = self._ahead_s > FASTER * TRUST_S
        if is_faster or now - self._judged_at >= TRUST_S:
            self.keeps_time, self.is_judged = not is_faster, True
            self._judged_at, self._ahead_s = now, 0.0
        if begun_at < self._begun_at or begun_at > self._begun_at + PAUSED_S:
            self._begun_at = begun_at
        else:  # we look a little late ourselves, and that must not add up; but its clock may be slower than ours
            self._begun_at += DRIFT * max(0.0, begun_at - self._begun_at - 2 * BEHIND_S)

    def due_in(self, frames: int) -> float:
        """Seconds until so many have come, if it goes on so; negative where they should have."""
        begun_at = self._begun_at if self._begun_at is not None else time.monotonic()
        return begun_at + frames / self._rate - time.monotonic()


def _waiting(fd: int) -> int:
    """Bytes that can be read."""
    came = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, came)
    return came[0]


def _is_fifo(fd: int) -> bool:
    return stat.S_ISFIFO(os.fstat(fd).st_mode)


def _pipe_size(fd: int) -> int:
    """Bytes that can be written before they are read; 0: it is no pipe."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError:
        return 0
