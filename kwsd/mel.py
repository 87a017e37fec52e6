"""Where log-mel frames lie in time and in frequency: the one definition, for networks (features.py) and for the engine
of our own."""

import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import SAMPLE_RATE

FRAME = 480  # samples under one Hann window: 30 ms
FRAME_HOP = 160  # samples between frames: 10 ms, a third of a frame
FFT = 512  # points; the frame is zero-padded up to it
MELS = 40
LOWEST_HZ = 20.0
HIGHEST_HZ = 7600.0
FLOOR = 1e-6  # mel power added before the logarithm: about the hiss of a quiet 16-bit microphone

Floats = NDArray[np.float32]


def mel_scale(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hertz to mel (O'Shaughnessy 1987, the HTK formula)."""
    mel: NDArray[np.float64] = 2595.0 * np.log10(1.0 + hz / 700.0)
    return mel


def mel_filters() -> Floats:
    """Triangular filters, equally spaced in mel, each of peak 1: (FFT // 2 + 1, MELS)."""
    bins = mel_scale(np.linspace(0.0, SAMPLE_RATE / 2, FFT // 2 + 1))  # (bins,)
    low, high = mel_scale(np.array([LOWEST_HZ, HIGHEST_HZ])).tolist()
    corners = np.linspace(low, high, MELS + 2)  # (mels + 2,)
    rising = (bins[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])  # (bins, mels)
    falling = (corners[2:] - bins[:, None]) / (corners[2:] - corners[1:-1])  # (bins, mels)
    filters: Floats = np.minimum(rising, falling).clip(min=0.0).astype(np.float32)  # (bins, mels)
    return filters


def taper() -> Floats:
    """A periodic Hann window: (FRAME,)."""
    return (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)
