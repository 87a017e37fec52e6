"""`kwsd train`, `eval`, `mix` and `export`."""

import argparse
import errno
import json
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kwsd.audio_format import SAMPLE_RATE
from kwsd.commands.options import model_file, refuse, settings
from kwsd.errors import IO, OK, USAGE, ConfigError, KwsdError
from kwsd.terminal import say, show

if TYPE_CHECKING:
    from kwsd.artefact import ArtefactInfo


def train(options: argparse.Namespace) -> int:
    """`kwsd train`"""
    from kwsd.training.plan import TrainOptions
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
            init=model_file(options.init) if options.init else None,
            words=tuple(options.words),
            teachers=tuple(map(model_file, options.teacher)),
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
    if options.stream is not None:
        return _evaluate_stream(options)
    refuse(options, "goes with --stream", ("negatives", "continuous", "config", "set", "budget", "report"))
    if not options.data and not options.words:
        raise ConfigError("eval: --data or --words for clips, or --stream FILE… for recordings", exit_code=USAGE)
    from kwsd.training.evaluate import draw_confusion, evaluate_model

    subset, noise, words = options.subset or "testing", tuple(options.noise), tuple(options.words)
    evaluation = evaluate_model(model_file(options.model), options.data, subset, noise, words=words)
    for reason in evaluation.skipped:
        say(f"skipped {reason}")
    for note in evaluation.told:
        say(note)
    show((json.dumps(evaluation.as_dict()) if options.json else evaluation.table()) + "\n")
    picture = options.picture or _picture_beside(options.model)
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


def _picture_beside(model: Path) -> Path:
    """Without the ending and no more: of `exp1.1` and `exp1.2` each has its own."""
    kept = model.stem if model.suffix in (".ckpt", ".onnx", ".pt") else model.name
    return model.with_name(f"{kept}.confusion.png")


def _evaluate_stream(options: argparse.Namespace) -> int:
    from kwsd.config import load_config
    from kwsd.engines import load_spotter
    from kwsd.training import report, streaming

    refuse(options, "is for clips, not for --stream", ("data", "words", "noise", "picture", "subset"))
    if options.report is not None and not options.report.name:
        raise ConfigError("--report: names no file", exit_code=USAGE)
    if options.report is not None:
        report.check_place(options.report)
    if options.budget is not None and not options.negatives:
        raise ConfigError("--budget: false accepts on which talk? name it with --negatives", exit_code=USAGE)
    if options.budget is not None and not 0.0 <= options.budget < math.inf:
        raise ConfigError(f"--budget {options.budget:g}: false accepts per hour, 0 or more", exit_code=USAGE)
    config = load_config(options.config, settings(options))
    spotter = load_spotter(config.model_path, config.device, config.model_sha256, config.engine)
    evaluation = streaming.evaluate_stream(
        config, spotter, options.stream, options.negatives, continuous=options.continuous
    )
    within = None if options.budget is None else streaming.thresholds_for(evaluation, options.budget)
    figures = report.as_dict(evaluation) | ({} if within is None else {"within_budget": within})
    show((json.dumps(figures) if options.json else report.table(evaluation)) + "\n")
    if within is not None:
        say(_within(options.budget, within, evaluation.talk.hours_of))
        few = streaming.said_seldom(evaluation)
        if within and few:
            say(f"said fewer than {streaming.FEW_WORDS} times, so that their misses did not count: {', '.join(few)}")
        lowest = min(within.values(), default=None)
        if report.heard_everywhere(evaluation, lowest) and not report.heard_everywhere(
            evaluation
        ):  # else it stands above
            missed = evaluation.at(lowest)[0].missed()
            say(f"with {lowest:g}, {missed.right} of {missed.of} words are missed: {report.EVERYWHERE}")
    if options.report:
        try:
            report.write(evaluation, options.report)
        except OSError as error:
            remedy = "make room" if error.errno == errno.ENOSPC else "name another place"
            raise KwsdError(f"{options.report}: cannot be written ({error}); {remedy}", exit_code=IO) from None
        say(f"misses against false accepts: {options.report}")
    return OK


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
        refuse(options, "goes with --snr", ("noise",))
    mixture = mixing.Mixture(
        options.count, keywords, tuple(options.pause), options.snr, decay_s=options.reverb, seed=options.seed
    )
    mixing.check_place(options.out)
    noise, words = tuple(options.noise), tuple(options.words)
    recording, truth = mixing.mix(mixture, options.data, options.subset, noise, words, say=say)
    mixing.write(recording, truth, options.out)
    say(f"{options.out}: {len(truth)} words in {recording.size / SAMPLE_RATE / 60:.1f} min")
    return OK


def export(options: argparse.Namespace) -> int:
    """`kwsd export`"""
    from kwsd.training.export import export_checkpoint

    if not options.data and not options.words:
        refuse(options, "goes with --data or --words", ("noise",))
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
