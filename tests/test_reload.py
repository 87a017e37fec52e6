"""A reload takes all of a new configuration or nothing of it, and leaves no half of a daemon behind."""

import asyncio.constants
import contextlib
import json
import os
import resource
import signal
import socket
import stat
import statistics
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import THREE_WORDS_S
from running import Running, clean_environment, free_port
from sound_server import SoundServer, missing
from test_microphone import TWO_SERVERS

from kwsd.audio_format import SAMPLE_RATE
from kwsd.client import ask
from kwsd.proc import cpu_s
from kwsd.recording import DEMO

needs_sound = pytest.mark.skipif(
    bool(missing()), reason=f"not installed: {', '.join(missing())}; make test installs it"
)
TAPE = {"source": "file", "path": str(DEMO), "name": "tape"}


class Daemon(Running):
    """With a config file that can be changed."""

    def __init__(self, folder, config, environment=None):
        self.file = folder / "kwsd.yaml"
        self.file.write_text(json.dumps(config))
        super().__init__(
            "--config", str(self.file), environment=environment or clean_environment(XDG_RUNTIME_DIR=str(folder))
        )

    def reload(self, config):
        """The event that answers."""
        self.file.write_text(json.dumps(config))
        self.process.send_signal(signal.SIGHUP)
        return self.wait_for("reload", timeout=20)

    def open_files(self, like):
        """How many descriptors are of something."""
        folder, found = Path(f"/proc/{self.process.pid}/fd"), 0
        for entry in folder.iterdir():
            try:
                found += like in str(entry.readlink())
            except OSError:  # it was closed meanwhile
                continue
        return found


def test_a_door_at_which_descriptors_ran_out_may_be_closed_while_it_rests(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    config = {"streams": [{"source": "pcm", "path": str(pipe), "name": "pipe"}], "sinks": {"socket": {"path": "s"}}}
    with Daemon(tmp_path, config) as daemon, pipe.open("wb") as feeding:
        feeding.write(bytes(2 * 2 * SAMPLE_RATE))
        feeding.flush()
        daemon.wait_for("ready")
        limit = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (3, limit[1]))
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(tmp_path / "s"))
            daemon.wait_for_log("nobody can connect now: Too many open files")
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limit)
            config["sinks"]["socket"]["queue"] = 300  # for which the socket is opened anew
            assert daemon.reload(config)["ok"]
        time.sleep(1.5 * asyncio.constants.ACCEPT_RETRY_DELAY)
        assert daemon.stop()[0] == 0


def test_what_there_is_no_memory_for_is_refused_and_the_old_streams_go_on(tmp_path):
    config = {"streams": [], "listen": {"on": ["unix:in.sock"]}, "window": {"hop_ms": 1000, "max_batch": 256}}
    with Daemon(tmp_path, config) as daemon:
        daemon.wait_for("ready")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (8 << 30, resource.RLIM_INFINITY))
        answer = daemon.reload(config | {"listen": {"on": ["unix:in.sock"], "streams": 4096}})
        assert not answer["ok"] and "there is not enough memory" in answer["error"]
        with socket.socket(socket.AF_UNIX) as satellite:
            satellite.connect(str(tmp_path / "in.sock"))
            satellite.sendall(b'{"name": "shed"}\n')
            assert b'"hello"' in satellite.recv(4096)
        assert daemon.stop()[0] == 0


def test_where_no_descriptor_is_left_a_reload_is_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    config = {"streams": [{"source": "pcm", "path": str(pipe), "name": "pipe"}]}
    with Daemon(tmp_path, config) as daemon, pipe.open("wb") as feeding:
        feeding.write(bytes(2 * 2 * SAMPLE_RATE))
        feeding.flush()
        daemon.wait_for("ready")
        limit = resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        for free in (0, 1):  # of which a config file takes one, a pipe two
            used = max(int(entry.name) for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir()) + 1
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (used + free, limit[1]))
            config["streams"][0]["name"] = f"pipe {free}"
            answer = daemon.reload(config)
            resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, limit)
            assert not answer["ok"] and "please report" not in answer["error"], answer
        assert daemon.stop()[0] == 0


def test_what_a_satellite_sent_and_how_much_was_scored_is_right_when_a_reload_opens_all_anew(tmp_path):
    config = {"streams": [], "listen": {"on": ["unix:in.sock"]}, "sinks": {"socket": {"path": "s"}}}
    with Daemon(tmp_path, config) as daemon, socket.socket(socket.AF_UNIX) as satellite:
        daemon.wait_for("ready")
        satellite.connect(str(tmp_path / "in.sock"))
        satellite.sendall(b'{"name": "shed"}\n' + bytes(2 * 32_000))
        daemon.wait_for("stream_joined")
        deadline = time.monotonic() + 20
        while (before := ask(tmp_path / "s", "status")["status"])["windows"] <= 5 or before["streams"][0][
            "heard_s"
        ] < 2.0:
            assert time.monotonic() < deadline, before
            time.sleep(0.05)
        assert daemon.reload(config | {"listen": {"on": ["unix:in.sock"], "streams": 9}})["ok"]
        [left] = [event for event in daemon.events if event["type"] == "stream_left"]
        assert (left["reason"], left["heard_s"]) == ("reload", before["streams"][0]["heard_s"])
        assert ask(tmp_path / "s", "status")["status"]["windows"] >= before["windows"]
        assert daemon.stop()[0] == 0


@pytest.fixture
def port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_socket_for_a_group_that_is_not_there_leaves_the_one_there_was(tmp_path):
    with Daemon(tmp_path, {"streams": [TAPE]}) as daemon:
        daemon.wait_for("ready")
        answer = daemon.reload({"streams": [TAPE], "sinks": {"socket": {"group": "nobodys"}}})
        assert not answer["ok"] and "there is no group 'nobodys'" in answer["error"]
        assert stat.S_ISSOCK((tmp_path / "kwsd/events.sock").stat().st_mode)
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(tmp_path / "kwsd/events.sock"))
            assert b'"hello"' in reader.recv(4096)
            assert daemon.reload({"streams": [TAPE]})["ok"]
            daemon.stop()
            assert b'"shutdown"' in reader.recv(1 << 16)


def test_an_address_in_use_touches_no_source(tmp_path, port_in_use):
    with Daemon(tmp_path, {"streams": [TAPE]}) as daemon:
        daemon.wait_for("ready")
        for _ in range(3):
            answer = daemon.reload({"streams": [TAPE], "listen": {"on": [f"tcp://127.0.0.1:{port_in_use}"]}})
            assert not answer["ok"] and "cannot be bound" in answer["error"]
        daemon.wait_for("detection")
        daemon.stop()
    assert "audio_lost" not in {event["type"] for event in daemon.events}


@pytest.mark.parametrize("service", ["listen", "http", "wyoming"])
def test_a_group_that_is_not_there_touches_no_source_either(tmp_path, service):
    config = {"streams": [TAPE], service: {"on": [f"unix:{tmp_path}/{service}.sock"]}}
    with Daemon(tmp_path, config) as daemon:
        daemon.wait_for("ready")
        answer = daemon.reload(config | {service: config[service] | {"group": "nobodys"}})
        assert not answer["ok"] and f"{service}.group: there is no group 'nobodys'" in answer["error"]
        assert not [event for event in daemon.events if event["type"] in ("audio_lost", "stream_left")]
        daemon.stop()


def test_an_address_may_be_widened_at_the_same_port(tmp_path):
    port = free_port()
    config = {"streams": [TAPE], "http": {"on": [f"tcp://127.0.0.1:{port}"]}}
    with Daemon(tmp_path, config) as daemon:
        daemon.wait_for("ready")
        answer = daemon.reload({"streams": [TAPE], "http": {"on": [f"tcp://localhost:{port}"]}})
        assert answer["ok"], answer
        socket.create_connection(("127.0.0.1", port)).close()
        daemon.stop()


def test_a_socket_of_ours_may_be_named_in_another_way(tmp_path):
    with Daemon(tmp_path, {"streams": [], "listen": {"on": ["unix:in.sock"]}}) as daemon:
        daemon.wait_for("ready")
        answer = daemon.reload({"streams": [], "listen": {"on": [f"unix:{tmp_path}/./in.sock"]}})
        assert answer["ok"], answer
        with socket.socket(socket.AF_UNIX) as satellite:
            satellite.connect(str(tmp_path / "in.sock"))
            satellite.sendall(b'{"name": "shed", "rate": 16000, "channels": 1, "format": "s16le"}\n')
            assert daemon.wait_for("stream_joined")["stream"] == "shed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"streams": [{"source": "pcm", "channel": 2}]},
        {"hooks": [{"run": ["~nobodyatall/lamp"]}]},
        {"debouncer": {"min_hits": 10**30}},
        {"model": "a\0b"},
    ],
)
def test_whatever_is_wrong_in_a_file_ends_no_daemon(wrong, tmp_path):
    with Daemon(tmp_path, {"streams": [TAPE]}) as daemon:
        daemon.wait_for("ready")
        assert not daemon.reload({"streams": [TAPE]} | wrong)["ok"]
        assert daemon.reload({"streams": [TAPE]})["ok"]


def test_a_config_that_could_be_read_only_once_is_not_taken_for_an_empty_one(tmp_path):
    read, write = os.pipe()
    os.write(write, json.dumps({"streams": [TAPE], "debouncer": {"threshold": 0.99}}).encode())
    os.close(write)
    environment = clean_environment(XDG_RUNTIME_DIR=str(tmp_path))
    with Running("--config", f"/dev/fd/{read}", environment=environment, pass_fds=(read,)) as daemon:
        os.close(read)
        daemon.wait_for("ready")
        daemon.process.send_signal(signal.SIGHUP)
        answer = daemon.wait_for("reload")
        assert not answer["ok"] and "could be read only once; name a file" in answer["error"]


def test_a_config_that_is_emptied_is_not_taken_for_the_defaults(tmp_path):
    with Daemon(tmp_path, {"streams": [TAPE]}) as daemon:
        daemon.wait_for("ready")
        daemon.file.write_text("")
        daemon.process.send_signal(signal.SIGHUP)
        answer = daemon.wait_for("reload")
        assert not answer["ok"] and "kwsd.yaml: is empty; write {}" in answer["error"]


def test_a_refused_reload_keeps_the_secret_of_before(tmp_path):
    port, secret = free_port(), tmp_path / "secret"

    def told(word):
        secret.write_text(word)
        secret.chmod(0o600)

    def asked(word):
        head = {"Authorization": f"Bearer {word}"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz", headers=head)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as refusal:
            return refusal.code

    told("the old one")
    busy = tmp_path / "busy.sock"
    config = {"streams": [TAPE], "http": {"on": [f"tcp://127.0.0.1:{port}"], "token_file": str(secret)}}
    with Daemon(tmp_path, config) as daemon, socket.socket(socket.AF_UNIX) as taken:
        daemon.wait_for("ready")
        taken.bind(str(busy))
        taken.listen()
        told("the new one")
        refused = daemon.reload(config | {"listen": {"on": [f"unix:{busy}"]}})
        assert not refused["ok"]
        assert (asked("the old one"), asked("the new one")) == (200, 401)
        assert daemon.reload(config)["ok"]
        assert (asked("the old one"), asked("the new one")) == (401, 200)
        daemon.stop()


def test_refused_when_all_was_closed_already_it_goes_on_and_says_who_left(tmp_path):
    port, secret = free_port(), tmp_path / "secret"
    secret.write_text("open sesame")
    secret.chmod(0o600)
    config = {"streams": [TAPE], "listen": {"on": [f"tcp://127.0.0.1:{port}"], "token_file": str(secret)}}
    with (
        Daemon(tmp_path, config) as daemon,
        socket.socket(socket.AF_UNIX) as reader,
        socket.create_server(("127.0.0.2", port)),  # beside ours, but not beside all addresses
    ):
        daemon.wait_for("ready")
        reader.connect(str(tmp_path / "kwsd/events.sock"))
        reader.settimeout(20)
        lines = reader.makefile("rb")
        reader.sendall(b'{"command": "subscribe", "scores": true}\n')
        with socket.create_connection(("127.0.0.1", port)) as satellite:
            satellite.sendall(b'{"name": "attic", "token": "open sesame"}\n' + bytes(3200))
            daemon.wait_for("stream_joined")
            wider = {"on": [f"tcp://0.0.0.0:{port}"], "token_file": str(secret)}
            assert not daemon.reload(config | {"listen": wider})["ok"]
        [left] = [event for event in daemon.events if event["type"] == "stream_left"]
        assert (left["stream"], left["reason"]) == ("attic", "reload")
        while json.loads(lines.readline())["type"] != "reload":
            pass
        while json.loads(lines.readline())["type"] != "scores":  # whoever watches goes on seeing, or this times out
            pass
        lines.close()
        daemon.stop()


@contextlib.contextmanager
def silence_into(pipe):
    """As time passes, whatever else is waited for."""
    over = threading.Event()

    def feed():
        while not over.wait(0.1):
            pipe.write(bytes(3200))

    feeding = threading.Thread(target=feed)
    feeding.start()
    try:
        yield
    finally:
        over.set()
        feeding.join()


def test_when_a_microphone_counts_as_deaf_is_taken_at_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stream = {"source": "pcm", "path": str(pipe), "name": "tap"}
    with Daemon(tmp_path, {"streams": [stream], "capture": {"dead_after_s": 0}}) as daemon:
        with pipe.open("wb", 0) as out, silence_into(out):
            time.sleep(3.0)
            assert "audio_fault" not in {event["type"] for event in daemon.events}
            assert daemon.reload({"streams": [stream], "capture": {"dead_after_s": 1}})["ok"]
            daemon.wait_for_log("tap is deaf")
        daemon.stop()
    assert [event["fault"] for event in daemon.events if event["type"] == "audio_fault"] == ["digital silence"]
    lost = [event["reason"] for event in daemon.events if event["type"] == "audio_lost"]
    assert not [reason for reason in lost if reason.startswith("reload")]


def test_a_pipe_opened_anew_in_the_midst_of_a_sample_is_still_understood(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stream = {"source": "pcm", "path": str(pipe), "name": "tap"}
    words, _ = soundfile.read(DEMO, dtype="int16")
    said = words[: round(THREE_WORDS_S * SAMPLE_RATE)].astype("<i2").tobytes()
    with Daemon(tmp_path, {"streams": [stream]}) as daemon, pipe.open("wb", 0) as out:
        out.write(bytes(40_001))  # the last of it is half a sample
        daemon.wait_for("ready")
        time.sleep(0.5)
        assert daemon.reload({"streams": [stream | {"name": "faucet"}]})["ok"]
        before = cpu_s(daemon.process.pid)
        time.sleep(2.0)
        assert cpu_s(daemon.process.pid) - before < 0.5, "it waits for the other half, and not busily"
        out.write(bytes(40_001) + said + bytes(32_000))
        heard = [daemon.wait_for("detection")["keyword"] for _ in range(3)]
        daemon.stop()
    assert len(set(heard)) == 3


def test_pipes_that_are_not_read_any_more_are_closed(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    stream = {"source": "pcm", "path": str(pipe), "name": "tap"}
    with Daemon(tmp_path, {"streams": [stream, TAPE]}) as daemon, pipe.open("wb", 0):
        daemon.wait_for("ready")
        for n in range(6):
            assert daemon.reload({"streams": [stream | {"name": f"tap {n}"}, TAPE]})["ok"]
        assert daemon.open_files(str(pipe)) == 1
        assert daemon.reload({"streams": [TAPE]})["ok"]
        assert daemon.open_files(str(pipe)) == 0
        daemon.stop()
    left = [event["stream"] for event in daemon.events if event["type"] == "stream_left"]
    assert left == ["tap", *(f"tap {n}" for n in range(6))]
    restored = [event["stream"] for event in daemon.events if event["type"] == "audio_restored"]
    assert set(restored) <= {"tape"}, "a stream that is new was never lost"


def test_a_recording_that_has_ended_is_not_played_again(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    pipe = {"source": "pcm", "path": str(tmp_path / "pipe"), "name": "tap"}
    config = {"streams": [TAPE | {"realtime": False}, pipe]}
    with Daemon(tmp_path, config) as daemon:
        assert daemon.wait_for("stream_left")["stream"] == "tape"
        assert daemon.reload(config | {"window": {"hop_ms": 80}})["ok"]
        time.sleep(1.0)
        daemon.stop()
    types = [event["type"] for event in daemon.events]
    assert types.count("stream_left") == 1
    assert "tape" not in [event["stream"] for event in daemon.events if event["type"] == "audio_lost"]
    assert types.count("detection") == types[: types.index("reload")].count("detection")


def test_a_fifo_that_is_lost_stays_so_over_a_reload_until_somebody_writes(tmp_path):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    config = {"streams": [{"source": "pcm", "path": str(fifo), "name": "tap"}]}
    with Daemon(tmp_path, config) as daemon:
        fifo.write_bytes(bytes(64_000))
        daemon.wait_for("audio_lost")
        time.sleep(1.0)
        assert daemon.reload(config | {"window": {"hop_ms": 80}})["ok"]
        time.sleep(0.5)
        fifo.write_bytes(bytes(64_000))
        assert daemon.wait_for("audio_restored")["gap_s"] > 1.5
        daemon.wait_for("audio_lost")
        daemon.stop()
    assert [event["type"] for event in daemon.events].count("audio_lost") == 2


def wait_until_heard_again(daemon, stream):
    """Of a stream that a reload lost, which may be restored before that reload is told of."""
    deadline, told = time.monotonic() + 20, []
    while told[-1:] != ["audio_restored"]:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
        of_stream = [event["type"] for event in daemon.events if event.get("stream") == stream]
        told = [kind for kind in of_stream if kind in ("audio_lost", "audio_restored")]


@needs_sound
def test_refused_with_one_of_two_microphones_gone_it_hears_the_other(tmp_path):
    servers = [SoundServer(tmp_path), SoundServer(tmp_path / "other", sink="ear")]
    (tmp_path / "other").mkdir()
    for server in servers:
        server.start()
    (tmp_path / ".asoundrc").write_text(TWO_SERVERS.format(one=servers[0], other=servers[1]))
    speech, rate = soundfile.read(DEMO, dtype="float32")
    soundfile.write(tmp_path / "words.wav", np.asarray(speech[: round(THREE_WORDS_S * rate)]), rate)
    environment = {name: value for name, value in servers[0].environment.items() if name != "PULSE_SERVER"}
    streams = [{"source": "microphone", "name": name, "device": name} for name in ("mouth", "ear")]
    port, secret = free_port(), tmp_path / "secret"
    secret.write_text("open sesame")
    secret.chmod(0o600)
    listen = {"on": [f"tcp://127.0.0.1:{port}"], "token_file": str(secret)}
    try:
        with (
            Daemon(tmp_path, {"streams": streams, "listen": listen}, environment) as daemon,
            socket.create_server(("127.0.0.2", port)),  # beside ours, but not beside all addresses
        ):
            daemon.wait_for("ready")
            time.sleep(2.5)  # a null sink is slow to begin
            copies = daemon.open_files("memfd:libportaudio")
            servers[1].kill()
            daemon.wait_for("audio_lost")
            # It is found only when the sources were stopped already.
            wider = listen | {"on": [f"tcp://0.0.0.0:{port}"]}
            assert not daemon.reload({"streams": streams[:1], "window": {"hop_ms": 50}, "listen": wider})["ok"]
            before = len(daemon.detections)
            wait_until_heard_again(daemon, "mouth")
            servers[0].speak(tmp_path / "words.wav")
            for _ in range(3):
                daemon.wait_for("detection")
            assert len(daemon.detections) == before + 3
            assert daemon.open_files("memfd:libportaudio") <= copies + 1
            assert daemon.stop()[0] == 0
    finally:
        for server in servers:
            server.kill()


@needs_sound
def test_a_sound_server_that_hangs_does_not_hold_up_anything_but_the_reload(tmp_path):
    server = SoundServer(tmp_path)
    server.start()
    microphone = {"source": "microphone"}
    try:
        with Daemon(tmp_path, {"streams": [microphone, TAPE]}, server.environment) as daemon:
            daemon.wait_for("ready")
            server.signal(signal.SIGSTOP)
            daemon.wait_for("audio_lost")
            begun = time.monotonic()
            answer = daemon.reload({"streams": [microphone | {"name": "new"}, TAPE]})
            assert not answer["ok"] and "does not answer within 5 s" in answer["error"]
            assert time.monotonic() - begun < 15.0
            code, took = daemon.stop()
            assert code == 0 and took < 8.0
            assert len([word for word in daemon.detections if word["stream"] == "tape"]) >= 2
            assert statistics.median(word["latency_ms"] for word in daemon.detections) < 1000
    finally:
        server.signal(signal.SIGCONT)
        server.kill()
