"""`Collector`: the live state of sessions as metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector as PrometheusCollector
except ImportError as error:  # pragma: no cover - it is installed where this is tested
    raise ImportError("metrics need prometheus-client: pip install 'lbclient[metrics]'") from error

__all__ = ["NODE_ROWS", "SERVICE_ROWS", "Collector", "Described", "Row"]

# Seconds that a scrape in another thread waits for the event loop.
_PATIENCE = 5.0
_STATES = ("starting", "live", "held", "stale")


class Described(Protocol):
    """A `BalancedSession` or a `BalancingMiddleware`."""

    def describe(self) -> dict[str, Any]:
        """The whole live state as plain data."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One metric, and where `describe()` has it.

    Attributes:
        name: without prefix, and without the `_total` of counters.
        help: in words.
        path: the keys that lead to the number, or to a mapping from values of `label` to numbers.
        label: of that mapping; empty if there is none.
        counter: it never becomes less.
    """

    name: str
    help: str
    path: tuple[str, ...]
    label: str = ""
    counter: bool = True

    def family(self, labels: tuple[str, ...]) -> Metric:
        """The metric without samples."""
        names = (*labels, self.label) if self.label else labels
        kind = CounterMetricFamily if self.counter else GaugeMetricFamily
        family: Metric = kind(f"lbclient_{self.name}", self.help, labels=names)
        return family

    def samples(self, state: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
        """Values of the own label, and the numbers; none where the state does not have it, or it is not known."""
        found: Any = state
        for key in self.path:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not self.label:
            if found is not None:
                yield (), float(found)
        elif isinstance(found, Mapping):
            yield from (((str(key),), float(number)) for key, number in found.items())


# Of each service. Parts that are not configured are not there.
SERVICE_ROWS = (
    Row("requests", "Requests, each hop of a redirect counted", ("budget", "requests")),
    Row("retries", "Attempts after a failed one", ("budget", "retries")),
    Row("budget_refusals", "Retries and hedges that the budget did not allow", ("budget", "refused")),
    Row("hedges", "Second attempts while the first one took long", ("hedges", "sent")),
    Row("hedges_won", "Hedges that were answered first", ("hedges", "won")),
    Row("hedges_refused", "Hedges that the budget did not allow", ("hedges", "refused")),
    Row("throttled", "Requests refused here since the servers refuse most", ("throttle", "refused")),
    Row(
        "throttle_probability",
        "Share of requests that is refused here",
        ("throttle", "probability"),
        counter=False,
    ),
    Row("limit_reached", "Requests that waited in vain or could not even wait", ("limits_reached",), "reason"),
    Row("waiting", "Requests that wait for a node", ("waiting",), counter=False),
    Row("ejections", "Nodes taken out since they failed", ("counts", "ejections"), "reason"),
    Row("ejections_not_enforced", "The same if that is off", ("counts", "would_have_ejected"), "reason"),
    Row("returns", "Ejected nodes that came back", ("counts", "restored")),
    Row("health_checks", "Active health checks that ended", ("checks_ended",), "result"),
    Row("load_probes", "Probes of Prequal that ended", ("probes_ended",), "result"),
    Row("usable_nodes", "Nodes that are chosen among", ("usable",), counter=False),
    Row("nodes", "Nodes by their state", ("nodes_by_state",), "state", counter=False),
    Row("in_flight", "Attempts under way", ("nodes_in_flight",), counter=False),
    Row("oldest_attempt_seconds", "Age of the oldest attempt under way", ("oldest",), counter=False),
    Row("snapshot_age_seconds", "Since the registry confirmed the endpoints", ("age",), counter=False),
    Row("snapshot_state", "1 for the state of the snapshot", ("snapshot_states",), "state", counter=False),
    Row("snapshot_held_endpoints", "Endpoints that vanished and are held", ("held_endpoints",), counter=False),
    Row("registry_updates", "Answers of the registry", ("counts", "updates")),
    Row("registry_outages", "How often the registry could not be reached any more", ("counts", "outages")),
    Row("snapshot_version", "Changes of the endpoints so far", ("version",), counter=False),
)
# Of each node that the registry lists.
NODE_ROWS = (
    Row("node_in_flight", "Attempts under way", ("in_flight",), counter=False),
    Row("node_requests", "Attempts so far", ("requests",)),
    Row("node_failures", "Attempts that showed a fault of the node", ("failures",)),
    Row("node_latency_seconds", "Peak EWMA of the time to the head of an answer", ("latency",), counter=False),
    Row(
        "node_in_rotation",
        "1 if it is in rotation: neither ejected, nor unhealthy, nor about to stop",
        ("in_rotation",),
        counter=False,
    ),
    Row("node_weight", "Weight in the registry", ("weight",), counter=False),
)
# Of all that left together.
_DRAINING_ROWS = (
    Row("draining_nodes", "Nodes that left and are still busy", ("nodes",), counter=False),
    Row("draining_connections", "Attempts under way at nodes that left", ("in_flight",), counter=False),
    Row("draining_oldest_attempt_seconds", "Age of the oldest of those", ("oldest",), counter=False),
)


class Collector(PrometheusCollector):
    """Reads `describe()` when it is scraped; requests pay nothing for it.

        REGISTRY.register(Collector(session))

    Nodes that left vanish. A registry takes one collector: give it several sessions as a mapping from names to
    them; the names become the label `client`. It may be scraped from another thread, if it was made in the event
    loop's thread.

    Args:
        sessions: a `BalancedSession` or a `BalancingMiddleware`, or a mapping from names to those.
        per_node: whether there are metrics of each node, six with each address.

    Raises:
        TimeoutError: when it is scraped from another thread while the event loop is blocked for 5 s.
    """

    def __init__(self, sessions: Described | Mapping[str, Described], *, per_node: bool = True) -> None:
        named = isinstance(sessions, Mapping)
        self._sessions: list[tuple[tuple[str, ...], Described]]
        if isinstance(sessions, Mapping):
            self._sessions = [((name,), session) for name, session in sessions.items()]
        else:
            self._sessions = [((), sessions)]
        self._labels = ("client",) if named else ()
        self._node_rows = NODE_ROWS if per_node else ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._here()

    def describe(self) -> Iterable[Metric]:
        """The metrics without samples, for a registry that looks for names that are taken."""
        return [family for families in self._families() for family in families]

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        services, nodes, drains = self._families()
        for labels, state in self._states():
            for name, service in state["services"].items():
                _fill(SERVICE_ROWS, services, (*labels, name), _summed(service))
                for node in service["nodes"] if self._node_rows else ():
                    shown = {**node, "in_rotation": node["state"] == "ready"}
                    _fill(self._node_rows, nodes, (*labels, name, node["address"]), shown)
            _fill(_DRAINING_ROWS, drains, labels, _drained(state["draining"]))
        return [*services, *nodes, *drains]

    def _families(self) -> tuple[list[Metric], list[Metric], list[Metric]]:
        service, node = (*self._labels, "service"), (*self._labels, "service", "address")
        return (
            [row.family(service) for row in SERVICE_ROWS],
            [row.family(node) for row in self._node_rows],
            [row.family(self._labels) for row in _DRAINING_ROWS],
        )

    def _here(self) -> bool:
        """Whether this is the event loop's thread, as far as is known."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return self._loop is None or not self._loop.is_running()
        return True

    def _states(self) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
        if self._here() or self._loop is None:
            return self._read()
        # The state belongs to the loop's thread and may change while it is read from another one.
        result: Future[list[tuple[tuple[str, ...], dict[str, Any]]]] = Future()

        def read() -> None:
            if result.set_running_or_notify_cancel():
                try:
                    result.set_result(self._read())
                except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                    result.set_exception(error)

        self._loop.call_soon_threadsafe(read)
        try:
            return result.result(_PATIENCE)
        finally:
            result.cancel()

    def _read(self) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
        return [(labels, session.describe()) for labels, session in self._sessions]


def _fill(rows: Iterable[Row], families: Iterable[Any], labels: tuple[str, ...], state: Mapping[str, Any]) -> None:
    for row, family in zip(rows, families, strict=True):
        for own, number in row.samples(state):
            family.add_metric((*labels, *own), number)


def _summed(service: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a service, with what has to be computed of it."""
    nodes = service["nodes"]
    known: dict[str, Any] = {
        **service,
        "nodes_by_state": Counter(node["state"] for node in nodes),
        "nodes_in_flight": sum(node["in_flight"] for node in nodes),
        "oldest": max((node.get("oldest") or 0.0 for node in nodes), default=0.0),
        "snapshot_states": {state: state == service.get("state") for state in _STATES},
        "held_endpoints": len(service.get("held") or ()),
    }
    for key in ("checks", "probes"):
        if key in service:
            known[f"{key}_ended"] = {result: n for result, n in service[key].items() if result != "sent"}
    return known


def _drained(left: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "nodes": len(left),
        "in_flight": sum(node["in_flight"] for node in left),
        "oldest": max((node.get("oldest") or 0.0 for node in left), default=0.0),
    }
