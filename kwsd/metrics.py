"""What is counted and measured, behind one small interface: for SIGUSR1, for Prometheus, for whoever asks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from kwsd.event import (
    AudioFault,
    AudioLost,
    AudioRestored,
    BrokerRestored,
    Event,
    Heard,
    Overrun,
    Rejected,
    Reload,
    StreamJoined,
    StreamState,
)
from kwsd.load import LagMeter

CLIENTS = "clients"  # the label of all streams that come and go with a request
MOST_LABELS = 2000  # values of one figure; more are counted together
LAG_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0)

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Metric:
    """One figure, for each combination of its labels."""

    name: str
    kind: str  # counter: only grows; gauge: as it is now
    about: str
    labels: Labels = ()
    values: dict[Labels, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Histogram:
    """How many were at most so large."""

    name: str
    about: str
    buckets: tuple[tuple[float, int], ...]  # (at most, how many), the last of all
    total: float


COUNTED = {
    "detections": ("Keywords told.", ("stream", "keyword")),
    "rejections": ("Keywords that scored well and were not told, by the setting in the way.", ("keyword", "reason")),
    "overruns": ("Times that some audio was not listened to.", ("stream",)),
    "windows_skipped": ("Windows given up because inference was late.", ("stream",)),
    "samples_lost": ("Samples at 16 kHz that were overwritten before they were read.", ("stream",)),
    "device_overflows": ("Times that the sound system dropped audio.", ("stream",)),
    "losses": ("Times that a stream stopped delivering.", ("stream",)),
    "reconnects": ("Times that a lost stream delivered again.", ("stream",)),
    "attempts": ("Times that a microphone was tried to be opened again.", ("stream",)),
    "faults": ("Times that a microphone was found deaf.", ("stream", "fault")),
    "hooks": ("Hooks that were run, by how they ended.", ("hook", "how")),
    "mqtt_dropped": ("Events that an MQTT broker will never get, as it was away.", ("broker",)),
    "satellites": ("Satellites that connected.", ()),
    "reloads": ("Configurations read again, by whether they were taken.", ("ok",)),
    "windows_scored": ("Windows that went through the model.", ()),
    "blocks": ("Blocks of audio that came.", ("stream",)),
}


class Counters:
    """Counts since the start, whatever is reloaded meanwhile."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[Labels]] = {name: Counter() for name in COUNTED}

    def add(self, name: str, *labels: str, count: int = 1) -> None:
        """`count` more of one of COUNTED."""
        counts = self._counts[name]
        if labels not in counts and len(counts) >= MOST_LABELS:  # satellites of ever new names
            labels = ("other",) * len(labels)
        counts[labels] += count  # a zero is there to be seen, too

    def note(self, event: Event, *, passing: bool = False) -> None:
        """What an event says that happened; all streams that are `passing` count as one."""
        match event:
            case Heard():
                self.add("detections", CLIENTS if passing else event.stream, event.keyword)
            case Rejected():
                self.add("rejections", event.keyword, event.reason)
            case Overrun():
                stream = CLIENTS if passing else event.stream
                self.add("overruns", stream)
                self.add("windows_skipped", stream, count=event.skipped_windows)
                self.add("samples_lost", stream, count=event.lost_samples)
                self.add("device_overflows", stream, count=event.device_overflows)
            case AudioLost():
                self.add("losses", event.stream)
            case AudioRestored():
                self.add("reconnects", event.stream)
            case AudioFault():
                self.add("faults", event.stream, event.fault)
            case StreamJoined():
                self.add("satellites")
            case BrokerRestored():
                self.add("mqtt_dropped", event.broker, count=event.dropped)
            case Reload():
                self.add("reloads", "yes" if event.ok else "no")

    def metrics(self, more: "Counters | None" = None) -> Iterator[Metric]:
        """All of them, together with those of somebody else."""
        for name, (about, labels) in COUNTED.items():
            values: dict[Labels, float] = {} if labels else {(): 0}
            for counts in (self._counts[name], more._counts[name] if more else {}):
                for key, count in counts.items():
                    values[key] = values.get(key, 0) + count
            yield Metric(name, "counter", about, labels, values)

    def total(self, name: str) -> int:
        """All there is of one of COUNTED."""
        return sum(self._counts[name].values())

    def absorb(self, other: "Counters") -> None:
        """Count what another one counted as our own."""
        for name, counts in other._counts.items():
            self._counts[name].update(counts)


def stream_gauges(states: Sequence[StreamState], hop_ms: float) -> Iterator[Metric]:
    """How the streams are, and how far apart their windows."""
    hears: dict[Labels, float] = {(state.stream,): float(state.ailment is None) for state in states}
    age_s: dict[Labels, float] = {(state.stream,): state.lag_ms / 1000 for state in states}
    level: dict[Labels, float] = {(state.stream,): state.level_dbfs for state in states if state.level_dbfs is not None}
    floor: dict[Labels, float] = {(state.stream,): state.floor_dbfs for state in states if state.floor_dbfs is not None}
    yield Metric("hears", "gauge", "Whether a stream is neither lost nor deaf.", ("stream",), hears)
    yield Metric("audio_age_seconds", "gauge", "Since the last audio came.", ("stream",), age_s)
    yield Metric("level_dbfs", "gauge", "Of the last second.", ("stream",), level)
    yield Metric("noise_floor_dbfs", "gauge", "Of the quietest tenth of the last second.", ("stream",), floor)
    yield Metric("hop_seconds", "gauge", "Between the windows that are scored.", (), {(): hop_ms / 1000})


def lag_histogram(lags: LagMeter) -> Histogram:
    """From the arrival of a window's last sample to its score."""
    within = tuple((bucket, lags.within_ms(round(bucket * 1000))) for bucket in LAG_BUCKETS_S)
    return Histogram(
        "lag_seconds",
        "From a window's last sample to its score.",
        (*within, (float("inf"), lags.windows)),
        lags.total_s,
    )


def lines(metrics: Iterable[Metric | Histogram]) -> Iterator[str]:
    """One line per value, for people."""
    for metric in metrics:
        if isinstance(metric, Histogram):
            *within, (_, of_all) = metric.buckets
            counted = [f"{count} within {bucket:g} s" for bucket, count in within]
            yield f"{metric.name}: {', '.join(counted)}, of {of_all}"
            continue
        for labels, value in sorted(metric.values.items()):
            yield f"{metric.name}{_named(metric.labels, labels)}: {value:g}"


def _named(names: Sequence[str], values: Sequence[str]) -> str:
    named = ", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
    return f" ({named})" if named else ""
