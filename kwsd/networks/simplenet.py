"""SimpleNet: the beginners' article's multi-layer perceptron on raw samples."""

from torch import Tensor, nn
from torch.nn import functional as F

from kwsd.audio_format import WINDOW


class SimpleNet(nn.Module):
    """16000 → 128 → 64 → labels, ReLU between, log-softmax at the end.

    Without features or convolutions it must learn every word anew for every position in the window: it is
    the beginning of the road, not a model to rely on.
    """

    def __init__(self, labels: int = 35) -> None:
        super().__init__()
        self.linear1 = nn.Linear(WINDOW, 128)
        self.linear2 = nn.Linear(128, 64)
        self.linear3 = nn.Linear(64, labels)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, 16000) or (batch, 1, 16000) to log-probabilities (batch, labels)."""
        x = windows.flatten(1)  # (batch, 16000)
        x = F.relu(self.linear1(x))  # (batch, 128)
        x = F.relu(self.linear2(x))  # (batch, 64)
        return F.log_softmax(self.linear3(x), dim=-1)  # (batch, labels)
