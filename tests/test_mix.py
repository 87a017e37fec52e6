"""`kwsd mix`: known words in a long recording, where the .tsv says they are."""

import itertools
import resource
from functools import partial
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_speech_commands as tiny

from kwsd.cli import dispatch
from kwsd.errors import IO, USAGE, AudioError, ConfigError, KwsdError
from kwsd.span import level_dbfs
from kwsd.training.mix import Mixture, mix, write
from kwsd.training.truth import Word, read_truth

RATE = 16_000
WORDS = ("yes", "no")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_words_are_where_the_truth_says(data):
    recording, truth = mix(Mixture(6, WORDS), data, "testing", ())
    assert [word.keyword for word in truth] == ["yes", "no"] * 3
    for word in truth:
        said = recording[int(word.start_s * RATE) : int(word.end_s * RATE)]
        spectrum = np.abs(np.fft.rfft(said))
        loudest = np.fft.rfftfreq(said.size, 1 / RATE)[spectrum.argmax()]
        assert loudest == pytest.approx(tiny.TONES_HZ[word.keyword], abs=10)
        before = recording[int((word.start_s - 1.0) * RATE) : int((word.start_s - 0.1) * RATE)]
        assert level_dbfs(before) < level_dbfs(said) - 20


def test_pauses_keep_to_their_bounds(data):
    _, truth = mix(Mixture(20, WORDS, pause_s=(0.5, 0.75)), data, "testing", ())
    gaps = [after.start_s - before.start_s for before, after in itertools.pairwise(truth)]
    # A clip is a second, and its word begins a third into it.
    assert all(1.5 - 0.05 <= gap <= 1.75 + 0.05 for gap in gaps)


@pytest.mark.parametrize("snr", [20.0, 5.0, -5.0])
def test_the_background_is_as_far_under_the_words_as_asked(data, snr):
    recording, truth = mix(Mixture(10, WORDS, snr_db=snr), data, "testing", ())
    silent = np.ones(recording.size, bool)
    for word in truth:
        silent[int((word.start_s - 0.4) * RATE) : int((word.end_s + 0.7) * RATE)] = False
    assert level_dbfs(recording[silent]) == pytest.approx(-26.0 - snr, abs=1.0)


def test_the_same_seed_gives_the_same_recording_and_another_does_not(data):
    once, again, other = (
        mix(Mixture(5, WORDS, snr_db=10.0, decay_s=0.3, seed=seed), data, "testing", ())[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert once.size != other.size or not np.array_equal(once, other)


def test_reverberation_lets_words_ring_on(data):
    def after_words(decay_s):
        recording, truth = mix(Mixture(6, WORDS, decay_s=decay_s), data, "testing", ())
        return np.mean(
            [level_dbfs(recording[int((w.end_s + 0.1) * RATE) : int((w.end_s + 0.2) * RATE)]) for w in truth]
        )

    assert after_words(0.6) > after_words(0.0) + 10


def test_what_is_written_is_read_back(data, tmp_path):
    recording, truth = mix(Mixture(4, WORDS), data, "testing", ())
    write(recording, truth, tmp_path / "tape.flac")
    assert read_truth(tmp_path / "tape.flac") == truth
    samples, rate = soundfile.read(tmp_path / "tape.flac")
    assert rate == RATE
    np.testing.assert_allclose(samples, recording, atol=1 / 32768)


def test_a_recording_without_truth_says_what_is_missing(tmp_path):
    with pytest.raises(AudioError, match=r"tape\.tsv"):
        read_truth(tmp_path / "tape.wav")


@pytest.mark.parametrize("line", ["1.0\t0.5\tyes", "a\tb\tyes", "1.0\t2.0", "-1\t1\tyes", "1.0\t2.0\t"])
def test_a_line_that_makes_no_sense_is_named(tmp_path, line):
    (tmp_path / "tape.tsv").write_text(f"start_s\tend_s\tkeyword\n0.5\t1.0\tno\n{line}\n")
    with pytest.raises(AudioError, match=r"tape\.tsv:3"):
        read_truth(tmp_path / "tape.wav")


def test_words_are_whole(tmp_path):
    root = tiny.make(tmp_path / "data", words=("yes",))
    for name in (tiny.folder(root) / "testing_list.txt").read_text().split()[1:]:
        tiny.write(tiny.folder(root) / name, np.concatenate([np.zeros(RATE // 2), tiny.tone("yes")])[:RATE])
    _, truth = mix(Mixture(20, ("yes",)), root, "testing", ())
    lengths = {round(word.end_s - word.start_s, 2) for word in truth}
    assert len(lengths) == 1, "only the one clip that has all of its word"


def of_their_own_length(folder, n):
    """Clips of a word, no two of which sound as long."""
    for i in range(n):
        tiny.write(folder / f"up/ann/{i}.wav", tiny.tone("up")[: RATE // 3 + (i + 1) * RATE // 20])
    (folder / "testing_list.txt").write_text("".join(f"up/ann/{i}.wav\n" for i in range(n)))
    return folder


def test_no_recording_comes_again_before_all_have_come(tmp_path):
    folder, said = of_their_own_length(tmp_path / "mine", 6), []
    _, truth = mix(Mixture(12), None, "testing", (), (folder,), say=said.append)
    lengths = [round(word.end_s - word.start_s, 2) for word in truth]
    assert len(set(lengths[:6])) == len(set(lengths[6:])) == 6
    assert lengths[:6] != lengths[6:], "in another order"
    assert said == ["some recordings come several times, and are no further evidence: up 12 times, of 6 recordings"]
    mix(Mixture(6), None, "testing", (), (folder,), say=pytest.fail)


def test_noise_without_a_ratio_is_refused(kwsd, data, tmp_path):
    asked = ("mix", tmp_path / "a.wav", "--data", data, "--noise", tiny.folder(data) / "_background_noise_")
    kwsd(*asked).refused(2, "--noise: goes with --snr")
    assert kwsd(*asked, "--snr", "20", "--count", "2").code == 0


def test_ones_own_words_are_said_alone_or_besides(data, tmp_path, capsys):
    for i in range(2):
        tiny.write(tmp_path / f"mine/up/ann/{i}.wav", tiny.tone("up", seed=i))
    (tmp_path / "mine/testing_list.txt").write_text("up/ann/0.wav\n")
    out = tmp_path / "tape.wav"
    assert dispatch(["mix", str(out), "--words", str(tmp_path / "mine"), "--count", "3"]) == 0
    assert [word.keyword for word in read_truth(out)] == ["up"] * 3
    _, truth = mix(Mixture(4), data, "testing", (), (tmp_path / "mine",))
    assert [word.keyword for word in truth] == ["down", "no", "up", "yes"]


def test_no_words_at_all_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--data, or a folder of --words"):
        dispatch(["mix", str(tmp_path / "tape.wav")])


def test_a_keyword_without_clips_is_named(data):
    with pytest.raises(AudioError, match="marvin"):
        mix(Mixture(2, ("yes", "marvin")), data, "testing", ())


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"words": 0}, "--count 0: at least 1"),
        ({"words": 10**7}, "--count 10000000: with such pauses more than a day; make several"),
        ({"pause_s": (2.0, 1.0)}, "--pause 2 1: from 0 to 3600 s, the shortest first"),
        ({"pause_s": (-1.0, 1.0)}, "--pause -1 1: from 0 to"),
        ({"pause_s": (1.0, inf)}, "--pause 1 inf: from 0 to"),
        ({"pause_s": (0.0, 1e30)}, "--pause 0 1e+30: from 0 to"),
        ({"snr_db": nan}, "--snr nan: from -200 to 200 dB"),
        ({"snr_db": -1e9}, "--snr -1000000000.0: from -200 to 200 dB"),
        ({"decay_s": -0.1}, "--reverb -0.1: 0, or from 0.01 to 60 s"),
        ({"decay_s": nan}, "--reverb nan: 0, or from"),
        ({"decay_s": 1e-5}, "--reverb 1e-05: 0, or from"),
        ({"seed": -1}, "--seed -1: from 0 to 2^63 - 1"),
        ({"seed": 1 << 64}, "--seed 18446744073709551616: from 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(data, wrong, complaint):
    with pytest.raises(ConfigError) as failure:
        mix(Mixture(**({"words": 2, "keywords": WORDS} | wrong)), data, "testing", ())
    assert str(failure.value).startswith(complaint) and failure.value.exit_code == USAGE


@pytest.mark.parametrize("edge", [{"snr_db": 200.0}, {"snr_db": -200.0}, {"decay_s": 0.01}, {"decay_s": 60.0}])
def test_a_mixture_at_the_edge_of_what_can_be_is_made_of_numbers(data, edge):
    recording, _ = mix(Mixture(2, WORDS, **edge), data, "testing", ())
    assert np.isfinite(recording).all()


def test_the_command_writes_both_files(data, tmp_path, capsys):
    out = tmp_path / "tape.wav"
    assert dispatch(["mix", str(out), "--data", str(data), "--count", "3", "--labels", "yes,no"]) == 0
    assert "3 words" in capsys.readouterr().err
    assert len(read_truth(out)) == 3 and soundfile.info(out).samplerate == RATE


def test_a_recording_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="names no file"):
        write(np.zeros(RATE, np.float32), [], Path())


def test_a_word_with_quotes_is_read_back_as_it_is(tmp_path):
    truth = [Word(0.5, 0.9, 'say "hi"')]
    write(np.zeros(RATE, np.float32), truth, tmp_path / "tape.wav")
    assert read_truth(tmp_path / "tape.wav") == truth


def test_what_cannot_be_written_whole_leaves_what_there_was(tmp_path):
    recording = np.random.default_rng(0).normal(0.0, 0.1, 5 * RATE).astype(np.float32)
    (tmp_path / "tape.wav").write_bytes(b"the one before")
    (tmp_path / "tape.tsv").write_bytes(b"and its words")
    for size, samples, words in ((20_000, recording, []), (10_000, recording[:100], [Word(0.1, 0.5, "yes")] * 1000)):
        with pytest.raises(KwsdError, match=r"tape\.wav: cannot be written .*make room"):
            limited(size, partial(write, samples, words, tmp_path / "tape.wav"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "tape.wav": b"the one before", "tape.tsv": b"and its words",
    }  # fmt: skip


def limited(size, work):
    """Do it as on a disk with so many bytes left for a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return work()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_flac_whose_end_found_no_room_is_not_taken_for_written(missing, tmp_path):
    recording = np.random.default_rng(0).normal(0.0, 0.1, 5 * RATE).astype(np.float32)
    tape = tmp_path / "tape.flac"
    write(recording, [Word(0.1, 0.5, "yes")], tape)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(KwsdError, match=r"tape\.flac: cannot be written .*No space left on device.*make room"):
        limited(tape.stat().st_size - missing, lambda: write(recording, [Word(1.0, 1.5, "no")], tape))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_where_a_mixture_cannot_be_written_is_told_before_it_is_made(kwsd, tmp_path):
    asked = ("mix", "nowhere/tape.flac", "--data", tmp_path)
    kwsd(*asked).refused(IO, "nowhere/tape.flac: cannot be written (No such file or directory); name another place")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("notes.txt", "mix: notes.txt is no kind of recording; name a .wav or .flac file"),
        ("tape.opus", "mix: tape.opus is no kind of recording"),
        ("tape.raw", "mix: tape.raw is no kind of recording"),
        ("tape", "mix: tape is no kind of recording"),
        ("tapes.wav", "mix: tapes.wav is a folder; name another file"),
        ("words.wav", "mix: words.tsv is a folder; name another file"),
    ],
)
def test_what_can_be_no_recording_is_refused_before_it_is_made(name, complaint, kwsd, tmp_path):
    (tmp_path / "tapes.wav").mkdir()
    (tmp_path / "words.tsv").mkdir()
    kwsd("mix", name, "--data", tmp_path).refused(USAGE, complaint)


def test_the_words_of_another_recording_are_not_overwritten(tmp_path):
    write(np.zeros(16_000, np.float32), [Word(0.1, 0.5, "yes")], tmp_path / "a.flac")
    with pytest.raises(ConfigError, match=r"a\.tsv: is there already, of another recording; name a otherwise"):
        write(np.zeros(16_000, np.float32), [Word(0.2, 0.6, "no")], tmp_path / "a.wav")
    write(np.zeros(16_000, np.float32), [Word(0.3, 0.7, "up")], tmp_path / "a.flac")  # over its own
    assert [word.keyword for word in read_truth(tmp_path / "a.flac")] == ["up"]
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(("labels", "code"), [("yes", 0), ("_unknown_,_silence_", 2)])
def test_one_word_is_enough_and_none_is_refused(kwsd, data, tmp_path, labels, code):
    result = kwsd("mix", tmp_path / "a.wav", "--data", data, "--labels", labels, "--count", "2")
    assert result.code == code and (code == 0 or "none of them is a word" in result.err)
