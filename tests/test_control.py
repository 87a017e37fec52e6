"""Commands for a running daemon: by `kwsd ctl`, from a second process, on a real socket."""

import errno
import json
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
from running import RECOMMENDED, Running

from kwsd import client, memory
from kwsd.config import Config, KeywordConfig
from kwsd.control import Adjustments, Muting, Subscribe, parse
from kwsd.errors import CONFIG, IO, NO_PERMISSION, UNAVAILABLE, USAGE, ConfigError, KwsdError
from kwsd.event import Reload
from kwsd.memory import Memory
from kwsd.recording import DEMO, read_recording

KITCHEN = ("--set", 'streams=[{source: pcm, name: kitchen, path: "-"}]')
BRISK = ("--set", "debouncer.isolation_s=0")


@pytest.fixture
def spoken():
    """The demo recording as PCM: ten words, ten heard."""
    return (read_recording(DEMO) * 32767).astype("<i2").tobytes()


def say(daemon, audio):
    daemon.process.stdin.write(audio)
    daemon.process.stdin.flush()


def asked(kwsd, *arguments, code=0):
    result = kwsd("ctl", *arguments)
    assert result.code == code, result
    return result


def settled(kwsd, windows):
    """The status, once so many windows are scored."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = json.loads(asked(kwsd, "--json", "status").out)["status"]
        if status["windows"] >= windows:
            return status
        time.sleep(0.05)
    raise AssertionError(status)


# --- muting ---


@pytest.mark.parametrize(
    ("steps", "muted", "heard"),
    [
        ([], "", "abc"),
        ([(None, True)], "abc", ""),
        ([(("a",), True)], "a", "bc"),
        ([(None, True), (("b",), False)], "ac", "b"),
        ([(None, True), (("b",), False), (("b",), True)], "abc", ""),
        ([(("a", "b"), True), (("a",), False), (("a",), False)], "b", "ac"),
        ([(("a",), True), (None, False)], "", "abc"),
    ],
)
def test_what_is_muted_is_what_was_said_last_of_it(steps, muted, heard):
    muting = Muting()
    for streams, on in steps:
        muting = muting.changed(streams, on)
    assert all(name in muting for name in muted) and not any(name in muting for name in heard)


def test_a_muted_stream_is_told_of_nothing_and_hears_again_afterwards_even_over_a_reload(kwsd, environment, spoken):
    with Running(*KITCHEN, *BRISK, environment=environment) as daemon:
        say(daemon, spoken)
        assert daemon.wait_for("ready")["streams"] == ["kitchen"]
        first = settled(kwsd, 1)["windows"]
        before = len(daemon.detections)
        assert asked(kwsd, "mute", "kitchen").out == ""
        assert daemon.wait_for("mute")["muted"] is True
        asked(kwsd, "reload")
        daemon.wait_for("reload")
        [stream] = settled(kwsd, first)["streams"]
        assert stream["muted"] is True
        told = len(daemon.detections)
        say(daemon, spoken)
        settled(kwsd, 2 * len(spoken) // 2 // 1600 - 30)
        assert len(daemon.detections) == told, "something was told of a muted stream"
        asked(kwsd, "unmute")
        assert daemon.wait_for("mute")["muted"] is False
        say(daemon, spoken)
        daemon.wait_for("detection")
        daemon.process.stdin.close()
        daemon.finish()
    assert before > 0 and len(daemon.detections) - told > 5


def test_all_muted_means_those_that_come_later_too(kwsd, environment, tmp_path):
    path = tmp_path / "in"
    with Running("--set", "streams=[]", "--set", f"listen.on=['unix:{path}']", environment=environment) as daemon:
        daemon.wait_for("ready")
        asked(kwsd, "mute")
        with socket.socket(socket.AF_UNIX) as satellite:
            satellite.connect(str(path))
            satellite.sendall(b'{"name": "attic"}\n')
            event = daemon.wait_for("mute")
            assert (event["stream"], event["muted"]) == ("attic", True)
            assert json.loads(satellite.recv(4096).splitlines()[0])["muted"] == ["attic"]
        assert "come later are muted" in asked(kwsd, "status").out


# --- thresholds ---


def test_a_threshold_holds_until_the_configuration_is_read_again(kwsd, environment, spoken):
    with Running(*KITCHEN, environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        asked(kwsd, "threshold", "stop", "0.9")
        event = daemon.wait_for("threshold")
        assert (event["keyword"], event["threshold"]) == ("stop", 0.9)
        status = json.loads(asked(kwsd, "--json", "status").out)["status"]
        assert status["keywords"]["stop"] == {
            "threshold": 0.9,
            "configured": RECOMMENDED["stop"],
            "release": 0.4,
            "lowest": 0.01,
        }
        assert f"keyword stop: from 0.9 on (configured: {RECOMMENDED['stop']})" in asked(kwsd, "status").out
        asked(kwsd, "threshold", "stop", "default")
        assert daemon.wait_for("threshold")["threshold"] == RECOMMENDED["stop"]
        asked(kwsd, "threshold", "go", "1")
        asked(kwsd, "reload")
        daemon.wait_for("reload")
        assert daemon.wait_for("threshold")["threshold"] == RECOMMENDED["go"]


def test_a_word_below_the_new_threshold_is_not_heard_any_more(kwsd, environment, spoken):
    with Running(*KITCHEN, environment=environment) as daemon:
        say(daemon, spoken[:32_000])
        daemon.wait_for("ready")
        asked(kwsd, "threshold", "stop", "1")
        say(daemon, spoken[32_000:])
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    words = {event["keyword"] for event in daemon.detections}
    assert len(words) > 6 and "stop" not in words


def test_adjusted_thresholds_leave_the_rest_of_a_keyword_as_it_is():
    config = Config(keywords={"go": KeywordConfig(margin=0.3), "no": KeywordConfig()})
    adjusted = Adjustments().with_threshold("go", 0.9).with_threshold("no", 0.8).with_threshold("no", None)
    assert adjusted.applied_to(config, ("go", "no")).keywords == {
        "go": KeywordConfig(margin=0.3, threshold=0.9),
        "no": KeywordConfig(),
    }
    assert Adjustments().applied_to(config, ()) is config


# --- what is hard to get right ---

TEXT = "streams: [{source: pcm, name: NAME, path: '-'}]\nsinks: {socket: {queue: QUEUE}}\n"


def write(path, **words):
    text = TEXT
    for word, value in ({"NAME": "kitchen", "QUEUE": "256"} | words).items():
        text = text.replace(word, str(value))
    path.write_text(text)


def test_a_reload_that_opens_the_socket_anew_is_done_though_its_answer_is_lost(kwsd, environment, tmp_path, spoken):
    config = tmp_path / "kwsd.yaml"
    write(config)
    with Running("--config", str(config), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        write(config, QUEUE=128)
        kwsd("ctl", "reload").refused(UNAVAILABLE, "connect again to see how it is")
        assert daemon.wait_for("reload")["ok"] is True
        asked(kwsd, "status")


def test_a_reload_is_done_though_whoever_asked_for_it_is_gone(kwsd, environment, tmp_path, spoken):
    config = tmp_path / "kwsd.yaml"
    write(config)
    with Running("--config", str(config), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        write(config, NAME="attic")
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(tmp_path / "runtime" / "kwsd" / "events.sock"))
            reader.sendall(b'{"command": "reload"}\n')
        assert daemon.wait_for("reload")["ok"] is True
        assert "stream attic" in asked(kwsd, "status").out


def test_a_mute_before_the_model_is_loaded_counts(kwsd, environment, models):
    options = ("--set", f"model={models}/good.pt", *KITCHEN)  # TorchScript takes seconds to load
    with Running(*options, environment=environment) as daemon:
        deadline = time.monotonic() + 20
        while (result := kwsd("ctl", "mute")).code == UNAVAILABLE and time.monotonic() < deadline:
            time.sleep(0.02)
        assert result.code == 0, result
        assert daemon.wait_for("mute")["muted"] is True
        assert "ready" not in {event["type"] for event in daemon.events}
        say(daemon, bytes(64_000))
        daemon.wait_for("ready")
        daemon.stop()
    assert len([event for event in daemon.events if event["type"] == "mute"]) == 1


def test_who_is_muted_stays_so_after_a_crash_until_unmuted(kwsd, environment, tmp_path, spoken):
    environment = environment | {"STATE_DIRECTORY": str(tmp_path)}
    with Running(*KITCHEN, environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        asked(kwsd, "mute", "kitchen")
        daemon.wait_for("mute")
        daemon.process.kill()
    with Running(*KITCHEN, environment=environment) as daemon:
        say(daemon, spoken)
        daemon.wait_for("ready")
        assert daemon.wait_for("mute")["stream"] == "kitchen"
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    assert daemon.detections == []
    with Running(*KITCHEN, environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("mute")
        asked(kwsd, "unmute")
        assert daemon.wait_for("mute")["muted"] is False
        say(daemon, spoken[64_000:])
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    assert len(daemon.detections) > 5
    assert not list(tmp_path.glob("*muted*"))


def test_where_it_has_no_place_to_remember_it_forgets(kwsd, environment, spoken):
    for _ in range(2):
        with Running(*KITCHEN, environment=environment) as daemon:
            say(daemon, spoken[:64_000])
            daemon.wait_for("ready")
            assert json.loads(asked(kwsd, "--json", "status").out)["status"]["streams"][0]["muted"] is False
            asked(kwsd, "mute")
            daemon.wait_for("mute")


@pytest.mark.parametrize("content", [b"", b"{", b'{"everything": 1}', b"\xff", b"[]"])
def test_who_was_muted_if_nobody_can_read_it_is_everybody(content, tmp_path, caplog):
    (tmp_path / "muted.json").write_bytes(content)
    assert "kitchen" in Memory({"STATE_DIRECTORY": str(tmp_path)}).muting()
    assert "muted.json: is damaged: all is muted" in caplog.text and "kwsd ctl unmute" in caplog.text


def test_what_is_remembered_is_what_was_kept_last(tmp_path):
    remembered = Memory({"STATE_DIRECTORY": f"{tmp_path}:/nowhere"})
    for muting in (Muting(True, frozenset("ab")), Muting(False, frozenset("c")), Muting(), Muting(True)):
        remembered.keep(muting)
        assert Memory({"STATE_DIRECTORY": str(tmp_path)}).muting() == muting
    assert [path.name for path in tmp_path.iterdir()] == ["muted.json"]


def test_a_mute_that_cannot_be_remembered_is_said_and_holds(tmp_path, caplog):
    forgotten = Memory({"STATE_DIRECTORY": str(tmp_path / "gone")})
    forgotten.keep(Muting(True))
    assert "gone/muted.json: No such file or directory: after a restart" in caplog.text
    assert forgotten.muting() == Muting()


def test_a_file_system_that_makes_sure_of_no_names_keeps_a_mute_all_the_same(tmp_path, caplog, monkeypatch):
    def cannot(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(memory, "_make_sure_of_names", cannot)
    Memory({"STATE_DIRECTORY": str(tmp_path)}).keep(Muting(True))
    assert Memory({"STATE_DIRECTORY": str(tmp_path)}).muting() == Muting(True) and not caplog.text


def test_nothing_is_told_after_the_last_event(environment, spoken, tmp_path):
    hook = "hooks=[{shell: 'sleep 60', events: [ready]}]"
    with Running(*KITCHEN, "--set", hook, environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(tmp_path / "runtime/kwsd/events.sock"))
            lines = reader.makefile("rb")
            assert json.loads(next(lines))["type"] == "hello"
            assert daemon.stop()[0] == 0
            assert json.loads(list(lines)[-1])["type"] == "shutdown"
    assert daemon.events[-1]["type"] == "shutdown"
    assert [line for line in daemon.errors if "hooks.0: ended, for kwsd stops" in line]


# --- what goes wrong ---


@pytest.mark.parametrize("typed", [("ctl", "--socket", "x", "ORDER"), ("ctl", "ORDER", "--socket", "x")])
@pytest.mark.parametrize("order", [["status"], ["mute", "attic"], ["threshold", "go", "1"], ["reload"], ["watch"]])
def test_whose_socket_is_said_before_the_order_or_after_it(kwsd, typed, order):
    before, after = typed[: typed.index("ORDER")], typed[typed.index("ORDER") + 1 :]
    kwsd(*before, *order, *after).refused(UNAVAILABLE, "kwsd: x: no kwsd answers there")


def test_what_cannot_be_done_is_one_line_with_a_remedy(kwsd, environment, tmp_path, spoken):
    config = tmp_path / "kwsd.yaml"
    config.write_text("streams: [{source: pcm, name: kitchen, path: '-'}]\nkeywords: {all: {}, go: {release: 0.2}}\n")
    kwsd("ctl", "status").refused(UNAVAILABLE, "no kwsd runs", "start one")
    with Running("--config", str(config), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        kwsd("ctl", "mute", "attic").refused(USAGE, "there is no stream 'attic'", "there are kitchen")
        kwsd("ctl", "threshold", "stopp", "0.5").refused(USAGE, "there is no keyword 'stopp'")
        kwsd("ctl", "threshold", "stop", "0").refused(CONFIG, "stop.threshold: with a threshold of 0")
        kwsd("ctl", "threshold", "go", "0.1").refused(CONFIG, "go.release: its release 0.2 is above its threshold 0.1")
        kwsd("ctl", "threshold", "stop", "high").refused(USAGE, "a number from 0 to 1")
        kwsd("ctl", "watch", "--types", "wombat").refused(USAGE, "no event is called 'wombat'")
        kwsd("ctl", "watch", "--keywords", "stopp").refused(USAGE, "there is no keyword 'stopp'", "stop")
        config.write_text("streams: [{source: pcm, name: kitchen, path: '-'}]\nwombat: 1\n")
        kwsd("ctl", "reload").refused(CONFIG, "kwsd.yaml:2", "unknown key")
        assert daemon.wait_for("reload")["ok"] is False


def test_what_is_remembered_is_nothing_of_clients_of_the_moment():
    muting = Muting().changed(["kitchen", "wyoming 127.0.0.1 1"], True)
    assert muting.without(["wyoming 127.0.0.1 1"]) == Muting().changed(["kitchen"], True)


def test_who_connects_while_the_socket_is_opened_anew_is_told_so(environment, tmp_path):
    config = tmp_path / "kwsd.yaml"
    text = "streams: [{source: pcm, name: kitchen, path: '-'}]\nsinks: {socket: {queue: 256}}\n"
    config.write_text(text)
    with Running("--config", str(config), environment=environment) as daemon:
        say(daemon, bytes(64_000))
        daemon.wait_for("ready")
        config.write_text(text.replace("256", "99"))
        daemon.process.send_signal(signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX) as reader:
            reader.connect(str(tmp_path / "runtime/kwsd/events.sock"))
            daemon.process.send_signal(signal.SIGHUP)
            daemon.process.send_signal(signal.SIGCONT)
            reader.settimeout(10)
            lines = [json.loads(line)["type"] for line in reader.makefile("rb")]  # until it hangs up
        assert lines[-1:] in (["refused"], ["hello"], ["reload"])
        assert daemon.wait_for("reload")["ok"]
        daemon.stop()


def test_who_watches_is_told_that_a_reload_opens_the_socket_anew(environment, tmp_path):
    config, path = tmp_path / "kwsd.yaml", tmp_path / "s"
    config.write_text(f"streams: []\nlisten: {{on: ['unix:{tmp_path}/in']}}\nsinks: {{socket: {{path: {path}}}}}\n")
    with Running("--config", str(config), environment=environment) as daemon:
        daemon.wait_for("ready")
        lines = client.lines_of(path)
        assert [next(lines)["type"] for _ in range(2)] == ["hello", "answer"]
        text = config.read_text()
        config.write_text(text.replace(f"path: {path}", f"path: {path}, queue: 300"))
        daemon.process.send_signal(signal.SIGHUP)
        with pytest.raises(KwsdError, match="opened anew with other settings; connect again"):
            list(lines)
        assert daemon.stop()[0] == 0


@pytest.mark.parametrize(
    ("said", "order", "code", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "status", IO, "what answers there is no kwsd's events socket"),
        (b'{"type": "hello"}\n{"type": "ans', "status", UNAVAILABLE, "kwsd hung up without an answer"),
        (b'{"type": "hello"}\n{"type": "det', "watch", UNAVAILABLE, "kwsd is gone without a word"),
    ],
)
def test_what_is_no_kwsd_is_told_apart_from_one_that_stopped_amid_a_line(said, order, code, words, tmp_path, kwsd):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()

        def answer():
            with other.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(said)

        answering = threading.Thread(target=answer)
        answering.start()
        kwsd("ctl", "--socket", tmp_path / "s", order).refused(code, words)
        answering.join()


def test_a_socket_that_is_left_over_hides_no_other_daemon(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(client, "SYSTEM_SOCKET", tmp_path / "system.sock")
    (tmp_path / "kwsd").mkdir()
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(tmp_path / "kwsd/events.sock"))
    assert client.usual_socket() == tmp_path / "kwsd/events.sock"
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(tmp_path / "system.sock"))
        there.listen()
        assert client.usual_socket() == tmp_path / "system.sock"


def test_readers_that_may_only_read_give_no_commands(kwsd, environment, spoken):
    with Running(*KITCHEN, "--set", "sinks.socket.control=false", environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        kwsd("ctl", "mute").refused(NO_PERMISSION, "sinks.socket.control is false")


def test_watching_prints_what_was_asked_for_until_the_daemon_stops(kwsd, environment, tmp_path, spoken):
    path = tmp_path / "runtime/kwsd/events.sock"
    with Running(*KITCHEN, environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")

        def speak_once_somebody_watches():
            deadline = time.monotonic() + 20
            while Path("/proc/net/unix").read_text().count(f" {path}\n") < 2 and time.monotonic() < deadline:
                time.sleep(0.02)  # one of them listens
            say(daemon, spoken[64_000:])
            daemon.process.stdin.close()

        speaking = threading.Thread(target=speak_once_somebody_watches)
        speaking.start()
        result = asked(kwsd, "watch", "--socket", path, "--types", "detection", "--keywords", "go", "yes")
        speaking.join()
        assert result.types == ["detection", "detection"] and result.err.count("\n") == 0


def test_a_command_is_named_in_what_is_not_understood():
    with pytest.raises(ConfigError, match=r"not understood .*dance.*mute, unmute, threshold, reload, subscribe"):
        parse(b'{"command": "dance"}')
    assert Subscribe().wants(Reload(ok=True))
