"""Satellites: programs elsewhere that connect and send what they hear, each a stream with a name of its own.

A satellite sends one line of JSON, `{"name": "kitchen"}`, then raw PCM. It gets a `hello` back and after that the
detections of its own stream, as far as it takes them; or one `refused` with the reason, now or when we hang up on it.
One that only stops sending (`shutdown`, `nc -N`) gets those of all it sent, and then we hang up.

One thread serves all of them and waits for none: whoever is slow, silent, malformed or gone harms nobody else. What
they send becomes 16 kHz mono here and goes straight into the ring, each satellite to a slot of its own.
"""

import contextlib
import hmac
import os
import resource
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from kwsd.address import Address, url
from kwsd.aside import start
from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples
from kwsd.config import Name
from kwsd.door import SocketFile, bind_address
from kwsd.errors import INTERNAL, UNAVAILABLE, KwsdError
from kwsd.event import Line, Refused, unnumbered
from kwsd.inlet import resampler
from kwsd.load import Arrival
from kwsd.pause import Pause
from kwsd.pcm import FORMATS, PcmDecoder, mono
from kwsd.ring import RingBuffer, Samples

HEADER_BYTES = 4096  # at most
HEADER_S = 5.0  # in which the header must be there
WITHOUT_HEADER = 32  # connections at once that have not said who they are
AHEAD_S = 1.0  # so much more audio than time has passed is taken; then the satellite has to wait
GONE_S = 2.0  # silent for so long, it is let go if another comes by its name
SAVED_S = 10.0  # of time in which nothing came: after a stall all of it is taken at once
FASTER = 1.25  # than time one may be in the long run: what piled up at a clock that is fast, or in a stall, melts away
CHUNK_S = 0.25  # of audio read from a satellite at once
CHUNK = samples(CHUNK_S)
LUMP_S = 0.2  # of audio that comes at once, rather than as it is spoken
FULL_S = 0.01  # until the inference thread has taken what it can at once
OUTBOX = 1 << 16  # bytes a satellite may leave unread before it is sent no more
MOST_UNREAD = 100  # chunks thrown away when a connection is closed
SPARE_DESCRIPTORS = 200  # for all else that is open
PAUSE_S = 0.005  # before the next try to let somebody in
LOOK_ROUND_S = 0.5  # how often those are looked for that send nothing
LATE_S = 0.5  # a turn that comes so late was held up
HUNG_UP = "hung up"  # of its own accord


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a satellite says of itself."""

    name: Name
    rate: Annotated[int, Meta(ge=4000, le=192_000)] = SAMPLE_RATE  # Hz
    channels: Annotated[int, Meta(ge=1, le=8)] = 1
    channel: Annotated[int, Meta(ge=1, le=8)] | Literal["mix"] = "mix"  # which to listen to, from 1
    format: Literal["s16le", "s32le", "f32le"] = "s16le"
    token: str = ""
    passing: bool = False  # a client of the moment, not a place where somebody may be


@dataclass(frozen=True)
class Joined:
    """A satellite has a slot from now on."""

    slot: int
    name: str
    origin: int  # index of its first sample in the ring
    rate: int  # Hz, as it sends
    channels: int
    passing: bool


@dataclass(frozen=True)
class Left:
    """A satellite sends nothing more; what it sent is in the ring."""

    slot: int
    reason: str
    heard: int  # samples at 16 kHz


@dataclass(eq=False)
class Satellite:
    """One connection."""

    connection: socket.socket
    begun: float  # monotonic s
    needs_token: bool
    wrote_at: float  # when its last bytes came
    start: bytes = b""  # what came of the header
    slot: int = -1
    name: str = ""
    rate: int = SAMPLE_RATE
    most: int = HEADER_BYTES  # bytes read at once
    taken: int = 0  # frames at its own rate
    take: Callable[[memoryview], None] = field(default=lambda _: None)
    finish: Callable[[], None] = field(default=lambda: None)
    pause: Pause = field(default_factory=lambda: Pause(time.monotonic()))
    paused: bool = False  # the silence behind what it sent is in the ring
    outbox: bytes = b""
    ahead: float = 0.0  # seconds of audio that are taken and not yet due; negative: as many could be
    looked_at: float = 0.0  # when that was
    waits_until: float = 0.0  # it is ahead of time, and not read from
    finished: bool = False  # it sends no more, and may still be told of what it sent


class Listener:
    """Owns the slots from `first` on in the ring, and the thread that fills them."""

    def __init__(
        self,
        addresses: Sequence[Address],
        ring: RingBuffer,
        first: int,
        *,
        taken: Sequence[str] = (),
        token: str = "",
        group: str | None = None,
        silent_s: float,
        at_once: int,
        wake: Callable[[], None],
    ) -> None:
        """Bind all addresses. `taken` names other streams; `group` may use UNIX sockets; `at_once` samples beyond the
        next window are scored at once, and what comes beyond that would be skipped.

        Raises KwsdError if an address cannot be had."""
        self.first, self.slots = first, ring.streams - first
        self.news: deque[Joined | Left] = deque()  # for the inference thread, which takes them in this order
        self.due = array("q", bytes(8 * ring.streams))  # index that completes the next window, told by the same
        self.arrivals = [Arrival() for _ in range(ring.streams)]  # of what each slot holds
        self.failure: KwsdError | None = None
        self.active = 0  # satellites that have a slot
        self._due_of_all = np.frombuffer(self.due, np.int64)
        self._expected, self._at_once = array("q", bytes(8 * ring.streams)), at_once  # the next window of each slot
        self._expected_of_all = np.frombuffer(self._expected, np.int64)
        self._ring, self._wake, self._token, self._silent_s = ring, wake, token, silent_s
        self._group = group
        self._free = deque(range(first, ring.streams))
        self._names = set(taken)
        self._wanted = 1  # windows due for which the inference thread is woken
        self._pending = 0
        self._hello: Callable[[str], Line] = lambda _: b""
        self._satellites: dict[int, Satellite] = {}  # by file descriptor
        self._by_slot: dict[int, Satellite] = {}
        self._waiting: list[Satellite] = []
        self._outgoing: deque[tuple[int, Line]] = deque()
        self._released: deque[tuple[int, str]] = deque()
        self._adopted: deque[socket.socket] = deque()
        self._scratch = bytearray(HEADER_BYTES)
        self._silence = np.zeros(WINDOW, np.float32)
        self._stopping = False
        self._epoll = select.epoll()
        self._bell, self._rope = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._bell, select.EPOLLIN)
        _allow_descriptors(self.slots + WITHOUT_HEADER)
        self._doors: dict[int, tuple[socket.socket, Address]] = {}
        self._files: list[SocketFile] = []
        try:
            for address in addresses:
                self._open(address)
        except KwsdError:
            self._close_doors()
            self._close_bell()
            raise
        self._thread = Thread(target=self._guarded, name="listener", daemon=True)

    @property
    def addresses(self) -> list[str]:
        """Where it really listens, with the ports the system chose."""
        names = [door.getsockname() for door, _ in self._doors.values()]
        return [f"unix:{name}" if isinstance(name, str) else url(name[0], name[1]) for name in names]

    # --- called by the daemon and the inference thread ---

    def start(self, hello: Callable[[str], Line]) -> None:
        """Begin to serve. `hello` makes the first line for a satellite of a name."""
        self._hello = hello
        start(self._thread)

    def stop(self) -> None:
        """Hang up on everybody. What they sent is in the ring."""
        self._stopping = True
        self._ring_bell()
        if self._thread.is_alive():
            self._thread.join(timeout=1.0)
        self._close_adopted()
        self._close_doors()
        if not self._thread.is_alive():
            self._close_bell()

    def _close_adopted(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._adopted.popleft().close()

    def expect(self, next_ends: "np.ndarray[tuple[int], np.dtype[np.int64]]", wanted: int) -> None:
        """The inference thread is about to wait: it wants to be woken when so many windows are due."""
        np.copyto(self._due_of_all, next_ends)
        np.copyto(self._expected_of_all, next_ends)
        self._wanted, self._pending = wanted, 0

    def trust(self, token: str) -> None:
        """Another secret from now on."""
        self._token = token

    def release(self, slot: int, name: str) -> None:
        """All of a satellite that left is scored and told: its slot and name may go to another."""
        self._released.append((slot, name))
        self._ring_bell()

    def has_paused(self, slot: int) -> bool:
        """Whether the last second of a slot is silence that was made up. May be asked from any thread."""
        satellite = self._by_slot.get(slot)
        return satellite is not None and satellite.paused

    def adopt(self, connection: socket.socket) -> None:
        """Take somebody in who did not come through a door; it needs no token, and has sent its header.

        Raises KwsdError if we stop."""
        self._adopted.append(connection)
        if self._stopping:  # looked at after appending: either we see it, or `stop` sees the connection
            self._close_adopted()
            raise KwsdError("kwsd is stopping", exit_code=UNAVAILABLE)
        self._ring_bell()

    def tell(self, slot: int, line: Line) -> None:
        """A line for the satellite of a slot, if it is still there and reads."""
        self._outgoing.append((slot, line))
        self._ring_bell()

    # --- its own thread ---

    def _ring_bell(self) -> None:
        with contextlib.suppress(OSError):  # full: it will look anyway
            os.write(self._rope, b".")

    def _guarded(self) -> None:
        """The thread's top: nothing may die unheard."""
        try:
            self._serve()
        except Exception as error:
            self.failure = KwsdError(f"listener thread: {error!r}; please report this", exit_code=INTERNAL)
            self.failure.__cause__ = error
            self._wake()

    def _serve(self) -> None:
        look_at = time.monotonic() + LOOK_ROUND_S
        while not self._stopping:
            ready = self._epoll.poll(self._patience(look_at))
            now = time.monotonic()
            for descriptor, happened in ready:
                satellite = self._satellites.get(descriptor)
                if satellite is not None:
                    self._attend(satellite, happened, now)
                elif descriptor == self._bell:
                    self._heed_bell(now)
            for descriptor, _ in ready:  # last, as whoever went made room
                if descriptor in self._doors:
                    self._welcome(*self._doors[descriptor], now)
            if self._waiting:
                self._let_go_on(now)
            if now > look_at + LATE_S:  # we stood still: what came meanwhile is read first
                look_at = now
            elif now >= look_at:
                self._look_round(now)
                look_at = now + LOOK_ROUND_S
        for satellite in list(self._satellites.values()):
            self._part_with(satellite, "kwsd stops, or opens its streams anew")

    def _patience(self, look_at: float) -> float:
        until = min([look_at, *(satellite.waits_until for satellite in self._waiting)])
        return max(0.0, until - time.monotonic())

    def _attend(self, satellite: Satellite, happened: int, now: float) -> None:
        if happened & select.EPOLLOUT:
            self._send(satellite, b"")
        if not happened & ~select.EPOLLOUT:
            return
        try:
            size = satellite.connection.recv_into(self._scratch, satellite.most)
        except BlockingIOError:
            return
        except OSError as error:
            self._part_with(satellite, f"connection lost ({error.strerror})")
            return
        if not size:
            if satellite.slot >= 0 and self._is_full(satellite.slot, WINDOW):
                self._have_wait(satellite, now + FULL_S)
            else:
                self._hear_no_more(satellite)
            return
        satellite.wrote_at = now
        chunk = memoryview(self._scratch)[:size]
        if satellite.slot < 0:
            rest = self._read_header(satellite, chunk)
            if not rest:
                return
            chunk = memoryview(rest)
        self._take(satellite, chunk, now)

    def _take(self, satellite: Satellite, chunk: memoryview, now: float) -> None:
        taken_before, slot = satellite.taken, satellite.slot
        if satellite.paused:  # what comes is none of what came before
            satellite.paused = False
            self._ring.skip(slot)
        self.arrivals[slot].note(self._ring.ends[slot], now)
        try:
            satellite.take(chunk)
        except ValueError as error:
            self._part_with(satellite, str(error))
            return
        if self._ring.ends[slot] >= self.due[slot]:
            self.due[slot] = np.iinfo(np.int64).max  # counted; `expect` says what comes next
            self._pending += 1
            if self._pending in {1, self._wanted}:
                self._wake()
        satellite.ahead = max(-SAVED_S, satellite.ahead - FASTER * (now - satellite.looked_at))
        came_s = (satellite.taken - taken_before) / satellite.rate
        satellite.pause.note(now, came_s)
        satellite.ahead += came_s
        satellite.looked_at = now
        if satellite.ahead > AHEAD_S:
            self._have_wait(satellite, now + (satellite.ahead - AHEAD_S / 2) / FASTER)
        elif satellite.pause.at_once_s > LUMP_S and self._is_full(slot, CHUNK):  # else what a stall held back was lost
            self._have_wait(satellite, now + FULL_S)

    def _is_full(self, slot: int, more: int) -> bool:
        """Whether windows are due and so many samples more would make them more than are scored at once."""
        end, due = self._ring.ends[slot], self._expected[slot]
        return end >= due and end + more > due + self._at_once

    def _have_wait(self, satellite: Satellite, until: float) -> None:
        """Do not read from it so long."""
        satellite.waits_until = until
        self._waiting.append(satellite)
        self._epoll.unregister(satellite.connection)  # else it would report a hang-up over and over

    def _fall_silent(self, satellite: Satellite) -> None:
        """A satellite sends nothing for now: what it said is told, as nothing that was said before may be told after
        the pause."""
        satellite.paused = True
        self._make_up_silence(satellite)
        self._wake()

    def _make_up_silence(self, satellite: Satellite) -> None:
        """So that the last word crosses the window."""
        self.arrivals[satellite.slot].note(self._ring.ends[satellite.slot], time.monotonic())
        satellite.finish()

    def _let_go_on(self, now: float) -> None:
        """Those that were ahead of time and are no more."""
        for satellite in [satellite for satellite in self._waiting if satellite.waits_until <= now]:
            self._waiting.remove(satellite)
            satellite.waits_until = 0.0
            self._epoll.register(satellite.connection, _interest(satellite))

    def _look_round(self, now: float) -> None:
        for satellite in list(self._satellites.values()):
            if satellite.slot < 0 and now - satellite.begun > HEADER_S:
                self._refuse(satellite, f"no header within {HEADER_S:g} s; send one line of JSON first")
            elif satellite.finished or satellite.slot < 0 or satellite.waits_until:
                continue
            elif now - satellite.wrote_at > self._silent_s:
                self._part_with(satellite, f"sent nothing for {self._silent_s:g} s")
            elif satellite.taken and not satellite.paused and satellite.pause.look(now):
                self._fall_silent(satellite)

    # --- coming ---

    def _welcome(self, door: socket.socket, address: Address, now: float) -> None:
        try:
            connection, _ = door.accept()
        except OSError:  # gone already, or no descriptor is free: whoever is there is served on
            time.sleep(PAUSE_S)
            return
        self._take_in(connection, bool(self._token) and address.path is None, now)
        if sum(other.slot < 0 for other in self._satellites.values()) > WITHOUT_HEADER:
            self._refuse(
                self._satellites[connection.fileno()], "too many connections have not said who they are; try again"
            )

    def _take_in(self, connection: socket.socket, needs_token: bool, now: float) -> None:
        connection.setblocking(False)
        satellite = Satellite(connection, now, needs_token, now)
        self._satellites[connection.fileno()] = satellite
        self._epoll.register(connection, select.EPOLLIN)

    def _read_header(self, satellite: Satellite, chunk: memoryview) -> bytes:
        """What follows the header, once it is there."""
        satellite.start += bytes(chunk)
        line, newline, rest = satellite.start.partition(b"\n")
        if not newline and len(line) <= HEADER_BYTES:
            return b""
        if len(line) > HEADER_BYTES:
            self._refuse(satellite, f"the header is longer than {HEADER_BYTES} bytes; send one line of JSON first")
            return b""
        satellite.start = b""
        try:
            header = msgspec.json.decode(line, type=Header)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._refuse(satellite, f'header: {error}; send one line such as {{"name": "kitchen", "rate": 16000}}')
            return b""
        refusal = self._why_not(satellite, header)
        if refusal:
            self._refuse(satellite, refusal)
            return b""
        self._admit(satellite, header)
        return rest if satellite.connection.fileno() in self._satellites else b""

    def _why_not(self, satellite: Satellite, header: Header) -> str:
        if satellite.needs_token and not hmac.compare_digest(header.token.encode(), self._token.encode()):
            return "the token is not the one in listen.token_file"
        if header.channel != "mix" and header.channel > header.channels:
            return f"channel {header.channel} of {header.channels}; choose another, or mix"
        if header.name in self._names:
            self._let_go_of_silent(header.name)
            return f"the name {header.name!r} is taken; give every stream a name of its own; if it was you, try again"
        if not self._free:
            return f"there are {self.slots} satellites already; raise listen.streams"
        return ""

    def _let_go_of_silent(self, name: str) -> None:
        """Who had to start anew, or lost the network, comes back while we still wait for what it sent before."""
        now = time.monotonic()
        for satellite in list(self._by_slot.values()):
            is_heard = satellite.waits_until or satellite.finished or now - satellite.wrote_at <= GONE_S
            if satellite.name == name and not is_heard:
                self._part_with(satellite, f"sent nothing for {GONE_S:g} s, and came again")

    def _admit(self, satellite: Satellite, header: Header) -> None:
        slot = self._free.popleft()
        hop = self._ring.hop
        self._ring.skip(slot, -self._ring.ends[slot] % hop)  # its sample 0 is where a window may begin
        satellite.slot, satellite.name, satellite.rate = slot, header.name, header.rate
        satellite.begun = satellite.looked_at = time.monotonic()
        decoder = PcmDecoder(header.format, header.channels)
        satellite.most = max(HEADER_BYTES, round(CHUNK_S * header.rate) * decoder.frame)
        if satellite.most > len(self._scratch):
            self._scratch = bytearray(satellite.most)
        self._names.add(header.name)
        self._by_slot[slot] = satellite
        self.active += 1
        self.due[slot] = self._expected[slot] = self._ring.ends[slot] + WINDOW
        self.arrivals[slot] = Arrival(self._ring.ends[slot], satellite.begun)
        self._decode_into(satellite, header, decoder)
        self.news.append(Joined(slot, header.name, self._ring.ends[slot], header.rate, header.channels, header.passing))
        self._wake()
        self._send(satellite, self._hello(header.name))

    def _decode_into(self, satellite: Satellite, header: Header, decoder: PcmDecoder) -> None:
        """Makes the satellite's `take` and `finish`, which have all they need at hand."""
        channel = None if header.channel == "mix" else header.channel - 1
        append, convert = self._ring.appender(satellite.slot), resampler(header.rate)
        may_be_no_number = FORMATS[header.format][0] == "<f4"

        def put(samples: Samples) -> None:
            append(memoryview(samples).cast("B"))  # type: ignore[arg-type]

        def take(chunk: memoryview) -> None:
            """Raises ValueError for a sample that is none."""
            frames = decoder.frames(chunk)
            if may_be_no_number and not np.isfinite(frames).all():
                raise ValueError("sent a sample that is not a number (NaN or infinite)")
            satellite.taken += len(frames)
            samples = convert.resample_chunk(mono(frames, channel))
            if samples.size:
                put(samples)

        def finish() -> None:
            """What the resampler holds back, and a second of silence."""
            nonlocal convert
            if satellite.taken:
                last = convert.resample_chunk(np.zeros(0, np.float32), last=True)
                put(np.concatenate([last, self._silence]))
                convert = resampler(header.rate)

        satellite.take, satellite.finish = take, finish

    # --- going ---

    def _refuse(self, satellite: Satellite, reason: str) -> None:
        self._send(satellite, unnumbered(Refused(reason=reason)))
        self._close(satellite)

    def _hear_no_more(self, satellite: Satellite) -> None:
        """It hung up, or only sends no more: then it is told of what it sent until all of it is scored."""
        if satellite.slot < 0 or satellite.finished:
            self._part_with(satellite, HUNG_UP)
            return
        satellite.finished = True
        self._epoll.modify(satellite.connection, _interest(satellite))
        self._end(satellite, HUNG_UP)

    def _part_with(self, satellite: Satellite, reason: str) -> None:
        """Whether it went or we no longer listen to it, which it is told then."""
        if satellite.slot >= 0 and reason != HUNG_UP:
            self._send(satellite, unnumbered(Refused(reason=reason)))
        self._close(satellite)
        if satellite.slot >= 0:
            self._by_slot.pop(satellite.slot, None)
            if not satellite.finished:
                self._end(satellite, reason)

    def _end(self, satellite: Satellite, reason: str) -> None:
        """No more of its audio will come."""
        self.active -= 1
        if not satellite.paused:
            self._make_up_silence(satellite)
        heard = satellite.taken * SAMPLE_RATE // satellite.rate
        self.news.append(Left(satellite.slot, reason, heard))
        self._wake()

    def _close(self, satellite: Satellite) -> None:
        descriptor = satellite.connection.fileno()
        if self._satellites.pop(descriptor, None) is None:
            return
        if satellite in self._waiting:
            self._waiting.remove(satellite)
        with contextlib.suppress(OSError):
            self._epoll.unregister(descriptor)
        with contextlib.suppress(OSError):  # to close on what is not read yet would take back what was sent last
            satellite.connection.shutdown(socket.SHUT_WR)
            for _ in range(MOST_UNREAD):
                if not satellite.connection.recv_into(self._scratch):
                    break
        satellite.connection.close()

    # --- sending ---

    def _heed_bell(self, now: float) -> None:
        """Whatever other threads want."""
        with contextlib.suppress(OSError):
            os.read(self._bell, 4096)
        while self._adopted:
            self._take_in(self._adopted.popleft(), False, now)
        while self._outgoing:
            slot, line = self._outgoing.popleft()
            satellite = self._by_slot.get(slot)
            if satellite is not None:
                self._send(satellite, line)
        while self._released:
            slot, name = self._released.popleft()
            satellite = self._by_slot.pop(slot, None)
            if satellite is not None:
                self._close(satellite)
            self._names.discard(name)
            self._free.append(slot)

    def _send(self, satellite: Satellite, line: bytes) -> None:
        """What the satellite takes at once; of the rest so much is kept that a line is never torn."""
        if line and len(satellite.outbox) + len(line) > OUTBOX:
            return
        waiting = satellite.outbox + line
        try:
            sent = satellite.connection.send(waiting, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:  # that it is gone, reading from it tells
            return
        had_some, satellite.outbox = bool(satellite.outbox), waiting[sent:]
        if had_some != bool(satellite.outbox) and not satellite.waits_until:
            self._epoll.modify(satellite.connection, _interest(satellite))

    # --- doors ---

    def _open(self, address: Address) -> None:
        door = bind_address(address, "listen.on", self._group)
        if address.path is not None:
            self._files.append(SocketFile(address.path))
        self._doors[door.fileno()] = (door, address)
        self._epoll.register(door, select.EPOLLIN)

    def _close_bell(self) -> None:
        self._epoll.close()
        ours = self._bell, self._rope
        self._bell = self._rope = -1  # before they are closed: another file may have these numbers next
        for descriptor in ours:
            os.close(descriptor)

    def _close_doors(self) -> None:
        for file in self._files:
            file.remove()
        for door, _ in self._doors.values():
            door.close()
        self._doors, self._files = {}, []


def _allow_descriptors(more: int) -> None:
    """Raises this process's limit on open files where it is too low for so many connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + SPARE_DESCRIPTORS
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a sandbox forbids it: then so many as the limit allows
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def _interest(satellite: Satellite) -> int:
    return (0 if satellite.finished else select.EPOLLIN) | (select.EPOLLOUT if satellite.outbox else 0)
