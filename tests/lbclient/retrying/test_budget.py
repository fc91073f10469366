"""The budget of retries and hedges: what it allows in any of its windows, and what it costs to keep."""

from __future__ import annotations

import time
import timeit
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient import Budget
from lbclient.retrying import Ledger

# Moments in steps of an eighth of a second: gaps of nothing, of parts of a slot, and of more than a window.
STEPS = st.lists(
    st.tuples(st.one_of(st.integers(0, 3), st.integers(0, 200)), st.integers(0, 8), st.integers(0, 40)),
    max_size=60,
)
BUDGETS = st.builds(
    Budget,
    share=st.sampled_from([0, 0.1, 0.2, 0.29, 1, 2.5]),
    per_second=st.sampled_from([0, 0.1, 1, 2.5]),
    window=st.sampled_from([0.5, 1, 7.3, 10]),
)


@given(BUDGETS, STEPS, st.sampled_from([0, 17.06, 123456.789]))
def test_in_no_window_are_there_more_than_the_budget_allows(budget: Budget, steps: Any, start: float) -> None:
    ledger = Ledger(budget)
    requests: list[float] = []
    allowed: list[float] = []
    now = start
    for gap, arrived, wanted in steps:
        now += gap / 8
        for _ in range(arrived):
            ledger.deposit(now)
            requests.append(now)
        for _ in range(wanted):
            if ledger.withdraw(now):
                allowed.append(now)
                since = now - budget.window
                within = sum(moment > since for moment in requests)
                most = budget.share * within + budget.per_second * budget.window
                assert sum(moment > since for moment in allowed) <= most + 1e-6
    counts = ledger.as_dict()
    wanted = sum(step[2] for step in steps)
    assert counts["requests"] == len(requests)
    assert (counts["withdrawn"], counts["refused"]) == (len(allowed), wanted - len(allowed))


@given(BUDGETS, STEPS)
def test_what_was_not_used_for_a_little_more_than_a_window_is_there_again(budget: Budget, steps: Any) -> None:
    ledger = Ledger(budget)
    now = 1000.0
    for gap, arrived, wanted in steps:
        now += gap / 8
        for _ in range(arrived):
            ledger.deposit(now)
        for _ in range(wanted):
            ledger.withdraw(now)
    now += budget.window * 1.1 + 1e-3
    reserve = int(budget.per_second * budget.window + 1e-6)
    assert [ledger.withdraw(now) for _ in range(reserve + 1)] == [True] * reserve + [False]


@pytest.mark.parametrize("now", [0.0, 0.5, 3.7e6])
def test_the_whole_reserve_is_there_at_the_start(now: float) -> None:
    ledger = Ledger(Budget())
    assert sum(ledger.withdraw(now) for _ in range(150)) == 100


def test_requests_earn_retries_at_once_and_for_most_of_a_window() -> None:
    ledger = Ledger(Budget(per_second=0))
    assert not ledger.withdraw(100.0)
    for _ in range(50):
        ledger.deposit(100.0)
    assert sum(ledger.withdraw(108.9) for _ in range(20)) == 10
    assert not ledger.withdraw(110.0)


def test_retries_weigh_until_their_window_is_over() -> None:
    ledger = Ledger(Budget(share=0, per_second=1))
    assert sum(ledger.withdraw(100.95) for _ in range(20)) == 10
    assert not ledger.withdraw(110.9)
    assert sum(ledger.withdraw(111.0) for _ in range(20)) == 10


def test_a_budget_of_nothing_allows_nothing() -> None:
    ledger = Ledger(Budget(share=0, per_second=0))
    for _ in range(100):
        ledger.deposit(5.0)
    assert not ledger.withdraw(5.0)
    assert ledger.as_dict() == {"requests": 100, "retries": 0, "withdrawn": 0, "refused": 1}


def test_a_request_costs_next_to_nothing_whatever_the_window_holds() -> None:
    ledger = Ledger(Budget())
    for number in range(10_000):
        ledger.deposit(1000 + number / 1000)
    # Time of the processor: what others do on the machine does not count.
    clock = time.thread_time
    empty = min(timeit.repeat("pass", timer=clock, number=20_000, repeat=5))
    took = min(timeit.repeat(lambda: ledger.deposit(1010.0), timer=clock, number=20_000, repeat=5)) - empty
    # It is about 0.08 µs; the bound is for slow machines.
    assert took / 20_000 < 1e-6


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("share", -0.1, "share must be 0 or more, not -0.1"),
        ("share", float("inf"), "share must be finite, not inf"),
        ("per_second", float("nan"), "per_second must be 0 or more, not nan"),
        ("per_second", True, "per_second must be 0 or more, not True"),
        ("window", 0, "window must be above 0, not 0"),
        ("window", "10", "window must be above 0, not '10'"),
    ],
)
def test_a_wrong_budget_is_refused(option: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Budget(**{option: value})


def test_a_budget_that_is_used_up_is_said_once_in_a_window(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(Budget(share=0, per_second=0.1, window=10), "users")
    for step in range(50):
        ledger.withdraw(100.0 + step / 2)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["users: the retry budget is used up: 1 retries and hedges"] * 3
