"""`kwsd bench`: what every stage costs, and the whole daemon on real audio, fed and timed from outside.

The words come from the recording kwsd ships (`demo.flac`, synthetic speech) and their true ends from `demo.tsv`.
"""

import contextlib
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples
from kwsd.cascade import Cascade
from kwsd.config import ENVIRONMENT, OF_OURS, Config, FileConfig, ListenConfig, MicrophoneConfig, WyomingConfig
from kwsd.engines import load_spotter
from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.event import Stamp
from kwsd.inlet import Inlet
from kwsd.listening import Listening, Reports
from kwsd.pipeline import Pipeline, StreamInfo, make_ring
from kwsd.proc import cpu_s, rss_mib
from kwsd.recording import DEMO, read_recording
from kwsd.ring import Samples
from kwsd.spotter import Spotter

CALLBACK_S = 10.0  # of audio the callback is timed over
STAGE_HOPS = 200  # hops every stage is timed over
RESTED_HOPS = 40  # the same with a pause before each
FEED_S = 0.05  # of audio written to the daemon at once
HIT_S = 0.75  # a detection this long after a word's end still belongs to it
SETTLED_S = 5.0  # after READY: memory is compared from here on
READY_S = 60.0  # that a daemon may take until audio reaches its model

ENDED = "bench: the daemon ended by itself; is there memory for it?"

Figures = dict[str, Any]


def measure(config: Config, streams: int, seconds: float) -> Figures:
    """All figures. Times in µs or ms as the names say; shares are of one core.

    Raises KwsdError if the daemon does not come up.
    """
    spotter = load_spotter(config.model_path, config.device, config.model_sha256, config.engine)
    hop_s = config.window.hop_ms / 1000
    return {
        "model": spotter.info.id,
        "architecture": spotter.info.architecture,
        "engine": spotter.engine,
        "hop_ms": config.window.hop_ms,
        "streams": streams,
        "callback": measure_callback(config, spotter),
        "stages": measure_stages(config, spotter, streams),
        "stages_rested": measure_stages(config, spotter, streams, hops=RESTED_HOPS, pause_s=hop_s),
        "bound": measure_bound(config, spotter, streams),
        "daemon": measure_daemon(config, streams, seconds),
        "quiet": measure_daemon(config, streams, seconds, quiet=True),
        "microphone": measure_at_microphone(config, seconds),
    }


def spread(values: list[float], digits: int = 1) -> Figures:
    """Median, 95th and 99th percentile, and how many there were."""
    if not values:
        return {"n": 0}
    p50, p95, p99 = (round(float(v), digits) for v in np.percentile(values, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "n": len(values)}


# --- callback -----------------------------------------------------------------------------------------------


def measure_callback(config: Config, spotter: Spotter) -> Figures:
    """How long the audio thread is held up per block, while inference runs beside it."""
    own = _microphone_of(config)
    with tempfile.TemporaryDirectory() as folder:
        tape = _write_tape(Path(folder), _words_for(CALLBACK_S + 5.0))
        stream = own or FileConfig(path=str(tape))
        times: list[float] = []
        listening = Listening(
            msgspec.structs.replace(config, streams=(stream,), listen=ListenConfig(), wyoming=WyomingConfig()),
            Reports(lambda _: None, lambda *_: None, lambda _: None),
        )
        listening.time_writes(times)
        listening.start(spotter)
        time.sleep(CALLBACK_S)
        times = times or listening.took_us()
        listening.stop()
    source = "microphone" if own else "file, for want of a microphone"
    return {"source": source, "us_per_block": spread(times[5:])}  # the first blocks pay for warming up


def _microphone_of(config: Config) -> MicrophoneConfig | None:
    """The first one of the config, or the default one; None if there is none here."""
    from kwsd.portaudio import portaudio

    try:
        if not portaudio().devices():
            return None
    except KwsdError:
        return None
    own = [stream for stream in config.streams if isinstance(stream, MicrophoneConfig)]
    return own[0] if own else MicrophoneConfig()


# --- stages -------------------------------------------------------------------------------------------------


def measure_stages(
    config: Config, spotter: Spotter, streams: int, *, hops: int = STAGE_HOPS, pause_s: float = 0.0
) -> Figures:
    """Time per hop of each stage for so many streams, one after the other, as fast as they go or with a pause before
    each hop, after which nothing is in the caches any more."""
    speech = np.resize(read_recording(DEMO), WINDOW + hops * samples(config.window.hop_ms / 1000))
    ring = make_ring(config, streams)
    inlets = [Inlet(ring, i, SAMPLE_RATE, 1, None) for i in range(streams)]
    pipeline = Pipeline(config, spotter, ring, inlets, [StreamInfo(f"s{i}", False, False) for i in range(streams)])
    stamp = Stamp()
    hop = pipeline.schedule.hop
    before = _asked(spotter)
    times: dict[str, list[float]] = {"convert": [], "window": [], "inference": [], "debouncer": [], "event": []}
    for start in range(0, speech.size - hop, hop):
        if pause_s and start >= WINDOW:
            time.sleep(pause_s)
        for inlet in inlets:
            inlet.write(speech[start : start + hop, None])
        clock = _Laps()
        for inlet in inlets:
            inlet.pump()
        converted = clock.lap_us()
        due = pipeline.schedule.take(ring)
        if not len(due):
            continue
        found = clock.lap_us()
        scored = pipeline.scorer.score(ring, due)
        inferred = clock.lap_us()
        detections = list(pipeline.debouncer.step(scored.streams, scored.ends, scored.posteriors))
        judged = clock.lap_us()
        for detection in detections:
            stamp.line(pipeline.describe(detection))
        told = clock.lap_us()
        laps = (converted, found, inferred, judged, told / max(1, len(detections)))
        for stage, lap in zip(times, laps, strict=True):
            times[stage].append(lap) if stage != "event" or detections else None
    per_hop = sum(float(np.median(times[stage])) for stage in ("convert", "window", "inference", "debouncer"))
    asked = _asked(spotter) - before
    return {
        **{f"{stage}_us": spread(values) for stage, values in times.items()},
        "windows_per_second": round(streams / per_hop * 1e6),
        "second_asked_percent": round(asked[1] / asked[0] * 100, 1) if asked[0] else None,
        "core_share_per_stream_percent": round(per_hop / (config.window.hop_ms * 1000) / streams * 100, 3),
    }


def _asked(spotter: Spotter) -> NDArray[np.int64]:
    """Windows that a cascade has heard, and that it asked its second network about: (2,)."""
    return np.array([spotter.heard, spotter.asked] if isinstance(spotter, Cascade) else [0, 0])


def measure_bound(config: Config, spotter: Spotter, streams: int) -> Figures | None:
    """The least a hop of one stream can cost on this core; None where it cannot be counted."""
    if importlib.util.find_spec("onnx") is None:
        return None
    from kwsd.bound import peak, work

    counted = work(config.model_path, spotter, samples(config.window.hop_ms / 1000))
    if counted is None:
        return None
    most = peak()
    return {
        "macs": counted.macs,
        "weight_bytes": counted.weight_bytes,
        "state_bytes": counted.state_bytes,
        "peak_gmacs_per_s": round(most.macs_per_s / 1e9, 1),
        "peak_gb_per_s": round(most.bytes_per_s / 1e9, 1),
        "us_per_hop": round(streams * most.least_us(counted, streams), 1),
    }


class _Laps:
    def __init__(self) -> None:
        self._at = time.perf_counter_ns()

    def lap_us(self) -> float:
        now = time.perf_counter_ns()
        lap, self._at = (now - self._at) / 1000, now
        return lap


# --- the daemon ---------------------------------------------------------------------------------------------


def demo_words() -> list[tuple[float, float, str]]:
    """(start_s, end_s, keyword) of every word in the recording kwsd ships."""
    with DEMO.with_suffix(".tsv").open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines, delimiter="\t")
        return [(float(row["start_s"]), float(row["end_s"]), row["keyword"]) for row in rows]


def _words_for(seconds: float) -> Samples:
    return np.resize(read_recording(DEMO), int(seconds * SAMPLE_RATE))


def _write_tape(folder: Path, tape: Samples) -> Path:
    path = folder / "tape.wav"
    soundfile.write(path, tape, SAMPLE_RATE, subtype="PCM_16")
    return path


def measure_daemon(config: Config, streams: int, seconds: float, *, quiet: bool = False) -> Figures:
    """A real `kwsd run` on real-time audio, words or a quiet room: start-up, CPU, memory, latency from a word's end to
    its line."""
    tape = _hiss(int(seconds * SAMPLE_RATE)) if quiet else _words_for(seconds)
    with tempfile.TemporaryDirectory() as folder:
        others = str(_write_tape(Path(folder), tape)) if streams > 1 else ""
        named = [{"source": "pcm", "name": "bench"}]
        named += [{"source": "file", "name": f"tape{i}", "path": others} for i in range(1, streams)]
        with _daemon(config, named, Path(folder)) as watch:
            figures = watch.through(tape)
            return figures if quiet else figures | watch.words(seconds)


def measure_at_microphone(config: Config, seconds: float) -> Figures | None:
    """The same on whatever a microphone hears now; None if there is none."""
    own = _microphone_of(config)
    if own is None:
        return None
    named = [{"source": "microphone", **msgspec.to_builtins(own)}]
    with tempfile.TemporaryDirectory() as folder, _daemon(config, named, Path(folder)) as watch:
        return watch.along(seconds)


@contextlib.contextmanager
def _daemon(config: Config, streams: list[dict[str, Any]], folder: Path) -> "Iterator[_Watch]":
    path = _write_config(config, streams, folder)
    started = time.monotonic()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "kwsd", "run", "--config", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment_alone(),
    )
    watch = _Watch(daemon, started)
    try:
        yield watch
    except (OSError, StopIteration):  # nobody reads any more, or there is nobody of whom anything can be measured
        raise KwsdError(ENDED, exit_code=UNAVAILABLE) from None
    finally:
        watch.end()


def _write_config(config: Config, streams: list[dict[str, Any]], folder: Path) -> Path:
    """The same settings with other streams."""
    tree = settings_alone(config)
    tree["streams"], tree["listen"] = streams, {}
    tree["sinks"]["socket"]["enabled"] = True
    tree["sinks"]["socket"]["path"] = str(folder / "events.sock")
    path = folder / "bench.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path


def settings_alone(config: Config) -> dict[str, Any]:
    """Those of a config for a daemon that is measured: no lamp is switched by what it hears, nobody else is told of it,
    and what the config listens at may belong to a daemon that runs."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    for hidden in OF_OURS:
        del tree[hidden]
    tree["model"] = str(config.model_path.resolve())
    tree["hooks"], tree["http"], tree["wyoming"] = [], {}, {}
    tree["sinks"]["mqtt"], tree["sinks"]["stdout"] = {}, True
    return tree


def environment_alone() -> dict[str, str]:
    """Ours without settings, which would win over those that are written for a daemon that is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT)}


class _Watch:
    """Feeds the daemon in real time and notes what it says, uses and takes."""

    def __init__(self, daemon: "subprocess.Popen[bytes]", started: float) -> None:
        self._daemon, self._started = daemon, started
        self._begun = 0.0  # when the first sample was due
        self._ready_s = 0.0
        self._events: list[tuple[float, dict[str, Any]]] = []
        self._memory: list[float] = []  # MiB, every second from SETTLED_S after the start of audio
        self._listening = threading.Thread(target=self._listen, daemon=True)
        self._listening.start()

    def through(self, tape: Samples) -> Figures:
        """What it takes to hear a tape."""
        stdin = self._daemon.stdin
        assert stdin is not None
        # Fills the first window, so that READY measures kwsd and not the clock.
        stdin.write(_pcm(_hiss(WINDOW)))
        stdin.flush()
        figures = self._measure(lambda: self._feed(tape))
        stdin.close()
        self._listening.join(timeout=10)
        return figures

    def along(self, seconds: float) -> Figures:
        """What it takes to hear whatever is there to be heard."""
        return self._measure(lambda: self._wait(seconds))

    def end(self) -> None:
        """There is nothing more to be measured."""
        self._daemon.kill()
        self._daemon.wait()
        self._listening.join()
        for pipe in (self._daemon.stdin, self._daemon.stdout):
            with contextlib.suppress(BrokenPipeError):  # what nobody read is lost
                if pipe is not None:
                    pipe.close()

    def _measure(self, hear: Callable[[], None]) -> Figures:
        self._wait_for_ready()
        cpu = cpu_s(self._daemon.pid)
        self._begun = time.monotonic()
        hear()
        elapsed, cpu = time.monotonic() - self._begun, cpu_s(self._daemon.pid) - cpu
        memory = [*self._memory, rss_mib(self._daemon.pid)]
        return {
            "seconds": round(elapsed, 1),
            "ready_s": round(self._ready_s, 2),
            "cpu_percent_of_one_core": round(100 * cpu / elapsed, 3),
            "rss_mib": round(memory[-1], 1),
            "rss_growth_mib": round(memory[-1] - memory[0], 2),
            "overruns": sum(1 for _, event in self._events if event["type"] == "overrun"),
        }

    def _listen(self) -> None:
        assert self._daemon.stdout is not None
        for line in self._daemon.stdout:
            self._events.append((time.monotonic(), json.loads(line)))

    def _wait_for_ready(self) -> None:
        while not (ready := [at for at, event in self._events if event["type"] == "ready"]):
            if self._daemon.poll() is not None:
                raise KwsdError("bench: the daemon did not start; try kwsd run by hand", exit_code=UNAVAILABLE)
            if time.monotonic() - self._started > READY_S:
                what = f"no audio reached the daemon's model in {READY_S:g} s"
                raise KwsdError(f"bench: {what}; kwsd doctor says more", exit_code=UNAVAILABLE)
            time.sleep(0.01)
        self._ready_s = ready[0] - self._started

    def _feed(self, tape: Samples) -> None:
        assert self._daemon.stdin is not None
        size = samples(FEED_S)
        pcm = _pcm(tape)
        for start in range(0, len(pcm), 2 * size):
            piece = pcm[start : start + 2 * size]
            self._wait((start + len(piece)) / 2 / SAMPLE_RATE)
            self._daemon.stdin.write(piece)
            self._daemon.stdin.flush()

    def _wait(self, until_s: float) -> None:
        """Until so many seconds have passed since the audio began."""
        while (left := self._begun + until_s - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            if time.monotonic() - self._begun >= SETTLED_S + len(self._memory):
                self._memory.append(rss_mib(self._daemon.pid))

    def words(self, seconds: float) -> Figures:
        """Which of the words were heard, and how long after their end the line came."""
        length = read_recording(DEMO).size / SAMPLE_RATE
        heard = [(at, e) for at, e in self._events if e["type"] == "detection" and e["stream"] == "bench"]
        said, latencies = 0, []
        for turn in range(int(seconds // length)):
            for start, end, keyword in demo_words():
                said += 1
                begin, over = self._begun + turn * length + start, self._begun + turn * length + end
                hits = [at for at, e in heard if e["keyword"] == keyword and begin <= at <= over + HIT_S]
                latencies += [(hits[0] - over) * 1000] if hits else []
        return {"words": said, "words_heard": len(latencies), "word_end_to_event_ms": spread(latencies, 0)}


def _hiss(size: int) -> Samples:
    """A quiet room: -64 dBFS."""
    return np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(20.0 / 32768.0)


def _pcm(tape: Samples) -> bytes:
    return (tape * 32767.0).astype("<i2").tobytes()


# --- report -------------------------------------------------------------------------------------------------


def report(figures: Figures) -> str:
    """For people."""
    stages, daemon, callback = figures["stages"], figures["daemon"], figures["callback"]
    rows: list[tuple[str, str]] = [
        ("model", f"{figures['architecture']} {figures['model']}, {figures['engine']}"),
        ("streams, hop", f"{figures['streams']}, {figures['hop_ms']:g} ms"),
        (f"callback ({callback['source']})", _spread(callback["us_per_block"], "µs per block")),
    ]
    rows += [
        (name, _spread(stages[f"{name}_us"], "µs per hop")) for name in ("convert", "window", "inference", "debouncer")
    ]
    if figures["bound"]:
        rows.append(("inference at least", _bound(figures["bound"], stages["inference_us"]["p50"])))
    elif importlib.util.find_spec("onnx") is None:
        rows.append(("inference at least", "not measured without onnx; pip install 'kwsd[train]'"))
    if stages["second_asked_percent"] is not None:
        rows.append(("second network", f"asked about {stages['second_asked_percent']} % of these windows"))
    rested = figures["stages_rested"]
    rows += [
        (f"{name}, rested", _spread(rested[f"{name}_us"], "µs per hop"))
        for name in ("convert", "window", "inference", "debouncer")
    ]
    rows += [
        ("event", _spread(stages["event_us"], "µs each")),
        ("windows per second", f"{stages['windows_per_second']}"),
        ("stages, one stream", f"{stages['core_share_per_stream_percent']} % of one core"),
        ("daemon", f"{daemon['seconds']} s of real-time audio"),
        ("  time to READY", f"{daemon['ready_s']} s"),
        ("  CPU, all in, with words", f"{daemon['cpu_percent_of_one_core']} % of one core"),
        ("  memory (RSS)", f"{daemon['rss_mib']} MiB, grew {daemon['rss_growth_mib']} MiB"),
        ("  CPU in a quiet room", f"{figures['quiet']['cpu_percent_of_one_core']} % of one core"),
        ("  CPU at the microphone", _at_microphone(figures["microphone"])),
        ("  overruns", f"{daemon['overruns']}"),
        ("  words heard", f"{daemon['words_heard']} of {daemon['words']}"),
        ("  end of word → event", _spread(daemon["word_end_to_event_ms"], "ms")),
    ]
    return "\n".join(f"{name:28s} {value}" for name, value in rows)


def _at_microphone(figures: Figures | None) -> str:
    return f"{figures['cpu_percent_of_one_core']} % of one core, of what it heard" if figures else "there is none"


def _bound(bound: Figures, took_us: float) -> str:
    least, macs, megabytes = bound["us_per_hop"], bound["macs"] / 1e6, bound["weight_bytes"] / 1e6
    at = f"{bound['peak_gmacs_per_s']:g} GMAC/s and {bound['peak_gb_per_s']:g} GB/s"
    return f"{least:g} µs: {macs:.2f} M MACs and {megabytes:.2f} MB at {at}; it takes {took_us / least:.1f} times that"


def _spread(values: Figures, unit: str) -> str:
    if not values["n"]:
        return "none"
    return f"p50 {values['p50']:g}  p95 {values['p95']:g}  p99 {values['p99']:g} {unit} (n = {values['n']})"
