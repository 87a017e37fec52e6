"""What engines have in common that have one function for all: samples and a state to posteriors and the state after
them. A window on a state of zeros is a window on its own, as it pushes everything before it out."""

import numpy as np
from numpy.typing import NDArray

from kwsd.artefact import ArtefactInfo
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores

States = NDArray[np.float32]  # (streams, state)


class Hops:
    """A HopSpotter but for `advance`."""

    def __init__(self, info: ArtefactInfo, state: int) -> None:
        self.info = info
        self._state = state  # floats per stream
        self._ends: dict[tuple[int, int], Indices] = {}  # by samples and hops

    def states(self, streams: int) -> States:
        """Zeros (streams, state)."""
        return np.zeros((streams, self._state), np.float32)

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        return self.begin(windows, self.states(len(windows)), np.arange(len(windows)))

    def begin(self, windows: Samples, states: States, streams: Indices) -> Scores:
        """Windows (n, 16000) of n distinct streams to posteriors (n, labels). Raises ModelError if it fails."""
        states[streams] = 0.0
        return self.advance(windows, states, streams, 1)[:, 0]

    def advance(self, samples: Samples, states: States, streams: Indices, hops: int) -> Scores:
        """Samples (n, hops * hop) of n distinct streams to posteriors (n, hops, labels). Raises ModelError if it
        fails."""
        raise NotImplementedError

    def ends(self, size: int, hops: int) -> Indices:
        """Which of the network's steps in so many samples are the last of a hop."""
        ends = self._ends.get((size, hops))
        if ends is None:
            assert self.info.step is not None
            ends = self._ends[size, hops] = np.arange(1, hops + 1) * (size // hops // self.info.step) - 1
        return ends
