"""`lbclient demo`: requests flow while servers die, leave, arrive and fail, and while the registry is away."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live

from discovery import Watcher
from lbclient.cli.connections import Connections
from lbclient.cli.load import Load
from lbclient.cli.registries import open_registry
from lbclient.cli.running import FAILED, Failure, run
from lbclient.cli.scenario import Scenario
from lbclient.cli.standing import Standing
from lbclient.cli.tally import Tally, counted
from lbclient.cli.view import Journal, View, wide
from lbclient.ejection import Ejection
from lbclient.hedging import Hedge
from lbclient.retrying import Retry
from lbclient.sandbox import SandboxError
from lbclient.session import BalancedSession

__all__ = ["demo"]

_SERVICE = "demo"
_REFRESH = 0.2
_KEEPALIVE = 4.0
# Seconds; the slowest answers of a server that works take 0.04 s.
_HEDGE = 0.1
# As a share of the duration; 30 s by default would be longer than all of it.
_EJECTED = 0.08
# Seconds; and how often to look, so that no short ejection is missed.
_SHORTEST = 0.5
_LOOK = 0.05


@click.command()
@click.option(
    "--registry",
    default="memory",
    show_default=True,
    metavar="WHERE",
    help="memory: inside this process; etcd or consul: start one; etcd://host:port/prefix/ or "
    "consul://host:port/name: one that runs, in which the demo leaves nothing behind.",
)
@click.option("--duration", type=click.FloatRange(min=2), default=18.0, show_default=True, help="Seconds.")
@click.option(
    "--rate", type=click.FloatRange(min=1, max=5000), default=200.0, show_default=True, help="Requests per second."
)
@click.option(
    "--backends", type=click.IntRange(3, 50), default=5, show_default=True, help="Servers at the beginning."
)
@click.option("--seed", type=int, help="Choose the same victims and requests again.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object; events go to stderr.")
@click.pass_obj
def demo(verbose: bool, /, *, as_json: bool, **options: Any) -> None:
    """Watch requests flow while servers die, leave, arrive and fail.

    Servers in processes of their own get a steady load through one BalancedSession. Meanwhile one of them is
    killed with -9, one is drained, two new ones arrive, one answers 500 to everything, one is stopped (SIGSTOP)
    and goes on later, and the registry goes away for a while. No request may fail: the exit code is 1 if one did.

    One request in ten is a POST. A server that is killed may have processed what it was sent, so these carry an
    Idempotency-Key: that is what tells the client that they may be sent again.

    The session differs from the default in four options: it tries again after status 500, it sends a second
    attempt (a "hedge") when there is no answer within 0.1 s, it takes a failing server out for 8 % of the
    duration instead of 30 s, and the servers take turns. The default policy would avoid those that fail or are
    slow before anything is to be seen.
    """
    run(_demo(verbose=verbose, as_json=as_json, **options))


async def _demo(*, registry: str, duration: float, as_json: bool, verbose: bool, **options: Any) -> int:
    console = Console(highlight=False)
    table = wide(console) and not as_json and not verbose
    journal = Journal(err=as_json)
    try:
        async with AsyncExitStack() as stack:
            where = await stack.enter_async_context(open_registry(registry, lifetime=duration, say=journal.line))
            watcher = await stack.enter_async_context(Watcher(where.source, name=_SERVICE))
            scenario = Scenario(
                registry=where,
                watcher=watcher,
                connections=Connections(),
                stack=stack,
                duration=duration,
                rng=random.Random(options["seed"]),
                note=journal.note,
            )
            tally = await _play(scenario, journal, stack, table=console if table else None, **options)
    except (SandboxError, TimeoutError) as error:
        raise Failure(str(error)) from error
    if as_json:
        click.echo(json.dumps(_result(scenario, tally), indent=2))
    click.secho(_sentence(scenario, tally), err=as_json, bold=True, fg="red" if tally.failed else "green")
    return FAILED if tally.failed else 0


async def _play(
    scenario: Scenario,
    journal: Journal,
    stack: AsyncExitStack,
    *,
    table: Console | None,
    backends: int,
    rate: float,
    seed: int | None,
) -> Tally:
    journal.line(f"starting {backends} servers")
    await scenario.prepare(backends)
    # The session's own connector, but for the counting.
    connector = scenario.connections.connector(limit=0, keepalive_timeout=_KEEPALIVE)
    session = BalancedSession(
        {_SERVICE: scenario.watcher},
        policy="round_robin",
        retry=Retry(statuses={500, 502, 503, 504}),
        hedge=Hedge(after=_HEDGE),
        ejection=Ejection(base=max(_SHORTEST, _EJECTED * scenario.duration)),
        connector=connector,
        base_url=f"http://{_SERVICE}/",
    )
    await stack.enter_async_context(session)
    await session.ready(10)
    load = Load(session, rate=rate, rng=random.Random(seed))
    view = View(
        session=session,
        standing=Standing(session, _SERVICE),
        scenario=scenario,
        tally=load.tally,
        connections=scenario.connections,
        journal=journal,
    )
    if scenario.registry.url:
        journal.line(f"to follow it: lbclient watch {scenario.registry.url}")
    journal.began_at = time.monotonic()
    journal.note(
        f"{backends} servers listed in {scenario.registry.name}; {rate:g} requests/s begin, "
        "by turns; 60 % of them take 5 to 40 ms"
    )
    journal.echo = table is None
    await _perform(view, load, table)
    return load.tally


async def _perform(view: View, load: Load, table: Console | None) -> None:
    beside = [asyncio.create_task(each) for each in (_draw(view, table) if table else _tell(view), _note(view))]
    loading = asyncio.create_task(load.run())
    try:
        await view.scenario.run(view.standing)
        load.stop()
        await loading
    finally:
        tasks = [*beside, loading]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def _note(view: View) -> None:
    while True:
        view.note_changes()
        await asyncio.sleep(_LOOK)


async def _draw(view: View, console: Console) -> None:
    def frame() -> RenderableType:
        return view.render(width=console.width, height=console.height)

    with Live(frame(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(frame(), refresh=True)
                await asyncio.sleep(_REFRESH)
        finally:
            live.update(frame(), refresh=True)


async def _tell(view: View) -> None:
    second = 1
    while True:
        if view.journal.offset >= second:
            view.journal.line(view.progress())
            second = int(view.journal.offset) + 1
        await asyncio.sleep(_REFRESH)


def _result(scenario: Scenario, tally: Tally) -> dict[str, Any]:
    registry = scenario.registry
    result = tally.as_dict()
    return {
        "requests": tally.requests,
        "failed": tally.failed,
        "retried": tally.retried,
        "endpoints": {
            server.backend.address: {
                "name": server.backend.name,
                "state": server.state,
                **result["endpoints"].get(server.backend.address, {"requests": 0, "failed": 0}),
            }
            for server in scenario.servers
        },
        "p50_ms": result["p50_ms"],
        "p99_ms": result["p99_ms"],
        "removals": [removal.as_dict() for removal in scenario.removals],
        "added": scenario.added,
        "failing": [{"address": a, "ejected_because": because} for a, because in scenario.failed.items()],
        "stopped": [{"address": a, "answered_by_others": count} for a, count in scenario.silent.items()],
        "registry": {"name": registry.name, "url": registry.url, "away_s": scenario.away},
        "errors": tally.errors,
    }


def _sentence(scenario: Scenario, tally: Tally) -> str:
    why = [removal.why for removal in scenario.removals]
    away = f"away for {scenario.away:.1f} s" if scenario.away is not None else "not stopped"
    return (
        f"{counted(tally.requests, 'request')}, {tally.failed} failed.\n"
        f"{counted(why.count('killed'), 'server')} killed, {why.count('drained')} drained, "
        f"{len(scenario.added)} added, {len(scenario.failed)} failing, {len(scenario.silent)} silent; "
        f"registry {away}."
    )
