"""`config.yaml` → one frozen `Config`, strict. Command line > `KWSD_*` environment > file > default."""

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import yaml
from msgspec import Meta

from kwsd.errors import NO_INPUT, NO_PERMISSION, ConfigError

DEFAULT_PATH = Path(__file__).with_name("config.yaml")  # the top-level config.yaml, carried by the package
DEFAULT_MODEL = DEFAULT_PATH.with_name("models") / "commands.onnx"  # for a config that names none, wherever it lies
ENVIRONMENT = "KWSD_"
NOT_SETTINGS = {"KWSD_DATA"}  # names the recordings that the tests use

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Milliseconds = Annotated[float, Meta(ge=0.0, le=600_000.0)]
Seconds = Annotated[float, Meta(ge=0.0, le=60.0)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(min_length=1, max_length=64)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every section refuses keys it does not know."""


class MicrophoneConfig(_Section, frozen=True, kw_only=True, tag_field="source", tag="microphone"):
    """A PortAudio input device."""

    name: Name = "mic"
    device: str | int = "default"
    channel: Count | Literal["mix"] = 1
    block_ms: Annotated[float, Meta(ge=5.0, le=200.0)] = 50.0


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
    rate: Annotated[int, Meta(ge=4000, le=384_000)] = 16_000
    channels: Annotated[int, Meta(ge=1, le=64)] = 1
    format: Literal["s16le", "s32le", "f32le"] = "s16le"
    channel: Count | Literal["mix"] = "mix"


StreamConfig = MicrophoneConfig | FileConfig | PcmConfig


class WindowConfig(_Section, frozen=True, kw_only=True):
    """How often a window is scored."""

    hop_ms: Annotated[float, Meta(ge=10.0, le=1000.0)] = 100.0
    max_batch: Annotated[int, Meta(ge=1, le=256)] = 16


class KeywordConfig(_Section, frozen=True, kw_only=True):
    """What one keyword does differently; what is not said is as in `debouncer`."""

    threshold: Share | None = None
    release: Share | None = None
    margin: Share | None = None
    min_hits: Count | None = None
    refractory_ms: Milliseconds | None = None
    isolation_speech_s: Seconds | None = None


class DebouncerConfig(_Section, frozen=True, kw_only=True):
    """When a score becomes a detection."""

    smoothing_ms: Annotated[float, Meta(gt=0.0, le=10_000.0)] = 300.0
    threshold: Share | None = None
    release: Share = 0.4
    margin: Share = 0.1
    min_hits: Count = 1
    refractory_ms: Milliseconds = 500.0
    isolation_s: Seconds = 2.5
    isolation_speech_s: Seconds = 1.2


class SocketConfig(_Section, frozen=True, kw_only=True):
    """The UNIX socket for readers of events."""

    enabled: bool = True
    path: str = "auto"
    queue: Count = 256


class SinksConfig(_Section, frozen=True, kw_only=True):
    """Where events go."""

    stdout: bool = True
    socket: SocketConfig = SocketConfig()


class EventsConfig(_Section, frozen=True, kw_only=True):
    """What is told besides detections and what goes wrong."""

    rejected: bool = False
    heartbeat_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0


class Config(_Section, frozen=True, kw_only=True):
    """Everything a run needs to know. `folder` is what relative paths start from."""

    model: str = str(DEFAULT_MODEL)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keywords: Literal["all"] | dict[str, KeywordConfig] = "all"
    streams: Annotated[tuple[StreamConfig, ...], Meta(min_length=1)] = (MicrophoneConfig(),)
    window: WindowConfig = WindowConfig()
    debouncer: DebouncerConfig = DebouncerConfig()
    events: EventsConfig = EventsConfig()
    sinks: SinksConfig = SinksConfig()
    folder: str = "."

    def resolve(self, path: str) -> Path:
        """A path of the config, relative to the folder the config lies in."""
        return Path(self.folder) / Path(path).expanduser()

    @property
    def model_path(self) -> Path:
        """Where the artefact is."""
        return self.resolve(self.model)


def load_config(
    path: Path | None, settings: tuple[str, ...] = (), environment: Mapping[str, str] = os.environ
) -> Config:
    """Read a config file, then the environment, then `KEY=VALUE` settings of the command line over it.

    `path` None takes the config that came with kwsd. Raises ConfigError naming file, line, key and remedy.
    """
    place = _Place(path or DEFAULT_PATH)
    tree = place.read()
    for source, key, value in (*_from_environment(environment), *_from_settings(settings)):
        place.override(tree, source, key, value)
    if "folder" in tree:
        raise place.error("folder", "unknown key; relative paths start where the config lies")
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        raise place.complain(error) from None
    config = msgspec.structs.replace(config, folder=str((path or DEFAULT_PATH).parent))
    _check_across_fields(config, place)
    return config


def _check_across_fields(config: Config, place: "_Place") -> None:
    debouncer = config.debouncer
    if debouncer.threshold is not None and debouncer.release > debouncer.threshold:
        raise place.error(
            "debouncer.release", f"{debouncer.release} is above the threshold {debouncer.threshold}; set it lower"
        )
    if isinstance(config.keywords, dict) and not config.keywords:
        raise place.error("keywords", "is empty; name at least one keyword, or say all")
    names = [stream.name for stream in config.streams]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise place.error(f"streams.{i}", f"the name {name!r} is taken; give every stream a name of its own")
    stdin = [i for i, stream in enumerate(config.streams) if isinstance(stream, PcmConfig) and stream.path == "-"]
    if len(stdin) > 1:
        raise place.error(f"streams.{stdin[1]}", "only one stream can read stdin")


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's booleans: `on`, `off`, `yes` and `no` are words here, and keywords they are."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # a word, or the << that takes over an alias


class _Place:
    """Where each value came from, so that a complaint can name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, int] = {}
        self._sources: dict[str, str] = {}

    def read(self) -> dict[str, Any]:
        """The file as a tree of plain values."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{self.path}: no such config; leave out --config to use the one kwsd comes with", exit_code=NO_INPUT
            ) from None
        except IsADirectoryError:
            raise ConfigError(f"{self.path}: is a folder; name a YAML file", exit_code=NO_INPUT) from None
        except PermissionError:
            raise ConfigError(f"{self.path}: permission denied; make it readable", exit_code=NO_PERMISSION) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self.path}: is not text in UTF-8") from None
        try:
            node = yaml.compose(text, Loader=_Yaml)
            if node is None:
                return {}
            self._note_lines(node, "")
            tree = yaml.load(text, Loader=_Yaml)  # noqa: S506 - a SafeLoader with fewer booleans
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            line = f":{mark.line + 1}" if mark else ""
            raise ConfigError(f"{self.path}{line}: not valid YAML: {error.problem}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.path}: not valid YAML: {error}") from None
        except RecursionError:
            raise ConfigError(f"{self.path}: is nested too deeply, or an alias in it holds itself") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{self.path}: must hold `key: value` lines, not a {type(tree).__name__}")
        return tree

    def _note_lines(self, node: yaml.Node, key: str) -> None:
        self._lines[key] = node.start_mark.line + 1
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for name, value in node.value:
                if not isinstance(name, yaml.ScalarNode) or name.tag not in KEY_TAGS:
                    raise ConfigError(
                        f"{self.path}:{name.start_mark.line + 1}: {name.value}: a key must be a word; put it in quotes"
                    )
                inner = f"{key}.{name.value}".lstrip(".")
                if name.value in seen:
                    raise ConfigError(f"{self.path}:{name.start_mark.line + 1}: {inner}: given twice")
                seen.add(name.value)
                self._note_lines(value, inner)
                self._lines[inner] = name.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._note_lines(value, f"{key}.{i}")

    def override(self, tree: dict[str, Any], source: str, key: str, value: str) -> None:
        """Set a dotted key to a YAML value."""
        try:
            parsed = yaml.load(value, Loader=_Yaml)  # noqa: S506 - as above
        except yaml.YAMLError:
            raise ConfigError(f"{source}: {value!r} is not valid YAML") from None
        *sections, last = key.split(".")
        branch: Any = tree
        for depth, section in enumerate(sections):
            if isinstance(branch, list) and section.isdigit() and int(section) < len(branch):
                branch = branch[int(section)]
            elif isinstance(branch, dict):
                if not isinstance(branch.get(section), dict | list):
                    branch[section] = {}
                branch = branch[section]
            else:
                raise ConfigError(f"{source}: {'.'.join(sections[: depth + 1])} is not there")
        if isinstance(branch, list) and last.isdigit() and int(last) < len(branch):
            branch[int(last)] = parsed
        elif isinstance(branch, dict):
            branch[last] = parsed
        else:
            raise ConfigError(f"{source}: {key} is not there")
        self._sources[key] = source

    def error(self, key: str, what: str) -> ConfigError:
        """A complaint about one key, with where it was set."""
        if key in self._sources:
            return ConfigError(f"{self._sources[key]}: {key}: {what}")
        where = key
        while where and where not in self._lines:
            where = where.rpartition(".")[0]
        line = f":{self._lines[where]}" if where else ""
        return ConfigError(f"{self.path}{line}: {key}: {what}")

    def complain(self, error: msgspec.ValidationError) -> ConfigError:
        """msgspec's words for a wrong value, turned into ours."""
        message, _, path = str(error).partition(" - at `")
        key = re.sub(r"\[(\d+)\]", r".\1", path.rstrip("`")).removeprefix("$").lstrip(".")
        unknown = re.match(r"Object contains unknown field `(.+)`", message)
        if unknown:
            wrong = unknown[1]
            near = difflib.get_close_matches(wrong, sorted(_known_keys(Config)), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return self.error(self._spelled_out(f"{key}.{wrong}".lstrip(".")), f"unknown key{hint}")
        key = self._spelled_out(key)
        enum = re.match(r"Invalid enum value '(.+)'", message)
        if enum:
            return self.error(key, f"{enum[1]!r} is none of {', '.join(_choices(key.rpartition('.')[2]))}")
        tag = re.match(r"Invalid value '(.+)'", message)
        if tag and key.endswith("source"):
            kinds = ["microphone", "file", "pcm"]
            near = difflib.get_close_matches(tag[1], kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            return self.error(key, f"unknown source {tag[1]!r}; {hint}")
        for jargon, word in (("object", "keys"), ("array", "list"), ("null", "nothing"), ("`", "")):
            message = message.replace(jargon, word)
        return self.error(key or "config", message[0].lower() + message[1:])

    def _spelled_out(self, key: str) -> str:
        """msgspec writes `keywords[...].margin` for any keyword: the one that is meant, where only one can be."""
        pattern = re.escape(key).replace(re.escape("[...]"), r"\.[^.]+")
        fitting = [known for known in {**self._lines, **self._sources} if re.fullmatch(pattern, known)]
        return fitting[0] if len(fitting) == 1 else key.replace("[...]", "")


def _choices(key: str) -> list[str]:
    """The words a setting takes, for settings that take only certain words."""
    return [
        choice
        for section in (Config, PcmConfig)
        for field in msgspec.structs.fields(section)
        if field.encode_name == key
        for kind in (field.type, *get_args(field.type))
        if get_origin(kind) is Literal
        for choice in get_args(kind)
    ]


def _known_keys(struct: type[msgspec.Struct]) -> Iterator[str]:
    sections: list[Any] = [
        Config, WindowConfig, DebouncerConfig, SinksConfig, SocketConfig,
        MicrophoneConfig, FileConfig, PcmConfig, KeywordConfig,
    ]  # fmt: skip
    for section in sections:
        yield from (field.encode_name for field in msgspec.structs.fields(section) if field.name != "folder")


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """`KWSD_DEBOUNCER__THRESHOLD=0.9`: two underscores part a section from its key."""
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT) and name not in NOT_SETTINGS:
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
    folder = tree.pop("folder")
    tree["model"] = str(config.model_path)
    return f"# relative paths start from {folder}\n" + str(
        yaml.dump(tree, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True)
    )
