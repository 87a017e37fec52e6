"""`kwsd eval`: rates with honest intervals, the same from a checkpoint and from the artefact made of it."""

import json
import math
import shutil

import numpy as np
import pytest
import tiny_speech_commands as tiny
import torch
from test_checkpoint import checkpoint

from kwsd.cli import dispatch
from kwsd.errors import IO, USAGE, AudioError, KwsdError, ModelError
from kwsd.training.evaluate import Evaluation, Rate, evaluate_model
from kwsd.training.export import export


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def artefact(tmp_path):
    """A network with weights left to chance, exported, its checkpoint beside it."""
    labels = ("yes", "no", "up", "zero", "_silence_")
    state = {n: w * 3 for n, w in _random(len(labels)).items()}
    made = checkpoint(labels=labels, state=state, best_state=state)
    made.save(tmp_path / "a.ckpt")
    export(made, tmp_path / "a.pt", torch.zeros(1, 16_000))
    return tmp_path / "a.pt"


def _random(labels):
    from kwsd.networks import NETWORKS

    torch.manual_seed(3)
    return NETWORKS["simplenet"](labels).state_dict()


# --- rates ---


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
        (1, 29, 0.0061, 0.1718),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ],
)
def test_intervals_are_wilsons(right, of, low, high):
    assert Rate(right, of).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "of"), [(3, 7), (0, 5), (5, 5), (892, 1286)])
def test_the_bounds_are_where_the_score_test_just_rejects(right, of):
    rate = Rate(right, of)
    for bound in rate.interval:
        distance = abs(rate.value - bound) / math.sqrt(max(bound * (1 - bound), 1e-18) / of)
        assert distance == pytest.approx(1.959964, abs=1e-4) or bound in (0.0, 1.0)
    assert rate.interval[0] <= rate.value <= rate.interval[1]


def test_of_nothing_is_known_nothing():
    assert Rate(0, 0).interval == (0.0, 1.0)
    assert Rate(0, 0).as_dict()["accuracy"] is None
    assert "0 of" in str(Rate(0, 0))


def test_overall_and_per_word_are_read_off_the_confusion():
    evaluation = Evaluation(
        ("yes", "no", "zero"), np.array([[8, 2, 0], [1, 3, 1], [0, 0, 0]]), ("bad.wav: empty",), Rate(9, 10)
    )
    assert evaluation.overall == Rate(11, 15)
    assert (evaluation.of("yes"), evaluation.of("no"), evaluation.of("zero")) == (Rate(8, 10), Rate(3, 5), Rate(0, 0))
    lines = evaluation.table().splitlines()
    assert [line.split()[0] for line in lines] == ["accuracy", "whole", "yes", "no"]
    assert lines[1].split() == ["whole", "words", "90.0%", "[59.6%,", "98.2%]", "9", "of", "10"]
    assert lines[2].split() == ["yes", "80.0%", "[49.0%,", "94.3%]", "8", "of", "10"]
    strict = json.loads(json.dumps(evaluation.as_dict(), allow_nan=False))
    assert strict["words"]["zero"] == {"right": 0, "of": 0, "accuracy": None, "low": 0.0, "high": 1.0}
    assert strict["skipped"] == ["bad.wav: empty"]


# --- the command ---


def test_the_checkpoint_and_its_artefact_score_the_same(artefact, data):
    one = evaluate_model(artefact, data, "training", ())
    other = evaluate_model(artefact.with_suffix(".ckpt"), data, "training", ())
    assert np.array_equal(one.confusion, other.confusion)
    of = {label: one.of(label).of for label in one.labels}
    assert of == {"yes": 12, "no": 12, "up": 12, "zero": 0, "_silence_": 36 // 11}


def test_words_that_are_cut_off_are_left_out_of_the_second_figure(artefact, tmp_path):
    root = tiny.make(tmp_path / "data", words=("yes", "no"))
    for name in (tiny.folder(root) / "testing_list.txt").read_text().split()[:3]:
        tiny.write(tiny.folder(root) / name, np.concatenate([np.zeros(8_000), tiny.tone("yes")])[:16_000])
    evaluation = evaluate_model(artefact, root, "testing", ())
    assert (evaluation.overall.of, evaluation.whole.of) == (9, 6)
    assert 0 <= evaluation.overall.right - evaluation.whole.right <= 3


def test_ones_own_recordings_are_evaluated_alone_or_besides(artefact, data, tmp_path):
    for i in range(2):
        tiny.write(tmp_path / f"mine/yes/ann_nohash_{i}.wav", tiny.tone("yes", seed=i))
    (tmp_path / "mine/testing_list.txt").write_text("yes/ann_nohash_1.wav\n")
    mine = (tmp_path / "mine",)
    alone = evaluate_model(artefact, None, "testing", (data,), words=mine)
    both = evaluate_model(artefact, data, "testing", (), words=mine)
    assert {label: alone.of(label).of for label in alone.labels} == {
        "yes": 1, "no": 0, "up": 0, "zero": 0, "_silence_": 1
    }  # fmt: skip
    assert both.of("yes").of == 5
    with pytest.raises(AudioError, match=r"mine: no validation clips"):
        evaluate_model(artefact, None, "validation", (data,), words=mine)


def test_every_subset_can_be_asked_for(artefact, data):
    totals = {s: evaluate_model(artefact, data, s, ()).of("yes").of for s in ("training", "validation", "testing")}
    assert totals == {"training": 12, "validation": 4, "testing": 4}


def test_the_table_goes_to_stdout_and_the_picture_beside_the_model(artefact, data, capsys):
    assert dispatch(["eval", "--model", str(artefact), "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["accuracy", "whole", "yes", "no", "up", "_silence_"]
    picture = artefact.with_suffix(".confusion.png")
    assert str(picture) in err
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert picture.stat().st_size > 5_000


def test_models_whose_names_have_points_do_not_share_a_picture(artefact, data, tmp_path):
    for name in ("exp1.1", "exp1.2", "a.ckpt"):
        shutil.copy(artefact, tmp_path / name)
        assert dispatch(["eval", "--model", str(tmp_path / name), "--data", str(data)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "a.confusion.png", "exp1.1.confusion.png", "exp1.2.confusion.png",
    ]  # fmt: skip


def test_a_picture_that_cannot_be_drawn_is_an_error_only_if_it_was_asked_for(artefact, data, capsys):
    picture = artefact.with_suffix(".confusion.png")
    picture.mkdir()
    asked = ["eval", "--model", str(artefact), "--data", str(data)]
    assert dispatch(asked) == 0
    out, err = capsys.readouterr()
    assert out.startswith("accuracy") and f"{picture}: cannot be written" in err
    with pytest.raises(KwsdError, match="cannot be written") as failure:
        dispatch([*asked, "--picture", str(picture)])
    assert failure.value.exit_code == IO


def test_json_holds_the_same_figures(artefact, data, tmp_path, capsys):
    picture = tmp_path / "other.png"
    arguments = ["eval", "--model", str(artefact), "--data", str(data), "--json", "--picture", str(picture)]
    assert dispatch(arguments) == 0
    figures = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)  # strict: no NaN
    evaluation = evaluate_model(artefact, data, "testing", ())
    assert figures["overall"] == evaluation.overall.as_dict()
    assert figures["whole"] == evaluation.whole.as_dict()
    assert figures["confusion"] == evaluation.confusion.tolist()
    assert list(figures["words"]) == figures["labels"] == list(evaluation.labels)
    assert picture.exists()


def test_a_corrupt_clip_is_named(artefact, tmp_path, capsys):
    root = tiny.make(tmp_path / "damaged")
    name = (tiny.folder(root) / "testing_list.txt").read_text().split()[0]
    (tiny.folder(root) / name).write_bytes(b"")
    assert dispatch(["eval", "--model", str(artefact), "--data", str(root), "--json"]) == 0
    out, err = capsys.readouterr()
    assert name in json.loads(out)["skipped"][0]
    assert f"kwsd: skipped {tiny.folder(root.resolve()) / name}" in err


def test_what_else_there_is_to_know_of_the_clips_is_told(artefact, data, tmp_path, capsys):
    folder = tmp_path / "mine"
    tiny.write(folder / "up/1.wav", tiny.tone("up"))
    tiny.write(folder / "stray.wav", tiny.tone("up"))
    (folder / "testing_list.txt").write_text("up/1.wav\n")
    noise = str(tiny.folder(data) / "_background_noise_")
    assert dispatch(["eval", "--model", str(artefact), "--words", str(folder), "--noise", noise]) == 0
    assert f"kwsd: {folder}/stray.wav: of which word?" in capsys.readouterr().err


def test_a_file_that_is_neither_checkpoint_nor_artefact_is_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(b"neither")
    with pytest.raises(ModelError, match="is not a model"):
        evaluate_model(tmp_path / "a.pt", data, "testing", ())


def test_a_model_of_other_words_has_nothing_to_be_tested_on(tmp_path, data):
    checkpoint(labels=("zero", "one")).save(tmp_path / "a.ckpt")
    with pytest.raises(AudioError, match="none of the testing clips is one of the labels zero, one"):
        evaluate_model(tmp_path / "a.ckpt", data, "testing", ())


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        (("--words", "w", "--report", "a.html"), "--report: goes with --stream; leave it out"),
        (("--words", "w", "--negatives", "talk"), "--negatives: goes with --stream"),
        (("--words", "w", "--set", "a=1"), "--set: goes with --stream"),
        (("--words", "w", "--continuous"), "--continuous: goes with --stream"),
        (("--stream", "a.wav", "--words", "w"), "--words: is for clips, not for --stream; leave it out"),
        (("--stream", "a.wav", "--subset", "testing"), "--subset: is for clips"),
        (("--stream", "a.wav", "--negatives", "talk", "--budget", "nan"), "--budget nan: false accepts per hour, 0"),
        (("--stream", "a.wav", "--negatives", "talk", "--budget", "-1"), "--budget -1: false accepts per hour"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(kwsd, asked, complaint):
    kwsd("eval", "--model", "commands", *asked).refused(USAGE, complaint)
