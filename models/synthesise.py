#!/usr/bin/env python3
"""Has Debian's free speech synthesisers say words, as extra material to train on: OUT/<word>/<voice>_nohash_<n>.wav.

usage: synthesise.py OUT

Needs the packages flite, espeak-ng, rhvoice and rhvoice-english, and takes two minutes. Debian 12 has the last two in
its section non-free, as what the voices (LGPL-2.1+) were trained with is not in the package.
The ten commands come often, as there are few recordings of `on` and `off`; then words that sound like one of them, each
once a voice: a network that has heard but thirty words besides its own takes any other for one of them.
All of it is for training (OUT/validation_list.txt is empty): how well a model hears people, only people can tell.
The same words give the same files.
"""

import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr

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


def main() -> None:
    """Every word by every voice, on all cores."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    out = Path(sys.argv[1])
    words = TIMES | dict.fromkeys(LIKE_COMMANDS, 1)
    jobs = [(engine, voice, word, n) for word, times in words.items() for engine, voice in VOICES for n in range(times)]
    with ThreadPoolExecutor() as pool:
        written = sum(pool.map(lambda job: say(out, *job), jobs))
    (out / "validation_list.txt").write_text("", encoding="utf-8")
    print(f"{written} recordings of {len(words)} words in {len(VOICES)} voices; {len(jobs) - written} came to nothing")


def say(out: Path, engine: str, voice: str, word: str, n: int) -> bool:
    """One recording; whether there is anything in it."""
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
    samples = soxr.resample(samples, rate * formants, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max(initial=1e-6))
    if loud.size < RATE // 10:
        return False
    margin = RATE // 10
    samples = np.pad(samples, margin)[loud[0] : loud[-1] + 2 * margin]
    folder = out / word
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / f"{name}_nohash_{n}.wav", samples / np.abs(samples).max() * rng.uniform(0.25, 0.7), RATE)
    return True


if __name__ == "__main__":
    main()
