"""What lies in a folder of recordings."""

import os
from collections.abc import Iterator
from pathlib import Path

from kwsd.errors import IO, AudioError

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
BACKGROUND = "_background_noise_"  # what Speech Commands calls a folder of noise


def recordings(folder: Path) -> list[Path]:
    """All under a folder. Raises AudioError if it is no folder, or nobody may look into it."""
    try:
        next(folder.iterdir(), None)
    except NotADirectoryError:
        raise AudioError(f"{folder}: is a file; name the folder that it lies in") from None
    except OSError as error:
        raise AudioError(f"{folder}: {error.strerror}; name a folder of recordings") from None
    return sorted(path for path in files(folder) if path.suffix.lower() in SUFFIXES)


def files(folder: Path) -> Iterator[Path]:
    """All under a folder, through links as well, but none twice."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        # Not what is hidden: beside each recording macOS has one of its own, and one may not be written whole yet.
        yield from (Path(place) / name for name in names if not name.startswith("."))


def lines(listing: Path) -> list[str]:
    """Of a list. Raises AudioError if it cannot be read as UTF-8."""
    try:
        return listing.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise AudioError(f"{listing}: {error.strerror}", exit_code=IO) from None
    except UnicodeDecodeError:
        raise AudioError(f"{listing}: is not UTF-8; save it as UTF-8") from None
