"""What happens to the connections of a node that leaves, seen from the servers."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
import trustme
from patience import patience
from rig import Gate, local, open_descriptors, stats_of, until

from discovery import Memory, Watcher
from lbclient import BalancedSession, Limits, RoundRobin, attempts
from lbclient.sandbox import Backend


@pytest.fixture
def memory(nodes: list[Backend]) -> Memory:
    return Memory(node.address for node in nodes)


@pytest.fixture
async def watcher(memory: Memory) -> AsyncIterator[Watcher]:
    async with Watcher(memory, name="users", on_empty="accept") as watcher:
        await watcher.ready(5)
        yield watcher


@pytest.fixture
async def session(watcher: Watcher) -> AsyncIterator[BalancedSession]:
    async with BalancedSession(watcher, policy=RoundRobin, keepalive_timeout=60) as session:
        yield session


async def remove(memory: Memory, *gone: Backend) -> None:
    """Take nodes out; the watcher has swapped when it returns."""
    memory.set(
        endpoint for endpoint in memory.endpoints if endpoint.address not in [node.address for node in gone]
    )
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def connections(node: Backend) -> int:
    return (await node.stat())["connections_open"]


async def warm(session: BalancedSession, nodes: list[Backend]) -> None:
    for _ in nodes:
        async with session.get("/ping") as response:
            assert await response.text() == "ok"
    assert {stat["connections_open"] for stat in (await stats_of(nodes)).values()} == {1}


async def test_idle_connections_are_closed_in_the_very_turn_of_the_swap(
    session: BalancedSession, memory: Memory, watcher: Watcher, nodes: list[Backend]
) -> None:
    await warm(session, nodes)
    connector = session.client_session.connector
    assert connector is not None
    protocols = {
        f"{key.host}:{key.port}": protocol for key, held in connector._conns.items() for protocol, _ in held
    }
    at_swap = []
    watcher.subscribe(
        lambda _: at_swap.append({at for at, protocol in protocols.items() if protocol.is_connected()})
    )
    await remove(memory, nodes[0], nodes[1])
    assert at_swap == [{nodes[2].address, nodes[3].address}]
    await until(lambda: _is(connections(nodes[0]), 0), 1)
    await until(lambda: _is(connections(nodes[1]), 0), 1)
    assert await connections(nodes[2]) == 1


async def _is(value: object, expected: object) -> bool:
    return await value == expected  # type: ignore[misc]


async def test_no_attempt_begins_at_a_node_that_left(
    session: BalancedSession, memory: Memory, nodes: list[Backend]
) -> None:
    await warm(session, nodes)
    await remove(memory, nodes[0])
    await nodes[0].left()
    await asyncio.gather(*(_ok(session, "/ping") for _ in range(50)))
    assert (await nodes[0].stat())["requests"] == 1
    assert (await nodes[0].stat())["after_leaving"] == 0


async def _ok(session: BalancedSession, target: str) -> str:
    async with session.get(target) as response:
        assert response.status == 200
        await response.read()
        return attempts(response)[-1].endpoint.address


async def test_a_busy_connection_ends_with_its_body_and_is_not_kept(
    session: BalancedSession, memory: Memory, nodes: list[Backend]
) -> None:
    bodies = [session.get("/bytes?n=20000000") for _ in nodes]  # more than buffers hold
    responses = [await body for body in bodies]
    await remove(memory, *nodes[:2])
    assert len(session.describe()["draining"]) == 2
    assert [len(await response.read()) for response in responses] == [20_000_000] * 4
    assert session.describe()["draining"] == []
    await until(lambda: _is(connections(nodes[0]), 0), 1)
    assert await connections(nodes[2]) == 1


@pytest.mark.parametrize("target", ["/hang", "/stream?chunks=1000&ms=20&size=10", "/ws"])
async def test_what_still_runs_is_cut_at_the_deadline(memory: Memory, nodes: list[Backend], target: str) -> None:
    memory.set([nodes[0].address])
    async with BalancedSession(memory, drain_timeout=0.1) as session:
        running = asyncio.create_task(_until_cut(session, target))
        await until(lambda: _is(_requests(nodes[0]), 1))
        await remove(memory, nodes[0])
        async with patience(2):
            assert await running is None
        await until(lambda: _is(connections(nodes[0]), 0), 1)
        assert session.describe()["draining"] == []


async def _requests(node: Backend) -> int:
    return (await node.stat())["requests"]


async def _until_cut(session: BalancedSession, target: str) -> None:
    if target == "/ws":
        async with session.ws_connect(target) as socket:
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSING
        return
    with pytest.raises(aiohttp.ClientError):
        async with session.post(target) as response:
            await response.read()


async def test_a_node_that_leaves_while_it_is_being_connected_gets_nothing(
    pem: Callable[[str], tuple[Path, Path]], authority: trustme.CA
) -> None:
    """The handshake hangs, the node leaves, the handshake goes on: the request must go elsewhere, a POST too."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with (
        await Backend.start("a", tls=pem("users")) as first,
        await Backend.start("b", tls=pem("users")) as other,
    ):
        memory = Memory([f"https://{first.address}"])
        async with BalancedSession(memory, name="users", connect_timeout=30) as session:
            await session.ready(5)
            await first.pause()
            post = asyncio.create_task(_post(session, context))
            connector = session.client_session.connector
            assert connector is not None
            await until(lambda: bool(connector._acquired))
            memory.set([f"https://{other.address}"])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await first.resume()
            assert await post == ["left", "success"]
        assert (await first.stat())["requests"] == 0
        assert (await other.stat())["requests"] == 1


async def _post(session: BalancedSession, context: ssl.SSLContext) -> list[str]:
    async with session.post("/upload", data=b"x", ssl=context) as response:
        assert response.status == 200
        return [attempt.outcome.value for attempt in attempts(response) if attempt.outcome]


async def test_an_address_that_another_service_lists_keeps_its_connections(nodes: list[Backend]) -> None:
    users, orders = (Memory(node.address for node in nodes) for _ in range(2))
    async with BalancedSession({"users": users, "orders": orders}, policy=RoundRobin) as session:
        await session.ready(5)
        for name in ("users", "orders"):
            for _ in nodes:
                await _ok(session, f"http://{name}/ping")
        users.set([nodes[3].address])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert {stat["connections_open"] for stat in (await stats_of(nodes)).values()} == {1}
        orders.set([nodes[3].address])
        await until(lambda: _is(connections(nodes[0]), 0), 1)


async def test_what_still_runs_when_one_service_drops_an_address_ends_when_the_last_one_does(
    nodes: list[Backend],
) -> None:
    users, orders = (Memory(node.address for node in nodes[:1]) for _ in range(2))
    async with BalancedSession({"users": users, "orders": orders}, drain_timeout=3) as session:
        await session.ready(5)
        kept = await session.get("http://users/stream?chunks=10&ms=5&size=200")
        cut = asyncio.create_task(_until_cut(session, "http://users/hang"))
        await until(lambda: _is(_requests(nodes[0]), 2))
        for memory in (users, orders):
            assert not cut.done()
            memory.set([nodes[1].address])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(await kept.read()) == 2000
        async with patience(5):
            await cut
        await until(lambda: _is(connections(nodes[0]), 0), 1)


async def test_a_node_may_be_back_before_its_old_connections_have_died(
    session: BalancedSession, memory: Memory, nodes: list[Backend]
) -> None:
    everyone = memory.endpoints
    memory.set([nodes[0].address])
    await asyncio.sleep(0)
    old = await session.get("/stream?chunks=20&ms=5&size=100")
    await remove(memory, nodes[0])
    memory.set(everyone)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert {await _ok(session, "/ping") for _ in nodes} == {node.address for node in nodes}
    assert len(await old.read()) == 2000
    assert session.describe()["draining"] == []
    await until(lambda: _is(connections(nodes[0]), 1), 1)


async def test_more_connections_than_are_closed_in_one_turn_are_all_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of both sides are descriptors of this process."""
    monkeypatch.setattr("lbclient.drain._SLICE", 50)
    gate = Gate()
    async with local(gate) as leaving, local() as staying:
        memory, before = Memory([leaving.address]), open_descriptors()
        async with BalancedSession(memory, limits=Limits(per_node=0), keepalive_timeout=60) as session:
            requests: list[asyncio.Task[str]] = []
            # No more at the same time than fit into the queue of connections to accept.
            for count in (100, 200, 300):
                requests += [asyncio.create_task(_ok(session, "/x")) for _ in range(100)]
                await until(lambda count=count: len(leaving.seen) == count)
            gate.let(300)
            await asyncio.gather(*requests)
            assert open_descriptors() >= before + 600
            memory.set([staying.address])
            await until(lambda: open_descriptors() <= before, 2)


async def test_a_session_closes_all_it_opened(memory: Memory, nodes: list[Backend]) -> None:
    async with BalancedSession(memory, policy=RoundRobin) as session:
        await session.ready(5)
        await warm(session, nodes)
        await remove(memory, nodes[0])
    assert session.closed
    for node in nodes:
        await until(lambda node=node: _is(connections(node), 0), 1)
