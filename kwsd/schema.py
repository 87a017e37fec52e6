"""What a configuration and the events look like, as JSON Schema 2020-12: for editors, and for readers of events."""

import ast
import inspect
import io
import json
import tokenize
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from kwsd import event
from kwsd.config import DEFAULT_PATH, OF_OURS, Config
from kwsd.config_comments import comments
from kwsd.settings_file import structs

Schema = dict[str, Any]
T = TypeVar("T")

DIALECT = "https://json-schema.org/draft/2020-12/schema"
HEAD: Schema = {
    "v": {"const": event.VERSION, "description": "version of the events; fields are added without a new one"},
    "type": {},
    "id": {"type": "string", "pattern": f"^[{event.CROCKFORD}]{{26}}$", "description": "unique, and sorts by time"},
    "seq": {"type": "integer", "minimum": 0, "description": "counts the events of a run"},
    "time": {"type": "string", "format": "date-time", "description": "when it was told, in UTC"},
}
UNNUMBERED_HEAD = {key: HEAD[key] for key in ("v", "type", "time")}
NOTICES = get_args(get_type_hints(event.unnumbered)["notice"])


def config_schema() -> Schema:
    """Of `config.yaml`: every key with its default, and what the comments there say of it."""
    schema = _plain(msgspec.json.schema(Config))
    sections = schema["$defs"]
    said = comments(DEFAULT_PATH.read_text(encoding="utf-8"))
    for section in set(structs(Config)):
        _describe(sections[section.__name__], said[section], sections)
    keys = sections["Config"]["properties"]
    del sections["Config"]["description"]
    for hidden in OF_OURS:
        del keys[hidden]
    return {"$schema": DIALECT, "title": "kwsd configuration"} | schema


def events_schema() -> Schema:
    """Of a line that the daemon writes: an event, or a notice to one reader or satellite."""
    kinds = (*get_args(event.Event), *NOTICES)
    references, sections = _plain(msgspec.json.schema_components(kinds))
    for kind in {inner for each in kinds for inner in structs(each)}:
        _describe(sections[kind.__name__], _remarks(kind), sections)
    for kind in kinds:
        _put_head(sections[kind.__name__], UNNUMBERED_HEAD if kind in NOTICES else HEAD)
    return {"$schema": DIALECT, "title": "kwsd event", "oneOf": references, "$defs": sections}


def _plain(schema: T) -> T:
    """As it will be read: defaults are JSON, lists for tuples."""
    plain: T = json.loads(msgspec.json.encode(schema))
    return plain


def _describe(section: Schema, said: dict[str, str], sections: Schema) -> None:
    """Put a description to every key: what is said of it, else what is said of the section that it is."""
    for name, key in section["properties"].items():
        inner = sections.get(key.get("$ref", "").removeprefix("#/$defs/"), {})
        tag = section["description"] if len(key.get("enum", ())) == 1 else None
        description = said.get(name) or inner.get("description") or tag
        if description:
            key["description"] = description


def _remarks(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The comments beside the fields of a struct, from its source."""
    source = inspect.getsource(kind)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    beside = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return {
        node.target.id: beside[node.lineno]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.lineno in beside
    }


def _put_head(section: Schema, head: Schema) -> None:
    """Put what every line begins with before the fields of an event."""
    section["properties"] = head | section["properties"]
    section["required"] = [*head, *(key for key in section["required"] if key != "type")]
