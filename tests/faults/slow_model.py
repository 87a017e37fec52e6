"""A model that needs more time for a window than there is, for one stream in real time."""

import json
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

from scene import Scene, options

import kwsd

warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is deprecated; the artefact is made of it

import torch  # noqa: E402

COMMANDS = Path(kwsd.__file__).parent / "models/commands.pt"


class Slow(torch.nn.Module):
    """A network, and work that leads to nothing."""

    def __init__(self, network: torch.jit.ScriptModule, rounds: int) -> None:
        super().__init__()
        self.network, self.rounds = network, rounds
        self.work = torch.nn.Parameter(torch.eye(256), requires_grad=False)

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """(n, 16000) → (n, labels)"""
        idle = self.work
        for _ in range(self.rounds * windows.shape[0]):
            idle = idle @ self.work
        return self.network(windows) + 0.0 * idle.sum()


def make(path: Path, seconds: float) -> None:
    """The shipped model, so slow that a window takes that long."""
    torch.set_num_threads(1)
    network = torch.jit.load(str(COMMANDS), map_location="cpu")
    slow, window = torch.jit.script(Slow(network, 1000)), torch.zeros(1, 16_000)
    slow(window)
    begun = time.thread_time()  # whoever else takes the processor makes the model no slower
    slow(window)
    rounds = max(1, round(1000 * seconds / (time.thread_time() - begun)))
    with zipfile.ZipFile(COMMANDS) as archive:
        [name] = [name for name in archive.namelist() if name.endswith("/extra/kwsd.json")]
        metadata = json.loads(archive.read(name)) | {"step": None}
    torch.jit.save(torch.jit.script(Slow(network, rounds)), str(path), _extra_files={"kwsd.json": json.dumps(metadata)})


if __name__ == "__main__":
    given = options(__doc__, seconds=120, window_ms=130)
    with tempfile.TemporaryDirectory() as place:
        make(Path(place) / "slow.pt", given.window_ms / 1000)
        with Scene("--model", f"{place}/slow.pt", "--set", "device=cpu", seed=given.seed) as scene:
            scene.talk(given.seconds)
            hops = [event["hop_ms"] for event in scene.daemon.events if event["type"] == "overload"]
            code = scene.settle(window_ms=given.window_ms, hops=hops)
    sys.exit(code or not hops)
