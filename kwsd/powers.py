"""How loud a recording was lately, piece by piece: straight from the ring, at the source's own rate."""

import ctypes
from collections.abc import Callable

import numpy as np

from kwsd.audio_format import SAMPLE_RATE
from kwsd.compiled import NUMBER, POINTER, fence, filled, library
from kwsd.pcm import mono
from kwsd.ring import RingBuffer

PIECES_PER_S = 20  # 50 ms, as a syllable has
AT_MOST = 20  # pieces

Powers = Callable[[int, int], list[float] | None]  # of pieces: from a frame on, how many; None if not all is there


class _Sound(ctypes.Structure):
    """As in quiet.c."""

    _fields_ = (
        ("ring", POINTER),
        *((name, NUMBER) for name in ("capacity", "channels", "channel", "piece", "at_once")),
    )


PART = "quiet", ctypes.sizeof(_Sound), "powers"


def piece_of(rate: int) -> int:
    """Frames of a piece: a multiple of those of which only the mean counts, as a whistle that no word has at 16 kHz
    should not hide one."""
    at_once = _at_once(rate)
    return rate // PIECES_PER_S // at_once * at_once


def _at_once(rate: int) -> int:
    return max(1, round(rate / SAMPLE_RATE))


def make_powers(ring: RingBuffer, rate: int, channel: int | None) -> Powers:
    """Of the one stream in a ring, and of a channel, from 0, or the mean of all. A piece's power is its mean square
    without what a constant has."""
    compiled = library(*PART)
    powers = _by_numpy(ring, rate, channel) if compiled is None else _compiled(compiled, ring, rate, channel)

    def if_there(start: int, pieces: int) -> list[float] | None:
        assert 0 < pieces <= AT_MOST
        if start + pieces * piece_of(rate) > ring.ends[0]:
            return None
        fence()
        found = powers(start, pieces)
        fence()
        return found if start >= ring.oldest(0) else None  # looked at last: it may have been written over meanwhile

    return if_there


def _compiled(
    compiled: ctypes.CDLL, ring: RingBuffer, rate: int, channel: int | None
) -> Callable[[int, int], list[float]]:
    sound = filled(
        _Sound,
        ring=ring.addresses(0)["ring"],
        capacity=ring.capacity,
        channels=ring.channels,
        channel=-1 if channel is None else channel,
        piece=piece_of(rate),
        at_once=_at_once(rate),
    )
    found = (ctypes.c_double * AT_MOST)()
    call = compiled.quiet_powers
    call.restype, call.argtypes = None, [POINTER, NUMBER, NUMBER, POINTER]
    where = ctypes.byref(sound)  # which is held by it, as the ring is by who calls this

    def powers(start: int, pieces: int) -> list[float]:
        call(where, start, pieces, found)
        return found[:pieces]

    return powers


def _by_numpy(ring: RingBuffer, rate: int, channel: int | None) -> Callable[[int, int], list[float]]:
    piece, at_once = piece_of(rate), _at_once(rate)
    room = np.zeros((AT_MOST * piece, ring.channels), np.float32)

    def powers(start: int, pieces: int) -> list[float]:
        frames = room[: pieces * piece]
        ring.read(0, start, frames)
        means = mono(frames, channel).reshape(pieces, -1, at_once).mean(2)  # (pieces, means)
        means = means - means.mean(1, keepdims=True)
        power = np.einsum("ij,ij->i", means, means) / means.shape[1]
        return power.tolist()  # type: ignore[no-any-return]

    return powers
