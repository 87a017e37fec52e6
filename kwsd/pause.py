"""Whether somebody who sends audio as time passes has paused: then what is said later is nothing that goes on."""

LEAST_S = 1.0  # without anything
MOST_S = 10.0  # the same, from who sends in long lumps
ATTENTIVE_S = 1.0  # a look counts for so long at most: who was stopped himself cannot blame the sender
MELTING = 1.25  # times as fast as time what came at once is used up: else who caught up was ahead for ever
FORGETTING = 0.1  # of the time that passes, the longest lump so far counts for less


class Pause:
    """Who sends in lumps, as recorders and networks that stumble do, is waited for twice as long as those last."""

    __slots__ = ("_came_at", "_looked_at", "_missing_s", "_usual_s", "at_once_s")

    def __init__(self, now: float) -> None:
        """Times are monotonic seconds."""
        self._came_at = self._looked_at = now
        self._usual_s = self._missing_s = 0.0
        self.at_once_s = 0.0  # how much more came of late than time passed

    def note(self, now: float, seconds: float) -> None:
        """So much audio came."""
        waited = now - self._came_at
        self.at_once_s = max(0.0, self.at_once_s - MELTING * waited) + seconds
        self._usual_s = max(self.at_once_s, self._usual_s - FORGETTING * waited)
        self._came_at = self._looked_at = now
        self._missing_s = 0.0

    def look(self, now: float) -> bool:
        """Whether this is a pause. To be asked every now and then."""
        self._missing_s += min(now - self._looked_at, ATTENTIVE_S)
        self._looked_at = now
        return self._missing_s > min(max(LEAST_S, 2 * self._usual_s), MOST_S)
