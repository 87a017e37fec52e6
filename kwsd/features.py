"""Log-mel frames: the one definition, used in training and inside every exported artefact."""

import torch
from torch import Tensor, nn

from kwsd.audio_format import SAMPLE_RATE

FRAME = 480  # samples under one Hann window: 30 ms
FRAME_HOP = 160  # samples between frames: 10 ms, a third of a frame
FFT = 512  # points; the frame is zero-padded up to it
MELS = 40
LOWEST_HZ = 20.0
HIGHEST_HZ = 7600.0
FLOOR = 1e-6  # mel power added before the logarithm: about the hiss of a quiet 16-bit microphone


def mel_scale(hz: Tensor) -> Tensor:
    """Hertz to mel (O'Shaughnessy 1987, the HTK formula)."""
    return 2595.0 * torch.log10(1.0 + hz / 700.0)


def hertz(mel: Tensor) -> Tensor:
    """Mel to hertz, the inverse of `mel_scale`."""
    return 700.0 * (torch.pow(10.0, mel / 2595.0) - 1.0)


def mel_filters() -> Tensor:
    """Triangular filters, equally spaced in mel, each of peak 1: (FFT // 2 + 1, MELS)."""
    bins = mel_scale(torch.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1))  # (bins,)
    low, high = mel_scale(torch.tensor([LOWEST_HZ, HIGHEST_HZ])).tolist()
    corners = torch.linspace(low, high, MELS + 2)  # (mels + 2,)
    rising = (bins[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])  # (bins, mels)
    falling = (corners[2:] - bins[:, None]) / (corners[2:] - corners[1:-1])  # (bins, mels)
    return torch.minimum(rising, falling).clamp(min=0.0)  # (bins, mels)


class LogMel(nn.Module):
    """Samples (batch, n) in ±1 to log-mel frames (batch, MELS, 1 + (n - FRAME) // FRAME_HOP).

    No frame is padded at the edges (`center=False`): a frame depends on its own 30 ms alone, so frames of
    overlapping windows are the same numbers and can be shared.
    """

    taper: Tensor  # (FRAME,)
    filters: Tensor  # (bins, MELS)

    def __init__(self) -> None:
        super().__init__()
        self.frame, self.frame_hop, self.fft, self.floor = FRAME, FRAME_HOP, FFT, FLOOR
        self.register_buffer("taper", torch.hann_window(FRAME), persistent=False)
        self.register_buffer("filters", mel_filters(), persistent=False)

    def forward(self, windows: Tensor) -> Tensor:
        frames = windows.unfold(-1, self.frame, self.frame_hop)  # (batch, frames, FRAME)
        spectrum = torch.fft.rfft(frames * self.taper, n=self.fft)  # (batch, frames, bins)
        power = spectrum.real.square() + spectrum.imag.square()  # (batch, frames, bins)
        mels = torch.matmul(power, self.filters)  # (batch, frames, mels)
        return torch.log(mels + self.floor).transpose(1, 2)  # (batch, mels, frames)


class DftLogMel(nn.Module):
    """LogMel without an FFT, for engines that have none that is quick: the Fourier sums as products of matrices.

    The power of a frame does not depend on where its phase is counted from. Counted from its middle, the cosines are
    even and the sines odd, so a frame folded in half serves for both, with half the multiplications and weights.
    """

    cosines: Tensor  # (FRAME // 2, bins)
    sines: Tensor  # (FRAME // 2, bins)
    filters: Tensor  # (bins under a filter, MELS)

    def __init__(self) -> None:
        super().__init__()
        heard = torch.nonzero(mel_filters().sum(1))[:, 0]  # bins under a filter
        middle = FRAME // 2
        angle = 2.0 * torch.pi / FFT * torch.outer(torch.arange(middle, dtype=torch.float64), heard.double())
        taper = torch.hann_window(FRAME, dtype=torch.float64)[middle:, None]  # even around the middle, zero at its end
        once = torch.ones(middle, 1, dtype=torch.float64)
        once[0] = 0.5  # the sample in the middle is folded onto itself
        self.register_buffer("cosines", (taper * once * torch.cos(angle)).float(), persistent=False)
        self.register_buffer("sines", (taper * torch.sin(angle)).float(), persistent=False)
        self.register_buffer("filters", mel_filters()[heard], persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples (batch, n), n a multiple of FRAME_HOP, to (batch, MELS, frames)."""
        pieces = samples.reshape(samples.shape[0], -1, FRAME_HOP)  # (batch, pieces, FRAME_HOP)
        frames = torch.cat([pieces[:, :-2], pieces[:, 1:-1], pieces[:, 2:]], 2)  # (batch, frames, FRAME)
        after = frames[:, :, FRAME // 2 :]  # (batch, frames, FRAME // 2)
        before = frames[:, :, 1 : FRAME // 2 + 1].flip(2)  # the same steps away from the middle
        real, imaginary = torch.matmul(after + before, self.cosines), torch.matmul(after - before, self.sines)
        mels = torch.matmul(real.square() + imaginary.square(), self.filters)  # (batch, frames, mels)
        return torch.log(mels + FLOOR).transpose(1, 2)  # (batch, mels, frames)
