"""The whole daemon on a real PortAudio device: somebody speaks, and the event arrives on the UNIX socket."""

import json
import signal
import socket
import statistics
import subprocess
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import soundfile
from running import KWSD, PATIENCE_S, Running
from sound_server import SoundServer, missing

from kwsd.errors import INTERRUPTED, OK, UNAVAILABLE
from kwsd.recording import DEMO

pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it")

STOPPED_S = 5.0  # on a machine that is busy; who waits for a driver that hangs waits longer

TWO_SERVERS = """
pcm.mouth {{
    type pulse server "unix:{one.folder}/pulse.sock" device mouth.monitor hint {{ show on description "mouth" }}
}}
pcm.ear {{
    type pulse server "unix:{other.folder}/pulse.sock" device ear.monitor hint {{ show on description "ear" }}
}}
"""


def when(event):
    """Seconds since the epoch."""
    return datetime.fromisoformat(event["time"]).timestamp()


def words(lines):
    return [json.loads(line)["keyword"] for line in lines if b'"detection"' in line]


def read_until_closed(path):
    with socket.socket(socket.AF_UNIX) as reader:
        reader.connect(str(path))
        reader.settimeout(30)
        with reader.makefile("rb") as lines:
            yield from lines


def hears_three(daemon, server, three_words):
    """Speaks, and waits until as many words were told."""
    server.speak(three_words)
    for _ in range(3):
        daemon.wait_for("detection")


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
        assert code == 0 and took < STOPPED_S
        received = list(lines)
    expected = replayed_words()
    heard = words(received)
    # The microphone went through PulseAudio at 48 kHz and our resampler: nearly, not exactly, the same samples.
    assert len(expected) >= 5
    assert len(set(heard) & set(expected)) >= len(expected) - 2
    assert json.loads(received[-1])["type"] == "shutdown"
    assert statistics.median(event["latency_ms"] for event in daemon.detections) < 1000
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


def test_a_sound_server_that_dies_is_announced_and_its_return_is_heard(server, three_words):
    with Running(environment=server.environment) as daemon:
        daemon.wait_for("ready")
        gone = time.time()
        server.kill()
        lost = daemon.wait_for("audio_lost")
        assert lost["stream"] == "mic"
        assert "unplugged" in lost["reason"] or "no audio for 0.8 s" in lost["reason"], "whichever is seen first"
        assert when(lost) - gone < 4.0
        time.sleep(1.0)
        server.start()
        gap_s = daemon.wait_for("audio_restored")["gap_s"]
        assert 1.0 < gap_s < time.time() - gone + 2.0
        hears_three(daemon, server, three_words)
        assert daemon.stop()[0] == 0
    assert len(daemon.detections) == 3
    assert not any("Traceback" in line for line in daemon.errors)
    [word, *_] = daemon.detections
    began = when(daemon.events[0]) - 1.0  # a window before `ready`
    assert gap_s + 2.0 < word["start_s"] < when(word) - began + 1.5, "the gap is on the time axis"


def test_a_sound_server_that_hangs_is_announced_and_heard_again_when_it_goes_on(server, three_words):
    with Running(environment=server.environment) as daemon:
        daemon.wait_for("ready")
        server.signal(signal.SIGSTOP)
        lost = daemon.wait_for("audio_lost")
        assert "no audio for 0.8 s" in lost["reason"]
        time.sleep(0.5)
        server.signal(signal.SIGCONT)
        assert daemon.wait_for("audio_restored")["gap_s"] > 0.5
        hears_three(daemon, server, three_words)
        assert daemon.stop()[0] == 0
    assert len(daemon.detections) == 3


@pytest.mark.parametrize("command", ["run", "devices"])
def test_a_sound_server_that_hangs_from_the_beginning_is_said_and_ctrl_c_is_heeded_meanwhile(command, server):
    server.signal(signal.SIGSTOP)
    try:
        asked = [
            subprocess.Popen(
                [KWSD, command],
                env=server.environment,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - whoever tests aside
            )
            for _ in range(2)
        ]
        deadline = time.monotonic() + PATIENCE_S
        while "libportaudio" not in Path(f"/proc/{asked[1].pid}/maps").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        asked[1].send_signal(signal.SIGINT)
        assert asked[1].wait(15) == (OK if command == "run" else INTERRUPTED)
        _, said = asked[0].communicate(timeout=15)
        assert asked[0].returncode == UNAVAILABLE
        assert b"the sound system does not answer within 5 s; start the sound server anew" in said
        asked[1].communicate()
    finally:
        server.signal(signal.SIGCONT)


def test_doctor_tells_of_a_sound_server_that_hangs_and_goes_on(server):
    server.signal(signal.SIGSTOP)
    try:
        asked = subprocess.run(
            [KWSD, "doctor"], env=server.environment, capture_output=True, text=True, timeout=40, check=False
        )
    finally:
        server.signal(signal.SIGCONT)
    assert "devices: the sound system does not answer within 5 s" in asked.stdout
    assert "socket" in asked.stdout.rpartition("does not answer")[2]


def test_a_daemon_whose_sound_server_hangs_can_be_stopped(server):
    with Running(environment=server.environment) as daemon:
        daemon.wait_for("ready")
        server.signal(signal.SIGSTOP)
        daemon.wait_for("audio_lost")
        code, took = daemon.stop()
        assert code == 0 and took < STOPPED_S
        server.signal(signal.SIGCONT)


def test_a_muted_microphone_is_told_once_and_once_when_it_is_not(server, three_words):
    with Running("--set", "capture.dead_after_s=2", environment=server.environment) as daemon:
        daemon.wait_for("ready")
        fault = daemon.wait_for("audio_fault")  # nobody speaks into it: digital silence
        assert (fault["stream"], fault["fault"]) == ("mic", "digital silence")
        time.sleep(3.0)
        server.speak(three_words)
        healed = daemon.wait_for("audio_healed")
        assert healed["fault"] == "digital silence" and healed["lasted_s"] >= 4.0
        daemon.stop()
    assert [event["fault"] for event in daemon.events if event["type"] == "audio_fault"][:1] == ["digital silence"]
    told = [event["type"] for event in daemon.events if event["type"] in {"audio_fault", "audio_healed"}]
    assert told[:2] == ["audio_fault", "audio_healed"]


def test_a_stopped_daemon_blames_nobody_when_it_goes_on(server):
    with Running(environment=server.environment) as daemon:
        daemon.wait_for("ready")
        daemon.process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        daemon.process.send_signal(signal.SIGCONT)
        time.sleep(2.0)
        daemon.stop()
    assert not [event for event in daemon.events if event["type"] == "audio_lost"]


def test_another_microphone_is_not_disturbed_by_one_that_is_lost(server, tmp_path, three_words):
    """Two sound servers. When one dies the library looks for devices anew, which ends every stream of it."""
    (tmp_path / "other").mkdir()
    other = SoundServer(tmp_path / "other", sink="ear")
    other.start()
    (tmp_path / ".asoundrc").write_text(TWO_SERVERS.format(one=server, other=other))
    rooms = [{"source": "microphone", "name": name, "device": name} for name in ("mouth", "ear")]
    environment = {name: value for name, value in server.environment.items() if name != "PULSE_SERVER"}
    try:
        with Running("--set", f"streams={json.dumps(rooms)}", environment=environment) as daemon:
            daemon.wait_for("ready")
            time.sleep(2.5)  # a null sink is slow to begin
            other.kill()
            assert daemon.wait_for("audio_lost")["stream"] == "ear"
            hears_three(daemon, server, three_words)
            assert daemon.stop()[0] == 0
    finally:
        other.kill()
    assert len([word for word in daemon.detections if word["stream"] == "mouth"]) == 3
    assert {event["stream"] for event in daemon.events if event["type"] in {"audio_lost", "overrun"}} == {"ear"}


def test_a_reload_that_is_refused_while_the_microphone_is_gone_leaves_no_deaf_daemon(server, tmp_path, three_words):
    config = tmp_path / "kwsd.yaml"
    config.write_text("streams: [{source: microphone}]\n")
    with Running("--config", str(config), environment=server.environment) as daemon:
        daemon.wait_for("ready")
        server.kill()
        daemon.wait_for("audio_lost")
        config.write_text("streams: [{source: microphone, name: other}]\n")
        daemon.process.send_signal(signal.SIGHUP)
        assert not daemon.wait_for("reload")["ok"]
        server.start()
        assert daemon.wait_for("audio_restored")["stream"] == "mic"
        hears_three(daemon, server, three_words)
        assert daemon.stop()[0] == 0
    assert len(daemon.detections) == 3


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
