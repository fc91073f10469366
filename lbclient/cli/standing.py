"""`Standing`: which endpoints a session leaves out, and which are back, as it says itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lbclient.session import BalancedSession

__all__ = ["Change", "Standing"]

_READY = "ready"
_OUT = ("unhealthy", "leaving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What the session has decided about an endpoint.

    Attributes:
        state: `ejected`, `unhealthy` or `leaving`; `ready` when it is back.
        because: why, in words.
        seconds: for how long it is out at least; None if nobody knows.
    """

    address: str
    state: str
    because: str = ""
    seconds: float | None = None

    def __str__(self) -> str:
        if self.state == _READY:
            return f"{self.address} is back"
        how_long = "" if self.seconds is None else f" for {self.seconds:.3g} s"
        return f"{self.address} is {self.state}{how_long}: {self.because}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Standing:
    """Tells what changed since the last look; at first all are believed to be ready.

    Args:
        session: what balances.
        service: the service's name in it.
    """

    def __init__(self, session: BalancedSession, service: str) -> None:
        self._session = session
        self._service = service
        self._known: dict[str, tuple[str, int]] = {}

    def describe(self) -> dict[str, Any]:
        """The live state of the service."""
        found: dict[str, Any] = self._session.describe()["services"][self._service]
        return found

    def node(self, address: str) -> dict[str, Any]:
        """The live state of an endpoint that is listed."""
        return next(node for node in self.describe()["nodes"] if node["address"] == address)

    def look(self) -> list[Change]:
        """What changed. A further ejection of one that was out already, after its probe failed, is a change."""
        changes = []
        nodes = {node["address"]: node for node in self.describe()["nodes"]}
        for address, node in nodes.items():
            state = _state(node)
            known, ejections = self._known.get(address, (_READY, 0))
            again = state == "ejected" and node["ejections"] > ejections
            self._known[address] = state, node["ejections"]
            if state != known or again:
                changes.append(_change(address, state, node))
        self._known = {address: known for address, known in self._known.items() if address in nodes}
        return changes


def _state(node: Mapping[str, Any]) -> str:
    if node["ejected_for"] is not None:
        return "ejected"
    return str(node["state"]) if node["state"] in _OUT else _READY


def _change(address: str, state: str, node: Mapping[str, Any]) -> Change:
    if state == _READY:
        return Change(address=address, state=state)
    if state == "ejected":
        because, seconds = str(node["ejected_because"]), round(node["ejected_for"], 3)
        return Change(address=address, state=state, because=because, seconds=seconds)
    check = node.get("check")
    return Change(address=address, state=state, because="not asked yet" if check is None else check["why"])
