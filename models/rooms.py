"""Two simulated rooms with an open door between them, and words in one of them: what both microphones hear of them, and
what is told with and without arbitration.

    python models/rooms.py DATA

DATA is as for `kwsd train --data`, with music in DATA/music. The near microphone hears the word with an echo 6 dB under
it, the far one 20 ms later, 6 to 22 dB fainter and under an echo that is 4 dB louder; each room has noise and music of
its own."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from kwsd.arbiter import Arbiter
from kwsd.audio_format import SAMPLE_RATE, WINDOW, samples, seconds
from kwsd.compiled_debouncer import make_debouncer
from kwsd.config import ArbitrationConfig, Config
from kwsd.engines import load_spotter
from kwsd.event import Heard, RunnerUp
from kwsd.pipeline import make_rules
from kwsd.replay import trace
from kwsd.span import level_dbfs, word_span
from kwsd.spotter import Spotter
from kwsd.training import augment, mix
from kwsd.training.dataset import load_subset
from kwsd.training.talk import Noise

ROOMS = ("near", "far")
WORD_DBFS, HISS_DBFS = -28.0, -70.0
DELAY = samples(0.02)
FAINTER_DB, DECAY_S = (6.0, 22.0), (0.3, 0.7)
DIRECT_DB = (6.0, -4.0)  # direct sound over echo, near and far
NOISES_DBFS = {"alike": (-60, -60), "noise where the word is": (-42, -65), "noise where it is not": (-65, -42)}
HEARD_S = (-0.1, 0.9)  # a detection is of a word from its start on, until this long after its end


@dataclass(frozen=True)
class Said:
    """A word in the recordings."""

    keyword: str
    start: int  # samples
    end: int


def main() -> None:
    """Print what came of each of NOISES_DBFS as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subset", choices=("validation", "testing"), default="testing")
    parser.add_argument("--count", type=int, default=400, help="words")
    given = parser.parse_args()
    config = Config()
    spotter = load_spotter(config.model_path, "cpu")
    said, quiet = _rooms(given.data, given.subset, given.count, make_rules(config, spotter.info).keywords)
    noise = Noise(given.data, (given.data / "music",)).part(given.subset)
    for about, levels in NOISES_DBFS.items():
        heard = list[tuple[float, Heard]]()
        for i, (room, sound, dbfs) in enumerate(zip(ROOMS, quiet, levels, strict=True)):
            heard += _heard(config, spotter, room, _with_noise(sound, noise, dbfs, np.random.default_rng(i)))
        heard.sort(key=lambda each: each[0])
        print(json.dumps({"noise": about, "words": len(said)} | _counted(said, heard)))


def _rooms(
    data: Path, subset: str, count: int, keywords: tuple[str, ...]
) -> tuple[list[Said], list[NDArray[np.float32]]]:
    """The words, and what either microphone hears of them (samples,), without noise."""
    rng, generator = np.random.default_rng(5), torch.Generator().manual_seed(5)
    clips = load_subset(data, (), subset)
    rows = {keyword: rng.permutation(clips.said_whole([keyword])) for keyword in keywords}
    said, at = list[Said](), 0
    pieces: tuple[list[NDArray[np.float32]], ...] = ([], [])
    for i in range(count):
        keyword = keywords[i % len(keywords)]
        row = int(rows[keyword][i // len(keywords) % len(rows[keyword])])
        clip = torch.from_numpy(clips.samples[row].astype(np.float32) / np.float32(32768.0))[None]  # (1, 16000)
        start, end = (int(edge) for edge in clips.spans[row])
        clip = clip * 10.0 ** (WORD_DBFS / 20.0) / augment.rms(clip[:, start:end])
        decay_s, fainter_db = float(rng.uniform(*DECAY_S)), float(rng.uniform(*FAINTER_DB))
        pause = np.zeros(samples(rng.uniform(1.5, 2.5)), np.float32)
        said.append(Said(keyword, at + pause.size + start, at + pause.size + end))
        for room, direct_db in enumerate(DIRECT_DB):
            echo = augment.Ranges(reverberant=1.0, decay_s=(decay_s, decay_s), direct_db=(direct_db, direct_db))
            sound = augment.reverberate(pad(clip, (room * DELAY, SAMPLE_RATE - room * DELAY)), generator, echo)
            pieces[room].extend((pause, sound[0].numpy() * np.float32(10.0 ** (-room * fainter_db / 20.0))))
        at += pause.size + 2 * WINDOW
    return said, [np.concatenate(room) for room in pieces]


def _with_noise(
    sound: NDArray[np.float32], noise: NDArray[np.int16], dbfs: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    hiss = rng.standard_normal(sound.size).astype(np.float32) * np.float32(10.0 ** (HISS_DBFS / 20.0))
    background = mix.background_of(noise, sound.size, rng) * np.float32(10.0 ** (dbfs / 20.0))
    return np.asarray(sound + hiss + background)


def _heard(config: Config, spotter: Spotter, room: str, sound: NDArray[np.float32]) -> Iterator[tuple[float, Heard]]:
    """What the daemon would hear there, and when, in s."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{room}.wav"
        soundfile.write(path, np.clip(sound, -1.0, 1.0), SAMPLE_RATE)
        found = trace(config, spotter, path)
    debouncer = make_debouncer(make_rules(config, spotter.info), spotter.info.labels, 1, None)
    for each in debouncer.step(np.zeros(len(found.ends), np.int64), found.ends, found.posteriors):
        window = sound[each.end - WINDOW : each.end]
        first, last = word_span(window)
        yield (
            seconds(each.end),
            Heard(
                stream=room,
                keyword=each.keyword,
                score=each.score,
                threshold=each.threshold,
                runner_up=RunnerUp(each.runner_up, each.runner_up_score),
                start_s=seconds(each.end - WINDOW + first),
                end_s=seconds(each.end - WINDOW + last),
                level_dbfs=level_dbfs(window[first:last]),
                model=spotter.info.id,
            ),
        )


def _counted(said: list[Said], heard: list[tuple[float, Heard]]) -> dict[str, object]:
    judge, rulings = Arbiter(ArbitrationConfig(groups=(ROOMS,))), []
    for at, each in heard:
        rulings += [ruling.verdict for ruling in judge.settle(at)]
        rulings += [ruling.verdict for ruling in judge.hear(each, None, at, at, ROOMS)]
    rulings += [ruling.verdict for ruling in judge.settle(heard[-1][0], at_once=True)]
    told = [each for each in rulings if isinstance(each, Heard)]
    without, arbitrated = _sorted_out(said, [each for _, each in heard]), _sorted_out(said, told)
    by_both = [{room for room, right in words if right} == set(ROOMS) for words in without]
    by_the_near = [words == [(ROOMS[0], True)] for words in arbitrated]
    return {
        "heard by both": sum(by_both),
        "of those told by the near one alone": sum(a and b for a, b in zip(by_both, by_the_near, strict=True)),
        "told": {"without": _summary(without), "with": _summary(arbitrated)},
    }


def _summary(words: list[list[tuple[str, bool]]]) -> dict[str, int]:
    return {
        "right": sum(any(right for _, right in each) for each in words),
        "more than once": sum(sum(right for _, right in each) > 1 for each in words),
        "as another word": sum(not right for each in words for _, right in each),
    }


def _sorted_out(said: list[Said], told: list[Heard]) -> list[list[tuple[str, bool]]]:
    """For each word the rooms that told of it, and whether as that word."""
    found: list[list[tuple[str, bool]]] = [[] for _ in said]
    for each in told:
        for words, word in zip(found, said, strict=True):
            if word.start / SAMPLE_RATE + HEARD_S[0] <= each.end_s <= word.end / SAMPLE_RATE + HEARD_S[1]:
                words.append((each.stream, each.keyword == word.keyword))
    return found


if __name__ == "__main__":
    main()
