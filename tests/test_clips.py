"""What was heard, kept as recordings: by a real daemon, and by the sink on a disk that is full, slow or gone."""

import asyncio
import json
import os
import signal
import stat
import time
from datetime import datetime

import numpy as np
import pytest
import soundfile
from running import PATIENCE_S, Running

from kwsd.audio_format import WINDOW
from kwsd.errors import IO, KwsdError
from kwsd.event import Heard, Rejected, RunnerUp, Stamp, id_of
from kwsd.recording import DEMO, read_recording
from kwsd.sinks import clips
from kwsd.sinks.clips import Clips
from kwsd.training.dataset import load_words

CLIP = 44 + 2 * WINDOW  # bytes
STAMP = Stamp()


def wait_until(happened):
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s"
        time.sleep(0.01)


@pytest.fixture
def hear(tmp_path, environment):
    """`hear(*settings)` has a daemon hear the demo recording, faster than time; it, with all that it kept."""

    def run(*settings, **more):
        config = tmp_path / "kwsd.yaml"
        source = f"{{source: file, path: '{DEMO}', name: demo, realtime: false}}"
        config.write_text(f"streams: [{source}]\nsinks: {{clips: {{folder: c}}}}\n")
        options = [option for setting in settings for option in ("--set", setting)]
        with Running("--config", str(config), *options, environment=environment | more) as daemon:
            assert daemon.finish() == 0, daemon.errors
        return daemon

    return run


def kept(folder):
    """The paths of clips in there, below it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- the daemon ---


def test_the_window_that_decided_is_kept_under_its_word_and_the_id_of_its_event(hear, tmp_path):
    daemon = hear()
    assert len(daemon.detections) == 10
    names = [f"heard/{event['keyword']}/demo_nohash_{event['id']}.wav" for event in daemon.detections]
    assert kept(tmp_path / "c") == sorted(names)
    said = np.pad((read_recording(DEMO) * 32768).astype(np.int16), WINDOW)
    for event, name in zip(daemon.detections, names, strict=True):
        clip, rate = soundfile.read(tmp_path / "c" / name, dtype="int16")
        assert (rate, clip.size) == (16_000, WINDOW)
        before_end = round(event["end_s"] * rate) + WINDOW  # of the word, in `said`
        starts = [start for start in range(before_end - WINDOW, before_end) if start % 1600 == 0]
        assert any(np.array_equal(said[start : start + WINDOW], clip) for start in starts), name


def test_nobody_else_may_listen_to_them(hear, tmp_path):
    hear()
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700


def test_what_was_not_told_is_kept_where_events_tell_of_it(hear, tmp_path):
    daemon = hear("debouncer.threshold=1", "events.rejected=true")
    misses = [event for event in daemon.events if event["type"] == "rejected"]
    assert len(misses) >= 10
    names = [f"rejected/{event['keyword']}/demo_nohash_{event['id']}.wav" for event in misses]
    assert kept(tmp_path / "c") == sorted(names)


def test_of_what_is_not_told_and_of_whom_is_muted_nothing_is_kept(hear, tmp_path):
    hear("debouncer.threshold=1")
    assert kept(tmp_path / "c") == []
    (tmp_path / "state").mkdir()
    (tmp_path / "state/muted.json").write_text('{"everything": true}')
    assert hear(STATE_DIRECTORY=str(tmp_path / "state")).detections == []
    assert kept(tmp_path / "c") == []


def test_training_takes_them_for_recordings_of_their_words_by_one_speaker_per_stream(hear, tmp_path):
    hear()
    parts = [load_words(tmp_path / "c/heard", subset) for subset in ("training", "validation", "testing")]
    words = sorted(word for part in parts for word in part.words)
    assert words == sorted(["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"])
    assert {speaker for part in parts for speaker in part.speakers} == {"demo"}


def test_a_folder_that_cannot_be_written_is_told_of_before_anything_is_heard(kwsd, tmp_path):
    (tmp_path / "file").write_text("")
    result = kwsd("run", "--source", str(DEMO), "--set", f"sinks.clips.folder={tmp_path}/file/c")
    result.refused(IO, "--set sinks.clips.folder=", f"{tmp_path}/file/c: cannot be written", "name a folder")


def test_a_reload_begins_and_ends_keeping_them(tmp_path, environment):
    config = {"streams": [{"source": "pcm", "name": "pipe"}]}
    file = tmp_path / "kwsd.yaml"
    said = (read_recording(DEMO)[: 16_000 * 4] * 32767).astype("<i2").tobytes()  # one word
    with_clips = config | {"sinks": {"clips": {"folder": "c"}}}
    file.write_text(json.dumps(config))
    with Running("--config", str(file), environment=environment) as daemon:
        daemon.wait_for_log("listening on")
        for wanted in (config, with_clips, config):
            file.write_text(json.dumps(wanted))
            daemon.process.send_signal(signal.SIGHUP)
            assert daemon.wait_for("reload")["ok"]
            daemon.process.stdin.write(said)
            daemon.process.stdin.flush()
            daemon.wait_for("detection")
        daemon.process.stdin.close()
        assert daemon.finish() == 0
        _, middle, _ = daemon.detections
    assert kept(tmp_path / "c") == [f"heard/{middle['keyword']}/pipe_nohash_{middle['id']}.wav"]


def test_the_doctor_looks_whether_they_can_be_kept(kwsd, tmp_path):
    (tmp_path / "file").write_text("")
    streams = ("--set", f"streams=[{{source: pcm, path: {tmp_path}/fifo}}]")
    fine = kwsd("doctor", *streams, "--set", f"sinks.clips.folder={tmp_path}/new/c")
    assert f"ok    clips: what is heard is kept in {tmp_path}/new/c" in fine.out
    bad = kwsd("doctor", *streams, "--set", f"sinks.clips.folder={tmp_path}/file/c")
    assert f"warn  clips: {tmp_path}/file/c: this user cannot write there" in bad.out


# --- the sink ---


def detection(keyword="stop", stream="mic"):
    """An event, and its line."""
    runner_up = RunnerUp("go", 0.1)
    event = Heard(stream=stream, keyword=keyword, score=0.9, threshold=0.7, runner_up=runner_up, start_s=0.2, end_s=0.6,
                  level_dbfs=-30.0, model="sha256:0")  # fmt: skip
    return event, STAMP.line(event)


def noise():
    return np.random.default_rng(0).uniform(-1.2, 1.2, WINDOW).astype(np.float32)


def keep(sink, *events):
    for event, line in events:
        sink.keep(event, line, noise())


def paths_of(events):
    return [f"heard/{event.keyword}/mic_nohash_{id_of(line)}.wav" for event, line in events]


def close(sink):
    asyncio.run(sink.close())


def test_the_oldest_go_where_they_take_more_than_they_may(tmp_path):
    (tmp_path / "heard/stop").mkdir(parents=True)
    (tmp_path / "heard/stop/ann_nohash_0.wav").write_bytes(b"not ours" * 100_000)
    events = []
    for _ in range(9):  # each begins anew and finds what was kept before
        events.append(detection())
        sink = Clips(tmp_path, 6 * CLIP)
        keep(sink, events[-1])
        close(sink)
        time.sleep(0.002)  # ids of one millisecond are in no order
    # Of seven, two too many and so five left; then there is room for one, and the ninth is one too many.
    assert kept(tmp_path) == ["heard/stop/ann_nohash_0.wav", *paths_of(events[-5:])]


def test_they_take_no_more_than_they_may_though_all_come_in_one_run(tmp_path):
    sink, events = Clips(tmp_path, 40 * CLIP), [detection(keyword) for keyword in ("stop", "go") for _ in range(30)]
    keep(sink, *events)
    close(sink)
    assert 35 <= len(kept(tmp_path)) <= 40


def test_a_near_miss_lies_beside_what_was_told(tmp_path):
    miss = Rejected(stream="mic", keyword="stop", score=0.6, threshold=0.7, reason="threshold", at_s=1.0)
    line, sink = STAMP.line(miss), Clips(tmp_path, 10**6)
    keep(sink, (miss, line))
    close(sink)
    assert kept(tmp_path) == [f"rejected/stop/mic_nohash_{id_of(line)}.wav"]


def test_what_is_louder_than_full_scale_is_clipped_and_does_not_wrap_round(tmp_path):
    sink = Clips(tmp_path, 10**6)
    keep(sink, detection())
    close(sink)
    clip, _ = soundfile.read(tmp_path / kept(tmp_path)[0], dtype="int16")
    wanted = np.clip(np.round(noise() * 32768), -32768, 32767)
    assert np.array_equal(clip, wanted)


@pytest.mark.parametrize(
    ("name", "part"),
    [("a/b", "a%2Fb"), ("..", "%2E."), (".x", "%2Ex"), ("100%", "100%25"), ("ü" * 64, "ü" * 60), ("𝄞" * 64, "𝄞" * 30)],
)
def test_whatever_a_stream_or_a_keyword_is_called_the_clip_lies_in_the_folder(tmp_path, name, part):
    event, line = detection(keyword=name, stream=name)
    sink = Clips(tmp_path, 10**6)
    keep(sink, (event, line))
    close(sink)
    assert sink.problem is None
    assert kept(tmp_path) == [f"heard/{part}/{part}_nohash_{id_of(line)}.wav"]


def test_a_disk_that_is_gone_is_a_problem_until_it_is_back(tmp_path):
    folder = tmp_path / "disk"
    sink = Clips(folder, 10**6)
    folder.rmdir()
    keep(sink, detection())
    wait_until(lambda: sink.problem is not None)
    assert sink.problem == f"clips in {folder}: No such file or directory"
    assert not folder.exists()  # it would lie on another disk
    folder.mkdir()
    keep(sink, detection())
    close(sink)
    assert (sink.problem, len(kept(folder))) == (None, 1)


def test_of_a_clip_that_could_not_be_written_no_half_is_left(tmp_path):
    event, line = detection()
    sink = Clips(tmp_path, 10**6)
    (tmp_path / f"heard/stop/mic_nohash_{id_of(line)}.wav/there").mkdir(parents=True)  # nothing can take its place
    keep(sink, (event, line))
    close(sink)
    assert sink.problem == f"clips in {tmp_path}: Is a directory"
    assert kept(tmp_path) == []


def test_a_disk_that_hangs_holds_up_nobody_and_the_oldest_clips_are_lost(tmp_path):
    first = detection()
    hangs = tmp_path / f"heard/stop/.mic_nohash_{id_of(first[1])}.wav"
    hangs.parent.mkdir(parents=True)
    os.mkfifo(hangs)  # who opens it waits for a reader
    sink = Clips(tmp_path, 10**7)
    keep(sink, first)
    wait_until(lambda: not sink._queue)
    more = [detection() for _ in range(clips.QUEUE + 1)]
    keep(sink, *more)
    assert sink.problem == f"clips in {tmp_path}: the disk is too slow"
    close(sink)  # does not wait for ever
    hangs.read_bytes()  # or its thread would outlive the test
    wait_until(lambda: not sink._thread.is_alive())
    lost, *written = paths_of(more)
    assert set(written) <= set(kept(tmp_path))
    assert lost not in kept(tmp_path)


# --- sorting them ---


def near_miss(keyword="stop", stream="mic"):
    miss = Rejected(stream=stream, keyword=keyword, score=0.6, threshold=0.7, reason="threshold", at_s=1.0)
    return miss, STAMP.line(miss)


def holding(folder, *kinds, most=10**6):
    """A sink with clips of these, made one after the other."""
    sink = Clips(folder, most)
    for make, keyword, stream in kinds:
        keep(sink, make(keyword, stream))
        time.sleep(0.002)  # ids of one millisecond are in no order
    wait_until(lambda: len(sink.latest(9)) == len(kinds))
    return sink


def test_the_latest_are_listed_newest_first_and_say_what_they_are(tmp_path):
    sink = holding(tmp_path, (detection, "stop", "a/b"), (near_miss, "go", ".50 %"), (detection, "stop", "mic"))
    newest, missed, oldest = sink.latest(9)
    assert (newest.stream, newest.keyword, newest.told) == ("mic", "stop", True)
    assert (missed.stream, missed.keyword, missed.told) == (".50 %", "go", False)
    assert (oldest.stream, oldest.keyword, oldest.told) == ("a/b", "stop", True)
    assert abs(datetime.fromisoformat(newest.time).timestamp() - time.time()) < 60
    assert sink.latest(1) == [newest]
    assert sink.path_of(oldest.clip).is_file()


def test_a_clip_that_is_sorted_is_where_training_looks_for_it_and_stays(tmp_path):
    sink = holding(tmp_path, (detection, "stop", "mic"), (detection, "go", "mic"), most=3 * CLIP)
    go, stop = sink.latest(9)
    sink.sort(stop.clip, "stop")
    sink.sort(go.clip, "_unknown_")
    assert sink.latest(9) == []
    keep(sink, *(detection("yes") for _ in range(9)))
    close(sink)
    assert 1 <= len(kept(tmp_path / "heard")) <= 3  # the oldest went
    assert sorted(path.parent.name for path in (tmp_path / "sorted").rglob("*.wav")) == ["_unknown_", "stop"]
    parts = [load_words(tmp_path / "sorted", subset) for subset in ("training", "validation", "testing")]
    assert sorted(word for part in parts for word in part.words) == ["_unknown_", "stop"]


NAME = "mic_nohash_01M8R1EVP55P1N5B8ZK5E1RGMM.wav"


@pytest.mark.parametrize(
    "place",
    [
        "",
        f"/heard/stop/{NAME}",
        "heard",
        "heard/stop",
        "heard/stop/mic.wav",
        f"heard/../{NAME}",
        f"heard/stop/../../{NAME}",
        f"sorted/stop/{NAME}",
        f"heard/stop/{NAME}",
        f"heard/stop/\0{NAME}",
        f"heard/\ud800/{NAME}",
        f"heard/{'x' * 300}/{NAME}",
    ],
)
def test_what_is_no_clip_is_neither_shown_nor_moved(place, tmp_path):
    for other in (f"clips/sorted/stop/{NAME}", f"clips/{NAME}", NAME):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text("not to be had")
    before, sink = kept(tmp_path), Clips(tmp_path / "clips", 10**6)
    for ask in (sink.path_of, lambda place: sink.sort(place, "stop")):
        with pytest.raises(KwsdError, match="no such clip"):
            ask(place)
    assert kept(tmp_path) == before


def test_a_clip_that_cannot_be_moved_says_why_and_stays(tmp_path):
    sink = holding(tmp_path, (detection, "stop", "mic"))
    (tmp_path / "sorted").write_text("in the way")
    [clip] = sink.latest(9)
    with pytest.raises(KwsdError, match=r"cannot be moved to .*sorted/stop \(Not a directory\)"):
        sink.sort(clip.clip, "stop")
    assert sink.latest(9) == [clip]
