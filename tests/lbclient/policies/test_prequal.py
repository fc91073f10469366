"""Prequal's rules, in virtual time: the paper's (NSDI 2024), and those for what the paper leaves open."""

from __future__ import annotations

import copy
import logging
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from discovery import Endpoint
from lbclient import Prequal, SlowStart
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.node import Node

QUIET: dict[str, Any] = {"probes": 0, "remove": 0}


def nodes(*weights: float) -> tuple[Node, ...]:
    return tuple(
        Node(Endpoint(host=f"10.0.{n // 250}.{n % 250}", port=80, weight=w)) for n, w in enumerate(weights, 1)
    )


def prequal(**options: Any) -> Prequal:
    return Prequal(**{"rng": random.Random(7)} | options)


def tell(policy: Prequal, among: tuple[Node, ...], *answers: tuple[float, float], now: float = 0.0) -> None:
    """One answer of each node: requests in flight, milliseconds."""
    for node, (rif, latency) in zip(among, answers, strict=True):
        policy.learn(node, rif, latency / 1000, now)


def pooled(policy: Prequal) -> list[Node]:
    return [probe.node for probe in policy._pool.probes]


def wishes(policy: Prequal) -> list[Node]:
    asked: list[Node] = []
    policy.probe = asked.append
    return asked


def test_of_those_with_usual_load_the_fastest_is_picked() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among, (1, 20), (1, 10), (0, 30))
    assert policy.pick(among, Call()) is among[1]


def test_one_with_more_load_than_most_is_not_picked_however_fast_it_is() -> None:
    policy, among = prequal(**QUIET), nodes(*[1] * 7)
    tell(policy, among, *[(1, 20)] * 5, (1, 15), (2, 1))
    assert policy.pick(among, Call()) is among[5]


def test_load_at_the_quantile_itself_is_usual() -> None:
    policy, among = prequal(q_rif=0.5, **QUIET), nodes(1, 1, 1, 1)
    tell(policy, among, (1, 20), (2, 5), (3, 1), (4, 1))
    assert policy.pick(among, Call()) is among[1]


def test_the_quantile_is_that_of_the_last_answers_only() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    for _ in range(200):
        policy.learn(among[0], 50, 0.01, 0.0)
    for _ in range(128):
        policy.learn(among[0], 1, 0.01, 0.0)
    policy.learn(among[1], 2, 0.001, 0.0)
    assert policy.pick(among, Call()) is among[0]


def test_the_quantile_is_that_of_128_answers() -> None:
    """64 of each kind are left of these: with one answer more the median would be 9."""
    policy, among = prequal(q_rif=0.5, **QUIET), nodes(1)
    for load in [9] * 65 + [1] * 64:
        policy.learn(among[0], load, 0.01, 0.0)
    assert policy._pool.limit == 1


def test_if_all_have_much_load_the_least_loaded_is_picked() -> None:
    policy, among = prequal(q_rif=0, **QUIET), nodes(1, 1, 1)
    tell(policy, among, (3, 1), (2, 90), (4, 1))
    assert policy.pick(among, Call()) is among[1]


def test_with_a_quantile_of_one_only_latency_counts() -> None:
    policy, among = prequal(q_rif=1, **QUIET), nodes(*[1] * 8)
    tell(policy, among, *[(0, 20)] * 7, (99, 10))
    assert policy.pick(among, Call()) is among[7]


def test_a_request_sent_to_a_node_counts_as_load_before_the_node_says_so() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among, (0, 10), (0, 11), (0, 12))
    assert [policy.pick(among, Call()) for _ in range(3)] == list(among)


def test_a_request_sent_for_another_reason_counts_as_well() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    among[1].in_flight = 9
    policy.learn(among[0], 0, 0.01, 0.0)
    assert policy.pick(among, Call()) is among[0]  # one answer is no choice: it was `PowerOfTwo`'s
    policy.learn(among[1], 0, 0.02, 0.0)
    assert policy.pick(among, Call()) is among[1]


def test_with_less_than_two_answers_the_node_with_less_under_way_is_picked() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    among[0].in_flight = 5
    assert {policy.pick(among, Call()) for _ in range(20)} == {among[1]}
    policy.learn(among[0], 0, 0.001, 0.0)
    assert policy.pick(among, Call()) is among[1]


def test_an_answer_is_believed_for_a_second_and_no_longer() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among[:1], (0, 1), now=9.9)
    tell(policy, among[1:], (0, 50), (0, 60), now=10.0)
    assert policy.pick(among, Call(now=10.9)) is among[0]
    assert policy.pick(among, Call(now=10.91)) is among[1]
    assert pooled(policy) == list(among[1:])


def test_a_new_answer_of_a_node_replaces_its_old_one() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    tell(policy, among, (0, 10), (0, 20))
    tell(policy, among[:1], (0, 30))
    assert pooled(policy) == [among[1], among[0]]
    assert policy.pick(among, Call()) is among[1]


def test_a_full_pool_forgets_the_oldest_answer() -> None:
    policy, among = prequal(pool=3, **QUIET), nodes(1, 1, 1, 1)
    tell(policy, among, *[(0, 10)] * 4)
    assert pooled(policy) == list(among[1:])


def test_the_oldest_and_the_worst_are_removed_in_turn() -> None:
    policy, among = prequal(probes=0, remove=1, q_rif=1), nodes(*[1] * 7)
    tell(policy, among, (0, 50), (0, 40), (0, 60), (0, 1), (0, 90), (0, 2), (0, 3))
    policy.pick(among, Call())
    assert pooled(policy) == list(among[1:])
    policy.pick(among, Call())  # the second use of the fourth ends it; the fifth is the slowest
    assert pooled(policy) == [among[1], among[2], among[5], among[6]]
    policy.pick(among, Call())
    assert pooled(policy) == [among[2], among[5], among[6]]


def test_the_worst_is_the_most_loaded_if_one_has_much_load_and_the_slowest_if_none_has() -> None:
    for rif, worst in ((9, 6), (1, 2)):
        policy, among = prequal(probes=0, remove=1), nodes(*[1] * 7)
        policy._oldest_next = False
        tell(policy, among, (1, 10), (1, 20), (1, 99), (1, 20), (1, 20), (1, 20), (rif, 1))
        policy.pick(among, Call())
        assert among[worst] not in pooled(policy)
        assert len(pooled(policy)) == 6


def test_a_fractional_number_is_removed_on_average() -> None:
    policy, among = prequal(probes=0, remove=0.25, pool=500), nodes(*[1] * 500)
    tell(policy, among, *[(0, 10)] * 500)
    for _ in range(400):
        policy.pick(among, Call())
        for probe in policy._pool.probes:
            probe.uses = 2
    assert len(pooled(policy)) == pytest.approx(400, abs=25)


def uses(policy: Prequal, size: int) -> float:
    """How often an answer is used on average."""
    among = nodes(*[1] * size)
    policy.pick(among, Call())
    seen = []
    for _ in range(3000):
        policy.learn(among[0], 0, 0.01, 0.0)
        seen.append(policy._pool.probes[-1].uses)
    return sum(seen) / len(seen)


@pytest.mark.parametrize(("size", "expected"), [(1000, 1.025), (100, 1.316), (60, 1.667)])
def test_answers_are_used_as_often_as_the_papers_equation_says(size: int, expected: float) -> None:
    """(1 + 1) / ((1 - 16 / n) * 3 - 1), rounded at random."""
    assert uses(prequal(), size) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("size", [2, 3, 16, 24, 30])
def test_answers_are_used_twice_where_the_equation_says_more_or_nothing(size: int) -> None:
    assert uses(prequal(), size) == 2


def test_answers_are_used_once_where_probes_abound() -> None:
    assert uses(prequal(probes=9), 100) == 1


def test_an_answer_is_used_up() -> None:
    policy, among = prequal(q_rif=1, **QUIET), nodes(1, 1, 1)
    tell(policy, among, (0, 1), (0, 2), (0, 3))
    assert [policy.pick(among, Call()) for _ in range(2)] == [among[0]] * 2
    assert pooled(policy) == list(among[1:])


def test_different_nodes_are_asked_for_each_request() -> None:
    policy, among = prequal(), nodes(*[1] * 20)
    asked = wishes(policy)
    for _ in range(300):
        policy.pick(among, Call())
        assert len(asked) == len(set(asked)) == 3
        asked.clear()


def test_all_nodes_are_asked_if_they_are_few() -> None:
    policy, among = prequal(), nodes(1, 1, 1)
    asked = wishes(policy)
    policy.pick(among, Call())
    assert set(asked) == set(among)


def test_of_few_nodes_another_one_is_asked_first_each_time() -> None:
    """Else equal answers would send the requests of all clients to the same node."""
    policy, among = prequal(), nodes(1, 1, 1)
    asked = wishes(policy)
    for _ in range(300):
        policy.pick(among, Call())
    assert all(60 < count < 140 for count in Counter(asked[::3]).values())
    assert len(set(asked[::3])) == 3


def test_a_fractional_number_of_nodes_is_asked_on_average() -> None:
    policy, among = prequal(probes=0.4), nodes(*[1] * 20)
    asked = wishes(policy)
    for _ in range(5000):
        policy.pick(among, Call())
    assert len(asked) == pytest.approx(2000, abs=150)


def test_nodes_are_asked_by_weight() -> None:
    policy, among = prequal(probes=1), nodes(1, 1, 8, 0)
    asked = wishes(policy)
    for _ in range(5000):
        policy.pick(among, Call())
    count = Counter(asked)
    assert [count[node] / 5000 for node in among] == pytest.approx([0.1, 0.1, 0.8, 0.0], abs=0.03)


def test_a_single_node_is_never_asked() -> None:
    policy, among = prequal(), nodes(1)
    asked = wishes(policy)
    assert policy.pick(among, Call()) is among[0]
    assert asked == []


def test_load_counts_by_weight() -> None:
    policy, among = prequal(q_rif=0, **QUIET), nodes(1, 4)
    tell(policy, among, (2, 10), (4, 10))
    assert [policy.pick(among, Call()) for _ in range(2)] == [among[1], among[1]]


@pytest.mark.parametrize("weight", [0, 1, 2.5])
def test_equal_weights_are_no_weights(weight: float) -> None:
    policy, among = prequal(q_rif=0, **QUIET), nodes(weight, weight, weight)
    tell(policy, among, (2, 10), (1, 10), (3, 10))
    assert [policy.pick(among, Call()) for _ in range(2)] == [among[1], among[0]]


def test_the_same_seed_gives_the_same_picks_and_wishes() -> None:
    among = nodes(1, 2, 3, 4, 5, 6)

    def run() -> tuple[list[Node], list[Node]]:
        policy = prequal(probes=1.5, remove=0.5)
        asked = wishes(policy)
        picked = []
        for turn in range(200):
            picked.append(policy.pick(among, Call(now=turn / 100)))
            for node in asked[-2:]:
                policy.learn(node, turn % 5, 0.01, turn / 100)
        return picked, asked

    assert run() == run()


def test_an_excluded_node_is_not_picked_and_its_answer_stays() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among, (0, 1), (0, 20), (0, 30))
    call = Call()
    call.excluded = (among[0],)
    assert policy.pick(among, call) is among[1]
    call.excluded = (among[0], among[1])
    assert policy.pick(among, call) is among[2]
    assert policy.pick(among, Call()) is among[0]


def test_answers_of_nodes_that_left_are_forgotten_and_late_ones_ignored() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among, (0, 1), (0, 20), (0, 30))
    rest = among[1:]
    assert policy.pick(rest, Call()) is among[1]
    policy.learn(among[0], 0, 0.001, 0.0)
    policy.missed(among[0], 0.0)
    assert policy.pick(rest, Call()) is not among[0]
    assert among[0] not in pooled(policy)


def test_answers_survive_a_change_of_weight() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among, (0, 30), (0, 1), (0, 30))
    among[0].describe_as(Endpoint(host="10.0.0.1", port=80, weight=5))
    assert policy.pick((*among,), Call()) is among[1]


def fail(node: Node, times: int, now: float = 0.0) -> None:
    for _ in range(times):
        node.learn(0.001, now, failed=True)


def test_a_server_that_fails_fast_does_not_win_by_saying_that_it_is_idle() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    fail(among[0], 2)
    tell(policy, among, (0, 0), (5, 100), (9, 200))
    assert policy.pick(among, Call()) is among[1]
    assert policy.pick(among, Call()) is not among[0]


def test_a_server_that_failed_is_tried_again_after_a_while() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    fail(among[0], 1)
    tell(policy, among, (0, 1), (0, 20), now=6.0)
    assert policy.pick(among, Call(now=6.0)) is among[1]
    tell(policy, among, (0, 1), (0, 20), now=7.0)
    assert policy.pick(among, Call(now=7.0)) is among[0]


def test_a_server_that_fails_now_and_then_is_not_avoided() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    for number in range(100):
        among[0].learn(0.001, number * 0.05, failed=number % 50 == 9)
    tell(policy, among, (0, 1), (0, 20), now=5.0)
    assert policy.pick(among, Call(now=5.0)) is among[0]


def test_a_server_that_only_fails_gets_under_one_percent() -> None:
    policy, among = prequal(), nodes(*[1] * 10)
    asked = wishes(policy)
    sink = among[3]
    picked: Counter[Node] = Counter()
    for turn in range(20_000):
        now = turn / 100
        node = policy.pick(among, Call(now=now))
        picked[node] += 1
        node.learn(0.001 if node is sink else 0.02, now, failed=node is sink)
        for asking in asked:
            policy.learn(asking, 0 if asking is sink else 1, 0.0001 if asking is sink else 0.02, now)
        asked.clear()
    assert 0 < picked[sink] / 20_000 < 0.01


def test_a_node_without_reports_is_asked_less_and_less() -> None:
    policy, among = prequal(), nodes(1, 1)
    asked = wishes(policy)
    times = []
    for tenth in range(4000):
        now = tenth / 10
        policy.pick(among, Call(now=now))
        for node in asked:
            if node is among[0]:
                policy.missed(node, now)
                times.append(now)
        asked.clear()
    assert times == pytest.approx([0, 0.1, 0.2, 10.2, 30.2, 70.2, 150.2, 310.2], abs=0.15)


def test_the_longest_pause_is_five_minutes() -> None:
    policy, among = prequal(), nodes(1, 1)
    for _ in range(5000):
        policy.missed(among[0], 0.0)
    asked = wishes(policy)
    policy.pick(among, Call(now=299.9))
    assert among[0] not in asked
    policy.pick(among, Call(now=300.0))
    assert among[0] in asked


def test_one_report_ends_the_pause_and_the_count() -> None:
    policy, among = prequal(), nodes(1, 1)
    asked = wishes(policy)
    for _ in range(3):
        policy.missed(among[0], 0.0)
    policy.learn(among[0], 0, 0.01, 1.0)
    policy.missed(among[0], 1.0)
    policy.pick(among, Call(now=1.0))
    assert among[0] in asked


def test_nodes_without_reports_get_their_share() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 3, 1)
    policy.pick(among, Call())
    for node in among[2:]:
        for _ in range(3):
            policy.missed(node, 0.0)
    picked: Counter[Node] = Counter()
    for _ in range(6000):
        tell(policy, among[:2], (0, 10), (0, 10))
        picked[policy.pick(among, Call())] += 1
    assert [picked[node] / 6000 for node in among[2:]] == pytest.approx([0.5, 0.167], abs=0.03)


def test_a_node_without_reports_is_not_picked_if_it_is_excluded() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    policy.pick(among, Call())
    for _ in range(3):
        policy.missed(among[2], 0.0)
    call = Call()
    call.excluded = (among[2],)
    for _ in range(50):
        tell(policy, among[:2], (0, 10), (0, 10))
        assert policy.pick(among, call) is not among[2]


def test_a_busy_node_without_reports_does_not_get_its_share() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    policy.pick(among, Call())
    for _ in range(3):
        policy.missed(among[2], 0.0)
    among[2].in_flight = 4
    for _ in range(100):
        tell(policy, among[:2], (0, 10), (0, 10))
        assert policy.pick(among, Call()) is not among[2]


def test_a_server_that_does_not_know_its_latency_counts_as_a_usual_one() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1, 1)
    tell(policy, among[:2], (0, 10), (0, 30))
    policy.learn(among[2], 0, None, 0.0)
    assert [policy.pick(among, Call()) for _ in range(3)] == [among[0], among[2], among[1]]


def answer(report: str | None, status: int = 200) -> Any:
    headers = CIMultiDict({} if report is None else {"Endpoint-Load-Metrics": report})
    return SimpleNamespace(status=status, headers=headers)


def test_reports_in_ordinary_answers_are_used() -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    policy.answered(among[0], answer("TEXT named_metrics.rif=0,named_metrics.latency=0.9"), Call(now=5.0))
    policy.answered(among[1], answer('JSON {"named_metrics": {"rif": 0, "latency": 0.1}}'), Call(now=5.0))
    assert policy.pick(among, Call(now=5.5)) is among[1]
    policy.pick(among, Call(now=6.1))
    assert pooled(policy) == []


@pytest.mark.parametrize(
    ("report", "status"),
    [(None, 200), ("TEXT named_metrics.rif=0", 500), ("TEXT cpu_utilization=0.5", 200), ("nonsense", 200)],
)
def test_answers_that_failed_or_have_no_report_of_load_say_nothing(report: str | None, status: int) -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    policy.answered(among[0], answer(report, status), Call())
    assert pooled(policy) == []


def test_nonsense_is_counted_and_logged_once_for_each_node(caplog: pytest.LogCaptureFixture) -> None:
    policy, among = prequal(**QUIET), nodes(1, 1)
    for node in (among[0], among[0], among[1]):
        assert not policy.read(node, "TEXT named_metrics.rif=-1", 0.0)
    assert policy.unreadable == 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "10.0.0.1:80" in caplog.text
    assert "10.0.0.2:80" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"probes": -1},
        {"probes": float("nan")},
        {"pool": 1},
        {"max_age": -0.1},
        {"q_rif": 1.1},
        {"remove": True},
        {"timeout": "1"},
        {"timeout": 0},  # none at all for aiohttp
        {"timeout": float("inf")},
        {"probes": float("inf")},
        {"probes": 10**400},
        {"pool": 2.5},
        {"max_age": 0},
    ],
)
def test_wrong_numbers_are_refused_with_the_name_of_the_option(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be") as caught:
        Prequal(**options)
    assert repr(next(iter(options.values()))) in str(caught.value)


@pytest.mark.parametrize("path", ["load", "", None, 3, "/a b", "/a\r\nb", "/a\tb", "//elsewhere/load"])
def test_a_path_begins_with_one_slash_and_has_no_blanks(path: Any) -> None:
    with pytest.raises(ValueError, match="path must begin with one slash") as caught:
        Prequal(path=path)
    assert repr(path) in str(caught.value)


def test_a_source_of_randomness_is_one() -> None:
    with pytest.raises(TypeError, match="rng must be of type Random, not 42"):
        Prequal(rng=42)  # type: ignore[arg-type]


@pytest.mark.parametrize("limit", [0, 1])
def test_nodes_are_asked_once_for_a_request_however_often_one_is_refused(limit: int) -> None:
    """Twenty of thirty nodes are new, and some are full; both make the balancer ask the policy again."""
    asked: list[Node] = []

    def new_policy() -> Prequal:
        policy = prequal()
        policy.probe = asked.append
        return policy

    rng = random.Random(3)
    balancer = Balancer("s", new_policy, slow_start=SlowStart(), limit_per_node=limit, rng=rng)
    endpoints = [Endpoint(host=f"10.1.0.{n}", port=80) for n in range(30)]
    balancer.update(endpoints[:10], 0.0)
    balancer.update(endpoints, 1.0)
    for node in list(balancer.nodes.values())[:8]:
        node.in_flight = 1
    for number in range(200):
        assert balancer.pick(Call(now=1.0 + number / 1000)) is not None
    assert len(asked) == 600


def test_nodes_are_asked_again_for_each_attempt_and_after_waiting() -> None:
    policy, among = prequal(), nodes(*[1] * 20)
    asked, call = wishes(policy), Call(now=1.0)
    policy.pick(among, call)
    call.tried = call.excluded = among[:1]
    policy.pick(among, call)
    assert len(asked) == 6
    call.now = 2.0
    policy.pick(among, call)
    assert len(asked) == 9


def test_one_removal_is_made_for_an_attempt_and_an_answer_that_was_refused_is_given_back() -> None:
    policy, among = prequal(probes=0, remove=1, q_rif=1), nodes(*[1] * 6)
    tell(policy, among, (0, 90), (0, 80), (0, 1), (0, 2), (0, 3), (0, 4))
    policy._pool.probes[2].uses = 1
    call = Call()
    for number in (2, 3, 4):
        call.excluded = among[2:number]
        assert policy.pick(among, call) is among[number]
    assert set(pooled(policy)) == set(among[1:])
    assert {probe.node: (probe.uses, probe.load) for probe in policy._pool.probes} == {
        among[1]: (2, 0),
        among[2]: (1, 0),
        among[3]: (2, 0),
        among[4]: (1, 1),
        among[5]: (2, 0),
    }


def test_an_answer_that_is_given_back_gives_way_to_a_newer_one() -> None:
    policy, among = prequal(q_rif=1, **QUIET), nodes(1, 1, 1)
    tell(policy, among, (0, 1), (0, 2), (0, 3))
    policy._pool.probes[0].uses = 1
    call = Call()
    assert policy.pick(among, call) is among[0]
    tell(policy, among[:1], (0, 5))
    call.excluded = among[:1]
    policy.pick(among, call)
    assert Counter(pooled(policy)) == Counter(among)


def test_a_copy_of_one_in_use_begins_anew_with_the_same_options() -> None:
    class Own(Prequal):
        def __init__(self, note: list[str]) -> None:
            super().__init__(probes=1, pool=5, max_age=2, q_rif=0.5, remove=0.5, path="/load", timeout=3)
            self.note = note

    policy, among = Own(["a"]), nodes(*[1] * 20)
    policy.probe = iter([]).__next__  # type: ignore[assignment] - nothing that can be copied
    policy._nodes, policy._members = among, frozenset(among)
    tell(policy, among[:2], (0, 1), (0, 2))
    twin = copy.deepcopy(policy)
    assert twin.probe is None
    assert pooled(twin) == []
    assert (twin.path, twin.timeout, twin._probes, twin._remove) == ("/load", 3, 1, 0.5)
    assert (twin._pool._size, twin._pool._max_age, twin._pool._quantile) == (5, 2, 0.5)
    assert isinstance(twin, Own)
    assert twin.note == ["a"]
    assert twin.note is not policy.note
    assert len(pooled(policy)) == 2
