"""Records filled in one line, and what is in them."""

from __future__ import annotations

import json
from typing import Any

from discovery import Endpoint
from discovery.records import Records
from discovery.records.formats import reader

KRATOS = {
    "id": "d9c7a3b2",
    "name": "helloworld",
    "version": "v1.0.0",
    "metadata": {},
    "endpoints": ["http://127.0.0.1:8000?isSecure=false", "grpc://127.0.0.1:9000?isSecure=false"],
}


def records(name: str = "auto", schemes: str = "http,https", **values: Any) -> Records[bytes]:
    return filled(values, name, schemes)


def filled(values: dict[str, Any], name: str = "auto", schemes: str = "http,https") -> Records[bytes]:
    found = Records(reader(name, schemes=schemes), source="here")
    found.replace({key: encoded(value) for key, value in values.items()})
    return found


def encoded(value: Any) -> bytes:
    return value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()


def shown(found: Records[bytes]) -> list[tuple[str, float]]:
    assert not found.skipped
    return sorted((f"{endpoint.scheme}://{endpoint.address}", endpoint.weight) for endpoint in found.endpoints)


def read(key: str, value: Any, *names: str, schemes: str = "http,https") -> list[Endpoint]:
    """What is in one record; under each of the names and detected it must be the same."""
    sets = [filled({key: value}, name, schemes) for name in (*names, "auto")]
    assert all(not each.skipped for each in sets)
    assert all(each.endpoints == sets[0].endpoints for each in sets)
    assert all(endpoint.id == key for endpoint in sets[0].endpoints)
    return list(sets[0].endpoints)


def one(key: str, value: Any, *names: str, schemes: str = "http,https") -> Endpoint:
    (endpoint,) = read(key, value, *names, schemes=schemes)
    return endpoint


def why(value: Any, name: str, key: str = "services/web/1") -> str:
    """Why a record is skipped."""
    found = filled({key: value}, name)
    assert not found.endpoints
    return found.skipped[key]
