"""Every file in examples/ does what it says, on a real daemon."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from broker import Broker, needs_mosquitto
from running import Running, free_port

from kwsd.audio_format import SAMPLE_RATE
from kwsd.recording import DEMO, read_recording

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = {"mqtt.yaml", "hooks.yaml", "rooms.yaml", "wyoming.yaml", "page.yaml"}
RUN = {"lamp.sh", "read_events.py", "satellite.py", "on_word", *CONFIGS}
PATIENCE_S = 40.0


def test_every_example_is_run_here_and_named_in_the_readme():
    there = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    assert there == RUN
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"({name})" in readme for name in there)


@pytest.fixture
def folder(tmp_path):
    """A copy, with the secrets that the examples want beside them."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy)
    for name, secret in (("mqtt-user", "me"), ("mqtt-password", "pw"), ("token", "long random word")):
        (copy / name).write_text(f"{secret}\n")
        (copy / name).chmod(0o600)
    return copy


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Streams in place of the microphone: somebody says "stop" again and again, for whoever came late."""
    tape = tmp_path_factory.mktemp("tape") / "tape.wav"
    soundfile.write(tape, np.tile(read_recording(DEMO)[: 4 * SAMPLE_RATE], 10), SAMPLE_RATE)
    return f"streams=[{{source: file, path: {tape}, name: desk}}]"


class Program:
    """An example that runs beside a daemon; what it prints comes to `out`."""

    def __init__(self, *command, environment, folder, stdin=None):
        self.out = folder / "out"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                list(map(str, command)), stdin=stdin or subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()

    def prints(self, *texts):
        deadline = time.monotonic() + PATIENCE_S
        while not all(text in self.out.read_text() for text in texts):
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.05)


def test_lamp(desk, folder, environment):
    with Running("--set", desk, environment=environment) as daemon:
        daemon.wait_for("ready")
        with Program(folder / "lamp.sh", environment=environment, folder=folder) as lamp:
            lamp.prints("everything off")


def test_read_events_also_after_a_restart(desk, folder, environment):
    with Program(sys.executable, folder / "read_events.py", environment=environment, folder=folder) as reading:
        reading.prints("trying again")
        path = Path(environment["XDG_RUNTIME_DIR"]) / "kwsd/events.sock"
        path.parent.mkdir()
        with socket.socket(socket.AF_UNIX) as stopping:  # that does not wait for who reads slowly
            stopping.bind(str(path))
            stopping.listen()
            with stopping.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(b'{"type": "hello"}\n{"type": "detec')
        for _ in range(2):
            with Running("--set", desk, environment=environment):
                before = reading.out.read_text().count("desk: stop")
                deadline = time.monotonic() + PATIENCE_S
                while reading.out.read_text().count("desk: stop") == before:
                    assert time.monotonic() < deadline, reading.out.read_text()
                    time.sleep(0.05)


def test_satellite_and_rooms(desk, folder, environment, tmp_path):
    raw = tmp_path / "recording.raw"
    raw.write_bytes((read_recording(DEMO)[:64_000] * 32767).astype("<i2").tobytes())
    options = ("--set", desk, "--set", 'listen.on=["tcp://0.0.0.0:0"]')
    with Running("--config", str(folder / "rooms.yaml"), *options, environment=environment) as daemon:
        daemon.wait_for("ready")
        port = daemon.wait_for_log("tcp://0.0.0.0:").split()[0]
        command = (sys.executable, folder / "satellite.py", "kitchen", f"127.0.0.1:{port}")
        known = (*command, folder / "token")
        with raw.open("rb") as stdin, Program(*known, environment=environment, folder=folder, stdin=stdin) as satellite:
            satellite.prints("stop")
            assert satellite.process.wait(PATIENCE_S) == 0
        with Program(*command, environment=environment, folder=folder) as stranger:
            stranger.prints("the token is not the one", "trying again")
    assert {event["keyword"] for event in daemon.detections} <= {"on", "off", "stop"}


def test_a_satellite_connects_again_where_kwsd_opened_its_streams_anew(folder, environment, tmp_path):
    config = tmp_path / "kwsd.yaml"
    settings = {"streams": [], "listen": {"on": [f"tcp://127.0.0.1:{free_port()}"], "streams": 2}}
    config.write_text(json.dumps(settings))
    with Running("--config", str(config), environment=environment) as daemon:
        port = daemon.wait_for_log("listening on tcp://127.0.0.1:").split()[0]
        command = (sys.executable, folder / "satellite.py", "kitchen", f"127.0.0.1:{port}")
        with Program(*command, environment=environment, folder=folder, stdin=subprocess.PIPE) as satellite:
            daemon.wait_for("stream_joined")
            settings["listen"]["streams"] = 3
            config.write_text(json.dumps(settings))
            daemon.process.send_signal(signal.SIGHUP)
            satellite.prints("kwsd stops, or opens its streams anew; trying again")
            daemon.wait_for("stream_joined")
            satellite.process.stdin.write((read_recording(DEMO)[:64_000] * 32767).astype("<i2").tobytes())
            satellite.prints("again\nstop\n")
            satellite.process.stdin.close()


def test_hooks_and_on_word(desk, folder, environment):
    words = folder / "words"
    options = ("--config", str(folder / "hooks.yaml"), "--set", desk)
    with Running(*options, environment=environment | {"WORDS": str(words)}) as daemon:
        daemon.wait_for("ready")
        deadline = time.monotonic() + PATIENCE_S
        while not (words.exists() and "stop in desk, score 0." in words.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert "hook_failed" not in {event["type"] for event in daemon.events}


@needs_mosquitto
def test_mqtt(desk, folder, environment, tmp_path):
    port = free_port()
    options = ("--set", desk, "--set", f"sinks.mqtt.broker=mqtt://127.0.0.1:{port}")
    with Broker(tmp_path, port) as broker:
        everything = broker.listener()
        with Running("--config", str(folder / "mqtt.yaml"), *options, environment=environment):
            everything.wait_for("homeassistant/event/kwsd_home/desk__command/config")
            assert json.loads(everything.wait_for("kwsd/home/desk/detection").payload)["keyword"] == "stop"


def test_wyoming(folder, environment):
    options = ("--set", 'wyoming.on=["tcp://127.0.0.1:0"]', "--set", "wyoming.zeroconf=null")
    with Running("--config", str(folder / "wyoming.yaml"), *options, environment=environment) as daemon:
        daemon.wait_for("ready")
        daemon.wait_for_log("Wyoming clients on tcp://127.0.0.1:")
        daemon.stop()


def test_page(desk, folder, environment):
    from test_endpoint import address_of

    options = ("--set", desk, "--set", 'http.on=["tcp://127.0.0.1:0"]')
    with Running("--config", str(folder / "page.yaml"), *options, environment=environment) as daemon:
        daemon.wait_for("ready")
        for path, expected in (("/", "<title>kwsd</title>"), ("/metrics", "kwsd_ready 1")):
            with urllib.request.urlopen(f"http://{address_of(daemon)}{path}", timeout=5) as answer:
                assert expected in answer.read().decode()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_configuration_is_valid_as_it_is(folder, kwsd, name):
    result = kwsd("check", "--config", folder / name)
    assert result.code == 0, result.err
