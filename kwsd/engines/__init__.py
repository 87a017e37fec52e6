"""Engines: what runs an artefact. Which one, the file itself decides."""

import importlib.util
from pathlib import Path

from kwsd.artefact import Artefact, read_artefact
from kwsd.errors import UNAVAILABLE, ModelError
from kwsd.spotter import Spotter, try_out


def load_spotter(path: Path, device: str, sha256: str | None = None) -> Spotter:
    """Read an artefact, load it and try it on silence. Raises as `read_artefact` and `make_spotter` do."""
    return make_spotter(read_artefact(path, sha256), device)


def check_engine(artefact: Artefact) -> None:
    """Raises ModelError if what would run it is not installed."""
    if not artefact.is_onnx and importlib.util.find_spec("torch") is None:
        raise ModelError(
            f"{artefact.path}: is TorchScript, and torch is not installed; the README says how, or take an ONNX file",
            exit_code=UNAVAILABLE,
        )


def make_spotter(artefact: Artefact, device: str) -> Spotter:
    """Load an artefact that was read, and try it on silence.

    Raises ModelError if its engine is missing, it does not load, or does not give one probability per label;
    ConfigError if the device is not there.
    """
    check_engine(artefact)
    if artefact.is_onnx:
        from kwsd.engines import onnx

        spotter: Spotter = onnx.load(artefact, device)
    else:
        from kwsd.engines import torchscript

        spotter = torchscript.load(artefact, device)
    try:
        try_out(spotter)
    except ModelError as error:
        raise ModelError(f"{artefact.path}: {error}") from None
    return spotter
