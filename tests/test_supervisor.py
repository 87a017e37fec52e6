"""What is lost is said and opened again, what is deaf is said, and who slept himself blames nobody."""

import numpy as np
import pytest

from kwsd.audio_format import SAMPLE_RATE
from kwsd.config import CaptureConfig
from kwsd.errors import IO, OK, AudioError
from kwsd.inlet import Inlet
from kwsd.ring import RingBuffer
from kwsd.supervisor import FIRST_AFTER_S, LOST_AFTER_S, Supervisor

LOOK_S = 0.05


class Source:
    """One that says what it is told to."""

    def __init__(self, *, device=True):
        self.live, self.may_be_deaf, self.failure, self.recoveries = True, device, None, 0
        self.fatal, self.block_s = None, 0.1
        self._device = device

    def recover(self):
        self.recoveries += 1
        return self._device


class Room:
    """A source, its supervisor, and a clock."""

    def __init__(self, monkeypatch, *, device=True, dead_after_s=5.0):
        self.now, self.events, self.phase = 1_000.0, [], 0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        self.source, self.inlet = Source(device=device), Inlet(RingBuffer(1, 5 * SAMPLE_RATE), 0, SAMPLE_RATE, 1, None)
        capture = CaptureConfig(dead_after_s=dead_after_s)
        self.supervisor = Supervisor(
            ["mic"], [self.source], [self.inlet], capture, lambda event, failure: self.events.append((self.now, event))
        )
        self.supervisor.start({})

    def deliver(self, seconds, level=0.1, look_s=LOOK_S):
        return self.wait(seconds, look_s=look_s, level=level)

    def wait(self, seconds, look_s=LOOK_S, level=None):
        for _ in range(round(seconds / look_s)):
            self.now += look_s
            if level is not None:
                self.phase += 1
                noise = np.random.default_rng(self.phase).uniform(-level, level, round(look_s * SAMPLE_RATE))
                self.inlet.write(noise.astype(np.float32)[:, None])
            self.inlet.pump()
            self.supervisor.look(self.now)
        return self

    @property
    def told(self):
        return [type(event).__name__ for _, event in self.events]


@pytest.fixture
def room(monkeypatch):
    return Room(monkeypatch)


def test_while_audio_comes_nothing_is_said(room):
    room.deliver(60.0)
    assert room.events == [] and room.source.recoveries == 0


def test_blocks_that_stop_are_noticed_within_a_second_of_audio(room):
    room.deliver(3.0)
    silent_since = room.now
    room.wait(2.0)
    [(at, lost)] = room.events
    assert at - silent_since == pytest.approx(LOST_AFTER_S, abs=2 * LOOK_S) and at - silent_since < 1.0
    assert (lost.stream, "no audio for 0.8 s" in lost.reason) == ("mic", True)
    assert room.source.recoveries == 1


def test_a_device_that_says_so_itself_is_lost_at_once(room):
    room.deliver(3.0)
    room.source.failure = AudioError("unplugged", exit_code=IO)
    room.wait(LOOK_S)
    assert [event.reason for _, event in room.events] == ["unplugged"]


def test_the_very_first_block_may_take_longer(room):
    room.wait(FIRST_AFTER_S - 0.1)
    assert room.events == []
    room.wait(0.5)
    assert room.told == ["AudioLost"]


def test_what_comes_back_is_told_with_the_gap_and_may_be_lost_again(room):
    for _ in range(3):
        room.deliver(3.0).wait(4.0)
        room.inlet.reopen(SAMPLE_RATE, 1)
    room.deliver(3.0)
    assert room.told == ["AudioLost", "AudioRestored"] * 3
    assert all(event.gap_s == pytest.approx(4.0, abs=0.1) for _, event in room.events[1::2])
    assert room.supervisor.ailment(0) is None and not room.supervisor.waits


def test_who_is_opened_in_the_place_of_others_is_told_with_the_time_since_then(room):
    room.supervisor.start({"mic": room.now - 1.5})
    room.wait(1.0).deliver(3.0)
    [(_, restored)] = room.events
    assert restored.gap_s == pytest.approx(2.5, abs=0.1)


def test_one_that_was_not_even_there_then_is_told_once(room):
    room.supervisor.start({"mic": room.now})
    room.source.failure = AudioError("not there", exit_code=IO)
    room.wait(3.0)
    room.inlet.reopen(SAMPLE_RATE, 1)
    room.source.failure = None
    room.deliver(3.0)
    assert room.told == ["AudioLost", "AudioRestored"]
    assert room.events[-1][1].gap_s == pytest.approx(3.0, abs=0.1)


def test_while_it_is_lost_that_is_what_ails_the_stream(room):
    room.deliver(1.0).wait(2.0)
    assert room.supervisor.ailment(0) == "lost" and room.supervisor.waits and room.supervisor.is_lost(0)


def test_who_was_stopped_himself_does_not_blame_the_source(room):
    room.deliver(2.0)
    room.now += 30.0  # nobody looked
    room.supervisor.look(room.now)  # before what was played meanwhile arrives
    room.deliver(2.0)
    assert room.events == []


def test_looks_that_are_rare_make_it_no_later_than_a_second(room):
    room.deliver(2.0, look_s=0.2)
    silent_since = room.now
    room.wait(3.0, look_s=0.2)
    assert room.events[0][0] - silent_since <= 1.0


def test_where_only_a_new_process_can_hear_again_this_one_must_end(room):
    room.deliver(1.0).wait(2.0)
    room.source.fatal = AudioError("the driver spins", exit_code=IO)
    with pytest.raises(AudioError, match="spins"):
        room.wait(1.0)


def test_a_source_that_cannot_be_opened_again_ends_and_is_told_once(monkeypatch):
    room = Room(monkeypatch, device=False).deliver(2.0)
    room.source.failure = AudioError("the file broke off", exit_code=IO)
    room.wait(5.0)
    assert room.told == ["AudioLost"]
    assert room.inlet.ended and str(room.supervisor.failure) == "the file broke off"
    assert not room.supervisor.waits


def test_what_has_ended_is_told_once_and_is_not_lost_where_that_is_all(monkeypatch):
    room = Room(monkeypatch, device=False).deliver(2.0)
    room.source.failure = AudioError("ended inside a sample", exit_code=OK)
    room.wait(5.0)
    assert room.told == ["AudioLost"]
    assert not room.supervisor.is_lost(0) and not room.supervisor.goes_on


def test_who_is_not_heard_is_known_and_since_when(room):
    assert room.deliver(3.0).supervisor.silences() == {}
    heard_at = room.now
    assert room.wait(2.0).supervisor.silences() == {"mic": heard_at}
    room.inlet.reopen(SAMPLE_RATE, 1)
    assert room.deliver(1.0).supervisor.silences() == {}


@pytest.mark.parametrize(("live", "ailment"), [(True, None), (False, "lost")])
def test_a_pipe_that_takes_the_place_of_another_is_lost_until_somebody_writes(room, live, ailment):
    room.source.live = live
    since = room.now - 1.5
    room.supervisor.start({"mic": since})
    assert (room.supervisor.ailment(0), room.supervisor.silences()) == (ailment, {"mic": since})
    room.deliver(1.0)
    assert (room.supervisor.ailment(0), room.supervisor.silences()) == (None, {})


def test_what_counts_as_deaf_may_change_at_any_time(room):
    room.deliver(10.0)
    room.supervisor.adopt(CaptureConfig(dead_after_s=2.0, floor_dbfs=-10.0))
    room.deliver(4.0)
    assert room.told == ["AudioFault"] and room.supervisor.ailment(0) == "quiet"
    room.supervisor.adopt(CaptureConfig(dead_after_s=0.0))
    assert room.supervisor.ailment(0) is None


def test_a_muted_microphone_is_told_once_and_once_when_it_hears(room):
    room.deliver(3.0).deliver(20.0, level=0.0).deliver(5.0)
    assert room.told == ["AudioFault", "AudioHealed"]
    (at, fault), (_, healed) = room.events
    assert fault.fault == healed.fault == "digital silence" and fault.level_dbfs == -120.0
    assert at == pytest.approx(1_008.0, abs=2.1)
    assert healed.lasted_s == pytest.approx(20.0, abs=2.1)


def test_a_fault_survives_a_loss_and_is_healed_after_it(room):
    room.deliver(10.0, level=0.0).wait(3.0)
    assert room.supervisor.ailment(0) == "lost"
    room.inlet.reopen(SAMPLE_RATE, 1)
    room.deliver(5.0)
    assert room.told == ["AudioFault", "AudioLost", "AudioRestored", "AudioHealed"]


def test_nobody_is_called_deaf_for_what_was_not_there_to_hear(room):
    room.deliver(2.0).wait(100.0)
    assert room.told == ["AudioLost"]


def test_a_recording_may_be_as_silent_as_it_likes(monkeypatch):
    assert Room(monkeypatch, device=False).deliver(30.0, level=0.0).events == []


def test_whoever_does_not_want_to_know_is_not_told(monkeypatch):
    assert Room(monkeypatch, dead_after_s=0.0).deliver(60.0, level=0.0).events == []
