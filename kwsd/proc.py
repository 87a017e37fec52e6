"""What a process has used so far, as Linux tells it."""

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path


def cpu_s(pid: int) -> float:
    """CPU time of all its threads, in seconds: to the microsecond, where /proc/<pid>/stat counts hundredths.

    Raises OSError if there is no such process."""
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def rss_mib(pid: int) -> float:
    """Memory it holds, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def strangers_cpu_s() -> dict[int, float]:
    """Seconds of CPU that each thread has taken that is not one of Python's own, by its number."""
    ours = {thread.native_id for thread in threading.enumerate()}
    taken = {}
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) not in ours:
            with contextlib.suppress(OSError):  # it ended just now
                taken[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
    return taken
