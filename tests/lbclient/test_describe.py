"""What `describe()` says of nodes that get no requests, or few: why that is so."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
from ejection_rig import World, endpoints

from discovery import Memory
from lbclient import BalancedSession, Ejection, PowerOfTwo, Routing
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.outcome import Outcome
from lbclient.policies.loads import peak_ewma


def test_each_reason_to_get_no_requests_or_few_can_be_seen() -> None:
    world = World(*range(5))
    world.balancer.update([*endpoints(*range(5)), *endpoints(5, weight=0)], world.now)
    world.see(0, *[Outcome.CONNECT] * 3)
    world.see(1, *[Outcome.CONNECT] * 3)
    world.end(world.probe(1), Outcome.SUCCESS)
    world.balancer.set_health(world.node(2), healthy=False, now=world.now)
    world.balancer.set_leaving(world.node(3), leaving=True, now=world.now)
    world.see(4, Outcome.ERROR)
    ejected, back, ill, leaving, failing, unweighted = world.balancer.as_dict(world.now)["nodes"]
    assert (ejected["state"], ejected["portion"]) == ("ejected", None)
    assert ejected["ejected_because"].startswith("3 failed connections in a row")
    assert (back["state"], back["portion"], back["slow_start"]) == ("ready", "", 0.1)
    assert (ill["state"], ill["portion"]) == ("unhealthy", None)
    assert (leaving["state"], leaving["portion"]) == ("leaving", None)
    assert (failing["state"], failing["portion"], failing["slow_start"]) == ("ready", "", None)
    assert failing["failing"] > 0
    assert (unweighted["state"], unweighted["weight"], unweighted["portion"]) == ("ready", 0, None)
    world.now += 10
    assert world.balancer.as_dict(world.now)["nodes"][1]["slow_start"] is None


async def test_endpoints_that_are_left_out_are_counted() -> None:
    source = Memory(["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"])
    async with BalancedSession({"users": source}, routing=Routing(subset=2)) as session:
        await session.ready(5)
        state = session.describe()["services"]["users"]
    assert (state["known"], len(state["nodes"])) == (3, 2)


@pytest.mark.parametrize("ejection", [Ejection(enforce=False), Ejection(connect_failures=0, interval=1e6)])
def test_a_node_that_cannot_be_reached_and_is_not_taken_out_is_not_preferred(ejection: Ejection) -> None:
    """It has nothing under way, and what is known of its latency fades."""
    policy = partial(PowerOfTwo, peak_ewma, random.Random(1))
    balancer = Balancer("users", policy, ejection=ejection, rng=random.Random(2))
    now, picked = 1000.0, Counter[str]()
    balancer.update(endpoints(*range(6)), now)
    for number in range(6000):
        now += 0.005
        node = balancer.pick(Call(now=now))
        assert node is not None
        attempt = Attempt(node, "test", lambda: None)
        attempt.started_at = attempt.sent_at = now
        attempt.land()
        down = number > 1000 and node.address == "s0:80"
        picked[node.address] += down
        balancer.observe(attempt, Outcome.CONNECT if down else Outcome.SUCCESS, now if down else now + 0.02)
    assert picked["s0:80"] / 5000 < 1 / 6
