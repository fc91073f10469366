"""`Hold`: what becomes of endpoints that vanish from a registry all at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

from discovery.endpoint import Endpoint

__all__ = ["Hold", "OnEmpty"]

OnEmpty = Literal["hold", "accept", "keep"]

_LONGEST = 86_400.0  # seconds
# Seconds within which those that vanish, vanish together: when the leases of a whole set end at one moment, etcd
# says so in several pieces within 10 ms.
_TOGETHER = 0.05


class Hold:
    """Remembers the endpoints that vanished, for a bounded time; synchronous, the time is an argument.

    An empty answer has ordinary causes that say nothing about the servers: a wiped registry, a token that lost
    its rights, a replica that lags behind. Believing it at once takes a healthy service down (go-kit, gRPC); never
    believing it sends requests to machines that left (Kratos). So endpoints that vanish *together* stay for
    `seconds`.

    Together is: in one piece, or within 0.05 s of one. Etcd tells the end of many leases in pieces; those of the
    first ones come back then. Endpoints that vanish one at a time from a registry that is being followed were
    removed by somebody, and are never held: not even the last. A set that is read anew, after an outage, has no
    such history: there a single one is held like many, if nothing is left. And if the registry is found to be back
    at an earlier time, whatever is missing in it is held: servers register again, one after the other.

    Args:
        on_empty: when the set becomes empty: `hold` it for a while, `accept` it at once, `keep` the old one until
            others come (and `seconds` longer) or it is accepted.
        seconds: how long vanished endpoints are held.
        collapse: hold, too, if more than this share (0 to 1) of a set vanishes at once; None for never.

    Raises:
        ValueError: an argument makes no sense; the message names it and what is allowed.
    """

    def __init__(
        self, on_empty: OnEmpty = "hold", *, seconds: float = 30.0, collapse: float | None = None
    ) -> None:
        if on_empty not in get_args(OnEmpty):
            raise ValueError(f"on_empty must be one of {', '.join(get_args(OnEmpty))}, not {on_empty!r}")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _LONGEST:
            raise ValueError(f"hold_for must be a number of seconds above 0, not {seconds!r}")
        if collapse is not None and (
            isinstance(collapse, bool) or not isinstance(collapse, (int, float)) or not 0 <= collapse < 1
        ):
            raise ValueError(f"collapse must be a share from 0 to below 1, or None, not {collapse!r}")
        self._on_empty = on_empty
        self._seconds = seconds
        self._collapse = collapse
        self._held: dict[str, tuple[Endpoint, float]] = {}
        # Those that vanished and were not held, and when: perhaps they were the first of many.
        self._gone: dict[str, tuple[Endpoint, float]] = {}
        self._many_at = -math.inf  # when several vanished in one piece

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those that are held."""
        return tuple(endpoint for endpoint, _ in self._held.values())

    @property
    def until(self) -> Mapping[str, float]:
        """The addresses that are held, and the moment until when each is; infinity for an unlimited time."""
        return MappingProxyType({address: until for address, (_, until) in self._held.items()})

    def begin(
        self,
        before: Iterable[Endpoint],
        listed: Iterable[Endpoint],
        now: float,
        *,
        followed: bool,
        rewound: bool = False,
    ) -> str:
        """Take in what the registry lists now, and listed before; the reason if a hold begins, else nothing.

        Args:
            before: the previous set, without those held then.
            listed: the set now.
            now: seconds, of the same clock in all calls.
            followed: whether the registry was followed all the time between the two.
            rewound: whether the registry is back at an earlier time than the previous set is of.
        """
        old = {endpoint.address: endpoint for endpoint in before}
        if not old and not self._held:
            return ""
        there = {endpoint.address for endpoint in listed}
        self._are_back(there, now)
        vanished = {address: endpoint for address, endpoint in old.items() if address not in there}
        vanished = self._together(vanished, now, followed=followed and not rewound)
        old |= vanished
        until = now + self._seconds
        if not vanished:
            return ""
        if not there and self._on_empty == "accept":
            self.let_go()
            return ""
        if not there:
            until = math.inf if self._on_empty == "keep" else until
            reason = "the registry lists no endpoint any more"
        elif rewound and self._on_empty != "accept":
            reason = f"the registry has lost data, {len(vanished)} of {len(old)} endpoints with it"
        elif self._collapse is not None and len(vanished) > self._collapse * len(old):
            reason = f"{len(vanished)} of {len(old)} endpoints vanished at once"
        else:
            return ""
        self._held.update((address, (endpoint, until)) for address, endpoint in vanished.items())
        self._gone.clear()
        return reason

    def _are_back(self, there: set[str], now: float) -> None:
        for address in there:
            self._held.pop(address, None)
            self._gone.pop(address, None)
        if there:
            # Those that were kept for as long as nothing else came: the others may come one by one.
            for address, (endpoint, until) in self._held.items():
                if math.isinf(until):
                    self._held[address] = endpoint, now + self._seconds

    def _together(self, vanished: Mapping[str, Endpoint], now: float, *, followed: bool) -> dict[str, Endpoint]:
        """These, and those that went just before; nothing if they go one at a time, however fast."""
        if len(vanished) > 1 or (vanished and not followed):
            self._many_at = now
        self._gone = {address: gone for address, gone in self._gone.items() if now - gone[1] <= _TOGETHER}
        self._gone.update((address, (endpoint, now)) for address, endpoint in vanished.items())
        if not vanished or now - self._many_at > _TOGETHER:
            return {}
        return {address: endpoint for address, (endpoint, _) in self._gone.items()}

    def expire(self, now: float) -> int:
        """Let go of those whose time is over; returns how many."""
        return self.let_go([address for address, (_, until) in self._held.items() if now >= until])

    def let_go(self, addresses: Iterable[str] | None = None) -> int:
        """Hold these no longer, all of them by default; returns how many were held."""
        before = len(self._held)
        for address in (*self._held, *self._gone) if addresses is None else tuple(addresses):
            self._held.pop(address, None)
            self._gone.pop(address, None)
        return before - len(self._held)
