"""One word that several streams hear is told once, by that in which it was loudest: the rule, and real daemons."""

import json
import socket
import threading
import time

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from running import PATIENCE_S, Running, clean_environment

from kwsd.arbiter import KEPT_S, SAME_S, Arbiter, Ruling
from kwsd.audio_format import SAMPLE_RATE
from kwsd.config import ArbitrationConfig
from kwsd.event import AlsoHeard, Heard, Rejected, RunnerUp
from kwsd.recording import DEMO, read_recording

WAIT_S = 0.3
ROOMS = ("kitchen", "hall")
SPEECH = read_recording(DEMO)[: 8 * SAMPLE_RATE]
WORDS = ["stop", "yes", "up"]
FIRST_WORD = SPEECH[: 4 * SAMPLE_RATE]


def word(stream, level=-30.0, keyword="stop", score=0.9, latency=20):
    return Heard(
        stream=stream, keyword=keyword, score=score, threshold=0.7, runner_up=RunnerUp("up", 0.04), start_s=1.0,
        end_s=1.4, latency_ms=latency, level_dbfs=level, model="sha256:abc",
    )  # fmt: skip


def arbiter(*groups, wait_ms=1000 * WAIT_S, **gain_db):
    return Arbiter(ArbitrationConfig(groups=groups or (ROOMS,), wait_ms=wait_ms, gain_db=gain_db))


def hear(judge, at, heard, there=ROOMS, late=0.0):
    """What is told when a stream hears a word; `late`: after its window had been said, s."""
    return told(judge.hear(heard, None, at, at + late, there))


def told(rulings):
    return [(ruling.verdict.stream, ruling.verdict.keyword) for ruling in rulings if isinstance(ruling.verdict, Heard)]


# --- the rule ---


def test_a_stream_in_no_group_tells_of_its_words_at_once_and_as_they_are():
    heard, sound = word("attic"), np.zeros(3, np.float32)
    judge = arbiter()
    assert judge.hear(heard, sound, 5.0, 5.0, ("attic", *ROOMS)) == [Ruling(heard, sound)]
    assert judge.next_at is None
    assert Arbiter(ArbitrationConfig()).hear(heard, sound, 5.0, 5.0, ("attic",)) == [Ruling(heard, sound)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_word_that_all_have_heard_is_told_at_once_by_the_loudest(order):
    judge, heard = arbiter(), [word("kitchen", -20.0, score=0.8), word("hall", -35.0, score=0.95)]
    assert judge.hear(heard[order[0]], None, 5.0, 5.0, ROOMS) == []
    rulings = judge.hear(heard[order[1]], None, 5.1, 5.1, ROOMS)
    first, second = (ruling.verdict for ruling in rulings)
    assert (first.stream, first.level_dbfs) == ("kitchen", -20.0)
    assert first.also_heard == (AlsoHeard("hall", "stop", 0.95, -35.0),)
    assert second == Rejected(stream="hall", keyword="stop", score=0.95, threshold=0.7, reason="arbitration", at_s=1.4)
    assert judge.next_at is None and judge.settle(9.0) == []


def test_each_verdict_keeps_the_sound_of_its_own_stream():
    judge, sounds = arbiter(), {room: np.full(2, i, np.float32) for i, room in enumerate(ROOMS)}
    judge.hear(word("hall", -35.0), sounds["hall"], 5.0, 5.0, ROOMS)
    rulings = judge.hear(word("kitchen", -20.0), sounds["kitchen"], 5.1, 5.1, ROOMS)
    assert [ruling.verdict.stream for ruling in rulings] == ["kitchen", "hall"]
    assert all(ruling.sound is sounds[ruling.verdict.stream] for ruling in rulings)


def test_a_word_that_not_all_heard_waits_its_time_and_no_longer():
    judge = arbiter()
    assert hear(judge, 5.0, word("hall")) == []
    assert judge.next_at == pytest.approx(5.0 + WAIT_S)
    assert judge.settle(5.29) == []
    assert told(judge.settle(5.31)) == [("hall", "stop")]
    assert judge.settle(5.4) == []


def test_all_that_wait_can_be_told_at_once():
    judge = arbiter()
    hear(judge, 5.0, word("hall"))
    assert told(judge.settle(5.01, at_once=True)) == [("hall", "stop")]
    assert judge.next_at is None


def test_where_nobody_is_waited_for_whoever_hears_it_first_tells_of_it():
    judge = arbiter(wait_ms=0.0)
    assert hear(judge, 5.0, word("hall", -40.0)) == []
    assert judge.next_at == 5.0
    assert told(judge.settle(5.0)) == [("hall", "stop")]
    assert hear(judge, 5.1, word("kitchen", -10.0)) == []
    assert judge.next_at is None


def test_the_wait_is_part_of_the_latency_of_who_can_be_late():
    judge = arbiter()
    judge.hear(word("hall", latency=40), None, 5.0, 5.04, ROOMS)
    assert judge.settle(5.3)[0].verdict.latency_ms == 300
    judge.hear(word("kitchen", latency=None), None, 15.0, 15.0, ROOMS)
    assert judge.settle(15.3)[0].verdict.latency_ms is None


def test_nobody_waits_for_streams_that_are_not_there():
    judge = arbiter(("kitchen", "hall", "bath"))
    assert hear(judge, 5.0, word("hall"), there=("hall",)) == [("hall", "stop")]
    assert hear(judge, 9.0, word("hall"), there=("hall", "attic")) == [("hall", "stop")]
    assert hear(judge, 15.0, word("hall"), there=("hall", "bath")) == []


@pytest.mark.parametrize("later", [0.35, 0.6, SAME_S])
def test_who_hears_it_later_than_was_waited_is_too_late(later):
    judge = arbiter()
    hear(judge, 5.0, word("hall", -40.0))
    judge.settle(5.31)
    verdict = judge.hear(word("kitchen", -10.0), None, 5.0 + later, 5.0 + later, ROOMS)[0].verdict
    assert isinstance(verdict, Rejected) and verdict.stream == "kitchen"


def test_whose_windows_are_scored_late_is_late_as_long_as_anything_is_known_of_the_word():
    judge = arbiter()
    hear(judge, 5.0, word("hall"))
    judge.settle(5.31)
    assert hear(judge, 5.1, word("kitchen"), late=KEPT_S - 0.2) == []
    assert judge.next_at is None


def test_a_second_later_it_is_another_word():
    judge = arbiter()
    hear(judge, 5.0, word("hall"))
    judge.settle(5.31)
    hear(judge, 5.0 + SAME_S + 0.05, word("kitchen"))
    assert told(judge.settle(7.0)) == [("kitchen", "stop")]


def test_a_stream_that_hears_the_word_again_says_so_however_soon():
    judge = arbiter()
    assert hear(judge, 5.0, word("hall", -30.0)) == []
    assert hear(judge, 5.1, word("kitchen", -20.0)) == [("kitchen", "stop")]
    assert hear(judge, 5.7, word("hall", -20.0)) == []
    assert hear(judge, 5.8, word("kitchen", -30.0)) == [("hall", "stop")]


def test_two_words_that_wait_at_once_are_both_told():
    judge = arbiter(wait_ms=2000)
    hear(judge, 5.0, word("hall", keyword="left"))
    hear(judge, 5.6, word("hall", keyword="right"))
    assert told(judge.settle(9.0)) == [("hall", "left"), ("hall", "right")]


def test_a_far_microphone_that_takes_the_word_for_another_is_overruled():
    judge = arbiter()
    assert hear(judge, 5.0, word("hall", -40.0, "on")) == []
    assert hear(judge, 5.1, word("kitchen", -20.0, "off")) == [("kitchen", "off")]


def test_another_word_after_it_was_told_is_another_word():
    judge = arbiter()
    hear(judge, 5.0, word("hall", keyword="left"))
    judge.settle(5.31)
    hear(judge, 5.5, word("kitchen", keyword="right"))
    assert told(judge.settle(5.9)) == [("kitchen", "right")]


def test_words_one_after_the_other_stay_apart_though_one_stream_is_slower():
    judge = arbiter(wait_ms=2000)
    hear(judge, 5.0, word("kitchen", -20.0, "left"))
    hear(judge, 5.6, word("kitchen", -20.0, "right"))
    rulings = judge.hear(word("hall", -40.0, "right"), None, 5.7, 5.7, ROOMS)
    assert told(rulings) == [("kitchen", "right")]
    assert told(judge.settle(9.0)) == [("kitchen", "left")]


def test_groups_do_not_know_of_each_other():
    judge = arbiter(("kitchen", "hall"), ("attic", "bath"))
    there = ("kitchen", "hall", "attic", "bath")
    assert hear(judge, 5.0, word("kitchen"), there) == []
    assert hear(judge, 5.05, word("attic"), there) == []
    assert hear(judge, 5.1, word("hall", -40.0), there) == [("kitchen", "stop")]
    assert hear(judge, 5.1, word("bath", -10.0), there) == [("bath", "stop")]


def test_a_group_may_name_streams_by_a_pattern_and_a_name_with_brackets_is_a_name():
    judge = arbiter(("up/*", "pi [1]"), ("*",))
    assert [judge.group_of(name) for name in ("up/bath", "pi [1]", "cellar")] == [0, 0, 1]


def test_a_microphone_with_more_gain_is_no_nearer():
    judge = arbiter(kitchen=-12.0)
    hear(judge, 5.0, word("kitchen", -20.0))
    assert hear(judge, 5.1, word("hall", -30.0)) == [("hall", "stop")]


def test_as_loud_here_as_there_the_higher_score_counts():
    judge = arbiter()
    hear(judge, 5.0, word("kitchen", score=0.8))
    assert hear(judge, 5.1, word("hall", score=0.9)) == [("hall", "stop")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"), st.sampled_from(["on", "off"]), st.floats(0.0, 2.0), st.floats(-60.0, -10.0)
        ),
        max_size=30,
    ),
    st.floats(0.0, 2000.0),
)
def test_every_word_a_stream_heard_is_told_or_rejected_once(words, wait_ms):
    judge, now, verdicts = arbiter(("a", "b", "c"), wait_ms=wait_ms), 0.0, []
    heard = []
    for stream, keyword, pause, level in words:
        now += pause
        verdicts += judge.settle(now)
        heard.append(word(stream, level, keyword))
        verdicts += judge.hear(heard[-1], None, now, now, "abcd")
    verdicts += judge.settle(now, at_once=True)
    found = [(ruling.verdict.stream, ruling.verdict.keyword) for ruling in verdicts]
    assert sorted(found) == sorted((each.stream, each.keyword) for each in heard)
    winners = [ruling.verdict for ruling in verdicts if isinstance(ruling.verdict, Heard)]
    for winner in winners:
        assert winner.stream not in {also.stream for also in winner.also_heard}
        assert all(winner.level_dbfs >= also.level_dbfs for also in winner.also_heard)
    assert bool(winners) == bool(words)


# --- daemons ---


@pytest.fixture
def rooms(tmp_path):
    """A config with a kitchen in which somebody speaks, and a hall that hears it from afar."""
    far = np.concatenate([np.zeros(480, np.float32), 0.2 * SPEECH])
    for name, sound in (("kitchen", SPEECH), ("hall", far)):
        soundfile.write(tmp_path / f"{name}.wav", sound, SAMPLE_RATE)
    config = tmp_path / "kwsd.yaml"
    streams = ", ".join(f"{{source: file, name: {name}, path: {name}.wav}}" for name in ("hall", "kitchen"))
    config.write_text(
        f"streams: [{streams}]\narbitration: {{groups: [[kitchen, hall]]}}\n"
        f"sinks: {{socket: {{enabled: false}}, clips: {{folder: clips}}}}\n"
    )
    return config


def test_words_in_the_kitchen_that_the_hall_hears_are_told_once_and_by_the_kitchen(rooms):
    with Running("--config", str(rooms), "--set", "events.rejected=true", environment=clean_environment()) as daemon:
        assert daemon.finish() == 0, daemon.errors
    assert [(each["stream"], each["keyword"]) for each in daemon.detections] == [("kitchen", w) for w in WORDS]
    for each in daemon.detections:
        assert [(also["stream"], also["keyword"]) for also in each["also_heard"]] == [("hall", each["keyword"])]
        assert 10 < each["level_dbfs"] - each["also_heard"][0]["level_dbfs"] < 18
    clips = {path.name.partition("_nohash_")[0] for path in (rooms.parent / "clips/heard").rglob("*.wav")}
    assert clips == {"kitchen"}
    overruled = [event for event in daemon.events if event.get("reason") == "arbitration"]
    assert [(each["stream"], each["keyword"]) for each in overruled] == [("hall", w) for w in WORDS]
    assert {path.parent.name for path in (rooms.parent / "clips/rejected").rglob("hall*.wav")} >= set(WORDS)


def test_without_arbitration_everybody_tells_what_it_hears(rooms):
    with Running("--config", str(rooms), "--set", "arbitration.groups=[]", environment=clean_environment()) as daemon:
        assert daemon.finish() == 0, daemon.errors
    assert sorted(each["stream"] for each in daemon.detections) == ["hall"] * 3 + ["kitchen"] * 3
    assert not any("also_heard" in each for each in daemon.detections)


def test_a_muted_hall_is_not_waited_for_and_a_reload_parts_the_rooms(rooms):
    long = rooms.read_text().replace("hall.wav", "quiet.wav").replace("groups", "wait_ms: 2000, groups")
    rooms.write_text(long.replace("enabled: false", "path: events.sock"))
    soundfile.write(rooms.parent / "quiet.wav", np.zeros(30 * SAMPLE_RATE, np.float32), SAMPLE_RATE)
    with Running("--config", str(rooms), environment=clean_environment()) as daemon:
        assert daemon.wait_for("detection")["latency_ms"] > 1000
        command(rooms.parent / "events.sock", {"command": "mute", "streams": ["hall"]})
        assert daemon.wait_for("detection")["latency_ms"] < 1000
        command(rooms.parent / "events.sock", {"command": "unmute", "streams": ["hall"]})
        rooms.write_text(rooms.read_text().replace("[[kitchen, hall]]", "[]"))
        command(rooms.parent / "events.sock", {"command": "reload"})
        assert daemon.wait_for("detection")["latency_ms"] < 1000
        daemon.stop()
    assert [each["keyword"] for each in daemon.detections] == WORDS


def test_what_waits_when_kwsd_is_stopped_is_told_before_it_goes(rooms):
    rooms.write_text(rooms.read_text().replace("hall.wav", "quiet.wav").replace("groups", "wait_ms: 2000, groups"))
    soundfile.write(rooms.parent / "quiet.wav", np.zeros(30 * SAMPLE_RATE, np.float32), SAMPLE_RATE)
    with Running("--config", str(rooms), environment=clean_environment()) as daemon:
        daemon.wait_for("ready")
        time.sleep(3.2)  # the word ends after 2.44 s, and waits from 2.7 to 4.7
        daemon.stop()
    assert [event["type"] for event in daemon.events] == ["ready", "detection", "shutdown"]


def test_of_satellites_the_nearest_is_told_and_one_that_hangs_up_is_told_first(tmp_path):
    config = tmp_path / "kwsd.yaml"
    config.write_text(
        "streams: []\nlisten: {on: ['unix:in.sock']}\nsinks: {socket: {enabled: false}}\n"
        "arbitration: {groups: [['*']], wait_ms: 2000}\n"
    )
    with Running("--config", str(config), environment=clean_environment()) as daemon:
        daemon.wait_for("ready")
        lines = {name: [] for name in ROOMS}
        speakers = [
            threading.Thread(target=speak, args=(tmp_path / "in.sock", name, gain * FIRST_WORD, lines[name]))
            for name, gain in (("hall", 0.2), ("kitchen", 1.0))
        ]
        for speaker in speakers:
            speaker.start()
        for speaker in speakers:
            speaker.join(PATIENCE_S)
        daemon.wait_for("stream_left")
        daemon.wait_for("stream_left")
        with connected(tmp_path / "in.sock", "bath") as silent:
            daemon.wait_for("stream_joined")
            last = []
            speak(tmp_path / "in.sock", "attic", FIRST_WORD, last, in_time=False)
            silent.close()
        daemon.stop()
    assert [(each["stream"], each["keyword"]) for each in daemon.detections] == [("kitchen", "stop"), ("attic", "stop")]
    assert [line["type"] for line in lines["kitchen"]] == ["hello", "detection"]
    assert [line["type"] for line in lines["hall"]] == ["hello"]
    assert [line["type"] for line in last] == ["hello", "detection"]


def command(path, said):
    """Give a running daemon a command, and wait until it has been carried out."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        connection.sendall(json.dumps(said).encode() + b"\n")
        for line in connection.makefile("rb"):
            answer = json.loads(line)
            if answer["type"] == "answer":
                assert answer["ok"], answer
                return


def connected(path, name):
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    connection.sendall(json.dumps({"name": name, "format": "f32le"}).encode() + b"\n")
    return connection


def speak(path, name, sound, lines, *, in_time=True):
    """As a satellite; then hang up, and what was said to it meanwhile."""
    with connected(path, name) as connection:
        for block in np.split(sound, range(1600, len(sound), 1600)):
            connection.sendall(block.astype("<f4").tobytes())
            if in_time:
                time.sleep(0.1)
        connection.shutdown(socket.SHUT_WR)
        lines += map(json.loads, connection.makefile("rb"))
