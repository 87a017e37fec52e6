"""From clips, talk and noise to batches of windows and targets."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kwsd.artefact import SILENCE, UNKNOWN
from kwsd.audio_format import WINDOW
from kwsd.training import augment
from kwsd.training.dataset import Clips
from kwsd.training.negatives import Negatives, to_float

CUT_SHARE = 0.08  # of an augmented batch: keywords cut off by the window's edge, to be heard as unknown
TALK_SHARE = 0.22  # connected speech, unknown as well
SILENCE_SHARE = 0.16  # noise, hiss and digital silence
OTHER_SHARE = 0.12  # clips of other words
SPEED = (0.85, 1.15)
HIDDEN = (0.4, 0.8)  # share of a cut word that lies outside the window
LONGEST_TO_CUT = 12_800  # samples: where the span is longer, the clip is too noisy to tell where the word is
PAUSE = 0.003  # root-mean-square amplitude (-50 dBFS) under which a piece of talk is a pause, not speech
SILENCE_DBFS = (-75.0, -8.0)  # from a quiet room to loud music
HISS_DBFS = (-90.0, -40.0)
CPU = torch.device("cpu")
KEYWORD_BALANCE = 0.8  # 0: by how many clips there are, 1: every keyword as often as any other


def targets_of(words: tuple[str, ...], labels: tuple[str, ...]) -> NDArray[np.int64]:
    """The label index of each word; words that are no label are `_unknown_`, or -1 without that label."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index.get(word, index.get(UNKNOWN, -1)) for word in words], np.int64)


@dataclass(frozen=True)
class PlainBatches:
    """Every window once an epoch, shuffled, as it is."""

    windows: NDArray[np.int16]  # (n, 16000)
    targets: NDArray[np.int64]  # (n,)
    batch: int
    seed: int

    def __len__(self) -> int:
        return math.ceil(len(self.windows) / self.batch)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows (batch, 16000) and targets (batch,). The same number gives the same batches."""
        order = np.random.default_rng([self.seed, number]).permutation(len(self.windows))
        for rows in np.array_split(order, len(self)):
            yield to_float(self.windows[np.sort(rows)]), torch.from_numpy(self.targets[np.sort(rows)])


class AugmentedBatches:
    """Keywords placed anywhere in the window, cut keywords, other words, talk and silence, over noise.

    An epoch has as many windows as there are keyword clips, divided by the share of keywords in a batch.
    """

    def __init__(
        self,
        clips: Clips,
        labels: tuple[str, ...],
        batch: int,
        seed: int,
        *,
        noise: Negatives,
        talk: Negatives | None,
        device: torch.device,
    ) -> None:
        self.clips, self.labels, self.batch, self.seed = clips, labels, batch, seed
        self.noise, self.device = noise, device
        self.unknown = labels.index(UNKNOWN) if UNKNOWN in labels else -1
        self.silence = labels.index(SILENCE) if SILENCE in labels else -1
        self.targets = targets_of(clips.words, labels)
        self.keywords = np.flatnonzero((self.targets != self.unknown) & (self.targets >= 0))
        self.others = np.flatnonzero(self.targets == self.unknown) if self.unknown >= 0 else np.array([], np.intp)
        often = np.bincount(self.targets[self.keywords], minlength=len(labels))[self.targets[self.keywords]]
        weight = 1.0 / often**KEYWORD_BALANCE
        self.weights = weight / weight.sum()
        short = np.diff(clips.spans[self.keywords], axis=1)[:, 0] <= LONGEST_TO_CUT
        self.cuttable = self.keywords[short]
        self.talk = talk if self.unknown >= 0 else None
        self.babble = noise if talk is None else talk
        self.shares = self._shares()

    def _shares(self) -> dict[str, int]:
        """How many windows of each kind a batch holds; what cannot be had goes to the keywords."""
        wanted = {
            "cut": CUT_SHARE if self.unknown >= 0 and self.cuttable.size else 0.0,
            "other": OTHER_SHARE if self.others.size else 0.0,
            "talk": TALK_SHARE if self.talk is not None else 0.0,
            "silence": SILENCE_SHARE if self.silence >= 0 else 0.0,
        }
        shares = {kind: round(share * self.batch) for kind, share in wanted.items()}
        return {"keyword": self.batch - sum(shares.values())} | shares

    def __len__(self) -> int:
        return max(1, round(self.keywords.size / self.shares["keyword"]))

    def mine(self, surest: Callable[[Tensor], Tensor], number: int) -> None:
        """Before an epoch, look through talk and noise for what is taken for keywords, in no more windows than are
        learnt from: else it would take longer. `surest` says of windows (n, 16000) how likely each is one (n,)."""
        rng = np.random.default_rng([self.seed, number, 1])
        most = len(self) * self.batch // 2
        for negatives, kind in ((self.talk, "talk"), (self.noise, "silence")):
            if negatives is not None and self.shares[kind]:
                negatives.mine(surest, most, self.batch, rng)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Windows (batch, 16000) and targets (batch,). The same number gives the same batches, if the same was mined
        before."""
        rng = np.random.default_rng([self.seed, number])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for _ in range(len(self)):
            yield self._draw(rng, generator)

    def _draw(self, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n = self.shares
        keywords = rng.choice(self.keywords, n["keyword"], p=self.weights)
        cut = rng.choice(self.cuttable, n["cut"]) if n["cut"] else np.array([], np.intp)
        others = rng.choice(self.others, n["other"]) if n["other"] else np.array([], np.intp)
        rows = np.concatenate([keywords, cut, others])
        hidden = np.zeros(len(rows))
        hidden[n["keyword"] : n["keyword"] + n["cut"]] = rng.uniform(*HIDDEN, n["cut"])
        parts = [place(self.clips, rows, hidden, rng, self.device)]
        talk_target = np.full(n["talk"], self.unknown)
        if self.talk is not None:
            parts.append(self.talk.draw(n["talk"], rng).to(self.device))
            pauses = augment.rms(parts[-1])[:, 0].cpu().numpy() < PAUSE
            talk_target[pauses] = self.silence if self.silence >= 0 else self.unknown
        windows = augment.reverberate(torch.cat(parts), generator)
        windows = augment.degrade(
            windows,
            lambda count: self.noise.by_chance(count, rng).to(self.device),
            lambda count: self.babble.by_chance(count, rng).to(self.device),
            generator,
        )
        if n["silence"]:
            quiet = augment.at_level(self.noise.draw(n["silence"], rng).to(self.device), SILENCE_DBFS, generator)
            quiet[2::4] = _switched(quiet[2::4], rng)
            quiet[::8] = 0.0  # digital silence
            quiet[1::8] = augment.at_level(
                torch.randn(quiet[1::8].shape, generator=generator).to(self.device), HISS_DBFS, generator
            )
            windows = torch.cat([windows, quiet.clamp(-1.0, 1.0)])
        targets = np.concatenate(
            [
                self.targets[keywords],
                np.full(n["cut"] + n["other"], self.unknown),
                talk_target,
                np.full(n["silence"], self.silence),
            ]
        )
        return windows, torch.from_numpy(targets).to(self.device)


def _switched(noises: Tensor, rng: np.random.Generator) -> Tensor:
    """Each noise (n, 16000) behind the beginning of another: what begins or ends suddenly is no speech."""
    at = torch.from_numpy(rng.integers(0, WINDOW, (len(noises), 1))).to(noises.device)
    return torch.where(torch.arange(WINDOW, device=noises.device) < at, noises.roll(1, 0), noises)


def place(
    clips: Clips,
    rows: NDArray[np.intp],
    hidden: NDArray[np.float64],
    rng: np.random.Generator,
    device: torch.device = CPU,
) -> Tensor:
    """Clips with their word somewhere in the window, played a little slower or faster: (rows, 16000).

    Of each word the share `hidden` (rows,) lies outside, beyond either edge.
    """
    speed = rng.uniform(*SPEED, len(rows))
    start, end = clips.spans[rows].T.astype(float)
    length = (end - start) / speed
    room = WINDOW - length
    # A word too long to fit keeps its place but for a small shift.
    onset = np.where(room > 0, rng.uniform(0, 1, len(rows)) * room, start + rng.uniform(-1600, 1600, len(rows)))
    leaves_left = rng.random(len(rows)) < 0.5
    outside = np.where(leaves_left, -hidden * length, WINDOW - length + hidden * length)
    onset = np.where(hidden > 0, outside, onset)
    as_column = [torch.from_numpy(x[:, None]).float().to(device) for x in (start, onset, speed)]
    return augment.place(to_float(clips.samples[rows]).to(device), *as_column)
