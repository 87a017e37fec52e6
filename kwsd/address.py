"""Where satellites connect: `tcp://127.0.0.1:7355` or `unix:PATH`."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kwsd.errors import ConfigError


@dataclass(frozen=True)
class Address:
    """Where to listen: a TCP port, or a UNIX socket at a path."""

    text: str
    path: Path | None = None
    host: str = ""
    port: int = 0

    @property
    def beyond(self) -> bool:
        """Whether other machines can reach it."""
        return self.path is None and not ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str, resolve: Callable[[str], Path]) -> Address:
    """`tcp://127.0.0.1:7355`, `tcp://[::1]:7355` or `unix:PATH`. Raises ConfigError for anything else."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(text, resolve(text.removeprefix("unix:").removeprefix("//")))
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host = str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
        if parts.scheme != "tcp" or port is None or parts.path or parts.query or parts.username:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{text} is no address; write tcp://127.0.0.1:7355 (an IP address and a port) or unix:PATH"
        ) from None
    return Address(text, None, host, port)


def url(host: str, port: int) -> str:
    """An IP address and a port as they are written in a config."""
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
