"""Where events go. A sink is `(event, line) -> None`, never waits, and is told once when it is over."""

from typing import Protocol

from kwsd.event import Event, Line


class Sink(Protocol):
    """Takes events, each with its line, on the main thread; slow readers are its own problem."""

    def __call__(self, event: Event, line: Line, /) -> None: ...

    async def close(self) -> None:
        """Deliver what can be delivered at once, then let go."""
        ...
