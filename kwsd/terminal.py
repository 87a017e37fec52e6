"""What the command line writes: data on stdout, and lines for the user on stderr."""

import contextlib
import faulthandler
import io
import os
import sys

from kwsd.errors import IO, OK, KwsdError


def open_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr came closed: else the next file or socket that is opened takes
    its number, and gets events and messages written into it. To Python a closed stdin stays None."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale may lack a letter
    # A duplicate, which is heard even while what C libraries write to 2 is kept out (portaudio.py).
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    if faulthandler.is_enabled():
        faulthandler.enable(sys.stderr)


def finish(code: int) -> int:
    """Flush what was printed; a reader that went away is no error, a full disk is."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains at exit
    except OSError as error:
        if code == OK:  # else the reason was said
            say(f"stdout: cannot be written ({error.strerror})")
            code = IO
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def show(text: str) -> None:
    """Data for stdout, written at once. Raises KwsdError if the disk is full, BrokenPipeError if nobody reads."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(error) from None


def show_line(line: bytes) -> None:
    """The same of JSON and YAML, which are UTF-8 whatever the locale is."""
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(error) from None


def _not_written(error: OSError) -> KwsdError:
    return KwsdError(f"stdout: cannot be written ({error.strerror})", exit_code=IO)


def say(message: str) -> None:
    """One line for the user."""
    with contextlib.suppress(OSError):  # nowhere to say it: the exit code does
        print(f"kwsd: {message}", file=sys.stderr, flush=True)
