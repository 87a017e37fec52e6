"""The schemas say what is really read and written: real lines and the real config fit them, wrong ones do not."""

import json
import subprocess

import msgspec
import pytest
from jsonschema import Draft202012Validator
from running import KWSD, Running, clean_environment

from kwsd import event
from kwsd.config import DEFAULT_PATH, Config, effective_yaml, load_config
from kwsd.recording import DEMO
from kwsd.schema import config_schema, events_schema
from kwsd.settings_file import SettingsFile

CONFIG, EVENTS = config_schema(), events_schema()


def fits(instance, schema):
    return Draft202012Validator(schema).is_valid(instance)


def keys(schema):
    """[(section, key, its schema)] of all sections."""
    return [
        (name, key, said) for name, section in schema["$defs"].items() for key, said in section["properties"].items()
    ]


# --- both ---


@pytest.mark.parametrize("schema", [CONFIG, EVENTS], ids=["config", "events"])
def test_a_schema_is_one(schema):
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("what", "schema"), [("config", CONFIG), ("events", EVENTS)])
def test_the_command_prints_it(kwsd, what, schema):
    result = kwsd("schema", what)
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == schema


def test_there_is_no_other_schema(kwsd):
    result = kwsd("schema", "model")
    assert result.code == 2
    assert "config" in result.err and "events" in result.err


# --- config ---


def test_every_key_of_the_config_says_what_it_is():
    assert [(section, key) for section, key, said in keys(CONFIG) if not said.get("description")] == []


def test_every_key_of_the_config_that_may_be_left_out_has_a_default():
    for section, key, said in keys(CONFIG):
        assert "default" in said or key in CONFIG["$defs"][section]["required"], (section, key)


def test_defaults_are_those_that_the_config_shows():
    shown, default = (effective_yaml(config).splitlines()[1:] for config in (load_config(None, (), {}), Config()))
    assert shown == default


def test_the_schema_knows_no_place_of_this_machine():
    assert str(DEFAULT_PATH.parent.parent) not in json.dumps(CONFIG)
    assert "folder" not in CONFIG["$defs"]["Config"]["properties"]


def test_the_config_that_kwsd_comes_with_fits():
    assert fits(SettingsFile(DEFAULT_PATH, Config, "").read(), CONFIG)


@pytest.mark.parametrize(
    ("config", "right"),
    [
        ({}, True),
        ({"keywords": {"on": {"threshold": 0.7}}}, True),
        ({"keywords": ["on", "off"]}, True),
        ({"streams": [{"source": "file", "path": str(DEMO)}]}, True),
        ({"streams": [{"source": "file"}]}, False),
        ({"streams": [{"source": "tape", "path": "a.wav"}]}, False),
        ({"debouncer": {"threshold": 1.5}}, False),
        ({"debouncer": {"treshold": 0.5}}, False),
        ({"device": "gpu"}, False),
        ({"folder": "."}, False),
    ],
)
def test_the_schema_refuses_what_kwsd_refuses(config, right, kwsd, tmp_path):
    assert fits(config, CONFIG) == right
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert kwsd("check", "--config", "config.yaml").code == (0 if right else 78)


# --- events ---


@pytest.fixture(scope="module")
def lines():
    """The lines of a replay and of a daemon."""
    replay = [KWSD, "replay", DEMO, "--set", "events.rejected=true", "--set", "debouncer.threshold=0.9"]
    replayed = subprocess.run(replay, capture_output=True, env=clean_environment(), timeout=60, check=True).stdout
    settings = ("events.heartbeat_s=0.5", "sinks.socket.enabled=false")
    with Running("--source", str(DEMO), *(part for one in settings for part in ("--set", one))) as daemon:
        daemon.wait_for("detection")
        assert daemon.stop()[0] == 0
    return [*map(json.loads, replayed.splitlines()), *daemon.events]


def test_real_events_fit(lines):
    assert {line["type"] for line in lines} >= {"ready", "detection", "rejected", "heartbeat", "shutdown"}
    for line in lines:
        Draft202012Validator(EVENTS).validate(line)


def test_a_line_with_a_new_field_fits(lines):
    assert all(fits(line | {"new": 1}, EVENTS) for line in lines)


@pytest.mark.parametrize(
    "wrong", [{"type": "new"}, {"v": 2}, {"id": "short"}, {"seq": -1}, {"time": 7}, {"type": None}]
)
def test_a_wrong_line_does_not_fit(lines, wrong):
    assert not any(fits(line | wrong, EVENTS) for line in lines)


def test_a_line_without_what_it_needs_does_not_fit(lines):
    for line in lines:
        for key in set(line) & {"v", "type", "id", "seq", "time", "keyword", "reason", "streams"}:
            assert not fits({name: value for name, value in line.items() if name != key}, EVENTS), key


@pytest.mark.parametrize(
    "notice",
    [
        event.Hello(kwsd="0.1", schema=1, model="sha256:abc", keywords=("stop",), streams=("mic",)),
        event.Dropped(count=3),
        event.Answer(to="mute", ok=False, id=7, error="no such stream", exit_code=66),
    ],
)
def test_notices_fit(notice):
    assert fits(json.loads(event.unnumbered(notice)), EVENTS)


def test_every_event_there_is_is_in_the_schema():
    tags = {str(kind.__struct_config__.tag) for kind in event._Event.__subclasses__()}
    assert {key["enum"][0] for _, name, key in keys(EVENTS) if name == "type"} == tags
    assert len(EVENTS["oneOf"]) == len(tags)


def test_the_schema_says_what_the_source_says_of_a_field():
    [score] = [said for section, key, said in keys(EVENTS) if (section, key) == ("Heard", "score")]
    assert score == {"type": "number", "description": "smoothed posterior, 0 to 1"}


def test_fields_of_other_structs_are_plain(lines):
    assert fits(next(line for line in lines if line["type"] == "heartbeat"), EVENTS)
    assert "StreamState" in EVENTS["$defs"]
    assert msgspec.json.decode(msgspec.json.encode(EVENTS)) == EVENTS
