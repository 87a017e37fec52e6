"""Engines: what runs an artefact. The file itself decides which, and of two for ONNX the quicker if that knows it."""

import importlib.util
import logging
from pathlib import Path

from kwsd.artefact import Artefact, read_artefact
from kwsd.cascade import Cascade
from kwsd.engines import native
from kwsd.engines.layout import UnfitError
from kwsd.errors import CONFIG, SHORTAGES, UNAVAILABLE, ConfigError, KwsdError, ModelError, is_of_memory
from kwsd.spotter import Spotter, try_out

log = logging.getLogger("kwsd")

AUTO, NATIVE, ONNX_RUNTIME = "auto", "native", "onnxruntime"  # as the config has them


def load_spotter(path: Path, device: str, sha256: str | None = None, engine: str = AUTO) -> Spotter:
    """Read an artefact, load it and try it on silence. Raises as `read_artefact` and `make_spotter` do."""
    return make_spotter(read_artefact(path, sha256), device, engine)


def check_engine(artefact: Artefact, device: str, engine: str = AUTO) -> None:
    """Raises ModelError if what would run it is not installed, ConfigError if the engine that is asked for is not
    there, or not for this file or device."""
    if not artefact.is_onnx and importlib.util.find_spec("torch") is None:
        raise ModelError(
            f"{artefact.path}: is TorchScript, and torch is not installed; "
            "pip install 'kwsd[torch]', or take an ONNX file",
            exit_code=UNAVAILABLE,
        )
    if not artefact.is_onnx and engine != AUTO:
        raise ConfigError(f"engine: {engine}: {artefact.path} is TorchScript, which torch runs; say auto")
    if artefact.is_onnx and device == "cuda":
        raise ConfigError(
            f"device: cuda: {artefact.path} is ONNX, which runs on the CPU; use cpu, or a TorchScript artefact",
            exit_code=UNAVAILABLE,
        )
    if engine == NATIVE:
        _load_native(artefact)
    if artefact.second is not None:
        check_engine(artefact.second, device, engine)


def make_spotter(artefact: Artefact, device: str, engine: str = AUTO) -> Spotter:
    """Load an artefact that was read, and try it on silence.

    Raises ModelError if its engine is missing, it does not load, or does not give one probability per label;
    ConfigError if the device is not there, or the engine not for it.
    """
    check_engine(artefact, device, engine)
    first = _make(artefact, device, engine)
    return first if artefact.second is None else Cascade(first, _make(artefact.second, device, engine))


def _make(artefact: Artefact, device: str, engine: str) -> Spotter:
    if not artefact.is_onnx:
        _load_torch(artefact)
    try:
        if artefact.is_onnx:
            spotter = _make_for_onnx(artefact, engine)
        else:
            from kwsd.engines import torchscript

            spotter = torchscript.load(artefact, device)
        _try_out(artefact, spotter)
    except (KwsdError, MemoryError):
        raise
    except Exception as error:  # a file may be wrong in ways that nobody thought of: then it is refused, and no more
        if isinstance(error, OSError) and error.errno in SHORTAGES:
            raise
        raise ModelError(f"{artefact.path}: cannot be run ({error!r}); export it again") from error
    return spotter


def _load_torch(artefact: Artefact) -> None:
    """What keeps it from being loaded is not the file's fault. Raises ModelError."""
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:
        raise ModelError(
            f"{artefact.path}: torch, which would run it, cannot be loaded ({error}); install it anew",
            exit_code=UNAVAILABLE,
        ) from None


def _try_out(artefact: Artefact, spotter: Spotter) -> None:
    """What fails here is the file's fault, but for memory that is full. Raises ModelError."""
    try:
        try_out(spotter)
    except ModelError as error:
        exit_code = UNAVAILABLE if is_of_memory(error) else CONFIG
        raise ModelError(f"{artefact.path}: {error}", exit_code=exit_code) from None


def _make_for_onnx(artefact: Artefact, engine: str) -> Spotter:
    if engine == NATIVE:
        return _load_native(artefact)
    unfit = ""
    if engine == AUTO:
        try:
            return native.load(artefact)
        except UnfitError as reason:
            log.debug("ONNX Runtime runs %s, not kwsd's own engine: %s", artefact.path, reason)
            unfit = f"not for kwsd's own engine ({reason}), and "
    try:
        from kwsd.engines import onnx
    except ImportError as error:
        raise ModelError(
            f"{artefact.path}: {unfit}ONNX Runtime, which would run it, cannot be loaded ({error}); install it anew",
            exit_code=UNAVAILABLE,
        ) from None
    return onnx.load(artefact)


def _load_native(artefact: Artefact) -> Spotter:
    """Where it is asked for by name."""
    try:
        return native.load(artefact)
    except UnfitError as reason:
        raise ConfigError(
            f"engine: native: not for {artefact.path}: {reason}; say auto", exit_code=UNAVAILABLE
        ) from None
