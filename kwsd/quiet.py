"""Whether anything is to be heard at all: so long as no stream stands out from its own noise, windows may wait."""

import math

import numpy as np

from kwsd.audio_format import SAMPLE_RATE
from kwsd.ring import RingBuffer

STANDS_OUT = 2.0  # times the power of the noise: 3 dB, as a word has that is as loud as the noise it is said in
RISE_PER_S = 10.0 ** (1.0 / 10.0)  # of what is taken for noise: 1 dB, so that a fan that was switched on soon is noise
LEAST = 3e-8  # mean square: -75 dBFS; what is less loud does not stand out
SHORTEST, LONGEST = SAMPLE_RATE // 20, SAMPLE_RATE  # samples in a piece: of fewer the power is a matter of chance
DOZE_S = 1.0  # of audio that waits at most
LOOK_S = 0.25  # how often is looked meanwhile: oftener than a word takes


class Quiet:
    """Of the first streams of a ring. Noise is the quietest piece of the last seconds, a piece being what came from one
    look to the next. It decides how soon windows are scored, never whether."""

    def __init__(self, ring: RingBuffer, streams: int) -> None:
        self._ring = ring
        self._listened_at = list(ring.ends[:streams])  # sample index
        self._looked_at = list(ring.ends[:streams])  # sample index
        self._noise = [math.inf] * streams  # mean square
        self._stands_out = [True] * streams  # the last piece did
        self._piece = np.zeros(LONGEST, np.float32)

    def listened(self) -> None:
        """No window waits now."""
        self._listened_at = list(self._ring.ends[: len(self._noise)])

    def look(self, longest: int) -> bool:
        """Whether windows may wait: nothing stands out in any stream of what came since the last look, and none has
        waited for so many samples."""
        for stream in range(len(self._noise)):
            self._look_at(stream)
        waited = max(end - at for end, at in zip(self._looked_at, self._listened_at, strict=True))
        return waited < longest and not any(self._stands_out)

    def _look_at(self, stream: int) -> None:
        end = self._ring.ends[stream]
        came = min(end - self._looked_at[stream], LONGEST)
        if came < SHORTEST:
            return
        self._looked_at[stream] = end
        piece = self._piece[:came]
        if not self._ring.read(stream, end - came, piece):
            self._stands_out[stream] = True  # there is a gap, and nobody knows
            return
        mean = float(piece.sum()) / came
        power = max(LEAST, float(piece.dot(piece)) / came - mean * mean)
        noise = self._noise[stream] = min(power, self._noise[stream] * RISE_PER_S ** (came / SAMPLE_RATE))
        self._stands_out[stream] = power > STANDS_OUT * noise
