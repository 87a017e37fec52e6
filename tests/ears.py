"""A network that needs no training: any loud sound is "yes", the rest is silence."""

import torch
from torch import Tensor, nn


class Ears(nn.Module):
    """Log-probabilities with the first output for sound and the last for silence."""

    def __init__(self, outputs: int, window: int = 16000, log: bool = True) -> None:
        super().__init__()
        self.window, self.log = window, log
        self.sound = nn.Parameter(20.0 * torch.eye(outputs)[0])
        self.silence = nn.Parameter(20.0 * torch.eye(outputs)[-1])

    def forward(self, windows: Tensor) -> Tensor:
        """(n, window) → (n, outputs)"""
        loud = (windows.reshape(-1, self.window).abs().mean(1, keepdim=True) > 0.02).float()
        scores = loud * self.sound + (1.0 - loud) * self.silence
        return scores.log_softmax(1) if self.log else scores
