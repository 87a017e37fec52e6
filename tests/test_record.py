"""`kwsd record`: what is said is cut out whole, at a real microphone and out of a recording."""

import contextlib
import subprocess
import threading
import time

import numpy as np
import pytest
import soundfile
from running import HEED_CTRL_C, KWSD, clean_environment
from sound_server import missing

from kwsd.audio_format import SAMPLE_RATE
from kwsd.errors import IO, NO_INPUT, USAGE
from kwsd.record import Cutter
from kwsd.recording import DEMO, read_recording
from kwsd.training.dataset import load_words
from kwsd.training.truth import read_truth

needs_sound = pytest.mark.skipif(
    bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it"
)
SPEECH = read_recording(DEMO)


def noise(seconds, dbfs=-70.0, seed=0):
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    return (samples * 10 ** (dbfs / 20)).astype(np.float32)


def cut(*parts):
    cutter = Cutter()
    return [said for part in parts for said in cutter.feed(part)]


def test_every_word_of_a_recording_is_cut_out_whole(kwsd, tmp_path):
    result = kwsd("record", "words", "marvin", "--source", DEMO, "--speaker", "ann")
    assert result.code == 0 and result.err == "kwsd: words: 10 of marvin more\n"
    files = [tmp_path / f"words/marvin/ann_nohash_{n}.wav" for n in range(10)]
    assert sorted(files) == sorted((tmp_path / "words/marvin").iterdir())
    for file, word in zip(files, read_truth(DEMO), strict=True):
        samples, rate = soundfile.read(file, dtype="float32")
        said = SPEECH[round(word.start_s * SAMPLE_RATE) : round(word.end_s * SAMPLE_RATE)]
        found = np.correlate(samples, said, "valid").argmax()
        assert rate == SAMPLE_RATE and soundfile.info(file).subtype == "PCM_16"
        assert np.abs(samples[found : found + said.size] - said).max() < 1e-4
        assert 0.15 < found / rate < 0.5 and 0.15 < samples.size / rate - (found / rate + said.size / rate) < 0.5


def test_what_it_keeps_is_trained_on(kwsd, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kwsd("record", "words", "marvin", "--source", DEMO)
    clips = [load_words(tmp_path / "words", subset) for subset in ("training", "validation", "testing")]
    assert sum(map(len, clips)) == 10 and {word for some in clips for word in some.words} == {"marvin"}


def test_a_word_that_finds_no_room_leaves_no_half_of_it(kwsd, tmp_path):
    result = kwsd("record", "words", "marvin", "--source", DEMO, under=("prlimit", "--fsize=10000"))
    result.refused(IO, "words/marvin/", "cannot be written", "make room")
    assert list((tmp_path / "words/marvin").iterdir()) == []


def test_a_recording_in_which_nobody_says_a_word_is_an_error(kwsd, tmp_path):
    soundfile.write(tmp_path / "silence.wav", noise(5), SAMPLE_RATE)
    kwsd("record", "words", "marvin", "--source", "silence.wav").refused(NO_INPUT, "silence.wav: nobody says a word")


def test_what_there_is_is_kept(kwsd, tmp_path):
    for _ in range(2):
        kwsd("record", "words", "marvin", "--source", DEMO, "--speaker", "ann", "--count", "2")
    assert len(list((tmp_path / "words/marvin").iterdir())) == 4


@pytest.mark.parametrize("size", [37, 160, 1600, 50_000])
def test_in_whatever_pieces_audio_comes_the_same_is_cut_out(size):
    whole = cut(SPEECH)
    pieces = cut(*(SPEECH[at : at + size] for at in range(0, SPEECH.size, size)))
    assert len(whole) == 10 == len(pieces)
    assert all(np.array_equal(one.samples, other.samples) for one, other in zip(whole, pieces, strict=True))


@pytest.mark.parametrize(
    ("sound", "problem"),
    [
        (noise(0.5, -20.0), ""),
        (noise(0.03, -20.0), None),
        (noise(0.5, -62.0), None),
        (noise(2.0, -20.0), "too long for a word"),
        (np.sign(noise(0.5, -20.0)), "too loud, so that it is clipped"),
    ],
    ids=["a word", "a click", "a breath", "a sentence", "clipped"],
)
def test_only_what_may_be_a_word_is_kept(sound, problem):
    said = cut(noise(2.0), sound, noise(1.0, seed=1))
    assert [one.problem.partition(";")[0] for one in said] == ([] if problem is None else [problem])
    assert all(abs(one.took_s - sound.size / SAMPLE_RATE) < 0.05 for one in said if not problem)


def test_a_noise_that_stays_is_told_and_then_belongs_to_the_room():
    said = cut(noise(2.0), noise(8.0, -40.0), noise(0.5, -15.0), noise(1.0, -40.0, seed=2))
    assert said[0].problem.startswith("too long") and said[-1].problem == "" and len(said) <= 3


@pytest.mark.parametrize(
    ("asked", "code", "complaint"),
    [
        (("words", "a/b"), USAGE, "'a/b': cannot be a label"),
        (("words", "_silence_"), USAGE, "'_silence_': cannot be a label; write a word, or _unknown_ for others"),
        (("words", "go", "go"), USAGE, "go: is given more than once"),
        (("words", "go", "--speaker", "a/b"), USAGE, "--speaker 'a/b': a name without a slash or _nohash_"),
        (("words", "go", "--speaker", "a_nohash_1"), USAGE, "'a_nohash_1': a name without a slash or _nohash_"),
        (("words", "go", "--count", "0"), USAGE, "--count 0: at least 1"),
        (("words", "go", "stop", "--source", "a.wav"), USAGE, "--source: of which word? name one"),
        (("words", "go", "--source", "a.wav"), NO_INPUT, "a.wav: no such file"),
        (("file", "go", "--source", DEMO), IO, "file: Not a directory; choose another folder"),
    ],
)
def test_what_cannot_be_recorded_is_refused(kwsd, tmp_path, asked, code, complaint):
    (tmp_path / "file").touch()
    kwsd("record", *asked).refused(code, complaint)
    assert [path.name for path in tmp_path.iterdir() if path.name != "runtime"] == ["file"]


# --- at a microphone ---


def recording(server, *arguments):
    return subprocess.Popen(
        [*HEED_CTRL_C, KWSD, "record", "words", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=server.folder, env=server.environment,
    )  # fmt: skip


def speak(server, tmp_path, number):
    """The so manyeth word of the demo."""
    word = read_truth(DEMO)[number]
    start, end = (round(at * SAMPLE_RATE) for at in (word.start_s, word.end_s))
    soundfile.write(tmp_path / "word.wav", np.pad(SPEECH[start:end], 1600), SAMPLE_RATE)
    server.speak(tmp_path / "word.wav")


@contextlib.contextmanager
def saying(server, tmp_path, number):
    """The same, again and again until it is heard."""
    heard = threading.Event()

    def say():
        time.sleep(1.0)  # as somebody does who reads first
        speak(server, tmp_path, number)
        while not heard.wait(5.0):
            speak(server, tmp_path, number)

    speaker = threading.Thread(target=say)
    speaker.start()
    try:
        yield
    finally:
        heard.set()
        speaker.join()


@needs_sound
def test_words_are_asked_for_in_turns_and_kept(server, tmp_path):
    with recording(server, "stop", "yes", "--count", "2", "--speaker", "ann") as process:
        asked = []
        for line in process.stdout:
            if line.startswith("say: "):
                asked.append(line.strip())
                with saying(server, tmp_path, len(asked) - 1):
                    next(line for line in process.stdout if line.endswith(".wav\n"))
        assert process.wait(timeout=20) == 0, process.stderr.read()
    assert asked == ["say: stop (1 of 2)", "say: yes (1 of 2)", "say: stop (2 of 2)", "say: yes (2 of 2)"]
    names = sorted(str(path.relative_to(tmp_path / "words")) for path in (tmp_path / "words").rglob("*.wav"))
    assert names == [f"{word}/ann_nohash_{n}.wav" for word in ("stop", "yes") for n in (0, 1)]


@needs_sound
def test_a_microphone_that_goes_ends_it_with_what_there_is(server, tmp_path):
    with recording(server, "stop", "--count", "2") as process:
        assert process.stdout.readline() == "say: stop (1 of 2)\n"
        with saying(server, tmp_path, 0):
            assert "dBFS" in process.stdout.readline()
        server.kill()
        assert process.wait(timeout=30) == IO
        assert "kwsd: microphone 'default': stopped delivering" in process.stderr.read()
    assert len(list((tmp_path / "words/stop").iterdir())) == 1


@needs_sound
def test_ctrl_c_ends_it(server):
    with recording(server, "stop") as process:
        process.stdout.readline()
        process.send_signal(2)
        assert process.wait(timeout=20) == 130


def test_without_a_microphone_it_says_so(tmp_path):
    nothing = clean_environment(HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path), PULSE_SERVER="unix:/nowhere")
    result = subprocess.run(
        [KWSD, "record", "words", "go"], capture_output=True, text=True, check=False, cwd=tmp_path, env=nothing
    )
    assert result.returncode == NO_INPUT and result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "words").exists()
