"""Events on a UNIX socket: many readers, each with a bounded queue of its own."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kwsd.door import bind
from kwsd.errors import CONFIG, NO_PERMISSION, ConfigError
from kwsd.event import Dropped, Line, unnumbered

FLUSH_S = 0.3  # how long `close` waits for readers


class Reader:
    """One connection. What it is too slow for, it loses, oldest first, and is told."""

    def __init__(self, queue: int, hello: Line) -> None:
        self._lines: deque[Line] = deque([hello])
        self._queue = queue
        self._dropped = 0
        self._ready = asyncio.Event()
        self._ready.set()
        self._closed = False

    def put(self, line: Line) -> None:
        """Queue a line."""
        if len(self._lines) >= self._queue:
            self._lines.popleft()
            self._dropped += 1
        self._lines.append(line)
        self._ready.set()

    def close(self) -> None:
        """No more lines will come."""
        self._closed = True
        self._ready.set()

    async def send_to(self, writer: asyncio.StreamWriter) -> None:
        """Write until closed, or the reader is gone."""
        writer.transport.set_write_buffer_limits(high=0)  # drain waits until the kernel took it all
        while await self._ready.wait():
            if self._dropped:
                count, self._dropped = self._dropped, 0
                writer.write(unnumbered(Dropped(count=count)))
            elif self._lines:
                writer.write(self._lines.popleft())
            elif self._closed:
                return
            else:
                self._ready.clear()
                continue
            await writer.drain()


class UnixSocket:
    """Listens at a path. Open it with `await UnixSocket.open(…)`."""

    def __init__(self, path: Path, queue: int, hello: Callable[[], Line]) -> None:
        self.path = path
        self._queue, self._hello = queue, hello
        self._readers: dict[Reader, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None
        self._inode = -1

    @classmethod
    async def open(cls, path: Path, queue: int, hello: Callable[[], Line], group: str | None = None) -> "UnixSocket":
        """Bind and listen. `hello` makes the first line for a reader; besides us, only a group may read.

        Raises ConfigError or KwsdError if the folder is missing, forbidden, or another daemon answers there.
        """
        sink = cls(path, queue, hello)
        listener = bind(path, "sinks.socket.path", group)
        sink._inode = path.stat().st_ino
        sink._server = await asyncio.start_unix_server(sink._serve, sock=listener)
        return sink

    def __call__(self, line: Line) -> None:
        """Queue a line for every reader."""
        for reader in self._readers:
            reader.put(line)

    async def close(self) -> None:
        """Let readers have what is queued, shortly; then remove the socket file if it is still ours."""
        assert self._server is not None
        self._server.close()
        for reader in self._readers:
            reader.close()
        if self._readers:
            _, late = await asyncio.wait(self._readers.values(), timeout=FLUSH_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        with contextlib.suppress(OSError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    async def _serve(self, incoming: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader = Reader(self._queue, self._hello())
        serving = asyncio.current_task()
        assert serving is not None
        self._readers[reader] = serving
        sending = asyncio.create_task(reader.send_to(writer))
        gone = asyncio.create_task(_until_gone(incoming))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the daemon stops, and this reader does not read
        finally:
            del self._readers[reader]
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _until_gone(incoming: asyncio.StreamReader) -> None:
    """Returns when the reader hung up. What it says is thrown away."""
    with contextlib.suppress(OSError):
        while await incoming.read(4096):
            pass


def default_path() -> Path:
    """`$RUNTIME_DIRECTORY/events.sock` under systemd, else `$XDG_RUNTIME_DIR/kwsd/events.sock`, for root `/run/kwsd`.

    The folder is made where it is missing. Raises ConfigError if there is no such place.
    """
    systemd = os.environ.get("RUNTIME_DIRECTORY")
    if systemd:
        return Path(systemd.split(":")[0]) / "events.sock"
    user = os.environ.get("XDG_RUNTIME_DIR")
    if user:
        folder = Path(user) / "kwsd"
    elif os.geteuid() == 0:
        folder = Path("/run/kwsd")
    else:
        raise ConfigError(
            "sinks.socket.path: auto finds no place ($XDG_RUNTIME_DIR is not set); "
            "name a path, or say sinks.socket.enabled: false"
        )
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"sinks.socket.path: auto: {folder} cannot be made ({error.strerror}); name a path, "
            "or say sinks.socket.enabled: false",
            exit_code=NO_PERMISSION if isinstance(error, PermissionError) else CONFIG,
        ) from None
    return folder / "events.sock"
