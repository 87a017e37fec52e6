#!/usr/bin/env python3
"""Unpacks hours of actors who talk, and what they say, from games that Debian has: OUT/…/<clip>.wav, transcripts.tsv.

usage: game_voices.py queen|masters OUT

queen: the conversations of Flight of the Amazon Queen, from the package flight-of-the-amazon-queen, to train on: nearly
three hours, most of it one short sentence a clip. Its licence lets everybody use, change and give away what is in it.
It was recorded up to 5.5 kHz; what is above is made up, else the width alone would tell talk from words.
masters: the voices of The Ur-Quan Masters, from uqm-voice and uqm-content in Debian's section non-free, to count false
accepts on: eleven hours by 27 roles, half of them in OUT/test and half in OUT/validation. Its licence, CC BY-NC-SA 2.5,
forbids trade, so train nothing on it that others are to have. Some are of aliens and altered, as far as one understands
them.
Either takes half a minute.
"""

import io
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 16_000
MIRROR = 0.25  # of the amplitude: -12 dB
QUEEN = Path("/usr/share/scummvm/flight-of-the-amazon-queen/queen.1c")
MASTERS = Path("/usr/share/games/uqm/content")
VOICES, TEXTS = MASTERS / "addons/uqm-0.8.0-voice.uqm", MASTERS / "packages/uqm-0.8.0-content.uqm"
LINE = re.compile(r"^#\([^)]*\)[ \t]*(\S+\.ogg)[ \t]*\n(.*?)(?=^#\(|\Z)", re.MULTILINE | re.DOTALL)
STAGE_DIRECTION = re.compile(r"\*(?:XY.{11}|..)", re.DOTALL)  # what a figure does between two clips of a sentence

Clip = tuple[str, str, bytes]  # where it goes, what is said, and the sound file


def main() -> None:
    """Every clip whose text is known."""
    if len(sys.argv) != 3 or sys.argv[1] not in GAMES:
        raise SystemExit(__doc__)
    out = Path(sys.argv[2])
    packages, files, clips, widen = GAMES[sys.argv[1]]
    if missing := [str(path) for path in files if not path.exists()]:
        raise SystemExit(f"{', '.join(missing)}: not there; apt-get install {packages}")
    n, seconds = 0, 0.0
    out.mkdir(parents=True, exist_ok=True)
    with (out / "transcripts.tsv").open("w", encoding="utf-8") as transcripts:
        for place, text, sound in clips():
            n, seconds = n + 1, seconds + unpack(sound, out / place, widen=widen)
            transcripts.write(f"{place}\t{text}\n")
    print(f"{n} clips, {seconds / 3600:.1f} h")


def unpack(sound: bytes, path: Path, *, widen: bool) -> float:
    """One clip, as 16 kHz mono; returns its seconds."""
    samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32", always_2d=True)
    mono = samples.mean(1)
    samples = soxr.resample(mirrored(mono), 2 * rate, RATE) if widen else soxr.resample(mono, rate, RATE)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.clip(-1.0, 1.0), RATE, subtype="PCM_16")
    return len(samples) / RATE


def mirrored(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Samples (n,) at twice the rate (about 2 n,): above the old highest frequency comes what was below it, mirrored
    and fainter. Where something hissed it hisses there, too."""
    below = soxr.resample(samples, 1, 2)
    both = np.zeros(2 * len(samples), np.float32)
    both[::2] = 2.0 * samples
    n = min(len(below), len(both))
    return np.asarray(below[:n] + MIRROR * (both[:n] - below[:n]))


# --- Flight of the Amazon Queen ---


def queen() -> Iterator[Clip]:
    """The clips of the conversations, in a folder for each and its other speaker; after the description of the files
    that ScummVM's engines/queen is."""
    archive = QUEEN.read_bytes()
    files = dict(_index(archive))
    said: dict[str, str] = {}
    for name, data in files.items():
        if name.endswith(".DOG"):
            said.update(_conversation(data[20:]))
    for name, data in sorted(files.items()):
        clip = name.removesuffix(".SB")
        if clip in said:
            yield f"{clip[:2]}{clip[6]}/{clip}.wav", said[clip], data


def _index(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in the archive."""
    (n,) = struct.unpack_from(">H", archive, 13)
    for i in range(n):
        name, _, start, size = struct.unpack_from(">12sBII", archive, 15 + 21 * i)
        yield name.rstrip(b"\0").decode("ascii"), archive[start : start + size]


def _conversation(data: bytes) -> Iterator[tuple[str, str]]:
    """The clips of a conversation, and what is said in each: first the hero, J, then whom he meets, P."""
    levels, _, key, mine, theirs = struct.unpack_from(">5h", data)
    (start_of_theirs,) = struct.unpack_from(">H", data, 22)
    for who, n, at in (("J", mine, 32 + abs(levels) * 96), ("P", theirs, start_of_theirs)):
        for _ in range(n):
            (number,) = struct.unpack_from(">xxH", data, at)
            length, start = data[at + 4], at + 5
            sentence = data[start : start + length].decode("latin-1")
            at = (start + length + 3) // 4 * 4 if length else start  # noqa: PLW2901
            for segment, text in enumerate(STAGE_DIRECTION.split(sentence), 1):
                if text.strip():
                    yield f"{key:02d}{number:04X}{who}{segment:X}", " ".join(text.split())


# --- The Ur-Quan Masters ---


def masters() -> Iterator[Clip]:
    """Every other role to test on, the others to validate on."""
    with ZipFile(VOICES) as voices, ZipFile(TEXTS) as texts:
        said = {clip.lower(): text for archive in (texts, voices) for clip, text in _lines(archive)}
        clips = sorted(Path(name) for name in voices.namelist() if Path(name).name.lower() in said)
        roles = sorted({clip.parent.name for clip in clips})
        for clip in clips:
            part = ("validation", "test")[roles.index(clip.parent.name) % 2]
            yield f"{part}/{clip.stem}.wav", said[clip.name.lower()], voices.read(str(clip))


def _lines(archive: ZipFile) -> Iterator[tuple[str, str]]:
    """The clips that the dialogues in an archive name, and what is said in each."""
    for name in archive.namelist():
        if name.endswith(".txt"):
            for clip, text in LINE.findall(archive.read(name).decode("utf-8", "replace")):
                yield clip, " ".join(text.split())


GAMES = {  # packages, files, clips, and whether highs are made up for them
    "queen": ("flight-of-the-amazon-queen", [QUEEN], queen, True),
    "masters": ("uqm-voice uqm-content, from non-free", [VOICES, TEXTS], masters, False),
}


if __name__ == "__main__":
    main()
