"""Redirects and cookies know logical hosts only; each hop is balanced anew."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import aiohttp
import pytest
from rig import Prefer, in_flight, resolving, stats_of
from yarl import URL

from discovery import Static
from lbclient import BalancedSession, Retry, RoundRobin, attempts
from lbclient.sandbox import Backend


@pytest.fixture
async def session(nodes: list[Backend]) -> AsyncIterator[BalancedSession]:
    addresses = [node.address for node in nodes]
    services = {"users": Static(addresses[:3]), "orders": Static(addresses[3:])}
    async with BalancedSession(services, policy=RoundRobin, connector=resolving("elsewhere")) as session:
        yield session


def redirect(to: str, code: int = 302) -> URL:
    return URL("http://users/redirect").with_query(to=to, code=code)


async def cookies_at(session: BalancedSession, url: str) -> str | None:
    async with session.get(url) as response:
        headers = dict((await response.json())["headers"])
        return headers.get("Cookie")


async def test_a_cookie_of_one_node_goes_to_all_of_the_service_and_to_nobody_else(
    session: BalancedSession, nodes: list[Backend]
) -> None:
    async with session.get("http://users/cookies/set?flavour=oat") as response:
        assert response.cookies["flavour"].value == "oat"
    for _ in range(3):
        assert await cookies_at(session, "http://users/x") == "flavour=oat"
    requests = sorted(stat["requests"] for stat in (await stats_of(nodes)).values())
    assert requests == [0, 1, 1, 2], "the cookie was not tried at each node"
    assert await cookies_at(session, "http://orders/x") is None
    assert await cookies_at(session, f"http://{nodes[0].address}/x") is None
    assert await cookies_at(session, f"http://elsewhere:{nodes[0].port}/x") is None


async def test_the_callers_cookies_are_sent(session: BalancedSession) -> None:
    async with session.get("http://users/x", cookies={"a": "1"}) as response:
        assert ["Cookie", "a=1"] in (await response.json())["headers"]


@pytest.mark.parametrize(
    ("to", "landed", "host"),
    [
        ("/landed?a=%2F", "http://users/landed?a=/", "users"),
        ("landed", "http://users/landed", "users"),
        ("//users/landed", "http://users/landed", "users"),
        ("http://users/landed", "http://users/landed", "users"),
        ("http://users:80/landed", "http://users/landed", "users"),
        ("http://orders/landed", "http://orders/landed", "orders"),
    ],
)
async def test_a_redirect_to_a_service_is_balanced(
    session: BalancedSession, nodes: list[Backend], to: str, landed: str, host: str
) -> None:
    async with session.get(redirect(to)) as response:
        said = await response.json()
        assert ["Host", host] in said["headers"]
        assert str(response.url) == str(response.real_url) == str(URL(landed))
        assert [hop.url for hop in response.history] == [redirect(to)]
        tried = [attempt.endpoint.port for attempt in attempts(response)]
        assert tried[1:] == [said["port"]]
        assert tried[0] in [node.port for node in nodes[:3]]
        assert tried[0] != tried[1], "both hops went to one node"


@pytest.mark.parametrize("name", ["127.0.0.1", "elsewhere"])
async def test_a_redirect_to_an_outside_host_is_followed_there(
    session: BalancedSession, nodes: list[Backend], name: str
) -> None:
    """A node's own address is outside as well: who sends it there wants it there."""
    outside = f"http://{name}:{nodes[3].port}/landed"
    async with session.get(redirect(outside), headers={"Authorization": "secret"}) as response:
        said = await response.json()
        assert said["port"] == nodes[3].port
        assert ["Host", f"{name}:{nodes[3].port}"] in said["headers"]
        assert "Authorization" not in dict(said["headers"])
        assert response.url == URL(outside)
        assert len(attempts(response)) == 1
        assert len(attempts(response.history[0])) == 1


async def test_headers_stay_with_the_logical_host(session: BalancedSession) -> None:
    """Another node is not another origin."""
    async with session.get(redirect("/landed"), headers={"Authorization": "secret"}) as response:
        assert ["Authorization", "secret"] in (await response.json())["headers"]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["POST", "PUT", "GET"])
@pytest.mark.parametrize("file", [True, False], ids=["file", "bytes"])
async def test_method_and_body_after_a_redirect_are_those_of_aiohttp(
    session: BalancedSession, nodes: list[Backend], method: str, code: int, file: bool
) -> None:
    def body() -> io.BytesIO | bytes:
        return io.BytesIO(b"body") if file else b"body"

    async with session.request(method, redirect("/landed", code), data=body()) as response:
        balanced = await response.json()
    bare_url = URL(f"http://{nodes[0].address}/redirect").with_query(to="/landed", code=code)
    async with (
        aiohttp.ClientSession() as bare,
        bare.request(method, bare_url, data=body(), headers={"Host": "users"}) as response,
    ):
        expected = await response.json()
    assert {**balanced, "port": 0, "server": ""} == {**expected, "port": 0, "server": ""}
    if code in (307, 308):
        assert (balanced["method"], balanced["body"]) == (method, "body")


async def test_a_redirect_that_is_not_to_be_followed_is_returned(session: BalancedSession) -> None:
    async with session.get(redirect("/landed"), allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (302, "/landed")
        assert response.history == ()


async def test_max_redirects_counts_hops_not_attempts(session: BalancedSession, nodes: list[Backend]) -> None:
    await nodes[0].refuse()
    loop = "http://users/redirect"  # without `to` it goes to "/", which answers
    with pytest.raises(aiohttp.TooManyRedirects) as caught:
        await session.get(redirect(str(redirect(str(redirect(loop))))), max_redirects=3)
    assert [hop.url.path for hop in caught.value.history] == ["/redirect"] * 3
    assert sum(stat["requests"] for stat in (await stats_of(nodes)).values()) == 3
    tried = attempts(caught.value)
    assert sum(attempt.outcome is not None and not attempt.error for attempt in tried) == 3
    assert in_flight(session) == 0


async def test_each_hop_has_all_attempts(nodes: list[Backend], unused_address: str) -> None:
    good = nodes[0].address
    policy = Prefer(unused_address, good)
    services = {"users": Static([unused_address, good])}
    async with (
        BalancedSession(services, policy=policy, retry=Retry(attempts=2)) as session,
        session.get(redirect(str(redirect("/landed")))) as response,
    ):
        assert response.url.path == "/landed"
        assert [a.endpoint.address for a in attempts(response)] == [unused_address, good] * 3
        assert [len(attempts(hop)) for hop in response.history] == [2, 2]
