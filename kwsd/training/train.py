"""`kwsd train`: clips to a checkpoint."""

import ctypes
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kwsd.artefact import SILENCE, UNKNOWN
from kwsd.audio_format import SAMPLE_RATE
from kwsd.device import choose_device
from kwsd.errors import USAGE, AudioError, ConfigError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training.batches import AugmentedBatches, PlainBatches
from kwsd.training.begin import Origin, begin_with, origin
from kwsd.training.checkpoint import SPEECH_COMMANDS, UNTOLD, Checkpoint, load_checkpoint
from kwsd.training.dataset import Clips, counts, digests, load_subset
from kwsd.training.history import EpochFigures, History, check_board
from kwsd.training.labels import parse_labels
from kwsd.training.negatives import Negatives
from kwsd.training.precision import FromFrames
from kwsd.training.processes import ProcessGroup, join_process_group
from kwsd.training.recipe import RECIPES, Recipe, read_recipe
from kwsd.training.run import Run, learning_rate, moving_average, train_epoch
from kwsd.training.talk import Noise, load_talk, part_talk, transcribed
from kwsd.training.teacher import load_teachers
from kwsd.training.validation import Validated, hold_out, labelled_windows

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
QUICK_EPOCHS = 3
QUICK_CLIPS = {"training": 2000, "validation": 500}  # at most, evenly over the words
TALK_HELD_OUT = 0.1  # of the negatives: to validate on
FEW_CLIPS = 20  # of a word in training: less than this teaches one speaker's way of saying it
FEW_TO_VALIDATE = 3  # clips of a word
WANTED_CLIPS = 50  # by at least ten people
SEEN = 30  # batches that the normalisations of an artefact are found again from


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


def train(options: TrainOptions, say: Callable[[str], None]) -> Checkpoint:
    """Train as the recipe says, write a checkpoint after every epoch, and return the last.

    Under torchrun all its processes train one network, and the first writes and speaks.
    Ctrl-C raises KeyboardInterrupt after a usable checkpoint is on the disk.
    """
    begun = _begun(options)
    model, recipe = _recipe(options, begun)
    labels = _labels(options, recipe, begun)
    recipe, dropped = _with_thresholds_of(labels, recipe, options)
    if options.tensorboard:
        check_board()
    out = options.out or Path("models") / f"{model}.ckpt"
    device = choose_device(options.device)
    with join_process_group(device) as group:
        plan = Plan(model, recipe, labels, out, options, say if group.leads else _nothing, begun)
        Checkpoint.check_place(out)
        if out.exists() and not options.resume:
            raise ConfigError(f"{out}: is there already; go on with it by --resume, or name another with --out")
        _check_batch(recipe, group)
        if dropped:
            plan.say(f"{options.recipe}: has thresholds of words that are no labels, not used: {', '.join(dropped)}")
        torch.manual_seed(options.seed)
        with _saying_what_is_left(plan):
            run = _prepare(plan, group.device(device), group)
            if options.resume:
                _resume(run, plan)
        _keep_memory()  # not before: what was needed to load the clips would be kept as well
        return _epochs(run, plan)


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


def _check_batch(recipe: Recipe, group: ProcessGroup) -> None:
    """Raises ConfigError if a process would get fewer than two windows at a time, of which no batch normalisation can
    be taken."""
    least = 2 * group.world_size
    if recipe.batch < least:
        raise ConfigError(f"--batch {recipe.batch}: at least {least}, two for each process", exit_code=USAGE)


@contextmanager
def _saying_what_is_left(plan: Plan) -> Iterator[None]:
    """Of Ctrl-C before the first epoch."""
    try:
        yield
    except KeyboardInterrupt:
        again = "go on with the same command" if plan.options.resume else "begin again, without --resume"
        plan.say(f"interrupted before anything was learnt; {again}")
        raise


def _nothing(_: str) -> None:
    """What the other processes have to say."""


def _epochs(run: Run, plan: Plan) -> Checkpoint:
    """Those that are left to do."""
    leads, out = run.group.leads, plan.out
    beside = out.name.removesuffix(".ckpt")  # and no more: of `exp1.1` and `exp1.2` each has its own
    history = History(out.with_name(f"{beside}.csv"), run.epoch, plan.options.tensorboard) if leads else None
    saved = run.epoch > 0
    if run.epoch >= run.recipe.epochs:
        plan.say(f"{out}: has all its {run.epoch} epochs; --epochs says how many there are to be")
    try:
        while run.epoch < run.recipe.epochs:
            figures = _one_epoch(run, plan.say)
            if history:
                _checkpoint(run, plan).save(out)
                history.add(figures)
            saved = True
    except KeyboardInterrupt:
        if leads and not saved and not out.exists():  # not even one epoch: better half an epoch than nothing
            run.best_state = _copy(run.judged)
            _checkpoint(run, plan).save(out)
        plan.say(f"stopped; the same command with --resume goes on from {out}")
        raise
    if history:
        history.close()
        history.draw(out.with_name(f"{beside}.png"))
    return _checkpoint(run, plan)


def _checkpoint(run: Run, plan: Plan) -> Checkpoint:
    return Checkpoint(
        model=plan.model,
        labels=plan.labels,
        epoch=run.epoch,
        state=_copy(run.network),
        average_state=None if run.average is None else _copy(run.average.module),
        best_state=run.best_state,
        best_score=run.best_score,
        optimiser=run.optimiser.state_dict(),
        recipe=msgspec.structs.asdict(run.recipe),
        seed=run.seed,
        command=plan.options.command,
        data=_describe(plan.options),
        licence=plan.licence,
        validated_on=run.held_out.name,
        learnt=torch.from_numpy(run.learnt),
    )


def _one_epoch(run: Run, say: Callable[[str], None]) -> EpochFigures:
    """Train, validate if it is time to, and keep the weights if they are the best so far."""
    began = time.monotonic()
    loss, accuracy = train_epoch(run)
    run.epoch += 1
    validated = run.held_out.validate(run.judged, run.device) if _is_time_to_validate(run) else None
    if validated is not None:
        if validated.score >= run.best_score - _tolerance(run, validated):
            run.best_state = _copy(run.judged)
        run.best_score = max(run.best_score, validated.score)
        say(f"epoch {run.epoch}/{run.recipe.epochs}: loss {loss:.3f}, {validated} (best {run.best_score:.1%})")
    elif not run.best_score:  # none is known to be better
        run.best_state = _copy(run.judged)
    return EpochFigures(
        epoch=run.epoch,
        learning_rate=learning_rate(run.recipe, run.epoch),
        loss=loss,
        training_accuracy=accuracy,
        validation_accuracy=validated.accuracy if validated else None,
        spotting=validated.spotting if validated else None,
        seconds=time.monotonic() - began,
    )


def _tolerance(run: Run, validated: Validated) -> float:
    """By how much weights may seem worse than the best so far, and be kept. While the learning rate falls they get
    better, in more than is validated; which of two epochs scores higher within a standard error is chance."""
    return validated.standard_error if run.recipe.schedule == "cosine" else 0.0


def _is_time_to_validate(run: Run) -> bool:
    """After every epoch of a large set. Of a small one only when as many windows were learnt from as are validated on,
    which would else take most of the time; and after the last in any case."""
    learnt, validated_on = len(run.batches) * run.recipe.batch, len(run.held_out)
    times_now, times_before = (epochs * learnt // validated_on for epochs in (run.epoch, run.epoch - 1))
    return times_now > times_before or run.epoch == run.recipe.epochs


def _keep_memory() -> None:
    """Has the C library keep what is freed for the next batch: to get a hundred megabytes of fresh pages from the
    kernel for every one takes a quarter of the time."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 256 << 20)):
            libc.mallopt(option, value)


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


def _prepare(plan: Plan, device: torch.device, group: ProcessGroup) -> Run:
    options, recipe, labels = plan.options, plan.recipe, plan.labels
    clips, validation = _load_both(plan, group)
    noise = Noise(options.data, options.noise)
    batches, quiet_talk = _batches(plan, clips, noise, device)
    memory = torch.channels_last if recipe.channels_last else torch.contiguous_format
    network = NETWORKS[plan.model](len(labels)).to(device, memory_format=memory)  # type: ignore[call-overload]
    learnt = np.unique(digests(clips))
    if options.init and not options.resume:  # else it had its say in the run's first epoch
        learnt = np.union1d(learnt, _begin(plan, options.init, network, batches, device))
    group.synchronise(network)
    optimiser = OPTIMISERS[recipe.optimiser](
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )  # fmt: skip
    return Run(
        network=network,
        learner=FromFrames(network, device, recipe.mixed_precision) if recipe.augment else network,
        optimiser=optimiser,
        batches=batches,
        held_out=hold_out(validation, labels, noise, quiet_talk),
        recipe=recipe,
        labels=labels,
        device=device,
        group=group,
        seed=options.seed,
        average=_average_of(network, recipe.average) if recipe.average else None,
        teacher=load_teachers(options.teachers, labels, device) if options.teachers else None,
        best_state=_copy(network),
        learnt=learnt,
    )


def _load_both(plan: Plan, group: ProcessGroup) -> tuple[Clips, Clips]:
    """The clips to train and to validate on, and what is to be said of them. Raises AudioError if some are both."""
    with group.first_of_machine_first():
        clips, validation = (_load(plan, subset) for subset in ("training", "validation"))
    for note in dict.fromkeys((*clips.told, *validation.told)):
        plan.say(note)
    _check_labels(clips, plan)
    _tell_hardly_validated(validation, plan)
    if not set(clips.paths).isdisjoint(validation.paths):
        raise AudioError(f"{plan.options.data}: validation clips are among the training clips; restore its lists")
    in_both = set(clips.speakers) & set(validation.speakers)
    if in_both and len(set(clips.speakers)) > 1:
        plan.say(
            f"{len(in_both)} of {len(set(validation.speakers))} speakers who are validated on are trained on as well: "
            "strangers will be understood worse than validation says"
        )
    return clips, validation


def _batches(
    plan: Plan, clips: Clips, noise: Noise, device: torch.device
) -> tuple[PlainBatches | AugmentedBatches, NDArray[np.int16] | None]:
    """What is learnt from, and talk to validate on (samples,) if there is any."""
    options, recipe, labels = plan.options, plan.recipe, plan.labels
    if not recipe.augment:
        if options.negatives:
            plan.say(f"{plan.model} learns from clips alone: --negatives are not used")
        windows, targets = labelled_windows(clips, labels, noise, "training")
        return PlainBatches(windows.numpy(), targets.numpy(), recipe.batch, options.seed), None
    talk, quiet_talk = _load_negatives(options, labels, recipe.hard_negatives, plan.say)
    batches = AugmentedBatches(
        clips,
        labels,
        recipe.batch,
        options.seed,
        noise=Negatives(noise.parts("training"), hard=recipe.hard_negatives),
        talk=talk,
        device=device,
    )
    return batches, quiet_talk


def _begin(
    plan: Plan, source: Path, network: nn.Module, batches: PlainBatches | AugmentedBatches, device: torch.device
) -> NDArray[np.int64]:
    """Puts what `source` has learnt into a network. Returns the digests of the clips it learnt that from (n,)."""
    some = (windows.to(device) for windows, _ in islice(batches.epoch(0), SEEN))
    new = begin_with(source, network, plan.model, plan.labels, some)
    if new:
        plan.say(f"{source}: {', '.join(new)} must be learnt from nothing")
    return origin(source).learnt


def _average_of(network: nn.Module, decay: float) -> AveragedModel:
    """The moving average of the weights, and of what batch normalisations have seen: those of the network as it is now
    fit its own weights, not the mean of the last ones."""
    return AveragedModel(network, multi_avg_fn=moving_average(decay), use_buffers=True)


def _load(plan: Plan, subset: str) -> Clips:
    options, say = plan.options, plan.say
    if not options.data and not options.words:
        raise ConfigError("train: nothing to train on; name --data, or a folder of --words", exit_code=USAGE)
    limit = QUICK_CLIPS[subset] if options.quick else None
    clips = load_subset(options.data, options.words, subset, download=options.download, limit=limit)
    for reason in clips.skipped:
        say(f"skipped {reason}")
    if clips.skipped:
        say(f"{subset}: {len(clips.skipped)} of {len(clips) + len(clips.skipped)} clips skipped")
    per_word = ", ".join(f"{word} {n}" for word, n in counts(clips.words).items())
    say(f"{subset}: {len(clips)} clips ({per_word})")
    return clips


def _check_labels(clips: Clips, plan: Plan) -> None:
    """Says which labels have too little to learn from, and what becomes of other words. Raises AudioError if one has
    nothing."""
    labels, say, spoken = plan.labels, plan.say, counts(clips.words)
    keywords = _keywords(labels)
    if set(spoken).isdisjoint(keywords):
        raise AudioError(
            f"none of the training clips is one of the labels {', '.join(labels)}; "
            f"they are of {_some(spoken)}: name --labels"
        )
    missing = [label for label in keywords if label not in spoken]
    if missing:
        _tell_missing(missing, plan)
    others = [f"{word} {n}" for word, n in spoken.items() if word not in labels]
    if others:
        say(f"{f'learnt as {UNKNOWN}' if UNKNOWN in labels else 'not used, as no labels'}: {_some(others)}")
    elif UNKNOWN in labels and UNKNOWN not in spoken and not plan.options.negatives:
        say(
            f"there is nothing to learn {UNKNOWN} from, and whatever is said will be taken for one of the words: "
            "name talk with --negatives, or record other words"
        )
    few = [f"{label} {spoken[label]}" for label in keywords if 0 < spoken.get(label, 0) < FEW_CLIPS]
    if few:
        say(f"few training clips: {', '.join(few)}; {WANTED_CLIPS} of each, from ten people or more, are wanted")
    _tell_unlearnt(plan)
    if len(set(clips.speakers)) == 1:
        say(f"all training clips are of one speaker ({clips.speakers[0]}); others will be understood poorly")


def _tell_hardly_validated(validation: Clips, plan: Plan) -> None:
    """Says of which words it will hardly be known how well they are heard."""
    said = counts(validation.words)
    few = [f"{label} {said.get(label, 0)}" for label in _keywords(plan.labels) if said.get(label, 0) < FEW_TO_VALIDATE]
    if few:
        plan.say(
            f"few validation clips: {_some(few)}; how well these are heard is hardly known, and which weights are best "
            "is decided by the others"
        )


def _tell_unlearnt(plan: Plan) -> None:
    """Says what a network will take for one of its words for want of a label."""
    options, labels = plan.options, plan.labels
    unlearnt = {"talk": UNKNOWN} if options.negatives and plan.recipe.augment else {}
    unlearnt |= {"noise": SILENCE} if options.noise or plan.recipe.augment else {}
    for sound, label in unlearnt.items():
        if label not in labels:
            plan.say(
                f"{sound} is not learnt as {label}, which is no label, and may be taken for one of the words: "
                "add it to --labels"
            )


def _keywords(labels: tuple[str, ...]) -> list[str]:
    return [label for label in labels if not label.startswith("_")]


def _tell_missing(missing: list[str], plan: Plan) -> None:
    """A label that is known already may go without clips. Raises AudioError if there is another, but in a quick try of
    what there is."""
    meant = [f"; did you mean _{label}_?" for label in missing if f"_{label}_" in (UNKNOWN, SILENCE)]
    told = f"no training clips of: {', '.join(missing)}{''.join(meant[:1])}"
    if plan.options.quick or (plan.origin and set(missing) <= set(plan.origin.labels)):
        plan.say(told)
    else:
        raise AudioError(f"{told}; record some, or leave it out of --labels")


def _some(words: Iterable[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    all_of_them = list(words)
    more = len(all_of_them) - most
    return ", ".join(all_of_them[:most]) + (f" and {more} more" if more > 0 else "")


def _load_negatives(
    options: TrainOptions, labels: tuple[str, ...], hard: float, say: Callable[[str], None]
) -> tuple[Negatives | None, NDArray[np.int16] | None]:
    """Talk to train and talk to validate on (samples,), if there is any."""
    parts = []  # whether somebody wrote down what is said, recordings to train on, recordings to validate on
    for folder in options.negatives:
        pieces, left_out = load_talk(folder, labels)
        known = transcribed(folder, pieces)
        minutes, of_them = _minutes(pieces, pieces), _minutes(pieces, known)
        say(
            f"negatives: {minutes:.1f} min from {folder}, {of_them:.1f} min of it with transcripts, "
            f"{left_out} recordings left out for a keyword"
        )
        for is_known in (True, False):
            some = {path: samples for path, samples in pieces.items() if (path in known) == is_known}
            if some:
                parts.append((is_known, *part_talk(some, TALK_HELD_OUT)))
    if not any(to_train for _, to_train, _ in parts):
        return None, None
    parts.sort(key=itemgetter(0), reverse=True)
    checked = sum(len(to_train) for is_known, to_train, _ in parts if is_known)
    if hard and not checked:
        say("hard negatives are sought in noise alone: nobody wrote down what is said in the talk (transcripts.tsv)")
    _, to_train, to_validate = zip(*parts, strict=True)
    held_out = np.concatenate([np.zeros(0, np.int16), *chain(*to_validate)])
    return Negatives([list(chain(*to_train))], hard=hard, checked=checked), held_out


def _minutes(pieces: dict[Path, NDArray[np.int16]], some: Iterable[Path]) -> float:
    return sum(pieces[path].size for path in some) / SAMPLE_RATE / 60


def _resume(run: Run, plan: Plan) -> None:
    checkpoint = load_checkpoint(plan.out)
    if checkpoint.model != plan.model or checkpoint.labels != plan.labels:
        raise ConfigError(
            f"{plan.out}: is a {checkpoint.model} with other labels or size; --resume cannot go on with it"
        )
    if checkpoint.seed != run.seed:
        raise ConfigError(f"{plan.out}: was begun with --seed {checkpoint.seed}; --resume needs the same")
    optimiser = checkpoint.recipe.get("optimiser", run.recipe.optimiser)
    if optimiser != run.recipe.optimiser:
        raise ConfigError(f"{plan.out}: was begun with the optimiser {optimiser}; --resume needs the same")
    try:
        run.network.load_state_dict(checkpoint.state)
        if run.average is not None and checkpoint.average_state is not None:
            run.average.module.load_state_dict(checkpoint.average_state)
            run.average.n_averaged.fill_(checkpoint.epoch * len(run.batches))
        run.optimiser.load_state_dict(checkpoint.optimiser)
    except (RuntimeError, ValueError):
        raise ModelError(f"{plan.out}: a checkpoint of another kwsd; train again without --resume") from None
    for settings in run.optimiser.param_groups:  # which are the checkpoint's by now
        settings["weight_decay"] = run.recipe.weight_decay
    run.learnt = np.union1d(run.learnt, checkpoint.learnt.numpy())
    run.epoch, run.best_score = checkpoint.epoch, checkpoint.best_score
    run.best_state = checkpoint.best_state
    if run.best_score and checkpoint.validated_on != run.held_out.name:  # what is better must be better at the same
        run.best_score = run.held_out.validate(checkpoint.network().to(run.device), run.device).score
        plan.say(f"validated on other recordings than before: the best weights so far come to {run.best_score:.1%}")


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _describe(options: TrainOptions) -> str:
    parts = ["Speech Commands v0.02 layout"] if options.data else []
    parts += [f"words from {folder.name}" for folder in options.words]
    parts += [f"noise from {folder.name}" for folder in options.noise]
    parts += [f"talk from {'/'.join(folder.parts[-2:])}" for folder in options.negatives]
    return ", ".join(parts)
