"""BC-ResNet (Kim et al. 2021, arXiv:2106.04140): 2-D features over frequency, 1-D features over time broadcast to them.

As in the paper, but for SubSpectralNorm (Chang et al. 2021, arXiv:2103.13620), which is batch normalisation on a
reshaped tensor here, and a mean in place of pooling layers: so it scripts.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from kwsd.features import LogMel
from kwsd.mel import FRAME_HOP
from kwsd.networks.incremental import Body, Incremental, IncrementalOnnx

BANDS = 5  # of frequency that are normalised apart
DROPOUT = 0.1
STAGES = ((8, 2, 1, 1), (12, 2, 2, 2), (16, 4, 2, 4), (20, 4, 1, 8))  # width / tau, blocks, stride, dilation


class SubSpectralNorm(nn.Module):
    """Batch normalisation of every band of frequencies by itself: (batch, channels, mels, frames) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bands = BANDS
        self.norm = nn.BatchNorm2d(channels * BANDS)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, mels, frames = x.shape
        apart = x.reshape(batch, channels * self.bands, mels // self.bands, frames)
        out: Tensor = self.norm(apart).reshape(batch, channels, mels, frames)
        return out


class Block(nn.Module):
    """Frequency part, then the temporal part of its mean over frequency, broadcast and added."""

    def __init__(self, channels_in: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.changes = channels_in != channels  # a transition block: new width, no shortcut
        frequency: list[nn.Module] = []
        if self.changes:
            frequency += [nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        frequency += [
            nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), groups=channels, bias=False),
            SubSpectralNorm(channels),
        ]
        self.frequency = nn.Sequential(*frequency)
        self.time = nn.Sequential(
            nn.Conv2d(channels, channels, (1, 3), 1, (0, dilation), (1, dilation), groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Dropout2d(DROPOUT),
        )

    def forward(self, x: Tensor) -> Tensor:
        two_d = self.frequency(x)  # (batch, channels, mels / stride, frames)
        out = two_d + self.time(two_d.mean(2, keepdim=True))
        return F.relu(out if self.changes else out + x)


class BcResNet(nn.Module):
    """BC-ResNet-tau on log-mel frames."""

    step = FRAME_HOP  # samples

    def __init__(self, labels: int, tau: float) -> None:
        super().__init__()
        self.features = LogMel()
        width = int(16 * tau)
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )  # fmt: skip
        blocks = []
        for times, n, stride, dilation in STAGES:
            before, width = width, int(times * tau)
            blocks += [Block(before if i == 0 else width, width, stride if i == 0 else 1, dilation) for i in range(n)]
        self.blocks = nn.Sequential(*blocks)
        wide = int(32 * tau)
        self.last = nn.Sequential(
            nn.Conv2d(width, width, 5, 1, (0, 2), groups=width, bias=False),
            nn.Conv2d(width, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(wide, labels)

    def embed(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to what every column is like (batch, wide, 1, columns)."""
        embedded: Tensor = self.last(self.blocks(self.stem(frames.unsqueeze(1))))
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
        """The same network, for TorchScript."""
        return Incremental(self.features, Body(self))

    def for_onnx(self) -> IncrementalOnnx:
        """The same network, for ONNX."""
        return IncrementalOnnx(Body(self))
