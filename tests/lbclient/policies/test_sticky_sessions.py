"""`Sticky` in a session, against real servers: a session stays with its node while there is one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from rig import in_flight, resolving, stats_of, until
from yarl import URL

from discovery import Endpoint, Memory, Static
from lbclient import BalancedSession, RingHash, RoundRobin, Sticky, attempts, header
from lbclient.sandbox import Backend


def sticky() -> Sticky:
    """New sessions take turns, so that two of them have different nodes."""
    return Sticky(policy=RoundRobin)


async def asked(session: BalancedSession, path: str = "/x", **options: Any) -> str:
    """The address of the node that answered."""
    async with session.get(path, **options) as response:
        await response.read()
        return attempts(response)[-1].endpoint.address


def cookie_of(response: aiohttp.ClientResponse) -> str | None:
    morsel = response.cookies.get("lb_node")
    return None if morsel is None else morsel.value


@pytest.fixture
def addresses(nodes: list[Backend]) -> list[str]:
    return [node.address for node in nodes]


@pytest.fixture
async def session(addresses: list[str]) -> AsyncIterator[BalancedSession]:
    async with BalancedSession(Static(addresses), policy=sticky) as session:
        yield session


async def test_the_first_answer_sets_the_cookie_and_all_requests_follow_it(
    session: BalancedSession, nodes: list[Backend]
) -> None:
    async with session.get("/x") as response:
        value = cookie_of(response)
        first = attempts(response)[0].endpoint.address
    assert value is not None
    for _ in range(8):
        async with session.get("/x") as response:
            assert cookie_of(response) is None, "it is set once"
            assert ["Cookie", f"lb_node={value}"] in (await response.json())["headers"]
    requests = {address: stat["requests"] for address, stat in (await stats_of(nodes)).items()}
    assert requests == {address: 9 * (address == first) for address in requests}


async def test_two_sessions_have_nodes_of_their_own(addresses: list[str]) -> None:
    """Of one service, in one process: what is remembered is in the jar, not in the policy."""
    jars = [aiohttp.CookieJar(), aiohttp.CookieJar()]
    services = {"users": Static(addresses)}
    async with (
        BalancedSession(services, policy=sticky, cookie_jar=jars[0]) as one,
        BalancedSession(services, policy=sticky, cookie_jar=jars[1]) as other,
    ):
        homes = [{await asked(each, "http://users/x") for _ in range(4)} for each in (one, other)]
        other.client_session.cookie_jar.clear()
        moved = {await asked(other, "http://users/x") for _ in range(4)}
    assert [len(home) for home in homes] == [1, 1]
    assert len(moved) == 1
    assert moved != homes[1], "a new session is the next one's turn"


async def test_when_the_node_leaves_the_session_moves_on_and_stays_there(addresses: list[str]) -> None:
    memory = Memory(addresses)
    async with BalancedSession(memory, policy=sticky) as session:
        first = await asked(session)
        memory.remove(first)
        await until(lambda: len(session.endpoints()) == 3)
        async with session.get("/x") as response:
            second = attempts(response)[0].endpoint.address
            assert cookie_of(response) is not None
        assert second != first
        memory.add(first)
        await until(lambda: len(session.endpoints()) == 4)
        assert {await asked(session) for _ in range(6)} == {second}


async def test_a_node_whose_weight_becomes_zero_loses_its_sessions(addresses: list[str]) -> None:
    memory = Memory(addresses)
    async with BalancedSession(memory, policy=sticky) as session:
        first = await asked(session)
        host, _, port = first.partition(":")
        memory.add(Endpoint(host=host, port=int(port), weight=0))
        await until(lambda: any(e.weight == 0 for e in session.endpoints()))
        after = {await asked(session) for _ in range(4)}
    assert len(after) == 1
    assert after != {first}


async def test_when_the_node_fails_the_request_goes_to_another_one_and_so_do_the_following(
    session: BalancedSession, nodes: list[Backend]
) -> None:
    first = await asked(session)
    broken = next(node for node in nodes if node.address == first)
    await broken.refuse()
    await broken.close_idle()
    async with session.get("/x") as response:
        tried = [attempt.endpoint.address for attempt in attempts(response)]
    assert len(tried) == 2
    assert tried[0] == first
    await broken.listen()
    assert {await asked(session) for _ in range(4)} == {tried[1]}


async def test_an_application_hands_the_cookie_to_its_user_and_back(addresses: list[str]) -> None:
    """With a session for all users, which remembers nothing by itself."""
    async with BalancedSession(Static(addresses), policy=sticky, cookie_jar=aiohttp.DummyCookieJar()) as session:
        users = {}
        for name in ("ann", "bob"):
            async with session.get("/x") as response:
                users[name] = (cookie_of(response), attempts(response)[0].endpoint.address)
        assert users["ann"] != users["bob"]
        for value, home in users.values():
            assert value is not None
            assert {await asked(session, cookies={"lb_node": value}) for _ in range(3)} == {home}


@pytest.mark.parametrize("forged", ["127.0.0.1:1", "http://127.0.0.1:1/", "x" * 500, "", "%00", "../../etc"])
async def test_a_forged_cookie_leads_nowhere_else_and_is_replaced(addresses: list[str], forged: str) -> None:
    async with (
        BalancedSession(Static(addresses), policy=sticky, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get("/x", headers={"Cookie": f"lb_node={forged}"}) as response,
    ):
        assert attempts(response)[0].endpoint.address in addresses
        assert cookie_of(response) not in (None, forged)


async def test_the_cookie_goes_to_its_service_only(addresses: list[str], nodes: list[Backend]) -> None:
    services = {"users": Static(addresses[:3]), "orders": Static(addresses[3:])}
    async with BalancedSession(services, policy=sticky, connector=resolving("elsewhere")) as session:
        await asked(session, "http://users/x")
        port = nodes[3].port
        others = ["http://orders/x", f"http://elsewhere:{port}/x", f"http://{addresses[3]}/x"]
        for url in [*others, *(str(URL("http://users/redirect").with_query(to=url)) for url in others)]:
            if "orders" in url:
                session.client_session.cookie_jar.clear(lambda morsel: morsel["domain"] == "orders")
            async with session.get(url) as response:
                headers = dict((await response.json())["headers"])
                assert "Cookie" not in headers, url


async def test_the_cookies_of_the_servers_are_kept_as_well(session: BalancedSession) -> None:
    async with session.get("/cookies/set?flavour=oat") as response:
        assert response.cookies["flavour"].value == "oat"
        value = cookie_of(response)
    async with session.get("/x") as response:
        sent = dict((await response.json())["headers"])["Cookie"]
    assert sorted(sent.split("; ")) == ["flavour=oat", f"lb_node={value}"]


async def test_a_redirect_stays_with_the_node_that_gave_it(session: BalancedSession) -> None:
    """Also at the first request, whose cookie came with the redirect."""
    async with session.get("/redirect?to=/landed") as response:
        hops = [attempt.endpoint.address for attempt in attempts(response)]
        assert cookie_of(response) is None
        assert cookie_of(response.history[0]) is not None
    assert len(hops) == 2
    assert len(set(hops)) == 1


async def test_a_failure_begins_no_session(session: BalancedSession, addresses: list[str]) -> None:
    failed = {await asked(session, "/status/503") for _ in range(4)}
    assert failed == set(addresses)
    assert not list(session.client_session.cookie_jar)


async def test_a_websocket_is_part_of_the_session(session: BalancedSession, nodes: list[Backend]) -> None:
    first = await asked(session)
    async with session.ws_connect("/ws") as socket:
        await socket.send_str("hello")
        assert (await socket.receive()).data == "hello"
    requests = {address: stat["requests"] for address, stat in (await stats_of(nodes)).items()}
    assert requests[first] == 2


async def test_it_is_there_by_its_name(addresses: list[str]) -> None:
    async with BalancedSession(Static(addresses), policy="sticky") as session:
        assert len({await asked(session) for _ in range(12)}) == 1
        assert in_flight(session) == 0


async def test_a_key_of_the_caller_begins_the_session_and_the_cookie_goes_on_with_it(addresses: list[str]) -> None:
    async with (
        BalancedSession(Static(addresses), policy=lambda: Sticky(policy=RingHash)) as session,
        BalancedSession(Static(addresses), policy=RingHash) as told,
    ):
        homes = {f"user-{n}": await asked(told, lb_key=f"user-{n}") for n in range(24)}
        one_of = {home: key for key, home in homes.items()}
        assert len(one_of) > 1
        for home, key in one_of.items():
            session.client_session.cookie_jar.clear()
            assert await asked(session, lb_key=key) == home
            assert {await asked(session, lb_key=other) for other in homes} == {home}


async def test_sessions_of_a_node_that_is_gone_go_where_their_keys_do(addresses: list[str]) -> None:
    async with (
        BalancedSession(
            Static(addresses),
            policy=lambda: Sticky(policy=RingHash(header("X-User"))),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session,
        BalancedSession(Static(addresses), policy=RingHash) as told,
    ):
        for number in range(12):
            headers = {"X-User": f"user-{number}", "Cookie": "lb_node=gone"}
            assert await asked(session, headers=headers) == await asked(told, lb_key=f"user-{number}")
