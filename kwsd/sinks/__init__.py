"""Where events go. A sink is `(line) -> None`, never waits, and is told once when it is over."""

from typing import Protocol

from kwsd.event import Line


class Sink(Protocol):
    """Takes event lines on the main thread; slow readers are its own problem."""

    def __call__(self, line: Line) -> None: ...

    async def close(self) -> None:
        """Deliver what can be delivered at once, then let go."""
        ...
