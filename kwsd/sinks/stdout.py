"""Events on standard output, written by a thread of its own so that a reader who pauses stops nobody."""

import asyncio
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from kwsd.aside import start
from kwsd.event import Dropped, Event, Line, unnumbered

QUEUE = 1024  # lines kept for a reader that is slow
FLUSH_S = 0.3  # how long `close` waits for it, and ...
MOST_S = 2.0  # ... for our own thread, where the reader reads
LOOK_S = 0.005


class Stdout:
    """Writes lines to a file descriptor. `broken` is called, once and from the thread, when the reader is gone."""

    def __init__(self, broken: Callable[[OSError], None], fd: int = 1) -> None:
        self._fd, self._broken = fd, broken
        self._lines: deque[Line] = deque()
        self._dropped = 0
        self._ready = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write_all, name="stdout", daemon=True)
        start(self._thread)

    def __call__(self, _: Event, line: Line) -> None:
        """Queue a line; the oldest goes if the queue is full."""
        with self._ready:
            if len(self._lines) >= QUEUE:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append(line)
            self._ready.notify()

    async def close(self) -> None:
        """Write what is queued, but do not wait long for a reader that does not read."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        begun = time.monotonic()
        while self._thread.is_alive() and time.monotonic() - begun < (MOST_S if self._has_room() else FLUSH_S):
            await asyncio.sleep(LOOK_S)

    def _has_room(self) -> bool:
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        return bool(room.poll(0))

    def _next(self) -> Line | None:
        with self._ready:
            self._ready.wait_for(lambda: self._lines or self._closed)
            if self._dropped:
                count, self._dropped = self._dropped, 0
                return unnumbered(Dropped(count=count))
            return self._lines.popleft() if self._lines else None

    def _write(self, line: Line) -> int:
        """Bytes written, as soon as there is room. Whoever made the pipe may have made it one that does not wait."""
        try:
            return os.write(self._fd, line)
        except BlockingIOError:
            room = select.poll()
            room.register(self._fd, select.POLLOUT)
            room.poll()
            return 0

    def _write_all(self) -> None:
        try:
            while (line := self._next()) is not None:
                while line:
                    line = line[self._write(line) :]
        except OSError as error:
            self._broken(error)
