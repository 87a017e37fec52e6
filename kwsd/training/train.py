"""`kwsd train`: clips to a checkpoint."""

import ctypes
import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from kwsd.audio_format import SAMPLE_RATE
from kwsd.device import choose_device
from kwsd.errors import USAGE, AudioError, ConfigError, KwsdError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training import augment
from kwsd.training.batches import AugmentedBatches, PlainBatches, targets_of
from kwsd.training.checkpoint import Checkpoint, load_checkpoint
from kwsd.training.dataset import Clips, counts, join, load_clips, load_noise, load_talk, load_words, part_talk
from kwsd.training.history import EpochFigures, History
from kwsd.training.labels import parse_labels
from kwsd.training.recipe import RECIPES, Recipe
from kwsd.training.teacher import Teacher, load_teacher
from kwsd.training.validation import HeldOut, hold_out

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
QUICK_EPOCHS = 3
QUICK_CLIPS = {"training": 2000, "validation": 500}  # at most, evenly over the words
TALK_HELD_OUT = 0.1  # of the negatives: to validate on
FEW_CLIPS = 20  # of a word in training: less than this teaches one speaker's way of saying it
WANTED_CLIPS = 50  # by at least ten people


@dataclass(frozen=True)
class TrainOptions:
    """What the command line says."""

    model: str
    data: Path | None
    out: Path
    labels: str | None = None
    noise: tuple[Path, ...] = ()
    negatives: tuple[Path, ...] = ()
    epochs: int | None = None
    learning_rate: float | None = None
    device: str = "auto"
    seed: int = 0
    download: bool = False
    quick: bool = False
    resume: bool = False
    init: Path | None = None
    words: tuple[Path, ...] = ()
    teacher: Path | None = None
    command: str = "kwsd train"


@dataclass
class Run:
    """A training run in memory."""

    network: Any  # an nn.Module; with features and classify where the recipe augments
    optimiser: torch.optim.Optimizer
    batches: PlainBatches | AugmentedBatches
    held_out: HeldOut
    recipe: Recipe
    device: torch.device
    seed: int
    average: AveragedModel | None  # what is validated and exported, where the recipe keeps it
    teacher: Teacher | None
    best_state: dict[str, Tensor]
    best_score: float = 0.0
    epoch: int = 0

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and exported."""
        return self.network if self.average is None else self.average.module


def train(options: TrainOptions, say: Callable[[str], None]) -> Checkpoint:
    """Train as the recipe says, write a checkpoint after every epoch, and return the last.

    Ctrl-C raises KeyboardInterrupt after a usable checkpoint is on the disk.
    """
    recipe = _recipe(options)
    labels = parse_labels(options.labels or recipe.labels)
    Checkpoint.check_place(options.out)
    torch.manual_seed(options.seed)
    _keep_memory()
    run = _prepare(options, recipe, labels, say)
    if options.resume:  # --init has had its say in the run's first epoch
        _resume(run, options, labels)
    history = History(options.out.with_suffix(".csv"), run.epoch)

    def checkpoint() -> Checkpoint:
        return Checkpoint(
            model=options.model,
            labels=labels,
            epoch=run.epoch,
            state=_copy(run.network),
            average_state=None if run.average is None else _copy(run.average.module),
            best_state=run.best_state,
            best_score=run.best_score,
            optimiser=run.optimiser.state_dict(),
            recipe=dataclasses.asdict(recipe),
            seed=options.seed,
            command=options.command,
            data=_describe(options),
        )

    saved = run.epoch > 0
    try:
        while run.epoch < recipe.epochs:
            figures = _one_epoch(run, say)
            checkpoint().save(options.out)
            history.add(figures)
            saved = True
    except KeyboardInterrupt:
        if not saved and not options.out.exists():  # not even one epoch: better half an epoch than nothing
            run.best_state = _copy(run.judged)
            checkpoint().save(options.out)
        raise
    history.draw(options.out.with_suffix(".png"))
    return checkpoint()


def _one_epoch(run: Run, say: Callable[[str], None]) -> EpochFigures:
    """Train, validate, and keep the weights if they are the best so far."""
    began = time.monotonic()
    loss, accuracy = _train_epoch(run)
    run.epoch += 1
    validated = run.held_out.validate(run.judged, run.device)
    if validated.score >= run.best_score:
        run.best_score, run.best_state = validated.score, _copy(run.judged)
    say(f"epoch {run.epoch}/{run.recipe.epochs}: loss {loss:.3f}, {validated} (best {run.best_score:.1%})")
    return EpochFigures(
        epoch=run.epoch,
        learning_rate=learning_rate(run.recipe, run.epoch),
        loss=loss,
        training_accuracy=accuracy,
        validation_accuracy=validated.accuracy,
        spotting=validated.spotting,
        seconds=time.monotonic() - began,
    )


def _keep_memory() -> None:
    """Has the C library keep what is freed for the next batch: to get a hundred megabytes of fresh pages from the
    kernel for every one takes a quarter of the time."""
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1), (m_top_pad, 256 << 20)):
            libc.mallopt(option, value)


def _recipe(options: TrainOptions) -> Recipe:
    if options.model not in RECIPES:
        raise ConfigError(f"--model {options.model}: no such network; there are {', '.join(RECIPES)}")
    if options.seed < 0:
        raise ConfigError(f"--seed {options.seed}: 0 or more", exit_code=USAGE)
    recipe = RECIPES[options.model]
    if options.quick:
        recipe = dataclasses.replace(recipe, epochs=QUICK_EPOCHS, warmup_epochs=0.5)
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs)
    if options.learning_rate is not None:
        recipe = dataclasses.replace(recipe, learning_rate=options.learning_rate)
    return recipe


def _prepare(options: TrainOptions, recipe: Recipe, labels: tuple[str, ...], say: Callable[[str], None]) -> Run:
    device = choose_device(options.device)
    clips = _load(options, "training", say)
    _check_labels(clips, labels, say)
    validation = _load(options, "validation", say)
    if not set(clips.paths).isdisjoint(validation.paths):
        raise AudioError(f"{options.data}: validation clips are among the training clips; restore its lists")
    noise_paths = (options.data or options.words[0], *options.noise)  # of the first only its _background_noise_
    # Channels last: the convolutions train nearly twice as fast.
    network = NETWORKS[options.model](len(labels)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches: PlainBatches | AugmentedBatches
    quiet_talk = None
    if recipe.augment:
        talk, quiet_talk = _load_negatives(options, labels, say)
        noise = load_noise(noise_paths, "training")
        batches = AugmentedBatches(
            clips, labels, recipe.batch, options.seed, noise=noise, talk=talk, device=device
        )  # fmt: skip
    else:
        batches = PlainBatches(_known(clips, labels), labels, recipe.batch, options.seed)
    if options.init:
        _begin_with(network, options, labels, say)
    optimiser = OPTIMISERS[recipe.optimiser](
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )  # fmt: skip
    return Run(
        network=network,
        optimiser=optimiser,
        batches=batches,
        held_out=hold_out(validation, labels, noise_paths, quiet_talk),
        recipe=recipe,
        device=device,
        seed=options.seed,
        average=AveragedModel(network, multi_avg_fn=moving_average(recipe.average)) if recipe.average else None,
        teacher=load_teacher(options.teacher, labels, device) if options.teacher else None,
        best_state=_copy(network),
    )


def _load(options: TrainOptions, subset: str, say: Callable[[str], None]) -> Clips:
    limit = QUICK_CLIPS[subset] if options.quick else None
    parts = [load_words(folder, subset) for folder in options.words]
    if options.data:
        parts.append(load_clips(options.data, subset, download=options.download, limit=limit))
    if not parts:
        raise ConfigError("train: nothing to train on; name --data, or a folder of --words", exit_code=USAGE)
    clips = join(parts)
    if not len(clips):
        raise AudioError(
            f"{', '.join(map(str, options.words))}: no {subset} clips; record more, or name some in validation_list.txt"
        )
    for reason in clips.skipped:
        say(f"skipped {reason}")
    if clips.skipped:
        say(f"{subset}: {len(clips.skipped)} of {len(clips) + len(clips.skipped)} clips skipped")
    per_word = ", ".join(f"{word} {n}" for word, n in counts(clips.words).items())
    say(f"{subset}: {len(clips)} clips ({per_word})")
    return clips


def _check_labels(clips: Clips, labels: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Says which labels have nothing or too little to learn from. Raises AudioError if none has anything."""
    keywords = [label for label in labels if not label.startswith("_")]
    missing = [label for label in keywords if label not in clips.words]
    if missing:
        say(f"no training clips of: {', '.join(missing)}")
    if set(clips.words).isdisjoint(labels):
        raise AudioError(f"none of the training clips is one of the labels {', '.join(labels)}")
    spoken = counts(clips.words)
    few = [f"{label} {spoken[label]}" for label in keywords if 0 < spoken.get(label, 0) < FEW_CLIPS]
    if few:
        say(f"few training clips: {', '.join(few)}; {WANTED_CLIPS} of each, from ten people or more, are wanted")
    if len(set(clips.speakers)) == 1:
        say(f"all training clips are of one speaker ({clips.speakers[0]}); others will be understood poorly")


def _known(clips: Clips, labels: tuple[str, ...]) -> Clips:
    """The clips whose word is one of the labels."""
    return clips.take(np.flatnonzero(targets_of(clips.words, labels) >= 0))


def _load_negatives(
    options: TrainOptions, labels: tuple[str, ...], say: Callable[[str], None]
) -> tuple[NDArray[np.int16] | None, NDArray[np.int16] | None]:
    """Talk to train and talk to validate on, each (samples,), if there is any."""
    parts = []
    for folder in options.negatives:
        pieces, left_out = load_talk(folder, labels)
        minutes = sum(piece.size for piece in pieces.values()) / SAMPLE_RATE / 60
        say(f"negatives: {minutes:.1f} min from {folder}, {left_out} recordings left out for a keyword")
        parts.append(part_talk(pieces, TALK_HELD_OUT))
    if not parts:
        return None, None
    to_train, to_validate = zip(*parts, strict=True)
    return np.concatenate(to_train), np.concatenate(to_validate)


def _begin_with(network: nn.Module, options: TrainOptions, labels: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Starts from another run's best weights instead of drawn ones; for other labels all but the last layer."""
    assert options.init
    learnt = load_checkpoint(options.init)
    if learnt.model != options.model:
        raise ConfigError(f"{options.init}: is a {learnt.model}, which --model {options.model} cannot begin with")
    state = learnt.best_state
    if learnt.labels != labels:
        last, _ = list(network.named_children())[-1]
        state = {name: weight for name, weight in state.items() if not name.startswith(f"{last}.")}
        say(f"{options.init}: has other labels; the last layer is learnt anew")
    try:
        unexpected = network.load_state_dict(state, strict=learnt.labels == labels).unexpected_keys
    except RuntimeError:
        unexpected = ["of another shape"]
    if unexpected:
        raise ModelError(f"{options.init}: a checkpoint of another kwsd; train again without --init")


def _resume(run: Run, options: TrainOptions, labels: tuple[str, ...]) -> None:
    checkpoint = load_checkpoint(options.out)
    if checkpoint.model != options.model or checkpoint.labels != labels:
        raise ConfigError(
            f"{options.out}: is a {checkpoint.model} with other labels or size; --resume cannot go on with it"
        )
    if checkpoint.seed != options.seed:
        raise ConfigError(f"{options.out}: was begun with --seed {checkpoint.seed}; --resume needs the same")
    try:
        run.network.load_state_dict(checkpoint.state)
        if run.average is not None and checkpoint.average_state is not None:
            run.average.module.load_state_dict(checkpoint.average_state)
            run.average.n_averaged.fill_(checkpoint.epoch * len(run.batches))
        run.optimiser.load_state_dict(checkpoint.optimiser)
    except (RuntimeError, ValueError):
        raise ModelError(f"{options.out}: a checkpoint of another kwsd; train again without --resume") from None
    run.epoch, run.best_score = checkpoint.epoch, checkpoint.best_score
    run.best_state = checkpoint.best_state


def learning_rate(recipe: Recipe, epochs_done: float) -> float:
    """Linear warm-up, then a half cosine down to zero; or constant."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if epochs_done < recipe.warmup_epochs:
        return recipe.learning_rate * epochs_done / recipe.warmup_epochs
    rest = (epochs_done - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """For AveragedModel: exponential with this decay per step, faster at first, when there is little to keep."""

    def update(averaged: Any, current: Any, steps: Any) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(list(averaged), list(current), 1.0 - now)

    return update


def _train_epoch(run: Run) -> tuple[float, float]:
    """One pass over the batches; the mean loss and the share told right. What is drawn depends on seed and epoch
    alone."""
    torch.manual_seed(run.seed * 100_003 + run.epoch)  # dropout
    generator = torch.Generator().manual_seed(run.seed * 100_003 + run.epoch)
    run.network.train()
    steps = len(run.batches)
    total, right, seen = 0.0, 0, 0
    with _progress(run, steps) as progress:
        for step, batch in enumerate(run.batches.epoch(run.epoch)):
            for group in run.optimiser.param_groups:
                group["lr"] = learning_rate(run.recipe, run.epoch + (step + 1) / steps)
            windows, targets = (tensor.to(run.device) for tensor in batch)
            run.optimiser.zero_grad()
            log_probs = _forward(run, windows, generator)  # (batch, labels)
            loss = smoothed_nll(log_probs, targets, run.recipe.label_smoothing)
            if run.teacher is not None:
                share = run.recipe.teacher_share
                loss = (1.0 - share) * loss + share * distillation(log_probs, run.teacher(windows))
            loss.backward()  # type: ignore[no-untyped-call]
            run.optimiser.step()
            if run.average is not None:
                run.average.update_parameters(run.network)
            total += loss.item() * len(windows)
            right += int((log_probs.argmax(1) == targets).sum())
            seen += len(windows)
            if not math.isfinite(total):
                raise KwsdError(
                    f"epoch {run.epoch + 1}: the loss is not a number any more; the last checkpoint is kept"
                )
            progress.set_postfix(loss=f"{total / seen:.3f}", acc=f"{right / seen:.1%}", refresh=False)
            progress.update(len(windows))
    return total / seen, right / seen


def _progress(run: Run, steps: int) -> "tqdm[Any]":
    return tqdm(
        total=steps * run.recipe.batch,
        desc=f"epoch {run.epoch + 1}/{run.recipe.epochs}",
        unit="clip",
        leave=False,
        disable=None,
    )


def _forward(run: Run, windows: Tensor, generator: torch.Generator) -> Tensor:
    """Log-probabilities (batch, labels), with masked features where the recipe says so."""
    if not run.recipe.augment:
        return cast(Tensor, run.network(windows))
    frames = run.network.features(windows)  # (batch, mels, frames)
    frames = augment.colour(augment.warp(frames, generator), generator)
    frames = augment.spec_augment(frames, generator, time=run.recipe.mask_frames, mels=run.recipe.mask_mels)
    with torch.autocast(run.device.type, torch.bfloat16, enabled=knows_bfloat16(run.device)):
        embedded = run.network.embed(frames)
    return cast(Tensor, run.network.decide(embedded.float()))


def knows_bfloat16(device: torch.device) -> bool:
    """Whether the device reckons in 16 bits, and so faster, by itself. What it reckons with is kept in 32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


def smoothed_nll(log_probs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Negative log-likelihood with label smoothing (Szegedy et al. 2016), over log-probabilities."""
    return (1.0 - smoothing) * F.nll_loss(log_probs, targets) - smoothing * log_probs.mean()


def distillation(log_probs: Tensor, taught: Tensor) -> Tensor:
    """Cross-entropy with a teacher's posteriors (batch, labels) in place of targets (Hinton et al. 2015)."""
    return -(taught * log_probs).sum(1).mean()


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _describe(options: TrainOptions) -> str:
    parts = ["Speech Commands v0.02 layout"] if options.data else []
    parts += [f"words from {folder.name}" for folder in options.words]
    parts += [f"noise from {folder.name}" for folder in options.noise]
    parts += [f"talk from {'/'.join(folder.parts[-2:])}" for folder in options.negatives]
    return ", ".join(parts)
