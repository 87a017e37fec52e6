"""Log-mel frames are what their definition says, frame by frame, and nothing but their own 30 ms."""

import os
from pathlib import Path

import numpy as np
import pytest
import tiny_speech_commands as tiny
import torch

from kwsd.features import DftLogMel, LogMel, hertz, mel_filters, mel_scale
from kwsd.mel import FFT, FLOOR, FRAME, FRAME_HOP, HIGHEST_HZ, LOWEST_HZ, MELS
from kwsd.mel import mel_scale as mel_scale_of_arrays
from kwsd.recording import DEMO, read_recording

RATE = 16_000
DATA = os.environ.get("KWSD_DATA")
EVERY = 400  # of the real clips, every n-th is compared

by_fft_or_sums = pytest.mark.parametrize("features", [LogMel, DftLogMel])


def noise(n, seed=0, level=0.1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * level


def oracle_filters():
    """Triangles of peak 1 with corners equally spaced in mel, drawn with np.interp in float64: (bins, mels)."""

    def to_mel(hz):
        return 1127.0 * np.log1p(np.asarray(hz) / 700.0)

    corners = np.linspace(to_mel(LOWEST_HZ), to_mel(HIGHEST_HZ), MELS + 2)
    bins = to_mel(np.arange(FFT // 2 + 1) * RATE / FFT)
    return np.stack([np.interp(bins, corners[i : i + 3], [0.0, 1.0, 0.0]) for i in range(MELS)], axis=1)


def oracle(samples):
    """Log-mel (mels, frames) in float64, one frame after the other."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)
    filters = oracle_filters()
    frames = []
    for start in range(0, len(samples) - FRAME + 1, FRAME_HOP):
        frame = np.zeros(FFT)
        frame[:FRAME] = samples[start : start + FRAME] * hann
        frames.append(np.log(np.abs(np.fft.rfft(frame)) ** 2 @ filters + FLOOR))
    return np.stack(frames, axis=1)


@pytest.mark.parametrize(
    ("samples", "tolerance"),
    [
        (noise(16_000), 1e-4),
        (noise(16_000, level=1e-4), 1e-4),
        (torch.zeros(16_000), 1e-4),
        (torch.nn.functional.one_hot(torch.tensor(8_000), 16_000).float(), 1e-4),
        # Far from a tone the bands hold only the taper's leakage, which float32 rounds.
        (torch.sin(2 * torch.pi * 1000.0 * torch.arange(16_000) / RATE), 5e-3),
    ],
    ids=["noise", "hiss", "silence", "click", "tone"],
)
@by_fft_or_sums
def test_frames_equal_an_independent_numpy_oracle(features, samples, tolerance):
    frames = features()(samples[None])[0].numpy()
    np.testing.assert_allclose(frames, oracle(samples.double().numpy()), rtol=0, atol=tolerance)


def test_the_filters_equal_the_oracles_and_leave_no_gap():
    filters = mel_filters().numpy()
    np.testing.assert_allclose(filters, oracle_filters(), atol=1e-4)
    assert filters.shape == (FFT // 2 + 1, MELS)
    assert (filters.sum(0) > 0).all(), "a mel band that no FFT bin falls into"


@pytest.mark.parametrize(("hz", "mel"), [(0.0, 0.0), (700.0, 781.17), (1000.0, 999.99), (7600.0, 2786.98)])
def test_the_mel_scale(hz, mel):
    assert float(mel_scale(torch.tensor(hz))) == pytest.approx(mel, abs=0.01)
    assert float(mel_scale_of_arrays(np.array(hz))) == pytest.approx(mel, abs=0.01)


@pytest.mark.parametrize(
    ("n", "frames"), [(480, 1), (639, 1), (640, 2), (16_000, 98), (16_159, 98), (16_160, 99), (24_000, 148)]
)
def test_there_is_a_frame_wherever_30_ms_fit(n, frames):
    assert LogMel()(noise(n).expand(3, n)).shape == (3, MELS, frames)


@pytest.mark.parametrize(("n", "frames"), [(480, 1), (640, 2), (16_000, 98), (24_000, 148)])
def test_the_sums_have_as_many_frames(n, frames):
    assert DftLogMel()(noise(n).expand(3, n)).shape == (3, MELS, frames)


@pytest.mark.parametrize("hops", [1, 10, 97])
def test_a_shift_by_whole_hops_shifts_the_frames(hops):
    samples = noise(16_000 + hops * FRAME_HOP)
    mel = LogMel()
    before, after = mel(samples[None, :16_000]), mel(samples[None, hops * FRAME_HOP :])
    torch.testing.assert_close(after[..., : 98 - hops], before[..., hops:], rtol=0, atol=1e-5)


def test_a_frame_knows_nothing_outside_its_30_ms():
    samples = noise(16_000)
    changed = samples.clone()
    changed[8_000] += 1.0
    frames, other = LogMel()(torch.stack([samples, changed]))
    differs = ((frames - other).abs().amax(0) > 1e-3).nonzero()[:, 0].tolist()
    covering = [i for i in range(98) if i * FRAME_HOP <= 8_000 < i * FRAME_HOP + FRAME]
    assert set(differs) <= set(covering)
    assert len(differs) >= 2  # the taper may hide the sample at a frame's very edge


@by_fft_or_sums
def test_silence_is_the_floor_and_full_scale_is_finite(features):
    frames = features()(torch.stack([torch.zeros(16_000), torch.ones(16_000)]))
    assert torch.equal(frames[0], torch.full((MELS, 98), FLOOR).log())
    assert torch.isfinite(frames).all()


def test_scripted_equals_eager():
    windows = torch.stack([noise(16_000, seed) for seed in range(3)])
    mel = LogMel().eval()
    torch.testing.assert_close(torch.jit.script(mel)(windows), mel(windows), rtol=0, atol=1e-4)


def test_hertz_and_mel_are_each_other_undone():
    hz = torch.tensor([20.0, 440.0, 1000.0, 7600.0])
    torch.testing.assert_close(hertz(mel_scale(hz)), hz, rtol=1e-5, atol=0.0)


def test_it_has_nothing_to_save():
    assert LogMel().state_dict() == {}


# --- without an FFT ---


def in_hops(samples):
    """A recording (samples,) as a batch of one, as far as it is whole hops."""
    return torch.from_numpy(samples[: samples.size // FRAME_HOP * FRAME_HOP])[None]


def test_the_sums_without_an_fft_are_the_same_frames_of_the_demo_recording():
    samples = in_hops(read_recording(DEMO))
    torch.testing.assert_close(DftLogMel()(samples), LogMel()(samples), rtol=0, atol=1e-3)


@pytest.mark.skipif(not DATA, reason="KWSD_DATA is not set: no real recordings to test on")
def test_the_sums_without_an_fft_are_the_same_frames_of_real_clips():
    paths = sorted(tiny.folder(Path(DATA)).glob("[a-z]*/*.wav"))[::EVERY]
    assert len(paths) > 10
    by_fft, by_sums = LogMel(), DftLogMel()
    for path in paths:
        samples = in_hops(read_recording(path))
        torch.testing.assert_close(by_sums(samples), by_fft(samples), rtol=0, atol=1e-3)


def test_the_sums_without_an_fft_are_not_learnt():
    assert not any(weights.requires_grad for weights in DftLogMel().parameters())
