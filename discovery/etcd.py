"""Endpoints from etcd: all keys under a prefix, listed once and then followed with a watch."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from discovery.connection import positive
from discovery.endpoint import Endpoint
from discovery.etcd_client import EtcdClient
from discovery.etcd_wire import b64, unb64
from discovery.records import Records, reader
from discovery.source import SourceError
from discovery.tls import TLS, as_tls

__all__ = ["Etcd"]

log = logging.getLogger(__name__)

_PAGE = 500  # keys per request when listing: so many are parsed in about 10 ms, for which the loop stands still
_DOUBT = 0.5  # seconds until the second look when a probe and our view differ: the event may be on its way
_PLAIN = "/:@!$&'()*+,;=~"  # what a URL's path may have as it is
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
        records: format of the values: `auto` or a name in `discovery.records.FORMATS`.
        probe_interval: longest time in seconds between two looks whether etcd is alive and our view is right.
        timeout: seconds for one request; a page of a list (500 keys) and a probe are one each.

    Raises:
        ImportError: etcd3-py is not installed.
        ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        prefix: str,
        *,
        hosts: str | Iterable[str] = ("127.0.0.1:2379",),
        tls: bool | ssl.SSLContext | TLS = False,
        records: str = "auto",
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
        self._records = Records(reader(records), source=repr(self))
        self._turn = 0
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
        return EtcdClient(self.hosts, tls=self._tls, timeout=self._timeout, turn=self._turn)

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now, after every change, and after every probe that found it right.

        Raises:
            SourceError: no member can be read, or the stream of the one that was followed ended in any way.
        """
        # A copy, so that two watchers of one source do not apply their events to each other's view.
        records = self._records = self._records.copy()
        async with self.client() as client:
            try:
                view = await self._list(client, records)
                yield records.endpoints
                if not view.keys:
                    await self._hint(client)
                create = {"create_request": {**self._range, "start_revision": str(view.revision + 1)}}
                async with client.stream("/watch", create, headers=_HAS_LEADER) as stream:
                    due = self._next_probe()
                    while True:
                        changes = [view.apply(answer) for answer in await stream.read(until=due)]
                        if any(changes):
                            yield records.endpoints
                        if asyncio.get_running_loop().time() < due:
                            continue
                        if view.agrees(await self._probe(client)):
                            yield records.endpoints
                            due = self._next_probe()
                        else:
                            due = asyncio.get_running_loop().time() + _DOUBT
            except SourceError:
                client.rotate()
                raise
            finally:
                self._turn = client.turn

    def _next_probe(self) -> float:
        # Never later than the interval: how soon a silent member is noticed is a promise. Down to 20 % sooner, so
        # that many clients do not ask at the same moment.
        return asyncio.get_running_loop().time() + self._probe_interval * random.uniform(0.8, 0.95)

    async def _list(self, client: EtcdClient, records: Records[bytes]) -> _View:
        failures = []
        for _ in client.members:
            try:
                return await self._list_member(client, records)
            except SourceError as error:
                failures.append(str(error))
                client.rotate()
        raise SourceError("; ".join(failures))

    async def _list_member(self, client: EtcdClient, records: Records[bytes]) -> _View:
        found: dict[str, bytes] = {}
        view = None
        page: dict[str, Any] = {**self._range, "limit": str(_PAGE)}
        while True:
            answer = await client.call("/kv/range", page)
            # All pages show the revision of the first one.
            view = view or _View(client.url, records, *_header(client.url, answer))
            key = b""
            for pair in answer.get("kvs", ()):
                key = unb64(pair["key"])
                view.keys[key] = int(pair["mod_revision"])
                found[_text(key)] = value = unb64(pair.get("value", ""))
                records.put(_text(key), value)
            if not answer.get("more"):
                records.replace(found)
                return view
            page |= {"key": b64(key + b"\0"), "revision": str(view.revision)}

    async def _probe(self, client: EtcdClient) -> _Probe:
        newest = {"limit": "1", "keys_only": True, "sort_target": "MOD", "sort_order": "DESCEND"}
        answer = await client.call("/kv/range", {**self._range, **newest})
        cluster, revision = _header(client.url, answer)
        pairs = answer.get("kvs", ())
        return _Probe(
            cluster=cluster,
            revision=revision,
            count=int(answer.get("count", 0)),
            newest=int(pairs[0]["mod_revision"]) if pairs else 0,
        )

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Probe:
    """What etcd says about the prefix at one revision: how many keys, and the newest `mod_revision` among them."""

    cluster: str
    revision: int
    count: int
    newest: int


class _View:
    """What we know: the keys with their `mod_revision`s as of one revision of one cluster."""

    def __init__(self, url: str, records: Records[bytes], cluster: str, revision: int) -> None:
        self.keys: dict[bytes, int] = {}
        self.revision = revision
        self._url = url
        self._records = records
        self._cluster = cluster
        self._doubt: tuple[_Probe, int] | None = None

    def apply(self, answer: Mapping[str, Any]) -> bool:
        """Apply one answer of the watch; whether it held events. `SourceError` if it says that this is the end."""
        result = answer.get("result", {})
        if result.get("canceled"):
            # The gateway leaves the connection open after this, silent for ever.
            why = result.get("cancel_reason") or "no reason given"
            if "compact_revision" in result:
                why = f"what changed up to revision {result['compact_revision']} was compacted away"
            raise SourceError(f"etcd at {self._url} canceled the watch: {why}")
        self._expect_cluster(result.get("header", {}).get("cluster_id", self._cluster))
        for event in result.get("events", ()):
            pair = event["kv"]
            key, revision = unb64(pair["key"]), int(pair["mod_revision"])
            self._settle(revision)
            if event.get("type") == "DELETE":
                self.keys.pop(key, None)
                self._records.delete(_text(key))
            else:
                self.keys[key] = revision
                self._records.put(_text(key), unb64(pair.get("value", "")))
            self.revision = revision
        return "events" in result

    def agrees(self, probe: _Probe) -> bool:
        """Whether the probe shows what we have; if not, events may be on their way, or lost.

        Raises:
            SourceError: events were lost, or this is not the cluster that it was.
        """
        self._expect_cluster(probe.cluster)
        if probe.revision < self.revision:
            raise SourceError(
                f"etcd at {self._url} went back from revision {self.revision} to {probe.revision}: a backup?"
            )
        before, self._doubt = self._doubt, None
        if self._matches(probe):
            return True
        if before is not None and before[1] == self.revision:
            raise self._lost(probe)
        self._doubt = probe, self.revision
        return False

    def _settle(self, revision: int) -> None:
        """Decide an open doubt before the first event beyond its probe: then our view is as old as the probe."""
        if self._doubt is not None and revision > self._doubt[0].revision:
            (probe, _), self._doubt = self._doubt, None
            if not self._matches(probe):
                raise self._lost(probe)

    def _matches(self, probe: _Probe) -> bool:
        return len(self.keys) == probe.count and max(self.keys.values(), default=0) == probe.newest

    def _lost(self, probe: _Probe) -> SourceError:
        return SourceError(
            f"events of etcd at {self._url} were lost: {len(self.keys)} keys known at revision {self.revision}, "
            f"{probe.count} were there at revision {probe.revision}"
        )

    def _expect_cluster(self, cluster: object) -> None:
        if cluster != self._cluster:
            raise SourceError(f"at {self._url} there is another etcd cluster now: {cluster}, not {self._cluster}")


def _range(prefix: str) -> dict[str, str]:
    """All keys that begin with the prefix: it ends in "/", and "0" is the next byte."""
    key = prefix.encode()
    return {"key": b64(key), "range_end": b64(key[:-1] + b"0")}


def _header(url: str, answer: Mapping[str, Any]) -> tuple[str, int]:
    """Cluster id and revision."""
    header = answer.get("header", {})
    try:
        return str(header["cluster_id"]), int(header["revision"])
    except (KeyError, TypeError, ValueError):
        raise SourceError(f"at {url} there is no etcd: its answer has no header") from None


def _text(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
