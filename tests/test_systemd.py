"""The service manager's side: a real process, a real `$NOTIFY_SOCKET`, real units."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import soundfile
import yaml

import kwsd
from kwsd.systemd import Notifier

KWSD = Path(sys.executable).with_name("kwsd")
MODEL = Path(kwsd.__file__).parent / "models" / "simplenet.pt"  # the quickest to load
UNITS = Path(__file__).parent.parent / "systemd"
SYSTEM_UNIT, USER_UNIT, CUDA = UNITS / "kwsd.service", UNITS / "user" / "kwsd.service", UNITS / "cuda.conf"
PATIENCE_S = 30.0  # for importing torch on a busy machine

RATE = 16_000  # Hz
BLOCK_S = 0.1
noise = np.random.default_rng(0)


def pcm(seconds: float) -> bytes:
    """Faint noise as raw s16le at 16 kHz."""
    return noise.normal(0, 300, round(RATE * seconds)).astype("<i2").tobytes()


def wait_for(what: str, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """The first true answer; a failed test if there is none in time."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:g} s for {what}")
        time.sleep(0.01)
    return answer


class Manager:
    """What systemd does with the socket: it listens, and remembers when it heard what."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[tuple[float, dict[str, str]]] = []  # monotonic seconds, assignments
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1))
        self._socket.settimeout(0.05)
        self._over = False
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while not self._over:
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            self.heard.append((time.monotonic(), dict(line.split("=", 1) for line in message.splitlines())))

    def all(self, key: str) -> list[str]:
        """Every value of an assignment so far, in order."""
        return [message[key] for _, message in self.heard if key in message]

    def count(self, key: str, since: float) -> int:
        """How often an assignment came since a moment."""
        return sum(key in message for at, message in self.heard if at >= since)


class Daemon:
    """`kwsd run` as a service, with a microphone that we hold: its stdin."""

    def __init__(self, manager: Manager, folder: Path, *arguments: str, watchdog_s: float = 0.0) -> None:
        environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("KWSD_") and key not in ("WATCHDOG_USEC", "JOURNAL_STREAM")
        }
        environment |= {"RUNTIME_DIRECTORY": str(folder), "NOTIFY_SOCKET": manager.address}
        if watchdog_s:
            environment["WATCHDOG_USEC"] = str(round(watchdog_s * 1e6))
        self._arguments = [KWSD, "run", *arguments]
        self._environment = environment
        self._files = [folder / "stdout", folder / "stderr"]
        self._speaking = threading.Event()
        self._over = False
        self._mouth = threading.Thread(target=self._speak)

    def __enter__(self) -> Self:
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                self._arguments, stdin=subprocess.PIPE, stdout=out, stderr=err, env=self._environment
            )
        self._mouth.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._mouth.join()
        assert self.process.stdin
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def _speak(self) -> None:
        assert self.process.stdin
        while not self._over:
            if self._speaking.wait(0.05):
                try:
                    os.write(self.process.stdin.fileno(), pcm(BLOCK_S))
                except BrokenPipeError:
                    return
                time.sleep(BLOCK_S)

    def speak(self) -> None:
        """Audio comes in, in real time, until `hush`."""
        self._speaking.set()

    def hush(self) -> None:
        """No audio comes any more, though the pipe stays open."""
        self._speaking.clear()

    def events(self) -> list[dict[str, Any]]:
        """What stdout says so far."""
        return [json.loads(line) for line in self._files[0].read_bytes().splitlines(keepends=True) if b"\n" in line]

    def last(self, kind: str) -> dict[str, Any] | None:
        """The latest event of a type."""
        return next((event for event in reversed(self.events()) if event["type"] == kind), None)

    def said(self, words: str) -> bool:
        """Whether the log has these words."""
        return words in self._files[1].read_text()

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM: the exit code, and the seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S), time.monotonic() - begun


def write_config(path: Path, **settings: object) -> Path:
    """A config that listens to stdin."""
    tree = {"model": str(MODEL), "streams": [{"source": "pcm", "name": "room"}], **settings}
    path.write_text(yaml.safe_dump(tree))
    return path


@dataclass(frozen=True)
class Service:
    """A daemon that is ready, and what was heard of it before any audio came."""

    manager: Manager
    daemon: Daemon
    config: Path
    before_audio: dict[str, list[str]]
    spoken_at: float  # the first sample, monotonic s
    wait_for_ready_s: float  # from the first sample


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for several tests, for starting it is what takes long."""
    folder = tmp_path_factory.mktemp("service")
    config = write_config(folder / "config.yaml")
    with (
        Manager(str(folder / "notify")) as manager,
        Daemon(manager, folder, "--config", str(config), watchdog_s=0.4) as daemon,
    ):
        wait_for("the model to be loaded", lambda: daemon.said("listening on room"))
        daemon.process.send_signal(signal.SIGHUP)  # a reload is no audio either
        time.sleep(0.7)
        before_audio = {
            "READY": manager.all("READY"),
            "WATCHDOG": manager.all("WATCHDOG"),
            "events": [event["type"] for event in daemon.events() if event["type"] != "reload"],
        }
        begun = time.monotonic()
        daemon.speak()
        wait_for("the ready event", lambda: daemon.last("ready"))
        wait_for("READY=1", lambda: manager.all("READY"))
        yield Service(manager, daemon, config, before_audio, begun, time.monotonic() - begun)


# --- the daemon and its manager -----------------------------------------------------------------------------


def test_ready_waits_for_audio_that_reached_the_model(service: Service) -> None:
    assert service.before_audio == {"READY": [], "WATCHDOG": [], "events": []}
    assert service.wait_for_ready_s > 0.8  # a window takes a second of audio, and we speak in real time
    assert "listening on room; 0 words heard" in service.manager.all("STATUS")


def test_the_watchdog_is_fed_by_scored_windows_and_by_nothing_else(service: Service) -> None:
    manager, daemon = service.manager, service.daemon
    begun = time.monotonic()
    time.sleep(2.0)
    wait_for("WATCHDOG=1, three times", lambda: manager.count("WATCHDOG", since=begun) >= 3)
    told = len(manager.all("WATCHDOG"))  # wanted every 0.4 s, sent every 0.2 s
    assert told <= (time.monotonic() - service.spoken_at) / 0.2 + 1

    daemon.hush()
    wait_for("a second without WATCHDOG=1", lambda: not manager.count("WATCHDOG", since=time.monotonic() - 1), 10)
    assert daemon.process.poll() is None

    spoken = time.monotonic()
    daemon.speak()
    wait_for("WATCHDOG=1", lambda: manager.count("WATCHDOG", since=spoken), 10)


def reload(service: Service, **settings: object) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Change the config and send SIGHUP: the event, and what the manager was told of it."""
    begun, before = time.monotonic(), len(service.manager.all("RELOADING"))
    told = sum(event["type"] == "reload" for event in service.daemon.events())
    write_config(service.config, **settings)
    service.daemon.process.send_signal(signal.SIGHUP)
    wait_for("RELOADING=1", lambda: len(service.manager.all("RELOADING")) > before)
    wait_for("READY=1 after it", lambda: service.manager.count("READY", since=begun))
    events = wait_for("the event", lambda: [e for e in service.daemon.events() if e["type"] == "reload"][told:])
    return events[0], [m for at, m in service.manager.heard if at >= begun and {"RELOADING", "READY"} & set(m)]


def test_a_bad_config_is_refused_with_the_reason_and_the_old_one_stays(service: Service) -> None:
    event, messages = reload(service, debouncer={"treshold": 0.9})
    assert event["ok"] is False
    place = re.escape(str(service.config))
    assert re.fullmatch(rf"{place}:\d+: debouncer\.treshold: unknown key; did you mean threshold\?", event["error"])
    assert service.daemon.said("the old configuration is kept")
    assert [next(iter(message)) for message in messages[:2]] == ["RELOADING", "READY"]
    begun = time.monotonic()
    wait_for("it to go on", lambda: service.manager.count("WATCHDOG", since=begun), 10)


def test_a_good_config_is_taken_without_a_restart(service: Service) -> None:
    event, messages = reload(service, keywords={"stop": {}, "go": {}})
    assert event["ok"] is True
    assert [next(iter(message)) for message in messages[:2]] == ["RELOADING", "READY"]
    assert 0 <= time.monotonic_ns() // 1000 - int(messages[0]["MONOTONIC_USEC"]) < 60_000_000
    with socket.socket(socket.AF_UNIX) as reader, reader.makefile("rb") as lines:
        reader.connect(str(service.config.with_name("events.sock")))  # sinks.socket.path: auto
        assert json.loads(lines.readline())["keywords"] == ["go", "stop"]


def test_the_status_names_the_last_word(service: Service) -> None:
    reload(service, debouncer={"threshold": 0.001, "release": 0.0001, "margin": 0.0})  # any noise is a word
    status = re.compile(r"listening on room; (\d+) words heard; last heard: (\w+)")
    told = wait_for(
        "a STATUS with a word", lambda: [*filter(None, map(status.fullmatch, service.manager.all("STATUS")))]
    )[-1]
    words = wait_for(
        "its event",
        lambda: [e["keyword"] for e in service.daemon.events() if e["type"] == "detection"][int(told[1]) - 1 :],
    )
    assert words[0] == told[2]


def test_the_status_is_told_once_a_second_at_most_and_in_the_end(service: Service) -> None:
    begun = time.monotonic()
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(str(service.config.with_name("events.sock")))
        for command in ["mute", "unmute"] * 10 + ["mute"]:
            control.sendall(json.dumps({"command": command}).encode() + b"\n")
        wait_for("the last of it", lambda: "room: muted" in service.manager.all("STATUS")[-1])
        control.sendall(b'{"command": "unmute"}\n')
        wait_for("no more of it", lambda: "muted" not in service.manager.all("STATUS")[-1])
    told = [message for at, message in service.manager.heard if at > begun and set(message) == {"STATUS"}]
    assert 2 <= len(told) <= 2 + (time.monotonic() - begun)


def test_sigterm_ends_it_at_once_with_everything_said(tmp_path: Path) -> None:
    with (
        Manager(str(tmp_path / "notify")) as manager,
        Daemon(manager, tmp_path, "--source", "-", "--model", str(MODEL)) as daemon,
    ):
        daemon.speak()
        wait_for("READY=1", lambda: manager.all("READY"))
        assert manager.all("WATCHDOG") == []  # nobody asked for it
        with socket.socket(socket.AF_UNIX) as reader, reader.makefile("rb") as lines:
            reader.connect(str(tmp_path / "events.sock"))
            assert json.loads(lines.readline())["type"] == "hello"
            code, seconds = daemon.stop()
            rest = [json.loads(line) for line in lines]
        for told in (daemon.events(), rest):
            assert told[-1]["type"] == "shutdown"
            assert told[-1]["reason"] == "SIGTERM"
        wait_for("STOPPING=1", lambda: manager.all("STOPPING"))
        assert manager.heard[-1][1] == {"STOPPING": "1", "STATUS": "stopping"}
        assert not (tmp_path / "events.sock").exists()
        assert code == 0
        assert seconds < 5.0


def test_a_recording_that_ends_ends_the_service(tmp_path: Path) -> None:
    abstract = f"@kwsd-test-{secrets.token_hex(8)}"  # the other kind of address systemd may give
    tape = tmp_path / "tape.wav"
    soundfile.write(tape, noise.normal(0, 0.01, RATE // 2).astype(np.float32), RATE)
    with (
        Manager(abstract) as manager,
        Daemon(manager, tmp_path, "--source", str(tape), "--model", str(MODEL), watchdog_s=0.4) as daemon,
    ):
        assert daemon.process.wait(PATIENCE_S) == 0
        wait_for("STOPPING=1", lambda: manager.all("STOPPING"))
        assert manager.all("READY") == ["1"]
        assert manager.all("WATCHDOG")
        assert [event["type"] for event in daemon.events()] == ["ready", "shutdown"]
        assert daemon.events()[-1]["reason"] == "end of audio"


def test_a_service_that_cannot_start_never_says_ready(tmp_path: Path) -> None:
    with (
        Manager(str(tmp_path / "notify")) as manager,
        Daemon(manager, tmp_path, "--source", "-", "--model", str(tmp_path / "none.pt")) as daemon,
    ):
        assert daemon.process.wait(PATIENCE_S) == 66
        assert manager.all("READY") == []


def test_a_manager_that_went_away_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    notifier = Notifier()
    notifier.ready("listening")
    notifier.alive()
    notifier.stopping()
    notifier._socket.close()


# --- the units ----------------------------------------------------------------------------------------------


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: apt install systemd)"
)


def analyze(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze, as a user whose home is `home` where it asks."""
    environment = os.environ | {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "SYSTEMD_COLORS": "0"}
    environment.pop("XDG_CONFIG_HOME", None)
    return subprocess.run(
        ["systemd-analyze", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


def install(unit: Path, home: Path) -> Path:
    """The unit as README.md has it installed, its command in place."""
    command = home / ".local" / "bin" / "kwsd"
    command.parent.mkdir(parents=True)
    command.symlink_to(KWSD)
    installed = home / "units" / unit.name
    installed.parent.mkdir()
    installed.write_text(unit.read_text().replace("/usr/local/bin/kwsd", str(command)))
    return installed


@needs_analyze
@pytest.mark.parametrize("options", [[], ["--cuda"], ["--user"]], ids=["system", "system and cuda.conf", "user"])
def test_systemd_finds_no_fault_with_the_units(options: list[str], tmp_path: Path) -> None:
    unit = install(USER_UNIT if "--user" in options else SYSTEM_UNIT, tmp_path)
    if "--cuda" in options:
        drop_ins = unit.with_name(unit.name + ".d")
        drop_ins.mkdir()
        shutil.copy(CUDA, drop_ins)
    found = analyze("--user" if "--user" in options else "--system", "verify", unit, home=tmp_path)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@needs_analyze
def test_the_readme_quotes_the_score_that_systemd_gives(tmp_path: Path) -> None:
    found = analyze("security", "--offline=true", "--threshold=20", SYSTEM_UNIT, home=tmp_path)
    assert found.returncode == 0, f"over 2.0: {found.stdout.splitlines()[-1]}"
    version = analyze("--version", home=tmp_path).stdout.split()[1]
    if version != "252":
        pytest.skip(f"the score quoted is that of systemd 252, this is {version}")
    score = re.search(r"exposure level for kwsd\.service: (\S+)", found.stdout)
    assert score
    assert f"kwsd.service: {score[1]} SAFE" in (UNITS / "README.md").read_text()


def lines_of(unit: Path) -> list[str]:
    return [line for line in unit.read_text().splitlines() if re.match(r"\w+=", line)]


def explained() -> set[str]:
    """The lines that README.md has a row for."""
    table = (UNITS / "README.md").read_text().partition("## Why each line is there")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    return {line for row in rows for line in re.findall(r"`(\w+=[^`]*)`", row.split(" | ")[0])}


@pytest.mark.parametrize(
    ("unit", "line"),
    [pytest.param(unit, line, id=f"{unit.parent.name}/{line}") for unit in (SYSTEM_UNIT, USER_UNIT, CUDA)
     for line in lines_of(unit)],
)  # fmt: skip
def test_every_line_of_the_units_is_explained(unit: Path, line: str) -> None:
    assert line in explained(), f"{unit.name}: README.md has no row for it"


def test_the_readme_explains_no_line_that_is_gone() -> None:
    here = {line for unit in (SYSTEM_UNIT, USER_UNIT, CUDA) for line in lines_of(unit)}
    assert explained() - here == set()


@pytest.mark.parametrize("unit", [SYSTEM_UNIT, USER_UNIT], ids=["system", "user"])
def test_the_units_give_the_daemon_what_it_relies_on(unit: Path) -> None:
    lines = lines_of(unit)
    assert {"Type=notify", "RuntimeDirectory=kwsd", "ExecReload=/bin/kill -HUP $MAINPID"} <= set(lines)
    assert not any(line.startswith("MemoryDenyWriteExecute=") for line in lines)  # PortAudio's callback needs it off
