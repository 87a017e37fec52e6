"""Sources and the inference thread of one configuration, from start to stop."""

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kwsd.audio_format import WINDOW, seconds
from kwsd.config import Config, FileConfig, MicrophoneConfig, StreamConfig
from kwsd.errors import INTERNAL, IO, AudioError, KwsdError
from kwsd.event import AudioLost, StreamState
from kwsd.inlet import Inlet
from kwsd.pipeline import Pipeline, Progress, StreamInfo, make_ring
from kwsd.source import AudioFile, Microphone, RawPcm, Source
from kwsd.span import level_dbfs
from kwsd.spotter import Spotter

DEAF_AFTER_S = 2.0  # a live source that delivered nothing for this long is lost
SWITCH_S = 0.0005  # the audio callback waits at most this long for the interpreter lock; Python has 5 ms
SLACK_S = 0.001  # a block that comes this much after its time still finds nobody waiting in vain
LATE_S = 0.003  # how soon to look again for a block that is late
WAKE_AT_LEAST_S = 0.5  # how often the inference thread looks round without being woken


def make_source(stream: StreamConfig, config: Config) -> Source:
    """The source a stream of the config describes. Raises KwsdError if it cannot be had."""
    channel = None if stream.channel == "mix" else stream.channel - 1
    if isinstance(stream, MicrophoneConfig):
        return Microphone(stream.device, channel, stream.block_ms)
    if isinstance(stream, FileConfig):
        return AudioFile(config.resolve(stream.path), channel, realtime=stream.realtime)
    path = stream.path if stream.path == "-" else str(config.resolve(stream.path))
    return RawPcm(path, stream.rate, stream.channels, stream.format, channel)


@dataclass(frozen=True)
class Reports:
    """What the inference thread has to say. All are called from that thread."""

    progress: Callable[[Progress], None]  # windows were scored, or audio was lost
    audio_lost: Callable[[AudioLost, KwsdError], None]  # a stream broke
    over: Callable[[KwsdError | None], None]  # nothing more will come, and why if that is wrong


class Listening:
    """Runs from `start` to `stop`. One thread scores windows whenever a source wakes it."""

    def __init__(self, config: Config, reports: Reports) -> None:
        """Raises KwsdError if a source cannot be had."""
        self.config = config
        self._reports = reports
        self.sources: Sequence[Source] = [make_source(stream, config) for stream in config.streams]
        self.streams = [
            StreamInfo(stream.name, source.live, source.lead_in)
            for stream, source in zip(config.streams, self.sources, strict=True)
        ]
        self._ring = make_ring(config, len(self.sources))
        self._inlets = [Inlet(self._ring, i, s.rate, s.channels, s.channel) for i, s in enumerate(self.sources)]
        self._wakeups: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._pipeline: Pipeline | None = None
        self._successor: Pipeline | None = None
        self._broken: set[int] = set()
        self._failure: KwsdError | None = None
        self._thread = threading.Thread(target=self._guarded, name="inference", daemon=True)

    def start(self, spotter: Spotter) -> None:
        """Raises KwsdError if a source refuses to start."""
        self._pipeline = self.pipeline(self.config, spotter)
        for source, inlet in zip(self.sources, self._inlets, strict=True):
            inlet.wrote_at = time.monotonic()
            source.start(inlet, self._waker(inlet))
        sys.setswitchinterval(SWITCH_S)
        self._thread.start()

    def pipeline(self, config: Config, spotter: Spotter) -> Pipeline:
        """A pipeline on these streams. Raises ConfigError if config and model contradict each other."""
        return Pipeline(config, spotter, self._ring, self._inlets, self.streams)

    def replace(self, successor: Pipeline) -> None:
        """Go on with another pipeline from the next batch on, without a gap."""
        self._successor = successor
        self._wake()

    def time_writes(self, durations_us: list[float]) -> None:
        """Before `start`, with one stream: note how long each block holds up the thread that delivers it."""
        [inlet] = self._inlets
        append = inlet.append

        def timed_append(block: bytes) -> None:
            begun = time.perf_counter_ns()
            append(block)
            durations_us.append((time.perf_counter_ns() - begun) / 1000)

        inlet.append = timed_append  # type: ignore[method-assign]

    def stop(self) -> None:
        """Stop the sources and the thread; returns when both have."""
        self._stopping = True
        for source in self.sources:
            source.stop()
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def states(self) -> tuple[StreamState, ...]:
        """How the streams are. May be asked from any thread."""
        return tuple(self._state(i) for i in range(len(self.sources)))

    def _state(self, stream: int) -> StreamState:
        end, second = self._ring.ends[stream], np.zeros(WINDOW, np.float32)
        whole = self._ring.read(stream, end - WINDOW, second)
        return StreamState(
            stream=self.streams[stream].name,
            heard_s=seconds(end),
            lag_ms=round((time.monotonic() - self._inlets[stream].wrote_at) * 1000),
            level_dbfs=round(level_dbfs(second), 1) if whole and second.any() else None,
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
        next_ends = self._pipeline.schedule.first_due(self._ring).tolist()
        for inlet, end in zip(self._inlets, next_ends, strict=True):
            inlet.want(end)
            if inlet.wanted or self._ring.ends[inlet.stream] >= end:  # it came just now, or more came than fits a batch
                return
        with contextlib.suppress(queue.Empty):
            self._wakeups.get(timeout=self._patience())
            while True:
                self._wakeups.get_nowait()

    def _patience(self) -> float:
        """Seconds to wait at most: until the next block that completes a window should be here, or a little longer if
        it should have been."""
        expected = [
            inlet.due_in(source.block_s)
            for source, inlet in zip(self.sources, self._inlets, strict=True)
            if source.block_s is not None and not inlet.ended
        ]
        soonest = min(expected, default=WAKE_AT_LEAST_S)
        return min(max(soonest + SLACK_S, LATE_S), WAKE_AT_LEAST_S)

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
            if self._successor is not None:
                successor, self._successor = self._successor, None
                successor.take_over(self._pipeline)
                self._pipeline = successor
            progress = self._pipeline.advance()
            if progress.scored or progress.overruns:
                self._reports.progress(progress)
            self._look_for_losses()
            if self._pipeline.finished:
                self._reports.over(self._failure)
                return
            self._wait()

    def _look_for_losses(self) -> None:
        for i, (source, inlet) in enumerate(zip(self.sources, self._inlets, strict=True)):
            failure = source.failure
            if source.live and not inlet.ended and time.monotonic() - inlet.wrote_at > DEAF_AFTER_S:
                failure = failure or AudioError(
                    f"stream {self.streams[i].name}: no audio for {DEAF_AFTER_S:g} s; "
                    "check the device and the sound server",
                    exit_code=IO,
                )
            if failure is not None and i not in self._broken:
                self._broken.add(i)
                self._failure = self._failure or failure
                self._reports.audio_lost(AudioLost(stream=self.streams[i].name, reason=str(failure)), failure)
                inlet.end()
