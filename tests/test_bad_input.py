"""Whatever it is given, `kwsd` says what is wrong in one line, ends with the right code, and loses nothing."""

import ctypes
import ctypes.util
import hashlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import COMMAND, Result
from running import PATIENCE_S, Running, clean_environment

from kwsd.recording import DEMO, is_truncated, open_recording

USAGE, NO_INPUT, UNAVAILABLE, IO, NO_PERMISSION, CONFIG = 2, 66, 69, 74, 77, 78
RATE = 16_000
BEEP_S = 0.5  # when the beep of `beep()` begins
AT_ONCE_S = 2.0  # "within a second", on a machine that is busy with other things as well
HEARS_ALL = ("--set", "debouncer.isolation_s=0")  # the models of these tests take any sound for a word


def shell(script):
    """A prefix for a command that is then started from a shell."""
    return ("sh", "-c", script, "sh")


def beep(rate=RATE, seconds=2.0, channels=1):
    """Silence with a short tone in it, which the model hears as one "yes": (samples, channels)."""
    time_s = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * time_s) * ((time_s >= BEEP_S) & (time_s < BEEP_S + 0.5))
    return np.repeat(tone[:, None], channels, axis=1).astype(np.float32)


def ended(command, folder):
    """The result of any command, run in a folder."""
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=clean_environment())
    return Result(run.returncode, run.stdout, run.stderr)


def pcm(samples):
    """Samples as kwsd reads them from stdin."""
    return (samples * 32767).astype("<i2").tobytes()


def write_config(folder, text):
    path = folder / "kwsd.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- configuration ------------------------------------------------------------------------------------------

TWO_ROOMS = "streams: [{source: microphone, name: hall}, {source: file, name: kitchen, path: a.wav}]\n"
CONFIGS = {
    "a YAML syntax error": ("window: {hop_ms: 100\nmodel: x\n", "kwsd.yaml:2: not valid YAML"),
    "a tab": ("window:\n\thop_ms: 100\n", "kwsd.yaml:2: not valid YAML"),
    "no text": (b"\xff\xfe\x00", "is not text in UTF-8"),
    "a list": ("- a\n", "must hold `key: value` lines, not a list"),
    "a number": ("7\n", "must hold `key: value` lines, not a int"),
    "a number that is none": ("window: {hop_ms: 0x_}\n", "not valid YAML"),
    "a tag that does not fit": ("device: !!int foo\n", "not valid YAML"),
    "a time that is none": ("device: !!timestamp x\n", "not valid YAML"),
    "a number without end": (
        f"debouncer: {{min_hits: {'9' * 30}}}\n", "kwsd.yaml:1: debouncer.min_hits: ", "expected int",
    ),
    "a home of nobody": ("model: ~nobodyatall/x\n", "~nobodyatall/x: nobody here is called so, or has a home"),
    "a path with a zero byte": ('model: "a\\0b"\n', "no path has a zero byte in it"),
    "a channel that there is not": (
        "streams: [{source: pcm, channels: 2, channel: 3}]\n",
        "kwsd.yaml:1: streams.0.channel: there are 2, and no 3; raise channels, or choose another, or mix",
    ),
    "an alias that holds itself": ("window: &a [*a]\n", "an alias in it holds itself"),
    "nesting without end": ("window: " + "[" * 500, "is nested too deeply"),
    "a Python object": ("model: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    "a key that is a list": ("? [a, b]\n: c\n", "kwsd.yaml:1: ", "a key must be a word"),
    "a key that is a number": ("keywords:\n  1: {}\n", "kwsd.yaml:2: 1: a key must be a word; put it in quotes"),
    "a key given twice": ("device: cpu\ndevice: cuda\n", "kwsd.yaml:2: device: given twice"),
    "an unknown key": ("debouncer:\n  treshold: 0.5\n", "kwsd.yaml:2: debouncer.treshold: unknown key; ", "threshold?"),
    "an unknown section": ("debounce: {}\n", "kwsd.yaml:1: debounce: unknown key; did you mean debouncer?"),
    "an unknown key of a keyword": (
        "keywords:\n  stop: {}\n  go: {marign: 0.5}\n",
        "kwsd.yaml:3: keywords.go.marign: unknown key; did you mean margin?",
    ),
    "a key of another section": ("threshold: 0.5\n", "threshold: unknown key; did you mean debouncer.threshold?"),
    "a key that no keyword has of its own": (
        "keywords:\n  stop: {hop_ms: 50}\n",
        "kwsd.yaml:2: keywords.stop.hop_ms: unknown key; did you mean window.hop_ms?",
    ),
    "keywords as a list of keys": (
        "keywords:\n  - stop: {threshold: 0.5}\n",
        "kwsd.yaml:2: keywords.0: expected str, got keys; put it in quotes, or leave out the - before its key",
    ),
    "a keyword in capitals": ("keywords: [On]\n", "keywords.On: the model does not know it; did you mean on? It knows"),
    "a keyword like no other": ("keywords: [marvin]\n", "keywords.marvin: the model does not know it; it knows yes,"),
    "a boolean as YAML 1.1 had it": ("sinks: {stdout: yes}\n", "expected bool, got str; write true or false"),
    "an address that is no list": ("listen: {on: 'unix:in'}\n", "expected list, got str; write a list, such as [a, b]"),
    "a stream that cannot be": (
        "hooks: [{shell: ls, streams: [attic]}]\n", "hooks.0.streams: no stream is called 'attic'; there are mic",
    ),
    "a stream to arbitrate that cannot be": (
        TWO_ROOMS + "arbitration: {groups: [[hall, attic]]}\n",
        "arbitration.groups.0: no stream is called 'attic'; there are hall, kitchen",
    ),
    "a pattern that fits no stream": (
        TWO_ROOMS + "arbitration: {groups: [['*', 'up *']]}\n",
        "arbitration.groups.0: no stream is called 'up *'; there are hall, kitchen",
    ),
    "a stream alone": (
        TWO_ROOMS + "arbitration: {groups: [['h*']]}\n", "arbitration.groups.0: hall is alone in it; name those",
    ),
    "a stream in two groups": (
        TWO_ROOMS + "arbitration: {groups: [[hall, kitchen], ['*']]}\n",
        "arbitration.groups.1: 'hall' is in groups.0 as well; a stream is in one group at most",
    ),
    "a pattern where a name is wanted": (
        TWO_ROOMS + "arbitration: {gain_db: {'h*': 3}}\n",
        "arbitration.gain_db: no stream is called 'h*'; there are hall, kitchen",
    ),
    "faster than time among others": (
        TWO_ROOMS.replace("a.wav", "a.wav, realtime: false") + "arbitration: {groups: [['*']]}\n",
        "streams.1.realtime: faster than time nothing is at one time with others, of arbitration.groups.0",
    ),
    "a password in an address": (
        "sinks: {mqtt: {broker: 'mqtt://me:secret@host'}}\n", "sinks.mqtt.broker: has a user or a password in it",
    ),
    "a wrong type": (
        "debouncer:\n  release: high\n",
        "kwsd.yaml:2: debouncer.release: expected float | nothing, got str; write a number, such as 0.5",
    ),
    "a number for a section": ("window: 3\n", "kwsd.yaml:1: window: expected keys, got int"),
    "an empty section": ("window:\n", "kwsd.yaml:1: window: expected keys, got nothing"),
    "one of a few words": ("device: gpu\n", "kwsd.yaml:1: device: 'gpu' is none of auto, cpu, cuda"),
    "a negative hop": ("window:\n  hop_ms: -100\n", "kwsd.yaml:2: window.hop_ms: expected float >= 10.0"),
    "a hop that is not a number": ("window:\n  hop_ms: .nan\n", "kwsd.yaml:2: window.hop_ms: expected float >= 10.0"),
    "an infinite time": ("debouncer:\n  smoothing_ms: .inf\n", "kwsd.yaml:2: debouncer.smoothing_ms: expected"),
    "a threshold of 1.5": ("debouncer:\n  threshold: 1.5\n", "kwsd.yaml:2: debouncer.threshold: expected float <= 1.0"),
    "a keyword's threshold of 1.5": (
        "keywords:\n  stop: {threshold: 1.5}\n",
        "kwsd.yaml:2: keywords.stop.threshold: expected float <= 1.0",
    ),
    "release above threshold": (
        "debouncer:\n  threshold: 0.5\n  release: 0.6\n",
        "kwsd.yaml:3: debouncer.release: 0.6 is above the threshold 0.5; set it lower",
    ),
    "no keyword": ("keywords: {}\n", "kwsd.yaml:1: keywords: is empty; name at least one"),
    "one keyword": ("keywords: stop\n", "kwsd.yaml:1: keywords: 'stop' is not all or a list: [stop]"),
    "a side for a channel": (
        "streams:\n  - {source: microphone, channel: left}\n",
        "kwsd.yaml:2: streams.0.channel: 'left' is not mix or a number",
    ),
    "no keyword in a list": ("keywords: []\n", "kwsd.yaml:1: keywords: is empty; name at least one"),
    "no stream": ("streams: []\n", "kwsd.yaml:1: streams: is empty; name a stream, or an address in listen.on"),
    "no address": ("listen:\n  on: [localhost]\n", "kwsd.yaml:2: listen.on.0: localhost is no address; write tcp://127"),
    "an address without a port": ("listen: {on: ['tcp://127.0.0.1']}\n", "listen.on.0: tcp://127.0.0.1 is no address"),
    "a port that is none": ("listen: {on: ['tcp://127.0.0.1:99999']}\n", "tcp://127.0.0.1:99999 is no address"),
    "a host's name": ("listen: {on: ['tcp://kitchen:7355']}\n", "tcp://kitchen:7355 is no address", "an IP address"),
    "no path": ("listen: {on: ['unix:']}\n", "listen.on.0: unix: is no address"),
    "an address twice": ("listen: {on: ['unix:a', 'unix:a']}\n", "listen.on.1: unix:a is there twice"),
    "an address twice, by other names": (
        "listen: {on: ['tcp://127.0.0.1:7355', 'tcp://localhost:7355']}\n", "tcp://localhost:7355 is there twice",
    ),
    "an address that the events have": (
        "sinks: {socket: {path: a}}\nlisten: {on: ['unix:./a']}\n", "kwsd.yaml:2: listen.on.0: unix:./a is there twice",
    ),
    "a control character": ("device: cpu\nmodel: \x07\n", "kwsd.yaml:2: not valid YAML: a control character (#x0007)"),
    "half of a pair": ('device: cpu\nmodel: "\\ud800"\n', "kwsd.yaml:2: model: '\\ud800' is not text in UTF-8"),
    "a release above a keyword's threshold": (
        "keywords:\n  go: {}\n  stop: {threshold: 0.2, release: 0.5}\n",
        "kwsd.yaml:3: keywords.stop.release: its release 0.5 is above its threshold 0.2",
    ),
    "every machine, and no secret": (
        "listen: {on: ['tcp://0.0.0.0:7355']}\n",
        "kwsd.yaml:1: listen.on.0: tcp://0.0.0.0:7355 can be reached from other machines; name a listen.token_file",
    ),
    "every machine by IPv6, and no secret": ("listen: {on: ['tcp://[::]:7355']}\n", "be reached from other machines"),
    "no satellites": ("listen: {on: ['unix:a'], streams: 0}\n", "listen.streams: expected int >= 1"),
    "an unknown source": ("streams:\n  - source: mikrophone\n", "kwsd.yaml:2: streams.0.source", "mean microphone?"),
    "a stream without a source": ("streams:\n  - name: den\n", "kwsd.yaml:2: streams.0: ", "missing", "source"),
    "two streams of one name": (
        "streams:\n  - source: microphone\n  - source: microphone\n",
        "kwsd.yaml:3: streams.1: the name 'mic' is taken",
    ),
    "stdin twice": (
        "streams:\n  - {source: pcm, name: a}\n  - {source: pcm, name: b}\n",
        "kwsd.yaml:3: streams.1: only one stream can read stdin",
    ),
    "a release that no score falls below": ("debouncer: {release: 0}\n", "debouncer.release: expected float > 0.0"),
    "a pattern without quotes": (
        "streams:\n  - {source: microphone, device: *USB*}\n",
        "kwsd.yaml:2: not valid YAML: ", "is it the beginning of a text? Put that in quotes",
    ),
    "a queue of no length": ("sinks: {socket: {queue: 0}}\n", "kwsd.yaml:1: sinks.socket.queue: expected int >= 1"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), [(c[0], c[1:]) for c in CONFIGS.values()], ids=CONFIGS)
def test_a_bad_config_is_refused_with_its_line_and_key(text, words, kwsd, tmp_path):
    result = kwsd("check", "--config", write_config(tmp_path, text))
    result.refused(CONFIG, *words)
    assert result.out == ""


def test_a_key_that_is_a_little_like_one_elsewhere_is_not_taken_for_it(kwsd, tmp_path):
    result = kwsd("check", "--config", write_config(tmp_path, "sinks: {mqtt: {port: 1883}}\n"))
    assert result.err.endswith("kwsd.yaml:1: sinks.mqtt.port: unknown key\n")


def test_run_refuses_a_bad_config_as_check_does(kwsd, tmp_path):
    result = kwsd("run", "--config", write_config(tmp_path, "window: {hop: 1}\n"))
    result.refused(CONFIG, "kwsd.yaml:1: window.hop: unknown key; did you mean hop_ms?")
    assert result.out == ""


def test_a_missing_config_is_named_with_what_to_do(kwsd):
    kwsd("--config", "nowhere.yaml").refused(NO_INPUT, "nowhere.yaml: no such config; leave out --config")


def test_a_folder_as_config_is_refused(kwsd, tmp_path):
    kwsd("check", "--config", tmp_path).refused(NO_INPUT, "is a folder; name a YAML file")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("debouncer.threshold", "--set debouncer.threshold: write it as KEY=VALUE"),
        ("debouncer.treshold=0.5", "--set debouncer.treshold=0.5: debouncer.treshold: unknown key; did you mean"),
        ("socket.path=x", "--set socket.path=x: socket: unknown key; did you mean sinks.socket?"),
        ("window.hop_ms=-1", "--set window.hop_ms=-1: window.hop_ms: expected float >= 10.0"),
        ("window=[", "--set window=[: '[' is not valid YAML"),
        ("model_sha256=abc", "model_sha256: expected text of another form (config.yaml says which)"),
        ("streams.0.device=*USB*", "if it is a text, put it in quotes of its own: '\"*USB*\"'"),
        ("streams.0.device=USB: 2", "streams.0.device: expected int | str, got keys; put it in quotes"),
        ("streams.7.name=x", "--set streams.7.name=x: streams.7 is not there"),
        ("streams.1.name=x", "--set streams.1.name=x: streams.1 is not there"),
        ("streams.x=1", "--set streams.x=1: streams.x is not there"),
        ("sinks.0=x", "--set sinks.0=x: sinks.0: unknown key"),
        ("keywords.0.threshold=0.5", "--set keywords.0.threshold=0.5: keywords.0: the model does not know it"),
        ("streams.\N{SUPERSCRIPT TWO}.name=x", "is not there"),
        ("window.hop_ms=0x_", "'0x_' is not valid YAML"),
    ],
)
def test_a_bad_setting_on_the_command_line_is_named_as_it_was_typed(setting, words, kwsd):
    kwsd("check", "--set", setting).refused(CONFIG, words)


def test_a_bad_setting_in_the_environment_is_named_by_its_variable(kwsd):
    result = kwsd("check", more={"KWSD_DEBOUNCER__TRESHOLD": "0.5"})
    result.refused(CONFIG, "KWSD_DEBOUNCER__TRESHOLD: debouncer.treshold: unknown key; did you mean threshold?")


def test_what_was_overridden_is_blamed_on_who_did_it_and_not_on_the_line_before(kwsd, tmp_path):
    text = "streams:\n  - {source: file, path: 'good.wav'}\nkeywords:\n  stop: {margin: 0.2}\n"
    config = write_config(tmp_path, text)
    wrong = "streams=[{source: file, path: 5}]"
    kwsd("check", "--config", config, "--set", wrong).refused(CONFIG, f"--set {wrong}: streams.0.path: expected str")
    result = kwsd("check", "--config", config, more={"KWSD_KEYWORDS": "{stop: {threshold: 7}}"})
    result.refused(CONFIG, "KWSD_KEYWORDS: keywords.threshold: expected float <= 1.0")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("KWSD_DEBOUNCER_THRESHOLD", "KWSD_DEBOUNCER__THRESHOLD"), ("KWSD_SINKS_MQTT_BROKER", "KWSD_SINKS__MQTT__BROKER")],
)
def test_one_underscore_where_two_belong_is_answered_with_the_right_name(name, meant, kwsd):
    kwsd("check", more={name: "1"}).refused(
        CONFIG, f"unknown key; two underscores part a section from its key: {meant}"
    )


def test_without_a_config_relative_paths_start_from_where_kwsd_is_started(kwsd, tmp_path):
    tape = ["--set", "streams=[{source: file, path: tape.wav}]"]
    kwsd("check", *tape).refused(NO_INPUT, f"{tmp_path}/tape.wav")
    soundfile.write(tmp_path / "tape.wav", beep(), RATE)
    assert kwsd("check", *tape).code == 0


def test_of_a_word_in_a_plain_list_more_can_be_said(kwsd, tmp_path):
    config = write_config(tmp_path, "keywords: [go, stop]\n")
    result = kwsd(
        "check", "--config", config, "--set", "keywords.stop.threshold=0.9", more={"KWSD_KEYWORDS__GO__MARGIN": "0.3"}
    )
    assert result.code == 0, result.err
    said = yaml.safe_load(result.out)["keywords"]
    assert {word: (own["threshold"], own["margin"]) for word, own in said.items()} == {
        "go": (None, 0.3),
        "stop": (0.9, None),
    }
    wrong = "keywords.stopp.threshold=0.9"
    kwsd("check", "--config", config, "--set", wrong).refused(CONFIG, f"--set {wrong}: keywords.stopp is not there")


@pytest.mark.parametrize("keywords", ["{yess: {}}", "[no, yess]"])
def test_a_keyword_the_model_does_not_know_is_named_with_those_it_knows(keywords, kwsd, models, tmp_path):
    config = write_config(tmp_path, f"keywords: {keywords}\n")
    result = kwsd("check", "--config", config, "--model", models / "good.pt")
    result.refused(CONFIG, "keywords.yess: the model does not know it; did you mean yes? It knows yes, no")


def test_a_keyword_with_its_release_above_its_threshold_is_named(kwsd, models, tmp_path):
    config = write_config(tmp_path, "keywords:\n  yes: {threshold: 0.3, release: 0.4}\n")
    result = kwsd("check", "--config", config, "--model", models / "good.pt")
    result.refused(CONFIG, "yes.release: its release 0.4 is above its threshold 0.3; lower ", "keywords.yes.release")


# --- model --------------------------------------------------------------------------------------------------


def cut(content, share):
    return content[: round(len(content) * share)]


def damaged(content):
    """With a byte of the metadata turned over."""
    place = content.index(b'"architecture"') + 3
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


BYTES = {
    "truncated": (lambda good: cut(good, 0.5), "is truncated or damaged; name a file that kwsd export made"),
    "without its last bytes": (lambda good: good[:-9], "is truncated or damaged; name a file"),
    "damaged": (damaged, "is truncated or damaged; name a file"),
    "empty": (lambda _: b"", "is not a model; name a file that kwsd export made"),
    "a pickle": (lambda _: pickle.dumps({"a": 1}), "looks like a Python pickle, which kwsd never loads; name a file"),
    "an old pickle": (lambda _: pickle.dumps({"a": 1}, 0), "looks like a Python pickle, which kwsd never loads"),
    "random": (lambda _: np.random.default_rng(7).bytes(5000), "is not a model; name a file that kwsd export made"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BYTES.values(), ids=BYTES)
def test_a_file_that_is_no_model_is_refused_without_loading_it(change, words, kwsd, models, tmp_path):
    model = tmp_path / "model.pt"
    model.write_bytes(change((models / "good.pt").read_bytes()))
    result = kwsd("check", "--model", model)
    result.refused(CONFIG, f"{model}: {words}")
    assert result.out == ""


def test_a_pickle_as_model_is_never_executed(kwsd, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb()))
    kwsd("replay", "--model", "model.pt", write_sound(tmp_path / "a.wav")).refused(CONFIG, "looks like a Python pickle")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("threshold.pt", "its threshold of yes is not above 0 and up to 1; export it again"),
        ("below.pt", "its threshold of yes is not above 0 and up to 1; export it again"),
        ("wordless.pt", "none of its labels is a word (_a_, _b_, _silence_); export another"),
        ("rate.pt", "trained at 8000 Hz; kwsd listens at 16000 Hz; retrain it"),
        ("window.pt", "takes windows of 8000 samples; kwsd makes 16000; retrain it"),
        ("future.pt", "artefact format 2; this kwsd reads 1; export it again"),
        ("figures.pt", "its kwsd.json cannot be read (Expected `array`, got `int` - at `$.labels`)"),
        ("bare.pt", "is TorchScript without kwsd.json; name a file that kwsd export made"),
        ("weights.pt", "is a PyTorch checkpoint, not an artefact; make one of it with kwsd export"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_refused_before_torch_is_loaded(model, words, kwsd, models):
    kwsd("check", "--model", models / model).refused(CONFIG, f"{models / model}: {words}")


def test_a_model_that_is_wrong_in_ways_nobody_thought_of_is_refused_in_one_line(kwsd, tmp_path):
    with zipfile.ZipFile(tmp_path / "lzma.pt", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("model/extra/kwsd.json", "{}" * 500)
    content = bytearray((tmp_path / "lzma.pt").read_bytes())
    content[60:70] = bytes(10)
    (tmp_path / "lzma.pt").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "deep.pt", "w") as archive:
        archive.writestr("model/extra/kwsd.json", '{"a":' * 50_000)
    for name, words in (("lzma.pt", "is truncated or damaged"), ("deep.pt", "its kwsd.json cannot be read")):
        kwsd("check", "--model", name).refused(CONFIG, f"{name}: ", words)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("outputs.pt", "gives [1, 5] for one window, not [1, 3] as its labels say; export it again"),
        ("other_window.pt", "inference failed: "),
        ("posteriors.pt", "its outputs are not log-probabilities"),
    ],
)
def test_a_model_that_belies_its_labels_or_window_is_refused_at_start(model, words, kwsd, models):
    result = kwsd("run", "--source", "-", "--model", models / model, data=pcm(beep()))
    result.refused(CONFIG, f"{models / model}: ", words)
    assert result.types == ["shutdown"]


def test_a_model_that_kwsd_comes_with_goes_by_its_name_and_a_file_of_that_name_before_it(kwsd, models, tmp_path):
    for named in (("--model", "commands-fast"), ("--set", "model=commands-fast")):
        assert re.search(r"^model: .*/models/commands-fast\.onnx$", kwsd("check", *named).out, re.MULTILINE), named
    shutil.copy(models / "good.pt", tmp_path / "commands-fast")
    assert f"model: {tmp_path}/commands-fast\n" in kwsd("check", "--model", "commands-fast").out
    kwsd("check", "--set", "model=../models/commands-fast").refused(NO_INPUT, "no such model")


@pytest.mark.parametrize("command", ["check", "run", "doctor"])
def test_a_model_whose_engine_is_not_installed_is_refused_in_one_line(command, kwsd, models, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    more = ("--source", "-") if command == "run" else ()
    result = kwsd(command, *more, "--model", models / "good.pt", more={"PYTHONPATH": str(tmp_path)})
    words = f"{models / 'good.pt'}: is TorchScript, and torch is not installed"
    if command == "doctor":
        assert result.code == UNAVAILABLE and f"FAIL  model: {words}" in result.out and "events socket" in result.out
    else:
        result.refused(UNAVAILABLE, words)


@pytest.mark.parametrize("name", ["a #b.onnx", "a: b.onnx", "\U0001f600.onnx", 'it\'s "so".onnx'])
def test_a_model_may_be_called_anything(name, kwsd, tmp_path):
    shutil.copy(Path(__file__).parent.parent / "models/commands-fast.onnx", tmp_path / name)
    assert kwsd("check", "--model", name).code == 0


@pytest.mark.parametrize("name", ["\U0001f600.wav", "a: #b.wav", "two\nlines.wav", os.fsdecode(b"Andr\xe9.wav")])
def test_a_recording_may_be_called_anything(name, kwsd, models, tmp_path):
    write_sound(tmp_path / "a.wav", beep()).rename(tmp_path / name)
    result = kwsd("run", "--model", models / "good.pt", "--set", "sinks.socket.enabled=false", "--source", name)
    assert result.code == 0 and "ready" in result.types
    result = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, name)
    assert result.code == 0 and result.types == ["detection"]


def test_a_name_that_is_no_text_is_one_line(kwsd, models, tmp_path):
    name = os.fsdecode(b"bad\xff.wav")
    for command in (("run", "--source"), ("replay",)):
        kwsd(*command, name, "--model", models / "good.pt").refused(NO_INPUT, "bad\\udcff.wav: no such file")


@pytest.mark.parametrize("command", ["check", "run", "replay"])
def test_a_model_that_was_pinned_is_the_only_one_that_is_taken(command, kwsd, models, tmp_path):
    pinned = hashlib.sha256((models / "good.pt").read_bytes()).hexdigest()
    arguments = ("--set", f"model={models / 'good.pt'}", "--set")
    more = {"run": ("--source", "-"), "replay": (write_sound(tmp_path / "a.wav", beep()),), "check": ()}[command]
    assert kwsd(command, *more, *arguments, f"model_sha256={pinned.upper()}", data=pcm(beep())).code == 0
    other = kwsd(command, *more, *arguments, f"model_sha256={'f' * 64}", data=pcm(beep()))
    other.refused(CONFIG, f"{models / 'good.pt'}: its sha256 is {pinned}, not the one in model_sha256")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--set", b"\xff=1"),
        ("check", "--set", b"model=\xff"),
        ("check", "--config", b"\xff.yaml"),
        ("replay", b"\xff"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(arguments, kwsd):
    result = kwsd(*(a.decode("utf-8", "surrogateescape") if isinstance(a, bytes) else a for a in arguments))
    assert result.code in {CONFIG, NO_INPUT} and "udcff" in result.complaint


def test_a_hash_that_is_none_is_refused(kwsd):
    kwsd("check", "--set", "model_sha256=123abc").refused(CONFIG, "--set model_sha256=123abc: model_sha256: ")


def test_a_flipped_bit_is_found_before_the_model_is_run(kwsd, models, tmp_path):
    whole = bytearray((models / "good.pt").read_bytes())
    whole[whole.index(b"kwsd.json") - 300] ^= 1
    (tmp_path / "a.pt").write_bytes(whole)
    kwsd("check", "--model", "a.pt").refused(CONFIG, "is truncated or damaged")


def test_a_missing_model_is_named_with_what_to_do(kwsd, tmp_path):
    words = f"{tmp_path / 'nowhere.pt'}: no such model; export one, or name another, such as commands or commands-fast"
    kwsd("check", "--model", "nowhere.pt").refused(NO_INPUT, words)


def test_a_folder_as_model_is_refused(kwsd, tmp_path):
    kwsd("check", "--model", tmp_path).refused(NO_INPUT, "is a folder, not a model")


# --- microphones --------------------------------------------------------------------------------------------

needs_portaudio = pytest.mark.skipif(
    ctypes.util.find_library("portaudio") is None, reason="libportaudio2 is not installed; make test installs it"
)
# Without a device that cannot be opened, Debian's PortAudio fails an assertion of its own.
NO_DEVICES = "pcm.broken { type hw card 31 }\n"
DEVICES = (
    f"{NO_DEVICES}pcm.kitchen {{ type null }}\npcm.kitchenette {{ type null }}\npcm.attic {{ type null }}\n"
    "pcm.refusing { type iec958 slave { pcm { type null } format S16_LE } }\n"
)


@pytest.fixture
def sound_cards(tmp_path):
    """Makes ALSA know just the devices given."""

    def write(devices):
        (tmp_path / "alsa.conf").write_text(devices)
        return {"ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")}

    return write


def microphone(device):
    return ("--set", f"streams=[{{source: microphone, device: {device}}}]")


@pytest.mark.parametrize("command", ["devices", "run"])
def test_without_a_portaudio_library_the_package_to_install_is_named(command, kwsd, tmp_path):
    hidden = "import ctypes.util; ctypes.util.find_library = lambda name: None; from kwsd.cli import main; main()"
    result = ended([sys.executable, "-c", hidden, command], tmp_path)
    result.refused(UNAVAILABLE, "PortAudio library is not installed", "apt install libportaudio2")


@needs_portaudio
def test_with_an_unusable_portaudio_library_the_package_to_install_is_named(kwsd, tmp_path):
    ctypes.CDLL(ctypes.util.find_library("portaudio"))
    [library] = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "portaudio" in line}
    hide = ("unshare", "--map-root-user", "--mount", *shell(f'mount --bind /dev/null {library} && exec "$@"'))
    if ended([*hide, "true"], tmp_path).code != 0:
        pytest.skip("no name spaces of our own to hide the library in")
    kwsd("devices", under=hide).refused(UNAVAILABLE, "PortAudio library is not installed", "apt install libportaudio2")


@needs_portaudio
@pytest.mark.parametrize("command", ["devices", "run"])
def test_without_a_microphone_it_says_so(command, kwsd, sound_cards):
    result = kwsd(command, more=sound_cards(NO_DEVICES))
    result.refused(NO_INPUT, "no microphone", "plug one in, or start the sound server")
    assert result.out == ""


@needs_portaudio
@pytest.mark.parametrize(
    ("device", "near", "far"),
    [
        ("kitchn", "'kitchen'", "'attic'"),
        ("Kitchenet", "'kitchenette'", "'attic'"),
        ("'*itch*'", "several microphones fit: '*itch*'; ", "attic"),
        ("bathroom", "2 'attic'", None),
        ("31", "0 'kitchen', 1 'kitchenette', 2 'attic'", None),
    ],
)  # fmt: skip
def test_an_unknown_device_is_answered_with_near_names(device, near, far, kwsd, sound_cards):
    result = kwsd("run", *microphone(device), more=sound_cards(DEVICES))
    result.refused(NO_INPUT, device.strip("'"), "choose one by number, name or pattern", near)
    assert far is None or far not in result.complaint


@needs_portaudio
def test_a_device_that_refuses_to_open_is_one_line(kwsd, sound_cards):
    result = kwsd("run", *microphone("refusing"), more=sound_cards(DEVICES))
    result.refused(UNAVAILABLE, "microphone 'refusing': cannot be opened", "see kwsd devices")
    assert result.types == ["shutdown"] or result.out == ""


@needs_portaudio
def test_a_channel_the_device_does_not_have_is_refused(kwsd, sound_cards):
    setting = "streams=[{source: microphone, device: kitchen, channel: 4000}]"
    result = kwsd("run", "--set", setting, more=sound_cards(DEVICES))
    result.refused(NO_INPUT, "microphone 'kitchen': has ", "no channel 4000; choose another")


# --- recordings ---------------------------------------------------------------------------------------------


def write_sound(path, samples=None, rate=RATE, subtype=None):
    soundfile.write(path, beep(rate) if samples is None else samples, rate, subtype)
    return path


SOUNDS = {
    "unsigned 8 bit": ("u8.wav", RATE, 1, "PCM_U8"),
    "24 bit": ("s24.wav", RATE, 1, "PCM_24"),
    "32 bit": ("s32.wav", RATE, 1, "PCM_32"),
    "float": ("f32.wav", RATE, 1, "FLOAT"),
    "double": ("f64.wav", RATE, 1, "DOUBLE"),
    "mu-law": ("ulaw.wav", RATE, 1, "ULAW"),
    "stereo": ("stereo.wav", RATE, 2, "PCM_16"),
    "six channels": ("six.wav", RATE, 6, "PCM_16"),
    "44.1 kHz": ("cd.wav", 44_100, 1, "PCM_16"),
    "44.1 kHz stereo": ("cd2.wav", 44_100, 2, "PCM_16"),
    "8 kHz": ("phone.wav", 8_000, 1, "PCM_16"),
    "FLAC": ("sound.flac", 48_000, 2, "PCM_16"),
    "Ogg": ("sound.ogg", 44_100, 1, "VORBIS"),
}


@pytest.fixture(scope="module")
def heard(tmp_path_factory, models):
    """One replay of all the formats: a result and its detections by file."""
    folder = tmp_path_factory.mktemp("sounds")
    for name, rate, channels, subtype in SOUNDS.values():
        write_sound(folder / name, beep(rate, channels=channels), rate, subtype)
    names = [name for name, *_ in SOUNDS.values()]
    return ended([*COMMAND, "replay", "--model", models / "good.pt", *HEARS_ALL, *names], folder)


@pytest.mark.parametrize("sound", SOUNDS)
def test_every_usual_sample_format_rate_and_channel_count_is_heard_alike(sound, heard):
    name = SOUNDS[sound][0]
    assert (heard.code, heard.err) == (0, "")
    [detection] = [event for event in heard.events if event["stream"] == name]
    assert detection["type"] == "detection" and detection["keyword"] == "yes"
    assert detection["start_s"] == pytest.approx(BEEP_S, abs=0.06)


def cut_short(path, share, seconds=2.0, subtype=None):
    path.write_bytes(cut(write_sound(path, beep(seconds=seconds), RATE, subtype).read_bytes(), share))


def cut_between_frames(path):
    content = write_sound(path, beep(seconds=9.0)).read_bytes()
    frame = content[content.index(b"\xff\xf8") :][:4]  # how each begins, but for its number
    path.write_bytes(content[: content.rindex(frame[:4])])


def with_sample(path, value):
    samples = beep()
    samples[30_000] = value
    write_sound(path, samples, RATE, "FLOAT")


BROKEN = {
    "a truncated WAV": ("a.wav", lambda path: cut_short(path, 0.9), "is cut short after 1.80 s"),
    "a truncated Ogg": ("a.ogg", lambda path: cut_short(path, 0.9, 60.0), "is cut short after "),
    "a truncated Opus": ("a.ogg", lambda path: cut_short(path, 0.9, 9.0, "OPUS"), "is cut short after "),
    "a truncated FLAC": ("a.flac", lambda path: cut_short(path, 0.7, 9.0), "damaged after"),
    "a FLAC cut between frames": ("a.flac", cut_between_frames, "is cut short after "),
    "a NaN sample": ("a.wav", lambda path: with_sample(path, np.nan), "sample 30000 is not a number"),
}


@pytest.mark.parametrize(("name", "write", "words"), BROKEN.values(), ids=BROKEN)
def test_what_comes_before_the_damage_is_heard_and_the_damage_is_named(name, write, words, kwsd, models, tmp_path):
    write(tmp_path / name)
    result = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, name)
    result.refused(IO, f"{name}: {words}")
    assert [(event["type"], event["keyword"]) for event in result.events] == [("detection", "yes")]


@pytest.mark.parametrize("name", ["2024-02-31", "2024-02-28"])
def test_a_date_is_a_word_like_others(name, kwsd, tmp_path):
    shown = kwsd("check", "--config", write_config(tmp_path, f"streams: [{{source: microphone, name: {name}}}]\n"))
    assert shown.code == 0 and f"name: {name}" in shown.out.replace("'", ""), shown.err


NOT_THERE = {
    "a channel of a recording": (
        f"streams: [{{source: file, path: {DEMO}, channel: 3}}]",
        NO_INPUT,
        "has 1 channels, no channel 3; choose",
    ),
    "a recording": ("streams: [{source: file, path: nowhere.wav}]", NO_INPUT, "nowhere.wav: no such file"),
    "a FIFO": ("streams: [{source: pcm, path: nowhere}]", NO_INPUT, "nowhere: no such file or FIFO; create it"),
    "a secret": ("listen: {on: ['unix:in'], token_file: nowhere}", CONFIG, "listen.token_file: ", "no such file"),
    "a secret of the page": ("http: {on: ['unix:web'], token_file: no}", CONFIG, "http.token_file: ", "no such file"),
    "a group": ("sinks: {socket: {group: nobodys}}", CONFIG, "sinks.socket.group: there is no group 'nobodys'"),
}


@pytest.mark.parametrize(("config", "code", "words"), [(c, n, w) for c, n, *w in NOT_THERE.values()], ids=NOT_THERE)
def test_check_refuses_what_the_daemon_would(kwsd, tmp_path, config, code, words):
    (tmp_path / "kwsd.yaml").write_text(f"{config}\n")
    kwsd("check", "--config", "kwsd.yaml").refused(code, *words)


def test_what_check_shows_reads_back_to_the_same(kwsd, models, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/my.pt").write_bytes((models / "good.pt").read_bytes())
    (tmp_path / "conf/kwsd.yaml").write_text("model: my.pt\n")
    shown = kwsd("check", "--config", "conf/kwsd.yaml")
    (tmp_path / "conf/shown.yaml").write_text(shown.out)
    assert kwsd("check", "--config", "conf/shown.yaml").out == shown.out and f"{tmp_path}/conf/my.pt" in shown.out


def test_a_locale_that_lacks_a_letter_keeps_nothing_from_being_said(kwsd, models, tmp_path):
    write_sound(tmp_path / "да é.wav", beep())
    latin = {"PYTHONIOENCODING": "latin-1"}
    shown = kwsd("check", "--set", "streams=[{source: pcm, name: кухня, path: '-'}]", more=latin)
    assert yaml.safe_load(shown.out)["streams"][0]["name"] == "кухня"
    heard = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, "да é.wav", more=latin)
    assert heard.code == 0 and heard.events[0]["stream"] == "да é.wav"
    assert "internal error" not in kwsd("doctor", "--set", "streams=[{source: file, path: x.wav}]", more=latin).err


def test_check_does_not_look_for_what_systemd_will_give_the_service(kwsd, tmp_path):
    given = "$CREDENTIALS_DIRECTORY/secret"
    (tmp_path / "kwsd.yaml").write_text(
        f"listen: {{on: ['unix:in'], token_file: {given}}}\n"
        f"sinks: {{mqtt: {{broker: 'mqtt://h', user_file: {given}, password_file: {given}}}}}\n"
        f"hooks: [{{post: 'http://h/', token_file: {given}}}]\n"
    )
    assert kwsd("check", "--config", "kwsd.yaml").code == 0


@pytest.mark.parametrize("promised", [0xFFFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_wav_of_unknown_length_as_pipes_leave_it_is_heard_to_its_end(promised, kwsd, models, tmp_path):
    path = write_sound(tmp_path / "a.wav", beep(seconds=2.0))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = promised.to_bytes(4, "little")
    content[4:8] = min(promised + 36, 0xFFFFFFFF).to_bytes(4, "little")
    path.write_bytes(content)
    result = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, path)
    assert result.code == 0 and "cut short" not in result.err and result.events


def test_a_flac_of_unknown_length_as_pipes_leave_it_is_heard_to_its_end(kwsd, tmp_path):
    content = bytearray(DEMO.read_bytes())
    content[21] &= 0xF0  # STREAMINFO: how many samples, and their checksum
    content[22:42] = bytes(20)
    (tmp_path / "a.flac").write_bytes(content)
    for command in (("replay",), ("run", "--source")):
        result = kwsd(*command, "a.flac")
        assert result.code == 0, result.err
        assert result.types.count("detection") == 10


def test_an_aiff_of_unknown_length_is_not_cut_short(kwsd, models, tmp_path):
    path = write_sound(tmp_path / "a.aiff", beep(seconds=2.0))
    content = bytearray(path.read_bytes())
    at = content.index(b"SSND") + 4
    content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    result = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, path)
    assert result.code == 0 and result.types == ["detection"], result.err


@pytest.mark.parametrize("rate", [10, 2**31 - 1])
def test_a_rate_that_cannot_be_right_is_named(rate, kwsd, models, tmp_path):
    path = write_sound(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path.write_bytes(content)
    for command in (("replay",), ("run", "--source"), ("check", "--set")):
        last = path if command[0] != "check" else "streams=[{source: file, path: a.wav}]"
        result = kwsd(*command, last, "--model", models / "good.pt")
        result.refused(NO_INPUT, f"a.wav: {rate} samples a second cannot be right")


def test_what_a_recording_says_of_itself_does_not_make_it_cut_short(kwsd, models, tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", RATE, 1) as file:
        file.comment = "it should be 5 (should be 6)"
        file.write(beep(seconds=2.0))
    result = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, tmp_path / "a.wav")
    assert result.code == 0 and "cut short" not in result.err


def test_the_daemon_hears_a_truncated_recording_to_its_end_and_says_so(kwsd, models, tmp_path):
    path = tmp_path / "a.wav"
    cut_short(path, 0.9)
    result = kwsd("run", "--model", models / "good.pt", *HEARS_ALL, "--source", path)
    result.refused(IO, f"{path}: is cut short after 1.80 s; all there is was listened to")
    assert result.types == ["ready", "detection", "audio_lost", "shutdown"]
    assert "is cut short" in result.events[2]["reason"]


@pytest.mark.parametrize(
    ("more", "whole"), [(b"", True), (b"OggS" + bytes(23), True), (b"TAG" * 40, True), (b"Og", False), (b"OggS", False)]
)
def test_an_ogg_is_whole_unless_it_ends_within_a_page(more, whole, tmp_path):
    path = write_sound(tmp_path / "a.ogg")
    path.write_bytes(path.read_bytes() + more)
    with open_recording(path) as recording:
        assert is_truncated(recording, recording.frames) is not whole


UNUSABLE = {
    "an empty file": (lambda p: p.write_bytes(b""), "is empty (0 bytes); record it again"),
    "a file without samples": (lambda p: write_sound(p, beep()[:0]), "holds no samples"),
    "half a header": (lambda p: p.write_bytes(write_sound(p).read_bytes()[:30]), "not readable as audio", "use WAV"),
    "text": (lambda p: p.write_text("hello\n"), "not readable as audio", "use WAV, FLAC or Ogg"),
    "a folder": (lambda p: p.mkdir(), "is a folder; name a WAV, FLAC or Ogg file"),
    "nothing": (lambda _: None, "no such file"),
}  # fmt: skip


@pytest.mark.parametrize(("write", "words"), [(c[0], c[1:]) for c in UNUSABLE.values()], ids=UNUSABLE)
def test_a_file_that_is_no_recording_is_refused(write, words, kwsd, models, tmp_path):
    path = tmp_path / "a.wav"
    write(path)
    kwsd("run", "--model", models / "good.pt", "--source", path).refused(NO_INPUT, f"{path}: ", *words)


def test_replay_refuses_a_bad_file_before_it_begins_with_the_good_ones(kwsd, models, tmp_path):
    write_sound(tmp_path / "a.wav")
    (tmp_path / "b.wav").touch()
    result = kwsd("replay", "--model", models / "good.pt", *HEARS_ALL, "a.wav", "b.wav")
    result.refused(NO_INPUT, "b.wav: is empty (0 bytes); record it again")
    assert result.out == ""


def test_raw_samples_are_refused_where_a_recording_is_wanted(kwsd, tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(64000))
    for command in (
        ("replay", "a.raw"),
        ("run", "--source", "a.raw"),
        ("record", "words", "stop", "--source", "a.raw"),
    ):
        kwsd(*command).refused(
            NO_INPUT, "a.raw: raw samples do not say their rate; make it a WAV, or pipe it into kwsd"
        )


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "typed",
    [
        ("--debug", "--config", "nowhere.yaml"),
        ("--debug", "check", "--config", "nowhere.yaml"),
        ("check", "--config", "nowhere.yaml", "--debug"),
        ("ctl", "status", "--socket", "nowhere", "--debug"),
    ],
    ids=" ".join,
)
def test_where_it_went_wrong_is_shown_to_whoever_asks(typed, kwsd):
    result = kwsd(*typed)
    assert result.code in (NO_INPUT, UNAVAILABLE) and "Traceback" in result.err and "kwsd: nowhere" in result.err


def test_a_stream_may_be_called_like_an_option(kwsd):
    kwsd("ctl", "--socket", "nowhere", "mute", "--", "--debug").refused(UNAVAILABLE, "nowhere: no kwsd answers there")


@pytest.mark.parametrize("typed", [("check", "--deb"), ("--conf=x",), ("ctl", "watch", "--score")], ids=" ".join)
def test_half_an_option_is_none(typed, kwsd):
    result = kwsd(*typed)
    assert result.code == USAGE and f"unrecognized arguments: {typed[-1]}" in result.err


# --- standard input and output ------------------------------------------------------------------------------


def test_stdin_that_ends_at_once_is_an_error_and_nothing_is_made_up(kwsd, models):
    result = kwsd("run", "--model", models / "good.pt", "--source", "-", stdin=subprocess.DEVNULL)
    result.refused(NO_INPUT, "stdin: ended before a single sample came; pipe audio into it")
    assert result.types == ["audio_lost", "shutdown"], "not ready: no audio ever reached the model"


def test_stdin_that_was_never_open_is_an_error(kwsd, models):
    result = kwsd("run", "--model", models / "good.pt", "--source", "-", under=shell('exec "$@" <&-'))
    result.refused(NO_INPUT, "stdin: is closed; pipe audio into kwsd, e.g. arecord")


def test_an_odd_number_of_bytes_is_heard_to_the_last_whole_sample(kwsd, models):
    result = kwsd("run", "--model", models / "good.pt", *HEARS_ALL, "--source", "-", data=pcm(beep()) + b"\x07")
    assert result.code == 0 and "Traceback" not in result.err
    assert result.types == ["ready", "detection", "shutdown"]
    assert len(re.findall(r"stdin: ended inside a sample \(1 of 2 bytes\); the rest was listened to", result.err)) == 1


def test_a_fifo_that_is_not_there_is_named_with_what_to_do(kwsd, models, tmp_path):
    setting = f"streams=[{{source: pcm, path: {tmp_path}/pipe}}]"
    result = kwsd("run", "--model", models / "good.pt", "--set", setting)
    result.refused(NO_INPUT, f"{tmp_path}/pipe: no such file or FIFO; create it with mkfifo")


def test_a_reader_that_goes_ends_the_daemon_quietly(kwsd, models, tmp_path):
    beeps = np.concatenate([beep()] * 20)
    (tmp_path / "beeps.raw").write_bytes(pcm(beeps))
    script = '{ "$@"; echo $? > code; } < beeps.raw | head -1'
    result = kwsd("run", "--model", models / "good.pt", *HEARS_ALL, "--source", "-", under=shell(script))
    assert result.types == ["ready"]
    assert (tmp_path / "code").read_text() == "0\n"
    assert "kwsd: stopped: " in result.err and "Traceback" not in result.err


@pytest.mark.parametrize("command", [("check",), ("replay", "a.wav"), ("bench", "--seconds", "1")], ids=" ".join)
def test_a_full_disk_under_stdout_is_an_error(command, kwsd, models, tmp_path):
    write_sound(tmp_path / "a.wav")
    with Path("/dev/full").open("w") as full:
        result = kwsd(*command, "--model", models / "good.pt", *HEARS_ALL, stdout=full, timeout=100)
    result.refused(IO, "stdout: cannot be written (No space left on device)")


def test_a_full_disk_under_the_events_ends_the_daemon_and_says_why(kwsd, models):
    with Path("/dev/full").open("w") as full:
        options = {"data": pcm(beep()), "stdout": full}
        result = kwsd("run", "--model", models / "good.pt", *HEARS_ALL, "--source", "-", **options)
    result.refused(IO, "stdout: cannot be written (No space left on device)")


def test_with_stdout_closed_events_land_in_no_other_file(kwsd, models):
    arguments = ("run", "--model", models / "good.pt", *HEARS_ALL, "--source", "-")
    result = kwsd(*arguments, data=pcm(beep()), under=shell('exec "$@" >&-'))
    assert (result.code, result.out) == (0, "")
    assert "Traceback" not in result.err and "stopped: end of audio" in result.err


def test_with_stderr_closed_an_error_does_not_land_in_the_data(kwsd):
    result = kwsd("check", "--model", "nowhere.pt", under=shell('exec "$@" 2>&-'))
    assert (result.code, result.out, result.err) == (NO_INPUT, "", "")


def test_with_stdout_closed_a_command_still_ends_well(kwsd, models):
    result = kwsd("check", "--model", models / "good.pt", under=shell('exec "$@" >&-'))
    assert (result.code, result.out, result.err) == (0, "", "")


# --- the socket ---------------------------------------------------------------------------------------------


def listen_at(path, kwsd, models, **options):
    place = ("--set", f"sinks.socket.path={path}")
    return kwsd("run", "--model", models / "good.pt", *HEARS_ALL, "--source", "-", *place, **options)


PLACES = {
    "a missing folder": ("nowhere/events.sock", "the folder {0}/nowhere is not there; create it"),
    "a file as folder": ("file/events.sock", "the folder {0}/file is not there; create it"),
    "a file": ("file", "is in the way and no socket; remove it or name another path"),
    "a folder": ("folder", "is in the way and no socket; remove it or name another path"),
    "a path too long": (f"{'x' * 120}.sock", "is too long for a socket; name a shorter path"),
}


@pytest.mark.parametrize(("name", "words"), PLACES.values(), ids=PLACES)
def test_a_place_where_no_socket_can_be_is_named_with_what_to_do(name, words, kwsd, models, tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    result = listen_at(tmp_path / name, kwsd, models)
    result.refused(CONFIG, f"sinks.socket.path: {tmp_path / name}: ", words.format(tmp_path))
    assert (tmp_path / "file").read_text() == "precious"


@pytest.fixture
def obedient(tmp_path):
    """A prefix under which root, too, may not write into `tmp_path/forbidden` nor read `tmp_path/secret`."""
    under = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    (tmp_path / "forbidden").mkdir(mode=0o500)
    (tmp_path / "secret").write_text("something")
    (tmp_path / "secret").chmod(0)
    if under and shutil.which(under[0]) is None:
        pytest.skip("root may write anywhere, and setpriv is not installed")
    if ended([*under, "mkdir", "forbidden/try"], tmp_path).code == 0:
        pytest.skip("we may write anywhere, and cannot be kept from it")
    return under


def test_a_socket_without_permission_is_refused(obedient, kwsd, models, tmp_path):
    path = tmp_path / "forbidden/events.sock"
    result = listen_at(path, kwsd, models, under=obedient)
    result.refused(NO_PERMISSION, f"sinks.socket.path: {path}: no permission; choose a folder you may write to")


def test_a_runtime_folder_without_permission_is_refused(obedient, kwsd, models, tmp_path):
    result = listen_at("auto", kwsd, models, under=obedient, more={"XDG_RUNTIME_DIR": str(tmp_path / "forbidden")})
    result.refused(NO_PERMISSION, "sinks.socket.path: auto: ", "Permission denied", "sinks.socket.enabled: false")


@pytest.mark.parametrize(
    "arguments",
    [("check", "--config"), ("check", "--model"), ("run", "--source")],
    ids=lambda arguments: arguments[1],
)
def test_a_file_we_may_not_read_is_refused(arguments, obedient, kwsd, models, tmp_path):
    more = ("--model", models / "good.pt") if arguments[0] == "run" else ()
    kwsd(*arguments, "secret", *more, under=obedient).refused(
        NO_PERMISSION, "secret: permission denied; make it readable"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("replay", "forbidden/a.wav"), NO_PERMISSION, "forbidden/a.wav: permission denied; make its folder readable"),
        (("run", "--source", "forbidden/a.wav"), NO_PERMISSION, "forbidden/a.wav: permission denied"),
        (("check", "--model", "forbidden/a.onnx"), NO_PERMISSION, "forbidden/a.onnx: permission denied"),
        (("check", "--set", "streams=[{source: pcm, path: forbidden/a}]"), NO_PERMISSION, "forbidden/a: permission"),
        (("check", "--set", "hooks=[{run: [./forbidden/a]}]"), CONFIG, "hooks.0.run: ./forbidden/a is not there, or"),
        (("replay", "a" * 300), NO_INPUT, "File name too long"),
        (("check", "--set", f"model={'a' * 300}"), IO, "File name too long"),
    ],
    ids=["replay", "source", "model", "pcm", "hook", "long name", "long model"],
)
def test_what_lies_in_a_folder_we_may_not_enter_is_refused(arguments, code, words, obedient, kwsd, tmp_path):
    (tmp_path / "forbidden").chmod(0)
    kwsd(*arguments, under=obedient).refused(code, words)


@pytest.mark.parametrize(
    ("report", "code", "words"),
    [
        ("forbidden/mine.html", NO_INPUT, "nowhere.wav"),  # which is written in place: no new file is needed
        ("forbidden/new.html", IO, "forbidden/new.html: cannot be written (Permission denied); name another place"),
        ("kept.html", IO, "kept.html: cannot be written (Permission denied); name another place"),
        ("pages.html", IO, "pages.html: cannot be written (Is a directory); name another place"),
    ],
)
def test_a_report_is_refused_before_the_work_only_where_it_cannot_be_written(
    report, code, words, obedient, kwsd, tmp_path
):
    (tmp_path / "forbidden").chmod(0o700)
    (tmp_path / "forbidden/mine.html").write_text("an old one")
    (tmp_path / "forbidden").chmod(0o500)
    (tmp_path / "kept.html").touch(0o400)
    (tmp_path / "pages.html").mkdir()
    kwsd("eval", "--model", "commands", "--stream", "nowhere.wav", "--report", report, under=obedient).refused(
        code, words
    )


def test_a_live_daemon_keeps_its_socket_and_a_dead_one_leaves_it(kwsd, models, environment, tmp_path):
    path = tmp_path / "events.sock"
    arguments = ("--model", str(models / "good.pt"), "--source", "-", "--set", f"sinks.socket.path={path}")
    with Running(*arguments, environment=environment) as daemon:
        daemon.process.stdin.write(pcm(beep()))
        daemon.process.stdin.flush()
        daemon.wait_for("ready")
        listen_at(path, kwsd, models).refused(
            UNAVAILABLE, f"{path}: another kwsd answers there; stop it or name another"
        )
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(path))
            assert b'"hello"' in reader.recv(4096), "the first daemon's socket was not harmed"
        daemon.process.kill()
        daemon.process.wait()
    assert path.is_socket(), "killed, it could not clean up"
    result = listen_at(path, kwsd, models, data=pcm(beep()))
    assert result.code == 0 and result.types == ["ready", "detection", "shutdown"]
    assert not path.exists()


# --- ending -------------------------------------------------------------------------------------------------


def catches_sigterm(process):
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def start_and_stop(models, environment, wait):
    """`kwsd run`, SIGTERM when `wait(process)` returns; the result, and how long it took to end."""
    command = [*COMMAND, "run", "--model", models / "good.pt", "--source", "-"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        first = wait(process)
        begun = time.monotonic()
        still_open = os.dup(process.stdin.fileno())  # `communicate` closes it: the end of the audio might come first
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            os.close(still_open)
        took = time.monotonic() - begun
    return Result(process.returncode, out.decode(), (first + err).decode()), took


def test_sigterm_before_anything_was_set_up_ends_it_well(models, environment):
    def wait(process):
        deadline = time.monotonic() + PATIENCE_S
        while not catches_sigterm(process):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return b""

    result, took = start_and_stop(models, environment, wait)
    assert result.code == 0 and took < AT_ONCE_S
    # Silent; or, where we were slower than it, it had begun to listen and says that it stops.
    assert result.err == "" or (result.err.endswith("stopped: SIGTERM\n") and "Traceback" not in result.err)


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.7, 1.5])
def test_sigterm_while_the_model_is_loaded_ends_it_well(delay, models, environment):
    def wait(process):
        line = process.stderr.readline()
        assert b"events on" in line
        time.sleep(delay)
        return line

    result, took = start_and_stop(models, environment, wait)
    assert result.code == 0 and took < AT_ONCE_S
    assert [event["type"] for event in result.events] == ["shutdown"] and result.events[0]["reason"] == "SIGTERM"
    assert "Traceback" not in result.err and "stopped: SIGTERM" in result.err
    assert not list(Path(environment["XDG_RUNTIME_DIR"]).glob("kwsd/*.sock"))


@pytest.mark.parametrize("delay", [0.02, 0.08])
def test_sigterm_before_python_has_begun_is_at_least_quiet(delay, models, environment):
    def wait(process):
        time.sleep(delay)
        return b""

    result, took = start_and_stop(models, environment, wait)
    assert result.code in (0, -signal.SIGTERM) and took < AT_ONCE_S
    assert "Traceback" not in result.err


def ending(models, tmp_path):
    """`kwsd run` whose ending takes two seconds, as a hook does not heed SIGTERM; and that hook's sign of life."""
    sign = tmp_path / "ending"
    hook = f"{{shell: 'trap \"\" TERM; touch {sign}; sleep 60', events: [shutdown]}}"
    return Running("--model", str(models / "good.pt"), "--source", "-", "--set", f"hooks=[{hook}]"), sign


def wait_until_there(path):
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sigterm_while_it_ends_by_itself_cuts_nothing_short(models, tmp_path):
    running, sign = ending(models, tmp_path)
    with running as daemon:
        daemon.process.stdin.write(pcm(beep()))
        daemon.process.stdin.close()
        wait_until_there(sign)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.finish() == 0
    assert daemon.events[-1]["reason"] == "end of audio"


def test_a_second_sigterm_ends_it_at_once(models, tmp_path):
    running, sign = ending(models, tmp_path)
    with running as daemon:
        daemon.wait_for_log("listening")
        daemon.process.send_signal(signal.SIGTERM)
        wait_until_there(sign)
        time.sleep(0.2)  # so that they are two
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.finish() == 128 + signal.SIGTERM


# --- training -----------------------------------------------------------------------------------------------

CLIPS = "SpeechCommands/speech_commands_v0.02"
TRAIN = ("train", "--model", "simplenet", "--labels", "yes,no", "--device", "cpu", "--data", "data")


def make_speech_commands(root):
    """Speech Commands as small as it can be: two words, six speakers, noise for speech."""
    random = np.random.default_rng(3)
    lists = {0: [], 1: []}
    for word in ("yes", "no"):
        for speaker in range(6):
            clip = root / CLIPS / word / f"{speaker:08x}_nohash_0.wav"
            clip.parent.mkdir(parents=True, exist_ok=True)
            write_sound(clip, 0.1 * random.standard_normal(RATE))
            lists.get(speaker, []).append(f"{word}/{clip.name}")
    (root / CLIPS / "validation_list.txt").write_text("\n".join(lists[0]) + "\n")
    (root / CLIPS / "testing_list.txt").write_text("\n".join(lists[1]) + "\n")
    (root / CLIPS / "_background_noise_").mkdir()
    write_sound(root / CLIPS / "_background_noise_/hum.wav", 0.01 * random.standard_normal(4 * RATE))


@pytest.fixture
def data(tmp_path):
    make_speech_commands(tmp_path / "data")
    return tmp_path / "data" / CLIPS


def test_corrupt_clips_are_named_skipped_and_counted(kwsd, data, tmp_path):
    garbage, short, empty = (data / f"yes/0000000{speaker}_nohash_0.wav" for speaker in (2, 3, 4))
    garbage.write_bytes(b"RIFF and then nothing of the kind")
    short.write_bytes(short.read_bytes()[:9000])
    empty.write_bytes(b"")
    result = kwsd(*TRAIN, "--epochs", "1", "--out", "a.ckpt")
    assert result.code == 0 and "Traceback" not in result.err
    lines = result.err.splitlines()
    assert all(line.startswith("kwsd: ") for line in lines)
    for clip, what in ((garbage, "not readable as audio"), (short, "is cut short"), (empty, "is empty")):
        assert [line for line in lines if line.startswith(f"kwsd: skipped {clip}: {what}")] != []
    assert "kwsd: training: 3 of 8 clips skipped" in lines
    assert "kwsd: training: 5 clips (no 4, yes 1)" in lines
    assert (tmp_path / "a.ckpt").exists()


def last_line_refused(result, code, *words):
    """As `refused`, where lines about progress came before."""
    assert "Traceback" not in result.err, result.err
    *_, last = result.err.splitlines()
    assert result.code == code and [word for word in words if word not in last] == [], result.err


def test_a_disk_that_fills_while_checkpointing_leaves_the_checkpoint_before(kwsd, data, tmp_path):
    assert kwsd(*TRAIN, "--epochs", "1", "--out", "out/a.ckpt").code == 0
    (tmp_path / "out/a.csv").unlink()
    (tmp_path / "out/a.png").unlink()
    before = (tmp_path / "out/a.ckpt").read_bytes()
    train = (*TRAIN, "--epochs", "2", "--out", "out/a.ckpt", "--resume")
    words = ("out/a.ckpt: cannot write the checkpoint (", "the one before is kept; make room, or choose another --out")
    script = """
        mkdir disk && mount -t tmpfs -o size=SIZE none disk && cp out/a.ckpt disk || exit
        mount --bind disk out || exit
        "$@"; code=$?
        ls -A disk > left; cmp disk/a.ckpt before && exit $code
    """.replace("SIZE", str(len(before) * 3 // 2))
    (tmp_path / "before").write_bytes(before)
    disk = ("unshare", "--map-root-user", "--mount", *shell(script))
    if ended([*disk, "true"], tmp_path).code == 0:
        (tmp_path / "disk").rmdir()
        last_line_refused(kwsd(*train, under=disk), IO, *words)
        assert (tmp_path / "left").read_text() == "a.ckpt\n"
    else:  # no disk of our own to fill: the next best is a limit on the size of a file, here of half of what it takes
        last_line_refused(kwsd(*train, under=shell(f'ulimit -f {len(before) // 2048}; exec "$@"')), IO, *words)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.ckpt"]
        assert (tmp_path / "out/a.ckpt").read_bytes() == before


def test_a_checkpoint_in_a_forbidden_folder_is_refused(obedient, kwsd, data):
    result = kwsd(*TRAIN, "--epochs", "1", "--out", "forbidden/a.ckpt", under=obedient)
    last_line_refused(result, NO_PERMISSION, "forbidden/a.ckpt: cannot write a checkpoint (Permission denied); choose")


# --- what is right in itself, and does not fit what there is ---


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("keywords:\n  stop: {}\n  stopp: {}\n", ("kwsd.yaml:4: keywords.stopp: the model does not know it", "stop")),
        ("keywords: [stop,\n  stopp]\n", ("kwsd.yaml:2: keywords.stopp: the model does not know it",)),
        ("hooks:\n  - run: [nope-nope]\n", ("kwsd.yaml:3: hooks.0.run: nope-nope is not there",)),
        ("listen:\n  on: ['unix:a']\n  group: wombats\n", ("kwsd.yaml:4: listen.group: there is no group 'wombats'",)),
    ],
)
def test_what_does_not_fit_is_named_with_its_line_by_check_run_and_doctor(kwsd, tmp_path, lines, words):
    (tmp_path / "kwsd.yaml").write_text(f"streams: [{{source: pcm}}]\n{lines}")
    for command in ("check", "run"):
        kwsd(command, "--config", "kwsd.yaml").refused(CONFIG, *words)
    assert words[0] in kwsd("doctor", "--config", "kwsd.yaml").out


@pytest.mark.parametrize("setting", ["keywords=[stopp]", "keywords.stopp.threshold=0.4"])
def test_so_is_what_the_command_line_set(kwsd, setting):
    kwsd("check", "--set", setting).refused(CONFIG, f"--set {setting}: keywords.stopp: the model does not know it")


def test_a_recording_in_a_fifo_is_refused_for_what_it_is(kwsd, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    kwsd("replay", "pipe").refused(NO_INPUT, "pipe: is a FIFO; write the recording into a file")
