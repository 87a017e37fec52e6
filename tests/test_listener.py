"""Satellites send audio over real sockets to a real daemon: each is heard as if alone, and none can harm another."""

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from running import Running, clean_environment

from kwsd.audio_format import SAMPLE_RATE
from kwsd.bench import demo_words
from kwsd.config import load_config
from kwsd.engines import load_spotter
from kwsd.errors import CONFIG, IO, OK
from kwsd.listener import GONE_S, HEADER_BYTES, HUNG_UP, WITHOUT_HEADER
from kwsd.recording import DEMO, read_recording
from kwsd.replay import replay

SPEECH = read_recording(DEMO)[: 10 * SAMPLE_RATE]  # four words
FIRST_WORD = SPEECH[: 4 * SAMPLE_RATE]  # "stop" from 2.0 to 2.44 s
PATIENCE_S = 30.0


def pcm(samples, kind="s16le"):
    if kind == "f32le":
        return samples.astype("<f4").tobytes()
    bits = {"s16le": 15, "s32le": 31}[kind]
    return (samples.astype(np.float64) * (2**bits - 1)).astype({"s16le": "<i2", "s32le": "<i4"}[kind]).tobytes()


class Satellite:
    """Connects and says who it is; what comes back is read when asked for."""

    def __init__(self, address, header):
        if isinstance(address, str):
            self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            self.connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.connection.settimeout(PATIENCE_S)
        self.connection.connect(address)
        line = json.dumps(header).encode() + b"\n" if isinstance(header, dict) else header
        self.connection.sendall(line)
        self._lines = self.connection.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lines.close()
        self.connection.close()

    def send(self, audio):
        self.connection.sendall(audio)

    def line(self):
        """The next line, or None at the end."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def speak(self, samples=FIRST_WORD, kind="s16le"):
        """All at once, as fast as it is taken; then hang up, and every line that came back."""
        self.send(pcm(samples, kind))
        self.connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in self._lines]


class Daemon(Running):
    """A daemon for satellites only, on a TCP port of the system's choice and a UNIX socket."""

    def __init__(self, folder, NOTIFY_SOCKET="", WATCHDOG_USEC="0", window=None, **listen):
        environment = clean_environment(NOTIFY_SOCKET=NOTIFY_SOCKET, WATCHDOG_USEC=WATCHDOG_USEC)
        self.path = str(folder / "audio.sock")
        config = folder / "kwsd.yaml"
        settings = {
            "streams": [],
            "listen": {"on": ["tcp://127.0.0.1:0", f"unix:{self.path}"], **listen},
            "sinks": {"socket": {"enabled": False}},
            "window": window or {},
        }
        config.write_text(json.dumps(settings))
        super().__init__("--config", str(config), environment=environment)
        self.port = int(self.wait_for_log("listening on tcp://127.0.0.1:").partition(",")[0])
        self.tcp = ("127.0.0.1", self.port)

    def of(self, stream, kind):
        return [event for event in self.events if event["type"] == kind and event.get("stream") == stream]

    def wait_until_left(self, stream, times=1):
        deadline = time.monotonic() + PATIENCE_S
        while len(self.of(stream, "stream_left")) < times:
            assert time.monotonic() < deadline, self.events
            time.sleep(0.02)
        return self.of(stream, "stream_left")[-1]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("listener"), streams=4) as running:
        yield running
        assert running.process.poll() is None, running.errors


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What `kwsd replay` hears of the speech in a file: (keyword, start_s, end_s)."""
    tape = tmp_path_factory.mktemp("tape") / "tape.wav"
    soundfile.write(tape, SPEECH, SAMPLE_RATE, subtype="PCM_16")
    config = load_config(None, environment={})
    events = replay(config, load_spotter(config.model_path, "cpu"), tape)
    return [(event.keyword, event.start_s, event.end_s) for event in events]


def heard(events):
    return [(e["keyword"], e["start_s"], e["end_s"]) for e in events if e["type"] == "detection"]


# --- being heard ---


@pytest.mark.parametrize("time", range(5))
def test_who_only_stops_sending_is_told_even_of_its_last_word(daemon, time):
    with Satellite(daemon.path, {"name": f"half closed {time}"}) as satellite:
        word = FIRST_WORD[: round(2.5 * SAMPLE_RATE)]  # ends with the word
        kinds = [line["type"] for line in satellite.speak(word)]
    assert kinds == ["hello", "detection"]
    daemon.wait_until_left(f"half closed {time}")


def test_satellites_at_once_are_each_heard_as_the_recording_alone(daemon, alone):
    assert len(alone) >= 3
    lines = {}

    def speak(name, address, kind):
        with Satellite(address, {"name": name, "format": kind}) as satellite:
            lines[name] = satellite.speak(SPEECH, kind)

    rooms = [("den", daemon.tcp, "s16le"), ("attic", daemon.path, "s32le"), ("shed", daemon.tcp, "f32le")]
    threads = [threading.Thread(target=speak, args=room) for room in rooms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, *_ in rooms:
        daemon.wait_until_left(name)
        assert heard(daemon.of(name, "detection")) == alone
        assert lines[name][0]["type"] == "hello"
        assert lines[name][0]["streams"] == [name]
        assert all(line["stream"] == name for line in lines[name][1:])


def test_any_rate_and_channel_is_heard(daemon):
    at_44 = soxr.resample(FIRST_WORD, SAMPLE_RATE, 44_100)
    stereo = np.stack([np.zeros_like(at_44), at_44], 1)
    for channel in (2, "mix"):
        name = f"stereo {channel}"
        header = {"name": name, "rate": 44_100, "channels": 2, "channel": channel}
        with Satellite(daemon.tcp, header) as satellite:
            satellite.speak(stereo)
        left = daemon.wait_until_left(name)
        assert left["heard_s"] == pytest.approx(4.0, abs=0.01)
        [(keyword, start, end)] = heard(daemon.of(name, "detection"))
        [(_, begun, over)] = [word for word in [(w[2], w[0], w[1]) for w in demo_words()] if word[0] == "stop"]
        assert keyword == "stop" and abs(start - begun) < 0.1 and abs(end - over) < 0.1


def test_the_other_channel_is_silent(daemon):
    stereo = np.stack([np.zeros_like(FIRST_WORD), FIRST_WORD], 1)
    with Satellite(daemon.tcp, {"name": "left ear", "channels": 2, "channel": 1}) as satellite:
        assert [line["type"] for line in satellite.speak(stereo)] == ["hello"]


def test_a_satellite_gets_its_own_detections_back(daemon):
    with Satellite(daemon.path, {"name": "talker"}) as satellite:
        assert satellite.line()["type"] == "hello"
        satellite.send(pcm(FIRST_WORD))
        detection = satellite.line()
        assert (detection["type"], detection["stream"], detection["keyword"]) == ("detection", "talker", "stop")
        assert 0 <= detection["latency_ms"] < 5000
    daemon.wait_until_left("talker")
    assert detection in daemon.events


def test_a_word_at_the_very_end_is_heard_before_the_satellite_is_gone(daemon):
    until_the_word_ends = SPEECH[: int(2.45 * SAMPLE_RATE)]
    with Satellite(daemon.tcp, {"name": "brief"}) as satellite:
        satellite.speak(until_the_word_ends)
    daemon.wait_until_left("brief")
    kinds = [event["type"] for event in daemon.events if event.get("stream") == "brief"]
    assert kinds == ["stream_joined", "detection", "stream_left"]


def test_a_name_that_is_free_again_begins_anew(daemon):
    for times in (1, 2):
        with Satellite(daemon.tcp, {"name": "again"}) as satellite:
            satellite.speak()
        daemon.wait_until_left("again", times)
    first, second = heard(daemon.of("again", "detection"))
    assert first == second


def test_more_satellites_than_slots_come_and_go_one_after_the_other(daemon):
    for i in range(6):
        with Satellite(daemon.tcp, {"name": f"guest {i}"}) as satellite:
            satellite.speak(FIRST_WORD[: SAMPLE_RATE // 2])
        daemon.wait_until_left(f"guest {i}")


def test_samples_cut_anywhere_are_put_together(daemon):
    with Satellite(daemon.tcp, {"name": "crumbs"}) as satellite:
        audio = pcm(FIRST_WORD)
        for start in range(0, len(audio), 1001):
            satellite.send(audio[start : start + 1001])
        satellite.connection.shutdown(socket.SHUT_WR)
        daemon.wait_until_left("crumbs")
    assert [word for word, *_ in heard(daemon.of("crumbs", "detection"))] == ["stop"]


# --- what is refused ---

HEADERS = {
    "no JSON": (b"RIFF....WAVE\n", "header: "),
    "a list": (b"[]\n", "Expected `object`"),
    "no name": (b"{}\n", "missing required field `name`"),
    "an empty name": ({"name": ""}, "length >= 1"),
    "a name of control characters": ({"name": "a\nb"}, "$.name"),
    "an unknown key": ({"name": "x", "sample_rate": 16000}, "unknown field `sample_rate`"),
    "a rate of nothing": ({"name": "x", "rate": 0}, "$.rate"),
    "a rate beyond the limit": ({"name": "x", "rate": 10**9}, "$.rate"),
    "too many channels": ({"name": "x", "channels": 64}, "$.channels"),
    "a channel that is not there": ({"name": "x", "channels": 1, "channel": 2}, "channel 2 of 1"),
    "an unknown format": ({"name": "x", "format": "mp3"}, "Invalid enum value 'mp3'"),
    "text that is none": (b'{"name": "\xff"}\n', "header: "),
    "a header without end": (b"{" * (HEADER_BYTES + 1), f"longer than {HEADER_BYTES} bytes"),
}


@pytest.mark.parametrize(("header", "why"), HEADERS.values(), ids=HEADERS)
def test_a_bad_header_is_refused_with_the_reason(daemon, header, why):
    with Satellite(daemon.tcp, header) as satellite:
        refused = satellite.line()
        assert refused["type"] == "refused" and why in refused["reason"]
        assert satellite.line() is None


def test_who_streams_on_after_being_refused_still_learns_why(daemon):
    with Satellite(daemon.tcp, b"not a header\n" + pcm(FIRST_WORD[:8000])) as satellite:
        assert satellite.line()["type"] == "refused"


def test_a_name_that_is_taken_and_a_slot_too_many_are_refused(daemon):
    with contextlib.ExitStack() as stack:
        here = [stack.enter_context(Satellite(daemon.tcp, {"name": f"room {i}"})) for i in range(4)]
        assert [satellite.line()["type"] for satellite in here] == ["hello"] * 4
        with Satellite(daemon.tcp, {"name": "room 2"}) as double:
            assert "the name 'room 2' is taken" in double.line()["reason"]
        with Satellite(daemon.tcp, {"name": "room 5"}) as fifth:
            assert "there are 4 satellites already; raise listen.streams" in fifth.line()["reason"]
    for i in range(4):
        daemon.wait_until_left(f"room {i}")


def test_whoever_says_nothing_is_let_go(daemon):
    with Satellite(daemon.tcp, b"") as mute:
        assert "no header within 5 s" in mute.line()["reason"]


def test_a_satellite_that_goes_silent_is_let_go_and_said(tmp_path):
    with Daemon(tmp_path, silent_s=2) as daemon, Satellite(daemon.tcp, {"name": "asleep"}) as satellite:
        satellite.send(pcm(FIRST_WORD[:8000]))
        left = daemon.wait_until_left("asleep")
        assert (left["reason"], left["heard_s"]) == ("sent nothing for 2 s", 0.5)
        assert [satellite.line()["type"], satellite.line()["reason"]] == ["hello", left["reason"]]


def test_who_sends_while_kwsd_stands_still_is_not_silent(tmp_path):
    with Daemon(tmp_path, silent_s=2) as daemon, Satellite(daemon.tcp, {"name": "awake"}) as satellite:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            speak_in_time(satellite, SPEECH[: 3 * SAMPLE_RATE])
            daemon.process.send_signal(number)
        satellite.speak()
        assert daemon.wait_until_left("awake")["reason"] == HUNG_UP


def test_what_a_network_held_back_for_seconds_is_heard_when_it_comes_at_once(tmp_path, alone):
    with Daemon(tmp_path) as daemon, Satellite(daemon.tcp, {"name": "far"}) as satellite:
        speak_in_time(satellite, SPEECH[: int(3.2 * SAMPLE_RATE)])
        time.sleep(4.0)
        told = heard(satellite.speak(SPEECH[int(3.2 * SAMPLE_RATE) :]))[-3:]
        made_up_s = round(told[0][1] - alone[1][1])  # a second; two, where we stood still before
        assert made_up_s >= 1, "as the silence might have been for ever"
        assert told == [
            (word, pytest.approx(start + made_up_s, abs=0.1), pytest.approx(end + made_up_s, abs=0.1))
            for word, start, end in alone[1:]
        ]
    assert daemon.of("far", "overrun") == []


def speak_in_time(satellite, samples):
    """As a microphone does."""
    begun, audio = time.monotonic(), pcm(samples)
    for start in range(0, len(audio), 3200):
        satellite.send(audio[start : start + 3200])
        time.sleep(max(0.0, begun + (start + 3200) / 32_000 - time.monotonic()))


def test_a_word_is_told_before_a_pause_and_what_comes_after_it_is_none_of_that(tmp_path):
    with Daemon(tmp_path) as daemon, Satellite(daemon.tcp, {"name": "gated"}) as satellite:
        speak_in_time(satellite, FIRST_WORD[: int(1.95 * SAMPLE_RATE)])
        satellite.send(pcm(FIRST_WORD[int(1.95 * SAMPLE_RATE) : int(2.55 * SAMPLE_RATE)]))  # "stop", in one piece
        assert [satellite.line()["type"], satellite.line()["keyword"]] == ["hello", "stop"]
        time.sleep(2.0)
        assert heard(satellite.speak(SPEECH[4 * SAMPLE_RATE :]))[0][0] == "yes"
        left = daemon.wait_until_left("gated")
    assert left["heard_s"] == pytest.approx(2.55 + 6.0, abs=0.01), "without what was made up"
    assert len(daemon.of("gated", "overrun")) == 0


@pytest.mark.parametrize("window", [{"hop_ms": 50}, {"max_batch": 2}, {"hop_ms": 10}])
def test_of_the_silence_behind_the_last_word_no_window_is_skipped(window, tmp_path):
    with Daemon(tmp_path, window=window) as daemon, Satellite(daemon.tcp, {"name": "short"}) as satellite:
        speak_in_time(satellite, FIRST_WORD[: int(2.5 * SAMPLE_RATE)])  # it ends with "stop"
        satellite.connection.shutdown(socket.SHUT_WR)
        daemon.wait_until_left("short")
    assert [event["keyword"] for event in daemon.of("short", "detection")] == ["stop"]
    assert daemon.of("short", "overrun") == []


def test_who_had_to_start_anew_is_let_in_though_nobody_saw_it_go(tmp_path):
    with Daemon(tmp_path) as daemon, Satellite(daemon.tcp, {"name": "porch"}) as before:
        before.send(pcm(FIRST_WORD[:8000]))
        daemon.wait_for("stream_joined")
        with Satellite(daemon.tcp, {"name": "porch"}) as again:
            assert "the name 'porch' is taken" in again.line()["reason"], "it sent something just now"
        time.sleep(GONE_S)
        with Satellite(daemon.tcp, {"name": "porch"}) as again:
            assert "if it was you, try again" in again.line()["reason"]
        daemon.wait_until_left("porch")
        with Satellite(daemon.tcp, {"name": "porch"}) as again:
            assert again.line()["type"] == "hello"
            assert heard(again.speak())[0][0] == "stop"


def test_what_came_at_once_or_faster_than_time_is_not_late_nor_is_the_silence_behind_it(tmp_path):
    with Daemon(tmp_path) as daemon:
        config = tmp_path / "kwsd.yaml"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"events": {"heartbeat_s": 0.2}}))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reload")

        def is_late(name):
            before = len(daemon.events)
            with Satellite(daemon.path, {"name": name}) as satellite:
                [told] = [line["latency_ms"] for line in satellite.speak() if line["type"] == "detection"]
            daemon.wait_until_left(name)
            for _ in range(3):  # of the last windows, surely
                daemon.wait_for("heartbeat")
            beats = [event for event in daemon.events[before:] if event["type"] == "heartbeat"]
            lags = [event["lag_p99_ms"] or 0 for event in beats]
            assert max(lags) > 0
            return max(told, *lags) >= 500

        assert not all(is_late(f"hasty {turn}") for turn in range(3)), "or we stood still, but hardly thrice"
        daemon.stop()


def freeze(pid):
    """Until SIGCONT; returns when every thread stands."""
    os.kill(pid, signal.SIGSTOP)
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    while not all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks):
        time.sleep(0.001)


def test_connections_that_do_not_say_who_they_are_are_limited_and_who_went_makes_room_before_anybody_is_let_in(daemon):
    """Though he knocked before they went, while we had no time."""
    with contextlib.ExitStack() as stack:
        for _ in range(WITHOUT_HEADER):
            stack.enter_context(Satellite(daemon.tcp, b""))
        with Satellite(daemon.tcp, b"") as too_many:
            assert "too many connections" in too_many.line()["reason"]
        freeze(daemon.process.pid)
        newcomer = Satellite(daemon.tcp, {"name": "newcomer"})
    daemon.process.send_signal(signal.SIGCONT)
    with newcomer:
        assert newcomer.line()["type"] == "hello"
    daemon.wait_until_left("newcomer")


# --- harming nobody else ---


def hang_up_rudely(satellite):
    satellite.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    satellite.__exit__()  # what reads from it keeps it open, too


def test_rude_neighbours_change_nothing_for_others(daemon, alone):
    """While one satellite speaks, others vanish, send rubbish, send too fast, or never read."""
    done = threading.Event()

    def be_rude():
        turn = 0
        while not done.is_set():
            turn += 1
            with contextlib.suppress(OSError):
                vanishing = Satellite(daemon.tcp, {"name": f"vanishing {turn}"})
                vanishing.line()
                vanishing.send(pcm(FIRST_WORD)[: 1001 + turn])
                hang_up_rudely(vanishing)
            with contextlib.suppress(OSError), Satellite(daemon.tcp, {"name": f"odd {turn}", "format": "f32le"}) as odd:
                odd.send(np.array([0.0, np.nan, np.inf], "<f4").tobytes() * 100)
                odd.line()
                odd.line()
            with contextlib.suppress(OSError), Satellite(daemon.tcp, os.urandom(100)) as rubbish:
                rubbish.line()
            time.sleep(0.05)

    neighbour = threading.Thread(target=be_rude)
    with Satellite(daemon.tcp, {"name": "polite"}) as satellite:
        assert satellite.line()["type"] == "hello"
        neighbour.start()
        satellite.speak(SPEECH)
    done.set()
    neighbour.join()
    daemon.wait_until_left("polite")
    assert heard(daemon.of("polite", "detection")) == alone
    assert daemon.of("polite", "overrun") == []
    reasons = [event["reason"] for event in daemon.events if event["type"] == "stream_left"]
    assert "sent a sample that is not a number (NaN or infinite)" in reasons
    assert any(reason.startswith("connection lost") for reason in reasons), reasons


def test_audio_faster_than_time_has_to_wait(daemon):
    begun = time.monotonic()
    with Satellite(daemon.tcp, {"name": "hasty"}) as satellite:
        satellite.speak(FIRST_WORD)
    assert time.monotonic() - begun > 2.0
    daemon.wait_until_left("hasty")
    assert daemon.of("hasty", "overrun") == []


def test_a_clock_that_is_fast_is_caught_up_with(daemon):
    """By more than any clock is; what is sent too early must not pile up for ever."""
    audio, fast, seconds = pcm(SPEECH), 1.15, 16.0
    with Satellite(daemon.tcp, {"name": "fast"}) as satellite:
        begun, lags = time.monotonic(), []

        def listen():
            while (event := satellite.line()) is not None:
                if event["type"] == "detection":
                    lags.append(time.monotonic() - begun - event["end_s"] / fast)

        listening = threading.Thread(target=listen, daemon=True)
        listening.start()
        piece = 640
        for start in range(0, int(seconds * fast * 2 * SAMPLE_RATE), piece):
            at = start % (len(audio) - piece)
            satellite.send(audio[at : at + piece])
            time.sleep(max(0.0, begun + (start + piece) / 2 / SAMPLE_RATE / fast - time.monotonic()))
        time.sleep(1.0)
        satellite.connection.shutdown(socket.SHUT_WR)
        listening.join(PATIENCE_S)
    assert len(lags) > 5
    assert min(lags[-2:]) < 1.0, lags  # of 2.4 s that came too early, 1.4 s would lie in the socket


def test_after_a_stall_all_that_came_meanwhile_is_heard_at_once(daemon):
    def told_after_s(name):
        with Satellite(daemon.tcp, {"name": name}) as satellite:
            satellite.send(pcm(SPEECH[:SAMPLE_RATE]))
            time.sleep(1.5)
            begun = time.monotonic()
            satellite.send(pcm(SPEECH[SAMPLE_RATE : 3 * SAMPLE_RATE + SAMPLE_RATE // 2]))
            while satellite.line()["type"] != "detection":
                pass
            return time.monotonic() - begun

    # 0.6 s, if it had to wait; or where we stood still ourselves, but hardly thrice.
    assert any(told_after_s(f"stalled {turn}") < 0.4 for turn in range(3))


# --- secrets ---


def test_over_tcp_a_token_is_asked_for(tmp_path):
    secret = tmp_path / "token"
    secret.write_text("open sesame\n")
    secret.chmod(0o640)
    with Daemon(tmp_path, token_file=str(secret)) as daemon:
        for header in (
            {"name": "thief"},
            {"name": "thief", "token": "open"},
            {"name": "thief", "token": "öpen sesame"},
        ):
            with Satellite(daemon.tcp, header) as satellite:
                assert "the token is not the one in listen.token_file" in satellite.line()["reason"]
        with Satellite(daemon.tcp, {"name": "friend", "token": "open sesame"}) as satellite:
            assert satellite.line()["type"] == "hello"
        with Satellite(daemon.path, {"name": "of this machine"}) as satellite:
            assert satellite.line()["type"] == "hello"
        assert "sesame" not in "".join(daemon.errors)


@pytest.mark.parametrize(("content", "why"), [(None, "no such file"), ("  \n", "is empty")])
def test_without_a_secret_there_is_no_daemon(kwsd, tmp_path, content, why):
    secret = tmp_path / "token"
    if content is not None:
        secret.write_text(content)
        secret.chmod(0o600)
    listen = json.dumps({"on": ["tcp://127.0.0.1:0"], "token_file": str(secret)})
    kwsd("run", "--set", "streams=[]", "--set", f"listen={listen}").refused(CONFIG, "listen.token_file", why)


def test_a_secret_that_everybody_may_read_is_none(kwsd, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("open sesame")
    secret.chmod(0o644)
    listen = json.dumps({"on": ["tcp://127.0.0.1:0"], "token_file": str(secret)})
    why = f"{secret}: can be read by everybody; chmod o-r {secret}"
    kwsd("run", "--set", "streams=[]", "--set", f"listen={listen}").refused(CONFIG, "listen.token_file", why)


def test_a_secret_is_in_a_file_and_nobody_waits_for_who_writes_into_a_fifo(kwsd, tmp_path):
    secret = tmp_path / "token"
    os.mkfifo(secret, 0o600)
    listen = json.dumps({"on": ["tcp://127.0.0.1:0"], "token_file": str(secret)})
    kwsd("check", "--set", f"listen={listen}").refused(CONFIG, "listen.token_file", f"{secret}: is no file")


def test_a_secret_may_come_from_systemd_and_is_not_shown(kwsd, environment, tmp_path):
    (tmp_path / "token").write_text("open sesame")
    (tmp_path / "token").chmod(0o400)
    listen = json.dumps({"on": ["tcp://127.0.0.1:0"], "token_file": "$CREDENTIALS_DIRECTORY/token"})
    settings = ("--set", "streams=[]", "--set", f"listen={listen}")
    kwsd("run", *settings).refused(CONFIG, "listen.token_file", "systemd gave no credentials", "LoadCredential=")
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with Running(*settings, environment=environment | given) as daemon:
        daemon.wait_for("ready")
        assert daemon.stop()[0] == OK
    shown = kwsd("check", *settings, more=given)
    assert shown.code == 0 and "sesame" not in shown.out + shown.err


# --- coming and going of the daemon ---


def test_a_port_in_use_is_refused(kwsd, daemon):
    listen = json.dumps({"on": [f"tcp://127.0.0.1:{daemon.port}"]})
    kwsd("run", "--set", "streams=[]", "--set", f"listen={listen}").refused(IO, "listen.on", "cannot be bound")


def test_the_socket_is_for_owner_and_group_and_gone_afterwards(tmp_path):
    with Daemon(tmp_path) as daemon:
        assert stat.S_IMODE(Path(daemon.path).stat().st_mode) == 0o660
        with Satellite(daemon.path, {"name": "last"}) as satellite:
            satellite.send(pcm(FIRST_WORD))
            assert satellite.line()["type"] == "hello"
            assert satellite.line()["keyword"] == "stop"
            code, took = daemon.stop(signal.SIGTERM)
            assert satellite.line()["reason"] == "kwsd stops, or opens its streams anew"
            assert satellite.line() is None
        assert code == OK and took < 5.0
        assert daemon.events[-1]["type"] == "shutdown"
        assert not Path(daemon.path).exists()


def test_a_reload_that_changes_no_stream_keeps_the_satellites(tmp_path):
    with Daemon(tmp_path) as daemon, Satellite(daemon.tcp, {"name": "stayer"}) as satellite:
        assert satellite.line()["type"] == "hello"
        daemon.process.send_signal(signal.SIGHUP)
        assert daemon.wait_for("reload")["ok"]
        satellite.send(pcm(FIRST_WORD))
        assert satellite.line()["keyword"] == "stop"


def signs_of_life(manager, times):
    """All that a daemon says to systemd until it has given so many."""
    said = []
    while said.count("WATCHDOG=1") < times:
        said.append(manager.recv(4096).decode())
    return said


def test_a_daemon_for_satellites_only_is_ready_and_alive_while_nobody_speaks(tmp_path):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(PATIENCE_S)
    manager.bind(str(tmp_path / "notify"))
    with manager, Daemon(tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000") as daemon:
        assert daemon.wait_for("ready")["streams"] == []
        with Satellite(daemon.tcp, {"name": "mute"}) as satellite:
            assert satellite.line()["type"] == "hello"
            assert any(said.startswith("READY=1") for said in signs_of_life(manager, 6))


def test_it_is_alive_as_well_when_its_pipe_has_ended_and_nobody_speaks(tmp_path):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.settimeout(PATIENCE_S)
    manager.bind(str(tmp_path / "notify"))
    environment = clean_environment(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="1000000")
    settings = (
        'streams=[{source: pcm, name: pipe, path: "-"}]',
        f"listen.on=['unix:{tmp_path}/in']",
        "sinks.socket.enabled=false",
    )
    with manager, Running(*(part for s in settings for part in ("--set", s)), environment=environment) as daemon:
        daemon.process.stdin.write(pcm(FIRST_WORD))
        daemon.process.stdin.close()
        daemon.wait_for("stream_left")
        signs_of_life(manager, 10)


def test_heartbeats_tell_of_the_satellites_that_are_here(tmp_path):
    with Daemon(tmp_path) as daemon:
        config = tmp_path / "kwsd.yaml"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"events": {"heartbeat_s": 0.2}}))
        daemon.process.send_signal(signal.SIGHUP)
        with Satellite(daemon.tcp, {"name": "here"}) as satellite:
            satellite.send(pcm(FIRST_WORD))
            daemon.wait_for("ready")
            beat = daemon.wait_for("heartbeat")
            while not beat["streams"]:
                beat = daemon.wait_for("heartbeat")
            [state] = beat["streams"]
            assert state["stream"] == "here" and 0.0 <= state["heard_s"] <= 4.0
