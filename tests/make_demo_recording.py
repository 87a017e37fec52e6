#!/usr/bin/env python3
"""Makes kwsd/demo.flac and demo.tsv: the ten commands, spoken by Flite's free voices (Debian package flite).

The recording is synthetic so that it may be shipped with kwsd. `demo.tsv` says when each word is spoken.
"""

import csv
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

RATE = 16_000
PACKAGE = Path(__file__).resolve().parent.parent / "kwsd"
SPOKEN = [
    ("stop", "awb"), ("yes", "rms"), ("up", "slt"), ("go", "rms"), ("left", "slt"),
    ("no", "awb"), ("on", "rms"), ("right", "awb"), ("off", "rms"), ("down", "slt"),
]  # fmt: skip
GAP_S = 2.0
PEAK = 0.3
HISS = 0.0007  # a quiet room
AUDIBLE = 0.02  # amplitude at which a word begins and ends


def speak(word: str, voice: str) -> np.ndarray:
    """One word, trimmed to where it can be heard."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice, "-t", word, "-o", file.name], check=True)
        samples, rate = soundfile.read(file.name, dtype="float32")
    samples = soxr.resample(samples, rate, RATE)
    samples *= PEAK / np.abs(samples).max()
    audible = np.flatnonzero(np.abs(samples) > AUDIBLE)
    return samples[audible[0] : audible[-1] + 1]


def main() -> None:
    """Write both files."""
    pieces, rows, at = [], [], 0
    for word, voice in SPOKEN:
        pause, samples = np.zeros(int(GAP_S * RATE), np.float32), speak(word, voice)
        at += pause.size
        rows.append((f"{at / RATE:.3f}", f"{(at + samples.size) / RATE:.3f}", word))
        at += samples.size
        pieces += [pause, samples]
    tape = np.concatenate([*pieces, np.zeros(int(GAP_S * RATE), np.float32)])
    tape += np.random.default_rng(0).standard_normal(tape.size).astype(np.float32) * HISS
    soundfile.write(PACKAGE / "demo.flac", tape, RATE, subtype="PCM_16")
    with (PACKAGE / "demo.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([("start_s", "end_s", "keyword"), *rows])


if __name__ == "__main__":
    main()
