"""Endpoints from Consul: the healthy instances of a service, followed with blocking queries."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from discovery.connection import address as canonical
from discovery.connection import positive
from discovery.consul_client import Answer, ConsulClient, require_consul
from discovery.endpoint import Endpoint
from discovery.records import Records
from discovery.source import SourceError
from discovery.tls import TLS, as_tls

__all__ = ["Consul"]

# Seconds; Consul cuts longer ones (https://developer.hashicorp.com/consul/api-docs/features/blocking).
_LONGEST_WAIT = 600.0
# A deploy is a burst of changes, each of which should be seen at once; checks that flap without end are not.
_POLLS_PER_SECOND, _BURST = 5.0, 10
# Nothing has this id: the answer is an empty list with the true index, whatever the number of instances.
_NOTHING = ("filter", 'Service.ID == "-"')


class Consul:
    """The instances of a service in Consul's catalog, as one agent shows them.

    A caller may rely on: critical instances are never in the set (one in maintenance is critical). An agent that
    falls silent is noticed within `probe_interval + timeout` seconds. However busy the catalog is, the agent is
    asked at most 5 times a second, after a burst of 10. What it does not do: it holds nothing back; Consul
    shows an empty service to a token that may not read it, and so does this.

    Args:
        service: name of the service.
        address: `host:port` of the agent; port 8500 may be left out.
        tag: a tag, or several of which an instance must have all.
        dc: data centre; the agent's own by default.
        token: ACL token; never shown.
        passing: True for instances all of whose checks pass; False for those in warning too, with
            the weight that they registered for that.
        tls: True for TLS verified with the system's authorities, a `TLS`, or an `ssl.SSLContext`.
        wait: longest time in seconds for which the agent may keep a query waiting, at most 600.
        probe_interval: longest time in seconds between two signs of life.
        timeout: seconds for a request that is not kept waiting; the first one brings all instances.

    Raises:
        ImportError: python-consul2 is not installed.
        ValueError: an argument makes no sense; the token is not repeated.
    """

    def __init__(
        self,
        service: str,
        *,
        address: str = "127.0.0.1:8500",
        tag: str | Iterable[str] | None = None,
        dc: str | None = None,
        token: str | None = None,
        passing: bool = True,
        tls: bool | ssl.SSLContext | TLS = False,
        wait: float = 30.0,
        probe_interval: float = 5.0,
        timeout: float = 2.0,
    ) -> None:
        require_consul()
        self.service = _valid_service(service)
        self.address = canonical(address, default_port=8500)
        self.passing = passing
        self._token = _valid_token(token)
        self._tls = as_tls(tls)
        self._wait = positive("wait", wait)
        if self._wait > _LONGEST_WAIT:
            raise ValueError(f"wait must be at most {_LONGEST_WAIT:g} seconds, not {wait!r}")
        self._probe_interval = positive("probe_interval", probe_interval)
        self._timeout = positive("timeout", timeout)
        tags = () if tag is None else (tag,) if isinstance(tag, str) else tuple(tag)
        self.tags = tags
        self._filter = [("tag", each) for each in tags] + ([] if dc is None else [("dc", dc)])
        if not all(value for _, value in self._filter):
            raise ValueError("a tag or a data centre must not be empty")
        self._pace = _Pace(_POLLS_PER_SECOND, _BURST)
        self._records = Records(self._read, source=repr(self))

    def __repr__(self) -> str:
        scheme = "consul" if self._tls is None else "consuls"
        query = urlencode(self._filter + ([] if self.passing else [("passing", "0")]))
        return f"{scheme}://{self.address}/{quote(self.service)}{'?' if query else ''}{query}"

    @property
    def skipped(self) -> Mapping[str, str]:
        """The instances (`node/service id`) that cannot be read now, and why."""
        return self._records.skipped

    def client(self) -> ConsulClient:
        """A client for the same agent, with the same rights; to be used in `async with`."""
        return ConsulClient(self.address, token=self._token, tls=self._tls, timeout=self._timeout)

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now, after every change, and after every probe that the agent answered.

        Raises:
            SourceError: the agent cannot be reached, does not answer in time, or says no.
        """
        # A copy, so that two watchers of one source do not replace each other's view.
        records = self._records = self._records.copy()
        async with self.client() as client:
            index = 0
            while True:
                poll = asyncio.create_task(self._poll(client, index), name=f"poll {self!r}")
                try:
                    while not await _done(poll, self._until_probe()):
                        answer = await self._ask(client, [_NOTHING])
                        if max(answer.index, 1) < index:
                            # A server restored from a backup: the poll would wait in silence until it catches up.
                            break
                        if index:
                            yield records.endpoints
                    else:
                        answer = poll.result()
                        records.replace(_by_key(answer.data))
                        yield records.endpoints
                finally:
                    await _dispose(poll)
                # Consul's rules for the index: below 1 it would not block, and a smaller one means to begin anew.
                index = 0 if answer.index < index else max(answer.index, 1)

    async def _poll(self, client: ConsulClient, index: int) -> Answer:
        """Wait for the index to pass the given one; 0 does not wait."""
        await asyncio.sleep(self._pace.delay(time.monotonic()))
        if not index:
            return await self._ask(client, [])
        wait = [("index", str(index)), ("wait", f"{self._wait * 1000:.0f}ms")]
        # Consul adds up to a sixteenth of the wait, so that not all come back at the same moment.
        return await self._ask(client, wait, timeout=self._wait * 17 / 16 + 5)

    async def _ask(
        self,
        client: ConsulClient,
        params: list[tuple[str, str]],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the client's message names it
    ) -> Answer:
        path = f"/v1/health/service/{self.service}"
        answer = await client.get(path, [*self._filter, *params], timeout=timeout)
        if not isinstance(answer.data, list):
            raise SourceError(f"Consul at {client.url} did not answer with a list: is it Consul?")
        if not answer.has_leader:
            raise SourceError(f"Consul at {client.url} knows no leader")
        return answer

    def _until_probe(self) -> float:
        # Never later than the interval: how soon a silent agent is noticed is a promise. Down to 20 % sooner, so
        # that many clients do not ask at the same moment.
        return self._probe_interval * random.uniform(0.8, 0.95)

    def _read(self, key: str, instance: Any) -> Iterable[Endpoint]:
        """The endpoint in one entry of /v1/health/service; many of its fields may be null."""
        service, node = instance["Service"], instance["Node"]
        status = _worst(check["Status"] for check in instance.get("Checks") or ())
        if status == "critical" or (status == "warning" and self.passing):
            return ()
        meta = service.get("Meta") or {}
        endpoint = Endpoint(
            host=service.get("Address") or node.get("Address"),
            port=service.get("Port"),
            weight=(service.get("Weights") or {}).get(status.capitalize(), 1),
            zone=meta.get("zone", ""),
            tls=meta.get("secure") == "true",
            metadata=meta,
            id=key,
        )
        return (endpoint,)


class _Pace:
    """A token bucket, as the generic cell rate algorithm: one number is all its state.

    https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._next_at = float("-inf")

    def delay(self, now: float) -> float:
        """Seconds to wait; the turn is taken."""
        at = max(self._next_at, now - self._slack)
        self._next_at = at + self._interval
        return max(0.0, at - now)


async def _done(task: asyncio.Task[Any], within: float) -> bool:
    await asyncio.wait([task], timeout=within)
    return task.done()


async def _dispose(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # it was asked for, so that asyncio does not complain that nobody did


def _by_key(instances: list[Any]) -> dict[str, Any]:
    found = {}
    for number, instance in enumerate(instances):
        try:
            # A service id is unique on its node only.
            key = f"{instance['Node']['Node']}/{instance['Service']['ID']}"
        except (KeyError, TypeError):
            key = f"entry {number}"
        found[key] = instance
    return found


def _worst(statuses: Iterable[str]) -> str:
    """Of `passing`, `warning` and `critical`; an unknown one is critical."""
    worst = "passing"
    for status in statuses:
        if status == "warning":
            worst = "warning"
        elif status != "passing":
            return "critical"
    return worst


def _valid_service(name: str) -> str:
    # It becomes part of a path: "../kv" would read something else.
    if not name or "/" in name or name in {".", ".."} or not name.isprintable():
        raise ValueError(
            f"Consul needs the name of a service, for example web: no slashes, no control characters, not {name!r}"
        )
    return name


def _valid_token(token: str | None) -> str | None:
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError("the token must consist of printable ASCII characters without spaces")
    return token or None
