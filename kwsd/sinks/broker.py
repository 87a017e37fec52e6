"""An MQTT broker: where it is, whom it trusts, and a client of it that leaks nothing."""

import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from kwsd.config import MqttConfig
from kwsd.errors import NO_PERMISSION, UNAVAILABLE, ConfigError
from kwsd.home_assistant import Topics
from kwsd.secret import credential, read_secret
from kwsd.tls import trusting

if TYPE_CHECKING:
    from aiomqtt import Client

PORT, TLS_PORT = 1883, 8883
ANSWER_S = 5.0  # it has so long for each message
ECHO_S = 2.0  # for what was said to come back


@dataclass(frozen=True)
class Broker:
    """Where it is and how it is spoken to, with all files read."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    tls_files: str  # a hash of what is in them
    user: str | None
    password: str | None

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


def read_broker(config: MqttConfig, resolve: Callable[[str], Path]) -> Broker:
    """With its secrets and certificates. Raises ConfigError for a file that cannot be used, or if the library that
    speaks to it is not installed."""
    if importlib.util.find_spec("aiomqtt") is None:
        raise ConfigError("sinks.mqtt: aiomqtt is not installed; pip install 'kwsd[mqtt]'", exit_code=UNAVAILABLE)
    parts = urlsplit(str(config.broker))
    secure = parts.scheme == "mqtts"
    user, password = (
        read_secret(named, resolve, f"sinks.mqtt.{key}") if named else None
        for key, named in (("user_file", config.user_file), ("password_file", config.password_file))
    )
    return Broker(
        host=str(parts.hostname),
        port=parts.port or (TLS_PORT if secure else PORT),
        tls=_tls(config, resolve) if secure else None,
        tls_files=_fingerprint(config, resolve) if secure else "",
        user=user,
        password=password,
    )


def _fingerprint(config: MqttConfig, resolve: Callable[[str], Path]) -> str:
    """Of certificates and key: when they are renewed, they keep their names."""
    content = hashlib.sha256()
    for setting in ("ca_file", "cert_file", "key_file"):
        named = getattr(config, setting)
        if named:
            with _blamed(setting, named, resolve) as path:
                content.update(path.read_bytes())
    return content.hexdigest()


def make_client(broker: Broker, **more: Any) -> "Client":
    from aiomqtt import Client

    return Client(
        broker.host,
        broker.port,
        username=broker.user,
        password=broker.password,
        tls_context=broker.tls,
        timeout=ANSWER_S,
        **more,
    )


async def greet(broker: Broker, site: str) -> bool:
    """Connects to a broker and hangs up; whether it lets us tell and read what is of the site.

    Raises ConfigError if it is not there, or does not let us in.
    """
    from aiomqtt import MqttError

    client = make_client(broker)
    topic = f"{Topics(site).base}/doctor"  # a broker says yes to what it then keeps from us: only an echo proves it
    try:
        async with client:
            await client.subscribe(topic, qos=1)
            await client.publish(topic, b"", qos=1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ECHO_S):
                    async for _ in client.messages:
                        return True
    except (MqttError, OSError, ValueError) as error:
        raise ConfigError(f"{broker.name}: {reason_of(error)}", exit_code=UNAVAILABLE) from None
    return False


def is_late(error: Exception) -> bool:
    """Whether the connection was given up because no answer came in time."""
    return "timed out" in str(error)


def reason_of(error: Exception) -> str:
    """Without the number that the library puts in front."""
    return re.sub(r"^\[code:\d+\] ", "", str(error))


def _tls(config: MqttConfig, resolve: Callable[[str], Path]) -> ssl.SSLContext:
    context = trusting()
    if config.ca_file is not None:
        with _blamed("ca_file", config.ca_file, resolve) as path:
            context = trusting(path)
    if config.cert_file is not None:
        key = None
        if config.key_file is not None:
            with _blamed("key_file", config.key_file, resolve) as key:
                key.read_bytes()
        with _blamed("cert_file", config.cert_file, resolve) as path:
            context.load_cert_chain(path, key, password=functools.partial(_nobody_knows, config))
    return context


def _nobody_knows(config: MqttConfig) -> str:
    """The passphrase of a key: else one would be asked for on the terminal."""
    setting, named = ("key_file", config.key_file) if config.key_file else ("cert_file", config.cert_file)
    raise ConfigError(f"sinks.mqtt.{setting}: {named}: its key has a passphrase; take it off by openssl pkey")


@contextlib.contextmanager
def _blamed(key: str, named: str, resolve: Callable[[str], Path]) -> Iterator[Path]:
    """Raises ConfigError for what is wrong with a file."""
    path = credential(named, f"sinks.mqtt.{key}") or resolve(named)
    try:
        yield path
    except PermissionError:
        raise ConfigError(f"sinks.mqtt.{key}: {path}: permission denied", exit_code=NO_PERMISSION) from None
    except OSError as error:  # ssl.SSLError is one
        what = "is no PEM, or does not fit its key" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"sinks.mqtt.{key}: {path}: {what}") from None


class _AtOnce:
    """An event loop that does what it is asked to in its own thread at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._thread = loop, threading.get_ident()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, call: Callable[..., object], *arguments: object) -> None:
        if threading.get_ident() == self._thread:
            call(*arguments)
        else:
            self._loop.call_soon_threadsafe(call, *arguments)


def watch_while_open(client: "Client") -> None:
    """The library has a connection watched a moment later, by its number. When that comes it may be closed, and the
    number be nobody's, which would end us, or somebody else's."""
    loop = _AtOnce(asyncio.get_running_loop())
    client._loop = cast("asyncio.AbstractEventLoop", loop)

    def while_open(watch: Callable[..., None]) -> Callable[..., None]:
        def now(paho: object, data: object, connection: socket.socket) -> None:
            if connection.fileno() >= 0:
                watch(paho, data, connection)

        return lambda *arguments: loop.call_soon_threadsafe(now, *arguments)

    client._client.on_socket_open = while_open(client._on_socket_open)
    client._client.on_socket_register_write = while_open(client._on_socket_register_write)


def let_go(client: "Client") -> None:
    """Of whatever is open, or will be: a thread may still be connecting."""
    client._client.on_socket_open = lambda _client, _data, connection: connection.close()
    connection = client._client.socket()
    if connection is not None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(connection)
            loop.remove_writer(connection)
        connection.close()
    if client._misc_task is not None:
        client._misc_task.cancel()
