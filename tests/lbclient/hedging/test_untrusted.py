"""Servers that cannot prove who they are, in races: whoever stands between us and all of them has no third try."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from hedging_rig import hedging_of, preferring
from rig import Local, black_hole

from lbclient import Hedge, Outcome, attempts

Start = Callable[[str], Awaitable[Local]]


async def test_after_a_race_of_two_that_cannot_be_trusted_nobody_else_is_asked(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    servers = [await tls_servers(name) for name in ("mallory", "mallory", "service")]
    nodes = [server.address for server in servers]
    # With no delay at all: both begin.
    async with preferring(*nodes, hedge=Hedge(after=0)) as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError) as caught:
            await session.get("https://service/x", ssl=client_tls)
        assert [a.outcome for a in attempts(caught.value)] == [Outcome.CONNECT] * 2
    assert [len(server.names) for server in servers] == [1, 1, 0]


async def test_after_one_that_cannot_be_trusted_the_next_is_asked_alone(
    tls_servers: Start, client_tls: ssl.SSLContext
) -> None:
    first, third = await tls_servers("mallory"), await tls_servers("service")
    async with black_hole() as second:
        nodes = first.address, second, third.address
        async with (
            preferring(*nodes, hedge=Hedge(after=2), connect_timeout=3) as session,
            session.get("https://service/x", ssl=client_tls) as response,
        ):
            assert [a.endpoint.address for a in attempts(response)] == list(nodes)
            assert hedging_of(session).sent == 0
