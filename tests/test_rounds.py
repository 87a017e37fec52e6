"""Rounds at the microphones of satellites: who is deaf is told of, however many there are."""

import numpy as np
import pytest
from running import Running, clean_environment
from test_listener import Satellite, speak_in_time

from kwsd.audio_format import SAMPLE_RATE
from kwsd.client import ask
from kwsd.config import CaptureConfig
from kwsd.health import SILENCE
from kwsd.ring import RingBuffer
from kwsd.rounds import EACH_S, Rounds

SECOND = np.zeros(SAMPLE_RATE, np.float32)
HISS = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE).astype(np.float32)


def nobody(_):
    return False


class Wards:
    """Satellites that deliver as time passes."""

    def __init__(self, count, dead_after_s=5.0):
        self.ring = RingBuffer(count, 6 * SAMPLE_RATE)
        self.rounds = Rounds(CaptureConfig(dead_after_s=dead_after_s))
        for slot in range(count):
            self.rounds.join(slot, f"room {slot}", 0)
        self.now = 100.0

    def pass_by(self, seconds, sound, is_made_up=nobody, looks=100):
        """Seconds in each of which somebody looks so often; (type of event, its stream, how long it lasted)."""
        told = []
        for _ in range(seconds):
            for slot in range(self.ring.streams):
                self.ring.write(slot, sound(slot))
            for look in range(looks):
                told += self.rounds.look(self.now + look / looks, self.ring, is_made_up)
            self.now += 1.0
        return [(type(event).__name__, event.stream, event.lasted_s) for event in told]


def test_a_deaf_one_is_told_of_once_and_once_when_it_hears():
    wards = Wards(3)
    told = wards.pass_by(8, lambda slot: SECOND if slot == 1 else HISS)
    assert told == [("AudioFault", "room 1", 5.0)]
    assert [wards.rounds.fault(slot) for slot in range(3)] == [None, SILENCE, None]
    assert wards.pass_by(2, lambda _: HISS) == [("AudioHealed", "room 1", 8.0)]


@pytest.mark.parametrize("looks", [10, 100, 1000])
def test_of_hundreds_each_has_its_turn_and_time_counts_whole(looks):
    wards = Wards(300)
    told = wards.pass_by(16, lambda slot: SECOND if slot % 3 else HISS, looks=looks)
    assert sorted(stream for _, stream, _ in told) == sorted(f"room {slot}" for slot in range(300) if slot % 3)
    assert all(5.0 <= lasted_s <= 10.0 for _, _, lasted_s in told)


def test_many_are_not_looked_at_more_often_than_that():
    wards, asked = Wards(300), []
    wards.pass_by(1, lambda _: HISS, is_made_up=lambda slot: asked.append(slot) or False)
    assert len(asked) <= 1.1 / EACH_S


def test_silence_that_was_made_up_is_no_fault_and_nor_is_what_nobody_wants_to_know():
    wards = Wards(1)
    assert wards.pass_by(20, lambda _: SECOND, is_made_up=lambda _: True) == []
    wards = Wards(1, dead_after_s=0)
    assert wards.pass_by(20, lambda _: SECOND) == []
    assert wards.rounds.fault(0) is None


def test_who_comes_into_the_slot_of_another_has_not_his_faults():
    wards = Wards(1)
    wards.pass_by(6, lambda _: SECOND)
    wards.rounds.part(0)
    assert wards.rounds.fault(0) is None and wards.pass_by(1, lambda _: SECOND) == []
    wards.rounds.join(0, "another", wards.ring.ends[0])
    assert wards.pass_by(6, lambda _: SECOND) == [("AudioFault", "another", 5.0)]


def test_a_satellite_whose_microphone_is_muted_is_told_of(tmp_path):
    settings = ("streams=[]", f"listen.on=['unix:{tmp_path}/in']", "capture.dead_after_s=2")
    options = [part for setting in settings for part in ("--set", setting)]
    with Running(*options, environment=clean_environment(XDG_RUNTIME_DIR=str(tmp_path))) as daemon:
        daemon.wait_for("ready")
        with Satellite(f"{tmp_path}/in", {"name": "shed"}) as satellite:
            speak_in_time(satellite, np.zeros(4 * SAMPLE_RATE, np.float32))
            fault = daemon.wait_for("audio_fault")
            assert (fault["stream"], fault["fault"]) == ("shed", SILENCE)
            status = ask(tmp_path / "kwsd/events.sock", "status")["status"]
            assert [stream["ailment"] for stream in status["streams"]] == [SILENCE]
            assert status["problems"] == [], "with kwsd nothing is wrong"
            speak_in_time(satellite, np.concatenate([HISS, HISS, HISS]))
            assert daemon.wait_for("audio_healed")["stream"] == "shed"
        assert daemon.stop()[0] == 0
