"""Loads: what a node learns, Peak EWMA against its closed form, and servers that fail, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pick_rig import nodes

from discovery import Static
from lbclient import LeastRequest, PowerOfTwo, in_flight, least_request, peak_ewma
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node
from lbclient.outcome import Outcome
from lbclient.policies import Load, Policy

T0 = 1000.0
LOADS = [in_flight, least_request, peak_ewma]


def one(weight: float = 1) -> Node:
    return nodes(weight)[0]


def test_idle_nodes_are_equal_whatever_their_weights() -> None:
    """Weights decide how often a node is drawn; in an idle node's load they would count twice."""
    light, heavy = nodes(1, 9)
    for load in LOADS:
        assert load(light, T0) == load(heavy, T0)


def test_requests_under_way_count_by_weight() -> None:
    node = one(4)
    node.in_flight = 6
    node.learn(0.2, T0, failed=False)
    assert in_flight(node, T0) == 7
    assert least_request(node, T0) == 1 + 6 / 4
    assert peak_ewma(node, T0) == pytest.approx(0.2 * (1 + 6 / 4))


@given(st.lists(st.tuples(st.floats(0.001, 5), st.floats(0.001, 20)), min_size=1, max_size=30), st.floats(0, 60))
def test_peak_ewma_is_what_finagle_says(answers: list[tuple[float, float]], later: float) -> None:
    """As Linkerd's: c := x if x > c, else x(1 - w) + c w, for w = exp(-dt / 10 s); reads decay by w as well."""
    node, now, cost = one(), T0, 0.0
    for gap, took in answers:
        now += gap
        kept = exp(-gap / 10)
        cost = took if took > cost else took * (1 - kept) + cost * kept
        node.learn(took, now, failed=False)
    assert peak_ewma(node, now) == pytest.approx(cost)
    assert peak_ewma(node, now + later) == pytest.approx(cost * exp(-later / 10))


def test_a_peak_is_forgotten_in_the_closed_form() -> None:
    """After a peak p, answers of x at any pace leave x + (p - x) exp(-t / 10 s) after t seconds."""
    for pace in (0.1, 1.0, 4.0):
        node = one()
        node.learn(0.01, T0 - 1, failed=False)
        node.learn(3.0, T0, failed=False)
        assert node.latency == 3.0, "a slower answer counts at once"
        for step in range(1, int(20 / pace) + 1):
            node.learn(0.01, T0 + step * pace, failed=False)
        assert node.latency == pytest.approx(0.01 + 2.99 * exp(-2))


def test_a_slow_node_is_asked_again_after_a_while() -> None:
    """Its cost decays while nothing is heard: from ten times that of others to less than theirs in 23 s."""
    slow, fast = nodes(1, 1)
    slow.learn(1.0, T0, failed=False)
    for later, first in ((22, fast), (24, slow)):
        fast.learn(0.1, T0 + later, failed=False)
        assert LeastRequest(load=peak_ewma).pick((slow, fast), Call(now=T0 + later)) is first


@pytest.mark.parametrize(
    "policy", [LeastRequest(load=peak_ewma), PowerOfTwo(load=peak_ewma, rng=random.Random(1))]
)
def test_a_cold_node_gets_one_request_and_no_other_until_it_has_answered(policy: Policy) -> None:
    """No data is not the best of data (Finagle's penalty)."""
    cold, warm = nodes(1, 1)
    warm.learn(5.0, T0, failed=False)
    warm.in_flight = 100
    for picked in [cold] + [warm] * 20:
        assert policy.pick((cold, warm), Call(now=T0)) is picked
        picked.in_flight += 1


def test_failures_leave_the_latency_as_it_is() -> None:
    node = one()
    node.learn(0.3, T0, failed=False)
    node.learn(0.001, T0 + 1, failed=True)
    assert (node.latency, node.learned_at, node.failed_at) == (0.3, T0, T0 + 1)


def test_where_outcomes_are_rare_the_newest_counts_for_half() -> None:
    node, seen = one(), []
    for step, failed in enumerate((True, True, False, True, False, False)):
        node.learn(0.01, T0 + 5 * step, failed=failed)
        seen.append(node.failing)
    assert seen == pytest.approx([0.5, 0.75, 0.375, 0.6875, 0.34375, 0.171875])


@pytest.mark.parametrize("pace", [0.001, 0.01, 0.1])
def test_where_outcomes_are_frequent_they_are_averaged_over_a_second(pace: float) -> None:
    """After t seconds of failures only, at any pace, the share is 1 - exp(-t / 1 s).

    The first answer after them is one after a long gap and halves it, others let it fall at the same pace.
    """
    node = one()
    node.learn(0.01, T0, failed=False)
    for step in range(1, int(2 / pace) + 1):
        node.learn(0.01, T0 + step * pace, failed=True)
    assert node.failing == pytest.approx(1 - exp(-2), rel=1e-6)
    for step in range(1, int(1 / pace) + 1):
        node.learn(0.01, T0 + 2 + step * pace, failed=False)
    halved = (1 - exp(-2)) / 2
    assert node.failing == pytest.approx(halved * exp(pace - 1), rel=1e-6)


def test_a_failure_that_comes_sooner_than_answers_counts_for_one_of_those_under_way() -> None:
    """Of ten requests of which one fails at once and nine take their time, the failure is known first."""
    for took, under_way, failing in ((0.1, 0, 0.5), (0.1, 1, 0.5), (0.1, 10, 0.05), (1.1, 10, 0.5)):
        node = one()
        node.learn(1.0, T0, failed=False)
        node.in_flight = under_way
        node.learn(took, T0 + 5, failed=True)
        assert node.failing == pytest.approx(failing)


def test_failures_at_one_moment_are_not_lost() -> None:
    node = one()
    node.learn(0.2, T0, failed=False)
    node.learn(0.2, T0, failed=True)
    assert node.failing > 0


def test_a_node_that_works_again_forgets_its_failures_for_good() -> None:
    node = one()
    node.learn(0.01, T0, failed=True)
    for step in range(1, 12):
        node.learn(0.01, T0 + step, failed=False)
    assert node.failing == 0


@pytest.mark.parametrize("load", LOADS)
def test_the_pause_after_a_failure_grows_with_the_square_of_the_share_of_failures(load: Load) -> None:
    good, bad = nodes(1, 1)
    good.learn(0.01, T0, failed=False)
    bad.learn(0.01, T0, failed=False)
    good.in_flight = 1000
    for failing, pause in ((0.01, 0.0025), (0.1, 0.25), (0.5, 6.25), (1.0, 25.0)):
        bad.failing, bad.failed_at = failing, T0
        assert load(bad, T0 + pause - 0.001) > load(good, T0 + pause - 0.001)
        assert load(bad, T0 + pause + 0.001) < load(good, T0 + pause + 0.001)


@pytest.mark.parametrize("load", LOADS)
def test_after_the_pause_a_node_is_tried_with_one_request(load: Load) -> None:
    good, bad = nodes(1, 1)
    good.learn(0.01, T0, failed=False)
    bad.learn(0.01, T0, failed=False)
    bad.failing, bad.failed_at, bad.in_flight, good.in_flight = 0.9, T0 - 40, 1, 50
    assert load(bad, T0) > load(good, T0)
    assert load(bad, T0 + 11) < load(good, T0 + 11), "what is under way may be a websocket that stays for days"


@pytest.mark.parametrize("load", LOADS)
def test_where_all_fail_the_one_that_fails_least_is_best(load: Load) -> None:
    bad, worse = nodes(1, 1)
    for node, failing in ((bad, 0.6), (worse, 0.9)):
        node.learn(0.01, T0 - 1, failed=False)
        node.failing, node.failed_at = failing, T0
    assert load(bad, T0 + 1) < load(worse, T0 + 1)


POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    f"{kind.__name__}({load.__name__})": lambda rng, kind=kind, load=load: kind(load=load, rng=rng)  # type: ignore[misc]
    for kind in (PowerOfTwo, LeastRequest)
    for load in LOADS
}


def run(  # noqa: D417
    name: str, rate: float, seconds: float, fails: Callable[[float], bool], *, busy: float = 0.1, seed: int = 1
) -> list[tuple[float, int]]:
    """When which of ten nodes was picked by a client that sends `rate` requests a second.

    Args:
        fails: whether the first node fails a request at once that comes after so many seconds.
        busy: how many requests are under way on average.
    """
    rng = random.Random(seed)
    policy, among, call = POLICIES[name](rng), nodes(*[1] * 10), Call()
    place = {node: number for number, node in enumerate(among)}
    under_way: list[tuple[float, int, float, bool]] = []
    found = []
    now = 0.0
    while (now := now + rng.expovariate(rate)) < seconds:
        while under_way and under_way[0][0] <= now:
            at, number, took, failed = heappop(under_way)
            among[number].in_flight -= 1
            among[number].learn(took, T0 + at, failed=failed)
        call.now = T0 + now
        node = policy.pick(among, call)
        node.in_flight += 1
        failed = node is among[0] and fails(now)
        took = 0.001 if failed else busy / rate * rng.uniform(0.7, 1.3)
        heappush(under_way, (now + took, place[node], took, failed))
        found.append((now, place[node]))
    return found


def share(found: list[tuple[float, int]], begin: float = 0, end: float = 1e9) -> float:
    """The share of the first node in the picks of that time."""
    picked = [number for at, number in found if begin <= at < end]
    return picked.count(0) / len(picked)


CLIENTS = [(name, *client) for name in POLICIES for client in ((10, 0.1), (10, 5), (100, 0.1), (100, 20))]
CLIENTS += [(name, 1000, 50) for name in POLICIES if "PowerOfTwo" in name]


@pytest.mark.parametrize(("name", "rate", "busy"), CLIENTS)
def test_a_server_that_fails_fast_gets_a_trickle_only(name: str, rate: float, busy: float) -> None:
    """Under 1 % of the picks in the first minute, but some in its second half: or it could never recover."""
    found = run(name, rate, 60, lambda _: True, busy=busy)
    assert share(found) < 0.01
    assert any(number == 0 for at, number in found if at > 30)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("rate", [10, 100])
def test_a_server_that_works_again_has_its_share_within_half_a_minute(name: str, rate: float) -> None:
    found = run(name, rate, 100, lambda at: 10 < at < 40)
    assert share(found, 10, 40) < 0.025
    assert share(found, 66, 100) == pytest.approx(0.1, abs=0.045)


@pytest.mark.parametrize("name", POLICIES)
def test_a_pause_does_not_lead_to_a_longer_one(name: str) -> None:
    """After a pause a busy client sends many requests at once, and those that fail are heard of first."""
    rng = random.Random(7)
    found = run(name, 2000, 12, lambda _: rng.random() < 0.05, busy=100)
    assert share(found, 8, 12) > 0.06


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("rate", [10, 300])
def test_one_failure_in_a_hundred_costs_a_server_little_of_its_share(name: str, rate: float) -> None:
    rng = random.Random(7)
    found = run(name, rate, 6000 / rate + 60, lambda _: rng.random() < 0.01)
    assert 0.07 < share(found) < 0.13


class Balanced:
    """A balancer with the default policy, in virtual time."""

    def __init__(self, count: int) -> None:
        self.now = T0
        rng = random.Random(1)
        self.balancer = Balancer("users", lambda: PowerOfTwo(load=peak_ewma, rng=rng))
        self.balancer.update(Static([f"10.0.0.{n}:80" for n in range(count)]).endpoints, self.now)
        self.nodes = list(self.balancer.nodes.values())

    def begin(self) -> Attempt:
        node = self.balancer.pick(Call(now=self.now))
        assert node is not None
        return Attempt(node, "", lambda: None, self.now)

    def end(self, attempt: Attempt, outcome: Outcome = Outcome.SUCCESS) -> None:
        attempt.sent_at = attempt.started_at
        attempt.land()
        self.balancer.observe(attempt, outcome, self.now)


@pytest.mark.parametrize("pace", [0.02, 0.2])
def test_a_silent_node_is_tried_now_and_then_only(pace: float) -> None:
    """Its latency fades while nothing is heard, but the answer that is waited for takes at least that long."""
    world = Balanced(3)
    silent = world.nodes[0]
    hanging: list[Attempt] = []
    for _ in range(int(140 / pace)):
        attempt = world.begin()
        world.now += 0.015
        if attempt.node is silent and world.now > T0 + 5:
            hanging.append(attempt)
        else:
            world.end(attempt)
        world.now += pace - 0.015
    began = [attempt.started_at - hanging[0].started_at for attempt in hanging]
    assert 5 <= len(began) <= 10
    assert all(at >= trial for at, trial in zip(began, [0, 1, 2, 4, 8, 16, 32, 64, 96, 128], strict=False))


def test_a_request_that_takes_long_keeps_others_away_for_a_second_at_most() -> None:
    """Then another one is tried, and its answer says that the node works."""
    world = Balanced(1)
    node = world.nodes[0]
    for _ in range(10):
        quick = world.begin()
        world.now += 0.02
        world.end(quick)
    world.begin()
    world.now += 0.9
    assert peak_ewma(node, world.now) == pytest.approx(2 * 0.9)
    world.now += 0.1
    assert peak_ewma(node, world.now) < 2 * 0.02
    tried = world.begin()
    assert peak_ewma(node, world.now) == pytest.approx(3 * 1.0)
    world.now += 0.02
    world.end(tried)
    world.now += 60
    assert peak_ewma(node, world.now) < 2 * 0.02


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.OURS])
def test_what_ended_by_itself_is_no_silence(outcome: Outcome) -> None:
    world = Balanced(1)
    given_up, ended = world.begin(), world.begin()
    world.end(given_up, Outcome.OURS)
    assert world.nodes[0].unanswered == 2
    world.end(ended, outcome)
    assert world.nodes[0].unanswered == 0
