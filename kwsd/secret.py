"""Secrets, which are in files and never in the configuration."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

from kwsd.errors import NO_PERMISSION, ConfigError

CREDENTIALS = "$CREDENTIALS_DIRECTORY"


def read_secret(named: str, resolve: Callable[[str], Path], setting: str) -> str:
    """What a file holds, without the space around it. `setting` is what the config calls it.

    Raises ConfigError if there is none, or all may read it."""
    path = credential(named, setting) or resolve(named)
    try:
        mode = path.stat().st_mode
        if mode & stat.S_IROTH:
            raise ConfigError(f"{setting}: {path}: can be read by everybody; chmod o-r {path}")
        if not stat.S_ISREG(mode):  # a FIFO would have us wait for whoever writes into it
            raise ConfigError(f"{setting}: {path}: is no file; write the secret into one")
        secret = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise ConfigError(f"{setting}: {path}: no such file; write the secret into it") from None
    except PermissionError:
        raise ConfigError(f"{setting}: {path}: permission denied", exit_code=NO_PERMISSION) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path}: cannot be read ({error})") from None
    if not secret:
        raise ConfigError(f"{setting}: {path}: is empty; write the secret into it")
    return secret


def is_to_come(named: str | None) -> bool:
    """Whether systemd will give it to the service, and has not given it to us."""
    return (named or "").startswith(f"{CREDENTIALS}/") and not os.environ.get(CREDENTIALS.removeprefix("$"))


def credential(named: str, setting: str) -> Path | None:
    """Where systemd puts what `LoadCredential=` names; None for what is no `$CREDENTIALS_DIRECTORY/…`.

    Raises ConfigError if systemd gave none."""
    if not named.startswith(f"{CREDENTIALS}/"):
        return None
    folder = os.environ.get(CREDENTIALS.removeprefix("$"))
    if not folder:
        raise ConfigError(
            f"{setting}: {named}: systemd gave no credentials; add LoadCredential= to the unit, or name a file"
        )
    return Path(folder) / named.removeprefix(f"{CREDENTIALS}/")
