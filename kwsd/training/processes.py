"""One network trained by several processes, on one machine or more, as torchrun starts them.

Every process draws the same batch and trains on its share of the windows; gradients and the statistics of batch
normalisation are brought together. So the loss is that of one process on the whole batch, but for dropout, which is by
chance in each.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn.functional import all_reduce  # differentiable

from kwsd.errors import UNAVAILABLE, ConfigError, KwsdError

PATIENCE = timedelta(minutes=30)  # for another process to decode clips


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together, seen from one of them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine

    @property
    def leads(self) -> bool:
        """Whether this one writes the files and speaks."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """A GPU of its own."""
        return torch.device("cuda", self.local_rank) if device.type == "cuda" and self.world_size > 1 else device

    def shard(self, batch: Tensor) -> Tensor:
        """The rows of a batch that this process trains on."""
        return batch[self.rank :: self.world_size]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def all_have(self, value: str) -> bool:
        """Whether it is the same in all processes."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values == [value] * self.world_size

    def sum_gradients(self, network: nn.Module) -> None:
        """Each gradient becomes the sum of those of all processes, in one message.

        DistributedDataParallel would do it while others are still computed, which networks as small as ours do not
        need. And when it goes it waits, with Python's lock in hand, for a thread that may be waiting for that lock.
        """
        if self.world_size == 1:
            return
        gradients = [weights.grad for weights in network.parameters() if weights.grad is not None]
        sums = self.all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(sums, [gradient.numel() for gradient in gradients])
        for gradient, its_sum in zip(gradients, parts, strict=True):
            gradient.copy_(its_sum.view_as(gradient))

    def synchronise(self, network: nn.Module) -> None:
        """Has all processes begin with the weights of the first, and batch normalisation count the windows of all."""
        if self.world_size == 1:
            return
        for tensor in network.state_dict().values():
            dist.broadcast(tensor, src=0)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if type(child) is nn.BatchNorm2d:
                    setattr(module, name, _synced(child))

    @contextmanager
    def first_of_machine_first(self) -> Iterator[None]:
        """What the first process of every machine does before the others, so that they find it done."""
        if self.world_size > 1 and self.local_rank:
            dist.barrier()
        yield
        if self.world_size > 1 and not self.local_rank:
            dist.barrier()


@contextmanager
def join_process_group(device: torch.device, environment: Mapping[str, str] = os.environ) -> Iterator[ProcessGroup]:
    """The group that torchrun made this process part of, or a group of one.

    Raises KwsdError if the others cannot be reached, or not any more.
    """
    group = _process_group(environment)
    if group.world_size == 1:
        yield group
        return
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if group.local_rank >= there:
            raise KwsdError(
                f"process {group.local_rank + 1} of this machine, which has {there} GPU; --nproc-per-node {there}, or "
                "--device cpu",
                exit_code=UNAVAILABLE,
            )
        torch.cuda.set_device(group.device(device))
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise KwsdError(
            f"process {group.rank} of {group.world_size}: cannot reach the others ({error})", exit_code=UNAVAILABLE
        ) from None
    try:
        yield group
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # which has no error of its own
            raise
        raise KwsdError(
            f"process {group.rank} of {group.world_size}: another one is gone; its line says why", exit_code=UNAVAILABLE
        ) from None
    finally:
        dist.destroy_process_group()


def _process_group(environment: Mapping[str, str]) -> ProcessGroup:
    if "MASTER_ADDR" not in environment:
        return ProcessGroup()
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except (KeyError, ValueError):
        raise ConfigError(
            "MASTER_ADDR without numbers in RANK, WORLD_SIZE and LOCAL_RANK; start it by torchrun"
        ) from None
    return ProcessGroup(rank, world_size, local_rank)


class SyncedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the windows of all processes. The library's own wants a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        wide = x.float()
        axes = (0, 2, 3)
        count = wide.new_full((1,), wide.numel() / self.num_features)
        local = torch.cat([wide.sum(axes), wide.square().sum(axes), count])
        sums = cast(Tensor, all_reduce(local))  # type: ignore[no-untyped-call]
        total, squares, n = torch.split(sums, [self.num_features, self.num_features, 1])
        mean = total / n  # (channels,)
        variance = (squares / n - mean.square()).clamp(min=0.0)
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * n / (n - 1.0).clamp(min=1.0), momentum)
            self.num_batches_tracked.add_(1)
        gain = self.weight * torch.rsqrt(variance + self.eps)  # (channels,)
        out = wide * gain.view(1, -1, 1, 1) + (self.bias - mean * gain).view(1, -1, 1, 1)
        return out.to(x.dtype)


def _synced(norm: nn.BatchNorm2d) -> SyncedBatchNorm:
    """With the same parameters and statistics, themselves and no copies."""
    synced = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    state: dict[str, Any] = {**norm._parameters, **norm._buffers}
    for name, tensor in state.items():
        setattr(synced, name, tensor)
    return synced.train(norm.training)
