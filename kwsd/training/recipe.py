"""How each network is trained: the hyper-parameters, in one place."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """What `kwsd train --model NAME` does unless told otherwise."""

    labels: str  # as `--labels` takes it
    epochs: int
    batch: int  # windows per step
    optimiser: Literal["adam", "adamw"]
    learning_rate: float  # the highest
    weight_decay: float
    schedule: Literal["constant", "cosine"]
    warmup_epochs: float  # linear, from zero; cosine only
    label_smoothing: float
    augment: bool  # place, stretch, mix and mask the windows; else the clips as they are


RECIPES = {
    # The article's own numbers.
    "simplenet": Recipe(
        labels="all",
        epochs=20,
        batch=100,
        optimiser="adam",
        learning_rate=1e-3,
        weight_decay=1e-5,
        schedule="constant",
        warmup_epochs=0.0,
        label_smoothing=0.0,
        augment=False,
    ),
    "matchboxnet": Recipe(
        labels="commands",
        epochs=40,
        batch=128,
        optimiser="adamw",
        learning_rate=4e-3,
        weight_decay=2e-2,
        schedule="cosine",
        warmup_epochs=2.0,
        label_smoothing=0.05,
        augment=True,
    ),
}
