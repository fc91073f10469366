"""Waiting for an attempt to begin: for endpoints, or for a slot."""

from __future__ import annotations

import asyncio
import time

from aiohttp import ClientRequest

from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.passage import timer
from lbclient.refusals import no_endpoints
from lbclient.service import Service
from lbclient.tried import tell

__all__ = ["wait", "wait_in_time"]

# Seconds before the deadline at which a further attempt is not waited for any more.
_SPARE = 0.02


async def wait(service: Service, call: Call, req: ClientRequest, tries: list[Attempt]) -> Attempt:
    """Begin an attempt as soon as there may be one; the deadline of the whole request ends it.

    Raises:
        LBError: why there will be none; see `Service.wait_and_begin`.
        TimeoutError: with a note on what was waited for.
    """
    try:
        with timer(req):
            return await service.wait_and_begin(call)
    except BaseException as error:
        if isinstance(error, TimeoutError):
            error.add_note(_awaited(service, call))
        tell(error, tries)
        raise


async def wait_in_time(
    service: Service, call: Call, req: ClientRequest, tries: list[Attempt], deadline: float | None
) -> Attempt | None:
    """The same, or None just before the deadline, when the last answer can still be read."""
    left = None if deadline is None else max(0.0, deadline - _SPARE - call.now)
    try:
        async with asyncio.timeout(left) as limit:
            return await wait(service, call, req, tries)
    except TimeoutError:
        if not limit.expired():
            raise
        return None


def _awaited(service: Service, call: Call) -> str:
    if service.balancer.nodes:
        return f"service {service.name!r}: waited for a slot; {service.slots.in_flight} attempts are in flight"
    waited = round(time.monotonic() - call.now, 1)
    return str(no_endpoints(service.name, service.watcher, service.balancer, tried=len(call.tried), wait=waited))
