#!/usr/bin/env python3
"""Usage: make_tape.py CLIPS TAPE [WORDS [SEED]]. Speech Commands test clips end to end, with pauses between.

CLIPS is a folder in the layout of Speech Commands, or one long recording that a .tsv of the same name (path, split,
samples) cuts into clips, each beginning on a whole 20 ms. Prints what is said and when; writes the same to TAPE.tsv.
"""

import csv
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
HISS = 0.0005
FRAME = 320  # samples


def in_folder(clips: Path) -> tuple[list[str], Callable[[str], np.ndarray]]:
    """Names of the test clips, and how to read one."""
    names = (clips / "testing_list.txt").read_text().split()
    return names, lambda name: soundfile.read(clips / name, dtype="float32")[0]


def in_recording(clips: Path) -> tuple[list[str], Callable[[str], np.ndarray]]:
    """The same for one long recording with an index."""
    places, at = {}, 0
    with clips.with_suffix(".tsv").open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            length = int(row["samples"])
            if row["split"] == "testing":
                places[row["path"]] = (at, length)
            at += -(-length // FRAME) * FRAME

    def read(name: str) -> np.ndarray:
        start, length = places[name]
        return soundfile.read(clips, frames=length, start=start, dtype="float32")[0]

    return list(places), read


def make_tape(clips: Path, tape: Path, n: int = 10, seed: int = 1) -> list[tuple]:
    """Write the tape and return (start_s, end_s, keyword) of its words."""
    draw = random.Random(seed)
    names, read = in_folder(clips) if clips.is_dir() else in_recording(clips)
    pieces, truth, at = [], [], 0
    for i in range(n):
        word = WORDS[i % len(WORDS)]
        samples = read(draw.choice([name for name in names if name.startswith(f"{word}/")]))
        pause = np.zeros(int(draw.uniform(1.5, 2.5) * RATE), np.float32)
        at += pause.size
        truth.append((round(at / RATE, 3), round((at + samples.size) / RATE, 3), word))
        at += samples.size
        pieces += [pause, samples]
    sound = np.concatenate([*pieces, np.zeros(RATE, np.float32)])
    sound += np.random.default_rng(seed).standard_normal(sound.size).astype(np.float32) * HISS
    soundfile.write(tape, np.clip(sound, -1, 1), RATE, subtype="PCM_16")
    lines = ["start_s\tend_s\tkeyword", *("\t".join(map(str, row)) for row in truth)]
    tape.with_name(f"{tape.name}.tsv").write_text("\n".join(lines) + "\n")
    return truth


if __name__ == "__main__":
    said = make_tape(Path(sys.argv[1]), Path(sys.argv[2]), *(int(n) for n in sys.argv[3:5]))
    print("on the tape:", ", ".join(f"{word} at {start:.1f} s" for start, _, word in said))
