"""Looks after the sources: says what was lost and what came back, has it opened again, and notices who is deaf."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kwsd.config import CaptureConfig
from kwsd.errors import IO, OK, AudioError, KwsdError
from kwsd.event import AudioEvent, AudioFault, AudioHealed, AudioLost, AudioRestored
from kwsd.health import MEANING, Finding, Health, fault_in
from kwsd.inlet import Inlet
from kwsd.ring import Samples
from kwsd.source import Source
from kwsd.span import level_dbfs

LOST_AFTER_S = 0.8  # without a block of a live source
FIRST_AFTER_S = 5.0  # the same, before its very first one
ATTENTIVE_S = 0.25  # a look counts for so long at most: who was stopped himself cannot blame the source
HEALTH_S = 1.0  # of audio looked at, so often


@dataclass
class _Charge:
    """One source and how it is."""

    name: str
    source: Source
    inlet: Inlet
    health: Health | None = None  # None: a recording may be as silent as it likes
    missing_s: float = 0.0  # looked at in vain
    wrote_at: float = -1.0  # when its last block came, the last time we looked
    began_at: float = 0.0  # wrote_at before its first block
    silent_since: float | None = None  # it is opened anew, and not heard yet
    lost: bool = False
    over: bool = False  # it will not come back
    returns: int = 0  # silences of the inlet that are told
    examined_at: float = 0.0


class Supervisor:
    """`look` belongs to the inference thread, and is to be called at least every `ATTENTIVE_S` seconds."""

    def __init__(
        self,
        names: Sequence[str],
        sources: Sequence[Source],
        inlets: Sequence[Inlet],
        capture: CaptureConfig,
        tell: Callable[[AudioEvent, KwsdError | None], None],
    ) -> None:
        """`tell` gets every event, and why where something is lost."""
        self._capture, self._tell = capture, tell
        self._charges = [
            _Charge(name, source, inlet) for name, source, inlet in zip(names, sources, inlets, strict=True)
        ]
        self._looked_at = time.monotonic()
        self.failure: KwsdError | None = None  # the first source that is lost for good, and why
        self.adopt(capture)

    def adopt(self, capture: CaptureConfig) -> None:
        """What counts as deaf from now on. May be called from any thread."""
        self._capture = capture
        for charge in self._charges:
            if not (charge.source.may_be_deaf and capture.dead_after_s):
                charge.health = None
            elif charge.health is None:
                charge.health = Health(capture.dead_after_s)
            else:
                charge.health.dead_after_s = capture.dead_after_s

    def start(self, silent_since: Mapping[str, float]) -> None:
        """The sources are about to start; since when streams are not heard that others brought (monotonic s)."""
        self._looked_at = time.monotonic()
        for charge in self._charges:
            charge.silent_since = silent_since.get(charge.name)
            charge.began_at = charge.wrote_at = charge.inlet.wrote_at = charge.examined_at = self._looked_at

    @property
    def goes_on(self) -> bool:
        """Whether any source may still deliver."""
        return not all(charge.inlet.ended for charge in self._charges)

    @property
    def waits(self) -> bool:
        """Whether a source is lost and may come back at any time, without waking anybody."""
        return any(charge.lost and not charge.over and charge.source.block_s is not None for charge in self._charges)

    def is_lost(self, stream: int) -> bool:
        """Whether nothing is expected of a source."""
        return self._charges[stream].lost

    def ailment(self, stream: int) -> str | None:
        """What is wrong with a stream: `lost`, or the fault that was told; None if nothing is."""
        charge = self._charges[stream]
        lost, health = charge.lost or (charge.silent_since is not None and not charge.source.live), charge.health
        return "lost" if lost else health.fault if health else None

    def silences(self) -> dict[str, float]:
        """Streams that delivered before and are not heard now, and since when (monotonic s)."""
        return {
            charge.name: charge.inlet.wrote_at if charge.silent_since is None else charge.silent_since
            for charge in self._charges
            if charge.lost or charge.silent_since is not None
        }

    def look(self, now: float) -> None:
        """See to every source; what is new is told. Raises KwsdError where only a new process can hear again."""
        passed = min(now - self._looked_at, ATTENTIVE_S)
        self._looked_at = now
        for charge in self._charges:
            if charge.over:
                continue
            if charge.source.fatal is not None:
                raise charge.source.fatal
            self._see_who_is_back(charge)
            if not charge.lost:
                self._see_who_is_lost(charge, passed)
            health = charge.health  # which a reload may take away meanwhile
            if not charge.lost and health and now - charge.examined_at >= HEALTH_S:
                if charge.inlet.wrote_at > charge.examined_at:
                    self._examine(charge, health, min(now - charge.examined_at, 2 * HEALTH_S))
                charge.examined_at = now

    def _see_who_is_back(self, charge: _Charge) -> None:
        gaps_s = charge.inlet.silences[charge.returns :]
        charge.returns += len(gaps_s)
        if gaps_s:
            charge.lost, charge.missing_s, charge.wrote_at = False, 0.0, charge.inlet.wrote_at
        if charge.silent_since is not None and charge.inlet.wrote_at != charge.began_at:
            gaps_s = [charge.inlet.wrote_at - charge.silent_since]
            charge.silent_since = None
        for gap_s in gaps_s:
            self._tell(AudioRestored(stream=charge.name, gap_s=round(gap_s, 3)), None)

    def _see_who_is_lost(self, charge: _Charge, passed: float) -> None:
        inlet, failure = charge.inlet, charge.source.failure
        if inlet.wrote_at != charge.wrote_at:
            charge.missing_s, charge.wrote_at = 0.0, inlet.wrote_at
        elif charge.source.live and not inlet.ended:
            charge.missing_s += passed
            limit = FIRST_AFTER_S if inlet.wrote_at == charge.began_at else LOST_AFTER_S
            if charge.missing_s > limit and failure is None:
                failure = AudioError(
                    f"stream {charge.name}: no audio for {limit:g} s; check the device and the sound server",
                    exit_code=IO,
                )
        if failure is not None:
            self._lose(charge, failure)

    def _lose(self, charge: _Charge, failure: KwsdError) -> None:
        charge.lost = failure.exit_code != OK  # else it has ended, and there is something to be said of it
        if not charge.source.recover():
            charge.over = True
            self.failure = self.failure or failure
            charge.inlet.end()
        self._tell(AudioLost(stream=charge.name, reason=str(failure)), failure)

    def _examine(self, charge: _Charge, health: Health, seconds: float) -> None:
        """The last second as it came, for all the time since it was examined before; without one there is nothing to
        be said."""
        second = charge.inlet.last(HEALTH_S)
        if second is None:
            return
        finding = health.note(fault_in(second, self._capture.floor_dbfs), seconds)
        if finding is not None:
            self._tell(told_of(charge.name, finding, second), None)


def told_of(stream: str, finding: Finding, second: Samples) -> AudioFault | AudioHealed:
    """The event for what was found of a stream, whose last second (n,) was like this."""
    lasted_s = round(finding.lasted_s, 1)
    if finding.over:
        return AudioHealed(stream=stream, fault=finding.fault, lasted_s=lasted_s)
    level = round(level_dbfs(second - np.float32(second.mean())), 1)
    meaning = MEANING[finding.fault]
    return AudioFault(stream=stream, fault=finding.fault, meaning=meaning, lasted_s=lasted_s, level_dbfs=level)
