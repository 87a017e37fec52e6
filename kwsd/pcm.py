"""Raw PCM, as pipes and satellites deliver it: bytes to samples."""

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.float32]  # (frames, channels) in ±1

FORMATS = {"s16le": ("<i2", 32768.0), "s32le": ("<i4", 2147483648.0), "f32le": ("<f4", 1.0)}


class PcmDecoder:
    """Interleaved samples, cut anywhere."""

    def __init__(self, sample_format: str, channels: int) -> None:
        kind, full_scale = FORMATS[sample_format]
        self._kind, self._scale = np.dtype(kind), np.float32(1.0 / full_scale)
        self.may_be_infinite = self._kind.kind == "f"
        self.channels = channels
        self.frame = self._kind.itemsize * channels  # bytes
        self.rest = b""  # of a frame that is not whole yet

    def frames(self, chunk: bytes | memoryview) -> Frames:
        """The frames that are whole by now: (n, channels)."""
        if self.rest:
            chunk = self.rest + bytes(chunk)
        whole = len(chunk) // self.frame * self.frame
        self.rest = bytes(chunk[whole:])
        samples = np.frombuffer(chunk, self._kind, whole // self._kind.itemsize)
        in_range: Frames = samples.astype(np.float32)
        if self._scale != 1.0:
            in_range *= self._scale
        return in_range.reshape(-1, self.channels)


def mono(frames: Frames, channel: int | None) -> NDArray[np.float32]:
    """Frames (n, channels) to one channel, from 0, or to the mean of all: (n,)."""
    if frames.shape[1] == 1 or channel is not None:
        return np.ascontiguousarray(frames[:, channel or 0])
    return np.asarray(np.mean(frames, axis=1))
