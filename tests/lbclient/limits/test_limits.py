"""The limit per node: what it limits, and who does not wait because of it."""

from __future__ import annotations

import asyncio

from patience import patience
from rig import (
    Gate,
    Prefer,
    crowd,
    drop,
    expire_ejection,
    hang,
    in_flight,
    local,
    node_of,
    ok,
    open_descriptors,
    paths,
    stats_of,
    until,
    waiting,
)

from discovery import Memory, Static
from lbclient import BalancedSession, Ejection, Limits, RoundRobin
from lbclient.sandbox import Backend


async def test_two_thousand_at_once_take_turns(nodes: list[Backend]) -> None:
    for backend in nodes:
        await backend.stat()
    before = descriptors = open_descriptors()
    async with BalancedSession(Static([node.address for node in nodes]), limits=Limits(per_node=64)) as session:

        async def one() -> int:
            nonlocal descriptors
            async with session.get("/slow?ms=2") as response:
                descriptors = max(descriptors, open_descriptors())
                return response.status

        assert await asyncio.gather(*(one() for _ in range(2000))) == [200] * 2000
        assert in_flight(session) == waiting(session) == 0
    stats = (await stats_of(nodes)).values()
    assert sum(stat["requests"] for stat in stats) == 2000
    assert [stat["connections_max"] for stat in stats] == [64] * 4
    assert descriptors - before <= 4 * 64 + 8


async def test_no_limit_is_no_limit() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limits=Limits(per_node=0)) as requests:
        await requests.start(*map(str, range(150)))
        await until(lambda: len(server.seen) == 150)
        gate.let(150)


async def test_a_new_node_serves_those_who_wait_in_turn_and_all_it_can() -> None:
    gate = Gate()
    async with local(hang) as full, local(gate) as fresh:
        source = Memory([full.address])
        async with crowd(source, limits=Limits(per_node=3)) as requests:
            await requests.start(*(f"/{n}" for n in range(9)))
            assert waiting(requests.session) == 6
            source.add(fresh.address)
            await until(lambda: len(fresh.seen) == 3)
            assert waiting(requests.session) == 3
            assert sorted(paths(fresh)) == ["/3", "/4", "/5"]
            for served in range(4, 7):
                gate.let()
                await until(lambda served=served: len(fresh.seen) == served)
            assert paths(fresh)[3:] == ["/6", "/7", "/8"]
            gate.let(3)
            await asyncio.gather(*requests.tasks[3:])


async def test_a_node_that_is_back_serves_all_it_can(nodes: list[Backend]) -> None:
    back, endless = nodes[0], "/stream?chunks=100000&ms=50"
    await back.refuse()
    async with local(hang) as full:
        source = Static([full.address, back.address])
        ejection = Ejection(connect_failures=1)
        async with crowd(
            source, policy=Prefer(back.address), limits=Limits(per_node=2), ejection=ejection
        ) as requests:
            await requests.start("/held", "/held", endless, endless, endless)
            assert waiting(requests.session) == 3
            await back.listen()
            expire_ejection(requests.session, back.address)
            await requests.start(endless)
            await until(lambda: waiting(requests.session) == 2)
            assert node_of(requests.session, back.address)["in_flight"] == 2


async def test_a_hanging_node_takes_its_own_slots_only(nodes: list[Backend]) -> None:
    await nodes[0].pause()
    async with crowd(
        Static([node.address for node in nodes[:2]]), policy=RoundRobin, limits=Limits(per_node=4)
    ) as requests:
        requests.tasks += [asyncio.create_task(requests.get("/ping")) for _ in range(60)]
        await until(lambda: sum(task.done() for task in requests.tasks) == 56)
        assert node_of(requests.session, nodes[0].address)["in_flight"] == 4
        assert waiting(requests.session) == 0
        for _ in range(10):
            assert await requests.get("/ping") == [nodes[1].address]
    await nodes[0].resume()


async def test_who_waits_for_one_node_holds_up_nobody_who_would_take_another() -> None:
    """A second attempt may wait for the only node it did not try yet, while others have room."""
    async with local(hang) as full, local(drop) as roomy:
        source = Static([full.address, roomy.address])
        async with crowd(source, policy=Prefer(full.address), limits=Limits(per_node=1)) as requests:
            await requests.start("/held")
            await requests.start("/dropped")
            await until(lambda: waiting(requests.session) == 1 and in_flight(requests.session) == 1)
            roomy.answer = ok
            async with patience(2):
                assert await requests.get("/x") == [roomy.address]
                await asyncio.gather(*(requests.get("/y") for _ in range(5)))
            assert waiting(requests.session) == 1


async def test_a_websocket_takes_a_slot(nodes: list[Backend]) -> None:
    async with crowd(Static([nodes[0].address]), limits=Limits(per_node=1)) as requests:
        async with requests.session.ws_connect("/ws"):
            await requests.start("/ping")
            assert waiting(requests.session) == 1
        assert await requests.tasks[0] == [nodes[0].address]
