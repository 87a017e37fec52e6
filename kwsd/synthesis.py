"""`kwsd synthesise`: words said by the speech synthesisers that are installed, to train on where few people said them.

How well a model hears people, only recordings of people can tell.
"""

import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from kwsd.artefact import UNKNOWN
from kwsd.audio_format import SAMPLE_RATE
from kwsd.errors import IO, UNAVAILABLE, USAGE, ConfigError, KwsdError
from kwsd.record import check
from kwsd.ring import Samples

FLITE, ESPEAK, RHVOICE = "flite", "espeak-ng", "RHVoice-test"  # programs
ENGLISH = {
    FLITE: ("kal", "kal16", "awb", "rms", "slt"),
    ESPEAK: (
        *("en-us", "en-us+f3", "en-us+m7", "en-029+m2"),
        *("en-gb", "en-gb+f2", "en-gb-scotland+m4", "en-gb-x-rp+f5"),
    ),
    RHVOICE: ("alan", "bdl", "clb", "slt"),
}
VARIANTS = ("", "+f2", "+f3", "+f5", "+m2", "+m4", "+m7")  # of espeak-ng's only voice of any other language
INSTALL = "apt install espeak-ng flite"
QUIET = 0.02  # of the loudest sample: what is quieter is no speech
MARGIN = SAMPLE_RATE // 10  # samples before and after the word that are kept, and the shortest word
LONGEST_S = 60  # that a program may take for a word


@dataclass(frozen=True)
class Voice:
    """A voice of one of the programs."""

    program: str
    name: str

    @property
    def speaker(self) -> str:
        """What files of it begin with."""
        return f"{self.program.partition('-')[0].lower()}-{self.name.replace('+', '-')}"

    def command(self, text: str, slowness: float, pitch: float, out: str) -> list[str]:
        """What has it say a text, which RHVoice reads from stdin."""
        if self.program == FLITE:
            high = round((175 if self.name == "slt" else 105) * pitch)  # Hz
            how = ["--setf", f"duration_stretch={slowness:.3f}", "--setf", f"int_f0_target_mean={high}"]
            return [FLITE, "-voice", self.name, "-t", text, "-o", out, *how]
        if self.program == ESPEAK:
            how = ["-s", f"{150 / slowness:.0f}", "-p", f"{50 * pitch:.0f}"]
            return [ESPEAK, "-v", self.name, *how, "-w", out, "--", text]
        how = ["-r", f"{100 / slowness:.0f}", "-t", f"{100 * pitch:.0f}"]
        return [RHVOICE, "-p", self.name, *how, "-o", out]


def voices(language: str) -> list[Voice]:
    """Those that are installed. Raises KwsdError if there are none."""
    found = [Voice(program, name) for program, names in ENGLISH.items() for name in names if shutil.which(program)]
    if language != "en":
        found = [Voice(ESPEAK, f"{language}{variant}") for variant in VARIANTS if shutil.which(ESPEAK)]
    if not found:
        raise KwsdError(f"no speech synthesiser for {language} is installed; {INSTALL}", exit_code=UNAVAILABLE)
    return found


def synthesise(
    folder: Path, words: Sequence[str], count: int, language: str, tell: Callable[[str], None]
) -> tuple[int, int]:
    """Has every voice say each word `count` times, each time at another speed and height, into
    `folder/<word>/<voice>_nohash_<n>.wav`: how many recordings that are, and in how many voices. The same words give
    the same files.

    Raises ConfigError for what cannot be a label, KwsdError if no voice can speak, or something cannot be written.
    """
    check(words, "voice")
    if UNKNOWN in words:
        raise ConfigError(f"{UNKNOWN}: is no word; name some that are like yours", exit_code=USAGE)
    speaking, written = _able(voices(language), tell), 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for word in words:
            times = [(voice, n) for voice in speaking for n in range(count)]
            kept = sum(pool.map(lambda time: _say(folder, word, *time), times))  # noqa: B023 - all is said in here
            unheard = f", {len(times) - kept} came to nothing" if kept < len(times) else ""
            tell(f"{word}: {kept} recordings{unheard}")
            written += kept
    return written, len(speaking)


def _able(found: Sequence[Voice], tell: Callable[[str], None]) -> list[Voice]:
    """Those that can speak: a program may be there without its voices. Raises KwsdError if none can."""
    able: list[Voice] = []
    failures: list[KwsdError] = []
    for voice in found:
        try:
            with tempfile.NamedTemporaryFile(suffix=".wav") as file:
                _run(voice, "a", voice.command("a", 1.0, 1.0, file.name), file.name)
            able.append(voice)
        except KwsdError as failure:
            failures.append(failure)
    if not able:
        raise failures[0]
    for refusal in failures:
        tell(f"one voice less: {refusal}")
    return able


def _say(folder: Path, word: str, voice: Voice, n: int) -> bool:
    """One recording; whether there is anything in it."""
    rng = np.random.default_rng(zlib.crc32(f"{voice.speaker}/{word}/{n}".encode()))
    slowness, pitch = rng.uniform(0.75, 1.35), rng.uniform(0.85, 1.2)
    formants = rng.uniform(0.88, 1.14)  # played faster or slower: another vocal tract, and another pitch with it
    text = word + rng.choice([".", ".", "!", "?"])
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        said, rate = _run(voice, text, voice.command(text, slowness, pitch, file.name), file.name)
    samples = soxr.resample(said, rate * formants, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max(initial=1e-6))
    if loud.size < MARGIN:
        return False
    samples = np.pad(samples, MARGIN)[loud[0] : loud[-1] + 2 * MARGIN]
    path = folder / word / f"{voice.speaker}_nohash_{n}.wav"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples / np.abs(samples).max() * rng.uniform(0.25, 0.7), SAMPLE_RATE)
    except (OSError, soundfile.LibsndfileError) as error:
        raise KwsdError(f"{path}: cannot be written ({error}); name another folder", exit_code=IO) from None
    return True


def _run(voice: Voice, text: str, command: list[str], out: str) -> tuple[Samples, int]:
    """What a program says. Raises KwsdError where it says nothing but what is wrong."""
    try:
        subprocess.run(  # noqa: S603 - what it is given cannot be taken for an option
            command, input=f"{text}\n".encode(), check=True, capture_output=True, timeout=LONGEST_S
        )
        samples, rate = soundfile.read(out, dtype="float32")
    except (OSError, subprocess.SubprocessError, soundfile.LibsndfileError) as error:
        complaint = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip() or str(error)
        raise KwsdError(
            f"{voice.program} cannot speak as {voice.name}: {complaint}; install its voices, or say another --language "
            "(espeak-ng --voices lists them)",
            exit_code=UNAVAILABLE,
        ) from None
    return samples, rate
