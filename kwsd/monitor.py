"""`kwsd monitor`: what a daemon hears, as it hears it, in a terminal: level, scores against thresholds, events, lag."""

import contextlib
import ctypes
import functools
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwsd.door import answers
from kwsd.errors import IO, OK, UNAVAILABLE, USAGE, ConfigError, KwsdError

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

REFRESH_S = 0.1
BAR = 30  # characters
QUIETEST_DBFS = -80.0  # where the level's bar begins
MOST_EVENTS = 8
MOST_STREAMS = 6
STALE_S = 2.0  # without scores
FADE = 0.9  # a peak that is not reached again falls by this factor with every refresh
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
COMING_S = 60.0  # a daemon of our own may take so long until it answers
GOING_S = 10.0  # and so long to end, once it hung up
# A daemon of our own tells nobody else what it hears: who looks at a recording wants no lamp switched. Whole sections,
# as what is left of one may be refused without the rest.
ONLY_LOOKING = ("sinks.stdout=false", "sinks.socket.group=null", "sinks.mqtt={}", "hooks=[]", "http={}", "wyoming={}")
CALM = {"ready", "audio_restored", "audio_healed", "stream_joined", "heartbeat", "hello"}


@dataclass
class View:
    """What is on the screen; `take` is told every line of the daemon."""

    model: str = ""
    state: str = "connecting"
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)  # the last scores of each
    seen_at: dict[str, float] = field(default_factory=dict)  # monotonic s
    ailments: dict[str, str] = field(default_factory=dict)
    muted: set[str] = field(default_factory=set)
    peaks: dict[tuple[str, str], float] = field(default_factory=dict)  # (stream, keyword): the highest score of late
    heard: dict[tuple[str, str], int] = field(default_factory=dict)  # (stream, keyword): how often it was
    events: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=MOST_EVENTS))

    def take(self, event: dict[str, Any], now: float) -> None:
        """One line of the daemon, at a monotonic time in seconds."""
        kind, stream = event["type"], event.get("stream", "")
        if kind == "scores":
            self.streams[stream], self.seen_at[stream] = event, now
            for keyword, score in event["scores"].items():
                self.peaks[stream, keyword] = max(score, self.peaks.get((stream, keyword), 0.0))
            return
        if kind in {"hello", "answer", "heartbeat"}:
            if kind == "hello":
                self.model, self.state = f" {event['model']}", "listening"
                self.ailments, self.muted = dict(event.get("ailments", {})), set(event.get("muted", ()))
            return
        if kind == "detection":
            self.heard[stream, event["keyword"]] = self.heard.get((stream, event["keyword"]), 0) + 1
        self._note_ailment(kind, stream, event)
        self.events.append(event)

    def _note_ailment(self, kind: str, stream: str, event: dict[str, Any]) -> None:
        if kind == "audio_lost":
            self.ailments[stream] = "lost"
        elif kind == "audio_fault":
            self.ailments[stream] = event["fault"]
        elif kind in {"audio_restored", "audio_healed"}:
            self.ailments.pop(stream, None)
        elif kind == "mute":
            (self.muted.add if event["muted"] else self.muted.discard)(stream)
        elif kind == "stream_left":
            self._forget(stream)
        elif kind == "shutdown":
            self.state = f"stopped: {event['reason']}"

    def _forget(self, stream: str) -> None:
        self.streams.pop(stream, None)
        self.seen_at.pop(stream, None)
        self.ailments.pop(stream, None)
        self.muted.discard(stream)
        self.peaks = {key: peak for key, peak in self.peaks.items() if key[0] != stream}
        self.heard = {key: count for key, count in self.heard.items() if key[0] != stream}

    def fade(self) -> None:
        """Peaks fall with time."""
        for key in self.peaks:
            self.peaks[key] *= FADE

    # --- drawing ---

    def draw(self, now: float) -> "RenderableType":
        """The whole screen."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.text import Text

        panels: list[RenderableType] = [
            Panel(self._stream(name, now), title=Text(name), title_align="left", border_style=self._colour(name, now))
            for name in list(self.streams)[:MOST_STREAMS]
        ]
        if len(self.streams) > MOST_STREAMS:
            panels.append(f"and {len(self.streams) - MOST_STREAMS} streams more")
        return Group(self._head(), *panels, Panel(self._events(), title="events", title_align="left"))

    def _head(self) -> "Text":
        from rich.text import Text

        wrong = "".join(f"; {stream}: {ailment}" for stream, ailment in self._what_is_wrong().items())
        return Text(f"kwsd{self.model}: {self.state}{wrong}   (Ctrl-C ends)", style="bold red" if wrong else "bold")

    def _what_is_wrong(self) -> dict[str, str]:
        """By stream: of a muted one that it is, only where nothing worse ails it."""
        return dict.fromkeys(sorted(self.muted), "muted") | self.ailments

    def _colour(self, name: str, now: float) -> str:
        return "red" if name in self._what_is_wrong() or now - self.seen_at[name] > STALE_S else "green"

    def _stream(self, name: str, now: float) -> "Group":
        from rich.console import Group
        from rich.text import Text

        scores = self.streams[name]
        quiet = "".join(
            f"   {label} {scores['posteriors'][label]:.2f}" for label in scores["posteriors"] if label.startswith("_")
        )
        level = (
            f"level {bar((scores['level_dbfs'] - QUIETEST_DBFS) / -QUIETEST_DBFS)} {scores['level_dbfs']:6.1f} dBFS"
            f"   lag {scores['lag_ms']} ms   at {scores['at_s']:.1f} s{quiet}"
        )
        return Group(Text(level), self._keywords(name, scores))  # names may look like rich's markup

    def _keywords(self, name: str, scores: dict[str, Any]) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for title in ("keyword", "score, and │ its threshold", "now", "peak", "heard"):
            table.add_column(title, justify="left" if title.startswith(("keyword", "score")) else "right")
        for keyword, score in scores["scores"].items():
            threshold, peak = scores["thresholds"][keyword], max(score, self.peaks.get((name, keyword), 0.0))
            style = "bold green" if peak >= threshold else "yellow" if peak >= 0.5 * threshold else ""
            heard = str(self.heard.get((name, keyword), ""))
            table.add_row(Text(keyword), bar(score, threshold), f"{score:.2f}", f"{peak:.2f}", heard, style=style)
        return table

    def _events(self) -> "Text":
        from rich.text import Text

        text = Text()
        for event in list(self.events)[::-1]:
            kind = event["type"]
            style = "bold green" if kind == "detection" else "" if kind in CALM else "yellow"
            time_here = datetime.fromisoformat(event["time"]).astimezone()
            text.append(f"{time_here:%H:%M:%S}  {describe(event)}\n", style=style)
        return text if self.events else Text("none yet", style="dim")


def bar(share: float, mark: float | None = None) -> str:
    """A bar from 0 to 1, with a mark in it."""
    filled = round(min(max(share, 0.0), 1.0) * BAR)
    cells = ["█"] * filled + ["·"] * (BAR - filled)
    if mark is not None:
        cells[min(round(mark * BAR), BAR - 1)] = "│"
    return "".join(cells)


def describe(event: dict[str, Any]) -> str:
    """An event in one line."""
    if event["type"] == "detection":
        also = "".join(f", also {other['stream']}" for other in event.get("also_heard", ()))
        return f"{event['stream']}: {event['keyword']}  {event['score']:.2f} (threshold {event['threshold']:.2f}){also}"
    hidden = {"v", "type", "id", "seq", "time", "model", "keywords"}
    fields = [f"{name} {value}" for name, value in event.items() if name not in hidden and value not in (None, "")]
    return f"{event['type']}: {', '.join(fields)}"


# --- the daemon that is watched ---


@contextlib.contextmanager
def daemon_of_our_own(arguments: Sequence[str]) -> Iterator[Path]:
    """A `kwsd run` with these arguments and a socket of its own, that ends with us, however we end.

    Raises KwsdError with its last line if it ends by a mistake.
    """
    with tempfile.TemporaryDirectory(prefix="kwsd-") as folder:
        path = Path(folder) / "events.sock"
        settings = (f"sinks.socket.path={path}", "sinks.socket.enabled=true", *ONLY_LOOKING)
        told = (part for setting in settings for part in ("--set", setting))
        command = [sys.executable, "-m", "kwsd", "run", *arguments, *told]
        log = Path(folder) / "log"
        with log.open("wb") as stderr:
            daemon = subprocess.Popen(  # noqa: S603 - us
                command,
                stdin=None,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                preexec_fn=functools.partial(_end_with, os.getpid()),  # noqa: PLW1509 - we have no threads yet
            )
        try:
            deadline = time.monotonic() + COMING_S
            while not answers(path):
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise _last_words(log, daemon.returncode)
                time.sleep(0.05)
            hung_up: KwsdError | None = None
            try:
                yield path
            except KwsdError as error:
                hung_up = error
            with contextlib.suppress(subprocess.TimeoutExpired):  # it ends, whether it said so or not
                daemon.wait(GOING_S)
            if daemon.returncode:
                raise _last_words(log, daemon.returncode)
            if hung_up is not None:
                raise hung_up
        finally:
            daemon.terminate()
            daemon.wait()


def _last_words(log: Path, code: int | None) -> KwsdError:
    last = (log.read_text(errors="replace").strip().splitlines() or ["it does not start"])[-1]
    return KwsdError(last.removeprefix("kwsd: "), exit_code=code or IO)


def _end_with(parent: int) -> None:
    """In a new process: SIGTERM when its parent ends, which may have been just now."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(OK)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Whoever ends us, or closes our terminal, has us leave in order. Raises SystemExit for that."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_terminal() -> None:
    """Raises ConfigError if there is none, or no library to draw in it with."""
    if not sys.stdout.isatty():
        raise ConfigError("monitor: needs a terminal; scripts read the events socket", exit_code=USAGE)
    try:
        import rich  # noqa: F401
    except ImportError:
        raise ConfigError(
            "monitor: rich is not installed; pip install 'kwsd[monitor]'", exit_code=UNAVAILABLE
        ) from None


def monitor(lines: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Draw what the lines tell, in the terminal, until they end. Raises KwsdError if there are none."""
    from rich.live import Live

    view, told = View(), _in_background(lines)
    with Live(view.draw(time.monotonic()), auto_refresh=False, screen=True) as live:
        while True:
            deadline = time.monotonic() + REFRESH_S
            with contextlib.suppress(queue.Empty):
                while (left := deadline - time.monotonic()) > 0:
                    event = told.get(timeout=left)
                    if event is None:
                        return
                    if isinstance(event, KwsdError):
                        raise event
                    view.take(event, time.monotonic())
            view.fade()
            live.update(view.draw(time.monotonic()), refresh=True)


def _in_background(
    lines: Callable[[], Iterator[dict[str, Any]]],
) -> "queue.SimpleQueue[dict[str, Any] | KwsdError | None]":
    """The lines as they come; None after the last, or the error that ended them."""
    told: queue.SimpleQueue[dict[str, Any] | KwsdError | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for event in lines():
                told.put(event)
            told.put(None)
        except KwsdError as error:
            told.put(error)

    threading.Thread(target=read, name="lines", daemon=True).start()
    return told
