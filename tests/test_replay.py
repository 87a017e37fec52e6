"""`kwsd replay` on the recording kwsd ships: the daemon's pipeline, repeatable to the byte."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from running import KWSD, Running, clean_environment

from kwsd.bench import demo_words
from kwsd.recording import DEMO

RATE = 16_000


def replay(*arguments):
    result = subprocess.run(
        [KWSD, "replay", *map(str, arguments)], capture_output=True, env=clean_environment(), timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def without_time_and_id(lines):
    events = [json.loads(line) for line in lines]
    for event in events:
        del event["time"], event["id"]
    return [json.dumps(event) for event in events]


def words(lines):
    return [json.loads(line)["keyword"] for line in lines]


@pytest.fixture(scope="module")
def replayed():
    return replay(DEMO)


def test_the_first_word_is_the_line_that_the_readme_shows(replayed):
    readme = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    [shown] = [json.loads(line) for line in readme.splitlines()[:10] if line.startswith("{")]
    told = json.loads(replayed[0])
    for event in (shown, told):
        for key in ("id", "seq", "time", "latency_ms"):  # of the daemon, or of the moment
            event.pop(key, None)
    for scores in (shown, shown["runner_up"]):
        scores["score"] = pytest.approx(scores["score"], abs=0.002)  # the last digit is the core's
    assert told == shown


@pytest.fixture(scope="module")
def beginning(tmp_path_factory):
    """The first two words of the recording, with the pauses around them."""
    path = tmp_path_factory.mktemp("tape") / "beginning.wav"
    samples, _ = soundfile.read(DEMO, dtype="float32")
    soundfile.write(path, samples[: int(6.5 * RATE)], RATE)
    return path


def test_most_words_are_heard_where_they_are_spoken(replayed):
    events = [json.loads(line) for line in replayed]
    hits = [
        event
        for start, end, keyword in demo_words()
        for event in events
        if event["keyword"] == keyword and start - 0.1 <= event["start_s"] and event["end_s"] <= end + 0.2
    ]
    assert len(hits) >= 7
    assert len(events) - len(hits) <= 1


def test_twice_gives_the_same_bytes_apart_from_time_and_id(replayed):
    assert without_time_and_id(replay(DEMO)) == without_time_and_id(replayed)


def test_an_event_is_one_compact_json_object(replayed):
    event = json.loads(replayed[0])
    assert list(event)[:5] == ["v", "type", "id", "seq", "time"]
    assert event["v"] == 1 and event["type"] == "detection"
    assert set(event) == {
        "v", "type", "id", "seq", "time", "stream", "keyword", "score", "threshold", "runner_up",
        "start_s", "end_s", "level_dbfs", "model",
    }  # fmt: skip
    assert b" " not in replayed[0].replace(b"demo.flac", b"")
    assert event["score"] >= event["threshold"] and event["score"] > event["runner_up"]["score"]


def test_a_recording_in_real_time_gives_the_detections_of_its_replay(beginning):
    expected = [json.loads(line) for line in replay(beginning)]
    assert expected
    for _ in range(3):
        with Running("--source", str(beginning)) as daemon:
            assert daemon.finish() == 0
        if "overrun" not in {event["type"] for event in daemon.events}:
            break  # else it stood still for so long that windows were skipped
    assert len(daemon.detections) == len(expected)
    for heard, replayed in zip(daemon.detections, expected, strict=True):
        for field in ("keyword", "start_s", "end_s", "level_dbfs", "threshold", "stream"):
            assert heard[field] == replayed[field]
        assert heard["score"] == pytest.approx(replayed["score"], abs=2e-3)  # batches of other sizes round otherwise


def test_samples_piped_into_stdin_give_the_detections_of_their_replay(beginning):
    expected = words(replay(beginning))
    samples, _ = soundfile.read(beginning, dtype="int16")
    with Running("--source", "-") as daemon:
        daemon.process.stdin.write(samples.tobytes())
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    assert [event["keyword"] for event in daemon.detections] == expected
    assert daemon.events[0]["type"] == "ready"
    assert daemon.events[-1]["type"] == "shutdown" and daemon.events[-1]["reason"] == "end of audio"


@pytest.mark.parametrize(
    ("rate", "channels", "subtype", "suffix"),
    [
        (44_100, 2, "PCM_16", "wav"),
        (48_000, 1, "PCM_24", "flac"),
        (16_000, 1, "VORBIS", "ogg"),
        (22_050, 1, "FLOAT", "wav"),
    ],
)
def test_any_rate_channel_count_and_format_is_heard_alike(rate, channels, subtype, suffix, beginning, tmp_path):
    samples, _ = soundfile.read(beginning, dtype="float32")
    resampled = np.repeat(soxr.resample(samples, RATE, rate)[:, None], channels, axis=1)
    path = tmp_path / f"tape.{suffix}"
    soundfile.write(path, resampled, rate, subtype=subtype)
    assert words(replay(path)) == words(replay(beginning))


def test_one_channel_can_be_chosen(beginning, tmp_path):
    samples, _ = soundfile.read(beginning, dtype="float32")
    path = tmp_path / "tape.wav"
    soundfile.write(path, np.stack([np.zeros_like(samples), samples], axis=1), RATE)
    assert replay(path, "--channel", "1") == []
    assert words(replay(path, "--channel", "2")) == words(replay(beginning))


def test_a_single_clip_of_one_second_is_heard(beginning, tmp_path):
    samples, _ = soundfile.read(beginning, dtype="float32")
    start, _, keyword = demo_words()[0]
    first = int((start - 0.25) * RATE)
    path = tmp_path / "clip.wav"
    soundfile.write(path, samples[first : first + RATE], RATE)
    [event] = [json.loads(line) for line in replay(path)]
    assert event["keyword"] == keyword
    assert 0.2 <= event["start_s"] < event["end_s"] <= 1.0


def test_several_files_are_numbered_through_and_named(beginning):
    events = [json.loads(line) for line in replay(beginning, DEMO)]
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert {event["stream"] for event in events} == {"beginning.wav", "demo.flac"}


def test_files_of_one_name_are_told_apart_by_their_folders(beginning, tmp_path):
    (tmp_path / beginning.name).write_bytes(beginning.read_bytes())
    events = [json.loads(line) for line in replay(beginning, tmp_path / beginning.name, DEMO)]
    assert {event["stream"] for event in events} == {str(beginning), str(tmp_path / beginning.name), "demo.flac"}
