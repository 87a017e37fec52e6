"""A wake-word service for Wyoming clients: the protocol's own package against a real daemon."""

import asyncio
import errno
import socket
import subprocess
import time
from pathlib import Path

import pytest
from running import KWSD, Running
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.wake import Detect, Detection, NotDetected

from kwsd import wyoming
from kwsd.address import Address
from kwsd.audio_format import SAMPLE_RATE
from kwsd.config import WyomingConfig
from kwsd.errors import CONFIG, IO, ConfigError
from kwsd.memory import Memory
from kwsd.pause import LEAST_S
from kwsd.recording import DEMO, read_recording

SPEECH = read_recording(DEMO)
STOP = SPEECH[: 4 * SAMPLE_RATE]  # "stop" from 2.0 to 2.44 s
SILENCE = STOP[: SAMPLE_RATE // 2]
CHUNK = 1024  # samples, as satellites send them
PATIENCE_S = 30.0


def pcm(samples):
    return (samples * 32767).astype("<i2").tobytes()


@pytest.fixture
def service(tmp_path, environment):
    """`with service(…) as daemon` runs one that listens at `daemon.uri` and has no streams of its own."""

    def run(*settings):
        path = tmp_path / "wyoming"
        options = ["streams=[]", f"wyoming.on=['unix:{path}']", *settings]
        daemon = Running(*(part for setting in options for part in ("--set", setting)), environment=environment)
        daemon.uri = f"unix://{path}"
        daemon.wait_for("ready")
        return daemon

    return run


def chunks(samples, rate=SAMPLE_RATE):
    for at in range(0, len(samples), CHUNK):
        piece = samples[at : at + CHUNK]
        yield AudioChunk(rate, 2, 1, pcm(piece), timestamp=at * 1000 // rate).event()


async def heard(client, samples, *, context=None, names=None, start=True, realtime=False):
    """Everything the service answers to a recording, up to `not-detected`, or for a while."""
    await client.write_event(Detect(names=names, context=context).event())
    if start:
        await client.write_event(AudioStart(SAMPLE_RATE, 2, 1, timestamp=0).event())
    for chunk in chunks(samples):
        await client.write_event(chunk)
        if realtime:
            await asyncio.sleep(CHUNK / SAMPLE_RATE)
    await client.write_event(AudioStop().event())
    await client.write_event(Ping(text="over").event())
    answers = []
    while True:
        event = await asyncio.wait_for(client.read_event(), PATIENCE_S)
        assert event is not None, answers
        if Pong.is_type(event.type):
            return answers
        answers.append(event)


def asked(uri, scenario):
    """What a coroutine gives that talks to the service as a client."""

    async def body():
        async with AsyncClient.from_uri(uri) as client:
            return await scenario(client)

    return asyncio.run(body())


def test_it_says_what_it_is_and_which_words_it_knows(service):
    async def scenario(client):
        await client.write_event(Describe().event())
        return Info.from_event(await client.read_event())

    with service("keywords={stop: {}, go: {}}") as daemon:
        info = asked(daemon.uri, scenario)
    [program] = info.wake
    assert program.name == "kwsd" and program.installed
    assert [(model.name, model.phrase, model.installed) for model in program.models] == [
        ("stop", "stop", True),
        ("go", "go", True),
    ]
    assert not info.asr and not info.tts


@pytest.mark.parametrize("start", [True, False])
def test_a_word_that_is_said_is_a_detection_with_its_time(service, start):
    with service() as daemon:
        answers = asked(daemon.uri, lambda client: heard(client, STOP, context={"a": 1}, start=start))
        daemon.stop()
    [detection] = [Detection.from_event(event) for event in answers]
    assert detection.name == "stop" and detection.context == {"a": 1}
    assert 2000 <= detection.timestamp <= 3500
    [event] = [event for event in daemon.events if event["type"] == "detection"]
    assert event["stream"].startswith("wyoming local")


def test_what_is_not_said_or_not_asked_for_is_not_detected(service):
    async def scenario(client):
        first = await heard(client, SILENCE)
        second = await heard(client, STOP, names=["go", "yes"], context={"b": 2})
        return first, second, await heard(client, STOP, names=["stop"])

    with service() as daemon:
        nothing, other, said = asked(daemon.uri, scenario)
    assert [event.type for event in nothing] == [event.type for event in other] == ["not-detected"]
    assert NotDetected.from_event(other[0]).context == {"b": 2}
    assert [Detection.from_event(event).name for event in said] == ["stop"]


def test_a_word_in_the_last_moment_of_the_audio_is_heard(service):
    word = STOP[: round(2.5 * SAMPLE_RATE)]  # ends with the word
    with service() as daemon:
        answers = asked(daemon.uri, lambda client: heard(client, word))
    assert [event.type for event in answers] == ["detection"]


def test_where_rooms_hear_one_another_the_nearest_client_alone_is_told(service):
    async def body(uri):
        async def one(gain):
            async with AsyncClient.from_uri(uri) as client:
                return [event.type for event in await heard(client, gain * STOP, realtime=True)]

        return await asyncio.gather(one(0.2), one(1.0))

    with service("arbitration={groups: [['wyoming *']], wait_ms: 1000}") as daemon:
        assert asyncio.run(body(daemon.uri)) == [["not-detected"], ["detection"]]


def test_many_satellites_stream_at_once_and_each_gets_its_own(service):
    async def body(uri):
        async def one(number):
            async with AsyncClient.from_uri(uri) as client:
                samples = STOP if number % 2 else SPEECH[5 * SAMPLE_RATE : 9 * SAMPLE_RATE]
                return await heard(client, samples, realtime=True)

        return await asyncio.gather(*(one(number) for number in range(12)))

    with service() as daemon:
        for _ in range(3):
            begun = time.monotonic()
            answers = asyncio.run(body(daemon.uri))
            stood_still = time.monotonic() - begun > 4.0 + LEAST_S  # and a word with us, which then is none
            assert len({daemon.wait_for("stream_joined")["stream"] for _ in range(12)}) == 12
            words = [[Detection.from_event(told).name for told in some if told.type == "detection"] for some in answers]
            if words == [["up"], ["stop"]] * 6 or not stood_still:
                break
    assert words == [["up"], ["stop"]] * 6


def test_a_verdict_is_given_even_if_there_was_no_audio(service):
    async def scenario(client):
        await client.write_event(Detect(context={"c": 3}).event())
        await client.write_event(AudioStop().event())
        return await asyncio.wait_for(client.read_event(), PATIENCE_S)

    with service() as daemon:
        assert NotDetected.from_event(asked(daemon.uri, scenario)).context == {"c": 3}


def test_a_house_full_of_satellites_may_come_all_at_once(service):
    async def body(uri):
        async def one():
            async with AsyncClient.from_uri(uri) as client:
                return await heard(client, STOP)

        return await asyncio.gather(*(one() for _ in range(48)))

    with service("listen.streams=64", "model=commands-fast") as daemon:
        answers = asyncio.run(body(daemon.uri))
    assert {len(told) for told in answers} == {1} and {told[0].type for told in answers} == {"detection"}


def test_a_refused_reload_leaves_clients_connected(tmp_path, environment):
    path = tmp_path / "w"
    config = tmp_path / "kwsd.yaml"
    text = "streams: []\nwyoming: {on: ['unix:PATH'MORE]}\n".replace("PATH", str(path))
    config.write_text(text.replace("MORE", ""))

    async def body(daemon):
        async with AsyncClient.from_uri(f"unix://{path}") as client:
            for more in (", 'tcp://192.0.2.1:10400'], unprotected: true", f", 'unix:{tmp_path}/no/folder'"):
                config.write_text(text.replace("MORE]" if "]" in more else "MORE", more))
                await asyncio.to_thread(lambda: daemon.process.send_signal(1))
                assert (await asyncio.to_thread(daemon.wait_for, "reload"))["ok"] is False
            return await heard(client, STOP)

    with Running("--config", str(config), environment=environment) as daemon:
        daemon.wait_for("ready")
        answers = asyncio.run(body(daemon))
    assert [event.type for event in answers] == ["detection"]


def test_a_reload_that_opens_everything_anew_leaves_clients_connected(service, tmp_path, environment):
    path = tmp_path / "w"
    config = tmp_path / "kwsd.yaml"
    text = f"streams: [{{source: file, name: NAME, path: {DEMO}}}]\nwyoming: {{on: ['unix:{path}']}}\n"
    config.write_text(text.replace("NAME", "a"))

    async def body(daemon):
        async with AsyncClient.from_uri(f"unix://{path}") as client:
            await client.write_event(AudioStart(SAMPLE_RATE, 2, 1).event())
            for chunk in list(chunks(STOP))[:10]:
                await client.write_event(chunk)
            config.write_text(text.replace("NAME", "b"))
            await asyncio.to_thread(lambda: daemon.process.send_signal(1))
            await asyncio.to_thread(daemon.wait_for, "reload")
            await asyncio.sleep(0.3)
            return await heard(client, STOP)

    with Running("--config", str(config), environment=environment) as daemon:
        daemon.wait_for("ready")
        answers = asyncio.run(body(daemon))
    assert [event.type for event in answers] == ["detection"]


def test_who_comes_after_a_muted_client_is_not_muted(tmp_path, environment):
    path, config = tmp_path / "w", tmp_path / "kwsd.yaml"
    config.write_text(f"streams: [{{source: file, path: {DEMO}, name: tape}}]\nwyoming: {{on: ['unix:{path}']}}\n")
    environment = environment | {"STATE_DIRECTORY": str(tmp_path)}

    def ctl(*order):
        subprocess.run([KWSD, "ctl", *order], check=True, env=environment, capture_output=True)

    async def muted(daemon):
        async with AsyncClient.from_uri(f"unix://{path}") as client:
            await client.write_event(AudioStart(SAMPLE_RATE, 2, 1).event())
            joined = await asyncio.to_thread(daemon.wait_for, "stream_joined")
            await asyncio.to_thread(ctl, "mute", joined["stream"])
            answers = await heard(client, STOP, start=False)
        await asyncio.to_thread(daemon.wait_for, "stream_left")
        await asyncio.to_thread(ctl, "mute", "tape")
        return [event.type for event in answers]

    with Running("--config", str(config), environment=environment) as daemon:
        daemon.wait_for("ready")
        assert asyncio.run(muted(daemon)) == ["not-detected"]
        daemon.stop()
    assert [*Memory(environment).muting().exceptions] == ["tape"]


# --- what is wrong ---


def test_keywords_nobody_listens_for_are_named_and_the_rest_goes_on(service):
    async def scenario(client):
        return await heard(client, STOP, names=["stop", "hey_wombat"])

    with service() as daemon:
        error, detection = asked(daemon.uri, scenario)
    assert "nobody listens for hey_wombat" in Error.from_event(error).text
    assert detection.type == "detection"


def test_more_clients_than_there_is_room_for_are_refused_and_told_why(service):
    async def body(uri):
        async with AsyncClient.from_uri(uri) as first, AsyncClient.from_uri(uri) as second:
            await first.write_event(AudioStart(SAMPLE_RATE, 2, 1).event())
            for chunk in chunks(SILENCE):
                await first.write_event(chunk)
            await asyncio.sleep(0.5)
            refused = await heard(second, STOP)
            await first.write_event(AudioStop().event())
            assert (await first.read_event()).type == "not-detected"
            return refused, await heard(second, STOP)

    with service("listen.streams=1") as daemon:
        refused, heard_later = asyncio.run(body(daemon.uri))
    assert [event.type for event in refused] == ["error"]
    assert "raise listen.streams" in Error.from_event(refused[0]).text
    assert [event.type for event in heard_later] == ["detection"]


@pytest.mark.parametrize(
    "said",
    [
        b"garbage\n",
        b"[]\n",
        b"{}\n",
        b'{"type": 7}\n',
        b'{"type": "audio-start"}\n',
        b'{"type": "audio-start", "data": []}\n',
        b'{"type": "audio-start", "data": {"rate": 16000, "width": 3, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": "x", "width": 2, "channels": 1}}\n',
        b'{"type": "audio-start", "data": {"rate": 16000, "width": [], "channels": 1}}\n',
        b'{"type": "audio-chunk", "data_length": 5}\n[1,2]',
        b'{"type": "audio-chunk", "payload_length": 1000000000000}\n',
        b'{"type": "audio-chunk", "payload_length": "x"}\n',
        b'{"type": "audio-chunk", "payload_length": 100, "data": {"rate": 16000, "width": 2, "channels": 1}}\nabc',
        b'{"type": "detect", "data": {"names": 7}}\n',
        b'{"type": "detect", "data": {"names": [[]]}}\n',
        b'{"type": "audio-stop"}\n',
        b'{"type": "ping", "data": {"text": "\\ud800"}}\n',
        b'{"type": "detect", "data": {"names": ["\\ud800"]}}\n',
        b'{"type": "audio-start", "data": {"width": "\\ud800", "rate": 1, "channels": 1}}\n',
        b'{"type": "ping", "data": {"text": ' + b"[" * 975 + b"]" * 975 + b"}}\n",
        b'{"type": "detect", "data": {"context": "\\ud800"}}\n{"type": "audio-stop"}\n',
        b"x" * 2_000_000,
        b"\xff\xfe\n",
        b"",
    ],
)
def test_what_makes_no_sense_harms_nobody_else(said, shared_service):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(shared_service.removeprefix("unix://"))
        client.settimeout(PATIENCE_S)
        with_patience = client.makefile("rb")
        try:
            client.sendall(said)
            client.shutdown(socket.SHUT_WR)
            with_patience.read()
        except (BrokenPipeError, ConnectionResetError):
            pass
        with_patience.close()
    assert [event.type for event in asked(shared_service, lambda client: heard(client, SILENCE))] == ["not-detected"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b'{"type": "audio-chunk", "payload_length": 320000}\n', "a message of 320000 bytes; at most 262144"),
        (b"hello\n", "not understood: send lines of JSON"),
        (b"x" * 300_000, "not understood: send lines of JSON"),
    ],
)
def test_who_is_not_understood_is_told_why(said, why, shared_service):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(shared_service.removeprefix("unix://"))
        client.settimeout(PATIENCE_S)
        client.sendall(said)
        with client.makefile("rb") as answer:
            assert why in answer.read().decode()


@pytest.fixture(scope="module")
def shared_service(tmp_path_factory):
    """The address of a service for several tests; it must hear, and end well, after all of them."""
    from running import clean_environment

    folder = tmp_path_factory.mktemp("wyoming")
    path = folder / "w"
    options = ("--set", "streams=[]", "--set", f"wyoming.on=['unix:{path}']")
    with Running(*options, environment=clean_environment(XDG_RUNTIME_DIR=str(folder))) as daemon:
        daemon.wait_for("ready")
        before = len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))
        yield f"unix://{path}"
        answers = asked(f"unix://{path}", lambda client: heard(client, STOP))
        assert [event.type for event in answers] == ["detection"]
        deadline = time.monotonic() + PATIENCE_S
        while len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir())) > before + 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert daemon.stop()[0] == 0


@pytest.mark.parametrize(
    ("settings", "code", "complaint"),
    [
        ("{on: [localhost]}", CONFIG, "wyoming.on.0: localhost is no address"),
        ("{on: ['tcp://0.0.0.0:10400']}", CONFIG, "the protocol has no password"),
        ("{on: ['tcp://127.0.0.1:0'], zeroconf: x}", CONFIG, "wyoming.zeroconf: no address"),
        (f"{{on: ['tcp://0.0.0.0:0'], unprotected: true, zeroconf: {'x' * 64}}}", CONFIG, "is longer than 63 bytes"),
        ("{on: ['tcp://192.0.2.1:10400'], unprotected: true}", IO, "wyoming.on"),
    ],
)
def test_a_wrong_address_is_refused_in_one_line(kwsd, tmp_path, settings, code, complaint):
    config = tmp_path / "kwsd.yaml"
    config.write_text(f"streams: []\nwyoming: {settings}\n")
    kwsd("run", "--config", config).refused(code, complaint)


# --- found in the network ---


class Browser:
    """Whoever looks for services, and what was found."""

    def __init__(self):
        from zeroconf import ServiceBrowser, Zeroconf

        self.found = []
        self._zeroconf = Zeroconf()
        self._browser = ServiceBrowser(self._zeroconf, "_wyoming._tcp.local.", self)

    def add_service(self, _, kind, name):
        self.found.append((kind, name))

    update_service = remove_service = lambda *_: None

    def look_for(self, name):
        deadline, info = time.monotonic() + PATIENCE_S, None
        while info is None and time.monotonic() < deadline:
            time.sleep(0.1)
            found = [service for service in self.found if service[1].startswith(name)]
            info = self._zeroconf.get_service_info(*found[0]) if found else None  # None: nobody answered in time
        self._browser.cancel()
        self._zeroconf.close()
        return info


def test_it_is_found_as_soon_as_there_is_a_network(monkeypatch):
    name, network = f"kwsd-test-{time.monotonic_ns()}", []
    reached_at = wyoming._reached_at
    monkeypatch.setattr(wyoming, "ADDRESSES_S", 0.1)
    monkeypatch.setattr(wyoming, "_reached_at", lambda host: reached_at(host) if network else [])
    config = WyomingConfig(on=("tcp://0.0.0.0:0",), unprotected=True, zeroconf=name)
    host = stop_host()

    async def scenario():
        service = await wyoming.Wyoming.open(config, [Address("", None, "0.0.0.0", 0)], host)
        try:
            await asyncio.sleep(0.5)
            assert service._zeroconf is None
            network.append("up")
            return await asyncio.to_thread(Browser().look_for, name)
        finally:
            await service.close()

    info = asyncio.run(scenario())
    assert info.parsed_addresses() and not any(":" in address for address in info.parsed_addresses())


def test_a_sandbox_in_which_addresses_cannot_be_seen_is_told_of(monkeypatch):
    def no_netlink():
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr("ifaddr.get_adapters", no_netlink)
    config = WyomingConfig(on=("tcp://0.0.0.0:0",), unprotected=True, zeroconf="kitchen")
    host = stop_host()
    with pytest.raises(ConfigError, match="under systemd add AF_NETLINK to RestrictAddressFamilies="):
        asyncio.run(wyoming.Wyoming.open(config, [Address("", None, "0.0.0.0", 0)], host))


def test_one_address_is_announced_without_a_look_at_all_of_them(monkeypatch):
    import ifaddr

    ours = [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    far = [address for address in ours if not address.startswith("127.")]
    if not far:
        pytest.skip("there is no network")
    monkeypatch.setattr("ifaddr.get_adapters", lambda: pytest.fail("was looked at"))
    config = WyomingConfig(on=(f"tcp://{far[0]}:0",), unprotected=True, zeroconf="kitchen")

    async def scenario():
        service = await wyoming.Wyoming.open(config, [Address("", None, far[0], 0)], stop_host())
        announced = service._zeroconf is not None
        await service.close()
        return announced

    assert asyncio.run(scenario())


def stop_host():
    return wyoming.Host("0", lambda: "", lambda: ["stop"], nobody)


async def nobody(_):
    """Takes no satellite."""


def test_who_connects_and_says_nothing_is_let_go(monkeypatch, tmp_path):
    monkeypatch.setattr(wyoming, "FIRST_S", 0.3)
    host = stop_host()

    async def scenario():
        address = Address("", tmp_path / "s")
        service = await wyoming.Wyoming.open(WyomingConfig(on=("unix:s",)), [address], host)
        silent, asking = AsyncClient.from_uri(f"unix://{tmp_path}/s"), AsyncClient.from_uri(f"unix://{tmp_path}/s")
        async with silent, asking:
            await asking.write_event(Ping(text="here").event())
            assert Pong.is_type((await asyncio.wait_for(asking.read_event(), PATIENCE_S)).type)
            said = await asyncio.wait_for(silent.read_event(), PATIENCE_S)
            assert Error.is_type(said.type) and "said nothing for 0.3 s" in Error.from_event(said).text
            assert await asyncio.wait_for(silent.read_event(), PATIENCE_S) is None
            await asking.write_event(Ping(text="still here").event())
            assert Pong.is_type((await asyncio.wait_for(asking.read_event(), PATIENCE_S)).type)
        await service.close()

    asyncio.run(scenario())


def test_it_is_found_by_mdns(environment):
    name = f"kwsd-test-{time.monotonic_ns()}"
    options = ["streams=[]", "wyoming.on=['tcp://0.0.0.0:0']", "wyoming.unprotected=true", f"wyoming.zeroconf={name}"]
    with Running(*(part for setting in options for part in ("--set", setting)), environment=environment) as daemon:
        daemon.wait_for("ready")
        port = int(daemon.wait_for_log("Wyoming clients on tcp://").rpartition(":")[2])
        info = Browser().look_for(name)
        assert daemon.stop()[0] == 0
    assert info.port == port and info.parsed_addresses()
