"""`kwsd run`, and the commands that look whether all is well: with a daemon, its configuration or a microphone."""

import argparse
import contextlib
import json
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from kwsd.commands.options import as_yaml, settings
from kwsd.errors import INTERRUPTED, OK, UNAVAILABLE, USAGE, ConfigError
from kwsd.paths import FIFO, FILE, kind_of
from kwsd.terminal import show, show_line

if TYPE_CHECKING:
    from kwsd.config import Config

LONGEST_DOCTOR_S = 4.0  # as much as an inlet keeps


def run(options: argparse.Namespace) -> int:
    """`kwsd run`"""
    # Until the daemon has its own: nothing is open yet, and an import that an exception interrupts may crash.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(OK))
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from kwsd.config import load_config
    from kwsd.daemon import run as run_daemon
    from kwsd.log import set_up_logging

    set_up_logging(logging.DEBUG if options.verbose else logging.INFO)
    source = (f"streams=[{_stream(options.source)}]",) if options.source is not None else ()
    read_before = False

    def load() -> "Config":
        nonlocal read_before
        if read_before and options.config:
            _check_readable_again(options.config)
        read_before = True
        return load_config(options.config, settings(options, *source))

    return run_daemon(load)


def _check_readable_again(config: Path) -> None:
    """A reload is no reason for a silent default. Raises ConfigError where what was read is gone."""
    if kind_of(config) == FIFO:
        raise ConfigError(f"{config}: could be read only once; name a file, to be read again on reload")
    if kind_of(config) == FILE and config.stat().st_size == 0:
        raise ConfigError(f"{config}: is empty; write {{}} for kwsd's own configuration")


def _stream(source: str) -> str:
    """A stream for `--source`, as YAML."""
    if source == "-":
        return as_yaml({"source": "pcm", "name": "stdin", "path": "-"})
    if not source:
        raise ConfigError("--source: is empty; name an audio file, a FIFO, or - for stdin", exit_code=USAGE)
    if source == "microphone":
        return as_yaml({"source": "microphone", "name": "mic"})
    from kwsd.source import printable

    path = Path(source).absolute()
    name = printable(path.name)[:64]
    if kind_of(path) == FIFO:
        return as_yaml({"source": "pcm", "name": name, "path": path, "reopen": False})
    return as_yaml({"source": "file", "name": name, "path": path})


def check(options: argparse.Namespace) -> int:
    """`kwsd check`"""
    from kwsd.check import check as check_all
    from kwsd.config import effective_yaml, load_config

    config = load_config(options.config, settings(options))
    check_all(config)
    show_line(effective_yaml(config).encode(errors="backslashreplace"))
    return OK


def devices(options: argparse.Namespace) -> int:
    """`kwsd devices`"""
    from kwsd.aside import in_time
    from kwsd.portaudio import portaudio

    audio = in_time(portaudio)
    found = audio.devices()
    default = audio.find("default")["index"]
    if options.json:
        show(f"{json.dumps(found, indent=1)}\n")
        return OK
    for device in found:
        mark = "*" if device["index"] == default else " "
        rate, channels = device["default_samplerate"], device["max_input_channels"]
        show(f"{mark}{device['index']:3d}  {rate:6.0f} Hz  {channels:3d} channels  {device['name']}\n")
    return OK


def doctor(options: argparse.Namespace) -> int:
    """`kwsd doctor`"""
    from kwsd.config import load_config
    from kwsd.doctor import FAIL, examine

    if not 0.5 <= options.seconds <= LONGEST_DOCTOR_S:
        raise ConfigError(f"--seconds {options.seconds:g}: from 0.5 to {LONGEST_DOCTOR_S:g}", exit_code=USAGE)
    wrong = 0
    for finding in examine(lambda: load_config(options.config, settings(options)), options.seconds):
        wrong += finding.state == FAIL
        show(f"{json.dumps(finding.as_dict()) if options.json else finding}\n")
    return UNAVAILABLE if wrong else OK


def monitor(options: argparse.Namespace) -> int:
    """`kwsd monitor`"""
    from kwsd import client
    from kwsd import monitor as monitoring

    alone = options.source is not None or bool(options.config or options.model or options.set)
    if alone and options.socket:
        raise ConfigError("monitor: --socket watches a daemon that runs; leave out the other options", exit_code=USAGE)
    monitoring.check_terminal()
    with contextlib.ExitStack() as stack:
        stack.enter_context(monitoring.ended_by_signals())
        if alone:
            path = stack.enter_context(monitoring.daemon_of_our_own(_own_daemon(options)))
        else:
            path = options.socket or client.usual_socket("name a --source to listen to")
        with contextlib.suppress(KeyboardInterrupt):
            monitoring.monitor(lambda: client.lines_of(path, scores=True))
    return OK


def _own_daemon(options: argparse.Namespace) -> list[str]:
    """The options of `kwsd run` among those of another command."""
    arguments = ["--config", str(options.config)] if options.config else []
    arguments += ["--model", str(options.model)] if options.model else []
    arguments += ["--source", options.source, "--set", "listen.on=[]"] if options.source is not None else []
    return [*arguments, *(part for setting in options.set for part in ("--set", setting))]


def control(options: argparse.Namespace) -> int:
    """`kwsd ctl`"""
    from kwsd import client

    path = options.socket or client.usual_socket()
    if options.order == "watch":
        wish = {"types": options.types, "streams": options.streams, "keywords": options.keywords}
        hidden = {"hello", "answer"} | ({"shutdown"} - set(options.types) if options.types else set())
        for event in client.lines_of(path, scores=options.scores, **wish):
            if event["type"] == "refused":
                raise ConfigError(f"watch: {event['reason']}", exit_code=USAGE)
            if event["type"] not in hidden:
                show(f"{json.dumps(event, separators=(',', ':'))}\n")
        return OK
    answer = client.ask(path, options.order, **_arguments(options))
    if options.json:
        show(f"{json.dumps(answer)}\n")
    elif "status" in answer:
        show(client.describe(answer["status"]))
    return OK


def _arguments(options: argparse.Namespace) -> dict[str, object]:
    """Of a command for the daemon."""
    if options.order in ("mute", "unmute"):
        return {"streams": options.streams or None}
    if options.order != "threshold":
        return {}
    try:
        value = None if options.value == "default" else float(options.value)
    except ValueError:
        value = -1.0
    if value is not None and not 0.0 <= value <= 1.0:
        raise ConfigError(f"threshold {options.value}: a number from 0 to 1, or default", exit_code=USAGE)
    return {"keyword": options.keyword, "value": value}
