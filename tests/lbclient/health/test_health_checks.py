"""Health checks of a `BalancedSession` with real servers; what counts is what the servers saw."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from rig import Gate, Local, Prefer, black_hole, hang, in_flight, local, node_of, ok, paths, until, wire

from discovery import Memory, Static, Watcher
from lbclient import BalancedSession, BalancingMiddleware, HealthCheck, SessionClosing
from lbclient.health.asking import AGENT, ask
from lbclient.sandbox import Backend

PATH = "/healthz"


def often(**options: Any) -> HealthCheck:
    return HealthCheck(**({"interval": 0.02, "timeout": 30, "unhealthy_threshold": 2} | options))


def state(session: BalancedSession, address: str) -> str:
    found: str = node_of(session, address)["state"]
    return found


def last(session: BalancedSession, address: str) -> Any:
    """What the last check showed; before the first one a dictionary as well."""
    return node_of(session, address)["check"] or {"result": None}


def checks(server: Local) -> int:
    return sum(seen.headers.get("User-Agent") == AGENT for seen in server.seen)


def answering(reply: Callable[[], web.StreamResponse]) -> Any:
    """Answer checks in this way, and requests with 200."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return reply() if request.path == PATH else await ok(request)

    return answer


async def get(session: BalancedSession, times: int = 1) -> list[int]:
    statuses = []
    for _ in range(times):
        async with session.get("/x") as response:
            await response.read()
            statuses.append(response.status)
    return statuses


async def test_a_silent_server_is_out_and_comes_back(nodes: list[Backend]) -> None:
    """It is stopped: its kernel still takes connections, and nobody answers."""
    bad, good = nodes[:2]
    check = often(timeout=1.5)
    async with BalancedSession(
        Static([bad.address, good.address]), policy=Prefer(bad.address), health_check=check
    ) as session:
        await session.ready()
        await until(lambda: last(session, bad.address)["result"] == "ok")
        await bad.pause()
        await until(lambda: state(session, bad.address) == "unhealthy")
        assert last(session, bad.address)["why"] == "no answer within 1.5 s"
        before = (await good.stat())["requests"]
        assert await get(session, 20) == [200] * 20
        assert (await good.stat())["requests"] >= before + 20
        assert node_of(session, bad.address)["requests"] == 0
        await bad.resume()
        await until(lambda: state(session, bad.address) == "ready")
        await get(session)
        assert node_of(session, bad.address)["requests"] == 1


@pytest.mark.parametrize("path", [PATH, None])
async def test_a_server_that_refuses_is_out_and_comes_back(nodes: list[Backend], path: str | None) -> None:
    bad, good = nodes[:2]
    async with BalancedSession(Static([bad.address, good.address]), health_check=often(path=path)) as session:
        await session.ready()
        await bad.refuse()
        await bad.close_idle()
        await until(lambda: state(session, bad.address) == "unhealthy")
        assert "refused" in last(session, bad.address)["why"].lower() or "Connect call" in str(
            last(session, bad.address)["why"]
        )
        await bad.listen()
        await until(lambda: state(session, bad.address) == "ready")


async def test_a_killed_server_is_out_before_any_request_met_it(mortal: Backend, nodes: list[Backend]) -> None:
    async with BalancedSession(
        Static([mortal.address, nodes[0].address]), policy=Prefer(mortal.address), health_check=often()
    ) as session:
        await session.ready()
        await mortal.kill()
        await until(lambda: state(session, mortal.address) == "unhealthy")
        assert await get(session, 5) == [200] * 5
        assert node_of(session, mortal.address)["requests"] == 0


async def test_a_full_accept_queue_is_seen_over_tcp() -> None:
    async with black_hole() as full, local() as good:
        check = often(path=None, timeout=1.5)
        async with BalancedSession(Static([full, good.address]), health_check=check) as session:
            await session.ready()
            await until(lambda: state(session, full) == "unhealthy")
            assert last(session, full)["why"] == "no answer within 1.5 s"
            await until(lambda: last(session, good.address).get("why") == "connected")
            assert state(session, good.address) == "ready"
        assert good.seen == []


async def test_checks_have_the_services_host_and_nothing_of_the_session() -> None:
    seen: list[str] = []
    traced: list[str] = []

    async def watch(req: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        seen.append(req.url.path)
        return await handler(req)

    async def started(_: Any, __: Any, params: aiohttp.TraceRequestStartParams) -> None:
        traced.append(params.url.path)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(started)
    async with (
        local() as server,
        BalancedSession(
            Static([server.address]),
            name="users",
            headers={"Authorization": "secret"},
            cookies={"a": "b"},
            middlewares=[watch],
            trace_configs=[trace],
            health_check=often(path="/healthz?deep=1"),
        ) as session,
    ):
        await get(session)
        await until(lambda: checks(server) >= 3)
        assert seen == traced == ["/x"]
        check = next(request for request in server.seen if request.headers["User-Agent"] == AGENT)
        assert (check.method, check.target, check.body) == ("GET", "/healthz?deep=1", b"")
        assert check.headers["Host"] == "users"
        assert not {"Authorization", "Cookie"} & set(check.headers)
        assert {request.target for request in server.seen} == {"/x", "/healthz?deep=1"}


async def test_checks_are_no_requests_of_the_node() -> None:
    gate = Gate()

    async def gated(request: web.BaseRequest) -> web.StreamResponse:
        return await (gate if request.path == PATH else ok)(request)

    async with (
        local(gated) as server,
        BalancedSession(Static([server.address]), health_check=often()) as session,
    ):
        await session.ready()
        await until(lambda: checks(server) == 1)
        assert in_flight(session) == 0
        gate.let()
        await until(lambda: checks(server) == 2)
        node = node_of(session, server.address)
        assert (node["requests"], node["failures"], node["latency"]) == (0, 0, None)
        assert session.describe()["services"]["service"]["checks"]["sent"] == 2


async def test_a_session_of_ones_own_is_checked_before_the_first_request_and_a_foreign_one_after_it() -> None:
    async with local() as server:
        async with BalancedSession(Static([server.address]), health_check=often()) as session:
            await session.ready()
            await until(lambda: checks(server) > 0)
        server.seen.clear()
        async with (
            aiohttp.ClientSession() as foreign,
            BalancingMiddleware({"users": Static([server.address])}, health_check=often()) as balancing,
        ):
            await balancing.ready()
            await asyncio.sleep(0.05)
            assert server.seen == []
            await foreign.get("http://users/x", middlewares=(balancing,))
            await until(lambda: checks(server) > 1)


async def test_a_foreign_session_can_be_named_before_the_first_request() -> None:
    async with (
        local() as server,
        aiohttp.ClientSession() as foreign,
        BalancingMiddleware({"users": Static([server.address])}, health_check=often()) as balancing,
    ):
        balancing.adopt(foreign)
        await balancing.ready()
        await until(lambda: checks(server) > 1)


async def test_without_the_option_nothing_is_checked() -> None:
    async with local() as server, BalancedSession(Static([server.address])) as session:
        await get(session)
        await asyncio.sleep(0.05)
        assert paths(server) == ["/x"]
        state = session.describe()["services"]["service"]
        assert "checks" not in state
        assert "check" not in state["nodes"][0]


async def test_only_services_with_the_option_are_checked() -> None:
    async with (
        local() as users,
        local() as orders,
        BalancedSession(
            {"users": Static([users.address]), "orders": Static([orders.address])},
            health_check={"users": often()},
        ) as session,
    ):
        await session.ready()
        await until(lambda: checks(users) > 1)
        assert orders.seen == []


async def test_nothing_is_checked_after_the_session_was_closed() -> None:
    gone: list[str] = []

    async def never(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await hang(request)
        finally:
            gone.append(request.path)

    async with local(never) as server:
        async with BalancedSession(Static([server.address]), health_check=often(timeout=60)) as session:
            await session.ready()
            await until(lambda: checks(server) == 1)
        await until(lambda: gone == [PATH])
        await asyncio.sleep(0.05)
        assert checks(server) == 1


async def test_a_close_that_is_cancelled_ends_the_checks_as_well() -> None:
    class Slow(Watcher):
        async def stop(self) -> None:
            await super().stop()
            await asyncio.Event().wait()

    async with local() as server, BalancedSession(Static([server.address]), health_check=often()) as session:
        await session.ready()
        await until(lambda: checks(server) > 0)
        service = session._balancing._services["service"]
        service.watcher.__class__ = Slow
        closing = asyncio.ensure_future(service.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        before = checks(server)
        await asyncio.sleep(0.06)
        assert checks(server) <= before + 1
        service.watcher.__class__ = Watcher


async def test_a_request_that_outlives_the_middleware_brings_no_checks_back() -> None:
    gate = Gate()

    async def gated(request: web.BaseRequest) -> web.StreamResponse:
        return await (ok if request.path == PATH else gate)(request)

    async with (
        local(gated) as server,
        Watcher(Static([server.address])) as watcher,
        aiohttp.ClientSession() as session,
    ):
        balancing = BalancingMiddleware({"users": watcher}, health_check=often())
        request = asyncio.ensure_future(session.get("http://users/x", middlewares=(balancing,)))
        await until(lambda: checks(server) > 0)
        await balancing.close()
        gate.let()
        (await request).release()
        with pytest.raises(SessionClosing):
            await session.get("http://users/x", middlewares=(balancing,))
        before = checks(server)
        await asyncio.sleep(0.06)
        assert checks(server) == before


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (lambda: web.Response(status=500), "status 500"),
        (lambda: web.Response(status=404), "status 404"),
        (lambda: web.Response(status=302, headers={"Location": "/x"}), "status 302"),
        (lambda: web.Response(status=503), "status 503"),
        (lambda: web.Response(status=500, headers={"Connection": "close"}), "status 500"),
    ],
)
async def test_other_statuses_are_failures(reply: Any, why: str) -> None:
    async with (
        local(answering(reply)) as server,
        local() as good,
        BalancedSession(Static([server.address, good.address]), health_check=often()) as session,
    ):
        await session.ready()
        await until(lambda: state(session, server.address) == "unhealthy")
        said = last(session, server.address)
        assert (said["result"], said["why"]) == ("failed", why)
        assert set(paths(server)) == {PATH}, "a redirect was followed"
        assert session.describe()["services"]["service"]["checks"]["failed"] >= 2


async def test_expected_statuses_are_the_users_to_choose() -> None:
    async with (
        local(answering(lambda: web.Response(status=503, headers={"Connection": "close"}))) as server,
        local() as other,
        BalancedSession(Static([server.address, other.address]), health_check=often(statuses=[503])) as session,
    ):
        await session.ready()
        await until(lambda: state(session, other.address) == "unhealthy")
        await until(lambda: last(session, server.address)["result"] == "ok")
        assert state(session, server.address) == "ready"


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (b"", "ServerDisconnectedError"),
        (b"no HTTP at all\r\n\r\n", "400"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "ClientPayloadError"),
    ],
)
async def test_whatever_a_server_says_is_a_failure_if_it_is_no_answer(talk: bytes, why: str) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(talk)
        await writer.drain()

    async with (
        wire(say) as address,
        local() as good,
        BalancedSession(Static([address, good.address]), health_check=often()) as session,
    ):
        await session.ready()
        await until(lambda: state(session, address) == "unhealthy")
        assert why in last(session, address)["why"]


async def test_half_a_body_is_no_answer_within_the_timeout() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await asyncio.Event().wait()

    async with (
        wire(drip) as address,
        local() as good,
        BalancedSession(Static([address, good.address]), health_check=often(timeout=0.05)) as session,
    ):
        await session.ready()
        await until(lambda: state(session, address) == "unhealthy")
        assert last(session, address)["why"] == "no answer within 0.05 s"


async def test_of_an_endless_body_little_is_read_and_the_connection_is_closed() -> None:
    written: list[int] = []

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        written.append(0)
        number = len(written) - 1
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            written[number] += 65536

    async with (
        wire(pour) as address,
        BalancedSession(Static([address]), health_check=often()) as session,
    ):
        await session.ready()
        await until(lambda: len(written) >= 5)
        assert last(session, address)["result"] == "ok"
        assert max(written) < 20_000_000, "that is more than what buffers hold"
        assert session.client_session.connector is not None
        assert not session.client_session.connector._conns  # type: ignore[attr-defined]


async def test_connections_are_kept_only_if_the_next_check_comes_in_time() -> None:
    async with local() as server:
        async with BalancedSession(Static([server.address]), health_check=often()) as session:
            await session.ready()
            await until(lambda: checks(server) >= 4)
            assert server.connections == 1
        server.seen.clear()
        # Most of them would come in time, but not all.
        check = often(interval=0.05, jitter=1)
        async with BalancedSession(
            Static([server.address]), health_check=check, keepalive_timeout=0.09
        ) as session:
            await session.ready()
            await until(lambda: checks(server) >= 8)
            assert server.connections >= 1 + 8


async def test_a_connection_of_requests_that_a_check_used_is_left_to_them() -> None:
    check = HealthCheck(interval=3600, timeout=30)
    async with local() as server, BalancedSession(Static([server.address]), health_check=check) as session:
        await session.ready()
        await until(lambda: last(session, server.address)["result"] == "ok")
        await get(session)
        before = server.connections
        service = session._balancing._services["service"]
        for _ in range(3):
            await ask(service.balancer.nodes[server.address], check, service.inquiries._side, 3600)
        await get(session)
        assert checks(server) == 4
        assert server.connections == before


@pytest.mark.parametrize(
    "reply",
    [
        lambda: web.Response(status=503, headers={"Connection": "close"}),
        lambda: web.Response(status=503, headers={"Connection": "Upgrade, Close"}),
        lambda: web.Response(status=200, headers={"X-Draining": "1"}),
        lambda: web.Response(status=500, headers={"x-draining": ""}),
    ],
)
async def test_a_draining_server_is_out_without_a_failure(reply: Any) -> None:
    drains = True

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return reply() if drains and request.path == PATH else await ok(request)

    async with (
        local(answer) as server,
        local() as good,
        BalancedSession(
            Static([server.address, good.address]),
            policy=Prefer(server.address),
            health_check=often(draining_header="X-Draining"),
        ) as session,
    ):
        await session.ready()
        await until(lambda: state(session, server.address) == "leaving")
        await until(lambda: checks(server) >= 5)
        assert await get(session, 5) == [200] * 5
        assert "/x" not in paths(server)
        counts = session.describe()["services"]["service"]["checks"]
        assert counts["failed"] == 0
        assert counts["draining"] >= 3
        drains = False
        await until(lambda: state(session, server.address) == "ready")
        await get(session)
        assert "/x" in paths(server)


async def test_an_answer_to_a_request_can_say_that_the_server_drains() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == PATH:
            return await gate(request)
        return web.Response(headers={"X-Draining": "soon"})

    gate = Gate()
    async with (
        local(answer) as server,
        local() as good,
        BalancedSession(
            Static([server.address, good.address]),
            policy=Prefer(server.address),
            health_check=often(draining_header="X-Draining"),
        ) as session,
    ):
        assert await get(session) == [200]
        await until(lambda: state(session, server.address) == "leaving")
        assert await get(session, 5) == [200] * 5
        assert paths(server).count("/x") == 1
        gate.let(2)
        await until(lambda: state(session, server.address) == "ready")


async def test_a_full_pool_of_the_session_is_no_fault_of_the_nodes() -> None:
    gate = Gate()

    async def gated(request: web.BaseRequest) -> web.StreamResponse:
        return await (ok if request.path == PATH else gate)(request)

    async with (
        local(gated) as server,
        BalancedSession(
            Static([server.address]), connector=aiohttp.TCPConnector(limit=1), health_check=often(timeout=0.03)
        ) as session,
    ):
        busy = asyncio.ensure_future(get(session))
        await until(lambda: "/x" in paths(server))
        counts = session.describe()["services"]["service"]["checks"]
        await until(
            lambda: session.describe()["services"]["service"]["checks"]["unknown"] >= counts["unknown"] + 4
        )
        assert state(session, server.address) == "ready"
        assert last(session, server.address)["why"] == "the session's connections are all in use"
        gate.let()
        await busy
        await until(lambda: last(session, server.address)["result"] == "ok")


@pytest.mark.parametrize("path", [PATH, None])
@pytest.mark.parametrize("lack", [errno.EMFILE, errno.ENOBUFS])
async def test_a_lack_of_descriptors_or_memory_is_no_fault_of_the_nodes(
    path: str | None, lack: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(lack, os.strerror(lack))

    async with (
        local() as server,
        BalancedSession(Static([server.address]), health_check=often(path=path)) as session,
    ):
        with monkeypatch.context() as patch:
            patch.setattr("socket.socket", refuse)
            await session.ready()
            await until(lambda: session.describe()["services"]["service"]["checks"]["unknown"] >= 4)
            assert state(session, server.address) == "ready"
            assert os.strerror(lack) in last(session, server.address)["why"]
        await until(lambda: last(session, server.address)["result"] == "ok")


async def test_a_vanished_node_that_is_ill_is_not_held() -> None:
    answers = [200]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=answers[-1]) if request.path == PATH else await ok(request)

    async with local(answer) as ill, local() as good:
        memory = Memory([ill.address, good.address])
        async with BalancedSession(memory, health_check=often(), on_empty="hold", hold_for=60) as session:
            await session.ready()
            memory.set([])
            await until(lambda: session.snapshot().state == "held")
            assert len(session.endpoints()) == 2
            answers.append(500)
            await until(lambda: [e.address for e in session.endpoints()] == [good.address])


async def test_checks_that_succeed_end_an_ejection_for_failed_connections(nodes: list[Backend]) -> None:
    """Ejected for 30 s; it is back long before that."""
    bad, good = nodes[:2]
    async with BalancedSession(
        Static([bad.address, good.address]),
        policy=Prefer(bad.address),
        health_check=often(unhealthy_threshold=1000),
    ) as session:
        await bad.refuse()
        await bad.close_idle()

        async def ejected() -> bool:
            await get(session)
            return state(session, bad.address) == "ejected"

        await until(ejected)
        await until(lambda: last(session, bad.address)["result"] == "failed")
        await bad.listen()
        await until(lambda: state(session, bad.address) == "ready")


async def test_a_kept_connection_proves_nothing_about_a_node_to_which_none_can_be_made(
    nodes: list[Backend],
) -> None:
    bad, good = nodes[:2]
    async with BalancedSession(
        Static([bad.address, good.address]),
        policy=Prefer(bad.address),
        health_check=often(unhealthy_threshold=1000, healthy_threshold=3),
    ) as session:
        await session.ready()
        await until(lambda: last(session, bad.address)["result"] == "ok")
        await bad.refuse()  # established connections go on

        async def ejected() -> bool:
            # The kept connection is the checks' or a request's; the others need one of their own.
            await asyncio.gather(*(get(session) for _ in range(4)))
            return state(session, bad.address) == "ejected"

        await until(ejected)
        await until(lambda: last(session, bad.address)["result"] == "failed")
        assert state(session, bad.address) == "ejected"


async def test_failed_checks_are_in_the_debug_log_with_their_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "lbclient.health")
    async with (
        local(answering(lambda: web.Response(status=418))) as server,
        local() as good,
        BalancedSession(Static([server.address, good.address]), name="users", health_check=often()) as session,
    ):
        await session.ready()
        await until(lambda: state(session, server.address) == "unhealthy")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("DEBUG", f"users: check of {server.address}: failed: status 418") in said
    assert ("WARNING", f"users: {server.address} is unhealthy: status 418 (2 in a row)") in said
