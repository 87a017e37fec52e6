"""Negatives: windows of talk and noise by chance, and those that a network takes for keywords."""

import numpy as np
import pytest
import torch

from kwsd.training.negatives import Negatives, crops, to_float

WINDOW = 16_000


def sound(n=5 * WINDOW, level=3_000, seed=0):
    return (np.random.default_rng(seed).standard_normal(n) * level).clip(-32768, 32767).astype(np.int16)


def rng():
    return np.random.default_rng(0)


# --- samples and crops ---


def test_sixteen_bits_become_plus_minus_one():
    assert to_float(np.array([-32768, 0, 16384], np.int16)).tolist() == [-1.0, 0.0, 0.5]


def pieces_by_crops(recording):
    return crops(recording, 20, rng())


def pieces_by_chance(recording):
    return Negatives([[recording]]).by_chance(20, rng())


@pytest.mark.parametrize("pieces_of", [pieces_by_crops, pieces_by_chance])
@pytest.mark.parametrize(("length", "different"), [(60_000, 20), (WINDOW + 1, 2), (WINDOW, 1)])
def test_pieces_are_of_the_recording_from_anywhere(length, different, pieces_of):
    recording = (np.arange(length) - 30_000).astype(np.int16)  # every sample says where it is
    pieces = (pieces_of(recording) * 32768).long() + 30_000
    assert pieces.shape == (20, WINDOW)
    assert (pieces[:, 1:] - pieces[:, :-1] == 1).all()
    starts, last = pieces[:, 0], length - WINDOW
    assert 0 <= starts.min() <= last / 4 and 0.75 * last <= starts.max() <= last
    assert len(set(starts.tolist())) == different


@pytest.mark.parametrize("pieces_of", [pieces_by_crops, pieces_by_chance])
def test_a_recording_under_a_second_is_repeated(pieces_of):
    pieces = pieces_of(np.arange(1, 5, dtype=np.int16)) * 32768
    assert torch.equal(pieces, torch.tensor([1.0, 2.0, 3.0, 4.0]).repeat(20, 4_000))


def test_every_group_comes_up_as_often_however_long_it_is():
    sizes = (100 * WINDOW, 3_000, 2 * WINDOW)
    negatives = Negatives([[np.full(size, i, np.int16)] for i, size in enumerate(sizes)])
    pieces = (negatives.by_chance(3_000, rng()) * 32768).long()
    assert (pieces == pieces[:, :1]).all(), "no window is of two groups"
    assert np.bincount(pieces[:, 0].numpy()) == pytest.approx([1_000, 1_000, 1_000], rel=0.1)


# --- what is taken for a keyword ---


def loudness(windows):
    """As if a network took what is loud for a keyword."""
    return windows.square().mean(1)


def with_a_loud_stretch(first=40):
    """A hundred seconds, of which twenty are loud; the rest hardly more than a pause is."""
    recording = sound(100 * WINDOW, level=200)
    recording[first * WINDOW : (first + 20) * WINDOW] = sound(20 * WINDOW, level=8_000, seed=3)
    return recording


def loud_share(negatives):
    return float((loudness(negatives.draw(400, np.random.default_rng(5))) > 0.005).float().mean())


def test_half_of_what_is_drawn_is_what_the_network_takes_for_a_keyword():
    negatives = Negatives([[with_a_loud_stretch()]], hard=0.5)
    assert loud_share(negatives) < 0.35  # nothing was sought yet
    negatives.mine(loudness, 100, 32, rng())
    assert 0.5 < loud_share(negatives) < 0.75


def test_what_is_mixed_in_comes_by_chance_all_the_same():
    negatives = Negatives([[with_a_loud_stretch()]], hard=1.0)
    negatives.mine(loudness, 100, 32, rng())
    assert loud_share(negatives) == 1.0
    assert float((loudness(negatives.by_chance(400, rng())) > 0.005).float().mean()) < 0.35


def test_where_nobody_knows_what_is_said_nothing_is_sought():
    quiet, loud = np.split(with_a_loud_stretch(), [40 * WINDOW])
    negatives = Negatives([[quiet, loud]], hard=1.0, checked=1)
    negatives.mine(loudness, 100, 32, rng())
    assert loud_share(negatives) == 0.0
    negatives = Negatives([[quiet, loud]], hard=1.0, checked=0)
    negatives.mine(lambda _: pytest.fail("looked at"), 100, 32, rng())
    assert loud_share(negatives) < 0.35


def test_what_is_sought_comes_from_all_groups_alike_however_long_they_are():
    negatives = Negatives([[sound(1000 * WINDOW, level=200)], [with_a_loud_stretch(first=80)]], hard=1.0)
    negatives.mine(loudness, 1_000, 32, rng())
    assert loud_share(negatives) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("hard", [0.0, 1.0])
def test_no_window_is_of_two_recordings(hard):
    recordings = [np.full(size, i + 1, np.int16) for i, size in enumerate((3 * WINDOW, WINDOW + 100, 5_000))]
    negatives = Negatives([recordings[:1], recordings[1:]], hard=hard)
    negatives.mine(loudness, 100, 32, rng())
    pieces = (negatives.draw(600, rng()) * 32768).long()
    assert (pieces == pieces[:, :1]).all()
    assert set(pieces[:, 0].tolist()) == {1, 2, 3} or hard


def test_no_more_is_looked_through_than_asked_and_in_batches():
    seen = []
    negatives = Negatives([[sound(1000 * WINDOW, level=200)]], hard=0.5)
    negatives.mine(lambda windows: seen.append(len(windows)) or loudness(windows), 100, 30, rng())
    assert sum(seen) == 100 and max(seen) <= 30


@pytest.mark.parametrize("recording", [sound(WINDOW // 2), sound(WINDOW + 1), sound(2 * WINDOW)])
def test_in_hardly_anything_nothing_is_sought_in_vain(recording):
    negatives = Negatives([[recording]], hard=0.5)
    negatives.mine(loudness, 100, 32, rng())
    assert negatives.draw(10, rng()).shape == (10, WINDOW)
