"""The last seconds of every stream, addressed by absolute sample index.

Concurrency invariant. A stream has one writer and any number of readers, and nobody takes a lock. The writer
raises `_claimed` to the index it is about to reach *before* it touches a sample, and `written` *after* the
last sample is in place. A reader copies first and looks at `_claimed` afterwards: what it copied was not
touched meanwhile exactly where its first index is at least `_claimed - capacity`. Otherwise the copy may be
torn, `read` says so, and the caller counts the loss. Indices only grow, so a stale look errs on the safe side.
"""

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


class RingBuffer:
    """`streams` rings of `capacity` samples each. Nothing in here allocates sample memory after construction."""

    def __init__(self, streams: int, capacity: int) -> None:
        self.streams, self.capacity = streams, capacity
        self.written = np.zeros(streams, np.int64)  # samples [.., written) are in place
        self.ends = [0] * streams  # the same as `written`: one number out of a list is quicker to have
        self.unbroken_from = np.zeros(streams, np.int64)  # first index after the last gap
        self._claimed = np.zeros(streams, np.int64)  # the writer may be overwriting [.., _claimed - capacity)
        self._samples = np.zeros((streams, capacity), np.float32)
        self._rows = list(self._samples)  # one view per stream, made once

    def write(self, stream: int, block: Samples) -> None:
        """Append a block (n,). Called by the stream's one writer; never blocks."""
        size = len(block)
        end = self.ends[stream] + size
        self._claimed[stream] = end
        if size > self.capacity:
            block, size = block[-self.capacity :], self.capacity
        ring = self._rows[stream]
        start = (end - size) % self.capacity
        head = min(size, self.capacity - start)
        ring[start : start + head] = block[:head]
        if head < size:
            ring[: size - head] = block[head:]
        self.written[stream] = self.ends[stream] = end

    def skip(self, stream: int, lost: int = 0) -> None:
        """A gap: `lost` samples never came (0 if nobody knows how many). Called by the stream's one writer."""
        end = self.ends[stream] + lost
        self._claimed[stream] = end
        self.unbroken_from[stream] = end
        self.written[stream] = self.ends[stream] = end

    def lead_in(self, stream: int, samples: int) -> None:
        """Count the zeros before sample 0 as audio: a recording that begins in silence."""
        self.unbroken_from[stream] = -samples

    def read(self, stream: int, start: int, out: Samples) -> bool:
        """Copy samples [start, start + len(out)) and say whether every one of them is what was written.

        False: some are not there yet, overwritten already, or lie on both sides of a gap.
        """
        if start + len(out) > self.written[stream]:
            return False
        ring = self._samples[stream]
        first = start % self.capacity
        head = min(len(out), self.capacity - first)
        out[:head] = ring[first : first + head]
        out[head:] = ring[: len(out) - head]
        return bool(start >= self.oldest(stream))

    def oldest(self, stream: int) -> int:
        """The first index that is still in place and after the last gap."""
        return max(int(self._claimed[stream]) - self.capacity, int(self.unbroken_from[stream]))
