"""What `pip install kwsd` brings is enough to hear with a model in ONNX; all else names the extra that it wants."""

import shutil

import pytest
from live_systemd import REPOSITORY

from kwsd.cli import TRAINING
from kwsd.errors import UNAVAILABLE
from kwsd.recording import DEMO


@pytest.fixture
def bare(kwsd, tmp_path):
    """`kwsd` where nothing of the extra `train` is installed."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({sorted(TRAINING)}))\n"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    return lambda *arguments: kwsd(*arguments, more={"PYTHONPATH": str(tmp_path)})


def test_the_default_model_hears(bare):
    result = bare("replay", DEMO)
    assert (result.code, result.out.count('"type":"detection"')) == (0, 10)


def test_so_does_another_that_onnx_runtime_runs(bare):
    result = bare("replay", "--set", "engine=onnxruntime", DEMO)
    assert (result.code, result.out.count('"type":"detection"')) == (0, 10)


def test_words_are_recorded_for_a_machine_that_trains(bare, tmp_path):
    assert bare("record", "words", "marvin", "--source", DEMO).code == 0
    assert len(list(tmp_path.glob("words/marvin/*.wav"))) == 10


def test_bench_says_what_it_does_not_measure(bare):
    result = bare("bench", "--seconds", "1")
    assert result.code == 0, result.err
    assert "inference at least           not measured without onnx; pip install 'kwsd[train]'" in result.out
    assert "words heard" in result.out


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (("train", "--model", "simplenet", "--data", "."), "torch is not installed; pip install 'kwsd[train]'"),
        (("eval", "--model", "commands", "--data", "."), "torch is not installed; pip install 'kwsd[train]'"),
        (("export", "a.ckpt", "-o", "a.onnx"), "torch is not installed; pip install 'kwsd[train]'"),
        (("bench", "--scale", "--picture", "a.png"), "matplotlib is not installed; pip install 'kwsd[train]'"),
        (("replay", "--model", "a.pt", DEMO), "torch is not installed; pip install 'kwsd[torch]', or take an ONNX"),
    ],
)
def test_what_more_takes_is_named_in_one_line(bare, tmp_path, command, missing):
    shutil.copy(REPOSITORY / "models" / "commands.pt", tmp_path / "a.pt")
    bare(*command).refused(UNAVAILABLE, missing)
