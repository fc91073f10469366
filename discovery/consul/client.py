"""One Consul agent over HTTP; python-consul2's `Consul` carries the requests, no more."""

from __future__ import annotations

import asyncio
import functools
import json
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from discovery.connection import as_source_error
from discovery.consul.agent import Agent, Lease, agent_at
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["Answer", "ConsulClient", "ConsulError", "Overloaded", "require_consul"]

_LONGEST_QUOTE = 200  # characters of an answer that is an error

# What somebody has to mend first: asking again soon would only be a load.
_REFUSALS = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_REFUSED_FOR = 5.0  # seconds
_BAD_FILTER = "boolean expression evaluator"  # Consul 1.8 has status 500 for it, newer ones have 400

_HINTS = {
    HTTPStatus.UNAUTHORIZED: "the agent wants other credentials than a token",
    HTTPStatus.FORBIDDEN: "the token is missing, unknown or not allowed to do this",
    HTTPStatus.NOT_FOUND: "is there a Consul agent at this address?",
    HTTPStatus.TOO_MANY_REQUESTS: "its limit of requests or connections per client is reached",
}


class ConsulError(SourceError):
    """Consul answered, with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, message: str, status: int, *, retry_after: float = 0.0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.status = status


class Overloaded(SourceError):  # noqa: N818 - a state of the agent
    """The agent hung up without an answer, or said that there are too many requests or connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A good answer of an agent.

    Attributes:
        data: the decoded JSON, None if there was none; or the body in pieces, if that was wanted.
        index: the X-Consul-Index header; 0 if there was none.
        has_leader: whether the agent knows a leader, as far as it said.
    """

    data: Any
    index: int
    has_leader: bool


def require_consul() -> None:
    """Import python-consul2, which takes a third of a second the first time.

    Raises:
        ImportError: it is not installed; the message says how to change that.
    """
    _agent_class()


@functools.cache
def _agent_class() -> Any:
    try:
        from consul import aio, base  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise ImportError("Consul support is not installed: pip install 'lbclient[consul]'") from error

    class Http(base.HTTPClient):  # type: ignore[misc]
        """Requests over a session that is kept; the package's own opens a new one for each."""

        def __init__(self, url: str, session: aiohttp.ClientSession, server_name: str | None) -> None:
            self.base_uri = url
            self._session = session
            self._server_name = server_name

        async def _request(self, method: str, callback: Any, path: str, **options: Any) -> Any:
            # Already escaped by uri(); never redirected: the token would go along to wherever that is.
            url = URL(self.uri(path, options.pop("params", None)), encoded=True)
            async with self._session.request(
                method, url, allow_redirects=False, server_hostname=self._server_name, **options
            ) as response:
                # In pieces: joined and decoded at once, megabytes would hold up the event loop.
                pieces = [piece async for piece in response.content.iter_any()]
                return callback(base.Response(response.status, response.headers, "", pieces))

        get = functools.partialmethod(_request, "GET")
        put = functools.partialmethod(_request, "PUT")
        post = functools.partialmethod(_request, "POST")
        delete = functools.partialmethod(_request, "DELETE")

    class Agent(aio.Consul):  # type: ignore[misc]
        """`Consul` without its constructor: in that one CONSUL_HTTP_* variables override what the program says."""

        def __init__(self, url: str, session: aiohttp.ClientSession, server_name: str | None) -> None:
            self.http = Http(url, session, server_name)

    return Agent


class ConsulClient:
    """Calls to one agent.

    An asynchronous context manager. All clients of one event loop that speak to the same agent with the same TLS
    share their connections, which live as long as one of them. Every call has a timeout.

    Args:
        address: `host:port` of the agent.
        token: ACL token, or a callable that gives it at each `async with`; empty for none. Never shown.
        tls: how to speak TLS; None is plain HTTP.
        namespace: Consul Enterprise's namespace, a part of every call; empty for none.
        timeout: seconds for one call, unless the call says otherwise.

    Raises:
        ImportError: python-consul2 is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | Callable[[], str] | None = None,
        tls: TLS | None = None,
        namespace: str = "",
        timeout: float = 2.0,
    ) -> None:
        self._make_agent = _agent_class()
        self.url = f"{'http' if tls is None else 'https'}://{address}"
        self._token_now = token
        self._token = ""
        self._tls = tls
        self._always = [("ns", namespace)] if namespace else []
        self._timeout = timeout
        self._shared: Agent | None = None
        self._lease: Lease | None = None
        self._agent: Any = None

    def __repr__(self) -> str:
        return f"ConsulClient({self.url})"

    @property
    def shared(self) -> Agent:
        """What all clients of this agent share; inside of `async with` only."""
        if self._shared is None:
            raise RuntimeError("use the client in `async with`")
        return self._shared

    async def __aenter__(self) -> Self:
        self._token = (self._token_now() if callable(self._token_now) else self._token_now) or ""
        self._shared = agent_at(self.url, self._tls)
        self._lease = self._shared.enter()
        server_name = None if self._tls is None else self._tls.server_name
        self._agent = self._make_agent(self.url, self._lease.session, server_name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shared is not None and self._lease is not None:
            shared, lease = self._shared, self._lease
            self._shared = self._lease = self._agent = None
            await shared.leave(lease)

    async def get(
        self,
        path: str,
        params: Iterable[tuple[str, str]] = (),
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the message names it
        raw: bool = False,
    ) -> Answer:
        """Read something.

        Args:
            path: such as `/v1/health/service/web`; slashes in it are kept, the rest is escaped.
            params: of the query.
            timeout: seconds; the client's by default.
            raw: leave the body as the pieces that came, for what may be long.

        Raises:
            ConsulError: the agent says no.
            SourceError: it cannot be reached, does not answer in time, or is no Consul.
        """
        return await self._call("get", self._raw if raw else self._decoded, path, params, timeout)

    async def put(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Iterable[tuple[str, str]] = (),
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> Answer:
        """Write something; as `get`, with a JSON body."""
        data = b"" if body is None else json.dumps(body).encode()
        return await self._call("put", self._decoded, path, params, timeout, data=data)

    async def _call(
        self,
        verb: str,
        read: Callable[[Any], Answer],
        path: str,
        params: Iterable[tuple[str, str]],
        timeout: float | None,  # noqa: ASYNC109 - as above
        **options: Any,
    ) -> Answer:
        if self._agent is None or self._lease is None:
            raise RuntimeError("use the client in `async with`")
        limit = self._timeout if timeout is None else timeout
        # Unpacking 64 kB of a long list takes longer than all the rest of a slice, and an agent is near.
        headers = {"Accept-Encoding": "identity", **({"X-Consul-Token": self._token} if self._token else {})}
        try:
            async with asyncio.timeout(limit):
                call = getattr(self._agent.http, verb)
                answer = await call(read, path, params=[*self._always, *params], headers=headers, **options)
        except (aiohttp.ClientError, OSError) as error:
            said = as_source_error(f"Consul at {self.url}", error, timeout=limit)
            if isinstance(error, TimeoutError):
                self.shared.doubt(self._lease)
            elif isinstance(error, aiohttp.ClientConnectorError) and isinstance(
                error.os_error, ConnectionRefusedError
            ):
                self.shared.gone()
            raise Overloaded(str(said)) if _hung_up(error) else said from error
        return answer  # type: ignore[no-any-return]

    def _raw(self, response: Any) -> Answer:
        """The callback for python-consul2: its own ones lose the headers and the status of an error."""
        if response.code != HTTPStatus.OK:
            raise self._refusal(response.code, b"".join(response.content).decode("utf-8", "replace").strip())
        try:
            index = int(response.headers.get("X-Consul-Index", 0))
        except ValueError as error:
            raise self._no_consul(error) from error
        has_leader = response.headers.get("X-Consul-KnownLeader", "true") != "false"
        return Answer(data=response.content, index=index, has_leader=has_leader)

    def _decoded(self, response: Any) -> Answer:
        answer = self._raw(response)
        content = b"".join(answer.data)
        try:
            return replace(answer, data=json.loads(content) if content.strip() else None)
        except (ValueError, RecursionError) as error:
            raise self._no_consul(error) from error

    def _refusal(self, status: int, said: str) -> SourceError:
        retry_after = _REFUSED_FOR if status in _REFUSALS or _BAD_FILTER in said else 0.0
        said = (said.replace(self._token, "***") if self._token else said)[:_LONGEST_QUOTE]
        hint = f" ({_HINTS[status]})" if status in _HINTS else ""  # type: ignore[index]
        message = f"Consul at {self.url}: HTTP status {status}: {said!r}{hint}"
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            return Overloaded(message)
        return ConsulError(message, status, retry_after=retry_after)

    def _no_consul(self, error: Exception) -> SourceError:
        return SourceError(f"Consul at {self.url}: the answer is not Consul's: {error}")


def _hung_up(error: Exception) -> bool:
    """Whether the server closed the connection in place of an answer, perhaps before it was whole."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return isinstance(error.os_error, ConnectionResetError)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return True
    return isinstance(error, aiohttp.ClientOSError) and not isinstance(error.__cause__, ssl.SSLError)
