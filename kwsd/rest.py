"""When the inference thread sleeps, and until when: several windows at once cost little more than one."""

import queue
import time
from collections.abc import Callable, Sequence

import numpy as np

from kwsd.audio_format import SAMPLE_RATE, samples
from kwsd.inlet import Inlet
from kwsd.listener import Listener
from kwsd.pipeline import Pipeline
from kwsd.quiet import DOZE_S, LOOK_S, Quiet
from kwsd.ring import Indices, RingBuffer
from kwsd.source import Source
from kwsd.supervisor import Supervisor

SLACK_S = 0.001  # a block that comes this much after its time still finds nobody waiting in vain
LATE_S = 0.003  # how soon to look again for a block that is late, at least
WAKE_AT_LEAST_S = 0.5  # how often the inference thread looks round without being woken
LOST_LOOK_S = 0.1  # the same, while a microphone is lost
REST_S = 0.2  # of audio beyond the next window that waits for no look while the model finds nothing in what it hears
GRACE_S = 0.1  # more than until the next look, a source that wakes us may take
FULL = 32  # windows: more at once are hardly cheaper


def wait_s(due_in_s: float) -> float:
    """Seconds until to look for a block that should be here in so many, or since. One that is late, as sound servers
    let some be, is looked for again when it is twice as late: to look in vain costs half of what it does to hear."""
    return max(due_in_s + SLACK_S, LATE_S, -due_in_s)


class Bell:
    """Wakes the inference thread, and may be rung from any other."""

    def __init__(self) -> None:
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        """Putting into a SimpleQueue neither blocks nor hands over the interpreter lock, as a system call would. Once
        is enough: who is always behind never waits, and would never empty it."""
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, longest_s: float) -> bool:
        """Whether it rang, now or within so many seconds."""
        try:
            self._rings.get(timeout=longest_s)
        except queue.Empty:
            return False
        return True

    def hush(self) -> None:
        """Forget how often it rang."""
        while not self._rings.empty():
            self._rings.get_nowait()


class Rest:
    """Of the inference thread, to which all of it belongs but `waker`, `wake` and `stop`."""

    def __init__(
        self,
        bell: Bell,
        ring: RingBuffer,
        supplies: Sequence[tuple[Source, Inlet]],
        supervisor: Supervisor,
        listener: Listener | None,
        *,
        max_wait_ms: float,
    ) -> None:
        """A batch of windows closes so long after the first of them, though more could come."""
        self._bell, self._ring, self._supervisor, self._listener = bell, ring, supervisor, listener
        self._supplies = supplies
        self._max_wait_s = max_wait_ms / 1000
        self._quiet = Quiet([inlet for _, inlet in supplies])
        self.dozed_until = ring.written  # (streams,) windows up to here were made to wait
        # Where any source has a beat and so wakes nobody, on time; else when the sources have what we look for.
        self._look_s = LOOK_S if any(source.block_s for source, _ in supplies) else LOOK_S + GRACE_S
        self._doze_s = 0.0  # of audio that may wait, less what may come until the next look
        self._pause = 0  # samples that may wait while nothing stirs, though something is to be heard
        self._over = False

    def waker(self, inlet: Inlet) -> Callable[[], None]:
        """What a source calls after each block, unless it has a beat: rings when a window may be due."""

        def wake() -> None:
            if inlet.wanted:
                self._bell.ring()

        return wake

    def wake(self) -> None:
        """End it, this time."""
        self._bell.ring()

    def stop(self) -> None:
        """End it for good."""
        self._over = True
        self._bell.ring()

    def adopt(self, pipeline: Pipeline) -> None:
        """The pipeline whose windows are scored from now on."""
        self._pipeline = pipeline
        hop, most = pipeline.schedule.hop, pipeline.schedule.max_batch
        self._doze_s = min(DOZE_S, (most - 2) * hop / SAMPLE_RATE) - self._look_s
        self._pause = min(max(samples(REST_S) // hop, 1), max(most - 2, 0), pipeline.rules.smoothing - 1) * hop

    # --- until the next window ---

    def until_due(self) -> None:
        """Sleep until a window may be due, but not long: sources are looked after as well.

        While nothing stirs, some more may come first: three windows at once cost little more than one, as most of it is
        to wake up. A keyword needs two windows to be told, or more, and is hardly ever sure of itself in the first, by
        which something stirs; then it is told a hop later."""
        next_ends = self._pipeline.schedule.first_due(self._ring) + (self._pause if self._is_at_rest else 0)
        if self._listener is not None:
            self._listener.expect(next_ends, self._batch())
        for _, inlet in self._supplies:
            inlet.want(int(next_ends[inlet.stream]))
            if inlet.wanted:
                return
        if (self._ring.written >= next_ends).any():  # it came just now, or more came than fits a batch
            return
        if self._bell.wait(self._patience()):
            self._let_pile_up(next_ends)
            self._bell.hush()

    @property
    def _is_at_rest(self) -> bool:
        """Whether nothing may be told by the next window alone, and no satellite is here."""
        pipeline, alone = self._pipeline, self._listener is None or not self._listener.active
        return alone and pipeline.rules.smoothing > 1 and not pipeline.debouncer.stirs

    def _patience(self) -> float:
        """Seconds to wait at most: until the next block that completes a window should be here. One that was lost may
        be here any time."""
        expected = [
            inlet.due_in(source.block_s)
            for source, inlet in self._supplies
            if source.block_s is not None and not inlet.ended and not self._supervisor.is_lost(inlet.stream)
        ]
        longest = LOST_LOOK_S if self._supervisor.waits else WAKE_AT_LEAST_S
        return min(wait_s(min(expected, default=longest)), longest)

    def _let_pile_up(self, next_ends: Indices) -> None:
        """A batch closes when it is full, or some time after its first window: many windows at once cost less."""
        full = self._batch()
        closes = time.monotonic() + self._max_wait_s
        while full > 1 and np.count_nonzero(self._ring.written >= next_ends) < full and not self._over:
            left = closes - time.monotonic()
            if left <= 0.0 or not self._bell.wait(left):
                return

    def _batch(self) -> int:
        """Windows that are worth waiting for."""
        return min(FULL, self._listener.active) if self._listener is not None else 1

    # --- while nothing is to be heard ---

    def may_doze(self) -> bool:
        """Whether the windows that are due may wait for more of them: ten at once cost little more than one. So long as
        nothing is to be heard there is nothing to be told, and by the next look no word is over that began since."""
        return bool(self._supplies) and self._is_at_rest and self.is_quiet()

    def is_quiet(self) -> bool:
        """Whether all sources deliver, and nothing that is to be heard."""
        now = time.monotonic()
        for source, inlet in self._supplies:
            late = now - inlet.wrote_at >= (LOOK_S if source.block_s else LOOK_S + GRACE_S)
            if late or inlet.ended or inlet.is_anew:
                return False
        return self._quiet.look(self._doze_s)

    def doze(self) -> None:
        """Until the next look; what came until now has waited for it."""
        for _, inlet in self._supplies:
            self.dozed_until[inlet.stream] = inlet.came
            inlet.want_more(LOOK_S)
        if self._bell.wait(self._look_s):
            self._bell.hush()
