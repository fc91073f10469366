"""What etcd and Consul servers have in common: killing, restarting, waiting for health."""

import asyncio
import json
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import aiohttp

from lbclient.sandbox.containers import Container
from lbclient.sandbox.errors import NotKillable, SandboxError
from lbclient.sandbox.local import LocalServer

_HEALTH_TIMEOUT = 30.0
_POLL = 0.02
# A request that reached a leader at its end is never answered; another member may have a new one soon.
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=1.5)
_PATIENCE = 15.0
_BINARY = ("application/x-gzip", "application/octet-stream")


class Server(ABC):
    """One server, either started here or running elsewhere.

    Attributes:
        address: Where its clients connect, "host:port".
        version: Its version, such as "3.5.21".
    """

    kind = "server"

    def __init__(self, address: str, version: str, host: LocalServer | Container | None) -> None:
        self.address = address
        self.version = version
        self._host = host

    @property
    def killable(self) -> bool:
        """Whether it was started here, and can be killed, paused, restarted and wiped."""
        return self._host is not None

    @property
    def running(self) -> bool:
        """Whether it runs; one that was started elsewhere is believed to."""
        return self._host is None or self._host.running

    async def kill(self) -> None:
        """Kill -9; fine if it is not running."""
        await self._own().kill()

    async def pause(self) -> None:
        """Freeze it: connections stay open, nothing is answered."""
        await self._own().pause()

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._own().resume()

    async def restart(self, *, wait: bool = True) -> None:
        """Start it again on the same ports with the data it had; kills it first if it runs.

        Args:
            wait: Return only when it is healthy (one member of a cluster needs the others for that).
        """
        await self._own().restart()
        if wait:
            await self.wait_healthy()

    async def wipe(self, *, wait: bool = True) -> None:
        """Kill it and start it again on the same ports without its data.

        Args:
            wait: Return only when it is healthy.
        """
        await self._own().wipe()
        if wait:
            await self.wait_healthy()

    async def back_up(self) -> None:
        """Copy its data, in place of an earlier copy; it is killed for that and started again.

        Raises:
            SandboxError: It runs in a container.
        """
        await self._own_files().back_up()
        await self.wait_healthy()

    async def roll_back(self) -> None:
        """Kill it and start it again with the data that `back_up` copied: what came later never happened.

        Raises:
            SandboxError: It runs in a container.
        """
        await self._own_files().roll_back()
        await self.wait_healthy()

    async def stop(self) -> None:
        """Kill it and remove its data; a server that was started elsewhere is left alone."""
        if self._host is not None:
            await self._host.remove()

    async def wait_healthy(self, timeout: float = _HEALTH_TIMEOUT) -> None:  # noqa: ASYNC109 - one deadline
        """Wait until it does its work.

        Raises:
            SandboxError: It died, or is not healthy after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while not await self._healthy():
            if self._host is not None:
                self._host.expect_running("being healthy")
            if time.monotonic() > deadline:
                tail = "" if self._host is None else self._host.tail()
                raise SandboxError(f"{self.kind} {self.address} is not healthy after {timeout:g} s\n{tail}")
            await asyncio.sleep(_POLL)

    @abstractmethod
    async def _healthy(self) -> bool:
        """Whether it answers and can be written to."""

    def _own(self) -> LocalServer | Container:
        if self._host is None:
            raise NotKillable(
                f"{self.kind} {self.address} was started elsewhere (its address was given), so it is not stopped "
                f"or restarted from here; ask for one of your own with own=True"
            )
        return self._host

    def _own_files(self) -> LocalServer:
        host = self._own()
        if not isinstance(host, LocalServer):
            raise SandboxError(f"{self.kind} {self.address} runs in a container; only local data is copied")
        return host

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def ask(
    method: str,
    url: str,
    body: Any = None,
    *,
    context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Ask a server over HTTP and return its answer's JSON (None for an empty one); bytes stay bytes.

    Args:
        method: HTTP method.
        url: Where.
        body: What to send as JSON.
        context: How to speak TLS, if the URL says so.
        headers: Tokens and the like.

    Raises:
        SandboxError: It answered that the request is wrong; the message has its reason.
        aiohttp.ClientError: It did not answer, or failed.
        TimeoutError: It did not answer in time.
    """
    # A session for each question: the next one may come from another event loop.
    async with (
        aiohttp.ClientSession(timeout=_REQUEST_TIMEOUT) as session,
        session.request(
            method, url, headers=headers, ssl=True if context is None else context, **_content(body)
        ) as response,
    ):
        if response.ok and response.content_type in _BINARY:
            return await response.read()
        text = await response.text()
        if response.ok:
            return json.loads(text) if text else None
        message = f"{method} {url}: {response.status} {text.strip()}"
        # Consul has one status for an unknown check and for a missing leader.
        if response.status == HTTPStatus.SERVICE_UNAVAILABLE or "leader" in text:
            raise aiohttp.ClientPayloadError(message)
        raise SandboxError(message)


def _content(body: Any) -> dict[str, Any]:
    return {"data": body} if isinstance(body, bytes) else {"json": body}


async def ask_first(
    addresses: Sequence[str],
    method: str,
    path: str,
    body: Any = None,
    *,
    scheme: str = "http",
    context: ssl.SSLContext | None = None,
    headers: Mapping[str, str] | None = None,
) -> Any:
    """Ask the first of several servers that does answer, again and again while they elect a leader.

    Raises:
        SandboxError: All refused the connection, one called the request wrong, or time is up.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        failures: list[Exception] = []
        for address in addresses:
            try:
                url = f"{scheme}://{address}{path}"
                return await ask(method, url, body, context=context, headers=headers)
            except (aiohttp.ClientError, TimeoutError) as error:
                failures.append(error)
        hopeless = all(isinstance(failure, aiohttp.ClientConnectorError) for failure in failures)
        if hopeless or time.monotonic() > deadline:
            reasons = "; ".join(str(failure) or type(failure).__name__ for failure in failures)
            raise SandboxError(f"{path} failed: {reasons or 'there is no running server'}")
        await asyncio.sleep(_POLL)
