"""What others register in Consul -> `Endpoint`s: an entry of /v1/health/service, by its writer's conventions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from discovery.endpoint import Endpoint
from discovery.records.fields import (
    SCHEMES,
    RecordError,
    clean,
    endpoints_at,
    expect_scheme,
    objects,
    priority_in,
    registered_weight,
    suggested_weight,
    texts,
    valid_schemes,
    zone_in,
)
from discovery.records.records import Flaw, Reader

__all__ = ["CONVENTIONS", "by_key", "reader"]

_KRATOS_WEIGHT = 100.0  # as in `discovery.records.json_formats`
_FABIO = "urlprefix-"  # Fabio's default for registry.consul.tagprefix


class _Instance(NamedTuple):
    """What all conventions begin with; nothing in it is null.

    Attributes:
        id: the key.
        host: of the service, or else of its node.
        port: 0 where there is none.
        weight: what was registered for its status.
        tags: as registered.
        meta: as registered.
        urls: the tagged addresses that are URLs; Consul's own are none.
    """

    id: str
    host: Any
    port: Any
    weight: float
    tags: Sequence[str]
    meta: Mapping[str, str]
    urls: Sequence[str]


_Convention = Callable[[_Instance, frozenset[str]], Iterable[Endpoint | Flaw]]


def reader(
    name: str = "auto", *, passing: bool = True, schemes: str | Iterable[str] = SCHEMES
) -> Reader[Mapping[str, Any]]:
    """The function that reads entries by the named convention, or for `auto` by the one that each looks like.

    Args:
        name: `auto`, or a name in `CONVENTIONS`.
        passing: False to take instances in warning too, with the weight that they registered for that.
        schemes: the URL schemes to take, as names or as one text with commas. Where an instance lists several
            URLs or routes, those of other schemes are left out; where it has one, another scheme is an error.
            Where nothing says the scheme it is taken.

    Raises:
        ValueError: the name is unknown, the message lists the known ones; or a scheme is none.
        TypeError: a scheme is no text.
    """
    wanted = valid_schemes(schemes)
    if name != "auto" and name not in CONVENTIONS:
        raise ValueError(f"records must be one of auto, {', '.join(CONVENTIONS)}, not {name!r}")
    known = CONVENTIONS.get(name)

    def read(key: str, entry: Any) -> Iterable[Endpoint | Flaw]:
        instance = _instance(key, entry, passing=passing)
        if instance is None:
            return ()
        return (known or CONVENTIONS[_detected(instance)])(instance, wanted)

    return read


def by_key(entries: Iterable[Any]) -> dict[str, Any]:
    """The entries of an answer under `node/service id`: a service id is unique on its node only."""
    found = {}
    for number, entry in enumerate(entries):
        try:
            node, service = entry["Node"]["Node"], entry["Service"]["ID"]
        except (KeyError, TypeError):
            node = service = None
        known = isinstance(node, str) and isinstance(service, str)
        found[clean(f"{node}/{service}") if known else f"entry {number}"] = entry
    return found


def _instance(key: str, entry: Any, *, passing: bool) -> _Instance | None:
    """The instance in an entry, many of whose fields may be null; None if it may not be used now."""
    service, node = _object(entry, "Service"), _object(entry, "Node")
    status = _worst(entry.get("Checks"))
    if status == "critical" or (status == "warning" and passing):
        return None
    meta, tags = texts(service.get("Meta"), "Meta"), service.get("Tags") or []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise RecordError("Tags must be a list of strings")
    tagged, weights = _object_or_none(service, "TaggedAddresses"), _object_or_none(service, "Weights")
    addresses = [address.get("Address") for address in tagged.values() if isinstance(address, dict)]
    return _Instance(
        id=key,
        host=service.get("Address") or node.get("Address"),
        port=service.get("Port"),
        weight=registered_weight(weights.get(status.capitalize())),
        tags=tags,
        meta=meta,
        urls=[address for address in addresses if isinstance(address, str) and "://" in address],
    )


def _detected(instance: _Instance) -> str:
    if instance.urls:
        return "kratos"
    if _secure(instance) is not None:
        return "spring"
    return "fabio" if any(tag.strip().startswith(_FABIO) for tag in instance.tags) else "plain"


def _plain(instance: _Instance, _: frozenset[str]) -> Iterable[Endpoint]:
    """Address and port as they are, zone and priority from Meta; Registrator and most others register no more."""
    return (_endpoint(instance),)


def _kratos(instance: _Instance, schemes: frozenset[str]) -> Iterable[Endpoint | Flaw]:
    """Kratos: URLs of all its servers as tagged addresses, those of other schemes are left out; weight in Meta.

    Weights are on the scale of Kratos, as in etcd, times what Consul has for the status. An instance without
    URLs is read as Kratos does, as HTTP at its address.
    """
    own, flaws = suggested_weight(instance.meta.get("weight"), absent=_KRATOS_WEIGHT)
    weight = instance.weight * own
    if not instance.urls:
        return (_endpoint(instance, weight=weight), *flaws)
    metadata = {**_pairs(instance.tags, ("version",)), **instance.meta}
    more = {"weight": weight, "priority": priority_in(metadata), "zone": zone_in(metadata), "metadata": metadata}
    return (*endpoints_at(instance.urls, schemes, id=instance.id, **more), *flaws)


def _spring(instance: _Instance, schemes: frozenset[str]) -> Iterable[Endpoint]:
    """Spring Cloud: `secure` says whether it is https. Before 2.2 metadata was `name=value` among the tags."""
    secure = _secure(instance) or False
    expect_scheme("https" if secure else "http", schemes)
    metadata = {**_pairs(instance.tags), **instance.meta}
    return (_endpoint(instance, tls=secure, metadata=metadata),)


def _fabio(instance: _Instance, schemes: frozenset[str]) -> Iterable[Endpoint]:
    """Fabio: each tag `urlprefix-host/path option=value ...` is a route to the instance; the first wanted counts.

    `proto` is the scheme, http if it is missing. `weight` is a share of the route's traffic from 0 to 1, and is
    taken as a relative weight, times what Consul has for the status. That is the same where every instance has
    a share. One without (0 is none) has a full one here, while Fabio gives it an equal part of what is left.
    """
    routes = [tag.split()[1:] for tag in map(str.strip, instance.tags) if tag.startswith(_FABIO)]
    for options in [dict(option.partition("=")[::2] for option in route) for route in routes]:
        scheme = options.get("proto") or "http"
        if scheme in schemes and "redirect" not in options:
            share = registered_weight(options.get("weight") or None) or 1.0
            return (_endpoint(instance, tls=scheme in ("https", "grpcs"), weight=instance.weight * share),)
    return () if routes else _plain(instance, schemes)


CONVENTIONS: Mapping[str, _Convention] = MappingProxyType(
    {"plain": _plain, "kratos": _kratos, "spring": _spring, "fabio": _fabio, "registrator": _plain}
)


def _endpoint(instance: _Instance, **other: Any) -> Endpoint:
    own = {"weight": instance.weight, "metadata": instance.meta, "id": instance.id}
    metadata = other.get("metadata", instance.meta)
    placed = {"priority": priority_in(metadata), "zone": zone_in(metadata)}
    return Endpoint(host=instance.host, port=instance.port, **{**own, **placed, **other})


def _secure(instance: _Instance) -> bool | None:
    """What Spring Cloud says about TLS; None if it does not."""
    said = instance.meta.get("secure", _pairs(instance.tags, ("secure",)).get("secure", "")).lower()
    return said == "true" if said in ("true", "false") else None


def _pairs(tags: Iterable[str], names: Sequence[str] = ()) -> dict[str, str]:
    """The tags `name=value`; of the given names only, if there are any."""
    pairs = (tag.partition("=") for tag in tags)
    return {clean(name): clean(value) for name, sign, value in pairs if sign and (not names or name in names)}


def _object(value: Any, name: str) -> dict[str, Any]:
    """The object in that field."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise RecordError(f"{name} must be an object")
    return found


def _object_or_none(value: dict[str, Any], name: str) -> dict[str, Any]:
    """The object in that field, an empty one if there is none."""
    return _object(value, name) if value.get(name) else {}


def _worst(checks: Any) -> str:
    """Of `passing`, `warning` and `critical`; an unknown one is critical."""
    worst = "passing"
    for check in objects(checks or None, "Checks"):
        if "Status" not in check:
            raise RecordError("a check has no Status")
        status = check["Status"]
        if status == "warning":
            worst = "warning"
        elif status != "passing":
            return "critical"
    return worst
