"""Every event is one line of compact JSON, and every line can be told from every other."""

import json
import re
import time
from datetime import UTC, datetime

import pytest

from kwsd.event import (
    CROCKFORD,
    AudioLost,
    Dropped,
    Heard,
    Hello,
    Overrun,
    Ready,
    Reload,
    RunnerUp,
    Shutdown,
    Stamp,
    iso,
    ulid,
    unnumbered,
)

HEARD = Heard(
    stream="kitchen",
    keyword="stop",
    score=0.93,
    threshold=0.8,
    runner_up=RunnerUp("up", 0.04),
    start_s=812.34,
    end_s=812.81,
    latency_ms=143,
    level_dbfs=-31.2,
    model="sha256:abc",
)

EVENTS = {
    "detection": (
        HEARD,
        {
            "stream": "kitchen",
            "keyword": "stop",
            "score": 0.93,
            "threshold": 0.8,
            "runner_up": {"keyword": "up", "score": 0.04},
            "start_s": 812.34,
            "end_s": 812.81,
            "latency_ms": 143,
            "level_dbfs": -31.2,
            "model": "sha256:abc",
        },
    ),
    "ready": (
        Ready(model="sha256:abc", keywords=("stop", "up"), streams=("mic",)),
        {"model": "sha256:abc", "keywords": ["stop", "up"], "streams": ["mic"]},
    ),
    "overrun": (
        Overrun(stream="mic", skipped_windows=3, lost_samples=1600, device_overflows=1),
        {"stream": "mic", "skipped_windows": 3, "lost_samples": 1600, "device_overflows": 1},
    ),
    "audio_lost": (AudioLost(stream="mic", reason="unplugged"), {"stream": "mic", "reason": "unplugged"}),
    "reload": (Reload(ok=False, error="no"), {"ok": False, "error": "no"}),
    "shutdown": (Shutdown(reason="SIGTERM", detections=7), {"reason": "SIGTERM", "detections": 7}),
}

NOTICES = {
    "hello": (
        Hello(kwsd="0.1", schema=1, model="sha256:abc", keywords=("stop",), streams=("mic",)),
        {"kwsd": "0.1", "schema": 1, "model": "sha256:abc", "keywords": ["stop"], "streams": ["mic"]},
    ),
    "dropped": (Dropped(count=12), {"count": 12}),
}


def told(line):
    """The line as [(key, value)] in its order."""
    return json.loads(line, object_pairs_hook=list)


def compact(line):
    return json.dumps(json.loads(line), separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


# --- the line ---


@pytest.mark.parametrize(("event", "fields"), EVENTS.values(), ids=EVENTS.keys())
def test_a_line_is_compact_json_with_head_first_and_fields_after(event, fields, request):
    line = Stamp().line(event)
    assert line == compact(line)
    assert line.count(b"\n") == 1
    pairs = told(line)
    assert [key for key, _ in pairs[:5]] == ["v", "type", "id", "seq", "time"]
    assert [key for key, _ in pairs[5:]] == list(fields)
    whole = json.loads(line)
    assert {key: whole[key] for key in fields} == fields
    assert whole["v"] == 1
    assert whole["type"] == request.node.callspec.id


@pytest.mark.parametrize(("notice", "fields"), NOTICES.values(), ids=NOTICES.keys())
def test_a_notice_to_one_reader_has_no_place_in_the_sequence(notice, fields, request):
    line = unnumbered(notice)
    assert line == compact(line)
    pairs = told(line)
    assert [key for key, _ in pairs] == ["v", "type", "time", *fields]
    assert json.loads(line) | fields == json.loads(line)
    assert json.loads(line)["type"] == request.node.callspec.id


@pytest.mark.parametrize(
    ("event", "absent"),
    [
        (Reload(ok=True), {"error"}),
        (Overrun(stream="mic", lost_samples=5), {"skipped_windows", "device_overflows"}),
    ],
)
def test_what_is_not_there_is_not_told(event, absent):
    assert not absent & json.loads(Stamp().line(event)).keys()


def test_a_recording_has_no_latency():
    offline = {name: getattr(HEARD, name) for name in HEARD.__struct_fields__ if name != "latency_ms"}
    assert "latency_ms" not in json.loads(Stamp().line(Heard(**offline)))


@pytest.mark.parametrize("name", ["Küche", "two\nlines", 'a "quoted" one', "日本", "\u2028"])
def test_any_name_of_a_stream_stays_on_one_line(name):
    line = Stamp().line(AudioLost(stream=name, reason="unplugged"))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert json.loads(line)["stream"] == name


def test_events_are_numbered_from_0_on_in_their_order():
    stamp = Stamp()
    numbers = [json.loads(stamp.line(event))["seq"] for event, _ in EVENTS.values()]
    assert numbers == list(range(len(EVENTS)))
    assert json.loads(Stamp().line(HEARD))["seq"] == 0


def test_an_event_is_dated_when_it_is_told():
    before = time.time()
    line = json.loads(Stamp().line(HEARD))
    after = time.time()
    dated = datetime.fromisoformat(line["time"]).timestamp()
    assert before - 0.001 <= dated <= after
    assert int(before * 1000) <= decoded(line["id"]) >> 80 <= int(after * 1000)


# --- time ---


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (1_795_369_250.125, "2026-11-22T17:40:50.125Z"),
        (1_795_369_250.0, "2026-11-22T17:40:50.000Z"),  # milliseconds are always told
        (1_795_369_250.9999, "2026-11-22T17:40:50.999Z"),  # and never a later one than it is
    ],
)
def test_times_are_utc_to_the_millisecond(now, text):
    assert iso(now) == text
    assert abs(datetime.fromisoformat(text).astimezone(UTC).timestamp() - now) < 0.001


# --- id ---


def decoded(identity):
    number = 0
    for character in identity:
        number = number * 32 + CROCKFORD.index(character)
    return number


def test_an_id_is_26_characters_without_those_that_look_alike():
    for _ in range(200):
        assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", ulid(time.time()))


@pytest.mark.parametrize("now", [0.0, 0.001, 1_795_369_250.125, 2**48 / 1000 - 1])
def test_an_id_holds_its_time(now):
    assert decoded(ulid(now)) >> 80 == int(now * 1000)


def test_an_id_known_by_heart():
    assert ulid(1_469_918_176.385)[:10] == "01ARYZ6S41"  # the example of the ULID specification


def test_ids_sort_by_time():
    times = [0.0, 0.001, 0.031, 0.032, 1.0, 1_000.5, 1_795_369_250.125, 1_795_369_250.126, 10_000_000_000.0]
    ids = [ulid(now) for now in times]
    assert sorted(ids) == ids


def test_ids_of_one_millisecond_are_unique():
    assert len({ulid(1_795_369_250.125) for _ in range(10_000)}) == 10_000
