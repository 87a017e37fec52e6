"""A pipe is read when as much has come as somebody waits for, and no writer waits for it."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import termios
import threading
import time

import numpy as np
import pytest
import soundfile
import soxr
from running import KWSD, Running

from kwsd.audio_format import SAMPLE_RATE
from kwsd.inlet import Inlet
from kwsd.raw_pcm import BEHIND_S, Pace, RawPcm
from kwsd.recording import DEMO, read_recording
from kwsd.ring import RingBuffer
from kwsd.source import BLOCK_S, TAIL_S

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
    """In real time; for how long the writer was held up by each piece is put into the list, in seconds."""
    held_up, begun = [], time.monotonic()

    def write():
        with writer:
            for start in range(0, len(said), PIECE):
                time.sleep(max(0.0, begun + start / SAMPLE_RATE - time.monotonic()))
                before = time.monotonic()
                writer.write(said[start : start + PIECE].tobytes())
                held_up.append(time.monotonic() - before)

    threading.Thread(target=write).start()
    return held_up


@pytest.mark.parametrize("wants", [1600, 4000])
def test_a_writer_that_keeps_time_is_read_as_often_as_somebody_waits(pipe, wants):
    listener, writer = pipe(wants)
    said = ramp(3 * SAMPLE_RATE)
    speak(writer, said)
    listener.listen(len(said))
    assert np.array_equal(listener.heard[: len(said)], said)
    assert listener.inlet.blocks - round(TAIL_S / BLOCK_S) < 3 * len(said) / wants  # of 300 pieces


def test_a_pipe_that_is_soon_full_is_read_before_it_is(pipe):
    listener, writer = pipe(4000)
    assert fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096) == 4096  # an eighth of a second
    said = ramp(3 * SAMPLE_RATE)
    held_up = speak(writer, said)
    listener.listen(len(said))
    assert np.array_equal(listener.heard[: len(said)], said)
    # If it were read every quarter of a second, it would be held up for the half of each.
    assert sum(seconds > 0.05 for seconds in held_up) < 8


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
    assert time.monotonic() - begun < 10.0  # of a minute
    assert listener.inlet.drained and np.array_equal(listener.heard[:1000], ramp(1000))


# --- a FIFO whose writer goes, by the daemon itself ---

CLEAR = ("stop", "yes", "up", "go", "on")  # words of the demo that are heard wherever windows begin


@pytest.fixture(scope="module")
def spoken():
    """The demo recording as PCM."""
    return (read_recording(DEMO) * 32767).astype("<i2").tobytes()


@pytest.fixture
def fifo(tmp_path):
    os.mkfifo(tmp_path / "hall.fifo")
    return tmp_path / "hall.fifo"


def resampled(speech, rate):
    return speech if rate == SAMPLE_RATE else soxr.resample(speech, SAMPLE_RATE, rate)


def listening(environment, fifo, **more):
    stream = json.dumps({"source": "pcm", "name": "hall", "path": str(fifo)} | more)
    return Running("--set", f"streams=[{stream}]", environment=environment)


def write(fifo, audio):
    """As `cat recording.raw > hall.fifo` does."""
    with fifo.open("wb") as writer:
        writer.write(audio)


def test_a_recording_with_a_header_is_told_apart_from_raw_samples(environment, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((48_000, 2)), 48_000)
    with Running("--source", "-", environment=environment) as daemon:
        daemon.process.stdin.write((tmp_path / "a.wav").read_bytes())
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    assert "(RIFF), and is taken for raw samples, s16le, 16000 Hz, 1 channels; name" in "".join(daemon.errors)


def is_heard_in_time(environment, spoken):
    """Whether a writer that keeps time is."""
    with Running("--source", "-", "--set", "events.heartbeat_s=1", environment=environment) as daemon:
        say(daemon.process.stdin, bytes(36_000))
        daemon.wait_for("ready")  # what came while it began came at once, and is not timed
        say(daemon.process.stdin, spoken[: 6 * 32_000])
        daemon.process.stdin.close()
        assert daemon.finish() == 0
    beats = [event for event in daemon.events if event["type"] == "heartbeat"]
    assert 35 <= sum(beat["windows"] for beat in beats) <= 75, "ten a second, but for the first second and the last"
    timed = [event["latency_ms"] for event in daemon.detections if "latency_ms" in event]
    lags = [beat["lag_p99_ms"] for beat in beats]
    assert timed and None in lags, "at first it is not known"
    assert any(lag is not None for lag in lags)
    return max(timed) < 1000 and max(lag or 0 for lag in lags) < 500  # nor is the silence behind it late


def test_how_late_a_writer_that_keeps_time_is_heard_is_told(environment, spoken):
    assert any(is_heard_in_time(environment, spoken) for _ in range(3)), "or we stood still, but hardly thrice"


def test_whoever_writes_into_a_fifo_may_go_and_another_is_heard(environment, fifo, spoken):
    with listening(environment, fifo) as daemon:
        write(fifo, spoken)
        lost = daemon.wait_for("audio_lost")
        assert lost["stream"] == "hall" and "hall.fifo: nobody writes into it any more; waiting" in lost["reason"]
        time.sleep(1.5)
        assert daemon.process.poll() is None
        with fifo.open("wb", 0) as writer:
            writer.write(spoken[:3200])
            assert 1.4 < daemon.wait_for("audio_restored")["gap_s"] < 10.0
            writer.write(spoken[3200:])
        while "nobody writes" not in daemon.wait_for("audio_lost")["reason"]:
            pass  # it took us so long that it seemed to pause
        assert daemon.stop()[0] == 0
    heard = [event["keyword"] for event in daemon.detections if event["keyword"] in CLEAR]
    assert heard == [*CLEAR, *CLEAR], "as fast as it can be written, and nothing is lost"
    assert "overrun" not in {event["type"] for event in daemon.events}
    starts = [event["start_s"] for event in daemon.detections]
    assert starts == sorted(starts)


def test_a_fifo_that_is_made_anew_is_heard(environment, fifo, spoken):
    with listening(environment, fifo) as daemon:
        write(fifo, spoken[:64_000])
        daemon.wait_for("audio_lost")
        fifo.unlink()
        time.sleep(0.6)
        os.mkfifo(fifo)
        time.sleep(0.6)
        write(fifo, spoken)
        daemon.wait_for("audio_restored")
        daemon.wait_for("audio_lost")
        assert daemon.stop()[0] == 0
    assert len(daemon.detections) >= 9


def wait_until_taken(fifo):
    """Until nothing is in the pipe any more, and whoever read it had time to see that the writer is gone: of two that
    write half a sample each nobody can say that it was not one who wrote a whole one."""
    pipe = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder):
            time.sleep(0.01)
    finally:
        os.close(pipe)
    time.sleep(0.3)


@pytest.mark.parametrize("nothing", [b"", b"x"], ids=["no byte", "half a sample"])
def test_a_writer_that_says_nothing_is_none(nothing, environment, fifo, spoken):
    with listening(environment, fifo) as daemon:
        write(fifo, spoken[:64_000])
        daemon.wait_for("audio_lost")
        for _ in range(3):
            write(fifo, nothing)
            wait_until_taken(fifo)
        write(fifo, spoken)
        daemon.wait_for("audio_restored")
        daemon.wait_for("audio_lost")
        assert daemon.stop()[0] == 0
    assert len(daemon.detections) >= 9
    assert [event["type"] for event in daemon.events].count("audio_lost") == 2


def test_what_writers_left_who_were_gone_before_the_pipe_was_opened_anew_puts_nobody_out_of_step(fifo):
    pipe = RawPcm(str(fifo), SAMPLE_RATE, 1, "s16le", None, reopen=True)
    write(fifo, b"x")
    pipe._open_anew()
    write(fifo, b"one and a half of ano" + b"x" * 1_000)
    pipe._open_anew()
    read = b""
    with fifo.open("wb") as writer:
        writer.write(b"the next")
        writer.flush()
        while len(read) < 1_028:
            read += pipe._read(300) or b""
    assert read == b"one and a half of ano" + b"x" * 999 + b"the next"
    pipe.stop()


def test_what_one_writer_wrote_is_told_before_it_is_lost_however_soon_the_next_comes(environment, fifo, spoken):
    cut = spoken[: int(9.6 * 32_000)]  # it ends with "go"
    with listening(environment, fifo) as daemon:
        for _ in range(4):
            write(fifo, cut)
            time.sleep(0.02)
        visit = ["stop", "yes", "up", "go"]
        deadline = time.monotonic() + 40
        while [event["keyword"] for event in daemon.detections if event["keyword"] in visit] != visit * 4:
            assert time.monotonic() < deadline, daemon.events
            time.sleep(0.05)
        daemon.wait_for("audio_lost")
        assert daemon.stop()[0] == 0
    told = [event.get("keyword", event["type"]) for event in daemon.events]
    told = [what for what in told if what in (*visit, "audio_lost")]
    # Where one comes before the last one's going was seen, nothing was lost.
    assert {told[i - 1] for i, what in enumerate(told) if what == "audio_lost"} == {"go"}


def test_a_writer_of_what_are_no_samples_is_lost_and_the_next_is_heard(environment, fifo, spoken):
    samples = np.frombuffer(spoken, "<i2").astype("<f4") / 32768
    broken = samples.copy()
    broken[100_000] = np.nan
    with listening(environment, fifo, format="f32le") as daemon:
        write(fifo, broken.tobytes())
        assert "is not a number" in daemon.wait_for("audio_lost")["reason"]
        write(fifo, samples.tobytes())
        daemon.wait_for("audio_restored")
        daemon.wait_for("audio_lost")
        assert daemon.stop()[0] == 0
    assert len(daemon.detections) >= 10


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_recording_that_breaks_off_is_heard_to_its_end_and_harms_no_other(environment, tmp_path, fifo, rate):
    speech = resampled(read_recording(DEMO), rate)
    soundfile.write(tmp_path / "cut.wav", speech, rate)
    content = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(content[: 44 + int(9.7 * rate) * 2])
    streams = [
        {"source": "file", "name": "tape", "path": str(tmp_path / "cut.wav")},
        {"source": "pcm", "name": "hall", "path": str(fifo)},
    ]
    with Running("--set", f"streams={json.dumps(streams)}", environment=environment) as daemon:
        while (lost := daemon.wait_for("audio_lost"))["stream"] != "tape":
            assert "hall.fifo: nobody writes into it yet; waiting for the next" in lost["reason"]
        assert "is cut short after 9.70 s" in lost["reason"]
        assert daemon.process.poll() is None
        told = [event.get("keyword", event["type"]) for event in daemon.events if event.get("stream") == "tape"]
        assert told[-2:] == ["go", "audio_lost"]
        daemon.stop()


def say(writer, audio):
    """As a recorder does, in real time; if we stood still we do not catch up, as that is faster than time."""
    due = time.monotonic()
    for start in range(0, len(audio), 3200):
        writer.write(audio[start : start + 3200])
        writer.flush()
        due = max(due + 0.1, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


@pytest.mark.parametrize("by", ["stdin", "fifo"])
def test_a_recorder_that_hangs_is_lost_and_nothing_from_before_is_told_after_it(by, environment, fifo, spoken):
    until_stop = int(2.5 * 32_000)  # it ends with "stop"
    beside = contextlib.nullcontext() if by == "fifo" else Running("--source", "-", environment=environment)
    with listening(environment, fifo) if by == "fifo" else beside as daemon:
        with fifo.open("wb") if by == "fifo" else daemon.process.stdin as writer:
            say(writer, bytes(36_000))
            daemon.wait_for("ready")  # what came while it began came at once, as from one that does not keep time
            say(writer, spoken[:until_stop])  # long enough to see that it keeps time
            lost = daemon.wait_for("audio_lost")
            assert "whoever writes into it has paused; waiting for more" in lost["reason"]
            assert [event["keyword"] for event in daemon.detections] == ["stop"]
            time.sleep(2.0)
            say(writer, spoken[until_stop : 7 * 32_000])
            assert 1.8 < daemon.wait_for("audio_restored")["gap_s"] < 8.0
        code = daemon.stop()[0] if by == "fifo" else daemon.finish()
    assert code == 0
    assert [event["keyword"] for event in daemon.detections] == ["stop", "yes"]


def test_a_recorder_that_hangs_before_it_is_known_to_keep_time_is_lost_too(environment, fifo, spoken):
    with listening(environment, fifo) as daemon, fifo.open("wb") as writer:
        say(writer, spoken[int(1.2 * 32_000) : int(2.5 * 32_000)])  # it ends with "stop"
        lost = daemon.wait_for("audio_lost")
        assert "whoever writes into it has paused; waiting for more" in lost["reason"]
        assert [event["keyword"] for event in daemon.detections] == ["stop"]
        assert daemon.stop()[0] == 0


def test_a_stream_that_ends_inside_a_sample_has_left(environment, tmp_path, fifo, spoken):
    (tmp_path / "odd.raw").write_bytes(spoken[:64_001])
    streams = [
        {"source": "pcm", "name": "odd", "path": str(tmp_path / "odd.raw")},
        {"source": "pcm", "name": "hall", "path": str(fifo)},
    ]
    with Running("--set", f"streams={json.dumps(streams)}", environment=environment) as daemon:
        left = daemon.wait_for("stream_left")
        assert (left["stream"], left["heard_s"]) == ("odd", 2.0), "not the silence made up behind it"
        daemon.stop()  # and with it all that it said
    assert any("ended inside a sample" in line for line in daemon.errors)


def test_while_nobody_writes_the_status_says_so(environment, fifo, spoken, kwsd):
    with listening(environment, fifo) as daemon:
        write(fifo, spoken[:64_000])
        daemon.wait_for("audio_lost")
        assert json.loads(kwsd("ctl", "--json", "status").out)["status"]["problems"] == ["hall: lost"]
        assert daemon.stop()[0] == 0


def test_a_fifo_may_be_told_to_end_with_its_writer(environment, fifo, spoken):
    with listening(environment, fifo, reopen=False) as daemon:
        write(fifo, spoken[:64_000])
        assert daemon.finish() == 0
    assert "audio_lost" not in {event["type"] for event in daemon.events}


def test_a_fifo_as_the_source_of_one_run_ends_with_its_writer(environment, fifo, spoken):
    with Running("--source", str(fifo), environment=environment) as daemon:
        write(fifo, spoken[:64_000])
        assert daemon.finish() == 0


@pytest.mark.parametrize("stalled_s", np.arange(0.0, 0.6, 0.1).round(1))
def test_a_writer_that_stalls_holds_up_nobody_who_stops(fifo, stalled_s, monkeypatch):
    monkeypatch.setattr("kwsd.raw_pcm.MOST_S", 30.0)  # so that one who is held up is seen to be
    pipe = RawPcm(str(fifo), SAMPLE_RATE, 1, "s16le", None)
    inlet = Inlet(RingBuffer(1, 6 * SAMPLE_RATE), 0, SAMPLE_RATE, 1, None)
    inlet.want_more(10.0)
    with fifo.open("wb", buffering=0) as writer:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)  # which is read when it is half full, after 16 s
        pipe.start(inlet, lambda: None)
        writer.write(bytes(2 * 1600))
        time.sleep(stalled_s)
        pipe.stop()
        pipe._thread.join(5.0)
        assert not pipe._thread.is_alive()


# --- how a writer keeps time ---


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("kwsd.raw_pcm.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def seen(clock, pace, written_s, *late_s):
    """Pieces of 50 ms, each seen so much later than it was written. What was seen of the last, in frames."""
    for n, late in enumerate(late_s, 1):
        clock.now = written_s + 0.05 * n + late
        pace.note(800 * n)
    return 800 * len(late_s)


def test_when_more_will_have_come_is_told_by_what_was_seen_soonest(clock):
    pace = Pace(SAMPLE_RATE)
    frames = seen(clock, pace, 50.0, 0.03, 0.0, 0.02, 0.04)
    assert pace.due_in(frames + 1600) == pytest.approx(0.1 - 0.04, abs=2e-3), "it was read 40 ms late"
    clock.now += 1.0
    assert pace.due_in(frames + 1600) < 0.0


@pytest.mark.parametrize(("speed", "keeps_time"), [(0.9, True), (1.0, True), (1.05, True), (1.3, False), (50.0, False)])
def test_who_writes_much_faster_than_time_does_not_keep_it(clock, speed, keeps_time):
    pace = Pace(SAMPLE_RATE)
    for n in range(1, 100):
        assert not (pace.keeps_time and n < 40), "at first it is not known"
        clock.now = 50.0 + 0.05 * n
        pace.note(round(800 * n * speed))
    assert pace.keeps_time == keeps_time


def test_a_writer_that_paused_begins_anew(clock):
    pace = Pace(SAMPLE_RATE)
    seen(clock, pace, 50.0, 0.0, 0.0)
    clock.now = 60.0
    pace.note(2400)
    assert pace.due_in(3200) == pytest.approx(0.05)


def test_a_writer_with_a_slower_clock_is_followed(clock):
    pace = Pace(SAMPLE_RATE)
    slower = [n * 0.05 * 1e-3 for n in range(4000)]  # a thousandth
    frames = seen(clock, pace, 50.0, *slower)
    assert pace.due_in(frames + 800) == pytest.approx(0.05, abs=0.008)


def test_to_look_a_little_late_every_time_does_not_add_up(clock):
    pace, at = Pace(SAMPLE_RATE), 50.0
    for n in range(1, 5000):
        clock.now = at + 0.05 * n + 2 * BEHIND_S * (n > 1)
        pace.note(800 * n)
    assert pace.due_in(800 * 5000) == pytest.approx(0.05 - 2 * BEHIND_S, abs=1e-6)


@pytest.mark.parametrize(("faster", "lost"), [(1.5, 0), (1.0, 1)])
def test_who_writes_into_a_socket_is_judged_as_who_writes_into_a_pipe(environment, faster, lost):
    ours, theirs = socket.socketpair()
    options = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "env": environment}
    with subprocess.Popen([KWSD, "run", "--source", "-"], **options) as daemon, ours:
        theirs.close()
        ours.sendall(bytes(2 * SAMPLE_RATE))
        assert b'"ready"' in daemon.stdout.readline()
        for _ in range(30):
            ours.sendall(bytes(2 * round(faster * SAMPLE_RATE / 10)))
            time.sleep(0.1)
        time.sleep(4.0)
        ours.sendall(bytes(2 * SAMPLE_RATE))
        ours.close()
        told = [json.loads(line)["type"] for line in daemon.stdout]
    assert told.count("audio_lost") == lost and told[-1] == "shutdown"
