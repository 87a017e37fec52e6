"""What a network is asked to say of each window, and how far it is from it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def smoothed(targets: Tensor, labels: int, smoothing: float) -> Tensor:
    """Targets (batch,) as posteriors (batch, labels), with label smoothing (Szegedy et al. 2016)."""
    return F.one_hot(targets, labels) * (1.0 - smoothing) + smoothing / labels


def corrected(posteriors: Tensor, targets: Tensor, keywords: Tensor, silence: Tensor) -> Tensor:
    """A teacher's posteriors (batch, labels) of windows with these targets (batch,), without its false accepts.

    Where no keyword is to be heard, what it gives to `keywords`, a mask (labels,), goes to the target instead. Else who
    learns from windows that are taken for keywords learns to take them for some. And where the target is one of
    `silence`, a mask as well, all goes to it: music is taken for speech too readily.
    """
    mistaken = posteriors * ((keywords & ~keywords[targets, None]) | silence[targets, None])
    return (posteriors - mistaken).scatter_add(1, targets[:, None], mistaken.sum(1, keepdim=True))


def cross_entropy(log_probs: Tensor, wanted: Tensor) -> Tensor:
    """Of log-probabilities with wanted posteriors, both (batch, labels): a number per window (batch,)."""
    return -(wanted * log_probs).sum(1)


def draw_mixup(batch: int, strength: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al. 2018): with which other window (batch,) each is mixed, and the share (batch, 1) of the other,
    the smaller one. Shares are drawn from Beta(strength, strength)."""
    partner = torch.randperm(batch, generator=generator)
    gamma = torch.full((2, batch, 1), strength)
    # Beta as a ratio of Gammas: torch draws those, and no Beta, with a generator.
    one, other = torch._standard_gamma(gamma, generator=generator)
    share = one / (one + other)
    return partner, torch.minimum(share, 1.0 - share)
