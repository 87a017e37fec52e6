"""`config.yaml` → one frozen `Config`, strict. Command line > `KWSD_*` environment > file > default."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta

from kwsd.address import Address, parse_address, url
from kwsd.audio_format import FASTEST, SAMPLE_RATE, SLOWEST
from kwsd.errors import ConfigError
from kwsd.event import EVENT_TYPES
from kwsd.paths import kind_of
from kwsd.settings_file import SettingsFile, place_of

DEFAULT_PATH = Path(__file__).with_name("config.yaml")  # the top-level config.yaml, carried by the package
MODELS = DEFAULT_PATH.with_name("models")  # those that kwsd comes with
MISSING = "no such config; leave out --config to use the one kwsd comes with"
OF_OURS = ("folder", "places")  # fields of a config that are no keys
ALL = "all"  # of a model's words; as a key of `keywords`, those that are not named
ENVIRONMENT = "KWSD_"
OF_HOOKS = "KWSD_EVENT_"  # what a hook is told of its event: no settings, should it call kwsd
MOST_SATELLITES = 4096  # at once
MOST_ZEROCONF = 63  # bytes of a name in mDNS
NOT_SETTINGS = {"KWSD_DATA", "KWSD_MINUTES", "KWSD_DEB"}  # recordings, how much of them, and the package, for tests

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Release = Annotated[float, Meta(gt=0.0, le=1.0)]  # no score falls below 0
Milliseconds = Annotated[float, Meta(ge=0.0, le=600_000.0)]
Seconds = Annotated[float, Meta(ge=0.0, le=60.0)]
Count = Annotated[int, Meta(ge=1, le=10_000)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+$")]
Names = Annotated[tuple[str, ...], Meta(min_length=1)]
Group = Annotated[tuple[Name, ...], Meta(min_length=1)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every section refuses keys it does not know."""


class MicrophoneConfig(_Section, frozen=True, kw_only=True, tag_field="source", tag="microphone"):
    """A PortAudio input device."""

    name: Name = "mic"
    device: str | int = "default"
    channel: Count | Literal["mix"] = 1
    block_ms: Annotated[float, Meta(ge=5.0, le=200.0)] = 100.0


class FileConfig(_Section, frozen=True, kw_only=True, tag_field="source", tag="file"):
    """A recording, played through the daemon."""

    path: str
    name: Name = "file"
    channel: Count | Literal["mix"] = "mix"
    realtime: bool = True


class PcmConfig(_Section, frozen=True, kw_only=True, tag_field="source", tag="pcm"):
    """Raw samples from stdin or a FIFO."""

    path: str = "-"
    name: Name = "pcm"
    rate: Annotated[int, Meta(ge=SLOWEST, le=FASTEST)] = SAMPLE_RATE
    channels: Annotated[int, Meta(ge=1, le=64)] = 1
    format: Literal["s16le", "s32le", "f32le"] = "s16le"
    channel: Count | Literal["mix"] = "mix"
    reopen: bool = True


StreamConfig = MicrophoneConfig | FileConfig | PcmConfig


class ListenConfig(_Section, frozen=True, kw_only=True):
    """Where satellites connect that send their audio."""

    on: tuple[str, ...] = ()
    token_file: str | None = None
    group: Name | None = None
    streams: Annotated[int, Meta(ge=1, le=MOST_SATELLITES)] = 16
    silent_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 30.0


class CaptureConfig(_Section, frozen=True, kw_only=True):
    """When a microphone counts as deaf."""

    dead_after_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 30.0
    floor_dbfs: Annotated[float, Meta(ge=-120.0, le=0.0)] = -85.0


class HttpConfig(_Section, frozen=True, kw_only=True):
    """Where the page, metrics and health are served."""

    on: tuple[str, ...] = ()
    token_file: str | None = None
    group: Name | None = None
    page: bool = True


class WyomingConfig(_Section, frozen=True, kw_only=True):
    """Where clients of the Wyoming protocol find a wake-word service."""

    on: tuple[str, ...] = ()
    group: Name | None = None
    unprotected: bool = False
    zeroconf: Name | None = None


class WindowConfig(_Section, frozen=True, kw_only=True):
    """How often a window is scored."""

    hop_ms: Annotated[float, Meta(ge=10.0, le=1000.0)] = 100.0
    max_batch: Annotated[int, Meta(ge=1, le=256)] = 16
    max_wait_ms: Annotated[float, Meta(ge=0.0, le=1000.0)] = 20.0


class KeywordConfig(_Section, frozen=True, kw_only=True):
    """What one keyword does differently; what is not said is as in `debouncer`."""

    threshold: Share | None = None
    release: Release | None = None
    margin: Share | None = None
    min_hits: Count | None = None
    refractory_ms: Milliseconds | None = None
    isolation_speech_s: Seconds | None = None


class DebouncerConfig(_Section, frozen=True, kw_only=True):
    """When a score becomes a detection."""

    smoothing_ms: Annotated[float, Meta(gt=0.0, le=10_000.0)] = 300.0
    threshold: Share | None = None
    release: Release | None = None
    margin: Share = 0.1
    min_hits: Count = 1
    refractory_ms: Milliseconds = 500.0
    isolation_s: Seconds = 2.5
    isolation_speech_s: Seconds = 1.2
    wary_s: Seconds = 10.0
    wary_threshold: Share = 0.85


class ArbitrationConfig(_Section, frozen=True, kw_only=True):
    """Which of the streams that hear one another's words tells of one."""

    groups: tuple[Group, ...] = ()
    wait_ms: Annotated[float, Meta(ge=0.0, le=2000.0)] = 300.0
    gain_db: dict[str, Annotated[float, Meta(ge=-60.0, le=60.0)]] = {}


class SocketConfig(_Section, frozen=True, kw_only=True):
    """The UNIX socket for readers of events."""

    enabled: bool = True
    path: str = "auto"
    group: Name | None = None
    queue: Count = 256
    control: bool = True


class MqttConfig(_Section, frozen=True, kw_only=True):
    """The MQTT broker that gets events."""

    broker: str | None = None
    site: Name = "home"
    user_file: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    discovery: Annotated[str, Meta(pattern="^[^+#\\x00/][^+#\\x00]*$")] | None = "homeassistant"
    state_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 30.0
    queue: Count = 256
    keep_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 60.0


class ClipsConfig(_Section, frozen=True, kw_only=True):
    """Where the sound of what was heard is kept."""

    folder: str | None = None
    most_mb: Annotated[int, Meta(ge=1, le=1_000_000)] = 100


class SinksConfig(_Section, frozen=True, kw_only=True):
    """Where events go."""

    stdout: bool = True
    socket: SocketConfig = SocketConfig()
    mqtt: MqttConfig = MqttConfig()
    clips: ClipsConfig = ClipsConfig()


class HookConfig(_Section, frozen=True, kw_only=True):
    """A program or a webhook that events start."""

    name: Name | None = None
    events: tuple[str, ...] = ("detection",)
    streams: Names | None = None
    keywords: Names | None = None
    run: Names | None = None
    shell: str | None = None
    post: str | None = None
    token_file: str | None = None
    within_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 10.0
    at_once: Annotated[int, Meta(ge=1, le=64)] = 2
    waiting: Annotated[int, Meta(ge=0, le=1024)] = 16


class EventsConfig(_Section, frozen=True, kw_only=True):
    """What is told besides detections and what goes wrong."""

    rejected: bool = False
    heartbeat_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0


class Config(_Section, frozen=True, kw_only=True):
    """Everything a run needs to know. `folder` is what relative paths start from, `places` where a key was set."""

    model: str = "commands"
    model_sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")] | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    engine: Literal["auto", "native", "onnxruntime"] = "auto"
    keywords: Literal["all"] | tuple[str, ...] | dict[str, KeywordConfig] = "all"
    streams: tuple[StreamConfig, ...] = (MicrophoneConfig(),)
    listen: ListenConfig = ListenConfig()
    wyoming: WyomingConfig = WyomingConfig()
    capture: CaptureConfig = CaptureConfig()
    window: WindowConfig = WindowConfig()
    debouncer: DebouncerConfig = DebouncerConfig()
    arbitration: ArbitrationConfig = ArbitrationConfig()
    events: EventsConfig = EventsConfig()
    sinks: SinksConfig = SinksConfig()
    hooks: tuple[HookConfig, ...] = ()
    http: HttpConfig = HttpConfig()
    folder: str = "."
    places: dict[str, str] = {}

    def resolve(self, path: str) -> Path:
        """A path of the config, relative to the folder the config lies in. Raises ConfigError for what is none."""
        if "\0" in path:
            raise ConfigError(f"{path!r}: no path has a zero byte in it")
        try:
            return Path(self.folder) / Path(path).expanduser()
        except RuntimeError:
            raise ConfigError(f"{path}: nobody here is called so, or has a home; write the whole path") from None

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Where it turns out that a key cannot be used: raises ConfigError with the place at which that was set."""
        try:
            yield
        except ConfigError as error:
            key = str(error).partition(": ")[0]
            within = (where for other, where in self.places.items() if other.startswith(f"{key}."))
            place = place_of(key, self.places) or next(within, None)
            if place is None:
                raise
            raise ConfigError(f"{place}: {error}", exit_code=error.exit_code) from error.__cause__

    def chosen(self, known: Iterable[str]) -> dict[str, KeywordConfig]:
        """The keywords to listen for, of a model that knows these, each with what it does differently. One may be
        among them that the model does not know."""
        if not isinstance(self.keywords, dict):
            return {word: KeywordConfig() for word in (known if self.keywords == ALL else self.keywords)}
        others = self.keywords.get(ALL)
        if others is None:
            return self.keywords
        own = {word: keyword for word, keyword in self.keywords.items() if word != ALL}
        differing = {word: msgspec.structs.replace(others, **_said(keyword)) for word, keyword in own.items()}
        return dict.fromkeys(known, others) | differing

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where satellites connect. Raises ConfigError for what is no address."""
        return tuple(parse_address(text, self.resolve) for text in self.listen.on)

    @property
    def has_satellites(self) -> bool:
        """Whether streams may come and go."""
        return bool(self.listen.on or self.wyoming.on)

    @property
    def wants_rejected(self) -> bool:
        """Whether somebody wants to know of words that scored well and were not told."""
        return self.events.rejected or bool(self.http.on)

    @property
    def http_addresses(self) -> tuple[Address, ...]:
        """Where page, metrics and health are served. Raises ConfigError for what is no address."""
        return tuple(parse_address(text, self.resolve) for text in self.http.on)

    @property
    def wyoming_addresses(self) -> tuple[Address, ...]:
        """Where clients of the Wyoming protocol connect. Raises ConfigError for what is no address."""
        return tuple(parse_address(text, self.resolve) for text in self.wyoming.on)

    @property
    def model_path(self) -> Path:
        """Where the artefact is."""
        return shipped_model(self.model) or self.resolve(self.model)


def shipped_model(name: str) -> Path | None:
    """The artefact of a model that kwsd comes with, `commands` or `commands-fast`; None if it is none of their
    names."""
    path = MODELS / f"{name}.onnx"
    return path if Path(name).name == name and kind_of(path) is not None else None


def load_config(
    path: Path | None, settings: tuple[str, ...] = (), environment: Mapping[str, str] = os.environ
) -> Config:
    """Read a config file, then the environment, then `KEY=VALUE` settings of the command line over it.

    `path` None takes the config that came with kwsd; relative paths then start where we are. Raises ConfigError naming
    file, line, key and remedy.
    """
    place = SettingsFile(path or DEFAULT_PATH, Config, MISSING, hidden=OF_OURS)
    tree = place.read()
    for source, key, value in (*_from_environment(environment), *_from_settings(settings)):
        if key.startswith("keywords.") and tree.get("keywords", ALL) == ALL:
            tree["keywords"] = {ALL: {}}  # one word is to differ, not to be the only one
        place.override(tree, source, key, value)
    for key in OF_OURS:
        if key in tree:
            raise place.error(key, "unknown key; relative paths start where the config lies")
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise place.complain(error) from None
    places = {key: where for key, where in place.places.items() if path or not where.startswith(f"{DEFAULT_PATH}:")}
    config = msgspec.structs.replace(config, folder=str(path.parent if path else Path.cwd()), places=places)
    _check_across_fields(config, place)
    return config


def _check_across_fields(config: Config, place: SettingsFile) -> None:
    debouncer = config.debouncer
    release, threshold = debouncer.release, debouncer.threshold
    if release is not None and threshold is not None and release > threshold:
        raise place.error("debouncer.release", f"{release} is above the threshold {threshold}; set it lower")
    if not config.keywords:
        raise place.error("keywords", "is empty; name at least one keyword, or say all")
    for i, stream in enumerate(config.streams):
        if isinstance(stream, PcmConfig) and stream.channel != "mix" and stream.channel > stream.channels:
            what = f"there are {stream.channels}, and no {stream.channel}; raise channels, or choose another, or mix"
            raise place.error(f"streams.{i}.channel", what)
    names = [stream.name for stream in config.streams]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise place.error(f"streams.{i}", f"the name {name!r} is taken; give every stream a name of its own")
    if not config.streams and not config.has_satellites:
        raise place.error("streams", "is empty; name a stream, or an address in listen.on or wyoming.on")
    _check_addresses(config, place)
    _check_mqtt(config.sinks.mqtt, place)
    _check_zeroconf(config, place)
    _check_arbitration(config, place)
    for i, hook in enumerate(config.hooks):
        _check_hook(hook, f"hooks.{i}", place)
        if not config.has_satellites:
            _check_names(hook.streams or (), names, f"hooks.{i}.streams", place)
    stdin = [i for i, stream in enumerate(config.streams) if isinstance(stream, PcmConfig) and stream.path == "-"]
    if len(stdin) > 1:
        raise place.error(f"streams.{stdin[1]}", "only one stream can read stdin")


def _check_arbitration(config: Config, place: SettingsFile) -> None:
    names = [stream.name for stream in config.streams]
    taken: dict[str, int] = {}
    for i, group in enumerate(config.arbitration.groups):
        where = f"arbitration.groups.{i}"
        members = [name for name in names if is_among(name, group)]
        if twice := next((name for name in members if name in taken), None):
            raise place.error(where, f"{twice!r} is in groups.{taken[twice]} as well; a stream is in one group at most")
        taken |= dict.fromkeys(members, i)
        if not config.has_satellites:
            fitting_none = [name for name in group if not any(is_among(stream, (name,)) for stream in names)]
            _check_names(fitting_none, names, where, place)
            if len(members) < 2:
                raise place.error(
                    where, f"{', '.join(members)} is alone in it; name those that hear the same words, or leave it out"
                )
    for i, stream in enumerate(config.streams):
        if isinstance(stream, FileConfig) and not stream.realtime and stream.name in taken:
            what = f"faster than time nothing is at one time with others, of arbitration.groups.{taken[stream.name]}"
            raise place.error(f"streams.{i}.realtime", f"{what}; say true, or take {stream.name!r} out of that")
    if not config.has_satellites:
        _check_names(config.arbitration.gain_db, names, "arbitration.gain_db", place)


def _check_names(wanted: Iterable[str], names: list[str], where: str, place: SettingsFile) -> None:
    """Raises ConfigError for one that no stream has."""
    for name in wanted:
        if name not in names:
            raise place.error(where, f"no stream is called {name!r}; there are {', '.join(names)}")


def is_among(stream: str, group: Iterable[str]) -> bool:
    """Whether a group names a stream: as it is called, or by a pattern as for files."""
    return any(stream == name or fnmatchcase(stream, name) for name in group)


def _check_hook(hook: HookConfig, where: str, place: SettingsFile) -> None:
    if sum(way is not None for way in (hook.run, hook.shell, hook.post)) != 1:
        raise place.error(where, "say one of run: [PROGRAM, ARGUMENT, …], shell: COMMAND, or post: URL")
    for kind in hook.events:
        if kind not in EVENT_TYPES:
            raise place.error(f"{where}.events", f"no event is called {kind!r}; there are {', '.join(EVENT_TYPES)}")
    if any("\x00" in said for said in (hook.shell or "", *(hook.run or ()))):
        raise place.error(where, "has a NUL character in it, which no program can be told")
    if "hook_failed" in hook.events:
        raise place.error(f"{where}.events", "a hook that fails would start itself; leave hook_failed out")
    if hook.token_file is not None and hook.post is None:
        raise place.error(f"{where}.token_file", "is for post; a program reads its secrets itself")
    if hook.post is not None and re.match("[^/]*//[^/?#]*@", hook.post):  # which is not repeated here
        what = "has a user or a password in it; put a token into a file of its own, and name that in token_file"
        raise place.error(f"{where}.post", what)
    if hook.post is not None and not _is_url(hook.post, ("http", "https")):
        raise place.error(f"{where}.post", f"{hook.post} is no address; write http://HOST/PATH or https://HOST/PATH")


def _check_mqtt(mqtt: MqttConfig, place: SettingsFile) -> None:
    if mqtt.broker is not None and "@" in mqtt.broker:  # which is not repeated here
        raise place.error(
            "sinks.mqtt.broker",
            "has a user or a password in it; put each into a file of its own, and name those in "
            "user_file and password_file",
        )
    if mqtt.broker is not None and (not _is_url(mqtt.broker, ("mqtt", "mqtts")) or urlsplit(mqtt.broker).path):
        raise place.error("sinks.mqtt.broker", f"{mqtt.broker} is no broker; write mqtt://HOST:1883 or mqtts://HOST")
    if mqtt.broker is None or not mqtt.broker.startswith("mqtts:"):
        for key in ("ca_file", "cert_file", "key_file"):
            if getattr(mqtt, key) is not None:
                raise place.error(f"sinks.mqtt.{key}", "is for TLS; write mqtts://… as the broker")
    if mqtt.key_file is not None and mqtt.cert_file is None:
        raise place.error("sinks.mqtt.key_file", "belongs to a cert_file; name that, too")
    if mqtt.password_file is not None and mqtt.user_file is None:
        raise place.error("sinks.mqtt.password_file", "belongs to a user_file; name that, too")


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    try:
        url = urlsplit(text)
        (url.hostname or "").encode("idna")
        return url.scheme in schemes and bool(url.hostname) and url.username is None and (url.port or 1) > 0
    except ValueError:
        return False


def _check_addresses(config: Config, place: SettingsFile) -> None:
    everywhere = [("listen.on", i, text) for i, text in enumerate(config.listen.on)]
    everywhere += [("http.on", i, text) for i, text in enumerate(config.http.on)]
    everywhere += [("wyoming.on", i, text) for i, text in enumerate(config.wyoming.on)]
    events = config.sinks.socket
    taken = [f"unix:{config.resolve(events.path)}"] if events.enabled and events.path != "auto" else []
    for where, i, text in everywhere:
        try:
            address = parse_address(text, config.resolve)
        except ConfigError as error:
            raise place.error(f"{where}.{i}", str(error)) from None
        door = f"unix:{address.path}" if address.path else url(address.host, address.port)
        if door in taken and not text.endswith(":0"):
            raise place.error(f"{where}.{i}", f"{text} is there twice")
        taken.append(door)
        if address.beyond and where == "http.on" and config.http.token_file is None:
            raise place.error(
                f"{where}.{i}",
                f"{text} can be reached from other machines; name an http.token_file, or use 127.0.0.1 or unix:PATH",
            )
        if address.beyond and where == "wyoming.on" and not config.wyoming.unprotected:
            raise place.error(
                f"{where}.{i}",
                f"{text} can be reached from other machines, and the protocol has no password; say "
                "wyoming.unprotected: true, or use 127.0.0.1",
            )
        if address.beyond and where == "listen.on" and config.listen.token_file is None:
            raise place.error(
                f"listen.on.{i}",
                f"{text} can be reached from other machines; name a listen.token_file, or use 127.0.0.1",
            )


def _check_zeroconf(config: Config, place: SettingsFile) -> None:
    if config.wyoming.zeroconf is None:
        return
    if not any(address.beyond for address in config.wyoming_addresses):
        raise place.error("wyoming.zeroconf", "no address in wyoming.on can be reached from other machines")
    if len(config.wyoming.zeroconf.encode()) > MOST_ZEROCONF:
        raise place.error("wyoming.zeroconf", f"is longer than {MOST_ZEROCONF} bytes; choose a shorter name")


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """`KWSD_DEBOUNCER__THRESHOLD=0.9`: two underscores part a section from its key."""
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT) and name not in NOT_SETTINGS and not name.startswith(OF_HOOKS):
            yield name, name.removeprefix(ENVIRONMENT).lower().replace("__", "."), environment[name]


def _from_settings(settings: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting}: write it as KEY=VALUE, e.g. --set debouncer.threshold=0.9")
        yield f"--set {setting}", key.strip(), value


def effective_yaml(config: Config) -> str:
    """The whole configuration as it will be used, as YAML that reads back to the same."""
    tree = msgspec.to_builtins(config)
    folder = tree["folder"]
    for hidden in OF_OURS:
        del tree[hidden]
    tree["model"] = str(config.model_path.absolute())
    return f"# relative paths start from {Path(folder).absolute()}\n" + str(
        yaml.dump(tree, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True)
    )


def _said(keyword: KeywordConfig) -> dict[str, Any]:
    """What it does differently."""
    return {key: value for key, value in msgspec.structs.asdict(keyword).items() if value is not None}


def keywords_yaml(config: Config) -> str:
    """The keywords of a config as YAML that reads back to the same, and what is to be done with it."""
    keywords = config.keywords
    said = {word: _said(keyword) for word, keyword in keywords.items()} if isinstance(keywords, dict) else keywords
    tree = {"keywords": msgspec.to_builtins(said)}
    return "# in place of `keywords:` in the config\n" + str(
        yaml.dump(tree, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True, default_flow_style=None)
    )
