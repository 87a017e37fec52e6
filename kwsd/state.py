"""How the daemon is, and how it says so to whoever asks. The daemon changes it; nothing else does."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from kwsd import __version__
from kwsd.artefact import Artefact
from kwsd.config import Config, KeywordConfig, keywords_yaml
from kwsd.control import Adjustments
from kwsd.event import VERSION, Hello, KeywordState, Line, StatusNow, StreamState, unnumbered
from kwsd.listening import Listening
from kwsd.metrics import Counters, Histogram, Labels, Metric, lag_histogram, stream_gauges
from kwsd.pipeline import make_rules

STALE_S = 5.0  # without a window scored, where audio ought to come, all is not well
SMALL = 0.01  # the lowest threshold that is offered; 0 is none
NAMED = 8  # streams: of more the summary names so many


@dataclass
class State:
    """What it listens with, what it was told since, and what came of it."""

    config: Config
    artefact: Artefact
    adjustments: Adjustments
    listening: Listening | None = None  # still starting
    ready: bool = False  # audio reached the model, or satellites may come
    detections: int = 0
    last_heard: str = ""
    refused: str = ""  # why the last reload was
    wyoming: tuple[str, ...] = ()  # addresses
    counters: Counters = field(default_factory=Counters)
    born: float = field(default_factory=time.monotonic)  # monotonic s

    @property
    def keywords(self) -> tuple[str, ...]:
        """Those that are listened for."""
        return make_rules(self.config, self.artefact.info).keywords

    @property
    def names(self) -> tuple[str, ...]:
        """Of the streams there are."""
        if self.listening is None:
            return tuple(stream.name for stream in self.config.streams)
        return self.listening.names

    @property
    def thresholds(self) -> dict[str, float]:
        """From which score each keyword counts now."""
        return make_rules(self.adjusted, self.artefact.info).thresholds

    @property
    def adjusted(self) -> Config:
        """The configuration with what was changed since it was read."""
        return self.adjustments.applied_to(self.config, self.keywords)

    @property
    def uptime_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self.born

    # --- for readers and satellites ---

    def hello(self) -> Line:
        """The first line for a reader."""
        return self._greeting(self.names)

    def welcome(self, name: str) -> Line:
        """The first line for a satellite of this name. May be called from any thread."""
        return self._greeting((name,))

    def _greeting(self, streams: tuple[str, ...]) -> Line:
        return unnumbered(
            Hello(
                kwsd=__version__,
                schema=VERSION,
                model=self.artefact.info.id,
                keywords=self.keywords,
                streams=streams,
                ailments=self.listening.ailments() if self.listening else {},
                muted=tuple(stream for stream in streams if stream in self.adjustments.muting),
            )
        )

    # --- for whoever watches over it ---

    def problems(self) -> list[str]:
        """Why nothing may be heard; empty: all is well."""
        if self.listening is None or not self.ready:
            return ["not ready yet"]
        problems = [f"{stream}: {ailment}" for stream, ailment in self.listening.ailments().items()]
        idle_s = self.listening.idle_s
        return [*problems, *([f"no window was scored for {idle_s:.0f} s"] if idle_s > STALE_S else [])]

    def summary(self) -> str:
        """In a line, for systemd: first of all what is wrong."""
        heard = f"{self.detections} words heard{self.last_heard}"
        return f"{self._ailments()}listening on {self.where()}; {heard}{self.refused}"

    def where(self) -> str:
        """The streams, and where satellites and clients of Wyoming connect."""
        names = self.names
        more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED + 1 else []
        listener = self.listening.listener if self.listening else None
        addresses = [*(listener.addresses if listener else []), *self.wyoming]
        return ", ".join([*(names[:NAMED] if more else names), *more, *addresses])

    def _ailments(self) -> str:
        ailments = self.listening.ailments() if self.listening else {}
        ill = [f"{stream}: {ailment}" for stream, ailment in ailments.items()]
        ill += [f"{stream}: muted" for stream in self.names if stream in self.adjustments.muting]
        return f"NOT HEARING {', '.join(ill[:NAMED])}; " if ill else ""

    def status(self, untold: list[str]) -> StatusNow:
        """All of it. `untold`: why somebody may not be told, which is no reason to start another daemon."""
        rules, now = make_rules(self.config, self.artefact.info), self.thresholds
        configured, releases = rules.thresholds, dict(zip(rules.keywords, rules.release.tolist(), strict=True))
        keywords = {
            name: KeywordState(
                threshold=now[name],
                configured=configured[name],
                release=round(releases[name], 4),
                lowest=self._lowest(own, now[name]),
            )
            for name, own in self.config.chosen(configured).items()
        }
        return StatusNow(
            kwsd=__version__,
            schema=VERSION,
            model=self.artefact.info.id,
            ready=self.ready,
            problems=(*self.problems(), *untold),
            uptime_s=round(self.uptime_s, 1),
            detections=self.detections,
            windows=self.counters.total("windows_scored") + (self.listening.load.windows if self.listening else 0),
            hop_ms=self.listening.hop_ms if self.listening else self.config.window.hop_ms,
            streams=self.streams(),
            muted=self.adjustments.muting.everything,
            keywords=keywords,
        )

    def _lowest(self, keyword: KeywordConfig, now: float) -> float:
        """What the threshold of a keyword, `now` this, may be. A release level that nobody set falls with it."""
        release = self.config.debouncer.release if keyword.release is None else keyword.release
        return min(SMALL, now) if release is None else release

    def streams(self) -> tuple[StreamState, ...]:
        """How each stream is."""
        states = self.listening.states() if self.listening else ()
        muting = self.adjustments.muting
        return tuple(msgspec.structs.replace(state, muted=state.stream in muting) for state in states)

    def suggestion(self) -> str:
        """The part of a config that would make the present thresholds last."""
        return keywords_yaml(self.adjusted)

    def metrics(self) -> Iterator[Metric | Histogram]:
        """Everything that is counted and measured, as it is now."""
        yield from self.counters.metrics(self.listening.counters() if self.listening else None)
        about: dict[Labels, float] = {(__version__, self.artefact.info.id): 1.0}
        yield Metric("info", "gauge", "Which kwsd, and which model.", ("version", "model"), about)
        yield Metric("uptime_seconds", "gauge", "Since the start.", (), {(): self.uptime_s})
        yield Metric("ready", "gauge", "Whether audio reached the model.", (), {(): float(self.ready)})
        if self.listening is not None:
            yield from stream_gauges(self.listening.states(), self.listening.hop_ms)
            muted: dict[Labels, float] = {(name,): float(name in self.adjustments.muting) for name in self.names}
            yield Metric("muted", "gauge", "Whether nothing that is said on a stream is told.", ("stream",), muted)
            thresholds: dict[Labels, float] = {(word,): score for word, score in self.thresholds.items()}
            yield Metric("threshold", "gauge", "Score from which a keyword counts.", ("keyword",), thresholds)
            yield lag_histogram(self.listening.load.lags_ever)
