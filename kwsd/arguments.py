"""What can be said on the command line, and which command each is for."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwsd import __version__
from kwsd.commands import descriptions, figures, live, models, recordings

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

Command = Callable[[argparse.Namespace], int]
DEBUG = "--debug"
DOCTOR_S = 3.0  # how long each microphone is recorded


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
        _add_synthesise,
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
    parser = _add(commands, "run", live.run, "Listen, and write one JSON line per event to stdout and the socket.")
    _add_config_options(parser)
    parser.add_argument(
        "--source",
        metavar="SOURCE",
        help="listen to this instead: - (raw s16le 16 kHz mono on stdin), a FIFO, an audio file, or microphone",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log every event, too")


def _add_check(commands: "Commands") -> None:
    parser = _add(commands, "check", live.check, "Validate a configuration and print the effective one.")
    _add_config_options(parser)


def _add_devices(commands: "Commands") -> None:
    parser = _add(commands, "devices", live.devices, "List the microphones.")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_doctor(commands: "Commands") -> None:
    parser = _add(commands, "doctor", live.doctor, "Look for whatever keeps kwsd from hearing, and name the remedy.")
    _add_config_options(parser)
    parser.add_argument(
        "--seconds", type=float, default=DOCTOR_S, metavar="S", help="how long each microphone is recorded (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, one finding per line")


def _add_monitor(commands: "Commands") -> None:
    parser = _add(commands, "monitor", live.monitor, "Watch level, scores and events in a terminal.")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="of a running daemon (default: where it usually is)"
    )
    parser.add_argument(
        "--source", metavar="SOURCE", help="listen to this, without a daemon: a FIFO, an audio file, or microphone"
    )
    _add_config_options(parser)


def _add_ctl(commands: "Commands") -> None:
    parser = _add(commands, "ctl", live.control, "Tell a running daemon what to do, or ask how it is.")
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
    parser = _add(commands, "replay", recordings.replay, "Run the daemon's pipeline on recordings, as fast as it goes.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="WAV, FLAC or Ogg, any rate")
    parser.add_argument("--channel", default="mix", metavar="N", help="which channel, from 1, or mix (default)")
    _add_config_options(parser)


def _add_record(commands: "Commands") -> None:
    parser = _add(
        commands, "record", recordings.record, "Have words said, and keep each in a file of its own, to train on."
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where DIR/<word>/<speaker>_nohash_<n>.wav go")
    parser.add_argument("words", nargs="+", metavar="WORD", help="to be said, in turns; _unknown_ for other words")
    parser.add_argument("--count", type=int, metavar="N", help="how often each (default: 20; of a FILE all there are)")
    parser.add_argument("--speaker", metavar="NAME", help="who speaks (default: the user)")
    parser.add_argument("--device", default="default", metavar="DEVICE", help="as kwsd devices names it, or its number")
    parser.add_argument("--source", type=Path, metavar="FILE", help="cut up a recording of one word instead")


def _add_synthesise(commands: "Commands") -> None:
    parser = _add(
        commands,
        "synthesise",
        recordings.synthesise,
        "Have speech synthesisers say words, to train on besides recordings.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="where DIR/<word>/<voice>_nohash_<n>.wav go")
    parser.add_argument("words", nargs="+", metavar="WORD", help="to be said")
    parser.add_argument(
        "--count", type=int, default=24, metavar="N", help="how often each voice says each (default 24)"
    )
    parser.add_argument("--language", default="en", metavar="LANG", help="as espeak-ng names it (default en)")


def _add_train(commands: "Commands") -> None:
    parser = _add(commands, "train", models.train, "Train a network on Speech Commands, or on recordings of your own.")
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
        commands,
        "eval",
        models.evaluate,
        "Accuracy of a model on labelled clips, or what the daemon makes of recordings.",
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
    parser = _add(commands, "mix", models.mix, "Build a long recording of known words, for kwsd eval --stream.")
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
    parser = _add(commands, "export", models.export, "Turn a checkpoint into an artefact the daemon loads.")
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
    parser = _add(commands, "bench", figures.bench, "Measure every stage, and the whole daemon on real audio.")
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
    parser = _add(commands, "schema", descriptions.schema, "Print the JSON Schema of a configuration, or of an event.")
    parser.add_argument("of", choices=("config", "events"))


def _add_completion(commands: "Commands") -> None:
    parser = _add(
        commands, "completion", descriptions.completion, "Print what a shell needs to complete command lines of kwsd."
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(command_line=make_parser)  # which is to be completed
