"""What a path is, for who may not be allowed to know: `Path.exists()` and its like fail where a folder is closed."""

import stat
from pathlib import Path

FILE, FOLDER, FIFO, SOCKET = stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK


def kind_of(path: Path) -> int | None:
    """FILE, FOLDER, FIFO, SOCKET or another kind of `stat`; None if nothing is there, or nobody lets us see it."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a zero byte in its name
        return None
