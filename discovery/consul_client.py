"""One Consul agent over HTTP; python-consul2's `Consul` carries the requests, no more."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp
from yarl import URL

from discovery.connection import as_source_error, new_session
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["Answer", "ConsulClient", "ConsulError", "require_consul"]

_LONGEST_QUOTE = 200  # characters of an answer that is an error

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

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A good answer of an agent.

    Attributes:
        data: the decoded JSON; None if there was none.
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
                content = await response.read()
                body = content.decode("utf-8", "replace")
                return callback(base.Response(response.status, response.headers, body, content))

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

    An asynchronous context manager: the connections live as long as the block. Every call has a timeout.

    Args:
        address: `host:port` of the agent.
        token: ACL token; never shown.
        tls: how to speak TLS; None is plain HTTP.
        timeout: seconds for one call, unless the call says otherwise.

    Raises:
        ImportError: python-consul2 is not installed.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: TLS | None = None,
        timeout: float = 2.0,
    ) -> None:
        self._make_agent = _agent_class()
        self.url = f"{'http' if tls is None else 'https'}://{address}"
        self._token = token
        self._tls = tls
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._agent: Any = None

    async def __aenter__(self) -> Self:
        self._session = new_session(self._tls)
        server_name = None if self._tls is None else self._tls.server_name
        self._agent = self._make_agent(self.url, self._session, server_name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = self._agent = None

    async def get(
        self,
        path: str,
        params: Iterable[tuple[str, str]] = (),
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the message names it
    ) -> Answer:
        """Read something.

        Args:
            path: such as `/v1/health/service/web`; slashes in it are kept, the rest is escaped.
            params: of the query.
            timeout: seconds; the client's by default.

        Raises:
            ConsulError: the agent says no.
            SourceError: it cannot be reached, does not answer in time, or is no Consul.
        """
        return await self._call("get", path, params, timeout=timeout)

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
        return await self._call("put", path, params, timeout=timeout, data=data)

    async def _call(
        self,
        verb: str,
        path: str,
        params: Iterable[tuple[str, str]],
        *,
        timeout: float | None,  # noqa: ASYNC109 - as above
        **options: Any,
    ) -> Answer:
        if self._agent is None:
            raise RuntimeError("use the client in `async with`")
        limit = self._timeout if timeout is None else timeout
        headers = {"X-Consul-Token": self._token} if self._token else {}
        try:
            async with asyncio.timeout(limit):
                call = getattr(self._agent.http, verb)
                answer = await call(self._read, path, params=list(params), headers=headers, **options)
        except (aiohttp.ClientError, OSError) as error:
            raise as_source_error(f"Consul at {self.url}", error, timeout=limit) from error
        return answer  # type: ignore[no-any-return]

    def _read(self, response: Any) -> Answer:
        """The callback for python-consul2: its own ones lose the headers and the status of an error."""
        where = f"Consul at {self.url}"
        if response.code != HTTPStatus.OK:
            said = response.body.strip()
            said = (said.replace(self._token, "***") if self._token else said)[:_LONGEST_QUOTE]
            hint = f" ({_HINTS[response.code]})" if response.code in _HINTS else ""
            raise ConsulError(f"{where}: HTTP status {response.code}: {said!r}{hint}", response.code)
        try:
            data = json.loads(response.content) if response.content.strip() else None
            index = int(response.headers.get("X-Consul-Index", 0))
        except ValueError as error:
            raise SourceError(f"{where}: the answer is not Consul's: {error}") from error
        has_leader = response.headers.get("X-Consul-KnownLeader", "true") != "false"
        return Answer(data=data, index=index, has_leader=has_leader)
