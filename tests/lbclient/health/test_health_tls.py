"""Health checks over TLS: as requests, with the logical name, whatever address the registry has."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from rig import Local, node_of, until

from discovery import Endpoint, Static
from lbclient import BalancedSession, HealthCheck
from lbclient.health.state import Verdict
from lbclient.health.target import Target
from lbclient.node import Node

Start = Callable[[str], Awaitable[Local]]
CHECK = HealthCheck(interval=0.02, timeout=30, unhealthy_threshold=2)


def session_for(server: Local, client_tls: ssl.SSLContext, *, tls: bool, **options: Any) -> BalancedSession:
    connector = aiohttp.TCPConnector(limit=0, ssl=client_tls)
    return BalancedSession(
        Static([Endpoint.parse(server.address, tls=tls)]),
        **({"name": "users", "connector": connector, "health_check": CHECK} | options),
    )


def last(session: BalancedSession, server: Local) -> Any:
    return node_of(session, server.address)["check"]


async def test_checks_use_the_sessions_tls_settings_before_the_first_request(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    server = await tls_servers("users")
    async with session_for(server, client_tls, tls=True) as session:
        await session.ready()
        await until(lambda: last(session, server) is not None)
        assert last(session, server)["result"] == "ok"
    assert set(server.names) == {"users"}
    assert server.seen[0].headers["Host"] == "users"


async def test_an_https_base_url_says_that_checks_use_tls(tls_servers: Start, client_tls: ssl.SSLContext) -> None:
    server = await tls_servers("users")
    async with session_for(server, client_tls, tls=False, base_url="https://users/") as session:
        await session.ready()
        await until(lambda: last(session, server) is not None)
        assert last(session, server)["result"] == "ok"


async def test_checks_follow_the_requests_scheme_settings_and_name(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    """Plain checks of a TLS port fail, until a request shows how it is done."""
    server = await tls_servers("api.example")
    async with session_for(server, client_tls, tls=False, connector=None) as session:
        await session.ready()
        await until(lambda: node_of(session, server.address)["state"] == "unhealthy")
        async with session.get("https://users/x", ssl=client_tls, server_hostname="api.example"):
            pass
        await until(lambda: node_of(session, server.address)["state"] == "ready")
    assert set(server.names) == {"api.example"}


async def test_a_certificate_for_another_name_is_a_failure(tls_servers: Start, client_tls: ssl.SSLContext) -> None:
    server = await tls_servers("mallory")
    async with session_for(server, client_tls, tls=True) as session:
        await session.ready()
        await until(lambda: last(session, server) is not None)
        assert last(session, server)["result"] == "failed"
        assert "CertificateError" in last(session, server)["why"]
    assert server.seen == []


async def test_a_tcp_check_of_a_tls_port_only_connects(tls_servers: Start, client_tls: ssl.SSLContext) -> None:
    server = await tls_servers("mallory")
    check = HealthCheck(path=None, interval=0.02, timeout=30)
    async with session_for(server, client_tls, tls=True, health_check=check) as session:
        await session.ready()
        await until(lambda: last(session, server) is not None)
        assert last(session, server)["result"] == "ok"
    assert server.names == []
    assert server.seen == []


@pytest.mark.parametrize(("path", "tls", "confirmed"), [(None, True, 0), (None, False, 1), ("/healthz", True, 1)])
def test_a_connection_says_nothing_of_the_handshake(path: str | None, tls: bool, confirmed: int) -> None:
    """A stopped server accepts connections: an ejection for failed handshakes does not end by them."""
    node = Node(Endpoint(host="10.0.0.1", port=443, tls=tls))
    node.eject(1.0, 31.0, "three failed connections in a row", unreachable=True)
    target = Target(node, HealthCheck(path=path))
    assert target.confirms(Verdict.OK, 2.0) == confirmed
