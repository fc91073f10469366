"""Probes of a `BalancedSession` with Prequal; what counts is what the servers saw."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from patience import patience
from rig import Gate, Local, hang, in_flight, local, node_of, ok, paths, resolving, until

from discovery import Endpoint, Memory, Static, Watcher
from lbclient import BalancedSession, BalancingMiddleware, LoadReporter, Policy, Prequal, Sticky
from lbclient.call import Call
from lbclient.load_report import HEADER
from lbclient.node import Node

PROBE = "/-/load"


def reporting(rif: float, latency: float = 0.01, answer: Any = ok) -> Any:
    """Answer probes with these numbers, and requests in another way."""

    async def talk(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == PROBE:
            report = f"TEXT named_metrics.rif={rif},named_metrics.latency={latency}"
            return web.Response(status=204, headers={HEADER: report})
        response: web.StreamResponse = await answer(request)
        return response

    return talk


@asynccontextmanager
async def locals_(*answers: Any) -> AsyncIterator[list[Local]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(local(answer)) for answer in answers]


def listed(servers: list[Local]) -> Static:
    return Static([server.address for server in servers])


def probes(server: Local) -> int:
    return paths(server).count(PROBE)


def requests(server: Local) -> int:
    return len(server.seen) - probes(server)


def counts(session: BalancedSession) -> dict[str, int]:
    found: dict[str, int] = session.describe()["services"]["service"]["probes"]
    return found


async def get(session: BalancedSession, times: int = 1) -> None:
    """Requests one after the other; the probes of each were answered before the next one."""
    for _ in range(times):
        async with session.get("/x") as response:
            await response.read()
        await until(lambda: counts(session)["sent"] == counts(session)["answered"] + counts(session)["missed"])


async def test_the_server_that_says_it_is_slower_gets_little() -> None:
    async with (
        locals_(reporting(1, 0.01), reporting(1, 0.5), reporting(1, 0.01)) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
    ):
        await get(session, 60)
        assert requests(servers[1]) <= 2
        assert all(requests(server) > 10 for server in (servers[0], servers[2]))
        assert [probes(server) for server in servers] == [60] * 3
        assert counts(session) == {"sent": 180, "answered": 180, "missed": 0}


@pytest.mark.parametrize("depth", [1, 2])
async def test_the_policy_inside_of_a_sticky_one_probes_and_learns(depth: int) -> None:
    def policy() -> Sticky:
        inner = Sticky(policy=Prequal(timeout=60))
        return inner if depth == 1 else Sticky("outer", policy=inner)

    async with (
        locals_(reporting(1, 0.01), reporting(1, 0.5), reporting(1, 0.01)) as servers,
        BalancedSession(listed(servers), policy=policy, cookie_jar=aiohttp.DummyCookieJar()) as session,
    ):
        await get(session, 30)
        assert requests(servers[1]) <= 2
        assert [probes(server) for server in servers] == [30] * 3
        assert counts(session) == {"sent": 90, "answered": 90, "missed": 0}


async def test_a_busy_server_gets_little_before_a_client_could_know_it_by_itself() -> None:
    """Ten requests of others are held by the first of two real applications."""
    held = asyncio.Event()

    async def hold(_: web.Request) -> web.Response:
        await held.wait()
        return web.Response()

    async def quick(_: web.Request) -> web.Response:
        return web.Response()

    served = [0, 0]
    async with AsyncExitStack() as stack:
        addresses, reporters = [], []
        for number in range(2):

            async def count(request: web.Request, handler: Any, number: int = number) -> web.StreamResponse:
                served[number] += request.path == "/x"
                response: web.StreamResponse = await handler(request)
                return response

            app = web.Application(middlewares=[web.middleware(count)])
            app.add_routes([web.get("/hold", hold), web.get("/x", quick)])
            reporters.append(LoadReporter())
            reporters[-1].setup(app)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            addresses.append("{}:{}".format(*runner.addresses[0]))
        other = await stack.enter_async_context(aiohttp.ClientSession())
        session = await stack.enter_async_context(
            BalancedSession(Static(addresses), policy=Prequal(q_rif=0, timeout=60))
        )
        waiting = [asyncio.ensure_future(other.get(f"http://{addresses[0]}/hold")) for _ in range(10)]
        await until(lambda: reporters[0].in_flight == 10)
        await get(session, 50)
        assert served[0] <= 2
        assert served[1] >= 48
        held.set()
        for response in await asyncio.gather(*waiting):
            response.release()


async def test_requests_do_not_wait_for_probes() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        return await (hang if request.path == PROBE else ok)(request)

    async with (
        locals_(never, never) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
        patience(1),
    ):
        for _ in range(20):
            async with session.get("/x") as response:
                await response.read()
        assert [probes(server) for server in servers] == [1, 1]
        assert in_flight(session) == 0


async def test_there_is_one_probe_to_a_node_at_a_time() -> None:
    gate = Gate()

    async def gated(request: web.BaseRequest) -> web.StreamResponse:
        return await (gate if request.path == PROBE else ok)(request)

    async with (
        locals_(gated, gated) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
    ):
        for _ in range(5):
            await session.get("/x")
        await until(lambda: [probes(server) for server in servers] == [1, 1])
        gate.let(2)
        await until(lambda: counts(session)["missed"] == 2)
        await session.get("/x")
        await until(lambda: [probes(server) for server in servers] == [2, 2])


async def test_the_number_of_probes_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbclient.probing._AT_ONCE", 1)

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        return await (hang if request.path == PROBE else ok)(request)

    async with (
        locals_(never, never) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
    ):
        for _ in range(5):
            await session.get("/x")
        assert counts(session)["sent"] == 1


async def test_an_answer_is_shown_to_the_policy_with_the_time_of_its_head() -> None:
    times: list[float] = []

    class Noting(Prequal):
        def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
            times.append(call.now)
            return super().pick(nodes, call)

        def answered(self, node: Node, response: aiohttp.ClientResponse, call: Call) -> None:
            super().answered(node, response, call)
            times.append(call.now)

    async def late(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return await ok(request)

    async with locals_(late) as servers, BalancedSession(listed(servers), policy=Noting) as session:
        await session.get("/x")
    picked, answered = times
    assert 0.05 <= answered - picked < 5


async def test_probes_are_no_requests_of_the_node() -> None:
    async with (
        locals_(reporting(0), reporting(0)) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
    ):
        await get(session, 20)
        nodes = [node_of(session, server.address) for server in servers]
        assert sum(node["requests"] for node in nodes) == 20
        assert [node["failures"] for node in nodes] == [0, 0]


async def test_probes_have_the_services_host_and_nothing_of_the_session() -> None:
    seen: list[str] = []

    async def watch(req: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append(req.url.path)
        return await handler(req)

    async with (
        locals_(reporting(0), reporting(0)) as servers,
        BalancedSession(
            listed(servers),
            name="users",
            policy=Prequal(path=PROBE, timeout=60),
            headers={"Authorization": "secret"},
            cookies={"a": "b"},
            middlewares=[watch],
        ) as session,
    ):
        await session.get("/x")
        await until(lambda: all(probes(server) for server in servers))
        assert seen == ["/x"]
        for server in servers:
            probe = next(request for request in server.seen if request.target == PROBE)
            assert probe.headers["Host"] == "users"
            assert not {"Authorization", "Cookie"} & set(probe.headers)


async def test_probes_use_tls_as_requests_do(authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("users").configure_cert(context)
    async with local(reporting(0), tls=context) as server, local(reporting(0)) as plain:
        nodes = Static([Endpoint.parse(server.address, tls=True), Endpoint.parse(plain.address)])
        async with BalancedSession(nodes, name="users", policy=Prequal(timeout=60)) as session:
            await session.get("/x", ssl=trusting)
            await until(lambda: probes(server) == probes(plain) == 1)
            assert set(server.names) == {"users"}


async def test_a_server_with_no_endpoint_for_probes_gets_its_share_and_is_left_in_peace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def none(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=404) if request.path == PROBE else await ok(request)

    caplog.set_level(logging.INFO)
    async with (
        locals_(none, reporting(0), none) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
    ):
        await get(session, 90)
        assert [probes(server) for server in servers] == [3, 90, 3]
        # How much is the business of the policy that chooses where reports are rare.
        assert all(requests(server) > 0 for server in servers)
        assert caplog.text.count("no load report") == 1


async def test_a_server_that_answers_probes_with_anything_but_a_report_is_left_in_peace() -> None:
    answers = [
        web.Response,
        lambda: web.Response(headers={HEADER: "TEXT cpu_utilization=0.5"}),
        lambda: web.Response(headers={HEADER: "TEXT named_metrics.rif=nan"}),
        lambda: web.Response(status=302, headers={HEADER: "TEXT named_metrics.rif=0", "Location": "/"}),
    ]

    def talk(answer: Callable[[], web.Response]) -> Any:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            return answer() if request.path == PROBE else await ok(request)

        return handler

    async with (
        locals_(*map(talk, answers)) as servers,
        BalancedSession(listed(servers), policy=Prequal(probes=4, timeout=60)) as session,
    ):
        await get(session, 10)
        assert [probes(server) for server in servers] == [3] * 4
        assert counts(session)["missed"] == 12


async def test_reports_in_answers_make_probes_unnecessary() -> None:
    def talk(latency: float) -> Any:
        async def handler(_: web.BaseRequest) -> web.StreamResponse:
            return web.Response(
                headers={HEADER: f"TEXT named_metrics.rif=1,named_metrics.latency={latency}"},
            )

        return handler

    async with (
        locals_(talk(0.5), talk(0.01), talk(0.01)) as servers,
        BalancedSession(listed(servers), policy=Prequal(probes=0, remove=0, q_rif=1)) as session,
    ):
        await get(session, 60)
        assert sum(probes(server) for server in servers) == 0
        assert requests(servers[0]) < 12


async def test_without_requests_there_are_no_probes() -> None:
    async with (
        locals_(reporting(0), reporting(0)) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=60)) as session,
    ):
        await session.ready()
        await asyncio.sleep(0.05)
        assert [server.seen for server in servers] == [[], []]
        await get(session)
        await asyncio.sleep(0.05)
        assert [probes(server) for server in servers] == [1, 1]


@pytest.mark.parametrize("policy", [Prequal(timeout=60), Sticky(policy=Prequal(timeout=60))])
async def test_a_probe_that_is_under_way_ends_with_the_middleware(policy: Policy) -> None:
    gone: list[str] = []

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != PROBE:
            return await ok(request)
        try:
            return await hang(request)
        finally:
            gone.append(request.path)

    async with locals_(never, never) as servers, aiohttp.ClientSession() as session:
        balancing = BalancingMiddleware({"users": listed(servers)}, policy=policy)
        await session.get("http://users/x", middlewares=(balancing,))
        await until(lambda: [probes(server) for server in servers] == [1, 1])
        async with patience(1):
            await balancing.close()
        await until(lambda: gone == [PROBE, PROBE])


async def test_a_request_that_outlives_the_middleware_sends_no_probes() -> None:
    gate = Gate()

    async def drop_later(request: web.BaseRequest) -> web.StreamResponse:
        await gate(request)
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    async with (
        locals_(*[reporting(0, answer=drop_later)] * 2) as servers,
        Watcher(listed(servers)) as watcher,
        aiohttp.ClientSession() as session,
    ):
        balancing = BalancingMiddleware({"users": watcher}, policy=Prequal(timeout=60))
        request = asyncio.ensure_future(session.get("http://users/x", middlewares=(balancing,)))
        await until(lambda: sum(map(requests, servers)) == 1 and all(map(probes, servers)))
        await balancing.close()
        gate.let(3)
        with pytest.raises(aiohttp.ClientError):
            await request
        assert sum(map(requests, servers)) == 3
        assert [probes(server) for server in servers] == [1, 1]


async def test_probes_go_on_in_the_next_session_if_one_is_closed() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        return await (hang if request.path == PROBE else ok)(request)

    async with (
        locals_(never, never) as servers,
        BalancingMiddleware({"users": listed(servers)}, policy=Prequal(timeout=60)) as balancing,
    ):
        for expected in (1, 2):
            async with aiohttp.ClientSession(middlewares=(balancing,)) as session:

                async def more(session: aiohttp.ClientSession = session, expected: int = expected) -> bool:
                    await session.get("http://users/x")
                    return [probes(server) for server in servers] == [expected] * 2

                await until(more)


async def test_a_probe_to_a_node_that_leaves_is_cancelled() -> None:
    gone = asyncio.Event()

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != PROBE:
            return await ok(request)
        try:
            return await hang(request)
        finally:
            gone.set()

    async with locals_(never, reporting(0)) as (leaving, staying):
        memory = Memory([leaving.address, staying.address])
        async with BalancedSession(memory, policy=Prequal(timeout=60), on_empty="accept") as session:
            await session.get("/x")
            await until(lambda: probes(leaving) == 1)
            memory.set([staying.address])
            async with patience(2):
                await gone.wait()
            before = len(leaving.seen)
            for _ in range(5):
                await session.get("/x")
            assert len(leaving.seen) == before


async def test_a_probe_that_takes_too_long_is_given_up() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        return await (hang if request.path == PROBE else ok)(request)

    async with (
        locals_(never, never) as servers,
        BalancedSession(listed(servers), policy=Prequal(timeout=0.05)) as session,
    ):
        await session.get("/x")
        await until(lambda: counts(session) == {"sent": 2, "answered": 0, "missed": 2}, 1)


async def test_a_node_that_cannot_be_reached_is_only_missed(
    unused_address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        locals_(reporting(0)) as (server,),
        BalancedSession(Static([server.address, unused_address]), policy=Prequal(timeout=60)) as session,
    ):
        await get(session, 2)
        assert counts(session)["missed"] >= 1
        assert node_of(session, unused_address)["failures"] <= 2
    assert not [
        record for record in caplog.records if "probe" in record.message and record.levelno > logging.DEBUG
    ]


async def test_other_policies_send_no_probes_and_describe_none() -> None:
    async with (
        locals_(reporting(0), reporting(0)) as servers,
        BalancedSession(listed(servers)) as session,
    ):
        await session.get("/x")
        await asyncio.sleep(0.02)
        assert sum(probes(server) for server in servers) == 0
        assert "probes" not in session.describe()["services"]["service"]


async def test_each_service_has_probes_of_its_own() -> None:
    async with (
        locals_(reporting(0), reporting(0), reporting(0), reporting(0)) as (a, b, c, d),
        BalancedSession(
            {"users": Static([a.address, b.address]), "orders": Static([c.address, d.address])},
            policy=Prequal(timeout=60),
            connector=resolving(),
        ) as session,
    ):
        await session.get("http://users/x")
        await until(lambda: probes(a) == probes(b) == 1)
        assert c.seen == d.seen == []
        await session.get("http://orders/x")
        await until(lambda: probes(c) == probes(d) == 1)
        assert {request.headers["Host"] for request in a.seen} == {"users"}
        assert {request.headers["Host"] for request in c.seen} == {"orders"}


async def test_whatever_goes_wrong_in_a_probe_it_is_only_missed(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Prequal):
        def read(self, node: Node, header: str, now: float) -> bool:
            raise LookupError(node, header, now)

    caplog.set_level(logging.DEBUG, "lbclient")
    async with (
        locals_(reporting(0), reporting(0)) as servers,
        BalancedSession(listed(servers), policy=Broken) as session,
    ):
        await session.get("/x")
        await until(lambda: counts(session) == {"sent": 2, "answered": 0, "missed": 2}, 1)
    found = [record for record in caplog.records if "LookupError" in record.message]
    assert [record.levelno for record in found] == [logging.DEBUG] * 2


async def test_a_policy_in_use_may_be_given_to_another_session() -> None:
    async def never(request: web.BaseRequest) -> web.StreamResponse:
        return await (hang if request.path == PROBE else ok)(request)

    policy = Prequal()
    async with locals_(never, never) as servers, BalancedSession(listed(servers), policy=policy) as first:
        await first.get("/x")
        await until(lambda: [probes(server) for server in servers] == [1, 1])
        async with BalancedSession(listed(servers), policy=policy) as second:
            await second.get("/x")
