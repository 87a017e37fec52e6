"""A real `kwsd run` in a process of its own, its lines read as they come."""

import contextlib
import itertools
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kwsd.artefact import read_info

HEED_CTRL_C = ("env", "--default-signal=INT")  # which what is started in the background is told to ignore
KWSD = Path(sys.executable).with_name("kwsd")
MOST_ERRORS = 10_000
RECOMMENDED = read_info(Path(__file__).parents[1] / "models/commands.onnx").thresholds  # by keyword, by default
PATIENCE_S = 40.0  # importing torch on a busy machine


def clean_environment(**more: str) -> dict[str, str]:
    """Ours without any KWSD_ setting."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KWSD_")} | more


def _own_ports() -> Iterator[int]:
    """TCP ports that the system gives to nobody who connects. Of the processes that test at once each has its own."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ports = [*range(20_000 + worker, 32_768, 64)]
    random.SystemRandom().shuffle(ports)
    return itertools.cycle(ports)


_PORTS = _own_ports()


def free_port() -> int:
    """A TCP port where nothing listens."""
    while True:
        port = next(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class Running:
    """`with Running("--source", "-") as daemon: daemon.wait_for("ready")`"""

    def __init__(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        log: IO[bytes] | int = subprocess.PIPE,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """`log` is where its stderr goes, if it is not to be read here; of our files it has `pass_fds` open."""
        self.process = subprocess.Popen(
            [*HEED_CTRL_C, str(KWSD), "run", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment or clean_environment(),
            pass_fds=pass_fds,
        )
        self.events: list[dict] = []
        self.arrivals: list[float] = []  # when each event was read, in seconds since the epoch
        self.errors: list[str] = []
        self._queue: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._read_out)]
        if self.process.stderr is not None:
            self._threads.append(threading.Thread(target=self._read_err))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _read_out(self) -> None:
        for line in self.process.stdout:
            event = json.loads(line)
            self.arrivals.append(time.time())
            self.events.append(event)
            self._queue.put(event)

    def _read_err(self) -> None:
        for line in self.process.stderr:
            if len(self.errors) < MOST_ERRORS:  # what floods us must not take all memory; a test sees enough of it
                self.errors.append(line.decode())

    def wait_for(self, kind: str, timeout: float = PATIENCE_S) -> dict:
        """The next event of a type."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind} in {timeout} s; events {self.events}; stderr {self.errors}") from None
            if event["type"] == kind:
                return event

    def wait_for_log(self, words: str, times: int = 1) -> str:
        """What follows the words on the line that has them for the nth time: stderr comes when it comes, before an
        event or after it."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [line.partition(words)[2].strip() for line in self.errors if words in line]
            if len(found) >= times:
                return found[times - 1]
            if time.monotonic() > deadline:
                raise AssertionError(f"not {times} times in {PATIENCE_S} s: {words}; stderr {self.errors}")
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Exit code, and how long stopping took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(timeout=10)
        took = time.monotonic() - begun
        for thread in self._threads:
            thread.join()
        return code, took

    def finish(self, timeout: float = 60.0) -> int:
        """Wait for it to end by itself."""
        code = self.process.wait(timeout=timeout)
        for thread in self._threads:
            thread.join()
        return code

    @property
    def detections(self) -> list[dict]:
        """The words heard so far."""
        return [event for event in self.events if event["type"] == "detection"]
