"""Hashing policies in a session, against real servers: the same key to the same node."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from rig import in_flight, resolving, stats_of, until
from yarl import URL

from discovery import Memory, Static
from lbclient import (
    BalancedSession,
    BalancingMiddleware,
    Maglev,
    Policy,
    RingHash,
    RoundRobin,
    Sticky,
    attempts,
    cookie,
    header,
    path_part,
)
from lbclient.sandbox import Backend

hashing = pytest.mark.parametrize("policy", [RingHash, Maglev])
Make = Callable[..., Policy]


async def asked(session: BalancedSession, path: str = "/x", **options: Any) -> str:
    """The address of the node that answered."""
    async with session.get(path, **options) as response:
        await response.read()
        return attempts(response)[-1].endpoint.address


@pytest.fixture
def addresses(nodes: list[Backend]) -> list[str]:
    return [node.address for node in nodes]


@hashing
async def test_a_key_goes_to_the_same_node_in_two_sessions_and_keys_spread(
    addresses: list[str], nodes: list[Backend], policy: Make
) -> None:
    """The servers have other ports each time, and so other keys: of a hundred each one has some."""
    async with (
        BalancedSession(Static(addresses), policy=policy) as one,
        BalancedSession(Static(addresses[::-1]), policy=policy) as other,
    ):
        for number in range(100):
            first = await asked(one, lb_key=f"user-{number}")
            assert await asked(one, lb_key=f"user-{number}") == first
            assert await asked(other, lb_key=f"user-{number}") == first
    requests = [stat["requests"] for stat in (await stats_of(nodes)).values()]
    assert sum(requests) == 300
    assert min(requests) > 0


@pytest.mark.parametrize(
    ("key", "request_with"),
    [
        (header("X-User"), lambda user: ("/x", {"headers": {"X-User": user}})),
        (cookie("user"), lambda user: ("/x", {"cookies": {"user": user}})),
        (path_part(1), lambda user: (f"/users/{user}/orders", {})),
        (lambda req: req.url.query.get("user"), lambda user: (f"/x?user={user}", {})),
    ],
    ids=["header", "cookie", "path", "function"],
)
async def test_the_key_is_taken_from_the_request(
    addresses: list[str], key: Any, request_with: Callable[[str], tuple[str, dict[str, Any]]]
) -> None:
    """As if the caller had given it."""
    async with (
        BalancedSession(Static(addresses), policy=lambda: RingHash(key)) as session,
        BalancedSession(Static(addresses), policy=RingHash) as told,
    ):
        for number in range(12):
            path, options = request_with(f"user-{number}")
            assert await asked(session, path, **options) == await asked(told, lb_key=f"user-{number}")


async def test_a_cookie_in_the_jar_of_the_session_is_a_key(addresses: list[str]) -> None:
    async with (
        BalancedSession(Static(addresses), policy=lambda: RingHash(cookie("user"))) as session,
        BalancedSession(Static(addresses), policy=RingHash) as told,
    ):
        await asked(session, "/cookies/set?user=user-7")
        home = await asked(told, lb_key="user-7")
        assert {await asked(session) for _ in range(6)} == {home}


async def test_the_callers_own_key_comes_before_that_of_the_request(addresses: list[str]) -> None:
    async with BalancedSession(Static(addresses), policy=lambda: RingHash(path_part(0))) as session:
        homes = {f"user-{n}": await asked(session, lb_key=f"user-{n}") for n in range(24)}
        assert len(set(homes.values())) > 1
        assert {user: await asked(session, f"/{user}") for user in homes} == homes


async def test_a_request_without_the_header_goes_to_a_random_node(addresses: list[str]) -> None:
    async with BalancedSession(Static(addresses), policy=lambda: Maglev(header("X-User"))) as session:
        assert {await asked(session) for _ in range(100)} == set(addresses)


@hashing
async def test_a_missing_key_is_an_error_that_says_what_to_do(
    addresses: list[str], nodes: list[Backend], policy: Make
) -> None:
    async with BalancedSession(Static(addresses), policy=policy) as session:
        with pytest.raises(ValueError, match="has no key to hash") as caught:
            await session.get("/x")
        for way in ("key=", "header('X-User')", "cookie('session')", "path_part(1)", "lb_key="):
            assert way in str(caught.value)
        assert in_flight(session) == 0
    assert all(stat["requests"] == 0 for stat in (await stats_of(nodes)).values())


@hashing
async def test_a_node_that_refuses_is_replaced_by_the_same_other_one_each_time(
    addresses: list[str], nodes: list[Backend], policy: Make
) -> None:
    async with BalancedSession(Static(addresses), policy=policy) as session:
        home = await asked(session, lb_key="user-42")
        broken = next(node for node in nodes if node.address == home)
        await broken.refuse()
        await broken.close_idle()
        tried = []
        for _ in range(2):
            async with session.get("/x", lb_key="user-42") as response:
                tried.append([attempt.endpoint.address for attempt in attempts(response)])
        assert tried[0] == tried[1]
        assert len(tried[0]) == 2
        assert tried[0][0] == home


async def test_a_redirect_keeps_the_key_that_the_caller_gave(addresses: list[str]) -> None:
    async with BalancedSession(Static(addresses), policy=RingHash) as session:
        for number in range(8):
            async with session.get("/redirect?to=/landed", lb_key=f"user-{number}") as response:
                hops = [attempt.endpoint.address for attempt in attempts(response)]
                assert response.url.path == "/landed"
            assert len(hops) == 2
            assert hops[0] == hops[1] == await asked(session, lb_key=f"user-{number}")


async def test_a_redirect_to_another_path_has_the_key_of_that_path(addresses: list[str]) -> None:
    async with BalancedSession(Static(addresses), policy=lambda: RingHash(path_part(1))) as session:
        to = await asked(session, "/users/user-7")
        async with session.get("/redirect?to=/users/user-7") as response:
            assert attempts(response)[-1].endpoint.address == to


async def test_a_websocket_goes_by_the_key_of_its_request(addresses: list[str], nodes: list[Backend]) -> None:
    async with BalancedSession(Static(addresses), policy=lambda: RingHash(header("X-User"))) as session:
        home = await asked(session, headers={"X-User": "user-42"})
        for _ in range(3):
            async with session.ws_connect("/ws", headers={"X-User": "user-42"}) as socket:
                await socket.send_str("hello")
                assert (await socket.receive()).data == "hello"
    requests = {address: stat["requests"] for address, stat in (await stats_of(nodes)).items()}
    assert requests == {address: 4 * (address == home) for address in addresses}


async def test_when_a_node_leaves_only_its_keys_move(addresses: list[str]) -> None:
    memory = Memory(addresses)
    async with BalancedSession(memory, policy=RingHash) as session:
        before = {f"user-{n}": await asked(session, lb_key=f"user-{n}") for n in range(40)}
        memory.remove(addresses[0])
        await until(lambda: len(session.endpoints()) == 3)
        after = {user: await asked(session, lb_key=user) for user in before}
    assert {user for user in before if after[user] != before[user]} == {
        user for user, address in before.items() if address == addresses[0]
    }


async def test_other_hosts_need_no_key(nodes: list[Backend]) -> None:
    services = {"users": Static([nodes[0].address])}
    async with BalancedSession(services, policy=RingHash, connector=resolving("elsewhere")) as session:
        url = URL(f"http://elsewhere:{nodes[1].port}/x")
        async with session.get(url) as response:
            assert response.status == 200


async def test_a_session_of_somebody_else_gives_the_key_by_its_middleware(addresses: list[str]) -> None:
    async with (
        BalancedSession(Static(addresses), policy=RingHash) as told,
        BalancingMiddleware({"users": Static(addresses)}, policy=RingHash) as balancing,
        aiohttp.ClientSession() as session,
    ):
        for number in range(8):
            key = f"user-{number}"
            async with session.get("http://users/x", middlewares=(balancing.keyed(key),)) as response:
                assert attempts(response)[0].endpoint.address == await asked(told, lb_key=key)


@pytest.mark.parametrize("value", [42, b"user-42", ["user-42"]])
async def test_a_key_that_is_no_string_is_an_error_that_names_it(addresses: list[str], value: Any) -> None:
    expected = re.escape(f"key must be a string, or a function that returns one or None, not {value!r}")
    async with BalancedSession(Static(addresses), policy=lambda: RingHash(lambda _: value)) as session:
        with pytest.raises(TypeError, match=expected):
            await session.get("/x")
        assert in_flight(session) == 0
        assert await asked(session, lb_key="user-42") in addresses


@pytest.mark.parametrize("policy", [RingHash, RoundRobin, Sticky])
async def test_a_key_of_the_caller_that_is_no_string_is_an_error_that_names_it(
    addresses: list[str], policy: Make
) -> None:
    async with BalancedSession(Static(addresses), policy=policy) as session:
        with pytest.raises(TypeError, match="key must be a string, not 42"):
            await session.get("/x", lb_key=42)
