"""sd_notify(3): READY, STATUS, WATCHDOG, RELOADING, STOPPING. Silent where systemd is not listening."""

import contextlib
import os
import socket
import time


class Notifier:
    """Sends to `$NOTIFY_SOCKET`. Never blocks and never raises: losing a notice must not stop the daemon."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # Half the time systemd allows, so that one late notice does not end the daemon.
        self._alive_every = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        self._alive_at = 0.0

    def ready(self, status: str) -> None:
        """The daemon listens, or listens again after a reload."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    @property
    def is_heard(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    @property
    def is_due(self) -> bool:
        """Whether `alive` would tell anything. Cheap to ask often, from any thread."""
        return self._alive_every > 0.0 and time.monotonic() - self._alive_at >= self._alive_every

    def alive(self) -> None:
        """Audio reached the model."""
        if self.is_due:
            self._alive_at = time.monotonic()
            self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon ends."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def _send(self, message: str) -> None:
        if self._address:
            with contextlib.suppress(OSError):  # systemd restarts what it no longer hears
                self._socket.sendto(message.encode(), self._address)
