"""Artefacts in ONNX, run by ONNX Runtime on the CPU, without torch."""

import contextlib
import io

import numpy as np
import onnxruntime  # type: ignore[import-untyped]

from kwsd.artefact import METADATA, Artefact, ArtefactInfo
from kwsd.engines.hops import Hops, States
from kwsd.errors import UNAVAILABLE, ModelError, is_of_memory
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores

Inputs = dict[str, Samples | States | Indices]
BATCH = 32  # windows at once: of 1 to 256 the cheapest per window


class OnnxSpotter:
    """A network that takes whole windows."""

    engine = "ONNX Runtime"

    def __init__(self, info: ArtefactInfo, session: onnxruntime.InferenceSession) -> None:
        self.info, self._session = info, session

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        return _run(self.info, self._session, {"samples": windows})[0]


class IncrementalOnnxSpotter(Hops):
    """A network that takes samples, the state before them, and where in them hops end."""

    engine = "ONNX Runtime"

    def __init__(self, info: ArtefactInfo, session: onnxruntime.InferenceSession) -> None:
        super().__init__(info, int(session.get_inputs()[1].shape[1]))
        self._session = session

    def advance(self, samples: Samples, states: States, streams: Indices, hops: int) -> Scores:
        """Samples (n, hops * hop) of n distinct streams to posteriors (n, hops, labels). Raises ModelError if it
        fails."""
        ends = self.ends(samples.shape[1], hops)
        if len(streams) == len(states) == 1:  # one microphone
            posteriors, states[:] = _run(self.info, self._session, {"samples": samples, "state": states, "ends": ends})
            return posteriors[None]
        posteriors = np.empty((len(streams), hops, len(self.info.labels)), np.float32)
        size = max(1, BATCH // hops)
        for start in range(0, len(streams), size):
            some = slice(start, start + size)
            inputs: Inputs = {"samples": samples[some], "state": states[streams[some]], "ends": ends}
            scores, after = _run(self.info, self._session, inputs)
            posteriors[some], states[streams[some]] = scores.reshape(-1, *posteriors.shape[1:]), after
        return posteriors


def load(artefact: Artefact) -> OnnxSpotter | IncrementalOnnxSpotter:
    """Raises ModelError if ONNX Runtime cannot load it."""
    path, info = artefact.path, artefact.info
    session = _open(artefact)
    if info.step is None:
        return OnnxSpotter(info, session)
    shapes = [given.shape for given in session.get_inputs()]
    if len(shapes) != 3 or len(shapes[1]) != 2 or not isinstance(shapes[1][1], int):
        raise ModelError(f"{path}: cannot be advanced, although its {METADATA} says so; export it again")
    return IncrementalOnnxSpotter(info, session)


def _open(artefact: Artefact) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # one window is too little work to share
    options.log_severity_level = 4  # what is wrong with a file we say ourselves
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # where it prints of some files what it raises as well
            return onnxruntime.InferenceSession(artefact.data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no other base in common
        if is_of_memory(error):
            raise ModelError(f"{artefact.path}: memory is full; free some", exit_code=UNAVAILABLE) from None
        raise ModelError(
            f"{artefact.path}: ONNX Runtime cannot load it (truncated or damaged?); export it again"
        ) from None


def _run(info: ArtefactInfo, session: onnxruntime.InferenceSession, inputs: Inputs) -> tuple[Scores, ...]:
    """Posteriors, and what else the network gives."""
    try:
        log_probs, *after = session.run(None, inputs)
    except Exception as error:  # ONNX Runtime's own exceptions have no other base in common
        why = (str(error).splitlines() or [repr(error)])[0]
        raise ModelError(f"{info.architecture}: inference failed: {why}", exit_code=UNAVAILABLE) from None
    return np.exp(log_probs), *after
