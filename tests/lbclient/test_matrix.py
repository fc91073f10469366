"""A balanced request arrives as a bare one does, and the caller sees its own URLs, never a node's."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import aiohttp
import pytest
from rig import in_flight, local, resolving, stats_of
from yarl import URL

from discovery import Endpoint, Static
from lbclient import BalancedSession, Outcome, RoundRobin, attempts
from lbclient.sandbox import Backend

TARGETS = {
    "": "/",
    "/": "/",
    "/v1/users/42": "/v1/users/42",
    "/v1/users/": "/v1/users/",
    "/a%2Fb%20c/": "/a%2Fb%20c/",
    "/a+b;c=d,e:f@g": "/a+b;c=d,e:f@g",
    "/gr\u00fc\u00dfe?q=\u00c4": "/gr%C3%BC%C3%9Fe?q=%C3%84",
    "/a//b///c": "/a//b///c",
    "//a": "//a",
    "/x?q=": "/x?q=",
    "/x?": "/x",
    "/x?a=1&a=2&b": "/x?a=1&a=2&b",
    "/x?q=a%2Bb+c%20d": "/x?q=a%2Bb+c%20d",
    "/x?u=%26%3D%2F%23;v=?": "/x?u=%26%3D/%23;v=?",
    "/%7Euser/%41": "/~user/A",
    "/x#part": "/x",
}
ENCODED = ("/%41%2f%7e?x=%7e%2f", "/a|b?c={d}", "/a%20b?q=%c3%bc&q=%C3%BC", "/x?q=a%20b%2b+c", "//a//?&&")


@pytest.fixture
async def session(nodes: list[Backend]) -> AsyncIterator[BalancedSession]:
    addresses = [node.address for node in nodes]
    services = {"users": Static(addresses), "orders": Static(addresses)}
    async with BalancedSession(services, policy=RoundRobin) as session:
        yield session


@pytest.fixture
async def bare() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def echo(call: AbstractAsyncContextManager[aiohttp.ClientResponse]) -> dict[str, object]:
    async with call as response:
        said: dict[str, object] = await response.json()
    # All nodes answer alike, but for these.
    return {key: value for key, value in said.items() if key not in ("server", "port")}


@pytest.mark.parametrize("target", TARGETS)
async def test_target_arrives_as_from_a_bare_session(
    session: BalancedSession, bare: aiohttp.ClientSession, nodes: list[Backend], target: str
) -> None:
    said = await echo(session.get(f"http://users{target}"))
    assert said == await echo(bare.get(f"http://{nodes[0].address}{target}", headers={"Host": "users"}))
    assert said["target"] == TARGETS[target]


@pytest.mark.parametrize("target", ENCODED)
async def test_an_encoded_url_arrives_byte_for_byte(session: BalancedSession, target: str) -> None:
    said = await echo(session.get(URL(f"http://users{target}", encoded=True)))
    assert said["target"] == target


async def test_urls_that_yarl_holds_apart_are_not_mixed_up(session: BalancedSession) -> None:
    """The URLs of each node are remembered, by what was asked for."""
    for target in ("/A", "/%41", "/A?", "/A?x", "/A?x=", "/a", "/A/", "/A"):
        asked = URL(f"http://users{target}", encoded=True)
        for _ in range(5):
            assert (await echo(session.get(asked)))["target"] == asked.raw_path_qs


async def test_params_are_added(session: BalancedSession) -> None:
    params = [("a", "1 2"), ("a", "\u00fc/&"), ("b", "")]
    said = await echo(session.get("http://users/x?z=0", params=params))
    assert said["target"] == "/x?z=0&a=1+2&a=%C3%BC/%26&b="


@pytest.mark.parametrize("url", ["/v1/users?x=1", "v1/users?x=1", "http://users/v1/users?x=1"])
async def test_a_single_service_takes_paths_and_absolute_urls(nodes: list[Backend], url: str) -> None:
    async with BalancedSession(Static([nodes[0].address]), name="users") as users, users.get(url) as response:
        said = await response.json()
        assert said["target"] == "/v1/users?x=1"
        assert ["Host", "users"] in said["headers"]
        assert response.url == URL("http://users/v1/users?x=1")
        assert len(attempts(response)) == 1


@pytest.mark.parametrize("alone", [True, False])
async def test_base_url_is_no_part_of_the_path_twice(nodes: list[Backend], alone: bool) -> None:
    base = "http://users/api/v1/"
    source = Static([nodes[0].address])
    many, single = (
        BalancedSession({"users": source}, base_url=base),
        BalancedSession(source, name="users", base_url=base),
    )
    async with many, single:
        users = single if alone else many
        assert (await echo(users.get("list?x=1")))["target"] == "/api/v1/list?x=1"
        assert (await echo(users.get("/list")))["target"] == "/list"
        assert (await echo(users.get("http://users/api/v1/list")))["target"] == "/api/v1/list"


async def test_host_header_is_the_logical_name_unless_the_caller_has_one(session: BalancedSession) -> None:
    said = await echo(session.get("http://users/"))
    assert ["Host", "users"] in said["headers"]
    said = await echo(session.get("http://orders:80/"))
    assert ["Host", "orders"] in said["headers"]
    said = await echo(session.get("http://users/", headers={"Host": "api.example"}))
    assert [value for key, value in said["headers"] if key == "Host"] == ["api.example"]


async def test_host_names_are_case_insensitive(session: BalancedSession) -> None:
    said = await echo(session.get("http://USERS/A"))
    assert said["target"] == "/A"
    assert ["Host", "users"] in said["headers"]


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"])
async def test_each_verb_arrives_with_its_body(
    session: BalancedSession, bare: aiohttp.ClientSession, nodes: list[Backend], method: str
) -> None:
    verb = getattr(session, method.lower())
    said = await echo(verb("http://users/x", data=b"body"))
    assert (said["method"], said["body"]) == (method, "body")
    assert said == await echo(session.request(method, "http://users/x", data=b"body"))
    assert said == await echo(
        bare.request(method, f"http://{nodes[0].address}/x", data=b"body", headers={"Host": "users"})
    )


async def test_head_has_no_body_and_lands(session: BalancedSession, nodes: list[Backend]) -> None:
    async with session.head("http://users/bytes?n=1000") as response:
        assert response.headers["Content-Length"] == "1000"
        assert await response.read() == b""
    assert in_flight(session) == 0
    assert sum(stat["by_method"].get("HEAD", 0) for stat in (await stats_of(nodes)).values()) == 1


async def test_requests_are_balanced_one_by_one(session: BalancedSession, nodes: list[Backend]) -> None:
    servers = Counter[object]()
    for _ in range(40):
        async with session.get("http://users/ping") as response:
            servers[response.headers["X-Server"]] += 1
    assert sorted(servers.values()) == [10] * 4
    stats = await stats_of(nodes)
    assert all(stat["connections_total"] == 1 for stat in stats.values()), "connections are not kept alive"


async def test_nodes_may_have_ipv6_addresses_and_names() -> None:
    async with AsyncExitStack() as stack:
        try:
            server = await stack.enter_async_context(local(host="::1"))
        except OSError:
            pytest.skip("this machine has no IPv6")
        session = BalancedSession(Static([server.address]), name="users")
        async with session, session.get("/x") as response:
            assert attempts(response)[0].endpoint.address.startswith("[::1]:")
        assert [(seen.target, seen.headers["Host"]) for seen in server.seen] == [("/x", "users")]
    async with local() as server:
        node = Endpoint(host="node-1.internal", port=int(server.address.partition(":")[2]))
        session = BalancedSession(Static([node]), name="users", connector=resolving("node-1.internal"))
        async with session, session.get("/x") as response:
            assert attempts(response)[0].endpoint.host == "node-1.internal"
        assert [(seen.target, seen.headers["Host"]) for seen in server.seen] == [("/x", "users")]


async def test_the_response_shows_the_callers_url(session: BalancedSession) -> None:
    asked = URL("http://users/x?a=1#part")
    async with session.get(asked) as response:
        assert response.real_url == asked
        assert response.url == URL("http://users/x?a=1")
        assert response.request_info.real_url == asked
        assert response.host == "users"
        assert response.history == ()
        assert (response.method, response.status) == ("GET", 200)


@pytest.mark.parametrize("per_request", [True, False])
async def test_raise_for_status_is_aiohttps_own(nodes: list[Backend], per_request: bool) -> None:
    """The session's own option and the request's."""
    on_session, on_request = ({}, {"raise_for_status": True})[:: 1 if per_request else -1]
    services = {"users": Static([node.address for node in nodes])}
    async with BalancedSession(services, **on_session) as session:
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await session.get("http://users/status/500", **on_request)
        assert caught.value.status == 500
        assert caught.value.request_info.real_url == URL("http://users/status/500")
        assert [attempt.outcome for attempt in attempts(caught.value)] == [Outcome.ERROR]
        assert in_flight(session) == 0
        assert sum(stat["requests"] for stat in (await stats_of(nodes)).values()) == 1


async def test_client_session_is_a_plain_session_that_balances(
    session: BalancedSession, nodes: list[Backend]
) -> None:
    plain = session.client_session
    assert type(plain) is aiohttp.ClientSession
    for _ in range(4):
        async with plain.get("http://users/ping", timeout=aiohttp.ClientTimeout(total=5)) as response:
            assert len(attempts(response)) == 1
    assert [stat["requests"] for stat in (await stats_of(nodes)).values()] == [1, 1, 1, 1]


async def test_other_hosts_pass_through_untouched(session: BalancedSession, nodes: list[Backend]) -> None:
    async with session.get(f"http://{nodes[2].address}/x") as response:
        said = await response.json()
        assert said["port"] == nodes[2].port
        assert ["Host", nodes[2].address] in said["headers"]
        assert attempts(response) == ()
    assert session.snapshot("users").version == 0, "the service was not asked for"


async def test_a_services_name_with_another_port_passes_through(nodes: list[Backend]) -> None:
    services = {"users": Static([nodes[0].address])}
    async with (
        BalancedSession(services, connector=resolving("users")) as session,
        session.get(f"http://users:{nodes[1].port}/x") as response,
    ):
        said = await response.json()
        assert said["port"] == nodes[1].port
        assert ["Host", f"users:{nodes[1].port}"] in said["headers"]
        assert attempts(response) == ()
