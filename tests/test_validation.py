"""What a network is judged by while it trains: clips it has not seen, and keywords told from talk and noise."""

import numpy as np
import pytest
import tiny_speech_commands as tiny
import torch
from torch import nn

from kwsd.training.dataset import load_clips
from kwsd.training.talk import Noise
from kwsd.training.validation import FALSE_SHARES, HeldOut, Validated, hold_out

LABELS = ("yes", "no", "_unknown_", "_silence_")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def held(data):
    talk = (np.random.default_rng(0).normal(0, 0.1, 40_000) * 32767).astype(np.int16)
    return hold_out(load_clips(data, "validation"), LABELS, Noise(data), talk)


def test_talk_and_noise_are_cut_into_windows_every_half_second(data, held):
    talk, noise = held.negatives
    assert talk.shape == (1 + (40_000 - 16_000) // 8_000, 16_000)
    assert torch.equal(noise.flatten(), torch.from_numpy(Noise(data).part("validation")))
    assert talk.dtype == noise.dtype == torch.int16


def test_every_keyword_clip_is_spoken_once_and_other_words_are_not(held):
    assert torch.bincount(held.spoken_targets).tolist() == [4, 4]
    assert held.spoken.shape == (8, 16_000)


def test_every_other_spoken_keyword_lies_over_noise(held):
    quiet, noisy = held.spoken[0::2].float(), held.spoken[1::2].float()
    floor = [
        windows.abs().sort(1).values[:, 4000] for windows in (quiet, noisy)
    ]  # amplitude under which a quarter lies
    assert float(floor[1].min()) > 3 * float(floor[0].max())


def test_the_same_clips_give_the_same_windows(data, held):
    talk = held.negatives[0][0].numpy()
    again, once_more = (hold_out(load_clips(data, "validation"), LABELS, Noise(data), talk) for _ in range(2))
    assert torch.equal(again.spoken, once_more.spoken)
    assert torch.equal(again.spoken, held.spoken)


def test_talk_shorter_than_a_window_is_one_window(data):
    held = hold_out(load_clips(data, "validation"), LABELS, Noise(data), np.ones(100, np.int16))
    assert held.negatives[0].shape == (1, 16_000)
    assert held.negatives[0].sum() == 100


def test_a_keyword_heard_in_talk_counts_even_if_nobody_says_it_in_the_clips(data, held):
    labels = ("yes", "no", "never", "_unknown_", "_silence_")
    talk = held.negatives[0][0].numpy()
    with_never = hold_out(load_clips(data, "validation"), labels, Noise(data), talk)

    class HearsNever(nn.Module):
        def forward(self, windows):
            said = torch.full((len(windows), len(labels)), -9.0)
            said[:, 2] = 0.0
            return said

    assert with_never.validate(HearsNever(), CPU).spotting == 0.0


def test_without_talk_only_the_clips_count(data):
    held = hold_out(load_clips(data, "validation"), LABELS, Noise(data), None)
    validated = held.validate(Loudness(), CPU)
    assert validated.spotting is None
    assert validated.score == validated.accuracy


class Loudness(nn.Module):
    """The louder a window, the surer it is of label 0."""

    def forward(self, windows):
        sure = windows.square().mean(1).sqrt().clamp(0.001, 0.999)
        return torch.stack([sure, 1 - sure], 1).log()


def loud(*levels):
    return torch.tensor(levels, dtype=torch.float32)[:, None].mul(32768).expand(-1, 16_000).short()


def test_spotting_is_the_share_of_keywords_surer_than_almost_all_talk_and_almost_all_noise():
    talk = loud(*np.linspace(0.1, 0.5, 1000))  # thirty lie above 0.488, ten above 0.496, three above 0.499
    noise = loud(*np.linspace(0.5, 0.9, 1000))  # ten lie above 0.896
    spoken = loud(0.898, 0.51, 0.4982, 0.49, 0.1)
    targets, keywords = torch.zeros(5, dtype=torch.int64), torch.tensor([0])
    held = HeldOut(spoken[:1], torch.tensor([0]), spoken, targets, (talk, noise), keywords)
    assert FALSE_SHARES == (0.03, 0.01, 0.003)
    validated = held.validate(Loudness(), CPU)
    assert validated.spotting == pytest.approx((4 / 5 + 3 / 5 + 2 / 5 + 1 / 5 + 1 / 5 + 0) / 6)
    assert validated.windows == 5


def test_where_there_is_talk_spotting_is_what_counts():
    assert Validated(accuracy=0.9, spotting=0.5, windows=9).score == 0.5
    assert str(Validated(0.9, 0.5, 9)) == "validation accuracy 90.0%, 50.0% told from talk and noise"
    assert str(Validated(0.9, None, 9)) == "validation accuracy 90.0%"


def test_the_standard_error_is_that_of_a_share_of_so_many_windows():
    assert Validated(accuracy=0.9, spotting=None, windows=900).standard_error == pytest.approx(0.01, rel=0.01)
    assert Validated(accuracy=0.9, spotting=0.5, windows=100).standard_error == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_that_all_or_none_of_a_few_windows_were_told_right_may_be_chance(share):
    assert Validated(share, None, windows=4).standard_error == pytest.approx((0.25 * 0.75 / 8) ** 0.5)
