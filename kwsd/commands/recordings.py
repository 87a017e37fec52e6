"""`kwsd replay`, `kwsd record` and `kwsd synthesise`."""

import argparse
import contextlib
import getpass
import os

from kwsd.commands.options import settings
from kwsd.errors import OK, USAGE, AudioError, ConfigError
from kwsd.terminal import say, show, show_line


def replay(options: argparse.Namespace) -> int:
    """`kwsd replay`"""
    from kwsd.config import load_config
    from kwsd.engines import load_spotter
    from kwsd.event import Stamp
    from kwsd.recording import open_recording
    from kwsd.replay import replay as replay_file
    from kwsd.replay import streams_of

    channel = _channel(options.channel)
    config = load_config(options.config, settings(options))
    for path in options.files:
        open_recording(path).close()  # a bad one is told at once, not after those before it
    spotter = load_spotter(config.model_path, config.device, config.model_sha256, config.engine)
    stamp = Stamp()
    for path, stream in zip(options.files, streams_of(options.files), strict=True):
        for event in replay_file(config, spotter, path, channel, stream):
            show_line(stamp.line(event))
    return OK


def _channel(text: str) -> int | None:
    if text == "mix":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--channel {text}: a number from 1, or mix", exit_code=USAGE)
    return int(text) - 1


def record(options: argparse.Namespace) -> int:
    """`kwsd record`"""
    from kwsd.record import Shelf, check
    from kwsd.record import record as record_words
    from kwsd.source import AudioFile, Source

    shelf, count = Shelf(options.folder, options.speaker or _user()), options.count
    if count is not None and count < 1:
        raise ConfigError(f"--count {count}: at least 1", exit_code=USAGE)
    check(options.words, shelf.speaker)
    if options.source and len(options.words) > 1:
        raise ConfigError("--source: of which word? name one, and record the others by themselves", exit_code=USAGE)
    source: Source
    if options.source:
        source = AudioFile(options.source, None, realtime=False)
    else:
        from kwsd.aside import in_time
        from kwsd.config import Config, MicrophoneConfig
        from kwsd.sources import make_source

        device = int(options.device) if options.device.isdecimal() else options.device
        source = in_time(lambda: make_source(MicrophoneConfig(device=device), Config(), (), patient=False))
        count = count or 20
    shelf.make_room(options.words)
    kept = record_words(source, shelf, options.words, count, lambda line: show(f"{line}\n"))
    if options.source and not any(kept.values()):
        raise AudioError(f"{options.source}: nobody says a word alone in it; leave half a second between words")
    say(f"{options.folder}: {', '.join(f'{n} of {word}' for word, n in kept.items())} more")
    return OK


def synthesise(options: argparse.Namespace) -> int:
    """`kwsd synthesise`"""
    from kwsd.synthesis import synthesise as have_said

    if options.count < 1:
        raise ConfigError(f"--count {options.count}: at least 1", exit_code=USAGE)
    words, count = options.words, options.count
    written, voices = have_said(options.folder, words, count, options.language, lambda line: show(f"{line}\n"))
    say(f"{options.folder}: {written} recordings of {len(words)} words in {voices} voices")
    return OK


def _user() -> str:
    """Who we are; not everybody has a name."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return f"user{os.getuid()}"
