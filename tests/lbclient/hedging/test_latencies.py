from __future__ import annotations

import math
import random

import pytest

from lbclient.hedging.latencies import Latencies


def recorded(percentile: float, *latencies: float) -> Latencies:
    known = Latencies(percentile)
    for seconds in latencies:
        known.record(seconds)
    return known


def test_nothing_is_said_before_a_hundred_are_known() -> None:
    known = recorded(0.95, *[1.0] * 99)
    assert known.value is None
    known.record(1.0)
    assert known.value == 1.0


@pytest.mark.parametrize("percentile", [0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
def test_it_is_the_nearest_rank(percentile: float) -> None:
    latencies = [float(n) for n in range(1, 101)]
    random.Random(1).shuffle(latencies)
    assert recorded(percentile, *latencies).value == max(1, math.ceil(percentile * 100))


def test_only_the_last_thousand_count() -> None:
    assert recorded(0.5, *[9.0] * 5000, *[1.0] * 1000).value == 1.0


def test_it_is_made_anew_with_every_hundredth() -> None:
    known = recorded(0.0, *[5.0] * 100, *[1.0] * 99)
    assert known.value == 5.0
    known.record(1.0)
    assert known.value == 1.0


def test_what_was_given_up_above_the_percentile_counts_and_below_it_tells_nothing() -> None:
    known = recorded(0.95, *[1.0] * 100)
    for _ in range(200):
        known.record_at_least(0.5)
    assert known.value == 1.0
    # A tenth of all was given up after three seconds: the 95th percentile is at least that.
    for _ in range(30):
        known.record_at_least(3.0)
    for _ in range(170):
        known.record(1.0)
    assert known.value == 3.0


def test_what_was_given_up_before_anything_is_known_tells_nothing() -> None:
    known = Latencies(0.95)
    for _ in range(500):
        known.record_at_least(3.0)
    assert known.value is None


def test_the_percentile_stays_where_it_is_though_all_above_it_is_cut_short() -> None:
    """The losers of races: their latency is known to be above the delay, and no more."""
    rng = random.Random(2)
    known = recorded(0.95, *(rng.random() for _ in range(100)))
    for _ in range(20_000):
        seconds = rng.random()
        delay = known.value
        assert delay is not None
        if seconds <= delay:
            known.record(seconds)
        else:
            known.record_at_least(delay + 0.001)
    assert known.value == pytest.approx(0.95, abs=0.04)


def test_the_delay_follows_when_all_answers_get_slow() -> None:
    known = recorded(0.95, *[0.01] * 1000)
    for _ in range(100):
        known.record(1.0)
    assert known.value == 1.0
