"""Our own engine: S-TCN, DS-TCN and BC-ResNet in ONNX, run on the CPU by a few hundred lines of C (native.c) instead of
a library.

A small network spends most of its time in a library that can run any: the library's code, more than the weights, is
what has to come back into the caches after every sleep. What this engine does not know, ONNX Runtime runs.
"""

import ctypes

import numpy as np

from kwsd import onnx_file
from kwsd.artefact import GEOMETRY, Artefact, ArtefactInfo
from kwsd.engines.hops import Hops, States
from kwsd.engines.layout import FAMILIES, Family, Layout, UnfitError, functions
from kwsd.errors import UNAVAILABLE, ModelError
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores

NO_MEMORY = -1  # as in native.c


class NativeSpotter(Hops):
    """A network of one of the families, by native.c."""

    engine = "native"

    def __init__(self, info: ArtefactInfo, family: Family, layout: Layout) -> None:
        self._layout = layout  # which has what the network points to
        self._network = ctypes.addressof(layout.network)
        state, self._advance = functions(family.name)
        self._step = family.step
        super().__init__(info, state(self._network))

    def advance(self, samples: Samples, states: States, streams: Indices, hops: int) -> Scores:
        """Samples (n, hops * hop) of n distinct streams to posteriors (n, hops, labels). Raises ModelError if there is
        no memory."""
        count, size = samples.shape
        which = np.ascontiguousarray(streams, np.int64)
        # C takes our word for it.
        assert size % (hops * self._step) == 0 and len(which) == count and states.shape[1] == self._state
        assert samples.dtype == states.dtype == np.float32
        assert samples.flags.c_contiguous and states.flags.c_contiguous
        posteriors = np.empty((count, hops, len(self.info.labels)), np.float32)
        failed = self._advance(
            self._network, samples.ctypes.data, size, count, which.ctypes.data, states.ctypes.data,
            self.ends(size, hops).ctypes.data, hops, posteriors.ctypes.data, len(states),
        )  # fmt: skip
        if failed == NO_MEMORY:
            raise ModelError(f"{self.info.architecture}: inference failed: out of memory", exit_code=UNAVAILABLE)
        assert not failed, "a stream without a state"
        return posteriors


def load(artefact: Artefact) -> NativeSpotter:
    """Raises UnfitError if native.c was not compiled, or does not know the network."""
    info = artefact.info
    family = FAMILIES.get(info.architecture.partition("-")[0])
    if family is None:
        raise UnfitError(f"it does not know {info.architecture}")
    if info.features != GEOMETRY or info.step != family.step:
        raise UnfitError(f"it knows {info.architecture} on other log-mel frames")
    try:
        weights = onnx_file.weights(artefact.data)
    except ValueError as error:
        raise UnfitError(f"it cannot read the weights: {error}") from None
    try:
        with np.errstate(all="ignore"):  # it looks at what comes of it
            layout = family.lay_out(weights, len(info.labels))
    except ValueError as error:
        raise UnfitError(f"its weights are of no shape that it knows: {error}") from None
    return NativeSpotter(info, family, layout)
