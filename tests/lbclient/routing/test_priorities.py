"""Loads of priorities, and panic: Envoy's tables, checked against Envoy's formulas.

The formulas are those of "Priority levels" and "Panic threshold" in Envoy's documents (architecture overview,
upstream clusters, load balancing); the tables are the ones printed there.
"""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbclient.routing.priorities import loads

FACTOR = 1.4


def shares(*healthy: int, threshold: float = 0.0, total: int = 100) -> list[float]:
    """Percent of the requests that each priority gets, of whose nodes so many percent are healthy."""
    counts = [(each * total // 100, total) for each in healthy]
    return [100 * each.share for each in loads(counts, overprovisioning=FACTOR, panic_threshold=threshold)]


def panics(*healthy: int, threshold: float = 0.5) -> list[bool]:
    counts = [(each, 100) for each in healthy]
    return [each.panic for each in loads(counts, overprovisioning=FACTOR, panic_threshold=threshold)]


def by_formula(*healthy: int) -> list[Fraction]:
    """Envoy's pseudocode, in exact numbers."""
    healths = [min(100, 14 * each // 10) for each in healthy]
    whole = min(100, sum(healths))
    found: list[Fraction] = []
    for health in healths:
        found.append(min(100 - sum(found, Fraction(0)), Fraction(100 * health, whole)))
    return found


TABLE = [
    # Priority levels, two of them, P1 healthy
    ((100, 100), (100, 0)),
    ((72, 100), (100, 0)),
    ((71, 100), (99, 1)),
    ((50, 100), (70, 30)),
    ((25, 100), (35, 65)),
    ((0, 100), (0, 100)),
    # Priority levels, two of them
    ((72, 72), (100, 0)),
    ((71, 71), (99, 1)),
    ((50, 50), (70, 30)),
    ((25, 25), (50, 50)),
    # Priority levels, three of them
    ((100, 100, 100), (100, 0, 0)),
    ((72, 72, 100), (100, 0, 0)),
    ((71, 71, 100), (99, 1, 0)),
    ((50, 50, 100), (70, 30, 0)),
    ((25, 100, 100), (35, 65, 0)),
    ((25, 25, 100), (35, 35, 30)),
    ((25, 25, 20), (36, 36, 28)),
    # Panic threshold
    ((5, 65), (7, 93)),
]


@pytest.mark.parametrize(("healthy", "expected"), TABLE)
def test_the_tables_of_envoy(healthy: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Within a percent, since Envoy rounds to whole ones; and exactly what the formula says."""
    assert shares(*healthy) == pytest.approx(expected, abs=1)
    assert shares(*healthy) == pytest.approx([float(each) for each in by_formula(*healthy)])


@pytest.mark.parametrize(
    ("healthy", "printed", "derived"),
    [((50, 60), (50, 50), (70, 30)), ((25, 100), (25, 75), (35, 65))],
)
def test_two_rows_of_envoys_panic_table_contradict_its_formula(
    healthy: tuple[int, int], printed: tuple[int, int], derived: tuple[int, int]
) -> None:
    """In the second table of "Panic threshold".

    50 % and 60 % have a health of 70 and 84, more than 100 together, so P0 gets 70 % and not 50 %. And 25 % and
    100 % get 35 % and 65 %, as the table of priority levels says itself, and not 25 % and 75 %.
    """
    assert by_formula(*healthy) == list(derived) != list(printed)
    assert shares(*healthy) == pytest.approx(derived)


def test_the_sum_below_100_is_scaled() -> None:
    """The example in the text: healths of 20 and 30 become loads of 40 % and 60 %."""
    found = loads([(2, 14), (3, 14)], overprovisioning=1.4, panic_threshold=0)
    assert [each.share for each in found] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(
    ("healthy", "expected"),
    [
        # Panic threshold, first table: P1 can stand in, whatever is left of P0.
        ((72, 100), (False, False)),
        ((50, 100), (False, False)),
        ((25, 100), (False, False)),
        ((0, 100), (False, False)),
        # Second table
        ((72, 72), (False, False)),
        ((50, 60), (False, False)),
        ((25, 25), (True, True)),
        ((5, 65), (True, False)),
        # The threshold itself is not below it, and one level alone is below 100 with 71 %.
        ((50,), (False,)),
        ((49,), (True,)),
        ((72,), (False,)),
    ],
)
def test_the_panic_tables_of_envoy(healthy: tuple[int, ...], expected: tuple[bool, ...]) -> None:
    assert panics(*healthy) == list(expected)


def test_a_threshold_of_0_is_no_panic() -> None:
    assert panics(0, threshold=0) == [False]
    assert panics(0, 0, threshold=0) == [False, False]
    assert shares(0, 0) == [0, 0]


def test_if_all_panic_each_node_gets_the_same() -> None:
    found = loads([(0, 30), (1, 10)], overprovisioning=FACTOR, panic_threshold=0.5)
    assert found == [(0.75, True), (0.25, True)]


def test_floats_do_not_lose_a_percent() -> None:
    """1.15 * 100 is 114.99999999999999 as a float, and a fifth of it not 23."""
    for usable in range(101):
        (load, rest) = loads([(usable, 100), (100, 100)], overprovisioning=1.15, panic_threshold=0)
        assert load.share == pytest.approx(min(100, 115 * usable // 100) / 100)
        assert load.share + rest.share == pytest.approx(1)


@given(
    st.lists(
        st.integers(1, 50).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))), min_size=1
    ),
    st.floats(1, 10),
    st.floats(0, 1),
)
def test_shares_are_parts_of_one_and_none_goes_to_nobody(
    counts: list[tuple[int, int]], overprovisioning: float, panic_threshold: float
) -> None:
    found = loads(counts, overprovisioning=overprovisioning, panic_threshold=panic_threshold)
    assert all(0 <= load.share <= 1 for load in found)
    taken = sum(load.share for load in found)
    assert taken == pytest.approx(1) or not any(usable for usable, _ in counts)
    for load, (usable, _) in zip(found, counts, strict=True):
        assert usable or load.panic or not load.share


@pytest.mark.parametrize("total", [141, 200, 10_000])
def test_one_usable_node_among_many_is_enough_for_a_share(total: int) -> None:
    found = loads([(1, total), (0, total)], overprovisioning=FACTOR, panic_threshold=0)
    assert [each.share for each in found] == [1, 0]
    found = loads([(1, total), (total, total)], overprovisioning=FACTOR, panic_threshold=0)
    assert [each.share for each in found] == pytest.approx([0.01, 0.99])
