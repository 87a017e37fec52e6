"""What is to be trained: from the options of the command line to a recipe, labels, and a place for the checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kwsd.errors import USAGE, ConfigError
from kwsd.training.begin import Origin, origin
from kwsd.training.checkpoint import SPEECH_COMMANDS, UNTOLD
from kwsd.training.labels import parse_labels
from kwsd.training.recipe import RECIPES, Recipe, read_recipe

QUICK_EPOCHS = 3


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says."""

    model: str | None
    data: Path | None
    out: Path | None = None
    recipe: Path | None = None
    labels: str | None = None
    noise: tuple[Path, ...] = ()
    negatives: tuple[Path, ...] = ()
    epochs: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    device: str = "auto"
    seed: int = 0
    download: bool = False
    quick: bool = False
    resume: bool = False
    init: Path | None = None
    words: tuple[Path, ...] = ()
    teachers: tuple[Path, ...] = ()
    tensorboard: Path | None = None
    command: str = "kwsd train"


@dataclass(frozen=True)
class Plan:
    """What follows from the options: which network learns which labels, how, and where the checkpoint goes."""

    model: str
    recipe: Recipe
    labels: tuple[str, ...]
    out: Path
    options: TrainOptions
    say: Callable[[str], None]
    origin: Origin | None = None  # what it goes on from, or begins with

    @property
    def licence(self) -> str:
        """Under which the network may be given away."""
        if self.options.data:
            return SPEECH_COMMANDS
        return self.origin.licence if self.origin else UNTOLD


def make_plan(options: TrainOptions, say: Callable[[str], None]) -> Plan:
    """`say` gets what of the recipe is not used. Raises ConfigError for options or a recipe that contradict each other,
    KwsdError for a checkpoint or artefact that cannot be begun with.
    """
    begun = _begun(options)
    model, recipe = _recipe(options, begun)
    labels = _labels(options, recipe, begun)
    recipe, dropped = _with_thresholds_of(labels, recipe, options)
    if dropped:
        say(f"{options.recipe}: has thresholds of words that are no labels, not used: {', '.join(dropped)}")
    out = options.out or Path("models") / f"{model}.ckpt"
    return Plan(model, recipe, labels, out, options, say, begun)


def _begun(options: TrainOptions) -> Origin | None:
    """What the run goes on from, if its checkpoint has a name, or begins with."""
    if options.resume and options.out and options.out.exists():
        return origin(options.out)
    return origin(options.init) if options.init else None


def _labels(options: TrainOptions, recipe: Recipe, begun: Origin | None) -> tuple[str, ...]:
    """Those that are asked for; else a recipe file's, those of what it begins with, or the network's own."""
    if begun and not options.labels and not options.recipe:
        return begun.labels
    return parse_labels(options.labels or recipe.labels)


def _with_thresholds_of(
    labels: tuple[str, ...], recipe: Recipe, options: TrainOptions
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe without thresholds of words that are no labels, if other labels than its own are asked for; and which
    those were. Raises ConfigError if it has some for other words than its own labels."""
    others = tuple(word for word in recipe.thresholds if word not in labels)
    if others and not options.labels:
        raise ConfigError(f"thresholds: {others[0]} is none of the labels {', '.join(labels)}")
    kept = {word: score for word, score in recipe.thresholds.items() if word in labels}
    return msgspec.structs.replace(recipe, thresholds=kept), others


def _recipe(options: TrainOptions, begun: Origin | None) -> tuple[str, Recipe]:
    """The network's name, and how it is trained."""
    if options.recipe:
        model, recipe = read_recipe(options.recipe)
        if options.model not in (None, model):
            raise ConfigError(f"--model {options.model}: {options.recipe} is for {model}; leave out one of the two")
    else:
        model = options.model or (begun.model if begun else "")
        if model not in RECIPES:
            raise ConfigError(f"--model {model}: no such network; there are {', '.join(RECIPES)}")
        recipe = RECIPES[model]
    if not 0 <= options.seed < 1 << 63:
        raise ConfigError(f"--seed {options.seed}: from 0 to 2^63 - 1", exit_code=USAGE)
    if options.quick:
        recipe = msgspec.structs.replace(recipe, epochs=QUICK_EPOCHS, warmup_epochs=0.5)
    said = {"epochs": options.epochs, "batch": options.batch, "learning_rate": options.learning_rate}
    return model, msgspec.structs.replace(recipe, **{key: value for key, value in said.items() if value is not None})
