"""What of kwsd is compiled, besides the engine: C beside the Python module it is the quick form of. Where it was not
compiled, Python does it."""

import ctypes
import importlib.util
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARY = "kwsd._compiled"  # as setup.py has it
IN_ORDER = {"x86_64", "i686", "i386"}  # cores that load in the order of the program
POINTER, NUMBER = ctypes.c_void_p, ctypes.c_int64


def _nothing() -> None:
    """Where the order of loads is that of the program, as on x86, or what might not keep it was not compiled."""


def _make_fence() -> Callable[[], None]:
    if platform.machine() in IN_ORDER:
        return _nothing
    try:
        found: Callable[[], None] = ctypes.PyDLL(_where() or "").ears_fence
    except (OSError, AttributeError):
        return _nothing
    return found


@cache
def library(part: str, interface: int, *functions: str) -> ctypes.CDLL | None:
    """The functions of one of its parts; None where it was not compiled, or of another version: where one of the
    functions is missing, or the part's `…_interface` says something else."""
    where = _where()
    if where is None:
        return None
    try:
        found = ctypes.PyDLL(where)  # which keeps the interpreter lock: what is called is over before it could be had
        says = found[f"{part}_interface"]
        for function in functions:
            found[f"{part}_{function}"]
    except (OSError, AttributeError):
        return None
    says.restype, says.argtypes = NUMBER, []
    return found if says() == interface else None


def _where() -> str | None:
    spec = importlib.util.find_spec(LIBRARY)
    return None if spec is None else spec.origin


def at(array: NDArray[Any]) -> int:
    """Where an array lies: C takes our word for its shape and type."""
    assert array.flags.c_contiguous
    return array.ctypes.data


def filled(kind: type[ctypes.Structure], **fields: Any) -> Any:
    """A structure with all its fields; arrays are pointed to, so somebody must hold them."""
    missing = {name for name, *_ in kind._fields_} ^ fields.keys()
    assert not missing, missing
    return kind(**{name: at(value) if isinstance(value, np.ndarray) else value for name, value in fields.items()})


fence = _make_fence()  # what is read and written before it is done before what is after it
