"""What outlives the daemon: who is muted. A microphone that was muted must not be heard again because of a crash, an
update, or a power cut. Under systemd it lies in the unit's state directory; elsewhere nothing is kept."""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from kwsd.control import Muting

log = logging.getLogger("kwsd")

FILE = "muted.json"  # there only while somebody is muted
NOBODY = Muting()


class Memory:
    """Kept in `$STATE_DIRECTORY`, which systemd sets."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        folder = environment.get("STATE_DIRECTORY", "").partition(":")[0]  # of several the first
        self._path = Path(folder) / FILE if folder else None

    def muting(self) -> Muting:
        """Who was muted last; everybody, if that cannot be read."""
        if self._path is None:
            return NOBODY
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Muting)
        except FileNotFoundError:
            return NOBODY
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "is damaged"
            log.warning("%s: %s: all is muted, to be on the safe side; kwsd ctl unmute ends that", self._path, reason)
            return Muting(everything=True)

    def keep(self, muting: Muting) -> None:
        """Remember who is muted from now on."""
        if self._path is None:
            return
        unfinished = self._path.with_name(f".{FILE}.{os.getpid()}")
        try:
            if muting == NOBODY:
                self._path.unlink(missing_ok=True)
            else:
                with unfinished.open("wb") as file:
                    file.write(msgspec.json.encode(muting))
                    file.flush()
                    os.fsync(file.fileno())  # the power may go at once
                unfinished.replace(self._path)
            with suppress(OSError):  # some file systems cannot, and it is in its place
                _make_sure_of_names(self._path.parent)
        except OSError as error:
            log.warning("%s: %s: after a restart nobody will know who is muted", self._path, error.strerror)
            with suppress(OSError):
                unfinished.unlink()


def _make_sure_of_names(folder: Path) -> None:
    """That files in it are called as they are now, whenever the power goes."""
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
