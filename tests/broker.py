"""A real Mosquitto of our own, and a client that keeps what it gets."""

import queue
import shutil
import signal
import subprocess
import time
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from running import PATIENCE_S

PROGRAM = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")

needs_mosquitto = pytest.mark.skipif(PROGRAM is None, reason="mosquitto is not installed")


class Broker:
    """`with Broker(folder, port) as broker: …`; `lines` are further ones of its configuration."""

    def __init__(self, folder: Path, port: int, *lines: str) -> None:
        self.port = port
        self._config = folder / f"mosquitto-{port}.conf"
        listener = [] if any(line.startswith("listener") for line in lines) else [f"listener {port} 127.0.0.1"]
        anonymous = [] if any(line.startswith("allow_anonymous") for line in lines) else ["allow_anonymous true"]
        self._config.write_text("\n".join(["user root", *listener, *anonymous, *lines]) + "\n")
        self._process: subprocess.Popen | None = None
        self._clients: list[Listener] = []

    def __enter__(self) -> "Broker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.stop()
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen([PROGRAM, "-c", self._config], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                probe = paho.Client(paho.CallbackAPIVersion.VERSION2)
                probe.connect("127.0.0.1", self.port)
                probe.disconnect()
            except OSError:
                assert time.monotonic() < deadline, "mosquitto does not listen"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def hang(self) -> None:
        """Take what comes, and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `hang`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def listener(self, topic: str = "#") -> "Listener":
        client = Listener(self.port, topic)
        self._clients.append(client)
        return client


class Listener:
    """Everything published to a topic, from now on, and what was retained."""

    def __init__(self, port: int, topic: str) -> None:
        self.messages: list[paho.MQTTMessage] = []
        self._new: queue.SimpleQueue[paho.MQTTMessage] = queue.SimpleQueue()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        subscribed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._client.on_subscribe = lambda *_: subscribed.put(None)
        self._client.on_message = self._take
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        subscribed.get(timeout=10)

    def _take(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.messages.append(message)
        self._new.put(message)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish(self, topic: str, payload: str, retain: bool = False) -> None:
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def wait_for(self, topic: str, payload: str | None = None, timeout: float = PATIENCE_S) -> paho.MQTTMessage:
        """The next message on a topic, with this payload if one is named."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self._new.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                seen = [(message.topic, message.payload[:60]) for message in self.messages]
                raise AssertionError(f"no {topic} {payload or ''}; there were {seen[-40:]}") from None
            if message.topic == topic and payload in (None, message.payload.decode()):
                return message

    def has(self, topic: str, payload: str | None = None, since: int = 0) -> None:
        """Wait until such a message was there, now or before, of all `messages` from `since` on."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(payload in (None, message.payload.decode()) for message in self.on(topic, since)):
            assert time.monotonic() < deadline, [message.topic for message in self.messages]
            time.sleep(0.02)

    def on(self, topic: str, since: int = 0) -> list[paho.MQTTMessage]:
        return [message for message in self.messages[since:] if message.topic == topic]
