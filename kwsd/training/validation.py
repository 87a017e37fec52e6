"""How good a network is while it is trained: on clips it has not seen, and on talk."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kwsd.artefact import SILENCE
from kwsd.audio_format import WINDOW
from kwsd.errors import AudioError
from kwsd.training import augment
from kwsd.training.batches import crops, place, targets_of, to_float
from kwsd.training.dataset import Clips, Noise, to_int16

BATCH = 256  # windows
CLIPS_PER_SILENCE = 11
TALK_EVERY = 8000  # samples between windows of talk
FALSE_SHARES = (0.01, 0.003)  # of the windows of talk that may be taken for a keyword
NOISY_DB = (0.0, 20.0)  # signal-to-noise ratio of every other spoken keyword


@dataclass(frozen=True)
class Validated:
    """What a network did."""

    accuracy: float  # share of the clips as they are that it told right
    spotting: float | None  # share of spoken keywords told from talk; None: there was no talk

    @property
    def score(self) -> float:
        """What a better network has more of: a daemon lives from few false alarms first."""
        return self.accuracy if self.spotting is None else self.spotting

    def __str__(self) -> str:
        told = "" if self.spotting is None else f", {self.spotting:.1%} told from talk"
        return f"validation accuracy {self.accuracy:.1%}{told}"


@dataclass(frozen=True)
class HeldOut:
    """Windows (n, 16000) of 16 bits that no network is trained on."""

    clips: Tensor  # as they were recorded
    targets: Tensor  # (clips,)
    spoken: Tensor  # keywords anywhere in the window, every other over noise
    spoken_targets: Tensor  # (spoken,)
    talk: Tensor | None  # in which no keyword should be heard
    keywords: Tensor  # (keywords,) their labels

    def __len__(self) -> int:
        return sum(len(windows) for windows in (self.clips, self.spoken, self.talk) if windows is not None)

    def validate(self, network: nn.Module, device: torch.device) -> Validated:
        """Score all of it with a network."""
        accuracy = share_right(network, self.clips, self.targets, device)
        if self.talk is None:
            return Validated(accuracy, None)
        log_probs = torch.cat(list(predictions(network, self.spoken, device)))  # (spoken, labels)
        wanted = log_probs.gather(1, self.spoken_targets[:, None])[:, 0]  # (spoken,)
        heard = [batch[:, self.keywords].amax(1) for batch in predictions(network, self.talk, device)]
        false = torch.cat(heard)  # (talk,)
        false = false.sort(descending=True).values
        bars = [false[math.ceil(share * len(false)) - 1] for share in FALSE_SHARES]
        return Validated(accuracy, sum(float((wanted > bar).float().mean()) for bar in bars) / len(bars))


def hold_out(clips: Clips, labels: tuple[str, ...], noise: Noise, talk: NDArray[np.int16] | None) -> HeldOut:
    """What to validate on. Raises AudioError if none of the clips is one of the labels."""
    windows, targets = labelled_windows(clips, labels, noise, "validation")
    keywords = [label for label in labels if not label.startswith("_")]
    rows, columns = clips.said_whole(keywords), torch.from_numpy(targets_of(tuple(keywords), labels))
    if talk is None or not rows.size:
        nothing = torch.zeros(0, WINDOW, dtype=torch.int16)
        return HeldOut(windows, targets, nothing, torch.zeros(0, dtype=torch.int64), None, columns)
    rng = np.random.default_rng(0)
    spoken = place(clips, rows, np.zeros(rows.size), rng)  # (rows, 16000)
    background = crops(noise.part("validation"), rows.size, rng)
    noisy = augment.mix(spoken, background, to_float32(rng.uniform(*NOISY_DB, (rows.size, 1))))
    spoken[1::2] = noisy[1::2].clamp(-1.0, 1.0)
    starts = np.arange(0, max(talk.size - WINDOW, 0) + 1, TALK_EVERY)
    pieces = np.lib.stride_tricks.sliding_window_view(np.pad(talk, (0, max(WINDOW - talk.size, 0))), WINDOW)[starts]
    return HeldOut(
        windows,
        targets,
        torch.from_numpy(to_int16(spoken.numpy())),
        torch.from_numpy(targets_of(tuple(clips.words[row] for row in rows), labels)),
        torch.from_numpy(pieces.copy()),
        columns,
    )


def to_float32(values: NDArray[np.float64]) -> Tensor:
    """As torch reckons."""
    return torch.from_numpy(values.astype(np.float32))


def labelled_windows(clips: Clips, labels: tuple[str, ...], noise: Noise, subset: str) -> tuple[Tensor, Tensor]:
    """The windows and targets a closed-set figure is taken over: the clips as they are and, where the model
    has `_silence_`, one piece of noise per eleven clips: (n, 16000) int16, (n,)."""
    targets = targets_of(clips.words, labels)
    rows = np.flatnonzero(targets >= 0)
    if not rows.size:
        raise AudioError(f"none of the {subset} clips is one of the labels {', '.join(labels)}")
    windows, wanted = torch.from_numpy(clips.samples[rows]), torch.from_numpy(targets[rows])
    if SILENCE in labels:
        n = max(1, rows.size // CLIPS_PER_SILENCE)
        quiet = crops(noise.part(subset), n, np.random.default_rng(0)) * 32768.0
        windows = torch.cat([windows, quiet.short()])
        wanted = torch.cat([wanted, torch.full((n,), labels.index(SILENCE))])
    return windows, wanted


def predictions(network: nn.Module, windows: Tensor, device: torch.device) -> Iterator[Tensor]:
    """Log-probabilities of int16 windows (n, 16000), batch by batch: (batch, labels)."""
    network.eval()
    for batch in in_batches(windows):
        with torch.inference_mode():
            log_probs = network(to_float(batch.numpy()).to(device)).cpu()  # (batch, labels)
        yield log_probs


def in_batches(windows: Tensor) -> tuple[Tensor, ...]:
    """Windows (n, 16000) cut into batches that fit into memory."""
    return torch.split(windows, BATCH)


def share_right(network: nn.Module, windows: Tensor, targets: Tensor, device: torch.device) -> float:
    """The share of windows whose most likely label is the target."""
    guesses = torch.cat([batch.argmax(1) for batch in predictions(network, windows, device)])
    return float((guesses == targets).float().mean())
