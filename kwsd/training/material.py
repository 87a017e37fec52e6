"""What a network learns from: clips, talk and noise, and what is to be said of them."""

from collections.abc import Callable, Iterable
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kwsd.artefact import SILENCE, UNKNOWN
from kwsd.audio_format import SAMPLE_RATE
from kwsd.errors import USAGE, AudioError, ConfigError
from kwsd.training.batches import AugmentedBatches, PlainBatches
from kwsd.training.dataset import Clips, counts, load_subset
from kwsd.training.negatives import Negatives
from kwsd.training.plan import Plan
from kwsd.training.processes import ProcessGroup
from kwsd.training.talk import Noise, load_talk, lost_transcripts, part_talk, transcribed
from kwsd.training.validation import labelled_windows

QUICK_CLIPS = {"training": 2000, "validation": 500}  # at most, evenly over the words
TALK_HELD_OUT = 0.1  # of the negatives: to validate on
FEW_CLIPS = 20  # of a word in training: less than this teaches one speaker's way of saying it
FEW_TO_VALIDATE = 3  # clips of a word
WANTED_CLIPS = 50  # by at least ten people


def load_both(plan: Plan, group: ProcessGroup) -> tuple[Clips, Clips]:
    """The clips to train and to validate on, and what is to be said of them. Raises AudioError if some are both."""
    with group.first_of_machine_first():
        clips, validation = (_load(plan, subset) for subset in ("training", "validation"))
    for note in dict.fromkeys((*clips.told, *validation.told)):
        plan.say(note)
    _check_labels(clips, plan)
    _tell_hardly_validated(validation, plan)
    if not set(clips.paths).isdisjoint(validation.paths):
        raise AudioError(f"{plan.options.data}: validation clips are among the training clips; restore its lists")
    in_both = set(clips.speakers) & set(validation.speakers)
    if in_both and len(set(clips.speakers)) > 1:
        plan.say(
            f"{len(in_both)} of {len(set(validation.speakers))} speakers who are validated on are trained on as well: "
            "strangers will be understood worse than validation says"
        )
    return clips, validation


def make_batches(
    plan: Plan, clips: Clips, noise: Noise, device: torch.device
) -> tuple[PlainBatches | AugmentedBatches, NDArray[np.int16] | None]:
    """What is learnt from, and talk to validate on (samples,) if there is any."""
    options, recipe, labels = plan.options, plan.recipe, plan.labels
    if not recipe.augment:
        if options.negatives:
            plan.say(f"{plan.model} learns from clips alone: --negatives are not used")
        windows, targets = labelled_windows(clips, labels, noise, "training")
        return PlainBatches(windows.numpy(), targets.numpy(), recipe.batch, options.seed), None
    talk, quiet_talk = load_negatives(options.negatives, labels, recipe.hard_negatives, plan.say)
    batches = AugmentedBatches(
        clips,
        labels,
        recipe.batch,
        options.seed,
        noise=Negatives(noise.parts("training"), hard=recipe.hard_negatives),
        talk=talk,
        device=device,
    )
    return batches, quiet_talk


def _load(plan: Plan, subset: str) -> Clips:
    options, say = plan.options, plan.say
    if not options.data and not options.words:
        raise ConfigError("train: nothing to train on; name --data, or a folder of --words", exit_code=USAGE)
    limit = QUICK_CLIPS[subset] if options.quick else None
    clips = load_subset(options.data, options.words, subset, download=options.download, limit=limit)
    for reason in clips.skipped:
        say(f"skipped {reason}")
    if clips.skipped:
        say(f"{subset}: {len(clips.skipped)} of {len(clips) + len(clips.skipped)} clips skipped")
    per_word = ", ".join(f"{word} {n}" for word, n in counts(clips.words).items())
    say(f"{subset}: {len(clips)} clips ({per_word})")
    return clips


def _check_labels(clips: Clips, plan: Plan) -> None:
    """Says which labels have too little to learn from, and what becomes of other words. Raises AudioError if one has
    nothing."""
    labels, say, spoken = plan.labels, plan.say, counts(clips.words)
    keywords = _keywords(labels)
    if set(spoken).isdisjoint(keywords):
        raise AudioError(
            f"none of the training clips is one of the labels {', '.join(labels)}; "
            f"they are of {_some(spoken)}: name --labels"
        )
    missing = [label for label in keywords if label not in spoken]
    if missing:
        _tell_missing(missing, plan)
    others = [f"{word} {n}" for word, n in spoken.items() if word not in labels]
    if others:
        say(f"{f'learnt as {UNKNOWN}' if UNKNOWN in labels else 'not used, as no labels'}: {_some(others)}")
    elif UNKNOWN in labels and UNKNOWN not in spoken and not plan.options.negatives:
        say(
            f"there is nothing to learn {UNKNOWN} from, and whatever is said will be taken for one of the words: "
            "name talk with --negatives, or record other words"
        )
    few = [f"{label} {spoken[label]}" for label in keywords if 0 < spoken.get(label, 0) < FEW_CLIPS]
    if few:
        say(f"few training clips: {', '.join(few)}; {WANTED_CLIPS} of each, from ten people or more, are wanted")
    _tell_unlearnt(plan)
    if len(set(clips.speakers)) == 1:
        say(f"all training clips are of one speaker ({clips.speakers[0]}); others will be understood poorly")


def _tell_hardly_validated(validation: Clips, plan: Plan) -> None:
    """Says of which words it will hardly be known how well they are heard."""
    said = counts(validation.words)
    few = [f"{label} {said.get(label, 0)}" for label in _keywords(plan.labels) if said.get(label, 0) < FEW_TO_VALIDATE]
    if few:
        plan.say(
            f"few validation clips: {_some(few)}; how well these are heard is hardly known, and which weights are best "
            "is decided by the others"
        )


def _tell_unlearnt(plan: Plan) -> None:
    """Says what a network will take for one of its words for want of a label."""
    options, labels = plan.options, plan.labels
    unlearnt = {"talk": UNKNOWN} if options.negatives and plan.recipe.augment else {}
    unlearnt |= {"noise": SILENCE} if options.noise or plan.recipe.augment else {}
    for sound, label in unlearnt.items():
        if label not in labels:
            plan.say(
                f"{sound} is not learnt as {label}, which is no label, and may be taken for one of the words: "
                "add it to --labels"
            )


def _keywords(labels: tuple[str, ...]) -> list[str]:
    return [label for label in labels if not label.startswith("_")]


def _tell_missing(missing: list[str], plan: Plan) -> None:
    """A label that is known already may go without clips. Raises AudioError if there is another, but in a quick try of
    what there is."""
    meant = [f"; did you mean _{label}_?" for label in missing if f"_{label}_" in (UNKNOWN, SILENCE)]
    told = f"no training clips of: {', '.join(missing)}{''.join(meant[:1])}"
    if plan.options.quick or (plan.origin and set(missing) <= set(plan.origin.labels)):
        plan.say(told)
    else:
        raise AudioError(f"{told}; record some, or leave it out of --labels")


def _some(words: Iterable[str], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    all_of_them = list(words)
    more = len(all_of_them) - most
    return ", ".join(all_of_them[:most]) + (f" and {more} more" if more > 0 else "")


def load_negatives(
    folders: Iterable[Path], labels: tuple[str, ...], hard: float, say: Callable[[str], None]
) -> tuple[Negatives | None, NDArray[np.int16] | None]:
    """Talk to train and talk to validate on (samples,), if there is any."""
    parts = []  # whether somebody wrote down what is said, recordings to train on, recordings to validate on
    for folder in folders:
        pieces, left_out = load_talk(folder, labels)
        known = transcribed(folder, pieces)
        for note in lost_transcripts(folder):
            say(note)
        minutes, of_them = _minutes(pieces, pieces), _minutes(pieces, known)
        say(
            f"negatives: {minutes:.1f} min from {folder}, {of_them:.1f} min of it with transcripts, "
            f"{left_out} recordings left out for a keyword"
        )
        for is_known in (True, False):
            some = {path: samples for path, samples in pieces.items() if (path in known) == is_known}
            if some:
                parts.append((is_known, *part_talk(some, TALK_HELD_OUT)))
    if not any(to_train for _, to_train, _ in parts):
        return None, None
    parts.sort(key=itemgetter(0), reverse=True)
    checked = sum(len(to_train) for is_known, to_train, _ in parts if is_known)
    if hard and not checked:
        say("hard negatives are sought in noise alone: nobody wrote down what is said in the talk (transcripts.tsv)")
    _, to_train, to_validate = zip(*parts, strict=True)
    held_out = np.concatenate([np.zeros(0, np.int16), *chain(*to_validate)])
    return Negatives([list(chain(*to_train))], hard=hard, checked=checked), held_out


def _minutes(pieces: dict[Path, NDArray[np.int16]], some: Iterable[Path]) -> float:
    return sum(pieces[path].size for path in some) / SAMPLE_RATE / 60
