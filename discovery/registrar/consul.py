"""An entry in Consul: a service of one agent, with a check that turns critical when the process is silent."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from discovery.consul import Consul
from discovery.consul.client import ConsulClient, ConsulError
from discovery.endpoint import Endpoint
from discovery.registrar.registration import BEATS_TO_LOOK, Forgotten, Registration, Taken

__all__ = ["ConsulRegistration"]

# Limits of Consul's catalog (agent/structs/structs.go: ValidateServiceMetadata, ValidateWeights).
_MOST_META, _LONGEST_META = 64, 512
_META_KEY = re.compile(r"(?!consul-)[A-Za-z0-9_-]{1,128}")
_MOST_WEIGHT = 65535
_FOUND_AS = {"Name": "Service"}  # the one word that Consul reads under another name than it was written


class ConsulRegistration(Registration[ConsulClient]):
    """A service instance at one agent, with a TTL check.

    The instance belongs to who registered it last: its check's notes name the holder, a random number. When that
    is another one, this one stands back and registers only when the instance is gone.

    Args:
        source: which agent, with which rights, and which service.
        id: of the instance, unique at its agent.
        ttl: seconds without a sign of life after which the check is critical.
        tags: Consul's tags.
        deregister_after: seconds after which Consul removes a critical instance; it looks every 30 s.

    Raises:
        ValueError: the id cannot be one.
    """

    def __init__(
        self,
        source: Consul,
        *,
        id: str,  # noqa: A002 - as above
        ttl: float,
        tags: Sequence[str],
        deregister_after: float,
    ) -> None:
        super().__init__(_valid_id(id), source.client)
        self._source = source
        self._check = f"service:{id}"
        self._ttl = ttl
        self._tags = list(tags)
        self._deregister_after = deregister_after
        self._holder = f"kept alive by the process, holder {secrets.token_hex(8)}"
        self._put: dict[str, Any] | None = None
        self._status: dict[str, str] = {}
        self._beats = 0
        self._stands_back = False

    def validate(self, endpoint: Endpoint) -> None:
        """Raise `ValueError` if Consul would refuse the weight or the metadata."""
        self._body(endpoint)

    async def put(self, endpoint: Endpoint, complaint: str) -> None:
        """Register; the check says at once whether there is a complaint."""
        if self._stands_back and await self._held_by() not in (None, self._holder):
            raise self._taken()
        status = "critical" if complaint else "passing"
        self._put, self._status = self._body(endpoint), {"Status": status, "Output": complaint}
        check = {
            "CheckID": self._check,
            "Name": "sign of life",
            "Notes": self._holder,
            "TTL": f"{self._ttl:g}s",
            "Status": status,
            "DeregisterCriticalServiceAfter": f"{self._deregister_after:g}s",
        }
        client = await self.client()
        body = {**self._put, "Check": check}
        await client.put("/v1/agent/service/register", body, [("replace-existing-checks", "true")])
        # A check that was there keeps its status, whatever the registration says.
        await client.put(f"/v1/agent/check/update/{self._check}", self._status)
        self._stands_back = False

    async def renew(self) -> None:
        """Say again how the check is; every third time look at the instance first."""
        client = await self.client()
        self._beats += 1
        try:
            if self._put is not None and self._beats % BEATS_TO_LOOK == 0:
                await self._look(client, self._put)
            await client.put(f"/v1/agent/check/update/{self._check}", self._status)
        except ConsulError as error:
            # By version; a 500 may mean anything else, and registering will then fail as well.
            if error.status in (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR):
                raise Forgotten(f"the agent has forgotten the registration, or cannot keep it: {error}") from error
            raise

    async def remove(self) -> None:
        """Deregister the instance."""
        if self._put is None or await self._held_by() not in (None, self._holder):
            return
        try:
            await (await self.client()).put(f"/v1/agent/service/deregister/{self.id}")
        except ConsulError as error:
            # Newer agents refuse to deregister what they do not know.
            if "nknown service" not in str(error):
                raise
        self._put = None

    @property
    def _where(self) -> str:
        return f"{self._source!r}: {self.id}"

    async def _held_by(self) -> str | None:
        """The notes of the check as the agent has it; None if it has no such check."""
        client = await self.client()
        checks = (await client.get("/v1/agent/checks", [("filter", f'ServiceID == "{self.id}"')])).data or {}
        check = checks.get(self._check)
        return None if check is None else str(check.get("Notes", ""))

    async def _look(self, client: ConsulClient, put: Mapping[str, Any]) -> None:
        holder = await self._held_by()
        if holder is None:
            raise Forgotten(f"{self._where}: the agent has no check of this instance")
        if holder != self._holder:
            raise self._taken()
        found = (await client.get(f"/v1/agent/service/{self.id}")).data or {}
        # Consul leaves out what is empty, or says null.
        if any((found.get(_FOUND_AS.get(name, name)) or None) != (said or None) for name, said in put.items()):
            raise Forgotten(f"{self._where}: the instance was changed")

    def _taken(self) -> Taken:
        self._stands_back = True
        why = "the instance was registered by somebody else since: a second process with the same id?"
        return Taken(f"{self._where}: {why}", retry_after=self._ttl / 3)

    def _body(self, endpoint: Endpoint) -> dict[str, Any]:
        return {
            "ID": self.id,
            "Name": self._source.service,
            "Address": endpoint.host,
            "Port": endpoint.port,
            "Tags": self._tags,
            "Meta": _meta(endpoint),
            "Weights": {"Passing": _weight(endpoint.weight), "Warning": 1},
        }


def _weight(weight: float) -> int:
    if weight != int(weight) or not 1 <= weight <= _MOST_WEIGHT:
        raise ValueError(
            f"Consul's weights are whole numbers from 1 to {_MOST_WEIGHT}, not {weight!r}; "
            "multiply those of all instances by the same number"
        )
    return int(weight)


def _meta(endpoint: Endpoint) -> dict[str, str]:
    # `secure` is how Spring Cloud says that an instance expects TLS.
    own = {
        "priority": str(endpoint.priority) if endpoint.priority else "",
        "zone": endpoint.zone,
        "secure": "true" if endpoint.tls else "",
    }
    for name, said in own.items():
        if endpoint.metadata.get(name, said) != said:
            raise ValueError(
                f"Consul: metadata {name}={endpoint.metadata[name]!r} contradicts the endpoint's own {name}"
            )
    meta = {**endpoint.metadata, **{name: said for name, said in own.items() if said}}
    for name, value in meta.items():
        if not _META_KEY.fullmatch(name) or len(value.encode()) > _LONGEST_META:
            raise ValueError(
                "Consul: metadata needs names of at most 128 ASCII letters, digits, hyphens and underscores that "
                f"do not begin with consul-, and values of at most {_LONGEST_META} bytes, not {name!r} with "
                f"{len(value.encode())} bytes"
            )
    if len(meta) > _MOST_META:
        raise ValueError(f"Consul: metadata has at most {_MOST_META} entries, not {len(meta)}")
    return meta


def _valid_id(text: str) -> str:
    # It becomes part of a path and of a filter expression.
    if not text or not text.isprintable() or re.search(r'[/"\\]', text) or text in {".", ".."}:
        raise ValueError(f"Consul: an id must be printable and without slashes and quotes, not {text!r}")
    return text
