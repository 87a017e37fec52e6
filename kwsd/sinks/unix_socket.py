"""Events on a UNIX socket: many readers, each with a bounded queue of its own, who may give commands."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from kwsd.address import Address
from kwsd.control import Command, Subscribe, parse
from kwsd.door import Doors
from kwsd.errors import NO_PERMISSION, ConfigError
from kwsd.event import Answer, Event, Line, Refused, Scores, Shutdown, unnumbered
from kwsd.sinks.reader import Reader

MOST_READERS = 512  # so that descriptors are left for all else
LONGEST_COMMAND = 1 << 16  # bytes
FLUSH_S = 0.3  # how long `close` waits for readers
REOPENED = "this socket is closed, or opened anew with other settings; connect again to see how it is"
FORBIDDEN = "sinks.socket.control is false: readers of this socket give no commands"


Obey = Callable[[Command], Awaitable[Answer]]


class UnixSocket:
    """Listens at a path. Open it with `await UnixSocket.open(…)`."""

    def __init__(
        self, path: Path, queue: int, hello: Callable[[], Line], watched: Callable[[], None], obey: Obey | None
    ) -> None:
        self.path = path
        self._on_watched, self._obey = watched, obey
        self._queue, self._hello = queue, hello
        self._readers: dict[Reader, asyncio.Task[None]] = {}
        self._busy: set[Reader] = set()  # those whose command is being carried out
        self._closed = False
        self._ends = False  # the last event was told
        self._doors = Doors("sinks.socket.path")

    @classmethod
    async def open(
        cls,
        path: Path,
        queue: int,
        hello: Callable[[], Line],
        *,
        group: str | None = None,
        watched: Callable[[], None] = lambda: None,
        obey: Obey | None = None,
    ) -> "UnixSocket":
        """Bind and listen. `hello` makes the first line for a reader; besides us, only a group may read. `watched` is
        called when `self.watched` may have changed, `obey` for commands; None: readers may give none.

        Raises ConfigError or KwsdError if the folder is missing, forbidden, or another daemon answers there.
        """
        sink = cls(path, queue, hello, watched, obey)
        await sink._doors.open(Address(str(path), path), group, sink._welcome)
        return sink

    def __call__(self, event: Event | Scores, line: Line) -> None:
        """Queue a line for every reader that wants it."""
        self._ends = isinstance(event, Shutdown)
        for reader in self._readers:
            reader.tell(event, line)

    @property
    def watched(self) -> bool:
        """Whether a reader asked for scores."""
        return any(reader.wish.scores for reader in self._readers)

    async def close(self) -> None:
        """Let nobody in any more, and readers have what is queued, shortly."""
        self._closed = True
        await self._doors.close()
        # A reload that closes this socket cannot be waited for; and it is not the end, of which readers are told.
        for reader in self._busy if self._ends else self._readers:
            reader.put(unnumbered(Refused(reason=REOPENED)))
        for reader in self._readers:
            reader.close()
        if self._readers:
            _, late = await asyncio.wait(self._readers.values(), timeout=FLUSH_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _welcome(self) -> asyncio.BaseProtocol:
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(LONGEST_COMMAND), self._serve)

    async def _listen_to(self, reader: Reader, incoming: asyncio.StreamReader) -> None:
        """Returns when the reader hung up. What is no command is answered once, and all after it thrown away."""
        with contextlib.suppress(OSError):
            try:
                while line := await _line(incoming):
                    command = parse(line)
                    self._busy.add(reader)
                    reader.put(unnumbered(await self._answer(reader, command)))
                    self._busy.discard(reader)
                    await asyncio.sleep(0)  # many commands at once keep nobody else waiting
            except ConfigError as error:
                reader.put(unnumbered(Refused(reason=str(error))))
        with contextlib.suppress(OSError):
            while await incoming.read(LONGEST_COMMAND):
                pass

    async def _answer(self, reader: Reader, command: Subscribe | Command) -> Answer:
        if isinstance(command, Subscribe):
            reader.wish = command
            self._on_watched()
            return Answer(to="subscribe", ok=True, id=command.id)
        if self._obey is None:
            to = str(command.__struct_config__.tag)
            return Answer(to=to, ok=False, id=command.id, error=FORBIDDEN, exit_code=NO_PERMISSION)
        return await self._obey(command)

    async def _serve(self, incoming: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closed or len(self._readers) >= MOST_READERS:  # it came just before, and is served only now
            reason = REOPENED if self._closed else f"there are {MOST_READERS} readers already"
            writer.write(unnumbered(Refused(reason=reason)))
            writer.close()
            return
        reader = Reader(self._queue, self._hello())
        serving = asyncio.current_task()
        assert serving is not None
        self._readers[reader] = serving
        sending = asyncio.create_task(_send(reader, writer))
        gone = asyncio.create_task(self._listen_to(reader, incoming))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the daemon stops, and this reader does not read
        finally:
            del self._readers[reader]
            self._busy.discard(reader)
            self._on_watched()
            for task in (sending, gone):
                task.cancel()
            for error in await asyncio.gather(sending, gone, return_exceptions=True):
                if isinstance(error, Exception) and not isinstance(error, OSError):  # which nobody expected
                    context = {"message": "a reader of the events socket", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _line(incoming: asyncio.StreamReader) -> bytes:
    """The next one, b"" at the end. Raises ConfigError for one that is too long."""
    try:
        return await incoming.readline()
    except ValueError:
        raise ConfigError(f"a command is at most {LONGEST_COMMAND} bytes long") from None


async def _send(reader: Reader, writer: asyncio.StreamWriter) -> None:
    """Until closed, or the reader is gone."""
    writer.transport.set_write_buffer_limits(high=0)  # drain waits until the kernel took it all
    async for line in reader.lines():
        writer.write(line)
        await writer.drain()
