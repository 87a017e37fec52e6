"""What kwsd reads of an ONNX file itself: its metadata, and its weights for the engine of our own.

An ONNX file is a message of Protocol Buffers (protobuf.dev/programming-guides/encoding) with the field numbers of
onnx.proto. The library for it takes as long and as much memory to load as all else that a daemon then needs.
"""

from collections.abc import Iterator
from itertools import islice
from math import prod

import numpy as np
from numpy.typing import NDArray

GRAPH, METADATA_PROPS = 7, 14  # of a ModelProto
INITIALIZER = 5  # of a GraphProto
KEY, VALUE = 1, 2  # of a StringStringEntryProto
DIMS, DATA_TYPE, NAME, RAW_DATA = 1, 2, 8, 9  # of a TensorProto
FLOAT = 1  # as DATA_TYPE
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # how a value is written
LONGEST_VARINT = 10  # bytes
MOST_AXES = 8  # of a weight; those of pictures have four

Value = int | memoryview


def metadata(model: bytes) -> dict[bytes, bytes]:
    """By key. Raises ValueError for what is no such message."""
    entries = (_last(entry, KEY, VALUE) for entry in _all(memoryview(model), METADATA_PROPS))
    return {_bytes(entry.get(KEY, b"")): _bytes(entry.get(VALUE, b"")) for entry in entries}


def weights(model: bytes) -> dict[str, NDArray[np.float32]]:
    """The initializers that are 32-bit floats, by name, in their order. Raises ValueError for what is no such
    message."""
    found = {}
    for graph in _all(memoryview(model), GRAPH):
        for tensor in _all(graph, INITIALIZER):
            shape = _shape(tensor)
            rest = _last(tensor, DATA_TYPE, NAME, RAW_DATA)
            raw = _bytes(rest.get(RAW_DATA, b""))
            if rest.get(DATA_TYPE) == FLOAT and len(raw) == 4 * prod(shape):
                found[_bytes(rest.get(NAME, b"")).decode()] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
    """The messages in a field of a message."""
    return (value for field, value in _fields(message) if field == number and isinstance(value, memoryview))


def _last(message: memoryview, *numbers: int) -> dict[int, Value]:
    """Of these fields the last values. What else a file has, it may have millions of."""
    return {number: value for number, value in _fields(message) if number in numbers}


def _shape(tensor: memoryview) -> list[int]:
    """Of so many axes that their product is soon had. Raises ValueError for more."""
    sizes = (size for number, value in _fields(tensor) if number == DIMS for size in _sizes(value))
    shape = list(islice(sizes, MOST_AXES + 1))
    if len(shape) > MOST_AXES:
        raise ValueError(f"a weight of more than {MOST_AXES} axes")
    return shape


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of every field, one after another."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind, value = tag & 7, 0
        if kind == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == LENGTH:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"a value written in way {kind}")
        if size > len(message) - at:
            raise ValueError("ends in the midst of a value")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number, seven bits in a byte, and where it is over."""
    number = 0
    for i, byte in enumerate(message[at : at + LONGEST_VARINT]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    raise ValueError("ends in the midst of a number")


def _sizes(value: Value) -> Iterator[int]:
    """One size, or several that are packed."""
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        size, at = _varint(value, at)
        yield size


def _bytes(value: Value | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text should be")
    return bytes(value)
