#!/usr/bin/env python3
"""Usage: make_tape.py CLIPS TAPE [WORDS [SEED]]. Speech Commands test clips end to end, with pauses between.

Prints what is said and when; writes the same to TAPE.tsv (start_s, end_s, keyword).
"""

import random
import sys
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
HISS = 0.0005


def make_tape(clips: Path, tape: Path, n: int = 10, seed: int = 1, listing: str = "testing") -> list[tuple]:
    """Write the tape and return (start_s, end_s, keyword) of its words."""
    draw = random.Random(seed)
    names = [name for name in (clips / f"{listing}_list.txt").read_text().split() if name.split("/")[0] in WORDS]
    pieces, truth, at = [], [], 0
    for i in range(n):
        word = WORDS[i % len(WORDS)]
        samples, _ = soundfile.read(
            clips / draw.choice([name for name in names if name.startswith(f"{word}/")]), dtype="float32"
        )
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
