"""Events for a real Mosquitto, and commands from it, by a real daemon."""

import asyncio
import gc
import json
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from aiomqtt import Client, Message
from broker import Broker, needs_mosquitto
from running import RECOMMENDED, Running, free_port
from test_home_assistant import valid

from kwsd.client import ask
from kwsd.errors import CONFIG
from kwsd.recording import DEMO, read_recording
from kwsd.sinks.broker import watch_while_open
from kwsd.sinks.mqtt import _Commands, _first_of

pytestmark = needs_mosquitto

BASE = "kwsd/home"


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def broker(tmp_path, port):
    with Broker(tmp_path, port) as running:
        yield running


@pytest.fixture
def spoken():
    """The demo recording as PCM."""
    return (read_recording(DEMO) * 32767).astype("<i2").tobytes()


def kitchen(broker, *more):
    """Options of a daemon that hears its stdin and tells this broker."""
    settings = [
        'streams=[{source: pcm, name: kitchen, path: "-"}]',
        f"sinks.mqtt.broker=mqtt://127.0.0.1:{broker.port}",
        *more,
    ]
    return [part for setting in settings for part in ("--set", setting)]


def say(daemon, audio):
    daemon.process.stdin.write(audio)
    daemon.process.stdin.flush()


def lines(messages):
    return [json.loads(message.payload) for message in messages]


def test_detections_and_other_events_arrive_once_and_are_not_retained(broker, environment, spoken):
    everything = broker.listener()
    with Running(*kitchen(broker), environment=environment) as daemon:
        everything.wait_for(f"{BASE}/availability", "online")
        say(daemon, spoken)
        for _ in range(10):
            everything.wait_for(f"{BASE}/kitchen/detection")
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    everything.wait_for(f"{BASE}/availability", "offline")
    heard = everything.on(f"{BASE}/kitchen/detection")
    assert lines(heard) == daemon.detections
    assert {(message.qos, message.retain) for message in heard} == {(1, False)}
    others = [event["type"] for event in lines(everything.on(f"{BASE}/event"))]
    told = [event["type"] for event in daemon.events if event["type"] != "detection"]
    assert others in (told, told[:-1])  # for the shutdown there is not always time
    late = broker.listener()
    late.wait_for(f"{BASE}/availability", "offline")
    assert not late.on(f"{BASE}/kitchen/detection") and not late.on(f"{BASE}/event")


def test_a_daemon_that_dies_is_offline_by_its_last_will(broker, environment):
    everything = broker.listener()
    with Running(*kitchen(broker), environment=environment) as daemon:
        everything.wait_for(f"{BASE}/availability", "online")
        daemon.process.kill()
        everything.wait_for(f"{BASE}/availability", "offline")


def test_home_assistant_is_told_of_all_there_is_and_again_when_it_starts(broker, environment, spoken):
    everything = broker.listener()
    with Running(*kitchen(broker, "sinks.mqtt.state_s=1"), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        everything.has(f"{BASE}/kitchen/availability", "online")
        everything.has(f"{BASE}/availability", "online")
        told = {message.topic: message for message in everything.messages if message.topic.endswith("/config")}
        for topic, message in told.items():
            valid("discovery_topic", topic)
            valid(topic.split("/")[1], json.loads(message.payload))
        assert len(told) == 6 + 10 + 10
        state = json.loads(everything.wait_for(f"{BASE}/kitchen/state").payload)
        assert state["stream"] == "kitchen" and "level_dbfs" in state and "lag_ms" in state
        everything.has(f"{BASE}/threshold/go", str(RECOMMENDED["go"]))
        before = len(everything.messages)
        everything.publish("homeassistant/status", "online")
        for topic in (*told, f"{BASE}/availability"):  # in any order: it may be telling of a change just then
            everything.has(topic, since=before)


def test_a_switch_mutes_and_a_number_sets_a_threshold(broker, environment, spoken):
    everything = broker.listener()
    with Running(*kitchen(broker), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        everything.wait_for(f"{BASE}/kitchen/mute", "OFF")
        everything.publish(f"{BASE}/kitchen/mute/set", "ON")
        everything.wait_for(f"{BASE}/kitchen/mute", "ON")
        assert daemon.wait_for("mute")["muted"] is True
        everything.publish(f"{BASE}/threshold/stop/set", "0.72")
        everything.wait_for(f"{BASE}/threshold/stop", "0.72")
        assert daemon.wait_for("threshold") | {"id": "", "time": "", "seq": 0} == {
            "v": 1, "type": "threshold", "id": "", "seq": 0, "time": "", "keyword": "stop", "threshold": 0.72,
        }  # fmt: skip
        daemon.process.send_signal(signal.SIGHUP)
        everything.wait_for(f"{BASE}/threshold/stop", str(RECOMMENDED["stop"]))
        assert everything.on(f"{BASE}/kitchen/mute")[-1].payload == b"ON", "a mute survives a reload"


@pytest.mark.parametrize(
    ("settings", "word", "lowest"),
    [([], "stop", 0.01), (["debouncer.release=0.3"], "stop", 0.3), (["keywords={go: {release: 0.2}}"], "go", 0.2)],
)
def test_the_number_goes_as_low_as_the_threshold_may_be(broker, environment, settings, word, lowest):
    everything = broker.listener()
    with Running(*kitchen(broker, *settings), environment=environment) as daemon:
        number = everything.wait_for(f"homeassistant/number/kwsd_home/threshold__{word}/config")
        assert json.loads(number.payload)["min"] == lowest
        daemon.wait_for_log("connected")
        say(daemon, bytes(64_000))
        daemon.wait_for("ready")
        everything.publish(f"{BASE}/threshold/{word}/set", f"{lowest}")
        everything.wait_for(f"{BASE}/threshold/{word}", f"{lowest}")
        everything.publish(f"{BASE}/threshold/{word}/set", f"{lowest - 0.01:g}")
        everything.wait_for(f"{BASE}/threshold/{word}", f"{lowest}")


@pytest.mark.parametrize(
    ("topic", "payload", "answer", "said"),
    [
        ("kitchen/mute", "WOMBAT", "OFF", "send ON or OFF"),
        ("threshold/stop", "high", str(RECOMMENDED["stop"]), "is no threshold"),
        ("threshold/stop", "nan", str(RECOMMENDED["stop"]), "is no threshold"),
        ("threshold/stop", "0", str(RECOMMENDED["stop"]), "with a threshold of 0 anything would be it"),
    ],
)
def test_what_cannot_be_done_is_logged_and_the_truth_is_told_again(
    broker, environment, spoken, topic, payload, answer, said
):
    everything = broker.listener()
    with Running(*kitchen(broker), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        daemon.wait_for("ready")
        everything.has(f"{BASE}/{topic}", answer)
        everything.publish(f"{BASE}/{topic}/set", payload)
        everything.wait_for(f"{BASE}/{topic}/set")
        everything.wait_for(f"{BASE}/{topic}", answer)
        daemon.stop()
    assert [line for line in daemon.errors if said in line and topic in line]


def test_a_retained_command_is_ignored(broker, environment, spoken):
    everything = broker.listener()
    everything.publish(f"{BASE}/kitchen/mute/set", "ON", retain=True)
    with Running(*kitchen(broker), environment=environment) as daemon:
        say(daemon, spoken[:64_000])
        everything.wait_for(f"{BASE}/kitchen/mute", "OFF")
        everything.publish(f"{BASE}/threshold/stop/set", "0.9")
        daemon.wait_for("threshold")
        daemon.stop()
    assert "mute" not in {event["type"] for event in daemon.events}
    assert [line for line in daemon.errors if "is retained, and ignored" in line]


# --- the broker goes and comes ---


@pytest.mark.parametrize("hook", ["on_socket_open", "on_socket_register_write"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_connection_that_closes_at_once_is_not_watched(hook, elsewhere):
    """Its number may be nobody's by then, which the loop does not take, or that of another file."""
    wrong = []

    async def close_at_once():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: wrong.append(context))
        client = Client("127.0.0.1")
        watch_while_open(client)
        one, other = socket.socketpair()
        watch = threading.Thread(target=getattr(client._client, hook), args=(client._client, None, one))
        watch.start() if elsewhere else watch.run()
        if elsewhere:
            watch.join()
        else:
            loop.remove_reader(one)
            loop.remove_writer(one)
        one.close()
        await asyncio.sleep(0.05)
        assert not loop.remove_reader(other) and not loop.remove_writer(other)
        other.close()
        if client._misc_task is not None:
            client._misc_task.cancel()

    asyncio.run(close_at_once())
    assert not wrong


def back(broker, daemon):
    """Who listens to a broker that is started before the daemon, which waits for it, tells it anything."""
    daemon.process.send_signal(signal.SIGSTOP)
    broker.start()
    listener = broker.listener()
    daemon.process.send_signal(signal.SIGCONT)
    return listener


def test_what_is_said_while_the_broker_is_away_waits_for_it_and_what_was_dropped_is_told(broker, environment, spoken):
    everything = broker.listener()
    with Running(*kitchen(broker, "sinks.mqtt.queue=4"), environment=environment) as daemon:
        everything.wait_for(f"{BASE}/availability", "online")
        broker.kill()
        lost = daemon.wait_for("broker_lost")
        assert lost["broker"] == f"127.0.0.1:{broker.port}"
        say(daemon, spoken + bytes(64_000))
        for _ in range(10):
            daemon.wait_for("detection")
        again = back(broker, daemon)
        restored = daemon.wait_for("broker_restored")
        while json.loads(again.wait_for(f"{BASE}/event").payload) != restored:  # which is told after all that waited
            pass
        assert restored["dropped"] > 0 and restored["gap_s"] > 0
        assert lines(again.on(f"{BASE}/kitchen/detection")) == daemon.detections[-4:]
        again.has(f"{BASE}/availability", "online")
        daemon.stop()
    assert "back after" in "".join(daemon.errors)


def say_while_it_is_away(broker, daemon, spoken, words):
    """The broker goes, and so many words are heard."""
    broker.listener().wait_for(f"{BASE}/availability", "online")
    broker.kill()
    daemon.wait_for("broker_lost")
    say(daemon, spoken)
    for _ in range(words):
        daemon.wait_for("detection")


def test_what_is_too_old_is_not_told_any_more(broker, environment, spoken):
    with Running(*kitchen(broker, "sinks.mqtt.keep_s=0.3"), environment=environment) as daemon:
        say_while_it_is_away(broker, daemon, spoken, words=10)
        time.sleep(1)
        again = back(broker, daemon)
        assert daemon.wait_for("broker_restored")["dropped"] >= 10
        again.wait_for(f"{BASE}/kitchen/state")  # which is told after what waited
        assert not again.on(f"{BASE}/kitchen/detection")


def of_config(broker, **more):
    """A config file's text for a daemon that hears its stdin and tells this broker; `more` of `sinks.mqtt`."""
    mqtt = {"broker": f"mqtt://127.0.0.1:{broker.port}"} | more
    streams = [{"source": "pcm", "name": "kitchen", "path": "-"}]
    return json.dumps({"streams": streams, "sinks": {"mqtt": mqtt}})


@pytest.mark.parametrize(("site", "kept"), [("home", True), ("shed", False)])
def test_a_reload_while_the_broker_is_away_keeps_what_waits_or_says_that_it_is_dropped(
    broker, environment, spoken, tmp_path, site, kept
):
    config = tmp_path / "kwsd.yaml"
    config.write_text(of_config(broker, keep_s=0))
    with Running("--config", str(config), environment=environment) as daemon:
        say_while_it_is_away(broker, daemon, spoken, words=8)
        with Broker(tmp_path, free_port()) as other:
            listener = other.listener("kwsd/+/kitchen/detection")
            config.write_text(of_config(other, keep_s=0, site=site))
            daemon.process.send_signal(signal.SIGHUP)
            restored = daemon.wait_for("broker_restored")
            if kept:
                for detection in daemon.detections:
                    assert json.loads(listener.wait_for(f"{BASE}/kitchen/detection").payload) == detection
        assert restored["gap_s"] > 0
        assert restored["dropped"] == 0 if kept else restored["dropped"] > 8


@pytest.mark.parametrize("ended", [None, *range(1, 9)])  # after so many turns of the loop
def test_works_that_fail_together_are_all_asked_why(ended):
    complaints = []

    async def fail():
        await asyncio.sleep(0)
        raise OSError("the connection is lost")

    async def go_on():
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)

    async def scenario():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        works = asyncio.ensure_future(_first_of(fail, fail, go_on))
        for _ in range(ended or 0):
            await asyncio.sleep(0)
        if ended:
            works.cancel()
        with pytest.raises((asyncio.CancelledError, OSError) if ended else OSError):
            await works
        del works
        gc.collect()

    asyncio.run(scenario())
    assert complaints == []


def test_a_message_that_the_broker_does_not_take_is_given_up_and_counted(tmp_path, port, environment, spoken):
    path = tmp_path / "short.wav"
    soundfile.write(path, np.zeros(20_000, np.int16), 16_000)
    long = [f"{{source: file, name: '{'🎤' * 63}{number}', path: '{path}', realtime: false}}" for number in range(9)]
    streams = f"streams=[{', '.join(long)}, {{source: pcm, name: kitchen, path: '-'}}]"
    with Broker(tmp_path, port, "max_packet_size 2000") as broker:
        everything = broker.listener(f"{BASE}/#")
        options = kitchen(broker, streams, "sinks.mqtt.discovery=null")
        with Running(*options, environment=environment) as daemon:
            say(daemon, spoken)
            losses = [daemon.wait_for("broker_lost") for _ in range(2)]
            assert daemon.wait_for_log("the broker hangs up over a message of ")
            while daemon.wait_for("broker_restored")["dropped"] == 0:
                pass
            everything.wait_for(f"{BASE}/kitchen/detection")
            daemon.stop()
    assert len([event for event in daemon.events if event["type"] == "broker_lost"]) == len(losses)
    assert [line for line in daemon.errors if f"{BASE}/event: the broker hangs up" in line]
    assert "ready" not in {event["type"] for event in lines(everything.on(f"{BASE}/event"))}


def test_what_home_assistant_is_told_is_given_up_too_where_the_broker_does_not_take_it(
    tmp_path, port, environment, spoken
):
    topic = "homeassistant/event/kwsd_home/kitchen__command/config"
    with Broker(tmp_path, port, "max_packet_size 850") as broker:
        everything = broker.listener("#")
        with Running(*kitchen(broker), environment=environment) as daemon:
            say(daemon, spoken)  # by then the stream is there, of which Home Assistant is told
            assert daemon.wait_for_log(f"{topic}: the broker hangs up over a message of ")
            everything.wait_for(f"{BASE}/kitchen/detection")
            daemon.stop()
    assert everything.on("homeassistant/switch/kwsd_home/kitchen__mute/config")
    assert not everything.on(topic)
    assert len([event for event in daemon.events if event["type"] == "broker_lost"]) == 1


def test_a_broker_that_is_not_there_at_the_start_is_waited_for(broker, environment, spoken):
    broker.kill()
    with Running(*kitchen(broker), environment=environment) as daemon:
        daemon.wait_for("broker_lost")
        say(daemon, spoken)
        daemon.wait_for("detection")
        back(broker, daemon).wait_for(f"{BASE}/kitchen/detection")
        daemon.stop()


def descriptors(daemon):
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def test_a_broker_that_hangs_delays_nothing_and_leaks_nothing(environment, spoken):
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        broker = type("Hanging", (), {"port": hanging.getsockname()[1]})
        with Running(*kitchen(broker), environment=environment) as daemon:
            say(daemon, spoken)
            daemon.wait_for("ready")
            daemon.wait_for("detection")
            daemon.wait_for("broker_lost")
            time.sleep(0.5)
            before = descriptors(daemon)
            time.sleep(8)
            assert descriptors(daemon) <= before + 1
            code, took = daemon.stop()
    assert code == 0 and took < 8.0


def test_what_was_counted_as_dropped_does_not_come_later_and_nothing_comes_twice(broker, environment, spoken):
    with Running(*kitchen(broker, "sinks.mqtt.keep_s=1"), environment=environment) as daemon:
        first = broker.listener()
        first.has(f"{BASE}/availability", "online")
        broker.hang()
        say(daemon, spoken[:128_000])
        assert daemon.wait_for("detection")["keyword"] == "stop"
        time.sleep(1.5)
        broker.kill()
        daemon.wait_for("broker_lost")
        again = back(broker, daemon)
        daemon.wait_for("broker_restored")
        again.wait_for(f"{BASE}/kitchen/state")  # which is told after what waited
        assert not again.on(f"{BASE}/kitchen/detection") and not first.on(f"{BASE}/kitchen/detection")
        say(daemon, spoken[128_000:])
        for _ in range(9):
            daemon.wait_for("detection")
        again.wait_for(f"{BASE}/kitchen/detection")
        daemon.stop()
        told = lines(again.on(f"{BASE}/kitchen/detection"))
        assert [event for event in daemon.detections[1:] if event in told] == told  # each once; all, if there was time


def test_a_broker_that_says_yes_and_then_nonsense_ends_nothing_and_is_asked_less_and_less(environment, spoken):
    accepted, asked = b"\x20\x02\x00\x00", []
    with socket.create_server(("127.0.0.1", 0)) as odd:
        broker = type("Odd", (), {"port": odd.getsockname()[1]})

        def serve():
            for nonsense in (accepted, accepted + b"garbage", b"", accepted + b"\x30\xff\xff\xff\xff\xff"):
                connection, _ = odd.accept()
                asked.append(time.monotonic())
                connection.recv(1000)
                connection.sendall(nonsense)
                connection.close()

        serving = threading.Thread(target=serve)
        serving.start()
        with Running(*kitchen(broker), environment=environment) as daemon:
            say(daemon, spoken)
            serving.join()
            assert asked[-1] - asked[0] > 1.0 + 2.0 + 3.0
            daemon.wait_for("detection")
            assert daemon.stop()[0] == 0


# --- streams that come and go ---


def test_the_status_says_that_the_broker_is_lost(broker, environment, tmp_path):
    everything = broker.listener()
    options = kitchen(broker, f"sinks.socket.path={tmp_path}/events.sock")
    with Running(*options, environment=environment):
        everything.has(f"{BASE}/availability", "online")
        broker.kill()
        deadline = time.monotonic() + 20
        while not (told := ask(tmp_path / "events.sock", "status")["status"]["problems"][1:]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert told[0].startswith(f"MQTT broker 127.0.0.1:{broker.port} is lost for ")


def test_a_will_that_comes_late_does_not_leave_us_offline(broker, environment):
    everything = broker.listener()
    with Running(*kitchen(broker), environment=environment):
        everything.has(f"{BASE}/availability", "online")
        everything.publish(f"{BASE}/availability", "offline", retain=True)
        everything.wait_for(f"{BASE}/availability", "offline")
        everything.wait_for(f"{BASE}/availability", "online")


def test_a_stream_that_an_earlier_run_left_online_is_offline(broker, environment):
    before = broker.listener()
    before.publish(f"{BASE}/attic/availability", "online", retain=True)
    with Running(*kitchen(broker), environment=environment):
        before.wait_for(f"{BASE}/attic/availability", "offline")
        late = broker.listener()
        late.has(f"{BASE}/attic/availability", "offline")


def test_all_of_many_streams_that_an_earlier_run_left_online_are_offline(broker, environment):
    before = broker.listener()
    attics = [f"{BASE}/attic{number}/availability" for number in range(300)]
    for attic in attics:
        before.publish(attic, "online", retain=True)
    with Running(*kitchen(broker), environment=environment) as daemon:
        for attic in attics:
            before.has(attic, "offline")
        daemon.stop()
    assert not [line for line in daemon.errors if "dropped" in line or "Discarding" in line]


def test_of_commands_only_so_many_wait(caplog):
    async def overflow():
        commands = _Commands(lambda message: not message.retain, 3)
        for number in (1, 2, 3, 4, 5):
            commands.put_nowait(Message("x/set", b"", 0, False, number, None))
            commands.put_nowait(Message("x", b"", 0, True, number, None))
        commands.get_nowait()
        commands.put_nowait(Message("x/set", b"", 0, False, 6, None))
        return [commands.get_nowait().mid for _ in range(commands.qsize())]

    assert asyncio.run(overflow()) == [2, 3, 6]
    assert [record.getMessage() for record in caplog.records] == [
        "MQTT x/set: 3 commands wait already; more are dropped until one is done"
    ]


def discovered(broker):
    """Topics of all entities of which the broker tells a newcomer."""
    late = broker.listener()
    late.publish("last", "one")
    late.wait_for("last")
    return {message.topic for message in late.messages if message.topic.endswith("/config")}


def test_what_an_earlier_run_said_and_is_not_so_any_more_is_cleared_and_satellites_are_spared(
    broker, environment, spoken
):
    everything = broker.listener()
    attic = "homeassistant/event/kwsd_home/attic__command/config"
    elsewhere = "homeassistant/number/kwsd_shed/threshold__go/config"
    for topic in (attic, elsewhere):
        everything.publish(topic, "{}", retain=True)
    with Running(*kitchen(broker), environment=environment) as daemon:
        everything.wait_for(f"{BASE}/threshold/yes", str(RECOMMENDED["yes"]))
        everything.has(f"{BASE}/kitchen/availability", "online")  # which is told after all else of the stream
        daemon.stop()
    assert len(discovered(broker)) == 2 + 6 + 10 + 10
    with Running(*kitchen(broker, "keywords=[stop]"), environment=environment) as daemon:
        everything.wait_for(f"{BASE}/threshold/yes", "")
        everything.has("homeassistant/number/kwsd_home/threshold__yes/config", "")
        deadline = time.monotonic() + 10
        while len(discovered(broker)) > 2 + 6 + 1 + 1:
            assert time.monotonic() < deadline
        daemon.stop()
    assert len(discovered(broker)) == 2 + 6 + 1 + 1 and {attic, elsewhere} <= discovered(broker)


@pytest.mark.parametrize(
    ("change", "entities", "cleared"),
    [({"site": "shed"}, 26, True), ({"discovery": "ha"}, 26, False), ({"discovery": None}, 0, False)],
)
def test_a_reload_that_changes_where_things_are_said_clears_them_there(
    broker, environment, tmp_path, change, entities, cleared
):
    config = tmp_path / "kwsd.yaml"
    config.write_text(of_config(broker))
    everything = broker.listener()
    with Running("--config", str(config), environment=environment) as daemon:
        everything.has(f"{BASE}/kitchen/availability", "online")
        old = discovered(broker)
        everything.wait_for("last")
        config.write_text(of_config(broker, **change))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log("connected", times=2)
        new = discovered(broker)
        everything.wait_for("last")
        assert len(new) == entities and not old & new, "".join(daemon.errors)
        threshold = everything.on(f"{BASE}/threshold/go")[-1].payload
        assert (threshold == b"") == (everything.on(f"{BASE}/kitchen/availability")[-1].payload == b"") == cleared
        assert everything.on(f"{BASE}/availability")[-1].payload == (b"offline" if cleared else b"online")


def test_a_satellite_that_left_is_unavailable_and_what_a_reload_took_is_gone(broker, environment, tmp_path):
    config = tmp_path / "kwsd.yaml"
    door = tmp_path / "in"
    text = (
        f"sinks: {{mqtt: {{broker: 'mqtt://127.0.0.1:{broker.port}'}}}}\nlisten: {{on: ['unix:{door}']}}\n"
        "streams: [{source: file, name: NAME, path: DEMO}]\n".replace("DEMO", str(DEMO))
    )
    config.write_text(text.replace("NAME", "old"))
    everything = broker.listener()
    with Running("--config", str(config), environment=environment) as daemon:
        everything.wait_for("homeassistant/event/kwsd_home/old__command/config")
        with socket.socket(socket.AF_UNIX) as satellite:
            satellite.connect(str(door))
            satellite.sendall(b'{"name": "attic"}\n' + bytes(32_000))
            everything.wait_for("homeassistant/event/kwsd_home/attic__command/config")
            everything.wait_for(f"{BASE}/attic/availability", "online")
        everything.wait_for(f"{BASE}/attic/availability", "offline")
        config.write_text(text.replace("NAME", "new"))
        daemon.process.send_signal(signal.SIGHUP)
        everything.wait_for("homeassistant/event/kwsd_home/new__command/config")
        everything.wait_for(f"{BASE}/new/availability", "online")
        everything.has("homeassistant/event/kwsd_home/old__command/config", "")
        assert everything.on("homeassistant/event/kwsd_home/attic__command/config")[-1].payload


def test_a_satellite_that_left_before_the_broker_had_confirmed_it_is_unavailable(broker, environment, tmp_path):
    door = tmp_path / "in"
    everything = broker.listener()
    options = kitchen(broker, f"listen.on=['unix:{door}']")
    with Running(*options, environment=environment) as daemon, socket.socket(socket.AF_UNIX) as satellite:
        everything.has(f"{BASE}/availability", "online")
        daemon.wait_for_log("listening on")
        told = -1
        while told != len(everything.messages):  # else the broker has yet to confirm what comes before the satellite
            told = len(everything.messages)
            time.sleep(1.0)
        broker.hang()
        satellite.connect(str(door))
        satellite.sendall(b'{"name": "attic"}\n' + bytes(32_000))
        daemon.wait_for("stream_joined")
        time.sleep(1.0)  # who is gone at once is never announced
        satellite.close()
        daemon.wait_for("stream_left")
        broker.go_on()
        everything.wait_for(f"{BASE}/attic/availability", "offline")
        assert everything.on("homeassistant/event/kwsd_home/attic__command/config")[-1].payload


def test_a_recording_that_has_ended_is_unavailable_and_no_other_stream_is(broker, environment, kwsd):
    everything = broker.listener()
    tape = f"{{source: file, name: tape, path: '{DEMO}', realtime: false}}"
    streams = f"streams=[{tape}, {{source: pcm, name: kitchen, path: '-'}}]"
    with Running(*kitchen(broker, streams), environment=environment) as daemon:
        daemon.wait_for("stream_left")
        everything.wait_for(f"{BASE}/tape/availability", "offline")
        everything.has(f"{BASE}/kitchen/availability", "online")
        assert "stream tape: ended, no sound" in kwsd("ctl", "status").out
        daemon.stop()


def test_a_broker_that_hangs_while_kwsd_stops_has_its_last_will(broker, environment):
    everything = broker.listener()
    with Running(*kitchen(broker), environment=environment) as daemon:
        everything.has(f"{BASE}/availability", "online")
        broker.hang()
        assert daemon.stop()[0] == 0
        broker.go_on()
        everything.wait_for(f"{BASE}/availability", "offline")


# --- secrets and TLS ---


def secret(path, text):
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def locked(tmp_path, port, certificates):
    """A broker that speaks TLS only and lets in `kwsd` with the password `open sesame`."""
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "kwsd", "open sesame"], check=True)
    passwords.chmod(0o644)
    files = (f"certfile {tmp_path}/broker.pem", f"keyfile {tmp_path}/broker.key", f"password_file {passwords}")
    with Broker(tmp_path, port, f"listener {port} 127.0.0.1", "allow_anonymous false", *files):
        yield port


def with_tls(folder, port, password="open sesame", **files):
    settings = {"user_file": secret(folder / "user", "kwsd\n"), "password_file": secret(folder / "password", password)}
    settings |= {"ca_file": folder / "ca.pem"} | files
    options = [f"sinks.mqtt.{key}={value}" for key, value in settings.items() if value]
    return kitchen(type("Locked", (), {"port": port}), f"sinks.mqtt.broker=mqtts://127.0.0.1:{port}", *options)


def test_over_tls_with_user_and_password_from_files(locked, tmp_path, environment):
    with Running(*with_tls(tmp_path, locked), environment=environment) as daemon:
        daemon.wait_for_log("connected")
        assert daemon.stop()[0] == 0
    assert "open sesame" not in "".join(daemon.errors)


@pytest.mark.parametrize(
    ("wrong", "reason"), [({"password": "no"}, "authori"), ({"ca_file": None}, "CERTIFICATE_VERIFY_FAILED")]
)
def test_a_broker_that_refuses_us_or_that_nobody_vouches_for_is_told_of(
    locked, tmp_path, environment, spoken, wrong, reason
):
    with Running(*with_tls(tmp_path, locked, **wrong), environment=environment) as daemon:
        told = daemon.wait_for("broker_lost")["reason"]
        assert reason in told and "[code" not in told
        say(daemon, spoken)
        daemon.wait_for("detection")
        assert daemon.stop()[0] == 0


# --- configuration ---


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("{broker: localhost}", "sinks.mqtt.broker: localhost is no broker"),
        ("{broker: 'mqtt://me:pw@localhost'}", "put each into a file of its own"),
        ("{broker: 'mqtt://h:x'}", "is no broker"),
        ("{broker: 'mqtt://:1883'}", "is no broker"),
        ("{broker: 'mqtt://h', ca_file: x}", "sinks.mqtt.ca_file: is for TLS"),
        ("{broker: 'mqtts://h', key_file: x}", "belongs to a cert_file"),
        ("{broker: 'mqtt://h', password_file: x}", "belongs to a user_file"),
        ("{broker: 'mqtts://h', ca_file: none.pem}", "sinks.mqtt.ca_file: "),
        ("{broker: 'mqtts://h', ca_file: kwsd.yaml}", "is no PEM"),
        ("{broker: 'mqtt://h', user_file: none}", "sinks.mqtt.user_file: "),
        ("{broker: 'mqtt://h', discovery: 'a/#'}", "sinks.mqtt.discovery"),
        ("{broker: 'mqtt://h', queue: 0}", "sinks.mqtt.queue"),
    ],
)
def test_a_wrong_broker_is_refused_in_one_line(kwsd, tmp_path, settings, complaint):
    config = tmp_path / "kwsd.yaml"
    config.write_text(f"sinks: {{mqtt: {settings}}}\n")
    kwsd("check", "--config", config).refused(CONFIG, complaint)


def of_certificate(folder, key):
    (folder / "kwsd.yaml").write_text(
        f"sinks: {{mqtt: {{broker: 'mqtts://h', cert_file: {folder}/broker.pem, key_file: {key}}}}}\n"
    )
    return "check", "--config", folder / "kwsd.yaml"


def test_what_is_wrong_with_a_key_is_said_of_the_key(kwsd, certificates):
    no_file = f"sinks.mqtt.key_file: {certificates}/nowhere.key: No such file or directory"
    kwsd(*of_certificate(certificates, "nowhere.key")).refused(CONFIG, no_file)
    locked = certificates / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", certificates / "broker.key", "-aes128", "-passout", "pass:x", "-out", locked],
        check=True,
    )
    asked = kwsd(*of_certificate(certificates, locked))
    asked.refused(CONFIG, "sinks.mqtt.key_file: ", "its key has a passphrase; take it off")
    assert "Enter" not in asked.err + asked.out


def test_a_key_may_come_from_systemd(kwsd, certificates):
    from_systemd = of_certificate(certificates, "$CREDENTIALS_DIRECTORY/broker.key")
    assert kwsd(*from_systemd, more={"CREDENTIALS_DIRECTORY": str(certificates)}).code == 0
