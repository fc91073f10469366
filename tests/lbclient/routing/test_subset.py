"""The subset of each client: how stable it is, and how evenly the servers are used."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from xxhash import xxh64_intdigest

from discovery import Endpoint
from lbclient import Routing, Subset
from lbclient.routing.subset import hashed_order

CLIENTS = 300
SERVERS = 300
SIZE = 10

Name = Callable[[int], int | str]

NUMBERED: list[Name] = [
    lambda number: number,
    lambda number: f"users-{number}",
    lambda number: f"10.1.7.{number}",
    lambda number: f"web{number:03}.eu.example",
]


def random_name(number: int) -> str:
    return f"{random.Random(number).getrandbits(64):x}"


def servers(count: int, net: int = 0) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(host=f"10.{net}.{n >> 8}.{n & 255}", port=8080) for n in range(count))


def all_members(subsets: Sequence[Subset], of: Sequence[Endpoint]) -> list[set[Endpoint]]:
    """What `select` gives for each, with the order made once."""
    order, upper = hashed_order(of)
    return [{of[order[n % len(of)]] for n in subset.window(len(of), upper)} for subset in subsets]


def counts(name: Name, of: Sequence[Endpoint]) -> list[int]:
    """How many of the clients each server has."""
    subsets = [Subset(size=SIZE, client=name(client)) for client in range(CLIENTS)]
    found = Counter(endpoint for members in all_members(subsets, of) for endpoint in members)
    return [found[endpoint] for endpoint in of]


def test_the_members_are_a_window_of_the_hashed_order() -> None:
    of = servers(SERVERS)
    by_hash = sorted(of, key=lambda endpoint: xxh64_intdigest(endpoint.address.encode()))
    for client in range(50):
        subset = Subset(size=SIZE, client=client)
        chosen = subset.select(of)
        (members,) = all_members([subset], of)
        assert set(chosen) == members
        assert list(chosen) == sorted(chosen, key=of.index), "in the order of the snapshot"
        places = sorted(map(by_hash.index, chosen))
        gaps = [(after - before) % SERVERS for before, after in zip(places, places[1:] + places[:1], strict=True)]
        assert sorted(gaps) == [1] * (SIZE - 1) + [SERVERS - SIZE + 1]


@pytest.mark.parametrize("name", [*NUMBERED[:2], random_name])
@pytest.mark.parametrize("count", [SERVERS, 47])
def test_at_most_one_member_changes_when_one_server_leaves_or_arrives(name: Name, count: int) -> None:
    """Exhaustive: each server, and each client. An arrival is a departure seen the other way."""
    everyone = servers(count)
    subsets = [Subset(size=SIZE, client=name(client)) for client in range(CLIENTS)]
    before = all_members(subsets, everyone)
    for gone in range(count):
        after = all_members(subsets, everyone[:gone] + everyone[gone + 1 :])
        assert max(len(old - new) for old, new in zip(before, after, strict=True)) <= 1
        assert max(len(new - old) for old, new in zip(before, after, strict=True)) <= 1


def test_a_window_that_wraps_keeps_its_end_when_servers_come_at_its_other_one() -> None:
    """Why that is so, for any position, and whatever halves of the hash space the servers are in."""
    for subset in (Subset(size=SIZE, client=client) for client in range(512)):
        for count in range(8 * SIZE, 9 * SIZE, 3):
            for upper in range(count // 3, count * 2 // 3):
                behind = count - subset.window(count, upper).start
                in_lower = count + 1 - subset.window(count + 1, upper).start
                in_upper = count + 1 - subset.window(count + 1, upper + 1).start
                assert 0 <= in_lower - behind <= (behind >= SIZE)
                assert 0 <= in_upper - behind <= 1


@pytest.mark.parametrize("name", NUMBERED)
def test_numbered_clients_spread_evenly_over_the_servers(name: Name) -> None:
    for net in range(20):
        found = counts(name, servers(SERVERS, net))
        assert sum(found) == CLIENTS * SIZE
        assert max(found) <= 1.3 * SIZE
        assert min(found) >= 0.7 * SIZE


def test_clients_with_random_names_leave_no_server_far_behind() -> None:
    """A Poisson distribution with a mean of 10: nobody can do better without knowing the other clients."""
    found = counts(random_name, servers(SERVERS))
    assert max(found) <= 2.5 * SIZE
    assert sum(not each for each in found) <= 3


def test_neighbours_in_the_registry_are_no_neighbours_in_the_order() -> None:
    """They may stand in one rack."""
    chosen = Subset(size=SIZE, client=0).select(servers(SERVERS))
    assert max(int(endpoint.host.rpartition(".")[2]) for endpoint in chosen) > 2 * SIZE


@pytest.mark.parametrize("client", [0, 7, "users-7", "users", "", None])
def test_the_same_client_has_the_same_servers_whatever_their_order(client: Any) -> None:
    of = servers(40)
    subset = Subset(size=5, client=client)
    assert set(subset.select(of)) == set(subset.select(of[::-1]))
    if client is not None:
        assert Subset(size=5, client=client) == subset
        assert Subset(size=5, client=client).select(of) == subset.select(of)


def test_clients_without_a_name_differ() -> None:
    of = servers(SERVERS)
    assert len({Subset(size=SIZE).select(of) for _ in range(20)}) > 10


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_a_subset_larger_than_the_set_is_the_whole_set(count: int) -> None:
    of = servers(count)
    assert Subset(size=5, client=1).select(of) == of
    assert Routing(subset=5).narrow(of) == of


@pytest.mark.parametrize("count", [6, 7, 9, 14, 19, 20, 21, 29, 59])
def test_small_sets_are_used_to_the_last_server(count: int) -> None:
    subsets = [Subset(size=5, client=client) for client in range(8 * count)]
    for net in range(10):
        members = all_members(subsets, servers(count, net))
        found = Counter(endpoint for chosen in members for endpoint in chosen)
        assert all(len(chosen) == 5 for chosen in members)
        assert min(found[endpoint] for endpoint in servers(count, net)) >= 0.6 * 5 * 8


def test_ten_thousand_endpoints_take_milliseconds() -> None:
    """Of the processor: what others do on the machine does not count."""
    of = servers(10_000)
    subset = Subset(size=20, client=3)
    took = []
    for _ in range(5):
        began_at = time.thread_time()
        subset.select(of)
        took.append(time.thread_time() - began_at)
    assert min(took) < 0.02  # 3 ms on a machine that is not busy


def test_a_number_is_taken_as_the_size() -> None:
    assert len(Routing(subset=3).narrow(servers(10))) == 3
    assert len(Routing(subset=Subset(size=4, client=1)).narrow(servers(10))) == 4


@pytest.mark.parametrize("size", [0, -1, 2.5, "3", None, True])
def test_a_size_is_a_whole_number_from_1(size: Any) -> None:
    with pytest.raises(ValueError, match="size must be a whole number, 1 or more, not ") as caught:
        Subset(size=size)
    assert repr(size) in str(caught.value)


@pytest.mark.parametrize("client", [-1, 2.5, True, b"a", ()])
def test_a_client_is_a_number_or_a_name(client: Any) -> None:
    with pytest.raises(
        ValueError, match="client must be a whole number, 0 or more, a name, or None, not "
    ) as caught:
        Subset(size=1, client=client)
    assert repr(client) in str(caught.value)
