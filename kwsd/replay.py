"""`kwsd replay`: the daemon's pipeline on recordings, as fast as it goes, in one thread."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kwsd.audio_format import WINDOW
from kwsd.config import Config
from kwsd.event import Overrun, Verdict
from kwsd.inlet import Inlet
from kwsd.pipeline import Pipeline, StreamInfo, make_ring
from kwsd.ring import Indices
from kwsd.source import AudioFile, Recordings, printable
from kwsd.spotter import Scores, Spotter


def replay(
    config: Config, spotter: Spotter, path: Path, channel: int | None = None, name: str | None = None
) -> Iterator[Verdict | Overrun]:
    """Every event of one recording, in its own time, of a stream of this name, or the file's.

    Raises AudioError if the file cannot be read; where it breaks off, after the events of what there was.
    """
    for pipeline in _fed(config, spotter, AudioFile(path, channel, realtime=False), name):
        progress = pipeline.advance()
        yield from progress.overruns
        yield from progress.heard


@dataclass(frozen=True)
class Trace:
    """What a model says of a whole recording, or several as one, before anything is decided."""

    ends: Indices  # (windows,) sample index one past each window's last
    posteriors: Scores  # (windows, labels)
    samples: int  # of the recording, at 16 kHz


def trace(config: Config, spotter: Spotter, *paths: Path) -> Trace:
    """The posteriors `replay` would decide by; several recordings follow each other without a break. Raises AudioError
    if one cannot be read to its end."""
    source = AudioFile(paths[0], None, realtime=False) if len(paths) == 1 else Recordings(paths)
    scored = []
    for pipeline in _fed(config, spotter, source):
        scored.append(pipeline.score())
    scored = [batch for batch in scored if len(batch)]
    if not scored:
        return Trace(np.zeros(0, np.int64), np.zeros((0, len(spotter.info.labels)), np.float32), 0)
    samples = max(0, int(pipeline.ring.written[0]) - WINDOW)  # less the second of silence that was made up at the end
    return Trace(np.concatenate([s.ends for s in scored]), np.concatenate([s.posteriors for s in scored]), samples)


def streams_of(paths: Sequence[Path]) -> list[str]:
    """What their streams are called: the files' names, with their folders where files share one."""
    times = Counter(path.name for path in paths)
    return [printable(path.name if times[path.name] == 1 else str(path)) for path in paths]


def _fed(
    config: Config, spotter: Spotter, source: AudioFile | Recordings, name: str | None = None
) -> Iterator[Pipeline]:
    """A pipeline on one source, again and again whenever there is something for it to take."""
    ring = make_ring(config, 1)
    inlet = Inlet(ring, 0, source.rate, source.channels, source.channel)
    stream = StreamInfo(name or source.name, source.live, source.lead_in)
    pipeline = Pipeline(config, spotter, ring, [inlet], [stream])
    at_once = min(config.window.max_batch * config.window.hop_ms / 1000, inlet.room / 2)  # seconds
    for block in source.delivered():
        inlet.write(block)
        while inlet.backlog >= at_once:
            yield pipeline
    inlet.end()
    while not pipeline.finished:
        yield pipeline
    if source.failure is not None:
        raise source.failure
