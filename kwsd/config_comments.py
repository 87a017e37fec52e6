"""What the comments of `config.yaml` say about each key: above it, beside it, or in an example."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from kwsd.config import Config, KeywordConfig

SAME_AS = {KeywordConfig: "debouncer"}  # what its keys mean is said in that section

Section = type[msgspec.Struct]
Comments = dict[Section, dict[str, str]]  # for each section: {key: comment}, of the keys that have one

KEY = re.compile(r"""(?P<indent>[\s#-]*)["']?(?P<key>\w+)["']?:(?P<value>|\s.*?)(?:\s+(?P<comment>#\s.*))?$""")
EXAMPLE = re.compile(r"#\s\s")  # at the margin, and further in than prose


@dataclass(frozen=True)
class Line:
    """A key of the file, or of an example in its comments."""

    column: int
    key: str
    value: str
    comment: str


def comments(text: str) -> Comments:
    """The comments of a file that has every key, from its text."""
    lines = tuple(_lines(text))
    found: Comments = {}
    _collect(Config, lines, found)
    for section, other in SAME_AS.items():
        _collect(section, _inside(other, lines), found)
    return found


def direct_sections(kind: Any) -> Iterator[Section]:
    """The sections that a type is, holds or may be, but not those inside them."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for part in get_args(kind):
        yield from direct_sections(part)


def _lines(text: str) -> Iterator[Line]:
    """Keys in their order; those of an example come after the key that the example explains."""
    above: list[str] = []
    examples: list[Line] = []
    for row in _joined(text):
        match = KEY.match(row)
        line = match and Line(match.start("key"), match["key"], match["value"].strip(), _bare(match["comment"]))
        if line and line.column == 0:
            yield Line(0, line.key, line.value, "\n".join(above) or line.comment)
            yield from examples
        elif row.startswith("#"):
            above.append(row[2:])
            examples += [line] if line and EXAMPLE.match(row) else []
            continue
        elif line:
            yield line
        above, examples = [], []


def _bare(comment: str | None) -> str:
    """A comment without what ties it to the lines around it."""
    return (comment or "").removeprefix("# ").removeprefix("... ").removesuffix(" ...")


def _joined(text: str) -> list[str]:
    """Rows, where a comment beside a key that goes on below is one."""
    rows = [""]
    for row in text.splitlines():
        match = KEY.match(rows[-1])
        beside = match.start("comment") if match else -1
        if beside > 0 and row[beside : beside + 2] == "# " and not row[:beside].strip(" #"):
            rows[-1] += row[beside + 1 :]
        else:
            rows.append(row)
    return rows


def _collect(section: Section, lines: Sequence[Line], found: Comments) -> None:
    here = found.setdefault(section, {})
    for field in msgspec.structs.fields(section):
        said = _said(field.encode_name, lines)
        if said:
            here.setdefault(field.encode_name, said)
        for inner in direct_sections(field.type):
            inside = _inside(field.encode_name, lines)
            _collect(inner, _of_kind(inner, inside), found)
            _collect(inner, inside, found)  # what another kind of it explains counts for this one, too


def _said(key: str, lines: Sequence[Line]) -> str:
    """The comment on a key where it is furthest out; elsewhere the same word is the key of another section."""
    named = [line for line in lines if line.key == key]
    outermost = min((line.column for line in named), default=0)
    return next((line.comment for line in named if line.comment and line.column == outermost), "")


def _inside(key: str, lines: Sequence[Line]) -> Sequence[Line]:
    """What is further in than a key, below it."""
    start = min(
        (i for i, line in enumerate(lines) if line.key == key), key=lambda i: lines[i].column, default=len(lines)
    )
    end = next((i for i in range(start + 1, len(lines)) if lines[i].column <= lines[start].column), len(lines))
    return lines[start + 1 : end]


def _of_kind(section: Section, lines: Sequence[Line]) -> Sequence[Line]:
    """Of the entries of a list, the one that the section's tag names."""
    tag_field, tag = section.__struct_config__.tag_field, section.__struct_config__.tag
    starts = [i for i, line in enumerate(lines) if line.key == tag_field]
    start = next((i for i in starts if lines[i].value == tag), 0)
    return lines[start : min((i for i in starts if i > start), default=len(lines))]
