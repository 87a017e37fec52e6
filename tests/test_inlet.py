"""Blocks of any rate, size and channel count become 16 kHz mono in the ring, and what is lost is counted."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwsd.audio_format import SAMPLE_RATE
from kwsd.inlet import SECONDS, Inlet, held_back
from kwsd.ring import RingBuffer

RATES = [8_000, 11_025, 16_000, 44_100, 48_000, 96_000]
HOP, HOP_S = 1600, 0.1
HELD = 2_000  # samples a resampler may hold back
HALF_FILTER = 0.1  # seconds around an edge in which a resampler rings


def tone(rate, start_s, end_s, hz=440.0, amplitude=0.5):
    """One channel (n, 1) of a sine that knows its time: the same sample whatever is cut off before it."""
    times = np.arange(round(start_s * rate), round(end_s * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hz * times)).astype(np.float32)[:, None]


def ramp(start, end):
    """One channel (n, 1) in which every sample says where it belongs; never 0."""
    return (np.arange(start, end) % 2**20 + 1).astype(np.float32)[:, None]


class Stream:
    """An inlet, and a ring that keeps everything it lets through."""

    def __init__(self, rate=SAMPLE_RATE, channels=1, channel=None, capacity=20 * SAMPLE_RATE, hop=1, block_s=None):
        self.ring = RingBuffer(2, capacity, hop=hop)
        self.inlet = Inlet(self.ring, 1, rate, channels, channel, block_s=block_s)

    def write(self, frames, block=None):
        block = block or max(1, len(frames))
        for start in range(0, len(frames), block):
            self.inlet.write(frames[start : start + block])
        return self

    def pump(self, *most_s):
        self.inlet.pump(*most_s)
        return self

    def end(self):
        """Ends, and converts what there still is."""
        self.inlet.end()
        for _ in range(10):
            self.pump()
        return self

    def overflow(self):
        self.inlet.overflow()
        return self

    @property
    def written(self):
        return int(self.ring.written[1])

    @property
    def whole_from(self):
        return int(self.ring.unbroken_from[1])

    def samples(self, start=None):
        """What is in the ring from `start` on, or since the last gap."""
        start = self.whole_from if start is None else start
        out = np.zeros(self.written - start, np.float32)
        assert self.ring.read(1, start, out)
        return out


# --- resampling ---


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("hz", [100.0, 440.0, 3000.0])
def test_a_sine_of_any_rate_keeps_its_frequency_amplitude_and_phase(rate, hz):
    heard = Stream(rate).write(tone(rate, 0, 2, hz)).end().samples()
    expected = tone(SAMPLE_RATE, 0, 2, hz)[:, 0]
    inner = slice(round(HALF_FILTER * SAMPLE_RATE), -round(HALF_FILTER * SAMPLE_RATE))
    assert np.abs(heard[inner] - expected[inner]).max() < 0.002


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_what_16_khz_cannot_hold_does_not_fold_back(rate):
    heard = Stream(rate).write(tone(rate, 0, 1, hz=10_000.0)).end().samples()
    assert np.abs(heard[1_600:-1_600]).max() < 0.001


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.3, 1.0, 1.23456])
def test_an_ended_stream_has_as_many_samples_as_its_duration(rate, seconds):
    stream = Stream(rate).write(tone(rate, 0, seconds)).end()
    assert stream.inlet.drained
    assert stream.written == pytest.approx(round(seconds * rate) * SAMPLE_RATE / rate, abs=1)
    assert stream.whole_from == 0


def test_what_is_at_16_khz_already_stays_as_it_is():
    stream = Stream().write(ramp(0, 20_000), block=320).pump()
    assert np.array_equal(stream.samples(), ramp(0, 20_000)[:, 0])


@settings(deadline=None, max_examples=50)
@given(
    rate=st.sampled_from(RATES),
    blocks=st.lists(st.tuples(st.integers(1, 9_000), st.booleans()), max_size=12),
    most_s=st.sampled_from([0.01, 0.1, 0.333, 4.0]),
)
def test_any_cut_into_blocks_gives_the_same_samples(rate, blocks, most_s):
    sound = np.random.default_rng(5).uniform(-1, 1, (rate, 1)).astype(np.float32)
    whole = Stream(rate).write(sound).end().samples()
    pieces, at = Stream(rate), 0
    for length, pump in blocks:
        pieces.write(sound[at : at + length])
        at += length
        if pump:
            pieces.pump(most_s)
    pieces.write(sound[at:]).end()
    assert np.array_equal(pieces.samples(), whole)


def test_streams_of_one_ring_stay_apart():
    ring = RingBuffer(2, SAMPLE_RATE)
    left, right = (Inlet(ring, i, SAMPLE_RATE, 1, None) for i in range(2))
    left.write(ramp(0, 1_000))
    right.write(ramp(5_000, 5_300))
    left.pump()
    right.pump()
    assert ring.written.tolist() == [1_000, 300]
    out = np.zeros(300, np.float32)
    assert ring.read(1, 0, out)
    assert np.array_equal(out, ramp(5_000, 5_300)[:, 0])


# --- channels ---

STEREO = np.stack([np.arange(10), np.arange(10) * 3 + 1], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("channel", "heard"),
    [(0, STEREO[:, 0]), (1, STEREO[:, 1]), (None, STEREO.mean(1))],
    ids=["first", "second", "mix"],
)
@pytest.mark.parametrize("block", [1, 3, 10])
def test_a_channel_is_picked_or_all_are_mixed(channel, heard, block):
    assert np.array_equal(Stream(channels=2, channel=channel).write(STEREO, block).pump().samples(), heard)


def test_opposite_channels_mix_to_silence():
    sound = tone(SAMPLE_RATE, 0, 0.1)
    assert not Stream(channels=2).write(np.concatenate([sound, -sound], axis=1)).pump().samples().any()


@pytest.mark.parametrize("length", [1, 3_999, 4_000, 4_001, 24_581])
def test_blocks_of_any_length_are_mixed(length):
    frames = np.repeat(ramp(0, length), 3, axis=1)
    assert np.array_equal(Stream(channels=3).write(frames).pump().samples(), ramp(0, length)[:, 0])


def test_a_block_may_be_reused_as_soon_as_write_returns():
    frames = ramp(0, 100)
    stream = Stream().write(frames)
    frames[:] = -1.0
    assert np.array_equal(stream.pump().samples(), ramp(0, 100)[:, 0])


# --- how much is converted, and when it is over ---


def test_a_pump_converts_at_most_what_it_is_asked_for():
    stream = Stream().write(ramp(0, 32_000))
    assert stream.inlet.backlog == 2.0
    assert stream.inlet.room == SECONDS - 2.0
    assert [stream.pump(0.6).written for _ in range(4)] == [9_600, 19_200, 28_800, 32_000]
    assert stream.inlet.backlog == 0.0
    assert np.array_equal(stream.samples(), ramp(0, 32_000)[:, 0])


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_a_stream_is_drained_once_it_has_ended_and_all_of_it_is_converted(rate):
    stream = Stream(rate).write(tone(rate, 0, 2))
    assert not stream.pump(0.5).inlet.drained
    stream.inlet.end()
    assert not stream.inlet.drained
    assert not stream.pump(0.5).inlet.drained
    assert stream.pump().inlet.drained
    assert stream.written == 2 * SAMPLE_RATE
    assert stream.pump().written == 2 * SAMPLE_RATE  # nothing is flushed twice


# --- the sound system drops audio ---


@pytest.mark.parametrize("rate", [16_000, 48_000, 44_100])
def test_an_overflow_parts_what_comes_after_it_from_what_came_before(rate):
    stream = Stream(rate).write(tone(rate, 0, 1)).overflow().write(tone(rate, 1, 2)).end()
    assert stream.inlet.overflows == 1
    assert stream.whole_from == SAMPLE_RATE
    assert stream.written == 2 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [16_000, 48_000, 44_100])
def test_an_overflow_parts_even_where_all_before_it_was_converted_already(rate):
    stream = Stream(rate).write(tone(rate, 0, 1)).pump().overflow().write(tone(rate, 1, 2)).end()
    assert stream.inlet.overflows == 1
    assert stream.whole_from == SAMPLE_RATE
    assert stream.written == 2 * SAMPLE_RATE


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_after_an_overflow_nothing_of_what_came_before_sounds_on(rate):
    stream = Stream(rate).write(tone(rate, 0, 1)).pump().overflow().write(np.zeros((rate, 1), np.float32)).end()
    assert stream.whole_from > 0
    assert not stream.samples().any()


@pytest.mark.parametrize("rate", RATES)
def test_what_came_before_an_overflow_and_was_not_looked_at_yet_is_listened_to_first(rate):
    stream = Stream(rate).write(tone(rate, 0, 1.5)).overflow().write(tone(rate, 1.5, 2)).pump()
    assert abs(stream.written - 1.5 * SAMPLE_RATE) <= 1 and stream.whole_from == 0
    said = slice(int(HALF_FILTER * SAMPLE_RATE), 20_000)
    assert np.abs(stream.samples(0)[said] - tone(SAMPLE_RATE, 0, 1.25)[said, 0]).max() < 1e-3
    assert stream.inlet.wanted, "there is more"
    stream.end()
    assert stream.inlet.lost == 0 and abs(stream.written - 2 * SAMPLE_RATE) <= 1
    assert abs(stream.whole_from - 1.5 * SAMPLE_RATE) <= 1


def test_between_two_overflows_nobody_looked_at_nothing_is_taken_for_whole():
    stream = Stream().write(ramp(0, 8_000)).overflow().write(ramp(8_000, 12_000)).overflow()
    stream.write(ramp(12_000, 16_000)).pump().end()
    assert stream.inlet.lost == 12_000 and stream.whole_from == 12_000
    assert np.array_equal(stream.samples(), ramp(12_000, 16_000)[:, 0])


def test_every_overflow_is_counted():
    stream = Stream()
    for at in range(5):
        stream.write(ramp(at * 100, at * 100 + 100)).overflow()
    assert stream.inlet.overflows == 5


def test_without_an_overflow_there_is_no_gap():
    stream = Stream(48_000)
    for at in range(10):
        stream.write(tone(48_000, at, at + 1), block=960).pump()
    assert (stream.inlet.overflows, stream.inlet.lost, stream.whole_from) == (0, 0, 0)


# --- inference sleeps too long ---


@pytest.mark.parametrize("rate", RATES)
def test_what_was_overwritten_unread_is_counted_and_the_clock_kept(rate):
    stream = Stream(rate).write(tone(rate, 0, SECONDS + 2), block=rate // 50).end()
    assert stream.inlet.lost == 2 * SAMPLE_RATE
    assert stream.whole_from == 2 * SAMPLE_RATE
    assert stream.written == pytest.approx((SECONDS + 2) * SAMPLE_RATE, abs=1)
    assert stream.inlet.overflows == 0


@pytest.mark.parametrize("rate", RATES)
def test_after_a_loss_every_sample_has_the_index_of_its_time(rate):
    stream = Stream(rate).write(tone(rate, 0, 1)).pump()
    stream.write(tone(rate, 1, 7), block=rate // 10).end()  # 2 s of it are overwritten
    edge = round(HALF_FILTER * SAMPLE_RATE)
    assert stream.whole_from == 3 * SAMPLE_RATE
    expected = tone(SAMPLE_RATE, 3, 7)[:, 0]
    assert stream.written == pytest.approx(7 * SAMPLE_RATE, abs=1)
    heard = stream.samples()[: len(expected)]
    assert np.abs(heard - expected[: len(heard)])[edge:-edge].max() < 0.002


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_losses_do_not_add_up_to_a_wrong_clock(rate):
    stream, at = Stream(rate, capacity=2 * SAMPLE_RATE), 0.0
    for _ in range(10):
        stream.write(tone(rate, at, at + 0.3)).pump()
        stream.write(tone(rate, at + 0.3, at + 4.5), block=rate // 10).pump()
        at += 4.5
    stream.end()
    assert stream.inlet.lost == pytest.approx(10 * 0.2 * SAMPLE_RATE, abs=10)
    assert stream.written == pytest.approx(at * SAMPLE_RATE, abs=1)


def test_with_16_khz_every_sample_is_in_the_ring_or_counted_while_another_thread_writes():
    stream, blocks, read = Stream(capacity=5 * SAMPLE_RATE), 3_000, 0
    lengths = np.random.default_rng(2).integers(1, 2_000, blocks)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def talk():
        for start, length in zip(starts, lengths, strict=False):
            stream.inlet.write(ramp(start, start + length))
        stream.inlet.end()

    talking = threading.Thread(target=talk)
    talking.start()
    deadline = time.monotonic() + 10.0
    while not stream.inlet.drained and time.monotonic() < deadline:
        stream.pump(1.0)
        start = max(read, stream.whole_from)
        if stream.written > start:
            assert np.array_equal(stream.samples(start), ramp(start, stream.written)[:, 0])
            read = stream.written
        if stream.written > SAMPLE_RATE:
            time.sleep(0.001)  # inference takes its time
    talking.join()
    assert stream.inlet.drained
    assert stream.written == starts[-1]
    assert stream.inlet.lost > 0


# --- latency ---


def test_an_inlet_knows_when_its_last_block_came():
    stream = Stream()
    before = time.monotonic()
    stream.write(ramp(0, 10))
    assert before <= stream.inlet.wrote_at <= time.monotonic()


def test_an_inlet_knows_when_the_block_it_waits_for_is_due(monkeypatch):
    clock, stream = Clock(monkeypatch), Stream()
    stream.inlet.want(1_000)
    stream.write(ramp(0, 320))  # of 20 ms each: the block in which sample 1000 is comes in 60 ms
    assert stream.inlet.due_in(0.02) == pytest.approx(0.06)
    stream.write(ramp(320, 640)).write(ramp(640, 960))
    assert stream.inlet.due_in(0.02) == pytest.approx(0.02)
    clock.now += 0.03
    assert stream.inlet.due_in(0.02) == pytest.approx(-0.01)  # late


def test_who_waits_for_more_is_not_woken_by_what_is_there():
    stream = Stream().write(ramp(0, 8_000))
    stream.inlet.want_more(0.25)
    assert not stream.inlet.wanted
    assert not stream.write(ramp(8_000, 11_999)).inlet.wanted
    assert stream.write(ramp(11_999, 12_000)).inlet.wanted


# --- the source is lost and opened again ---


class Clock:
    """Stands still until it is told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize("rate", [16_000, 48_000, 44_100])
@pytest.mark.parametrize("rate_after", [16_000, 48_000])
def test_what_comes_after_a_source_was_opened_again_is_as_much_later_as_it_was_silent(rate, rate_after, monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream(rate).write(tone(rate, 0, 1)).pump()
    stream.inlet.reopen(rate_after, 1)
    clock.now += 7.5
    stream.write(tone(rate_after, 8, 8.5))
    assert stream.inlet.wanted
    stream.end()
    assert stream.inlet.silences == [pytest.approx(7.0)]
    assert stream.whole_from == pytest.approx(8 * SAMPLE_RATE, abs=1)
    assert stream.written == pytest.approx(8.5 * SAMPLE_RATE, abs=2)
    edge = round(HALF_FILTER * SAMPLE_RATE)
    expected = tone(SAMPLE_RATE, 8, 8.5)[:, 0]
    heard = stream.samples()[: len(expected)]
    assert np.abs(heard - expected[: len(heard)])[edge:-edge].max() < 0.002
    assert stream.inlet.lost == 0 and stream.inlet.rate == rate_after


def test_what_came_before_it_was_lost_is_still_heard(monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream().write(ramp(0, 8_000)).pump().write(ramp(8_000, 16_000))
    stream.inlet.reopen(SAMPLE_RATE, 1)
    assert stream.pump().written == 16_000
    clock.now += 2.0
    stream.write(ramp(0, 16_000)).pump()
    assert stream.whole_from == 16_000 + SAMPLE_RATE
    assert np.array_equal(stream.samples(), ramp(0, 16_000)[:, 0])


def test_openings_that_brought_nothing_count_as_silence(monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream().write(ramp(0, 16_000)).pump()
    for _ in range(3):
        stream.inlet.reopen(48_000, 2)
        clock.now += 1.0
        stream.pump()
    stream.inlet.reopen(SAMPLE_RATE, 1)
    stream.write(ramp(0, 1_600)).pump()
    assert stream.inlet.silences == [pytest.approx(2.9)]
    assert stream.written == round(3.9 * SAMPLE_RATE) + 1_600


def test_a_day_of_silence_is_a_day_on_the_time_axis(monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream().write(ramp(0, 16_000)).pump()
    stream.inlet.reopen(SAMPLE_RATE, 1)
    clock.now += 86_400.0
    stream.write(ramp(0, 16_000)).pump()
    assert stream.whole_from == 86_400 * SAMPLE_RATE
    assert np.array_equal(stream.samples(), ramp(0, 16_000)[:, 0])


@pytest.mark.parametrize("came_s", [0.0, 0.25, 0.5])
def test_what_a_writer_wrote_at_once_began_before_it_was_written(came_s, monkeypatch):
    clock = Clock(monkeypatch)
    stream, begun = Stream(capacity=80 * SAMPLE_RATE), clock.now
    for _ in range(4):
        stream.inlet.reopen(SAMPLE_RATE, 1)
        clock.now += 2.0
        stream.inlet.is_back(came_s)
        stream.write(ramp(0, round(came_s * SAMPLE_RATE)))
        stream.pump()
        for _ in range(4):
            clock.now += 0.25
            stream.write(ramp(0, 4_000)).pump()
    assert stream.inlet.silences == [pytest.approx(2.0 - came_s)] * 4
    assert stream.written == pytest.approx((clock.now - begun) * SAMPLE_RATE, abs=4)


def test_what_began_at_a_known_time_did_however_much_is_written_before_anybody_looks(monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream().write(ramp(0, 16_000)).pump()
    stream.inlet.reopen(SAMPLE_RATE, 1)
    clock.now += 2.0
    stream.inlet.is_back(0.25)
    stream.write(ramp(0, 20_000)).pump()
    assert stream.inlet.silences == [pytest.approx(1.75)]


def test_silence_that_was_written_already_is_none_that_is_missing(monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream().write(ramp(0, 16_000)).write(np.zeros((16_000, 1), np.float32)).pump()
    stream.inlet.reopen(SAMPLE_RATE, 1, ahead_s=1.0)
    clock.now += 3.0
    stream.inlet.reopen(SAMPLE_RATE, 1)
    stream.write(ramp(0, 1_600)).pump()
    assert stream.inlet.silences == [pytest.approx(2.9)]
    assert stream.whole_from == 32_000 + round(1.9 * SAMPLE_RATE)


@pytest.mark.parametrize("looked", [True, False])
def test_an_overflow_soon_after_it_was_opened_again_parts_what_came_since(looked, monkeypatch):
    clock = Clock(monkeypatch)
    stream = Stream().write(ramp(0, 8_000)).pump().overflow().write(ramp(8_000, 16_000)).pump()
    stream.inlet.reopen(SAMPLE_RATE, 1)
    clock.now += 2.0
    stream.write(ramp(0, 1_600))
    if looked:
        stream.pump()
    stream.write(ramp(1_600, 3_200)).overflow().write(ramp(3_200, 4_800)).end()
    assert stream.inlet.overflows == 2
    assert not looked or stream.inlet.lost == 0
    assert np.array_equal(stream.samples(), ramp(3_200, 4_800)[:, 0])


def test_what_is_written_after_it_was_opened_again_takes_room_though_nobody_looked_yet():
    stream = Stream().write(ramp(0, 16_000)).pump()
    stream.inlet.reopen(48_000, 1)
    stream.write(tone(48_000, 0, 1))
    assert stream.inlet.room == SECONDS - 1.0


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 30_000), st.floats(0, 10), st.sampled_from([8_000, 16_000, 44_100])), max_size=6)
)
def test_the_clock_is_right_after_any_number_of_losses(losses):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        stream, begun = Stream(capacity=80 * SAMPLE_RATE), clock.now
        for frames, silence, rate in losses:
            clock.now += frames / stream.inlet.rate
            stream.write(ramp(0, frames)).pump()
            assert stream.written == pytest.approx((clock.now - begun) * SAMPLE_RATE, abs=HELD)
            stream.inlet.reopen(rate, 1)
            clock.now += silence + 1 / rate
            stream.write(ramp(0, 1)).pump()
        assert stream.written == pytest.approx((clock.now - begun) * SAMPLE_RATE, abs=HELD)


# --- a source that keeps time ---

RATES = [8_000, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("block_s", [0.02, 0.05, 0.1, 0.2])
def test_a_window_that_ends_with_a_block_is_complete_when_the_block_is_there(rate, block_s):
    frames = round(block_s * rate)
    stream = Stream(rate, hop=HOP, block_s=frames / rate)
    assert 0 <= stream.inlet.origin < HOP
    block, late = np.zeros((frames, 1), np.float32), held_back(rate, frames) // HOP  # an hop, at 8 kHz
    for blocks in range(1, round(20 / block_s)):
        stream.write(block).pump()
        complete = blocks * frames * SAMPLE_RATE // rate // HOP - late
        assert complete <= stream.written // HOP <= complete + 1


@pytest.mark.parametrize("rate", RATES)
def test_a_source_without_a_beat_begins_at_the_beginning(rate):
    stream = Stream(rate, hop=HOP)
    assert stream.inlet.origin == stream.written == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0.1, 10), st.sampled_from(RATES)), max_size=6))
def test_it_is_in_step_and_the_clock_is_right_however_often_it_was_lost(losses):
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        stream, begun = Stream(48_000, capacity=1000 * HOP, hop=HOP, block_s=HOP_S), clock.now
        for blocks, silence, rate in losses:
            stream.inlet.reopen(rate, 1)
            clock.now += silence
            for _ in range(blocks):
                before = stream.written // HOP
                clock.now += HOP_S
                stream.write(np.zeros((round(HOP_S * rate), 1), np.float32)).pump()
            assert blocks == 1 or stream.written // HOP == before + 1
            since = (clock.now - begun) * SAMPLE_RATE + stream.inlet.origin
            held = held_back(rate, round(HOP_S * rate))
            assert since - held - 2 <= stream.written <= since + HOP


def test_the_last_seconds_can_be_looked_at_as_they_came():
    stream = Stream(48_000, channels=2, channel=1).write(np.hstack([ramp(0, 96_000), -ramp(0, 96_000)]))
    assert np.array_equal(stream.inlet.last(0.5), -ramp(72_000, 96_000)[:, 0])
    assert Stream().write(ramp(0, 100)).inlet.last(0.5) is None
