#!/usr/bin/env python3
"""`man.py FOLDER`: write kwsd's manual pages there, from its command line and its schemas."""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from docutils import nodes
from docutils.core import publish_from_doctree
from docutils.utils import new_document

from kwsd import __version__, errors
from kwsd.arguments import make_parser
from kwsd.schema import HEAD, Schema, config_schema, events_schema

Content = list[nodes.Element]


def main() -> None:
    """Write them all."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    pages = {"kwsd.1": command_page, "kwsd.yaml.5": config_page, "kwsd-events.5": events_page}
    for name, make in pages.items():
        summary, content = make()
        others = ", ".join(re.sub(r"\.(\d)$", r"(\1)", other) for other in pages if other != name)
        text = page(*name.rsplit(".", 1), summary, [*content, section("SEE ALSO", paragraph(others))])
        (folder / name).write_text(text, encoding="utf-8")


# --- pages: a summary, and what comes after it ------------------------------------------------------------------


def command_page() -> tuple[str, Content]:
    """kwsd(1)"""
    parser = make_parser()
    environment = "`KWSD_SECTION__KEY=VALUE` is the same as `--set section.key=VALUE`, which wins over it."
    return "hears spoken commands and turns them into JSON events", [
        section("SYNOPSIS", literal(synopsis(parser))),
        section("DESCRIPTION", paragraph(parser.description or "")),
        section("OPTIONS", *options(parser)),
        section("COMMANDS", *(command(each, about) for each, about in subcommands(parser))),
        section("EXIT STATUS", terms((str(code), [paragraph(what)]) for code, what in exit_codes())),
        section("ENVIRONMENT", paragraph(environment)),
    ]


def config_page() -> tuple[str, Content]:
    """kwsd.yaml(5)"""
    schema = config_schema()
    sections = schema["$defs"]
    keys = sections["Config"]["properties"]
    what = "YAML: the file that `--config` names. Without a key all is as is said here; unknown keys are refused."
    paths = "Relative paths start from its folder."
    return "configuration of kwsd", [
        section("DESCRIPTION", paragraph(f"{what} {paths}")),
        section("KEYS", *(section(name, *told(key), *keys_in(name, key, sections)) for name, key in keys.items())),
    ]


def events_page() -> tuple[str, Content]:
    """kwsd-events(5)"""
    schema = events_schema()
    kinds = {
        kind["properties"]["type"]["enum"][0]: kind
        for kind in (schema["$defs"][reference(each)] for each in schema["oneOf"])
    }
    parts = {name: part for name, part in schema["$defs"].items() if part not in kinds.values()}
    what = "Every event is one line of JSON. Later versions may add fields; pass over those that you do not know."
    head = terms((name, [paragraph(said.get("description", "its name"))]) for name, said in HEAD.items())
    notices = ", ".join(name for name, kind in sorted(kinds.items()) if "seq" not in kind["required"])
    return "what kwsd tells", [
        section(
            "DESCRIPTION",
            paragraph(what),
            head,
            paragraph(f"To one reader or satellite, without id and seq: {notices}."),
        ),
        section("EVENTS", *(fields(name, kinds[name]) for name in sorted(kinds))),
        section("FIELDS OF FIELDS", *(fields(name, parts[name]) for name in sorted(parts))),
    ]


# --- the command line -------------------------------------------------------------------------------------------


def command(parser: argparse.ArgumentParser, about: str) -> nodes.section:
    """How a command is called, what it does, and its options."""
    return section(parser.prog, literal(synopsis(parser)), paragraph(parser.description or about), *options(parser))


def subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """The parsers of commands, and of those below them, with what is said of each."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            abouts = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield inner, abouts[name]
                yield from subcommands(inner)


def synopsis(parser: argparse.ArgumentParser) -> str:
    """As argparse has it, without "usage: "."""
    return parser.format_usage().removeprefix("usage: ").strip().replace("\n       ", "\n")


def options(parser: argparse.ArgumentParser) -> Content:
    """A list of options and arguments, but for --help and the commands; nothing if there are none."""
    form = parser._get_formatter()
    hidden = argparse._SubParsersAction | argparse._HelpAction
    shown = [action for action in parser._actions if not isinstance(action, hidden)]
    said = [(form._format_action_invocation(action), [paragraph(action.help or "")]) for action in shown]
    return [terms(said)] if said else []


def exit_codes() -> list[tuple[int, str]]:
    """Each with what it means."""
    named = {value: name for name, value in vars(errors).items() if isinstance(value, int)}
    return sorted((code, name.lower().replace("_", " ")) for code, name in named.items())


# --- schemas ----------------------------------------------------------------------------------------------------


def told(key: Schema) -> Content:
    """What is said of a key, with the example in it as it is, and what it may be."""
    prose, *example = re.split(r"\n(?=  )", key["description"], maxsplit=1)
    default = f"; without it, `{json.dumps(key['default'])}`" if "default" in key else ""
    kind = [] if "$ref" in key else [paragraph(f"({values(key)}{default})")]
    return [paragraph(prose), *map(literal, example), *kind]


def keys_in(path: str, key: Schema, sections: Schema) -> Content:
    """The keys inside a key, by their whole path: a list for each section that it may hold."""
    content: Content = []
    for where, name in inner_sections(path, key):
        keys = sections[name]["properties"]
        tag = next((f"{name}: {said['enum'][0]}" for name, said in keys.items() if is_tag(said)), None)
        if tag:
            content.append(paragraph(f"`{tag}`"))
        plain = {f"{where}.{name}": said for name, said in keys.items() if not is_tag(said)}
        content.append(terms((name, told(said)) for name, said in plain.items()))
        content += [each for name, said in plain.items() for each in keys_in(name, said, sections)]
    return content


def inner_sections(path: str, schema: Schema) -> Iterator[tuple[str, str]]:
    """The sections that a key is or holds, with the path to each."""
    if "$ref" in schema:
        yield path, reference(schema)
    for each in schema.get("anyOf", ()):
        yield from inner_sections(path, each)
    if "items" in schema:
        yield from inner_sections(f"{path}[]", schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from inner_sections(f"{path}.KEYWORD", schema["additionalProperties"])


def reference(schema: Schema) -> str:
    """The section that a `$ref` names."""
    return str(schema["$ref"]).removeprefix("#/$defs/")


def is_tag(schema: Schema) -> bool:
    """Whether a key says which kind its section is."""
    return len(schema.get("enum", ())) == 1


def fields(name: str, kind: Schema) -> nodes.section:
    """The fields of an event, or of a field."""
    own = {key: said for key, said in kind["properties"].items() if key != "type" and said != HEAD.get(key)}
    told = [
        (
            key if key in kind["required"] else f"{key} (may be absent)",
            f"{said.get('description', '')} ({values(said)})",
        )
        for key, said in own.items()
    ]
    return section(name, paragraph(kind["description"]), terms((key, [paragraph(text)]) for key, text in told))


def values(schema: Schema) -> str:
    """What a key may be, in words."""
    if "anyOf" in schema:
        return " or ".join(map(values, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        name = reference(schema)
        return name.removesuffix("Config").lower() if name.endswith("Config") else name
    if "items" in schema:
        return f"list: {values(schema['items'])}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "minLength": "from", "maxLength": "to"}
    bounds = [f"{word} {schema[key]:g}" for key, word in words.items() if key in schema]
    unit = ["characters"] if "maxLength" in schema else []
    return " ".join([schema["type"], *bounds, *unit])


# --- pages of nodes ---------------------------------------------------------------------------------------------


def page(name: str, number: str, summary: str, content: Content) -> str:
    """A manual page, by docutils."""
    day = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    document = new_document(name)
    document += [
        nodes.title("", name),
        nodes.subtitle("", summary),
        nodes.docinfo(
            "",
            nodes.date("", time.strftime("%Y-%m-%d", day)),
            nodes.version("", f"kwsd {__version__}"),
            nodes.field("", nodes.field_name("", "manual_section"), nodes.field_body("", nodes.paragraph("", number))),
        ),
        *content,
    ]
    return str(publish_from_doctree(document, writer="manpage", settings_overrides={"output_encoding": "unicode"}))


def section(title: str, *content: nodes.Element) -> nodes.section:
    """What stands under a title."""
    return nodes.section("", nodes.title("", title), *content)


def paragraph(text: str) -> nodes.paragraph:
    """Prose, in which `this` stands out."""
    parts = re.split("`([^`]+)`", " ".join(text.split()))
    return nodes.paragraph(
        "", "", *(nodes.literal("", part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts) if part)
    )


def literal(text: str) -> nodes.literal_block:
    """Lines as they are."""
    return nodes.literal_block("", text)


def terms(said: Iterable[tuple[str, Content]]) -> nodes.definition_list:
    """Words, each with what is said of it."""
    items = (nodes.definition_list_item("", nodes.term("", term), nodes.definition("", *what)) for term, what in said)
    return nodes.definition_list("", *items)


if __name__ == "__main__":
    main()
