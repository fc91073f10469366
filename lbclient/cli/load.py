"""`Load`: sends requests at a steady rate, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from typing import Any

import aiohttp

from lbclient.cli.hops import hops
from lbclient.cli.tally import Tally
from lbclient.session import BalancedSession

__all__ = ["Load", "described"]

# A request that takes longer has failed; the demo's backends answer within 40 ms.
_TIMEOUT = 10.0
_ERROR = 400


class Load:
    """An open loop: each request starts at its time, so that a slow or dead server cannot slow down the rest.

    One request in ten is a POST with an `Idempotency-Key`: it may be sent again after a server died over it.

    Args:
        session: what sends the requests.
        rate: requests per second.
        rng: chooses paths and bodies.
    """

    def __init__(self, session: BalancedSession, *, rate: float, rng: random.Random) -> None:
        self.tally = Tally()
        self._session = session
        self._rate = rate
        self._rng = rng
        self._stopped = False

    def stop(self) -> None:
        """Start no more requests; `run` returns when those under way have ended."""
        self._stopped = True

    async def run(self) -> None:
        """Send requests until `stop`."""
        began_at = time.monotonic()
        number = 0
        async with asyncio.TaskGroup() as requests:
            while not self._stopped:
                await asyncio.sleep(max(0.0, began_at + number / self._rate - time.monotonic()))
                requests.create_task(self._send(*self._request()))
                number += 1

    def _request(self) -> tuple[str, str, dict[str, Any]]:
        rng = self._rng
        kind = rng.random()
        if kind < 0.1:  # noqa: PLR2004 - shares of the mix
            key = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            order = {"user": rng.randrange(1000), "amount": rng.randrange(100)}
            return "POST", "/v1/orders", {"json": order, "headers": {"Idempotency-Key": key}}
        if kind < 0.4:  # noqa: PLR2004 - as above
            return "GET", f"/v1/users/{rng.randrange(1000)}", {}
        return "GET", f"/slow?ms={rng.randint(5, 40)}", {}

    async def _send(self, method: str, path: str, options: dict[str, Any]) -> None:
        began_at = time.monotonic()
        response = None
        try:
            async with self._session.request(method, path, timeout=_TIMEOUT, **options) as response:
                await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            # A body that broke off has its attempts in the response.
            self.tally.record(hops(response or error), 0.0, None, f"{method} {path}: {described(error, _TIMEOUT)}")
            return
        milliseconds = (time.monotonic() - began_at) * 1000
        failed = f"{method} {path}: status {response.status}" if response.status >= _ERROR else ""
        self.tally.record(hops(response), milliseconds, response.status, failed)


def described(error: BaseException, timeout: float) -> str:
    """An exception of a request in words; aiohttp's deadline for the whole of it says nothing by itself."""
    if type(error) is TimeoutError and not str(error):
        return f"no complete answer within {timeout:g} s"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
