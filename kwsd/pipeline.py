"""The stages in a row, without threads: what came in → windows → posteriors → detections.

`kwsd run` calls `advance` from its inference thread whenever audio arrives, `kwsd replay` in a plain loop.
"""

import difflib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kwsd.artefact import UNKNOWN, ArtefactInfo
from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples, seconds
from kwsd.compiled_debouncer import make_debouncer
from kwsd.compiled_window import make_schedule
from kwsd.config import Config, KeywordConfig
from kwsd.debouncer import Detection, NearMiss, NearMisses, Rules
from kwsd.errors import ConfigError
from kwsd.event import Heard, Overrun, Rejected, RunnerUp, Verdict
from kwsd.event import Scores as ScoresNow
from kwsd.inlet import SECONDS, Inlet
from kwsd.ring import Indices, RingBuffer, Samples
from kwsd.scoring import Scored, make_scorer
from kwsd.span import level_dbfs, word_span
from kwsd.spotter import Spotter

FALLBACK_THRESHOLD = 0.8  # for a label the artefact recommends nothing for
FALLBACK_RELEASE = 0.4  # or the threshold, where that is lower
NO_LIMIT = -1
NO_POSTERIORS = np.zeros((0, 0), np.float32)
TELL_EVERY = SAMPLE_RATE  # samples: a stream that loses audio all the time says so once a second
MOST_TOLD_PER_S = 100  # on average: where more streams lose audio at once, each says so less often


@dataclass(frozen=True)
class StreamInfo:
    """What the pipeline needs to know of a source."""

    name: str
    live: bool
    lead_in: bool
    origin: int = 0  # index of its first sample in the ring
    passing: bool = False  # a client of the moment


@dataclass(frozen=True)
class Progress:
    """What one call of `advance` brought."""

    scored: Scored
    heard: list[Verdict]
    overruns: list[Overrun]
    sounds: list[Samples | None]  # of each that was heard the window (16000,), where clips are kept


def make_ring(config: Config, streams: int, slots: int = 0) -> RingBuffer:
    """A 16 kHz ring that holds a window behind everything an inlet can have in store, with slots behind the streams for
    satellites to come."""
    hop = samples(config.window.hop_ms / 1000)
    backlog = samples(max(SECONDS, config.window.max_batch * config.window.hop_ms / 1000))
    capacity = math.ceil((2 * WINDOW + backlog) / hop) * hop
    return RingBuffer(streams + slots, capacity, hop=hop, touched=streams)


class Pipeline:
    """Everything between the inlets and the events, for all streams at once."""

    def __init__(
        self,
        config: Config,
        spotter: Spotter,
        ring: RingBuffer,
        inlets: Sequence[Inlet],
        streams: Sequence[StreamInfo],
        *,
        arrived_at: Callable[[int, int], float] = lambda *_: time.monotonic(),
    ) -> None:
        """The first streams come through `inlets`; what the others bring is in the ring already, and `arrived_at` says
        when a stream had come as far as a sample (monotonic s).

        Raises ConfigError if config and model contradict each other.
        """
        self.spotter, self.ring, self.inlets, self.streams = spotter, ring, inlets, streams
        self._arrived_at = arrived_at
        hop = samples(config.window.hop_ms / 1000)
        live = np.array([stream.live for stream in streams])
        self.schedule = make_schedule(len(streams), hop, config.window.max_batch, live)
        self.scorer = make_scorer(spotter, len(streams), hop)
        self.rules = make_rules(config, spotter.info)
        self.near_misses = NearMisses(self.rules, len(streams)) if config.wants_rejected else None
        self.debouncer = make_debouncer(self.rules, spotter.info.labels, len(streams), self.near_misses)
        self._keeps_sound = config.sinks.clips.folder is not None
        self._batch_s = config.window.max_batch * config.window.hop_ms / 1000
        self._overflows = [0] * len(inlets)  # counts already told
        self._lost = [0] * len(inlets)
        self._skipped = np.zeros(len(streams), np.int64)  # windows not told yet
        self._told_at = [-math.inf] * len(streams)  # sample index of the last overrun told
        for i, stream in enumerate(streams):
            if stream.lead_in and ring.written[i] == 0:
                ring.lead_in(i, WINDOW)

    def take_over(self, old: "Pipeline") -> None:
        """Go on where another pipeline on the same ring stood: no window twice, no word twice."""
        self.schedule.start_at(old.schedule.next_end)
        self.debouncer.inherit(old.debouncer)
        if old.spotter is self.spotter:
            self.debouncer.remember(old.debouncer, self.schedule.first_due(self.ring))
            self.scorer.take_over(old.scorer)
        self._overflows, self._lost, self._skipped, self._told_at = (
            old._overflows,
            old._lost,
            old._skipped,
            old._told_at,
        )

    def advance(self) -> Progress:
        """Take what came, score the windows that are due, and say what was heard."""
        scored = self.score()
        detections = list(self.debouncer.step(scored.streams, scored.ends, scored.posteriors))
        misses = self.near_misses.take() if self.near_misses is not None else []
        heard: list[Verdict] = [*map(self.describe, detections), *map(self._describe_miss, misses)]
        found: list[Detection | NearMiss] = [*detections, *misses]
        sounds = [self._sound_of(each.stream, each.end) for each in found]
        return Progress(scored, heard, self._overruns(scored.skipped), sounds)

    def score(self) -> Scored:
        """Take what came, and score the windows that are due."""
        for inlet, stream in zip(self.inlets, self.streams, strict=False):
            inlet.pump(SECONDS if stream.live else self._batch_s)
        due = self.schedule.take(self.ring)
        if not len(due):
            return Scored(due.streams, due.ends, NO_POSTERIORS, due.skipped)
        return self.scorer.score(self.ring, due)

    @property
    def finished(self) -> bool:
        """Whether every stream has ended and all of it was scored."""
        return all(inlet.drained for inlet in self.inlets) and self.schedule.exhausted(self.ring)

    def describe(self, detection: Detection) -> Heard:
        """The event for a detection whose window is still in the ring."""
        window = np.zeros(WINDOW, np.float32)
        self.ring.read(detection.stream, detection.end - WINDOW, window)
        start, end = word_span(window)
        first = detection.end - WINDOW  # sample index of the window's first sample
        origin = self.streams[detection.stream].origin
        return Heard(
            stream=self.streams[detection.stream].name,
            keyword=detection.keyword,
            score=round(detection.score, 3),
            threshold=round(detection.threshold, 3),
            runner_up=RunnerUp(detection.runner_up, round(detection.runner_up_score, 3)),
            start_s=seconds(max(0, first + start - origin)),
            end_s=seconds(first + end - origin),
            latency_ms=self._age_ms(detection.stream, detection.end) if self._is_timed(detection.stream) else None,
            level_dbfs=round(level_dbfs(window[start:end]), 1),
            model=self.spotter.info.id,
        )

    def _sound_of(self, stream: int, end: int) -> Samples | None:
        """The window that ends there, if it is to be kept and is still in the ring."""
        if not self._keeps_sound:
            return None
        window = np.zeros(WINDOW, np.float32)
        return window if self.ring.read(stream, end - WINDOW, window) else None

    def watch(self, scored: Scored) -> Iterator[ScoresNow]:
        """What the model says of the last window of every stream that has one."""
        labels, keywords = self.spotter.info.labels, self.rules.keywords
        latest = {stream: row for row, stream in enumerate(scored.streams.tolist())}
        hop = np.zeros(self.rules.hop, np.float32)
        for stream, row in latest.items():
            end = int(scored.ends[row])
            self.ring.read(stream, end - len(hop), hop)
            scores = self.debouncer.scores(np.array([stream]))[0]
            needed = self.debouncer.needed(np.array([stream]))[0]
            yield ScoresNow(
                stream=self.streams[stream].name,
                at_s=seconds(end - self.streams[stream].origin),
                level_dbfs=round(level_dbfs(hop), 1),
                lag_ms=self._age_ms(stream, end),
                posteriors=dict(zip(labels, _rounded(scored.posteriors[row]), strict=True)),
                scores=dict(zip(keywords, _rounded(scores), strict=True)),
                thresholds=dict(zip(keywords, _rounded(needed), strict=True)),
            )

    def _describe_miss(self, miss: NearMiss) -> Rejected:
        return Rejected(
            stream=self.streams[miss.stream].name,
            keyword=miss.keyword,
            score=round(miss.score, 3),
            threshold=round(miss.threshold, 3),
            reason=miss.reason,
            at_s=seconds(miss.end - self.streams[miss.stream].origin),
        )

    def _is_timed(self, stream: int) -> bool:
        """Whether what is heard of a stream can be late."""
        return self.streams[stream].live or self.inlets[stream].keeps_time

    def _age_ms(self, stream: int, end: int) -> int:
        """From the arrival of a window's last sample until now."""
        return max(0, round((time.monotonic() - self._arrived_at(stream, end)) * 1000))

    def _overruns(self, skipped: Indices) -> list[Overrun]:
        losing = {i for i, inlet in enumerate(self.inlets) if inlet.overflows - self._overflows[i] or self._lost_of(i)}
        if skipped.any():
            self._skipped += skipped
        losing.update(np.flatnonzero(self._skipped).tolist())
        pause = TELL_EVERY * max(1, len(losing) // MOST_TOLD_PER_S)
        return [self._overrun(i) for i in sorted(losing) if self._may_be_told(i, pause)]

    def _lost_of(self, stream: int) -> int:
        return self.inlets[stream].lost - self._lost[stream]

    def _may_be_told(self, stream: int, pause: int) -> bool:
        ended = stream < len(self.inlets) and self.inlets[stream].drained
        return ended or self.ring.ends[stream] - self._told_at[stream] >= pause

    def _overrun(self, stream: int) -> Overrun:
        """What was lost since this was last told."""
        lost = overflows = 0
        if stream < len(self.inlets):
            inlet = self.inlets[stream]
            lost, overflows = self._lost_of(stream), inlet.overflows - self._overflows[stream]
            self._overflows[stream], self._lost[stream] = inlet.overflows, inlet.lost
        skipped, self._skipped[stream] = int(self._skipped[stream]), 0
        self._told_at[stream] = self.ring.ends[stream]
        return Overrun(
            stream=self.streams[stream].name, skipped_windows=skipped, lost_samples=lost, device_overflows=overflows
        )

    def forget(self, stream: int) -> None:
        """It is over, or another one begins in its place: nothing that was heard in it counts."""
        self.debouncer.reset(np.array([stream]))
        self._skipped[stream] = 0

    def scored_all_of(self, stream: int) -> bool:
        """Whether no window of what is in the ring is due any more."""
        return self.ring.ends[stream] < int(self.schedule.first_due(self.ring)[stream])


def _rounded(scores: NDArray[np.float32]) -> list[float]:
    """To three digits, as events tell them."""
    return scores.astype(np.float64).round(3).tolist()  # type: ignore[no-any-return]


def make_rules(config: Config, info: ArtefactInfo) -> Rules:
    """The config's rules for the labels of a model, in samples.

    Raises ConfigError for a keyword the model does not know, a release level above its threshold, or one of 0.
    """
    chosen = _keywords(config, info)
    common = config.debouncer

    def per_keyword(field: str, default: float | int) -> list[float]:
        own = [getattr(keyword, field) for keyword in chosen.values()]
        return [default if value is None else value for value in own]

    recommended = [info.thresholds.get(label, FALLBACK_THRESHOLD) for label in chosen]
    if common.threshold is not None:
        recommended = [common.threshold] * len(chosen)
    own = [keyword.threshold for keyword in chosen.values()]
    threshold = [r if t is None else t for r, t in zip(recommended, own, strict=True)]
    asked = [common.release if keyword.release is None else keyword.release for keyword in chosen.values()]
    release = [min(FALLBACK_RELEASE, t) if r is None else r for r, t in zip(asked, threshold, strict=True)]
    for label, low, high in zip(chosen, release, threshold, strict=True):
        if high == 0.0:
            raise ConfigError(
                f"keywords.{label}.threshold: with a threshold of 0 anything would be it, for ever; set it higher"
            )
        if low > high:
            raise ConfigError(
                f"keywords.{label}.release: its release {low:g} is above its threshold {high:g}; "
                f"lower debouncer.release or keywords.{label}.release"
            )
    isolation = samples(common.isolation_s)
    speech = [samples(s) for s in per_keyword("isolation_speech_s", common.isolation_speech_s)]
    off = isolation == 0 or UNKNOWN not in info.labels
    hop = samples(config.window.hop_ms / 1000)
    return Rules(
        keywords=tuple(chosen),
        threshold=np.array(threshold, np.float32),
        release=np.array(release, np.float32),
        margin=np.array(per_keyword("margin", common.margin), np.float32),
        min_hits=np.array(per_keyword("min_hits", common.min_hits), np.int64),
        refractory=np.array(
            [samples(ms / 1000) for ms in per_keyword("refractory_ms", common.refractory_ms)], np.int64
        ),
        isolation_speech=np.array([NO_LIMIT if off else s for s in speech], np.int64),
        isolation=isolation,
        wary=0 if UNKNOWN not in info.labels else samples(common.wary_s),
        wary_threshold=common.wary_threshold,
        smoothing=max(1, round(common.smoothing_ms / config.window.hop_ms)),
        hop=hop,
    )


def _keywords(config: Config, info: ArtefactInfo) -> dict[str, KeywordConfig]:
    real = [label for label in info.labels if not label.startswith("_")]
    chosen = config.chosen(real)
    for keyword in chosen:
        if keyword not in real:
            near = difflib.get_close_matches(keyword.lower(), real, 1)
            hint = f"did you mean {near[0]}? It" if near else "it"
            raise ConfigError(f"keywords.{keyword}: the model does not know it; {hint} knows {', '.join(real)}")
    return chosen
