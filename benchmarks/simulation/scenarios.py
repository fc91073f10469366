"""`SCENARIOS`: what may happen to servers, as functions from a size to a `Plan`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lbclient.routing import SlowStart
from simulation.plan import MEAN_WORK, Phase, Plan, ServerPlan, Size

__all__ = ["SCENARIOS", "Scenario", "Setting"]

# The part of a simulation that is not measured: balancers know nothing in the beginning.
_WARM_UP = 0.25
_LOAD = 0.7
_RAMP = (0.75, 0.9, 1.1, 1.3, 1.5, 1.7)
# In the spirit of the Prequal paper: others on the same machine take a part of it, for seconds.
_CALM, _ATTACKED = 4.0, 2.0
_LEFT_OVER = (0.2, 0.8)
_NORMAL = ServerPlan()


class Setting(NamedTuple):
    """What a plan is made for: about so many requests, and with this source of randomness."""

    size: Size
    requests: int
    rng: random.Random


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One thing that happens.

    Attributes:
        name: at the command line.
        about: one line.
        plan: makes the plan.
        length: how many times the usual number of requests it takes.
        sizes: those it is simulated at, by their number of servers; empty for all.
    """

    name: str
    about: str
    plan: Callable[[Setting], Plan]
    length: float = 1.0
    sizes: tuple[int, ...] = ()


def _plan(
    setting: Setting,
    servers: Sequence[ServerPlan],
    capacity: float | None = None,
    load: float = _LOAD,
    **more: Any,
) -> Plan:
    """A plan at a share of the capacity, which is the sum of the servers' speeds unless given."""
    if capacity is None:
        capacity = sum(server.speeds[0][1] for server in servers if not server.failing)
    rate = load * capacity * servers[0].workers / MEAN_WORK
    seconds = setting.requests / rate
    more.setdefault("phases", (Phase("", _WARM_UP * seconds, seconds),))
    return Plan(
        seconds=seconds, clients=setting.size.clients, servers=tuple(servers), rates=((0.0, rate),), **more
    )


def _odd(setting: Setting, odd: ServerPlan, share: float = 0.1) -> tuple[list[ServerPlan], frozenset[int]]:
    """Normal servers and odd ones evenly between them, with the numbers of those."""
    step = round(1 / share)
    numbers = frozenset(range(0, setting.size.servers, step))
    return [odd if number in numbers else _NORMAL for number in range(setting.size.servers)], numbers


def _equal(setting: Setting) -> Plan:
    return _plan(setting, [_NORMAL] * setting.size.servers)


def _slow(setting: Setting) -> Plan:
    servers, slow = _odd(setting, ServerPlan(speeds=((0.0, 0.1),)))
    return _plan(setting, servers, groups={"slow": slow})


def _recovery(setting: Setting) -> Plan:
    plan = _slow(setting)
    half = plan.seconds / 2
    servers, _ = _odd(setting, ServerPlan(speeds=((0.0, 0.1), (half, 1.0))))
    phases = (Phase("slow", half / 2, half), Phase("recovering", half, plan.seconds))
    return replace(plan, servers=tuple(servers), phases=phases, recovery_at=half)


def _one_failing(setting: Setting) -> Plan:
    servers, failing = _odd(setting, ServerPlan(failing=True), 1 / setting.size.servers)
    return _plan(setting, servers, groups={"failing": failing})


def _failing(setting: Setting) -> Plan:
    servers, failing = _odd(setting, ServerPlan(failing=True))
    return _plan(setting, servers, groups={"failing": failing})


def _mixed(*, registered: bool) -> Callable[[Setting], Plan]:
    def plan(setting: Setting) -> Plan:
        speeds = [(0.5, 1.0, 2.0)[number % 3] for number in range(setting.size.servers)]
        servers = [ServerPlan(speeds=((0.0, s),), weight=s if registered else 1.0) for s in speeds]
        slow = frozenset(range(0, setting.size.servers, 3))
        return _plan(setting, servers, groups={"slow": slow})

    return plan


def _antagonists(setting: Setting) -> Plan:
    left_over = sum(_LEFT_OVER) / 2
    capacity = setting.size.servers * (_CALM + _ATTACKED * left_over) / (_CALM + _ATTACKED)
    plan = _plan(setting, [_NORMAL] * setting.size.servers, capacity)

    def speeds() -> Iterable[tuple[float, float]]:
        calm = setting.rng.random() < _CALM / (_CALM + _ATTACKED)
        now = 0.0
        while now < plan.seconds:
            yield now, 1.0 if calm else setting.rng.uniform(*_LEFT_OVER)
            now += setting.rng.expovariate(1 / (_CALM if calm else _ATTACKED))
            calm = not calm

    return replace(plan, servers=tuple(ServerPlan(speeds=tuple(speeds())) for _ in range(setting.size.servers)))


def _cold_start(setting: Setting) -> Plan:
    plan = _plan(setting, [_NORMAL] * setting.size.servers, load=0.85)
    return replace(plan, phases=(Phase("", 0.0, plan.seconds),))


def _newcomers(*, slow_start: bool) -> Callable[[Setting], Plan]:
    """One in ten joins, and needs some time until it is as fast as the others: caches, compilers."""

    def plan(setting: Setting) -> Plan:
        plan = _plan(setting, [_NORMAL] * setting.size.servers)
        joining, warm = 0.25 * plan.seconds, 0.25 * plan.seconds
        speeds = ((0.0, 0.1), (joining + warm / 2, 0.4), (joining + warm, 1.0))
        servers, new = _odd(setting, ServerPlan(speeds=speeds))
        everything = tuple(range(setting.size.servers))
        old = tuple(number for number in everything if number not in new)
        return replace(
            plan,
            servers=tuple(servers),
            listings=((0.0, old), (joining, everything)),
            slow_start=SlowStart(window=2 * warm) if slow_start else None,
            phases=(Phase("", joining, joining + 2 * warm),),
            groups={"slow": new},
        )

    return plan


def _rolling_deploy(setting: Setting) -> Plan:
    """One in twenty after the other is deregistered, is gone for a while, and comes back as a new node."""
    plan = _plan(setting, [_NORMAL] * setting.size.servers)
    batches = 20
    begin, turn = 0.1 * plan.seconds, 0.85 * plan.seconds / batches
    listings = [(0.0, tuple(range(setting.size.servers)))]
    for batch in range(batches + 1):
        gone = range(batch, setting.size.servers, batches) if batch < batches else ()
        listings.append((begin + batch * turn, tuple(n for n in range(setting.size.servers) if n not in gone)))
    return replace(plan, listings=tuple(listings), phases=(Phase("", begin, plan.seconds),))


def _flapping(setting: Setting) -> Plan:
    """The servers work, but each is listed four fifths of the time only."""
    plan = _plan(setting, [_NORMAL] * setting.size.servers, load=0.6)
    everything = tuple(range(setting.size.servers))
    listings = [(0.0, everything)]
    now = 0.5
    while now < plan.seconds:
        listings.append((now, tuple(number for number in everything if setting.rng.random() < 0.8)))
        now += 0.5
    return replace(plan, listings=tuple(listings))


def _ramp(setting: Setting) -> Plan:
    plan = _plan(setting, [_NORMAL] * setting.size.servers, load=sum(_RAMP) / len(_RAMP))
    step = plan.seconds / len(_RAMP)
    capacity = setting.size.servers * _NORMAL.workers / MEAN_WORK
    rates = tuple((step * n, load * capacity) for n, load in enumerate(_RAMP))
    phases = tuple(Phase(f"{load:.2f}", step * n, step * (n + 1)) for n, load in enumerate(_RAMP))
    return replace(plan, rates=rates, phases=phases)


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(name="equal", about="equal servers at 70 % of their capacity", plan=_equal),
        Scenario(name="slow", about="one in ten ten times slower, at 70 % of the capacity of all", plan=_slow),
        Scenario(
            name="recovery",
            about="the same, and half way the slow ones become normal",
            plan=_recovery,
            length=2.0,
            sizes=(100,),
        ),
        Scenario(name="one_failing", about="one server answers with 500 at once", plan=_one_failing),
        Scenario(name="failing", about="one in ten answers with 500 at once", plan=_failing),
        Scenario(
            name="weighted", about="speeds 0.5, 1 and 2, registered as weights", plan=_mixed(registered=True)
        ),
        Scenario(name="unweighted", about="speeds 0.5, 1 and 2, not registered", plan=_mixed(registered=False)),
        Scenario(
            name="antagonists", about="others take 20 to 80 % of a server away, for seconds", plan=_antagonists
        ),
        Scenario(name="cold_start", about="all clients begin at once, at 85 %", plan=_cold_start, length=0.3),
        Scenario(
            name="newcomers", about="one in ten joins and is slow at first", plan=_newcomers(slow_start=False)
        ),
        Scenario(name="newcomers_slow_start", about="the same, with SlowStart", plan=_newcomers(slow_start=True)),
        Scenario(
            name="rolling_deploy", about="one in twenty after the other leaves and returns", plan=_rolling_deploy
        ),
        Scenario(name="flapping", about="the registry lists four fifths, others each half second", plan=_flapping),
        Scenario(name="ramp", about="load from 0.75 to 1.7 of the capacity", plan=_ramp, length=1.5),
    )
}
