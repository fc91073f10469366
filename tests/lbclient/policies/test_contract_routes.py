"""What the balancer promises where nodes are chosen among in several portions, whatever the policy."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from contract_rig import Client, deviation, endpoints
from contract_rows import ROWS, Row, rows

from lbclient import Routing, SlowStart
from lbclient.node import Node
from lbclient.routing import Portion

every_policy = rows()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts(Routing):
    """Odd and even numbers apart, with these shares."""

    shares: tuple[float, float]

    def split(self, nodes: Collection[Node]) -> tuple[Portion, ...]:
        """By the number in the name."""
        usable = Routing.split(self, nodes)[0].nodes
        parts = [tuple(n for n in usable if int(n.endpoint.host[1:]) % 2 == odd) for odd in (1, 0)]
        return tuple(
            Portion(name, part, share)
            for name, part, share in zip(("odd", "even"), parts, self.shares, strict=True)
            if part
        )


def odd(node: Node | None) -> bool:
    return node is not None and int(node.endpoint.host[1:]) % 2 == 1


@rows(without=("correlated",))
def test_routes_get_their_shares_and_each_has_a_policy_of_its_own(row: Row) -> None:
    client, picks = Client(row, endpoints([1] * 6), routing=Parts(shares=(0.8, 0.2))), 3000
    assert len({id(route.policy) for route in client.balancer.routes}) == 2
    picked = client.picks(picks)
    assert abs(sum(picked[node] for node in client.nodes if odd(node)) - 0.8 * picks) <= deviation(picks, 0.8)
    for node in client.nodes:
        share = (0.8 if odd(node) else 0.2) / 3
        assert abs(picked[node] - picks * share) <= deviation(picks, share, row.grain)


@every_policy
def test_a_key_stays_on_its_route_at_every_client(row: Row) -> None:
    clients = [Client(row, endpoints([1] * 6), seed, routing=Parts(shares=(0.5, 0.5))) for seed in range(5)]
    on_odd = 0
    for number in range(40):
        routes = set()
        for client in clients:
            client.key = f"user-{number}"
            routes |= {odd(client.pick()) for _ in range(2)}
        assert len(routes) == 1
        on_odd += routes.pop()
    assert 5 <= on_odd <= 35


@every_policy
def test_a_route_without_a_share_helps_out_when_all_others_were_tried_or_are_full(row: Row) -> None:
    client = Client(row, endpoints([1] * 4), routing=Parts(shares=(1.0, 0.0)), limit_per_node=1)
    one, two, three, four = client.nodes
    assert set(client.picks(60)) <= {one, three}
    assert set(client.picks(9, one)) == {three}
    assert set(client.picks(20, one, three)) <= {two, four}
    client.begin(one)
    assert set(client.picks(9, three)) <= {two, four}
    client.begin(three)
    assert set(client.picks(9)) <= {two, four}
    assert set(client.picks(9, two)) == {four}
    client.begin(two)
    client.begin(four)
    assert client.pick() is None
    assert client.pick(one) is None


@every_policy
def test_a_route_keeps_its_policy_while_its_nodes_come_and_go(row: Row) -> None:
    client = Client(row, endpoints([1] * 4), routing=Parts(shares=(0.5, 0.5)))
    before = {route.name: route.policy for route in client.balancer.routes}
    client.update(endpoints([1, 0, 1, 0]))
    assert [route.name for route in client.balancer.routes] == ["odd"]
    client.update(endpoints([1] * 8))
    assert {route.name: route.policy for route in client.balancer.routes} == before


def test_the_same_nodes_are_the_same_tuple_so_that_tables_are_kept() -> None:
    """Ejections, updates and probes of one route are nothing to the policy of another one."""
    client = Client(ROWS[0], endpoints([1] * 6), routing=Parts(shares=(0.5, 0.5)))
    odds, evens = (route.nodes for route in client.balancer.routes)
    client.update(endpoints([1] * 6))
    assert client.balancer.routes[0].nodes is odds
    client.eject(client.node(2))
    assert client.balancer.routes[0].nodes is odds
    assert client.balancer.routes[1].nodes is not evens
    client.update(endpoints([1, 1, 2, 1, 1, 1]))
    assert client.balancer.routes[0].nodes is not odds, "tables made by weight are made anew"


def test_the_same_seed_gives_the_same_picks_also_where_the_balancer_draws() -> None:
    options = {"routing": Parts(shares=(0.5, 0.5)), "slow_start": SlowStart(window=10)}
    first, second = (Client(ROWS[1], endpoints([1] * 3), 4, **options) for _ in range(2))
    for client in (first, second):
        client.update(endpoints([1] * 6))
    rng = random.Random(1)
    for _ in range(60):
        step = rng.random()
        picked = set()
        for client in (first, second):
            client.now += step
            node = client.pick()
            picked.add(node and node.address)
        assert len(picked) == 1
