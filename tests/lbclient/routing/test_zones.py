"""Zone-aware routing by Envoy's formulas, with numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery import Endpoint
from lbclient import Routing
from lbclient.node import Node
from lbclient.routing.zones import shares_of_zones


def nodes(**zones: int | list[float]) -> list[Node]:
    """So many nodes in each zone, or some with these weights."""
    found = []
    for net, (zone, weights) in enumerate(zones.items()):
        for number, weight in enumerate([1.0] * weights if isinstance(weights, int) else weights):
            endpoint = Endpoint(host=f"10.0.{net}.{number}", port=80, zone=zone.strip("_"), weight=weight)
            found.append(Node(endpoint))
    return found


def split(of: list[Node], zone: str = "a", **options: Any) -> list[tuple[str, int, float]]:
    portions = Routing(zone=zone, **options).split(of)
    return [(portion.name, len(portion.nodes), round(portion.share, 6)) for portion in portions]


def test_all_stays_in_the_own_zone_if_it_has_its_part_of_the_capacity() -> None:
    assert split(nodes(a=3, b=3)) == [("zone a", 3, 1), ("other zones", 3, 0)]
    assert split(nodes(a=4, b=2)) == [("zone a", 4, 1), ("other zones", 2, 0)]
    assert split(nodes(a=2, b=2, c=2)) == [("zone a", 2, 1), ("other zones", 4, 0)]


def test_what_it_lacks_goes_elsewhere() -> None:
    """A quarter of the capacity for half of the clients: one request in two stays."""
    assert split(nodes(a=2, b=6)) == [("zone a", 2, 0.5), ("zone b", 6, 0.5)]


def test_the_rest_goes_to_where_something_is_left() -> None:
    """Capacities of 10, 20, 30 and 40 % with a quarter of the clients each: c and d have 5 and 15 % left."""
    found = split(nodes(a=1, b=2, c=3, d=4))
    assert found == [("zone a", 1, 0.4), ("zone c", 3, 0.15), ("zone d", 4, 0.45), ("other zones", 2, 0)]


def test_the_share_of_the_clients_may_be_given() -> None:
    assert split(nodes(a=2, b=6), zone_share=0.25) == [("zone a", 2, 1), ("other zones", 6, 0)]
    assert split(nodes(a=2, b=6), zone_share=1) == [("zone a", 2, 0.25), ("zone b", 6, 0.75)]


def test_capacity_is_weight() -> None:
    found = split(nodes(a=[1.0, 1.0, 1.0], b=[3.0, 3.0, 3.0]))
    assert found == [("zone a", 3, 0.5), ("zone b", 3, 0.5)]


@pytest.mark.parametrize("unit", [5e-324, 5e-320, 1e-300, 1.7e308])
def test_shares_do_not_depend_on_how_large_the_weights_are(unit: float) -> None:
    found = split(nodes(a=[unit] * 2, b=[unit] * 6))
    assert found == [("zone a", 2, pytest.approx(0.5, rel=0.01)), ("zone b", 6, pytest.approx(0.5, rel=0.01))]


def test_ejected_nodes_are_no_capacity() -> None:
    of = nodes(a=4, b=4)
    for node in of[:2]:
        node.mark(healthy=False)
    assert split(of) == [("zone a", 2, 0.666667), ("zone b", 4, 0.333333)]


def test_a_zone_without_usable_nodes_still_has_clients() -> None:
    """With b out there are still three zones: a third of the clients, and three of seven usable nodes."""
    of = nodes(a=3, b=3, c=4)
    for node in of[3:6]:
        node.mark(healthy=False)
    assert split(of) == [("zone a", 3, 1), ("other zones", 4, 0)]


def test_without_a_node_in_the_own_zone_all_are_equal() -> None:
    assert split(nodes(b=4, c=4)) == [("", 8, 1)]
    assert split(nodes(A=4, _a_=4, b=4), zone="a ") == [("", 12, 1)], "names are compared exactly"


def test_with_few_nodes_no_zone_is_preferred() -> None:
    """Envoy's `min_cluster_size` is 6."""
    assert split(nodes(a=2, b=3)) == [("", 5, 1)]
    assert split(nodes(a=2, b=3), min_zone_nodes=5) == [("zone a", 2, 0.8), ("zone b", 3, 0.2)]
    of = nodes(a=3, b=3)
    of[0].mark(healthy=False)
    assert split(of) == [("", 5, 1)]


def test_a_single_zone_needs_no_name() -> None:
    assert split(nodes(a=8)) == [("", 8, 1)]


def test_nodes_of_unknown_zone_are_a_zone() -> None:
    found = Routing(zone="a").split([*nodes(a=2), *(Node(Endpoint(host=f"h{n}", port=80)) for n in range(6))])
    assert [(portion.name, portion.share) for portion in found] == [("zone a", 0.5), ("no zone", 0.5)]


@given(
    st.dictionaries(st.sampled_from("abcde"), st.floats(0.01, 100), min_size=1),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
def test_shares_are_parts_of_one(capacities: dict[str, float], clients: float, more: int) -> None:
    own = min(capacities)
    found = shares_of_zones(own, capacities, clients, len(capacities) + more)
    assert found.keys() == capacities.keys()
    assert sum(found.values()) == pytest.approx(1)
    assert all(share >= 0 for share in found.values())
    assert found[own] > 0


def test_if_all_clients_do_so_each_zone_gets_what_it_can_take() -> None:
    """What the formula is for: with even clients in each zone, load by capacity stays even at all servers."""
    for weights in ([1, 2, 3, 4], [1, 1, 1, 7], [5, 5, 1, 1], [3, 3, 3, 3]):
        capacities = {zone: float(weight) for zone, weight in zip("abcd", weights, strict=True)}
        loads = dict.fromkeys(capacities, 0.0)
        for own in capacities:
            for zone, share in shares_of_zones(own, capacities, 0.25, 4).items():
                loads[zone] += share * 0.25
        for zone, capacity in capacities.items():
            assert loads[zone] == pytest.approx(capacity / sum(weights))
