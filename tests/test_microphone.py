"""The whole daemon on a real PortAudio device: somebody speaks, and the event arrives on the UNIX socket."""

import json
import socket
import subprocess

import numpy as np
import pytest
import soundfile
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


def test_streams_share_a_microphone_and_each_hears_its_own_channel(server, tmp_path):
    """Speech on the right, silence on the left; the device is opened once."""
    speech, rate = soundfile.read(DEMO, dtype="float32")
    tape = tmp_path / "right.wav"
    soundfile.write(tape, np.stack([np.zeros_like(speech), speech], 1), rate)
    rooms = [
        {"source": "microphone", "name": name, "channel": n} for name, n in (("left", 1), ("right", 2), ("both", "mix"))
    ]
    with Running("--set", f"streams={json.dumps(rooms)}", environment=server.environment) as daemon:
        daemon.wait_for("ready")
        recording = ["pactl", "list", "short", "source-outputs"]
        opened = subprocess.run(recording, env=server.environment, capture_output=True, check=True, text=True)
        assert len(opened.stdout.splitlines()) == 1
        server.speak(tape)
        daemon.stop()
    heard = {room["name"]: [e["keyword"] for e in daemon.detections if e["stream"] == room["name"]] for room in rooms}
    expected = replayed_words()
    assert heard["left"] == []
    for name in ("right", "both"):
        assert len(set(heard[name]) & set(expected)) >= len(expected) - 2, heard


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
