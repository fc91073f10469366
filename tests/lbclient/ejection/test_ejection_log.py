"""What the log looks like when servers fail for long: it can be read."""

from __future__ import annotations

import logging
import random

import pytest
from ejection_rig import World

from lbclient.outcome import Outcome

# The limits of the lines on nodes and on panics, what says that there would be more, and how many there were.
MOST = 100 + 20 + 4


def ten_minutes(world: World, chance: float) -> None:
    """At 50 requests a second, each tried twice; a connection can be made with this chance."""
    rng = random.Random(1)
    for _ in range(600 * 50):
        world.now += 0.02
        for _ in range(2):
            node = world.pick()
            assert node is not None
            world.end(world.begin(node), Outcome.SUCCESS if rng.random() < chance else Outcome.CONNECT)


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.4])
def test_servers_that_can_be_reached_now_and_then_do_not_fill_the_log(
    chance: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lbclient")
    ten_minutes(World(*range(6)), chance)
    assert len(caplog.records) < (MOST * 11 if chance else 10)
    if chance:
        assert "users: more than 100 changes within a minute: the next ones are logged at DEBUG" in caplog.messages
        assert any(message.endswith("lines were left out before") for message in caplog.messages)


def test_one_that_flaps_has_two_lines_for_each_time_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lbclient")
    world = World(*range(6))
    for _ in range(600 * 10):
        world.now += 0.1
        node = world.pick()
        assert node is not None
        down = node is world.node(0) and int(world.now / 5) % 2
        world.end(world.begin(node), Outcome.CONNECT if down else Outcome.SUCCESS)
    assert len(caplog.records) < 20


def test_a_node_that_fails_and_may_not_go_is_named_once_in_a_time_out(caplog: pytest.LogCaptureFixture) -> None:
    world = World(*range(4), max_ejected=0.1)
    world.see(0, *[Outcome.ERROR] * 5)
    caplog.clear()
    for _ in range(100):
        world.see(1, Outcome.ERROR)
        world.now += 0.5
    said = [
        message for message in caplog.messages if "fails and stays in, since no more nodes may be out" in message
    ]
    assert len(said) == 2
