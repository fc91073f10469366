"""One etcd cluster over the JSON gateways of its members; etcd3-py's `AioClient` carries the requests, no more."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp

from discovery.connection import address, as_source_error, new_session
from discovery.etcd.auth import Authentication, needs_token
from discovery.etcd.stream import Stream
from discovery.etcd.wire import EtcdError, etcd_error, quoted
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["EtcdClient", "require_etcd3"]

T = TypeVar("T")

_PAUSE = 5.0  # seconds before the next try when etcd refuses even a new token


def require_etcd3() -> None:
    """Import etcd3-py, which takes a third of a second the first time.

    Raises:
        ImportError: it is not installed; the message says how to change that.
    """
    _gateway_class()


@functools.cache
def _gateway_class() -> Any:
    try:
        from etcd3 import AioClient, BaseClient  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise ImportError("etcd support is not installed: pip install 'lbclient[etcd]'") from error

    class Gateway(AioClient):  # type: ignore[misc]
        """`AioClient` without its constructor: that one asks the server for its version, blocking the loop."""

        def __init__(self, member: str, session: aiohttp.ClientSession, protocol: str) -> None:
            host, _, port = member.rpartition(":")
            self.session = session
            BaseClient.__init__(self, host=host, port=port, protocol=protocol, user_agent="lbclient")

        def _retrieve_version(self) -> None:
            pass

        def _verify_version(self) -> None:
            pass

        def _get_prefix(self) -> None:
            self.api_prefix = "/v3"

    return Gateway


class EtcdClient:
    """Calls to one member of a cluster at a time; the next one's turn comes with `rotate()`.

    An asynchronous context manager: the connections live as long as the block. Every call has a timeout.

    Args:
        hosts: addresses of the members, `host:port`; the port is 2379 if left out.
        tls: how to speak TLS; None is plain HTTP.
        timeout: seconds for one call, unless the call says otherwise.
        turn: number of the member to begin with, counted on over the end of `hosts`.
        authentication: the user, and the token that it shares with other clients; None is none.

    Raises:
        ImportError: etcd3-py is not installed.
        ValueError: a host is no address, or there is none.
    """

    def __init__(
        self,
        hosts: Iterable[str],
        *,
        tls: TLS | None = None,
        timeout: float = 2.0,
        turn: int = 0,
        authentication: Authentication | None = None,
    ) -> None:
        require_etcd3()
        self.members = tuple(dict.fromkeys(address(host, default_port=2379) for host in hosts))
        if not self.members:
            raise ValueError("etcd needs at least one host, for example 127.0.0.1:2379")
        self.turn = turn % len(self.members)
        self._tls = tls
        self._timeout = timeout
        self._authentication = authentication
        self._session: aiohttp.ClientSession | None = None
        self._gateways: dict[str, Any] = {}

    @property
    def member(self) -> str:
        """The address of the member whose turn it is."""
        return self.members[self.turn]

    @property
    def url(self) -> str:
        """That member's URL."""
        return f"{'http' if self._tls is None else 'https'}://{self.member}"

    def rotate(self) -> None:
        """Go on with the next member."""
        self.turn = (self.turn + 1) % len(self.members)

    async def __aenter__(self) -> Self:
        self._session = new_session(self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gateways.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(self, path: str, body: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - the message names it
        """Ask the member whose turn it is, for example `call("/kv/range", {"key": ...})`.

        Args:
            path: below `/v3`.
            body: the request as the JSON gateway wants it: bytes in base64, 64-bit numbers as strings.
            timeout: seconds; the client's by default.

        Returns:
            The answer; fields that are zero, false or empty are not in it.

        Raises:
            EtcdError: the member says no.
            SourceError: it cannot be reached, does not answer in time, or is no etcd.
        """
        limit = self._timeout if timeout is None else timeout
        return await self._authorized(lambda token: self._answer(path, body, limit, token))

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Stream, None]:
        """Open a stream of answers, for example a watch; etcd sends the headers with the first answer only.

        Raises:
            EtcdError, SourceError: as `call`.
        """
        response, token = await self._authorized(lambda token: self._opened(path, body, headers or {}, token))
        try:
            yield Stream(response, self._where, forget_token=lambda: self._forget(token))
        finally:
            response.close()

    async def _authorized(self, ask: Callable[[str], Awaitable[T]]) -> T:
        """Do it with the token; once again with a new one if it is refused."""
        if self._authentication is None:
            return await ask("")
        token = await self._authentication.token(self._authenticate, self.url)
        try:
            return await ask(token)
        except EtcdError as error:
            if not needs_token(error):
                raise
        token = await self._authentication.token(self._authenticate, self.url, refused=token)
        try:
            return await ask(token)
        except EtcdError as error:
            if not needs_token(error):
                raise
            # Not again and again: each new token costs the server much.
            raise EtcdError(f"{error}, and it is new", error.code, retry_after=_PAUSE) from error

    def _forget(self, token: str) -> None:
        if self._authentication is not None:
            self._authentication.forget(token)

    async def _authenticate(self, body: Mapping[str, str]) -> Mapping[str, Any]:
        return await self._answer("/auth/authenticate", body, self._timeout, "")

    async def _answer(self, path: str, body: Mapping[str, Any], timeout: float, token: str) -> dict[str, Any]:  # noqa: ASYNC109
        try:
            try:
                content = await self._content(path, body, timeout, token)
            except aiohttp.ServerDisconnectedError:
                # A kept connection to a member that was restarted since: aiohttp does not repeat a POST by itself.
                content = await self._content(path, body, timeout, token)
        except (aiohttp.ClientError, OSError) as error:
            raise as_source_error(self._where, error, timeout=timeout) from error
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise SourceError(f"{self._where}: the answer is not etcd's: {quoted(self._redacted(content))}")
        return answer

    async def _content(self, path: str, body: Mapping[str, Any], timeout: float, token: str) -> bytes:  # noqa: ASYNC109
        limit = aiohttp.ClientTimeout(total=timeout)
        async with self._request(path, body, limit, {}, token) as response:
            content: bytes = await response.read()
            if response.status != HTTPStatus.OK:
                raise self._error(response.status, content)
            return content

    async def _opened(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], token: str
    ) -> tuple[aiohttp.ClientResponse, str]:
        # Only being opened is limited: a quiet stream is a good one.
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._request(path, body, aiohttp.ClientTimeout(total=None), headers, token)
                if response.status != HTTPStatus.OK:
                    async with response:
                        raise self._error(response.status, await response.read())
                return response, token
        except (aiohttp.ClientError, OSError) as error:
            raise as_source_error(self._where, error, timeout=self._timeout) from error

    def _request(
        self,
        path: str,
        body: Mapping[str, Any],
        timeout: aiohttp.ClientTimeout,
        headers: Mapping[str, str],
        token: str,
    ) -> Any:
        if self._session is None:
            raise RuntimeError("use the client in `async with`")
        gateway = self._gateways.get(self.member)
        if gateway is None:
            protocol = "http" if self._tls is None else "https"
            gateway = self._gateways[self.member] = _gateway_class()(self.member, self._session, protocol)
        return gateway.call_rpc(
            path,
            data=json.dumps(body).encode(),
            raw=True,
            timeout=timeout,
            headers={**headers, "Authorization": token} if token else dict(headers),
            allow_redirects=False,
            server_hostname=None if self._tls is None else self._tls.server_name,
        )

    @property
    def _where(self) -> str:
        return f"etcd at {self.url}"

    def _redacted(self, content: bytes) -> bytes:
        return content if self._authentication is None else self._authentication.redact(content)

    def _error(self, status: int, content: bytes) -> SourceError:
        content = self._redacted(content)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            return etcd_error(self._where, answer)
        hint = " (is there an etcd 3.4 or newer with its JSON gateway?)" if status == HTTPStatus.NOT_FOUND else ""
        return SourceError(f"{self._where}: HTTP status {status}: {quoted(content)}{hint}")
