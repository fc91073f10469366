"""Requests that wait for a slot: who is next, and what ends the waiting."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web
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
    paths,
    until,
    waiting,
)

from discovery import Memory, Static
from lbclient import Ejection, Limits, NoEndpoints, SessionClosing, attempts
from lbclient.call import Call
from lbclient.node import Node
from lbclient.sandbox import Backend


async def test_those_who_wait_are_served_in_turn() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limits=Limits(per_node=1)) as requests:
        await requests.start(*(f"/{n}" for n in range(8)))
        for served in range(1, 9):
            await until(lambda served=served: len(server.seen) == served)
            assert waiting(requests.session) == 8 - served
            gate.let()
        await asyncio.gather(*requests.tasks)
        assert paths(server) == [f"/{n}" for n in range(8)]


async def test_a_cancelled_one_passes_its_slot_on() -> None:
    gate = Gate()
    async with local(gate) as server, crowd(Static([server.address]), limits=Limits(per_node=1)) as requests:
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
    async with local(gate) as server, crowd(Static([server.address]), limits=Limits(per_node=1)) as requests:
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
        async with crowd(source, name="users", limits=Limits(per_node=1)) as requests:
            await requests.start("/0", "/1", "/2")
            source.set([])
            for task in requests.tasks[1:]:
                with pytest.raises(
                    NoEndpoints, match=r"'users' has no endpoint: 0 known, 0 matching, 0 healthy, 0 tried"
                ):
                    await task
            assert not requests.tasks[0].done()
        assert paths(server) == ["/0"]


async def test_those_who_wait_fail_when_the_session_is_closed() -> None:
    async with local(hang) as server, crowd(Static([server.address]), limits=Limits(per_node=1)) as requests:
        await requests.start("/0", "/1", "/2")
        await requests.session.close()
        for task in requests.tasks:
            with pytest.raises(aiohttp.ClientConnectionError):
                await task
        assert [type(task.exception()) for task in requests.tasks] == [SessionClosing] * 3
        assert len(attempts(requests.tasks[0].exception() or ValueError())) == 1
        assert paths(server) == ["/0"]


async def test_a_second_attempt_does_not_wait_for_a_node_that_has_left() -> None:
    """What is left was tried already; it is asked once more rather than nobody."""
    async with local(hang) as full, local(drop) as other:
        source = Memory([full.address, other.address])
        async with crowd(source, policy=Prefer(full.address), limits=Limits(per_node=1)) as requests:
            await requests.start("/held", "/dropped")
            await until(lambda: waiting(requests.session) == 1 and in_flight(requests.session) == 1)
            other.answer = ok
            source.remove(full.address)
            assert await requests.tasks[1] == [other.address, other.address]
        assert paths(other) == ["/dropped", "/dropped"]


async def test_a_second_attempt_without_any_node_leaves_the_first_to_be_told() -> None:
    async with local(hang) as full, local(drop) as other:
        source = Memory([full.address, other.address])
        options = {"policy": Prefer(full.address), "limits": Limits(per_node=1), "on_empty": "accept"}
        async with crowd(source, **options) as requests:
            await requests.start("/held", "/dropped")
            await until(lambda: waiting(requests.session) == 1 and in_flight(requests.session) == 1)
            source.set([])
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await requests.tasks[1]
            assert [attempt.endpoint.address for attempt in attempts(caught.value)] == [other.address]
            (note,) = caught.value.__notes__
            assert note.startswith("not tried again: NoEndpoints: service 'service' has no endpoint")


async def test_a_policy_that_raises_fails_its_request_only() -> None:
    gate = Gate()

    class Moody(Prefer):
        angry = False

        def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
            if self.angry:
                self.angry = False
                raise ZeroDivisionError
            return super().pick(nodes, call)

    policy = Moody()
    async with (
        local(gate) as server,
        crowd(Static([server.address]), policy=policy, limits=Limits(per_node=1)) as requests,
    ):
        await requests.start("/0", "/1", "/2")
        policy.angry = True
        gate.let(2)
        results = await asyncio.gather(*requests.tasks, return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["list", "ZeroDivisionError", "list"]


async def test_who_has_just_had_a_turn_goes_behind_those_who_wait() -> None:
    """However quick it is with its next request."""
    async with local() as server, crowd(Static([server.address]), limits=Limits(per_node=1)) as requests:

        async def greedy() -> None:
            for n in range(3):
                await requests.get(f"/greedy/{n}")

        await requests.session.ready(5)
        await asyncio.gather(greedy(), requests.get("/1"), requests.get("/2"))
        assert paths(server) == ["/greedy/0", "/1", "/2", "/greedy/1", "/greedy/2"]


async def test_who_may_take_a_node_that_those_ahead_may_not_is_not_held_up(nodes: list[Backend]) -> None:
    """A second attempt goes to an ejected node rather than to nobody; first attempts do not."""
    ejected, go_on = nodes[0], asyncio.Event()

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/dropped":
            await go_on.wait()
            return await drop(request)
        return await hang(request)

    await ejected.refuse()
    async with local(answer) as good:
        source, policy = Static([good.address, ejected.address]), Prefer(ejected.address)
        async with crowd(
            source, policy=policy, limits=Limits(per_node=2), ejection=Ejection(connect_failures=1)
        ) as requests:
            await requests.start("/held")
            await until(lambda: paths(good) == ["/held"])
            await requests.start("/dropped", "/1", "/2")
            await ejected.listen()
            assert node_of(requests.session, ejected.address)["state"] == "ejected"
            assert waiting(requests.session) == 2
            await until(lambda: "/dropped" in paths(good))
            go_on.set()
            async with asyncio.timeout(5):
                assert await requests.tasks[1] == [good.address, ejected.address]


async def test_a_probe_that_is_cancelled_just_as_its_turn_comes_is_left_to_the_next(nodes: list[Backend]) -> None:
    back = nodes[0]
    await back.refuse()
    async with local(hang) as full:
        source, policy = Static([full.address, back.address]), Prefer(back.address)
        ejection = Ejection(connect_failures=1)
        async with crowd(source, policy=policy, limits=Limits(per_node=1), ejection=ejection) as requests:
            await requests.start("/held")
            await until(lambda: paths(full) == ["/held"])
            await requests.start("/cancelled")
            await back.listen()
            expire_ejection(requests.session, back.address)
            following = asyncio.create_task(requests.get("/ping"))
            while node_of(requests.session, back.address)["state"] != "probing":  # noqa: ASYNC110 - as above
                await asyncio.sleep(0)
            requests.tasks[1].cancel()
            async with asyncio.timeout(5):
                assert await following == [back.address]
    assert (await back.stat())["requests"] == 1
