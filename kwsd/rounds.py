"""Whether the microphones of satellites hear: a look at each in its turn, so that many cost hardly more than few."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.config import CaptureConfig
from kwsd.event import AudioFault, AudioHealed
from kwsd.health import Health, fault_in
from kwsd.ring import RingBuffer
from kwsd.supervisor import told_of

EVERY_S = 1.0  # each satellite is looked at, where they are few
EACH_S = 0.01  # between two looks: where they are many, each is looked at less often
MOST = 8  # looks at once, to catch up


@dataclass
class _Patient:
    """One satellite."""

    name: str
    health: Health
    end: int  # index in the ring up to which it was examined


class Rounds:
    """Belongs to the inference thread. `look` is to be called often."""

    def __init__(self, capture: CaptureConfig) -> None:
        self._capture = capture
        self._patients: dict[int, _Patient] = {}  # by slot
        self._turns: deque[int] = deque()  # slots, the one that was looked at longest ago first
        self._next_at = 0.0  # monotonic s
        self._second = np.zeros(WINDOW, np.float32)

    def adopt(self, capture: CaptureConfig) -> None:
        """What counts as deaf from now on. May be called from any thread."""
        self._capture = capture

    def join(self, slot: int, name: str, origin: int) -> None:
        """Somebody is there, whose first sample in the ring has this index."""
        self._patients[slot] = _Patient(name, Health(self._capture.dead_after_s), origin)
        self._turns.append(slot)

    def part(self, slot: int) -> None:
        """Nothing more is heard of a slot, if anything was."""
        if self._patients.pop(slot, None) is not None:
            self._turns.remove(slot)

    def fault(self, slot: int) -> str | None:
        """What was told of a slot and is not over. May be asked from any thread."""
        patient = self._patients.get(slot)
        return patient.health.fault if patient and self._capture.dead_after_s else None

    def look(
        self, now: float, ring: RingBuffer, is_made_up: Callable[[int], bool]
    ) -> Iterator[AudioFault | AudioHealed]:
        """Look at those whose turn it is, at a monotonic time in seconds, but for slots whose last second is silence
        that was made up; what is new of them."""
        if not self._turns or not self._capture.dead_after_s:
            return
        pause_s = max(EACH_S, EVERY_S / len(self._turns))
        self._next_at = max(self._next_at, now - MOST * pause_s)
        while self._next_at <= now:
            self._next_at += pause_s
            self._turns.rotate(-1)
            if not is_made_up(self._turns[-1]):
                finding = self._examine(self._turns[-1], ring)
                if finding is not None:
                    yield finding

    def _examine(self, slot: int, ring: RingBuffer) -> AudioFault | AudioHealed | None:
        """Its last second, for all that came since it was examined before; nothing, if that is less than a second."""
        patient, end = self._patients[slot], ring.ends[slot]
        came_s = (end - patient.end) / SAMPLE_RATE
        if came_s < EVERY_S or not ring.read(slot, end - WINDOW, self._second):
            return None
        patient.end, patient.health.dead_after_s = end, self._capture.dead_after_s
        finding = patient.health.note(fault_in(self._second, self._capture.floor_dbfs), came_s)
        return told_of(patient.name, finding, self._second) if finding else None
