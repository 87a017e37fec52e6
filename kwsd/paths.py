"""What a path is, for who may not be allowed to know: `Path.exists()` and its like fail where a folder is closed."""

import stat
from pathlib import Path

from kwsd.errors import IO, KwsdError

FILE, FOLDER, FIFO, SOCKET = stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK


def kind_of(path: Path) -> int | None:
    """FILE, FOLDER, FIFO, SOCKET or another kind of `stat`; None if nothing is there, or nobody lets us see it."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in its name
        return None


def check_writable(path: Path, remedy: str) -> None:
    """Raises KwsdError if no file can be made in the folder of a path: better told before the work than after it."""
    import tempfile

    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise KwsdError(f"{path}: cannot be written ({error.strerror}); {remedy}", exit_code=IO) from None
