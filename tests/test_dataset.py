"""Speech Commands clips: the word as label, the official split, every clip kept at one second, decoded once."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_speech_commands as tiny

from kwsd.errors import AudioError, KwsdError
from kwsd.training import dataset
from kwsd.training.dataset import SUBSETS, fit, load_clips, load_talk, to_int16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/kwsd"


@pytest.fixture
def root(tmp_path):
    return tiny.make(tmp_path / "data", words=("yes", "no"))


def clip(root, clips, name):
    """The samples of the clip with this file name."""
    row = [Path(path).relative_to(tiny.folder(root.resolve())).as_posix() for path in clips.paths].index(name)
    return clips.samples[row]


# --- what is in a subset ---


def test_the_label_is_the_word_and_not_the_number_of_the_utterance(root):
    clips = load_clips(root, "training")
    assert set(clips.words) == {"yes", "no"}
    assert list(clips.words) == [Path(path).parent.name for path in clips.paths]
    assert list(clips.speakers) == [Path(path).name.split("_nohash_")[0] for path in clips.paths]


def test_the_split_is_the_data_sets_own_and_no_held_out_clip_is_in_training(root):
    paths = {subset: set(load_clips(root, subset).paths) for subset in SUBSETS}
    for subset in ("validation", "testing"):
        listed = (tiny.folder(root) / f"{subset}_list.txt").read_text().split()
        assert paths[subset] == {str(tiny.folder(root.resolve()) / name) for name in listed}
        assert paths[subset].isdisjoint(paths["training"])
    everything = {str(path) for path in tiny.folder(root.resolve()).glob("[a-z]*/*.wav")}
    assert set.union(*paths.values()) == everything
    assert {len(paths[subset]) for subset in SUBSETS} == {24, 8}


def test_a_limit_keeps_clips_of_every_word(root):
    clips = load_clips(root, "training", limit=8)
    assert 4 <= len(clips) <= 8
    assert set(clips.words) == {"yes", "no"}


def test_take_keeps_the_rows_together(root):
    clips = load_clips(root, "training")
    taken = clips.take(np.array([5, 2]))
    assert taken.words == (clips.words[5], clips.words[2])
    assert taken.paths == (clips.paths[5], clips.paths[2])
    assert np.array_equal(taken.samples, clips.samples[[5, 2]])
    assert np.array_equal(taken.spans, clips.spans[[5, 2]])


def test_the_span_is_where_the_word_is(root):
    for start, end in load_clips(root, "training").spans.tolist():
        assert abs(start - 16_000 // 3) <= 320
        assert abs(end - 2 * 16_000 // 3) <= 320


def test_no_data_set_there_names_the_remedy(tmp_path):
    with pytest.raises(AudioError, match="--download") as failure:
        load_clips(tmp_path, "training")
    assert failure.value.exit_code == 66


def test_a_data_set_without_its_lists_is_refused_rather_than_trained_on_whole(root):
    (tiny.folder(root) / "testing_list.txt").unlink()
    with pytest.raises(AudioError, match="no Speech Commands data set"):
        load_clips(root, "training")


def test_an_empty_subset_is_refused(root):
    (tiny.folder(root) / "testing_list.txt").write_text("")
    with pytest.raises(AudioError, match="no clips in the testing subset"):
        load_clips(root, "testing")


def test_a_download_that_fails_says_so(root, monkeypatch):
    import torchaudio.datasets

    def refuse(*_, **__):
        raise RuntimeError("invalid hash value")

    monkeypatch.setattr(torchaudio.datasets, "SPEECHCOMMANDS", refuse)
    with pytest.raises(AudioError, match=r"cannot download.*invalid hash value") as failure:
        load_clips(root, "training", download=True)
    assert failure.value.exit_code == 74


# --- every clip is one second ---


@pytest.mark.parametrize("length", [1, 159, 8_000, 15_999, 16_000, 16_001, 40_000])
def test_short_clips_are_padded_and_long_ones_trimmed(length):
    samples = np.linspace(-0.5, 0.5, length, dtype=np.float32)
    fitted = fit(samples)
    assert fitted.shape == (16_000,)
    assert fitted.dtype == np.int16
    kept = min(length, 16_000)
    assert np.array_equal(fitted[:kept], to_int16(samples[:kept]))
    assert not fitted[kept:].any()


def test_sixteen_bit_samples_come_back_exactly_and_the_rest_is_clipped():
    everything = np.arange(-32768, 32768, dtype=np.int16)
    assert np.array_equal(to_int16((everything / 32768).astype(np.float32)), everything)
    assert to_int16(np.array([1.0, 1.5, -1.5, 0.4 / 32768], np.float32)).tolist() == [32767, 32767, -32768, 0]


def test_no_clip_is_dropped_for_its_length_and_any_rate_is_read(root):
    odd = {"yes/aaaaaaaa_nohash_0.wav": 9_000, "yes/aaaaaaaa_nohash_1.wav": 20_000}
    for name, length in odd.items():
        tiny.write(tiny.folder(root) / name, tiny.tone("yes", length))
    tiny.write(tiny.folder(root) / "no/aaaaaaaa_nohash_0.wav", tiny.tone("no", 24_000), rate=48_000)
    clips = load_clips(root, "training")
    assert len(clips) == 24 + 3
    assert clips.skipped == ()
    assert clips.samples.shape == (27, 16_000)
    for name, length in odd.items():
        on_disk, _ = soundfile.read(tiny.folder(root) / name, dtype="int16")
        assert np.array_equal(clip(root, clips, name)[:length], on_disk[:16_000])
    resampled = clip(root, clips, "no/aaaaaaaa_nohash_0.wav")
    assert resampled[:8_000].any()
    assert not resampled[8_000:].any()


# --- decoded once ---


def test_a_second_load_decodes_nothing_and_leaves_the_cache_alone(root, cache, monkeypatch):
    first = load_clips(root, "training")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    monkeypatch.setattr(dataset, "read_recording", lambda path: pytest.fail(f"decoded {path} again"))
    second = load_clips(root, "training")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert np.array_equal(first.samples, second.samples)
    assert np.array_equal(first.spans, second.spans)
    assert (first.words, first.speakers, first.paths) == (second.words, second.speakers, second.paths)


def test_a_changed_file_is_decoded_again(root):
    name = "yes/00000001_nohash_0.wav"
    before = clip(root, load_clips(root, "training"), name).copy()
    path = tiny.write(tiny.folder(root) / name, tiny.tone("yes", seed=99))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    after = clip(root, load_clips(root, "training"), name)
    assert not np.array_equal(before, after)


def test_writing_to_loaded_samples_does_not_reach_the_cache(root):
    load_clips(root, "training").samples[:] = 0
    assert load_clips(root, "training").samples.any()


def test_two_runs_that_decode_at_once_do_not_quarrel(root, cache):
    listing = dataset._listing(root, "validation", False)
    for _ in range(2):
        dataset._decode(listing, cache / "validation-both")
    assert [path.name for path in cache.iterdir()] == ["validation-both"]


def test_an_interrupted_decoding_leaves_nothing_behind(root, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_clips(root, "validation")
    assert list(cache.iterdir()) == []
    assert len(load_clips(root, "validation")) == 8


def test_a_cache_that_cannot_be_written_is_one_clear_error(root, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file where a folder is wanted")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    with pytest.raises(KwsdError, match="XDG_CACHE_HOME") as failure:
        load_clips(root, "validation")
    assert failure.value.exit_code == 74


# --- bad clips ---


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"RIFF nonsense", "not readable"),
        (b"\x00" * 4000, "not readable"),
        (None, "no such file"),  # listed, but gone
    ],
    ids=["empty", "riff", "zeros", "missing"],
)
def test_a_corrupt_clip_is_named_and_skipped_and_the_rest_is_kept(root, content, why):
    name = (tiny.folder(root) / "validation_list.txt").read_text().split()[0]
    bad = tiny.folder(root) / name
    if content is None:
        bad.unlink()
    else:
        bad.write_bytes(content)
    for _ in range(2):  # decoded, then from the cache
        clips = load_clips(root, "validation")
        assert len(clips) == len(clips.samples) == len(clips.spans) == 7
        assert len(clips.skipped) == 1
        assert name in clips.skipped[0]
        assert why in clips.skipped[0]
        assert str(bad.resolve()) not in clips.paths
        assert all(clip.any() for clip in clips.samples), "a skipped clip left an empty row"


def test_nothing_but_corrupt_clips_is_an_error(root):
    for name in (tiny.folder(root) / "validation_list.txt").read_text().split():
        (tiny.folder(root) / name).write_bytes(b"")
    with pytest.raises(AudioError, match="none of 8 clips can be read"):
        load_clips(root, "validation")


# --- talk and noise ---


TRANSCRIPTS = {
    "a/plain.wav": "the weather is fine",
    "a/keyword.wav": "PLEASE STOP HERE",
    "b/homophone.wav": "we all know it",
    "b/inside.wav": "he stopped and went nowhere",
}


@pytest.fixture
def talk(tmp_path):
    folder = tmp_path / "talk"
    for i, name in enumerate((*TRANSCRIPTS, "b/untold.wav")):
        tiny.write(folder / name, np.full(100 + i, 0.25))
    (folder / "transcripts.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in TRANSCRIPTS.items()))
    return folder


def test_talk_in_which_a_keyword_or_its_homophone_is_spoken_is_left_out(talk):
    pieces, left_out = load_talk(talk, ("stop", "no", "_unknown_"))
    assert left_out == 2
    assert [piece.size for piece in pieces] == [100, 103, 104]  # plain, inside, and the one without a transcript
    assert all((piece == 8192).all() for piece in pieces)


def test_transcripts_may_lie_beside_the_recordings(talk):
    (talk / "transcripts.tsv").rename(talk / "a/transcripts.tsv")
    (talk / "a/transcripts.tsv").write_text("keyword.wav\tstop\n")
    pieces, left_out = load_talk(talk, ("stop", "no"))
    assert (len(pieces), left_out) == (4, 1)


def test_without_labels_everything_is_taken_as_for_noise(talk):
    pieces, left_out = load_talk(talk, ())
    assert (len(pieces), left_out) == (5, 0)


def test_quiet_noise_keeps_its_last_bit(tmp_path):
    tiny.write(tmp_path / "quiet.wav", np.tile([1, -1], 50).astype(np.int16))
    (piece,), _ = load_talk(tmp_path, ())
    assert piece.tolist() == [1, -1] * 50


def test_a_folder_with_nothing_to_use_is_an_error(talk, tmp_path):
    with pytest.raises(AudioError, match="no recordings"):
        load_talk(tmp_path / "nowhere", ())
    (talk / "b/untold.wav").unlink()
    with pytest.raises(AudioError, match="no recordings"):
        load_talk(talk, ("the", "please", "all", "he"))
