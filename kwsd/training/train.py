"""`kwsd train`: clips to a checkpoint."""

import ctypes
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kwsd.device import choose_device
from kwsd.errors import USAGE, ConfigError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training.batches import AugmentedBatches, PlainBatches
from kwsd.training.begin import begin_with, origin
from kwsd.training.checkpoint import Checkpoint, load_checkpoint
from kwsd.training.dataset import digests
from kwsd.training.history import EpochFigures, History, check_board
from kwsd.training.material import load_both, make_batches
from kwsd.training.plan import Plan, TrainOptions, make_plan
from kwsd.training.precision import FromFrames
from kwsd.training.processes import ProcessGroup, join_process_group
from kwsd.training.recipe import Recipe
from kwsd.training.run import Run, learning_rate, moving_average, train_epoch
from kwsd.training.talk import Noise
from kwsd.training.teacher import load_teachers
from kwsd.training.validation import Validated, hold_out

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
SEEN = 30  # batches that the normalisations of an artefact are found again from


def train(options: TrainOptions, say: Callable[[str], None]) -> Checkpoint:
    """Train as the recipe says, write a checkpoint after every epoch, and return the last.

    Under torchrun all its processes train one network, and the first writes and speaks.
    Ctrl-C raises KeyboardInterrupt after a usable checkpoint is on the disk.
    """
    notes = list[str]()
    plan = make_plan(options, notes.append)
    if options.tensorboard:
        check_board()
    device = choose_device(options.device)
    with join_process_group(device) as group:
        plan = replace(plan, say=say if group.leads else _nothing)
        Checkpoint.check_place(plan.out)
        if plan.out.exists() and not options.resume:
            raise ConfigError(f"{plan.out}: is there already; go on with it by --resume, or name another with --out")
        if options.resume:
            _check_same(plan.out, group)
        _check_batch(plan.recipe, group)
        for note in notes:
            plan.say(note)
        torch.manual_seed(options.seed)
        with _saying_what_is_left(plan):
            run = _prepare(plan, group.device(device), group)
            if options.resume:
                _resume(run, plan)
        _keep_memory()  # not before: what was needed to load the clips would be kept as well
        return _epochs(run, plan)


def _check_same(path: Path, group: ProcessGroup) -> None:
    """Raises ConfigError if not all processes have the same checkpoint there: none would notice later."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        digest = "none"
    if not group.all_have(digest):
        raise ConfigError(f"{path}: is not the same for all processes; copy that of the first one to every machine")


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


def _prepare(plan: Plan, device: torch.device, group: ProcessGroup) -> Run:
    options, recipe, labels = plan.options, plan.recipe, plan.labels
    clips, validation = load_both(plan, group)
    noise = Noise(options.data, options.noise)
    batches, quiet_talk = make_batches(plan, clips, noise, device)
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
