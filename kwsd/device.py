"""CPU or GPU, by what is asked for and what is there."""

from typing import TYPE_CHECKING

from kwsd.errors import UNAVAILABLE, ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """`cpu`, `cuda`, or `auto`: CUDA where torch finds it, else the CPU.

    Raises ConfigError if CUDA is asked for and not there.
    """
    import torch  # slow to import; those who only parse arguments never wait for it

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda: torch finds no CUDA device; use cpu or auto", exit_code=UNAVAILABLE)
    return torch.device(name)
