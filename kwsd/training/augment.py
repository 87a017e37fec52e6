"""Batched augmentation of whole framed windows, on the training device.

The daemon meets a word anywhere in its window, at any level, over any noise; the clips have it in the
middle of a second, close to the microphone. These functions close that gap. All take a generator, so a
run can be repeated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.features import hertz, mel_scale
from kwsd.mel import FLOOR, HIGHEST_HZ, LOWEST_HZ, MELS


@dataclass(frozen=True)
class Ranges:
    """Between which bounds each property is drawn, uniformly."""

    snr_db: tuple[float, float] = (-3.0, 30.0)  # window over noise: the word itself, which is part of it, is louder
    noisy: float = 0.75  # share of windows that get noise at all
    babble_snr_db: tuple[float, float] = (8.0, 25.0)  # window over a distant talker
    babbling: float = 0.15  # share of windows with one
    gain_db: tuple[float, float] = (-24.0, 6.0)
    hiss_dbfs: tuple[float, float] = (-80.0, -50.0)  # the microphone's own noise
    tilt_db: tuple[float, float] = (-8.0, 8.0)  # from the lowest mel band to the highest
    bumps_db: tuple[float, float] = (-5.0, 5.0)  # on top of that, at BUMPS bands and in a straight line between them
    vocal_tract: tuple[float, float] = (0.88, 1.14)  # formants of another speaker, as a factor of frequency
    limited: float = 0.25  # share of windows without what is above a frequency
    band_hz: tuple[float, float] = (3300.0, 7600.0)  # this one
    lost_db: tuple[float, float] = (20.0, 70.0)  # by how much it is fainter
    reverberant: float = 0.25  # share of windows in a room
    decay_s: tuple[float, float] = (0.1, 0.7)  # until its echo is 60 dB down (RT60)
    direct_db: tuple[float, float] = (-3.0, 12.0)  # direct sound over all of the echo


Source = Callable[[int], Tensor]  # n to n seconds of noise or talk (n, 16000)

RANGES = Ranges()
BUMPS = 6
HISS = 1 << 18  # samples of white noise that pieces are taken from: to draw every one anew takes longer than the rest
ECHO = 8000  # samples of echo: what comes later lies under the noise


def uniform(n: int, bounds: tuple[float, float], like: Tensor, generator: Generator) -> Tensor:
    """n numbers drawn uniformly between two bounds: (n, 1), on the device of `like`."""
    drawn = torch.rand(n, 1, generator=generator) * (bounds[1] - bounds[0]) + bounds[0]
    return drawn.to(like.device)


def place(clips: Tensor, onset: Tensor, target: Tensor, speed: Tensor) -> Tensor:
    """Moves the sample at `onset` to `target` and plays the clip `speed` times as fast around it.

    clips (batch, 16000); onset, target in samples and speed (batch, 1) → (batch, 16000), zeros where the
    clip has no samples. Linear interpolation.
    """
    time = torch.arange(WINDOW, device=clips.device, dtype=torch.float32)  # (16000,)
    position = (time - target).mul_(speed).add_(onset)  # (batch, 16000)
    index = position.to(torch.int32).clamp_(0, WINDOW - 2).long()  # (batch, 16000)
    fraction = position.sub(index)  # (batch, 16000): outside 0 to 1 where the clip has no samples
    placed = torch.lerp(clips.gather(1, index), clips.gather(1, index.add_(1)), fraction)
    return placed.mul_((position >= 0).logical_and_(position <= WINDOW - 1))  # (batch, 16000)


def rms(windows: Tensor) -> Tensor:
    """Root-mean-square amplitude, never quite zero: (batch, n) → (batch, 1)."""
    return windows.square().mean(1, keepdim=True).sqrt().clamp(min=1e-5)


def mix(windows: Tensor, noise: Tensor, snr_db: Tensor) -> Tensor:
    """Adds noise at a ratio (batch, 1) in dB of whole window over noise: (batch, n) → (batch, n)."""
    wanted = rms(windows) * torch.pow(10.0, -snr_db / 20.0)  # (batch, 1)
    return windows + noise * (wanted / rms(noise))  # (batch, n)


def add(windows: Tensor, source: Source, share: float, snr_db: tuple[float, float], generator: Generator) -> None:
    """Mixes something of a source into a share of the windows (batch, 16000), in place, at signal-to-noise ratios
    within bounds."""
    rows = torch.nonzero(torch.rand(len(windows), generator=generator) < share)[:, 0]
    if len(rows):
        rows = rows.to(windows.device)
        snr = uniform(len(rows), snr_db, windows, generator)
        windows[rows] = mix(windows[rows], source(len(rows)), snr)


def hiss(n: int, like: Tensor, generator: Generator) -> Tensor:
    """White noise at a root-mean-square amplitude of 1, on the device of `like`: (n, 16000)."""
    long = torch.randn(HISS, generator=generator)  # (HISS,)
    starts = torch.randint(HISS - WINDOW, (n,), generator=generator)
    return long.unfold(0, WINDOW, 1)[starts].to(like.device)


def degrade(windows: Tensor, noise: Source, babble: Source, generator: Generator, ranges: Ranges = RANGES) -> Tensor:
    """Noise, a distant talker, gain and hiss over windows (batch, 16000), clipped at full scale."""
    n = len(windows)
    windows = windows.clone()
    add(windows, noise, ranges.noisy, ranges.snr_db, generator)
    add(windows, babble, ranges.babbling, ranges.babble_snr_db, generator)
    windows *= torch.pow(10.0, uniform(n, ranges.gain_db, windows, generator) / 20.0)
    hiss_level = torch.pow(10.0, uniform(n, ranges.hiss_dbfs, windows, generator) / 20.0)
    windows.addcmul_(hiss(n, windows, generator), hiss_level)
    return windows.clamp_(-1.0, 1.0)  # (batch, 16000)


def reverberate(windows: Tensor, generator: Generator, ranges: Ranges = RANGES) -> Tensor:
    """Some of the windows (batch, n) as heard in a room: noise that dies away exponentially after the direct sound
    (Polack 1988), convolved by FFT. The level stays."""
    rows = torch.nonzero(torch.rand(len(windows), generator=generator) < ranges.reverberant)[:, 0]
    if not len(rows):
        return windows
    dry = windows[rows.to(windows.device)]  # (rows, n)
    time = torch.arange(1, ECHO + 1) / SAMPLE_RATE  # (ECHO,) seconds
    decay = torch.rand(len(rows), 1, generator=generator) * (ranges.decay_s[1] - ranges.decay_s[0]) + ranges.decay_s[0]
    echo = torch.randn(len(rows), ECHO, generator=generator) * torch.pow(10.0, -3.0 * time / decay)  # (rows, ECHO)
    echo = (echo / echo.square().sum(1, keepdim=True).sqrt()).to(windows.device)  # energy 1, as the direct sound
    echo = echo * torch.pow(10.0, -uniform(len(rows), ranges.direct_db, windows, generator) / 20.0)
    size = windows.shape[1] + ECHO
    wet = torch.fft.irfft(torch.fft.rfft(dry, size) * torch.fft.rfft(echo, size), size)[:, : windows.shape[1] - 1]
    mixed = dry + F.pad(wet, (1, 0))  # the echo begins one sample after the direct sound
    return windows.index_copy(0, rows.to(windows.device), mixed * (rms(dry) / rms(mixed)))


def at_level(noise: Tensor, bounds_dbfs: tuple[float, float], generator: Generator) -> Tensor:
    """Noise (batch, n) brought to a drawn level in dBFS."""
    return noise / rms(noise) * torch.pow(10.0, uniform(len(noise), bounds_dbfs, noise, generator) / 20.0)


def colour(frames: Tensor, generator: Generator, ranges: Ranges = RANGES) -> Tensor:
    """Another microphone's frequency response: a tilt and bumps over log-mel frames (batch, mels, frames)."""
    mels = frames.shape[1]
    slope = torch.linspace(-0.5, 0.5, mels, device=frames.device)  # (mels,)
    tilt_db = uniform(len(frames), ranges.tilt_db, frames, generator) * slope  # (batch, mels)
    low, high = ranges.bumps_db
    bumps = torch.rand(len(frames), 1, BUMPS, generator=generator).to(frames.device) * (high - low) + low
    gain_db = tilt_db + F.interpolate(bumps, mels, mode="linear", align_corners=True)[:, 0]  # (batch, mels)
    return frames + gain_db[:, :, None] * 0.2303  # natural logarithm of power per dB  # (batch, mels, frames)


def band_limit(frames: Tensor, generator: Generator, ranges: Ranges = RANGES) -> Tensor:
    """A telephone, a cheap headset or a low sample rate: some of the log-mel frames (batch, mels, frames) lose what is
    above a frequency. How wide a recording is must not tell a keyword from talk."""
    low, high = mel_scale(torch.tensor([LOWEST_HZ, HIGHEST_HZ])).tolist()
    centres = hertz(torch.linspace(low, high, MELS + 2)[1:-1]).to(frames.device)  # (mels,)
    highest = uniform(len(frames), ranges.band_hz, frames, generator)  # (batch, 1)
    limited = torch.rand(len(frames), 1, generator=generator).to(frames.device) < ranges.limited
    lost_db = uniform(len(frames), ranges.lost_db, frames, generator)  # (batch, 1)
    faint = torch.log(frames.exp() * 10.0 ** (-lost_db / 10.0)[:, :, None] + FLOOR)
    return torch.where((limited & (centres > highest))[:, :, None], faint, frames)


def warp(frames: Tensor, generator: Generator, ranges: Ranges = RANGES) -> Tensor:
    """Another speaker's vocal tract: log-mel frames (batch, mels, frames) stretched along frequency by a factor
    (Jaitly & Hinton 2013). Linear interpolation between bands; beyond the highest band it is repeated."""
    factor = uniform(len(frames), ranges.vocal_tract, frames, generator)  # (batch, 1)
    low, high = mel_scale(torch.tensor([LOWEST_HZ, HIGHEST_HZ])).tolist()
    spacing = (high - low) / (MELS + 1)
    centres = hertz(low + spacing * torch.arange(1, MELS + 1, device=frames.device))  # (mels,)
    band = ((mel_scale(centres * factor) - low) / spacing - 1.0).clamp(0, MELS - 1)  # (batch, mels)
    below = band.floor().clamp(max=MELS - 2)  # (batch, mels)
    share = (band - below).unsqueeze(2)  # (batch, mels, 1)
    index = below.long().unsqueeze(2).expand_as(frames)  # (batch, mels, frames)
    return torch.lerp(frames.gather(1, index), frames.gather(1, index + 1), share)


def spec_augment(frames: Tensor, generator: Generator, masks: int = 2, time: int = 10, mels: int = 4) -> Tensor:
    """SpecAugment (Park et al. 2019): masks of up to `time` frames and up to `mels` bands, filled with the mean."""
    batch, bands, length = frames.shape
    fill = frames.mean((1, 2), keepdim=True)  # (batch, 1, 1)
    for axis, size, widest in ((2, length, time), (1, bands, mels)):
        for _ in range(masks):
            width = torch.rand(batch, 1, generator=generator) * widest
            start = torch.rand(batch, 1, generator=generator) * (size - width)
            steps = torch.arange(size) + 0.5  # a step is masked where its middle is
            masked = ((steps >= start) & (steps < start + width)).to(frames.device)  # (batch, size)
            frames = torch.where(masked.unsqueeze(3 - axis), fill, frames)  # (batch, mels, frames)
    return frames
