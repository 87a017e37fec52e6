"""Where the audio callback puts the blocks of a microphone, from when it is opened until nothing it delivers counts any
more: straight into the rings of its streams, by ears.c where that was compiled."""

import ctypes
import time
from collections.abc import Sequence
from typing import Any

from kwsd.compiled import NUMBER, POINTER, fence, library
from kwsd.inlet import Inlet
from kwsd.ring import RingBuffer

TIMES = 512  # as in ears.c


class Ears:
    """Of one opening of a microphone. The callback is Python, which waits for the interpreter lock."""

    address: int | None = None  # of a callback in C
    given = 0  # what that is to be given, an address

    def __init__(self, inlets: Sequence[Inlet]) -> None:
        self._inlets, self._closed = list(inlets), False

    def add(self, inlet: Inlet) -> None:
        """One more, which gets what is delivered from now on."""
        self._inlets.append(inlet)

    def close(self) -> None:
        """Nothing counts any more that is delivered from now on."""
        self._closed = True

    def hear(self, block: bytes, count: int, moment: object, status: Any) -> None:
        """Waking the inference thread from here would double what it costs: it knows when a block is due."""
        if self._closed:
            return
        for inlet in self._inlets:
            if status.input_overflow:
                inlet.overflow()
            inlet.append(block)

    def took_us(self) -> list[float]:
        """How long the last blocks held up the thread that delivered them, if that is known."""
        return []


class _Ear(ctypes.Structure):
    """As in ears.c."""

    _fields_ = (
        ("ring", POINTER),
        *((name, NUMBER) for name in ("size", "frame")),
        *((name, POINTER) for name in ("end", "claimed", "unbroken_from", "blocks", "overflows", "wrote_at")),
    )


class _Ears(ctypes.Structure):
    """As in ears.c."""

    _fields_ = (
        ("ears", POINTER),
        ("count", NUMBER),
        *((name, ctypes.c_int32) for name in ("closed", "busy")),
        ("heard", NUMBER),
        ("took_us", ctypes.c_float * TIMES),
    )


PART = "ears", 65536 * ctypes.sizeof(_Ear) + ctypes.sizeof(_Ears), "hear", "close", "fence"


class CompiledEars(Ears):
    """The callback is C. Whoever opens a stream with it must hold this until PortAudio has closed it."""

    def __init__(self, inlets: Sequence[Inlet], most: int, compiled: ctypes.CDLL) -> None:
        """`most`: how many inlets there will be."""
        super().__init__([])
        self._rings: list[RingBuffer] = []  # held, as C writes into them
        self._each = (_Ear * most)()
        self._ears = _Ears(ears=ctypes.addressof(self._each))
        for inlet in inlets:
            self.add(inlet)
        self._close = compiled.ears_close
        self._close.restype, self._close.argtypes = ctypes.c_int32, [POINTER]
        self.address, self.given = ctypes.cast(compiled.ears_hear, POINTER).value, ctypes.addressof(self._ears)

    def add(self, inlet: Inlet) -> None:
        """One more, which gets what is delivered from now on."""
        place, count = inlet.place, self._ears.count
        self._rings.append(place.ring)
        self._each[count] = _Ear(**place.addresses)
        fence()  # before C looks at it
        self._ears.count = count + 1

    def close(self) -> None:
        """Nothing counts any more that is delivered from now on. A block that is being taken is waited for."""
        while self._close(self.given):
            time.sleep(0)
        self._rings.clear()

    def took_us(self) -> list[float]:
        """How long the last blocks held up the thread that delivered them, oldest first."""
        heard, times = self._ears.heard, list(self._ears.took_us)
        return times[:heard] if heard <= TIMES else times[heard % TIMES :] + times[: heard % TIMES]


def make_ears(inlets: Sequence[Inlet], most: int) -> Ears:
    """Of these inlets, and of others that are added, `most` together. Compiled, where that was."""
    compiled = library(*PART)
    return Ears(inlets) if compiled is None else CompiledEars(inlets, most, compiled)
