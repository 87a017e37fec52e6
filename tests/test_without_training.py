"""What `pip install kwsd` brings is enough to hear with a model in ONNX; all else names the extra that it wants."""

import json
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


@pytest.mark.parametrize(
    ("library", "setting", "extra"),
    [
        ("aiohttp", "http.on=[tcp://127.0.0.1:0]", "http"),
        ("prometheus_client", "http.on=[tcp://127.0.0.1:0]", "http"),
        ("aiohttp", "hooks=[{post: 'http://127.0.0.1:9/'}]", "http"),
        ("wyoming", "wyoming.on=[tcp://127.0.0.1:0]", "wyoming"),
        ("aiomqtt", "sinks.mqtt.broker=mqtt://127.0.0.1:9", "mqtt"),
    ],
)
def test_a_service_without_its_library_is_known_before_anything_begins(kwsd, tmp_path, library, setting, extra):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules['{library}'] = None\n")
    options = ("--set", "streams=[{source: pcm}]", "--set", setting)
    missing = f"{library} is not installed; pip install 'kwsd[{extra}]'"
    for command in ("check", "run"):
        result = kwsd(command, *options, more={"PYTHONPATH": str(tmp_path)})
        result.refused(UNAVAILABLE, missing)
        assert result.out == "", "nothing, not even that it stops"
    result = kwsd("doctor", *options, "--json", more={"PYTHONPATH": str(tmp_path)})
    assert result.code == UNAVAILABLE
    [finding] = [finding for finding in map(json.loads, result.out.splitlines()) if missing in finding["what"]]
    assert (finding["state"], finding["remedy"]) == ("FAIL", "")


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
