"""What a running daemon can be told, in one JSON object per command, whichever way it comes: over the socket, HTTP, or
MQTT. And what it remembers of it: which streams are muted, and which thresholds are not those of the configuration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from kwsd.config import Config, Names, Share
from kwsd.errors import USAGE, ConfigError
from kwsd.event import EVENT_TYPES, Event, Scores

SHOWN = 80  # characters of what was not understood


class _Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="command"):
    """One line of JSON; the answer carries its `id`."""

    id: str | int | None = None


class Subscribe(_Command, frozen=True, kw_only=True, tag="subscribe"):
    """Which events this reader wants from now on. An event that has no stream or keyword passes those filters."""

    scores: bool = False  # what the model says of every window, too
    types: tuple[str, ...] | None = None  # None: all
    streams: Names | None = None
    keywords: Names | None = None

    def wants(self, event: Event | Scores) -> bool:
        """Whether an event is to be told."""
        if isinstance(event, Scores):
            return self.scores and _among(event.stream, self.streams)
        if self.types is not None and event.__struct_config__.tag not in self.types:
            return False
        return _among(getattr(event, "stream", None), self.streams) and _among(
            getattr(event, "keyword", None), self.keywords
        )


class Mute(_Command, frozen=True, kw_only=True, tag="mute"):
    """Tell no more of what is said on these streams; without names: on any, those that come later as well."""

    streams: Names | None = None


class Unmute(_Command, frozen=True, kw_only=True, tag="unmute"):
    """Tell it again."""

    streams: Names | None = None


class Threshold(_Command, frozen=True, kw_only=True, tag="threshold"):
    """Until the next reload, another threshold for a keyword; None: the configured one again."""

    keyword: str
    value: Share | None = None


class Status(_Command, frozen=True, kw_only=True, tag="status"):
    """How the daemon is."""


class ReloadConfig(_Command, frozen=True, kw_only=True, tag="reload"):
    """Read the configuration again, as on SIGHUP."""


Command = Mute | Unmute | Threshold | Status | ReloadConfig
_decoder = msgspec.json.Decoder(Subscribe | Command)


def parse(line: bytes) -> Subscribe | Command:
    """Raises ConfigError for what is no command, with what would be one."""
    try:
        command: Subscribe | Command = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        said = line[:SHOWN].decode(errors="backslashreplace").strip()
        raise ConfigError(
            f'not understood ({error}): {said}; a command is one line such as {{"command": "status"}}, '
            "or mute, unmute, threshold, reload, subscribe",
            exit_code=USAGE,
        ) from None
    if isinstance(command, Subscribe) and command.types is not None:
        for kind in command.types:
            if kind not in EVENT_TYPES:
                raise ConfigError(f"subscribe: no event is called {kind!r}; there are {', '.join(EVENT_TYPES)}")
    return command


def check_known(given: Iterable[str], known: Iterable[str], kind: str) -> None:
    """Raises ConfigError for a name that is none of those known."""
    names = list(known)
    for name in given:
        if name not in names:
            raise ConfigError(f"there is no {kind} {name!r}; there are {', '.join(names) or 'none'}", exit_code=USAGE)


@dataclass(frozen=True)
class Muting:
    """Which streams are muted: all or none, but for the exceptions."""

    everything: bool = False
    exceptions: frozenset[str] = frozenset()

    def __contains__(self, stream: str) -> bool:
        return self.everything != (stream in self.exceptions)

    def changed(self, streams: Iterable[str] | None, muted: bool) -> "Muting":
        """With these streams muted or not; None: all, and those that come later."""
        if streams is None:
            return Muting(everything=muted)
        names = frozenset(streams)
        others = self.exceptions - names if muted == self.everything else self.exceptions | names
        return replace(self, exceptions=others)

    def without(self, streams: Iterable[str]) -> "Muting":
        """But for what was said of these streams."""
        return replace(self, exceptions=self.exceptions - frozenset(streams))


@dataclass(frozen=True)
class Adjustments:
    """What was changed since the configuration was read."""

    muting: Muting = Muting()
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by keyword

    def with_threshold(self, keyword: str, value: float | None) -> "Adjustments":
        """Another threshold for a keyword, or the configured one again."""
        others = {name: other for name, other in self.thresholds.items() if name != keyword}
        return replace(self, thresholds=others if value is None else others | {keyword: value})

    def applied_to(self, config: Config, keywords: Iterable[str]) -> Config:
        """The configuration with these thresholds, for a model with these keywords."""
        if not self.thresholds:
            return config
        own = dict(config.chosen(keywords))
        for name, value in self.thresholds.items():
            own[name] = msgspec.structs.replace(own[name], threshold=value)
        return msgspec.structs.replace(config, keywords=own)


def _among(name: str | None, wanted: tuple[str, ...] | None) -> bool:
    return name is None or wanted is None or name in wanted
