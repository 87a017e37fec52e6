"""What the pipeline needs of a model, whichever engine runs it: windows in, posteriors out."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kwsd.artefact import ArtefactInfo
from kwsd.audio_format import WINDOW
from kwsd.errors import ModelError
from kwsd.ring import Indices, Samples

Scores = NDArray[np.float32]  # (n, labels)


class Spotter(Protocol):
    """What the pipeline needs of a model."""

    info: ArtefactInfo
    engine: str  # for people

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1."""
        ...


@runtime_checkable
class HopSpotter(Spotter, Protocol):
    """A model that goes on from a state, so that what windows share is computed once."""

    def states(self, streams: int) -> Any:
        """Room for the states of so many streams, to be handed to `begin` and `advance`."""
        ...

    def begin(self, windows: Samples, states: Any, streams: Indices) -> Scores:
        """Windows (n, 16000) of n distinct streams to posteriors (n, labels); their states go on from there."""
        ...

    def advance(self, samples: Samples, states: Any, streams: Indices, hops: int) -> Scores:
        """The next samples (n, hops * hop) of n distinct streams, in ascending order, to the posteriors
        (n, hops, labels) of the window that ends with each hop."""
        ...


def try_out(spotter: Spotter) -> None:
    """Score silence in every form the model has, twice: some engines compile on the second call.

    Raises ModelError unless each gave one probability per label.
    """
    labels = len(spotter.info.labels)
    for _ in range(2):
        check_output(spotter.score(np.zeros((1, WINDOW), np.float32)), labels)
    if isinstance(spotter, HopSpotter) and spotter.info.step is not None:
        states, stream = spotter.states(1), np.zeros(1, np.int64)
        check_output(spotter.begin(np.zeros((1, WINDOW), np.float32), states, stream), labels)
        for _ in range(2):
            new = np.zeros((1, spotter.info.step), np.float32)
            check_output(spotter.advance(new, states, stream, 1)[:, 0], labels)


def check_output(posteriors: NDArray[np.float32], labels: int) -> None:
    """Raises ModelError unless one window gave one probability per label."""
    if posteriors.shape != (1, labels):
        raise ModelError(
            f"gives {list(posteriors.shape)} for one window, not [1, {labels}] as its labels say; export it again"
        )
    if not np.isfinite(posteriors).all() or abs(float(posteriors.sum()) - 1.0) > 1e-3:
        raise ModelError("its outputs are not log-probabilities (their exponentials do not sum to 1); export it again")
