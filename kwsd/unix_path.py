"""A UNIX socket in the file system: bound with the right mode, never over another daemon's."""

import errno
import os
import socket
import stat
from pathlib import Path

from kwsd.errors import IO, NO_PERMISSION, UNAVAILABLE, ConfigError, KwsdError

MODE = 0o660


def bind(path: Path, setting: str) -> socket.socket:
    """A socket that listens at a path, for its owner and group. `setting` is what the config calls the path.

    Raises ConfigError or KwsdError if the folder is missing, forbidden, or another daemon answers there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _unlink_stale(path, setting)
        before = os.umask(0o777 & ~MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen()
        listener.setblocking(False)
    except (FileNotFoundError, NotADirectoryError):
        listener.close()
        raise ConfigError(f"{setting}: {path}: the folder {path.parent} is not there; create it") from None
    except PermissionError:
        listener.close()
        raise ConfigError(
            f"{setting}: {path}: no permission; choose a folder you may write to", exit_code=NO_PERMISSION
        ) from None
    except OSError as error:
        listener.close()
        if "too long" in str(error):  # Python's own check, without an errno
            raise ConfigError(f"{setting}: {path}: is too long for a socket; name a shorter path") from None
        raise ConfigError(f"{setting}: {path}: cannot be bound ({error.strerror})", exit_code=IO) from None
    except KwsdError:
        listener.close()
        raise
    return listener


def _unlink_stale(path: Path, setting: str) -> None:
    """Remove a socket file that nobody answers on; anything else stays and is an error."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise ConfigError(f"{setting}: {path}: is in the way and no socket; remove it or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(str(path))
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                raise
            path.unlink(missing_ok=True)
            return
    raise KwsdError(
        f"{setting}: {path}: another kwsd answers there; stop it or name another path", exit_code=UNAVAILABLE
    )
