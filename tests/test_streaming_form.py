"""Hop by hop a shipped model says what it says of whole windows: on talk, over gaps, as streams join and leave.

Needs `KWSD_DATA` with `speech/dev`; KWSD_MINUTES says how much of it is heard (default 12).
"""

import os
from pathlib import Path

import numpy as np
import pytest

from kwsd.artefact import read_artefact
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.cascade import Cascade
from kwsd.engines import load_spotter
from kwsd.recording import read_recording
from kwsd.ring import RingBuffer
from kwsd.scoring import HopScorer, WindowScorer
from kwsd.window import WindowSchedule

DATA = Path(os.environ.get("KWSD_DATA", ""))
MODELS = Path(__file__).parent.parent / "models"
ADVANCING = [
    (path.name, engine, which)
    for path in sorted(MODELS.glob("*.[op][nt]*"))
    for which, artefact in (("first", read_artefact(path)), ("second", read_artefact(path).second))
    if artefact is not None and artefact.info.step
    for engine in (("native", "onnxruntime") if path.suffix == ".onnx" else ("auto",))
]
HOP = 1600
STREAMS = 8
TOLERANCE = 1e-3  # in log-probability
LEAST_PROBABILITY = 1e-6  # below, a logarithm only magnifies rounding
MINUTES = float(os.environ.get("KWSD_MINUTES", "12"))

pytestmark = pytest.mark.skipif(
    not os.environ.get("KWSD_DATA"), reason="KWSD_DATA is not set: no real recordings to test on"
)


class Satellites:
    """Streams that speak in blocks of any size, stop, lose audio, and come back with another recording."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        files = sorted((DATA / "speech" / "dev").rglob("*.wav"))
        self.files = [files[i] for i in self.random.permutation(len(files))]
        self.ring = RingBuffer(STREAMS, 6 * SAMPLE_RATE, hop=HOP)
        self.left = [np.zeros(0, np.float32)] * STREAMS
        self.samples = self.gaps = self.turns = 0

    def speak(self):
        """Every stream a while."""
        for stream in range(STREAMS):
            chance = self.random.random()
            if not self.left[stream].size:
                self.left[stream] = read_recording(self.files[self.turns % len(self.files)])
                self.ring.skip(stream, -self.ring.ends[stream] % HOP)  # as a satellite that joins
                self.turns += 1
            elif chance < 0.01:
                self.ring.skip(stream, int(self.random.integers(0, 20_000)))
                self.gaps += 1
            elif chance < 0.1:
                continue  # nothing comes this time
            size = int(self.random.integers(1, 4000))
            block, self.left[stream] = np.split(self.left[stream], [size])
            self.ring.write(stream, np.ascontiguousarray(block))
            self.samples += block.size


@pytest.mark.parametrize(("model", "engine", "which"), ADVANCING)
@pytest.mark.timeout(60 + 60 * MINUTES)
def test_hop_by_hop_equals_whole_windows(model, engine, which):
    spotter = load_spotter(MODELS / model, "cpu", engine=engine)
    spotter = getattr(spotter, which) if isinstance(spotter, Cascade) else spotter
    satellites = Satellites(seed=len(model))
    schedule = WindowSchedule(STREAMS, HOP, 3, np.ones(STREAMS, np.bool_))
    by_hops, by_windows = HopScorer(spotter, STREAMS, HOP), WindowScorer(spotter)
    windows, worst = 0, 0.0
    while satellites.samples < MINUTES * 60 * SAMPLE_RATE:
        satellites.speak()
        due = schedule.take(satellites.ring)
        if not len(due):
            continue
        hops, whole = by_hops.score(satellites.ring, due), by_windows.score(satellites.ring, due)
        assert np.array_equal(hops.ends, whole.ends) and np.array_equal(hops.streams, whole.streams)
        said, expected = (np.log(np.maximum(some.posteriors, LEAST_PROBABILITY)) for some in (hops, whole))
        worst = max(worst, float(np.abs(said - expected).max()))
        windows += len(due)
        if satellites.turns % 40 == 0:  # another scorer, as after a reload
            other = HopScorer(spotter, STREAMS, HOP)
            other.take_over(by_hops)
            by_hops = other
    what = f"{model} ({which}) by {spotter.engine}: {windows} windows of {MINUTES:g} min, {satellites.gaps} gaps"
    print(f"{what}: {worst:.2g} at most")
    assert worst < TOLERANCE
    assert windows > 0.8 * satellites.samples / HOP - satellites.turns * WINDOW / HOP
    assert satellites.gaps > 5 and satellites.turns > STREAMS
