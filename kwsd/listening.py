"""Sources and the inference thread of one configuration, from start to stop."""

import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from kwsd.aside import start
from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples, seconds
from kwsd.config import Config, StreamConfig
from kwsd.errors import INTERNAL, UNAVAILABLE, KwsdError
from kwsd.event import GONE, AudioEvent, AudioRestored, Line, Overload, Scores, StreamJoined, StreamLeft, StreamState
from kwsd.inlet import Inlet
from kwsd.listener import Listener
from kwsd.load import Load
from kwsd.metrics import Counters
from kwsd.microphone import Microphone
from kwsd.pipeline import Pipeline, Progress, StreamInfo, make_ring
from kwsd.rest import Bell, Rest
from kwsd.satellites import FREE, Satellites
from kwsd.scoring import Scored
from kwsd.secret import read_secret
from kwsd.source import Source
from kwsd.sources import make_sources
from kwsd.span import frame_levels_dbfs, level_dbfs, noise_level
from kwsd.spotter import Spotter
from kwsd.supervisor import Supervisor

SWITCH_S = 0.0005  # threads, and a callback that is not compiled, wait so long for the interpreter lock; else 5 ms
FOLLOW_S = 0.002  # how soon to look again whether the main thread follows


def read_token(config: Config) -> str:
    """The secret that satellites share with us; empty: there is none. Raises ConfigError if it cannot be read."""
    named = config.listen.token_file
    return read_secret(named, config.resolve, "listen.token_file") if named and config.listen.on else ""


@dataclass(frozen=True)
class Reports:
    """What the inference thread has to say. All are called from that thread."""

    progress: Callable[[Progress], None]  # windows were scored, or audio was lost
    audio: Callable[[AudioEvent, KwsdError | None], None]  # a stream broke, and why; or came back; or is deaf
    over: Callable[[KwsdError | None], None]  # nothing more will come, and why if that is wrong
    satellite: Callable[[StreamJoined | StreamLeft], None] = lambda _: None  # one came or went
    overload: Callable[[Overload], None] = lambda _: None  # the hop became longer, or shorter again
    scores: Callable[[tuple[Scores, ...]], None] = lambda _: None  # what the model says now, if somebody watches
    idle: Callable[[], None] = lambda: None  # all that came is scored; with satellites only, there may be none
    then: Callable[[Callable[[], None]], None] = lambda call: call()  # call it when all this is dealt with
    behind: Callable[[], bool] = lambda: False  # whether much of this is not dealt with yet


class Listening:
    """Runs from `start` to `stop`. One thread scores windows whenever a source wakes it."""

    def __init__(self, config: Config, reports: Reports, sources: Sequence[Source] | None = None) -> None:
        """`sources` are those of the config, if they were made before. Raises KwsdError if something cannot be had."""
        self.config = config
        self.watched = False  # somebody wants to see what the model says
        self._reports = reports
        self._ring = make_ring(config, len(config.streams), config.listen.streams if config.has_satellites else 0)
        self.sources = make_sources(config) if sources is None else sources
        self._names = [stream.name for stream in config.streams]
        self._inlets = [
            Inlet(self._ring, i, source.rate, source.channels, source.channel, block_s=source.block_s)
            for i, source in enumerate(self.sources)
        ]
        self.streams = [
            StreamInfo(name, source.live, source.lead_in, origin=inlet.origin)
            for name, source, inlet in zip(self._names, self.sources, self._inlets, strict=True)
        ]
        self.streams += [FREE] * (self._ring.streams - len(self.streams))
        self._in_time = np.array([stream.live for stream in self.streams])  # whose windows can be late
        self._that_can_wait = [inlet for source, inlet in self._supplies() if not source.live]
        self.load = Load(config.window.hop_ms, time.monotonic())
        self._stopping = False
        self._pipeline: Pipeline  # from `start` on
        self._in_use = config  # by the pipeline; `self.config` may be a later one
        self._successors: deque[tuple[Config, Spotter]] = deque()
        self._supervisor = Supervisor(self._names, self.sources, self._inlets, config.capture, self._tell)
        self._left: set[int] = set()  # sources that ended, and were told
        bell = Bell()
        try:
            self.listener = self._make_listener(bell) if config.has_satellites else None
        except KwsdError:
            for source in self.sources:
                source.stop()
            raise
        self.satellites = Satellites(self.listener, self.streams, config.capture, reports.satellite, reports.then)
        self._rest = Rest(
            bell,
            self._ring,
            list(self._supplies()),
            self._supervisor,
            self.listener,
            max_wait_ms=config.window.max_wait_ms,
        )
        self._thread = threading.Thread(target=self._guarded, name="inference", daemon=True)

    def _make_listener(self, bell: Bell) -> Listener:
        config = self.config
        return Listener(
            config.addresses,
            self._ring,
            len(self.sources),
            taken=self._names,
            token=read_token(config),
            group=config.listen.group,
            silent_s=config.listen.silent_s,
            at_once=(max(config.window.max_batch, self._least_batch(config.window.hop_ms)) - 1)
            * samples(config.window.hop_ms / 1000),
            wake=bell.ring,
        )

    def start(
        self,
        spotter: Spotter,
        hello: Callable[[str], Line] = lambda _: b"",
        silent_since: Mapping[str, float] | None = None,
        ended: Container[StreamConfig] = (),
    ) -> None:
        """`hello` makes the first line for a satellite of a name; `silent_since` says since when streams are not heard
        that others brought before (monotonic s), `ended` which of them are over. Raises KwsdError if a source refuses
        to start."""
        self._go_on_with(self.pipeline(self.config, spotter))
        self._supervisor.start(silent_since or {})
        for i, (source, inlet) in enumerate(self._supplies()):
            if self.config.streams[i] in ended:
                self._left.add(i)
                inlet.end()
            else:
                source.start(inlet, self._rest.waker(inlet))
        sys.setswitchinterval(SWITCH_S)
        start(self._thread)
        if self.listener is not None:
            self.listener.start(hello)

    def pipeline(self, config: Config, spotter: Spotter) -> Pipeline:
        """A pipeline on these streams, at the hop that the load allows. Raises ConfigError if config and model
        contradict each other."""
        hop_ms = self._stretched(config)
        as_before = config.window.max_batch // self.load.overload.stretch  # as much audio
        batch = max(as_before, self._least_batch(hop_ms))
        window = msgspec.structs.replace(config.window, hop_ms=hop_ms, max_batch=batch)
        config = msgspec.structs.replace(config, window=window)
        return Pipeline(config, spotter, self._ring, self._inlets, self.streams, arrived_at=self._arrived_at)

    def _least_batch(self, hop_ms: float) -> int:
        """Behind what a satellite sent comes a second of silence at once, of which no window may be skipped."""
        return WINDOW // samples(hop_ms / 1000) + 2 if self.config.has_satellites else 1

    @property
    def ended(self) -> frozenset[StreamConfig]:
        """The streams of the config that came to their end."""
        return frozenset(self.config.streams[i] for i in self._left)

    def silences(self) -> dict[str, float]:
        """The streams of the config that were heard and are not now, and since when (monotonic s)."""
        return self._supervisor.silences()

    @property
    def heard(self) -> tuple[str, ...]:
        """The streams of the config that deliver."""
        silent = self.silences()
        return tuple(
            name
            for i, name in enumerate(self._names)
            if self._inlets[i].blocks and i not in self._left and name not in silent
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The streams there are: those of the config, and the satellites that are here."""
        return (*self._names, *self.satellites.slots)

    def adopt(self, connection: socket.socket) -> None:
        """A satellite that came some other way. Raises KwsdError where none may come."""
        if self.listener is None:
            raise KwsdError("there is no room for satellites", exit_code=UNAVAILABLE)
        self.listener.adopt(connection)

    def _wrote_at(self, stream: int) -> float:
        if stream < len(self._inlets):
            return self._inlets[stream].wrote_at
        assert self.listener is not None
        return self.listener.arrivals[stream].at

    def _arrived_at(self, stream: int, sample: int) -> float:
        """When a stream had come as far as a sample (monotonic s)."""
        if stream >= len(self._inlets):
            assert self.listener is not None
            return self.listener.arrivals[stream].of(sample)
        inlet = self._inlets[stream]
        if not self.sources[stream].live:
            return inlet.arrived_at(sample)
        return inlet.wrote_at - (self._ring.ends[stream] - sample) / SAMPLE_RATE

    def replace(self, config: Config, spotter: Spotter, token: str | None = None) -> None:
        """Go on with another config of the same streams and another spotter from the next batch on, without a gap; and
        maybe with another secret for satellites."""
        if self.listener is not None and token is not None:
            self.listener.trust(token)
        self.config = config
        self._supervisor.adopt(config.capture)
        self.satellites.adopt(config.capture)
        self._successors.append((config, spotter))
        self._rest.wake()

    def _tell(self, event: AudioEvent, failure: KwsdError | None) -> None:
        if isinstance(event, AudioRestored):
            self.load.scored_at = time.monotonic()  # before a second is full, no window is late
        self._reports.audio(event, failure)

    def time_writes(self, durations_us: list[float]) -> None:
        """Before `start`, with one stream: note how long each block holds up the thread that delivers it."""
        [inlet] = self._inlets
        append = inlet.append

        def timed_append(block: bytes) -> None:
            begun = time.perf_counter_ns()
            append(block)
            durations_us.append((time.perf_counter_ns() - begun) / 1000)

        inlet.append = timed_append  # type: ignore[method-assign]

    def took_us(self) -> list[float]:
        """The same of a microphone whose callback is compiled: the last blocks."""
        return [took for source in self.sources if isinstance(source, Microphone) for took in source.took_us()]

    def stop(self) -> None:
        """Stop the sources and the thread; returns when both have."""
        if self._stopping:
            return
        self._stopping = True
        self._rest.stop()
        for source in self.sources:
            source.stop()
        if self.listener is not None:
            self.listener.stop()
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def states(self) -> tuple[StreamState, ...]:
        """How the streams are. May be asked from any thread."""
        return tuple(self._state(i) for i in (*range(len(self.sources)), *self.satellites.slots.values()))

    @property
    def goes_on(self) -> bool:
        """Whether anything may still come."""
        return self.listener is not None or self._supervisor.goes_on

    def ailments(self) -> dict[str, str]:
        """What is wrong with the streams of the config that do not hear, by name. A satellite is none of them: another
        daemon would hear it no better. May be asked from any thread."""
        found = {name: self._supervisor.ailment(i) for i, name in enumerate(self._names)}
        return {name: ailment for name, ailment in found.items() if ailment}

    @property
    def idle_s(self) -> float:
        """For how long no window was scored, where a source in real time ought to bring some."""
        may_wait = not any(source.live and not inlet.ended for source, inlet in self._supplies())
        return 0.0 if may_wait else time.monotonic() - self.load.scored_at

    @property
    def hop_ms(self) -> float:
        """Between windows, as the load allows."""
        return self._stretched(self.config)

    def _stretched(self, config: Config) -> float:
        """A window is a second: no hop is longer."""
        return min(config.window.hop_ms * self.load.overload.stretch, 1000.0)

    def _supplies(self) -> Iterator[tuple[Source, Inlet]]:
        return zip(self.sources, self._inlets, strict=True)

    def counters(self) -> Counters:
        """What came and was scored, ever. May be asked from any thread."""
        counters = Counters()
        counters.add("windows_scored", count=self.load.windows)
        for name, inlet in zip(self._names, self._inlets, strict=True):
            counters.add("blocks", name, count=inlet.blocks)
            for what in ("overruns", "windows_skipped", "samples_lost", "device_overflows", "losses", "reconnects"):
                counters.add(what, name, count=0)
            counters.add("attempts", name, count=self.sources[inlet.stream].attempts)
        return counters

    def _state(self, stream: int) -> StreamState:
        end, second = self._ring.ends[stream], np.zeros(WINDOW, np.float32)
        whole = self._ring.read(stream, end - WINDOW, second)
        ours = stream < len(self.sources)
        ailment = self._supervisor.ailment(stream) if ours else self.satellites.fault(stream)
        if ailment is None and stream in self._left:
            ailment = "ended"
        heard = whole and second.any() and ailment not in GONE
        return StreamState(
            stream=self.streams[stream].name,
            heard_s=seconds(end - self.streams[stream].origin),
            lag_ms=round((time.monotonic() - self._wrote_at(stream)) * 1000),
            level_dbfs=round(level_dbfs(second), 1) if heard else None,
            floor_dbfs=round(noise_level(frame_levels_dbfs(second)), 1) if heard else None,
            ailment=ailment,
            passing=self.streams[stream].passing,
        )

    def _guarded(self) -> None:
        """The thread's top: whatever happens here ends the daemon, never just the thread."""
        try:
            self._listen()
        except KwsdError as error:
            self._reports.over(error)
        except Exception as error:
            over = KwsdError(f"inference thread: {error!r}; please report this", exit_code=INTERNAL)
            over.__cause__ = error
            self._reports.over(over)

    def _listen(self) -> None:
        while not self._stopping:
            while self._successors:
                self._in_use, spotter = self._successors.popleft()
                self._take_over(self.pipeline(self._in_use, spotter))
            self._let_them_follow()  # first: who comes meanwhile must be met before anything of theirs is scored
            self.satellites.meet(self._pipeline)
            if self._may_doze():
                self._look_round()
                if self._doze_off():
                    continue
            begun = time.monotonic()
            progress = self._pipeline.advance()
            self._weigh(progress.scored, begun, time.monotonic())
            if len(progress.scored) or progress.overruns:
                self._reports.progress(progress)
            if self.watched and len(progress.scored):
                self._reports.scores(tuple(self._pipeline.watch(progress.scored)))
            self.satellites.part(self._pipeline)
            if self.listener is not None and all(inlet.drained for inlet in self._inlets):  # there may be nobody
                self._reports.idle()
            self._look_round()
            if self.listener is None and self._pipeline.finished:
                if not self._stopping:  # else it is who stops it that ended the sources, and a reload goes on
                    self._reports.over(self._supervisor.failure)
                return
            self._part_with_sources()
            self._rest.until_due()

    def _may_doze(self) -> bool:
        return not (self.watched or self.satellites.slots) and self._rest.may_doze()

    def _doze_off(self) -> bool:
        """Until windows may wait no longer, or there is something else to see to: whether there is."""
        while True:
            self._rest.doze()
            self._look_round()
            if self._stopping or self._successors or self.watched or self.listener is not None:
                return True
            if not self._rest.is_quiet():
                return False

    def _let_them_follow(self) -> None:
        """Where more is heard than can be told, scoring waits: else what is untold would pile up, and whoever wants the
        daemon to stop, or anything else of it, would wait behind that."""
        while self._reports.behind() and not self._stopping:
            time.sleep(FOLLOW_S)

    def _weigh(self, scored: Scored, begun: float, now: float) -> None:
        """Note how late these windows are, and once a second whether there is more to do than time."""
        self.load.note(len(scored), begun, now)
        for inlet in self._that_can_wait:
            self._in_time[inlet.stream] = inlet.keeps_time
        timed = self._in_time[scored.streams] & (scored.ends > self._rest.dozed_until[scored.streams])
        if timed.any():
            windows = zip(scored.streams[timed].tolist(), scored.ends[timed].tolist(), strict=True)
            self.load.note_lags(now - np.array([self._arrived_at(stream, end) for stream, end in windows]))
        if self.load.look(now):
            self._stretch()

    def _stretch(self) -> None:
        """Go on at the hop that the load allows."""
        self._take_over(self.pipeline(self._in_use, self._pipeline.spotter))
        self._reports.overload(Overload(hop_ms=self.hop_ms, lag_ms=self.load.lag_ms))

    def _take_over(self, successor: Pipeline) -> None:
        successor.take_over(self._pipeline)
        self._go_on_with(successor)

    def _go_on_with(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._rest.adopt(pipeline)

    def _part_with_sources(self) -> None:
        """Those that ended by themselves, while others go on."""
        for i, inlet in enumerate(self._inlets):
            if inlet.drained and i not in self._left and self._pipeline.scored_all_of(i):
                self._left.add(i)
                self._pipeline.forget(i)
                if not self._supervisor.is_lost(i):
                    heard = self._ring.ends[i] - WINDOW - self.streams[i].origin  # less the silence behind it
                    left = StreamLeft(stream=self._names[i], reason="end of audio", heard_s=seconds(heard))
                    self._reports.satellite(left)

    def _look_round(self) -> None:
        if self.listener is not None and self.listener.failure is not None:
            raise self.listener.failure
        now = time.monotonic()
        self._supervisor.look(now)
        for event in self.satellites.look(now, self._ring):
            self._tell(event, None)
