"""What Home Assistant is told, against its documented discovery schema."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kwsd.event import KeywordState
from kwsd.home_assistant import Setting, Topics, discovery, level, slug

SCHEMA = json.loads(Path(__file__).with_name("home_assistant.schema.json").read_text())
KEYWORDS = {
    word: KeywordState(threshold=0.7, configured=0.7, release=0.4, lowest=0.4) for word in ("stop", "go", "tea pot")
}
STREAMS = ("\ufdd0", "kitchen", "Küche/1", "a+b#c", "threshold", "attic %2F", "🎤")
COMPONENTS = {"event", "sensor", "binary_sensor", "switch", "number", "device_automation"}


def valid(kind, value):
    """Raises jsonschema.ValidationError for what the documentation does not allow."""
    Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]}).validate(value)


def found(site="home", streams=STREAMS):
    return list(discovery(Setting(Topics(site), "homeassistant", "1.2", 30.0), streams, KEYWORDS))


@pytest.mark.parametrize("site", ["home", "Haus 1/2", "ü"])
def test_everything_that_is_told_is_as_documented(site):
    told = found(site)
    assert {topic.split("/")[1] for topic, _ in told} == COMPONENTS
    for topic, payload in told:
        valid("discovery_topic", topic)
        valid(topic.split("/")[1], payload)


def test_the_schema_sees_what_is_wrong():
    _, event = next(entry for entry in found() if "/event/" in entry[0])
    for wrong in (
        event | {"event_types": []},
        event | {"wombat": 1},
        {k: event[k] for k in event if k != "state_topic"},
    ):
        assert list(Draft202012Validator({"$ref": "#/$defs/event", "$defs": SCHEMA["$defs"]}).iter_errors(wrong))


def test_a_level_is_unknown_when_three_in_a_row_did_not_come():
    late = {payload["name"]: payload["expire_after"] for _, payload in found() if "expire_after" in payload}
    assert late == {"Level": 90, "Lag": 90}


def test_no_two_entities_or_topics_are_the_same():
    told = found()
    assert len({topic for topic, _ in told}) == len(told) == len(STREAMS) * (6 + 3) + 3
    ids = [payload["unique_id"] for _, payload in told if "unique_id" in payload]
    assert len(set(ids)) == len(ids) == len(STREAMS) * 6 + 3
    states = {payload["state_topic"] for _, payload in told if "/event/" in payload.get("value_template", "")}
    assert all(topic.count("/") == 3 for topic in states)


@given(st.text(min_size=1, max_size=64))
def test_any_name_is_one_level_of_a_topic_and_comes_back(name):
    from urllib.parse import unquote

    there = level(name)
    assert not set("/+#") & set(there) and there.isprintable()
    if not any("\ud800" <= letter <= "\udfff" for letter in name):
        assert unquote(there) == name
        assert unquote(Topics("x").of_stream(name).split("/")[2]) == name
        assert set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


def test_a_stream_is_not_taken_for_another_topic():
    topics = Topics("home")
    others = {topics.availability, topics.events, topics.threshold("x").rsplit("/", 1)[0]}
    assert not others & {topics.of_stream(name) for name in ("availability", "event", "threshold")}
    assert topics.of_stream("kitchen") == "kwsd/home/kitchen"


def test_names_that_look_alike_have_ids_of_their_own():
    names = ["a b", "a_b", "a/b", "A_b", "a__b", "ä", "ö", "_a", "a_", "_", "__", "a"]
    assert len({slug(name) for name in names}) == len(names)
    assert all(not name.startswith("_") and not name.endswith("_") and "__" not in name for name in map(slug, names))


def test_no_two_sites_share_a_device():
    ids = [
        str(payload["device"]["identifiers"]) + payload.get("unique_id", topic)
        for site, stream in (("home", "a_b"), ("home_a", "b"), ("home_a_b", "x"))
        for topic, payload in found(site, (stream,))
    ]
    assert len(ids) == len(set(ids))
