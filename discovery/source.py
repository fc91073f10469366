"""Where endpoints come from: the `Source` protocol, and the two sources that need no registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Protocol, runtime_checkable

from discovery.endpoint import Endpoint, endpoint_tuple

__all__ = ["Memory", "Source", "SourceError", "Static"]


class SourceError(Exception):
    """A registry could not be read; the message says which one and why, without credentials.

    Attributes:
        retry_after: seconds for which trying again is pointless or harmful; the watcher waits at least so long.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@runtime_checkable
class Source(Protocol):
    """One registry, seen from one service. All the rest (waiting, retrying, comparing) is the `Watcher`'s.

    A source may also have these attributes:

    - `skipped`: a mapping from the keys of the records that it cannot read to the reasons; the watcher shows how
      many there are.
    - `degraded`: what is wrong with a part of it while the rest is good, shown as the snapshot's reason.
    - `rewound`: True while it yields a set of a registry that is back at an earlier time (a wiped one, a restored
      backup): what is missing in that set is held.

    Its `repr` is its
    name in the log and in the cache, so it has no secrets.
    """

    def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the *complete* set now and after every change; an equal set is a sign of life.

        It may raise or end at any time; the watcher then calls `watch()` again after a while. It is always
        closed (`aclose`) by the watcher, and must release everything it holds when it is.
        """
        ...


class Static:
    """Endpoints that never change, given as `Endpoint` objects or strings such as `10.0.0.1:8080`."""

    def __init__(self, endpoints: Iterable[Endpoint | str]) -> None:
        if isinstance(endpoints, str):
            endpoints = endpoints.split(",")
        parsed = (e if isinstance(e, Endpoint) else Endpoint.parse(e) for e in endpoints)
        self.endpoints = endpoint_tuple(parsed)
        if not self.endpoints:
            raise ValueError("a static source needs at least one endpoint")

    def __repr__(self) -> str:
        return f"Static({', '.join(e.address for e in self.endpoints)})"

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the endpoints once, then wait for ever."""
        yield self.endpoints
        await asyncio.Event().wait()


class Memory:
    """A registry inside this process: for tests, for demos, and for sets that the program itself decides.

    Changes are seen by every watcher of the same event loop within the same turns of the loop, without
    any sleep. `fail()` plays an outage of the registry: watchers become stale and try again until `recover()`.
    Not thread-safe: call it from the loop's thread.
    """

    def __init__(self, endpoints: Iterable[Endpoint | str] = ()) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()
        self._changed: set[asyncio.Event] = set()
        self._failure: str | None = None
        self.set(endpoints)

    def __repr__(self) -> str:
        return f"Memory({len(self._endpoints)} endpoints)"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is registered now, sorted."""
        return self._endpoints

    def set(self, endpoints: Iterable[Endpoint | str]) -> None:
        """Replace everything."""
        parsed = (e if isinstance(e, Endpoint) else Endpoint.parse(e) for e in endpoints)
        self._endpoints = endpoint_tuple(parsed)
        self._wake()

    def add(self, endpoint: Endpoint | str) -> None:
        """Register one endpoint; one with the same address is replaced."""
        endpoint = endpoint if isinstance(endpoint, Endpoint) else Endpoint.parse(endpoint)
        self.set([*(e for e in self._endpoints if e.address != endpoint.address), endpoint])

    def remove(self, endpoint: Endpoint | str) -> None:
        """Take out the endpoint with this address; raises `KeyError` if there is none."""
        address = endpoint.address if isinstance(endpoint, Endpoint) else Endpoint.parse(endpoint).address
        rest = [e for e in self._endpoints if e.address != address]
        if len(rest) == len(self._endpoints):
            raise KeyError(address)
        self.set(rest)

    def fail(self, reason: str = "outage played by Memory.fail()") -> None:
        """From now on be a registry that cannot be reached."""
        self._failure = reason
        self._wake()

    def recover(self) -> None:
        """End what `fail()` began."""
        self._failure = None
        self._wake()

    def _wake(self) -> None:
        for event in self._changed:
            event.set()

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now and after each change; changes that come together are seen together."""
        event = asyncio.Event()
        self._changed.add(event)
        try:
            while True:
                event.clear()
                if self._failure is not None:
                    raise SourceError(self._failure)
                yield self._endpoints
                await event.wait()
        finally:
            self._changed.discard(event)
