"""The last seconds of every stream, addressed by absolute sample index.

Concurrency invariant. A stream has one writer and any number of readers, and nobody takes a lock. The writer
raises `_claimed` to the index it is about to reach *before* it touches a sample, and `ends` *after* the
last sample is in place. A reader copies first and looks at `_claimed` afterwards: what it copied was not
touched meanwhile exactly where its first index is at least `_claimed - capacity`. Otherwise the copy may be
torn, `read` says so, and the caller counts the loss. Indices only grow, so a stale look errs on the safe side.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


class RingBuffer:
    """`streams` rings of `capacity` samples each, a sample being one float or, with `channels`, a row of them.

    Nothing in here allocates sample memory after construction.
    """

    def __init__(self, streams: int, capacity: int, channels: int | None = None) -> None:
        self.streams, self.capacity = streams, capacity
        self.ends = [0] * streams  # samples [.., ends) are in place
        self.unbroken_from = np.zeros(streams, np.int64)  # first index after the last gap
        self._claimed = [0] * streams  # the writer may be overwriting [.., _claimed - capacity)
        shape = (streams, capacity) if channels is None else (streams, capacity, channels)
        self._samples = np.full(shape, 0.0, np.float32)  # `full` touches every page now; `zeros` would in the callback
        self._bytes = [memoryview(row).cast("B") for row in self._samples]
        self._sample = 4 * (channels or 1)  # bytes
        self._append = [self.appender(stream) for stream in range(streams)]

    @property
    def written(self) -> NDArray[np.int64]:
        """The same as `ends`, to calculate with: (streams,)."""
        return np.array(self.ends, np.int64)

    def write(self, stream: int, samples: Samples) -> None:
        """Append samples (n,) or (n, channels). Called by the stream's one writer; never blocks."""
        if samples.size:
            self._append[stream](memoryview(samples).cast("B"))  # type: ignore[arg-type]

    def appender(self, stream: int) -> Callable[[bytes], None]:
        """`write` for the audio callback: takes float32 samples as bytes, and has all it needs at hand, since after
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

    def skip(self, stream: int, lost: int = 0) -> None:
        """A gap: `lost` samples never came (0 if nobody knows how many). Called by the stream's one writer."""
        end = self.ends[stream] + lost
        self._claimed[stream] = end
        self.unbroken_from[stream] = end
        self.ends[stream] = end

    def lead_in(self, stream: int, samples: int) -> None:
        """Count the zeros before sample 0 as audio: a recording that begins in silence."""
        self.unbroken_from[stream] = -samples

    def read(self, stream: int, start: int, out: Samples) -> bool:
        """Copy samples [start, start + len(out)) and say whether every one of them is what was written.

        False: some are not there yet, overwritten already, or lie on both sides of a gap.
        """
        if start + len(out) > self.ends[stream]:
            return False
        ring = self._samples[stream]
        first = start % self.capacity
        head = min(len(out), self.capacity - first)
        out[:head] = ring[first : first + head]
        out[head:] = ring[: len(out) - head]
        return bool(start >= self.oldest(stream))

    def oldest(self, stream: int) -> int:
        """The first index that is still in place and after the last gap."""
        return max(self._claimed[stream] - self.capacity, int(self.unbroken_from[stream]))
