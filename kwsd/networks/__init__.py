"""The networks kwsd trains, by the name `kwsd train --model` takes."""

from collections.abc import Callable

from torch import nn

from kwsd.networks.matchboxnet import MatchboxNet
from kwsd.networks.simplenet import SimpleNet

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "simplenet": SimpleNet,
    "matchboxnet": MatchboxNet,
}
