"""Where a run begins: with the weights of another, from its checkpoint or from what was exported of it."""

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
Folded = tuple[Tensor, Tensor]  # weight and bias


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
    """Gives a network the weights of its export, in which most normalisations are folded into the convolution before or
    behind them: those pass everything on as it is, but for the bias. Raises ModelError if it is another network's."""
    if not artefact.is_onnx:
        raise ModelError(f"{artefact.path}: TorchScript keeps its weights to itself; name the .onnx of the same model")
    try:
        convolutions, norms, linears = _weights(artefact)
        first, layers, last = _layers(network)
        if len(norms) > 1:
            raise ValueError("normalisations that are not folded")
        with torch.no_grad():
            _pass(first, torch.zeros_like(first.bias))
            for name, value in norms[0].items() if norms else ():
                getattr(first, name).copy_(value)
            for (convolution, norm), (weight, bias) in zip(layers, convolutions, strict=True):
                convolution.weight.copy_(weight)
                if norm:
                    _pass(norm, bias)
                elif bias.abs().max() > NEGLIGIBLE:
                    raise ValueError("a bias that the network has no place for")
            ((weight, bias),) = linears
            last.weight.copy_(weight)
            last.bias.copy_(bias)
    except (RuntimeError, ValueError):  # shapes, or how many there are
        raise ModelError(f"{artefact.path}: an export of another kwsd or network; begin with its checkpoint") from None


def _weights(artefact: Artefact) -> tuple[list[Folded], list[dict[str, Tensor]], list[Folded]]:
    """The convolutions, normalisations and linear layers of an ONNX graph, each in the order they are gone through."""
    import onnx

    graph = onnx.load_model_from_string(artefact.data).graph
    values = {value.name: torch.tensor(onnx.numpy_helper.to_array(value)) for value in graph.initializer}
    convolutions: list[Folded] = []
    norms: list[dict[str, Tensor]] = []
    linears: list[Folded] = []
    for node in graph.node:
        given = [values[name] for name in node.input if name in values]
        if node.op_type == "Conv":
            convolutions.append((given[0], given[1] if len(given) > 1 else torch.zeros(len(given[0]))))
        elif node.op_type == "BatchNormalization":
            norms.append(dict(zip(("weight", "bias", "running_mean", "running_var"), given, strict=True)))
        elif node.op_type == "Gemm":
            linears.append((given[0], given[1]))
    return convolutions, norms, linears


def _layers(network: nn.Module) -> tuple[nn.BatchNorm2d, list[tuple[nn.Conv2d, nn.BatchNorm2d | None]], nn.Linear]:
    """The normalisation in front, every convolution with the one behind it, and the last layer."""
    in_order = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    first, *between, last = in_order
    if not isinstance(first, nn.BatchNorm2d) or not isinstance(last, nn.Linear):
        raise ValueError("not a network of this kind")
    layers: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for layer, behind in zip(between, [*between[1:], None], strict=True):
        if isinstance(layer, nn.Conv2d):
            layers.append((layer, behind if isinstance(behind, nn.BatchNorm2d) else None))
    return first, layers, last


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
