"""kwsd over HTTP, on a UNIX socket or a port: a page for people, events and commands for scripts, metrics, health."""

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import msgspec

from kwsd.address import Address
from kwsd.artefact import UNKNOWN
from kwsd.control import Subscribe, parse
from kwsd.door import Doors
from kwsd.errors import UNAVAILABLE, ConfigError, KwsdError
from kwsd.event import Answer, Event, Line, Scores, StatusNow, unnumbered
from kwsd.metrics import Histogram, Metric
from kwsd.sinks.clips import Clips
from kwsd.sinks.reader import Reader
from kwsd.sinks.unix_socket import REOPENED, Obey

if TYPE_CHECKING:
    from aiohttp import web
    from prometheus_client import Metric as Family

PREFIX = "kwsd_"
SHUTDOWN_S = 0.3  # how long `close` waits for answers that are on their way
QUEUE = 256  # events kept for a reader that is slow
MOST_READERS = 64
MOST_CONNECTIONS = 128  # so that descriptors are left for all else; those of one turn are counted only after it
BACKLOG = 16  # of them
HEADER_S = 5.0  # for a connection to ask for something, whoever it is, and as long for what belongs to it
KEEP_S = 5.0  # between two requests on one connection
LINGER_S = 1.0  # for whoever still sends to see what was answered
VANISHED_MS = 45_000  # a reader of events whose network is gone is let go after three signs of life
LONGEST_COMMAND = 4096  # bytes
MOST_CLIPS = 50  # shown
ALIVE_S = 15.0  # a comment so often shows both sides that the other is there
FOLDER = Path(__file__).with_name("page")
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
OPEN = {"/page.css", "/icon.svg"}  # what is shown before anybody said who they are
YES_OR_NO = {"1": True, "true": True, "0": False, "false": False, "": False}
SAFE = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

T = TypeVar("T")
Metrics = Callable[[], Iterable[Metric | Histogram]]
Problems = Callable[[], Sequence[str]]  # none: all is well
Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


@dataclass(frozen=True)
class Host:
    """What the daemon shows and does."""

    metrics: Metrics
    problems: Problems
    hello: Callable[[], Line] = lambda: b"{}\n"
    status: Callable[[], StatusNow] | None = None  # None: there is no page
    suggestion: Callable[[], str] = str
    obey: Obey | None = None
    watched: Callable[[], None] = lambda: None  # `Endpoint.watched` may have changed
    clips: Callable[[], Clips | None] = lambda: None  # None: none are kept
    keywords: Callable[[], Sequence[str]] = tuple


def check_libraries() -> None:
    """Raises ConfigError for one that is not installed."""
    try:
        import aiohttp  # noqa: F401
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"http.on: {error.name} is not installed; pip install 'kwsd[http]'", exit_code=UNAVAILABLE
        ) from None


class Endpoint:
    """Serves what its host has. Open it with `await Endpoint.open(…)`."""

    def __init__(self, host: Host, token: str) -> None:
        self._host, self._token = host, token
        self._readers: set[Reader] = set()
        self._runner: web.AppRunner
        self._doors = Doors("http.on")
        self._silent: set[web.RequestHandler] = set()  # connections that are new and did not ask for anything yet
        self._obeying: set[asyncio.Future[Answer]] = set()
        self._closing = asyncio.Event()

    @classmethod
    async def open(cls, addresses: Sequence[Address], group: str | None, host: Host, token: str = "") -> "Endpoint":
        """With a token, whoever comes by TCP must know it.

        Raises ConfigError or KwsdError if an address cannot be had, or the libraries for it are not installed."""
        check_libraries()
        from aiohttp import web

        endpoint = cls(host, token)

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await endpoint._guard(request, handler)

        app = web.Application(middlewares=[guard], client_max_size=LONGEST_COMMAND)
        app.add_routes([web.get("/metrics", endpoint._metrics()), web.get("/healthz", endpoint._health)])
        if host.status is not None:
            app.add_routes([web.get(path, _file(*file)) for path, file in PAGE.items()])
            app.add_routes([
                web.get("/events", endpoint._events, allow_head=False),
                web.get("/status", endpoint._status),
                web.get("/suggestion", endpoint._suggestion),
                web.get("/clips", endpoint._list_clips),
                web.get("/clips/{place:.+}", endpoint._play_clip),
                web.post("/clips", endpoint._sort_clip),
                web.post("/command", endpoint._command),
                web.get("/login", _to_the_page),  # which is what a browser shows after a wrong secret
                web.post("/login", endpoint._login),
            ])  # fmt: skip
        endpoint._runner = web.AppRunner(
            app, access_log=None, logger=_logger(), shutdown_timeout=SHUTDOWN_S, handler_cancellation=True,
            keepalive_timeout=KEEP_S, lingering_time=LINGER_S,
        )  # fmt: skip
        await endpoint._runner.setup()
        try:
            for address in addresses:
                await endpoint._doors.open(address, group, endpoint._welcome, backlog=BACKLOG)
        except BaseException:
            await endpoint.close()
            raise
        return endpoint

    def __call__(self, event: Event | Scores, line: Line) -> None:
        """Queue an event for every reader that wants it."""
        for reader in self._readers:
            reader.tell(event, line)

    @property
    def watched(self) -> bool:
        """Whether a reader asked for scores."""
        return any(reader.wish.scores for reader in self._readers)

    @property
    def addresses(self) -> list[str]:
        """Where it really is served, with the ports the system chose."""
        return self._doors.addresses

    async def close(self) -> None:
        """Hang up, and remove socket files that are still ours."""
        self._closing.set()
        await self._doors.close()
        for reader in self._readers:
            reader.close()
        await self._runner.cleanup()

    def _welcome(self) -> asyncio.BaseProtocol:
        serve = self._runner.server
        assert serve is not None
        if len(serve.connections) >= MOST_CONNECTIONS:
            return _Away()
        connection = serve()
        self._silent.add(connection)
        asyncio.get_running_loop().call_later(HEADER_S, self._part_with_silent, connection)
        return connection

    def _part_with_silent(self, connection: "web.RequestHandler") -> None:
        if connection in self._silent and connection.transport is not None:
            connection.transport.abort()
        self._silent.discard(connection)

    # --- who may come ---

    async def _guard(self, request: "web.Request", handler: Handler) -> "web.StreamResponse":
        from aiohttp import http_exceptions, web

        self._silent.discard(request.protocol)
        by_tcp = not _is_local(request)
        if by_tcp and self._token and not self._knows_token(request) and request.path not in {"/login", *OPEN}:
            if request.path == "/" and self._host.status is not None:
                return _ask_for_token(200)
            raise web.HTTPUnauthorized(text="send the secret as Authorization: Bearer …\n")
        host = request.headers.get("Host", "")
        if by_tcp and not self._token and not _names_this_machine(host):
            raise web.HTTPForbidden(text="ask for 127.0.0.1 or localhost: another name may be a trick of a web page\n")
        if not by_tcp and _is_of_dns(host):  # the socket may be forwarded to a port
            raise web.HTTPForbidden(
                text="ask for 127.0.0.1, localhost or a name without a dot: another may be a trick of a web page; "
                "a proxy passes Host: localhost on, and no Origin\n"
            )
        origin = request.headers.get("Origin")
        if request.method == "POST" and origin and _host_of(origin) != host:
            raise web.HTTPForbidden(text="a page from elsewhere gives no commands\n")
        try:
            return await handler(request)
        except (web.RequestPayloadError, http_exceptions.HttpProcessingError):
            raise web.HTTPBadRequest(text="what was sent is not encoded as its headers say\n") from None

    def _knows_token(self, request: "web.Request") -> bool:
        kind, _, said = request.headers.get("Authorization", "").partition(" ")
        if kind == "Bearer" and _same(said.strip(), self._token):
            return True
        name, secret = self._cookie
        return _same(request.cookies.get(name, ""), secret)

    @property
    def _cookie(self) -> tuple[str, str]:
        """What a browser keeps instead of the token, and its name: cookies know no port, and another kwsd on the same
        host has one as well."""
        name, secret = (
            hmac.new(self._token.encode(), what, hashlib.sha256).hexdigest() for what in (b"its name", b"kwsd cookie")
        )
        return f"kwsd-{name[:8]}", secret

    async def _login(self, request: "web.Request") -> "web.Response":
        from aiohttp import web

        try:
            async with _in_time():
                said = str((await request.post()).get("token", ""))
        except (ValueError, LookupError, RuntimeError):  # no form, or in an encoding there is not
            raise web.HTTPBadRequest(text="send a form with the field token\n") from None
        if self._token and not _same(said.strip(), self._token):
            return _ask_for_token(401)
        answer = await _to_the_page(request)
        # Lax: also for who comes by a link from elsewhere. That is a GET, which changes nothing.
        answer.set_cookie(*self._cookie, httponly=True, samesite="Lax", max_age=365 * 24 * 3600)
        return answer

    # --- what is served ---

    def _metrics(self) -> Handler:
        from aiohttp import web
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

        registry = CollectorRegistry()
        registry.register(_Collector(self._host.metrics))

        async def show(_: web.Request) -> web.Response:
            return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        return show

    async def _health(self, _: "web.Request") -> "web.Response":
        wrong = list(self._host.problems())
        return _json(json.dumps({"ok": not wrong, "problems": wrong}) + "\n", 503 if wrong else 200)

    async def _status(self, _: "web.Request") -> "web.Response":
        assert self._host.status is not None
        return _json(msgspec.json.encode(self._host.status()).decode() + "\n")

    async def _suggestion(self, _: "web.Request") -> "web.Response":
        from aiohttp import web

        return web.Response(text=self._host.suggestion(), content_type="text/plain", headers=SAFE)

    async def _command(self, request: "web.Request") -> "web.Response":
        """The same commands as on the socket, but for `subscribe`: that is /events."""
        from aiohttp import web

        body = await _json_of(request)
        try:
            command = parse(body)
        except ConfigError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        if isinstance(command, Subscribe) or self._host.obey is None:
            raise web.HTTPBadRequest(text="subscribe: get /events instead\n")
        obeying = asyncio.ensure_future(self._host.obey(command))
        self._obeying.add(obeying)
        obeying.add_done_callback(self._obeying.discard)
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait([obeying, closing], return_when=asyncio.FIRST_COMPLETED)
        finally:  # also where the client has hung up
            closing.cancel()
        if not obeying.done():  # it is the reload that closes this, and cannot be waited for
            raise web.HTTPServiceUnavailable(text=f"{REOPENED}\n")
        answer = obeying.result()
        return _json(unnumbered(answer).decode(), 200 if answer.ok else 400)

    async def _list_clips(self, _: "web.Request") -> "web.Response":
        """The newest, and what they may have been; null where none are kept."""
        kept = self._host.clips() is not None
        latest = await self._of_clips(lambda clips: clips.latest(MOST_CLIPS)) if kept else None
        return _json(msgspec.json.encode({"clips": latest, "words": self._words()}).decode() + "\n")

    def _words(self) -> tuple[str, ...]:
        return (*self._host.keywords(), UNKNOWN)

    async def _play_clip(self, request: "web.Request") -> "web.StreamResponse":
        from aiohttp import web

        path = await self._of_clips(lambda clips: clips.path_of(request.match_info["place"]))
        return web.FileResponse(path, headers={"Content-Type": "audio/wav"} | SAFE)

    async def _sort_clip(self, request: "web.Request") -> "web.Response":
        """`{"clip": "heard/stop/….wav", "word": "stop"}`, or _unknown_: none of the words."""
        from aiohttp import web

        body = await _json_of(request)
        try:
            wish = msgspec.json.decode(body, type=_Sorting)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise web.HTTPBadRequest(text=f'not understood ({error}); send {{"clip": …, "word": …}}\n') from None
        if wish.word not in self._words():
            raise web.HTTPBadRequest(text=f"{wish.word!r}: one of {', '.join(self._words())}\n")
        await self._of_clips(lambda clips: clips.sort(wish.clip, wish.word))
        return _json('{"ok": true}\n')

    async def _of_clips(self, ask: Callable[[Clips], T]) -> T:
        """What the clips say, aside, as their disk may hang. Raises HTTPException where there are none, or not that
        one."""
        from aiohttp import web

        clips = self._host.clips()
        try:
            if clips is None:
                raise KwsdError("no clips are kept; name a folder in sinks.clips.folder")
            return await asyncio.to_thread(ask, clips)
        except KwsdError as error:
            raise web.HTTPNotFound(text=f"{error}\n") from None
        except OSError as error:
            raise web.HTTPServiceUnavailable(text=f"nobody can look for clips now ({error.strerror})\n") from None

    async def _events(self, request: "web.Request") -> "web.StreamResponse":
        """Server-sent events: `?types=detection&streams=kitchen&keywords=stop&scores=1`, commas between several."""
        from aiohttp import web

        if len(self._readers) >= MOST_READERS:
            raise web.HTTPServiceUnavailable(text=f"there are {MOST_READERS} readers already\n")
        reader = Reader(QUEUE, self._host.hello())
        reader.wish = _wish(request)
        if not _is_local(request) and request.transport is not None:
            connection = request.transport.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MS)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"} | SAFE)
        self._readers.add(reader)
        self._host.watched()
        try:
            await answer.prepare(request)
            await _stream(reader, answer)
        except ConnectionError:
            pass  # gone
        finally:
            self._readers.discard(reader)
            self._host.watched()
        return answer


@contextlib.asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    """For the body of a request. Raises HTTPRequestTimeout: who never sends it would keep others out."""
    from aiohttp import web

    try:
        async with asyncio.timeout(HEADER_S):
            yield
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"send all of it within {HEADER_S:g} s\n") from None


async def _json_of(request: "web.Request") -> bytes:
    """The body. Raises HTTPException for another type, or where it does not come."""
    from aiohttp import web

    if request.content_type != "application/json":  # which no page from elsewhere can send unasked
        raise web.HTTPUnsupportedMediaType(text="send Content-Type: application/json\n")
    async with _in_time():
        return await request.read()


async def _stream(reader: Reader, answer: "web.StreamResponse") -> None:
    """Lines as events, and signs of life in between."""
    lines = reader.lines()
    coming = asyncio.ensure_future(anext(lines, None))
    try:
        while True:
            done, _ = await asyncio.wait({coming}, timeout=ALIVE_S)
            if not done:
                await answer.write(b": all is quiet\n\n")
                continue
            line = coming.result()
            if line is None:
                return
            kind = msgspec.json.decode(line, type=_Typed).type
            await answer.write(f"event: {kind}\ndata: ".encode() + line + b"\n")
            coming = asyncio.ensure_future(anext(lines, None))
    finally:
        coming.cancel()


class _Typed(msgspec.Struct):
    type: str


class _Sorting(msgspec.Struct, forbid_unknown_fields=True):
    clip: str
    word: str


def _wish(request: "web.Request") -> Subscribe:
    """Raises HTTPBadRequest for an event or setting there is not."""
    from aiohttp import web

    said = {
        name: [part for text in request.query.getall(name) for part in text.split(",") if part]
        for name in request.query
        if name != "scores"
    }
    scores = request.query.get("scores", "0")
    if scores not in YES_OR_NO:
        raise web.HTTPBadRequest(text=f"scores: {scores!r}: 1 or 0\n")
    command = {"command": "subscribe", "scores": YES_OR_NO[scores]} | said
    try:
        wish = parse(json.dumps(command).encode())
    except ConfigError as error:
        raise web.HTTPBadRequest(text=f"{error}\n") from None
    assert isinstance(wish, Subscribe)
    return wish


def _logger() -> logging.Logger:
    """For what aiohttp has to say, but not of what is no HTTP: whoever sent that was told."""
    from aiohttp.http_exceptions import BadHttpMessage
    from aiohttp.web import RequestPayloadError

    def is_ours(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], BadHttpMessage | RequestPayloadError))

    logger = logging.getLogger("kwsd.http")
    if not logger.filters:
        logger.addFilter(is_ours)
    return logger


def _file(name: str, kind: str) -> Handler:
    body = (FOLDER / name).read_bytes()

    async def show(_: "web.Request") -> "web.Response":
        from aiohttp import web

        return web.Response(body=body, content_type=kind, charset="utf-8", headers=SAFE)

    return show


def _json(text: str, status: int = 200) -> "web.Response":
    from aiohttp import web

    return web.Response(text=text, status=status, content_type="application/json", headers=SAFE)


def _ask_for_token(status: int) -> "web.Response":
    from aiohttp import web

    wrong = '<p role="alert" class="wrong">That is not the secret.</p>' if status == 401 else ""
    page = (FOLDER / "login.html").read_text(encoding="utf-8").replace("<!-- wrong -->", wrong)
    return web.Response(status=status, text=page, content_type="text/html", headers=SAFE)


async def _to_the_page(_: "web.Request") -> "web.Response":
    from aiohttp import web

    return web.Response(status=303, headers={"Location": "/"} | SAFE)


def _same(said: str, secret: str) -> bool:
    return hmac.compare_digest(said.encode(errors="surrogatepass"), secret.encode())


def _is_local(request: "web.Request") -> bool:
    """Whether it came through a UNIX socket, whose mode says who may."""
    connection = request.transport.get_extra_info("socket") if request.transport else None
    return connection is not None and connection.family == socket.AF_UNIX


def _host_of(address: str) -> str:
    """With its port; empty for what is no address."""
    with contextlib.suppress(ValueError):
        return urlsplit(address).netloc
    return ""


def _names_this_machine(host: str) -> bool:
    """Whether a Host header is an address of this machine, and no name that somebody else's DNS turns into it."""
    name = ""
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        return ipaddress.ip_address(name).is_loopback
    return name == "localhost"


def _is_of_dns(host: str) -> bool:
    """Whether a Host header is a name that somebody's DNS may turn into any address."""
    name = host
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        ipaddress.ip_address(name)
        return False
    return "." in name


class _Away(asyncio.Protocol):
    """Nobody is at home for one connection more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hang up."""
        transport.close()


class _Collector:
    """What prometheus_client asks at every scrape."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def describe(self) -> "Iterator[Family]":
        """Nothing: it would ask for all metrics before there are any."""
        return iter(())

    def collect(self) -> "Iterator[Family]":
        """Every metric in its own words."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for metric in self._metrics():
            if isinstance(metric, Histogram):
                buckets = [("+Inf" if most == float("inf") else str(most), count) for most, count in metric.buckets]
                yield HistogramMetricFamily(PREFIX + metric.name, metric.about, buckets=buckets, sum_value=metric.total)
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(PREFIX + metric.name, metric.about, labels=metric.labels)
            for labels, value in metric.values.items():
                family.add_metric(labels, value)
            yield family
