"""Artefacts in ONNX, run by ONNX Runtime on the CPU, without torch."""

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from kwsd.artefact import METADATA, Artefact, ArtefactInfo, open_onnx
from kwsd.errors import UNAVAILABLE, ConfigError, ModelError
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores

BATCH = 32  # windows at once: of 1 to 256 the cheapest per window
States = NDArray[np.float32]  # (streams, state)


class OnnxSpotter:
    """A network that takes whole windows."""

    def __init__(self, info: ArtefactInfo, session: onnxruntime.InferenceSession) -> None:
        self.info, self._session = info, session

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        return self._run(samples=windows)[0]

    def _run(self, **inputs: Samples | Indices) -> tuple[Scores, ...]:
        try:
            log_probs, *after = self._session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's own exceptions have no other base in common
            raise ModelError(f"{self.info.architecture}: inference failed: {str(error).splitlines()[0]}") from None
        return np.exp(log_probs), *after


class IncrementalOnnxSpotter(OnnxSpotter):
    """A network that takes samples, the state before them, and where in them hops end. A window on a state of zeros is
    a window on its own."""

    def __init__(self, info: ArtefactInfo, session: onnxruntime.InferenceSession) -> None:
        super().__init__(info, session)
        self._state = int(session.get_inputs()[1].shape[1])  # floats per stream
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
        ends = self._ends_of(samples.shape[1], hops)
        if len(streams) == len(states) == 1:  # one microphone
            posteriors, states[:] = self._run(samples=samples, state=states, ends=ends)
            return posteriors[None]
        posteriors = np.empty((len(streams), hops, len(self.info.labels)), np.float32)
        size = max(1, BATCH // hops)
        for start in range(0, len(streams), size):
            some = slice(start, start + size)
            scores, after = self._run(samples=samples[some], state=states[streams[some]], ends=ends)
            posteriors[some], states[streams[some]] = scores.reshape(-1, *posteriors.shape[1:]), after
        return posteriors

    def _ends_of(self, size: int, hops: int) -> Indices:
        """Which of the network's steps in so many samples are the last of a hop."""
        ends = self._ends.get((size, hops))
        if ends is None:
            assert self.info.step is not None
            ends = self._ends[size, hops] = np.arange(1, hops + 1) * (size // hops // self.info.step) - 1
        return ends


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
    if len(shapes) != 3 or len(shapes[1]) != 2 or not isinstance(shapes[1][1], int):
        raise ModelError(f"{path}: cannot be advanced, although its {METADATA} says so; export it again")
    return IncrementalOnnxSpotter(info, session)
