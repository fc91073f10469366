"""`LoadReporter`: an aiohttp server tells its clients how busy it is."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import median

from aiohttp import web
from aiohttp.typedefs import Handler

from lbclient.load_report import HEADER, LoadReport
from lbclient.options import function

__all__ = ["LoadReporter"]

# Latencies that are kept for each number of requests in flight, and the seconds for which they say something.
_KEPT = 16
_RECENT = 10.0
_SWITCHING_PROTOCOLS = 101
_SERVER_ERROR = 500


class LatencyEstimate:
    """How long a request takes at a given load, as Prequal's servers estimate it.

    It is the median of recent requests that found as many others in flight when they arrived, or about as many.
    """

    __slots__ = ("_recent",)

    def __init__(self) -> None:
        self._recent: dict[int, deque[tuple[float, float]]] = {}

    def add(self, rif: int, latency: float, now: float) -> None:
        """A request that arrived with `rif` others in flight took `latency` seconds."""
        self._recent.setdefault(_rounded(rif), deque(maxlen=_KEPT)).append((now, latency))

    def at(self, rif: int, now: float) -> float | None:
        """Seconds to be expected with `rif` requests in flight; None if nothing recent is known."""
        rif = _rounded(rif)
        while self._recent:
            nearest = rif if rif in self._recent else min(self._recent, key=lambda known: abs(known - rif))
            latencies = self._recent[nearest]
            while latencies and latencies[0][0] < now - _RECENT:
                latencies.popleft()
            if latencies:
                return median(latency for _, latency in latencies)
            del self._recent[nearest]
        return None


class LoadReporter:
    """Counts the requests in flight of an aiohttp application and how long they take, and reports both.

        app = web.Application()
        LoadReporter().setup(app)

    Clients ask at `/-/load` (see `Prequal`); such probes are not counted. Requests count until their handler is
    done, and their latency until the head of the response, as clients see it; those that fail (status 500 and
    above) say nothing about latency. All applications that share one reporter are reported as one.

    Whoever can reach the server can read its load; `on_responses=False` keeps it out of ordinary answers.

    Args:
        on_responses: send a report with each response as well.
        clock: monotonic seconds.

    Attributes:
        in_flight: requests in flight now.
    """

    def __init__(self, *, on_responses: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        function("clock", clock, "that returns seconds, such as time.monotonic")
        self.in_flight = 0
        self._arrival = web.RequestKey("lbclient_arrival", _Arrival)
        self._on_responses = on_responses
        self._clock = clock
        self._latency = LatencyEstimate()

    def setup(self, app: web.Application, path: str = "/-/load") -> None:
        """Count all requests to the application and its sub-applications, and answer probes at the path."""
        app.middlewares.insert(0, self.middleware)
        app.on_response_prepare.append(self._on_prepare)
        app.router.add_get(path, self.answer)

    @property
    def report(self) -> LoadReport:
        """The load at this moment."""
        return self._report(self.in_flight)

    async def answer(self, _: web.Request) -> web.Response:
        """Answer a probe."""
        return web.Response(status=204, headers={HEADER: str(self.report), "Cache-Control": "no-store"})

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request as in flight; `setup` puts it around all other middlewares."""
        # One to a sub-application comes by twice if the reporter was set up there, too.
        if request.match_info.handler == self.answer or self._arrival in request:
            return await handler(request)
        arrival = request[self._arrival] = _Arrival(self.in_flight, self._clock())
        self.in_flight += 1
        try:
            return await handler(request)
        finally:
            self.in_flight -= 1
            arrival.counted = False

    async def _on_prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        # Once, for the same reason.
        arrival = request.pop(self._arrival, None)
        if arrival is None:
            return
        now = self._clock()
        # A websocket is there at once whatever the load.
        if response.status < _SERVER_ERROR and response.status != _SWITCHING_PROTOCOLS:
            self._latency.add(arrival.rif, now - arrival.at, now)
        if self._on_responses:
            # Those who read it will have one request less here.
            response.headers.setdefault(HEADER, str(self._report(self.in_flight - arrival.counted)))

    def _report(self, rif: int) -> LoadReport:
        return LoadReport(rif, self._latency.at(rif, self._clock()))


class _Arrival:
    """When a request arrived and how many were in flight; whether it still counts among them."""

    __slots__ = ("at", "counted", "rif")

    def __init__(self, rif: int, at: float) -> None:
        self.rif = rif
        self.at = at
        self.counted = True


def _rounded(rif: int) -> int:
    """Two digits of the number, so that few are told apart however large they are."""
    unit: int = 10 ** max(0, len(str(rif)) - 2)
    return rif // unit * unit
