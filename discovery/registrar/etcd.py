"""An entry in etcd: one key under a prefix, attached to a lease that dies with the process."""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from discovery.endpoint import Endpoint
from discovery.etcd import Etcd
from discovery.etcd.client import EtcdClient
from discovery.etcd.wire import EtcdError, b64, unb64
from discovery.registrar.registration import BEATS_TO_LOOK, Forgotten, Registration, Taken
from discovery.source import SourceError

__all__ = ["EtcdRegistration"]

log = logging.getLogger("discovery.registrar")

_NOT_FOUND = 5  # gRPC status code
_WRITTEN = ("etcd", "address")
_OWN = ("weight", "priority", "zone", "tls")  # of the metadata, these say what the endpoint itself says

_Entry = tuple[bytes, str]  # value, and the id of the lease as a decimal number, "0" for none


class EtcdRegistration(Registration[EtcdClient]):
    """The key `prefix + id`, kept by a lease.

    The key belongs to who wrote it last: when another living lease has it, this one stands back and writes only
    when the key is gone. Without a lease on it (somebody's manual put) it is written again.

    Args:
        source: which cluster, with which rights, and which prefix.
        id: name of the key below the prefix.
        ttl: seconds, 2 or more; etcd has whole ones, so they are rounded up.
        records: how the value is written: `etcd` or `address`.

    Raises:
        ValueError: the id or the format is none.
    """

    def __init__(self, source: Etcd, *, id: str, ttl: float, records: str) -> None:  # noqa: A002 - as above
        super().__init__(_valid_id(id), self._same_turn)
        if records not in _WRITTEN:
            raise ValueError(f"etcd: records to write must be one of {', '.join(_WRITTEN)}, not {records!r}")
        self._source = source
        self._name = source.prefix + id
        self._key = b64(self._name.encode())
        self._ttl = math.ceil(ttl)
        self._beat = ttl / 3
        self._encode = _naming if records == "etcd" else _address
        self._turn: int | None = None
        self._lease = ""
        self._put: _Entry | None = None
        self._beats = 0
        self._stands_back = False

    def validate(self, endpoint: Endpoint) -> None:
        """Raise `ValueError` if the format has no place for what the endpoint says."""
        self._encode(endpoint)

    async def put(self, endpoint: Endpoint, complaint: str) -> None:
        """Write the key, or delete it (and keep the lease) when there is a complaint."""
        lease = await self._living_lease()
        if complaint:
            self._put = None
            await self._delete(lease)
            return
        found, self._put = await self._read(), (self._encode(endpoint), lease)
        if found == self._put:
            self._stands_back = False
            return
        if found is not None and found[1] not in ("0", lease):
            if self._stands_back:
                raise self._taken(found)
            # Perhaps our own from before a crash; if its process lives, that one will warn.
            log.info("%r: the key %s was attached to lease %s until now", self._source, self._name, found[1])
        value = b64(self._put[0])
        await self._call("/kv/put", {"key": self._key, "value": value, "lease": lease})
        self._stands_back = False

    async def renew(self) -> None:
        """Keep the lease alive; every third time look at the key."""
        if not await self._keep_alive():
            self._lease = ""
            raise Forgotten(
                f"{self._where}: the lease is gone: its time was over, or it was revoked, or etcd lost its data"
            )
        self._beats += 1
        if self._beats % BEATS_TO_LOOK:
            return
        found = await self._read()
        if found == self._put:
            return
        if found is not None and found[1] not in ("0", self._lease):
            if self._put is not None:
                raise self._taken(found)
            return
        raise Forgotten(f"{self._where}: the key was {'deleted' if found is None else 'changed'}")

    async def remove(self) -> None:
        """Revoke the lease, and the key goes with it; every member is asked until one does it."""
        if not self._lease:
            return
        members = len((await self.client()).members)
        for left in reversed(range(members)):
            try:
                await self._call("/lease/revoke", {"ID": self._lease}, timeout=1 / members)
            except SourceError as error:
                if isinstance(error, EtcdError) and error.code == _NOT_FOUND:
                    break
                if not left:
                    raise
            else:
                break
        self._lease = ""

    @property
    def _where(self) -> str:
        return f"{self._source!r}: {self.id}"

    def _same_turn(self) -> AbstractAsyncContextManager[EtcdClient]:
        """A client that begins with the member whose turn it was."""
        client = self._source.client()
        if self._turn is not None:
            client.turn = self._turn
        return client

    async def _call(self, path: str, body: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - the client's own
        client = await self.client()
        try:
            return await client.call(path, body, timeout=timeout)
        except SourceError:
            client.rotate()
            raise
        finally:
            self._turn = client.turn

    async def _living_lease(self) -> str:
        if not (self._lease and await self._keep_alive()):
            # The number is ours to choose, so that it can be revoked even if the answer never comes.
            self._lease = str(secrets.randbits(62) + 1)
            await self._call("/lease/grant", {"TTL": str(self._ttl), "ID": self._lease})
        return self._lease

    async def _keep_alive(self) -> bool:
        # A stream to etcd, but the gateway answers one request with one answer. A dead lease is no error there.
        answer = await self._call("/lease/keepalive", {"ID": self._lease}, timeout=self._beat)
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    async def _read(self) -> _Entry | None:
        pairs = (await self._call("/kv/range", {"key": self._key})).get("kvs", ())
        return (unb64(pairs[0].get("value", "")), str(pairs[0].get("lease", "0"))) if pairs else None

    async def _delete(self, lease: str) -> None:
        """Delete the key if it is ours: in one transaction, for another process may write it at any moment."""
        ours = {"key": self._key, "target": "LEASE", "result": "EQUAL", "lease": lease}
        delete = {"request_delete_range": {"key": self._key}}
        await self._call("/kv/txn", {"compare": [ours], "success": [delete]})

    def _taken(self, found: _Entry) -> Taken:
        self._stands_back = True
        why = f"the key is attached to lease {found[1]} now: a second process with the same id?"
        return Taken(f"{self._where}: {why}", retry_after=self._beat)


def _naming(endpoint: Endpoint) -> bytes:
    """As go.etcd.io/etcd/client/v3/naming does; weight, priority, zone and tls stand beside the metadata."""
    own: dict[str, Any] = {}
    if endpoint.weight != 1:
        own["weight"] = int(endpoint.weight) if endpoint.weight == int(endpoint.weight) else endpoint.weight
    if endpoint.priority:
        own["priority"] = endpoint.priority
    if endpoint.zone:
        own["zone"] = endpoint.zone
    if endpoint.tls:
        own["tls"] = True
    for name in _OWN:
        said = own.get(name, "")
        text = said if isinstance(said, str) else json.dumps(said)
        if endpoint.metadata.get(name, text) != text:
            raise ValueError(
                f"etcd: metadata {name}={endpoint.metadata[name]!r} contradicts the endpoint's own {name}"
            )
    value: dict[str, Any] = {"Op": 0, "Addr": endpoint.address}
    metadata = {**endpoint.metadata, **own}
    return json.dumps(value | ({"Metadata": metadata} if metadata else {})).encode()


def _address(endpoint: Endpoint) -> bytes:
    if endpoint.weight != 1 or endpoint.priority or endpoint.zone or endpoint.metadata:
        raise ValueError(
            "etcd: records='address' has no place for weight, priority, zone and metadata; records='etcd' has"
        )
    return (f"https://{endpoint.address}" if endpoint.tls else endpoint.address).encode()


def _valid_id(text: str) -> str:
    if not text.isprintable() or text != text.strip("/ ") or not text:
        raise ValueError(f"etcd: an id must be printable, and must not begin or end with a slash, not {text!r}")
    return text
