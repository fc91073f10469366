"""Adaptive throttling by itself: numbers come in, time is given, chance is seeded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient import Outcome, Throttle
from lbclient.limits.throttle import Meter

ACCEPTED = {Outcome.SUCCESS, Outcome.ERROR, Outcome.BROKEN}
NEITHER = {Outcome.OURS, Outcome.LEFT}
OUTCOMES = st.sampled_from(list(Outcome))


def meter(rng: Callable[[], float] | None = None, **options: float) -> Meter:
    return Meter(Throttle(**options), rng or random.Random(1).random)


@pytest.mark.parametrize("outcome", Outcome)
def test_what_counts_as_what(outcome: Outcome) -> None:
    """As the table of `Outcome` has it."""
    one = meter()
    one.observe(outcome, 1.0)
    assert (one.requests, one.accepts) == (outcome not in NEITHER, outcome in ACCEPTED)
    column = next(line for line in (Outcome.__doc__ or "").splitlines() if f"| {outcome.name} |" in line)
    said = column.split("|")[-2].strip()
    assert said == ("ignored" if outcome in NEITHER else "accepted" if outcome in ACCEPTED else "refused")


@given(st.lists(st.tuples(OUTCOMES, st.floats(0, 5)), max_size=200), st.floats(1, 4))
def test_nothing_is_refused_while_enough_is_accepted(events: list[tuple[Outcome, float]], k: float) -> None:
    one = meter(lambda: 0.0, k=k, window=60.0)  # refuses whatever may be refused
    now = 0.0
    for outcome, pause in events:
        now += pause
        one.observe(outcome, now)
        before = one.requests
        if one.accepts >= one.requests / k:
            assert not one.refuses(now)
            assert one.requests <= before


@given(st.lists(st.tuples(OUTCOMES, st.floats(0, 30)), max_size=100))
def test_the_counts_are_those_of_the_window(events: list[tuple[Outcome, float]]) -> None:
    """To within the part of it by which it moves on."""
    window, now, seen = 60.0, 1000.0, []
    one = meter(window=window)
    for outcome, pause in events:
        now += pause
        one.observe(outcome, now)
        seen.append((now, outcome))
    one.refuses(now)
    counted = [(at, outcome) for at, outcome in seen if outcome not in NEITHER]
    least = sum(at > now - window + window / 60 for at, _ in counted)
    most = sum(at > now - window - 1e-6 for at, _ in counted)
    assert least <= one.requests - one.refused <= most
    accepted = [at for at, outcome in counted if outcome in ACCEPTED]
    assert sum(at > now - window + window / 60 for at in accepted) <= one.accepts
    assert one.accepts <= sum(at > now - window - 1e-6 for at in accepted)


def test_all_is_forgotten_after_a_long_pause() -> None:
    one = meter(lambda: 0.0)
    for _ in range(100):
        one.observe(Outcome.OVERLOAD, 5.0)
    assert one.requests == 100
    assert not one.refuses(1e9)
    assert (one.requests, one.accepts, one.probability) == (0, 0, 0.0)


def simulate(one: Meter, seconds: float, offered: int, capacity: int, now: float = 0.0) -> tuple[float, float]:
    """`offered` requests a second come, servers take `capacity`; how many a second were sent, and accepted."""
    sent = accepted = 0
    for second in range(int(seconds)):
        left = capacity
        for n in range(offered):
            at = now + second + n / offered
            if one.refuses(at):
                continue
            sent += 1
            taken = left > 0
            left -= taken
            accepted += taken
            one.observe(Outcome.SUCCESS if taken else Outcome.OVERLOAD, at)
    return sent / seconds, accepted / seconds


@pytest.mark.parametrize("k", [1.1, 2.0, 3.0])
@pytest.mark.parametrize(("offered", "capacity"), [(500, 20), (500, 50), (200, 2)])
def test_servers_get_k_times_what_they_accept(k: float, offered: int, capacity: int) -> None:
    one = meter(random.Random(7).random, k=k, window=30.0)
    simulate(one, 120, offered, capacity)
    sent, accepted = simulate(one, 60, offered, capacity, now=120)
    # One in each second goes through in any case.
    assert k * accepted * 0.85 <= sent <= k * accepted * 1.15 + 1
    # With k near 1 there is hardly a request to spare for a server that has room again.
    assert accepted >= (0.9 if k >= 2 else 0.75) * capacity


def test_servers_with_enough_room_get_everything() -> None:
    one = meter(random.Random(7).random)
    assert simulate(one, 60, 100, 60) == (100, 60)
    assert one.refused == 0


@pytest.mark.parametrize("offered", [10, 300])
def test_it_recovers_after_the_servers_do(offered: int) -> None:
    one = meter(random.Random(7).random, window=30.0)
    simulate(one, 60, offered, 0)
    assert one.probability > 0.99
    sent, _ = simulate(one, 30, offered, 0, now=60)
    assert sent <= 2.5, "servers that accept nothing get hardly anything"
    simulate(one, 120, offered, offered, now=90)
    assert simulate(one, 30, offered, offered, now=210) == (offered, offered)


def test_one_goes_through_each_second_however_much_was_refused() -> None:
    """With chance alone it would be one in a window."""
    one = meter(lambda: 0.0)
    for n in range(100_000):
        one.observe(Outcome.CONNECT, n / 1000)
    passed = [n for n in range(10_000) if not one.refuses(100 + n / 1000)]
    assert len(passed) == 10
    assert one.refused == 9990


def test_the_probability_is_always_below_one() -> None:
    one = meter(lambda: 0.999999999)
    for _ in range(10_000):
        one.observe(Outcome.FAULT, 0.0)
    one.refuses(0.0)
    assert 0.999 < one.probability < 1
    assert not one.refuses(0.1), "a draw near one passes"


def test_refusing_is_said_when_it_begins_and_not_again_while_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    one = Meter(Throttle(window=10.0), lambda: 0.0, "users")
    for start in (100.0, 200.0):
        for step in range(200):
            now = start + step / 10
            if not one.refuses(now):
                one.observe(Outcome.CONNECT, now)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert all(line.startswith("users: requests are refused here, ") for line in said)
