"""Artefacts in ONNX, run by ONNX Runtime on the CPU, without torch."""

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from kwsd.artefact import METADATA, Artefact, ArtefactInfo, open_onnx
from kwsd.errors import UNAVAILABLE, ConfigError, ModelError
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores

BATCH = 32  # streams at once: of 1 to 256 the cheapest per stream
States = NDArray[np.float32]  # (streams, state)


class OnnxSpotter:
    """A network that takes whole windows."""

    def __init__(self, info: ArtefactInfo, session: onnxruntime.InferenceSession) -> None:
        self.info, self._session = info, session

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        return self._run(windows)[0]

    def _run(self, samples: Samples, *states: States) -> tuple[Scores, ...]:
        inputs = dict(zip(("samples", "state"), (samples, *states), strict=False))
        try:
            log_probs, *after = self._session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's own exceptions have no other base in common
            raise ModelError(f"{self.info.architecture}: inference failed: {str(error).splitlines()[0]}") from None
        return np.exp(log_probs), *after


class IncrementalOnnxSpotter(OnnxSpotter):
    """A network that takes samples and the state before them. A window on a state of zeros is a window on its own."""

    def __init__(self, info: ArtefactInfo, session: onnxruntime.InferenceSession) -> None:
        super().__init__(info, session)
        self._state = int(session.get_inputs()[1].shape[1])  # floats per stream

    def states(self, streams: int) -> States:
        """Zeros (streams, state)."""
        return np.zeros((streams, self._state), np.float32)

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        return self._run(windows, self.states(len(windows)))[0]

    def begin(self, windows: Samples, states: States, streams: Indices) -> Scores:
        """Windows (n, 16000) of n distinct streams to posteriors (n, labels). Raises ModelError if it fails."""
        posteriors = np.empty((len(streams), len(self.info.labels)), np.float32)
        for some in _parts(len(streams)):
            posteriors[some], states[streams[some]] = self._run(windows[some], self.states(len(windows[some])))
        return posteriors

    def advance(self, samples: Samples, states: States, streams: Indices, hops: int) -> Scores:
        """Samples (n, hops * hop) of n distinct streams to posteriors (n, hops, labels). Raises ModelError if it
        fails."""
        if len(streams) == len(states) == 1 == hops:  # one microphone
            posteriors, states[:] = self._run(samples, states)
            return posteriors[:, None]
        posteriors = np.empty((len(streams), hops, len(self.info.labels)), np.float32)
        for some in _parts(len(streams)):
            state = states[streams[some]]
            for i, hop in enumerate(np.split(samples[some], hops, axis=1)):
                posteriors[some, i], state = self._run(np.ascontiguousarray(hop), state)
            states[streams[some]] = state
        return posteriors


def _parts(n: int) -> list[slice]:
    """Rows 0 to n in batches that fit the cache with all that is reckoned in between."""
    return [slice(start, start + BATCH) for start in range(0, n, BATCH)]


def load(artefact: Artefact, device: str) -> OnnxSpotter:
    """Raises ModelError if ONNX Runtime cannot load it; ConfigError if it is to run on a GPU."""
    path, info = artefact.path, artefact.info
    if device == "cuda":
        raise ConfigError(
            f"device: cuda: {path} is ONNX, which runs on the CPU; use cpu, or a TorchScript artefact",
            exit_code=UNAVAILABLE,
        )
    session = open_onnx((path, artefact.data), optimise=True)
    if info.step is None:
        return OnnxSpotter(info, session)
    shapes = [given.shape for given in session.get_inputs()]
    if len(shapes) != 2 or len(shapes[1]) != 2 or not isinstance(shapes[1][1], int):
        raise ModelError(f"{path}: cannot be advanced, although its {METADATA} says so; export it again")
    return IncrementalOnnxSpotter(info, session)
