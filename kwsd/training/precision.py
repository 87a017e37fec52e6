"""Networks in 16-bit arithmetic, where the device has it. What they learn and decide with stays in 32."""

from typing import Any, cast

import torch
from torch import Tensor, nn


class FromFrames(nn.Module):
    """A network from log-mel frames on; what every column is like is reckoned in 16 bits, if `mixed`."""

    def __init__(self, network: Any, device: torch.device, mixed: bool) -> None:  # `network` has `embed` and `decide`
        super().__init__()
        self.network, self.device, self.mixed = network, device, mixed and knows_bfloat16(device)

    def forward(self, frames: Tensor) -> Tensor:
        """Log-mel frames (batch, mels, frames) to log-probabilities (batch, labels)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            embedded = self.network.embed(frames)
        return cast(Tensor, self.network.decide(embedded.float()))


def knows_bfloat16(device: torch.device) -> bool:
    """Whether the device reckons in 16 bits, and so faster, by itself. What it reckons with is kept in 32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())
