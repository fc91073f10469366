"""What the demo shows: a table that is drawn anew several times a second, or plain lines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lbclient.cli.connections import Connections
from lbclient.cli.scenario import Scenario, Server
from lbclient.cli.standing import Standing
from lbclient.cli.tally import Counts, Tally, counted, percentile
from lbclient.session import BalancedSession

__all__ = ["Journal", "View", "wide"]

# The percentiles shown while the demo runs are those of about the last ten seconds.
_RECENT = 2000
_BAR = 12
_BAR_AT = 5
_FEWEST_EVENTS = 3
_LINES = 24
_AROUND = 9
# With fewer columns the bars are left out.
_COLUMNS = 98
_COLOURS = {
    "running": "green",
    "killed": "red",
    "draining": "yellow",
    "drained": "blue",
    "errors": "red",
    "stopped": "red",
    "ready": "green",
    "ejected": "red",
    "probing": "yellow",
    "live": "green",
    "held": "yellow",
    "stale": "yellow",
    "starting": "yellow",
}


@dataclass(slots=True)
class Journal:
    """The events so far, and where to print them as they come.

    Attributes:
        echo: print each line at once.
        err: print to standard error.
        began_at: `time.monotonic()` seconds from which the offsets count; None before.
        events: pairs of offset and text.
    """

    echo: bool = True
    err: bool = False
    began_at: float | None = None
    events: list[tuple[float, str]] = field(default_factory=list)

    @property
    def offset(self) -> float:
        """Seconds since the beginning; 0 before."""
        return 0.0 if self.began_at is None else time.monotonic() - self.began_at

    def note(self, text: str) -> None:
        """Add an event."""
        self.events.append((self.offset, text))
        if self.echo:
            self.line(text, bold=True)

    def line(self, text: str, **style: Any) -> None:
        """Print a line, with the time offset if there is one, without keeping it."""
        offset = " " * 8 if self.began_at is None else f"{self.offset:6.1f} s"
        click.echo(f"{offset}  {click.style(text, **style)}", err=self.err)


@dataclass(slots=True, kw_only=True)
class View:
    """The state of the demo, ready to be shown.

    Attributes:
        session: what balances.
        standing: what it says of the servers.
        scenario: the servers and the registry.
        tally: the requests.
        connections: the client's.
        journal: the events.
    """

    session: BalancedSession
    standing: Standing
    scenario: Scenario
    tally: Tally
    connections: Connections
    journal: Journal

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What the balancer knows of each endpoint that the registry lists, by address."""
        return {node["address"]: node for node in self.standing.describe()["nodes"]}

    def note_changes(self) -> None:
        """Note whom the balancer has taken out since the last time, and whom it has let back in."""
        names = {server.backend.address: server.backend.name for server in self.scenario.servers}
        for change in self.standing.look():
            name = names[change.address]
            if change.state == "ejected":
                self.journal.note(f"the client takes {name} out for {change.seconds:.1f} s: {change.because}")
            else:
                self.journal.note(f"the client uses {name} again")

    def progress(self) -> str:
        """One line for those who cannot see the table."""
        snapshot = self.session.snapshot()
        return f"{self.totals()}; {counted(len(snapshot.endpoints), 'endpoint')}, registry {snapshot.state}"

    def totals(self) -> str:
        """The requests so far in one line."""
        recent = self.tally.milliseconds[-_RECENT:]
        p50, p99 = percentile(recent, 50), percentile(recent, 99)
        times = "" if p50 is None or p99 is None else f", p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        return f"{self.tally.requests} requests, {self.tally.failed} failed, {self.tally.retried} retried{times}"

    def render(self, *, width: int = _COLUMNS, height: int = _LINES) -> RenderableType:
        """Everything, for a terminal of that size."""
        nodes = self.nodes()
        servers = self.scenario.servers
        # Around the rows: title, head, registry, totals, two empty lines, last two sentences, the shell's
        # next line.
        shown = servers[-max(1, height - _AROUND - _FEWEST_EVENTS) :]
        events = self.journal.events[-max(_FEWEST_EVENTS, height - _AROUND - len(shown)) :]
        table = _table(self._rows(shown, nodes), bars=width >= _COLUMNS)
        lines = [self._registry(), self._requests(), Text(), *map(_event, events)]
        for line in lines:
            line.truncate(width - 1, overflow="ellipsis")
        return Group(self._title(), table, Text(), *lines)

    def _rows(self, servers: Sequence[Server], nodes: Mapping[str, Mapping[str, Any]]) -> list[list[Text]]:
        counts = self.tally.endpoints
        most = max((each.requests for each in counts.values()), default=0) or 1
        return [
            self._row(
                server, nodes.get(server.backend.address), counts.get(server.backend.address, Counts()), most
            )
            for server in servers
        ]

    def _row(self, server: Server, node: Mapping[str, Any] | None, counts: Counts, most: int) -> list[Text]:
        address = server.backend.address
        seen = "not listed" if node is None else str(node["state"])
        latency = None if node is None else node["latency"]
        bar = "█" * round(_BAR * counts.requests / most)
        return [
            Text(server.backend.name, "bold" if node else "dim"),
            Text(address, "" if node else "dim"),
            Text(server.state, _COLOURS.get(server.state, "")),
            Text(seen, _COLOURS.get(seen, "dim")),
            Text(str(counts.requests)),
            Text(bar, "cyan" if node else "dim"),
            Text(str(node["in_flight"]) if node else "-"),
            Text(str(self.connections.open_to(address)) if node else "-"),
            Text("-" if latency is None else _milliseconds(latency)),
            Text(str(counts.failed), "yellow" if counts.failed else "dim"),
            Text(str(node["ejections"]) if node else "-", "red" if node and node["ejections"] else "dim"),
        ]

    def _title(self) -> Text:
        offset = min(self.journal.offset, self.scenario.duration)
        text = Text("lbclient demo", "bold")
        text.append(f"   {self.scenario.registry.name}", "cyan")
        text.append(f"   {offset:.1f} of {self.scenario.duration:g} s", "dim")
        return text

    def _registry(self) -> Text:
        snapshot = self.session.snapshot()
        text = Text("registry  ")
        text.append(f"{snapshot.state:<8}", f"bold {_COLOURS[snapshot.state]}")
        text.append(f" version {snapshot.version}, {counted(len(snapshot.endpoints), 'endpoint')}")
        if snapshot.reason:
            text.append(f"; {snapshot.reason}", "yellow")
        return text

    def _requests(self) -> Text:
        text = Text("requests  ")
        failed = self.tally.failed
        text.append("failing " if failed else "fine    ", "bold red" if failed else "bold green")
        return text.append(f" {self.totals()}")


def _table(rows: Sequence[Sequence[Text]], *, bars: bool) -> Table:
    table = Table(box=None, padding=(0, 2 if bars else 1, 0, 0), header_style="dim", pad_edge=False)
    for name, width in (("", 3), ("address", 15), ("server", 8), ("client says", 11)):
        table.add_column(name, min_width=width, no_wrap=True)
    table.add_column("attempts", justify="right", no_wrap=True)
    if bars:
        table.add_column("", width=_BAR, no_wrap=True)
    for name, width in (("busy", 4), ("conns", 5), ("ms", 5), ("failed", 6), ("out", 3)):
        table.add_column(name, min_width=width, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(row if bars else (*row[:_BAR_AT], *row[_BAR_AT + 1 :])))
    return table


def _milliseconds(seconds: float) -> str:
    """Never wider than its column: a server that was silent has a latency above a second."""
    return f"{seconds * 1000:.1f}" if seconds < 1 else f"{seconds * 1000:.0f}"


def _event(event: tuple[float, str]) -> Text:
    offset, said = event
    text = Text(f"{offset:6.1f} s  ", "dim")
    text.append(said, "none")
    return text


def wide(console: Console) -> bool:
    """Whether the table can be drawn, and drawn again over itself."""
    return console.is_terminal and not console.is_dumb_terminal
