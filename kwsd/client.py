"""The other end of the events socket: what a daemon says, and commands for it."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kwsd.control import check_known
from kwsd.door import answers, events_path
from kwsd.errors import IO, NO_PERMISSION, UNAVAILABLE, ConfigError, KwsdError

SYSTEM_SOCKET = Path("/run/kwsd/events.sock")
ANSWER_S = 60.0  # a reload may load another model


def usual_socket(otherwise: str = "name its --socket") -> Path:
    """Of this user's daemon, or of the system's; one that is left over only if there is no other.

    Raises KwsdError if neither is there, with what else can be done."""
    places = [SYSTEM_SOCKET]
    with contextlib.suppress(ConfigError):
        places.insert(0, events_path())
    places = list(dict.fromkeys(places))  # for root they may be one
    found = [place for place in places if os.path.exists(place)]  # noqa: PTH110 - a closed folder is no error
    if not found:
        missing = f"{' and '.join(map(str, places))} {'are' if len(places) > 1 else 'is'} not there"
        raise KwsdError(f"no kwsd runs: {missing}; start one, or {otherwise}", exit_code=UNAVAILABLE)
    # That we may not use one is worth being told, too.
    return next((place for place in found if answers(place) or not os.access(place, os.W_OK)), found[0])


def lines_of(path: Path, **wish: Any) -> Iterator[dict[str, Any]]:
    """What a daemon says on its socket, until it hangs up. `wish` is what a `subscribe` command says: `scores=True`.
    Among any types there is the shutdown, which tells the end from a crash.

    Raises KwsdError if none answers there, or it does not know a keyword of the wish.
    """
    if wish.get("types") is not None:
        wish["types"] = [*wish["types"], "shutdown"]
    ended = subscribed = False
    with _connected(path) as connection:
        for event in _said(path, connection, _command("subscribe", wish)):
            subscribed = subscribed or event["type"] == "answer"
            if subscribed and event["type"] == "refused":
                raise KwsdError(f"{path}: {event.get('reason')}", exit_code=UNAVAILABLE)
            if event["type"] == "hello":
                check_known(wish.get("keywords") or (), event.get("keywords", ()), "keyword")
            ended = event["type"] == "shutdown"
            yield event
    if not ended:
        raise KwsdError(f"{path}: kwsd is gone without a word; its log may say why", exit_code=UNAVAILABLE)


def ask(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Give a daemon a command, and take its answer. Raises KwsdError if none answers, or it says no."""
    with _connected(path) as connection:
        connection.settimeout(ANSWER_S)
        for event in _said(path, connection, _command("subscribe", {"types": ()}) + _command(command, arguments)):
            if event["type"] == "refused":
                raise KwsdError(f"{path}: {event.get('reason')}", exit_code=UNAVAILABLE)
            if event["type"] == "answer" and event.get("to") == command:
                if not event.get("ok"):
                    raise KwsdError(f"{command}: {event.get('error')}", exit_code=event.get("exit_code") or UNAVAILABLE)
                return event
    raise KwsdError(f"{path}: kwsd hung up without an answer; its log may say why", exit_code=UNAVAILABLE)


def _said(path: Path, connection: socket.socket, question: bytes) -> Iterator[dict[str, Any]]:
    """What comes back, until the other side hangs up. Raises KwsdError if that is none of ours, or says nothing."""
    with contextlib.suppress(BrokenPipeError):  # it says why before it hangs up
        connection.sendall(question)
    try:
        with connection.makefile("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):  # it stopped, and did not wait for us to read
                    return
                event = json.loads(line)
                if not isinstance(event, dict) or "type" not in event:
                    raise ValueError
                yield event
    except ValueError:
        raise KwsdError(f"{path}: what answers there is no kwsd's events socket", exit_code=IO) from None
    except TimeoutError:
        raise KwsdError(f"{path}: no answer within {ANSWER_S:g} s", exit_code=UNAVAILABLE) from None
    except OSError as error:
        raise KwsdError(f"{path}: the connection broke ({error})", exit_code=IO) from None


def describe(status: dict[str, Any]) -> str:
    """How a daemon is, for people. Raises KwsdError for what only another version of kwsd would say."""
    try:
        return _described(status)
    except (KeyError, TypeError) as error:
        raise KwsdError(f"status: not understood ({error!r}); is the daemon of another version?") from None


def _described(status: dict[str, Any]) -> str:
    wrong = status["problems"]
    lines = [
        f"kwsd {status['kwsd']} with {status['model']}: {'; '.join(wrong) if wrong else 'listening'}",
        f"up {status['uptime_s']:.0f} s, {status['detections']} words heard, {status['windows']} windows scored, "
        f"one every {status['hop_ms']:g} ms",
    ]
    for stream in status["streams"]:
        level = stream["level_dbfs"]
        state = "muted" if stream.get("muted") else stream.get("ailment") or "heard"
        quiet = "no sound" if level is None else f"{level:.1f} dBFS"
        lines.append(f"stream {stream['stream']}: {state}, {quiet}, {stream['heard_s']:.0f} s so far")
    lines += ["streams that come later are muted"] if status["muted"] else []
    for word, keyword in status["keywords"].items():
        changed = f" (configured: {keyword['configured']:g})" if keyword["threshold"] != keyword["configured"] else ""
        lines.append(f"keyword {word}: from {keyword['threshold']:g} on{changed}")
    return "".join(f"{line}\n" for line in lines)


def _command(command: str, arguments: dict[str, Any]) -> bytes:
    given = {name: value for name, value in arguments.items() if value is not None}
    return json.dumps({"command": command} | given).encode() + b"\n"


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except PermissionError:
        connection.close()
        raise KwsdError(
            f"{path}: no permission; sudo usermod -aG kwsd $USER, then log in anew", exit_code=NO_PERMISSION
        ) from None
    except OSError as error:
        connection.close()
        raise KwsdError(
            f"{path}: no kwsd answers there ({error.strerror or error}); start one, or name its --socket",
            exit_code=UNAVAILABLE,
        ) from None
    return connection
