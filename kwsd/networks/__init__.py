"""The networks kwsd trains, by the name `kwsd train --model` takes."""

from collections.abc import Callable
from functools import partial

from torch import nn

from kwsd.networks.bcresnet import BcResNet
from kwsd.networks.dstcn import DsTcn
from kwsd.networks.simplenet import SimpleNet
from kwsd.networks.stcn import STcn

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "simplenet": SimpleNet,
    "dstcn-tiny": partial(DsTcn, channels=18, wide=32),
    "dstcn-small": partial(DsTcn, channels=80, wide=120),
    "dstcn-base": partial(DsTcn, channels=128, wide=192),
    "stcn-small": partial(STcn, channels=80, wide=120),
    "stcn-base": partial(STcn, channels=128, wide=192),
    **{f"bcresnet-{tau:g}": partial(BcResNet, tau=tau) for tau in (1, 1.5, 2, 3, 6, 8)},
}
