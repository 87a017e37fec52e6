"""`kwsd schema` and `kwsd completion`."""

import argparse
import json

from kwsd.errors import OK
from kwsd.terminal import show, show_line


def schema(options: argparse.Namespace) -> int:
    """`kwsd schema`"""
    from kwsd.schema import config_schema, events_schema

    described = config_schema() if options.of == "config" else events_schema()
    show_line(f"{json.dumps(described, indent=1, ensure_ascii=False)}\n".encode())
    return OK


def completion(options: argparse.Namespace) -> int:
    """`kwsd completion`"""
    from kwsd.completion import completion as completion_for

    show(completion_for(options.command_line(), options.shell, "run"))
    return OK
