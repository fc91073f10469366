"""Tracing and middlewares work as with a bare session; the balancer is the innermost of the middlewares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse
from rig import Prefer, in_flight, local, resolving, stats_of
from yarl import URL

from discovery import Static
from lbclient import BalancedSession, BalancingMiddleware, Retry, attempts
from lbclient.sandbox import Backend

EVENTS = (
    "request_start",
    "request_chunk_sent",
    "request_headers_sent",
    "response_chunk_received",
    "request_end",
    "request_exception",
    "request_redirect",
    "connection_queued_start",
    "connection_queued_end",
    "connection_create_start",
    "connection_create_end",
    "connection_reuseconn",
)


class Recorder:
    """A trace of everything, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.urls: dict[str, URL] = {}
        self.config = aiohttp.TraceConfig()
        for event in EVENTS:
            getattr(self.config, f"on_{event}").append(self._listener(event))

    def _listener(self, event: str) -> Any:
        async def listener(_session: Any, _context: SimpleNamespace, params: Any) -> None:
            self.events.append(event)
            if hasattr(params, "url"):
                self.urls[event] = params.url

        return listener

    def take(self) -> list[str]:
        taken, self.events = self.events, []
        return taken


class Spy:
    """A middleware that notes what it sees before and after."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls

    async def __call__(self, req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        req.headers[self.name] = "here"
        self.calls.append(f"{self.name} {req.method} {req.url}")
        try:
            return await handler(req)
        finally:
            self.calls.append(f"/{self.name} {req.method} {req.url}")


@asynccontextmanager
async def session_of(
    kind: str, services: dict[str, Any], *middlewares: Any, **options: Any
) -> AsyncIterator[BalancedSession | aiohttp.ClientSession]:
    """Our session, or one that somebody else owns."""
    if kind == "own":
        async with BalancedSession(services, middlewares=middlewares, **options) as own:
            yield own
        return
    async with (
        BalancingMiddleware(services, **options) as lb,
        aiohttp.ClientSession(middlewares=(*middlewares, lb)) as foreign,
    ):
        yield foreign


own_or_foreign = pytest.mark.parametrize("kind", ["own", "foreign"])


async def test_traces_are_those_of_a_bare_session(nodes: list[Backend]) -> None:
    bare_trace, trace = Recorder(), Recorder()
    address = nodes[0].address
    async with (
        aiohttp.ClientSession(trace_configs=[bare_trace.config]) as bare,
        BalancedSession({"users": Static([address])}, trace_configs=[trace.config]) as session,
    ):
        for method, path in (("GET", "/x"), ("POST", "/x"), ("GET", "/redirect?to=/x")):
            data = b"body" if method == "POST" else None
            async with bare.request(method, f"http://{address}{path}", data=data) as response:
                await response.read()
            async with session.request(method, f"http://users{path}", data=data) as response:
                await response.read()
            events = trace.take()
            assert events == bare_trace.take()
            assert events[0] == "request_start"
            assert "request_headers_sent" in events
            assert (
                "connection_create_end" if (method, path) == ("GET", "/x") else "connection_reuseconn"
            ) in events
            for event in ("request_start", "request_end", "response_chunk_received"):
                assert trace.urls[event].host == "users"


async def test_a_request_is_traced_once_and_its_attempts_as_connections(
    nodes: list[Backend], unused_address: str
) -> None:
    trace = Recorder()
    services = {"users": Static([unused_address, nodes[0].address])}
    policy = Prefer(unused_address)
    async with (
        BalancedSession(services, policy=policy, trace_configs=[trace.config]) as session,
        session.get("http://users/ping"),
    ):
        pass
    assert trace.take() == [
        "request_start",
        "connection_create_start",
        "connection_create_start",
        "connection_create_end",
        "request_headers_sent",
        "request_end",
    ]


async def test_the_end_of_all_attempts_is_one_exception_event(unused_address: str) -> None:
    trace = Recorder()
    services, retry = Static([unused_address]), Retry(backoff=0)
    async with BalancedSession(services, retry=retry, trace_configs=[trace.config]) as session:
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("/x")
    assert trace.take() == ["request_start", *["connection_create_start"] * 3, "request_exception"]


@own_or_foreign
async def test_middlewares_run_outside_once_for_each_request(
    nodes: list[Backend], unused_address: str, kind: str
) -> None:
    calls: list[str] = []
    services = {"users": Static([unused_address, nodes[0].address])}
    spies = (Spy("X-Outer", calls), Spy("X-Inner", calls))
    async with (
        session_of(kind, services, *spies, policy=Prefer(unused_address)) as session,
        session.get("http://users/x") as response,
    ):
        headers = dict((await response.json())["headers"])
        assert (headers["X-Outer"], headers["X-Inner"]) == ("here", "here")
        assert len(attempts(response)) == 2
    url = "GET http://users/x"
    assert calls == [f"X-Outer {url}", f"X-Inner {url}", f"/X-Inner {url}", f"/X-Outer {url}"]


@own_or_foreign
async def test_a_middleware_may_send_a_request_again(nodes: list[Backend], kind: str) -> None:
    """Each time it is balanced anew, as with digest authentication or a retry on a status."""

    async def thrice(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        for _ in range(2):
            response = await handler(req)
            assert len(attempts(response)) == 1
            response.release()
        return await handler(req)

    services = {"users": Static([node.address for node in nodes])}
    policy = Prefer(*(node.address for node in nodes))
    async with (
        session_of(kind, services, thrice, policy=policy) as session,
        session.put("http://users/x", data=b"body") as response,
    ):
        said = await response.json()
        assert said["body"] == "body"
        assert ["Host", "users"] in said["headers"]
        assert len(attempts(response)) == 1


@own_or_foreign
async def test_a_middleware_may_send_a_request_elsewhere_after_an_answer(nodes: list[Backend], kind: str) -> None:
    async def move(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        (await handler(req)).release()
        req.url = URL(f"http://{nodes[3].address}/moved")
        return await handler(req)

    services = {"users": Static([nodes[0].address])}
    async with session_of(kind, services, move) as session:
        async with session.get("http://users/x") as response:
            said = await response.json()
            assert (said["port"], said["target"]) == (nodes[3].port, "/moved")
            assert attempts(response) == ()
        async with local() as proxy:
            await session.get("http://users/x", proxy=f"http://{proxy.address}")
            assert [seen.target for seen in proxy.seen] == [f"http://{nodes[3].address}/moved"]


async def test_a_middleware_may_name_the_service(nodes: list[Backend]) -> None:
    """What it makes of the URL is what is balanced."""

    async def prefix(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        req.url = URL("http://users") / req.url.path.removeprefix("/api/")
        return await handler(req)

    services = {"users": Static([nodes[0].address])}
    async with (
        BalancedSession(services, middlewares=(prefix,)) as session,
        session.get("http://gateway/api/42") as response,
    ):
        assert (await response.json())["target"] == "/42"
        assert len(attempts(response)) == 1


async def test_a_requests_own_middlewares_leave_it_balanced(nodes: list[Backend]) -> None:
    """They replace those of the session, as in aiohttp, but not the balancer."""
    calls: list[str] = []
    services = {"users": Static([node.address for node in nodes])}
    async with BalancedSession(services, middlewares=(Spy("X-Session", calls),)) as session:
        for middlewares in ((), (Spy("X-Request", calls),)):
            async with session.get("http://users/x", middlewares=middlewares) as response:
                assert "X-Session" not in dict((await response.json())["headers"])
                assert len(attempts(response)) == 1
        async with session.get("http://users/x", middlewares=None) as response:
            assert "X-Session" in dict((await response.json())["headers"])
    assert [call.split()[0] for call in calls] == ["X-Request", "/X-Request", "X-Session", "/X-Session"]


async def test_a_foreign_session_keeps_its_own_hosts(nodes: list[Backend]) -> None:
    async with (
        BalancingMiddleware({"users": Static([nodes[0].address])}) as lb,
        aiohttp.ClientSession(middlewares=(lb,), connector=resolving("elsewhere")) as foreign,
    ):
        async with foreign.get(f"http://elsewhere:{nodes[1].port}/x") as response:
            assert (await response.json())["port"] == nodes[1].port
            assert attempts(response) == ()
        async with foreign.get("http://users/x") as response:
            assert (await response.json())["port"] == nodes[0].port
            assert len(attempts(response)) == 1
    assert sorted(stat["requests"] for stat in (await stats_of(nodes)).values()) == [0, 0, 1, 1]


async def test_an_answer_of_a_middleware_behind_the_balancer_lands(nodes: list[Backend]) -> None:
    """Its connection is none of ours, so nothing would ever tell that the attempt is over."""
    async with aiohttp.ClientSession() as other, other.get(f"http://{nodes[0].address}/bytes?n=3000000") as canned:

        async def answer(_: aiohttp.ClientRequest, __: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            return canned

        async with (
            BalancingMiddleware({"users": Static([nodes[1].address])}) as lb,
            aiohttp.ClientSession(middlewares=(lb, answer)) as session,
        ):
            response = await session.get("http://users/")
            assert response.connection is not None
            (node,) = lb.describe()["services"]["users"]["nodes"]
            assert (node["requests"], node["in_flight"]) == (1, 0)


async def test_one_middleware_serves_several_sessions(nodes: list[Backend]) -> None:
    async with BalancingMiddleware({"users": Static([nodes[0].address])}) as lb:
        for _ in range(2):
            async with (
                aiohttp.ClientSession(middlewares=(lb,)) as one,
                aiohttp.ClientSession(middlewares=(lb,)) as two,
            ):
                for session in (one, two, one):
                    async with session.get("http://users/x") as response:
                        assert len(attempts(response)) == 1


@pytest.mark.parametrize("given", ["session", "environment"])
async def test_a_proxy_is_not_for_services(
    nodes: list[Backend], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    async with local() as proxy:
        options: dict[str, Any] = {"proxy": f"http://{proxy.address}"}
        if given == "environment":
            monkeypatch.setenv("http_proxy", options["proxy"])
            options = {"trust_env": True}
        services = {"users": Static([nodes[0].address])}
        async with BalancedSession(services, **options) as session:
            async with session.get("http://users/x") as response:
                assert (await response.json())["target"] == "/x"
            async with session.get("http://outside.example/x"):
                assert in_flight(session) == 0
        assert [seen.target for seen in proxy.seen] == ["http://outside.example/x"]
