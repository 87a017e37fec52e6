"""Lags are counted to the millisecond, and the hop follows the load without swinging."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwsd.load import CALM_LOOKS, LONGEST_MS, LagMeter, Overload


@given(st.lists(st.floats(0, 5), min_size=1, max_size=200), st.sampled_from([50.0, 95.0, 99.0, 100.0]))
def test_a_percentile_is_the_lag_that_so_many_do_not_exceed(lags, percent):
    meter = LagMeter()
    for lag in lags:
        meter.note([lag])
    told = meter.percentile_ms(percent)
    within = np.mean(np.ceil(np.array(lags) * 1000) <= told) * 100
    assert within >= percent - 1e-9
    assert told == 0 or np.mean(np.ceil(np.array(lags) * 1000) <= told - 1) * 100 < percent
    assert meter.windows == len(lags)


def test_many_lags_at_once_count_as_each():
    meter = LagMeter()
    meter.note(np.array([0.001, 0.002, 0.002, 0.5]))
    assert (meter.windows, meter.percentile_ms(75), meter.percentile_ms(100)) == (4, 2, 500)


def test_of_nothing_there_is_no_percentile():
    assert LagMeter().percentile_ms(99) is None


@pytest.mark.parametrize(("lag", "told"), [(-0.01, 0), (1e6, LONGEST_MS)])
def test_lags_out_of_range_count_as_the_nearest(lag, told):
    meter = LagMeter()
    meter.note([lag])
    assert meter.percentile_ms(99) == told


def stretches(looks, hop_ms=100.0):
    overload = Overload(hop_ms)
    return [overload.look(share, lag) for share, lag in looks]


def test_busy_but_in_time_changes_nothing():
    assert stretches([(0.99, 150.0)] * 10) == [1] * 10


def test_late_for_want_of_time_stretches_the_hop_step_by_step_and_no_further():
    assert stretches([(0.99, 900.0)] * 4) == [2, 4, 4, 4]


def test_late_without_being_busy_is_no_overload():
    """Somebody else took the processor, or a satellite sent a burst."""
    assert stretches([(0.3, 900.0)] * 10) == [1] * 10


def test_what_is_late_is_measured_in_hops():
    assert stretches([(0.99, 300.0), (0.99, 300.0)]) == [2, 2]


def test_after_calm_seconds_the_hop_is_shortened_step_by_step():
    calm = [(0.2, 50.0)] * CALM_LOOKS
    assert stretches([(0.99, 900.0)] * 2 + calm * 2) == [2, 4] + [4] * (CALM_LOOKS - 1) + [2] * CALM_LOOKS + [1]


def test_calm_must_last():
    nearly = [(0.2, 50.0)] * (CALM_LOOKS - 1) + [(0.6, 50.0)]
    assert stretches([(0.99, 900.0)] + nearly * 4)[1:] == [2] * 4 * CALM_LOOKS


def test_where_no_audio_comes_the_hop_is_shortened_again():
    assert stretches([(0.99, 900.0)] + [(0.0, None)] * CALM_LOOKS)[-1] == 1
