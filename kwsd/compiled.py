"""What of kwsd is compiled, besides the engine: C beside the Python module it is the quick form of. Where it was not
compiled, Python does it."""

import ctypes
import importlib.util
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARY = "kwsd._compiled"  # as setup.py has it
POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64


@cache
def library(part: str, sizes: int) -> ctypes.CDLL | None:
    """The functions of one of its parts; None where it was not compiled, or of another version: `sizes` is what the
    part's `…_interface` must say."""
    spec = importlib.util.find_spec(LIBRARY)
    if spec is None or spec.origin is None:
        return None
    try:
        found = ctypes.CDLL(spec.origin)
        interface = found[f"{part}_interface"]
    except (OSError, AttributeError):
        return None
    interface.restype, interface.argtypes = NUMBER, []
    return found if interface() == sizes else None


def at(array: NDArray[Any]) -> int:
    """Where an array lies: C takes our word for its shape and type."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def filled(kind: type[ctypes.Structure], **fields: Any) -> Any:
    """A structure with all its fields; arrays are pointed to, so somebody must hold them."""
    missing = {name for name, *_ in kind._fields_} ^ fields.keys()
    assert not missing, missing
    return kind(**{name: at(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()})
