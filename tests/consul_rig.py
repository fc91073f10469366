"""Entries as Consul's /v1/health/service shows them, and what is in them."""

from __future__ import annotations

import copy
from typing import Any

from discovery import Endpoint
from discovery.consul.conventions import CONVENTIONS, reader
from discovery.records import Records

NAMES = ["auto", *CONVENTIONS]

ENTRY: dict[str, Any] = {
    "Node": {
        "ID": "40e4a748-2192-161a-0510-9bf59fe950b5",
        "Node": "t2.320",
        "Address": "10.1.10.12",
        "Datacenter": "dc1",
        "TaggedAddresses": {"lan": "10.1.10.12", "wan": "10.1.10.12"},
        "Meta": {"instance_type": "t2.medium"},
    },
    "Service": {
        "ID": "redis1",
        "Service": "redis",
        "Tags": ["primary"],
        "Address": "10.1.10.12",
        "TaggedAddresses": {
            "lan_ipv4": {"Address": "10.1.10.12", "Port": 8000},
            "wan_ipv4": {"Address": "198.18.1.2", "Port": 80},
        },
        "Meta": {"redis_version": "4.0", "zone": "eu-1"},
        "Port": 8000,
        "Weights": {"Passing": 10, "Warning": 1},
    },
    "Checks": [
        {"Node": "t2.320", "CheckID": "service:redis1", "Status": "passing"},
        {"Node": "t2.320", "CheckID": "serfHealth", "Status": "passing"},
    ],
}


def entry(checks: list[str] | None = None, **service: Any) -> dict[str, Any]:
    made = copy.deepcopy(ENTRY)
    made["Service"] |= service
    if checks is not None:
        made["Checks"] = [{"Status": status} for status in checks]
    return made


def read(made: Any, *names: str, **options: Any) -> list[Endpoint]:
    """What is in one entry; under each of the names and detected it must be the same."""
    found = [reader(name, **options)("n/1", made) for name in (*names, "auto")]
    sets = [[each for each in content if isinstance(each, Endpoint)] for content in found]
    assert all(each == sets[0] for each in sets)
    return sets[0]


def one(made: Any, *names: str, **options: Any) -> Endpoint:
    (endpoint,) = read(made, *names, **options)
    return endpoint


def why(made: Any, name: str = "auto", **options: Any) -> str:
    found = Records(reader(name, **options))
    found.put("n/1", made)
    assert found.endpoints == ()
    return found.skipped["n/1"]
