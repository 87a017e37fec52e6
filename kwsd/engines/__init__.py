"""Engines: what runs an artefact. Which one, the file itself decides."""

from pathlib import Path

from kwsd.artefact import is_onnx, read_info
from kwsd.errors import ModelError
from kwsd.spotter import Spotter, try_out


def load_spotter(path: Path, device: str) -> Spotter:
    """Load an artefact and try it on silence.

    Raises ModelError if the file is no artefact, does not load, or does not give one probability per label;
    ConfigError if the device is not there.
    """
    info = read_info(path)
    if is_onnx(path):
        from kwsd.engines import onnx

        spotter: Spotter = onnx.load(path, info, device)
    else:
        from kwsd.engines import torchscript

        spotter = torchscript.load(path, info, device)
    try:
        try_out(spotter)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return spotter
