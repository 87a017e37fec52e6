"""An artefact at work: a batch of windows in, posteriors out."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from kwsd.artefact import ArtefactInfo, read_info
from kwsd.audio_format import WINDOW
from kwsd.device import choose_device
from kwsd.errors import ModelError
from kwsd.ring import Samples

if TYPE_CHECKING:
    import torch

Scores = NDArray[np.float32]  # (n, labels)


class Spotter(Protocol):
    """What the pipeline needs of a model."""

    info: ArtefactInfo

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1."""
        ...


class TorchScriptSpotter:
    """A frozen TorchScript network on the CPU or a GPU."""

    def __init__(self, info: ArtefactInfo, network: "torch.jit.ScriptModule", device: "torch.device") -> None:
        self.info, self._network, self._device = info, network, device

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        import torch

        try:
            with torch.inference_mode():
                log_probs = self._network(torch.from_numpy(windows).to(self._device))  # (n, labels)
                return log_probs.exp().cpu().numpy()  # type: ignore[no-any-return]
        except RuntimeError as error:
            raise ModelError(f"{self.info.architecture}: inference failed: {_last_line(error)}") from None


def load_spotter(path: Path, device: str) -> TorchScriptSpotter:
    """Load an artefact and try it on a window of silence.

    Raises ModelError if the file is no artefact, does not load, or does not give one probability per label;
    ConfigError if the device is not there.
    """
    info = read_info(path)
    import torch  # here, not above: what only checks a config or prints help does not wait for it

    torch.set_num_threads(1)  # one window is too little work to share; more threads only add wake-ups
    chosen = choose_device(device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; the file format decides here
            network = torch.jit.load(str(path), map_location=chosen)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: TorchScript cannot load it ({_last_line(error)}); export it again") from None
    spotter = TorchScriptSpotter(info, network, chosen)
    try:
        check_output(spotter.score(np.zeros((1, WINDOW), np.float32)), len(info.labels))
        spotter.score(np.zeros((2, WINDOW), np.float32))  # the profiling executor compiles on the second call
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    return spotter


def check_output(posteriors: NDArray[np.float32], labels: int) -> None:
    """Raises ModelError unless one window gave one probability per label."""
    if posteriors.shape != (1, labels):
        raise ModelError(
            f"gives {list(posteriors.shape)} for one window, not [1, {labels}] as its labels say; export it again"
        )
    if not np.isfinite(posteriors).all() or abs(float(posteriors.sum()) - 1.0) > 1e-3:
        raise ModelError("its outputs are not log-probabilities (their exponentials do not sum to 1); export it again")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
