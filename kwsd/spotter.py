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
    """Score silence in every form the model has: one window, twice, as some engines compile on the second call, and
    several at once.

    Raises ModelError unless each gave one probability per label.
    """
    labels = len(spotter.info.labels)
    for windows in (1, 1, 2):
        check_output(spotter.score(np.zeros((windows, WINDOW), np.float32)), labels, windows)
    if isinstance(spotter, HopSpotter) and spotter.info.step is not None:
        for streams, hops in ((1, 1), (2, 2)):
            states, which = spotter.states(streams), np.arange(streams)
            check_output(spotter.begin(np.zeros((streams, WINDOW), np.float32), states, which), labels, streams)
            for _ in range(2):
                new = np.zeros((streams, hops * spotter.info.step), np.float32)
                scores = spotter.advance(new, states, which, hops)
                check_output(scores.reshape(-1, scores.shape[-1]), labels, streams * hops)


def check_output(posteriors: NDArray[np.float32], labels: int, windows: int = 1) -> None:
    """Raises ModelError unless so many windows gave one probability per label each."""
    if posteriors.shape != (windows, labels):
        raise ModelError(
            f"gives {list(posteriors.shape)} for {'one window' if windows == 1 else f'{windows} windows'}, not "
            f"[{windows}, {labels}] as its labels say; export it again"
        )
    if not np.isfinite(posteriors).all() or (np.abs(posteriors.sum(axis=1) - 1.0) > 1e-3).any():
        raise ModelError("its outputs are not log-probabilities (their exponentials do not sum to 1); export it again")
