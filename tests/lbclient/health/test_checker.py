"""The schedule of health checks, in virtual time; what a check shows is made up here."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest
from virtual_time import run

from discovery import Endpoint
from lbclient import HealthCheck, PowerOfTwo
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.health.asking import Finding
from lbclient.health.checker import Checker
from lbclient.health.state import Verdict
from lbclient.node import Node
from lbclient.outcome import Outcome
from lbclient.side_requests import SideRequests

OK: Finding = (Verdict.OK, "status 200")
FAILED: Finding = (Verdict.FAILED, "status 500")
DRAINING: Finding = (Verdict.DRAINING, "it said so")
UNKNOWN: Finding = (Verdict.UNKNOWN, "no descriptors")


class Ready(SideRequests):
    """Whether checks can be sent is the test's to say."""

    able = True

    @property
    def ready(self) -> bool:
        return self.able


class World:
    """A balancer whose nodes are checked; `answer` says what a check shows, `lasts` how many seconds it takes."""

    def __init__(self, nodes: int = 1, **options: Any) -> None:
        self.answer: Callable[[Node], Finding] = lambda _: OK
        self.lasts: Callable[[Node], float] = lambda _: 0.0
        self.asked: list[tuple[float, str]] = []
        # Whether checks end in their own way when they are cancelled, as those do that just time out.
        self.deaf = False
        self.under_way = self.most = self.changes = self.cancelled = 0
        self.balancer = Balancer("users", PowerOfTwo)
        self.side = Ready("users")
        check = HealthCheck(**({"jitter": 0} | options))
        self.checker = Checker("users", check, self.balancer, self.side, self._changed, rng=random.Random(1))
        self.addresses = [f"10.0.{n // 250}.{n % 250 + 1}:80" for n in range(nodes)]

    def _changed(self) -> None:
        self.changes += 1

    def set(self, *numbers: int) -> None:
        """The registry lists these nodes."""
        left = self.balancer.update([Endpoint.parse(self.addresses[n]) for n in numbers], 0.0)
        self.checker.update(self.balancer.nodes.values(), left)

    def node(self, number: int = 0) -> Node:
        return self.balancer.nodes[self.addresses[number]]

    async def ask(self, node: Node, *_: object) -> Finding:
        self.asked.append((asyncio.get_running_loop().time() - 1000, node.address))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.lasts(node))
            return self.answer(node)
        except asyncio.CancelledError:
            self.cancelled += 1
            if not self.deaf:
                raise
            return self.answer(node)
        finally:
            self.under_way -= 1

    def times(self, number: int = 0) -> list[float]:
        return [round(at, 6) for at, address in self.asked if address == self.addresses[number]]


@pytest.fixture(autouse=True)
def _leaves_no_task() -> None:
    """In place of the usual one, which needs a loop of its own: `play` looks for it."""


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[World, Coroutine[Any, Any, None]], None]:
    def play(world: World, script: Coroutine[Any, Any, None]) -> None:
        monkeypatch.setattr("lbclient.health.checker.ask", world.ask)

        async def main() -> None:
            try:
                await script
            finally:
                await world.checker.close()
                assert len(asyncio.all_tasks()) == 1
                assert world.under_way == 0

        run(main())

    return play


Play = Callable[[World, Coroutine[Any, Any, None]], None]


def test_a_node_is_checked_at_once_and_then_every_interval(play: Play) -> None:
    world = World(interval=5)

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(21)
        assert world.times() == [0, 5, 10, 15, 20]

    play(world, script())


def test_the_interval_varies_by_the_jitter(play: Play) -> None:
    world = World(interval=10, jitter=0.2)

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(2000)
        times = world.times()
        gaps = [b - a for a, b in pairwise(times)]
        assert 8 <= min(gaps) < 8.5
        assert 11.5 < max(gaps) <= 12
        assert 9.7 < sum(gaps) / len(gaps) < 10.3

    play(world, script())


def test_the_interval_counts_from_the_beginning_of_a_check_and_there_is_one_at_a_time(play: Play) -> None:
    world = World(interval=5)
    world.lasts = lambda _: 2.0 if len(world.asked) < 3 else 7.0

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(25)
        assert world.times() == [0, 5, 10, 17, 24]
        assert world.most == 1

    play(world, script())


def test_first_checks_of_many_are_spread_over_the_interval_and_those_of_few_are_not(play: Play) -> None:
    world = World(2003, interval=5, per_second=1000)

    async def script() -> None:
        world.set(*range(2000))
        await asyncio.sleep(4.9999)
        first = [at for at, _ in world.asked]
        assert len(first) == len({address for _, address in world.asked}) == 2000
        for second in range(5):
            assert 380 < sum(second <= at < second + 1 for at in first) < 420
        world.set(*range(2003))
        await asyncio.sleep(0.021)
        assert all(len(world.times(number)) == 1 for number in (2000, 2001, 2002))

    play(world, script())


def test_no_more_than_at_once_are_under_way_and_who_waits_longest_is_next(play: Play) -> None:
    world = World(10, interval=5, at_once=3)
    world.lasts = lambda _: 4.0

    async def script() -> None:
        world.set(*range(10))
        await asyncio.sleep(100)
        assert world.most == 3
        order = [address for _, address in world.asked]
        assert len(order) == 75
        assert order[:10] == order[10:20] == order[20:30] == order[30:40]
        assert set(order[:10]) == set(world.addresses)

    play(world, script())


def test_with_very_many_nodes_the_interval_is_longer(play: Play) -> None:
    world = World(1000, interval=5, per_second=50)

    async def script() -> None:
        world.set(*range(1000))
        await asyncio.sleep(59.9999)
        assert len(world.asked) == 3000
        assert {len(world.times(number)) for number in range(0, 1000, 100)} == {3}
        for second in range(60):
            assert 49 <= sum(second <= at < second + 1 for at, _ in world.asked) <= 100
        world.set(*range(10))
        await asyncio.sleep(20)
        before = len(world.asked)
        await asyncio.sleep(50)
        assert len(world.asked) - before == 100

    play(world, script())


def test_a_node_that_leaves_is_forgotten_and_its_check_cancelled(play: Play) -> None:
    world = World(2, at_once=1)
    world.lasts = lambda _: 1.0

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(0.5)
        world.set(1)
        await asyncio.sleep(0)
        assert world.cancelled == 1
        await asyncio.sleep(30)
        assert world.times() == [0]
        assert world.times(1)[0] == 0.5, "the slot of the one that left was not free"
        assert [target.node.address for target in world.checker._targets.values()] == [world.addresses[1]]
        assert world.checker.counts["sent"] == world.checker.counts["ok"] + 2

    play(world, script())


def test_a_check_that_ends_just_as_its_node_leaves_shows_nothing(play: Play) -> None:
    world = World(unhealthy_threshold=1)
    world.answer = lambda _: FAILED
    world.lasts = lambda _: 1.0
    world.deaf = True

    async def script() -> None:
        world.set(0)
        node = world.node()
        await asyncio.sleep(0.5)
        world.set()
        await asyncio.sleep(1)
        assert world.cancelled == 1
        assert node.healthy
        assert world.checker.counts["failed"] == 0

    play(world, script())


def test_failures_in_a_row_take_a_node_out_and_successes_in_a_row_bring_it_back(play: Play) -> None:
    world = World(2, interval=1, unhealthy_threshold=3, healthy_threshold=2)
    world.answer = lambda node: FAILED if node.address == world.addresses[0] else OK

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(1.5)
        assert world.node().healthy
        await asyncio.sleep(1)
        assert (world.node().state, world.node(1).state) == ("unhealthy", "ready")
        assert [node.address for node in world.balancer.usable] == [world.addresses[1]]
        world.answer = lambda _: OK
        await asyncio.sleep(1)
        assert not world.node().healthy
        await asyncio.sleep(1)
        assert world.node().healthy
        assert len(world.balancer.usable) == 2
        assert world.changes == 2

    play(world, script())


def test_a_mandatory_check_keeps_a_new_node_out_until_the_first_success(play: Play) -> None:
    world = World(2, interval=1, mandatory=True, healthy_threshold=3)

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(0.5)
        world.answer = lambda node: FAILED if node.address == world.addresses[1] else OK
        world.set(0, 1)
        assert [node.address for node in world.balancer.usable] == [world.addresses[0]], "in the very swap"
        await asyncio.sleep(10)
        assert not world.node(1).healthy
        world.answer = lambda _: OK
        await asyncio.sleep(1)
        assert world.node(1).healthy

    play(world, script())


def test_as_long_as_none_is_well_all_are_used(play: Play) -> None:
    world = World(3, mandatory=True)
    world.answer = lambda _: FAILED

    async def script() -> None:
        world.set(0, 1, 2)
        await asyncio.sleep(60)
        assert len(world.balancer.usable) == 3

    play(world, script())


def test_a_draining_node_is_out_without_a_failure_until_a_good_check(play: Play) -> None:
    world = World(2, interval=1, unhealthy_threshold=1, healthy_threshold=5)
    world.answer = lambda node: DRAINING if node.address == world.addresses[0] else OK

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(5.5)
        assert world.node().state == "leaving"
        assert world.node().healthy
        assert world.checker.counts["failed"] == 0
        world.answer = lambda _: OK
        await asyncio.sleep(1)
        assert world.node().state == "ready"

    play(world, script())


def test_an_ordinary_answer_can_say_it_too(play: Play) -> None:
    world = World(2, interval=1, draining_header="X-Draining")

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(0.5)
        node = world.node()
        world.checker.draining(node)
        world.checker.draining(node)
        await asyncio.sleep(0.1)
        assert node.state == "leaving"
        assert world.changes == 1
        await asyncio.sleep(1)
        assert node.state == "ready"
        world.set(1)
        world.checker.draining(node)
        await asyncio.sleep(0.1)
        assert not node.leaving

    play(world, script())


def test_what_could_not_be_checked_changes_nothing(play: Play) -> None:
    world = World(interval=1, unhealthy_threshold=2)
    answers = iter([FAILED, *[UNKNOWN] * 5, FAILED])
    world.answer = lambda _: next(answers, OK)

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(5.5)
        assert world.node().healthy
        await asyncio.sleep(1)
        assert not world.node().healthy

    play(world, script())


def test_a_check_that_breaks_does_not_end_the_checks(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    world = World(2, interval=1, at_once=1)

    def answer(_: Node) -> Finding:
        raise LookupError("a bug")

    world.answer = answer

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(9.5)
        assert len(world.asked) == 20

    play(world, script())
    assert "a bug" in caplog.text


def test_nothing_is_checked_before_it_is_known_how_and_then_not_all_at_once(play: Play) -> None:
    world = World(1000, interval=5)
    world.side.able = False

    async def script() -> None:
        world.set(*range(1000))
        await asyncio.sleep(3600)
        world.checker.resume()
        assert world.asked == []
        world.side.able = True
        world.checker.resume()
        world.checker.resume()
        await asyncio.sleep(2.5)
        assert 480 < len(world.asked) < 520
        await asyncio.sleep(2.4999)
        assert len({address for _, address in world.asked}) == len(world.asked) == 1000

    play(world, script())


def test_a_closed_pool_stops_the_checks_until_there_is_another(play: Play) -> None:
    world = World(interval=1)

    async def script() -> None:
        world.set(0)
        await asyncio.sleep(1.5)
        world.side.able = False
        await asyncio.sleep(10)
        assert len(world.asked) == 2
        world.side.able = True
        world.checker.resume()
        await asyncio.sleep(1.5)
        assert len(world.asked) == 4

    play(world, script())


def test_many_changes_are_taken_in_together(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(10_000, interval=5, unhealthy_threshold=1, at_once=10_000, per_second=10_000)
    world.answer = lambda node: FAILED if node.address != world.addresses[0] else OK
    made = 0
    regroup = world.balancer._regroup

    def counted(*args: float, **options: bool) -> None:
        nonlocal made
        made += 1
        regroup(*args, **options)

    async def script() -> None:
        world.set(*range(10_000))
        monkeypatch.setattr(world.balancer, "_regroup", counted)
        await asyncio.sleep(5.2)
        assert [node.address for node in world.balancer.usable] == [world.addresses[0]]
        assert made <= 52

    play(world, script())


def test_each_change_is_told_once_with_its_reason(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lbclient")
    world = World(2, interval=1)
    answers = iter([FAILED] * 5 + [OK] * 5 + [DRAINING] * 5 + [OK] * 5)
    world.answer = lambda node: next(answers) if node.address == world.addresses[0] else OK

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(19.5)

    play(world, script())
    lines = [record for record in caplog.records if record.name == "lbclient.health.checker"]
    assert [(record.levelname, record.getMessage()) for record in lines] == [
        ("WARNING", "users: 10.0.0.1:80 is unhealthy: status 500 (3 in a row)"),
        ("INFO", "users: 10.0.0.1:80 is healthy: status 200 (2 in a row)"),
        ("INFO", "users: 10.0.0.1:80 is about to stop: it said so"),
        ("INFO", "users: 10.0.0.1:80 is not about to stop any more: status 200"),
    ]


def test_a_thousand_changes_are_no_thousand_lines(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lbclient")
    world = World(1000, interval=5, unhealthy_threshold=1)
    world.lasts = lambda _: 20.0 - asyncio.get_running_loop().time() + 1000
    world.answer = lambda _: FAILED

    async def script() -> None:
        world.checker._check = HealthCheck(unhealthy_threshold=1, at_once=1000)
        world.set(*range(1000))
        await asyncio.sleep(21)

    play(world, script())
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("checker")]
    assert len(lines) == 11
    assert lines[-1] == "users: 990 further nodes changed; 1000 of 1000 unfit"


def test_changes_that_come_one_by_one_are_no_thousand_lines_either(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    """All nodes go down, and each is asked at another moment."""
    caplog.set_level(logging.INFO, "lbclient")
    world = World(500, interval=5, unhealthy_threshold=1)
    world.answer = lambda _: FAILED

    async def script() -> None:
        world.set(*range(500))
        await asyncio.sleep(5.5)
        assert not any(node.healthy for node in world.balancer.nodes.values())

    play(world, script())
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("checker")]
    assert len(lines) == 101
    assert lines[-1] == "users: more than 100 changes within a minute: the next ones are logged at DEBUG"


def eject(world: World, node: Node) -> None:
    """Connections of requests to the node fail, three in a row."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        attempt = Attempt(node, "", lambda: None)
        attempt.started_at = loop.time()
        attempt.land()
        world.balancer.observe(attempt, Outcome.CONNECT, loop.time())
    assert node.ejected_at is not None


@pytest.fixture
def _monotonic_is_virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: asyncio.get_running_loop().time())


@pytest.mark.usefixtures("_monotonic_is_virtual")
def test_successes_in_a_row_end_an_ejection_for_failed_connections(play: Play) -> None:
    world = World(2, interval=1, healthy_threshold=3)

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(5.5)
        eject(world, world.node())
        await asyncio.sleep(2)
        assert world.node().state == "ejected"
        await asyncio.sleep(1)
        assert world.node().state == "ready"
        assert world.changes == 1

    play(world, script())


@pytest.mark.usefixtures("_monotonic_is_virtual")
def test_a_failure_between_them_starts_the_count_anew(play: Play) -> None:
    world = World(2, interval=1, healthy_threshold=3)
    answers = iter([OK] * 8 + [FAILED] + [OK] * 20)
    world.answer = lambda node: next(answers) if node.address == world.addresses[0] else OK

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(5.5)
        eject(world, world.node())
        await asyncio.sleep(5)
        assert world.node().state == "ejected"
        await asyncio.sleep(1)
        assert world.node().state == "ready"

    play(world, script())


@pytest.mark.usefixtures("_monotonic_is_virtual")
def test_a_check_that_began_before_the_ejection_confirms_nothing(play: Play) -> None:
    world = World(2, interval=1, healthy_threshold=1)
    world.lasts = lambda _: 0.9

    async def script() -> None:
        world.set(0, 1)
        await asyncio.sleep(5.5)
        eject(world, world.node())
        await asyncio.sleep(0.45)
        assert world.node().state == "ejected"
        await asyncio.sleep(1)
        assert world.node().state == "ready"

    play(world, script())


def test_the_description_says_how_the_last_check_went(play: Play) -> None:
    world = World(2, interval=10, unhealthy_threshold=9)
    world.answer = lambda _: FAILED

    def check() -> Any:
        state: dict[str, Any] = {"nodes": [{"address": world.addresses[0]}]}
        world.checker.describe_in(state)
        return state["nodes"][0]["check"], state["checks"]

    async def script() -> None:
        world.set(0)
        assert check()[0] is None
        await asyncio.sleep(12)
        said, counts = check()
        assert said == {"result": "failed", "why": "status 500", "ago": pytest.approx(2), "in_a_row": 2}
        assert counts == {"sent": 2, "ok": 0, "failed": 2, "draining": 0, "unknown": 0}

    play(world, script())
