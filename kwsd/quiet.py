"""Whether anything is to be heard at all: so long as no stream stands out from its own noise, windows may wait.

A word is told some tenths of a second after it is over. So long as the model finds something in what it heard, nobody
dozes; so what stood out need not have left the window, if it was over for longer than that takes.
"""

import math
from collections.abc import Sequence

from kwsd.inlet import Inlet
from kwsd.powers import AT_MOST, PIECES_PER_S, make_powers, piece_of
from kwsd.ring import RingBuffer

AFTER_S = 0.4  # without anything that stands out
DOZE_S = 1.0  # of audio that waits at most
LOOK_S = 0.25  # how often is looked meanwhile: oftener than a word takes
STANDS_OUT = 1.6  # times the power of the noise: 2 dB, as a word adds that is a little less loud than the noise
RISE_PER_S = 10.0 ** (1.0 / 10.0)  # of what is taken for noise: 1 dB, so that a fan that was switched on soon is noise
LEAST = 3e-8  # mean square: -75 dBFS; what is less loud is taken for as loud


class Quiet:
    """Of inlets, before what came through them is converted. Noise is the quietest piece of the last seconds. It
    decides how soon windows are scored, never whether."""

    def __init__(self, inlets: Sequence[Inlet]) -> None:
        self._rooms = [_Room(inlet) for inlet in inlets]

    def look(self, longest_s: float) -> bool:
        """Whether windows may wait: nothing stood out in any stream lately, and of none has so much been waiting."""
        for room in self._rooms:
            room.look()
        return all(room.is_quiet and room.inlet.backlog < longest_s for room in self._rooms)


class _Room:
    """One stream."""

    def __init__(self, inlet: Inlet) -> None:
        self.inlet = inlet
        self._noise = math.inf  # mean square
        self._begin(inlet.native)

    def _begin(self, ring: RingBuffer) -> None:
        """At what is in a ring by now. Of what was before it nobody knows."""
        self._ring = ring
        self._powers, self._piece = make_powers(ring, self.inlet.rate, self.inlet.channel), piece_of(self.inlet.rate)
        self._looked_at = self._stood_out_at = ring.ends[0]  # frame up to which something may have

    @property
    def is_quiet(self) -> bool:
        """Whether nothing stood out for long enough."""
        return self._looked_at - self._stood_out_at >= AFTER_S * self.inlet.rate

    def look(self) -> None:
        """At the pieces that came since, of which only the last ones count."""
        if self._ring is not self.inlet.native:  # the source was opened again
            self._begin(self.inlet.native)
        pieces = min((self._ring.ends[0] - self._looked_at) // self._piece, AT_MOST)
        if not pieces:
            return
        end = self._looked_at + (self._ring.ends[0] - self._looked_at) // self._piece * self._piece
        powers = self._powers(end - pieces * self._piece, pieces)
        self._looked_at = end
        if powers is None:
            self._stood_out_at = end  # there is a gap, and nobody knows
            return
        self._noise = min(max(LEAST, min(powers)), self._noise * RISE_PER_S ** (pieces / PIECES_PER_S))
        if max(powers) > STANDS_OUT * self._noise:
            self._stood_out_at = end
