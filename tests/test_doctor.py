"""What keeps kwsd from hearing is found, with a remedy; where nothing does, that is said with the figures."""

import json
import os
import shutil
import socket
import subprocess

import numpy as np
import pytest
import soundfile
from broker import Broker, needs_mosquitto
from running import KWSD, Running, free_port
from sound_server import SoundServer, missing

from kwsd import client, compiled
from kwsd.config import load_config
from kwsd.doctor import FAIL, OK, WARN, compiled_parts, examine, judge
from kwsd.errors import UNAVAILABLE, USAGE
from kwsd.recording import DEMO, read_recording

RATE = 48_000
FROM_FILE = f"streams=[{{source: file, path: {DEMO}}}]"
needs_sound = pytest.mark.skipif(
    bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it"
)


def noise(level_dbfs, seconds=3, rate=RATE):
    return (np.random.default_rng(1).normal(size=seconds * rate) * 10 ** (level_dbfs / 20)).astype(np.float32)


RECORDINGS = {
    "silence": (np.zeros(RATE, np.float32), RATE, FAIL, "digital silence", "unmute it"),
    "the same all the time": (np.full(RATE, 0.3, np.float32), RATE, FAIL, "constant", "unplug"),
    "one buffer": (np.tile(noise(-30)[:2400], 40), RATE, FAIL, "stuck", "restart the sound server"),
    "far too loud": (np.clip(noise(0), -1, 1), RATE, FAIL, "clipping", "gain down"),
    "far too quiet": (noise(-95), RATE, FAIL, "quiet", "gain up"),
    "a roar": (noise(-20), RATE, WARN, "very noisy", "gain down"),
    "an offset": (0.1 + noise(-60), RATE, WARN, "far from zero", "hears all the same"),
    "a quiet room": (noise(-65), RATE, OK, "nobody spoke", ""),
    "somebody speaks": (read_recording(DEMO)[28_000:76_000], 16_000, OK, "somebody spoke", ""),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_tells_what_is_wrong_with_its_microphone(name):
    samples, rate, state, words, remedy = RECORDINGS[name]
    [finding] = judge("mic", samples, rate, -85.0)
    assert finding.state == state and words in finding.what and remedy in finding.remedy
    assert f"{rate} Hz, level " in finding.what and "noise floor" in finding.what and "clipped" in finding.what
    assert bool(finding.remedy) is (state != OK)


def doctor(environment, *more):
    command = [KWSD, "doctor", "--json", "--seconds", "1", *more]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def about(findings, what):
    [found] = [finding for finding in findings if finding["what"].startswith(what)]
    return found


@needs_sound
def test_a_muted_microphone_is_found_and_one_that_hears_is_well(tmp_path):
    server = SoundServer(tmp_path)
    server.start()
    try:
        code, findings = doctor(server.environment)
        assert code == UNAVAILABLE
        assert about(findings, "microphone")["state"] == FAIL
        assert "digital silence" in about(findings, "microphone")["what"]
        assert "a share of " in about(findings, "model")["what"]
        assert about(findings, "sound server")["what"].endswith(f"{tmp_path}/pulse.sock")
        assert any("device " in finding["what"] and "the default" in finding["what"] for finding in findings)
        soundfile.write(tmp_path / "room.wav", noise(-55, 10), RATE)
        room = subprocess.Popen(["paplay", f"--device={server.sink}", tmp_path / "room.wav"], env=server.environment)
        code, findings = doctor(server.environment)
        room.kill()
        room.wait()
        assert about(findings, "microphone")["state"] == OK, findings
        assert (code, [f for f in findings if f["state"] == FAIL]) == (0, [])
    finally:
        server.kill()


def test_without_a_microphone_it_says_so_and_goes_on(kwsd, tmp_path):
    (tmp_path / "alsa.conf").write_text("pcm.broken { type hw card 31 }\n")
    result = kwsd("doctor", more={"ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")})
    assert result.code == UNAVAILABLE
    assert "FAIL  devices: no microphone" in result.out and "events socket" in result.out
    assert "systemd: " in result.out.splitlines()[-1] or "unit: " in result.out


@pytest.mark.parametrize(
    ("devices", "said"),
    [
        ("", "devices: no microphone"),
        ("pcm.refusing { type iec958 slave { pcm { type null } format S16_LE } }\n", "microphone mic (refusing): "),
    ],
)
def test_a_microphone_that_the_kwsd_that_runs_may_hold_is_not_missing(devices, said, kwsd, environment, tmp_path):
    (tmp_path / "alsa.conf").write_text(f"pcm.broken {{ type hw card 31 }}\n{devices}")

    def look():
        refusing = "streams=[{source: microphone, device: refusing}]"
        return kwsd("doctor", "--set", refusing, more={"ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")})

    result = look()
    assert result.code == UNAVAILABLE and f"FAIL  {said}" in result.out and "is another program using it?" in result.out
    with Running("--source", str(DEMO), environment=environment) as daemon:
        daemon.wait_for("ready")
        result = look()
        assert result.code == 0 and f"warn  {said}" in result.out
        assert "/kwsd/events.sock) may hold it; stop it to examine it" in result.out


def test_a_config_that_is_wrong_is_the_first_to_be_said(kwsd):
    result = kwsd("doctor", "--set", "hopp=1")
    assert result.code == UNAVAILABLE
    assert result.out.startswith("FAIL  configuration: --set hopp=1: hopp: unknown key")


def test_a_model_that_is_not_there_is_found(kwsd):
    result = kwsd("doctor", "--model", "nowhere.onnx")
    assert result.code == UNAVAILABLE
    assert "FAIL  model: " in result.out and "no such model" in result.out


def test_a_recording_as_source_has_no_microphone_to_be_examined(kwsd):
    result = kwsd("doctor", "--set", FROM_FILE)
    assert [line for line in result.out.splitlines() if line[6:].startswith("microphone")] == []
    assert "configuration: streams file" in result.out


def test_what_the_configuration_names_is_looked_for(kwsd, tmp_path):
    streams = "streams: [{source: file, path: none.wav}, {source: pcm, name: b, path: none.fifo}]\n"
    rest = "listen: {on: ['unix:in'], token_file: none, group: nobody-at-all}\n"
    (tmp_path / "kwsd.yaml").write_text(streams + rest)
    result = kwsd("doctor", "--config", "kwsd.yaml")
    assert result.code == UNAVAILABLE
    failed = [line for line in result.out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 4
    for what, line in zip(
        ("none.wav", "none.fifo: no such", "listen.token_file", "nobody-at-all"), failed, strict=True
    ):
        assert what in line


def test_who_has_only_satellites_needs_no_microphone(kwsd, tmp_path):
    (tmp_path / "alsa.conf").write_text("pcm.broken { type hw card 31 }\n")
    only = ("--set", "streams=[]", "--set", f"listen.on=['unix:{tmp_path}/in']")
    result = kwsd("doctor", *only, more={"ALSA_CONFIG_PATH": str(tmp_path / "alsa.conf")})
    assert result.code == 0 and "ok    sound: no stream of the configuration is a microphone" in result.out


def test_what_systemd_will_give_the_service_is_not_missed(kwsd, tmp_path):
    given = "$CREDENTIALS_DIRECTORY/secret"
    (tmp_path / "kwsd.yaml").write_text(
        "streams: []\n"
        f"listen: {{on: ['unix:in'], token_file: {given}}}\n"
        f"sinks: {{mqtt: {{broker: 'mqtt://h', user_file: {given}, password_file: {given}}}}}\n"
        f"hooks: [{{post: 'http://127.0.0.1:{free_port()}/', token_file: {given}}}]\n"
    )
    result = kwsd("doctor", "--config", "kwsd.yaml")
    assert "ok    MQTT broker: not asked" in result.out
    assert [
        line for line in result.out.splitlines() if line.startswith("FAIL") and "cannot be reached" not in line
    ] == []


@pytest.mark.parametrize("seconds", ["0", "-1", "100"])
def test_how_long_it_listens_has_bounds(seconds, kwsd):
    kwsd("doctor", f"--seconds={seconds}").refused(USAGE, "--seconds", "from 0.5 to 4")


# --- where events go ---


def test_who_has_no_place_for_the_events_socket_is_told_of_that_of_the_service(monkeypatch, tmp_path):
    path = tmp_path / "events.sock"
    monkeypatch.setattr(client, "SYSTEM_SOCKET", path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # as the user of the service, without a session
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)

    def look():
        findings = examine(lambda: load_config(None, (FROM_FILE,), environment={}), 1.0)
        return about([finding.as_dict() for finding in findings], "events socket")

    finding = look()
    assert finding["state"] == WARN and f"{path}, where systemd puts it, is not there" in finding["what"]
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(path))
        service.listen()
        assert look() == {"state": OK, "what": f"events socket: a kwsd answers at {path}", "remedy": ""}


@needs_mosquitto
def test_a_broker_that_passes_events_on_is_told_from_one_that_is_not_there_or_keeps_them(kwsd, tmp_path):
    port = free_port()
    at_broker = ("doctor", "--set", FROM_FILE, "--set", f"sinks.mqtt.broker=mqtt://127.0.0.1:{port}")
    result = kwsd(*at_broker)
    assert result.code == UNAVAILABLE
    assert f"FAIL  MQTT broker: 127.0.0.1:{port}: " in result.out and "Connection refused" in result.out
    assert "→ start it" in result.out
    with Broker(tmp_path, port):
        assert f"ok    MQTT broker: 127.0.0.1:{port} takes what kwsd tells\n" in kwsd(*at_broker).out
    (tmp_path / "acl").write_text("topic write kwsd/#\n")
    with Broker(tmp_path, port, f"acl_file {tmp_path}/acl"):
        out = kwsd(*at_broker).out
    assert f"warn  MQTT broker: 127.0.0.1:{port} lets kwsd in, and what it tells does not come back" in out
    assert "→ let its user read and write kwsd/home/#" in out


def test_hooks_are_looked_at_and_none_is_started(kwsd, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port, nobody = server.getsockname()[1], free_port()
        there, gone = (f"{{post: 'http://127.0.0.1:{at}/said'}}" for at in (port, nobody))
        program = f"{{name: lamp, run: [touch, {tmp_path}/started]}}"
        result = kwsd("doctor", "--set", FROM_FILE, "--set", f"hooks=[{program}, {there}, {gone}]")
        assert result.code == UNAVAILABLE
        assert f"ok    hook lamp: {shutil.which('touch')} is there\n" in result.out
        assert f"ok    hook hooks.1: 127.0.0.1:{port} answers\n" in result.out
        assert f"FAIL  hook hooks.2: 127.0.0.1:{nobody} cannot be reached" in result.out
    assert not (tmp_path / "started").exists()


def test_a_hook_for_a_word_that_nobody_listens_for_is_found(kwsd):
    result = kwsd("doctor", "--set", FROM_FILE, "--set", "hooks=[{keywords: [banana], shell: 'true'}]")
    assert result.code == UNAVAILABLE
    assert ": hooks.0.keywords: " in result.out and "banana" in result.out


def test_what_was_not_compiled_is_named(monkeypatch):
    parts = "audio callback, loudness, windows, debouncer"
    if shutil.which("cc"):
        assert compiled_parts().what == f"compiled: {parts}"
    monkeypatch.setattr(compiled, "LIBRARY", "kwsd._nowhere")
    compiled.library.cache_clear()
    try:
        finding = compiled_parts()
    finally:
        compiled.library.cache_clear()
    assert finding.state == WARN and f"not {parts}: Python does it" in finding.what
    assert "install a C compiler" in finding.remedy
