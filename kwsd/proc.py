"""What a process has used so far, as Linux tells it under /proc."""

import contextlib
import os
import threading
from pathlib import Path


def cpu_s(pid: int) -> float:
    """CPU time of all its threads, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
