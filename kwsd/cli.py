"""The `kwsd` command. The only module that ends the process."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import traceback
from typing import NoReturn

from kwsd.arguments import DEBUG, Command, make_parser
from kwsd.errors import INTERNAL, INTERRUPTED, OK, UNAVAILABLE, KwsdError
from kwsd.terminal import finish, open_standard_streams, say

TRAINING = {"torch", "torchaudio", "onnx", "matplotlib", "tqdm"}  # of which a daemon needs nothing


def main() -> NoReturn:
    """Run a command; every way out leads through here."""
    arguments = sys.argv[1:]
    debug = DEBUG in itertools.takewhile(lambda argument: argument != "--", arguments)  # nothing else can be called so
    open_standard_streams()
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        code = dispatch(arguments)
    except KwsdError as error:
        if debug:
            traceback.print_exc()
        say(f"{error}")
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = OK
    except Exception as error:
        if debug:
            traceback.print_exc()
        if interrupted.is_set():  # a library that was just imported made another error of it
            code = INTERRUPTED
        elif isinstance(error, ModuleNotFoundError) and error.name in TRAINING:
            say(f"{error.name} is not installed; pip install 'kwsd[train]'")
            code = UNAVAILABLE
        else:
            say(f"internal error: {error!r}; run it with --debug for details, and please report it")
            code = INTERNAL
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends anyway
    code = finish(code)
    # All is said and closed. To take torch apart keeps Python busy for a second or more, PortAudio's own way out waits
    # for ever for a sound server that hangs, and a thread that still loads ONNX Runtime would abort the process.
    if {"torch", "sounddevice", "onnxruntime"} & sys.modules.keys():
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def dispatch(arguments: list[str]) -> int:
    """Parse and run; `kwsd --config X` is `kwsd run --config X`."""
    first = next((argument for argument in arguments if argument != DEBUG), None)
    if first is None or (first.startswith("-") and first not in ("-h", "--help", "--version")):
        arguments = ["run", *arguments]
    options = make_parser().parse_args(arguments)
    command: Command = options.command
    return command(options)
