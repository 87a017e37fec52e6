"""Somebody who reads events: a bounded queue of the lines that are wanted."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from kwsd.control import Subscribe
from kwsd.event import Dropped, Event, Line, Scores, unnumbered


class Reader:
    """One connection. What it is too slow for, it loses, oldest first, and is told."""

    def __init__(self, queue: int, hello: Line) -> None:
        self.wish = Subscribe()
        self._lines: deque[Line] = deque([hello])
        self._queue = queue
        self._dropped = 0
        self._ready = asyncio.Event()
        self._ready.set()
        self._closed = False

    def tell(self, event: Event | Scores, line: Line) -> None:
        """Queue the line of an event, if it is wanted."""
        if self.wish.wants(event):
            self.put(line)

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

    async def lines(self) -> AsyncIterator[Line]:
        """As they come, until closed."""
        while await self._ready.wait():
            if self._dropped:
                count, self._dropped = self._dropped, 0
                yield unnumbered(Dropped(count=count))
            elif self._lines:
                yield self._lines.popleft()
            elif self._closed:
                return
            else:
                self._ready.clear()
