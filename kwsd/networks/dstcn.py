"""DS-TCN: depthwise-separable temporal convolutions on log-mel frames, after TC-ResNet (Choi et al. 2019,
arXiv:1904.03814), MatchboxNet (Majumdar & Ginsburg 2020, arXiv:2004.08531) and MDTC (Hou et al. 2021,
arXiv:2102.01993).

Nothing but convolutions over time and the final mean mixes time.
"""

from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kwsd.features import LogMel
from kwsd.mel import FRAME_HOP, MELS
from kwsd.networks.incremental import FEW, Body, Incremental, IncrementalOnnx, as_gain

STEM_KERNEL, STEM_STRIDE = 5, 2  # log-mel frames; 98 of them make 49 columns of 20 ms
KERNELS = (7, 9, 11, 13, 15, 15)  # columns
LAST_KERNEL = 15


def depthwise(channels: int, kernel: int) -> nn.Conv2d:
    """One kernel per channel over (batch, channels, 1, columns), as many columns out as in.

    Time is the width of a picture one row high, because the library's channels-last kernels, which train nearly
    twice as fast, are for pictures only.
    """
    return nn.Conv2d(channels, channels, (1, kernel), padding=(0, kernel // 2), groups=channels, bias=False)


def pointwise(channels_in: int, channels_out: int) -> nn.Conv2d:
    """The same mix of channels in every column."""
    return nn.Conv2d(channels_in, channels_out, 1, bias=False)


class Block(nn.Module):
    """One separable convolution with its input added: (batch, channels, 1, columns) to the same."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = depthwise(channels, kernel)
        self.pointwise = pointwise(channels, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.pointwise(self.depthwise(x))) + x)


class DsTcn(nn.Module):
    """Stem, residual blocks, two wider layers, mean, linear. Parameters grow with the square of `channels`."""

    step = FRAME_HOP  # samples

    def __init__(self, labels: int, channels: int, wide: int) -> None:
        super().__init__()
        self.features = LogMel()
        self.normalise = nn.BatchNorm2d(MELS)
        pad = STEM_KERNEL // 2
        self.stem = nn.Sequential(
            nn.Conv2d(MELS, channels, (1, STEM_KERNEL), (1, STEM_STRIDE), (0, pad), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(Block(channels, kernel) for kernel in KERNELS))
        self.last = nn.Sequential(
            depthwise(channels, LAST_KERNEL),
            pointwise(channels, wide),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            pointwise(wide, wide),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(wide, labels)

    def embed(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to what every column is like (batch, wide, 1, columns)."""
        x = self.stem(self.normalise(frames.unsqueeze(2)))  # (batch, channels, 1, columns)
        embedded: Tensor = self.last(self.blocks(x))
        return embedded

    def decide(self, embedded: Tensor) -> Tensor:
        """What `embed` gives to log-probabilities (batch, labels)."""
        return F.log_softmax(self.classifier(embedded.mean((2, 3))), dim=-1)  # (batch, labels)

    def classify(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to log-probabilities (batch, labels)."""
        return self.decide(self.embed(frames))

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 16000) in ±1 to log-probabilities (batch, labels)."""
        return self.classify(self.features(windows))  # (batch, labels)

    def for_inference(self) -> Incremental:
        """A copy with the same answers, to be exported."""
        return Incremental(self.features, FoldedDsTcn(self).eval())

    def for_onnx(self) -> IncrementalOnnx:
        """The same network for export to ONNX; its runtime folds by itself."""
        return IncrementalOnnx(Body(self))


class FoldedDsTcn(nn.Module):
    """The body of a DsTcn for inference: batch normalisation folded into the weights, columns along axis 1."""

    few: Final[int]

    def __init__(self, network: DsTcn) -> None:
        super().__init__()
        # TorchScript knows attributes, not a module's constants.
        self.stem_kernel, self.stem_stride, self.few = STEM_KERNEL, STEM_STRIDE, FEW
        gain, offset = as_gain(network.normalise)
        self.register_buffer("gain", gain[:, None].detach().clone())
        self.register_buffer("offset", offset[:, None].detach().clone())
        stem, stem_norm = cast(nn.Conv2d, network.stem[0]), cast(nn.BatchNorm2d, network.stem[1])
        weight, bias = _fold(stem.weight[:, :, 0], stem_norm)  # (channels, mels, kernel)
        self.stem = _linear(weight.flatten(1), bias)
        blocks = cast(list[Block], list(network.blocks))
        layers: list[Any] = list(network.last)
        self.depthwise = nn.ParameterList([_over_columns(block.depthwise) for block in blocks])
        self.last_depthwise = _over_columns(layers[0])
        self.pointwise = nn.ModuleList([_folded_linear(block.pointwise, block.norm) for block in blocks])
        self.wide = _folded_linear(layers[1], layers[2])
        self.wider = _folded_linear(layers[4], layers[5])
        self.classifier = network.classifier

    gain: Tensor  # (mels, 1)
    offset: Tensor  # (mels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to log-probabilities (batch, labels)."""
        edge = self.stem_kernel // 2
        padded = F.pad(torch.addcmul(self.offset, frames, self.gain), (edge, edge))  # (batch, mels, frames + 2 edge)
        under = padded.unfold(2, self.stem_kernel, self.stem_stride).transpose(1, 2).flatten(2)
        x = F.relu(self.stem(under))  # (batch, columns, channels)
        for weight, pointwise in zip(self.depthwise, self.pointwise):  # noqa: B905  # TorchScript knows no `strict`
            x = F.relu(pointwise(self._over_time(x, weight)) + x)
        x = F.relu(self.wide(self._over_time(x, self.last_depthwise)))  # (batch, columns, wide)
        x = F.relu(self.wider(x)).mean(1)  # (batch, wide)
        return F.log_softmax(self.classifier(x), dim=-1)  # (batch, labels)

    def _over_time(self, x: Tensor, weight: Tensor) -> Tensor:
        """One kernel (kernel, channels) over time: (batch, columns, channels) to the same.

        The same sum in two orders: for few windows, as in the daemon, the library's convolution spends its time on
        reordering weights, and products of shifted columns are faster.
        """
        kernel = weight.shape[0]
        if x.shape[0] <= self.few:
            padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
            return (padded.unfold(1, kernel, 1).transpose(2, 3) * weight).sum(2)
        picture = x.transpose(1, 2).unsqueeze(2)  # (batch, channels, 1, columns)
        out = F.conv2d(picture, weight.t()[:, None, None], None, [1, 1], [0, kernel // 2], [1, 1], x.shape[2])
        return out.squeeze(2).transpose(1, 2)


def _fold(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The weight (outputs, …) and bias (outputs,) of a convolution and the batch normalisation behind it."""
    gain, offset = as_gain(norm)
    return weight * gain.view(-1, *[1] * (weight.dim() - 1)), offset


def _over_columns(convolution: nn.Conv2d) -> nn.Parameter:
    """A depthwise kernel as (kernel, channels)."""
    return nn.Parameter(convolution.weight[:, 0, 0].t().detach().clone())


def _folded_linear(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Linear:
    return _linear(*_fold(convolution.weight[:, :, 0, 0], norm))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer
