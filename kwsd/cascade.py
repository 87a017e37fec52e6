"""A cascade (Viola & Jones 2001): one network hears everything, and where it suspects a keyword a second is asked.

Where nobody says a word that is a few windows in a hundred, so the second may be large. What two networks of different
kinds agree on is seldom wrong: the music that one takes for a word the other mostly does not.
"""

import sys
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from kwsd.audio_format import SAMPLE_RATE
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores, Spotter

SUSPECTED = 0.2  # from this score of a keyword on the second network is asked
SECOND_SHARE = 0.7  # of the score that then counts; the rest is the first's
SURE = 0.8  # score of a keyword from which the second network has heard it
STILL = 0.4  # score of a keyword from which the first network hears it, too
AGREED = SAMPLE_RATE // 5  # samples for which both must have heard the same keyword until nobody asks any more
NEVER = sys.maxsize // 2  # a sample index
NO_LABEL = -1


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
        self.keywords = np.flatnonzero([not label.startswith("_") for label in first.info.labels])  # columns
        self._order = [second.info.labels.index(label) for label in first.info.labels]
        self.heard = self.asked = 0  # windows since it was loaded, and of how many of them the second was asked

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if a network fails."""
        posteriors = self.first.score(windows)
        suspects = self.suspects(posteriors)
        if not suspects.size:
            return posteriors
        return self.judged(posteriors, suspects, self.ordered(self.second.score(windows[suspects])))

    def suspects(self, posteriors: Scores) -> NDArray[np.intp]:
        """The rows of the first's posteriors (n, labels) that the second is to be asked about."""
        self.heard += len(posteriors)
        return np.flatnonzero((posteriors[:, self.keywords] >= SUSPECTED).any(1))

    def ordered(self, answers: Scores) -> Scores:
        """What the second says (n, labels), in the order of the first's labels; counted as asked."""
        self.asked += len(answers)
        return answers[:, self._order]

    def judged(self, posteriors: Scores, suspects: NDArray[np.intp], answers: Scores) -> Scores:
        """The first's posteriors (n, labels) with what the second says of some of its rows (suspects, labels)."""
        after = posteriors.copy()
        after[suspects] += SECOND_SHARE * (answers - posteriors[suspects])
        return after


class Answers:
    """What the second network said last in each stream, in the order of the first's labels.

    A word is in the windows of half a second and more. Once both networks have heard it in all of a fifth of a second,
    the answer holds for as long as the first goes on hearing that keyword and suspects no other: half of the
    questions are spared. Plain numbers, stream by stream: after a sleep a call of numpy costs as much as all of this.
    """

    def __init__(self, cascade: Cascade, streams: int, hop: int) -> None:
        self.hop, self._keywords = hop, cascade.keywords.tolist()
        self._answers = np.zeros((streams, len(cascade.info.labels)), np.float32)
        self._heard = [NO_LABEL] * streams  # the label that both heard last
        self._since = [NEVER] * streams  # the end of the first window in which they did
        self._suspect_at = [-NEVER] * streams  # the end of the last window that was suspect

    def of(self, streams: Indices) -> Scores:
        """The last answers (n, labels)."""
        return self._answers[streams]

    def hold(self, stream: int, end: int, posteriors: Sequence[float]) -> bool:
        """Whether they hold for a window that is suspect to the first network, with its posteriors (labels,)."""
        if end - self._suspect_at[stream] != self.hop:  # another word, or a gap
            self._since[stream] = NEVER
        self._suspect_at[stream] = end
        heard = self._heard[stream]
        if end - self._since[stream] < AGREED or posteriors[heard] < STILL:
            return False
        return all(posteriors[keyword] < SUSPECTED for keyword in self._keywords if keyword != heard)

    def note(self, stream: int, end: int, posteriors: Sequence[float], answer: Scores) -> None:
        """A new answer (labels,) about a window, and what the first network said of it."""
        self._answers[stream] = answer
        says = answer.tolist()
        best = max(self._keywords, key=says.__getitem__)
        if says[best] < SURE or posteriors[best] < STILL:
            self._since[stream] = NEVER
        elif best != self._heard[stream] or self._since[stream] == NEVER:
            self._heard[stream], self._since[stream] = best, end
