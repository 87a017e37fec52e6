"""Batches: what they are made of, that they can be repeated, and that a cut word is really cut."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch

from kwsd.training.batches import HIDDEN, AugmentedBatches, PlainBatches, targets_of
from kwsd.training.batches import place as place_clips
from kwsd.training.dataset import Clips
from kwsd.training.negatives import Negatives

WINDOW = 16_000
LABELS = ("yes", "no", "_unknown_", "_silence_")
START, END = 4_000, 9_600  # of every word here


def clips(**words):
    """So many clips of each word: a plateau of half full scale where the word is, and nothing else."""
    said = tuple(word for word, n in words.items() for _ in range(n))
    samples = np.zeros((len(said), WINDOW), np.int16)
    samples[:, START:END] = 16_384
    spans = np.tile(np.array([START, END], np.int32), (len(said), 1))
    return Clips(samples, said, ("s",) * len(said), spans, said, (), np.ones(len(said), bool))


def sound(n=5 * WINDOW, level=3_000, seed=0):
    return (np.random.default_rng(seed).standard_normal(n) * level).clip(-32768, 32767).astype(np.int16)


def augmented(data=None, labels=LABELS, batch=100, seed=0, talk="yes", noise=None, hard=0.0):
    return AugmentedBatches(
        data or clips(yes=30, no=30, bed=20),
        labels,
        batch,
        seed,
        noise=Negatives([[sound() if noise is None else noise]], hard=hard),
        talk=None if talk is None else Negatives([[sound(seed=1) if isinstance(talk, str) else talk]], hard=hard),
        device=torch.device("cpu"),
    )


def first(batches, epoch=0):
    return next(batches.epoch(epoch))


def composition(batches):
    """How many windows of each label the first batch has."""
    _, targets = first(batches)
    return Counter(batches.labels[i] if i >= 0 else "?" for i in targets.tolist())


# --- samples and targets ---


@pytest.mark.parametrize(
    ("labels", "targets"),
    [(("yes", "no"), [0, 1, -1]), (("no", "yes"), [1, 0, -1]), (("yes", "_unknown_"), [0, 1, 1])],
)
def test_other_words_are_unknown_where_there_is_such_a_label(labels, targets):
    assert targets_of(("yes", "no", "bed"), labels).tolist() == targets


# --- plain ---


def plain(n, batch, seed):
    data = clips(yes=n // 2, no=n - n // 2)
    data.samples[:, 0] = np.arange(n)
    return PlainBatches(data.samples, targets_of(data.words, ("yes", "no")), batch, seed)


def rows(batches, epoch):
    return [(windows[:, 0] * 32768).int().tolist() for windows, _ in batches.epoch(epoch)]


@pytest.mark.parametrize(("n", "batch", "sizes"), [(10, 5, [5, 5]), (10, 4, [4, 3, 3]), (3, 100, [3])])
def test_every_clip_comes_once_an_epoch_with_its_own_target(n, batch, sizes):
    batches = plain(n, batch, seed=0)
    assert len(batches) == len(sizes)
    assert [len(some) for some in rows(batches, 0)] == sizes
    assert sorted(chain.from_iterable(rows(batches, 0))) == list(range(n))
    for windows, targets in batches.epoch(0):
        assert windows.dtype == torch.float32 and windows.shape[1] == WINDOW
        assert targets.tolist() == [int(row >= n // 2) for row in (windows[:, 0] * 32768).int().tolist()]


def test_plain_order_depends_on_seed_and_epoch_alone():
    make = [plain(40, 8, seed) for seed in (0, 0, 1)]
    assert rows(make[0], 3) == rows(make[1], 3)
    assert rows(make[0], 3) != rows(make[0], 4)
    assert rows(make[0], 3) != rows(make[2], 3)


# --- augmented: composition ---


def test_a_batch_holds_every_kind_in_its_share():
    made = composition(augmented())
    assert made["_unknown_"] == 8 + 12 + 22  # cut keywords, other words, talk
    assert made["_silence_"] == 16
    assert made["yes"] + made["no"] == 42


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"talk": None}, {"keyword": 64, "_unknown_": 20, "_silence_": 16}),
        ({"data": clips(yes=9, no=9)}, {"keyword": 54, "_unknown_": 30, "_silence_": 16}),
        ({"labels": ("yes", "no", "_silence_")}, {"keyword": 84, "_silence_": 16}),
        ({"labels": ("yes", "no", "_unknown_")}, {"keyword": 58, "_unknown_": 42}),
        ({"labels": ("yes", "no")}, {"keyword": 100}),
        ({"labels": ("yes", "no"), "talk": None}, {"keyword": 100}),
    ],
    ids=["no talk", "no other words", "no unknown", "no silence", "words alone", "words alone, no talk"],
)
def test_what_cannot_be_had_goes_to_the_keywords(options, made):
    counted = composition(augmented(**options))
    keywords = counted.pop("yes", 0) + counted.pop("no", 0)
    assert {"keyword": keywords} | counted == made


def test_a_noise_that_begins_suddenly_is_silence_as_well():
    hum = np.full(500 * WINDOW, 3_000, np.int16)
    hiss = np.resize(np.array([3_000, -3_000], np.int16), hum.size)
    windows, targets = first(augmented(noise=np.concatenate([hum, hiss]), talk=None))
    changing = [int((row.diff() != 0).sum()) for row in windows[targets == 3]]
    switched = [row for row, changes in enumerate(changing) if 0.01 * WINDOW < changes < 0.99 * WINDOW]
    assert switched and all(row % 4 == 2 for row in switched), "every fourth gives way to the next, if it is another"


def test_pauses_in_the_talk_are_silence():
    made = composition(augmented(talk=np.zeros(5 * WINDOW, np.int16)))
    assert made["_silence_"] == 16 + 22
    assert made["_unknown_"] == 8 + 12


def test_without_silence_pauses_stay_unknown():
    made = composition(augmented(labels=("yes", "no", "_unknown_"), talk=np.zeros(5 * WINDOW, np.int16)))
    assert made["_unknown_"] == 8 + 12 + 22


def test_clips_too_noisy_to_cut_are_not_cut():
    data = clips(yes=10, no=10)
    data.spans[:] = 0, WINDOW
    made = composition(augmented(data=data, talk=None))
    assert made["_unknown_"] == 0
    assert made["yes"] + made["no"] == 84


def test_an_epoch_shows_about_as_many_keywords_as_there_are_clips():
    batches = augmented(clips(yes=60, no=40), batch=50)
    keywords = sum(int((targets < 2).sum()) for _, targets in batches.epoch(0))
    assert len(list(batches.epoch(0))) == len(batches)
    assert keywords == pytest.approx(100, abs=15)


def test_a_rare_keyword_comes_more_often_than_its_clips_and_not_as_often_as_a_common_one():
    expected = 4**0.2 / (100**0.2 + 4**0.2)  # 34 %, of 4 % of the clips
    batches = augmented(clips(yes=100, no=4), batch=200)
    _, targets = first(batches)
    share = float((targets == 1).sum() / (targets < 2).sum())
    assert share == pytest.approx(expected, abs=0.1)
    assert batches.weights[batches.targets[batches.keywords] == 1].sum() == pytest.approx(expected)


# --- augmented: windows ---


def test_windows_are_finite_and_within_full_scale():
    windows, targets = first(augmented())
    assert windows.shape == (100, WINDOW)
    assert windows.dtype == torch.float32
    assert targets.shape == (100,)
    assert torch.isfinite(windows).all()
    assert float(windows.abs().max()) <= 1.0


def test_silence_without_a_sound_and_noise_without_a_sound_are_survived():
    windows, _ = first(augmented(noise=np.zeros(WINDOW, np.int16), talk=None))
    assert torch.isfinite(windows).all()


def place(batches, n, cut, seed=0):
    """n words placed, of which the first `cut` are to be cut off: (n, 16000)."""
    rng = np.random.default_rng(seed)
    hidden = np.where(np.arange(n) < cut, rng.uniform(*HIDDEN, n), 0.0)
    return place_clips(batches.clips, np.arange(n) % len(batches.clips), hidden, rng)


def visible(window):
    """First and last sample of the plateau that can be seen."""
    sounding = window.abs() > 0.49
    return int(sounding.nonzero()[0]), int(sounding.nonzero()[-1])


def test_keywords_lie_whole_inside_the_window_and_anywhere_in_it():
    placed = place(augmented(), 200, 0)
    edges = [visible(window) for window in placed]
    lengths = [last - begin + 1 for begin, last in edges]
    assert min(lengths) >= (END - START) / 1.15 - 3
    assert max(lengths) <= (END - START) / 0.85 + 3
    assert min(begin for begin, _ in edges) < 1_000
    assert max(last for _, last in edges) > WINDOW - 1_000


def test_cut_words_lie_partly_outside_on_either_side():
    placed = place(augmented(), 200, 200)
    left = right = 0
    for window in placed:
        begin, last = visible(window)
        assert (begin <= 1) != (last >= WINDOW - 2), "it touches one edge of the window, and not both"
        left, right = left + (begin <= 1), right + (last >= WINDOW - 2)
        seen = last - begin + 1
        assert 0.2 * (END - START) / 1.15 - 3 <= seen <= 0.6 * (END - START) / 0.85 + 3
    assert left > 60 and right > 60


def test_only_the_words_to_be_cut_are_cut():
    placed = place(augmented(), 40, 20)
    lengths = [last - begin + 1 for begin, last in map(visible, placed)]
    assert max(lengths[:20]) < min(lengths[20:])


def test_a_word_too_long_for_the_window_keeps_its_place():
    data = clips(yes=30, no=30)
    data.samples[:] = 0
    data.samples[:, 100:15_900] = 16_384
    data.spans[:] = 100, 15_900
    for window in place(augmented(data), 60, 0):
        begin, last = visible(window)
        assert begin <= 100 + 1_600 + 16_000 * 0.15
        assert last - begin > 10_000


# --- augmented: what is taken for a keyword ---


def loudness(windows):
    """As if a network took what is loud for a keyword."""
    return windows.square().mean(1)


def test_what_is_hard_is_sought_anew_and_depends_on_the_epoch_alone():
    batches, again = (augmented(batch=32, talk=sound(100 * WINDOW), hard=0.5) for _ in range(2))
    batches.mine(loudness, 0)
    batches.mine(loudness, 3)
    again.mine(loudness, 3)
    assert torch.equal(first(batches, 3)[0], first(again, 3)[0])
    again.mine(lambda windows: -loudness(windows), 3)
    assert not torch.equal(first(batches, 3)[0], first(again, 3)[0])


def test_mining_takes_no_longer_than_learning():
    seen = []
    batches = augmented(clips(yes=5, no=5), batch=8, talk=sound(1000 * WINDOW), noise=sound(1000 * WINDOW), hard=0.5)
    batches.mine(lambda windows: seen.append(len(windows)) or loudness(windows), 0)
    assert sum(seen) == len(batches) * batches.batch


def test_noise_that_is_taken_for_a_keyword_is_silence_as_other_noise_is():
    noise = sound(100 * WINDOW, level=200)
    noise[: 20 * WINDOW] = np.resize(np.array([8_000, -8_000], np.int16), 20 * WINDOW)  # as high as a sound can be
    batches = augmented(clips(yes=400, no=400), noise=noise, talk=None, hard=1.0)

    def shrillness(windows):
        return windows.diff(dim=1).square().mean(1) / windows.square().mean(1)

    def shrill():
        """Of the first windows of silence of eight epochs; four of each are digital silence and hiss."""
        firsts = [first(batches, number) for number in range(8)]
        return sum(int((shrillness(windows[targets == 3]) > 3.0).sum()) for windows, targets in firsts)

    before = shrill()
    batches.mine(shrillness, 0)
    assert before < 48 and shrill() > 8 * 11


def test_without_talk_nothing_is_sought_in_it():
    batches = augmented(talk=None, hard=0.5)
    batches.mine(loudness, 0)
    assert first(batches)[0].shape == (100, WINDOW)


# --- augmented: repeatable ---


@pytest.mark.parametrize("talk", ["yes", None])
def test_the_same_seed_and_epoch_give_the_same_batches(talk):
    options = {"data": clips(yes=20, no=20), "batch": 24, "talk": talk}
    for one, other in zip(augmented(**options).epoch(2), augmented(**options).epoch(2), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_an_epoch_does_not_depend_on_those_before_it():
    batches = augmented(batch=32)
    alone = first(augmented(batch=32), 1)
    list(batches.epoch(0))
    assert torch.equal(first(batches, 1)[0], alone[0])


def test_another_seed_or_epoch_gives_other_batches():
    base = first(augmented(batch=32))[0]
    assert not torch.equal(base, first(augmented(batch=32), 1)[0])
    assert not torch.equal(base, first(augmented(batch=32, seed=1))[0])


def test_drawing_does_not_disturb_the_global_generators():
    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    list(augmented(batch=32).epoch(0))
    assert np.array_equal(np.random.get_state()[1], state)
    assert torch.equal(torch.get_rng_state(), torch_state)
