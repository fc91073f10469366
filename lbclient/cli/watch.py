"""`lbclient watch`: a line for each change of a service's endpoints, as it happens."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click

from discovery import Endpoint, Snapshot, Watcher
from lbclient.cli.running import FAILED, Failure, opened, run
from lbclient.cli.tally import counted

__all__ = ["watch"]

_ONCE_TIMEOUT = 5.0
# A line of a terminal is not the place for thousands of addresses; --json and pipes get them all.
_MOST_ON_TERMINAL = 20
# Registered as metadata by some, and shown from the endpoint's own fields.
_SHOWN = ("weight", "priority", "zone", "tls", "secure")
_COLOURS = {"live": "green", "held": "yellow", "stale": "yellow", "starting": "yellow"}


@click.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--once", is_flag=True, help="Print the current endpoints and exit; 1 if there are none.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Give up with 1 when nothing was received for S seconds from the start; 5 with --once, else never.",
)
def watch(url: str, *, as_json: bool, once: bool, timeout: float | None) -> None:
    """Follow the endpoints of the service at URL.

    Each line tells the time, the version and the state of the set, how many endpoints it has, and what was
    added (+), removed (-) or described anew (~). The state is stale while the registry is out of reach: the
    endpoints are then the last ones known. It is held after all of them vanished at once: they stay for 30 s, as
    they do for a client. Several URLs may be joined: "URL + URL" for all endpoints of both, "URL | URL" for those
    of the second when the first is not good.

    \b
      lbclient watch etcd://127.0.0.1:2379/services/users/
      lbclient watch --once --json consul://127.0.0.1:8500/users
    """  # noqa: D301 - click leaves alone what stands below a backspace
    if once:
        run(_once(url, as_json=as_json, timeout=timeout or _ONCE_TIMEOUT))
    run(_follow(url, as_json=as_json, timeout=timeout))


async def _once(url: str, *, as_json: bool, timeout: float) -> int:  # noqa: ASYNC109 - an option of the command
    watcher = Watcher(opened(url))
    try:
        async with watcher:
            snapshot = await watcher.ready(timeout)
    except TimeoutError as error:
        raise Failure(str(error)) from None
    if as_json:
        click.echo(json.dumps(snapshot.as_dict()))
    else:
        for endpoint in snapshot.endpoints:
            click.echo(_described(endpoint))
    if not snapshot.endpoints:
        click.echo(_nothing_at(watcher.name, snapshot), err=True)
        return FAILED
    return 0


async def _follow(url: str, *, as_json: bool, timeout: float | None) -> int:  # noqa: ASYNC109 - as above
    watcher = Watcher(opened(url))
    lines = _Lines(watcher.name, as_json=as_json)
    news: asyncio.Queue[Snapshot] = asyncio.Queue()
    watcher.subscribe(news.put_nowait)
    async with watcher:
        try:
            async with asyncio.timeout(timeout) as deadline:
                while True:
                    snapshot = await news.get()
                    if snapshot.version:
                        deadline.reschedule(None)
                    lines.show(snapshot)
        except TimeoutError:
            why = watcher.snapshot.reason or "no answer yet"
            raise Failure(f"{watcher.name}: nothing received within {timeout:g} s: {why}") from None


@dataclass(frozen=True, slots=True)
class _Difference:
    """What is new in a snapshot."""

    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]
    changed: tuple[Endpoint, ...]

    @classmethod
    def between(cls, old: Snapshot, new: Snapshot) -> _Difference:
        before = {endpoint.address: endpoint for endpoint in old.endpoints}
        after = {endpoint.address: endpoint for endpoint in new.endpoints}
        return cls(
            added=tuple(e for e in new.endpoints if e.address not in before),
            removed=tuple(e for e in old.endpoints if e.address not in after),
            changed=tuple(e for e in new.endpoints if e.address in before and before[e.address] != e),
        )

    def as_text(self) -> str:
        parts = (("+", "green", self.added), ("-", "red", self.removed), ("~", "yellow", self.changed))
        return " ".join(_listed(sign, colour, endpoints) for sign, colour, endpoints in parts if endpoints)


class _Lines:
    """Prints what changed from one snapshot to the next; a mere sign of life is none."""

    def __init__(self, name: str, *, as_json: bool) -> None:
        self._name = name
        self._as_json = as_json
        self._last = Snapshot()
        # Each reason once per outage: a registry of several members fails in several ways by turns.
        self._reasons: set[str] = set()

    def show(self, new: Snapshot) -> None:
        """Print a line if there is something to tell."""
        old, self._last = self._last, new
        if not new.reason:
            self._reasons.clear()
        same = (old.version, old.state, old.skipped) == (new.version, new.state, new.skipped)
        if same and (not new.reason or new.reason in self._reasons):
            return
        if new.reason:
            self._reasons.add(new.reason)
        if self._as_json:
            click.echo(json.dumps(self._object(old, new)))
        elif new.version:
            click.echo(self._line(old, new))
        self._warn(old, new)

    def _line(self, old: Snapshot, new: Snapshot) -> str:
        state = click.style(f"{new.state:<5}", fg=_COLOURS[new.state])
        parts = [
            f"{_now():%H:%M:%S.%f}"[:-3],
            f"v{new.version:<3}",
            state,
            counted(len(new.endpoints), "endpoint"),
        ]
        if new.skipped:
            parts.append(click.style(f"{new.skipped} unreadable", fg="yellow"))
        if new.version != old.version:
            parts.append(_Difference.between(old, new).as_text())
        if new.reason:
            parts.append(new.reason)
        return "  ".join(part for part in parts if part)

    def _object(self, old: Snapshot, new: Snapshot) -> dict[str, Any]:
        difference = _Difference.between(old, new)
        return {
            "time": _now().isoformat(timespec="milliseconds"),
            "version": new.version,
            "state": new.state,
            "reason": new.reason,
            "count": len(new.endpoints),
            "skipped": new.skipped,
            "held": sorted(new.held),
            "added": [endpoint.as_dict() for endpoint in difference.added],
            "removed": [endpoint.as_dict() for endpoint in difference.removed],
            "changed": [endpoint.as_dict() for endpoint in difference.changed],
        }

    def _warn(self, old: Snapshot, new: Snapshot) -> None:
        if new.version == 0:
            click.echo(f"{self._name} is not reached yet, trying again: {new.reason}", err=True)
        elif old.version == 0 and not new.endpoints:
            click.echo(_nothing_at(self._name, new), err=True)


def _nothing_at(name: str, snapshot: Snapshot) -> str:
    skipped = f", {counted(snapshot.skipped, 'record')} cannot be read" if snapshot.skipped else ""
    return f"{name}: the registry answers; there are no endpoints{skipped}"


def _listed(sign: str, colour: str, endpoints: Iterable[Endpoint]) -> str:
    addresses = [f"{sign}{endpoint.address}" for endpoint in endpoints]
    more = len(addresses) - _MOST_ON_TERMINAL
    if more > 0 and sys.stdout.isatty():
        addresses[_MOST_ON_TERMINAL:] = [f"and {sign}{more} more"]
    return " ".join(click.style(address, fg=colour) for address in addresses)


def _described(endpoint: Endpoint) -> str:
    parts = [endpoint.address]
    if endpoint.weight != 1:
        parts.append(f"weight={endpoint.weight:g}")
    if endpoint.priority:
        parts.append(f"priority={endpoint.priority}")
    if endpoint.zone:
        parts.append(f"zone={endpoint.zone}")
    if endpoint.tls:
        parts.append("tls")
    parts += [f"{key}={value}" for key, value in endpoint.metadata.items() if key not in _SHOWN]
    return "  ".join(parts)


def _now() -> datetime:
    return datetime.now().astimezone()
