"""Sockets that listen: in the file system, with the right mode and never over another daemon's, or at a TCP port."""

import asyncio
import contextlib
import errno
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kwsd.address import Address, url
from kwsd.errors import CONFIG, IO, NO_PERMISSION, UNAVAILABLE, ConfigError, KwsdError

MODE = 0o660
OWN_MODE = 0o600
BACKLOG = 100  # connections that nobody has taken yet, and that one turn of the loop takes
TRIES, TRY_S = 200, 0.01  # to be the only one who binds in a folder; seconds between them
TURNS = 3  # of the loop, until whoever was let in is served


class Doors:
    """Where an asyncio service lets in whoever comes. `setting` is what the config calls its addresses."""

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self._servers: list[asyncio.Server] = []
        self._files: list[SocketFile] = []

    async def open(
        self,
        address: Address,
        group: str | None,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        backlog: int = BACKLOG,
    ) -> None:
        """One more. Raises ConfigError or KwsdError if it cannot be had."""
        listener = bind_address(address, self._setting, group)
        if address.path is not None:
            self._files.append(SocketFile(address.path))
        loop = asyncio.get_running_loop()
        serve = loop.create_unix_server if address.path is not None else loop.create_server
        self._servers.append(await serve(protocol, sock=listener, backlog=backlog))

    @property
    def names(self) -> list[str | tuple[str, int]]:
        """Where they really are, with the ports the system chose: a path, or host and port."""
        names = [listener.getsockname() for server in self._servers for listener in server.sockets]
        return [name if isinstance(name, str) else name[:2] for name in names]

    @property
    def addresses(self) -> list[str]:
        """The same as people write it."""
        return [f"unix:{name}" if isinstance(name, str) else url(*name) for name in self.names]

    async def close(self) -> None:
        """Let nobody in any more, and remove socket files that are still ours."""
        loop = asyncio.get_running_loop()
        for listener in (listener for server in self._servers for listener in server.sockets):
            loop.remove_reader(listener.fileno())
        for _ in range(TURNS):  # asyncio loses who is on the way in while a server closes: he would wait for ever
            await asyncio.sleep(0)
        for file in self._files:  # first: at a door that is closed another daemon may put its own there
            file.remove()
        for server in self._servers:
            server.close()


class SocketFile:
    """The file of a socket that listens, in whose place another may have put theirs."""

    def __init__(self, path: Path) -> None:
        self._path, self._inode = path, path.stat().st_ino

    def remove(self) -> None:
        """If it is still ours."""
        with contextlib.suppress(OSError), _in_turn(self._path.parent):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def bind(path: Path, setting: str, group: str | None = None) -> socket.socket:
    """A socket that listens at a path, for its owner and a group, by default our own. `setting` is what the config
    calls the path.

    Raises ConfigError or KwsdError if the folder is missing, forbidden, or anybody's, there is no such group, or
    another daemon answers there.
    """
    number = _group_number(group, setting)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _check_folder(path, setting)
        with _in_turn(path.parent):
            _unlink_stale(path, setting)
            before = os.umask(0o777 & ~MODE if number is None else 0o777 & ~OWN_MODE)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            if number is not None:
                _give_to(path, number, f"{setting.rpartition('.')[0]}.group: {group}")
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


def check_place(path: Path, setting: str, group: str | None) -> None:
    """What can be known before: raises ConfigError for a folder or group that `bind` would not take."""
    _group_number(group, setting)
    try:
        _check_folder(path, setting)
    except OSError:
        raise ConfigError(f"{setting}: {path}: the folder {path.parent} is not there; create it") from None


def bind_tcp(host: str, port: int, setting: str) -> socket.socket:
    """A socket that listens at an IP address and a port, 0 for any that is free. `setting` is what the config calls it.

    Raises ConfigError if it cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{setting}: cannot be bound ({error.strerror}); choose another port or address", exit_code=IO
        ) from None
    return listener


def bind_address(address: Address, setting: str, group: str | None = None) -> socket.socket:
    """A socket that listens at an address; `setting` is what the config calls it. Raises KwsdError if there is none."""
    if address.path is not None:
        return bind(address.path, setting, group)
    return bind_tcp(address.host, address.port, f"{setting}: {address.text}")


def try_door(address: Address, setting: str, group: str | None) -> None:
    """Whether an address can be had. Raises KwsdError if not."""
    door = bind_address(address, setting, group)
    try:
        if address.path is not None:
            SocketFile(address.path).remove()
    finally:
        door.close()


def events_path() -> Path:
    """Where the events socket usually is: `$RUNTIME_DIRECTORY/events.sock` under systemd, else
    `$XDG_RUNTIME_DIR/kwsd/events.sock`, for root without that `/run/kwsd`. Raises ConfigError if there is no such
    place."""
    systemd, user = os.environ.get("RUNTIME_DIRECTORY"), os.environ.get("XDG_RUNTIME_DIR")
    if systemd:
        return Path(systemd.split(":")[0]) / "events.sock"
    if user:
        return Path(user) / "kwsd/events.sock"
    if os.geteuid() == 0:
        return Path("/run/kwsd/events.sock")
    raise ConfigError(
        "sinks.socket.path: auto finds no place ($XDG_RUNTIME_DIR is not set); "
        "name a path, or say sinks.socket.enabled: false"
    )


def make_events_folder(path: Path) -> None:
    """Where it is missing. Raises ConfigError if it cannot be made."""
    folder = path.parent
    try:
        folder.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"sinks.socket.path: auto: {folder} cannot be made ({error.strerror}); name a path, "
            "or say sinks.socket.enabled: false",
            exit_code=NO_PERMISSION if isinstance(error, PermissionError) else CONFIG,
        ) from None


def answers(path: Path) -> bool:
    """Whether somebody listens at a path."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def check_group(group: str | None, setting: str) -> None:
    """Raises ConfigError if there is no such group."""
    _group_number(group, setting)


def _group_number(group: str | None, setting: str) -> int | None:
    if group is None:
        return None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        where = f"{setting.rpartition('.')[0]}.group"
        raise ConfigError(f"{where}: there is no group {group!r}; create it, or name another") from None


def _give_to(path: Path, group: int, setting: str) -> None:
    """To a group, and only then let it in."""
    try:
        os.chown(path, -1, group)
    except OSError:
        path.unlink(missing_ok=True)
        raise ConfigError(
            f"{setting}: may not be given the socket; run kwsd as a member of it, under systemd with Group=",
            exit_code=NO_PERMISSION,
        ) from None
    path.chmod(MODE)


def _check_folder(path: Path, setting: str) -> None:
    """Where anybody may remove our socket and put another in its place, there must be none."""
    mode = path.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ConfigError(
            f"{setting}: {path.parent} can be written by everybody, who could put a socket of theirs in the place of "
            f"this one; name another folder, or chmod o-w {path.parent}",
            exit_code=NO_PERMISSION,
        )


@contextlib.contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Of daemons that begin at once each sees what the one before did, and removes no socket that only just came.
    Nobody is waited for long: a folder may be locked by others, and where it cannot be, we go on without."""
    lock = -1
    try:
        with contextlib.suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            for _ in range(TRIES):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(TRY_S)
        yield
    finally:
        if lock >= 0:
            os.close(lock)


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
