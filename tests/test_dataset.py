"""Speech Commands clips: the word as label, the official split, every clip kept at one second, decoded once."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_speech_commands as tiny

from kwsd.audio_format import SAMPLE_RATE as RATE
from kwsd.errors import AudioError, KwsdError
from kwsd.training import dataset, decoded
from kwsd.training.dataset import SUBSETS, join, load_clips, load_subset, load_words
from kwsd.training.decoded import fit, to_int16
from kwsd.training.labels import parse_labels
from kwsd.training.talk import load_talk, lost_transcripts, part_talk, transcribed, transcribed_talk


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


def test_a_download_that_broke_off_is_begun_anew(tmp_path, monkeypatch):
    import torchaudio.datasets

    honest = torchaudio.datasets.SPEECHCOMMANDS

    def broken_off(root, *, folder_in_archive, download):
        (Path(root) / folder_in_archive / "speech_commands_v0.02/yes").mkdir(parents=True)
        raise RuntimeError("No space left on device")

    def complete(root, folder_in_archive="SpeechCommands", *, download=False, **more):
        if download:
            tiny.make(tmp_path / "remote", words=("yes", "no"))
            tiny.folder(tmp_path / "remote").rename(Path(root) / folder_in_archive / "speech_commands_v0.02")
        return honest(root, folder_in_archive=folder_in_archive, **more)

    monkeypatch.setattr(torchaudio.datasets, "SPEECHCOMMANDS", broken_off)
    with pytest.raises(AudioError, match="cannot download"):
        load_clips(tmp_path / "data", "training", download=True)
    monkeypatch.setattr(torchaudio.datasets, "SPEECHCOMMANDS", complete)
    assert len(load_clips(tmp_path / "data", "training", download=True)) == 24
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["SpeechCommands"]
    assert len(load_clips(tmp_path / "data", "training", download=True)) == 24, "nothing is fetched twice"


def test_what_is_hidden_is_no_recording_and_moves_nobody(tmp_path):
    for n in range(20):
        tiny.write(tmp_path / f"marvin/ann_nohash_{n}.wav", tiny.tone("yes", seed=n))
    before = [load_words(tmp_path, subset).paths for subset in SUBSETS]
    for n in range(20):
        (tmp_path / f"marvin/._ann_nohash_{n}.wav").write_bytes(b"Mac OS X")
    (tmp_path / ".Trash").mkdir()
    tiny.write(tmp_path / ".Trash/marvin/bob_nohash_0.wav", tiny.tone("yes"))
    assert [load_words(tmp_path, subset).paths for subset in SUBSETS] == before


def test_lines_that_name_no_recording_are_told(tmp_path):
    tiny.write(tmp_path / "a.wav", tiny.tone("yes"))
    (tmp_path / "transcripts.tsv").write_text("a\tSTOP IT\n\nb.wav\tGO\n")
    [told] = lost_transcripts(tmp_path)
    assert told.startswith(
        f"{tmp_path}/transcripts.tsv: 2 of 2 lines name no recording, such as a; a line is path, tab"
    )
    (tmp_path / "transcripts.tsv").write_text("a.wav " + "STOP IT " * 100 + "\n")
    with pytest.raises(AudioError, match=r"of none of its recordings is known what is said; .*1 of 1 lines name no"):
        transcribed_talk(tmp_path, ("stop",))


# --- every clip is one second ---


@pytest.mark.parametrize("length", [1, 159, 8_000, 15_999, 16_000])
def test_short_clips_are_padded(length):
    samples = np.linspace(-0.5, 0.5, length, dtype=np.float32)
    fitted = fit(samples)
    assert fitted.shape == (16_000,)
    assert fitted.dtype == np.int16
    assert np.array_equal(fitted[:length], to_int16(samples))
    assert not fitted[length:].any()


@pytest.mark.parametrize(
    ("length", "word", "first"), [(16_001, 3_000, 0), (40_000, 20_000, 13_000), (40_000, 39_000, 24_000)]
)
def test_long_ones_are_trimmed_to_the_second_around_the_word(length, word, first):
    samples = np.full(length, 1e-3, np.float32)
    samples[word : word + 2_000] = 0.5
    fitted = fit(samples)
    assert abs(int(np.flatnonzero(fitted > 10_000)[0]) - (word - first)) <= 160, "frames of 10 ms decide"
    assert np.count_nonzero(fitted > 10_000) == min(2_000, length - word)


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
        taken = clip(root, clips, name)[:length]
        begins = np.arange(max(length - 16_000, 0) + 1)
        assert any(np.array_equal(taken, on_disk[begin : begin + 16_000]) for begin in begins), (
            "a second of it, untouched"
        )
    resampled = clip(root, clips, "no/aaaaaaaa_nohash_0.wav")
    assert resampled[:8_000].any()
    assert not resampled[8_000:].any()


# --- decoded once ---


def test_a_second_load_decodes_nothing_and_leaves_the_cache_alone(root, cache, monkeypatch):
    first = load_clips(root, "training")
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.np*")}
    monkeypatch.setattr(decoded, "read_recording", lambda path: pytest.fail(f"decoded {path} again"))
    second = load_clips(root, "training")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.np*")} == before and before
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
        decoded._decode(listing, cache / "validation-both")
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


@pytest.mark.parametrize("name", ["samples.npy", "index.npz"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 4096, b"\x93NUMPY\x01\0v\0{'descr': '|O'}", None])
def test_what_is_damaged_is_decoded_anew(root, cache, name, damage):
    before = load_clips(root, "validation")
    (kept,) = cache.iterdir()
    if damage is None:
        (kept / name).unlink()
    else:
        (kept / name).write_bytes(damage)
    after = load_clips(root, "validation")
    assert np.array_equal(before.samples, after.samples) and before.paths == after.paths
    assert [path.name for path in cache.iterdir()] == [kept.name], "and nothing is left beside it"


def test_what_was_not_used_for_a_month_is_deleted(root, cache):
    load_clips(root, "validation")
    load_clips(root, "testing")
    for kept in cache.iterdir():
        os.utime(kept, (0, time.time() - 31 * 86_400))
    load_clips(root, "testing")
    load_clips(root, "training")
    assert sorted(path.name.split("-")[0] for path in cache.iterdir()) == ["testing", "training"]


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
    with pytest.raises(AudioError, match=r"none of the validation clips can be used; the first: .*empty"):
        load_subset(root, (), "validation")


# --- whole words ---


def cut_off(word, seed=0):
    """A clip that ends in the middle of the word."""
    return np.concatenate([np.zeros(RATE // 2, np.float32), tiny.tone(word, seed=seed)])[:RATE]


def test_clips_that_have_all_of_their_word_are_known(root):
    name = (tiny.folder(root) / "validation_list.txt").read_text().split()[0]
    tiny.write(tiny.folder(root) / name, cut_off("yes"))
    for _ in range(2):  # decoded, then from the cache
        clips = load_clips(root, "validation")
        assert [Path(path).name for path in np.array(clips.paths)[~clips.whole]] == [Path(name).name]
    rows = clips.said_whole(["yes"])
    assert len(rows) == clips.words.count("yes") - 1
    assert clips.whole[rows].all()
    assert clips.take(rows).whole.all()
    assert len(clips.said_whole(["yes", "no"])) == len(clips) - 1
    assert not len(clips.said_whole(["up"]))


def test_of_a_word_without_any_whole_clip_all_are_taken(root):
    for name in (tiny.folder(root) / "validation_list.txt").read_text().split():
        if name.startswith("yes"):
            tiny.write(tiny.folder(root) / name, cut_off("yes"))
    clips = load_clips(root, "validation")
    assert len(clips.said_whole(["yes", "no"])) == len(clips) == 8


def test_ones_own_recordings_may_begin_and_end_with_the_word(tmp_path):
    tiny.write(tmp_path / "mine/yes/ann_nohash_0.wav", tiny.tone("yes")[RATE // 3 : 2 * RATE // 3])
    (tmp_path / "mine/validation_list.txt").write_text("")
    clips = load_words(tmp_path / "mine", "training")
    assert clips.whole.tolist() == [True]
    assert join([clips, clips]).whole.tolist() == [True, True]


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
    assert {path.name: piece.size for path, piece in pieces.items()} == {
        "plain.wav": 100,
        "inside.wav": 103,
        "untold.wav": 104,
    }
    assert all((piece == 8192).all() for piece in pieces.values())


def test_transcripts_may_lie_beside_the_recordings(talk):
    (talk / "transcripts.tsv").rename(talk / "a/transcripts.tsv")
    (talk / "a/transcripts.tsv").write_text("keyword.wav\tstop\n")
    pieces, left_out = load_talk(talk, ("stop", "no"))
    assert (len(pieces), left_out) == (4, 1)


@pytest.mark.parametrize("way", ["../a/keyword.wav", "../../talk/a/./keyword.wav", "{link}/a/keyword.wav"])
def test_transcripts_may_lie_in_a_folder_of_their_own_and_name_recordings_by_any_way(way, talk, tmp_path):
    (tmp_path / "link").symlink_to(talk)
    (talk / "transcripts.tsv").unlink()
    (talk / "txt").mkdir()
    (talk / "txt/transcripts.tsv").write_text(f"{way.format(link=tmp_path / 'link')}\tplease stop\n")
    pieces, left_out = load_talk(talk, ("stop", "no"))
    assert (len(pieces), left_out) == (4, 1)
    assert [path.name for path in transcribed_talk(talk, ("stop",))[0]] == ["keyword.wav"]


def test_transcripts_above_a_folder_count_for_it(talk):
    pieces, left_out = load_talk(talk / "a", ("stop", "no"))
    assert ([path.name for path in pieces], left_out) == (["plain.wav"], 1)


def told(recording, *words):
    recording.with_suffix(".tsv").write_text("\n".join(("start_s\tend_s\tkeyword", *words, "")))


def test_of_talk_whose_words_have_times_only_the_stretches_with_a_keyword_are_cut_out(tmp_path):
    tiny.write(tmp_path / "long.wav", np.arange(4 * RATE).astype(np.int16))
    told(tmp_path / "long.wav", "1.0\t1.5\tplease stop here", "2\t2.2\tfine", "3.9\t4.5\tknow")
    pieces, left_out = load_talk(tmp_path, ("stop", "no", "_unknown_"))
    [piece] = pieces.values()
    kept = np.concatenate([np.arange(round(0.8 * RATE)), np.arange(round(1.7 * RATE), round(3.7 * RATE))])
    assert (piece.tolist(), left_out) == (kept.astype(np.int16).tolist(), 0)
    assert load_talk(tmp_path, ("yes",))[0].popitem()[1].size == 4 * RATE
    assert load_talk(tmp_path, ())[0].popitem()[1].size == 4 * RATE, "noise is taken whole"
    kept, _ = transcribed_talk(tmp_path, ("stop", "no"))
    assert list(kept.values()) == [{"stop": 1, "no": 1}]


def test_times_that_make_no_sense_are_named_with_their_line(talk):
    told(talk / "a/keyword.wav", "1.0\t1.5\tstop", "oops")
    with pytest.raises(AudioError, match=r"keyword\.tsv:3: not start_s, end_s, keyword"):
        load_talk(talk, ("stop",))


def test_which_recordings_somebody_wrote_down_is_known(talk):
    told(talk / "b/untold.wav", "1.0\t1.5\tplease stop here")
    pieces, _ = load_talk(talk, ())
    assert transcribed(talk, pieces) == set(pieces)
    (talk / "transcripts.tsv").write_text("a/plain.wav\tgood evening\n")
    assert {path.name for path in transcribed(talk, pieces)} == {"plain.wav", "untold.wav"}


def test_talk_to_evaluate_on_is_kept_with_the_keywords_in_it_and_left_out_without_transcript(talk):
    kept, left_out = transcribed_talk(talk, ("stop", "no", "_unknown_"))
    assert {path.relative_to(talk).as_posix(): dict(spoken) for path, spoken in kept.items()} == {
        "a/plain.wav": {}, "a/keyword.wav": {"stop": 1}, "b/homophone.wav": {"no": 1}, "b/inside.wav": {},
    }  # fmt: skip
    assert left_out == 1
    (talk / "transcripts.tsv").unlink()
    kept, left_out = transcribed_talk(talk, ("stop",))
    assert (len(kept), left_out) == (5, 0), "where there are no transcripts at all, nothing is known to be spoken"


def test_of_every_folder_the_last_recordings_are_held_out():
    pieces = {Path(f"{folder}/{i}.wav"): np.full(100, 10 * folder + i, np.int16) for folder in (1, 2) for i in range(5)}
    to_train, to_validate = part_talk(pieces, 0.2)
    assert [piece[0] for piece in to_train] == [10, 11, 12, 13, 20, 21, 22, 23]
    assert [piece[0] for piece in to_validate] == [14, 24]
    assert all(piece.size == 100 for piece in (*to_train, *to_validate))


def test_of_one_recording_the_end_is_held_out():
    to_train, to_validate = part_talk({Path("a.wav"): np.arange(1000, dtype=np.int16)}, 0.1)
    assert [piece.tolist() for piece in to_train] == [list(range(900))]
    assert [piece.tolist() for piece in to_validate] == [list(range(900, 1000))]


def test_of_many_folders_side_by_side_the_last_are_held_out_with_all_that_is_in_them():
    pieces = {
        Path(f"books/{speaker:02}/{chapter}/{i}.wav"): np.full(100, speaker, np.int16)
        for speaker in range(20) for chapter in (1, 2) for i in range(3)
    }  # fmt: skip
    to_train, to_validate = part_talk(pieces, 0.1)
    assert np.unique(to_train).tolist() == list(range(18)) and np.unique(to_validate).tolist() == [18, 19]
    assert len(to_train) == 108 and len(to_validate) == 12


def test_transcripts_may_begin_with_a_mark_and_must_be_utf8(talk):
    listing = talk / "transcripts.tsv"
    listing.write_text("b/untold.wav\tplease stop\n", encoding="utf-8-sig")
    kept, _ = load_talk(talk, ("stop",))
    assert not any(path.name == "untold.wav" for path in kept)
    listing.write_bytes("b/untold.wav\tgrüß\n".encode("latin-1"))
    with pytest.raises(AudioError, match=r"transcripts\.tsv: is not UTF-8"):
        load_talk(talk, ("stop",))


def test_without_labels_everything_is_taken_as_for_noise(talk):
    pieces, left_out = load_talk(talk, ())
    assert (len(pieces), left_out) == (5, 0)


def test_quiet_noise_keeps_its_last_bit(tmp_path):
    tiny.write(tmp_path / "quiet.wav", np.tile([1, -1], 50).astype(np.int16))
    (piece,) = load_talk(tmp_path, ())[0].values()
    assert piece.tolist() == [1, -1] * 50


def test_a_folder_with_nothing_to_use_is_an_error(talk, tmp_path):
    with pytest.raises(AudioError, match="nowhere: No such file or directory; name a folder"):
        load_talk(tmp_path / "nowhere", ())
    with pytest.raises(AudioError, match=r"untold.wav: is a file; name the folder that it lies in"):
        load_talk(talk / "b/untold.wav", ())
    (talk / "b/untold.wav").unlink()
    with pytest.raises(AudioError, match="no recordings"):
        load_talk(talk, ("the", "please", "all", "he"))


# --- somebody's own recordings ---


def test_a_word_is_the_same_however_its_letters_are_put_together(tmp_path):
    composed, apart = "sch\N{LATIN SMALL LETTER O WITH DIAERESIS}n", "scho\N{COMBINING DIAERESIS}n"
    tones(tmp_path / "words", f"{apart}/1.wav", f"{composed}/2.wav")
    (tmp_path / "words/validation_list.txt").write_text("")
    assert load_words(tmp_path / "words", "training").words == (composed, composed)
    assert parse_labels(f"{apart},no") == (composed, "no")


def test_names_in_another_encoding_are_read_as_well(tmp_path):
    """Of an old stick: Latin-1, and no UTF-8."""
    folder = tones(tmp_path / "words", "stop/1.wav")
    for number in range(8):
        (folder / f"stop/Andr\udce9{number}.wav").write_bytes((folder / "stop/1.wav").read_bytes())
    clips = [load_words(folder, subset) for subset in ("training", "validation", "testing")]
    assert sum(map(len, clips)) == 9
    assert sum("Andr\udce9" in path for some in clips for path in some.paths) == 8


def test_a_recording_beside_the_folders_of_words_is_told(tmp_path):
    folder = tones(tmp_path / "words", "stop/1.wav", "stray.wav", "stray2.wav")
    (told,) = load_words(folder, "training").told
    assert told == f"{folder}/stray.wav and 1 more: of which word? put it into a folder that is called so"


def test_of_a_recording_of_many_words_it_is_told_that_one_is_taken(tmp_path):
    folder = tones(tmp_path / "words", "stop/1.wav", "stop/2.wav")
    tones(folder, "stop/a.wav", "stop/b.wav", samples=6 * 16_000)
    (folder / "testing_list.txt").write_text("stop/2.wav\n")
    clips = load_words(folder, "training")
    assert len(clips) == 3 and not clips.skipped
    (told,) = clips.told
    assert told.startswith(f"{folder}/stop/a.wav and 1 more: over 5 s; of a recording only the loudest word is taken")
    assert load_words(folder, "testing").told == ()


def said_twice(word, other):
    """Two words, half a second apart."""
    return np.concatenate([tiny.tone(word), tiny.tone(other)])


def test_of_words_too_long_for_a_window_it_is_told_how_many_are_cut(tmp_path):
    folder = tones(tmp_path / "words", "stop/1.wav", "stop/2.wav", "go on/3.wav", samples=2 * 16_000)
    for path in ("go on/4.wav", "go on/5.wav"):
        tiny.write(folder / path, said_twice("yes", "no"))
    (folder / "testing_list.txt").write_text("stop/2.wav\n")
    (told,) = load_words(folder, "training").told
    assert told.startswith("training: recordings in which more sounds than a window of 1 s holds: go on 2 of 3; only")
    assert load_words(folder, "testing").told == ()


def test_a_click_far_from_the_word_is_no_other_word(tmp_path):
    clicked = np.concatenate([tiny.tone("yes"), tiny.tone("yes", seed=1)[:8_000]])
    clicked[16_000:] *= 0.01
    clicked[-400:] = 0.5
    tiny.write(tmp_path / "words/yes/1.wav", clicked)
    (tmp_path / "words/testing_list.txt").write_text("")
    assert load_words(tmp_path / "words", "training").told == ()


def with_lists(folder, **lists):
    for subset in ("validation", "testing"):
        (folder / f"{subset}_list.txt").write_text("".join(f"{name}\n" for name in lists.get(subset, ())))
    return folder


def test_what_is_learnt_is_not_tested_on_under_another_name(tmp_path):
    folder = tones(tmp_path / "words", "saw/1.wav", "saw/2.wav", "saw/3.wav", "saw/4.wav")
    sound, rate = soundfile.read(folder / "saw/1.wav", dtype="int16")
    soundfile.write(folder / "saw/copy.flac", sound, rate)
    with_lists(folder, validation=["saw/2.wav", "saw/copy.flac"], testing=["saw/3.wav", "saw/copy2.flac"])
    soundfile.write(folder / "saw/copy2.flac", soundfile.read(folder / "saw/2.wav", dtype="int16")[0], rate)
    assert len(load_subset(None, (folder,), "training")) == 2
    for subset, copy, of in (("validation", "copy.flac", "1.wav"), ("testing", "copy2.flac", "2.wav")):
        clips = load_subset(None, (folder,), subset)
        assert len(clips) == 1
        assert clips.told == (
            f"{subset}: 1 clips left out, which are known under other names, "
            f"as {folder}/saw/{copy} is {folder}/saw/{of}",
        )
    with_lists(folder, validation=["saw/copy.flac"])
    with pytest.raises(AudioError, match=r"validation: 1 clips left out.*none is left; record more"):
        load_subset(None, (folder,), "validation")


@pytest.mark.parametrize("subset", ["training", "validation"])
def test_a_recording_is_of_one_word(tmp_path, subset):
    folder = tones(tmp_path / "words", "lamp/1.wav", "lamp/2.wav")
    (folder / "saw").mkdir()
    (folder / "saw/3.wav").write_bytes((folder / "lamp/1.wav").read_bytes())
    with_lists(folder, validation=["saw/3.wav", "lamp/2.wav"] if subset == "validation" else [])
    with pytest.raises(AudioError, match=r"saw/3\.wav: is the same recording as .*lamp/1\.wav, of another word"):
        load_subset(None, (folder,), subset)


def test_that_nothing_is_to_validate_on_is_not_blamed_on_what_cannot_be_read(tmp_path):
    folder = with_lists(tones(tmp_path / "words", "saw/1.wav", "_noise_/2.wav"))
    (folder / "saw/memo.m4a").write_bytes(b"sound of a telephone")
    with pytest.raises(AudioError, match=r"words: no validation clips; record more, or write validation_list\.txt"):
        load_subset(None, (folder,), "validation")


def test_lines_of_a_list_that_name_no_recording_are_told(tmp_path):
    folder = tones(tmp_path / "words", "stop/1.wav", "stop/2.wav", "stop/3.wav")
    (folder / "testing_list.txt").write_text("./stop/1.wav\n\nwords/stop/2.wav\n")
    clips = load_words(folder, "training")
    assert len(clips) == 2 and len(load_words(folder, "testing")) == 1, "what is listed in another way is the same"
    assert clips.told == (
        f"{folder}/testing_list.txt: 1 of 2 lines name no recording in the folder, such as words/stop/2.wav; "
        "a line is a path from there, word/file.wav",
    )


def tones(folder, *paths, rate=16_000, samples=16_000):
    for i, path in enumerate(paths):
        tiny.write(folder / path, tiny.tone("yes", samples, seed=i), rate)
    return folder


def words_in(folder):
    return {
        subset: [f"{clip.split('words/')[1]}" for clip in load_words(folder, subset).paths]
        for subset in ("training", "validation", "testing")
    }


def test_a_folder_per_word_is_a_data_set_with_the_speaker_in_name_or_folder(tmp_path):
    folder = tones(tmp_path / "words", "lamp/ann/1.wav", "lamp/bob_nohash_0.flac", "saw/ann/x.flac", "saw/7.wav")
    tiny.write(folder / "stray.wav", tiny.tone("yes"))
    tones(folder, "_old/1.wav", ".trash/1.wav")
    (folder / "validation_list.txt").write_text("")
    clips = load_words(folder, "training")
    assert sorted(zip(clips.words, clips.speakers, strict=True)) == [
        ("lamp", "ann"), ("lamp", "bob"), ("saw", "7"), ("saw", "ann"),
    ]  # fmt: skip


def test_a_speaker_is_in_one_subset_only_whatever_the_word(tmp_path):
    names = [f"{word}/speaker{i}_nohash_{n}.wav" for word in ("a", "b") for i in range(60) for n in range(2)]
    subsets = words_in(tones(tmp_path / "words", *names))
    speakers = {subset: {name.split("/")[1].split("_")[0] for name in paths} for subset, paths in subsets.items()}
    assert sum(map(len, subsets.values())) == len(names)
    assert all(map(len, speakers.values()))
    assert len(set.union(*speakers.values())) == sum(map(len, speakers.values())) == 60
    assert len(speakers["training"]) > 35


def test_speakers_are_parted_as_those_of_speech_commands(tmp_path):
    # Three of each list of Speech Commands v0.02.
    official = {
        "validation": ("067f61e2", "2296b1af", "364c0853"),
        "testing": ("0c540988", "4f8ef132", "a2473d62"),
        "training": ("00b01445", "34ba417a", "6a014b29"),
    }
    names = [f"a/{speaker}_nohash_0.wav" for speakers in official.values() for speaker in speakers]
    tones(tmp_path / "words", *names)
    for subset, speakers in official.items():
        assert sorted(load_words(tmp_path / "words", subset).speakers) == sorted(speakers)


def test_a_word_whose_speakers_would_all_be_tested_on_is_learnt_all_the_same(tmp_path):
    """By the hash of their names `ann` and `root` are to test on."""
    names = [f"{word}/{who}_nohash_{n}.wav" for word in ("lamp", "saw") for who in ("ann", "root") for n in range(20)]
    folder = tones(tmp_path / "words", *names, "saw/00b01445_nohash_0.wav")
    subsets = words_in(folder)
    assert sum(map(len, subsets.values())) == len(names) + 1
    said = {subset: [path for path in paths if path.startswith("lamp")] for subset, paths in subsets.items()}
    assert len(said["training"]) > 20 and said["validation"] and said["testing"]
    assert [path for path in subsets["training"] if path.startswith("saw")] == ["saw/00b01445_nohash_0.wav"]
    (told,) = load_words(folder, "training").told
    assert told.startswith(f"{folder}/lamp: by the hash of their names ann, root would only be tested on")
    (folder / "testing_list.txt").write_text("".join(f"{name}\n" for name in names))
    assert words_in(folder)["training"] == ["saw/00b01445_nohash_0.wav"], "who has lists knows what they say"


def test_one_recording_of_every_word_is_learnt_whatever_the_hashes_of_their_names(tmp_path):
    names = [f"lamp/{who}_nohash_{n}.wav" for who in ("ann", "root") for n in range(60)]
    outside = [name for name in names if dataset._subset_of(name, name, None) != "training"]
    assert len(outside) > 4
    folder = tones(tmp_path / "words", *outside, "saw/00b01445_nohash_0.wav")
    subsets = words_in(folder)
    [learnt] = [path for path in subsets["training"] if path.startswith("lamp")]
    assert learnt == min(outside, key=dataset._share)
    assert sum(map(len, subsets.values())) == len(outside) + 1
    (told,) = load_words(folder, "training").told
    assert told.startswith(f"{folder}/lamp: by the hash of their names ann, root would only be tested on")


def test_who_has_a_folder_of_their_own_is_not_alone_if_others_have_one_as_well(tmp_path):
    """By the hash of their names `ann` is to test on, and the other to train on."""
    folders = []
    for who in ("ann", "00b01445"):
        folders.append(tmp_path / who)
        for n in range(30):  # no copies of another's
            tiny.write(tmp_path / who / f"lamp/{who}_nohash_{n}.wav", tiny.tone("yes", seed=100 * len(folders) + n))
    for order in (folders, folders[::-1]):
        training, testing = (load_subset(None, order, subset) for subset in ("training", "testing"))
        assert set(training.speakers) == {"00b01445"} and set(testing.speakers) == {"ann"}
        assert len(training) == len(testing) == 30 and training.told == testing.told == ()
    assert set(load_subset(None, folders[:1], "training").speakers) == {"ann"}


def test_what_somebody_said_on_several_days_is_theirs(tmp_path):
    folder = tones(tmp_path / "words", "lamp/ann/monday/1.wav", "lamp/ann/tuesday/1.wav", "lamp/bob/monday/1.wav")
    (folder / "validation_list.txt").write_text("")
    assert load_words(folder, "training").speakers == ("ann", "ann", "bob")


def test_a_link_to_a_folder_is_followed_but_not_in_circles(tmp_path):
    tones(tmp_path / "elsewhere", "1.wav")
    folder = tones(tmp_path / "words", "saw/2.wav")
    (folder / "lamp").symlink_to(tmp_path / "elsewhere")
    (folder / "saw/round").symlink_to(folder)
    (folder / "validation_list.txt").write_text("")
    assert load_words(folder, "training").words == ("lamp", "saw")


def test_other_words_may_lie_together_and_a_folder_that_is_no_word_is_named(tmp_path):
    folder = tones(tmp_path / "words", "lamp/1.wav", "_unknown_/2.wav", "_silence_/3.wav", "_background_noise_/4.wav")
    (folder / "validation_list.txt").write_text("")
    clips = load_words(folder, "training")
    assert sorted(clips.words) == ["_unknown_", "lamp"]
    assert clips.told == (f"{folder}/_silence_: is no word; name noise and silence with --noise",)


def test_recordings_that_nobody_here_can_read_are_named_with_what_to_do(tmp_path):
    folder = tones(tmp_path / "words", "a/1.wav")
    (folder / "a/memo.m4a").write_bytes(b"sound of a telephone")
    (folder / "validation_list.txt").write_text("")
    [told] = load_words(folder, "training").told
    assert told == f"{folder}/a/memo.m4a: cannot be read; convert it: ffmpeg -i memo.m4a memo.wav"
    (folder / "a/1.wav").unlink()
    with pytest.raises(AudioError, match=r"no recordings in there but such as .*memo\.m4a: cannot be read"):
        load_words(folder, "training")


def test_mp3_is_read(tmp_path):
    (tmp_path / "words/a").mkdir(parents=True)
    soundfile.write(tmp_path / "words/a/1.mp3", tiny.tone("yes"), 16_000)
    (tmp_path / "words/validation_list.txt").write_text("")
    assert load_words(tmp_path / "words", "training").words == ("a",)


def test_a_folder_whose_only_clip_is_silent_does_not_spoil_the_others(tmp_path):
    tones(tmp_path / "words", "a/1.wav")
    tiny.write(tmp_path / "more/b/2.wav", np.zeros(16_000, np.float32))
    for folder in ("words", "more"):
        (tmp_path / folder / "testing_list.txt").write_text("")
    clips = load_subset(None, (tmp_path / "words", tmp_path / "more"), "training")
    assert clips.words == ("a",) and len(clips.skipped) == 1
    with pytest.raises(AudioError, match=r"none of the training clips can be used; the first: .*silent"):
        load_subset(None, (tmp_path / "more",), "training")


def test_a_clip_that_becomes_readable_is_read(tmp_path):
    folder = tones(tmp_path / "words", "a/1.wav", "a/2.wav")
    (folder / "testing_list.txt").write_text("")
    before = decoded._fingerprint(iter([folder / "a/1.wav"]))
    (folder / "a/1.wav").chmod(0o600)
    assert decoded._fingerprint(iter([folder / "a/1.wav"])) != before


def test_the_recordings_of_a_single_speaker_are_parted_one_by_one(tmp_path):
    names = [f"{word}/ann_nohash_{n}.wav" for word in ("a", "b") for n in range(60)]
    sizes = {subset: len(paths) for subset, paths in words_in(tones(tmp_path / "words", *names)).items()}
    assert sum(sizes.values()) == 120
    assert sizes["training"] > 80 and sizes["validation"] > 3 and sizes["testing"] > 3


def test_the_folders_own_lists_part_it(tmp_path):
    folder = tones(tmp_path / "words", "a/1.wav", "a/2.wav", "b/3.wav")
    (folder / "validation_list.txt").write_text("a/1.wav\n")
    (folder / "testing_list.txt").write_text("b/3.wav\n")
    assert words_in(folder) == {"training": ["a/2.wav"], "validation": ["a/1.wav"], "testing": ["b/3.wav"]}


def test_any_rate_and_length_become_a_second_around_the_word(tmp_path):
    quiet = np.zeros(3 * 44_100, np.float32)
    word = np.sin(np.arange(13_230) * 0.05).astype(np.float32) * 0.5  # 0.3 s, in the third second
    quiet[2 * 44_100 : 2 * 44_100 + word.size] = word
    tiny.write(tmp_path / "words/a/long.wav", quiet, 44_100)
    (tmp_path / "words/validation_list.txt").write_text("")
    clips = load_words(tmp_path / "words", "training")
    start, end = clips.spans[0]
    assert 0.28 * 16_000 < end - start < 0.34 * 16_000
    assert abs((start + end) / 2 - 8_000) < 500, "it is in the middle"


def test_a_silent_recording_is_named_and_left_out(tmp_path):
    folder = tones(tmp_path / "words", "a/1.wav")
    tiny.write(folder / "a/2.wav", np.zeros(16_000))
    tiny.write(folder / "a/3.wav", np.full(16_000, 0.25), 16_000)  # a constant is no sound either
    (folder / "validation_list.txt").write_text("")
    clips = load_words(folder, "training")
    assert len(clips) == 1
    assert sorted(reason.split("words/")[1] for reason in clips.skipped) == [
        "a/2.wav: is silent; record it again, or delete it", "a/3.wav: is silent; record it again, or delete it",
    ]  # fmt: skip


@pytest.mark.parametrize("content", [(), ("stray.wav",)])
def test_a_folder_without_words_says_how_it_should_look(tmp_path, content):
    folder = tones(tmp_path / "words", *content)
    folder.mkdir(exist_ok=True)
    with pytest.raises(
        AudioError, match=r"words: no recordings in there; put them into a folder per word: words/stop/"
    ):
        load_words(folder, "training")


def test_sets_are_joined_in_order(tmp_path):
    for name in ("one", "two"):
        tones(tmp_path / name, f"{name}/1.wav")
        (tmp_path / name / "validation_list.txt").write_text("")
    parts = [load_words(tmp_path / name, "training") for name in ("one", "two")]
    both = join([*parts, load_words(tmp_path / "one", "validation")])
    assert both.words == ("one", "two")
    assert np.array_equal(both.samples[1], parts[1].samples[0])
