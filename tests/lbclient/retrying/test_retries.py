"""Which attempts one request may have after the first, and when: all of it without a socket."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient import Budget, Outcome, Retry
from lbclient.retrying import Ledger, Retries

SECOND = Retry(attempts=10, backoff=1, backoff_cap=1)


@dataclass
class Nodes:
    """As many as there are, of which the last connection to some did not fail."""

    names: str = "abc"
    fresh: str = "abc"

    def exhausted(self, tried: tuple[Any, ...]) -> bool:
        return set(self.names) <= set(tried)

    def has_fresh(self, tried: tuple[Any, ...]) -> bool:
        return bool(set(self.fresh) - set(tried))


class Most(random.Random):
    """Always the longest pause."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


@dataclass
class Case:
    said: str
    outcome: Outcome
    pause: float | None
    refusal: str = ""
    tried: str = "a"
    charged: int = 1
    nodes: Nodes = field(default_factory=Nodes)
    retry: Retry = SECOND
    deadline: float | None = None
    options: dict[str, Any] = field(default_factory=dict)


EMPTY = Retry(attempts=10, backoff=1, backoff_cap=1, budget=Budget(share=0, per_second=0))
USED_UP = "the retry budget is used up"
TOO_NEAR = "the deadline is too near"
TOO_LONG = "Retry-After asks for more than 5 s"
ALL = "abc"

CASES = [
    Case("a fault goes elsewhere after the backoff", Outcome.FAULT, 1.0),
    Case("all were tried: the same pause, and from the beginning", Outcome.FAULT, 1.0, tried=ALL),
    Case("a fault costs", Outcome.FAULT, None, USED_UP, retry=EMPTY, charged=0),
    Case("an answer costs", Outcome.GATEWAY, None, USED_UP, retry=EMPTY, charged=0),
    Case("no connection, another node is there: at once and for nothing", Outcome.CONNECT, 0.0, charged=0),
    Case("that works without a budget", Outcome.CONNECT, 0.0, retry=EMPTY, charged=0),
    Case("no connection, and none to the others either", Outcome.CONNECT, 1.0, nodes=Nodes(fresh="a")),
    Case("that costs", Outcome.CONNECT, None, USED_UP, retry=EMPTY, nodes=Nodes(fresh=""), charged=0),
    Case("no connection, all tried", Outcome.CONNECT, 1.0, tried=ALL),
    Case("called so, but it was sent", Outcome.CONNECT, 1.0, options={"sent": True}),
    Case("it had left: at once and for nothing", Outcome.LEFT, 0.0, charged=0),
    Case("even without a budget", Outcome.LEFT, 0.0, retry=EMPTY, tried=ALL, charged=0),
    Case("it had left, and so has the deadline", Outcome.LEFT, None, TOO_NEAR, deadline=99.0, charged=0),
    Case("no attempts left", Outcome.FAULT, None, retry=Retry(attempts=1), charged=0),
    Case("not even free ones", Outcome.CONNECT, None, retry=Retry(attempts=1), charged=0),
    Case("the pause ends before the deadline", Outcome.FAULT, 1.0, deadline=101.1),
    Case("it ends with it", Outcome.FAULT, None, TOO_NEAR, deadline=101.0, charged=0),
    Case("no pause, but no time either", Outcome.CONNECT, None, TOO_NEAR, deadline=100.0, charged=0),
    Case("Retry-After of one is not for the others", Outcome.OVERLOAD, 1.0, options={"asked": 3}),
    Case("and is then never too long", Outcome.OVERLOAD, 1.0, options={"asked": 1e9}),
    Case("it is where there are no others", Outcome.OVERLOAD, 4.0, options={"asked": 3}, tried=ALL),
    Case("or for all", Outcome.OVERLOAD, 4.0, options={"asked": 3, "everywhere": True}),
    Case("as long as is allowed", Outcome.OVERLOAD, 6.0, options={"asked": 5, "everywhere": True}),
    Case("longer", Outcome.OVERLOAD, None, TOO_LONG, options={"asked": 6, "everywhere": True}, charged=0),
    Case("ever", Outcome.OVERLOAD, None, TOO_LONG, options={"asked": float("inf")}, tried=ALL, charged=0),
    Case("after the deadline", Outcome.OVERLOAD, None, TOO_NEAR, "abc", 0, deadline=104.0, options={"asked": 3}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.said)
def test_each_end_of_an_attempt_has_its_own_pause_and_price(case: Case) -> None:
    ledger = Ledger(case.retry.budget)
    retries = Retries(case.retry, ledger, case.nodes, Most(), case.deadline)
    options = {"sent": case.outcome not in (Outcome.CONNECT, Outcome.LEFT), **case.options}
    assert retries.after(case.outcome, tuple(case.tried), 100.0, **options) == case.pause
    assert ledger.withdrawn == case.charged
    assert retries.refusal == case.refusal


@given(
    st.lists(st.sampled_from([Outcome.FAULT, Outcome.CONNECT, Outcome.LEFT, Outcome.GATEWAY]), max_size=20),
    st.integers(1, 5),
    st.sampled_from(["", "a", "abc"]),
)
def test_there_are_never_more_attempts_than_allowed_without_those_at_nodes_that_left(
    outcomes: list[Outcome], attempts: int, fresh: str
) -> None:
    retry = Retry(attempts=attempts)
    retries = Retries(retry, Ledger(retry.budget), Nodes(fresh=fresh), random.Random(1), None)
    made = 1
    for outcome in outcomes:
        if retries.after(outcome, ("b",), 100.0, sent=outcome is not Outcome.CONNECT) is None:
            break
        made += outcome is not Outcome.LEFT
    assert made <= attempts


def test_the_pauses_grow_up_to_the_cap() -> None:
    retry = Retry(attempts=9, backoff=0.1, backoff_cap=0.5)
    retries = Retries(retry, Ledger(retry.budget), Nodes(), Most(), None)
    pauses = [retries.after(Outcome.FAULT, ("a",), 100.0, sent=True) for _ in range(5)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


def test_the_pauses_are_drawn_from_all_of_the_time() -> None:
    """Full jitter: those who failed at one moment do not come back at one moment."""
    retry, rng = Retry(backoff=0.1, backoff_cap=1), random.Random(7)
    drawn = sorted(retry.pause(2, rng) for _ in range(1000))
    assert 0 <= drawn[0] < 0.002
    assert 0.198 < drawn[-1] <= 0.2
    assert abs(drawn[500] - 0.1) < 0.02
    assert retry.pause(10_000, rng) <= 1


def test_a_server_that_cannot_say_who_it_is_is_a_reason_to_ask_one_other() -> None:
    retries = Retries(Retry(), Ledger(Budget()), Nodes(), random.Random(1), None)
    assert retries.after_untrusted(("a",))
    assert not retries.after_untrusted(("a", "b"))
    alone = Retries(Retry(), Ledger(Budget()), Nodes("a"), random.Random(1), None)
    assert not alone.after_untrusted(("a",))
