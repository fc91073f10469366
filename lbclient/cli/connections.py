"""The client's connections as its sockets tell them: how many are open to an address, and when they closed."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import aiohttp

__all__ = ["Connections"]


class _ReportingSocket(socket.socket):
    """A socket that says when it is closed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.on_close: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        if self.on_close is not None:
            report, self.on_close = self.on_close, None
            report()


class Connections:
    """Makes the sockets of a connector and remembers them by the address they go to.

    A socket counts from the moment it begins to connect; times are `time.monotonic()` seconds.
    """

    def __init__(self) -> None:
        self._open: dict[str, set[float]] = {}
        self._closed: dict[str, list[tuple[float, float]]] = {}

    def connector(self, **options: Any) -> aiohttp.TCPConnector:
        """A connector whose sockets are counted here."""
        return aiohttp.TCPConnector(socket_factory=self._socket, **options)

    def open_to(self, address: str) -> int:
        """How many are open to an address."""
        return len(self._open.get(address, ()))

    def last_closed_at(self, address: str, *, opened_before: float) -> float | None:
        """When the last of those opened before a moment closed; None if there was none, or one is still open."""
        if any(opened_at < opened_before for opened_at in self._open.get(address, ())):
            return None
        times = (closed_at for opened_at, closed_at in self._closed.get(address, ()) if opened_at < opened_before)
        return max(times, default=None)

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = info
        address = f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
        opened_at = time.monotonic()
        self._open.setdefault(address, set()).add(opened_at)

        def closed() -> None:
            self._open[address].discard(opened_at)
            self._closed.setdefault(address, []).append((opened_at, time.monotonic()))

        made = _ReportingSocket(family, kind, protocol)
        made.on_close = closed
        return made
