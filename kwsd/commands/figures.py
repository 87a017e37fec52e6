"""`kwsd bench`."""

import argparse
import importlib.util
import json
from typing import TYPE_CHECKING

from kwsd.commands.options import refuse, settings
from kwsd.errors import IO, OK, UNAVAILABLE, USAGE, ConfigError, KwsdError
from kwsd.terminal import say, show

if TYPE_CHECKING:
    from kwsd.config import Config

BENCH_S, SCALE_S = 60.0, 5.0  # how long a daemon is measured
LONGEST_BENCH_S = 86_400.0


def bench(options: argparse.Namespace) -> int:
    """`kwsd bench`"""
    from kwsd.bench import measure, report
    from kwsd.config import load_config

    if options.peers:
        refuse(options, "is not for --peers", ("scale", "streams", "seconds"))
    if options.scale:
        refuse(options, "--scale seeks how many", ("streams",))
    if options.streams is not None and options.streams < 1:
        raise ConfigError(f"--streams {options.streams}: at least 1", exit_code=USAGE)
    if options.seconds is not None and not 0 < options.seconds <= LONGEST_BENCH_S:
        raise ConfigError(f"--seconds {options.seconds:g}: more than 0, at most a day", exit_code=USAGE)
    if options.picture and not options.scale:
        raise ConfigError("--picture: only --scale has something to draw", exit_code=USAGE)
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--picture: matplotlib is not installed; pip install 'kwsd[train]'", exit_code=UNAVAILABLE)
    config = load_config(options.config, settings(options))
    if options.scale:
        return _bench_scale(options, config)
    if options.peers:
        return _bench_peers(options, config)
    figures = measure(config, options.streams or 1, options.seconds or BENCH_S)
    show((json.dumps(figures, indent=1) if options.json else report(figures)) + "\n")
    return OK


def _bench_scale(options: argparse.Namespace, config: "Config") -> int:
    from kwsd.engines import load_spotter
    from kwsd.scale import draw, measure_scale, report

    spotter = load_spotter(config.model_path, config.device, config.model_sha256, config.engine)
    figures = measure_scale(config, spotter, options.seconds or SCALE_S, say)
    show((json.dumps(figures, indent=1) if options.json else report(figures)) + "\n")
    if options.picture:
        try:
            draw(figures, options.picture)
        except (OSError, ValueError) as error:  # ValueError: matplotlib knows no such format
            raise KwsdError(f"{options.picture}: cannot be written ({error})", exit_code=IO) from None
    return OK


def _bench_peers(options: argparse.Namespace, config: "Config") -> int:
    from kwsd.peers import as_builtins, measure_peers, report
    from kwsd.recording import DEMO, read_recording

    rounds = measure_peers(config, read_recording(DEMO), say)
    show((json.dumps(as_builtins(rounds), indent=1) if options.json else report(rounds)) + "\n")
    return OK
