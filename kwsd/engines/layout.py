"""native.c for Python: its functions, its structures, and the weights of an ONNX file as it wants them to lie."""

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kwsd.mel import FFT, FLOOR, MELS, Floats, mel_filters, taper

LIBRARY = "kwsd.engines._native"  # as setup.py has it
INTERFACE, TILE, BLOCKS, BROADCASTS, STEM_KERNEL, STEM_STRIDE = 2, 16, 6, 12, 5, 2  # as in native.c
MOST_LANES = 16  # floats in the longest vectors it has code for
STCN_KERNELS, POOLED = (3, 3, 5, 5, 7, 7), 23  # as in networks/stcn.py
DSTCN_KERNELS, DSTCN_LAST_KERNEL = (7, 9, 11, 13, 15, 15), 15  # as in networks/dstcn.py
BANDS, STAGES = 5, ((2, 1, 1), (2, 2, 2), (4, 2, 4), (4, 1, 8))  # blocks, stride, dilation: as in networks/bcresnet.py
EPSILON = 1e-5  # of batch normalisation
LINE = 64  # bytes that a cache reads at once
Weights = dict[str, Floats]
Array = NDArray[np.float32] | NDArray[np.int64]


class UnfitError(Exception):
    """Why native.c does not run a model. ONNX Runtime does."""


class Mix(ctypes.Structure):
    """As in native.c."""

    _fields_ = (
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Kernel(ctypes.Structure):
    """As in native.c."""

    _fields_ = (("size", ctypes.c_int64), ("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class Common(ctypes.Structure):
    """As in native.c."""

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
        ("classifier", Mix),
    )


class Tcn(ctypes.Structure):
    """As in native.c."""

    _fields_ = (
        ("common", Common),
        ("stem", Mix),
        ("pointwise", Mix * BLOCKS),
        ("wide", Mix),
        ("last", Mix),
        ("depthwise", Kernel * BLOCKS),
        ("before_last", Kernel),
    )


class Broadcast(ctypes.Structure):
    """As in native.c."""

    _fields_ = (
        ("stride", ctypes.c_int64),
        ("dilation", ctypes.c_int64),
        ("enter", Mix),
        ("across", ctypes.c_void_p),
        ("across_bias", ctypes.c_void_p),
        ("along", Kernel),
        ("mixed", Mix),
    )


class BcResNet(ctypes.Structure):
    """As in native.c."""

    _fields_ = (
        ("common", Common),
        ("stem", Mix),
        ("wide", Mix),
        ("blocks", Broadcast * BROADCASTS),
        ("last", Kernel),
    )


@cache
def functions(family: str) -> tuple[Callable[..., int], Callable[..., int]]:
    """Of a family: how many floats a stream's state has, and how it advances. Raises UnfitError if native.c was not
    compiled, or not this one."""
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or spec.origin is None:
        raise UnfitError("it was not compiled, for want of a C compiler; with one, install kwsd again")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    try:
        library = ctypes.CDLL(spec.origin)
        interface, state, advance = library.native_interface, library[f"{family}_state"], library[f"{family}_advance"]
    except (OSError, AttributeError) as error:
        raise UnfitError(f"it cannot be loaded ({error}); install kwsd again") from None
    interface.restype, interface.argtypes = number, []
    state.restype, state.argtypes = number, [pointer]
    advance.restype = ctypes.c_int
    advance.argtypes = [pointer, pointer, number, number, pointer, pointer, pointer, number, pointer, number]
    if interface() != INTERFACE * 65536 + ctypes.sizeof(Tcn) + ctypes.sizeof(BcResNet):
        raise UnfitError("it was compiled for another version; install kwsd again")
    library.native_lanes(number(MOST_LANES))
    return state, advance


class Layout:
    """A network for native.c, and the arrays it points to."""

    def __init__(self, network: Tcn | BcResNet, weights: Weights, labels: int) -> None:
        self.network, self._common = network, network.common
        self._weights, self._held = weights, list[Array]()
        self._common.floor, self._common.labels = FLOOR, labels
        self._lay_frames()
        self.normalise(np.ones(MELS, np.float32), np.zeros(MELS, np.float32))  # many have that in their stem

    def weight(self, name: str, *shape: int) -> Floats:
        """One of the file's, of this shape, where -1 is any size. Raises UnfitError if it has none such."""
        found = self._weights.get(name)
        if found is None or len(found.shape) != len(shape):
            raise UnfitError(f"it misses {name}")
        if any(size not in (-1, given) for size, given in zip(shape, found.shape, strict=True)):
            raise UnfitError(f"it finds {name} to be {list(found.shape)}")
        if not np.isfinite(found).all():  # of which it would make zeros, and say that nobody speaks
            raise UnfitError(f"{name} has what is no number")
        return found

    def normalisation(self, name: str, channels: int) -> tuple[Floats, Floats]:
        """The batch normalisation of this name as gain and offset, each (channels,)."""
        scale, offset, mean, variance = (
            self.weight(f"{name}.{what}", channels) for what in ("weight", "bias", "running_mean", "running_var")
        )
        gain = scale / np.sqrt(variance + np.float32(EPSILON))
        return gain, offset - mean * gain

    def normalise(self, gain: Floats, offset: Floats) -> None:
        """What becomes of log-mel frames, each (MELS,)."""
        self._common.gain, self._common.offset = self._hold(gain), self._hold(offset)

    def folded(self, layers: int) -> list[str]:
        """Weight and bias of each convolution that has a normalisation behind it, in the order of the layers. The
        exporter folds the two, and then numbers them. Raises UnfitError if there are more or fewer."""
        names = [name for name in self._weights if name.startswith("onnx::Conv_")]
        if len(names) != 2 * layers:
            raise UnfitError(f"it finds {len(names)} weights of convolutions")
        return names

    def classify(self, name: str, wide: int) -> None:
        """What is said of an embedding (wide,), by the layer of this name."""
        weight = self.weight(f"{name}.weight", self._common.labels, wide)
        self._common.classifier = self.mix(weight, self.weight(f"{name}.bias", self._common.labels))

    def stem(self, weight: Floats, bias: Floats) -> Mix:
        """Weight (channels, mels, columns) and bias (channels,): frames lie one after the other, each with all mels."""
        return self._mix(weight.transpose(0, 2, 1).reshape(len(weight), -1), bias)

    def mix(self, weight: Floats, bias: Floats) -> Mix:
        """Weight (outputs, inputs, …), whose last axes are 1, and bias (outputs,)."""
        flat = weight.reshape(len(weight), -1)
        return self._mix(np.pad(flat, ((0, 0), (0, -flat.shape[1] % TILE))), bias)

    def kernel(self, weight: Floats, bias: Floats | None = None) -> Kernel:
        """Weight (channels, …) and bias (channels,)."""
        flat = weight.reshape(len(weight), -1)
        bias = np.zeros(len(flat), np.float32) if bias is None else bias
        return Kernel(flat.shape[1], self._hold(_filled(flat).T), self._hold(_filled(bias)))

    def across(self, block: Broadcast, weight: Floats, gain: Floats, offset: Floats) -> None:
        """Weight (channels, 1, 3, 1) over mels; then, of each band, a gain and an offset (channels, BANDS)."""
        kernels = _filled(weight[:, 0] * gain[:, None])  # (channels, 3, BANDS)
        block.across = self._hold(kernels.transpose(2, 1, 0))
        block.across_bias = self._hold(_filled(offset).T)

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
        common = self._common
        common.taper, common.turns = self._hold(taper()), self._hold(turns)
        common.begins, common.lowest = self._hold(begins), self._hold(np.array([some[0] for some in bins]))
        common.filters = self._hold(np.concatenate([filters[some, m] for m, some in enumerate(bins)]))

    def _hold(self, array: Array) -> int:
        """Where a copy of it lies, at the beginning of a line of the cache. Raises UnfitError for what is no number."""
        if not np.isfinite(array).all():  # as `weight` says
            raise UnfitError("what it makes of the normalisations is no number")
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
    network, name = Tcn(), "network.{}".format
    layout = Layout(network, weights, labels)
    stem = layout.weight(name("stem.weight"), -1, MELS, 1, STEM_KERNEL)
    channels = len(stem)
    wide = len(layout.weight(name("wide.bias"), -1))

    def mix(layer: str, inputs: int, outputs: int, *rest: int) -> Mix:
        weight = layout.weight(name(f"{layer}.weight"), outputs, inputs, *rest)
        return layout.mix(weight, layout.weight(name(f"{layer}.bias"), outputs))

    network.stem = layout.stem(stem[:, :, 0], layout.weight(name("stem.bias"), channels))
    for i in range(BLOCKS):
        network.depthwise[i] = layout.kernel(
            layout.weight(name(f"depthwise.{i}.weight"), channels, 1, 1, STCN_KERNELS[i])
        )
        network.pointwise[i] = mix(f"pointwise.{i}", channels, channels, 1, 1)
    network.wide, network.last = mix("wide", channels, wide, 1, 1), mix("last", wide, wide, 1, 1)
    pool = layout.weight(name("pool.weight"), wide, 1, 1, POOLED)
    network.before_last = layout.kernel(pool, layout.weight(name("pool.bias"), wide))
    layout.classify(name("classifier"), wide)
    return layout


def _dstcn(weights: Weights, labels: int) -> Layout:
    """networks/dstcn.py, `DsTcn`."""
    network, name = Tcn(), "body.network.{}".format
    layout = Layout(network, weights, labels)
    folded = layout.folded(BLOCKS + 3)
    stem = layout.weight(folded[0], -1, MELS, 1, STEM_KERNEL)
    channels, wide = len(stem), len(layout.weight(folded[-1], -1))

    def mix(layer: int, inputs: int, outputs: int) -> Mix:
        weight = layout.weight(folded[2 * layer], outputs, inputs, 1, 1)
        return layout.mix(weight, layout.weight(folded[2 * layer + 1], outputs))

    def kernel(layer: str, size: int) -> Kernel:
        return layout.kernel(layout.weight(name(layer), channels, 1, 1, size))

    layout.normalise(*layout.normalisation(name("normalise"), MELS))
    network.stem = layout.stem(stem[:, :, 0], layout.weight(folded[1], channels))
    for i in range(BLOCKS):
        network.depthwise[i] = kernel(f"blocks.{i}.depthwise.weight", DSTCN_KERNELS[i])
        network.pointwise[i] = mix(i + 1, channels, channels)
    network.before_last = kernel("last.0.weight", DSTCN_LAST_KERNEL)
    network.wide, network.last = mix(BLOCKS + 1, channels, wide), mix(BLOCKS + 2, wide, wide)
    layout.classify(name("classifier"), wide)
    return layout


def _bcresnet(weights: Weights, labels: int) -> Layout:
    """networks/bcresnet.py, `BcResNet`."""
    network, name = BcResNet(), "body.network.{}".format
    layout = Layout(network, weights, labels)
    folded = iter(layout.folded(1 + len(STAGES) + BROADCASTS + 1))

    def next_folded(*shape: int) -> tuple[Floats, Floats]:
        """Weight (outputs, …) and bias (outputs,) of the next layer."""
        weight = layout.weight(next(folded), *shape)
        return weight, layout.weight(next(folded), len(weight))

    stem, bias = next_folded(-1, 1, STEM_KERNEL, STEM_KERNEL)
    network.stem, channels, mels = layout.stem(stem[:, 0], bias), len(stem), MELS // STEM_STRIDE
    steps = [(i == 0, stride if i == 0 else 1, dilation) for n, stride, dilation in STAGES for i in range(n)]
    for i, (is_transition, stride, dilation) in enumerate(steps):
        block, layer = network.blocks[i], name(f"blocks.{i}.{{}}").format
        if is_transition:
            enter, bias = next_folded(-1, channels, 1, 1)
            block.enter, channels = layout.mix(enter, bias), len(enter)
        block.stride, block.dilation, mels = stride, dilation, mels // stride
        at = 3 if is_transition else 0  # where in `frequency` the kernel over mels is
        normalisation = layout.normalisation(layer(f"frequency.{at + 1}.norm"), channels * BANDS)
        over_mels = layout.weight(layer(f"frequency.{at}.weight"), channels, 1, 3, 1)
        layout.across(block, over_mels, *(part.reshape(channels, BANDS) for part in normalisation))
        along, bias = next_folded(channels, 1, 1, 3)
        block.along = layout.kernel(along / np.float32(mels), bias)  # of the sum over mels, not the mean
        mixed = layout.weight(layer("time.3.weight"), channels, channels, 1, 1)
        block.mixed = layout.mix(mixed, np.zeros(channels, np.float32))
    network.last = layout.kernel(layout.weight(name("last.0.weight"), channels, 1, BANDS, STEM_KERNEL))
    wide, bias = next_folded(-1, channels, 1, 1)
    network.wide = layout.mix(wide, bias)
    layout.classify(name("classifier"), len(wide))
    return layout


@dataclass(frozen=True)
class Family:
    """Networks that native.c knows."""

    name: str
    step: int  # samples: it advances by a multiple of these
    lay_out: Callable[[Weights, int], Layout]  # of weights and the number of labels; raises UnfitError


FAMILIES = {
    family.name: family
    for family in (Family("stcn", 320, _stcn), Family("dstcn", 160, _dstcn), Family("bcresnet", 160, _bcresnet))
}
