"""However often something changes, the log stays readable, and says what it left out."""

import logging
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsd.log import BURST, MOST_KINDS, PER_S, UNLIMITED, RateLimit


class Log:
    """A rate limit with a clock that is set by hand."""

    def __init__(self):
        self.now, self.limit, self.lines = 0.0, RateLimit(lambda: self.now), []

    def say(self, message, *arguments, extra=None):
        record = logging.makeLogRecord({"msg": message, "args": arguments} | (extra or {}))
        if self.limit.filter(record):
            self.lines.append(record.getMessage())


def test_a_few_lines_pass_and_then_one_says_how_many_did_not():
    log = Log()
    for _ in range(100):
        log.say("no audio from %s: %s", "mic", "unplugged")
    assert log.lines == ["no audio from mic: unplugged"] * BURST
    log.now += PER_S
    log.say("no audio from %s: %s", "mic", "unplugged")
    assert log.lines[-1] == f"no audio from mic: unplugged ({100 - BURST} more like it were left out)"
    log.say("no audio from %s: %s", "mic", "unplugged")
    assert log.lines[-1] == "no audio from mic: unplugged"


@pytest.mark.parametrize("other", [("audio from %s again", "mic"), ("no audio from %s: %s", "tap", "x"), ("ready",)])
def test_lines_of_another_kind_pass_meanwhile(other):
    log = Log()
    for _ in range(50):
        log.say("no audio from %s: %s", "mic", "unplugged")
    log.say(*other)
    assert len(log.lines) == BURST + 1


def test_kinds_of_which_nothing_is_said_any_more_are_forgotten():
    log = Log()
    for n in range(10 * MOST_KINDS):
        log.now += 1.0
        log.say("satellite %s", f"room {n}")
    assert len(log.lines) == 10 * MOST_KINDS and len(log.limit._passed) <= MOST_KINDS


def test_of_thousands_of_streams_at_once_each_has_its_lines_and_none_is_remembered_longer_than_needed():
    log = Log()
    for n in range(3 * MOST_KINDS * 2 * BURST):
        log.say("overrun on %s", f"room {n % (3 * MOST_KINDS)}")
    assert len(log.lines) == 3 * MOST_KINDS * BURST
    log.now += PER_S
    log.say("overrun on %s", "room 0")
    assert len(log.limit._passed) <= MOST_KINDS


def test_what_was_asked_for_is_not_limited():
    log = Log()
    for n in range(100):
        log.say("%s", f"windows: {n}", extra=UNLIMITED)
    assert len(log.lines) == 100


SAY = "import logging, kwsd.log; kwsd.log.set_up_logging(logging.INFO); logging.info('hears')"


@pytest.mark.parametrize(("other", "line"), [(0, r"<6>hears\n"), (1, r"[-\d]+ [:,\d]+ kwsd: hears\n")])
def test_only_the_journal_has_a_clock_of_its_own(other, line, tmp_path):
    path = tmp_path / "stderr"
    with path.open("wb") as stderr:
        file = os.fstat(stderr.fileno())
        environment = os.environ | {"JOURNAL_STREAM": f"{file.st_dev}:{file.st_ino + other}"}
        subprocess.run([sys.executable, "-c", SAY], env=environment, stderr=stderr, check=True)
    assert re.fullmatch(line, path.read_text())


@given(st.lists(st.floats(0, 30), max_size=200))
def test_in_no_minute_more_lines_of_a_kind_than_the_burst_and_none_is_forgotten(pauses):
    log, at, said = Log(), [], 0
    for pause in pauses:
        log.now += pause
        before = len(log.lines)
        log.say("overrun on %s", "mic")
        said += 1
        at += [log.now] * (len(log.lines) - before)
    for i in range(len(at) - BURST):
        assert at[i + BURST] - at[i] >= PER_S
    left_out = sum(int(line.split("(")[1].split()[0]) for line in log.lines if "(" in line)
    pending = sum(log.limit._left_out.values())
    assert len(log.lines) + left_out + pending == said
