"""kwsd as a wake-word service of the Wyoming protocol: `describe` and `info`; `detect`; `audio-start`, chunks of audio,
`audio-stop`; `detection` or `not-detected`. https://github.com/rhasspy/wyoming

Whatever a client sends between `audio-start` and `audio-stop` becomes a satellite like any other (listener.py): here it
is only translated. So all clients are scored in one batch, and the listener's limits hold for them.
"""

import asyncio
import contextlib
import importlib.util
import ipaddress
import itertools
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kwsd.address import Address
from kwsd.config import WyomingConfig
from kwsd.door import Doors
from kwsd.errors import UNAVAILABLE, ConfigError, KwsdError

if TYPE_CHECKING:
    from wyoming.event import Event
    from zeroconf.asyncio import AsyncZeroconf

log = logging.getLogger("kwsd")

MOST_CLIENTS = 256  # connections, whether they send audio or not
MOST_BYTES = 1 << 18  # of one message
ANSWER_S = 5.0  # a client that does not read so long is let go; the listener answers at once
TRY_AGAIN_S = 5.0  # after a refusal
FIRST_S = 10.0  # for a client to say something
ADDRESSES_S = 15.0  # how often is looked whether this machine has other addresses
KEEPALIVE_S = 60  # whether a client that says nothing is still there is asked so often
FORMATS = {2: "s16le", 4: "s32le"}  # by bytes per sample
FLUSH_S = 0.3  # how long `close` waits for clients, and ...
GOODBYE_S = 1.0  # ... until all were told three times that the service is gone
SERVICE = "_wyoming._tcp.local."
HOME = "https://github.com/rhasspy/wyoming"  # clients insist on an address for whom to thank


@dataclass(frozen=True)
class Host:
    """What the daemon has."""

    version: str
    model: Callable[[], str]
    keywords: Callable[[], Sequence[str]]
    adopt: Callable[[socket.socket], Awaitable[None]]  # takes the other end of a connection on which a satellite speaks


class Unfit(Exception):
    """What a client said makes no sense; it is told so."""


class Session:
    """What a client sends between `audio-start` and `audio-stop`, on its way to the listener."""

    def __init__(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter, begun_ms: int) -> None:
        self.incoming, self.outgoing, self.begun_ms = incoming, outgoing, begun_ms
        self.detected = False
        self.told: asyncio.Task[None] | None = None  # tells the client what is heard

    @classmethod
    async def open(
        cls, name: str, start: dict[str, Any], adopt: Callable[[socket.socket], Awaitable[None]]
    ) -> "Session":
        """Raises Unfit for audio that is none, KwsdError where the listener refuses it."""
        width = start.get("width")
        rate, channels = start.get("rate"), start.get("channels")
        if not all(isinstance(number, int) for number in (width, rate, channels)) or width not in FORMATS:
            raise Unfit(f"audio-start: {ascii(start)[:100]}; send rate, channels, and a width of 2 (or 4) bytes")
        header = {"name": name, "format": FORMATS[width], "rate": rate, "channels": channels, "passing": True}
        ours, theirs = socket.socketpair()
        try:
            ours.sendall(json.dumps(header).encode() + b"\n")
            await adopt(theirs)
        except (KwsdError, asyncio.CancelledError):
            ours.close()
            theirs.close()
            raise
        incoming, outgoing = await asyncio.open_connection(sock=ours)
        said = {"type": "refused", "reason": "kwsd does not answer; try again"}
        try:
            async with asyncio.timeout(ANSWER_S):
                said = json.loads(await incoming.readline() or b"null") or said
        except (OSError, TimeoutError):
            pass
        except asyncio.CancelledError:
            outgoing.close()
            raise
        if said["type"] == "refused":
            outgoing.close()
            raise KwsdError(said["reason"], exit_code=UNAVAILABLE)
        begun_ms = start.get("timestamp")
        return cls(incoming, outgoing, begun_ms if isinstance(begun_ms, int) else 0)

    async def send(self, audio: bytes) -> None:
        """Waits while the client is ahead of time."""
        with contextlib.suppress(OSError):  # the listener hung up: `told` says so
            self.outgoing.write(audio)
            await self.outgoing.drain()

    async def end(self) -> None:
        """Send no more, and wait until all of it is scored."""
        try:
            with contextlib.suppress(OSError):
                self.outgoing.write_eof()
            if self.told is not None:
                await self.told
        finally:
            self.close()

    def close(self) -> None:
        """Hang up."""
        if self.told is not None:
            self.told.cancel()
        self.outgoing.close()


class Client:
    """One connection."""

    def __init__(
        self, host: str, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter, service: "Wyoming"
    ) -> None:
        self._host, self._service = host, service
        self._incoming, self._outgoing = incoming, outgoing
        self._names: frozenset[str] | None = None  # None: any
        self._context: Any = None
        self._session: Session | None = None
        self._refused_at = -TRY_AGAIN_S  # monotonic s

    async def serve(self) -> None:
        """Until it hangs up, or says what cannot be understood."""
        from wyoming.error import Error

        patience: float | None = FIRST_S
        try:
            while True:
                event = await self._next_event(patience)
                patience = None
                if event is None:
                    return
                try:
                    await self._heed(event)
                except KwsdError as error:
                    await self._tell(Error(str(error)).event())
                except (ValueError, TypeError, RecursionError) as error:  # of what it said, whatever that is
                    raise Unfit(f"not understood: {error!r}") from None
        except Unfit as error:
            await self._tell(Error(str(error)).event())
        except OSError:
            pass  # it is gone
        finally:
            if self._session is not None:
                self._session.close()

    async def _next_event(self, patience: float | None) -> "Event | None":
        """None: it hung up. Raises Unfit for what is none, or none in so many seconds."""
        from wyoming.event import async_read_event

        try:
            async with asyncio.timeout(patience):
                event = await async_read_event(self._incoming)
        except Unfit:
            raise
        except asyncio.IncompleteReadError:
            return None
        except TimeoutError:
            raise Unfit(f"said nothing for {FIRST_S:g} s") from None
        except Exception as error:
            raise Unfit(f"not understood: {error!r}") from None
        if event is None and not self._incoming.at_eof():  # the library keeps to itself what it was
            raise Unfit("not understood: send lines of JSON, as the Wyoming protocol has them")
        return event

    async def _heed(self, event: "Event") -> None:
        data = event.data if isinstance(event.data, dict) else {}
        match event.type:
            case "describe":
                await self._tell(self._service.info())
            case "ping":
                await self._tell(_event("pong", {"text": data.get("text")}))
            case "detect":
                await self._choose(data)
            case "audio-start":
                await self._begin(data)
            case "audio-chunk":
                if self._session is None and time.monotonic() - self._refused_at >= TRY_AGAIN_S:
                    await self._begin(data)  # some begin without a word; or the daemon was reloaded
                if self._session is not None and event.payload:
                    await self._session.send(event.payload)
            case "audio-stop":
                await self._finish()

    async def _choose(self, data: dict[str, Any]) -> None:
        """Which keywords are to be told. Raises KwsdError for one we do not listen for."""
        names = data.get("names") or None
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise Unfit("detect: names is a list of words")
        self._names, self._context = frozenset(names) if names else None, data.get("context")
        known = self._service.host.keywords()
        missing = sorted((self._names or frozenset()) - set(known))
        if missing:
            unknown = ascii(", ".join(missing))[1:-1]
            raise KwsdError(f"detect: nobody listens for {unknown}; there are {', '.join(known)}")

    async def _begin(self, data: dict[str, Any]) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
        try:
            session = await Session.open(self._service.name_for(self._host), data, self._service.host.adopt)
        except KwsdError:
            self._refused_at = time.monotonic()
            raise
        session.told = asyncio.create_task(self._translate(session))
        self._session = session

    async def _finish(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.end()
        elif time.monotonic() - self._refused_at < TRY_AGAIN_S:
            return  # it was told so
        if session is None or not session.detected:
            await self._tell(_event("not-detected", {"context": self._context} if self._context is not None else {}))

    async def _translate(self, session: Session) -> None:
        """What the listener says, until it hangs up."""
        from wyoming.wake import Detection

        with contextlib.suppress(OSError, ValueError):
            while line := await session.incoming.readline():
                said = json.loads(line)
                if said["type"] == "detection" and (self._names is None or said["keyword"] in self._names):
                    session.detected = True
                    at_ms = session.begun_ms + round(said["end_s"] * 1000)
                    detection = Detection(name=said["keyword"], timestamp=at_ms, context=self._context)
                    await self._tell(detection.event())
        if self._session is session:  # it was not asked to: the daemon listens to something else now, or it was silent
            self._session = None

    async def _tell(self, event: "Event") -> None:
        from wyoming.event import async_write_event

        try:
            async with asyncio.timeout(ANSWER_S):
                await async_write_event(event, self._outgoing)
        except TimeoutError:
            self._outgoing.transport.abort()
        except (OSError, ValueError, RecursionError):
            pass  # it is gone, or what it wants back cannot be written


class Wyoming:
    """The service. Open it with `await Wyoming.open(…)`."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._doors = Doors("wyoming.on")
        self._numbers = itertools.count(1)
        self._clients: set[asyncio.Task[None]] = set()
        self._zeroconf: AsyncZeroconf | None = None
        self._announcing: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, config: WyomingConfig, addresses: Sequence[Address], host: Host) -> "Wyoming":
        """Raises ConfigError or KwsdError if an address cannot be had, or a library is not installed."""
        check_libraries(config)
        service = cls(host)
        try:
            for address in addresses:
                await service._doors.open(address, config.group, service._welcome)
            if config.zeroconf:
                await service._announce(config.zeroconf)
        except BaseException:
            await service.close()
            raise
        return service

    def _welcome(self) -> asyncio.BaseProtocol:
        return asyncio.StreamReaderProtocol(_Bounded(MOST_BYTES, asyncio.get_running_loop()), self._serve)

    @property
    def addresses(self) -> list[str]:
        """Where it really is served, with the ports the system chose."""
        return self._doors.addresses

    def name_for(self, host: str) -> str:
        """A stream that nobody else has."""
        return f"wyoming {host} {next(self._numbers)}"[:64]

    def info(self) -> "Event":
        """What this service is and can."""
        from wyoming.info import Attribution, Info, WakeModel, WakeProgram

        thanks = Attribution(name="kwsd", url=HOME)
        common: dict[str, Any] = {"attribution": thanks, "installed": True}
        models = [
            WakeModel(
                name=keyword,
                description=f"“{keyword}”",
                phrase=keyword,
                languages=[],
                version=self.host.model(),
                **common,
            )
            for keyword in self.host.keywords()
        ]
        program = WakeProgram(
            name="kwsd", description="Spoken commands", version=self.host.version, models=models, **common
        )
        return Info(wake=[program]).event()

    async def close(self) -> None:
        """Hang up, take the announcement back, and remove socket files that are still ours."""
        await self._doors.close()
        for task in self._clients:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=FLUSH_S)
        if self._announcing is not None:
            self._announcing.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._take_back(), GOODBYE_S)

    async def _serve(self, incoming: asyncio.StreamReader, outgoing: asyncio.StreamWriter) -> None:
        serving = asyncio.current_task()
        assert serving is not None
        if len(self._clients) >= MOST_CLIENTS:
            log.warning("Wyoming: there are %d clients already, and one more was sent away", MOST_CLIENTS)
            outgoing.close()
            return
        _keep_alive(outgoing.get_extra_info("socket"))
        self._clients.add(serving)
        peer = outgoing.get_extra_info("peername")
        try:
            await Client(peer[0] if isinstance(peer, tuple) else "local", incoming, outgoing, self).serve()
        except asyncio.CancelledError:
            pass  # the service closes
        finally:
            self._clients.discard(serving)
            if outgoing.transport.get_write_buffer_size():
                outgoing.transport.abort()
            outgoing.close()

    async def _announce(self, name: str) -> None:
        """By mDNS, for the addresses that others can reach, and anew whenever these change. Raises ConfigError if there
        can be none."""
        ports = {
            (name[0], name[1])
            for name in self._doors.names
            if not isinstance(name, str) and not ipaddress.ip_address(name[0]).is_loopback
        }
        if not ports:
            raise ConfigError("wyoming.zeroconf: no address in wyoming.on can be reached from other machines")
        host, port = sorted(ports)[0]
        addresses = _reached_at(host)
        await self._announce_at(name, (host, port), addresses)
        self._announcing = asyncio.create_task(self._keep_announced(name, (host, port), addresses))

    async def _keep_announced(self, name: str, door: tuple[str, int], addresses: Sequence[str]) -> None:
        """A network comes up later than we do, or gives us another address."""
        while True:
            await asyncio.sleep(ADDRESSES_S)
            with contextlib.suppress(ConfigError):  # it was announced before
                now = _reached_at(door[0])
                if now != addresses or (now and self._zeroconf is None):
                    addresses = now
                    await self._announce_at(name, door, now)

    async def _announce_at(self, name: str, door: tuple[str, int], addresses: Sequence[str]) -> None:
        """What was announced before no longer is. Where there is no network, it is when there is one."""
        from zeroconf import Error, InterfaceChoice
        from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

        await self._take_back()
        host, port = door
        address = ipaddress.ip_address(host)
        ask_for_all = address.is_unspecified or address.version == 6  # by netlink, which a sandbox may forbid
        try:
            info = AsyncServiceInfo(SERVICE, f"{name}.{SERVICE}", parsed_addresses=list(addresses), port=port)
            if not addresses:
                raise OSError("no network")
            self._zeroconf = AsyncZeroconf(interfaces=InterfaceChoice.All if ask_for_all else [host])
            await self._zeroconf.async_register_service(info, allow_name_change=True)
        except Error as error:
            await self._take_back()
            raise ConfigError(f"wyoming.zeroconf: {name}: cannot be announced ({error!r})") from None
        except (OSError, RuntimeError) as error:  # the latter: it finds no interface
            await self._take_back()
            log.warning("wyoming.zeroconf: %s: cannot be announced now (%s); tried again", name, error)

    async def _take_back(self) -> None:
        before, self._zeroconf = self._zeroconf, None
        if before is not None:
            await before.async_close()


def check_libraries(config: WyomingConfig) -> None:
    """Raises ConfigError for one that is not installed, or a name nobody could find."""
    for library in ("wyoming", *(("zeroconf",) if config.zeroconf else ())):
        if importlib.util.find_spec(library) is None:
            raise ConfigError(
                f"wyoming.on: {library} is not installed; pip install 'kwsd[wyoming]'", exit_code=UNAVAILABLE
            )


class _Bounded(asyncio.StreamReader):
    """Nobody makes us keep more than one message may have."""

    async def readexactly(self, n: int) -> bytes:
        """Raises Unfit for more than that."""
        if n > MOST_BYTES:
            raise Unfit(f"a message of {n} bytes; at most {MOST_BYTES}: send audio in smaller pieces")
        return await super().readexactly(n)


def _keep_alive(connection: socket.socket) -> None:
    """Without it, a satellite that lost its power would be there for ever."""
    if connection.family != socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)


def _event(kind: str, data: dict[str, Any]) -> "Event":
    from wyoming.event import Event

    return Event(type=kind, data=data)


def _reached_at(host: str) -> list[str]:
    """The addresses at which others reach what listens at one: of this machine, where it is any. Raises ConfigError if
    these cannot be had."""
    bound = ipaddress.ip_address(host)
    if not bound.is_unspecified:
        return [host]
    import ifaddr  # comes with zeroconf

    try:
        adapters = list(ifaddr.get_adapters())
    except OSError as error:
        raise ConfigError(
            f"wyoming.zeroconf: the addresses of this machine cannot be read ({error.strerror}); name one of IPv4 "
            "in wyoming.on, or under systemd add AF_NETLINK to RestrictAddressFamilies=",
            exit_code=UNAVAILABLE,
        ) from None
    found = [ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip for adapter in adapters for ip in adapter.ips]
    addresses = [ipaddress.ip_address(text) for text in found]
    return sorted(str(a) for a in addresses if not a.is_loopback and a.version <= bound.version)  # :: takes both
