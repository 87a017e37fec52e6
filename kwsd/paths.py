"""What a path is, for who may not be allowed to know: `Path.exists()` and its like fail where a folder is closed."""

import errno
import os
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


def check_writable(path: Path, remedy: str, *, in_place: bool = False) -> None:
    """Raises KwsdError if no file can be made in the folder of a path, or `in_place` if what is there is a folder, or
    cannot be written: better told before the work than after it."""
    import tempfile

    kind = kind_of(path) if in_place else None
    try:
        if kind is None:
            tempfile.TemporaryFile(dir=path.parent).close()
        elif kind == FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise KwsdError(f"{path}: cannot be written ({error.strerror}); {remedy}", exit_code=IO) from None
