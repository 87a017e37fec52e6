"""`kwsd replay`: the daemon's pipeline on recordings, as fast as it goes, in one thread."""

from collections.abc import Iterator
from pathlib import Path

from kwsd.config import Config
from kwsd.event import Heard, Overrun
from kwsd.inlet import Inlet
from kwsd.pipeline import Pipeline, StreamInfo, make_ring
from kwsd.source import AudioFile
from kwsd.spotter import Spotter


def replay(config: Config, spotter: Spotter, path: Path, channel: int | None = None) -> Iterator[Heard | Overrun]:
    """Every event of one recording, in its own time.

    Raises AudioError if the file cannot be read; where it breaks off, after the events of what there was.
    """
    source = AudioFile(path, channel, realtime=False)
    ring = make_ring(config, 1)
    inlet = Inlet(ring, 0, source.rate, source.channel)
    pipeline = Pipeline(config, spotter, ring, [inlet], [StreamInfo(path.name, source.live, source.lead_in)])
    at_once = min(config.window.max_batch * config.window.hop_ms / 1000, inlet.room / 2)  # seconds
    for block in source.delivered():
        inlet.write(block)
        if inlet.backlog >= at_once:
            yield from _events(pipeline)
    inlet.end()
    while not pipeline.finished:
        yield from _events(pipeline)
    if source.failure is not None:
        raise source.failure


def _events(pipeline: Pipeline) -> Iterator[Heard | Overrun]:
    progress = pipeline.advance()
    yield from progress.overruns
    yield from progress.heard
