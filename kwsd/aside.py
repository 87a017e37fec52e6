"""Threads: how they are started, for what may hang for longer than anyone waits, and those that asyncio looks up names
and connects in."""

import asyncio
import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from kwsd.errors import UNAVAILABLE, KwsdError

SOUND_S = 5.0  # the sound system has so long to open devices
T = TypeVar("T")


def start(thread: threading.Thread) -> None:
    """Raises KwsdError where the system has no thread to give."""
    try:
        thread.start()
    except RuntimeError as error:
        raise KwsdError(
            f"no thread can be started for {thread.name} ({error}); allow more tasks (TasksMax=, ulimit -u)",
            exit_code=UNAVAILABLE,
        ) from None


def in_time(work: Callable[[], T], within_s: float = SOUND_S) -> T:
    """What work of the sound system gives, which may hang for ever: Ctrl-C is heeded meanwhile.

    Raises what it raises, or KwsdError where it takes longer."""
    done: Future[T] = Future()

    def body() -> None:
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)

    start(threading.Thread(target=body, name="sound", daemon=True))
    try:
        return done.result(within_s)
    except TimeoutError:
        raise hangs(within_s) from None


def hangs(within_s: float) -> KwsdError:
    """The sound system did."""
    return KwsdError(
        f"the sound system does not answer within {within_s:g} s; start the sound server anew", exit_code=UNAVAILABLE
    )


class NoThread(OSError):
    """asyncio takes it for a network that is down."""


class Loop(asyncio.SelectorEventLoop):
    """A loop with `DaemonThreads`, which nobody waits for when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.set_default_executor(DaemonThreads())
        if sys.version_info < (3, 12):
            self._wait_without_threads()

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Python would start one more thread to wait in."""

    def _wait_without_threads(self) -> None:
        """Has Python 3.11 wait for programs as later ones do, where the system can: without a thread for each."""
        with contextlib.suppress(OSError):
            os.close(os.pidfd_open(os.getpid()))
            watcher = asyncio.PidfdChildWatcher()
            watcher.attach_loop(self)
            asyncio.set_child_watcher(watcher)


class DaemonThreads(ThreadPoolExecutor):
    """An executor nobody waits for when all else has ended; Python waits for its own even while it exits."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **more: Any) -> "Future[Any]":
        """Run it in a thread of its own. Without one it fails as the network does: nobody can be reached for now."""
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*arguments, **more))
            except BaseException as error:
                future.set_exception(error)

        try:
            start(threading.Thread(target=work, name="aside", daemon=True))
        except KwsdError as error:
            future.set_exception(NoThread(errno.EAGAIN, str(error)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing is waited for."""
