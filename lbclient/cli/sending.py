"""One request of `lbclient get`: what was asked for, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
from yarl import URL

from discovery import service_name
from lbclient.attempt import Attempt
from lbclient.cli.hops import Hop, hops
from lbclient.cli.load import described
from lbclient.outcome import Outcome
from lbclient.retrying import Retry
from lbclient.session import BalancedSession
from lbclient.tried import attempts

__all__ = ["Answer", "Request", "send"]

_ERROR = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be sent; see the command's help."""

    url: str
    path: str
    service: str | None
    number: int
    concurrency: int
    method: str | None
    headers: list[tuple[str, str]]
    data: str | None
    key: str | None
    timeout: float
    explain: bool
    as_json: bool
    retry: Retry = field(default_factory=Retry)

    @property
    def verb(self) -> str:
        """The method; data alone makes it a POST, as with curl."""
        return (self.method or "").upper() or ("GET" if self.data is None else "POST")

    @property
    def name(self) -> str:
        """The logical name of the service."""
        return self.service or service_name(self.url)

    @property
    def target(self) -> URL:
        """The logical URL; a path that needs no escaping is sent byte for byte."""
        text = f"http://{self.name}{self.path}"
        return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one request.

    Attributes:
        hops: the attempts of each hop: a request that is redirected has several.
        milliseconds: until the end of the body, or until the error.
        by: the attempt that was answered; None without an answer.
    """

    hops: tuple[Hop, ...]
    milliseconds: float
    error: BaseException | None = None
    status: int | None = None
    reason: str = ""
    headers: Sequence[tuple[str, str]] = ()
    by: Attempt | None = None
    body: bytes = b""

    def failure(self, request: Request) -> str:
        """Why it counts as failed, in words; empty if it does not."""
        if self.error is not None:
            return described(self.error, request.timeout)
        return f"status {self.status} {self.reason}".strip() if self.status and self.status >= _ERROR else ""


async def send(session: BalancedSession, request: Request) -> Answer:
    """Send it once, and read the whole answer."""
    began_at = time.monotonic()
    response = by = None
    try:
        sent = session.request(
            request.verb, request.target, headers=request.headers, data=request.data, lb_key=request.key
        )
        async with sent as response:
            # While the body comes the loser of a race may be answered as well.
            by = next((a for a in reversed(attempts(response)) if a.outcome is not Outcome.OURS), None)
            body = await response.read()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # A body that broke off has its attempts in the response.
        return Answer(
            hops=hops(response or error), milliseconds=(time.monotonic() - began_at) * 1000, error=error, by=by
        )
    return Answer(
        hops=hops(response),
        milliseconds=(time.monotonic() - began_at) * 1000,
        status=response.status,
        reason=response.reason or "",
        headers=list(response.headers.items()),
        by=by,
        body=body,
    )
