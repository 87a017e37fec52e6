"""`kwsd synthesise`: real synthesisers say words, which kwsd hears and training takes."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from kwsd.audio_format import SAMPLE_RATE
from kwsd.errors import IO, UNAVAILABLE, USAGE
from kwsd.synthesis import ENGLISH, VARIANTS
from kwsd.training.dataset import load_words

MISSING = [program for program in ("espeak-ng", "flite") if shutil.which(program) is None]
needs_voices = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}; make test installs it")


def installed():
    return sum(len(names) for program, names in ENGLISH.items() if shutil.which(program))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.wav")}


@needs_voices
def test_kwsd_hears_what_nearly_every_voice_says(kwsd, tmp_path):
    result = kwsd("synthesise", "said", "stop", "--count", "1")
    assert (result.code, result.out) == (0, f"stop: {installed()} recordings\n")
    assert result.err == f"kwsd: said: {installed()} recordings of 1 words in {installed()} voices\n"
    files = sorted((tmp_path / "said/stop").iterdir())
    for file in files:
        samples, rate = soundfile.read(file)
        assert rate == SAMPLE_RATE and 0.3 < samples.size / rate < 1.5 and 0.2 < np.abs(samples).max() < 0.75
    heard = [event["keyword"] for event in kwsd("replay", *files).events if event["type"] == "detection"]
    assert set(heard) == {"stop"} and len(heard) >= 0.75 * installed()


@needs_voices
def test_the_same_words_give_the_same_files_and_each_time_is_another(kwsd, tmp_path):
    for folder in ("one", "two"):
        assert kwsd("synthesise", folder, "hey marvin", "go", "--count", "2").code == 0
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len(set(one.values())) == len(one) == 2 * 2 * installed()


@needs_voices
def test_training_takes_each_voice_for_a_speaker(kwsd, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kwsd("synthesise", "said", "marvin", "--count", "1")
    clips = [load_words(tmp_path / "said", subset) for subset in ("training", "validation", "testing")]
    assert {word for some in clips for word in some.words} == {"marvin"}
    assert len({speaker for some in clips for speaker in some.speakers}) == installed()


@needs_voices
def test_other_languages_are_said_by_the_voices_of_espeak(kwsd, tmp_path):
    assert kwsd("synthesise", "said", "licht", "--count", "1", "--language", "de").code == 0
    names = {path.name for path in (tmp_path / "said/licht").iterdir()}
    assert names == {f"espeak-de{variant.replace('+', '-')}_nohash_0.wav" for variant in VARIANTS}


@needs_voices
def test_a_language_that_nobody_speaks_is_refused(kwsd):
    kwsd("synthesise", "said", "licht", "--language", "xx").refused(UNAVAILABLE, "espeak-ng", "xx", "--voices lists")


@needs_voices
def test_a_synthesiser_without_its_voices_is_left_out(kwsd, tmp_path):
    (tmp_path / "bin").mkdir()
    broken = tmp_path / "bin/flite"
    broken.write_text("#!/bin/sh\necho 'no such voice' >&2; exit 1\n")
    broken.chmod(0o755)
    result = kwsd("synthesise", "said", "go", "--count", "1", more={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"})
    assert result.code == 0
    assert "one voice less: flite cannot speak as kal: no such voice; install its voices" in result.out
    assert not list((tmp_path / "said/go").glob("flite-*"))
    assert len(list((tmp_path / "said/go").iterdir())) == installed() - len(ENGLISH["flite"])


def test_without_a_synthesiser_it_says_which_to_install(kwsd, tmp_path):
    result = kwsd("synthesise", "said", "marvin", more={"PATH": str(tmp_path)})
    result.refused(UNAVAILABLE, "no speech synthesiser", "apt install espeak-ng flite")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["a/b"], "'a/b': cannot be a label"),
        (["_unknown_"], "_unknown_: is no word"),
        (["go", "go"], "go: is given more than once"),
        (["go", "--count", "0"], "--count 0: at least 1"),
    ],
)
def test_what_cannot_be_said_is_told_before_anything_is(kwsd, tmp_path, arguments, told):
    kwsd("synthesise", "said", *arguments).refused(USAGE, told)
    assert not (tmp_path / "said").exists()


@needs_voices
def test_a_folder_that_cannot_be_written_is_named(kwsd, tmp_path):
    (tmp_path / "said").write_text("")
    kwsd("synthesise", "said", "go", "--count", "1").refused(IO, "said/go/", "cannot be written", "another folder")
