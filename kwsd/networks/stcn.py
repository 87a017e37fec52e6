"""S-TCN: a temporal convolutional network that streams. Separable convolutions without padding on log-mel frames,
after MatchboxNet (Majumdar & Ginsburg 2020, arXiv:2004.08531), then one kernel per channel over all columns that are
left, as in MobileFaceNet (Chen et al. 2018, arXiv:1804.07573).

Without padding a column is the same numbers whichever window it is in. So what a second and the next have in common is
computed once: the streaming form keeps the columns each kernel still reaches back to and computes only the new ones.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kwsd.features import DftLogMel, LogMel
from kwsd.mel import FRAME, FRAME_HOP, MELS
from kwsd.networks.incremental import FEW, FRAMES, as_gain

STEM_KERNEL, STEM_STRIDE = 5, 2  # log-mel frames; a column is 20 ms
KERNELS = (3, 3, 5, 5, 7, 7)  # columns
COLUMNS = 1 + (FRAMES - STEM_KERNEL) // STEM_STRIDE
OLDEST = (
    FRAMES - STEM_KERNEL
) % STEM_STRIDE  # frames at a window's start that are left out, so that none is at its end
POOLED = COLUMNS - sum(kernel - 1 for kernel in KERNELS)  # columns that are left of a window


def depthwise(channels: int, kernel: int) -> nn.Conv2d:
    """One kernel per channel over (batch, channels, 1, columns), to `kernel` - 1 columns less."""
    return nn.Conv2d(channels, channels, (1, kernel), groups=channels, bias=False)


def pointwise(channels_in: int, channels_out: int) -> nn.Conv2d:
    """The same mix of channels in every column."""
    return nn.Conv2d(channels_in, channels_out, 1, bias=False)


class Block(nn.Module):
    """One separable convolution, with the middle of its input added: (batch, channels, 1, columns) to `kernel` - 1
    columns less."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.edge = kernel // 2
        self.depthwise = depthwise(channels, kernel)
        self.pointwise = pointwise(channels, channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.pointwise(self.depthwise(x))) + x[..., self.edge : x.shape[3] - self.edge])


class STcn(nn.Module):
    """Stem, residual blocks, a wider layer, one kernel over all columns, a layer, linear."""

    step = STEM_STRIDE * FRAME_HOP  # samples

    def __init__(self, labels: int, channels: int, wide: int) -> None:
        super().__init__()
        self.features = LogMel()
        self.normalise = nn.BatchNorm2d(MELS)
        self.stem = nn.Sequential(
            nn.Conv2d(MELS, channels, (1, STEM_KERNEL), (1, STEM_STRIDE), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        self.blocks = nn.Sequential(*(Block(channels, kernel) for kernel in KERNELS))
        self.wide = nn.Sequential(pointwise(channels, wide), nn.BatchNorm2d(wide), nn.ReLU())
        pool = depthwise(wide, POOLED)
        nn.init.constant_(pool.weight, 1.0 / POOLED)  # a mean, to begin with
        self.pool = nn.Sequential(pool, nn.BatchNorm2d(wide))
        self.last = nn.Sequential(pointwise(wide, wide), nn.BatchNorm2d(wide), nn.ReLU())
        self.classifier = nn.Linear(wide, labels)

    def embed(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) of one window to what it is like (batch, wide, 1, 1)."""
        x = self.blocks(self.stem(self.normalise(frames[:, :, OLDEST:].unsqueeze(2))))  # (batch, channels, 1, POOLED)
        embedded: Tensor = self.last(self.pool(self.wide(x)))
        return embedded

    def decide(self, embedded: Tensor) -> Tensor:
        """What `embed` gives to log-probabilities (batch, labels)."""
        return F.log_softmax(self.classifier(embedded.flatten(1)), dim=-1)

    def classify(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to log-probabilities (batch, labels)."""
        return self.decide(self.embed(frames))

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 16000) in ±1 to log-probabilities (batch, labels)."""
        return self.classify(self.features(windows))

    def for_inference(self) -> "StreamingSTcn":
        """A copy with the same answers, for TorchScript."""
        return StreamingSTcn(self, self.features, FEW).eval()

    def for_onnx(self) -> "OnnxSTcn":
        """A copy with the same answers, for ONNX."""
        return OnnxSTcn(self).eval()


class Folded(nn.Module):
    """A convolution for inference, in two orders: for up to `few` windows, as in the daemon, the library's convolution
    spends its time on reordering weights, and plain products are faster."""

    def __init__(self, convolution: nn.Conv2d, few: int) -> None:
        super().__init__()
        self.few = few
        self.weight = nn.Parameter(convolution.weight.detach().clone())
        bias = torch.zeros(convolution.out_channels) if convolution.bias is None else convolution.bias
        self.bias = nn.Parameter(bias.detach().clone())


class Stem(Folded):
    """Frames (batch, mels, 1, frames) to columns (batch, channels, 1, columns)."""

    def __init__(self, convolution: nn.Conv2d, few: int) -> None:
        super().__init__(convolution, few)
        self.kernel, self.stride = STEM_KERNEL, STEM_STRIDE

    def forward(self, frames: Tensor) -> Tensor:
        if frames.shape[0] > self.few:
            return F.conv2d(frames, self.weight, self.bias, [1, self.stride])
        under = frames[:, :, 0].unfold(2, self.kernel, self.stride)  # (batch, mels, columns, kernel)
        mixed = F.linear(under.transpose(1, 2).flatten(2), self.weight.flatten(1), self.bias)
        return mixed.transpose(1, 2).unsqueeze(2)


class Depthwise(Folded):
    """One kernel per channel: (batch, channels, 1, columns) to `kernel` - 1 columns less."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.few:
            return F.conv2d(x, self.weight, self.bias, groups=self.weight.shape[0])
        return (x.unfold(3, self.weight.shape[3], 1) * self.weight[:, 0, :, None]).sum(4) + self.bias[:, None, None]


class Pointwise(Folded):
    """The same mix of channels in every column: (batch, channels, 1, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > self.few:
            return F.conv2d(x, self.weight, self.bias)
        return F.linear(x[:, :, 0].transpose(1, 2), self.weight[:, :, 0, 0], self.bias).transpose(1, 2).unsqueeze(2)


class StreamingSTcn(nn.Module):
    """An STcn for inference, its normalisations folded into the weights. A stream's state is one row of floats: the
    samples, frames and columns that the kernels reach back to, layer by layer."""

    def __init__(self, network: STcn, features: nn.Module, few: int) -> None:
        super().__init__()
        network = network.eval()
        self.features = features
        # TorchScript knows attributes, not a module's constants.
        self.past, self.mels, self.pooled = FRAME - FRAME_HOP, MELS, POOLED
        self.step = network.step
        stem = fuse(network.stem)
        _normalised_before(stem, network.normalise)
        blocks = cast(list[Block], list(network.blocks))
        self.stem = Stem(stem, few)
        self.depthwise = nn.ModuleList([Depthwise(block.depthwise, few) for block in blocks])
        self.pointwise = nn.ModuleList(
            [Pointwise(fuse_conv_bn_eval(block.pointwise, block.norm), few) for block in blocks]
        )
        self.wide = Pointwise(fuse(network.wide), few)
        self.pool, self.last = Depthwise(fuse(network.pool), few), Pointwise(fuse(network.last), few)
        self.classifier = network.classifier
        self.channels, self.wider = channels, wide = stem.out_channels, network.classifier.in_features
        self.frames = STEM_KERNEL - STEM_STRIDE
        self.edges = [kernel // 2 for kernel in KERNELS]
        kept = [self.past, MELS * self.frames, *(channels * (kernel - 1) for kernel in KERNELS), wide * (POOLED - 1)]
        self.kept = kept  # floats per stream and layer
        self.state = sum(kept)  # floats per stream

    def columns(self, samples: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (batch, n), n a multiple of 320, and the state before them (batch, state) to the columns the last
        kernel reaches over, the kept and the new (batch, wide, 1, POOLED - 1 + n / 320), and the state after them."""
        before = torch.split(state, self.kept, 1)
        samples = torch.cat([before[0], samples], 1)
        after = [samples[:, -self.past :]]
        frames = torch.cat([_row(before[1], self.mels, self.frames), self.features(samples).unsqueeze(2)], 3)
        after.append(frames[:, :, :, -self.frames :].flatten(1))
        x = F.relu(self.stem(frames))  # (batch, channels, 1, n / 320)
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise)):  # noqa: B905  # TorchScript
            edge = self.edges[i]
            x = torch.cat([_row(before[i + 2], self.channels, 2 * edge), x], 3)
            after.append(x[:, :, :, -2 * edge :].flatten(1))
            x = F.relu(pointwise(depthwise(x)) + x[:, :, :, edge:-edge])
        x = F.relu(self.wide(x))
        x = torch.cat([_row(before[-1], self.wider, self.pooled - 1), x], 3)
        after.append(x[:, :, :, 1 - self.pooled :].flatten(1))
        return x, torch.cat(after, 1)

    def decide(self, columns: Tensor) -> Tensor:
        """Columns (n, wide, 1, POOLED) to log-probabilities (n, labels)."""
        embedded = F.relu(self.last(self.pool(columns)))  # (n, wide, 1, 1)
        return F.log_softmax(self.classifier(embedded.flatten(1)), dim=-1)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 16000) in ±1 to log-probabilities (batch, labels)."""
        return self.begin(windows)[0]

    @torch.jit.export
    def begin(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (batch, 16000) to log-probabilities (batch, labels) and the state (batch, state) after them."""
        nothing = torch.zeros(windows.shape[0], self.state, device=windows.device)  # a window pushes all of it out
        columns, after = self.columns(windows, nothing)
        return self.decide(columns[:, :, :, -self.pooled :]), after

    @torch.jit.export
    def advance(self, samples: Tensor, state: Tensor, hops: int) -> tuple[Tensor, Tensor]:
        """The next samples (batch, hops * n), n a multiple of 320, and the state before them to the log-probabilities
        (batch, hops, labels) of the window that ends with each hop, and the state after them."""
        columns, after = self.columns(samples, state)
        per_hop = samples.shape[1] // hops // self.step
        windows = columns[:, :, :, per_hop - 1 :].unfold(3, self.pooled, per_hop)  # (batch, wide, 1, hops, POOLED)
        log_probs = self.decide(windows.permute(0, 3, 1, 2, 4).flatten(0, 1))
        return log_probs.view(samples.shape[0], hops, -1), after


class OnnxSTcn(nn.Module):
    """The same for ONNX: one function for all. A whole window on a state of zeros is a window on its own, as its
    columns push everything before them out."""

    def __init__(self, network: STcn) -> None:
        super().__init__()
        self.network = StreamingSTcn(network, DftLogMel(), 0)
        self.state = self.network.state

    def forward(self, samples: Tensor, state: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (batch, n), n a multiple of 320, the state before them (batch, state), and which of their steps of
        320 are the last of a hop (hops,), to log-probabilities (batch * hops, labels) of the window that ends with
        each hop, and the state after them."""
        columns, after = self.network.columns(samples, state)
        # Pooled at every column, which costs less than to take the windows apart.
        pooled = self.network.pool(columns)[:, :, :, ends]  # (batch, wide, 1, hops)
        embedded = F.relu(self.network.last(pooled)).transpose(1, 3).reshape(-1, self.network.wider)  # (…, wide)
        return F.log_softmax(self.network.classifier(embedded), dim=-1), after


def fuse(layers: nn.Module) -> nn.Conv2d:
    """A convolution and the normalisation behind it as one convolution."""
    convolution, norm = list(layers.children())[:2]
    return fuse_conv_bn_eval(cast(nn.Conv2d, convolution), cast(nn.BatchNorm2d, norm))


def _normalised_before(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Folds the normalisation in front of an unpadded convolution into it."""
    assert convolution.bias is not None
    with torch.no_grad():
        gain, offset = as_gain(norm)
        convolution.bias += (convolution.weight.sum((2, 3)) * offset).sum(1)
        convolution.weight *= gain[None, :, None, None]


def _row(kept: Tensor, channels: int, columns: int) -> Tensor:
    """What was kept of a layer (batch, channels * columns) as (batch, channels, 1, columns)."""
    return kept.reshape(-1, channels, 1, columns)
