"""`kwsd export`: a checkpoint, or a bare SimpleNet state dict, to an artefact that is proven to be the same network."""

import base64
import hashlib
import io
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from kwsd.artefact import FORMAT, GEOMETRY, METADATA, SECOND, ArtefactInfo, Figure, read_artefact, sealed
from kwsd.audio_format import SAMPLE_RATE, WINDOW
from kwsd.cascade import Cascade, stages
from kwsd.engines import AUTO, ONNX_RUNTIME, make_spotter
from kwsd.errors import IO, USAGE, ConfigError, KwsdError, ModelError
from kwsd.networks.incremental import HasIncrement
from kwsd.networks.simplenet import SimpleNet
from kwsd.recording import DEMO, read_recording
from kwsd.ring import Samples
from kwsd.spotter import Scores, Spotter
from kwsd.training.checkpoint import FORMAT as CHECKPOINT_FORMAT
from kwsd.training.checkpoint import Checkpoint, load_checkpoint, load_dict
from kwsd.training.dataset import load_subset
from kwsd.training.evaluate import Rate, known_before
from kwsd.training.labels import parse_labels
from kwsd.training.negatives import to_float
from kwsd.training.talk import Noise
from kwsd.training.validation import in_batches, labelled_windows

COMPARE_EVERY = 5  # of the test clips, every n-th is compared
TOLERANCE = 1e-4  # on log-probabilities, eager against exported


def export_checkpoint(
    source: Path,
    out: Path,
    labels: str | None,
    data: Path | None,
    thresholds: tuple[str, ...],
    *,
    words: tuple[Path, ...] = (),
    noise: tuple[Path, ...] = (),
    second: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ArtefactInfo:
    """`kwsd export` as the command line has it. `data` and `words` give the clips to compare on and the accuracy to
    store; without them the recording that kwsd comes with is compared on, and no figure is stored. `second` makes a
    cascade."""
    for checkpoint_file in filter(None, (source, second)):
        if out.exists() and checkpoint_file.exists() and out.samefile(checkpoint_file):
            raise ConfigError(f"{out}: is the checkpoint itself; name another file with -o", exit_code=USAGE)
    if out.suffix not in (".onnx", ".pt"):
        raise ConfigError(f"{out}: the name says what it is to be: .onnx, or .pt for TorchScript", exit_code=USAGE)
    checkpoint = _checkpoint(source, labels)
    asked = None if second is None else _second_checkpoint(second, checkpoint.labels)
    networks = [(source, checkpoint), *([(second, asked)] if second and asked else [])]
    for path, trained in networks:
        if trained.epoch < trained.recipe.get("epochs", 0):
            say(f"{path}: has {trained.epoch} of its {trained.recipe['epochs']} epochs; kwsd train --resume goes on")
    recommended = checkpoint.recipe.get("thresholds", {}) | parse_thresholds(thresholds, checkpoint.labels)
    if data is None and not words:
        recording = read_recording(DEMO)
        windows = torch.from_numpy(recording[: recording.size // WINDOW * WINDOW]).reshape(-1, WINDOW)
        return export(checkpoint, out, windows, thresholds=recommended, second=asked)
    clips = load_subset(data, words, "testing")
    known = (note for path, trained in networks for note in known_before(path, trained.learnt.numpy(), clips))
    for note in (*clips.told, *known):
        say(note)
    windows, targets = labelled_windows(clips, checkpoint.labels, Noise(data, noise), "testing")
    figure = _accuracy(_eager(checkpoint, asked), windows, targets, _eval_command(out, data, words, noise))
    compared = windows[::COMPARE_EVERY] / 32768.0
    return export(checkpoint, out, compared, thresholds=recommended, figures=(figure,), second=asked)


def _accuracy(spotter: Spotter, windows: Tensor, targets: Tensor, command: str) -> Figure:
    """Of windows (n, 16000) and what they are (n,), as the artefact has it."""
    guesses = np.concatenate([spotter.score(to_float(b.numpy()).numpy()).argmax(1) for b in in_batches(windows)])
    accuracy = Rate(int((guesses == targets.numpy()).sum()), len(targets))
    value, low, high = (round(share, 4) for share in (accuracy.value, *accuracy.interval))
    return Figure(name="accuracy on the testing clips", value=value, low=low, high=high, command=command)


def _eval_command(out: Path, data: Path | None, words: tuple[Path, ...], noise: tuple[Path, ...]) -> str:
    """What gives the same figure."""
    folders = [("--words", folder) for folder in words] + [("--noise", folder) for folder in noise]
    named = [f"{option} {folder.name}" for option, folder in folders]
    return " ".join([f"kwsd eval --model {out.name}", *(["--data DATA"] if data else []), *named])


def parse_thresholds(given: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, float]:
    """`0.8` for all words and `stop=0.7` for one: score per label. Raises ConfigError for anything else."""
    thresholds: dict[str, float] = {}
    for text in sorted(given, key=lambda text: "=" in text):  # those for one word last
        label, _, score = text.rpartition("=")
        try:
            value = float(score)
        except ValueError:
            value = -1.0
        if not 0.0 < value <= 1.0:
            raise ConfigError(f"--threshold {text}: a score above 0, up to 1, or LABEL=SCORE", exit_code=USAGE)
        keywords = [name for name in labels if not name.startswith("_")]
        if label and label not in keywords:
            raise ConfigError(f"--threshold {text}: {label} is no word of this model; it has {', '.join(keywords)}")
        words = [label] if label else keywords
        thresholds |= dict.fromkeys(words, value)
    return thresholds


def export(
    checkpoint: Checkpoint,
    out: Path,
    clips: Tensor,
    *,
    thresholds: dict[str, float] | None = None,
    figures: tuple[Figure, ...] = (),
    second: Checkpoint | None = None,
) -> ArtefactInfo:
    """Write the artefact, load it back, and compare it with the eager network on real clips (n, 16000) in ±1; both
    networks, if there is a `second` that is asked where the other suspects a keyword.

    Raises ModelError, and leaves no file, if the two differ by more than 1e-4 in any log-probability.
    """
    info = describe(checkpoint, thresholds or {}, figures)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    made = _onnx if out.suffix == ".onnx" else _torchscript
    nested = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if second is not None:
            of_second = describe(second, {}, ())
            nested = made(second.network(), of_second, None, unfinished)
            both = f"{info.data}; and of the second network {of_second.data}"
            info = msgspec.structs.replace(info, data=both, weights_sha256=_hash_of_both(checkpoint, second))
        artefact = made(checkpoint.network(), info, nested, unfinished)
        with unfinished.open("wb") as file:
            file.write(artefact)
            file.flush()
            os.fsync(file.fileno())  # in place of one that may be good: the power may go at once
        _compare(_eager(checkpoint, second), unfinished, clips)
        unfinished.replace(out)
    except OSError as error:
        raise KwsdError(f"{out}: cannot be written ({error.strerror})", exit_code=IO) from None
    finally:
        with suppress(OSError):
            unfinished.unlink()
    return info


class _Eager:
    """A network as it was trained, as a Spotter."""

    engine = "torch"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.info, self._network = describe(checkpoint, {}, ()), checkpoint.network()

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1."""
        with torch.inference_mode():
            posteriors: Scores = self._network(torch.from_numpy(windows)).exp().numpy()
            return posteriors


def _eager(checkpoint: Checkpoint, second: Checkpoint | None) -> Spotter:
    first = _Eager(checkpoint)
    return first if second is None else Cascade(first, _Eager(second))


def _second_checkpoint(source: Path, labels: tuple[str, ...]) -> Checkpoint:
    second = _checkpoint(source, None)
    if set(second.labels) != set(labels):
        raise ConfigError(f"{source}: as --second it needs the labels {', '.join(labels)}; it has others")
    return second


def _checkpoint(source: Path, labels: str | None) -> Checkpoint:
    content = load_dict(source)
    if content.get("format") == CHECKPOINT_FORMAT:
        checkpoint = load_checkpoint(source)
        if labels and parse_labels(labels) != checkpoint.labels:
            raise ConfigError(f"{source}: was trained on {','.join(checkpoint.labels)}; leave out --labels")
        return checkpoint
    return _bare_simplenet(source, content, labels)


def _bare_simplenet(source: Path, state: dict[str, Any], labels: str | None) -> Checkpoint:
    """A checkpoint around `torch.save(model.state_dict(), …)` of a SimpleNet, whatever its layers are called."""
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{source}: neither a checkpoint of kwsd train nor a state dict")
    shapes = [tuple(value.shape) for value in state.values()]
    outputs = shapes[-1][0] if shapes[-1] else 0
    own = SimpleNet(outputs).state_dict()
    if shapes != [tuple(value.shape) for value in own.values()]:
        raise ModelError(f"{source}: a state dict, but not SimpleNet's (16000 → 128 → 64 → labels)")
    if labels is None:
        raise ConfigError(
            f"{source}: a bare state dict does not say its labels; give all {outputs} in order with --labels"
        )
    names = parse_labels(labels)
    if len(names) != outputs:
        raise ConfigError(f"--labels: {len(names)} labels for a network with {outputs} outputs")
    weights = dict(zip(own, state.values(), strict=True))
    return Checkpoint(
        model="simplenet", labels=names, epoch=0, state=weights, average_state=None, best_state=weights,
        best_score=0.0, optimiser={}, recipe={}, seed=0, command="", licence="unknown",
        data=f"unknown: exported from a bare state dict, {source.name}",
    )  # fmt: skip


def describe(checkpoint: Checkpoint, thresholds: dict[str, float], figures: tuple[Figure, ...]) -> ArtefactInfo:
    """The metadata for a checkpoint."""
    network = checkpoint.network()
    return ArtefactInfo(
        format=FORMAT,
        architecture=checkpoint.model,
        labels=checkpoint.labels,
        sample_rate=SAMPLE_RATE,
        window=WINDOW,
        features=GEOMETRY if hasattr(network, "features") else None,
        step=network.step if isinstance(network, HasIncrement) else None,
        thresholds=thresholds,
        figures=figures,
        data=f"{checkpoint.data}; {checkpoint.command}" if checkpoint.command else checkpoint.data,
        licence=checkpoint.licence,
        weights_sha256=weights_hash(checkpoint.best_state),
    )


def weights_hash(state: dict[str, Tensor]) -> str:
    """sha256 over names and bytes of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0")
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _hash_of_both(first: Checkpoint, second: Checkpoint) -> str:
    return hashlib.sha256((weights_hash(first.best_state) + weights_hash(second.best_state)).encode()).hexdigest()


def frozen(network: nn.Module) -> torch.jit.ScriptModule:
    """The network as TorchScript with its weights as constants and batch normalisation folded away."""
    kept = []
    if isinstance(network, HasIncrement):
        network, kept = network.for_inference(), ["begin", "advance", "state"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; see design: load by what the file is
        scripted: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.script(network.eval()), kept)
        return scripted


def _torchscript(network: nn.Module, info: ArtefactInfo, second: bytes | None, path: Path) -> bytes:
    extra = {METADATA: msgspec.json.format(msgspec.json.encode(info), indent=1)}
    if second is not None:
        extra[SECOND] = second
    scripted = frozen(network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        content = io.BytesIO()  # torch's own way to write a file aborts the process where the disk is full
        torch.jit.save(scripted, content, _extra_files=extra)
    return content.getvalue()


def _onnx(network: nn.Module, info: ArtefactInfo, second: bytes | None, path: Path) -> bytes:
    """By way of a file: the exporter writes no other."""
    import onnx

    inputs: tuple[Tensor, ...] = (torch.zeros(2, WINDOW),)
    if isinstance(network, HasIncrement):
        incremental: Any = network.for_onnx()
        inputs = torch.zeros(2, 2 * network.step), torch.zeros(2, incremental.state), torch.arange(2)
        network = incremental
    given, outputs = ["samples", "state", "ends"][: len(inputs)], ["log_probs", "state_after"][: len(inputs)]
    free = {name: {0: "batch"} for name in ["samples", "state", *outputs]}
    if len(inputs) > 1:
        free["samples"][1], free["ends"] = "n", {0: "hops"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two exporters this is the older one, which needs no onnxscript
        torch.onnx.export(
            network.eval(), inputs, str(path), dynamo=False, input_names=given, output_names=outputs, dynamic_axes=free
        )  # fmt: skip
    model = onnx.load(path)
    model.metadata_props.add(key=METADATA, value=msgspec.json.encode(info).decode())
    if second is not None:
        model.metadata_props.add(key=SECOND, value=base64.b64encode(second).decode())
    onnx.checker.check_model(model)
    return sealed(model.SerializeToString())


def _compare(eager: Spotter, path: Path, windows: Tensor) -> None:
    """By every engine that may run it, each network by itself."""
    artefact = read_artefact(path)
    for engine in (AUTO, ONNX_RUNTIME) if artefact.is_onnx else (AUTO,):
        for ours, loaded in zip(stages(eager), stages(make_spotter(artefact, "cpu", engine)), strict=True):
            _compare_stage(ours, loaded, windows)


def _compare_stage(eager: Spotter, loaded: Spotter, windows: Tensor) -> None:
    batches = [batch.numpy() for batch in in_batches(windows)]
    # Below a posterior of 1e-6 the logarithm only magnifies rounding.
    ours, theirs = (
        np.log(np.concatenate([spotter.score(batch) for batch in batches]).clip(1e-6)) for spotter in (eager, loaded)
    )  # (n, labels)
    error = float(np.abs(ours - theirs).max())
    if not error <= TOLERANCE:
        raise ModelError(
            f"the exported network differs from the trained one by {error:.2g} in log-probability, run by "
            f"{loaded.engine}; nothing was written"
        )
