"""The daemon: wires sources, pipeline and sinks together; owns lifecycle, signals and reload."""

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from kwsd import __version__
from kwsd.address import Address
from kwsd.artefact import Artefact, ArtefactInfo, read_artefact
from kwsd.aside import DaemonThreads
from kwsd.config import Config, keywords_yaml
from kwsd.control import Adjustments, Command, Mute, ReloadConfig, Status, Threshold, Unmute, check_known
from kwsd.door import check_group, check_place, try_door
from kwsd.engines import make_spotter
from kwsd.errors import INTERNAL, IO, OK, UNAVAILABLE, AudioError, KwsdError
from kwsd.event import (
    VERSION,
    Answer,
    AudioEvent,
    AudioFault,
    AudioHealed,
    AudioLost,
    AudioRestored,
    BrokerLost,
    BrokerRestored,
    Event,
    Heard,
    Heartbeat,
    Hello,
    HookFailed,
    KeywordState,
    Line,
    Muted,
    Overload,
    Ready,
    Reload,
    Scores,
    Shutdown,
    Stamp,
    StatusNow,
    StreamJoined,
    StreamLeft,
    StreamState,
    ThresholdSet,
    unnumbered,
)
from kwsd.listening import Listening, Reports, make_sources, read_token
from kwsd.log import UNLIMITED
from kwsd.memory import Memory
from kwsd.metrics import Counters, Histogram, Labels, Metric, lag_histogram, lines
from kwsd.pipeline import Progress, make_rules
from kwsd.secret import read_secret
from kwsd.sinks import Sink
from kwsd.sinks.hooks import Hook, Hooks, make_hooks
from kwsd.sinks.stdout import Stdout
from kwsd.sinks.unix_socket import UnixSocket, default_path
from kwsd.source import Source
from kwsd.spotter import Spotter
from kwsd.systemd import Notifier

if TYPE_CHECKING:
    from kwsd.endpoint import Endpoint
    from kwsd.wyoming import Wyoming

log = logging.getLogger("kwsd")

T = TypeVar("T")

STOPPING = KwsdError("kwsd is stopping", exit_code=UNAVAILABLE)
TWICE_S = 0.1  # timeout(1) sends its signal to the process and then to the group: to us that is one
LIBRARIES = ("aiomqtt", "paho", "aiohttp", "zeroconf")
SOUND_S = 5.0  # the sound system has so long to open the devices of a new configuration
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # of descriptors or memory, for a new connection
STALE_S = 5.0  # without a window scored, where audio ought to come, all is not well
NAMED = 8  # streams: of more the status names so many


class Stopped(Exception):
    """The daemon was asked to stop while it waited for something."""


def run(load: Callable[[], Config]) -> int:
    """Run until a signal, the end of all audio, or a failure; the exit code. `load` reads the configuration."""
    daemon = Daemon(load)
    code = asyncio.run(daemon.main())
    if daemon.loading:  # torch is half imported in a thread, and cannot be waited for
        os._exit(code)
    return code


class Daemon:
    """One run of `kwsd run`."""

    def __init__(self, load: Callable[[], Config]) -> None:
        self._load = load
        self._config = load()
        self.loading = False
        self._notifier = Notifier()
        self._stamp = Stamp()
        self._sinks: dict[str, Sink] = {}
        self._stop = asyncio.Event()
        self._reason = "end of audio"
        self._failure: KwsdError | None = None
        self._ready = False
        self._detections = 0
        self._said_goodbye = False  # no event comes after the last
        self._last_heard = ""
        self._listening: Listening | None = None
        self._refused = ""
        self._reload_wanted = False
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._born = time.monotonic()
        self._asked_at = 0.0  # to stop, monotonic s
        self._next_beat: asyncio.TimerHandle | None = None
        self._counters = Counters()
        self._memory = Memory()
        self._adjustments = Adjustments(self._memory.muting())
        self._hooks = Hooks((), self._on_hook_failed, self._count_hook)
        self._endpoint: Endpoint | None = None
        self._http_token = ""
        self._wyoming: Wyoming | None = None

    async def main(self) -> int:
        """Startup, main loop, shutdown. Raises KwsdError for what went wrong."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(DaemonThreads())
        self._capture_signals()
        self._capture_faults()
        try:
            await self._start_up()
            await self._stop.wait()
        except Stopped:
            pass
        except KwsdError as error:
            self._failure = error
            self._reason = str(error)
        await self._shut_down()
        if self._failure is not None:
            raise self._failure
        return OK

    # --- startup ---

    async def _start_up(self) -> None:
        """What fails fast comes first: the model's metadata, devices, sockets; then torch; then sound."""
        config = self._config
        self._artefact = artefact = self._read_artefact(config)
        make_rules(config, artefact.info)
        hooks = self._make_hooks(config, artefact.info)
        listening = Listening(config, self._reports())
        await self._open_sinks(config)
        self._hooks.adopt(hooks)
        await self._open_endpoint(config, http_token(config))
        await self._open_wyoming(config)
        self._spotter: Spotter = await self._in_thread(lambda: make_spotter(artefact, config.device))
        self._listening = listening
        self._see_who_watches()
        listening.start(self._spotter, self._welcome)
        if self._reload_wanted:
            self._on_reload_signal()
        log.info("listening on %s with %s", self._where(), config.model_path)

    def _read_artefact(self, config: Config) -> Artefact:
        return read_artefact(config.model_path, config.model_sha256)

    async def _open_sinks(self, config: Config) -> None:
        """Those of a config; what can be wrong is found before anything is touched.

        Raises KwsdError."""
        make_mqtt = self._mqtt_maker(config)
        wanted = await self._opened_socket(config)
        if config.sinks.stdout:
            wanted["stdout"] = self._sinks.get("stdout") or Stdout(self._stdout_broke)
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
        """The events socket by its key, if there is to be one. Raises KwsdError."""
        settings = config.sinks.socket
        if not settings.enabled:
            return {}
        place = default_path() if settings.path == "auto" else config.resolve(settings.path)
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

    async def _open_endpoint(self, config: Config, token: str) -> None:
        """Serve page and metrics where this config says, to who knows the token; raises KwsdError, and serves none, if
        that cannot be."""
        before, self._endpoint = self._endpoint, None
        if before is not None:
            await before.close()
        if config.http.on:
            from kwsd.endpoint import Endpoint, Host

            http = config.http
            page = self._status_now if http.page else None
            host = Host(
                self._metrics,
                self._problems,
                self._hello,
                page,
                self._suggestion,
                self._obey,
                self._see_who_watches,
            )
            self._endpoint = await Endpoint.open(config.http_addresses, http.group, host, token)
            self._http_token = token
            log.info("metrics and health on %s", ", ".join(self._endpoint.addresses))

    async def _open_wyoming(self, config: Config) -> None:
        """Serve Wyoming clients where this config says; raises KwsdError, and serves none, if that cannot be."""
        before, self._wyoming = self._wyoming, None
        if before is not None:
            await before.close()
        if config.wyoming.on:
            from kwsd.wyoming import Host, Wyoming

            host = Host(__version__, lambda: self._artefact.info.id, self._keywords, self._adopt)
            self._wyoming = await Wyoming.open(config.wyoming, config.wyoming_addresses, host)
            log.info("Wyoming clients on %s", ", ".join(self._wyoming.addresses))

    def _adopt(self, connection: socket.socket) -> None:
        if self._listening is None or self._stop.is_set():
            raise KwsdError("kwsd is still starting, or stopping; try again", exit_code=UNAVAILABLE)
        self._listening.adopt(connection)

    async def _open_socket(self, config: Config, place: Path) -> UnixSocket:
        settings = config.sinks.socket
        return await UnixSocket.open(
            place,
            settings.queue,
            self._hello,
            group=settings.group,
            watched=self._see_who_watches,
            obey=self._obey if settings.control else None,
        )

    def _mqtt_maker(self, config: Config) -> "tuple[str, Callable[[Any], Sink]] | None":
        """Its key, and what makes the sink, given the one before it. Raises ConfigError for what would forbid that."""
        if config.sinks.mqtt.broker is None:
            return None
        from kwsd.sinks.mqtt import Host, Mqtt, read_broker

        broker = read_broker(config.sinks.mqtt, config.resolve)
        host = Host(__version__, self._status_now, self._obey, self._on_broker)
        key = f"mqtt {config.sinks.mqtt} {config.folder} {broker.user} {broker.password}"
        return key, lambda before: Mqtt(config.sinks.mqtt, broker, host, before)

    def _on_broker(self, event: BrokerLost | BrokerRestored) -> None:
        self._emit(event)

    def _see_who_watches(self) -> None:
        """Scores are told only while somebody wants them."""
        if self._listening is not None:
            self._listening.watched = any(shown.watched for shown in self._watchable())

    def _watchable(self) -> "Iterator[UnixSocket | Endpoint]":
        """Where scores are told to whoever wants them."""
        yield from (sink for sink in self._sinks.values() if isinstance(sink, UnixSocket))
        if self._endpoint is not None:
            yield self._endpoint

    def _on_scores(self, scores: tuple[Scores, ...]) -> None:
        for now in scores:
            if now.stream not in self._adjustments.muting:
                line = unnumbered(now)
                for shown in self._watchable():
                    shown(now, line)

    def _reports(self) -> Reports:
        def alive() -> None:
            """By way of the main thread: that one must be alive as well."""
            if self._notifier.is_due:
                self._loop.call_soon_threadsafe(self._notifier.alive)

        def progress(progress: Progress) -> None:
            if len(progress.scored):
                alive()
            if progress.heard or progress.overruns or not self._ready:
                self._loop.call_soon_threadsafe(self._on_progress, progress)

        def audio(event: AudioEvent, failure: KwsdError | None) -> None:
            self._loop.call_soon_threadsafe(self._on_audio, event, failure)

        def over(failure: KwsdError | None) -> None:
            self._loop.call_soon_threadsafe(self._on_over, failure)

        def satellite(event: StreamJoined | StreamLeft) -> None:
            self._loop.call_soon_threadsafe(self._on_satellite, event)

        def overload(event: Overload) -> None:
            self._loop.call_soon_threadsafe(self._on_overload, event)

        def scores(scores: tuple[Scores, ...]) -> None:
            self._loop.call_soon_threadsafe(self._on_scores, scores)

        def idle() -> None:
            alive()
            if not self._ready:
                self._loop.call_soon_threadsafe(self._now_ready)

        def then(call: Callable[[], None]) -> None:
            self._loop.call_soon_threadsafe(call)

        return Reports(progress, audio, over, satellite, overload, scores, idle, then)

    async def _in_thread(
        self, work: Callable[[], T], within_s: float | None = None, late: Callable[[T], None] = lambda _: None
    ) -> T:
        """Run slow work aside, and give what comes of it too late to somebody else.

        Raises what it raises, Stopped if a signal came first, or KwsdError if it takes longer than it may.
        """
        done: asyncio.Future[T] = self._loop.create_future()

        def deliver(result: T | None, error: Exception | None) -> None:
            self.loading = False
            if done.cancelled():
                if error is None:
                    late(result)  # type: ignore[arg-type]
                return
            done.set_exception(error) if error else done.set_result(result)  # type: ignore[arg-type]

        def body() -> None:
            result, error = None, None
            try:
                result = work()
            except Exception as raised:
                error = raised
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(deliver, result, error)

        self.loading = True
        threading.Thread(target=body, name="loading", daemon=True).start()
        stopping = asyncio.ensure_future(self._stop.wait())
        either: list[asyncio.Future[Any]] = [done, stopping]
        await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if done.done():
            return done.result()
        done.cancel()
        if self._stop.is_set():
            raise Stopped
        raise KwsdError(f"the sound system does not answer within {within_s:g} s", exit_code=UNAVAILABLE)

    # --- main loop ---

    def _on_progress(self, progress: Progress) -> None:
        if len(progress.scored):
            self._now_ready()
        for overrun in progress.overruns:
            log.warning(
                "overrun on %s: %d windows were skipped, %d samples lost, and the sound system dropped audio %d times",
                overrun.stream,
                overrun.skipped_windows,
                overrun.lost_samples,
                overrun.device_overflows,
            )
            self._emit(overrun)
        for heard in progress.heard:
            if heard.stream in self._adjustments.muting:
                continue
            if isinstance(heard, Heard):
                self._detections += 1
                self._last_heard = f"; last heard: {heard.keyword}"
                self._notifier.status(self._status())
            if isinstance(heard, Heard) or self._config.events.rejected:
                self._emit(heard)
            else:
                self._counters.note(heard)

    def _now_ready(self) -> None:
        """Audio reached the model, or satellites may come."""
        if self._ready:
            return
        self._ready = True
        self._emit(Ready(model=self._artefact.info.id, keywords=self._keywords(), streams=self._names()))
        for name in self._names():
            if name in self._adjustments.muting:  # since before it was started, mostly
                log.info("%s is muted", name)
                self._emit(Muted(stream=name, muted=True))
        self._notifier.ready(self._status())
        log.info("ready")
        self._beat()

    def _beat(self) -> None:
        """Tell how things are, now and every `heartbeat_s`; called again when a reload changes that."""
        if self._next_beat is not None:
            self._next_beat.cancel()
            self._next_beat = None
        if self._config.events.heartbeat_s and self._ready:
            lags = self._running().lags()
            self._emit(
                Heartbeat(
                    uptime_s=round(time.monotonic() - self._born, 1),
                    detections=self._detections,
                    windows=lags.windows,
                    lag_p99_ms=lags.percentile_ms(99.0),
                    streams=self._states(),
                )
            )
            self._next_beat = self._loop.call_later(self._config.events.heartbeat_s, self._beat)

    def _on_audio(self, event: AudioEvent, failure: KwsdError | None) -> None:
        if self._stop.is_set():  # a source that ends while it is being stopped has lost nothing
            return
        if failure is not None and failure.exit_code == OK:  # worth a word, but everything there was has been heard
            log.warning("%s", failure)
            return
        match event:
            case AudioLost() if self._running().goes_on:  # else it is the last line, which the caller writes
                log.warning("no audio from %s: %s", event.stream, event.reason)
            case AudioRestored():
                log.info("audio from %s again, after %.1f s", event.stream, event.gap_s)
            case AudioFault():
                log.warning("%s is deaf: %s; %s", event.stream, event.fault, event.meaning)
            case AudioHealed():
                log.info("%s hears again; %s for %.0f s", event.stream, event.fault, event.lasted_s)
        self._emit(event)
        self._notifier.status(self._status())

    def _on_satellite(self, event: StreamJoined | StreamLeft) -> None:
        if isinstance(event, StreamJoined):
            log.info("satellite %s: %d Hz, %d channels", event.stream, event.rate, event.channels)
        else:
            log.info("stream %s: %s after %.1f s of audio", event.stream, event.reason, event.heard_s)
        self._emit(event)
        if isinstance(event, StreamJoined) and event.stream in self._adjustments.muting:
            self._emit(Muted(stream=event.stream, muted=True))
        self._notifier.status(self._status())

    def _on_overload(self, event: Overload) -> None:
        log.warning("a window every %g ms now; the last second's were up to %s ms late", event.hop_ms, event.lag_ms)
        self._emit(event)

    def _on_hook_failed(self, event: HookFailed) -> None:
        log.warning("%s: %s", event.hook, event.reason)
        self._emit(event)

    def _count_hook(self, name: str, how: str) -> None:
        self._counters.add("hooks", name, how)

    def _on_over(self, failure: KwsdError | None) -> None:
        wrong = failure if failure and failure.exit_code != OK else None
        self._end(str(wrong) if wrong else "end of audio", wrong)

    def _stdout_broke(self, error: OSError) -> None:
        """Called from the sink's thread."""
        failure = None
        if not isinstance(error, BrokenPipeError):
            failure = KwsdError(f"stdout: cannot be written ({error.strerror})", exit_code=IO)
        self._loop.call_soon_threadsafe(self._on_stdout_broken, failure)

    def _on_stdout_broken(self, failure: KwsdError | None) -> None:
        if self._stop.is_set():  # its last lines could not be written: worth an exit code nevertheless
            self._failure = self._failure or failure
        self._end(str(failure or "stdout closed"), failure)

    def _end(self, reason: str, failure: KwsdError | None = None) -> None:
        if not self._stop.is_set():
            self._reason, self._failure = reason, failure
            self._stop.set()

    def _emit(self, event: Event) -> None:
        if self._said_goodbye:
            return
        self._said_goodbye = isinstance(event, Shutdown)
        stream = getattr(event, "stream", None)
        passing = stream is not None and self._listening is not None and self._listening.is_passing(stream)
        self._counters.note(event, passing=passing)
        line = self._stamp.line(event)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("event: %s", line.decode().rstrip(), extra=UNLIMITED)
        for sink in (*self._sinks.values(), *([self._endpoint] if self._endpoint else [])):
            sink(event, line)
        if isinstance(event, Heard):
            self._running().tell(event.stream, line)

    # --- signals and reload ---

    def _capture_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        self._loop.add_signal_handler(signal.SIGUSR1, self._on_metrics_signal)

    def _capture_faults(self) -> None:
        """An exception nobody expected, in whichever thread or task, ends the daemon: half of one hears nothing."""

        def in_thread(unhandled: threading.ExceptHookArgs) -> None:
            if isinstance(unhandled.exc_value, Exception) and not self._loop.is_closed():
                name = unhandled.thread.name if unhandled.thread else "a"
                self._loop.call_soon_threadsafe(self._on_fault, f"{name} thread", unhandled.exc_value)

        def in_loop(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            error = context.get("exception")
            if isinstance(error, Exception) and _belongs_to_library(error):
                log.warning("%s: %r", context["message"], error)  # its connection is lost by that, which is noticed
            elif isinstance(error, OSError) and error.errno in SHORTAGES:
                log.warning("nobody can connect now: %s", error.strerror)
            elif isinstance(error, Exception):
                self._on_fault("main thread", error)
            else:
                log.warning("%s", context["message"])

        threading.excepthook = in_thread
        self._loop.set_exception_handler(in_loop)

    def _on_fault(self, where: str, error: Exception) -> None:
        failure = KwsdError(f"{where}: {error!r}; please report this", exit_code=INTERNAL)
        failure.__cause__ = error
        self._end(str(failure), failure)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._stop.is_set() and now - self._asked_at > TWICE_S:  # the second one forces
            os._exit(128 + number)
        self._asked_at = now
        self._end(number.name)

    def _on_metrics_signal(self) -> None:
        for line in lines(self._metrics()):
            log.info("%s", line, extra=UNLIMITED)

    def _on_reload_signal(self) -> None:
        self._start_reload()

    def _start_reload(self) -> "asyncio.Task[KwsdError | None]":
        task = self._loop.create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _reload(self) -> KwsdError | None:
        """Why the old configuration is kept, if it is."""
        async with self._reloading:
            if self._listening is None:  # still starting: as soon as there is something to reload
                self._reload_wanted = True
                return None
            if self._stop.is_set():
                return STOPPING
            refusal: KwsdError | None = None
            was_ready = self._ready  # READY is for audio that reached the model, and a reload brings none
            if was_ready:
                self._notifier.reloading()
            before = self._thresholds()
            try:
                await self._switch_to(self._load())
                self._refused = ""
                self._emit(Reload(ok=True))
                log.info("reloaded")
                self._tell_thresholds(before)
            except KwsdError as error:
                refusal = error
                self._refused = f"; reload refused: {error}"
                self._emit(Reload(ok=False, error=str(error)))
                log.error("reload: %s; the old configuration is kept", error)
            except Stopped:
                return STOPPING
            except Exception as error:  # half of a new configuration is none
                self._on_fault("reload", error)
                return STOPPING
            if was_ready:
                self._notifier.ready(self._status())
            return refusal

    async def _switch_to(self, config: Config) -> None:
        """All of a new configuration, or nothing of it. Raises KwsdError for why not."""
        artefact = self._read_artefact(config)
        hooks = self._make_hooks(config, artefact.info)
        token = read_token(config)
        self._check_services(config)
        spotter = self._spotter
        if artefact.sha256 != self._artefact.sha256 or config.device != self._config.device:
            spotter = await self._in_thread(lambda: make_spotter(artefact, config.device))
        before, secret, secret_before = self._config, http_token(config), self._http_token
        sources = await self._look_ahead(config)
        try:
            await self._open_sinks(config)
            if config.http != before.http or secret != secret_before:
                await self._open_endpoint(config, secret)
            if config.wyoming != before.wyoming:
                await self._open_wyoming(config)
            await self._relisten(config, spotter, sources, token)
        except KwsdError as refusal:
            _stop_all(sources)
            await self._or_end(self._go_back(before, config, secret_before), refusal)
            raise
        self._hooks.adopt(hooks)
        self._config, self._spotter, self._artefact = config, spotter, artefact
        self._adjustments = Adjustments(self._adjustments.muting)  # thresholds are the file's again
        if config.events.heartbeat_s != before.events.heartbeat_s:
            self._beat()
        self._see_who_watches()

    async def _go_back(self, before: Config, config: Config, secret: str) -> None:
        """Sinks and endpoint as they were, with the secret of then, whatever its file says now."""
        await self._open_sinks(before)
        if config.http != before.http or secret != self._http_token or self._endpoint is None:
            await self._open_endpoint(before, secret)
        if config.wyoming != before.wyoming:
            await self._open_wyoming(before)

    async def _or_end(self, going_back: Coroutine[Any, Any, None], refusal: KwsdError) -> None:
        """Where it is impossible to go on as before, the daemon must end: half of one would hear or tell nothing."""
        try:
            await going_back
        except KwsdError as error:
            failure = KwsdError(f"reload refused ({refusal}), and no way back: {error}", exit_code=error.exit_code)
            self._end(str(failure), failure)

    async def _look_ahead(self, config: Config) -> Sequence[Source] | None:
        """The sources of another config while those of this one are heard, and whether its addresses can be had; None
        if they are the same, or can be had only when these are closed. Raises KwsdError before anything is touched."""
        old = self._running().config
        if _same_streams(config, old):
            return None
        self._try_doors(config.addresses, old.addresses, "listen.on", config.listen.group)
        return await self._in_thread(lambda: _sources_ahead(config), SOUND_S, _stop_all)

    def _make_hooks(self, config: Config, info: ArtefactInfo) -> list[Hook]:
        """Raises ConfigError if they, or the keywords, do not fit the model."""
        return make_hooks(config.hooks, make_rules(config, info).keywords, config.resolve)

    def _check_services(self, config: Config) -> None:
        """Raises KwsdError for what would keep them from being opened, before those that are open are touched."""
        if config.http.on:
            from kwsd import endpoint

            endpoint.check_libraries()
            http_token(config)
        if config.wyoming.on:
            from kwsd import wyoming

            wyoming.check_libraries(config.wyoming)
        self._try_doors(config.http_addresses, self._config.http_addresses, "http.on", config.http.group)
        self._try_doors(config.wyoming_addresses, self._config.wyoming_addresses, "wyoming.on", config.wyoming.group)

    def _try_doors(
        self, wanted: Sequence[Address], open_now: Sequence[Address], setting: str, group: str | None
    ) -> None:
        """Whether these can be had. Raises KwsdError if not, but not where a door of ours is in the way, which is
        closed first."""
        now = self._config
        ports = {a.port for a in (*now.addresses, *now.http_addresses, *now.wyoming_addresses) if a.path is None}
        if wanted:
            check_group(group, setting)
        for address in wanted:
            if address not in open_now and (address.path is not None or address.port not in ports):
                try_door(address, setting, group)

    async def _relisten(self, config: Config, spotter: Spotter, sources: Sequence[Source] | None, token: str) -> None:
        """Keep the sources running if they are the same; else start the new ones, or the old ones again."""
        old = self._running()
        if _same_streams(config, old.config):
            old.replace(config, spotter, token)
            return
        since = self._silence(old)
        try:
            self._listening = new = Listening(config, self._reports(), sources)
            await self._in_thread(lambda: new.start(spotter, self._welcome, since), SOUND_S)
        except KwsdError as refusal:
            await self._or_end(self._listen_again(old, since), refusal)
            raise
        self._tell_who_left(old, new)

    def _tell_who_left(self, old: Listening, new: Listening) -> None:
        """Streams that another listening does not have, satellites among them."""
        for state in old.states():
            if state.stream not in new.names:
                self._emit(StreamLeft(stream=state.stream, reason="reload", heard_s=state.heard_s))

    def _silence(self, old: Listening) -> dict[str, float]:
        """Stop these sources, for others; since when each is not heard (monotonic s)."""
        since = dict.fromkeys(old.source_names, time.monotonic())
        for name in since:
            self._emit(AudioLost(stream=name, reason="reload: the sources are opened anew"))
        old.stop()
        self._counters.absorb(old.counters())
        return since

    async def _listen_again(self, old: Listening, since: dict[str, float]) -> None:
        """To the sources that were stopped, even if a microphone went just now: it is opened when it comes back."""
        if self._listening is not None:
            self._listening.stop()
        sources = await self._in_thread(lambda: make_sources(old.config, patient=True), SOUND_S, _stop_all)
        self._listening = again = Listening(old.config, self._reports(), sources)
        await self._in_thread(lambda: again.start(self._spotter, self._welcome, since), SOUND_S)
        self._tell_who_left(old, again)
        self._see_who_watches()

    # --- commands ---

    async def _obey(self, command: Command) -> Answer:
        """Carry out what somebody asked for, and say what came of it."""
        to, status = str(command.__struct_config__.tag), None
        try:
            match command:
                case Mute():
                    self._mute(command.streams, True)
                case Unmute():
                    self._mute(command.streams, False)
                case Threshold():
                    await self._set_threshold(command.keyword, command.value)
                case ReloadConfig():  # whoever asked for it may go, or be closed by it
                    refusal = await asyncio.shield(self._start_reload())
                    if refusal is not None:
                        raise refusal
                case Status():
                    status = self._status_now()
        except KwsdError as error:
            return Answer(to=to, ok=False, id=command.id, error=str(error), exit_code=error.exit_code)
        return Answer(to=to, ok=True, id=command.id, status=status)

    def _mute(self, streams: tuple[str, ...] | None, muted: bool) -> None:
        """Raises ConfigError for a stream that is not there."""
        names = self._names()
        check_known(streams or (), names, "stream")
        before = self._adjustments.muting
        muting = before.changed(streams, muted)
        self._adjustments = replace(self._adjustments, muting=muting)
        self._memory.keep(muting)
        for name in names:
            if (name in muting) != (name in before):
                log.info("%s is %s", name, "muted" if muted else "not muted any more")
                self._emit(Muted(stream=name, muted=muted))
        if self._listening is not None:
            self._notifier.status(self._status())

    async def _set_threshold(self, keyword: str, value: float | None) -> None:
        """Raises ConfigError for a keyword that is not listened for, or a threshold below its release."""
        async with self._reloading:
            if self._listening is None:
                raise KwsdError("kwsd is still starting; try again", exit_code=UNAVAILABLE)
            check_known((keyword,), self._keywords(), "keyword")
            adjustments, before = self._adjustments.with_threshold(keyword, value), self._thresholds()
            config = adjustments.applied_to(self._config, self._keywords())
            make_rules(config, self._artefact.info)
            self._listening.replace(config, self._spotter)
            self._adjustments = adjustments
            self._tell_thresholds(before)

    def _tell_thresholds(self, before: dict[str, float]) -> None:
        """Those that are not as before."""
        for keyword, threshold in self._thresholds().items():
            if threshold != before.get(keyword, threshold):
                log.info("%s counts from %g on", keyword, threshold)
                self._emit(ThresholdSet(keyword=keyword, threshold=threshold))

    def _thresholds(self) -> dict[str, float]:
        config = self._adjustments.applied_to(self._config, self._keywords())
        return make_rules(config, self._artefact.info).thresholds

    def _status_now(self) -> StatusNow:
        configured, now = make_rules(self._config, self._artefact.info), self._thresholds()
        releases = dict(zip(configured.keywords, configured.release.tolist(), strict=True))
        keywords = {
            name: KeywordState(threshold=now[name], configured=threshold, release=round(releases[name], 4))
            for name, threshold in configured.thresholds.items()
        }
        return StatusNow(
            kwsd=__version__,
            schema=VERSION,
            model=self._artefact.info.id,
            ready=self._ready,
            problems=(*self._problems(), *self._untold()),
            uptime_s=round(time.monotonic() - self._born, 1),
            detections=self._detections,
            windows=self._listening.windows if self._listening else 0,
            hop_ms=self._listening.hop_ms if self._listening else self._config.window.hop_ms,
            streams=self._states(),
            muted=self._adjustments.muting.everything,
            keywords=keywords,
        )

    def _suggestion(self) -> str:
        """The part of a config that would make the present thresholds last."""
        return keywords_yaml(self._adjustments.applied_to(self._config, self._keywords()))

    def _states(self) -> tuple[StreamState, ...]:
        states = self._listening.states() if self._listening else ()
        muting = self._adjustments.muting
        return tuple(msgspec.structs.replace(state, muted=state.stream in muting) for state in states)

    # --- shutdown ---

    async def _shut_down(self) -> None:
        """Sources first, then the last event, then the sinks."""
        self._notifier.stopping()
        if self._next_beat is not None:
            self._next_beat.cancel()
        if self._listening is not None:
            await asyncio.to_thread(self._listening.stop)
            await asyncio.sleep(0)  # what the inference thread reported last
        if self._sinks:
            self._emit(Shutdown(reason=self._reason, detections=self._detections))
        for service in (self._endpoint, self._wyoming):
            if service is not None:
                await service.close()
        await asyncio.gather(*(sink.close() for sink in self._sinks.values()))
        await asyncio.sleep(0)  # what stdout's thread reported last
        if self._failure is None:  # else it is the last line, which the caller writes
            log.info("stopped: %s", self._reason)

    # --- what others are told ---

    def _hello(self) -> Line:
        return self._greeting(self._names())

    def _welcome(self, name: str) -> Line:
        """Called from the listener's thread."""
        return self._greeting((name,))

    def _greeting(self, streams: tuple[str, ...]) -> Line:
        return unnumbered(
            Hello(
                kwsd=__version__,
                schema=VERSION,
                model=self._artefact.info.id,
                keywords=self._keywords(),
                streams=streams,
                ailments=self._listening.ailments() if self._listening else {},
                muted=tuple(stream for stream in streams if stream in self._adjustments.muting),
            )
        )

    def _metrics(self) -> Iterator[Metric | Histogram]:
        """Everything that is counted and measured, as it is now."""
        yield from self._counters.metrics(self._listening.counters() if self._listening else None)
        about: dict[Labels, float] = {(__version__, self._artefact.info.id): 1.0}
        yield Metric("info", "gauge", "Which kwsd, and which model.", ("version", "model"), about)
        yield Metric("uptime_seconds", "gauge", "Since the start.", (), {(): time.monotonic() - self._born})
        yield Metric("ready", "gauge", "Whether audio reached the model.", (), {(): float(self._ready)})
        if self._listening is not None:
            yield from self._listening.gauges()
            muted: dict[Labels, float] = {(name,): float(name in self._adjustments.muting) for name in self._names()}
            yield Metric("muted", "gauge", "Whether nothing that is said on a stream is told.", ("stream",), muted)
            thresholds: dict[Labels, float] = {(word,): score for word, score in self._thresholds().items()}
            yield Metric("threshold", "gauge", "Score from which a keyword counts.", ("keyword",), thresholds)
            yield lag_histogram(self._listening.lags_ever)

    def _problems(self) -> list[str]:
        """Why nothing may be heard; empty: all is well."""
        if self._listening is None or not self._ready:
            return ["not ready yet"]
        problems = [f"{stream}: {ailment}" for stream, ailment in self._listening.ailments().items()]
        idle_s = self._listening.idle_s
        return [*problems, *([f"no window was scored for {idle_s:.0f} s"] if idle_s > STALE_S else [])]

    def _untold(self) -> list[str]:
        """Why somebody may not be told: no reason to start another daemon, so it is not for `_problems`."""
        sinks = (getattr(sink, "problem", None) for sink in self._sinks.values())
        return [problem for problem in sinks if problem]

    def _running(self) -> Listening:
        assert self._listening is not None
        return self._listening

    def _keywords(self) -> tuple[str, ...]:
        return make_rules(self._config, self._artefact.info).keywords

    def _names(self) -> tuple[str, ...]:
        if self._listening is None:
            return tuple(stream.name for stream in self._config.streams)
        return self._listening.names

    def _where(self) -> str:
        """The streams, and where satellites connect."""
        names = self._names()
        more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED + 1 else []
        listener = self._running().listener
        return ", ".join([*(names[:NAMED] if more else names), *more, *(listener.addresses if listener else [])])

    def _status(self) -> str:
        heard = f"{self._detections} words heard{self._last_heard}"
        return f"{self._ailments()}listening on {self._where()}; {heard}{self._refused}"

    def _ailments(self) -> str:
        """What is wrong with which stream, first of all."""
        ill = [f"{stream}: {ailment}" for stream, ailment in self._running().ailments().items()]
        ill += [f"{stream}: muted" for stream in self._names() if stream in self._adjustments.muting]
        return f"NOT HEARING {', '.join(ill[:NAMED])}; " if ill else ""


def _belongs_to_library(error: Exception) -> bool:
    """Whether it was raised by a library that runs callbacks of its own in our loop, nothing of ours in between."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_library = any(name.startswith(LIBRARIES) for name in (*modules, type(error).__module__))
    return of_library and not any(name.startswith("kwsd") for name in modules)


def http_token(config: Config) -> str:
    """The secret for the page. Raises ConfigError if there is to be one and is none."""
    named = config.http.token_file
    return read_secret(named, config.resolve, "http.token_file") if named and config.http.on else ""


def _stop_all(sources: Sequence[Source] | None) -> None:
    for source in sources or ():
        source.stop()


def _sources_ahead(config: Config) -> Sequence[Source] | None:
    """The sources of another config, while those of this one are heard; None if they can be had only then, when these
    are closed. Raises KwsdError if they cannot be had at all."""
    try:
        return make_sources(config)
    except AudioError as error:
        if error.exit_code != UNAVAILABLE:  # a device that refuses may do so because we have it
            raise
        return None


def _same_streams(one: Config, other: Config) -> bool:
    """Whether sources, their windows and their ring can stay as they are."""
    same = one.streams == other.streams and one.listen == other.listen and one.folder == other.folder
    same = same and one.has_satellites == other.has_satellites
    return same and msgspec.structs.asdict(one.window) == msgspec.structs.asdict(other.window)
