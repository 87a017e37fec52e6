"""Whether anything is to be heard at all: so long as no stream stands out from its own noise, windows may wait.

A word is told some tenths of a second after it is over. So long as the model finds something in what it heard, nobody
dozes; so what stood out need not have left the window, if it was over for longer than that takes.
"""

import math

import numpy as np

from kwsd.audio_format import SAMPLE_RATE, samples
from kwsd.ring import RingBuffer

AFTER_S = 0.4  # without anything that stands out
DOZE_S = 1.0  # of audio that waits at most
LOOK_S = 0.25  # how often is looked meanwhile: oftener than a word takes
PIECE = SAMPLE_RATE // 20  # samples whose power is taken: 50 ms, as a syllable has
STANDS_OUT = 1.6  # times the power of the noise: 2 dB, as a word adds that is a little less loud than the noise
RISE_PER_S = 10.0 ** (1.0 / 10.0)  # of what is taken for noise: 1 dB, so that a fan that was switched on soon is noise
LEAST = 3e-8  # mean square: -75 dBFS; what is less loud is taken for as loud


class Quiet:
    """Of the first streams of a ring. Noise is the quietest piece of the last seconds. It decides how soon windows are
    scored, never whether."""

    def __init__(self, ring: RingBuffer, streams: int) -> None:
        self._ring = ring
        self._listened_at = list(ring.ends[:streams])  # sample index
        self._looked_at = list(ring.ends[:streams])  # sample index
        self._noise = [math.inf] * streams  # mean square
        self._stood_out_at = list(ring.ends[:streams])  # sample index up to which something may have
        self._came = np.zeros(SAMPLE_RATE // PIECE * PIECE, np.float32)

    def listened(self) -> None:
        """No window waits now."""
        self._listened_at = list(self._ring.ends[: len(self._noise)])

    def look(self, longest: int) -> bool:
        """Whether windows may wait: nothing stood out in any stream lately, and none has waited for so many samples."""
        for stream in range(len(self._noise)):
            self._look_at(stream)
        for end, listened_at, stood_out_at in zip(self._looked_at, self._listened_at, self._stood_out_at, strict=True):
            if end - listened_at >= longest or end - stood_out_at < samples(AFTER_S):
                return False
        return True

    def _look_at(self, stream: int) -> None:
        start = max(self._looked_at[stream], self._ring.ends[stream] - len(self._came))
        size = (self._ring.ends[stream] - start) // PIECE * PIECE
        if not size:
            return
        end = self._looked_at[stream] = start + size
        came = self._came[:size]
        if not self._ring.read(stream, start, came):
            self._stood_out_at[stream] = end  # there is a gap, and nobody knows
            return
        pieces = came.reshape(-1, PIECE)
        power = np.einsum("ij,ij->i", pieces, pieces) / PIECE - pieces.mean(1) ** 2  # (pieces,) a constant is no sound
        least, most = max(LEAST, float(power.min())), max(LEAST, float(power.max()))
        noise = self._noise[stream] = min(least, self._noise[stream] * RISE_PER_S ** (size / SAMPLE_RATE))
        if most > STANDS_OUT * noise:
            self._stood_out_at[stream] = end
