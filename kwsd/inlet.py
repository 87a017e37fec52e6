"""Where a source puts its blocks, and how they become 16 kHz mono in the ring."""

import functools
import math
import time
from array import array
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import soxr

from kwsd.audio_format import SAMPLE_RATE
from kwsd.compiled import at
from kwsd.load import Arrival
from kwsd.pcm import mono
from kwsd.ring import RingBuffer, Samples

SECONDS = 4.0  # of audio kept at the source's own rate: how long inference may sleep before samples are lost
PIECE_S = 0.25  # of audio converted at once
LUMPS = 300  # blocks after which a resampler has held back as much as it ever does
BLOCKS_PER_S = 50  # as of a pipe, for how much its resampler holds back
MARGIN = 16  # samples more: a millisecond
UNKNOWN = -2  # overflows: no number of them is one more


class _AsItIs:
    """The resampler for audio that is at 16 kHz already."""

    def resample_chunk(self, samples: Samples, last: bool = False) -> Samples:
        return samples


class _Resampler(Protocol):
    def resample_chunk(self, samples: Samples, last: bool = False) -> Samples: ...


def resampler(rate: int) -> _Resampler:
    """A stateful converter from `rate` Hz to 16 kHz; any cut into blocks gives the same samples."""
    return (
        _AsItIs() if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    )


@functools.cache
def held_back(rate: int, block: int) -> int:
    """Samples at 16 kHz that a resampler may be short of after a block: it gives them out in lumps of its own size."""
    converter, behind, came, given = resampler(rate), 0, 0, 0
    for _ in range(LUMPS):
        came += block
        given += converter.resample_chunk(np.zeros(block, np.float32)).size
        behind = max(behind, math.ceil(came * SAMPLE_RATE / rate) - given)
    return behind and behind + MARGIN


@dataclass(frozen=True)
class Place:
    """Where the blocks of a stream go and are counted."""

    ring: RingBuffer
    addresses: dict[str, int]


class Inlet:
    """One stream on its way in.

    The source's thread calls `write` or `append`, `overflow` and `end`; the inference thread calls the rest. Between
    them is a ring at the source's own rate with all its channels, so that the audio callback does nothing but copy.
    """

    def __init__(
        self,
        ring: RingBuffer,
        stream: int,
        rate: int,
        channels: int,
        channel: int | None,
        *,
        block_s: float | None = None,
    ) -> None:
        """`channel` counts from 0; None mixes all of them. From a source that delivers every `block_s` seconds windows
        end so that they are complete as soon as a block is there."""
        self.stream, self.channel = stream, channel
        self._counts = array("q", [0, 0])  # blocks and overflows; arrays, as C may write them
        self._clock = array("d", [time.monotonic()])  # wrote_at
        self._arrival = Arrival()  # of what `write` was given
        self.lost = 0  # samples at 16 kHz that came and were not listened to
        self.keeps_time = False  # of a source that can wait: whether it writes in real time, all the same
        self.ended = False  # nothing will be written any more
        self.drained = False  # and all of it is in the ring
        self.silences: list[float] = []  # seconds, one for each time the source was opened again and delivered
        self._ring = ring
        self._silent_since = 0.0  # monotonic s
        self._ahead_s = 0.0  # of the silence since, that was written
        self._back_at: float | None = None  # when the silence ended, if somebody saw it, monotonic s
        self._reopened: tuple[RingBuffer, int] | None = None  # what is written since, and its rate
        native = RingBuffer(1, int(SECONDS * rate), channels)
        self._append = native.appender(0)
        self._block_s, self._ahead = block_s, 0
        self._begin(native, rate)
        self.origin, self._ahead = self._origin, 0  # index of its very first sample in the 16 kHz ring

    def _begin(self, native: RingBuffer, rate: int) -> None:
        """From here on the stream is what is in this ring."""
        self.rate, self.native = rate, native  # where it lies before it is converted
        self._piece = np.zeros((int(PIECE_S * rate), native.channels), np.float32)
        self._resampler = resampler(rate)
        self._fall_into_step()
        self._origin = self._ring.ends[self.stream]  # index of its first sample in the 16 kHz ring
        self._read = 0  # native samples converted so far
        self._wake_at = 0  # native index the inference thread waits for
        self._gap, self._crossed = 0, self.overflows  # native index of the last gap crossed, and overflows until then

    def _fall_into_step(self) -> None:
        """Skip samples, less than a hop, so that a window ends where the resampler has got to when a block is there."""
        self._ahead = 0
        if self._block_s is not None:
            reached = held_back(self.rate, round(self._block_s * self.rate))
            self._ahead = (reached - self._ring.ends[self.stream]) % self._ring.hop
        if self._ahead:
            self._ring.skip(self.stream, self._ahead)

    @property
    def blocks(self) -> int:
        """That came, ever."""
        return self._counts[0]

    @property
    def overflows(self) -> int:
        """How often the sound system dropped audio."""
        return self._counts[1]

    @property
    def wrote_at(self) -> float:
        """When the last block came, for latency (monotonic s)."""
        return self._clock[0]

    @wrote_at.setter
    def wrote_at(self, moment: float) -> None:
        self._clock[0] = moment

    @property
    def place(self) -> "Place":
        """Where C may write what comes from now on, as `append` and `overflow` would."""
        ring = self._reopened[0] if self._reopened else self.native
        blocks, overflows = (at(np.frombuffer(self._counts, np.int64)[n:]) for n in (0, 1))
        counts = {"blocks": blocks, "overflows": overflows, "wrote_at": at(np.frombuffer(self._clock))}
        return Place(ring, ring.addresses(0) | counts)

    def write(self, frames: Samples) -> None:
        """A block (frames, channels) in ±1. Copies it and returns."""
        if frames.size:
            self._arrival.note(self.came, time.monotonic())
            self.append(memoryview(frames).cast("B"))  # type: ignore[arg-type]

    def append(self, block: bytes) -> None:
        """The same as bytes: what an audio callback calls that is not compiled."""
        self._counts[0] += 1
        self._clock[0] = time.monotonic()  # before the samples: who sees those sees when they came
        self._append(block)

    def overflow(self) -> None:
        """The sound system dropped audio before the block that is written next."""
        self._counts[1] += 1
        (self._reopened[0] if self._reopened else self.native).skip(0)

    def reopen(self, rate: int, channels: int, *, ahead_s: float = 0.0) -> None:
        """The source will begin anew, maybe at another rate. What is written from now on comes after a gap, as long as
        nothing was written. Of that `ahead_s` seconds were written already. To be called while nothing is."""
        if self._reopened is None:
            self._silent_since, self._ahead_s, self._back_at = self.wrote_at, ahead_s, None
        native = RingBuffer(1, int(SECONDS * rate), channels)
        self._reopened = native, rate
        self._append = native.appender(0)

    def is_back(self, came_s: float) -> None:
        """What is written next began so many seconds ago. Unsaid, all of it came in real time."""
        self._back_at = time.monotonic() - came_s

    def end(self) -> None:
        """No more blocks will come."""
        self.ended = True

    def want(self, sample: int) -> None:
        """Ask to be woken when there is news that reaches this sample of the 16 kHz ring.

        The resampler holds some samples back until it has seen what follows them, so news must reach further.
        """
        short = sample - self._ring.ends[self.stream]
        self._wake_at = self._read + max(1, math.ceil(short * self.rate / SAMPLE_RATE))

    def want_more(self, seconds: float) -> None:
        """Ask to be woken when so much more is written."""
        self._wake_at = self.native.ends[0] + math.ceil(seconds * self.rate)

    @property
    def missing(self) -> int:
        """Frames of the source until there is audio that the inference thread waits for."""
        return self._wake_at - self.native.ends[0]

    @property
    def wanted(self) -> bool:
        """Whether there is audio that the inference thread waits for."""
        return not self.drained and (self.ended or self.native.ends[0] >= self._wake_at or self.is_anew)

    @property
    def is_anew(self) -> bool:
        """Whether something was written since the source was opened again, which is not taken over yet."""
        return self._reopened is not None and self._reopened[0].ends[0] > 0

    def due_in(self, block_s: float) -> float:
        """Seconds until what is waited for should have come, from a source that delivers every `block_s` seconds."""
        blocks = max(1, math.ceil(self.missing / self.rate / block_s - 1e-6))
        return self.wrote_at + blocks * block_s - time.monotonic()

    def last(self, seconds: float) -> Samples | None:
        """The last seconds as they came, at the source's own rate, of the channel that is listened to: (n,); None if
        so much did not come without a gap."""
        frames = np.zeros((int(seconds * self.rate), self.native.channels), np.float32)
        whole = self.native.read(0, self.native.ends[0] - len(frames), frames)
        return mono(frames, self.channel) if whole else None

    @property
    def backlog(self) -> float:
        """Seconds of audio that are written and not yet converted."""
        return (self.native.ends[0] - self._read) / self.rate

    @property
    def came(self) -> int:
        """Where the 16 kHz ring would end if all that is written were converted, and nothing held back."""
        return self._origin + round(self.native.ends[0] * SAMPLE_RATE / self.rate)

    def arrived_at(self, sample: int) -> float:
        """When so much was written that the 16 kHz ring reaches a sample, whatever the resampler holds back (monotonic
        s)."""
        return self._arrival.of(sample + held_back(self.rate, max(1, self.rate // BLOCKS_PER_S)))

    @property
    def room(self) -> float:
        """Seconds of audio that can be written before unread samples are overwritten."""
        reopened = self._reopened  # which the inference thread may take over now
        return SECONDS - (reopened[0].ends[0] / reopened[1] if reopened else self.backlog)

    def pump(self, most_s: float = SECONDS) -> None:
        """Convert what came, at most `most_s` seconds of it, into the 16 kHz ring."""
        if self.is_anew:
            while self._read < self.native.ends[0]:
                self._convert(self.native.ends[0])
            self._come_back()
        ended = self.ended  # looked at first: what was written before is then certainly in sight
        available = self.native.ends[0]
        self._convert(min(available, self._read + int(most_s * self.rate)))
        if ended and self._read >= available and not self.drained:
            if self.rate != SAMPLE_RATE:
                self._ring.write(self.stream, self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            self.drained = True

    def _convert(self, goal: int) -> None:
        """Native samples up to an index, or to a gap: what came before it is listened to before it is crossed."""
        begun = self._read
        while self._read < goal:
            gap = int(self.native.unbroken_from[0])  # before the overflows, which are counted first
            before_gap = self._read < gap and gap > self._gap and self.overflows - self._crossed == 1
            if begun < self._read == gap > self._gap:
                self._ring.write(self.stream, self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
                self._resampler = resampler(self.rate)
                return
            piece = self._piece[: min((gap if before_gap else goal) - self._read, len(self._piece))]
            whole = before_gap or gap <= self._gap
            if whole and self.native.read(0, self._read, piece, before_gap=before_gap):
                self._read += len(piece)
                self._ring.write(self.stream, self._resampler.resample_chunk(mono(piece, self.channel)))
            else:
                self._cross_gap()

    def _cross_gap(self) -> None:
        """Go on behind a gap with a new resampler: count what was not converted as lost, keep the clock."""
        before = self.overflows
        self._gap = int(self.native.unbroken_from[0])  # before `oldest`: a gap that comes now is crossed next
        # One that comes just now may be counted and its gap not be there yet: then nobody knows which are crossed.
        self._crossed = before if before == self.overflows else UNKNOWN
        lost = max(0, self.native.oldest(0) - self._read)
        self._read += lost
        self._resampler = resampler(self.rate)
        self.lost += round(lost * SAMPLE_RATE / self.rate)
        self._skip_to(self._due)

    @property
    def _due(self) -> int:
        """Where the 16 kHz ring would end if the resampler held nothing back."""
        return self._origin + round(self._read * SAMPLE_RATE / self.rate)

    def _skip_to(self, sample: int) -> None:
        self._ring.skip(self.stream, max(0, sample - self._ring.ends[self.stream]))

    def _come_back(self) -> None:
        """Go on with what the source writes since it was opened again, after a gap as long as it was silent."""
        assert self._reopened is not None
        native, rate = self._reopened
        written, wrote_at = native.ends[0], self.wrote_at
        while written != native.ends[0]:  # a block came in between
            written, wrote_at = native.ends[0], self.wrote_at
        back_at = self._back_at or wrote_at - written / rate
        silence = max(0.0, back_at - self._silent_since)
        unwritten = max(0.0, silence - self._ahead_s)
        self._skip_to(self._due + round(unwritten * SAMPLE_RATE) - self._ahead)
        self._read = 0  # first: `room`, which the source's thread asks for, must never be too large
        self._begin(native, rate)
        self._reopened = None
        self.silences.append(silence)
