"""A training run on disk: everything to go on with it, and everything to export it."""

import os
import pickle
import tempfile
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kwsd.artefact import read_info
from kwsd.errors import IO, NO_INPUT, NO_PERMISSION, USAGE, KwsdError, ModelError
from kwsd.networks import NETWORKS

FORMAT = 3
SPEECH_COMMANDS = "CC BY 4.0 (training recordings); the network's code is MIT"
UNTOLD = "that of the training recordings; the network's code is MIT"


@dataclass(frozen=True)
class Checkpoint:
    """What `kwsd train` writes after every epoch."""

    model: str  # a name in NETWORKS
    labels: tuple[str, ...]
    epoch: int  # finished epochs
    state: dict[str, Tensor]  # weights now
    average_state: dict[str, Tensor] | None  # their moving average, where the recipe keeps one
    best_state: dict[str, Tensor]  # weights with the best score, for evaluation and export
    best_score: float  # in validation, 0 to 1: of best_state, or of what seemed better by less than is chance
    optimiser: dict[str, Any]
    recipe: dict[str, Any]
    seed: int
    command: str
    data: str
    licence: str = SPEECH_COMMANDS  # of the recordings it was trained on; an older kwsd knew no other
    validated_on: str = ""  # a name for what best_score was measured on; empty: an older kwsd did
    learnt: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # digests of the training clips
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Write it whole or not at all: an older checkpoint stays until the new one is on the disk.

        Raises KwsdError if the disk is full or the folder cannot be written.
        """
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                torch.save(asdict(self), file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise _cannot_write(path, error) from None
        finally:
            with suppress(OSError):
                unfinished.unlink()

    @staticmethod
    def check_place(path: Path) -> None:
        """Raises KwsdError if no checkpoint can be written there: better told before an epoch than after it."""
        if path.is_dir():
            raise KwsdError(f"{path}: is a folder; name a file in it with --out", exit_code=USAGE)
        if path.suffix in (".onnx", ".pt"):
            raise KwsdError(
                f"{path}: a checkpoint is no artefact; name {path.with_suffix('.ckpt').name}, and then kwsd export",
                exit_code=USAGE,
            )
        nearest = next(folder for folder in path.parents if folder.exists())  # the others are made when they are needed
        try:
            tempfile.TemporaryFile(dir=nearest).close()
        except OSError as error:
            raise _cannot_write(path, error) from None

    def network(self) -> nn.Module:
        """The network with its best weights, in evaluation mode, on the CPU.

        Raises ModelError if they are another network's.
        """
        network = NETWORKS[self.model](len(self.labels))
        try:
            network.load_state_dict(self.best_state)
        except RuntimeError:
            raise ModelError(f"the weights do not fit this kwsd's {self.model}; train again") from None
        return network.eval()


def _cannot_write(path: Path, error: OSError | RuntimeError) -> KwsdError:
    reason = error.strerror if isinstance(error, OSError) else "the disk is full or failing"
    if isinstance(error, PermissionError):
        return KwsdError(f"{path}: cannot write a checkpoint ({reason}); choose another --out", exit_code=NO_PERMISSION)
    kept = "the one before is kept; " if path.is_file() else ""
    return KwsdError(
        f"{path}: cannot write the checkpoint ({reason}); {kept}make room, or choose another --out", exit_code=IO
    )


def load_dict(path: Path) -> dict[str, Any]:
    """A file of torch.save that holds nothing but tensors and plain values.

    Raises ModelError if it is missing, damaged, or would have to be unpickled.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of a file that is none, we say ourselves
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such checkpoint", exit_code=NO_INPUT) from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})", exit_code=NO_INPUT) from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError):
        with suppress(ModelError):
            read_info(path)
            raise KwsdError(f"{path}: is an artefact; name the checkpoint it was made of", exit_code=USAGE) from None
        raise ModelError(f"{path}: not a checkpoint, damaged, or not safe to load") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not a checkpoint or state dict")
    return content


def load_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of `kwsd train`. Raises ModelError if the file is none."""
    content = load_dict(path)
    if content.get("format") != FORMAT or content.get("model") not in list(NETWORKS):
        raise ModelError(f"{path}: not a checkpoint of this kwsd train")
    try:
        return Checkpoint(**{**content, "labels": tuple(content["labels"])})
    except (TypeError, KeyError):
        raise ModelError(f"{path}: a checkpoint of another kwsd; train again") from None
