"""Metrics and health of a real daemon, as Prometheus and a watcher ask for them."""

import json
import signal
import socket
import stat
import time
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import Running, clean_environment
from sound_server import SoundServer, missing

from kwsd.errors import CONFIG, IO, UNAVAILABLE
from kwsd.recording import DEMO


def address_of(daemon, times=1):
    """The TCP address, once it is logged for the nth time."""
    return daemon.wait_for_log("metrics and health on tcp://", times).partition(",")[0]


def get(address, path):
    """Status and text."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(address):
    """{name: {labels: value}} as Prometheus reads it."""
    status, text = get(address, "/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def serving(*more):
    return ("--set", 'http.on=["tcp://127.0.0.1:0"]', *more)


def test_what_was_heard_is_counted_and_all_is_well(tmp_path):
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Running("--source", str(DEMO), *serving(), environment=environment) as daemon:
        address = address_of(daemon)
        for _ in range(3):
            daemon.wait_for("detection")
        time.sleep(1.1)  # lags are counted once a second
        found = metrics(address)
        assert get(address, "/healthz") == (200, '{"ok": true, "problems": []}\n')
        assert get(address, "/elsewhere")[0] == 404
        daemon.stop()
    stream = ("stream", DEMO.name)
    words = [event["keyword"] for event in daemon.detections][:3]
    for word in words:
        assert found["kwsd_detections_total"][("keyword", word), stream] == 1
    assert found["kwsd_windows_scored_total"][()] > 50
    assert found["kwsd_blocks_total"][stream,] > 100
    assert found["kwsd_hears"] == {(stream,): 1} and found["kwsd_ready"] == {(): 1}
    assert -80 < found["kwsd_noise_floor_dbfs"][stream,] <= found["kwsd_level_dbfs"][stream,] < 0
    assert found["kwsd_lag_seconds_count"][()] == found["kwsd_lag_seconds_bucket"][(("le", "+Inf"),)] > 30
    assert "rejected" not in {event["type"] for event in daemon.events}


def test_counts_survive_a_reload_that_opens_sources_anew(tmp_path):
    config = tmp_path / "kwsd.yaml"
    text = f"http: {{on: ['tcp://127.0.0.1:0']}}\nstreams: [{{source: file, path: {DEMO}, name: NAME}}]\n"
    config.write_text(text.replace("NAME", "one"))
    with Running("--config", str(config), environment=clean_environment(XDG_RUNTIME_DIR=str(tmp_path))) as daemon:
        address = address_of(daemon)
        daemon.wait_for("detection")
        config.write_text(text.replace("NAME", "other"))
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait_for("reload")["ok"]
        daemon.wait_for("detection")
        found = metrics(address)
        daemon.stop()
    assert {dict(labels)["stream"] for labels in found["kwsd_detections_total"]} == {"one", "other"}
    assert {dict(labels)["stream"] for labels in found["kwsd_blocks_total"]} == {"one", "other"}
    assert found["kwsd_reloads_total"] == {(("ok", "yes"),): 1}
    ended = [
        (event["type"], event["stream"]) for event in daemon.events if event["type"] in {"audio_lost", "stream_left"}
    ]
    assert ended == [("audio_lost", "one"), ("stream_left", "one")]


def test_a_signal_has_it_all_in_the_log(tmp_path):
    with Running("--source", str(DEMO), environment=clean_environment(XDG_RUNTIME_DIR=str(tmp_path))) as daemon:
        daemon.wait_for("ready")
        daemon.process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        daemon.stop()
    log = "".join(daemon.errors)
    assert f"hears (stream={DEMO.name}): 1" in log and "windows_scored: " in log and "lag_seconds: " in log


def test_a_unix_socket_is_for_owner_and_group_and_gone_afterwards(tmp_path):
    path = tmp_path / "http.sock"
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Running("--source", str(DEMO), "--set", f'http.on=["unix:{path}"]', environment=environment) as daemon:
        daemon.wait_for("ready")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        daemon.stop()
    assert not path.exists()


@pytest.mark.skipif(bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it")
def test_a_lost_microphone_is_not_healthy_until_it_is_back(tmp_path):
    server = SoundServer(tmp_path)
    server.start()
    try:
        with Running(*serving(), environment=server.environment) as daemon:
            address = address_of(daemon)
            daemon.wait_for("ready")
            assert get(address, "/healthz")[0] == 200
            server.kill()
            daemon.wait_for("audio_lost")
            status, text = get(address, "/healthz")
            assert status == 503 and "mic: lost" in json.loads(text)["problems"]
            assert metrics(address)["kwsd_hears"] == {(("stream", "mic"),): 0}
            server.start()
            daemon.wait_for("audio_restored")
            time.sleep(1.5)
            assert get(address, "/healthz") == (200, '{"ok": true, "problems": []}\n')
            found = metrics(address)
            assert found["kwsd_losses_total"] == found["kwsd_reconnects_total"] == {(("stream", "mic"),): 1}
            daemon.stop()
    finally:
        server.kill()


def test_before_audio_reached_the_model_all_is_not_well(tmp_path):
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Running("--source", "-", *serving(), environment=environment) as daemon:
        address = address_of(daemon)
        assert get(address, "/healthz") == (503, '{"ok": false, "problems": ["not ready yet"]}\n')
        daemon.stop()


@pytest.mark.parametrize(
    ("on", "why"),
    [
        ("tcp://0.0.0.0:9170", "can be reached from other machines; name an http.token_file"),
        ("tcp://localhost", "is no address"),
        ("unix:/nowhere/http.sock", "the folder /nowhere is not there; create it"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(on, why, kwsd):
    kwsd("run", "--source", DEMO, "--set", f'http.on=["{on}"]').refused(CONFIG, "http.on", why)


def test_a_port_in_use_is_refused(kwsd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = kwsd("run", "--source", DEMO, "--set", f'http.on=["tcp://127.0.0.1:{port}"]')
        result.refused(IO, f"http.on: tcp://127.0.0.1:{port}: cannot be bound (Address already in use)")


def test_a_start_that_fails_leaves_no_socket_behind(kwsd, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        on = [f"http.on=['tcp://127.0.0.1:{taken.getsockname()[1]}']", "listen.on=['unix:in.sock']", "streams=[]"]
        result = kwsd("run", *(part for setting in on for part in ("--set", setting)))
    result.refused(IO, "Address already in use")
    assert not (tmp_path / "in.sock").exists()


@pytest.mark.parametrize(
    ("path", "headers", "body"),
    [
        ("/login", {"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\nContent"),
        ("/login", {"Content-Encoding": "gzip"}, b"garbage"),
        ("/command", {"Content-Type": "application/json", "Content-Encoding": "gzip"}, b"garbage"),
    ],
)
def test_a_body_that_is_not_as_its_headers_say_is_refused(path, headers, body, tmp_path):
    with Running("--source", "-", *serving(), environment=clean_environment(XDG_RUNTIME_DIR=str(tmp_path))) as daemon:
        request = urllib.request.Request(f"http://{address_of(daemon)}{path}", body, headers)
        with pytest.raises(urllib.error.HTTPError) as refusal, urllib.request.urlopen(request, timeout=5):
            pass
        refusal.value.close()
        assert refusal.value.code == 400
        daemon.stop()  # and with it all that it said
    assert not any("Traceback" in line for line in daemon.errors)


def test_without_the_libraries_it_says_which(kwsd, tmp_path):
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError('no', name='aiohttp')\n")
    result = kwsd("run", "--source", DEMO, *serving(), more={"PYTHONPATH": str(tmp_path)})
    result.refused(UNAVAILABLE, "http.on: aiohttp is not installed; pip install 'kwsd[http]'")
