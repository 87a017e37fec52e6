"""MatchboxNet (Majumdar & Ginsburg 2020, arXiv:2004.08531): 1-D time-channel separable convolutions.

Only the convolutions and the final mean mix time.
"""

from typing import Final

from torch import Tensor, nn
from torch.nn import functional as F

from kwsd.features import MELS, LogMel

FEW = 4  # windows


class DepthwiseConv1d(nn.Conv1d):
    """One kernel per channel. The same sum in two orders: for a few windows at a time, as in the daemon, the
    library's convolution spends its time reordering weights, and products of shifted frames are faster."""

    few: Final[int] = FEW

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, frames) to (batch, channels, frames / stride)."""
        if self.training or x.shape[0] > self.few:
            return F.conv1d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        pad, stride, dilation = int(self.padding[0]), self.stride[0], self.dilation[0]
        reach = dilation * (self.kernel_size[0] - 1) + 1  # frames under the kernel
        padded = F.pad(x.transpose(1, 2), (0, 0, pad, pad))  # (batch, frames + 2 pad, channels)
        under = padded.unfold(1, reach, stride)[..., ::dilation].transpose(2, 3)  # (batch, frames, kernel, channels)
        return (under * self.weight[:, 0].t()).sum(2).transpose(1, 2)  # (batch, channels, frames)


def separable(channels_in: int, channels_out: int, kernel: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    """Depthwise convolution over time, pointwise over channels, batch normalisation."""
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(
        DepthwiseConv1d(channels_in, channels_in, kernel, stride, padding, dilation, groups=channels_in, bias=False),
        nn.Conv1d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm1d(channels_out),
    )


class Block(nn.Module):
    """R separable sub-blocks with a pointwise residual around all of them."""

    def __init__(self, channels_in: int, channels: int, kernel: int, repeats: int, dropout: float) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for i in range(repeats):
            stages += [separable(channels_in if i == 0 else channels, channels, kernel)]
            stages += [nn.ReLU(), nn.Dropout(dropout)] if i < repeats - 1 else []
        self.stages = nn.Sequential(*stages)
        self.residual = nn.Sequential(nn.Conv1d(channels_in, channels, 1, bias=False), nn.BatchNorm1d(channels))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stages(x) + self.residual(x))  # (batch, channels, frames)
        return F.dropout(x, self.dropout, self.training)


class MatchboxNet(nn.Module):
    """MatchboxNet-B×R×C on log-mel frames: prologue, B residual blocks of R sub-blocks of C channels, epilogue."""

    def __init__(
        self, labels: int, blocks: int = 3, repeats: int = 1, channels: int = 64, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.features = LogMel()
        self.normalise = nn.BatchNorm1d(MELS)
        self.prologue = nn.Sequential(separable(MELS, 128, kernel=11, stride=2), nn.ReLU())
        kernels = [13 + 2 * i for i in range(blocks)]
        self.blocks = nn.Sequential(
            *(Block(128 if i == 0 else channels, channels, k, repeats, dropout) for i, k in enumerate(kernels))
        )
        self.epilogue = nn.Sequential(
            separable(channels, 128, kernel=29, dilation=2),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv1d(128, 128, 1, bias=False),
            nn.BatchNorm1d(128),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(128, labels)

    def classify(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to log-probabilities (batch, labels)."""
        x = self.prologue(self.normalise(frames))  # (batch, 128, frames / 2)
        x = self.epilogue(self.blocks(x))  # (batch, 128, frames / 2)
        return F.log_softmax(self.classifier(x.mean(-1)), dim=-1)  # (batch, labels)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 16000) in ±1 to log-probabilities (batch, labels)."""
        return self.classify(self.features(windows))  # (batch, labels)
