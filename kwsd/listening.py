"""Sources and the inference thread of one configuration, from start to stop."""

import functools
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from kwsd import load
from kwsd.aside import start
from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples, seconds
from kwsd.config import Config, FileConfig, MicrophoneConfig, StreamConfig
from kwsd.errors import INTERNAL, UNAVAILABLE, KwsdError
from kwsd.event import GONE, AudioEvent, AudioRestored, Line, Overload, Scores, StreamJoined, StreamLeft, StreamState
from kwsd.inlet import Inlet
from kwsd.listener import Left, Listener
from kwsd.metrics import Counters, Labels, Metric
from kwsd.microphone import Microphone, OtherChannel
from kwsd.pipeline import Pipeline, Progress, StreamInfo, make_ring
from kwsd.quiet import DOZE_S, LOOK_S, Quiet
from kwsd.ring import Indices
from kwsd.rounds import Rounds
from kwsd.scoring import Scored
from kwsd.secret import read_secret
from kwsd.source import AudioFile, RawPcm, Source
from kwsd.span import frame_levels_dbfs, level_dbfs, noise_level
from kwsd.spotter import Spotter
from kwsd.supervisor import Supervisor

SWITCH_S = 0.0005  # threads, and a callback that is not compiled, wait so long for the interpreter lock; else 5 ms
SLACK_S = 0.001  # a block that comes this much after its time still finds nobody waiting in vain
LATE_S = 0.003  # how soon to look again for a block that is late, at least
WAKE_AT_LEAST_S = 0.5  # how often the inference thread looks round without being woken
LOST_LOOK_S = 0.1  # the same, while a microphone is lost
LOOK_EVERY_S = 1.0  # how often load is looked at
REST_S = 0.2  # of audio beyond the next window that waits for no look while the model finds nothing in what it hears
GRACE_S = 0.1  # more than until the next look, a source that wakes us may take
FOLLOW_S = 0.002  # how soon to look again whether the main thread follows
FULL = 32  # windows: more at once are hardly cheaper
FREE = StreamInfo("", live=True, lead_in=False)  # a slot without a satellite


def wait_s(due_in_s: float) -> float:
    """Seconds until to look for a block that should be here in so many, or since. One that is late, as sound servers
    let some be, is looked for again when it is twice as late: to look in vain costs half of what it does to hear."""
    return max(due_in_s + SLACK_S, LATE_S, -due_in_s)


def make_sources(config: Config, *, patient: bool = False) -> list[Source]:
    """The sources the streams of the config describe; those of one microphone share it. Who is patient waits for
    microphones that are not there.

    Raises KwsdError if one cannot be had."""
    made: list[Source] = []
    try:
        for stream in config.streams:
            made.append(make_source(stream, config, [m for m in made if isinstance(m, Microphone)], patient=patient))
    except KwsdError:
        for source in made:
            source.stop()
        raise
    return made


def make_source(stream: StreamConfig, config: Config, microphones: Sequence[Microphone], *, patient: bool) -> Source:
    """The source of one stream. Raises KwsdError if it cannot be had."""
    channel = None if stream.channel == "mix" else stream.channel - 1
    if isinstance(stream, MicrophoneConfig):
        for microphone in microphones:
            if microphone.is_the_one(stream.device):
                return OtherChannel(microphone, channel)
        return Microphone(stream.device, channel, min(stream.block_ms, config.window.hop_ms), patient=patient)
    if isinstance(stream, FileConfig):
        return AudioFile(config.resolve(stream.path), channel, realtime=stream.realtime)
    path = stream.path if stream.path == "-" else str(config.resolve(stream.path))
    return RawPcm(path, stream.rate, stream.channels, stream.format, channel, reopen=stream.reopen)


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
        self._slots: dict[str, int] = {}  # of the satellites that are here, by name
        self._leaving: dict[int, Left] = {}  # those that are not scored to the end yet
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
        self._overload = load.Overload(config.window.hop_ms)
        self._lags, self._lags_told = load.LagMeter(), load.LagMeter()  # of this second, and since they were asked for
        self.lags_ever = load.LagMeter()  # but for the last second
        self.windows = 0  # scored, ever
        self.scored_at = time.monotonic()  # when the last of them was
        self._busy_s, self._looked_at = 0.0, time.monotonic()
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._pipeline: Pipeline | None = None
        self._in_use = config  # by the pipeline; `self.config` may be a later one
        self._successors: deque[tuple[Config, Spotter]] = deque()
        self._supervisor = Supervisor(self._names, self.sources, self._inlets, config.capture, self._tell)
        self._rounds = Rounds(config.capture)  # at the microphones of satellites
        self._left: set[int] = set()  # sources that ended, and were told
        self._quiet = Quiet(self._inlets)
        self._dozed_until = self._ring.written  # (streams,) windows up to here were made to wait
        # Where any source has a beat and so wakes nobody, on time; else when the sources have what we look for.
        self._look_s = LOOK_S if any(source.block_s for source in self.sources) else LOOK_S + GRACE_S
        self._doze_s = 0.0  # of audio that may wait, less what may come until the next look
        self._pause = 0  # samples that may wait while nothing stirs, though something is to be heard
        try:
            self.listener = self._make_listener() if config.has_satellites else None
        except KwsdError:
            for source in self.sources:
                source.stop()
            raise
        self._thread = threading.Thread(target=self._guarded, name="inference", daemon=True)

    def _make_listener(self) -> Listener:
        config = self.config
        return Listener(
            config.addresses,
            self._ring,
            len(self.sources),
            taken=self._names,
            token=read_token(config),
            group=config.listen.group,
            silent_s=config.listen.silent_s,
            at_once=(config.window.max_batch - 1) * samples(config.window.hop_ms / 1000),
            wake=self._wake,
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
                source.start(inlet, self._waker(inlet))
        sys.setswitchinterval(SWITCH_S)
        start(self._thread)
        if self.listener is not None:
            self.listener.start(hello)

    def pipeline(self, config: Config, spotter: Spotter) -> Pipeline:
        """A pipeline on these streams, at the hop that the load allows. Raises ConfigError if config and model
        contradict each other."""
        hop_ms = self._stretched(config)
        batch = max(1, config.window.max_batch // self._overload.stretch)  # as much audio as before
        window = msgspec.structs.replace(config.window, hop_ms=hop_ms, max_batch=batch)
        config = msgspec.structs.replace(config, window=window)
        return Pipeline(config, spotter, self._ring, self._inlets, self.streams, arrived_at=self._arrived_at)

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
        return (*self._names, *self._slots)

    def adopt(self, connection: socket.socket) -> None:
        """A satellite that came some other way. Raises KwsdError where none may come."""
        if self.listener is None:
            raise KwsdError("there is no room for satellites", exit_code=UNAVAILABLE)
        self.listener.adopt(connection)

    def tell(self, stream: str, line: Line) -> None:
        """An event for the satellite it is about, if it is about one."""
        slot = self._slots.get(stream)
        if slot is not None and self.listener is not None:
            self.listener.tell(slot, line)

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

    def lags(self) -> load.LagMeter:
        """Of the windows scored since this was last asked. May be asked from any thread."""
        lags, self._lags_told = self._lags_told, load.LagMeter()
        return lags

    def replace(self, config: Config, spotter: Spotter, token: str | None = None) -> None:
        """Go on with another config of the same streams and another spotter from the next batch on, without a gap; and
        maybe with another secret for satellites."""
        if self.listener is not None and token is not None:
            self.listener.trust(token)
        self.config = config
        self._supervisor.adopt(config.capture)
        self._rounds.adopt(config.capture)
        self._successors.append((config, spotter))
        self._wake()

    def _tell(self, event: AudioEvent, failure: KwsdError | None) -> None:
        if isinstance(event, AudioRestored):
            self.scored_at = time.monotonic()  # before a second is full, no window is late
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
        for source in self.sources:
            source.stop()
        if self.listener is not None:
            self.listener.stop()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def states(self) -> tuple[StreamState, ...]:
        """How the streams are. May be asked from any thread."""
        return tuple(self._state(i) for i in (*range(len(self.sources)), *self._slots.values()))

    def is_passing(self, name: str) -> bool:
        """Whether a stream is a client of the moment."""
        slot = self._slots.get(name)
        return slot is not None and self.streams[slot].passing

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
        return 0.0 if may_wait else time.monotonic() - self.scored_at

    @property
    def hop_ms(self) -> float:
        """Between windows, as the load allows."""
        return self._stretched(self.config)

    def _stretched(self, config: Config) -> float:
        """A window is a second: no hop is longer."""
        return min(config.window.hop_ms * self._overload.stretch, 1000.0)

    def _supplies(self) -> Iterator[tuple[Source, Inlet]]:
        return zip(self.sources, self._inlets, strict=True)

    def counters(self) -> Counters:
        """What came and was scored, ever. May be asked from any thread."""
        counters = Counters()
        counters.add("windows_scored", count=self.windows)
        for name, inlet in zip(self._names, self._inlets, strict=True):
            counters.add("blocks", name, count=inlet.blocks)
            for what in ("overruns", "windows_skipped", "samples_lost", "device_overflows", "losses", "reconnects"):
                counters.add(what, name, count=0)
            counters.add("attempts", name, count=self.sources[inlet.stream].attempts)
        return counters

    def gauges(self) -> Iterator[Metric]:
        """How the streams are. May be asked from any thread."""
        states = self.states()
        hears: dict[Labels, float] = {(state.stream,): float(state.ailment is None) for state in states}
        age_s: dict[Labels, float] = {(state.stream,): state.lag_ms / 1000 for state in states}
        level: dict[Labels, float] = {
            (state.stream,): state.level_dbfs for state in states if state.level_dbfs is not None
        }
        floor: dict[Labels, float] = {
            (state.stream,): state.floor_dbfs for state in states if state.floor_dbfs is not None
        }
        yield Metric("hears", "gauge", "Whether a stream is neither lost nor deaf.", ("stream",), hears)
        yield Metric("audio_age_seconds", "gauge", "Since the last audio came.", ("stream",), age_s)
        yield Metric("level_dbfs", "gauge", "Of the last second.", ("stream",), level)
        yield Metric("noise_floor_dbfs", "gauge", "Of the quietest tenth of the last second.", ("stream",), floor)
        yield Metric("hop_seconds", "gauge", "Between the windows that are scored.", (), {(): self.hop_ms / 1000})

    def _state(self, stream: int) -> StreamState:
        end, second = self._ring.ends[stream], np.zeros(WINDOW, np.float32)
        whole = self._ring.read(stream, end - WINDOW, second)
        ours = stream < len(self.sources)
        ailment = self._supervisor.ailment(stream) if ours else self._rounds.fault(stream)
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

    def _wake(self) -> None:
        """Putting into a SimpleQueue neither blocks nor hands over the interpreter lock, as a system call would."""
        self._wakeups.put(None)

    def _waker(self, inlet: Inlet) -> Callable[[], None]:
        """What a source calls after each block, unless it has a beat: wakes the inference thread when a window may be
        due."""

        def wake() -> None:
            if inlet.wanted:
                self._wake()

        return wake

    def _wait(self) -> None:
        """Until a window may be due, but not long: sources are looked after as well."""
        assert self._pipeline is not None
        next_ends = self._pipeline.schedule.first_due(self._ring) + self._rest()
        if self.listener is not None:
            self.listener.expect(next_ends, self._batch())
        for inlet in self._inlets:
            inlet.want(int(next_ends[inlet.stream]))
            if inlet.wanted:
                return
        if (self._ring.written >= next_ends).any():  # it came just now, or more came than fits a batch
            return
        self._sleep(self._patience(), next_ends)

    def _sleep(self, longest_s: float, next_ends: Indices | None = None) -> None:
        """Until somebody wakes us."""
        try:
            self._wakeups.get(timeout=longest_s)
            if next_ends is not None:
                self._let_pile_up(next_ends)
            while True:
                self._wakeups.get_nowait()
        except queue.Empty:
            pass

    def _rest(self) -> int:
        """Samples that may come beyond the next window before somebody looks. While nothing stirs, three windows at
        once cost little more than one, as most of it is to wake up. A keyword needs two windows to be told, or more,
        and is hardly ever sure of itself in the first, by which something stirs; then it is told a hop later."""
        return self._pause if self._is_at_rest else 0

    @property
    def _is_at_rest(self) -> bool:
        """Whether nothing may be told by the next window alone, and no satellite is here."""
        assert self._pipeline is not None
        pipeline, alone = self._pipeline, self.listener is None or not self.listener.active
        return alone and pipeline.rules.smoothing > 1 and not pipeline.debouncer.stirs

    def _may_doze(self) -> bool:
        """Whether the windows that are due may wait for more of them: ten at once cost little more than one. So long as
        nothing is to be heard there is nothing to be told, and by the next look no word is over that began since."""
        if not self._inlets or self._slots or self.watched or not self._is_at_rest:
            return False
        return self._is_quiet()

    def _is_quiet(self) -> bool:
        """Whether all sources deliver, and nothing that is to be heard."""
        now = time.monotonic()
        for source, inlet in self._supplies():
            late = now - inlet.wrote_at >= (LOOK_S if source.block_s else LOOK_S + GRACE_S)
            if late or inlet.ended or inlet.is_anew:
                return False
        return self._quiet.look(self._doze_s)

    def _doze_off(self) -> bool:
        """Until windows may wait no longer, or there is something else to see to: whether there is."""
        while True:
            for inlet in self._inlets:
                self._dozed_until[inlet.stream] = inlet.came
                inlet.want_more(LOOK_S)
            self._sleep(self._look_s)
            self._look_round()
            if self._stopping or self._successors or self.watched or self.listener is not None:
                return True
            if not self._is_quiet():
                return False

    def _let_pile_up(self, next_ends: Indices) -> None:
        """A batch closes when it is full, or `max_wait_ms` after its first window: many windows at once cost less."""
        full = self._batch()
        closes = time.monotonic() + self.config.window.max_wait_ms / 1000
        while full > 1 and np.count_nonzero(self._ring.written >= next_ends) < full and not self._stopping:
            left = closes - time.monotonic()
            if left <= 0.0:
                return
            self._wakeups.get(timeout=left)

    def _batch(self) -> int:
        """Windows that are worth waiting for."""
        return min(FULL, self.listener.active) if self.listener is not None else 1

    def _patience(self) -> float:
        """Seconds to wait at most: until the next block that completes a window should be here. One that was lost may
        be here any time."""
        expected = [
            inlet.due_in(source.block_s)
            for source, inlet in zip(self.sources, self._inlets, strict=True)
            if source.block_s is not None and not inlet.ended and not self._supervisor.is_lost(inlet.stream)
        ]
        longest = LOST_LOOK_S if self._supervisor.waits else WAKE_AT_LEAST_S
        return min(wait_s(min(expected, default=longest)), longest)

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
        assert self._pipeline is not None
        while not self._stopping:
            while self._successors:
                self._in_use, spotter = self._successors.popleft()
                self._take_over(self.pipeline(self._in_use, spotter))
            self._let_them_follow()  # first: who comes meanwhile must be met before anything of theirs is scored
            self._meet_satellites()
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
            self._part_with_satellites()
            if self.listener is not None and all(inlet.drained for inlet in self._inlets):  # there may be nobody
                self._reports.idle()
            self._look_round()
            if self.listener is None and self._pipeline.finished:
                if not self._stopping:  # else it is who stops it that ended the sources, and a reload goes on
                    self._reports.over(self._supervisor.failure)
                return
            self._part_with_sources()
            self._wait()

    def _let_them_follow(self) -> None:
        """Where more is heard than can be told, scoring waits: else what is untold would pile up, and whoever wants the
        daemon to stop, or anything else of it, would wait behind that."""
        while self._reports.behind() and not self._stopping:
            time.sleep(FOLLOW_S)

    def _weigh(self, scored: Scored, begun: float, now: float) -> None:
        """Note how late these windows are, and once a second whether there is more to do than time."""
        self._busy_s += now - begun
        if len(scored):
            self.windows += len(scored)
            self.scored_at = now
        self._lags_told.scored += len(scored)
        for inlet in self._that_can_wait:
            self._in_time[inlet.stream] = inlet.keeps_time
        timed = self._in_time[scored.streams] & (scored.ends > self._dozed_until[scored.streams])
        if timed.any():
            windows = zip(scored.streams[timed].tolist(), scored.ends[timed].tolist(), strict=True)
            lags = now - np.array([self._arrived_at(stream, end) for stream, end in windows])
            self._lags.note(lags)
            self._lags_told.note(lags)
        if now - self._looked_at >= LOOK_EVERY_S:
            share, lag_ms = self._busy_s / (now - self._looked_at), self._lags.percentile_ms(99.0)
            self.lags_ever.take_in(self._lags)
            self._lags, self._busy_s, self._looked_at = load.LagMeter(), 0.0, now
            before = self._overload.stretch
            if self._overload.look(share, lag_ms) != before:
                self._stretch(lag_ms)

    def _stretch(self, lag_ms: int | None) -> None:
        """Go on at the hop that the load allows."""
        assert self._pipeline is not None
        self._take_over(self.pipeline(self._in_use, self._pipeline.spotter))
        self._reports.overload(Overload(hop_ms=self.hop_ms, lag_ms=lag_ms))

    def _take_over(self, successor: Pipeline) -> None:
        assert self._pipeline is not None
        successor.take_over(self._pipeline)
        self._go_on_with(successor)

    def _go_on_with(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        hop, most = pipeline.schedule.hop, pipeline.schedule.max_batch
        self._doze_s = min(DOZE_S, (most - 2) * hop / SAMPLE_RATE) - self._look_s
        self._pause = min(max(samples(REST_S) // hop, 1), max(most - 2, 0), pipeline.rules.smoothing - 1) * hop

    def _meet_satellites(self) -> None:
        """Who came and who went since, before anything of theirs is scored."""
        assert self._pipeline is not None
        while self.listener is not None and self.listener.news:
            news = self.listener.news.popleft()
            if isinstance(news, Left):
                self._leaving[news.slot] = news
                continue
            self.streams[news.slot] = StreamInfo(
                news.name, live=True, lead_in=False, origin=news.origin, passing=news.passing
            )
            self._slots[news.name] = news.slot
            if not news.passing:
                self._rounds.join(news.slot, news.name, news.origin)
            self._pipeline.forget(news.slot)
            self._reports.satellite(StreamJoined(stream=news.name, rate=news.rate, channels=news.channels))

    def _part_with_satellites(self) -> None:
        """Those whose last window is scored: their slot may go to another."""
        assert self._pipeline is not None
        for slot, left in list(self._leaving.items()):
            if self._pipeline.scored_all_of(slot):
                assert self.listener is not None
                name = self.streams[slot].name
                del self._leaving[slot]
                self._rounds.part(slot)
                self._pipeline.forget(slot)
                self._reports.then(functools.partial(self._let_go, slot, name))
                self._reports.satellite(StreamLeft(stream=name, reason=left.reason, heard_s=seconds(left.heard)))

    def _let_go(self, slot: int, name: str) -> None:
        """Nothing more was heard of this satellite. Who is told so, and then asks how things are, must not find it."""
        assert self.listener is not None
        del self._slots[name]
        self.streams[slot] = FREE
        self.listener.release(slot, name)

    def _part_with_sources(self) -> None:
        """Those that ended by themselves, while others go on."""
        assert self._pipeline is not None
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
        if self.listener is not None:
            for event in self._rounds.look(now, self._ring, self.listener.has_paused):
                self._tell(event, None)
