"""What a shell needs to complete command lines of kwsd, by shtab."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import shtab

FOLDERS = ("DIR", "ROOT")  # what `--help` calls them
FILES = ("SOURCE",)  # texts that may be the name of one


def completion(parser: argparse.ArgumentParser, shell: str, default: str) -> str:
    """A script for `shell`. The options of the command `default` are completed without its name, too."""
    actions = list(_actions(parser))
    for action in actions:
        if action.type is Path or action.metavar in FILES:
            action.complete = shtab.DIRECTORY if action.metavar in FOLDERS else shtab.FILE  # type: ignore[attr-defined]
    for action in actions:
        if isinstance(action, argparse._SubParsersAction) and default in action.choices:
            _share_options(action.choices[default], parser)
    script = shtab.complete(parser, shell)
    if shell == "zsh":
        script = script.replace('"(*):', '"*:')  # (*): no file after the first, of several
        script = script.replace("== eval ]]", "== (eval|file) ]]")  # so that `source <(…)` registers it as well
    return script


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Options and arguments of all commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)


def _share_options(giver: argparse.ArgumentParser, taker: argparse.ArgumentParser) -> None:
    for action in giver._actions:
        if action.option_strings and not set(action.option_strings) & set(taker._option_string_actions):
            taker._add_action(action)
