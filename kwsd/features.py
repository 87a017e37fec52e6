"""Log-mel frames: the one definition, used in training and inside every exported artefact."""

import torch
from torch import Tensor, nn

from kwsd import mel
from kwsd.mel import FFT, FLOOR, FRAME, FRAME_HOP, MELS


def mel_scale(hz: Tensor) -> Tensor:
    """Hertz to mel, as `mel.mel_scale`."""
    return 2595.0 * torch.log10(1.0 + hz / 700.0)


def hertz(mel: Tensor) -> Tensor:
    """Mel to hertz, the inverse of `mel_scale`."""
    return 700.0 * (torch.pow(10.0, mel / 2595.0) - 1.0)


def mel_filters() -> Tensor:
    """Triangular filters, equally spaced in mel, each of peak 1: (FFT // 2 + 1, MELS)."""
    return torch.from_numpy(mel.mel_filters())


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
    """LogMel without an FFT, for engines that have none that is quick: two steps of one (Cooley & Tukey 1965), as
    products with matrices small enough to stay in the cache.

    With n = 16 m + r and the bin k = q + 32 p, the Fourier sum over 512 samples is 32 points over m for every r, and
    then 16 points over r for every q. For a real frame q from 0 to 16 are enough: they reach every bin or its mirror.
    """

    taper: Tensor  # (FRAME,)
    first: Tensor  # (2 * 17, FRAME // 16): m to the real and the imaginary part for every q
    second: Tensor  # (17, 2 * 16, 2 * 16): for every q, both parts for every r to both for every p
    filters: Tensor  # (17 * 2 * 16, MELS): squares of the parts for every q and p to mels

    def __init__(self) -> None:
        super().__init__()
        coarse, fine = 32, FFT // 32  # points
        kept = coarse // 2 + 1
        m, r = torch.arange(FRAME // fine, dtype=torch.float64), torch.arange(fine, dtype=torch.float64)
        q, p = torch.arange(kept, dtype=torch.float64), torch.arange(fine, dtype=torch.float64)
        angle = 2.0 * torch.pi / coarse * torch.outer(q, m)  # (kept, FRAME // fine)
        first = torch.stack([torch.cos(angle), -torch.sin(angle)], 1)  # (kept, 2, FRAME // fine)
        bins = q[:, None] + coarse * p  # (kept, fine)
        angle = 2.0 * torch.pi / FFT * bins[:, None, :] * r[:, None]  # (kept, r, p)
        cosine, sine = torch.cos(angle), torch.sin(angle)
        from_real, from_imaginary = torch.cat([cosine, -sine], 2), torch.cat([sine, cosine], 2)
        mirrored = torch.minimum(bins, FFT - bins).long()  # (kept, fine)
        share = 1.0 / torch.bincount(mirrored.flatten())  # a bin and its mirror may both be there
        filters = mel_filters()[mirrored] * share[mirrored][:, :, None]  # (kept, fine, MELS)
        self.register_buffer("taper", torch.hann_window(FRAME), persistent=False)
        self.register_buffer("first", first.flatten(0, 1).float(), persistent=False)
        self.register_buffer("second", torch.cat([from_real, from_imaginary], 1).float(), persistent=False)
        self.register_buffer("filters", torch.cat([filters, filters], 1).flatten(0, 1), persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """Samples (batch, n), n a multiple of FRAME_HOP, to (batch, MELS, frames)."""
        batch = samples.shape[0]
        pieces = samples.reshape(batch, -1, FRAME_HOP)  # (batch, pieces, FRAME_HOP)
        frames = torch.cat([pieces[:, :-2], pieces[:, 1:-1], pieces[:, 2:]], 2) * self.taper  # (batch, frames, FRAME)
        each = frames.reshape(-1, self.first.shape[1], self.second.shape[1] // 2)  # (batch * frames, m, r)
        parts = torch.matmul(self.first, each)  # (batch * frames, q and part, r)
        by_q = parts.reshape(-1, *self.second.shape[:2]).transpose(0, 1)  # (q, batch * frames, part and r)
        power = torch.matmul(by_q, self.second).square()  # (q, batch * frames, part and p)
        mels = torch.matmul(power.transpose(0, 1).reshape(-1, self.filters.shape[0]), self.filters)
        return torch.log(mels + FLOOR).reshape(batch, -1, MELS).transpose(1, 2)  # (batch, MELS, frames)
