"""tcn.c for Python: its functions, its structures, and the weights of an ONNX file as it wants them to lie."""

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kwsd.mel import FFT, FLOOR, MELS, Floats, mel_filters, taper

LIBRARY = "kwsd.engines._tcn"  # as setup.py has it
INTERFACE, TILE, BLOCKS, STEM_KERNEL = 1, 16, 6, 5  # as in tcn.c
MOST_LANES = 16  # floats in the longest vectors it has code for
STCN_KERNELS, POOLED = (3, 3, 5, 5, 7, 7), 23  # as in networks/stcn.py
DSTCN_KERNELS, DSTCN_LAST_KERNEL = (7, 9, 11, 13, 15, 15), 15  # as in networks/dstcn.py
EPSILON = 1e-5  # of batch normalisation
LINE = 64  # bytes that a cache reads at once
Weights = dict[str, Floats]
Array = NDArray[np.float32] | NDArray[np.int64]


class UnfitError(Exception):
    """Why tcn.c does not run a model. ONNX Runtime does."""


class Mix(ctypes.Structure):
    """As in tcn.c."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Kernel(ctypes.Structure):
    """As in tcn.c."""

    _fields_ = (("size", ctypes.c_int64), ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class Network(ctypes.Structure):
    """As in tcn.c."""

    _fields_ = (
        ("taper", ctypes.c_void_p),
        ("turns", ctypes.c_void_p),
        ("begins", ctypes.c_void_p),
        ("lowest", ctypes.c_void_p),
        ("filters", ctypes.c_void_p),
        ("gain", ctypes.c_void_p),
        ("offset", ctypes.c_void_p),
        ("floor", ctypes.c_float),
        ("labels", ctypes.c_int32),
        ("stem", Mix),
        ("pointwise", Mix * BLOCKS),
        ("wide", Mix),
        ("last", Mix),
        ("classifier", Mix),
        ("depthwise", Kernel * BLOCKS),
        ("before_last", Kernel),
    )


@cache
def functions(family: str) -> tuple[Callable[..., int], Callable[..., int]]:
    """Of a family: how many floats a stream's state has, and how it advances. Raises UnfitError if tcn.c was not
    compiled, or not this one."""
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or spec.origin is None:
        raise UnfitError("it was not compiled, for want of a C compiler; with one, install kwsd again")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    try:
        library = ctypes.CDLL(spec.origin)
        interface, state, advance = library.tcn_interface, library[f"{family}_state"], library[f"{family}_advance"]
    except (OSError, AttributeError) as error:
        raise UnfitError(f"it cannot be loaded ({error}); install kwsd again") from None
    interface.restype, interface.argtypes = number, []
    state.restype, state.argtypes = number, [pointer]
    advance.restype = ctypes.c_int
    advance.argtypes = [pointer, pointer, number, number, pointer, pointer, pointer, number, pointer, number]
    if interface() != INTERFACE * 65536 + ctypes.sizeof(Network):
        raise UnfitError("it was compiled for another version; install kwsd again")
    library.tcn_lanes(number(MOST_LANES))
    return state, advance


class Layout:
    """A network for tcn.c, and the arrays it points to."""

    def __init__(self, weights: Weights, labels: int) -> None:
        self.network = Network(floor=FLOOR, labels=labels)
        self._weights, self._held = weights, list[Array]()
        self._lay_frames()

    def weight(self, name: str, *shape: int) -> Floats:
        """One of the file's, of this shape, where -1 is any size. Raises UnfitError if it has none such."""
        found = self._weights.get(name)
        if found is None or len(found.shape) != len(shape):
            raise UnfitError(f"it misses {name}")
        if any(size not in (-1, given) for size, given in zip(shape, found.shape, strict=True)):
            raise UnfitError(f"it finds {name} to be {list(found.shape)}")
        return found

    def normalise(self, gain: Floats, offset: Floats) -> None:
        """What becomes of log-mel frames, each (MELS,)."""
        self.network.gain, self.network.offset = self._hold(gain), self._hold(offset)

    def stem(self, weight: Floats, bias: Floats) -> Mix:
        """Weight (channels, MELS, 1, STEM_KERNEL): frames lie one after the other, each with all its mels."""
        return self._mix(weight[:, :, 0].transpose(0, 2, 1).reshape(len(weight), -1), bias)

    def mix(self, weight: Floats, bias: Floats) -> Mix:
        """Weight (outputs, inputs, …), whose last axes are 1, and bias (outputs,)."""
        flat = weight.reshape(len(weight), -1)
        return self._mix(np.pad(flat, ((0, 0), (0, -flat.shape[1] % TILE))), bias)

    def kernel(self, weight: Floats, bias: Floats | None = None) -> Kernel:
        """Weight (channels, 1, 1, size) and bias (channels,)."""
        channels, size = weight.shape[0], weight.shape[3]
        bias = np.zeros(channels, np.float32) if bias is None else bias
        return Kernel(size, self._hold(_filled(weight[:, 0, 0]).T), self._hold(_filled(bias)))

    def _mix(self, weight: Floats, bias: Floats) -> Mix:
        filled = _filled(weight)
        tiles = filled.reshape(-1, TILE, filled.shape[1]).transpose(0, 2, 1)  # (outputs / TILE, inputs, TILE)
        return Mix(filled.shape[1], filled.shape[0], self._hold(tiles), self._hold(_filled(bias)))

    def _lay_frames(self) -> None:
        angles = 2.0 * np.pi * np.arange(FFT // 2) / FFT
        turns = np.stack([np.cos(angles), -np.sin(angles)], 1).astype(np.float32)
        filters = mel_filters()  # (bins, MELS)
        bins = [np.flatnonzero(filters[:, m]) for m in range(MELS)]  # one after the other
        begins = np.cumsum([0, *(some.size for some in bins)])
        network = self.network
        network.taper, network.turns = self._hold(taper()), self._hold(turns)
        network.begins, network.lowest = self._hold(begins), self._hold(np.array([some[0] for some in bins]))
        network.filters = self._hold(np.concatenate([filters[some, m] for m, some in enumerate(bins)]))

    def _hold(self, array: Array) -> int:
        """Where a copy of it lies, at the beginning of a line of the cache."""
        room = np.zeros(array.size + LINE // array.itemsize, array.dtype)
        first = -room.ctypes.data % LINE // array.itemsize
        held = room[first : first + array.size]
        held[:] = array.ravel()
        self._held.append(held)
        return held.ctypes.data


def _filled(weight: Floats) -> Floats:
    """With zeros up to a multiple of TILE along the first axis."""
    return np.pad(weight, ((0, -len(weight) % TILE), *((0, 0),) * (weight.ndim - 1)))


def _stcn(weights: Weights, labels: int) -> Layout:
    """networks/stcn.py, `OnnxSTcn`."""
    layout = Layout(weights, labels)
    network, name = layout.network, "network.{}".format
    stem = layout.weight(name("stem.weight"), -1, MELS, 1, STEM_KERNEL)
    channels = len(stem)
    wide = len(layout.weight(name("wide.bias"), -1))
    layout.normalise(np.ones(MELS, np.float32), np.zeros(MELS, np.float32))  # that is in the stem

    def mix(layer: str, inputs: int, outputs: int, *rest: int) -> Mix:
        weight = layout.weight(name(f"{layer}.weight"), outputs, inputs, *rest)
        return layout.mix(weight, layout.weight(name(f"{layer}.bias"), outputs))

    network.stem = layout.stem(stem, layout.weight(name("stem.bias"), channels))
    for i in range(BLOCKS):
        network.depthwise[i] = layout.kernel(
            layout.weight(name(f"depthwise.{i}.weight"), channels, 1, 1, STCN_KERNELS[i])
        )
        network.pointwise[i] = mix(f"pointwise.{i}", channels, channels, 1, 1)
    network.wide, network.last = mix("wide", channels, wide, 1, 1), mix("last", wide, wide, 1, 1)
    pool = layout.weight(name("pool.weight"), wide, 1, 1, POOLED)
    network.before_last = layout.kernel(pool, layout.weight(name("pool.bias"), wide))
    network.classifier = mix("classifier", wide, labels)
    return layout


def _dstcn(weights: Weights, labels: int) -> Layout:
    """networks/dstcn.py, `DsTcn`. The exporter folds normalisations behind convolutions and then numbers these."""
    layout = Layout(weights, labels)
    network, name = layout.network, "body.network.{}".format
    folded = [key for key in weights if key.startswith("onnx::Conv_")]  # weight and bias, in the order of the layers
    if len(folded) != 2 * (BLOCKS + 3):
        raise UnfitError(f"it finds {len(folded)} weights of convolutions")
    stem = layout.weight(folded[0], -1, MELS, 1, STEM_KERNEL)
    channels, wide = len(stem), len(layout.weight(folded[-1], -1))

    def mix(layer: int, inputs: int, outputs: int) -> Mix:
        weight = layout.weight(folded[2 * layer], outputs, inputs, 1, 1)
        return layout.mix(weight, layout.weight(folded[2 * layer + 1], outputs))

    def kernel(layer: str, size: int) -> Kernel:
        return layout.kernel(layout.weight(name(layer), channels, 1, 1, size))

    scale, offset, mean, variance = (
        layout.weight(name(f"normalise.{what}"), MELS) for what in ("weight", "bias", "running_mean", "running_var")
    )
    gain = scale / np.sqrt(variance + np.float32(EPSILON))
    layout.normalise(gain, offset - mean * gain)
    network.stem = layout.stem(stem, layout.weight(folded[1], channels))
    for i in range(BLOCKS):
        network.depthwise[i] = kernel(f"blocks.{i}.depthwise.weight", DSTCN_KERNELS[i])
        network.pointwise[i] = mix(i + 1, channels, channels)
    network.before_last = kernel("last.0.weight", DSTCN_LAST_KERNEL)
    network.wide, network.last = mix(BLOCKS + 1, channels, wide), mix(BLOCKS + 2, wide, wide)
    classifier = layout.weight(name("classifier.weight"), labels, wide)
    network.classifier = layout.mix(classifier, layout.weight(name("classifier.bias"), labels))
    return layout


@dataclass(frozen=True)
class Family:
    """Networks that tcn.c knows."""

    name: str
    step: int  # samples: it advances by a multiple of these
    lay_out: Callable[[Weights, int], Layout]  # of weights and the number of labels; raises UnfitError


FAMILIES = {family.name: family for family in (Family("stcn", 320, _stcn), Family("dstcn", 160, _dstcn))}
