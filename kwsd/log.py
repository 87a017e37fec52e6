"""What the daemon says on stderr: a line per change, however often things change."""

import logging
import os
import sys
import time
from collections import deque
from typing import Any

BURST, PER_S = 10, 60.0  # so many lines of one kind in so many seconds; what comes more often is counted
MOST_KINDS = 1000  # remembered
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}  # of syslog
UNLIMITED = {"unlimited": True}  # `extra` of lines that somebody asked for


def set_up_logging(level: int) -> None:
    """To stderr: with a time for people, with a priority for the journal, which has its own clock."""
    stderr = os.fstat(2)
    # Whatever a unit starts inherits this, also what writes elsewhere.
    journal = os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RateLimit())
    handler.addFilter(_add_priority)
    handler.setFormatter(logging.Formatter("<%(priority)d>%(message)s" if journal else "%(asctime)s kwsd: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("asyncio").setLevel(max(level, logging.INFO))  # what it does all day is nobody's business
    logging.raiseExceptions = False  # a full disk under the log is no reason for a traceback, nor to hear less


def _add_priority(record: logging.LogRecord) -> bool:
    record.priority = PRIORITIES.get(record.levelno, 3)
    return True


class RateLimit(logging.Filter):
    """Lets a few lines of each kind pass in a minute. The first one after a break says how many were left out.

    A kind is a message with its arguments left open, and the first of them: usually a stream.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, str], deque[float]] = {}  # when, of each kind; the kind heard of last is the last
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it may be written; its message may get longer."""
        if getattr(record, "unlimited", False):
            return True
        first = str(record.args[0]) if isinstance(record.args, tuple) and record.args else ""
        kind = record.msg, first
        now = self._clock()
        self._forget(now)
        passed = self._passed.get(kind, deque(maxlen=BURST))
        if len(passed) == BURST and now - passed[0] < PER_S:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        passed.append(now)
        self._passed.pop(kind, None)
        self._passed[kind] = passed  # the last now
        left_out = self._left_out.pop(kind, 0)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like it were left out)", ()
        return True

    def _forget(self, now: float) -> None:
        """Kinds of which nothing was said for a while, if there are many: no more work than there were lines."""
        while len(self._passed) >= MOST_KINDS:
            oldest = next(iter(self._passed))
            if now - self._passed[oldest][-1] < PER_S:
                return
            del self._passed[oldest]
            self._left_out.pop(oldest, None)
