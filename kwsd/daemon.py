"""The daemon: wires sources, pipeline and sinks together; owns lifecycle, signals and reload."""

import asyncio
import errno
import functools
import logging
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from kwsd.arbiter import Arbiter, Ruling
from kwsd.artefact import Artefact, read_artefact
from kwsd.aside import SOUND_S, Loop, NoThread, hangs, start
from kwsd.config import Config
from kwsd.control import Adjustments, Command, Mute, ReloadConfig, Status, Threshold, Unmute, check_known
from kwsd.engines import make_spotter
from kwsd.errors import INTERNAL, IO, OK, SHORTAGES, UNAVAILABLE, AudioError, ConfigError, KwsdError, of_want
from kwsd.event import (
    Answer,
    AudioEvent,
    AudioFault,
    AudioHealed,
    AudioLost,
    AudioRestored,
    Event,
    Heard,
    Heartbeat,
    HookFailed,
    Muted,
    Overload,
    Ready,
    Reload,
    Scores,
    Shutdown,
    Stamp,
    StreamJoined,
    StreamLeft,
    StreamState,
    ThresholdSet,
    Verdict,
    unnumbered,
)
from kwsd.listening import Listening, Reports, read_token
from kwsd.log import UNLIMITED
from kwsd.memory import Memory
from kwsd.metrics import lines
from kwsd.outlets import Deeds, Outlets, check_libraries, http_secret
from kwsd.pipeline import Progress, make_rules
from kwsd.ring import Samples
from kwsd.sinks.hooks import Hook, make_hooks
from kwsd.source import Source
from kwsd.sources import make_sources
from kwsd.spotter import Spotter
from kwsd.state import State
from kwsd.systemd import Notifier

log = logging.getLogger("kwsd")

T = TypeVar("T")

STOPPING = KwsdError("kwsd is stopping", exit_code=UNAVAILABLE)
TWICE_S = 0.1  # timeout(1) sends its signal to the process and then to the group: to us that is one
LIBRARIES = ("aiomqtt", "paho", "aiohttp", "zeroconf")
MOST_REPORTS = 20  # of the inference thread, not dealt with yet: more, and it waits
STATUS_EVERY_S = 1.0  # for systemd
BROKEN = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)  # of a door that lets nobody in any more
ACCEPTING = ("_accept_connection", "_start_serving")  # of asyncio; the second takes it up again after a rest


class Stopped(Exception):
    """The daemon was asked to stop while it waited for something."""


def run(load: Callable[[], Config]) -> int:
    """Run until a signal, the end of all audio, or a failure; the exit code. `load` reads the configuration."""
    daemon = Daemon(load)
    with asyncio.Runner(loop_factory=Loop) as runner:
        code = runner.run(daemon.main())
    if daemon.loading:  # torch is half imported in a thread, and cannot be waited for
        os._exit(code)
    return code


class Daemon:
    """One run of `kwsd run`."""

    def __init__(self, load: Callable[[], Config]) -> None:
        self._load = load
        config, self._memory = load(), Memory()
        self._state = State(config, _artefact_of(config), Adjustments(self._memory.muting()))
        deeds = Deeds(
            obey=self._obey,
            adopt=self._adopt,
            watched=self._see_who_watches,
            stdout_broke=self._stdout_broke,
            hook_failed=self._on_hook_failed,
            broker=self._emit,
        )
        self._outlets = Outlets(self._state, deeds)
        self.loading = False
        self._arbiter = Arbiter(config.arbitration)
        self._next_ruling: asyncio.TimerHandle | None = None
        self._notifier = Notifier()
        self._stamp = Stamp()
        self._passing: set[str] = set()  # streams of clients of the moment
        self._told_muted: set[str] = set()  # streams of which it was said, before all was ready
        self._stop = asyncio.Event()
        self._reason = "end of audio"
        self._failure: KwsdError | None = None
        self._said_goodbye = False  # no event comes after the last
        self._reload_wanted = False
        self._reloading = asyncio.Lock()
        self._between = asyncio.Lock()  # held while the sources are opened anew, and nobody can come
        self._tasks: set[asyncio.Task[Any]] = set()
        self._asked_at: float | None = None  # to stop, by a signal; monotonic s
        self._next_beat: asyncio.TimerHandle | None = None
        self._next_status: asyncio.TimerHandle | None = None
        self._status_at = 0.0  # when it was told last, monotonic s
        self._reported = self._dealt_with = 0  # reports of the inference thread

    async def main(self) -> int:
        """Startup, main loop, shutdown. Raises KwsdError for what went wrong."""
        self._loop = asyncio.get_running_loop()
        self._capture_signals()
        self._capture_faults()
        try:
            with self._state.config.blamed():
                await self._start_up()
            await self._stop.wait()
        except Stopped:
            pass
        except KwsdError as error:
            self._failure = error
            self._reason = str(error)
        await self._shut_down()
        self._heed_no_more()
        if self._failure is not None:
            raise self._failure
        return OK

    # --- startup ---

    async def _start_up(self) -> None:
        """What fails fast comes first: the model's metadata, devices, sockets; then torch; then sound."""
        state, config = self._state, self._state.config
        make_rules(config, state.artefact.info)
        check_libraries(config)
        hooks = self._make_hooks(config, state.artefact)
        listening = await self._in_thread(lambda: Listening(config, self._reports()), SOUND_S, Listening.stop)
        try:
            await self._outlets.open(config, http_secret(config))
            self._outlets.adopt(config, hooks)
            self._spotter: Spotter = await self._in_thread(
                lambda: make_spotter(state.artefact, config.device, config.engine)
            )
        except BaseException:
            listening.stop()  # or its socket would stay
            raise
        state.listening = listening
        self._see_who_watches()
        self._outlets.note_streams()
        await self._in_thread(lambda: listening.start(self._spotter, state.welcome), SOUND_S)
        if self._reload_wanted:
            self._on_reload_signal()
        log.info("listening on %s with %s", state.where(), config.model_path)

    async def _adopt(self, connection: socket.socket) -> None:
        async with self._between:
            if self._state.listening is None or self._stop.is_set():
                raise KwsdError("kwsd is still starting, or stopping; try again", exit_code=UNAVAILABLE)
            self._state.listening.adopt(connection)

    def _see_who_watches(self) -> None:
        """Scores are told only while somebody wants them."""
        if self._state.listening is not None:
            self._state.listening.watched = self._outlets.watched

    def _on_scores(self, scores: tuple[Scores, ...]) -> None:
        for now in scores:
            if now.stream not in self._state.adjustments.muting:
                self._outlets.scores(now, unnumbered(now))

    def _reports(self) -> Reports:
        def alive() -> None:
            """By way of the main thread: that one must be alive as well."""
            if self._notifier.is_due:
                self._loop.call_soon_threadsafe(self._notifier.alive)

        def progress(progress: Progress) -> None:
            if len(progress.scored):
                alive()
            if progress.heard or progress.overruns or not self._state.ready:
                self._report(self._on_progress, progress)

        def idle() -> None:
            alive()
            if not self._state.ready:
                self._report(self._now_ready)

        return Reports(
            progress=progress,
            audio=functools.partial(self._report, self._on_audio),
            over=functools.partial(self._report, self._on_over),
            satellite=functools.partial(self._report, self._on_satellite),
            overload=functools.partial(self._report, self._on_overload),
            scores=functools.partial(self._report, self._on_scores),
            idle=idle,
            then=functools.partial(self._report, self._on_parting),
            behind=lambda: self._reported - self._dealt_with > MOST_REPORTS,
        )

    def _report(self, deal: Callable[..., None], *what: Any) -> None:
        """From the inference thread, to be dealt with in the main thread."""

        def deal_with() -> None:
            self._dealt_with += 1
            deal(*what)

        self._reported += 1
        self._loop.call_soon_threadsafe(deal_with)

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
                with of_want():
                    result = work()
            except Exception as raised:
                error = raised
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(deliver, result, error)
            elif error is None:
                late(result)  # type: ignore[arg-type]

        start(threading.Thread(target=body, name="loading", daemon=True))
        self.loading = True
        stopping = asyncio.ensure_future(self._stop.wait())
        either: list[asyncio.Future[Any]] = [done, stopping]
        await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if done.done():
            return done.result()
        done.cancel()
        if self._stop.is_set():
            raise Stopped
        assert within_s is not None
        raise hangs(within_s)

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
        for verdict, sound in zip(progress.heard, progress.sounds, strict=True):
            if verdict.stream in self._state.adjustments.muting:
                continue
            if isinstance(verdict, Heard):
                self._arbitrate(verdict, sound)
            else:
                self._pronounce([Ruling(verdict, sound)])

    def _arbitrate(self, heard: Heard, sound: Samples | None) -> None:
        """What a stream heard, where others may have heard it, too."""
        now = time.monotonic()
        at = now - (heard.latency_ms or 0) / 1000
        self._pronounce(self._arbiter.hear(heard, sound, at, now, self._hearing()))
        self._settle_later(now)

    def _hearing(self) -> Iterator[str]:
        """The streams of which something can be heard; found out only when somebody asks."""
        muting, ailments = self._state.adjustments.muting, self._running().ailments()
        yield from (name for name in self._state.names if name not in muting and name not in ailments)

    def _settle_later(self, now: float) -> None:
        """When the next word has waited for other streams long enough; called again when that changes."""
        if self._next_ruling is not None:
            self._next_ruling.cancel()
            self._next_ruling = None
        if self._arbiter.next_at is not None:
            self._next_ruling = self._loop.call_later(max(0.0, self._arbiter.next_at - now), self._settle)

    def _settle(self) -> None:
        now = time.monotonic()
        self._pronounce(self._arbiter.settle(now))
        self._settle_later(now)

    def _settle_all(self) -> None:
        """Nothing that was heard waits any longer: how things are is about to change."""
        now = time.monotonic()
        self._pronounce(self._arbiter.settle(now, at_once=True))
        self._settle_later(now)

    def _pronounce(self, rulings: list[Ruling]) -> None:
        for ruling in rulings:
            verdict = ruling.verdict
            if isinstance(verdict, Heard):
                self._state.detections += 1
                self._state.last_heard = f"; last heard: {verdict.keyword}"
                self._tell_status()
            if isinstance(verdict, Heard) or self._state.config.events.rejected:
                self._emit(verdict, ruling.sound)
            else:
                self._state.counters.note(verdict)

    def _now_ready(self) -> None:
        """Audio reached the model, or satellites may come."""
        if self._state.ready:
            return
        self._state.ready = True
        self._emit(Ready(model=self._state.artefact.info.id, keywords=self._state.keywords, streams=self._state.names))
        for name in self._state.names:
            if name in self._state.adjustments.muting and name not in self._told_muted:  # since before it was started
                log.info("%s is muted", name)
                self._emit(Muted(stream=name, muted=True))
        self._notifier.ready(self._state.summary())
        log.info("ready")
        self._beat()

    def _tell_status(self) -> None:
        """To systemd, about all streams: of thousands it takes a while, and so it is told once a second at most."""
        if self._notifier.is_heard and self._next_status is None and not self._stop.is_set():
            wait = max(0.0, self._status_at + STATUS_EVERY_S - time.monotonic())
            self._next_status = self._loop.call_later(wait, self._status_now)

    def _status_now(self) -> None:
        self._next_status, self._status_at = None, time.monotonic()
        self._notifier.status(self._state.summary())

    def _beat(self) -> None:
        """Tell how things are, now and every `heartbeat_s`; called again when a reload changes that."""
        if self._next_beat is not None:
            self._next_beat.cancel()
            self._next_beat = None
        if self._state.config.events.heartbeat_s and self._state.ready:
            lags = self._running().load.lags()
            self._emit(
                Heartbeat(
                    uptime_s=round(self._state.uptime_s, 1),
                    detections=self._state.detections,
                    windows=lags.scored,
                    lag_p99_ms=lags.percentile_ms(99.0),
                    streams=self._state.streams(),
                )
            )
            self._next_beat = self._loop.call_later(self._state.config.events.heartbeat_s, self._beat)

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
        self._tell_status()

    def _on_satellite(self, event: StreamJoined | StreamLeft) -> None:
        if isinstance(event, StreamJoined):
            log.info("satellite %s: %d Hz, %d channels", event.stream, event.rate, event.channels)
            if self._is_passing(event.stream):
                self._passing.add(event.stream)
        else:
            log.info("stream %s: %s after %.1f s of audio", event.stream, event.reason, event.heard_s)
            self._part_with(event.stream)
        self._emit(event)
        if isinstance(event, StreamJoined) and event.stream in self._state.adjustments.muting:
            self._emit(Muted(stream=event.stream, muted=True))
        self._tell_status()

    def _on_parting(self, let_go: Callable[[], None]) -> None:
        """A satellite goes, and is still there to be told what was heard of it."""
        self._settle_all()
        let_go()

    def _on_overload(self, event: Overload) -> None:
        log.warning("a window every %g ms now; the last second's were up to %s ms late", event.hop_ms, event.lag_ms)
        self._emit(event)

    def _on_hook_failed(self, event: HookFailed) -> None:
        log.warning("%s: %s", event.hook, event.reason)
        self._emit(event)

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

    def _emit(self, event: Event, sound: Samples | None = None) -> None:
        if self._said_goodbye:
            return
        self._said_goodbye = isinstance(event, Shutdown)
        stream = getattr(event, "stream", None)
        self._state.counters.note(event, passing=stream is not None and self._is_passing(stream))
        line = self._stamp.line(event)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("event: %s", line.decode().rstrip(), extra=UNLIMITED)
        self._outlets(event, line)
        if sound is not None and isinstance(event, Verdict):
            self._outlets.keep(event, line, sound)
        if isinstance(event, Heard):
            self._running().satellites.tell(event.stream, line)

    def _is_passing(self, stream: str) -> bool:
        """Whether it is a client of the moment, whose name another one will have."""
        return self._state.listening is not None and self._state.listening.satellites.is_passing(stream)

    # --- signals and reload ---

    def _capture_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_reload_signal)
        self._loop.add_signal_handler(signal.SIGUSR1, self._on_metrics_signal)

    def _heed_no_more(self) -> None:
        """All is said: a signal that comes now changes nothing, but would kill us once the loop is closed."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            self._loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

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
            elif isinstance(error, OSError) and (error.errno in SHORTAGES or _is_of_accepting(error)):
                log.warning("nobody can connect now: %s", error.strerror or error)
            elif isinstance(error, ConnectionError) and _is_of_nobody(context):
                log.debug("who was told something was gone: %s", error)  # asyncio of Python 3.11.2 says so of hooks
            elif isinstance(error, ValueError) and _is_of_accepting(error):
                log.debug("a door was closed while it rested: %s", error)  # as it does when descriptors ran out
            elif isinstance(error, Exception):
                self._on_fault("main thread", error)
            else:
                log.warning("%s", context["message"])

        threading.excepthook = in_thread
        self._loop.set_exception_handler(in_loop)

    def _on_fault(self, where: str, error: Exception) -> None:
        failure = _fault(where, error)
        self._end(str(failure), failure)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > TWICE_S:  # the second one forces
            os._exit(128 + number)
        self._asked_at = self._asked_at or now
        self._end(number.name)

    def _on_metrics_signal(self) -> None:
        for line in lines(self._state.metrics()):
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
            if self._state.listening is None:  # still starting: as soon as there is something to reload
                self._reload_wanted = True
                return None
            if self._stop.is_set():
                return STOPPING
            refusal: KwsdError | None = None
            was_ready = self._state.ready  # READY is for audio that reached the model, and a reload brings none
            if was_ready:
                self._notifier.reloading()
            before = self._state.thresholds
            try:
                config = self._load_again()
                with config.blamed():
                    await self._switch_to(config)
                self._state.refused = ""
                self._emit(Reload(ok=True))
                log.info("reloaded")
                self._tell_thresholds(before)
            except KwsdError as error:
                refusal = error
                self._state.refused = f"; reload refused: {error}"
                self._emit(Reload(ok=False, error=str(error)))
                log.error("reload: %s; the old configuration is kept", error)
            except Stopped:
                return STOPPING
            except Exception as error:  # half of a new configuration is none
                self._on_fault("reload", error)
                return STOPPING
            if was_ready:
                self._notifier.ready(self._state.summary())
            return refusal

    def _load_again(self) -> Config:
        """Raises KwsdError for whatever is wrong: a mistake in a file ends no daemon."""
        try:
            with of_want():
                return self._load()
        except KwsdError:
            raise
        except Exception as error:
            raise ConfigError(f"{error!r}; please report this") from error

    async def _switch_to(self, config: Config) -> None:
        """All of a new configuration, or nothing of it. Raises KwsdError for why not."""
        state, artefact = self._state, _artefact_of(config)
        hooks = self._make_hooks(config, artefact)
        token, secret = read_token(config), http_secret(config)
        self._outlets.check(config)
        spotter = self._spotter
        runs = artefact.sha256, config.device, config.engine
        if runs != (state.artefact.sha256, state.config.device, state.config.engine):
            spotter = await self._in_thread(lambda: make_spotter(artefact, config.device, config.engine))
        before, secret_before = state.config, self._outlets.secret
        sources = await self._look_ahead(config)
        try:
            await self._outlets.open(config, secret)
            await self._relisten(config, spotter, sources, token)
        except KwsdError as refusal:
            _stop_all(sources)
            await self._or_end(self._outlets.open(before, secret_before), refusal)
            raise
        self._outlets.adopt(config, hooks)
        if config.arbitration != before.arbitration:
            self._settle_all()
            self._arbiter = Arbiter(config.arbitration)
        self._spotter, state.config, state.artefact = spotter, config, artefact
        state.adjustments = Adjustments(state.adjustments.muting)  # thresholds are the file's again
        if config.events.heartbeat_s != before.events.heartbeat_s:
            self._beat()
        self._see_who_watches()

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
        self._outlets.try_doors(config.addresses, old.addresses, "listen.on", config.listen.group)
        return await self._in_thread(lambda: _sources_ahead(config), SOUND_S, _stop_all)

    def _make_hooks(self, config: Config, artefact: Artefact) -> list[Hook]:
        """Raises ConfigError if they, or the keywords, do not fit the model."""
        return make_hooks(config.hooks, make_rules(config, artefact.info).keywords, config.resolve)

    async def _relisten(self, config: Config, spotter: Spotter, sources: Sequence[Source] | None, token: str) -> None:
        """Keep the sources running if they are the same; else start the new ones, or the old ones again."""
        old = self._running()
        if _same_streams(config, old.config):
            old.replace(config, spotter, token)
            return
        there = old.states()  # a stop makes up a second of silence for whoever is hung up on
        async with self._between:
            since = self._silence(old)
            try:
                make = functools.partial(Listening, config, self._reports(), sources)
                new = await self._in_thread(make, SOUND_S, Listening.stop)
                self._go_on_with(new)
                await self._in_thread(lambda: new.start(spotter, self._state.welcome, since, old.ended), SOUND_S)
            except KwsdError as refusal:
                await self._or_end(self._listen_again(old, since, there), refusal)
                raise
        self._tell_who_left(there, old, new)

    def _go_on_with(self, listening: Listening) -> None:
        """Instead of the one before, of which nothing counts any more but what it counted."""
        self._state.counters.absorb(self._running().counters())
        self._state.listening = listening

    def _tell_who_left(self, there: Sequence[StreamState], old: Listening, new: Listening) -> None:
        """Streams that were there and another listening does not have, satellites among them."""
        told = {stream.name for stream in old.ended}
        for state in there:
            if state.stream not in new.names and state.stream not in told:
                self._part_with(state.stream)
                self._emit(StreamLeft(stream=state.stream, reason="reload", heard_s=state.heard_s))

    def _silence(self, old: Listening) -> dict[str, float]:
        """Stop these sources, for others; since when each is not heard (monotonic s)."""
        since, heard = old.silences(), old.heard
        for name in heard:
            self._emit(AudioLost(stream=name, reason="reload: the sources are opened anew"))
        old.stop()
        return since | dict.fromkeys(heard, time.monotonic())

    async def _listen_again(self, old: Listening, since: dict[str, float], there: Sequence[StreamState]) -> None:
        """To the sources that were stopped, even if a microphone went just now: it is opened when it comes back."""
        self._running().stop()
        sources = await self._in_thread(lambda: make_sources(old.config, patient=True), SOUND_S, _stop_all)
        again = Listening(old.config, self._reports(), sources)
        self._go_on_with(again)
        await self._in_thread(lambda: again.start(self._spotter, self._state.welcome, since, old.ended), SOUND_S)
        self._tell_who_left(there, old, again)
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
                    status = self._outlets.status()
        except KwsdError as error:
            return Answer(to=to, ok=False, id=command.id, error=str(error), exit_code=error.exit_code)
        return Answer(to=to, ok=True, id=command.id, status=status)

    def _mute(self, streams: tuple[str, ...] | None, muted: bool) -> None:
        """Raises ConfigError for a stream that is not there."""
        names = self._state.names
        check_known(streams or (), names, "stream")
        self._settle_all()
        before = self._state.adjustments.muting
        muting = before.changed(streams, muted)
        self._state.adjustments = replace(self._state.adjustments, muting=muting)
        self._memory.keep(muting.without(filter(self._is_passing, names)))
        for name in names:
            if (name in muting) != (name in before):
                log.info("%s is %s", name, "muted" if muted else "not muted any more")
                (self._told_muted.add if muted else self._told_muted.discard)(name)
                self._emit(Muted(stream=name, muted=muted))
        if self._state.listening is not None:
            self._tell_status()

    def _part_with(self, stream: str) -> None:
        """Another client of the moment will have the name of this one, and is not muted for it."""
        if stream in self._passing:
            self._passing.remove(stream)
            muting = self._state.adjustments.muting.without([stream])
            self._state.adjustments = replace(self._state.adjustments, muting=muting)

    async def _set_threshold(self, keyword: str, value: float | None) -> None:
        """Raises ConfigError for a keyword that is not listened for, or a threshold of 0 or below its release."""
        async with self._reloading:
            if self._state.listening is None:
                raise KwsdError("kwsd is still starting; try again", exit_code=UNAVAILABLE)
            check_known((keyword,), self._state.keywords, "keyword")
            adjustments, before = self._state.adjustments.with_threshold(keyword, value), self._state.thresholds
            config = adjustments.applied_to(self._state.config, self._state.keywords)
            make_rules(config, self._state.artefact.info)
            self._state.listening.replace(config, self._spotter)
            self._state.adjustments = adjustments
            self._tell_thresholds(before)

    def _tell_thresholds(self, before: dict[str, float]) -> None:
        """Those that are not as before."""
        for keyword, threshold in self._state.thresholds.items():
            if threshold != before.get(keyword, threshold):
                log.info("%s counts from %g on", keyword, threshold)
                self._emit(ThresholdSet(keyword=keyword, threshold=threshold))

    # --- shutdown ---

    async def _shut_down(self) -> None:
        """Sources first, then the last event, then the sinks."""
        self._notifier.stopping()
        for coming in (self._next_beat, self._next_status):
            if coming is not None:
                coming.cancel()
        if self._state.listening is not None:
            await self._stop_listening(self._state.listening)
            await asyncio.sleep(0)  # what the inference thread reported last
        self._settle_all()
        if self._outlets.are_open:
            self._emit(Shutdown(reason=self._reason, detections=self._state.detections))
        await self._outlets.close()
        await asyncio.sleep(0)  # what stdout's thread reported last
        if self._failure is None:  # else it is the last line, which the caller writes
            log.info("stopped: %s", self._reason)

    async def _stop_listening(self, listening: Listening) -> None:
        """Whatever goes wrong with that, the sinks are to have the last event."""
        try:
            try:
                await asyncio.to_thread(listening.stop)
            except NoThread:
                listening.stop()
        except Exception as error:
            self._failure = self._failure or _fault("stopping", error)

    def _running(self) -> Listening:
        assert self._state.listening is not None
        return self._state.listening


def _fault(where: str, error: Exception) -> KwsdError:
    """Of an exception nobody expected."""
    failure = KwsdError(f"{where}: {error!r}; please report this", exit_code=INTERNAL)
    failure.__cause__ = error
    return failure


def _belongs_to_library(error: Exception) -> bool:
    """Whether it was raised by a library that runs callbacks of its own in our loop, nothing of ours in between."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    of_library = any(name.startswith(LIBRARIES) for name in (*modules, type(error).__module__))
    return of_library and not any(name.startswith("kwsd") for name in modules)


def _is_of_nobody(context: dict[str, Any]) -> bool:
    """Whether it is of a future that nobody asks, and no task that ended by it."""
    return "future" in context and not isinstance(context["future"], asyncio.Task)


def _is_of_accepting(error: Exception) -> bool:
    """Whether it was raised where asyncio accepts connections, and harms only whoever is at the door."""
    if isinstance(error, OSError) and error.errno in BROKEN:
        return False
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(code.co_name in ACCEPTING and "asyncio" in code.co_filename for code in codes)


def _artefact_of(config: Config) -> Artefact:
    """Raises KwsdError if there is none, or it is another one than is wanted."""
    return read_artefact(config.model_path, config.model_sha256)


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
