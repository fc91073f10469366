"""Endpoints from Consul: the healthy instances of a service, followed with blocking queries."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from discovery.connection import positive
from discovery.consul.client import Answer, ConsulClient, require_consul
from discovery.consul.conventions import by_key, reader
from discovery.consul.elements import elements
from discovery.consul.environment import access
from discovery.consul.follower import Follower, Pace
from discovery.endpoint import Endpoint
from discovery.records.fields import SCHEMES
from discovery.records.records import Flaw, Records, Weight
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["Consul"]

# Seconds; Consul cuts longer ones (https://developer.hashicorp.com/consul/api-docs/features/blocking).
_LONGEST_WAIT = 600.0
# A deploy is a burst of changes, each of which should be seen at once; checks that flap without end are not.
_POLLS_PER_SECOND, _BURST = 5.0, 10


class Consul:
    """The instances of a service in Consul's catalog, as one agent shows them.

    A caller may rely on: critical instances are never in the set (one in maintenance is critical). An agent that
    falls silent is noticed within `probe_interval + timeout` seconds. However busy the catalog is, the agent is
    asked at most 5 times a second, after a burst of 10. Of one agent the sources of one event loop share
    their connections, 180 at most; changes are waited for by 150 of them, the others ask every 2 s. What it
    does not do: it holds nothing back; Consul shows an empty service to a token that may not read it (it needs
    `read` for the service and for its nodes), and so does this.

    Where an argument is None, Consul's own variables count, as for Consul's own tools: `CONSUL_HTTP_ADDR`,
    `CONSUL_HTTP_TOKEN_FILE`, `CONSUL_HTTP_TOKEN`, `CONSUL_NAMESPACE`, `CONSUL_HTTP_SSL`; and with TLS
    `CONSUL_CACERT`, `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY` and `CONSUL_TLS_SERVER_NAME`, where a `TLS` names
    none itself. As with those tools, the environment's token is sent to an address that was given here, too;
    `token=""` keeps it back. `CONSUL_HTTP_SSL_VERIFY=false` is not honoured.

    Args:
        service: name of the service.
        address: `host:port` of the agent; port 8500 may be left out. 127.0.0.1:8500 by default.
        tag: a tag, or several of which an instance must have all.
        dc: data centre; the agent's own by default.
        ns: Consul Enterprise's namespace; empty for none.
        filter: an expression such as `Service.Meta.version == "2"`
            (https://developer.hashicorp.com/consul/api-docs/features/filtering).
        near: passed through to the agent, which sorts by the distance to this node; a set has no order, so it
            changes no endpoint.
        token: ACL token, or a callable that gives it at each connect; empty for none. Never shown.
        token_file: a file with the token, read at each connect.
        passing: True for instances all of whose checks pass; False for those in warning too, with
            the weight that they registered for that.
        records: convention of the instances: `auto` or a name in `discovery.consul.conventions.CONVENTIONS`.
        schemes: the URL schemes to take, where instances have URLs; see `discovery.consul.conventions.reader`.
        tls: False for plain HTTP, True for TLS verified with the system's authorities, a `TLS`, or an
            `ssl.SSLContext`.
        wait: longest time in seconds for which the agent may keep a query waiting, at most 600. So long it
            also takes until new rights of a token show.
        probe_interval: longest time in seconds between two signs of life.
        timeout: seconds for a request that is not kept waiting; the first one brings all instances.

    Raises:
        ImportError: python-consul2 is not installed.
        ValueError: an argument or a variable makes no sense; the token is not repeated.
        TypeError: an argument has the wrong type.
    """

    def __init__(
        self,
        service: str,
        *,
        address: str | None = None,
        tag: str | Iterable[str] | None = None,
        dc: str | None = None,
        ns: str | None = None,
        filter: str | None = None,  # noqa: A002 - Consul's own name for it
        near: str | None = None,
        token: str | Callable[[], str] | None = None,
        token_file: str | Path | None = None,
        passing: bool = True,
        records: str = "auto",
        schemes: str | Iterable[str] = SCHEMES,
        tls: bool | ssl.SSLContext | TLS | None = None,
        wait: float = 30.0,
        probe_interval: float = 5.0,
        timeout: float = 2.0,
    ) -> None:
        require_consul()
        self.service = _valid_service(service)
        self._access = access(address=address, token=token, token_file=token_file, tls=tls, ns=ns)
        self.address = self._access.address
        self.passing = passing
        self._wait = positive("wait", wait)
        if self._wait > _LONGEST_WAIT:
            raise ValueError(f"wait must be at most {_LONGEST_WAIT:g} seconds, not {wait!r}")
        self._probe_interval = positive("probe_interval", probe_interval)
        self._timeout = positive("timeout", timeout)
        tags = () if tag is None else (tag,) if isinstance(tag, str) else tuple(tag)
        self.tags = tags
        self._params = [("tag", each) for each in tags]
        self._params += [(name, value) for name, value in (("dc", dc), ("near", near)) if value is not None]
        self._expression = filter or ""
        if not all(value for _, value in self._params) or (filter is not None and not filter.strip()):
            raise ValueError("a tag, a data centre, a filter or the node to be near to must not be empty")
        self._pace = Pace(_POLLS_PER_SECOND, _BURST)
        self._followers: set[Follower] = set()
        # The index that was seen last, and whether the set that is being yielded is of an earlier time.
        self._last = 0
        self.rewound = False
        self._read = reader(records, passing=passing, schemes=schemes)
        self._records: Records[str] = Records(self._read_text, source=repr(self))

    def __repr__(self) -> str:
        scheme = "consul" if self._access.tls is None else "consuls"
        more = [
            ("ns", self._access.namespace),
            ("filter", self._expression),
            ("passing", "" if self.passing else "0"),
        ]
        query = urlencode([*self._params, *((name, value) for name, value in more if value)])
        return f"{scheme}://{self.address}/{quote(self.service)}{'?' if query else ''}{query}"

    @property
    def skipped(self) -> Mapping[str, str]:
        """The instances (`node/service id`) that cannot be read now, and why."""
        return self._records.skipped

    @property
    def polling(self) -> bool:
        """Whether the agent is asked every 2 s now, because it is not possible to wait for changes."""
        return any(follower.asks for follower in self._followers)

    def client(self) -> ConsulClient:
        """A client for the same agent, with the same rights; to be used in `async with`."""
        found = self._access
        return ConsulClient(
            found.address, token=found.token, tls=found.tls, namespace=found.namespace, timeout=self._timeout
        )

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        """Yield the set now, after every change, and after every probe that the agent answered.

        Raises:
            SourceError: the agent cannot be reached, does not answer in time, or says no.
        """
        # A copy, so that two watchers of one source do not replace each other's view.
        records = self._records = self._records.copy()
        known: Mapping[str, str] = {}
        last = self._last  # from here on our own: another watcher of this source may be ahead of us
        async with self.client() as client, self._follower(client) as follower:
            self._followers.add(follower)
            try:
                while True:
                    answer = await follower.next()
                    if answer is not None:
                        rewound, last = answer.index < last, answer.index
                        known = await _instances(client, answer, known)
                        for _ in records.replacing(known):
                            await asyncio.sleep(0)
                        self.rewound, self._last = rewound, last
                    yield records.endpoints
                    self.rewound = False
            finally:
                self._followers.discard(follower)

    def _follower(self, client: ConsulClient) -> Follower:
        return Follower(
            client,
            f"/v1/health/service/{self.service}",
            self._params,
            self._expression,
            wait=self._wait,
            probe_interval=self._probe_interval,
            pace=self._pace,
        )

    def _read_text(self, key: str, text: str) -> Iterable[Endpoint | Weight | Flaw]:
        return self._read(key, json.loads(text))


async def _instances(client: ConsulClient, answer: Answer, known: Mapping[str, str]) -> dict[str, str]:
    """The instances in an answer, as they are written, by key."""
    try:
        return await elements(answer.data, known, _key_of)
    except ValueError as error:
        raise SourceError(f"Consul at {client.url} did not answer with a list, is it Consul? {error}") from error


def _key_of(number: int, instance: Any) -> str:
    (key,) = by_key([instance])
    return key if "/" in key else f"entry {number}"


def _valid_service(name: str) -> str:
    # It becomes part of a path: "../kv" would read something else.
    if not name or "/" in name or name in {".", ".."} or not name.isprintable():
        raise ValueError(
            f"Consul needs the name of a service, for example web: no slashes, no control characters, not {name!r}"
        )
    return name
