"""What can go wrong, each kind with the exit code (sysexits.h) that `cli.py` ends the process with."""

OK = 0
USAGE = 2
NO_INPUT = 66
UNAVAILABLE = 69
INTERNAL = 70
IO = 74
NO_PERMISSION = 77
CONFIG = 78
INTERRUPTED = 130  # by Ctrl-C


class KwsdError(Exception):
    """One line for the user: what is wrong, where, and what to do about it."""

    exit_code = INTERNAL

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(" ".join(message.split()))
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(KwsdError):
    """The configuration, or a command line that overrides it, cannot be used."""

    exit_code = CONFIG


class AudioError(KwsdError):
    """A microphone, recording, data set or pipe cannot be read."""

    exit_code = NO_INPUT


class ModelError(KwsdError):
    """An artefact or checkpoint cannot be used."""

    exit_code = CONFIG
