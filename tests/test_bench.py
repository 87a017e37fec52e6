"""What is measured of a daemon is a daemon's that runs."""

import os
import threading
import time

import numpy as np
import pytest

from kwsd import bench
from kwsd.config import load_config
from kwsd.errors import UNAVAILABLE, KwsdError
from kwsd.recording import DEMO

PIPE = {"source": "pcm", "name": "bench"}
TAPE = {"source": "file", "name": "tape", "path": str(DEMO)}
SECOND = np.zeros(16_000, np.float32)


@pytest.fixture(scope="module")
def config():
    return load_config(None, environment={})


def wait_for(watch, kind):
    while not any(event["type"] == kind for _, event in watch._events):
        assert watch._daemon.poll() is None, "it has ended"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("stream", "hear"),
    [(PIPE, lambda watch: watch.through(np.tile(SECOND, 600))), (TAPE, lambda watch: watch.along(600.0))],
    ids=["through a pipe", "by itself"],
)
def test_a_daemon_that_is_killed_while_it_is_measured_is_told_of(stream, hear, config, tmp_path):
    def kill(watch):
        wait_for(watch, "ready")
        watch._daemon.kill()

    with (
        pytest.raises(KwsdError, match="the daemon ended by itself") as failure,
        bench._daemon(config, [stream], tmp_path) as watch,
    ):
        threading.Thread(target=kill, args=(watch,)).start()
        hear(watch)
    assert failure.value.exit_code == UNAVAILABLE


def test_a_daemon_that_no_audio_reaches_is_not_waited_for_for_ever(config, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "READY_S", 1.0)
    with (
        pytest.raises(KwsdError, match=r"no audio reached the daemon's model in 1 s; kwsd doctor says more"),
        bench._daemon(config, [PIPE], tmp_path) as watch,
    ):
        watch.along(1.0)


def test_how_long_it_took_to_be_ready_is_not_the_time_of_another_event(config, tmp_path):
    os.mkfifo(tmp_path / "lost")
    lost = {"source": "pcm", "name": "lost", "path": str(tmp_path / "lost")}
    with bench._daemon(config, [PIPE, lost], tmp_path) as watch:
        (tmp_path / "lost").write_bytes(b"")  # its writer comes, and goes
        wait_for(watch, "audio_lost")
        lost_s = time.monotonic() - watch._started
        watch._daemon.stdin.write(bytes(2 * SECOND.size))
        watch._daemon.stdin.flush()
        assert watch.along(0.1)["ready_s"] >= round(lost_s, 2)
