"""Endpoints from etcd: all keys under a prefix, listed once and then followed with a watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import ssl
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from discovery.connection import positive
from discovery.endpoint import Endpoint
from discovery.etcd.auth import Password, shared_authentication
from discovery.etcd.client import EtcdClient
from discovery.etcd.stream import Stream
from discovery.etcd.view import Probe, View, header, text
from discovery.etcd.wire import PERMISSION_DENIED, EtcdError, b64
from discovery.records.fields import SCHEMES
from discovery.records.formats import reader
from discovery.records.records import Records
from discovery.source import SourceError
from discovery.tls import TLS, as_tls

__all__ = ["Etcd"]

log = logging.getLogger(__name__)

_PAGE, _LARGEST_PAGE = 100, 1000  # keys in the first page of a list, and at most
_PAGE_BYTES = 100_000  # of keys and values: they are parsed in about 2 ms, for which the loop stands still
_SLICE = 0.003  # seconds of applying records, then it is the turn of the loop's other tasks
# Changes are collected 4 times as long as it took to show the last ones, at most so many seconds.
_COLLECT, _LONGEST_COLLECT = 4, 0.1
_PAUSE = 5.0  # seconds before the next try when the user has no permission
_DOUBT = 0.5  # seconds until the second look when a probe and our view differ: the event may be on its way
_PLAIN = "/:!$&'()*+,;=~"  # what a URL's path may have as it is
_HAS_LEADER = {"Grpc-Metadata-hasleader": "true"}  # without it a member cut off from the others is silent for ever


class Etcd:
    """The endpoints registered in etcd (3.4 or newer) under a prefix, over the members' JSON gateways.

    A caller may rely on: the set is what one revision of etcd holds, and after any trouble (a broken stream, a
    compaction, a wiped or restored cluster, missed events) it is listed again and replaced as a whole.
    A member that falls silent is noticed within `probe_interval + timeout` seconds, and the next one's turn
    comes. What it does not do: it holds nothing back; when etcd is empty, so is the set.

    Args:
        prefix: begin of the keys, without the slash that ends the host in a URL; it gets a "/" at its end.
        hosts: `host:port` of the members; port 2379 may be left out.
        tls: True for TLS verified with the system's authorities, a `TLS`, or an `ssl.SSLContext`.
        records: format of the values: `auto` or a name in `discovery.records.formats.FORMATS`.
        schemes: the URL schemes to take, where values have URLs; see `discovery.records.formats.reader`.
        user: name of the user, when authentication is switched on in etcd.
        password: its password, or a function that returns the one to authenticate with now, without blocking
            (so that it can be changed without a restart); never shown.
        probe_interval: longest time in seconds between two looks whether etcd is alive and our view is right.
        timeout: seconds for one request; a page of a list (up to 1000 keys), a probe and authenticating are
            one each.

    Raises:
        ImportError: etcd3-py is not installed.
        ValueError, TypeError: an argument makes no sense; the password is not repeated.
    """

    def __init__(
        self,
        prefix: str,
        *,
        hosts: str | Iterable[str] = ("127.0.0.1:2379",),
        tls: bool | ssl.SSLContext | TLS = False,
        records: str = "auto",
        schemes: str | Iterable[str] = SCHEMES,
        user: str | None = None,
        password: Password | None = None,
        probe_interval: float = 5.0,
        timeout: float = 2.0,
    ) -> None:
        if not prefix:
            raise ValueError("etcd needs a prefix, for example services/users/; an empty one would be all of etcd")
        self.prefix = prefix if prefix.endswith("/") else f"{prefix}/"
        self._range = _range(self.prefix)
        self._tls = as_tls(tls)
        self._timeout = positive("timeout", timeout)
        self._probe_interval = positive("probe_interval", probe_interval)
        self.hosts = EtcdClient(hosts.split(",") if isinstance(hosts, str) else hosts).members
        self.records = records
        self._authentication = shared_authentication(self.hosts, user, password)
        self._records = Records(reader(records, schemes=schemes), source=repr(self))
        self._turn = 0
        # What was seen last, and whether the set that is being yielded is of an earlier time.
        self._last: View | None = None
        self.rewound = False
        self._hinted = False

    def __repr__(self) -> str:
        return self._url(self.prefix)

    def _url(self, prefix: str) -> str:
        scheme = "etcd" if self._tls is None else "etcds"
        return f"{scheme}://{','.join(self.hosts)}/{quote(prefix, safe=_PLAIN)}"

    @property
    def skipped(self) -> Mapping[str, str]:
        """The keys of the records that cannot be read now, and why."""
        return self._records.skipped

    def client(self) -> EtcdClient:
        """A client for the same cluster, with the same rights; to be used in `async with`."""
        return EtcdClient(
            self.hosts,
            tls=self._tls,
            timeout=self._timeout,
            turn=self._turn,
            authentication=self._authentication,
        )

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now, after every change, and after every probe that found it right.

        Raises:
            SourceError: no member can be read, or the stream of the one that was followed ended in any way.
        """
        # A copy, so that two watchers of one source do not apply their events to each other's view.
        records = self._records = self._records.copy()
        now = asyncio.get_running_loop().time
        view: View | None = None
        async with self.client() as client:
            try:
                view = await self._list(client, records)
                self.rewound = view.is_behind(self._last)
                yield records.endpoints
                self.rewound = False
                if not view.keys:
                    await self._hint(client)
                create = {"create_request": {**self._range, "start_revision": str(view.revision + 1)}}
                async with client.stream("/watch", create, headers=_HAS_LEADER) as stream:
                    probe_at, show_at = self._next_probe(), math.inf
                    rested_at = now()
                    while True:
                        with _sense(client.url):
                            changed = await self._follow(stream, view, until=min(probe_at, show_at))
                        if changed:
                            show_at = min(show_at, max(now(), rested_at))
                        right = False
                        if now() >= probe_at:
                            with _sense(client.url):
                                right = view.agrees(await self._probe(client, view))
                            probe_at = self._next_probe() if right else now() + _DOUBT
                        if right or now() >= show_at:
                            began_at, show_at = now(), math.inf
                            yield records.endpoints
                            # Showing many takes a while, and 5 000 changes a second must not fill the loop.
                            rested_at = now() + min(_COLLECT * (now() - began_at), _LONGEST_COLLECT)
            except SourceError:
                client.rotate()
                raise
            finally:
                self._turn = client.turn
                self._last = view or self._last

    def _next_probe(self) -> float:
        # Never later than the interval: how soon a silent member is noticed is a promise. Sooner, so that many
        # clients do not ask at the same moment, and that another member is there within 6 s with the defaults.
        return asyncio.get_running_loop().time() + self._probe_interval * random.uniform(0.6, 0.75)

    async def _follow(self, stream: Stream, view: View, *, until: float) -> bool:
        """Apply the answers that come next; whether there were changes."""
        changed = False
        turn = _Turn()
        for answer in await stream.read(until=until):
            for event in view.events(answer):
                view.apply(event)
                changed = True
                if turn.is_over:
                    await turn.pass_on()
        return changed

    async def _list(self, client: EtcdClient, records: Records[bytes]) -> View:
        failures = []
        for _ in client.members:
            try:
                with _sense(client.url):
                    return await self._list_member(client, records)
            except SourceError as error:
                if error.retry_after:
                    # It is not the member, it is the user: the others would say the same.
                    raise
                failures.append(str(error))
                client.rotate()
        raise SourceError("; ".join(failures))

    async def _list_member(self, client: EtcdClient, records: Records[bytes]) -> View:
        found: dict[str, bytes] = {}
        view = None
        page: dict[str, Any] = {**self._range, "limit": str(_PAGE)}
        turn = _Turn()
        while True:
            answer = await self._read(client, page)
            # All pages show the revision of the first one.
            view = view or View(client.url, records, *header(client.url, answer))
            key, size, pairs = b"", 0, answer.get("kvs", ())
            for pair in pairs:
                key, value = view.put(pair)
                found[text(key)] = value
                size += len(key) + len(value)
                if turn.is_over:
                    await turn.pass_on()
            if not answer.get("more"):
                records.replace(found)
                await turn.pass_on()
                return view
            limit = min(_LARGEST_PAGE, max(1, len(pairs) * _PAGE_BYTES // max(1, size)))
            page |= {"key": b64(key + b"\0"), "revision": str(view.revision), "limit": str(limit)}

    async def _probe(self, client: EtcdClient, view: View) -> Probe:
        request = {**self._range, **Probe.request(view.confirmed)}
        return Probe.read(client.url, await self._read(client, request))

    async def _read(self, client: EtcdClient, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for keys in our range."""
        try:
            return await client.call("/kv/range", body)
        except EtcdError as error:
            if error.code != PERMISSION_DENIED or self._authentication is None:
                raise
            raise SourceError(
                f"etcd at {client.url}: user {self._authentication.user!r} may not read the keys that begin with "
                f"{self.prefix!r}: permission denied (grant READ on that prefix to one of its roles)",
                retry_after=_PAUSE,
            ) from error

    async def _hint(self, client: EtcdClient) -> None:
        """Look once whether the prefix has keys with the leading slash that it lacks, or the other way round."""
        other = self.prefix[1:] if self.prefix.startswith("/") else f"/{self.prefix}"
        if self._hinted or not other:
            return
        self._hinted = True
        try:
            answer = await client.call("/kv/range", {**_range(other), "count_only": True})
        except SourceError as error:
            log.debug("%r: no hint: %s", self, error)
            return
        if count := int(answer.get("count", 0)):
            log.warning("%r has no keys, but %s has %d: is that the one you mean?", self, self._url(other), count)


class _Turn:
    """Our turn on the event loop, which other tasks are waiting for."""

    def __init__(self) -> None:
        self._ends_at = time.perf_counter() + _SLICE

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self._ends_at

    async def pass_on(self) -> None:
        await asyncio.sleep(0)
        self._ends_at = time.perf_counter() + _SLICE


@contextlib.contextmanager
def _sense(url: str) -> Iterator[None]:
    """What cannot be understood in an answer is the member's failure, so that the next one is asked."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise SourceError(f"etcd at {url}: an answer makes no sense: {why}") from error


def _range(prefix: str) -> dict[str, str]:
    """All keys that begin with the prefix: it ends in "/", and "0" is the next byte."""
    key = prefix.encode()
    return {"key": b64(key), "range_end": b64(key[:-1] + b"0")}
