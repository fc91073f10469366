"""One health check of one node, over HTTP or TCP."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping

from aiohttp import ClientResponse, StreamReader

from lbclient.health.health_check import HealthCheck
from lbclient.health.state import Verdict
from lbclient.node import Node
from lbclient.outcome import Outcome, classify
from lbclient.side_requests import SideRequests, Trip

__all__ = ["AGENT", "Finding", "ask"]

AGENT = "lbclient health check"
# Bytes of an answer's body that are read. If there are more the connection is closed.
_MOST = 16 * 1024
_UNAVAILABLE = 503
# As with requests: this machine has none left.
_LOCAL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# What a check showed, and why in words.
Finding = tuple[Verdict, str]


async def ask(node: Node, check: HealthCheck, side: SideRequests, interval: float) -> Finding:
    """Check the node, the next time after `interval` seconds; whatever goes wrong is part of the finding."""
    # One that is ejected for failed connections has to show that new ones can be made. A connection that is gone
    # before the next check would only take a descriptor until then.
    inside = node.ejected_at is None
    trip = Trip(keeps_new=inside and interval * (1 + check.jitter) < side.kept_for, keeps_old=inside)
    try:
        if check.path is None:
            return await _connect(node, check.timeout)
        return await _request(node, check.path, check, side, trip)
    except TimeoutError:
        if trip.queued:
            return Verdict.UNKNOWN, "the session's connections are all in use"
        return Verdict.FAILED, f"no answer within {check.timeout:g} s"
    except Exception as error:  # noqa: BLE001 - checks go on, whatever the network does
        said = f"{type(error).__name__}: {error}"
        ours = _is_ours(error) if check.path is None else classify(error) is Outcome.OURS
        return Verdict.UNKNOWN if ours else Verdict.FAILED, said


async def _connect(node: Node, timeout: float) -> Finding:  # noqa: ASYNC109 - as of all checks
    endpoint, loop = node.endpoint, asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        transport, _ = await loop.create_connection(asyncio.Protocol, endpoint.host, endpoint.port)
    transport.close()
    return Verdict.OK, "connected"


async def _request(node: Node, path: str, check: HealthCheck, side: SideRequests, trip: Trip) -> Finding:
    async with side.get(node, path, timeout=check.timeout, agent=AGENT, trip=trip) as response:
        finding = _judge(response, check)
        # With something unread on it aiohttp keeps no connection.
        await _read(response.content, _MOST)
    return finding


def _judge(response: ClientResponse, check: HealthCheck) -> Finding:
    if check.draining_header is not None and check.draining_header in response.headers:
        return Verdict.DRAINING, f"it answered with {check.draining_header}"
    status = response.status
    if status in check.statuses:
        return Verdict.OK, f"status {status}"
    if status == _UNAVAILABLE and _closes(response.headers):
        return Verdict.DRAINING, "it answered with 503 and Connection: close"
    return Verdict.FAILED, f"status {status}"


def _closes(headers: Mapping[str, str]) -> bool:
    options = headers.get("Connection", "").lower().split(",")
    return "close" in (option.strip() for option in options)


async def _read(content: StreamReader, most: int) -> None:
    """Read the body to its end, or a little more of it than these bytes."""
    while most >= 0:
        chunk = await content.read(most + 1)
        if not chunk:
            return
        most -= len(chunk)


def _is_ours(error: Exception) -> bool:
    return not isinstance(error, OSError) or error.errno in _LOCAL
