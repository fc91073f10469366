"""A registry that lists nothing any more, or cannot be reached at the start: what requests see of it."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest
from rig import local, node_of, stats_of, until

from discovery import Cache, Memory
from lbclient import BalancedSession, BalancingMiddleware, Ejection, NoEndpoints, Retry, RoundRobin
from lbclient.sandbox import Backend


async def get(session: BalancedSession) -> None:
    async with session.get("/x") as response:
        assert response.status == 200


async def test_an_emptied_registry_takes_no_healthy_server_away() -> None:
    async with local() as one, local() as two:
        source = Memory([one.address, two.address])
        async with BalancedSession(source, policy=RoundRobin) as users:
            await get(users)
            source.set([])
            await until(lambda: users.snapshot().state == "held")
            for _ in range(10):
                await get(users)
            (state,) = users.describe()["services"].values()
            assert state["state"] == "held"
            assert state["reason"] == "the registry lists no endpoint any more"
            assert sorted(state["held"]) == sorted([one.address, two.address])
            assert all(20 < left <= 30 for left in state["held"].values())
            assert state["counts"]["holds"] == 1
        assert len(one.seen) + len(two.seen) == 11
        assert min(len(one.seen), len(two.seen)) >= 5


async def test_a_held_server_that_fails_as_well_is_let_go(mortal: Backend) -> None:
    """The registry says that it is gone, and so does the server: there is nothing left to wait for."""
    async with local() as alive:
        source = Memory([mortal.address, alive.address])
        async with BalancedSession(source, policy=RoundRobin, ejection=Ejection(connect_failures=2)) as users:
            for _ in range(4):
                await get(users)
            source.set([])
            await until(lambda: users.snapshot().state == "held")
            await mortal.kill()
            for _ in range(12):
                await get(users)
            await until(lambda: len(users.endpoints()) == 1)
            assert users.endpoints()[0].address == alive.address
            assert list(users.snapshot().held) == [alive.address]
            assert users.snapshot().state == "held"
            # Should it come back, it is a new one.
            source.add(mortal.address)
            await until(lambda: len(users.endpoints()) == 2)
            assert node_of(users, mortal.address)["state"] != "ejected"


async def test_a_server_that_was_ejected_before_the_hold_is_not_held(mortal: Backend) -> None:
    async with local() as alive:
        source = Memory([mortal.address, alive.address])
        async with BalancedSession(source, policy=RoundRobin, ejection=Ejection(connect_failures=1)) as users:
            await get(users)
            await mortal.kill()
            for _ in range(4):
                await get(users)
            assert node_of(users, mortal.address)["state"] == "ejected"
            source.set([])
            await until(lambda: len(users.endpoints()) == 1)
            assert list(users.snapshot().held) == [alive.address]


async def test_the_last_held_server_stays_until_its_time_is_over(mortal: Backend) -> None:
    source = Memory([mortal.address, "127.0.0.1:1"])
    async with BalancedSession(
        source, hold_for=1, ejection=Ejection(connect_failures=1), retry=Retry(attempts=2)
    ) as users:
        await get(users)
        source.set([])
        await until(lambda: users.snapshot().state == "held")
        await mortal.kill()
        for _ in range(3):
            with pytest.raises((aiohttp.ClientConnectorError, aiohttp.ServerDisconnectedError)):
                await get(users)
        assert len(users.endpoints()) == 1
        await until(lambda: not users.endpoints())
        with pytest.raises(NoEndpoints, match="0 known"):
            await get(users)


async def test_a_departure_can_be_accepted_at_once(nodes: list[Backend]) -> None:
    source = Memory(backend.address for backend in nodes)
    async with BalancedSession(source, on_empty="accept") as users:
        await get(users)
        source.set([])
        await until(lambda: users.snapshot().version == 2)
        with pytest.raises(NoEndpoints):
            await get(users)

    source = Memory(backend.address for backend in nodes)
    async with BalancedSession(source) as users:
        await get(users)
        source.set([])
        await until(lambda: users.snapshot().state == "held")
        await get(users)
        users.accept()
        with pytest.raises(NoEndpoints):
            await get(users)

        async def closed() -> bool:
            return not any(stat["connections_open"] for stat in (await stats_of(nodes)).values())

        await until(closed)


async def test_a_process_starts_and_serves_while_its_registry_is_down(tmp_path: Path) -> None:
    class Registry(Memory):
        def __repr__(self) -> str:
            return "registry"

    async with local() as server:
        source = Registry([server.address])
        async with BalancedSession(source, cache=Cache(tmp_path, settle=0.01)) as users:
            await get(users)
            await until(lambda: any(path.suffix == ".json" for path in tmp_path.iterdir()))
        source.fail("no route")
        async with BalancedSession(source, cache=tmp_path) as users:
            await get(users)
            (state,) = users.describe()["services"].values()
            assert (state["state"], state["version"]) == ("stale", 1)
            assert "no route; the endpoints are from the cache" in state["reason"]
            assert state["age"] < 10
        assert len(server.seen) == 2


def test_wrong_options_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match="on_empty must be one of hold, accept, keep, not 'never'"):
        BalancingMiddleware({"users": Memory()}, on_empty="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="hold_for must be a number of seconds above 0, not 0"):
        BalancingMiddleware({"users": Memory()}, hold_for=0)
    with pytest.raises(ValueError, match="collapse must be a share"):
        BalancingMiddleware({"users": Memory()}, collapse=2)
