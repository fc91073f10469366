"""TLS: a certificate must be good for the logical name, whatever address the registry has for it."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from rig import Local, Prefer, in_flight
from yarl import URL

from discovery import Endpoint, Static
from lbclient import BalancedSession, attempts
from lbclient.outcome import Outcome
from lbclient.sandbox import Backend

Start = Callable[[str], Awaitable[Local]]


def endpoint(address: str, *, tls: bool = True) -> Endpoint:
    return Endpoint.parse(address, tls=tls)


async def test_the_certificate_is_checked_for_the_logical_name(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    server = await tls_servers("users")
    async with (
        BalancedSession({"users": Static([server.address])}) as session,
        session.get("https://users/x", ssl=client_tls) as response,
    ):
        assert response.url == URL("https://users/x")
    assert server.names == ["users"]
    assert server.seen[0].headers["Host"] == "users"


async def test_plain_urls_use_tls_where_the_endpoint_wants_it(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    server = await tls_servers("users")
    async with BalancedSession(Static([endpoint(server.address)]), name="users") as session:
        async with session.get("/x", ssl=client_tls) as response:
            assert response.url == URL("http://users/x")
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get("/x")  # the system's authorities know nothing of ours
    assert server.names == ["users", "users"]
    assert [(seen.target, seen.headers["Host"]) for seen in server.seen] == [("/x", "users")]


@pytest.mark.parametrize("url", ["https://users/x", "http://users/x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_certificate_for_another_name_is_refused_and_another_node_is_tried(
    tls_servers: Start, client_tls: ssl.SSLContext, method: str, url: str
) -> None:
    wrong, right = await tls_servers("mallory"), await tls_servers("users")
    nodes = Static([endpoint(wrong.address), endpoint(right.address)])
    async with (
        BalancedSession({"users": nodes}, policy=Prefer(wrong.address)) as session,
        session.request(method, url, data=b"secret", ssl=client_tls) as response,
    ):
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.CONNECT, Outcome.SUCCESS]
        assert "CertificateError" in attempts(response)[0].error
    assert wrong.names == ["users"]
    assert wrong.seen == [], "something was sent to a server that could not say who it is"
    assert [seen.body for seen in right.seen] == [b"secret"]


async def test_after_a_wrong_certificate_one_other_node_is_asked_and_the_log_says_why(
    tls_servers: Start, client_tls: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever stands between us and all of them is not given a third try."""
    wrong = [await tls_servers("mallory") for _ in range(3)]
    nodes = Static([endpoint(server.address) for server in wrong])
    async with BalancedSession({"users": nodes}) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError) as caught:
            await session.get("https://users/x", ssl=client_tls)
        assert len(attempts(caught.value)) == 2
        assert sum(len(server.names) for server in wrong) == 2
    warned = [record.message for record in caplog.records if "cannot be trusted" in record.message]
    assert [each.partition(": ")[0] for each in warned] == ["users", "users"]
    for attempt, message in zip(attempts(caught.value), warned, strict=True):
        assert attempt.endpoint.address in message


async def test_without_another_node_the_certificates_error_is_raised(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    wrong = await tls_servers("mallory")
    async with BalancedSession({"users": Static([wrong.address])}) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError, match="users"):
            await session.get("https://users/x", ssl=client_tls)
        assert in_flight(session) == 0
    assert wrong.names == ["users"], "it was asked once more"
    assert wrong.seen == []


async def test_the_address_is_no_name(tls_servers: Start, client_tls: ssl.SSLContext) -> None:
    """A certificate for 127.0.0.1 proves nothing about the service."""
    server = await tls_servers("127.0.0.1")
    async with BalancedSession({"users": Static([server.address])}) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get("https://users/x", ssl=client_tls)
    assert server.seen == []


@pytest.mark.parametrize("url", ["https://users/x", "http://users/x"])
async def test_the_callers_server_hostname_wins(tls_servers: Start, client_tls: ssl.SSLContext, url: str) -> None:
    wrong, right = await tls_servers("users"), await tls_servers("api.example")
    nodes = Static([endpoint(wrong.address), endpoint(right.address)])
    async with (
        BalancedSession({"users": nodes}, policy=Prefer(wrong.address)) as session,
        session.get(url, ssl=client_tls, server_hostname="api.example") as response,
    ):
        assert len(attempts(response)) == 2
        assert response.url == URL(url)
    assert wrong.names == right.names == ["api.example"]
    assert wrong.seen == []
    assert right.seen[0].headers["Host"] == "users"


async def test_services_on_one_address_do_not_share_verified_connections(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    server = await tls_servers("users")
    services = {"users": Static([server.address]), "orders": Static([server.address])}
    async with BalancedSession(services) as session:
        for _ in range(2):
            async with session.get("https://users/x", ssl=client_tls):
                pass
        assert server.connections == 1, "the connection was not kept for the next request"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get("https://orders/secret", ssl=client_tls)
    assert [seen.target for seen in server.seen] == ["/x", "/x"]
    assert server.names == ["users", "orders"]


async def test_plain_and_tls_nodes_can_be_mixed(
    tls_servers: Start, client_tls: ssl.SSLContext, nodes: list[Backend]
) -> None:
    """The scheme of an attempt is that of its endpoint, not that of the attempt before."""
    wrong, plain = await tls_servers("mallory"), nodes[0].address
    mixed = Static([endpoint(wrong.address), endpoint(plain, tls=False)])
    async with (
        BalancedSession({"users": mixed}, policy=Prefer(wrong.address)) as session,
        session.get("http://users/x", ssl=client_tls) as response,
    ):
        said = await response.json()
        assert ["Host", "users"] in said["headers"]
        assert len(attempts(response)) == 2


async def test_tls_to_a_plain_port_is_a_failure_to_connect(
    tls_servers: Start, client_tls: ssl.SSLContext, nodes: list[Backend]
) -> None:
    right, plain = await tls_servers("users"), nodes[0].address
    both = Static([endpoint(plain), endpoint(right.address)])
    async with (
        BalancedSession({"users": both}, policy=Prefer(plain)) as session,
        session.post("https://users/x", data=b"1", ssl=client_tls) as response,
    ):
        assert [attempt.outcome for attempt in attempts(response)] == [Outcome.CONNECT, Outcome.SUCCESS]
    assert (await nodes[0].stat())["requests"] == 0


@pytest.mark.parametrize("url", ["wss://users/ws", "ws://users/ws"])
async def test_websockets_over_tls(
    client_tls: ssl.SSLContext, pem: Callable[[str], tuple[Path, Path]], url: str
) -> None:
    async with await Backend.start("secure", tls=pem("users")) as backend:
        nodes = Static([endpoint(backend.address)])
        async with BalancedSession({"users": nodes}) as session:
            async with session.ws_connect(url, ssl=client_tls) as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello"
                assert in_flight(session) == 1
            assert in_flight(session) == 0
