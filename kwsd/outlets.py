"""Where events go and what is served: sinks, hooks, page, metrics, Wyoming; for a configuration, and then another."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwsd import __version__
from kwsd.address import Address
from kwsd.config import ClipsConfig, Config, HttpConfig, WyomingConfig
from kwsd.door import check_group, check_place, events_path, make_events_folder, try_door
from kwsd.event import BrokerLost, BrokerRestored, Event, HookFailed, Line, Scores, StatusNow, Verdict
from kwsd.ring import Samples
from kwsd.secret import read_secret
from kwsd.sinks import Sink
from kwsd.sinks.clips import Clips
from kwsd.sinks.hooks import Hook, Hooks
from kwsd.sinks.stdout import Stdout
from kwsd.sinks.unix_socket import Obey, UnixSocket
from kwsd.state import State

if TYPE_CHECKING:
    from kwsd.endpoint import Endpoint
    from kwsd.wyoming import Wyoming

log = logging.getLogger("kwsd")

MEGABYTE = 10**6


@dataclass(frozen=True)
class Deeds:
    """What the daemon does when an outlet asks for it, or tells of itself."""

    obey: Obey
    adopt: Callable[[socket.socket], Awaitable[None]]  # a satellite that came by Wyoming
    watched: Callable[[], None]  # `Outlets.watched` may have changed
    stdout_broke: Callable[[OSError], None]  # from the sink's thread
    hook_failed: Callable[[HookFailed], None]
    broker: Callable[[BrokerLost | BrokerRestored], None]


class Outlets:
    """`await outlets.open(config, secret)`; again for another configuration. What stays the same is left open."""

    def __init__(self, state: State, deeds: Deeds) -> None:
        self._state, self._deeds = state, deeds
        self._hooks = Hooks((), deeds.hook_failed, lambda name, how: state.counters.add("hooks", name, how))
        self._sinks: dict[str, Sink] = {}  # by what makes them what they are
        self._clips: Clips | None = None
        self._kept: tuple[ClipsConfig, str] | None = None  # how clips are, and where relative paths start
        self._endpoint: Endpoint | None = None
        self._wyoming: Wyoming | None = None
        self._served: HttpConfig | None = None  # how the endpoint is open
        self.secret = ""  # for it
        self._offered: WyomingConfig | None = None  # how Wyoming is
        self._config = state.config  # whose doors are open

    def __call__(self, event: Event, line: Line) -> None:
        """An event to all of them."""
        for sink in (*self._sinks.values(), *([self._endpoint] if self._endpoint else [])):
            sink(event, line)

    def scores(self, now: Scores, line: Line) -> None:
        """What the model says, to whoever wants it."""
        for shown in self._watchable():
            shown(now, line)

    def keep(self, verdict: Verdict, line: Line, window: Samples) -> None:
        """The sound of what was heard, where clips are kept."""
        if self._clips is not None:
            self._clips.keep(verdict, line, window)

    def note_streams(self) -> None:
        """There are streams now, of which no event tells before they bring audio."""
        for sink in self._sinks.values():
            if (look := getattr(sink, "look_again", None)) is not None:
                look()

    @property
    def watched(self) -> bool:
        """Whether anybody wants scores."""
        return any(shown.watched for shown in self._watchable())

    @property
    def problems(self) -> list[str]:
        """Why somebody may not be told."""
        found = (getattr(sink, "problem", None) for sink in (*self._sinks.values(), self._clips))
        return [problem for problem in found if problem]

    @property
    def are_open(self) -> bool:
        """Whether anybody is to be told anything."""
        return bool(self._sinks)

    def _watchable(self) -> "Iterator[UnixSocket | Endpoint]":
        """Where scores are told to whoever wants them."""
        yield from (sink for sink in self._sinks.values() if isinstance(sink, UnixSocket))
        if self._endpoint is not None:
            yield self._endpoint

    # --- opening and closing ---

    def check(self, config: Config) -> None:
        """Raises KwsdError for what would keep services from being opened, before those that are open are touched."""
        check_libraries(config)
        http_secret(config)
        now = self._config
        self.try_doors(config.http_addresses, now.http_addresses, "http.on", config.http.group)
        self.try_doors(config.wyoming_addresses, now.wyoming_addresses, "wyoming.on", config.wyoming.group)

    def try_doors(
        self, wanted: Sequence[Address], open_now: Sequence[Address], setting: str, group: str | None
    ) -> None:
        """Whether these can be had. Raises KwsdError if not, but not where a door of ours is in the way, which is
        closed first."""
        now = self._config
        ports = {a.port for a in (*now.addresses, *now.http_addresses, *now.wyoming_addresses) if a.path is None}
        if wanted:
            check_group(group, setting)
        paths = {address.path for address in open_now}
        for address in wanted:
            is_ours = address.path in paths if address.path else address.port in ports
            if not is_ours:
                try_door(address, setting, group)

    async def open(self, config: Config, secret: str) -> None:
        """Those of a config, the endpoint for who knows the secret. Raises KwsdError; then some are as in this config,
        and `open` with the one before, and its secret, goes back."""
        await self._open_sinks(config)
        if (config.sinks.clips, config.folder) != self._kept:
            await self._open_clips(config)
        if config.http != self._served or secret != self.secret:
            await self._open_endpoint(config, secret)
        if config.wyoming != self._offered:
            await self._open_wyoming(config)

    def adopt(self, config: Config, hooks: list[Hook]) -> None:
        """This config is the one that counts from now on, with its hooks."""
        self._config = config
        self._hooks.adopt(hooks)

    async def close(self) -> None:
        """Let readers have what is queued, then let go."""
        for service in (self._endpoint, self._wyoming):
            if service is not None:
                await service.close()
        clips = [self._clips.close()] if self._clips is not None else []
        await asyncio.gather(*clips, *(sink.close() for sink in self._sinks.values()))

    async def _open_sinks(self, config: Config) -> None:
        """What can be wrong is found before anything is touched."""
        make_mqtt = self._mqtt_maker(config)
        wanted = await self._opened_socket(config)
        if config.sinks.stdout:
            wanted["stdout"] = self._sinks.get("stdout") or Stdout(self._deeds.stdout_broke)
        wanted["hooks"] = self._hooks
        if make_mqtt is not None:
            key, make = make_mqtt
            before = [other for other in self._sinks if other.startswith("mqtt ") and other != key]
            wanted[key] = self._sinks.get(key) or make(self._sinks.pop(before[0]) if before else None)
        old, self._sinks = self._sinks, wanted
        for key, sink in old.items():
            if key not in wanted:
                await sink.close()

    async def _opened_socket(self, config: Config) -> dict[str, Sink]:
        """The events socket by its key, if there is to be one."""
        settings = config.sinks.socket
        if not settings.enabled:
            return {}
        place = events_path() if settings.path == "auto" else config.resolve(settings.path)
        if settings.path == "auto":
            make_events_folder(place)
        key = f"socket {place} {settings.queue} {settings.group} {settings.control}"
        if key in self._sinks:
            return {key: self._sinks[key]}
        check_place(place, "sinks.socket.path", settings.group)
        for other, sink in list(self._sinks.items()):
            if isinstance(sink, UnixSocket) and sink.path == place:
                del self._sinks[other]  # whatever comes next, it is closed
                await sink.close()
        opened = await self._open_socket(config, place)
        log.info("events on %s", place)
        return {key: opened}

    async def _open_socket(self, config: Config, place: Path) -> UnixSocket:
        settings = config.sinks.socket
        return await UnixSocket.open(
            place,
            settings.queue,
            self._state.hello,
            group=settings.group,
            watched=self._deeds.watched,
            obey=self._deeds.obey if settings.control else None,
        )

    def _mqtt_maker(self, config: Config) -> "tuple[str, Callable[[Any], Sink]] | None":
        """Its key, and what makes the sink, given the one before it."""
        if config.sinks.mqtt.broker is None:
            return None
        from kwsd.sinks.broker import read_broker
        from kwsd.sinks.mqtt import Host, Mqtt

        broker = read_broker(config.sinks.mqtt, config.resolve)
        host = Host(__version__, self.status, self._deeds.obey, self._deeds.broker)
        key = f"mqtt {config.sinks.mqtt} {config.folder} {broker.user} {broker.password} {broker.tls_files}"
        return key, lambda before: Mqtt(config.sinks.mqtt, broker, host, before)

    def status(self) -> StatusNow:
        """How the daemon is, and who is not told."""
        return self._state.status(self.problems)

    async def _open_clips(self, config: Config) -> None:
        """Keep the sound of what is heard where this config says. Raises KwsdError; then they are as before."""
        settings = config.sinks.clips
        folder = None if settings.folder is None else config.resolve(settings.folder)
        opened = None if folder is None else Clips(folder, settings.most_mb * MEGABYTE)
        before, self._clips = self._clips, opened
        self._kept = settings, config.folder
        if before is not None:
            await before.close()

    async def _open_endpoint(self, config: Config, secret: str) -> None:
        """Serve page and metrics where this config says; none if that cannot be."""
        before, self._endpoint, self._served = self._endpoint, None, None
        if before is not None:
            await before.close()
        if config.http.on:
            from kwsd.endpoint import Endpoint, Host

            state, deeds = self._state, self._deeds
            page = self.status if config.http.page else None
            host = Host(
                state.metrics, state.problems, state.hello, page, state.suggestion, deeds.obey, deeds.watched,
                lambda: self._clips, lambda: state.keywords,
            )  # fmt: skip
            self._endpoint = await Endpoint.open(config.http_addresses, config.http.group, host, secret)
            log.info("%smetrics and health on %s", "page, " if page else "", ", ".join(self._endpoint.addresses))
        self._served, self.secret = config.http, secret

    async def _open_wyoming(self, config: Config) -> None:
        """Serve Wyoming clients where this config says; none if that cannot be."""
        before, self._wyoming, self._offered = self._wyoming, None, None
        if before is not None:
            await before.close()
        if config.wyoming.on:
            from kwsd.wyoming import Host, Wyoming

            state = self._state
            host = Host(__version__, lambda: state.artefact.info.id, lambda: state.keywords, self._deeds.adopt)
            self._wyoming = await Wyoming.open(config.wyoming, config.wyoming_addresses, host)
            log.info("Wyoming clients on %s", ", ".join(self._wyoming.addresses))
        self._state.wyoming = tuple(self._wyoming.addresses) if self._wyoming else ()
        self._offered = config.wyoming


def check_libraries(config: Config) -> None:
    """Raises ConfigError for one that a service of the config wants and that is not installed."""
    if config.http.on:
        from kwsd import endpoint

        endpoint.check_libraries()
    if config.wyoming.on:
        from kwsd import wyoming

        wyoming.check_libraries(config.wyoming)


def http_secret(config: Config) -> str:
    """What the page asks for. Raises ConfigError if there is to be one and is none."""
    named = config.http.token_file
    return read_secret(named, config.resolve, "http.token_file") if named and config.http.on else ""
