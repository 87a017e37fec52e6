"""Events that have to be asked for: what was nearly heard, and that all is well."""

import itertools
import json
import statistics
import subprocess

import numpy as np
import soundfile
from running import KWSD, Running, clean_environment

from kwsd.recording import DEMO

RATE = 16_000
STRICT = "debouncer.threshold=0.999"


def replay(*settings):
    command = [KWSD, "replay", DEMO, *(part for setting in settings for part in ("--set", setting))]
    result = subprocess.run(command, capture_output=True, env=clean_environment(), timeout=60, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_word_that_was_not_told_is_told_as_rejected_with_the_setting_in_the_way():
    told = replay()
    strict = replay(STRICT, "events.rejected=true")
    heard = [event for event in strict if event["type"] == "detection"]
    rejected = [event for event in strict if event["type"] == "rejected"]
    assert len(rejected) >= len(told) - len(heard) > 0
    for event in rejected:
        assert event["reason"] == "threshold"
        assert event["score"] < event["threshold"] == 0.999
    for event in told:  # every word of before is there, one way or the other, at its time
        near = [e for e in heard if e["keyword"] == event["keyword"] and abs(e["start_s"] - event["start_s"]) < 1.0]
        near += [e for e in rejected if e["keyword"] == event["keyword"] and 0 <= e["at_s"] - event["start_s"] < 2.0]
        assert near, event


def test_nobody_who_did_not_ask_is_told_of_near_misses():
    assert {event["type"] for event in replay(STRICT)} <= {"detection"}


def pcm(seconds, level):
    noise = np.random.default_rng(0).standard_normal(int(seconds * RATE))
    return (noise * level * 32768).astype("<i2").tobytes()


def test_a_heartbeat_says_how_every_stream_is(tmp_path):
    tape = tmp_path / "quiet.wav"
    soundfile.write(tape, np.zeros(30 * RATE, np.float32), RATE)
    config = tmp_path / "config.yaml"
    config.write_text(
        "events: {heartbeat_s: 0.3}\n"
        "streams:\n  - {source: pcm, name: pipe}\n  - {source: file, name: tape, path: quiet.wav}\n"
        "sinks: {socket: {enabled: false}}\n"
    )
    with Running("--config", str(config)) as daemon:
        daemon.process.stdin.write(pcm(3.0, 0.01))
        daemon.process.stdin.flush()
        daemon.wait_for("ready")
        beats = [daemon.wait_for("heartbeat") for _ in range(4)]
        code, _ = daemon.stop()
    assert code == 0
    pipes, tapes = zip(*(beat["streams"] for beat in beats), strict=True)
    assert {pipe["stream"] for pipe in pipes} == {"pipe"}
    assert {tape["stream"] for tape in tapes} == {"tape"}
    assert pipes[-1]["heard_s"] == 3.0
    assert pipes[-1]["lag_ms"] >= 500  # nothing came for a while
    assert -43 < pipes[-1]["level_dbfs"] < -37
    assert min(tape["lag_ms"] for tape in tapes) < 200
    assert tapes[-1]["level_dbfs"] is None  # digital silence
    assert tapes[-1]["heard_s"] > tapes[0]["heard_s"]
    uptimes = [beat["uptime_s"] for beat in beats]
    assert 0.2 <= statistics.median(later - earlier for earlier, later in itertools.pairwise(uptimes)) < 1.0
