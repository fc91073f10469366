"""One entry in a registry: what etcd and Consul each must know to be written, kept alive and removed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Generic, TypeVar

from discovery.endpoint import Endpoint
from discovery.source import SourceError

__all__ = ["BEATS_TO_LOOK", "Forgotten", "Registration", "Taken"]

BEATS_TO_LOOK = 3
"""Every so many beats the entry is read: that it is gone, or overwritten, no sign of life would tell."""

Client = TypeVar("Client")


class Forgotten(SourceError):  # noqa: N818 - what happened, in one word
    """The registry has not, or no longer, what was written: it is to be written again at once."""


class Taken(SourceError):  # noqa: N818 - as above
    """Another process has registered under the same id since: the last one wins."""


class Registration(ABC, Generic[Client]):
    """One entry in one registry; the loop that keeps it is the `Registrar`'s. To be used by one task at a time.

    Any method may raise `SourceError`; the registrar then closes the connections, waits and calls `put` again.

    Attributes:
        id: the name of the entry, for log lines.

    Args:
        id: the name of the entry.
        connect: makes a client, an asynchronous context manager.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the registries' own name for it
        connect: Callable[[], AbstractAsyncContextManager[Client]],
    ) -> None:
        self.id = id
        self._connect = connect
        self._stack = AsyncExitStack()
        self._client: Client | None = None

    @abstractmethod
    def validate(self, endpoint: Endpoint) -> None:
        """Raise `ValueError` if the registry has no way to write this endpoint down."""

    @abstractmethod
    async def put(self, endpoint: Endpoint, complaint: str) -> None:
        """Make the registry say this, whatever it says now.

        Args:
            endpoint: what to write.
            complaint: why it is not healthy and must not be found; empty if it is.

        Raises:
            Taken: it was ours and somebody else's since, and still is.
        """

    @abstractmethod
    async def renew(self) -> None:
        """Give a sign of life, and look now and then whether the entry is still what was put.

        Raises:
            Forgotten: it is not.
            Taken: it is somebody else's.
        """

    @abstractmethod
    async def remove(self) -> None:
        """Remove the entry if it is still ours; without asking anybody if nothing was ever put."""

    async def client(self) -> Client:
        """The client, connected at the first call; certificates are read again then."""
        if self._client is None:
            self._client = await self._stack.enter_async_context(self._connect())
        return self._client

    async def close(self) -> None:
        """Close all connections; the next call makes new ones."""
        self._client = None
        await self._stack.aclose()
