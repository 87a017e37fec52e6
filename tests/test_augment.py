"""Each augmentation does the one thing it is named for, by the amount it was asked for."""

import math

import pytest
import torch

from kwsd.features import LogMel
from kwsd.mel import FLOOR
from kwsd.training import augment
from kwsd.training.augment import (
    Ranges,
    at_level,
    band_limit,
    colour,
    degrade,
    mix,
    place,
    reverberate,
    rms,
    spec_augment,
    warp,
)

WINDOW = 16_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(batch, level=0.1, seed=0):
    return torch.randn(batch, WINDOW, generator=seeded(seed)) * level


def other(batch):
    return noise(batch, seed=1)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float32)[:, None]


def click(at):
    return torch.nn.functional.one_hot(torch.tensor([at]), WINDOW).float()


# --- place ---


@pytest.mark.parametrize(("onset", "target"), [(8_000, 8_000), (8_000, 0), (8_000, 15_999), (0, 12_345), (15_999, 3)])
@pytest.mark.parametrize("speed", [1.0, 0.85, 1.15])
def test_place_moves_the_sample_at_the_onset_to_the_target_at_any_speed(onset, target, speed):
    placed = place(click(onset), column(onset), column(target), column(speed))
    assert placed.shape == (1, WINDOW)
    assert int(placed.argmax()) == target
    assert float(placed.max()) == 1.0


@pytest.mark.parametrize("target", [-1.0, -4_000.0, 16_000.0, 20_000.0])
def test_place_can_move_a_sample_out_of_the_window(target):
    assert not place(click(8_000), column(8_000), column(target), column(1.0)).any()


def test_place_where_it_was_at_its_own_speed_changes_nothing():
    clips = noise(3)
    assert torch.equal(place(clips, column(5, 5, 5), column(5, 5, 5), column(1, 1, 1)), clips)


@pytest.mark.parametrize("shift", [-3_000, 700])
def test_place_leaves_zeros_where_the_clip_has_no_samples(shift):
    clips = noise(1) + 1.0
    placed = place(clips, column(0), column(shift), column(1.0))
    there = slice(max(0, shift), WINDOW + min(0, shift))
    assert torch.equal(placed[:, there], clips[:, max(0, -shift) : WINDOW - max(0, shift)])
    placed[:, there] = 0
    assert not placed.any()


@pytest.mark.parametrize("speed", [0.85, 1.0, 1.15])
def test_twice_as_fast_is_half_as_long_and_an_octave_higher(speed):
    time_s = torch.arange(WINDOW) / WINDOW
    tone = (torch.sin(2 * math.pi * 1000.0 * time_s) * (time_s > 0.4) * (time_s < 0.6))[None]
    placed = place(tone, column(8_000), column(8_000), column(speed))
    sounding = placed[0].abs() > 1e-3
    assert int(sounding.nonzero()[-1] - sounding.nonzero()[0]) == pytest.approx(3_200 / speed, abs=20)
    assert int(torch.fft.rfft(placed[0]).abs().argmax()) == pytest.approx(1000.0 * speed, abs=5)


def test_place_treats_every_clip_on_its_own():
    clips = torch.cat([click(100), click(200)])
    together = place(clips, column(100, 200), column(5_000, 6_000), column(0.9, 1.1))
    assert together.argmax(1).tolist() == [5_000, 6_000]


# --- mix, levels, degrade ---


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
def test_mix_gives_the_signal_to_noise_ratio_asked_for(snr_db):
    speech, disturbance = noise(4, 0.03, seed=1), noise(4, 0.4, seed=2)
    added = mix(speech, disturbance, torch.full((4, 1), snr_db)) - speech
    measured = 20 * torch.log10(rms(speech) / rms(added))
    torch.testing.assert_close(measured, torch.full((4, 1), snr_db), rtol=0, atol=1e-2)


def test_mix_takes_one_ratio_per_window():
    speech, disturbance = noise(2, seed=1), noise(2, seed=2)
    added = mix(speech, disturbance, column(0.0, 20.0)) - speech
    assert float(rms(added)[0] / rms(added)[1]) == pytest.approx(10.0, rel=0.05)


def test_silence_mixes_to_numbers():
    silence = torch.zeros(1, WINDOW)
    assert torch.isfinite(mix(silence, noise(1), column(0.0))).all()
    assert torch.equal(mix(noise(1), silence, column(0.0)), noise(1))
    assert not at_level(silence, (-20.0, -20.0), seeded()).any()


def test_at_level_reaches_the_level():
    levels = 20 * torch.log10(rms(at_level(noise(50, 0.3), (-60.0, -20.0), seeded())))
    assert -60.0 <= float(levels.min()) < -55.0
    assert -25.0 < float(levels.max()) <= -20.0


def test_loud_windows_are_clipped_at_full_scale():
    degraded = degrade(noise(8, 1.0), noise, noise, seeded())
    assert float(degraded.abs().max()) == 1.0
    assert torch.isfinite(degraded).all()


def test_hiss_lies_at_its_level_over_silence():
    silence = torch.zeros(1, WINDOW)
    only_hiss = Ranges(noisy=0.0, babbling=0.0, gain_db=(0.0, 0.0), hiss_dbfs=(-60.0, -60.0))
    hissing = degrade(silence, noise, noise, seeded(), only_hiss)
    assert float(20 * torch.log10(rms(hissing))) == pytest.approx(-60.0, abs=0.2)


def test_noise_babble_and_gain_come_in_the_shares_and_at_the_levels_asked_for():
    n = 100
    speech = noise(n, 0.01)
    quiet = {"gain_db": (0.0, 0.0), "hiss_dbfs": (-200.0, -200.0)}
    noisy = degrade(speech, other, noise, seeded(), Ranges(noisy=0.25, babbling=0.0, **quiet))
    assert int(((noisy - speech).abs().amax(1) > 1e-6).sum()) == pytest.approx(0.25 * n, abs=15)
    babbling = Ranges(noisy=0.0, babbling=1.0, babble_snr_db=(10.0, 10.0), **quiet)
    added = degrade(speech, noise, other, seeded(), babbling) - speech
    torch.testing.assert_close(20 * torch.log10(rms(speech) / rms(added)), torch.full((n, 1), 10.0), rtol=0, atol=0.01)
    gain = Ranges(noisy=0.0, babbling=0.0, gain_db=(-24.0, 6.0), hiss_dbfs=(-200.0, -200.0))
    gains = 20 * torch.log10(rms(degrade(speech, noise, noise, seeded(), gain)) / rms(speech))
    assert -24.01 < float(gains.min()) < -20.0
    assert 3.0 < float(gains.max()) < 6.01


def test_the_same_seed_degrades_in_the_same_way():
    once, again, otherwise = (degrade(noise(4), other, other, seeded(s)) for s in (5, 5, 6))
    assert torch.equal(once, again)
    assert not torch.equal(once, otherwise)


# --- rooms ---

ALWAYS = {"reverberant": 1.0}


def energy_db(windows):
    return 10 * torch.log10(windows.square().sum(1))


def test_a_room_is_given_to_the_share_of_windows_asked_for_and_the_others_stay_as_they_are():
    windows = noise(400)
    before = windows.clone()
    changed = (reverberate(windows, seeded(), Ranges(reverberant=0.25)) != windows).any(1)
    assert int(changed.sum()) == pytest.approx(100, abs=30)
    assert torch.equal(windows, before)
    assert torch.equal(reverberate(windows, seeded(), Ranges(reverberant=0.0)), windows)


def test_a_room_leaves_the_level():
    windows = noise(20) * torch.linspace(0.001, 1.0, 20)[:, None]
    torch.testing.assert_close(rms(reverberate(windows, seeded(), Ranges(**ALWAYS))), rms(windows), rtol=1e-4, atol=0)


def test_an_echo_comes_after_the_sound_and_not_before_and_never_from_the_end_of_the_window():
    wet = reverberate(click(15_000).expand(20, -1), seeded(), Ranges(**ALWAYS, direct_db=(6.0, 6.0)))
    assert float(wet[:, :15_000].abs().max()) < 1e-4
    assert wet.abs().argmax(1).tolist() == [15_000] * 20
    assert (wet[:, 15_001:].abs().amax(1) > 1e-3).all()


@pytest.mark.parametrize("direct_db", [-3.0, 0.0, 12.0])
def test_the_direct_sound_lies_as_far_above_the_echo_as_asked(direct_db):
    wet = reverberate(click(100).expand(20, -1), seeded(), Ranges(**ALWAYS, direct_db=(direct_db, direct_db)))
    measured = energy_db(wet[:, 100:101]) - energy_db(wet[:, 101:])
    torch.testing.assert_close(measured, torch.full((20,), direct_db), rtol=0, atol=0.05)


@pytest.mark.parametrize("decay_s", [0.2, 0.7])
def test_the_echo_is_60_db_down_after_its_decay(decay_s):
    wet = reverberate(click(0).expand(50, -1), seeded(), Ranges(**ALWAYS, decay_s=(decay_s, decay_s)))
    later = int(0.2 * 16_000)
    fall_db = (energy_db(wet[:, 1:801]) - energy_db(wet[:, 1 + later : 801 + later])).mean()
    assert float(fall_db) == pytest.approx(60 * 0.2 / decay_s, abs=1.0)


def test_a_silent_room_is_silent():
    assert not reverberate(torch.zeros(3, WINDOW), seeded(), Ranges(**ALWAYS)).any()


def test_the_same_seed_builds_the_same_rooms():
    once, again, otherwise = (reverberate(noise(20), seeded(s)) for s in (5, 5, 6))
    assert torch.equal(once, again)
    assert not torch.equal(once, otherwise)


# --- frames ---


def test_colour_tilts_the_spectrum_evenly_over_the_bands_and_time():
    frames = torch.zeros(200, 40, 98)
    tilted_db = colour(frames, seeded(), Ranges(bumps_db=(0.0, 0.0))) * 10 / math.log(10)
    assert torch.equal(tilted_db, tilted_db[:, :, :1].expand_as(tilted_db))
    steps = tilted_db[:, :, 0].diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps), rtol=0, atol=1e-4)
    torch.testing.assert_close(tilted_db.mean(1), torch.zeros(200, 98), rtol=0, atol=1e-3)
    across = tilted_db[:, -1, 0] - tilted_db[:, 0, 0]
    low, high = augment.RANGES.tilt_db
    assert low <= float(across.min()) < 0.9 * low
    assert 0.9 * high < float(across.max()) <= high + 1e-3


def test_some_windows_lose_what_is_above_a_frequency_and_nothing_below_it():
    frames = torch.full((400, 40, 5), 2.0)
    limited = band_limit(frames, seeded(), Ranges(limited=0.5, lost_db=(40.0, 40.0)))
    changed = (limited != frames)[:, :, 0]  # (windows, bands)
    some = changed.any(1)
    assert 0.4 < some.float().mean() < 0.6
    assert not changed[:, :20].any()  # under 2 kHz
    assert changed[some][:, -1].float().mean() > 0.9
    assert (changed.int().diff(dim=1) >= 0).all()  # from some band on, all
    torch.testing.assert_close(limited[some][:, -1].min(), torch.tensor(2.0 - 4 * math.log(10)), rtol=0, atol=0.01)


def test_no_band_falls_below_what_an_empty_one_is():
    silence = torch.full((100, 40, 3), math.log(FLOOR))
    limited = band_limit(silence, seeded(), Ranges(limited=1.0))
    assert (limited - silence).abs().max() < 0.02


def test_colour_bends_the_spectrum_between_a_few_bands_on_top_of_that():
    frames = torch.randn(200, 40, 98, generator=seeded(1))
    coloured_db = (colour(frames, seeded(), Ranges(tilt_db=(0.0, 0.0))) - frames) * 10 / math.log(10)
    torch.testing.assert_close(coloured_db, coloured_db[:, :, :1].expand_as(coloured_db), rtol=0, atol=1e-3)
    gain_db = coloured_db[:, :, 0]  # (batch, bands)
    low, high = augment.RANGES.bumps_db
    assert low - 0.01 <= float(gain_db.min()) < 0.9 * low
    assert 0.9 * high < float(gain_db.max()) <= high + 0.01
    bends = (gain_db.diff(dim=1).diff(dim=1).abs() > 1e-3).sum(1)  # bands at which the line is not straight
    assert int(bends.max()) <= 2 * (augment.BUMPS - 2)  # a corner between two bands bends the line at both
    assert int(bends.min()) >= 1
    assert float(gain_db.mean().abs()) < 1.0


def test_spec_augment_takes_how_wide_its_masks_are():
    frames = torch.randn(200, 40, 98, generator=seeded())
    changed = spec_augment(frames, seeded(1), masks=1, time=30, mels=2) != frames
    in_time, in_band = changed.all(1).sum(1), changed.all(2).sum(1)
    assert 25 < int(in_time.max()) <= 30
    assert int(in_band.max()) == 2


def test_spec_augment_fills_whole_bands_and_frames_with_the_mean():
    frames = torch.randn(64, 40, 98, generator=seeded())
    masked = spec_augment(frames, seeded(1))
    changed = masked != frames
    fill = frames.mean((1, 2), keepdim=True).expand_as(frames)
    torch.testing.assert_close(masked[changed], fill[changed], rtol=0, atol=1e-2)  # the second mask sees the first's
    in_time, in_band = changed.all(1), changed.all(2)  # (batch, frames), (batch, bands)
    assert torch.equal(changed, in_time[:, None, :] | in_band[:, :, None])
    assert int(in_time.sum(1).max()) <= 2 * 10
    assert int(in_band.sum(1).max()) <= 2 * 4


def test_spec_augment_reaches_every_frame_and_band_the_outermost_too():
    frames = torch.randn(1_000, 40, 98, generator=seeded())
    changed = spec_augment(frames, seeded(1)) != frames
    assert changed.all(1).any(0).all()
    assert changed.all(2).any(0).all()


def test_spec_augment_leaves_its_input_alone():
    frames = torch.randn(2, 40, 98, generator=seeded())
    before = frames.clone()
    spec_augment(frames, seeded(1))
    assert torch.equal(frames, before)


# --- another vocal tract ---


def formants(hz):
    """Log-mel frames (mels, frames) of tones."""
    times = torch.arange(WINDOW) / 16_000
    return LogMel()(sum(torch.sin(2 * math.pi * f * times) for f in hz)[None] * 0.1)


def stretched(frames, factor):
    return warp(frames, seeded(), Ranges(vocal_tract=(factor, factor)))


def test_a_vocal_tract_of_the_same_length_changes_nothing():
    frames = formants([500.0, 1500.0, 2500.0])
    torch.testing.assert_close(stretched(frames, 1.0), frames, rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [0.88, 1.14])
def test_another_vocal_tract_moves_a_formant_by_its_factor(factor):
    moved = stretched(formants([2000.0]), factor).mean((0, 2)).argmax()
    assert abs(int(moved) - int(formants([2000.0 / factor]).mean((0, 2)).argmax())) <= 1


def test_every_speaker_has_a_vocal_tract_of_its_own_and_a_seed_repeats_it():
    frames = formants([2000.0]).repeat(8, 1, 1)
    warped = warp(frames, seeded(1))
    assert torch.equal(warped, warp(frames, seeded(1)))
    assert len({tuple(row.flatten().tolist()) for row in warped}) == 8
    assert warped.isfinite().all()
