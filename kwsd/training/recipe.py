"""How each network is trained: the hyper-parameters, in one place. A file may say what a model does differently."""

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kwsd.settings_file import SettingsFile

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Score = Annotated[float, Meta(gt=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=1)]
Rate = Annotated[float, Meta(gt=0.0, lt=1.0)]


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `kwsd train --model NAME` does unless told otherwise."""

    labels: str  # as `--labels` takes it
    epochs: Count
    batch: Count  # windows per step
    optimiser: Literal["adam", "adamw", "sgd"]
    learning_rate: Rate  # the highest
    weight_decay: Annotated[float, Meta(ge=0.0)]
    schedule: Literal["constant", "cosine"]
    warmup_epochs: Annotated[float, Meta(ge=0.0)]  # linear, from zero; cosine only
    label_smoothing: Share
    average: Share  # decay per step of the exponential moving average that is validated and exported; 0: none
    augment: bool  # place, stretch, mix, reverberate and mask the windows; else the clips as they are
    mask_frames: Annotated[int, Meta(ge=0, le=98)] = 0  # SpecAugment: the widest mask over time
    mask_mels: Annotated[int, Meta(ge=0, le=40)] = 0  # and over frequency
    # Of the windows of noise, and of talk with transcripts: those that the network is surest are keywords.
    hard_negatives: Share = 0.0
    mixup: Annotated[float, Meta(ge=0.0)] = 0.0  # windows are mixed in shares from Beta(mixup, mixup); 0: not
    # How what is between the layers lies in memory: 1-D convolutions train nearly twice as fast so, 2-D ones slower.
    channels_last: bool = True
    mixed_precision: bool = True  # 16-bit arithmetic in the convolutions, where the device has it
    teacher_share: Share = 0.7  # of the loss that comes from what the teacher says, where there is one
    thresholds: dict[str, Score] = {}  # that `kwsd export` recommends, by keyword


class RecipeFile(Recipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recipe with the network it is for, as `kwsd train --recipe` reads it; what it does not say is the network's."""

    model: str


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
    # A step costs four times one of a DS-TCN and teaches more: bcresnet-2 learnt much in 20 epochs (models/README.md).
    # The paper has SGD for 200.
    labels="commands",
    epochs=60,
    batch=128,
    optimiser="adamw",
    learning_rate=4e-3,
    weight_decay=1e-2,
    schedule="cosine",
    warmup_epochs=2.0,
    label_smoothing=0.0,
    average=0.999,
    augment=True,
    mask_frames=15,
    channels_last=False,
)
BCRESNET_MASK_MELS = {1: 1, 1.5: 2, 2: 3, 3: 5, 6: 7, 8: 7}  # by tau
BCRESNET_RATES = {1: 1e-2, 1.5: 8e-3, 2: 8e-3, 3: 6e-3}  # the larger ones were not tried yet

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
    "dstcn-tiny": msgspec.structs.replace(DSTCN, learning_rate=6e-3, weight_decay=5e-3, mask_frames=10, mask_mels=2),
    "dstcn-small": msgspec.structs.replace(DSTCN, mask_frames=12, mask_mels=3),
    "dstcn-base": DSTCN,
    "stcn-small": msgspec.structs.replace(DSTCN, mask_frames=12, mask_mels=3),
    "stcn-base": msgspec.structs.replace(DSTCN, mask_frames=12, mask_mels=3),
    **{
        f"bcresnet-{tau:g}": msgspec.structs.replace(
            BCRESNET, mask_mels=mels, learning_rate=BCRESNET_RATES.get(tau, BCRESNET.learning_rate)
        )
        for tau, mels in BCRESNET_MASK_MELS.items()
    },
}


def read_recipe(path: Path) -> tuple[str, Recipe]:
    """A network's name and how to train it, from a YAML file. Raises ConfigError naming file, line, key and remedy."""
    file = SettingsFile(path, RecipeFile, "no such recipe")
    tree = file.read()
    model = tree.get("model")
    if not isinstance(model, str) or model not in RECIPES:
        raise file.error("model", f"{model}: no such network; there are {', '.join(RECIPES)}")
    settings: dict[str, Any] = {**msgspec.structs.asdict(RECIPES[model]), **tree}
    try:
        recipe = msgspec.convert(settings, RecipeFile)
    except msgspec.ValidationError as error:
        raise file.complain(error) from None
    if recipe.augment and not RECIPES[model].augment:
        raise file.error("augment", f"{model} has no frames to augment; leave it out")
    values = msgspec.structs.asdict(recipe)
    return values.pop("model"), Recipe(**values)
