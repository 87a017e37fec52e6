"""The whole daemon on a real PortAudio device: somebody speaks, and the event arrives on the UNIX socket."""

import json
import socket
import subprocess

import pytest
from running import KWSD, Running
from sound_server import SoundServer, missing

from kwsd.recording import DEMO

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it")


@pytest.fixture
def server(tmp_path):
    server = SoundServer(tmp_path)
    server.start()
    yield server
    server.kill()


def words(lines):
    return [json.loads(line)["keyword"] for line in lines if b'"detection"' in line]


def read_until_closed(path):
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
        reader.settimeout(30)
        with reader.makefile("rb") as lines:
            yield from lines


def replayed_words():
    result = subprocess.run([KWSD, "replay", str(DEMO)], capture_output=True, check=True)
    return words(result.stdout.splitlines())


def test_words_spoken_into_the_microphone_arrive_on_the_socket(server, tmp_path):
    with Running(environment=server.environment) as daemon:
        daemon.wait_for("ready")
        lines = read_until_closed(tmp_path / "kwsd/events.sock")
        hello = json.loads(next(lines))
        assert hello["type"] == "hello" and hello["streams"] == ["mic"]
        server.speak(DEMO)
        code, took = daemon.stop()
        assert code == 0 and took < 2.0
        received = list(lines)
    expected = replayed_words()
    heard = words(received)
    # The microphone went through PulseAudio at 48 kHz and our resampler: nearly, not exactly, the same samples.
    assert len(expected) >= 5
    assert len(set(heard) & set(expected)) >= len(expected) - 2
    assert json.loads(received[-1])["type"] == "shutdown"
    assert all(event["latency_ms"] < 1000 for event in daemon.detections)
    assert not [event for event in daemon.events if event["type"] == "overrun"]


def test_unplugging_the_microphone_is_announced_and_ends_the_daemon(server):
    with Running(environment=server.environment) as daemon:
        daemon.wait_for("ready")
        server.kill()
        lost = daemon.wait_for("audio_lost", timeout=10)
        assert lost["stream"] == "mic" and lost["reason"]
        assert daemon.finish(timeout=10) == 74
        assert daemon.events[-1]["type"] == "shutdown"
        assert not any("Traceback" in line for line in daemon.errors)


def test_devices_are_listed_with_their_native_rate(server):
    result = subprocess.run(
        [KWSD, "devices", "--json"], env=server.environment, capture_output=True, check=True, text=True
    )
    names = {device["name"]: device for device in json.loads(result.stdout)}
    assert names["default"]["max_input_channels"] >= 1
    assert names["default"]["default_samplerate"] > 0


@pytest.mark.parametrize("device", ["default", "*ulse*", "0"])
def test_a_device_is_found_by_name_pattern_and_number(server, device):
    with Running("--set", f"streams.0.device={json.dumps(device) if not device.isdigit() else device}",
                 environment=server.environment) as daemon:  # fmt: skip
        daemon.wait_for("ready")
        assert daemon.stop()[0] == 0
