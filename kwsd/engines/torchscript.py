"""Artefacts in TorchScript, on the CPU or a GPU."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kwsd.artefact import METADATA, Artefact, ArtefactInfo
from kwsd.device import choose_device
from kwsd.errors import UNAVAILABLE, ModelError, is_of_memory
from kwsd.ring import Indices, Samples
from kwsd.spotter import Scores

if TYPE_CHECKING:
    import torch

GPU_IS_FULL = "the GPU's memory is full; free some, or say device: cpu"


class TorchScriptSpotter:
    """A frozen TorchScript network on the CPU or a GPU."""

    engine = "TorchScript"

    def __init__(self, info: ArtefactInfo, network: "torch.jit.ScriptModule", device: "torch.device") -> None:
        self.info, self._network, self._device = info, network, device

    def score(self, windows: Samples) -> Scores:
        """Windows (n, 16000) in ±1 to posteriors (n, labels) that sum to 1. Raises ModelError if the network fails."""
        import torch

        with self._guarded():
            log_probs = self._network(torch.from_numpy(windows).to(self._device))  # (n, labels)
            return log_probs.exp().cpu().numpy()  # type: ignore[no-any-return]

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        import torch

        try:
            with torch.inference_mode():
                yield
        except RuntimeError as error:
            raise ModelError(
                f"{self.info.architecture}: inference failed: {_last_line(error)}", exit_code=UNAVAILABLE
            ) from None


class IncrementalSpotter(TorchScriptSpotter):
    """A frozen TorchScript network with the methods `begin` and `advance`."""

    def states(self, streams: int) -> "torch.Tensor":
        """Zeros (streams, state) on the network's device."""
        import torch

        return torch.zeros(streams, self._network.state, device=self._device)

    def begin(self, windows: Samples, states: "torch.Tensor", streams: Indices) -> Scores:
        """Windows (n, 16000) of n distinct streams to posteriors (n, labels). Raises ModelError if it fails."""
        import torch

        with self._guarded():
            log_probs, after = self._network.begin(torch.from_numpy(windows).to(self._device))
            states[torch.from_numpy(streams)] = after
            return log_probs.exp().cpu().numpy()  # type: ignore[no-any-return]

    def advance(self, samples: Samples, states: "torch.Tensor", streams: Indices, hops: int) -> Scores:
        """Samples (n, hops * hop) of n distinct streams to posteriors (n, hops, labels). Raises ModelError if it
        fails."""
        import torch

        with self._guarded():
            new = torch.from_numpy(samples).to(self._device)
            if len(streams) == len(states):  # all of them, in order: as always with one microphone
                log_probs, after = self._network.advance(new, states, hops)
                states.copy_(after)
            else:
                rows = torch.from_numpy(streams).to(self._device)
                log_probs, after = self._network.advance(new, states[rows], hops)
                states[rows] = after
            return log_probs.exp().cpu().numpy()  # type: ignore[no-any-return]


def load(artefact: Artefact, device: str) -> TorchScriptSpotter:
    """Raises ModelError if TorchScript cannot load it; ConfigError if the device is not there."""
    import torch  # here, not above: what only checks a config or prints help does not wait for it

    path, info = artefact.path, artefact.info
    torch.set_num_threads(1)  # one window is too little work to share; more threads only add wake-ups
    chosen = choose_device(device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is; the file format decides here
            network = torch.jit.load(io.BytesIO(artefact.data), map_location=chosen)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        if is_of_memory(error):  # which is no `OutOfMemoryError` where CUDA itself does not start
            full = "memory is full; free some" if chosen.type == "cpu" else GPU_IS_FULL
            raise ModelError(f"{path}: {full}", exit_code=UNAVAILABLE) from None
        raise ModelError(f"{path}: TorchScript cannot load it ({_last_line(error)}); export it again") from None
    if info.step is None:
        return TorchScriptSpotter(info, network, chosen)
    if not all(hasattr(network, name) for name in ("begin", "advance", "state")):
        raise ModelError(f"{path}: cannot be advanced, although its {METADATA} says so; export it again")
    return IncrementalSpotter(info, network, chosen)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
