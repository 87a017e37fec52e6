"""The `kwsd` command. The only module that ends the process."""

import argparse
import contextlib
import faulthandler
import importlib.util
import itertools
import logging
import math
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kwsd import __version__
from kwsd.audio_format import SAMPLE_RATE
from kwsd.errors import INTERNAL, INTERRUPTED, IO, OK, UNAVAILABLE, USAGE, AudioError, ConfigError, KwsdError
from kwsd.paths import FIFO, FILE, kind_of

Command = Callable[[argparse.Namespace], int]
LONGEST_BENCH_S = 86_400.0
DEBUG = "--debug"
TRAINING = {"torch", "torchaudio", "onnx", "matplotlib", "tqdm"}  # of which a daemon needs nothing


def main() -> NoReturn:
    """Run a command; every way out leads through here."""
    arguments = sys.argv[1:]
    debug = DEBUG in itertools.takewhile(lambda argument: argument != "--", arguments)  # nothing else can be called so
    open_standard_streams()
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = dispatch(arguments)
    except KwsdError as error:
        if debug:
            traceback.print_exc()
        say(f"{error}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        if interrupted.is_set():  # a library that was just imported made another error of it
            code = INTERRUPTED
        elif isinstance(error, ModuleNotFoundError) and error.name in TRAINING:
            say(f"{error.name} is not installed; pip install 'kwsd[train]'")
            code = UNAVAILABLE
        else:
            say(f"internal error: {error!r}; run it with --debug for details, and please report it")
            code = INTERNAL
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends anyway
    code = finish(code)
    # All is said and closed. To take torch apart keeps Python busy for a second or more, PortAudio's own way out waits
    # for ever for a sound server that hangs, and a thread that still loads ONNX Runtime would abort the process.
    if {"torch", "sounddevice", "onnxruntime"} & sys.modules.keys():
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def open_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr came closed: else the next file or socket that is opened takes
    its number, and gets events and messages written into it. To Python a closed stdin stays None."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    # A duplicate, which is heard even while what C libraries write to 2 is kept out (portaudio.py).
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    if faulthandler.is_enabled():
        faulthandler.enable(sys.stderr)


def finish(code: int) -> int:
    """Flush what was printed; a reader that went away is no error, a full disk is."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains at exit
    except OSError as error:
        if code == OK:  # else the reason was said
            say(f"stdout: cannot be written ({error.strerror})")
            code = IO
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def show(text: str) -> None:
    """Data for stdout, written at once. Raises KwsdError if the disk is full, BrokenPipeError if nobody reads."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise KwsdError(f"stdout: cannot be written ({error.strerror})", exit_code=IO) from None


def say(message: str) -> None:
    """One line for the user."""
    with contextlib.suppress(OSError):  # nowhere to say it: the exit code does
        print(f"kwsd: {message}", file=sys.stderr, flush=True)


def dispatch(arguments: list[str]) -> int:
    """Parse and run; `kwsd --config X` is `kwsd run --config X`."""
    first = next((argument for argument in arguments if argument != DEBUG), None)
    if first is None or (first.startswith("-") and first not in ("-h", "--help", "--version")):
        arguments = ["run", *arguments]
    options = make_parser().parse_args(arguments)
    command: Command = options.command
    return command(options)


# --- parsing ------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Takes no option for another that begins like it: what is typed today means the same when there are more."""

    def __init__(self, **more: Any) -> None:
        super().__init__(allow_abbrev=False, **more)


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser: argparse.ArgumentParser = Parser(
        prog="kwsd",
        description="Hear spoken commands and turn them into JSON events. Without a command: run.",
    )
    _add_debug(parser)
    parser.add_argument("--version", action="version", version=f"kwsd {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_run,
        _add_check,
        _add_devices,
        _add_doctor,
        _add_monitor,
        _add_ctl,
        _add_replay,
        _add_record,
        _add_train,
        _add_eval,
        _add_mix,
        _add_export,
        _add_bench,
        _add_schema,
        _add_completion,
    ):
        add(commands)
    return parser


DOCTOR_S, LONGEST_DOCTOR_S = 3.0, 4.0  # as much as an inlet keeps
BENCH_S, SCALE_S = 60.0, 5.0  # how long a daemon is measured

if TYPE_CHECKING:
    from kwsd.artefact import ArtefactInfo
    from kwsd.config import Config

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _add(commands: "Commands", name: str, command: Command, about: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(command=command)
    _add_debug(parser)
    return parser


def _add_debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(DEBUG, action="store_true", help="show tracebacks")


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (default: the one kwsd comes with)")
    parser.add_argument(
        "--model", type=Path, metavar="FILE", help="artefact, or commands or commands-fast, instead of the config's"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting, e.g. debouncer.threshold=0.9",
    )


def _add_run(commands: "Commands") -> None:
    parser = _add(commands, "run", run, "Listen, and write one JSON line per event to stdout and the socket.")
    _add_config_options(parser)
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help="listen to this instead: - (raw s16le 16 kHz mono on stdin), a FIFO, an audio file, or microphone",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log every event, too")


def _add_check(commands: "Commands") -> None:
    parser = _add(commands, "check", check, "Validate a configuration and print the effective one.")
    _add_config_options(parser)


def _add_devices(commands: "Commands") -> None:
    parser = _add(commands, "devices", devices, "List the microphones.")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_doctor(commands: "Commands") -> None:
    parser = _add(commands, "doctor", doctor, "Look for whatever keeps kwsd from hearing, and name the remedy.")
    _add_config_options(parser)
    parser.add_argument(
        "--seconds", type=float, default=DOCTOR_S, metavar="S", help="how long each microphone is recorded (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, one finding per line")


def _add_monitor(commands: "Commands") -> None:
    parser = _add(commands, "monitor", monitor, "Watch level, scores and events in a terminal.")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="of a running daemon (default: where it usually is)"
    )
    parser.add_argument(
        "--source", metavar="SOURCE", help="listen to this, without a daemon: a FIFO, an audio file, or microphone"
    )
    _add_config_options(parser)


def _add_ctl(commands: "Commands") -> None:
    parser = _add(commands, "ctl", control, "Tell a running daemon what to do, or ask how it is.")
    _add_ctl_options(parser)
    after = Parser(add_help=False, argument_default=argparse.SUPPRESS)  # what is said before the order holds, too
    _add_ctl_options(after)
    _add_debug(after)
    orders = parser.add_subparsers(title="what to do", metavar="DO", dest="order", required=True)

    def add(order: str, about: str, description: str | None = None) -> argparse.ArgumentParser:
        return orders.add_parser(order, help=about, description=description, parents=[after])

    add("status", "how it is: streams, keywords, what is wrong")
    for order, about in (("mute", "tell no more of what is said"), ("unmute", "tell it again")):
        muting = add(order, about, f"{about.capitalize()}.")
        muting.add_argument("streams", nargs="*", metavar="STREAM", help="which (default: all, and those to come)")
    threshold = add("threshold", "from which score on a keyword counts", "Until the configuration is read again.")
    threshold.add_argument("keyword", metavar="KEYWORD")
    threshold.add_argument("value", metavar="SCORE", help="0 to 1, or default: what the configuration says")
    add("reload", "read the configuration again")
    watch = add("watch", "print events as they come", "Print events as they come.")
    for name, about in (("types", "such as detection"), ("streams", "by name"), ("keywords", "by name")):
        watch.add_argument(f"--{name}", nargs="+", metavar="NAME", help=f"only these: {about}")
    watch.add_argument("--scores", action="store_true", help="also what the model says of every window")


def _add_ctl_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--socket", type=Path, metavar="PATH", help="of the daemon (default: where it usually is)")
    parser.add_argument("--json", action="store_true", help="the answer as the daemon gives it")


def _add_replay(commands: "Commands") -> None:
    parser = _add(commands, "replay", replay, "Run the daemon's pipeline on recordings, as fast as it goes.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="WAV, FLAC or Ogg, any rate")
    parser.add_argument("--channel", default="mix", metavar="N", help="which channel, from 1, or mix (default)")
    _add_config_options(parser)


def _add_record(commands: "Commands") -> None:
    parser = _add(commands, "record", record, "Have words said, and keep each in a file of its own, to train on.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where DIR/<word>/<speaker>_nohash_<n>.wav go")
    parser.add_argument("words", nargs="+", metavar="WORD", help="to be said, in turns; _unknown_ for other words")
    parser.add_argument("--count", type=int, metavar="N", help="how often each (default: 20; of a FILE all there are)")
    parser.add_argument("--speaker", metavar="NAME", help="who speaks (default: the user)")
    parser.add_argument("--device", default="default", metavar="DEVICE", help="as kwsd devices names it, or its number")
    parser.add_argument("--source", type=Path, metavar="FILE", help="cut up a recording of one word instead")


def _add_train(commands: "Commands") -> None:
    parser = _add(commands, "train", train, "Train a network on Speech Commands, or on recordings of your own.")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="simplenet, stcn-small (-base), dstcn-tiny (-small, -base), bcresnet-1 (-1.5, -2, -3, -6, -8)",
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="YAML", help="model, labels and hyper-parameters, such as models/commands.yaml"
    )
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that holds SpeechCommands/")
    _add_words(parser)
    parser.add_argument("--download", action="store_true", help="fetch the data set into ROOT if it is not there")
    parser.add_argument(
        "--labels", metavar="LABELS", help="all, commands, or a,b,c (default: as the network's recipe says)"
    )
    parser.add_argument(
        "--negatives",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="long recordings of talk, heard as _unknown_, but for keywords in a transcript",
    )
    parser.add_argument(
        "--noise", type=Path, action="append", default=[], metavar="DIR", help="more recordings of noise"
    )
    parser.add_argument("--quick", action="store_true", help="a demo in under a minute: few clips, few epochs")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training clips")
    parser.add_argument("--batch", type=int, metavar="N", help="windows per step, over all processes")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="the highest (default: the recipe's)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="checkpoint (default: models/NAME.ckpt)")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoint")
    parser.add_argument(
        "--init", type=Path, metavar="FILE",
        help="begin with what this checkpoint or ONNX artefact has learnt, or commands or commands-fast",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", type=Path, action="append", default=[], metavar="FILE",
        help="learn also from what this checkpoint or artefact says; of several, from their mean",
    )  # fmt: skip
    parser.add_argument("--tensorboard", type=Path, metavar="DIR", help="also write the figures for TensorBoard")


def _add_words(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--words", type=Path, action="append", default=[], metavar="DIR",
        help="recordings of your own, DIR/<word>/*.wav, instead of --data or besides",
    )  # fmt: skip


def _add_eval(commands: "Commands") -> None:
    parser = _add(
        commands, "eval", evaluate, "Accuracy of a model on labelled clips, or what the daemon makes of recordings."
    )
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="artefact, or (for clips) checkpoint")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="clips: folder that holds SpeechCommands/")
    _add_words(parser)
    parser.add_argument(
        "--stream", type=Path, nargs="*", metavar="FILE", help="recordings with a .tsv (start_s, end_s, keyword) beside"
    )
    parser.add_argument(
        "--negatives", type=Path, action="append", default=[], metavar="DIR",
        help="with --stream: talk; keywords in its transcripts.tsv are forgiven, what has no transcript is left out",
    )  # fmt: skip
    parser.add_argument(
        "--continuous", action="store_true",
        help="with --negatives: the recordings of a folder end to end, as a radio talks; else each after a silence",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="with --stream: its rules (default: kwsd's own)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="with --stream: override a setting"
    )
    parser.add_argument(
        "--budget", type=float, metavar="FA/H", help="with --stream: name the thresholds that keep to it on the talk"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="with --stream: misses against false accepts, as .html or .png"
    )
    parser.add_argument(
        "--subset", choices=("training", "validation", "testing"), help="of the clips (default: testing)"
    )
    parser.add_argument(
        "--noise", type=Path, action="append", default=[], metavar="DIR", help="more recordings of silence and noise"
    )
    parser.add_argument("--picture", type=Path, metavar="PNG", help="confusion matrix (default: beside the model)")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_mix(commands: "Commands") -> None:
    parser = _add(commands, "mix", mix, "Build a long recording of known words, for kwsd eval --stream.")
    parser.add_argument("out", type=Path, metavar="FILE", help=".wav or .flac; its words go into a .tsv beside it")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder that holds SpeechCommands/")
    _add_words(parser)
    parser.add_argument("--subset", choices=("training", "validation", "testing"), default="testing")
    parser.add_argument("--count", type=int, default=200, metavar="N", help="how many words (default 200)")
    parser.add_argument(
        "--labels", metavar="LABELS",
        help="which, in turn: commands (default with --data), all, or a,b,c; without --data all there are",
    )  # fmt: skip
    parser.add_argument(
        "--pause", type=float, nargs=2, default=(1.5, 2.5), metavar=("FROM", "TO"), help="seconds between clips"
    )
    parser.add_argument("--snr", type=float, metavar="DB", help="words over background noise (default: none)")
    parser.add_argument("--noise", type=Path, action="append", default=[], metavar="DIR", help="with --snr: more of it")
    parser.add_argument("--reverb", type=float, default=0.0, metavar="S", help="reverberation time (RT60)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")


def _add_export(commands: "Commands") -> None:
    parser = _add(commands, "export", export, "Turn a checkpoint into an artefact the daemon loads.")
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="from kwsd train, or a bare SimpleNet state_dict")
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FILE", help="where the artefact goes: .onnx or .pt"
    )
    parser.add_argument("--labels", metavar="LABELS", help="labels of a bare state_dict, in order: all, or a,b,c")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="compare on its test clips, and store the accuracy")
    _add_words(parser)
    parser.add_argument(
        "--noise", type=Path, action="append", default=[], metavar="DIR", help="recordings of noise, for _silence_"
    )
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="[LABEL=]SCORE",
        help="recommended threshold, for all labels or one",
    )
    parser.add_argument(
        "--second",
        type=Path,
        metavar="CKPT",
        help="another checkpoint with the same labels, asked only where this one suspects a keyword; both in one file",
    )


def _add_bench(commands: "Commands") -> None:
    parser = _add(commands, "bench", bench, "Measure every stage, and the whole daemon on real audio.")
    _add_config_options(parser)
    parser.add_argument("--streams", type=int, metavar="N", help="streams scored at once (default 1)")
    parser.add_argument("--scale", action="store_true", help="search for the most real-time streams one core carries")
    parser.add_argument("--peers", action="store_true", help="measure other spotters that are installed beside kwsd")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="with --scale: draw streams against lag and CPU")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long the daemon runs (default 60; with --scale, each time, 5)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_schema(commands: "Commands") -> None:
    parser = _add(commands, "schema", schema, "Print the JSON Schema of a configuration, or of an event.")
    parser.add_argument("of", choices=("config", "events"))


def _add_completion(commands: "Commands") -> None:
    parser = _add(commands, "completion", completion, "Print what a shell needs to complete command lines of kwsd.")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


# --- commands -----------------------------------------------------------------------------------------------


def _settings(options: argparse.Namespace, *more: str) -> tuple[str, ...]:
    model = (f"model={_yaml(_model(options.model).resolve())}",) if options.model else ()
    return (*model, *more, *options.set)


def _yaml(value: Any) -> str:
    """Paths and all else as YAML, which means the same whatever is in it."""
    import json

    text = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub(r"[\ud800-\udfff]", lambda part: f"\\u{ord(part[0]):04x}", text)  # of a name that is no UTF-8


def _model(named: Path) -> Path:
    """A file, or a model that kwsd comes with, by its name."""
    from kwsd.config import shipped_model

    return named if kind_of(named) is not None else shipped_model(str(named)) or named


def run(options: argparse.Namespace) -> int:
    """`kwsd run`"""
    # Until the daemon has its own: nothing is open yet, and an import that an exception interrupts may crash.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(OK))
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    from kwsd.config import load_config
    from kwsd.daemon import run as run_daemon
    from kwsd.log import set_up_logging

    set_up_logging(logging.DEBUG if options.verbose else logging.INFO)
    source = (f"streams=[{_stream(options.source)}]",) if options.source is not None else ()
    read_before = False

    def load() -> "Config":
        nonlocal read_before
        if read_before and options.config:
            _check_readable_again(options.config)
        read_before = True
        return load_config(options.config, _settings(options, *source))

    return run_daemon(load)


def _check_readable_again(config: Path) -> None:
    """A reload is no reason for a silent default. Raises ConfigError where what was read is gone."""
    if kind_of(config) == FIFO:
        raise ConfigError(f"{config}: could be read only once; name a file, to be read again on reload")
    if kind_of(config) == FILE and config.stat().st_size == 0:
        raise ConfigError(f"{config}: is empty; write {{}} for kwsd's own configuration")


def _stream(source: str) -> str:
    """A stream for `--source`, as YAML."""
    if source == "-":
        return _yaml({"source": "pcm", "name": "stdin", "path": "-"})
    if not source:
        raise ConfigError("--source: is empty; name an audio file, a FIFO, or - for stdin", exit_code=USAGE)
    if source == "microphone":
        return _yaml({"source": "microphone", "name": "mic"})
    from kwsd.source import printable

    path = Path(source).absolute()
    name = printable(path.name)[:64]
    if kind_of(path) == FIFO:
        return _yaml({"source": "pcm", "name": name, "path": path, "reopen": False})
    return _yaml({"source": "file", "name": name, "path": path})


def check(options: argparse.Namespace) -> int:
    """`kwsd check`"""
    from kwsd.check import check as check_all
    from kwsd.config import effective_yaml, load_config

    config = load_config(options.config, _settings(options))
    check_all(config)
    show(effective_yaml(config))
    return OK


def devices(options: argparse.Namespace) -> int:
    """`kwsd devices`"""
    import json

    from kwsd.aside import in_time
    from kwsd.portaudio import portaudio

    audio = in_time(portaudio)
    found = audio.devices()
    default = audio.find("default")["index"]
    if options.json:
        show(f"{json.dumps(found, indent=1)}\n")
        return OK
    for device in found:
        mark = "*" if device["index"] == default else " "
        rate, channels = device["default_samplerate"], device["max_input_channels"]
        show(f"{mark}{device['index']:3d}  {rate:6.0f} Hz  {channels:3d} channels  {device['name']}\n")
    return OK


def doctor(options: argparse.Namespace) -> int:
    """`kwsd doctor`"""
    import json

    from kwsd.config import load_config
    from kwsd.doctor import FAIL, examine

    if not 0.5 <= options.seconds <= LONGEST_DOCTOR_S:
        raise ConfigError(f"--seconds {options.seconds:g}: from 0.5 to {LONGEST_DOCTOR_S:g}", exit_code=USAGE)
    wrong = 0
    for finding in examine(lambda: load_config(options.config, _settings(options)), options.seconds):
        wrong += finding.state == FAIL
        show(f"{json.dumps(finding.as_dict()) if options.json else finding}\n")
    return UNAVAILABLE if wrong else OK


def monitor(options: argparse.Namespace) -> int:
    """`kwsd monitor`"""
    from kwsd import client
    from kwsd import monitor as monitoring

    alone = options.source is not None or bool(options.config or options.model or options.set)
    if alone and options.socket:
        raise ConfigError("monitor: --socket watches a daemon that runs; leave out the other options", exit_code=USAGE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(monitoring.ended_by_signals())
        if alone:
            path = stack.enter_context(monitoring.daemon_of_our_own(_own_daemon(options)))
        else:
            path = options.socket or client.usual_socket("name a --source to listen to")
        with contextlib.suppress(KeyboardInterrupt):
            monitoring.monitor(lambda: client.lines_of(path, scores=True))
    return OK


def control(options: argparse.Namespace) -> int:
    """`kwsd ctl`"""
    import json

    from kwsd import client

    path = options.socket or client.usual_socket()
    if options.order == "watch":
        wish = {"types": options.types, "streams": options.streams, "keywords": options.keywords}
        hidden = {"hello", "answer"} | ({"shutdown"} - set(options.types) if options.types else set())
        for event in client.lines_of(path, scores=options.scores, **wish):
            if event["type"] == "refused":
                raise ConfigError(f"watch: {event['reason']}", exit_code=USAGE)
            if event["type"] not in hidden:
                show(f"{json.dumps(event, separators=(',', ':'))}\n")
        return OK
    answer = client.ask(path, options.order, **_arguments(options))
    if options.json:
        show(f"{json.dumps(answer)}\n")
    elif "status" in answer:
        show(client.describe(answer["status"]))
    return OK


def _arguments(options: argparse.Namespace) -> dict[str, object]:
    """Of a command for the daemon."""
    if options.order in ("mute", "unmute"):
        return {"streams": options.streams or None}
    if options.order != "threshold":
        return {}
    try:
        value = None if options.value == "default" else float(options.value)
    except ValueError:
        value = -1.0
    if value is not None and not 0.0 <= value <= 1.0:
        raise ConfigError(f"threshold {options.value}: a number from 0 to 1, or default", exit_code=USAGE)
    return {"keyword": options.keyword, "value": value}


def _own_daemon(options: argparse.Namespace) -> list[str]:
    """The options of `kwsd run` among those of another command."""
    arguments = ["--config", str(options.config)] if options.config else []
    arguments += ["--model", str(options.model)] if options.model else []
    arguments += ["--source", options.source, "--set", "listen.on=[]"] if options.source is not None else []
    return [*arguments, *(part for setting in options.set for part in ("--set", setting))]


def replay(options: argparse.Namespace) -> int:
    """`kwsd replay`"""
    from kwsd.config import load_config
    from kwsd.engines import load_spotter
    from kwsd.event import Stamp
    from kwsd.recording import open_recording
    from kwsd.replay import replay as replay_file
    from kwsd.replay import streams_of

    channel = _channel(options.channel)
    config = load_config(options.config, _settings(options))
    for path in options.files:
        open_recording(path).close()  # a bad one is told at once, not after those before it
    spotter = load_spotter(config.model_path, config.device, config.model_sha256, config.engine)
    stamp = Stamp()
    for path, stream in zip(options.files, streams_of(options.files), strict=True):
        for event in replay_file(config, spotter, path, channel, stream):
            show(stamp.line(event).decode())
    return OK


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
        from kwsd.listening import make_source

        device = int(options.device) if options.device.isdecimal() else options.device
        source = in_time(lambda: make_source(MicrophoneConfig(device=device), Config(), (), patient=False))
        count = count or 20
    shelf.make_room(options.words)
    kept = record_words(source, shelf, options.words, count, lambda line: show(f"{line}\n"))
    if options.source and not any(kept.values()):
        raise AudioError(f"{options.source}: nobody says a word alone in it; leave half a second between words")
    say(f"{options.folder}: {', '.join(f'{n} of {word}' for word, n in kept.items())} more")
    return OK


def _user() -> str:
    """Who we are; not everybody has a name."""
    import getpass

    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return f"user{os.getuid()}"


def _channel(text: str) -> int | None:
    if text == "mix":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--channel {text}: a number from 1, or mix", exit_code=USAGE)
    return int(text) - 1


def train(options: argparse.Namespace) -> int:
    """`kwsd train`"""
    from kwsd.training.train import TrainOptions
    from kwsd.training.train import train as train_network

    if not options.model and not options.recipe and not options.init:
        raise ConfigError("train: which network? name it with --model, --init, or in a --recipe", exit_code=USAGE)
    if options.epochs is not None and options.epochs < 1:
        raise ConfigError(f"--epochs {options.epochs}: at least 1", exit_code=USAGE)
    if options.learning_rate is not None and not 0.0 < options.learning_rate < 1.0:
        raise ConfigError(f"--learning-rate {options.learning_rate:g}: between 0 and 1", exit_code=USAGE)
    if options.download and not options.data:
        raise ConfigError("--download: where to? name a folder with --data", exit_code=USAGE)
    train_network(
        TrainOptions(
            model=options.model,
            data=options.data,
            out=options.out,
            recipe=options.recipe,
            labels=options.labels,
            noise=tuple(options.noise),
            negatives=tuple(options.negatives),
            epochs=options.epochs,
            batch=options.batch,
            learning_rate=options.learning_rate,
            device=options.device,
            seed=options.seed,
            download=options.download,
            quick=options.quick,
            resume=options.resume,
            init=_model(options.init) if options.init else None,
            words=tuple(options.words),
            teachers=tuple(map(_model, options.teacher)),
            tensorboard=options.tensorboard,
            command=_command_line(options),
        ),
        say,
    )
    return OK


def _command_line(options: argparse.Namespace) -> str:
    """What was typed, with the places of data and files taken out: it says how, not where."""
    files = (options.recipe, options.out, options.init, *options.teacher, options.tensorboard)
    names = {str(options.data): "DATA"} if options.data else {}
    for path in (*files, *options.words, *options.negatives, *options.noise):
        if path and not (options.data and path.is_relative_to(options.data)):
            names[str(path)] = path.name

    def told(argument: str) -> str:
        option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
        for place, name in names.items():
            if value == place or value.startswith(f"{place}/"):
                return f"{option}{equals}{name}{value[len(place) :]}"
        return argument

    return " ".join(["kwsd", *map(told, sys.argv[1:])])


def evaluate(options: argparse.Namespace) -> int:
    """`kwsd eval`"""
    import json

    if options.stream is not None:
        return _evaluate_stream(options)
    _refuse(options, "goes with --stream", ("negatives", "continuous", "config", "set", "budget", "report"))
    if not options.data and not options.words:
        raise ConfigError("eval: --data or --words for clips, or --stream FILE… for recordings", exit_code=USAGE)
    from kwsd.training.evaluate import draw_confusion, evaluate_model

    subset, noise, words = options.subset or "testing", tuple(options.noise), tuple(options.words)
    evaluation = evaluate_model(_model(options.model), options.data, subset, noise, words=words)
    for reason in evaluation.skipped:
        say(f"skipped {reason}")
    for note in evaluation.told:
        say(note)
    show((json.dumps(evaluation.as_dict()) if options.json else evaluation.table()) + "\n")
    picture = options.picture or options.model.with_suffix(".confusion.png")
    try:
        draw_confusion(evaluation, picture)
    except (OSError, ValueError) as error:  # ValueError: matplotlib knows no such format
        complaint = f"{picture}: cannot be written ({error}); name a PNG with --picture"
        if options.picture:
            raise KwsdError(complaint, exit_code=IO) from None
        say(complaint)
    else:
        say(f"confusion matrix: {picture}")
    return OK


def _evaluate_stream(options: argparse.Namespace) -> int:
    import json

    from kwsd.config import load_config
    from kwsd.engines import load_spotter
    from kwsd.training import report, streaming

    _refuse(options, "is for clips, not for --stream", ("data", "words", "noise", "picture", "subset"))
    if options.report is not None and not options.report.name:
        raise ConfigError("--report: names no file", exit_code=USAGE)
    if options.budget is not None and not options.negatives:
        raise ConfigError("--budget: false accepts on which talk? name it with --negatives", exit_code=USAGE)
    if options.budget is not None and not 0.0 <= options.budget < math.inf:
        raise ConfigError(f"--budget {options.budget:g}: false accepts per hour, 0 or more", exit_code=USAGE)
    config = load_config(options.config, _settings(options))
    spotter = load_spotter(config.model_path, config.device, config.model_sha256, config.engine)
    evaluation = streaming.evaluate_stream(
        config, spotter, options.stream, options.negatives, continuous=options.continuous
    )
    within = None if options.budget is None else streaming.thresholds_for(evaluation, options.budget)
    figures = report.as_dict(evaluation) | ({} if within is None else {"within_budget": within})
    show((json.dumps(figures) if options.json else report.table(evaluation)) + "\n")
    if within is not None:
        say(_within(options.budget, within, evaluation.talk.hours_of))
    if options.report:
        try:
            report.write(evaluation, options.report)
        except (OSError, ValueError) as error:  # ValueError: matplotlib knows no such format
            raise KwsdError(
                f"{options.report}: cannot be written ({error}); name .html or .png", exit_code=IO
            ) from None
        say(f"misses against false accepts: {options.report}")
    return OK


def _refuse(options: argparse.Namespace, why: str, names: Sequence[str]) -> None:
    """Options that would do nothing. Raises ConfigError if one is given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False and value != []:
            raise ConfigError(f"--{name}: {why}; leave it out", exit_code=USAGE)


def _within(budget: float, thresholds: dict[str, float], hours_of: dict[Path, float]) -> str:
    """What to hand to `kwsd export`: what suits most words, and the rest by name."""
    several = len(hours_of) > 1
    within = f"at most {budget:g} false accepts per hour of {'the talk of each folder' if several else 'this talk'}"
    folder, hours = min(hours_of.items(), key=lambda item: item[1], default=(Path(), 0.0))
    if hours * budget < 1.0:
        which = f"the {60 * hours:.1f} min of {folder}" if several else f"its {60 * hours:.1f} min"
        within += f" (none in {which}: more of it would tell more)"
    if not thresholds:
        return f"{within}: no threshold keeps to that"
    scores = sorted(thresholds.values())
    most = max(scores, key=scores.count)
    others = [f" --threshold {shlex.quote(f'{word}={score:g}')}" for word, score in thresholds.items() if score != most]
    return f"{within}: kwsd export --threshold {most:g}{''.join(others)}"


def mix(options: argparse.Namespace) -> int:
    """`kwsd mix`"""
    from kwsd.training import mix as mixing
    from kwsd.training.labels import parse_labels

    if not options.data and not options.words:
        raise ConfigError("mix: of which words? name --data, or a folder of --words", exit_code=USAGE)
    labels = options.labels or ("commands" if options.data else None)
    keywords = tuple(label for label in parse_labels(labels, 1) if not label.startswith("_")) if labels else ()
    if labels and not keywords:
        raise ConfigError(f"--labels {labels}: none of them is a word; name some, or leave it out", exit_code=USAGE)
    if options.snr is None:
        _refuse(options, "goes with --snr", ("noise",))
    mixture = mixing.Mixture(
        options.count, keywords, tuple(options.pause), options.snr, decay_s=options.reverb, seed=options.seed
    )
    noise, words = tuple(options.noise), tuple(options.words)
    recording, truth = mixing.mix(mixture, options.data, options.subset, noise, words, say=say)
    mixing.write(recording, truth, options.out)
    say(f"{options.out}: {len(truth)} words in {recording.size / SAMPLE_RATE / 60:.1f} min")
    return OK


def export(options: argparse.Namespace) -> int:
    """`kwsd export`"""
    from kwsd.training.export import export_checkpoint

    if not options.data and not options.words:
        _refuse(options, "goes with --data or --words", ("noise",))
    info = export_checkpoint(
        options.checkpoint,
        options.out,
        options.labels,
        options.data,
        tuple(options.threshold),
        words=tuple(options.words),
        noise=tuple(options.noise),
        second=options.second,
        say=say,
    )
    networks = f"{info.architecture} and a second network" if options.second else info.architecture
    say(f"{options.out}: {networks}, {len(info.labels)} labels, {info.id}; same outputs as the checkpoint")
    say(_counting_from(info))
    return OK


def _counting_from(info: "ArtefactInfo") -> str:
    """From which score on words count."""
    from kwsd.pipeline import FALLBACK_THRESHOLD

    words = [label for label in info.labels if not label.startswith("_")]
    own = {word: info.thresholds[word] for word in words if word in info.thresholds}
    rest = f"{FALLBACK_THRESHOLD:g}" if len(own) < len(words) else ""
    told = ", ".join([*(f"{word} {score:g}" for word, score in own.items()), *([f"all others {rest}"] if rest else [])])
    return f"words count from a score of {told if own else rest}; --threshold says otherwise, kwsd eval --stream which"


def _bench_scale(options: argparse.Namespace, config: "Config") -> int:
    import json

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
    import json

    from kwsd.peers import as_builtins, measure_peers, report
    from kwsd.recording import DEMO, read_recording

    rounds = measure_peers(config, read_recording(DEMO), say)
    show((json.dumps(as_builtins(rounds), indent=1) if options.json else report(rounds)) + "\n")
    return OK


def bench(options: argparse.Namespace) -> int:
    """`kwsd bench`"""
    import json

    from kwsd.bench import measure, report
    from kwsd.config import load_config

    if options.peers:
        _refuse(options, "is not for --peers", ("scale", "streams", "seconds"))
    if options.scale:
        _refuse(options, "--scale seeks how many", ("streams",))
    if options.streams is not None and options.streams < 1:
        raise ConfigError(f"--streams {options.streams}: at least 1", exit_code=USAGE)
    if options.seconds is not None and not 0 < options.seconds <= LONGEST_BENCH_S:
        raise ConfigError(f"--seconds {options.seconds:g}: more than 0, at most a day", exit_code=USAGE)
    if options.picture and not options.scale:
        raise ConfigError("--picture: only --scale has something to draw", exit_code=USAGE)
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--picture: matplotlib is not installed; pip install 'kwsd[train]'", exit_code=UNAVAILABLE)
    config = load_config(options.config, _settings(options))
    if options.scale:
        return _bench_scale(options, config)
    if options.peers:
        return _bench_peers(options, config)
    figures = measure(config, options.streams or 1, options.seconds or BENCH_S)
    show((json.dumps(figures, indent=1) if options.json else report(figures)) + "\n")
    return OK


def schema(options: argparse.Namespace) -> int:
    """`kwsd schema`"""
    import json

    from kwsd.schema import config_schema, events_schema

    described = config_schema() if options.of == "config" else events_schema()
    show(f"{json.dumps(described, indent=1, ensure_ascii=False)}\n")
    return OK


def completion(options: argparse.Namespace) -> int:
    """`kwsd completion`"""
    from kwsd.completion import completion as completion_for

    show(completion_for(make_parser(), options.shell, "run"))
    return OK
