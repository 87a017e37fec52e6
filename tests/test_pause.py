"""When somebody who sends audio has paused: a second after the last of it, but for who sends in lumps."""

import numpy as np
import pytest

from kwsd.pause import ATTENTIVE_S, LEAST_S, MOST_S, Pause


def sent(pieces):
    """Who sent (time, seconds of audio), from a time of 100 s on."""
    pause = Pause(100.0)
    for at, seconds in pieces:
        pause.note(100.0 + at, seconds)
    return pause


def waited(pause, since):
    """Seconds until it is a pause, looked at ten times a second."""
    for look in range(1, 200):
        if pause.look(100.0 + since + look / 10):
            return look / 10
    return None


@pytest.mark.parametrize("piece_s", [0.02, 0.1, 0.25])
def test_a_second_without_anything_is_a_pause(piece_s):
    pause = sent([(at, piece_s) for at in np.arange(piece_s, 10, piece_s)])
    assert LEAST_S <= waited(pause, 10 - piece_s) <= LEAST_S + 0.2


@pytest.mark.parametrize("lump_s", [0.5, 1.0, 2.0, 4.0])
def test_lumps_are_waited_for_twice_as_long_as_they_last(lump_s):
    ends = np.arange(lump_s, 30, lump_s)
    pause = sent([(end + 0.01 * part, lump_s / 8) for end in ends for part in range(8)])
    assert waited(pause, ends[-1] + 0.07) == pytest.approx(max(LEAST_S, 2 * lump_s), abs=0.5)


def test_no_lump_is_waited_for_for_ever():
    assert waited(sent([(0.0, 60.0)]), 0.0) == pytest.approx(MOST_S, abs=0.2)


def test_what_a_stall_held_back_is_forgotten():
    stalled = [(at, 0.1) for at in np.arange(0.1, 5, 0.1)] + [(8.0, 3.0)]
    pause = sent([*stalled, *((at, 0.1) for at in np.arange(8.1, 60, 0.1))])
    assert waited(sent(stalled), 8.0) > 4.0, "it may stall again"
    assert waited(pause, 60) <= LEAST_S + 0.2


def test_who_sends_again_as_time_passes_after_a_pause_is_waited_for_no_longer():
    pause = sent([(at, 0.1) for at in np.arange(0.1, 5, 0.1)] + [(15 + at, 0.1) for at in np.arange(0.1, 2, 0.1)])
    assert waited(pause, 17) <= LEAST_S + 0.2


def test_who_did_not_look_blames_nobody():
    pause = sent([(0.1, 0.1)])
    assert not pause.look(100.0 + 3600)
    pause.note(100.0 + 3600.1, 0.1)
    assert not pause.look(100.0 + 3600.1 + ATTENTIVE_S / 2)
