"""A cascade (Viola & Jones 2001): one network hears everything, and where it suspects a keyword a second is asked.

Where nobody says a word that is a few windows in a hundred, so the second may be large. What two networks of different
kinds agree on is seldom wrong: the music that one takes for a word the other mostly does not.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

from kwsd.ring import Samples
from kwsd.spotter import Scores, Spotter

SUSPECTED = 0.2  # from this score of a keyword on the second network is asked
SECOND_SHARE = 0.7  # of the score that then counts; the rest is the first's


def stages(spotter: Spotter) -> tuple[Spotter, ...]:
    """The networks of a cascade, or the one there is."""
    return (spotter.first, spotter.second) if isinstance(spotter, Cascade) else (spotter,)


class Cascade:
    """Two models with the same labels, in any order, as one Spotter."""

    def __init__(self, first: Spotter, second: Spotter) -> None:
        self.first, self.second = first, second
        both = f"{first.info.architecture} and {second.info.architecture}"
        self.info = msgspec.structs.replace(first.info, architecture=both)
        self.engine = first.engine if first.engine == second.engine else f"{first.engine}, {second.engine}"
        self._keywords = np.array([not label.startswith("_") for label in first.info.labels])
        self._order = [second.info.labels.index(label) for label in first.info.labels]
        self.heard = self.asked = 0  # windows since it was loaded, and of how many of them the second was asked

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if a network fails."""
        posteriors = self.first.score(windows)
        suspects = self.suspects(posteriors)
        if not suspects.size:
            return posteriors
        return self.judged(posteriors, suspects, self.second.score(windows[suspects]))

    def suspects(self, posteriors: Scores) -> NDArray[np.intp]:
        """The rows of the first's posteriors (n, labels) that the second is to be asked about."""
        rows = np.flatnonzero((posteriors[:, self._keywords] >= SUSPECTED).any(1))
        self.heard += len(posteriors)
        self.asked += len(rows)
        return rows

    def judged(self, posteriors: Scores, suspects: NDArray[np.intp], second: Scores) -> Scores:
        """The first's posteriors (n, labels) with what the second says of some of its rows (suspects, labels)."""
        after = posteriors.copy()
        after[suspects] += SECOND_SHARE * (second[:, self._order] - posteriors[suspects])
        return after
