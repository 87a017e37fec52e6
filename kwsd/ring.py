"""The last seconds of every stream, addressed by absolute sample index.

Concurrency invariant. A stream has one writer and any number of readers, and nobody takes a lock. The writer
raises `_claimed` to the index it is about to reach *before* it touches a sample, and `ends` *after* the
last sample is in place. A reader copies first and looks at `_claimed` afterwards: what it copied was not
touched meanwhile exactly where its first index is at least `_claimed - capacity`. Otherwise the copy may be
torn, `read` says so, and the caller counts the loss. Indices only grow, so a stale look errs on the safe side. A
writer may be C (ears.c) that does not hold the interpreter lock, so a reader sees to the order of its looks itself.
"""

from array import array
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kwsd.compiled import at, fence

Samples = NDArray[np.float32]
Indices = NDArray[np.int64]


class RingBuffer:
    """`streams` rings of `capacity` samples each, a sample being one float or, with `channels`, a row of them.

    Nothing in here allocates sample memory after construction.
    """

    def __init__(
        self, streams: int, capacity: int, channels: int | None = None, *, hop: int = 1, touched: int | None = None
    ) -> None:
        """`gather` is quick for samples that begin and end at multiples of `hop`, which must divide the capacity.

        The memory of the first `touched` streams, or of all, is there from the start: an audio callback must not wait
        for it. That of the others comes as they write.
        """
        self.streams, self.capacity, self.channels, self.hop = streams, capacity, channels or 1, hop
        # Arrays of Python's own: to read or write one number in them takes a third of the time numpy needs.
        self.ends = array("q", bytes(8 * streams))  # samples [.., ends) are in place
        self._claimed = array("q", bytes(8 * streams))  # the writer may be overwriting [.., _claimed - capacity)
        self.unbroken_from = np.zeros(streams, np.int64)  # first index after the last gap
        self.gaps = 0  # how often that changed
        self._ends_of_all = np.frombuffer(self.ends, np.int64)
        self._claimed_of_all = np.frombuffer(self._claimed, np.int64)
        shape = (streams, capacity) if channels is None else (streams, capacity, channels)
        self._samples = np.zeros(shape, np.float32)
        self._samples[:touched] = 0.0  # to write is to touch: `zeros` only promises pages
        self._hops = self._samples.reshape(-1, hop) if channels is None else None
        self._bytes = [memoryview(row).cast("B") for row in self._samples]
        self._sample = 4 * (channels or 1)  # bytes
        self._append = [self.appender(stream) for stream in range(streams)]

    @property
    def written(self) -> Indices:
        """The same as `ends`, to calculate with: (streams,). It does not change any more."""
        return self._ends_of_all.copy()

    def write(self, stream: int, samples: Samples) -> None:
        """Append samples (n,) or (n, channels). Called by the stream's one writer; never blocks."""
        if samples.size:
            self._append[stream](memoryview(samples).cast("B"))  # type: ignore[arg-type]

    def appender(self, stream: int) -> Callable[[bytes], None]:
        """`write` for an audio callback: takes float32 samples as bytes, and has all it needs at hand, since after
        50 ms of sleep whatever must be looked up comes from main memory."""
        memory, size, ends, claimed = self._bytes[stream], self._sample, self.ends, self._claimed

        def append(block: bytes) -> None:
            end = ends[stream] + len(block) // size
            claimed[stream] = end
            stop = end * size % len(memory)
            start = stop - len(block)
            if start >= 0:
                memory[start:stop] = block
            else:  # over the ring's edge
                block = block[-len(memory) :]
                head = len(block) - stop
                memory[len(memory) - head :] = block[:head]
                memory[:stop] = block[head:]
            ends[stream] = end

        return append

    def addresses(self, stream: int) -> dict[str, int]:
        """Where a stream lies, for what is compiled: its samples (capacity, channels), how many bytes they are together
        and each, and the indices a writer moves."""
        return {
            "ring": at(self._samples[stream]),
            "size": self._samples[stream].nbytes,
            "frame": self._sample,
            "end": at(self._ends_of_all[stream:]),
            "claimed": at(self._claimed_of_all[stream:]),
            "unbroken_from": at(self.unbroken_from[stream:]),
        }

    def skip(self, stream: int, lost: int = 0) -> None:
        """A gap: `lost` samples never came (0 if nobody knows how many). Called by the stream's one writer."""
        end = self.ends[stream] + lost
        self._claimed[stream] = end
        self.unbroken_from[stream] = end
        self.gaps += 1
        self.ends[stream] = end

    def lead_in(self, stream: int, samples: int) -> None:
        """Count the zeros before sample 0 as audio: a recording that begins in silence."""
        self.unbroken_from[stream] = -samples
        self.gaps += 1

    def read(self, stream: int, start: int, out: Samples, *, before_gap: bool = False) -> bool:
        """Copy samples [start, start + len(out)) and say whether every one of them is what was written.

        False: some are not there yet, overwritten already, or lie before the last gap. With `before_gap` they may, if
        there was but one: whoever asks knows that they do not lie on both sides of it.
        """
        if start + len(out) > self.ends[stream] or len(out) > self.capacity:
            return False
        fence()
        ring = self._samples[stream]
        first = start % self.capacity
        head = min(len(out), self.capacity - first)
        out[:head] = ring[first : first + head]
        out[head:] = ring[: len(out) - head]
        fence()
        return start >= (self._claimed[stream] - self.capacity if before_gap else self.oldest(stream))

    def gather(self, streams: Indices, ends: Indices, size: int) -> tuple[Samples, NDArray[np.bool_]]:
        """The `size` samples before each end: (n, size), and for which of them `read` would say yes: (n,)."""
        starts = ends - size
        if self._hops is None or size % self.hop or (starts % self.hop).any():
            return self._one_by_one(streams, starts, size)
        there = ends <= self._ends_of_all[streams]
        in_ring = self.capacity // self.hop
        rows = (starts // self.hop)[:, None] + np.arange(size // self.hop)  # (n, size // hop)
        rows = streams[:, None] * in_ring + rows % in_ring
        samples = np.take(self._hops, rows, 0).reshape(-1, size)
        oldest = np.maximum(self._claimed_of_all - self.capacity, self.unbroken_from)  # looked at after copying
        return samples, there & (starts >= oldest[streams])

    def _one_by_one(self, streams: Indices, starts: Indices, size: int) -> tuple[Samples, NDArray[np.bool_]]:
        samples = np.empty((len(streams), size), np.float32)
        whole = np.empty(len(streams), np.bool_)
        for row, (stream, start) in enumerate(zip(streams.tolist(), starts.tolist(), strict=True)):
            whole[row] = self.read(stream, start, samples[row])
        return samples, whole

    def oldest(self, stream: int) -> int:
        """The first index that is still in place and after the last gap."""
        return max(self._claimed[stream] - self.capacity, int(self.unbroken_from[stream]))
