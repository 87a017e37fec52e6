"""What a training run has come to, epoch by epoch: a CSV file and curves beside the checkpoint."""

import csv
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kwsd.errors import IO, UNAVAILABLE, USAGE, ConfigError, KwsdError


@dataclass(frozen=True)
class EpochFigures:
    """One line of the CSV."""

    epoch: int  # finished ones
    learning_rate: float  # at its end
    loss: float  # mean over its batches
    training_accuracy: float  # share of its augmented windows told right, 0 to 1
    validation_accuracy: float | None  # share of the validation clips told right; None: not looked at after this one
    spotting: float | None  # share of validation keywords told from talk and noise, where there is talk
    seconds: float  # that it took


OURS = ",".join(field.name for field in fields(EpochFigures))  # the first line


class History:
    """The figures of a run, kept in `path` so that they outlive it."""

    def __init__(self, path: Path, epochs: int, board: Path | None = None) -> None:
        """Go on after so many epochs; what the file has of later ones was lost with their checkpoint.

        `board` is a folder for TensorBoard. Raises ConfigError if that is not installed, or if of a run that begins
        the file would take another's place.
        """
        if not epochs:
            _check_place(path)
        self.path = path
        self._rows = [row for row in _read(path) if int(row["epoch"]) <= epochs] if epochs else []
        self._board = _open_board(board, epochs) if board else None

    def add(self, figures: EpochFigures) -> None:
        """Write one more line. Raises KwsdError if it cannot be written."""
        values = {name: "" if value is None else f"{value:.6g}" for name, value in asdict(figures).items()}
        self._rows.append(values)
        if self._board:
            for name, value in asdict(figures).items():
                if value is not None and name != "epoch":
                    self._board.add_scalar(name, value, figures.epoch)
            self._board.flush()
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with unfinished.open("w", newline="", encoding="utf-8") as file:
                lines = csv.DictWriter(file, OURS.split(","), lineterminator="\n")
                lines.writeheader()
                lines.writerows(self._rows)
            unfinished.replace(self.path)
        except OSError as error:
            raise KwsdError(f"{self.path}: cannot be written ({error.strerror}); make room", exit_code=IO) from None
        finally:
            with suppress(OSError):
                unfinished.unlink()

    def close(self) -> None:
        """Nothing more will be added."""
        if self._board:
            self._board.close()

    def draw(self, path: Path) -> None:
        """Loss and shares over the epochs, as a picture, if any are known. Raises KwsdError if it cannot be written."""
        if not self._rows:
            return
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, (above, below) = pyplot.subplots(2, sharex=True, figsize=(6.4, 5.4), layout="constrained")
        above.plot(*self._curve("loss"), color="C3", label="loss")
        above.set_ylabel("loss (training)")
        names = {
            "training_accuracy": "training, augmented",
            "validation_accuracy": "validation clips",
            "spotting": "keywords told from talk and noise",
        }
        for name, label in names.items():
            epochs, values = self._curve(name)
            if epochs:
                below.plot(epochs, [100 * value for value in values], label=label, marker=".")
        below.set_ylabel("told right, %")
        below.set_xlabel("epochs")
        below.legend()
        for axes in (above, below):
            axes.grid(alpha=0.3)
        try:
            figure.savefig(path, dpi=120)
        except OSError as error:
            raise KwsdError(f"{path}: cannot be written ({error.strerror}); make room", exit_code=IO) from None
        finally:
            pyplot.close(figure)

    def _curve(self, name: str) -> tuple[Sequence[int], Sequence[float]]:
        """The epochs after which it is known, and what it was."""
        known = [row for row in self._rows if row[name]]
        return [int(row["epoch"]) for row in known], [float(row[name]) for row in known]


def check_board() -> None:
    """Raises ConfigError if the library for TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - to see whether it is there
    except ImportError:
        missing = "--tensorboard: tensorboard is not installed; pip install 'kwsd[tensorboard]'"
        raise ConfigError(missing, exit_code=UNAVAILABLE) from None


def _open_board(folder: Path, epochs: int) -> Any:
    """A SummaryWriter, in whose curves what came after so many epochs is gone."""
    from torch.utils.tensorboard import SummaryWriter

    try:
        return SummaryWriter(str(folder), purge_step=epochs + 1)
    except OSError as error:
        raise KwsdError(f"{folder}: cannot be written ({error.strerror}); choose another", exit_code=IO) from None


def _check_place(path: Path) -> None:
    """What a run before left there may go; anything else is somebody's."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            if file.readline().rstrip("\n") == OURS:
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise KwsdError(f"{path}: cannot be written ({error.strerror}); choose another --out", exit_code=IO) from None
    raise ConfigError(f"{path}: is there already, and is no history of a run; choose another --out", exit_code=USAGE)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of ours: those of its lines that are whole."""
    try:
        head, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    except OSError:
        return []
    return [row for line in lines if (row := _row(line))] if head == OURS else []


def _row(line: str) -> dict[str, Any]:
    """Empty if it is none."""
    values = line.split(",")
    try:
        row = dict(zip(OURS.split(","), values, strict=True))
        for value in filter(None, values):
            float(value)
        return row if int(row["epoch"]) > 0 else {}
    except ValueError:
        return {}
