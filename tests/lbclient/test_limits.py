"""The limit per node: who waits, who is next, and who need not wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from rig import Local, Prefer, drop, hang, in_flight, local, node_of, ok, stats_of, until

from discovery import Memory, Static
from lbclient import BalancedSession, Ejection, NoEndpoints, RoundRobin, attempts
from lbclient.node import Node
from lbclient.sandbox import Backend


def waiting(session: BalancedSession) -> int:
    return sum(service["waiting"] for service in session.describe()["services"].values())


class Crowd:
    """Requests that were started and not waited for."""

    def __init__(self, session: BalancedSession) -> None:
        self.session = session
        self.tasks: list[asyncio.Task[list[str]]] = []

    async def start(self, *paths: str) -> None:
        """Start one after the other; each has begun or waits in the queue before the next one is started."""
        for path in paths:
            before = in_flight(self.session) + waiting(self.session)
            self.tasks.append(asyncio.create_task(self._get(path)))
            await until(lambda before=before: in_flight(self.session) + waiting(self.session) > before)

    async def _get(self, path: str) -> list[str]:
        async with self.session.get(path) as response:
            await response.read()
            return [attempt.endpoint.address for attempt in attempts(response)]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def crowd(source: Any, **options: Any) -> AsyncIterator[Crowd]:
    async with BalancedSession(source, **options) as session:
        crowd = Crowd(session)
        try:
            yield crowd
        finally:
            await crowd.stop()
            assert in_flight(session) == waiting(session) == 0


class Gate:
    """An answer that waits until the test lets it through."""

    def __init__(self) -> None:
        self._open: asyncio.Queue[None] = asyncio.Queue()

    def let(self, count: int = 1) -> None:
        for _ in range(count):
            self._open.put_nowait(None)

    async def __call__(self, _: web.BaseRequest) -> web.StreamResponse:
        await self._open.get()
        return web.Response(text="ok")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def paths(server: Local) -> list[str]:
    return [seen.target for seen in server.seen]


async def test_two_thousand_at_once_take_turns(nodes: list[Backend]) -> None:
    for backend in nodes:
        await backend.stat()
    before = descriptors = open_descriptors()
    async with BalancedSession(Static([node.address for node in nodes]), limit_per_node=64) as session:

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
    async with local(gate) as server, crowd(Static([server.address]), limit_per_node=0) as requests:
        await requests.start(*map(str, range(150)))
        await until(lambda: len(server.seen) == 150)
        gate.let(150)


async def test_those_who_wait_are_served_in_turn() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limit_per_node=1) as requests:
        await requests.start(*(f"/{n}" for n in range(8)))
        for served in range(1, 9):
            await until(lambda served=served: len(server.seen) == served)
            assert waiting(requests.session) == 8 - served
            gate.let()
        await asyncio.gather(*requests.tasks)
        assert paths(server) == [f"/{n}" for n in range(8)]


async def test_a_new_node_serves_those_who_wait_in_turn_and_all_it_can() -> None:
    gate = Gate()
    async with local(hang) as full, local(gate) as fresh:
        source = Memory([full.address])
        async with crowd(source, limit_per_node=3) as requests:
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
        ejection = Ejection(connect_failures=1, base=0.05, cap=0.05)
        async with crowd(source, policy=Prefer(back.address), limit_per_node=2, ejection=ejection) as requests:
            await requests.start("/held", "/held", endless, endless, endless)
            assert waiting(requests.session) == 3
            await back.listen()
            await until(lambda: node_of(requests.session, back.address)["ejected_for"] == 0)
            await requests.start(endless)
            await until(lambda: waiting(requests.session) == 2)
            assert node_of(requests.session, back.address)["in_flight"] == 2


async def test_a_hanging_node_takes_its_own_slots_only(nodes: list[Backend]) -> None:
    await nodes[0].pause()
    async with crowd(
        Static([node.address for node in nodes[:2]]), policy=RoundRobin, limit_per_node=4
    ) as requests:
        requests.tasks += [asyncio.create_task(requests._get("/ping")) for _ in range(60)]
        await until(lambda: sum(task.done() for task in requests.tasks) == 56)
        assert node_of(requests.session, nodes[0].address)["in_flight"] == 4
        assert waiting(requests.session) == 0
        for _ in range(10):
            assert await requests._get("/ping") == [nodes[1].address]
    await nodes[0].resume()


async def test_who_waits_for_one_node_holds_up_nobody_who_would_take_another() -> None:
    """A second attempt may wait for the only node it did not try yet, while others have room."""
    async with local(hang) as full, local(drop) as roomy:
        source = Static([full.address, roomy.address])
        async with crowd(source, policy=Prefer(full.address), limit_per_node=1) as requests:
            await requests.start("/held")
            await requests.start("/dropped")
            await until(lambda: waiting(requests.session) == 1 and in_flight(requests.session) == 1)
            roomy.answer = ok
            async with asyncio.timeout(2):
                assert await requests._get("/x") == [roomy.address]
                await asyncio.gather(*(requests._get("/y") for _ in range(5)))
            assert waiting(requests.session) == 1


async def test_a_cancelled_one_passes_its_slot_on() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limit_per_node=1) as requests:
        await requests.start("/0", "/1", "/2", "/3")
        await until(lambda: len(server.seen) == 1)
        requests.tasks[1].cancel()
        requests.tasks[0].cancel()  # its slot is free in the turn of the loop in which the next in line gives up
        requests.tasks[2].cancel()
        await until(lambda: len(server.seen) == 2)
        assert paths(server) == ["/0", "/3"]
        gate.let()
        assert await requests.tasks[3] == [server.address]


async def test_one_that_is_cancelled_just_as_its_turn_comes_passes_its_slot_on() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limit_per_node=1) as requests:
        await requests.start("/0", "/1", "/2")
        session = requests.session
        await until(lambda: len(server.seen) == 1)
        gate.let()
        while waiting(session) == 2:  # noqa: ASYNC110 - until its turn has come, and not one turn of the loop longer
            await asyncio.sleep(0)
        assert in_flight(session) == 1
        requests.tasks[1].cancel()
        await until(lambda: "/2" in paths(server))
        gate.let(2)
        assert await requests.tasks[2] == [server.address]


async def test_those_who_wait_fail_when_all_nodes_leave() -> None:
    async with local(hang) as server:
        source = Memory([server.address])
        async with crowd(source, name="users", limit_per_node=1) as requests:
            await requests.start("/0", "/1", "/2")
            source.set([])
            for task in requests.tasks[1:]:
                with pytest.raises(NoEndpoints, match=r"'users' has no endpoint: 0 known, 0 healthy, 0 tried"):
                    await task
            assert not requests.tasks[0].done()
        assert paths(server) == ["/0"]


async def test_those_who_wait_fail_when_the_session_is_closed() -> None:
    async with local(hang) as server, crowd(Static([server.address]), limit_per_node=1) as requests:
        await requests.start("/0", "/1", "/2")
        await requests.session.close()
        for task in requests.tasks:
            with pytest.raises(aiohttp.ClientConnectionError):
                await task
        assert [isinstance(task.exception(), NoEndpoints) for task in requests.tasks] == [False, True, True]
        assert paths(server) == ["/0"]


async def test_a_second_attempt_does_not_wait_for_a_node_that_has_left() -> None:
    """What is left was tried already; it is asked once more rather than nobody."""
    async with local(hang) as full, local(drop) as other:
        source = Memory([full.address, other.address])
        async with crowd(source, policy=Prefer(full.address), limit_per_node=1) as requests:
            await requests.start("/held", "/dropped")
            await until(lambda: waiting(requests.session) == 1 and in_flight(requests.session) == 1)
            other.answer = ok
            source.remove(full.address)
            assert await requests.tasks[1] == [other.address, other.address]
        assert paths(other) == ["/dropped", "/dropped"]


async def test_a_second_attempt_without_any_node_tells_of_the_first() -> None:
    async with local(hang) as full, local(drop) as other:
        source = Memory([full.address, other.address])
        async with crowd(source, policy=Prefer(full.address), limit_per_node=1) as requests:
            await requests.start("/held", "/dropped")
            await until(lambda: waiting(requests.session) == 1 and in_flight(requests.session) == 1)
            source.set([])
            with pytest.raises(NoEndpoints, match="1 tried") as caught:
                await requests.tasks[1]
            assert [attempt.endpoint.address for attempt in attempts(caught.value)] == [other.address]
            assert "ServerDisconnectedError" in caught.value.__notes__[0]


async def test_a_policy_that_raises_fails_its_request_only() -> None:
    gate = Gate()

    class Moody(Prefer):
        angry = False

        def pick(self, nodes: tuple[Node, ...]) -> Node:
            if self.angry:
                self.angry = False
                raise ZeroDivisionError
            return super().pick(nodes)

    policy = Moody()
    async with (
        local(gate) as server,
        crowd(Static([server.address]), policy=policy, limit_per_node=1) as requests,
    ):
        await requests.start("/0", "/1", "/2")
        policy.angry = True
        gate.let(2)
        results = await asyncio.gather(*requests.tasks, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["list", "ZeroDivisionError", "list"]


async def test_a_websocket_takes_a_slot(nodes: list[Backend]) -> None:
    async with crowd(Static([nodes[0].address]), limit_per_node=1) as requests:
        async with requests.session.ws_connect("/ws"):
            await requests.start("/ping")
            assert waiting(requests.session) == 1
        assert await requests.tasks[0] == [nodes[0].address]
