"""A Speech Commands folder of a few synthetic clips: every word is a tone of its own, every speaker a loudness."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
TONES_HZ = {"yes": 400.0, "no": 900.0, "up": 1700.0, "down": 2600.0}
SPEAKERS = {"training": 6, "validation": 2, "testing": 2}  # each says every word twice


def folder(root: Path) -> Path:
    """Where torchaudio looks for the clips."""
    return root / "SpeechCommands/speech_commands_v0.02"


def tone(word: str, samples: int = RATE, seed: int = 0) -> np.ndarray:
    """A third of a second of the word's tone in the middle of quiet noise."""
    rng = np.random.default_rng([seed, *word.encode()])
    clip = rng.normal(0.0, 0.001, samples)
    start = samples // 3
    length = min(samples - start, RATE // 3)
    clip[start : start + length] += (
        0.2 * rng.uniform(0.5, 1.5) * np.sin(2 * np.pi * TONES_HZ[word] * np.arange(length) / RATE + rng.uniform(0, 6))
    )
    return clip.astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """A 16-bit file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def make(root: Path, words: tuple[str, ...] = tuple(TONES_HZ)) -> Path:
    """The data set under `root`, with its lists and ten seconds of noise."""
    archive = folder(root)
    listed: dict[str, list[str]] = {subset: [] for subset in SPEAKERS}
    number = 0
    for subset, speakers in SPEAKERS.items():
        for _ in range(speakers):
            number += 1
            for word in words:
                for utterance in range(2):
                    name = f"{word}/{number:08x}_nohash_{utterance}.wav"
                    write(archive / name, tone(word, seed=10 * number + utterance))
                    listed[subset].append(name)
    for subset in ("validation", "testing"):
        (archive / f"{subset}_list.txt").write_text("".join(f"{name}\n" for name in listed[subset]))
    noise = np.random.default_rng(7).normal(0.0, 0.05, 10 * RATE)
    write(archive / "_background_noise_/hiss.wav", noise)
    return root
