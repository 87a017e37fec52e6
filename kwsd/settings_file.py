"""A YAML file of settings, checked strictly: every complaint names file, line, key and remedy."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import yaml

from kwsd.errors import NO_INPUT, NO_PERMISSION, ConfigError


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's booleans: `on`, `off`, `yes` and `no` are words here, and keywords they are. And so are dates."""


WORDS = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
NO_VALUES = (ValueError, LookupError, AttributeError, TypeError)  # what a YAML reader ends with at `0x_` or `!!int foo`

_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in WORDS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")  # a word, or the << that takes over an alias


HINTS = {  # how what was expected is written, the likeliest first
    "str": "put it in quotes",
    "bool": "write true or false",
    "int": "write a whole number",
    "float": "write a number, such as 0.5",
    "list": "write a list, such as [a, b]",
    "keys": "write keys and values, such as {key: value}",
}


class SettingsFile:
    """Where each value came from, so that a complaint can name it.

    `schema` is the struct that the file describes, but for its fields in `hidden`; `missing` is what to say if there
    is no such file.
    """

    def __init__(self, path: Path, schema: type[msgspec.Struct], missing: str, hidden: tuple[str, ...] = ()) -> None:
        self.path, self.schema, self.missing, self.hidden = path, schema, missing, hidden
        self._lines: dict[str, int] = {}
        self._sources: dict[str, str] = {}

    def read(self) -> dict[str, Any]:
        """The file as a tree of plain values."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: {self.missing}", exit_code=NO_INPUT) from None
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
            hint = "; is it the beginning of a text? Put that in quotes" if "found '" in (error.problem or "") else ""
            raise ConfigError(f"{self.path}{line}: not valid YAML: {error.problem}{hint}") from None
        except yaml.reader.ReaderError as error:
            at, number = text.count("\n", 0, error.position) + 1, ord(text[error.position])
            raise ConfigError(f"{self.path}:{at}: not valid YAML: a control character (#x{number:04x})") from None
        except (yaml.YAMLError, *NO_VALUES) as error:
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
        elif not _is_text(node.value):
            raise ConfigError(f"{self.path}:{node.start_mark.line + 1}: {key}: {node.value!r} is not text in UTF-8")

    def override(self, tree: dict[str, Any], source: str, key: str, value: str) -> None:
        """Set a dotted key to a YAML value."""
        if not _is_text(key):  # what a terminal sent
            raise ConfigError(f"{source}: {key!r} is not text in UTF-8")
        try:
            parsed = yaml.load(value, Loader=_Yaml)  # noqa: S506 - as above
        except (yaml.YAMLError, *NO_VALUES):
            hint = f"if it is a text, put it in quotes of its own: '\"{value}\"'"
            raise ConfigError(f"{source}: {value!r} is not valid YAML; {hint}") from None
        if not _is_text(str(parsed)):
            raise ConfigError(f"{source}: {value!r} is not text in UTF-8")
        *sections, last = key.split(".")
        branch = _reach(tree, source, sections, last)
        if isinstance(branch, list) and last.isdecimal() and int(last) < len(branch):
            branch[int(last)] = parsed
        elif isinstance(branch, dict):
            branch[last] = parsed
        else:
            raise ConfigError(f"{source}: {key} is not there")
        for place in (self._lines, self._sources):  # what was said of parts of it is no more
            for part in [other for other in place if other.startswith(f"{key}.")]:
                del place[part]
        self._sources[key] = source

    def error(self, key: str, what: str) -> ConfigError:
        """A complaint about one key, with where it was set."""
        inner = [source for part, source in self._sources.items() if part.startswith(f"{key}.")]
        made = inner[-1] if inner and key not in self.places else None  # a section that only an override has
        return ConfigError(f"{made or place_of(key, self.places) or self.path}: {key}: {what}")

    @property
    def places(self) -> dict[str, str]:
        """By key, where each was set."""
        return {key: f"{self.path}:{line}" for key, line in self._lines.items() if key} | self._sources

    def complain(self, error: msgspec.ValidationError) -> ConfigError:
        """msgspec's words for a wrong value, turned into ours."""
        message, _, path = str(error).partition(" - at `")
        key = re.sub(r"\[(\d+)\]", r".\1", path.rstrip("`")).removeprefix("$").lstrip(".")
        unknown = re.match(r"Object contains unknown field `(.+)`", message)
        if unknown:
            wrong = unknown[1]
            key = self._spelled_out(f"{key}.{wrong}".lstrip("."))
            return self.error(key, f"unknown key{self._meant(key, self._sources.get(key, ''))}")
        key = self._spelled_out(key)
        enum = re.match(r"Invalid enum value '(.+)'", message)
        if enum:
            kinds = _kinds(self.schema, key.rpartition(".")[2])
            choices = list(dict.fromkeys(c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)))
            if len(choices) > 1:
                return self.error(key, f"{enum[1]!r} is none of {', '.join(choices)}")
            number = ["a number"] if int in kinds else []
            several = [f"a list: [{enum[1]}]"] if any(get_origin(kind) is tuple for kind in kinds) else []
            return self.error(key, f"{enum[1]!r} is not {' or '.join(choices + number + several)}")
        tag = re.match(r"Invalid value '(.+)'", message)
        last = key.rpartition(".")[2]
        kinds = [str(s.__struct_config__.tag) for s in structs(self.schema) if s.__struct_config__.tag_field == last]
        if tag and kinds:
            near = difflib.get_close_matches(tag[1], kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            return self.error(key, f"unknown {last} {tag[1]!r}; {hint}")
        for jargon, word in (("object", "keys"), ("array", "list"), ("null", "nothing"), ("`", "")):
            message = message.replace(jargon, word)
        message = re.sub(r"str matching regex '.+'", "text of another form (config.yaml says which)", message)
        wanted = re.match(r"Expected (.+), got (\w+)", message)
        kinds = wanted[1].split(" | ") if wanted else []
        hints = [hint for kind, hint in HINTS.items() if kind in kinds and wanted and kind != wanted[2]]
        dashed = ", or leave out the - before its key" if key[-1:].isdecimal() and message.endswith("got keys") else ""
        hint = f"; {hints[0]}{dashed}" if hints else ""
        return self.error(key or "config", f"{message[0].lower()}{message[1:]}{hint}")

    def _meant(self, key: str, source: str) -> str:
        """What may have been meant by a key that is unknown, and was set there: one of its section, or of another."""
        section, _, wrong = key.rpartition(".")
        paths = [path for path in _paths(self.schema) if path[0] not in self.hidden]
        for path in paths:
            if len(path) > 1 and "_".join(path) == wrong and source.endswith(wrong.upper()):
                variable = source.removesuffix(wrong.upper()) + "__".join(path).upper()
                return f"; two underscores part a section from its key: {variable}"
        there = {path[-1] for path in paths if ".".join(path[:-1]) == section} or _known_keys(self.schema, section)
        near = difflib.get_close_matches(wrong, sorted(there - {wrong}), 1)
        if not near:
            others = [path for path in paths if len(path) > 1 and path[0] != section.partition(".")[0]]
            nearest = difflib.get_close_matches(wrong, sorted({path[-1] for path in others}), 1, 0.8)
            near = [".".join(path) for path in others if path[-1:] == tuple(nearest)]
        return f"; did you mean {near[0]}?" if len(near) == 1 else ""

    def _spelled_out(self, key: str) -> str:
        """msgspec writes `keywords[...].margin` for any keyword: the one that is meant, where only one can be."""
        pattern = re.escape(key).replace(re.escape("[...]"), r"\.[^.]+")
        fitting = [known for known in {**self._lines, **self._sources} if re.fullmatch(pattern, known)]
        return fitting[0] if len(fitting) == 1 else key.replace("[...]", "")


def place_of(key: str, places: Mapping[str, str]) -> str | None:
    """Where a key was set, or the section that it is in; None if neither was."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key)


def _is_text(said: str) -> bool:
    """Whether UTF-8 can say it; half of a surrogate pair it cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in said)


def _reach(tree: dict[str, Any], source: str, sections: list[str], last: str) -> Any:
    """What holds the last of a dotted key's names; sections that are not there are made, entries of lists are not."""
    branch: Any = tree
    for depth, section in enumerate(sections):
        if isinstance(branch, list) and section.isdecimal() and int(section) < len(branch):
            branch = branch[int(section)]
        elif isinstance(branch, dict):
            if not isinstance(branch.get(section), dict | list):
                branch[section] = {}
            elif _names(branch[section], [*sections, last][depth + 1]):
                branch[section] = {name: {} for name in branch[section]}  # of which one has more to be said of
            branch = branch[section]
        else:
            raise ConfigError(f"{source}: {'.'.join(sections[: depth + 1])} is not there")
    return branch


def _names(value: Any, name: str) -> bool:
    """Whether a value is a plain list of names, and this one among them. A number says which entry is meant."""
    names = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return names and name in value and not name.isdecimal()


def structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The struct that a type is, holds or may be, and those of its fields."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        yield from (inner for field in msgspec.structs.fields(kind) for inner in structs(field.type))
    for part in get_args(kind):
        yield from structs(part)


def _kinds(schema: type[msgspec.Struct], key: str) -> list[Any]:
    """What settings of a name may be."""
    return [
        part
        for section in structs(schema)
        for field in msgspec.structs.fields(section)
        if field.encode_name == key
        for kind in (field.type, *get_args(field.type))
        for part in (kind, *(get_args(kind)[:1] if get_origin(kind) is Annotated else ()))
    ]


def _paths(kind: Any) -> Iterator[tuple[str, ...]]:
    """How the settings of a struct, and of those in it, are reached: `("debouncer", "threshold")`."""
    for section in {kind, *get_args(kind)}:
        if isinstance(section, type) and issubclass(section, msgspec.Struct):
            for field in msgspec.structs.fields(section):
                yield (field.encode_name,)
                yield from ((field.encode_name, *path) for path in _paths(field.type))


def _known_keys(schema: type[msgspec.Struct], section: str) -> set[str]:
    """The keys of all that may be in a section that is a list, or has names of its own."""
    inner = [field.type for field in msgspec.structs.fields(schema) if field.encode_name == section.partition(".")[0]]
    return {field.encode_name for kind in inner for each in structs(kind) for field in msgspec.structs.fields(each)}
