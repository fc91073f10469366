"""How many of the picks each node gets, by its weight: to the pick, or within the bounds of chance."""

from __future__ import annotations

import pytest
from contract_rig import Caller, busy, deviation, nodes
from contract_rows import Row, rows

every_policy = rows()


WEIGHTS = [[1.0] * 2, [1.0] * 3, [1.0] * 7, [1, 2], [1, 2, 3, 4], [0.2, 0.3, 0.5], [9.0, 1.0, 1.0], [0, 0, 0]]


@rows("exact")
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_a_round_gives_each_node_its_share_to_the_pick(row: Row, weights: list[float]) -> None:
    """At any time, not only from the start: three rounds, each of which begins where the last one ended."""
    shares = row.shares(weights)
    if not row.weighted:
        length = len(weights)
    else:
        length = round(sum(weights) * (10 if sum(weights) < 2 else 1)) or len(weights)
    caller, among = Caller(row), nodes(*weights)
    for _ in range(3):
        picked = caller.picks(among, length)
        assert [picked[node] for node in among] == pytest.approx([length * share for share in shares])


@rows(without=("exact", "correlated"))
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_idle_nodes_get_their_shares(row: Row, weights: list[float]) -> None:
    among, picks = nodes(*weights), 4000
    picked = Caller(row).picks(among, picks)
    for node, share in zip(among, row.shares(weights), strict=True):
        assert abs(picked[node] - picks * share) <= deviation(picks, share, row.grain)


@rows(without=("correlated",))
def test_a_hundred_nodes_get_their_shares(row: Row) -> None:
    weights = [float(1 + number % 3) for number in range(100)]
    among, picks = nodes(*weights), 10_000
    picked = Caller(row).picks(among, picks)
    for node, share in zip(among, row.shares(weights), strict=True):
        most = 1 if row.exact else deviation(picks, share, row.grain)
        assert abs(picked[node] - picks * share) <= most + 1e-6


@rows("weighted", without=("correlated",))
def test_another_tuple_with_other_weights_is_followed_at_once(row: Row) -> None:
    caller, among, picks = Caller(row), nodes(1, 1, 1, 1), 2000
    caller.picks(among, 30)
    for weights in ([1.0, 5.0, 1.0, 1.0], [4.0, 1.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0]):
        for node, weight in zip(among, weights, strict=True):
            node.weight = weight
        used = tuple(node for node in among if node.weight)
        caller.picks(used, row.lag)
        picked = caller.picks(used, picks)
        for node, share in zip(used, row.shares([node.weight for node in used]), strict=True):
            assert abs(picked[node] - picks * share) <= (1 if row.exact else deviation(picks, share, row.grain))


SCALES = [1e-300, 1e-6, 1.0, 1e6, 1e300, 0.5e308]


@rows(without=("correlated",))
@pytest.mark.parametrize("scale", SCALES)
def test_shares_do_not_depend_on_how_large_the_weights_are(row: Row, scale: float) -> None:
    """The largest weights add up to more than a float holds."""
    weights = [scale, 3 * scale, 2 * scale]
    among, picks = nodes(*weights), 3000
    picked = Caller(row).picks(among, picks)
    for node, share in zip(among, row.shares(weights), strict=True):
        most = 1 if row.exact else deviation(picks, share, row.grain)
        assert abs(picked[node] - picks * share) <= most


@every_policy
@pytest.mark.parametrize(
    "weights", [[1, 1e6], [1e-300, 1, 1e300], [5e-324, 1.7e308, 1.7e308], [5e-324] * 3], ids=str
)
def test_weights_that_are_far_apart_are_no_error(row: Row, weights: list[float]) -> None:
    caller, among = Caller(row), nodes(*weights)
    for in_flight in ([0] * len(weights), range(len(weights)), [100] * len(weights)):
        total = busy(among, in_flight)
        picked = {caller.pick(among, in_flight=total) for _ in range(300)}
        picked |= {caller.pick(among, (node,), total) for node in among}
        assert picked <= set(among)
    if row.weighted and weights[0] < weights[-1] and not row.correlated:
        busy(among, [0] * len(weights))
        most = deviation(300, row.shares(weights)[0], row.grain) if not row.exact else 1
        assert caller.picks(among, 300)[among[0]] <= most
