"""A training run in memory, and one epoch of it."""

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from kwsd.artefact import SILENCE
from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.training import augment
from kwsd.training.batches import AugmentedBatches, PlainBatches
from kwsd.training.loss import corrected, cross_entropy, draw_mixup, smoothed
from kwsd.training.precision import FromFrames
from kwsd.training.processes import ProcessGroup
from kwsd.training.recipe import Recipe
from kwsd.training.teacher import Teacher
from kwsd.training.validation import HeldOut

SMALLEST_BATCH = 8  # windows
RANKS_APART = 50_021  # between the seeds of two processes: more than there are epochs; torch takes the lowest 32 bits


@dataclass
class Run:
    """A training run in memory."""

    network: Any  # an nn.Module; with features, embed and decide where the recipe augments
    learner: nn.Module  # what is called to train it: from frames on where the recipe augments
    optimiser: torch.optim.Optimizer
    batches: PlainBatches | AugmentedBatches
    held_out: HeldOut
    recipe: Recipe
    labels: tuple[str, ...]
    device: torch.device
    group: ProcessGroup
    seed: int
    average: AveragedModel | None  # what is validated and exported, where the recipe keeps it
    teacher: Teacher | None
    best_state: dict[str, Tensor]
    learnt: NDArray[np.int64]  # digests of the training clips, those of before a --resume or --init among them (n,)
    best_score: float = 0.0
    epoch: int = 0

    @cached_property
    def keywords(self) -> Tensor:
        """Which labels are, a mask (labels,)."""
        return torch.tensor([not label.startswith("_") for label in self.labels], device=self.device)

    @cached_property
    def silence(self) -> Tensor:
        """Which label is silence, a mask (labels,)."""
        return torch.tensor([label == SILENCE for label in self.labels], device=self.device)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and exported."""
        return self.network if self.average is None else self.average.module


def train_epoch(run: Run) -> tuple[float, float]:
    """One pass over the batches; the mean loss and the share told right. What is drawn depends on seed and epoch
    alone, but for dropout, of which every process draws its own.

    Raises KwsdError if the loss is not a number any more, or the GPU has too little memory for a batch.
    """
    seed = (run.seed * 100_003 + run.epoch) % 2**63
    torch.manual_seed((seed + run.group.rank * RANKS_APART) % 2**63)  # dropout
    generator = torch.Generator().manual_seed(seed)
    _mine(run)
    run.network.train()
    steps = len(run.batches)
    total, right, seen = 0.0, 0.0, 0
    with _progress(run, steps) as progress, _enough_memory(run):
        for step, (windows, targets) in enumerate(run.batches.epoch(run.epoch)):
            for settings in run.optimiser.param_groups:
                settings["lr"] = learning_rate(run.recipe, run.epoch + (step + 1) / steps)
            loss, told = _step(run, windows.to(run.device), targets.to(run.device), generator)
            total += loss
            right += told
            seen += len(windows)
            if not math.isfinite(total):
                raise KwsdError(
                    f"epoch {run.epoch + 1}: the loss is not a number any more; the last checkpoint is kept"
                )
            progress.set_postfix(loss=f"{total / seen:.3f}", acc=f"{right / seen:.1%}", refresh=False)
            progress.update(len(windows))
    return total / seen, right / seen


def _mine(run: Run) -> None:
    """Let the batches know what the network, as it is judged, takes for keywords. As many windows are looked through as
    are learnt from, so it takes its time."""
    if isinstance(run.batches, PlainBatches):
        return
    run.judged.eval()
    judge = FromFrames(run.judged, run.device, run.recipe.mixed_precision)

    def surest(windows: Tensor) -> Tensor:
        with torch.inference_mode():
            log_probs = judge(run.network.features(windows.to(run.device)))  # (n, labels)
            return torch.as_tensor(log_probs[:, run.keywords].amax(1))

    run.batches.mine(surest, run.epoch)


def _step(run: Run, windows: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Learn from windows (batch, 16000) and targets (batch,); the sum of their losses and how many were told right,
    over all processes."""
    recipe, group, n = run.recipe, run.group, len(windows)
    wanted = smoothed(targets, len(run.labels), recipe.label_smoothing)  # (batch, labels)
    if run.teacher is not None:
        taught = corrected(run.teacher(windows), targets, run.keywords, run.silence)
        wanted = torch.lerp(wanted, taught, recipe.teacher_share)
    inputs = _frames(run, windows, generator) if recipe.augment else windows
    if recipe.mixup:
        partner, share = (drawn.to(run.device) for drawn in draw_mixup(n, recipe.mixup, generator))
        wanted = torch.lerp(wanted, wanted[partner], share)
        inputs = torch.lerp(inputs, inputs[partner], share.view(n, *[1] * (inputs.dim() - 1)))
    run.optimiser.zero_grad()
    log_probs = run.learner(group.shard(inputs))  # (batch / processes, labels)
    losses = cross_entropy(log_probs, group.shard(wanted))
    (losses.sum() / n).backward()  # type: ignore[no-untyped-call]
    group.sum_gradients(run.network)
    run.optimiser.step()
    if run.average is not None:
        run.average.update_parameters(run.network)
    told = (log_probs.argmax(1) == group.shard(targets)).sum()
    loss, right = group.all_reduce(torch.stack([losses.detach().sum().double(), told.double()])).tolist()
    return loss, right


def _frames(run: Run, windows: Tensor, generator: torch.Generator) -> Tensor:
    """Augmented log-mel frames (batch, mels, frames) of windows (batch, 16000)."""
    frames = run.network.features(windows)
    frames = augment.colour(augment.warp(frames, generator), generator)
    frames = augment.band_limit(frames, generator)
    return augment.spec_augment(frames, generator, time=run.recipe.mask_frames, mels=run.recipe.mask_mels)


@contextmanager
def _enough_memory(run: Run) -> Iterator[None]:
    """Turns the library's report of a full GPU into one line that names a batch which fits."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # which hold all that filled the GPU
        run.optimiser.zero_grad()
        fits = _batch_that_fits(run) if run.group.world_size == 1 else None  # others would wait for steps that we try
        remedy = f"--batch {fits} fits" if fits else "a smaller --batch, or --device cpu"
        raise KwsdError(
            f"the GPU's memory does not hold a batch of {run.recipe.batch} windows; {remedy}", exit_code=UNAVAILABLE
        ) from None


def _batch_that_fits(run: Run) -> int | None:
    """The largest half, quarter, … of the batch that a step goes through with."""
    size = run.recipe.batch // 2
    while size >= SMALLEST_BATCH:
        torch.cuda.empty_cache()
        try:
            windows, targets = next(run.batches.epoch(0))
            _step(run, windows[:size].to(run.device), targets[:size].to(run.device), torch.Generator())
        except torch.OutOfMemoryError as error:
            traceback.clear_frames(error.__traceback__)
            size //= 2
        else:
            return size
    return None


def _progress(run: Run, steps: int) -> "tqdm[Any]":
    return tqdm(
        total=steps * run.recipe.batch,
        desc=f"epoch {run.epoch + 1}/{run.recipe.epochs}",
        unit="clip",
        leave=False,
        disable=None if run.group.leads else True,
    )


def learning_rate(recipe: Recipe, epochs_done: float) -> float:
    """Linear warm-up, then a half cosine down to zero; or constant."""
    if recipe.schedule == "constant":
        return recipe.learning_rate
    if epochs_done < recipe.warmup_epochs:
        return recipe.learning_rate * epochs_done / recipe.warmup_epochs
    rest = (epochs_done - recipe.warmup_epochs) / max(recipe.epochs - recipe.warmup_epochs, 1e-9)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """For AveragedModel, which hands over tensors of one kind: exponential with this decay per step, faster at first,
    when there is little to keep. Of counts there is no mean."""

    def update(averaged: Any, current: Any, steps: Any) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), 1.0 - now)
        else:
            torch._foreach_copy_(list(averaged), list(current))

    return update
