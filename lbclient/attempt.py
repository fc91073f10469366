"""`Attempt`: one try at one node."""

from __future__ import annotations

import select
import time
from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import ref

import aiohttp
from yarl import URL

from lbclient.errors import ConnectionGone, NodeLeft
from lbclient.node import NO_ATTEMPTS, Node
from lbclient.outcome import FAILURES, Outcome

if TYPE_CHECKING:
    from aiohttp import ClientRequest, ClientResponse
    from aiohttp.connector import Connection

__all__ = ["Attempt"]

# Of other methods a lost request may have been processed, and what they do may not be done twice.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# What connections have once a request was sent on them: aiohttp does not tell kept ones from new ones.
_USED = "_lbclient_used"
# Turns of the loop until what is there to be read has been taken in: two, also with TLS, and one to be safe.
_TURNS = 3

# What aiohttp leaves in a body whose connection broke off, or which is none, or on which nothing came any more.
_BROKEN = (aiohttp.ClientPayloadError, aiohttp.ClientOSError, aiohttp.ServerTimeoutError)


class Attempt:
    """One try at one node, from the pick until the end of the body.

    Attributes:
        endpoint: where it went.
        outcome: what it showed; None while it is under way. A body that breaks off makes a fault of a success.
        elapsed: seconds until the head of the response, or until the failure.
        picked: why this node, in words.
        error: what failed, in words, and why it was not tried again if that is not plain; empty after a success.
        sent_at: `time.monotonic()` seconds when the request began to be written; None before.
        websocket: refers to the websocket that it became, if that wants to say farewell before it is cut.
        observed: the outcome that the balancer has learned from; None before.
    """

    __slots__ = (
        "_followed",
        "_on_land",
        "_req",
        "conn",
        "elapsed",
        "endpoint",
        "error",
        "node",
        "observed",
        "outcome",
        "picked",
        "sent_at",
        "started_at",
        "websocket",
    )

    def __init__(
        self, node: Node, picked: str, on_land: Callable[[], None], started_at: float | None = None
    ) -> None:
        self.node = node
        self._on_land = on_land
        self.endpoint = node.endpoint
        self.picked = picked
        self.outcome: Outcome | None = None
        self.observed: Outcome | None = None
        self.elapsed = 0.0
        self.error = ""
        self.sent_at: float | None = None
        self.conn: Connection | None = None
        self._req: ClientRequest | None = None
        self._followed: tuple[ref[ClientResponse], Callable[[Attempt, Outcome], None]] | None = None
        self.websocket: ref[Any] | None = None
        self.started_at = time.monotonic() if started_at is None else started_at
        node.in_flight += 1
        if not node.unanswered:
            node.silent_since = self.started_at
        node.unanswered += 1
        node.group.in_flight += 1
        node.requests += 1
        if node.attempts is NO_ATTEMPTS:
            node.attempts = set()
        node.attempts.add(self)
        if node.awaits_probe:
            node.awaits_probe = False
            node.probe = self

    def __repr__(self) -> str:
        return f"<Attempt {self}>"

    def __str__(self) -> str:
        said = f"{self.endpoint.address}: {self.outcome.value if self.outcome else 'under way'}"
        said += f" after {self.elapsed * 1000:.1f} ms ({self.picked})"
        return f"{said}: {self.error}" if self.error else said

    @property
    def sent(self) -> bool:
        """Whether the request began to be written."""
        return self.sent_at is not None

    @property
    def leaving(self) -> bool:
        """Whether its node left, or said that it will: what lasts long should be begun anew, at another one."""
        return self.node.left or self.node.leaving

    def aim(self, req: ClientRequest, url: URL, server_hostname: str | None) -> None:
        """Point the request at the node, and be told when it is written."""
        self.node.aim(req, url, server_hostname)
        self._req = req
        # Between connecting and writing is the last moment at which a node that has left can be noticed.
        setattr(req, "send", self.send)  # noqa: B010 - a method, as far as types are concerned

    def send(self, conn: Connection) -> Awaitable[ClientResponse]:
        """Stand in for `ClientRequest.send`: the connection is there, nothing was written yet."""
        req = self._req
        if req is not None and req.method not in _SAFE and _has_news(conn):
            return self._send_if_open(conn)
        return self._send(conn)

    async def _send_if_open(self, conn: Connection) -> ClientResponse:
        """Let the loop take in what came before the request was sent, which can only be the connection's end.

        A loop that is busy does so late, and what is written until then is lost.
        """
        kept = hasattr(conn.protocol, _USED)
        for _ in range(_TURNS):
            await sleep(0)
        if conn.protocol is None or not conn.protocol.is_connected():
            said = f"{self.node.address} had closed the connection; nothing was sent"
            # One that was never of use is a failure to connect.
            raise ConnectionGone(said) if kept else aiohttp.ServerDisconnectedError(said)
        return await self._send(conn)

    def _send(self, conn: Connection) -> Awaitable[ClientResponse]:
        req, self._req = self._req, None
        if req is None or self.node.left:
            raise NodeLeft(f"{self.node.address} left while a connection to it was being made")
        self.conn = conn
        setattr(conn.protocol, _USED, True)
        self.sent_at = time.monotonic()
        conn.add_callback(self.land)
        return _send_body(req, conn) if req.body else type(req).send(req, conn)

    def follow(self, response: ClientResponse, on_break: Callable[[Attempt, Outcome], None]) -> None:
        """See the body to its end; `on_break` is called with a fault if it breaks off."""
        if self.conn is not None:
            # The nodes know their attempts: a strong reference would keep a response that its owner has lost.
            self._followed = ref(response), on_break

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Not to count as under way, for as long as another one is chosen that takes its place."""
        node = self.node
        node.in_flight -= 1
        node.group.in_flight -= 1
        try:
            yield
        finally:
            node.in_flight += 1
            # It may be another one now.
            node.group.in_flight += 1

    def land(self) -> None:
        """The connection is free again, or there will be none: the attempt is over. Doing it twice is harmless."""
        node = self.node
        if self in node.attempts:
            node.attempts.remove(self)
            node.in_flight -= 1
            node.group.in_flight -= 1
            if self.conn is not None and self.outcome is None:
                self._drop_unsent(self.conn)
            self.conn = None
            self._req = None
            self._on_land()
            if self._followed is not None:
                self._look_at_body(*self._followed)

    def _drop_unsent(self, conn: Connection) -> None:
        """Let nothing of a body be kept for a server that does not take it."""
        # To close a transport is to send the rest first: to a silent server for as long as that lives.
        transport = conn.transport
        if transport is not None and transport.get_write_buffer_size() and conn.protocol is not None:
            conn.protocol.force_close()
            transport.abort()

    def _look_at_body(self, found: ref[ClientResponse], on_break: Callable[[Attempt, Outcome], None]) -> None:
        self._followed = None
        response = found()
        broken = None if response is None else response.content.exception()
        # Whoever closes a response before its end leaves another exception there. A node that has left is cut off
        # in the end by this very client, and one failure must not count twice.
        if isinstance(broken, _BROKEN) and not self.node.left and self.outcome not in FAILURES:
            self.error = f"{type(broken).__name__}: {broken}"
            on_break(self, Outcome.FAULT)

    def cut(self, answered: Exception, unanswered: Exception) -> None:
        """End it here and now: who reads the body gets the first error, who waits for the head the second."""
        # What its body has then is no fault of the node.
        self._followed = None
        conn, protocol = self.conn, None if self.conn is None else self.conn.protocol
        if conn is not None and protocol is not None and conn.transport is not None:
            # A private name that is read. If it vanishes, the reader has aiohttp's own error.
            body = getattr(protocol, "_payload", None)
            protocol.force_close()
            if body is not None and not body.is_eof():
                body.set_exception(answered)
                # It forgets the body, or the end of the connection would become the reader's error.
                protocol.abort()
            else:
                protocol.set_exception(unanswered)
                conn.transport.abort()
        self.land()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `elapsed` in seconds."""
        return {
            "address": self.endpoint.address,
            "outcome": self.outcome.value if self.outcome else None,
            "elapsed": self.elapsed,
            "picked": self.picked,
            "error": self.error,
        }


async def _send_body(req: ClientRequest, conn: Connection) -> ClientResponse:
    """Send a request with a body, and see whether the connection was lost meanwhile.

    From Python 3.12 on aiohttp writes what it can at once. If that fails in the end it closes the connection, and
    then waits for an answer on none: an `AttributeError`.
    """
    response = await type(req).send(req, conn)
    if conn.protocol is None:
        raise aiohttp.ServerDisconnectedError("the connection was lost while the request was being written")
    return response


def _has_news(conn: Connection) -> bool:
    """Whether something is there to be read, the end of the connection included: one look at the socket."""
    if conn.transport is None:
        return True
    sock = conn.transport.get_extra_info("socket")
    if sock is None:
        return False
    descriptor = sock.fileno()
    if descriptor < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
