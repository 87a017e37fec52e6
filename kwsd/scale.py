"""`kwsd bench --scale`: how many real-time streams one core carries, by the engine alone and through the listener.

A number of streams is carried when the 99th percentile of the lag, from the arrival of a window's last sample to its
score, stays under two hops, through the listener that of every second, and no window is skipped. Every stream speaks:
the recording kwsd ships, each from another place. They deliver a hop at a time, evenly spread over the hop.
"""

import contextlib
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples
from kwsd.bench import ENDED, environment_alone, settings_alone
from kwsd.config import MOST_SATELLITES, Config, ListenConfig
from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.load import LagMeter
from kwsd.pipeline import Pipeline, StreamInfo, make_ring
from kwsd.proc import cpu_s
from kwsd.recording import DEMO, read_recording
from kwsd.spotter import Spotter

GROUPS = 20  # streams of a group deliver together; the groups one after the other within a hop
FIRST = 50  # streams to begin with
NEAR = 0.04  # how near the largest number is told
MOST = 20_000  # streams of the engine
JOIN_PER_S = 100  # streams: their first windows are whole ones
SETTLE_S = 2.0  # until the daemon is measured
SPREAD = 977  # samples from one stream's place in the recording to the next one's
COMING_S = 60.0  # that all streams may take to come, beyond the time it takes them to set out
END_S = 30.0  # that a daemon may take to end


# The usual lag and the worst: the engine's are of all windows; a daemon tells the p99 of every second.
LAGS = {"engine": ("lag_p50_ms", "lag_p99_ms"), "listener": ("median_lag_p99_ms", "highest_lag_p99_ms")}


@dataclass(frozen=True)
class Point:
    """So many streams at once."""

    streams: int
    usual_lag_ms: int  # as LAGS says
    worst_lag_ms: int
    core_percent: float  # CPU time over time
    windows_per_s: float
    skipped: int  # windows

    def carried(self, hop_ms: float) -> bool:
        """Whether they were served in time."""
        due = 0.95 * self.streams * 1000.0 / hop_ms
        return self.worst_lag_ms < 2 * hop_ms and not self.skipped and self.windows_per_s > due


def largest(
    measure: Callable[[int], Point], hop_ms: float, say: Callable[[Point], None], most: int = MOST
) -> list[Point]:
    """Doubles the streams until they are too many, or `most`, then closes in: all that was measured, in the order of
    streams."""
    points: dict[int, Point] = {}

    def fits(streams: int) -> bool:
        points[streams] = measure(streams)
        say(points[streams])
        return points[streams].carried(hop_ms)

    good, bad = 0, FIRST
    while bad <= most and fits(bad):
        good, bad = bad, min(2 * bad, max(most, bad + 1))
    while bad - good > max(1, NEAR * bad):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return [points[streams] for streams in sorted(points)]


def best(points: list[Point], hop_ms: float) -> int:
    """The largest number of streams that was carried."""
    return max((point.streams for point in points if point.carried(hop_ms)), default=0)


@contextlib.contextmanager
def on_one_core() -> Iterator[list[int]]:
    """This process on the first of its cores; yields the others, or the same one where there is none."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        yield cores[1:] or cores
    finally:
        os.sched_setaffinity(0, cores)


def _speech() -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """The recording, twice, so that a hop can begin anywhere in it."""
    recording = read_recording(DEMO)
    return np.concatenate([recording, recording])


# --- the engine alone ---------------------------------------------------------------------------------------


def engine(config: Config, spotter: Spotter, streams: int, seconds: float) -> Point:
    """Ring, windows, network and debouncer in this thread, fed without sockets."""
    hop, speech = samples(config.window.hop_ms / 1000), _speech()
    length = len(speech) // 2
    ring = make_ring(config, 0, streams)
    rooms = [StreamInfo(f"s{i}", live=True, lead_in=False) for i in range(streams)]
    pipeline = Pipeline(config, spotter, ring, [], rooms)
    appenders = [ring.appender(stream) for stream in range(streams)]
    pcm = memoryview(speech).cast("B")  # type: ignore[arg-type]
    places = [stream * SPREAD % length for stream in range(streams)]

    def deliver(stream: int, size: int) -> None:
        start = places[stream]
        for at in range(0, size, hop):
            appenders[stream](pcm[4 * (start + at) : 4 * (start + at + hop)])  # type: ignore[arg-type]
        places[stream] = (start + size) % length

    for stream in range(streams):
        deliver(stream, WINDOW)
    pipeline.advance()
    groups = [range(group, streams, GROUPS) for group in range(GROUPS)]
    lags, tick_s, skipped, turns = LagMeter(), hop / SAMPLE_RATE / GROUPS, 0, 0
    begun, cpu = time.monotonic(), time.process_time()
    while turns * tick_s < seconds:
        time.sleep(max(0.0, begun + turns * tick_s - time.monotonic()))
        came = []
        while begun + turns * tick_s <= time.monotonic() and turns * tick_s < seconds:
            for stream in groups[turns % GROUPS]:
                deliver(stream, hop)
            came.append((len(groups[turns % GROUPS]), begun + turns * tick_s))
            turns += 1
        scored = pipeline.advance().scored
        now = time.monotonic()
        skipped += int(scored.skipped.sum())
        for count, at in came:
            lags.note(np.full(count, now - at))
    elapsed = time.monotonic() - begun
    return Point(
        streams=streams,
        usual_lag_ms=lags.percentile_ms(50.0) or 0,
        worst_lag_ms=lags.percentile_ms(99.0) or 0,
        core_percent=round(100 * (time.process_time() - cpu) / elapsed, 1),
        windows_per_s=round(lags.windows / elapsed, 1),
        skipped=skipped,
    )


# --- through the listener -----------------------------------------------------------------------------------


def through_listener(config: Config, cores: list[int], streams: int, seconds: float) -> Point:
    """A real daemon on one core, and processes on the others that connect and send in real time."""
    with tempfile.TemporaryDirectory() as folder:
        path = _write_config(config, Path(folder), streams)
        daemon = subprocess.Popen(
            [sys.executable, "-m", "kwsd", "run", "--config", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_alone(),
        )
        stop = multiprocessing.Event()
        shares = [list(range(i, streams, len(cores))) for i in range(len(cores))]
        clients = [
            multiprocessing.Process(
                target=_speak, args=(f"{folder}/audio.sock", share, config.window.hop_ms, core, stop)
            )
            for share, core in zip(shares, cores, strict=True)
            if share
        ]
        begun: list[multiprocessing.Process] = []
        try:
            _wait_until_listening(daemon)
            for client in clients:
                client.start()
                begun.append(client)
            return _watch(daemon, streams, config.window.hop_ms, seconds)
        finally:
            stop.set()
            daemon.terminate()
            for client in begun:
                client.join(timeout=10)
                client.kill()
            _end(daemon)


def _write_config(config: Config, folder: Path, streams: int) -> Path:
    tree = settings_alone(config)
    tree["streams"] = []
    tree["listen"] = msgspec.to_builtins(ListenConfig(on=("unix:audio.sock",), streams=max(1, streams)))
    tree["events"]["heartbeat_s"] = 1.0
    tree["sinks"]["socket"]["enabled"] = False
    path = folder / "scale.yaml"
    path.write_text(json.dumps(tree), encoding="utf-8")  # JSON is YAML
    return path


def _wait_until_listening(daemon: "subprocess.Popen[bytes]") -> None:
    assert daemon.stderr is not None
    line = b"it said nothing"
    for line in daemon.stderr:
        if b"listening on" in line:
            threading.Thread(target=_throw_away, args=(daemon.stderr,), daemon=True).start()
            return
    why = line.decode(errors="replace").strip().removeprefix("kwsd: ")
    raise KwsdError(f"bench: the daemon did not start: {why}", exit_code=UNAVAILABLE)


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    """One that has far too much to do is not waited for."""
    threading.Thread(target=_throw_away, args=(daemon.stdout,), daemon=True).start()  # it has much to say in the end
    try:
        daemon.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    for pipe in (daemon.stdout, daemon.stderr):
        if pipe is not None:
            pipe.close()


def _throw_away(lines: Any) -> None:
    with contextlib.suppress(ValueError):
        for _ in lines:
            pass


def _watch(daemon: "subprocess.Popen[bytes]", streams: int, hop_ms: float, seconds: float) -> Point:
    """What the daemon says of itself once all are there, and what it takes. Raises KwsdError if some do not come."""
    assert daemon.stdout is not None
    joined, skipped, lags, windows = 0, 0, [], 0
    settled = begun = cpu = first_s = last_s = 0.0
    deadline = time.monotonic() + streams / JOIN_PER_S + COMING_S
    for line in daemon.stdout:
        event = json.loads(line)
        joined += event["type"] == "stream_joined"
        if not settled and joined == streams:
            settled = time.monotonic() + WINDOW / SAMPLE_RATE + SETTLE_S
        if not settled and time.monotonic() > deadline:
            break
        if not settled or time.monotonic() < settled:
            continue
        skipped += event.get("skipped_windows", 0)
        if event["type"] == "overload":
            skipped += 1
        if event["type"] == "heartbeat":
            if begun:
                windows += event["windows"]
                lags.append(event["lag_p99_ms"] or 0)
            begun, cpu = begun or time.monotonic(), cpu or cpu_s(daemon.pid)
            first_s, last_s = first_s or event["uptime_s"], event["uptime_s"]  # by its clock, however late we read it
            if time.monotonic() - begun >= seconds:
                break
    if not settled:
        raise KwsdError(
            f"bench: of {streams} satellites {joined} came; are there descriptors (ulimit -n) and memory for all?",
            exit_code=UNAVAILABLE,
        )
    elapsed = time.monotonic() - begun
    if not begun or elapsed < seconds:
        raise KwsdError(ENDED, exit_code=UNAVAILABLE)
    return Point(
        streams=streams,
        usual_lag_ms=int(np.median(lags or [0])),
        worst_lag_ms=max(lags, default=0),
        core_percent=round(100 * (cpu_s(daemon.pid) - cpu) / elapsed, 1),
        windows_per_s=round(windows / (last_s - first_s), 1),
        skipped=skipped,
    )


def _speak(path: str, share: list[int], hop_ms: float, core: int, stop: Any) -> None:
    """A process of satellites: each sends a hop of 16-bit samples at a time, in real time."""
    os.sched_setaffinity(0, [core])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, len(share) + 100)), hard))
    hop, speech = samples(hop_ms / 1000), _speech()
    length, pcm = len(speech) // 2, memoryview((speech * 32767.0).astype("<i2").tobytes())
    groups: list[list[tuple[socket.socket, int]]] = [[] for _ in range(GROUPS)]
    coming = iter(share)
    tick_s, turn, begun = hop / SAMPLE_RATE / GROUPS, 0, time.monotonic()
    joined = 0
    with contextlib.suppress(OSError):  # the daemon hangs up in the end
        while not stop.is_set():
            time.sleep(max(0.0, begun + turn * tick_s - time.monotonic()))
            while joined < JOIN_PER_S * turn * tick_s and (stream := next(coming, None)) is not None:
                groups[joined % GROUPS].append((_connect(path, stream), stream))
                joined += 1
            for connection, stream in groups[turn % GROUPS]:
                start = (stream * SPREAD + turn // GROUPS * hop) % length
                with contextlib.suppress(BlockingIOError):  # it takes no more: what is late shows in its windows
                    connection.send(pcm[2 * start : 2 * (start + hop)])
            turn += 1


def _connect(path: str, stream: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.sendall(b'{"name": "satellite %d"}\n' % stream)
    connection.setblocking(False)
    return connection


# --- figures ------------------------------------------------------------------------------------------------


def measure_scale(config: Config, spotter: Spotter, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Both searches, each on one core."""
    hop_ms = config.window.hop_ms

    def told(what: str) -> Callable[[Point], None]:
        return lambda p: say(
            f"{what}: {p.streams} streams, {_told(what)} {p.worst_lag_ms} ms, {p.core_percent} % of one core"
            f"{'' if p.carried(hop_ms) else ': too many'}"
        )

    with on_one_core() as others:
        alone = largest(lambda n: engine(config, spotter, n, seconds), hop_ms, told("engine"))
        connected = largest(
            lambda n: through_listener(config, others, n, seconds), hop_ms, told("listener"), MOST_SATELLITES
        )
    return {
        "model": spotter.info.id,
        "architecture": spotter.info.architecture,
        "hop_ms": hop_ms,
        "engine_streams_per_core": best(alone, hop_ms),
        "listener_streams_per_core": best(connected, hop_ms),
        "engine": [_as_builtins(point, "engine") for point in alone],
        "listener": [_as_builtins(point, "listener") for point in connected],
    }


def _as_builtins(point: Point, what: str) -> dict[str, Any]:
    """For JSON, with the lags by their names."""
    names = dict(zip(("usual_lag_ms", "worst_lag_ms"), LAGS[what], strict=True))
    return {names.get(name, name): value for name, value in asdict(point).items()}


def _told(what: str) -> str:
    """The worst lag's name, for people: *lag p99*, *highest lag p99*."""
    return LAGS[what][1].removesuffix("_ms").replace("_", " ")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Streams against lag and CPU, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6))
    for name, (_, lag) in LAGS.items():
        points = figures[name]
        streams = [point["streams"] for point in points]
        above.plot(streams, [point[lag] for point in points], "o-", label=f"{name}, {_told(name)}")
        below.plot(streams, [point["core_percent"] for point in points], "o-", label=name)
    above.axhline(2 * figures["hop_ms"], color="grey", linestyle="--", label="two hops")
    above.set_yscale("log")
    above.set_ylabel("lag (ms)")
    above.legend()
    below.set_ylabel("% of one core")
    below.set_xlabel(f"real-time streams, a window every {figures['hop_ms']:g} ms")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def report(figures: dict[str, Any]) -> str:
    """For people."""
    rows = [
        ("model", f"{figures['architecture']} {figures['model']}"),
        ("engine alone", f"{figures['engine_streams_per_core']} real-time streams on one core"),
        ("through the listener", f"{figures['listener_streams_per_core']} real-time streams on one core"),
    ]
    return "\n".join(f"{name:28s} {value}" for name, value in rows)
