"""Events on a pipe: whole lines, nothing waits for a reader, a reader that goes is noticed."""

import asyncio
import errno
import json
import os
import threading
import time

from kwsd.event import Reload
from kwsd.sinks import stdout
from kwsd.sinks.stdout import Stdout

EVENT = Reload(ok=True)


def close(sink, into):
    """Its thread may still write when `close` waits no more: then its end must not be closed."""
    asyncio.run(sink.close())
    sink._thread.join()
    os.close(into)


def test_lines_come_out_in_order_and_close_flushes():
    out, into = os.pipe()
    sink = Stdout(lambda error: None, into)
    for n in range(100):
        sink(EVENT, b"%d\n" % n)
    close(sink, into)
    with os.fdopen(out, "rb") as reader:
        assert [int(line) for line in reader] == list(range(100))


def test_a_reader_that_pauses_delays_nobody_and_is_told_what_it_lost():
    out, into = os.pipe()
    sink = Stdout(lambda error: None, into)
    begun = time.monotonic()
    total = 3 * stdout.QUEUE
    for n in range(total):
        sink(EVENT, b'{"type": "detection", "n": %d, "pad": "%s"}\n' % (n, b"x" * 1000))
    assert time.monotonic() - begun < 10.0
    received = []

    def read():
        with os.fdopen(out, "rb") as reader:
            received.extend(json.loads(line) for line in reader)

    reading = threading.Thread(target=read)
    reading.start()
    close(sink, into)
    reading.join()
    dropped = sum(event["count"] for event in received if event["type"] == "dropped")
    assert dropped > 0
    kept = [event["n"] for event in received if event["type"] == "detection"]
    assert dropped + len(kept) == total
    assert kept == sorted(kept) and kept[-stdout.QUEUE :] == list(range(total))[-stdout.QUEUE :], "the oldest go"


def test_a_thread_of_ours_that_is_held_up_is_waited_for_longer_than_a_reader(monkeypatch):
    write = os.write

    def late(fd, line):
        time.sleep(2 * stdout.FLUSH_S)
        return write(fd, line)

    out, into = os.pipe()
    monkeypatch.setattr(stdout.os, "write", late)
    sink = Stdout(lambda error: None, into)
    sink(EVENT, b"the last\n")
    asyncio.run(sink.close())
    os.set_blocking(out, False)
    assert os.read(out, 100) == b"the last\n"
    sink._thread.join()
    os.close(into)
    os.close(out)


def test_a_reader_that_does_not_read_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(stdout, "MOST_S", 60.0)
    out, into = os.pipe()
    sink = Stdout(lambda error: None, into)
    for _ in range(500):  # more than a pipe holds
        sink(EVENT, b"x" * 1000 + b"\n")
    begun = time.monotonic()
    asyncio.run(sink.close())
    assert time.monotonic() - begun < 30.0
    os.close(out)
    sink._thread.join()
    os.close(into)


def test_a_pipe_that_does_not_wait_is_waited_for():
    out, into = os.pipe()
    os.set_blocking(into, False)
    errors = []
    sink = Stdout(errors.append, into)
    line = b"x" * 1000 + b"\n"
    for _ in range(500):  # more than a pipe holds
        sink(EVENT, line)
    time.sleep(0.3)
    assert not errors
    received = bytearray()
    while len(received) < 500 * len(line):
        received += os.read(out, 1 << 16)
    assert received == line * 500
    close(sink, into)
    os.close(out)


def test_a_reader_that_goes_is_reported_once():
    out, into = os.pipe()
    errors = []
    sink = Stdout(errors.append, into)
    os.close(out)
    sink(EVENT, b"1\n")
    sink(EVENT, b"2\n")
    sink._thread.join()
    sink(EVENT, b"3\n")
    close(sink, into)
    assert [error.errno for error in errors] == [errno.EPIPE]
