"""What Home Assistant is told so that it finds kwsd by itself: MQTT discovery, one message per entity. Pure.

After https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery and the pages of `event`, `sensor`,
`binary_sensor`, `switch`, `number` and device triggers there.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kwsd.event import KeywordState

OFTEN_MISSED = 3  # a level is unknown when so many in a row did not come
STEP = 0.01  # of thresholds

Payload = dict[str, Any]

# What the entities of a stream say that is the same for all streams.
_KEPT = ("score", "threshold", "start_s", "end_s", "latency_ms", "level_dbfs", "time")
_ATTRIBUTES = ", ".join(f"'{field}': value_json.{field} | default(none)" for field in _KEPT)
COMMAND: Payload = {
    "name": "Command",
    "value_template": f"{{{{ {{'event_type': value_json.keyword, {_ATTRIBUTES}}} | to_json }}}}",
    "icon": "mdi:account-voice",
}
LAST_WORD: Payload = {"name": "Last word", "value_template": "{{ value_json.keyword }}"}
LEVEL: Payload = {
    "name": "Level",
    "value_template": "{{ value_json.level_dbfs }}",
    "unit_of_measurement": "dBFS",
    "state_class": "measurement",
    "entity_category": "diagnostic",
    "icon": "mdi:microphone",
}
LAG: Payload = {
    "name": "Lag",
    "value_template": "{{ value_json.lag_ms }}",
    "unit_of_measurement": "ms",
    "device_class": "duration",
    "state_class": "measurement",
    "entity_category": "diagnostic",
}
PROBLEM: Payload = {
    "name": "Problem",
    "value_template": "{{ 'ON' if value_json.ailment else 'OFF' }}",
    "device_class": "problem",
    "entity_category": "diagnostic",
    "json_attributes_template": "{{ {'ailment': value_json.ailment} | to_json }}",
}
MUTE: Payload = {"name": "Mute", "icon": "mdi:microphone-off"}


@dataclass(frozen=True)
class Topics:
    """Where things are said, in one place. A stream or keyword is one level of a topic, whatever it is called."""

    site: str

    @property
    def base(self) -> str:
        return f"kwsd/{level(self.site)}"

    def has(self, topic: str) -> bool:
        """Whether it is one of ours."""
        return topic.startswith(f"{self.base}/")

    @property
    def availability(self) -> str:
        """Of the daemon: online or offline. Retained."""
        return f"{self.base}/availability"

    @property
    def events(self) -> str:
        """All events but detections, one JSON object each."""
        return f"{self.base}/event"

    def threshold(self, keyword: str) -> str:
        """From which score on it counts. Retained; `/set` takes another."""
        return f"{self.base}/threshold/{level(keyword)}"

    def of_stream(self, stream: str) -> str:
        """What its topics begin with."""
        return f"{self.base}/{_unreserved(level(stream))}"

    def detection(self, stream: str) -> str:
        """One JSON object per word heard."""
        return f"{self.of_stream(stream)}/detection"

    def state(self, stream: str) -> str:
        """Level, lag, ailment, now and then."""
        return f"{self.of_stream(stream)}/state"

    def stream_availability(self, stream: str) -> str:
        """Of the stream: online, or offline while it is lost or left. Retained."""
        return f"{self.of_stream(stream)}/availability"

    def mute(self, stream: str) -> str:
        """ON or OFF. Retained; `/set` takes either."""
        return f"{self.of_stream(stream)}/mute"


@dataclass(frozen=True)
class Setting:
    """What is to be found."""

    topics: Topics
    prefix: str  # of discovery topics
    version: str  # of kwsd
    state_s: float  # between two states of a stream


def discovery(
    setting: Setting, streams: Sequence[str], keywords: Mapping[str, KeywordState]
) -> Iterator[tuple[str, Payload]]:
    """Topic and payload of every entity there is."""
    for stream in streams:
        yield from _of_stream(setting, stream, keywords)
    device: Payload = {
        "identifiers": [f"kwsd_{slug(setting.topics.site)}"],
        "name": f"kwsd {setting.topics.site}",
        "model": "kwsd",
        "sw_version": setting.version,
    }
    for keyword, state in keywords.items():
        topic = setting.topics.threshold(keyword)
        number: Payload = {
            "name": f"Threshold {keyword}",
            "state_topic": topic,
            "command_topic": f"{topic}/set",
            "min": state.lowest,
            "max": 1.0,
            "step": STEP,
            "mode": "slider",
            "entity_category": "config",
            "icon": "mdi:tune-vertical",
        }
        name = f"threshold__{slug(keyword)}"
        number |= _common(setting, name, device, [setting.topics.availability])
        yield _topic(setting, "number", name), number


def _of_stream(setting: Setting, stream: str, keywords: Mapping[str, KeywordState]) -> Iterator[tuple[str, Payload]]:
    topics, site = setting.topics, slug(setting.topics.site)
    device: Payload = {
        "identifiers": [f"kwsd_{site}__{slug(stream)}"],
        "name": f"kwsd {stream}",
        "model": "microphone",
        "sw_version": setting.version,
        "via_device": f"kwsd_{site}",
    }
    both = [topics.availability, topics.stream_availability(stream)]
    for component, what, payload in _entities(setting, stream, keywords):
        name = f"{slug(stream)}__{what}"
        yield _topic(setting, component, name), payload | _common(setting, name, device, both)
    for keyword in keywords:
        topic = _topic(setting, "device_automation", f"{slug(stream)}__heard__{slug(keyword)}")
        yield topic, _trigger(topics.detection(stream), keyword) | {"device": device, "origin": _origin(setting)}


def _entities(
    setting: Setting, stream: str, keywords: Mapping[str, KeywordState]
) -> Iterator[tuple[str, str, Payload]]:
    """Component, name and what is its own, of every entity of a stream."""
    topics = setting.topics
    heard, state, mute = topics.detection(stream), topics.state(stream), topics.mute(stream)
    late = {"state_topic": state, "expire_after": round(OFTEN_MISSED * setting.state_s)}
    yield "event", "command", COMMAND | {"state_topic": heard, "event_types": list(keywords)}
    yield "sensor", "last_word", LAST_WORD | {"state_topic": heard}
    yield "sensor", "level", LEVEL | late
    yield "sensor", "lag", LAG | late
    yield "binary_sensor", "problem", PROBLEM | {"state_topic": state, "json_attributes_topic": state}
    yield "switch", "mute", MUTE | {"state_topic": mute, "command_topic": f"{mute}/set"}


def _trigger(heard: str, keyword: str) -> Payload:
    """For automations that begin with a word."""
    return {
        "automation_type": "trigger",
        "topic": heard,
        "value_template": "{{ value_json.keyword }}",
        "payload": keyword,
        "type": "heard",
        "subtype": keyword,
    }


def _common(setting: Setting, name: str, device: Payload, availability: Sequence[str]) -> Payload:
    """What every entity says."""
    return {
        "unique_id": f"kwsd_{slug(setting.topics.site)}__{name}",
        "availability": [{"topic": topic} for topic in availability],
        "availability_mode": "all",
        "device": device,
        "origin": _origin(setting),
    }


def _origin(setting: Setting) -> Payload:
    return {"name": "kwsd", "sw_version": setting.version}


def _topic(setting: Setting, component: str, name: str) -> str:
    return f"{setting.prefix}/{component}/kwsd_{slug(setting.topics.site)}/{name}/config"


def all_of(prefix: str, site: str) -> str:
    """Where all entities of a site are told of, with MQTT's wildcards."""
    return f"{prefix}/+/kwsd_{slug(site)}/+/config"


def owner(topic: str) -> str | None:
    """The slug of the stream that an entity belongs to, by its topic; None: to the daemon."""
    *_, component, _, name, _ = topic.split("/")
    return None if component == "number" else name.partition("__")[0]


def level(name: str) -> str:
    """A name as one level of an MQTT topic: what has a meaning there, or brokers hang up on, is written as %XX."""
    return "".join(letter if letter.isprintable() and letter not in "%/+#" else _percent(letter) for letter in name)


def _percent(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogatepass"))


def _unreserved(name: str) -> str:
    """A stream is not called like another topic beside it."""
    return f"%{ord(name[0]):02X}{name[1:]}" if name in {"availability", "event", "threshold"} else name


def slug(name: str) -> str:
    """A name in letters, digits, - and _ only, as Home Assistant wants them, and still one of its own. None begins or
    ends with _ or has two in a row: these part names."""
    plain = re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_")
    return plain if plain == name else f"{plain or 'x'}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
