"""How each network is trained: the hyper-parameters, in one place."""

import dataclasses
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """What `kwsd train --model NAME` does unless told otherwise."""

    labels: str  # as `--labels` takes it
    epochs: int
    batch: int  # windows per step
    optimiser: Literal["adam", "adamw", "sgd"]
    learning_rate: float  # the highest
    weight_decay: float
    schedule: Literal["constant", "cosine"]
    warmup_epochs: float  # linear, from zero; cosine only
    label_smoothing: float
    average: float  # decay per step of the exponential moving average that is validated and exported; 0: none
    augment: bool  # place, stretch, mix, reverberate and mask the windows; else the clips as they are
    mask_frames: int = 0  # SpecAugment: the widest mask over time
    mask_mels: int = 0  # and over frequency
    teacher_share: float = 0.7  # of the loss that comes from what the teacher says, where there is one


DSTCN = Recipe(
    labels="commands",
    epochs=120,
    batch=128,
    optimiser="adamw",
    learning_rate=4e-3,
    weight_decay=2e-2,
    schedule="cosine",
    warmup_epochs=2.0,
    label_smoothing=0.05,
    average=0.999,
    augment=True,
    mask_frames=15,
    mask_mels=4,
)

BCRESNET = Recipe(
    # The paper's own numbers, with our augmentation.
    labels="commands",
    epochs=200,
    batch=100,
    optimiser="sgd",
    learning_rate=0.1,
    weight_decay=1e-3,
    schedule="cosine",
    warmup_epochs=5.0,
    label_smoothing=0.0,
    average=0.0,
    augment=True,
    mask_frames=20,
)
BCRESNET_MASK_MELS = {1: 0, 1.5: 1, 2: 3, 3: 5, 6: 7, 8: 7}  # by tau

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
        average=0.0,
        augment=False,
    ),
    "dstcn-tiny": dataclasses.replace(DSTCN, learning_rate=6e-3, weight_decay=5e-3, mask_frames=10, mask_mels=2),
    "dstcn-small": dataclasses.replace(DSTCN, mask_frames=12, mask_mels=3),
    "dstcn-base": DSTCN,
    **{f"bcresnet-{tau:g}": dataclasses.replace(BCRESNET, mask_mels=m) for tau, m in BCRESNET_MASK_MELS.items()},
}
