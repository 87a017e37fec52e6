"""What can go wrong, each kind with the exit code (sysexits.h) that `cli.py` ends the process with."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

OK = 0
USAGE = 2
NO_INPUT = 66
UNAVAILABLE = 69
INTERNAL = 70
IO = 74
NO_PERMISSION = 77
CONFIG = 78
INTERRUPTED = 130  # by Ctrl-C
MEMORY_IS_FULL = ("out of memory", "allocate memory", "bad_alloc", "memoryerror")  # parts of what libraries say
SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)  # of descriptors or memory


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


def is_of_memory(error: BaseException) -> bool:
    """Whether what failed is that memory is full, as torch, ONNX Runtime and our own engine say it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in MEMORY_IS_FULL)


@contextmanager
def of_want() -> Iterator[None]:
    """For what asks the system for memory and descriptors. Raises KwsdError where it has none: that is no mistake of
    ours, and a reload that meets it is refused as for any other reason."""
    try:
        yield
    except MemoryError as error:
        raise KwsdError(f"there is not enough memory ({error}); have fewer streams", exit_code=UNAVAILABLE) from None
    except OSError as error:
        if error.errno not in SHORTAGES:
            raise
        raise KwsdError(
            f"the system has none left of what this needs ({error.strerror}); raise LimitNOFILE= or ulimit -n, "
            "or have fewer streams",
            exit_code=UNAVAILABLE,
        ) from None
