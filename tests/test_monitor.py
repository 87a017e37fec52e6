"""The view of a daemon in a terminal: a real one, on a real pseudo-terminal."""

import fcntl
import io
import os
import pty
import re
import select
import signal
import socket
import struct
import termios
import time
from pathlib import Path

import pytest
from running import KWSD, Running, clean_environment

from kwsd.errors import IO, NO_INPUT, UNAVAILABLE, USAGE
from kwsd.monitor import BAR, FADE, View, bar, describe
from kwsd.recording import DEMO

SCORES = {
    "v": 1, "type": "scores", "time": "2026-11-24T16:36:16.767Z", "stream": "mic", "at_s": 3.3, "level_dbfs": -40.0,
    "lag_ms": 12, "posteriors": {"yes": 0.1, "no": 0.2, "_silence_": 0.7}, "scores": {"yes": 0.9, "no": 0.2},
    "thresholds": {"yes": 0.7, "no": 0.6},
}  # fmt: skip
HEARD = {
    "v": 1, "type": "detection", "id": "x", "seq": 3, "time": "2026-11-24T16:36:16.767Z", "stream": "mic",
    "keyword": "yes", "score": 0.91, "threshold": 0.7,
}  # fmt: skip


def told(*events):
    view = View()
    for event in events:
        view.take({"time": "2026-11-24T16:36:16.767Z"} | event, 100.0)
    return view


def drawn(view, now=100.0):
    from rich.console import Console

    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(view.draw(now))
    return console.export_text()


@pytest.mark.parametrize(
    ("share", "mark", "drawing"),
    [
        (0.0, None, "·" * BAR),
        (1.0, None, "█" * BAR),
        (0.5, None, "█" * 15 + "·" * 15),
        (7.0, None, "█" * BAR),
        (-1.0, None, "·" * BAR),
        (0.0, 0.5, "·" * 15 + "│" + "·" * 14),
        (1.0, 1.0, "█" * 29 + "│"),
    ],
)
def test_a_bar_is_as_long_as_its_share_with_the_mark_in_it(share, mark, drawing):
    assert bar(share, mark) == drawing


def test_the_screen_has_level_scores_thresholds_events_and_lag():
    screen = drawn(told({"type": "hello", "model": "sha256:abc"}, SCORES, HEARD))
    for part in ("sha256:abc: listening", "mic", "-40.0 dBFS", "lag 12 ms", "_silence_ 0.70", "│", "yes", "0.90"):
        assert part in screen, screen
    assert "  mic: yes  0.91 (threshold 0.70)" in screen


def test_a_word_that_other_rooms_heard_as_well_says_so():
    others = {"also_heard": [{"stream": "hall", "keyword": "yes"}, {"stream": "bath", "keyword": "yes"}]}
    assert "  mic: yes  0.91 (threshold 0.70), also hall, also bath" in drawn(told(HEARD | others))


def test_times_are_those_of_the_clock_on_the_wall(monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "IST-5:30")
        time.tzset()
        screen = drawn(told(SCORES, HEARD))
    time.tzset()
    assert "22:06:16  mic: yes" in screen


def test_peaks_stay_a_while_and_words_are_counted():
    view = told(SCORES, SCORES | {"scores": {"yes": 0.1, "no": 0.3}}, HEARD, HEARD)
    assert view.peaks["mic", "yes"] == 0.9 and view.peaks["mic", "no"] == 0.3 and view.heard == {("mic", "yes"): 2}
    view.fade()
    assert view.peaks["mic", "yes"] == pytest.approx(0.9 * FADE)


def test_words_are_counted_where_they_were_said():
    rows = [line for line in drawn(told(SCORES, SCORES | {"stream": "attic"}, HEARD)).splitlines() if "│ yes" in line]
    assert [row.strip("│ ").endswith(" 1") for row in rows] == [True, False]


def test_what_is_wrong_with_a_stream_is_on_top_until_it_is_over():
    lost = {"type": "audio_lost", "stream": "mic", "reason": "unplugged"}
    assert "mic: lost" in drawn(told(SCORES, lost)).splitlines()[0]
    assert "mic: lost" not in drawn(told(SCORES, lost, {"type": "audio_restored", "stream": "mic", "gap_s": 2.0}))
    assert "mic: quiet" in drawn(told(SCORES, {"type": "audio_fault", "stream": "mic", "fault": "quiet"}))


def test_a_stream_is_muted_until_it_is_not_whatever_else_ails_it():
    lost, restored = {"type": "audio_lost", "stream": "mic"}, {"type": "audio_restored", "stream": "mic", "gap_s": 2.0}
    mute, unmute = ({"type": "mute", "stream": "mic", "muted": muted} for muted in (True, False))
    for events, head in (
        ((mute,), "mic: muted"),
        ((mute, lost), "mic: lost"),
        ((lost, mute, restored), "mic: muted"),
        ((lost, mute, unmute), "mic: lost"),
        (({"type": "hello", "model": "x", "muted": ["mic"]}, lost, restored), "mic: muted"),
    ):
        assert head in drawn(told(SCORES, *events)).splitlines()[0]
    left = {"type": "stream_left", "stream": "mic"}
    for events in ((mute, unmute), (mute, lost, left), (mute, left)):
        assert "mic:" not in drawn(told(SCORES, *events)).splitlines()[0]


def test_names_that_look_like_markup_are_drawn_as_they_are():
    odd = SCORES | {"stream": "[/kitchen]", "scores": {"[bold]": 0.5}, "thresholds": {"[bold]": 0.7}}
    screen = drawn(told(odd | {"posteriors": {"[bold]": 0.5, "_[/x]": 0.5}}))
    assert "[/kitchen]" in screen and "[bold]" in screen and "_[/x]" in screen


def test_a_satellite_that_left_is_gone_and_many_streams_are_counted():
    many = [SCORES | {"stream": f"room {n}"} for n in range(9)]
    view = told(*many)
    assert "and 3 streams more" in drawn(view)
    view.take({"type": "stream_left", "stream": "room 0", "time": "2026-11-24T16:36:16Z"}, 100.0)
    assert "and 2 streams more" in drawn(view)


def test_of_a_satellite_that_left_nothing_is_kept():
    left = {"type": "stream_left", "stream": "mic", "reason": "it hung up"}
    view, empty = told(SCORES, HEARD, {"type": "audio_lost", "stream": "mic"}, left), View()
    view.events.clear()
    assert view == empty


def test_any_event_is_one_line_without_what_nobody_reads():
    assert describe({"v": 1, "type": "reload", "id": "x", "seq": 1, "time": "t", "ok": False, "error": "no"}) == (
        "reload: ok False, error no"
    )


# --- real ones ---


class Terminal:
    """A command on a pseudo-terminal of its own."""

    def __init__(self, *arguments, environment):
        self.shown = b""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(KWSD, ["kwsd", "monitor", *arguments], environment | {"TERM": "xterm-256color"})
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))

    def wait_for(self, pattern, seconds=30.0):
        """Until it is on the screen, without what gives it colour and place."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline and self._read(0.2), self.text[-3000:]

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown.decode(errors="replace"))

    def _read(self, seconds):
        ready, _, _ = select.select([self._fd], [], [], seconds)
        if not ready:
            return True
        try:
            self.shown += os.read(self._fd, 65536)
        except OSError:
            return False
        return True

    def press(self, keys):
        os.write(self._fd, keys)

    def close(self):
        """The window is closed."""
        os.close(self._fd)
        os.waitpid(self.pid, 0)

    def ended(self, seconds=10.0):
        """The exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._fd)
                return os.waitstatus_to_exitcode(status)
        raise AssertionError("it goes on")


def test_without_a_daemon_it_listens_itself(tmp_path):
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    terminal = Terminal("--source", str(DEMO), environment=environment)
    terminal.wait_for(r"demo\.flac: stop  0\.\d\d \(threshold")
    assert "dBFS" in terminal.text and "its threshold" in terminal.text
    terminal.press(b"\x03")
    assert terminal.ended() == 0


def test_it_watches_a_daemon_that_runs_and_ends_with_it(tmp_path):
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Running("--source", str(DEMO), environment=environment) as daemon:
        daemon.wait_for("ready")
        terminal = Terminal(environment=environment)
        terminal.wait_for(r"demo\.flac: \w+  0\.\d\d \(threshold")
        daemon.stop()
        assert terminal.ended() == 0
    assert len(daemon.detections) >= 1 and not [e for e in daemon.events if e["type"] == "scores"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, "its terminal is closed"])
def test_a_daemon_of_its_own_ends_with_it_however_it_ends(tmp_path, how):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    config = tmp_path / "kwsd.yaml"
    config.write_text(f"streams: [{{source: pcm, path: {pipe}, name: pipe}}]")
    terminal = Terminal("--config", str(config), environment=clean_environment(XDG_RUNTIME_DIR=str(tmp_path)))
    terminal.wait_for("listening")
    [daemon] = map(int, Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children").read_text().split())
    watched = os.pidfd_open(daemon)
    if isinstance(how, signal.Signals):
        os.kill(terminal.pid, how)
        assert terminal.ended() == (-how if how == signal.SIGKILL else 128 + how)
    else:
        terminal.close()
    ended, _, _ = select.select([watched], [], [], 10.0)
    os.close(watched)
    assert ended, "the daemon goes on"


def test_who_only_looks_switches_no_lamp_and_needs_no_port(tmp_path):
    config = tmp_path / "kwsd.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config.write_text(
            f"hooks: [{{shell: touch {tmp_path}/lamp}}]\nhttp: {{on: ['tcp://127.0.0.1:{port}']}}\n"
            f"listen: {{on: ['tcp://127.0.0.1:{port}']}}\n"
            f"wyoming: {{on: ['tcp://0.0.0.0:{port}'], unprotected: true, zeroconf: lamps}}\n"
            "sinks: {mqtt: {broker: 'mqtts://broker', ca_file: ca.pem}, socket: {group: nobody-at-all}}\n"
        )
        environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
        terminal = Terminal("--config", str(config), "--source", str(DEMO), environment=environment)
        terminal.wait_for(r"demo\.flac: stop  0\.\d\d \(threshold")
        terminal.press(b"\x03")
        assert terminal.ended() == 0
        assert not (tmp_path / "lamp").exists()
        without = Terminal("--config", str(config), "--set", "streams=[]", environment=environment)
        assert without.ended() == IO
        assert f"listen.on: tcp://127.0.0.1:{port}: cannot be bound" in without.text


def test_it_needs_a_terminal(kwsd):
    kwsd("monitor", "--source", DEMO).refused(USAGE, "monitor: needs a terminal")
    kwsd("monitor", "--source", "nowhere.wav").refused(USAGE, "monitor: needs a terminal")  # no daemon was begun


def test_without_a_daemon_and_a_source_it_says_what_to_do(kwsd, environment, tmp_path):
    kwsd("monitor", "--socket", tmp_path / "s", "--source", DEMO).refused(USAGE, "--socket watches a daemon that runs")
    if not os.path.exists("/run/kwsd/events.sock"):  # noqa: PTH110 - somebody's own
        terminal = Terminal(environment=environment)
        assert terminal.ended() == UNAVAILABLE
        assert re.search(r"no kwsd runs: .*; start one, or name a --source", terminal.text)


def test_what_keeps_its_own_daemon_from_starting_is_said(environment):
    terminal = Terminal("--source", "nowhere.wav", environment=environment)
    assert terminal.ended(30.0) == NO_INPUT
    assert "nowhere.wav: no such file" in terminal.text


def test_what_ends_its_own_daemon_is_said(tmp_path):
    (tmp_path / "half.flac").write_bytes(DEMO.read_bytes()[:100_000])
    terminal = Terminal("--source", str(tmp_path / "half.flac"), environment=clean_environment())
    assert terminal.ended(30.0) == IO
    assert "half.flac: damaged after " in terminal.text


def test_a_socket_on_which_nobody_answers_is_said_on_the_terminal(tmp_path):
    terminal = Terminal("--socket", str(tmp_path / "s"), environment=clean_environment())
    assert terminal.ended() == UNAVAILABLE
    assert "no kwsd answers there" in terminal.text


def test_without_the_library_it_says_which(tmp_path):
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich/__init__.py").write_text("raise ImportError\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    terminal = Terminal("--source", "nowhere.wav", environment=clean_environment(PYTHONPATH=path))
    assert terminal.ended() == UNAVAILABLE
    assert "rich is not installed; pip install 'kwsd[monitor]'" in terminal.text
