#!/usr/bin/env python3
"""Has free speech synthesisers say words, as extra material to train on: OUT/<word>/<voice>_nohash_<n>.wav.

usage: synthesise.py OUT [KOKORO]

Needs the packages flite, espeak-ng, rhvoice and rhvoice-english, and takes two minutes. The ten commands come often, as
there are few recordings of `on` and `off`; then words that sound like one of them, each once a voice: a network that
has heard but thirty words besides its own takes any other for one of them.
KOKORO is a folder with Kokoro-82M (hexgrad, Apache-2.0): `model.onnx`, `vocab.json`, `voices/*.bin`. Its voices sound
like people, and any two mix to another one; with onnxruntime installed they say the same words in a quarter of an hour.
All of it is for training (OUT/validation_list.txt is empty): how well a model hears people, only people can tell.
The same words give the same files.
"""

import json
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 16_000
VOICES = [
    *(("flite", voice) for voice in ("kal", "kal16", "awb", "rms", "slt")),
    *(("espeak-ng", voice) for voice in ("en-us", "en-us+f3", "en-us+m7", "en-029+m2")),
    *(("espeak-ng", voice) for voice in ("en-gb", "en-gb+f2", "en-gb-scotland+m4", "en-gb-x-rp+f5")),
    *(("RHVoice-test", voice) for voice in ("alan", "bdl", "clb", "slt")),
]
COMMANDS = "yes no up down left right on off stop go".split()
TIMES = dict.fromkeys(COMMANDS, 24)  # fewer, and the network would learn that such a voice says no command
# Not among them: what cannot be told from a command, such as know, write and, where it is stressed, of.
LIKE_COMMANDS = """
    yet yeah yell chess less guess mess dress press best west rest
    note nose gnome noon now snow node nope known mode moat low so toe dough row though mow bow show
    cup pup app ape pub putt hub but cut nut us hut hop hope
    town dime dean dine den dumb done noun brown crown frown gown sound ground doubt
    lift loft lend less let leg lap laugh lest levy melt felt theft deft heft
    ride light slight rate route rice rise ripe rhyme bright height white fright kite tight might
    own one awning onto dawning gone john lawn pawn yawn honour
    often awful offer cough doff soft loft office cuff tough rough puff
    top stock stopped stab step stoop stump staff spot shop drop crop chop start stay
    goat gold ghost goal goes good girl cold coat coal toad load road code gap gate
""".split()
KOKORO_RATE = 24_000
# No `up`: what it says for it a network that knows people takes for another word, two times of three.
KOKORO_TIMES = dict.fromkeys(COMMANDS, 110) | {"up": 0, "on": 260, "off": 260, "down": 150}
KOKORO_TIMES |= dict.fromkeys(LIKE_COMMANDS, 5)
KOKORO_SOUNDS = {"on": ("ˈɑn", "ˈɔn", "ˈɒn"), "off": ("ˈɔf", "ˈɑf", "ˈɒf")}  # in America, there and in Britain
KOKORO_DIPHTHONGS = {"eɪ": "A", "aɪ": "I", "oʊ": "O", "əʊ": "Q", "aʊ": "W", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ"}
Said = tuple[str, NDArray[np.float32], float]  # a voice's name, samples (n,), their rate in hertz


def main() -> None:
    """Every word by every voice, on all cores."""
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    words = TIMES | dict.fromkeys(LIKE_COMMANDS, 1)
    jobs: list[tuple[str, int, Callable[[], Said]]] = [
        (word, n, partial(by_command, engine, voice, word, n))
        for word, times in words.items()
        for engine, voice in VOICES
        for n in range(times)
    ]
    if len(sys.argv) == 3:
        kokoro = Kokoro(Path(sys.argv[2]))
        jobs += [(word, n, partial(kokoro, word, n)) for word, times in KOKORO_TIMES.items() for n in range(times)]
    with ThreadPoolExecutor() as pool:
        written = sum(pool.map(lambda job: write(out, *job), jobs))
    (out / "validation_list.txt").write_text("", encoding="utf-8")
    print(f"{written} recordings of {len(words)} words; {len(jobs) - written} came to nothing")


class Kokoro:
    """A network that speaks, with voices that can be mixed."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime  # type: ignore[import-untyped]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # one word a core
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options)
        self.vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        voices = sorted((folder / "voices").glob("*.bin"))
        self.english = [voice for voice in voices if voice.stem[0] in "ab"]
        self.foreign = [voice for voice in voices if voice not in self.english]

    def __call__(self, word: str, n: int) -> Said:
        """A word by a voice between two."""
        rng = np.random.default_rng(zlib.crc32(f"kokoro/{word}/{n}".encode()))
        one = self.english[rng.integers(len(self.english))]
        others = self.english if rng.random() < 0.75 else self.foreign
        other = others[rng.integers(len(others))]
        share = rng.uniform(0.0, 1.0 if others is self.english else 0.5)
        sounds = self.sounds(word, "en-us" if one.stem[0] == "a" else "en-gb-x-rp", rng) + rng.choice([".", ".", "!"])
        tokens = [self.vocabulary[sound] for sound in sounds if sound in self.vocabulary]
        styles = [np.fromfile(voice, np.float32).reshape(-1, 256)[len(tokens)] for voice in (one, other)]
        style = (styles[0] * (1.0 - share) + styles[1] * share)[None]  # (1, 256)
        speed = np.array([rng.uniform(0.75, 1.3)], np.float32)
        fed = zip(
            self.session.get_inputs(), (np.array([[0, *tokens, 0]]), style.astype(np.float32), speed), strict=True
        )
        samples = self.session.run(None, {place.name: value for place, value in fed})[0].ravel()
        return f"kokoro-{one.stem}-{other.stem}", samples, KOKORO_RATE * rng.uniform(0.94, 1.06)

    def sounds(self, word: str, accent: str, rng: np.random.Generator) -> str:
        """How a word is pronounced, in the network's own alphabet."""
        if word in KOKORO_SOUNDS:
            return str(rng.choice(KOKORO_SOUNDS[word]))
        command = ["espeak-ng", "-q", "--ipa", "-v", accent, word]
        sounds = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
        for written, sound in KOKORO_DIPHTHONGS.items():
            sounds = sounds.replace(written, sound)
        return sounds


def by_command(engine: str, voice: str, word: str, n: int) -> Said:
    """A word by one of VOICES."""
    name = f"{engine.partition('-')[0].lower()}-{voice.replace('+', '-')}"
    rng = np.random.default_rng(zlib.crc32(f"{name}/{word}/{n}".encode()))
    slowness, pitch = rng.uniform(0.75, 1.35), rng.uniform(0.85, 1.2)
    formants = rng.uniform(0.88, 1.14)  # played faster or slower: another vocal tract, and another pitch with it
    text = word + rng.choice([".", ".", "!", "?"])
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        commands = {
            "flite": [
                "-voice", voice, "-t", text, "-o", file.name, "--setf", f"duration_stretch={slowness:.3f}",
                "--setf", f"int_f0_target_mean={(175 if voice == 'slt' else 105) * pitch:.0f}",
            ],
            "espeak-ng": ["-v", voice, "-s", f"{150 / slowness:.0f}", "-p", f"{50 * pitch:.0f}", "-w", file.name, text],
            "RHVoice-test": ["-p", voice, "-r", f"{100 / slowness:.0f}", "-t", f"{100 * pitch:.0f}", "-o", file.name],
        }  # fmt: skip
        subprocess.run(
            [engine, *commands[engine]], input=f"{text}\n".encode(), check=True, capture_output=True, timeout=60
        )
        samples, rate = soundfile.read(file.name, dtype="float32")
    return name, samples, rate * formants


def write(out: Path, word: str, n: int, say: Callable[[], Said]) -> bool:
    """One recording, of just the word; whether there is anything in it."""
    voice, samples, rate = say()
    rng = np.random.default_rng(zlib.crc32(f"{voice}/{word}/{n}/level".encode()))
    samples = soxr.resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max(initial=1e-6))
    if loud.size < RATE // 10:
        return False
    margin = RATE // 10
    samples = np.pad(samples, margin)[loud[0] : loud[-1] + 2 * margin]
    folder = out / word
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{voice}_nohash_{n}.wav", samples / np.abs(samples).max() * rng.uniform(0.25, 0.7), RATE)
    return True


if __name__ == "__main__":
    main()
