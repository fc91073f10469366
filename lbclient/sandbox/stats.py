"""What a backend counts on one data port."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TypedDict


class PortStats(TypedDict):
    """Counters of one data port; times are of `time.monotonic`, which all processes of a machine share."""

    requests: int
    by_method: dict[str, int]
    connections_open: int
    connections_total: int
    connections_max: int
    in_flight: int
    last_request_at: float | None
    last_connection_closed_at: float | None
    after_leaving: int
    ids: dict[str, int]


@dataclass(slots=True)
class Stats:
    """Counters of one data port, and whether it has left the service."""

    requests: int = 0
    by_method: Counter[str] = field(default_factory=Counter)
    connections_open: int = 0
    connections_total: int = 0
    connections_max: int = 0
    in_flight: int = 0
    last_request_at: float | None = None
    last_connection_closed_at: float | None = None
    after_leaving: int = 0
    ids: Counter[str] = field(default_factory=Counter)
    left: bool = False

    def request_started(self, method: str, request_id: str | None) -> None:
        """Count a request whose handling starts."""
        self.requests += 1
        self.in_flight += 1
        self.by_method[method] += 1
        self.last_request_at = time.monotonic()
        if self.left:
            self.after_leaving += 1
        if request_id is not None:
            self.ids[request_id] += 1

    def request_ended(self) -> None:
        """Count a request as no longer being handled."""
        self.in_flight -= 1

    def connection_opened(self) -> None:
        """Count a connection that is ready for requests (with TLS: after the handshake)."""
        self.connections_total += 1
        self.connections_open += 1
        self.connections_max = max(self.connections_max, self.connections_open)

    def connection_closed(self) -> None:
        """Count a connection as closed."""
        self.connections_open -= 1
        self.last_connection_closed_at = time.monotonic()

    def reset(self) -> None:
        """Start counting anew; what is open or in flight stays counted."""
        self.requests = self.connections_total = self.after_leaving = 0
        self.by_method.clear()
        self.ids.clear()
        self.connections_max = self.connections_open
        self.last_request_at = self.last_connection_closed_at = None

    def as_json(self) -> PortStats:
        """Return the counters as the control port answers them."""
        return PortStats(
            requests=self.requests,
            by_method=dict(self.by_method),
            connections_open=self.connections_open,
            connections_total=self.connections_total,
            connections_max=self.connections_max,
            in_flight=self.in_flight,
            last_request_at=self.last_request_at,
            last_connection_closed_at=self.last_connection_closed_at,
            after_leaving=self.after_leaving,
            ids=dict(self.ids),
        )
