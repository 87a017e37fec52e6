"""A pipe is read when as much has come as somebody waits for, and no writer waits for it."""

import fcntl
import os
import threading
import time

import numpy as np
import pytest

from kwsd.audio_format import SAMPLE_RATE
from kwsd.inlet import Inlet
from kwsd.ring import RingBuffer
from kwsd.source import BLOCK_S, TAIL_S, RawPcm

PIECE = SAMPLE_RATE // 100  # samples that the writer writes at once


class Listener:
    """An inlet on a FIFO, and somebody who waits for so many samples at a time."""

    def __init__(self, path, wants):
        os.mkfifo(path)
        self.ring = RingBuffer(1, 70 * SAMPLE_RATE)
        self.source = RawPcm(str(path), SAMPLE_RATE, 1, "s16le", None)
        self.inlet = Inlet(self.ring, 0, SAMPLE_RATE, 1, None)
        self.wants, self.woken = wants, threading.Event()
        self.inlet.want(wants)
        self.source.start(self.inlet, self.woken.set)

    def listen(self, until):
        """Takes what comes, until so many samples did, or the end."""
        while self.ring.ends[0] < until and not self.inlet.drained:
            assert self.woken.wait(5)
            self.woken.clear()
            if self.inlet.wanted:
                self.inlet.pump()
                self.inlet.want(self.ring.ends[0] + self.wants)

    @property
    def heard(self):
        samples = np.zeros(self.ring.ends[0], np.float32)
        assert self.ring.read(0, 0, samples)
        return np.round(samples * 32768).astype(np.int16)


@pytest.fixture
def pipe(tmp_path):
    made = []

    def make(wants):
        made.append(Listener(tmp_path / "pipe", wants))
        return made[0], (tmp_path / "pipe").open("wb", buffering=0)

    yield make
    made[0].source.stop()


def ramp(samples):
    return (np.arange(samples) % 30_000).astype("<i2")


def speak(writer, said):
    """In real time; the seconds for which the writer was held up are put into the list."""
    held_up, begun = [0.0], time.monotonic()

    def write():
        with writer:
            for start in range(0, len(said), PIECE):
                time.sleep(max(0.0, begun + start / SAMPLE_RATE - time.monotonic()))
                before = time.monotonic()
                writer.write(said[start : start + PIECE].tobytes())
                held_up[0] += time.monotonic() - before

    threading.Thread(target=write).start()
    return held_up


@pytest.mark.parametrize("wants", [1600, 4000])
def test_a_writer_that_keeps_time_is_read_as_often_as_somebody_waits(pipe, wants):
    listener, writer = pipe(wants)
    said = ramp(3 * SAMPLE_RATE)
    speak(writer, said)
    listener.listen(len(said))
    assert np.array_equal(listener.heard[: len(said)], said)
    assert listener.inlet.blocks - round(TAIL_S / BLOCK_S) < 1.5 * len(said) / wants  # of 300 pieces


def test_a_pipe_that_is_soon_full_is_read_before_it_is(pipe):
    listener, writer = pipe(4000)
    assert fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096) == 4096  # an eighth of a second
    said = ramp(3 * SAMPLE_RATE)
    held_up = speak(writer, said)
    listener.listen(len(said))
    assert np.array_equal(listener.heard[: len(said)], said)
    assert held_up[0] < 0.5  # half of the time, if it were read every quarter of a second


def test_a_writer_in_a_hurry_is_not_held_up(pipe):
    listener, writer = pipe(4000)
    said = ramp(60 * SAMPLE_RATE)

    def write():
        with writer:
            writer.write(said.tobytes())

    threading.Thread(target=write).start()
    begun = time.monotonic()
    listener.listen(len(said))
    assert time.monotonic() - begun < 10.0  # a minute of audio
    assert np.array_equal(listener.heard[: len(said)], said)


def test_a_writer_that_is_gone_is_noticed_soon_however_much_is_waited_for(pipe):
    listener, writer = pipe(60 * SAMPLE_RATE)
    writer.write(ramp(1000).tobytes())
    time.sleep(0.1)
    writer.close()
    begun = time.monotonic()
    listener.listen(10**9)
    assert time.monotonic() - begun < 1.0
    assert listener.inlet.drained and np.array_equal(listener.heard[:1000], ramp(1000))
