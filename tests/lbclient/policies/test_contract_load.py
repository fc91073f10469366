"""What policies that look at loads promise over time: to avoid who fails, forgive, and not flood who is new."""

from __future__ import annotations

import pytest
from contract_rig import Client, Traffic, endpoints
from contract_rows import ROWS, Row, rows

from lbclient.node import Node
from lbclient.outcome import Outcome

TAKES = 0.05


def test_traffic_arrives_at_its_rate_and_is_under_way_for_as_long_as_it_takes() -> None:
    """What follows stands on this: 100 a second that take 0.05 s are 5 at a time (Little's law)."""
    client = Client(ROWS[0], endpoints([1] * 10))
    under_way = [
        sum(node.in_flight for node in client.nodes)
        for _ in Traffic(client, 100, lambda _: (Outcome.SUCCESS, TAKES)).run(100)
    ]
    assert len(under_way) == pytest.approx(10_000, rel=0.05)
    assert sum(under_way) / len(under_way) == pytest.approx(1 + 100 * TAKES, rel=0.1)
    assert sum(node.in_flight for node in client.nodes) <= 30


class Fleet:
    """Ten servers, the first of which fails at once until it is mended."""

    def __init__(self, row: Row, rate: float) -> None:
        self.client = Client(row, endpoints([1] * 10))
        self.first = self.client.node(1)
        self.mended = False
        self.traffic = Traffic(self.client, rate, self.serve)

    def serve(self, node: Node) -> tuple[Outcome, float]:
        if node is self.first and not self.mended:
            return Outcome.ERROR, 0.001
        return Outcome.SUCCESS, TAKES

    def share(self, seconds: float) -> float:
        requests = self.traffic.requests(seconds)
        return requests[self.first] / requests.total()


@rows("looks_at_load", without=("needs_key",))
@pytest.mark.parametrize("rate", [50, 200])
def test_a_node_that_fails_at_once_gets_less_than_one_percent(row: Row, rate: float) -> None:
    """It is always idle and always fast. How it is found out counts as well."""
    fleet = Fleet(row, rate)
    assert fleet.share(60) < 0.01


@rows("looks_at_load", without=("needs_key",))
@pytest.mark.parametrize("rate", [5, 100])
def test_a_node_that_works_again_has_its_share_within_a_minute(row: Row, rate: float) -> None:
    """Also where requests are so few that all nodes are idle: there is always one that never failed."""
    fleet = Fleet(row, rate)
    fleet.share(60)
    fleet.mended = True
    fleet.share(60)
    assert fleet.share(30) > 0.05


@rows("looks_at_latency")
def test_a_node_that_was_slow_is_tried_again(row: Row) -> None:
    """The latency decays while nothing is heard; else it would starve for ever."""
    fleet = Fleet(row, 50)
    fleet.mended = True
    fleet.share(20)
    fleet.first.learn(5.0, fleet.client.now, failed=False)
    assert fleet.share(10) < 0.01
    fleet.share(110)
    assert fleet.share(30) > 0.05


@rows("looks_at_latency")
def test_one_fast_answer_does_not_make_up_for_a_slow_one(row: Row) -> None:
    """Nor does a failure, however fast it comes."""
    client = Client(row, endpoints([1] * 3))
    slow = client.node(1)
    for node in client.nodes:
        client.see(node, Outcome.SUCCESS, elapsed=0.05)
    for outcome, elapsed in ((Outcome.SUCCESS, 1.0), (Outcome.SUCCESS, 0.001), (Outcome.ERROR, 0.001)):
        client.see(slow, outcome, elapsed=elapsed)
    assert slow.latency == pytest.approx(1.0)
    assert not client.picks(200)[slow]


@rows("looks_at_latency")
@pytest.mark.parametrize("weight", [1, 5])
def test_a_new_node_has_one_request_at_a_time_until_its_first_answer(row: Row, weight: float) -> None:
    """No data is not the best: its first answer may take long, and all clients would be waiting for it."""
    client = Client(row, endpoints([1] * 9))
    takes = {"s10:80": 4.0}
    traffic = Traffic(client, 100, lambda node: (Outcome.SUCCESS, takes.get(node.address, TAKES)))
    traffic.requests(20)
    client.update([*endpoints([1] * 9), *endpoints([weight], first=10)])
    new, most = client.node(10), 0
    for _ in traffic.run(10):
        if new.latency is None:
            most = max(most, new.in_flight)
    assert most == 1
    assert new.latency == pytest.approx(4.0)


@rows("looks_at_latency")
def test_a_new_node_that_only_fails_is_no_better_than_one_without_an_answer(row: Row) -> None:
    client = Client(row, endpoints([1] * 9))
    fails = {"s10:80": (Outcome.FAULT, 0.001)}
    traffic = Traffic(client, 100, lambda node: fails.get(node.address, (Outcome.SUCCESS, TAKES)))
    traffic.requests(20)
    client.update(endpoints([1] * 10))
    requests = traffic.requests(30)
    assert requests[client.node(10)] < 0.01 * requests.total()
