"""Where a run begins: with the weights of another, from its checkpoint or from what was exported of it."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kwsd.artefact import UNKNOWN, Artefact, read_artefact
from kwsd.errors import ConfigError, ModelError
from kwsd.networks import NETWORKS
from kwsd.training.checkpoint import Checkpoint, load_checkpoint

NEGLIGIBLE = 1e-6
CONVOLUTION, NORM, LINEAR = "Conv", "BatchNormalization", "Gemm"  # in ONNX
NAMES = {  # of weights, as layers have them, in the order in which the operators of ONNX take them
    CONVOLUTION: ("weight", "bias"),
    NORM: ("weight", "bias", "running_mean", "running_var"),
    LINEAR: ("weight", "bias"),
}


def begin_with(
    path: Path, network: nn.Module, model: str, labels: tuple[str, ...], windows: Iterable[Tensor]
) -> tuple[str, ...]:
    """Gives a network of the kind `model` the best weights of a checkpoint, or those of an ONNX artefact, and returns
    which of its labels it learns anew: those that are new, and with them `_unknown_`. `windows` are batches
    (batch, 16000) of what the network will learn from.

    Raises ConfigError if they are of another kind of network; ModelError if the file is neither, or of another kwsd.
    """
    other = _read(path, model)
    begun = _origin(other)
    if begun.model != model:
        raise ConfigError(f"{path}: is a {begun.model}, which --model {model} cannot begin with")
    theirs = begun.labels
    learnt = NETWORKS[model](len(theirs)).to(next(network.parameters()).device)
    if isinstance(other, Artefact):
        _unfold(other, learnt)
        _normalise(learnt, windows)
    else:
        try:
            learnt.load_state_dict(other.best_state)
        except RuntimeError:
            raise ModelError(f"{path}: a checkpoint of another kwsd; train again without --init") from None
    new = {label for label in labels if label not in theirs}
    if new:  # which were `_unknown_` until now, and would long be
        new.add(UNKNOWN)
    rows = [(labels.index(label), theirs.index(label)) for label in labels if label not in new]
    network.load_state_dict(_merged(network, learnt.state_dict(), rows))
    return tuple(label for label in labels if label in new)


def _merged(network: nn.Module, learnt: dict[str, Tensor], rows: list[tuple[int, int]]) -> dict[str, Tensor]:
    """Weights that were learnt for other labels; of the last layer only the rows (ours, theirs), the rest as it is."""
    last, _ = list(network.named_children())[-1]
    for name, weight in network.state_dict().items():
        if name.startswith(f"{last}."):
            ours = weight.clone()
            for row, of_theirs in rows:
                ours[row] = learnt[name][of_theirs]
            learnt[name] = ours
    return learnt


@dataclass(frozen=True)
class Origin:
    """What a run takes over from that which it begins with, unless it is told otherwise."""

    model: str
    labels: tuple[str, ...]
    licence: str
    learnt: NDArray[np.int64]  # digests of the clips it is known to have been trained on (n,)


def origin(path: Path) -> Origin:
    """Of a checkpoint or an artefact; of two networks in one file the second, which is there because it knows more.
    Raises ModelError if the file is neither."""
    return _origin(_read(path))


def _read(path: Path, model: str | None = None) -> Artefact | Checkpoint:
    """A checkpoint or an artefact; of two networks in one file the first if it is of this kind, else the second."""
    try:
        first = read_artefact(path)
        return first if first.second is None or first.info.architecture == model else first.second
    except ModelError as not_artefact:
        try:
            return load_checkpoint(path)
        except ModelError as not_checkpoint:
            raise (not_artefact if path.suffix == ".onnx" or not path.exists() else not_checkpoint) from None


def _origin(other: Artefact | Checkpoint) -> Origin:
    if isinstance(other, Artefact):
        return Origin(other.info.architecture, other.info.labels, other.info.licence, np.zeros(0, np.int64))
    return Origin(other.model, other.labels, other.licence, other.learnt.numpy())


def _unfold(artefact: Artefact, network: nn.Module) -> None:
    """Gives a network the weights of its export, in which normalisations right behind a convolution, or in front of the
    first, may be folded into it: those pass everything on as it is, but for the bias. Raises ModelError if it is the
    export of another network."""
    if not artefact.is_onnx:
        raise ModelError(f"{artefact.path}: TorchScript keeps its weights to itself; name the .onnx of the same model")
    steps = _steps(artefact)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    try:
        with torch.no_grad():
            for before, layer, behind in zip([None, *layers], layers, [*layers[1:], None], strict=False):
                if isinstance(layer, nn.BatchNorm2d):
                    if steps[0].kind == NORM:
                        _copy(layer, steps.popleft())
                    elif before is None:
                        _pass(layer, torch.zeros_like(layer.bias))
                    continue  # else it was folded into the convolution before it
                step = steps.popleft()
                if step.kind != (LINEAR if isinstance(layer, nn.Linear) else CONVOLUTION):
                    raise ValueError("a layer of another kind")
                layer.weight.copy_(step.weights["weight"])
                bias = step.weights["bias"]
                if isinstance(layer, nn.Linear):
                    layer.bias.copy_(bias)
                elif isinstance(behind, nn.BatchNorm2d) and steps[0].kind != NORM:
                    _pass(behind, bias)
                elif bias.abs().max() > NEGLIGIBLE:
                    raise ValueError("a bias that the network has no place for")
            if steps:
                raise ValueError("more layers than the network has")
    except (IndexError, KeyError, RuntimeError, ValueError):  # kinds, shapes, or how many there are
        raise ModelError(f"{artefact.path}: an export of another kwsd or network; begin with its checkpoint") from None


@dataclass(frozen=True)
class Step:
    """What an ONNX graph does with weights."""

    kind: str
    weights: dict[str, Tensor]  # by the names that a layer has for them


def _steps(artefact: Artefact) -> deque[Step]:
    """The convolutions, normalisations and linear layers of an ONNX graph, in the order they are gone through."""
    import onnx

    graph = onnx.load_model_from_string(artefact.data).graph
    values = {value.name: torch.tensor(onnx.numpy_helper.to_array(value)) for value in graph.initializer}
    steps = deque[Step]()
    for node in graph.node:
        if node.op_type in NAMES:
            given = [values[name] for name in node.input if name in values]
            weights = dict(zip(NAMES[node.op_type], given, strict=False))
            if node.op_type == CONVOLUTION:
                weights.setdefault("bias", torch.zeros(len(given[0])))
            steps.append(Step(node.op_type, weights))
    return steps


def _copy(norm: nn.BatchNorm2d, step: Step) -> None:
    for name in NAMES[NORM]:
        getattr(norm, name).copy_(step.weights[name])


def _pass(norm: nn.BatchNorm2d, bias: Tensor) -> None:
    """Has a normalisation add a bias, and nothing else."""
    norm.reset_parameters()  # mean 0, variance 1
    norm.weight.fill_((1.0 + norm.eps) ** 0.5)
    norm.bias.copy_(bias)


def _normalise(network: nn.Module, windows: Iterable[Tensor]) -> None:
    """Has normalisations subtract and divide by what they see, and their parameters take it back: a network with the
    same answers, whose normalisations do in training what they do afterwards."""
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    seen: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}  # per batch: mean and mean square (2, channels)

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double()
        seen[norm].append(torch.stack([x.mean((0, 2, 3)), x.square().mean((0, 2, 3))]))

    watched = [norm.register_forward_pre_hook(look) for norm in norms]
    network.eval()
    with torch.no_grad():
        for batch in windows:
            network(batch)
        for hook in watched:
            hook.remove()
        for norm in norms:
            mean, square = torch.stack(seen[norm]).mean(0).float()  # (channels,) each
            _normalise_by(norm, mean, (square - mean.square()).clamp(min=0.0))


def _normalise_by(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    norm.bias.add_(gain * (mean - norm.running_mean))
    norm.weight.copy_(gain * torch.sqrt(variance + norm.eps))
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
