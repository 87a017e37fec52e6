"""A trained model that another learns from: what it says of the very windows the other sees."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from kwsd.artefact import read_info
from kwsd.engines import load_spotter
from kwsd.errors import ConfigError, ModelError
from kwsd.training.checkpoint import load_checkpoint
from kwsd.training.precision import FromFrames

Teacher = Callable[[Tensor], Tensor]  # windows (batch, 16000) in ±1 to posteriors (batch, labels)


def load_teachers(paths: Sequence[Path], labels: tuple[str, ...], device: torch.device) -> Teacher:
    """What several say on the whole: the mean of their posteriors. Raises as `load_teacher` does."""
    teachers = [load_teacher(path, labels, device) for path in paths]
    return lambda windows: torch.stack([teacher(windows) for teacher in teachers]).mean(0)


def load_teacher(path: Path, labels: tuple[str, ...], device: torch.device) -> Teacher:
    """A checkpoint or an artefact with the same labels, in any order.

    Raises ModelError if it is neither; ConfigError if its labels are others.
    """
    try:
        theirs = read_info(path).labels
    except ModelError as not_artefact:
        try:
            checkpoint = load_checkpoint(path)
        except ModelError:
            raise not_artefact from None
        _check(path, checkpoint.labels, labels)
        network: Any = checkpoint.network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        theirs = checkpoint.labels
        from_frames = FromFrames(network, device, mixed=True) if hasattr(network, "features") else None

        def score(windows: Tensor) -> Tensor:
            with torch.inference_mode():
                log_probs = from_frames(network.features(windows)) if from_frames else network(windows)
            return cast(Tensor, log_probs.exp())

    else:
        _check(path, theirs, labels)
        threads = torch.get_num_threads()
        spotter = load_spotter(path, "cpu")
        torch.set_num_threads(threads)  # a daemon wants one, and so do engines; who trains wants all

        def score(windows: Tensor) -> Tensor:
            return torch.from_numpy(spotter.score(windows.cpu().numpy())).to(device)

    order = torch.tensor([theirs.index(label) for label in labels], device=device)
    return lambda windows: score(windows)[:, order].clone()


def _check(path: Path, theirs: tuple[str, ...], labels: tuple[str, ...]) -> None:
    lacking, beyond = sorted(set(labels) - set(theirs)), sorted(set(theirs) - set(labels))
    if lacking or beyond:
        lacks = f"does not know {', '.join(lacking)}" if lacking else ""
        knows = f"also knows {', '.join(beyond)}" if beyond else ""
        what = " and ".join(filter(None, (lacks, knows)))
        raise ConfigError(f"{path}: as --teacher it needs the same labels; it {what}")
