"""`kwsd eval`: accuracy of a checkpoint or artefact on labelled clips, per word, with intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kwsd.artefact import read_info
from kwsd.engines import load_spotter
from kwsd.errors import ModelError
from kwsd.training.batches import targets_of
from kwsd.training.checkpoint import load_checkpoint
from kwsd.training.dataset import Clips, digests, load_subset
from kwsd.training.talk import Noise
from kwsd.training.validation import in_batches, labelled_windows, predictions

Z95 = 1.959964  # standard normal quantile of 97.5 %


@dataclass(frozen=True)
class Rate:
    """A share of clips with its 95 % interval (Wilson 1927)."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.of:
            return 0.0, 1.0
        n, p, z = self.of, self.value, Z95
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        low, high = self.interval
        accuracy = self.value if self.of else None
        return {"right": self.right, "of": self.of, "accuracy": accuracy, "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:6.1%}  [{low:5.1%}, {high:6.1%}]  {self.right:5d} of {self.of:5d}"


@dataclass(frozen=True)
class Evaluation:
    """How often each label was taken for which."""

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]  # (true label, guessed label)
    skipped: tuple[str, ...]
    whole: Rate  # without the clips that do not have all of their word
    told: tuple[str, ...] = ()  # what else one should know of the clips

    @property
    def overall(self) -> Rate:
        return Rate(int(np.trace(self.confusion)), int(self.confusion.sum()))

    def of(self, label: str) -> Rate:
        """The rate among the clips of one label."""
        row = self.labels.index(label)
        return Rate(int(self.confusion[row, row]), int(self.confusion[row].sum()))

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "overall": self.overall.as_dict(),
            "whole": self.whole.as_dict(),
            "words": {label: self.of(label).as_dict() for label in self.labels},
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
            "skipped": list(self.skipped),
        }

    def table(self) -> str:
        """For people."""
        lines = [f"{'accuracy':12s} {self.overall}", f"{'whole words':12s} {self.whole}"]
        lines += [f"{label:12s} {self.of(label)}" for label in self.labels if self.of(label).of]
        return "\n".join(lines)


def evaluate_model(
    model: Path,
    data: Path | None,
    subset: str,
    noise: tuple[Path, ...],
    *,
    words: tuple[Path, ...] = (),
    limit: int | None = None,
) -> Evaluation:
    """Score a subset's clips, of Speech Commands under `data` and of somebody's own `words`.

    Raises ModelError if the file is neither a checkpoint nor an artefact; AudioError if there are no clips.
    """
    labels, score, learnt = _load(model)
    clips = load_subset(data, words, subset, limit=limit)
    told = clips.told if subset == "training" else (*clips.told, *known_before(model, learnt, clips))
    unheard = [label for label in labels if not label.startswith("_") and label not in clips.words]
    if unheard:
        told += (f"no {subset} clips of: {', '.join(unheard)}; how well these are heard is not in the figures",)
    windows, targets = labelled_windows(clips, labels, Noise(data, noise), subset)
    guesses = np.concatenate([score(batch) for batch in in_batches(windows)])
    right = guesses == targets.numpy()
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets.numpy(), guesses), 1)
    known = clips.whole[targets_of(clips.words, labels) >= 0]
    whole = np.concatenate([known, np.ones(len(right) - len(known), bool)])  # what follows is noise
    return Evaluation(labels, confusion, clips.skipped, Rate(int(right[whole].sum()), int(whole.sum())), told)


def known_before(model: Path, learnt: NDArray[np.int64], clips: Clips) -> tuple[str, ...]:
    """What one should know of clips to test a model on, if some are among those that it was trained on (n,)."""
    known = int(np.isin(digests(clips), learnt).sum())
    told = (
        f"{model}: was trained on {known} of these {len(clips)} clips, so the figures flatter it; what is to test on "
        "moves as speakers are added, unless testing_list.txt says it"
    )
    return (told,) if known else ()


def _load(model: Path) -> tuple[tuple[str, ...], Callable[[torch.Tensor], NDArray[np.int64]], NDArray[np.int64]]:
    """Labels; int16 windows (n, 16000) → guessed label indices (n,); and digests of the clips it is known to have been
    trained on, of a checkpoint."""
    try:
        read_info(model)
    except ModelError as not_artefact:
        try:
            checkpoint = load_checkpoint(model)
        except ModelError:
            raise not_artefact from None
        network = checkpoint.network()
        cpu = torch.device("cpu")
        learnt: NDArray[np.int64] = checkpoint.learnt.numpy()
        return checkpoint.labels, lambda w: next(predictions(network, w, cpu)).argmax(1).numpy(), learnt
    spotter = load_spotter(model, "auto")
    nothing = np.zeros(0, np.int64)
    return spotter.info.labels, lambda w: spotter.score(w.float().numpy() / np.float32(32768.0)).argmax(1), nothing


def draw_confusion(evaluation: Evaluation, path: Path) -> None:
    """The confusion matrix as a picture, every row in shares of its true label."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seen = [i for i, label in enumerate(evaluation.labels) if evaluation.of(label).of]
    names = [evaluation.labels[i] for i in seen]
    counts = evaluation.confusion[np.ix_(seen, range(len(evaluation.labels)))]
    shares = counts / counts.sum(1, keepdims=True)
    size = 2.0 + 0.32 * len(evaluation.labels)
    figure, axes = pyplot.subplots(figsize=(size, 1.6 + 0.32 * len(names)), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(evaluation.labels)), evaluation.labels, rotation=90)
    axes.set_yticks(range(len(names)), [f"{n} ({evaluation.of(n).of})" for n in names])
    axes.set_xlabel("heard as")
    axes.set_ylabel("said (clips)")
    axes.set_title(f"accuracy {evaluation.overall.value:.1%} of {evaluation.overall.of} clips")
    for row, col in np.argwhere(shares >= 0.005).tolist():
        axes.text(
            col, row, f"{100 * shares[row, col]:.0f}", ha="center", va="center", fontsize=7,
            color="white" if shares[row, col] > 0.5 else "black",
        )  # fmt: skip
    figure.colorbar(image, label="share of the clips said")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
