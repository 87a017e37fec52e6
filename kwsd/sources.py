"""The sources that a config describes."""

from collections.abc import Sequence

from kwsd.config import Config, FileConfig, MicrophoneConfig, StreamConfig
from kwsd.errors import KwsdError
from kwsd.microphone import Microphone, OtherChannel
from kwsd.raw_pcm import RawPcm
from kwsd.source import AudioFile, Source


def make_sources(config: Config, *, patient: bool = False) -> list[Source]:
    """Those of all streams; those of one microphone share it. Who is patient waits for microphones that are not there.

    Raises KwsdError if one cannot be had."""
    made: list[Source] = []
    try:
        for stream in config.streams:
            made.append(make_source(stream, config, [m for m in made if isinstance(m, Microphone)], patient=patient))
    except KwsdError:
        for source in made:
            source.stop()
        raise
    return made


def make_source(stream: StreamConfig, config: Config, microphones: Sequence[Microphone], *, patient: bool) -> Source:
    """The source of one stream. Raises KwsdError if it cannot be had."""
    channel = None if stream.channel == "mix" else stream.channel - 1
    if isinstance(stream, MicrophoneConfig):
        for microphone in microphones:
            if microphone.is_the_one(stream.device):
                return OtherChannel(microphone, channel)
        return Microphone(stream.device, channel, min(stream.block_ms, config.window.hop_ms), patient=patient)
    if isinstance(stream, FileConfig):
        return AudioFile(config.resolve(stream.path), channel, realtime=stream.realtime)
    path = stream.path if stream.path == "-" else str(config.resolve(stream.path))
    return RawPcm(path, stream.rate, stream.channels, stream.format, channel, reopen=stream.reopen)
