"""Audio files (libsndfile: WAV, FLAC, Ogg, …) as mono float32 at 16 kHz."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from kwsd.audio_format import FASTEST, SLOWEST
from kwsd.errors import IO, NO_PERMISSION, AudioError
from kwsd.inlet import resampler
from kwsd.paths import FIFO, FOLDER, kind_of

UNKNOWN_LENGTH = 0x7FFFF000  # bytes, or more: what a program writes that pipes a WAV and cannot know its length
OGG = b"OggS"  # how a page begins
LONGEST_PAGE = 27 + 255 + 255 * 255  # bytes of an Ogg file
UNKNOWN_FRAMES = 1 << 48  # or more: a FLAC that does not say how many
DEMO = Path(__file__).with_name("demo.flac")  # synthetic speech: the ten commands, spoken


class Recording(soundfile.SoundFile):  # type: ignore[misc]
    """A file that is read from its beginning to its end."""

    def seekable(self) -> bool:
        """Never: else soundfile seeks after every read, which fails where a program that wrote into a pipe could not
        say how long the whole is."""
        return False


def open_recording(path: Path) -> Recording:
    """Open an audio file of any rate and channel count.

    Raises AudioError, naming the file and the remedy, if it is missing, unreadable, empty or not audio.
    """
    kind = kind_of(path)
    if kind == FOLDER:
        raise AudioError(f"{path}: is a folder; name a WAV, FLAC or Ogg file")
    if kind == FIFO:
        raise AudioError(f"{path}: is a FIFO; write the recording into a file, or raw samples for kwsd run --source")
    try:
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: is empty (0 bytes); record it again")
        if path.suffix.lower() == ".raw":  # by which soundfile goes, whatever is in it
            raise AudioError(
                f"{path}: raw samples do not say their rate; make it a WAV, or pipe it into kwsd run --source -"
            )
        recording = Recording(os.fsencode(path))  # a text would have to be UTF-8
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except PermissionError:
        raise AudioError(f"{path}: permission denied; make its folder readable", exit_code=NO_PERMISSION) from None
    except OSError as error:
        raise AudioError(f"{path}: {error.strerror}; name another") from None
    except soundfile.LibsndfileError as error:
        if not os.access(path, os.R_OK):  # libsndfile does not say why
            raise AudioError(f"{path}: permission denied; make it readable", exit_code=NO_PERMISSION) from None
        raise AudioError(
            f"{path}: not readable as audio ({error.error_string.rstrip('.')}); use WAV, FLAC or Ogg"
        ) from None
    if recording.frames == 0:
        recording.close()
        raise AudioError(f"{path}: holds no samples")
    if not SLOWEST <= recording.samplerate <= FASTEST:
        recording.close()
        raise AudioError(f"{path}: {recording.samplerate} samples a second cannot be right; repair its header")
    return recording


def check_channel(path: Path, channels: int, channel: int | None) -> None:
    """Raises AudioError for a channel, from 0, that a recording does not have."""
    if channel is not None and channel >= channels:
        raise AudioError(f"{path}: has {channels} channels, no channel {channel + 1}; choose another, or mix")


def read_blocks(recording: Recording, frames: int) -> Iterator[NDArray[np.float32]]:
    """Blocks (frames, channels) until the file ends; the last may be shorter.

    Raises AudioError where the file breaks off inside a compressed packet.
    """
    while True:
        try:
            block = recording.read(frames, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            name, why = os.fsdecode(recording.name), error.error_string.rstrip(".")
            raise AudioError(
                f"{name}: damaged after {recording.tell()} samples ({why}); repair the recording",
                exit_code=IO,
            ) from None
        if len(block) == 0:
            return
        yield block


def read_recording(path: Path) -> NDArray[np.float32]:
    """A whole file mixed to mono and resampled to 16 kHz: (samples,).

    Raises AudioError if it cannot be read, is cut short, or holds samples that are not numbers.
    """
    with open_recording(path) as recording:
        converter, read, pieces = resampler(recording.samplerate), 0, []
        for block in read_blocks(recording, 1 << 16):
            mono = block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise AudioError(f"{path}: holds samples that are not numbers (NaN or infinite)")
            pieces.append(converter.resample_chunk(mono))  # piece by piece: a night at its own rate takes gigabytes
            read += mono.size
        if is_truncated(recording, read):
            raise AudioError(f"{path}: is cut short; replace it", exit_code=IO)
    pieces.append(converter.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(pieces)


def is_truncated(recording: Recording, read: int) -> bool:
    """Whether the header promises more samples than the file holds, of which so many were read in vain for more, or an
    Ogg file ends within a page. Of WAV and its like libsndfile notes it and reads on; the length of the whole file,
    where that of the samples stands as well, does not matter."""
    if recording.format == "OGG":
        return _ends_within_page(recording.name)
    if recording.format == "FLAC":
        return read < int(recording.frames) < UNKNOWN_FRAMES
    notes = re.findall(r"^ *([\w ]+?) *: (\d+) \(should be (\d+)\)$", recording.extra_info, re.MULTILINE)
    return any(
        int(held) < int(promised) < UNKNOWN_LENGTH for chunk, promised, held in notes if chunk not in ("RIFF", "FORM")
    )


def _ends_within_page(path: bytes) -> bool:
    """Of an Ogg file. A page is 27 bytes, the last of them how many segments it has; a byte for the length of each; and
    the segments (RFC 3533, section 6)."""
    try:
        with Path(os.fsdecode(path)).open("rb") as file:
            file.seek(-min(LONGEST_PAGE, file.seek(0, os.SEEK_END)), os.SEEK_CUR)
            end = file.read()
    except OSError:  # it is gone, but we have it open
        return False
    page = end[max(end.rfind(OGG), 0) :]
    if not page.startswith(OGG):  # there is something else behind the last one
        return False
    size = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) >= 27 else 27
    rest = page[size:]
    return len(page) < size or (rest != b"" and OGG.startswith(rest))
