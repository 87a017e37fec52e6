"""How good a network is while it is trained: on clips it has not seen, and on talk and noise."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kwsd.artefact import SILENCE
from kwsd.audio_format import WINDOW
from kwsd.errors import AudioError
from kwsd.training import augment
from kwsd.training.batches import place, targets_of
from kwsd.training.dataset import Clips
from kwsd.training.decoded import to_int16
from kwsd.training.negatives import Negatives, crops, to_float
from kwsd.training.talk import Noise

BATCH = 256  # windows
CLIPS_PER_SILENCE = 11
NEGATIVE_EVERY = 8000  # samples between windows of talk, and of noise
FALSE_SHARES = (0.03, 0.01, 0.003)  # of the windows of talk, and of noise, that may be taken for a keyword
NOISY_DB = (0.0, 20.0)  # whole window over noise, of every other spoken keyword


@dataclass(frozen=True)
class Validated:
    """What a network did."""

    accuracy: float  # share of the clips as they are that it told right
    spotting: float | None  # share of spoken keywords told from talk and noise; None: there was no talk
    windows: int  # that the score is a share of

    @property
    def score(self) -> float:
        """What a better network has more of: a daemon lives from few false alarms first."""
        return self.accuracy if self.spotting is None else self.spotting

    @property
    def standard_error(self) -> float:
        """By how much scores of equally good networks differ (Agresti & Coull 1998): of few windows, none or all of
        which were told right, as well."""
        n = self.windows + 4
        share = (self.score * self.windows + 2.0) / n
        return math.sqrt(share * (1.0 - share) / n)

    def __str__(self) -> str:
        told = "" if self.spotting is None else f", {self.spotting:.1%} told from talk and noise"
        return f"validation accuracy {self.accuracy:.1%}{told}"


@dataclass(frozen=True)
class HeldOut:
    """Windows (n, 16000) of 16 bits that no network is trained on."""

    clips: Tensor  # as they were recorded
    targets: Tensor  # (clips,)
    spoken: Tensor  # keywords anywhere in the window, every other over noise
    spoken_targets: Tensor  # (spoken,)
    negatives: tuple[Tensor, ...]  # talk, and noise, in which no keyword should be heard; none where there is no talk
    keywords: Tensor  # (keywords,) their labels

    def __len__(self) -> int:
        return sum(len(windows) for windows in (self.clips, self.spoken, *self.negatives))

    @cached_property
    def name(self) -> str:
        """The same for the same windows and targets alone."""
        digest = hashlib.sha256()
        for part in (self.clips, self.targets, self.spoken, self.spoken_targets, *self.negatives):
            digest.update(part.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def validate(self, network: nn.Module, device: torch.device) -> Validated:
        """Score all of it with a network."""
        accuracy = share_right(network, self.clips, self.targets, device)
        if not self.negatives:
            return Validated(accuracy, None, len(self.clips))
        log_probs = torch.cat(list(predictions(network, self.spoken, device)))  # (spoken, labels)
        wanted = log_probs.gather(1, self.spoken_targets[:, None])[:, 0]  # (spoken,)
        bars = [bar for windows in self.negatives for bar in self._bars(network, windows, device)]
        told = sum(float((wanted > bar).float().mean()) for bar in bars) / len(bars)
        return Validated(accuracy, told, len(self.spoken))

    def _bars(self, network: nn.Module, negatives: Tensor, device: torch.device) -> list[Tensor]:
        """Log-probabilities that so many windows (negatives, 16000) reach for some keyword as may be taken for one."""
        heard = [batch[:, self.keywords].amax(1) for batch in predictions(network, negatives, device)]
        false = torch.cat(heard).sort(descending=True).values  # (negatives,)
        return [false[math.ceil(share * len(false)) - 1] for share in FALSE_SHARES]


def hold_out(clips: Clips, labels: tuple[str, ...], noise: Noise, talk: NDArray[np.int16] | None) -> HeldOut:
    """What to validate on. Raises AudioError if none of the clips is one of the labels."""
    windows, targets = labelled_windows(clips, labels, noise, "validation")
    keywords = [label for label in labels if not label.startswith("_")]
    rows, columns = clips.said_whole(keywords), torch.from_numpy(targets_of(tuple(keywords), labels))
    if talk is None or not rows.size:
        nothing = torch.zeros(0, WINDOW, dtype=torch.int16)
        return HeldOut(windows, targets, nothing, torch.zeros(0, dtype=torch.int64), (), columns)
    rng = np.random.default_rng(0)
    spoken = place(clips, rows, np.zeros(rows.size), rng)  # (rows, 16000)
    background = crops(noise.part("validation"), rows.size, rng)
    noisy = augment.mix(spoken, background, to_float32(rng.uniform(*NOISY_DB, (rows.size, 1))))
    spoken[1::2] = noisy[1::2].clamp(-1.0, 1.0)
    return HeldOut(
        windows,
        targets,
        torch.from_numpy(to_int16(spoken.numpy())),
        torch.from_numpy(targets_of(tuple(clips.words[row] for row in rows), labels)),
        (_pieces(talk), _pieces(noise.part("validation"))),
        columns,
    )


def _pieces(recording: NDArray[np.int16]) -> Tensor:
    """Overlapping windows (n, 16000) of all of a recording (samples,), which is filled up to one."""
    long_enough = np.pad(recording, (0, max(WINDOW - recording.size, 0)))
    pieces = np.lib.stride_tricks.sliding_window_view(long_enough, WINDOW)[::NEGATIVE_EVERY]
    return torch.from_numpy(pieces.copy())


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
        # Each within one recording: the sudden change where one follows another is in no room.
        recordings = [[recording] for recording in noise.by_recording(subset)]
        quiet = Negatives(recordings).by_chance(n, np.random.default_rng(0)) * 32768.0
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
