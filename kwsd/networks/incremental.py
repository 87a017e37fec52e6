"""Networks on log-mel frames as they are exported: with a second form that takes only what is new.

Windows of a second that follow each other every 100 ms share nine tenths of their log-mel frames. `begin` takes a
whole window and keeps its frames; `advance` takes the samples that came since, computes their frames, and scores the
windows they complete. The answers are those of whole windows.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kwsd.audio_format import WINDOW
from kwsd.features import DftLogMel, LogMel
from kwsd.mel import FRAME, FRAME_HOP, MELS

FRAMES = 1 + (WINDOW - FRAME) // FRAME_HOP  # in a window
FEW = 4  # windows up to which plain products are faster than the library's convolutions on the CPU


@runtime_checkable
class HasIncrement(Protocol):
    """A network that can be exported in these forms."""

    step: int  # samples: it advances by a multiple of these

    def for_inference(self) -> nn.Module:
        """A copy with the same answers, for TorchScript: with `state`, `begin` and `advance` as `Incremental` has."""
        ...

    def for_onnx(self) -> nn.Module:
        """The same network, for ONNX: with `state` and `forward` as `IncrementalOnnx` has."""
        ...


class Body(nn.Module):
    """A network from its frames on."""

    def __init__(self, network: Any) -> None:  # an nn.Module with `classify`
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to log-probabilities (batch, labels)."""
        log_probs: Tensor = self.network.classify(frames)
        return log_probs


class Incremental(nn.Module):
    """`features`, and a `body` from frames (batch, mels, frames) to log-probabilities (batch, labels)."""

    def __init__(self, features: LogMel, body: nn.Module) -> None:
        super().__init__()
        self.features, self.body = features, body
        # TorchScript knows attributes, not a module's constants.
        self.past, self.mels, self.frames = FRAME - FRAME_HOP, MELS, FRAMES
        self.state = self.past + FRAMES * MELS  # floats per stream: samples, then frames

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 16000) in ±1 to log-probabilities (batch, labels)."""
        log_probs: Tensor = self.body(self.features(windows))
        return log_probs

    @torch.jit.export
    def begin(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (batch, 16000) to log-probabilities (batch, labels) and the state (batch, state) after them."""
        frames = self.features(windows)  # (batch, mels, frames)
        return self.body(frames), self._state(windows, frames)

    @torch.jit.export
    def advance(self, samples: Tensor, state: Tensor, hops: int) -> tuple[Tensor, Tensor]:
        """The next samples (batch, hops * n), n a multiple of 160, and the state before them to the log-probabilities
        (batch, hops, labels) of the window that ends with each hop, and the state after them."""
        batch = samples.shape[0]
        samples = torch.cat([state[:, : self.past], samples], 1)
        new = self.features(samples)  # (batch, mels, new)
        frames = torch.cat([state[:, self.past :].view(batch, self.mels, self.frames), new], 2)
        per_hop = new.shape[2] // hops
        if hops == 1:
            log_probs = self.body(frames[:, :, per_hop:]).unsqueeze(1)
        else:
            windows = frames[:, :, per_hop:].unfold(2, self.frames, per_hop)  # (batch, mels, hops, frames)
            log_probs = self.body(windows.transpose(1, 2).flatten(0, 1)).view(batch, hops, -1)
        return log_probs, self._state(samples, frames)

    def _state(self, samples: Tensor, frames: Tensor) -> Tensor:
        return torch.cat([samples[:, -self.past :], frames[:, :, -self.frames :].flatten(1)], 1)


class IncrementalOnnx(nn.Module):
    """The same for ONNX: one function for all. A whole window on a state of zeros is a window on its own, as its frames
    push everything before them out."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.features, self.body = DftLogMel(), body
        self.state = FRAME - FRAME_HOP + FRAMES * MELS

    def forward(self, samples: Tensor, state: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (batch, n), n a multiple of 160, the state before them (batch, state), and which of their steps of
        160 are the last of a hop (hops,), to log-probabilities (batch * hops, labels) of the window that ends with
        each hop, and the state after them."""
        past = FRAME - FRAME_HOP
        samples = torch.cat([state[:, :past], samples], 1)
        frames = torch.cat([state[:, past:].reshape(-1, MELS, FRAMES), self.features(samples)], 2)
        at = (ends[:, None] + torch.arange(1, FRAMES + 1)).flatten()  # (hops * FRAMES,)
        windows = frames.transpose(1, 2).index_select(1, at).reshape(-1, FRAMES, MELS)  # whole frames are copied faster
        log_probs = self.body(windows.transpose(1, 2))
        return log_probs, torch.cat([samples[:, -past:], frames[:, :, -FRAMES:].flatten(1)], 1)


def as_gain(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch normalisation as x * gain + offset, each (channels,)."""
    assert norm.running_var is not None and norm.running_mean is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return gain, norm.bias - norm.running_mean * gain
