"""`Checker`: checks the nodes of one service when they are due, and tells the balancer what came of it."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from typing import Any, Protocol

from lbclient.health.asking import ask
from lbclient.health.health_check import HealthCheck
from lbclient.health.state import Verdict
from lbclient.health.target import Target
from lbclient.node import Node
from lbclient.routing import Lines
from lbclient.side_requests import SideRequests

__all__ = ["Balancing", "Checker"]

log = logging.getLogger(__name__)

# First checks of nodes that come together are at most so many seconds apart.
_APART = 0.01
# Taking in a change costs the balancer time for each node. Those of so many seconds for each node are taken in
# together: some ten times what it costs.
_PAUSE_PER_NODE = 1e-5
# Changes at the same time of which each has a line in the log, and lines in a minute.
_LINES = 10
_LINES_PER_MINUTE = 100


class Balancing(Protocol):
    """The balancer, as far as checks have to do with it."""

    def set_health(self, node: Node, *, healthy: bool, now: float) -> None: ...  # noqa: D102
    def set_leaving(self, node: Node, *, leaving: bool, now: float) -> None: ...  # noqa: D102
    def health_confirmed(self, node: Node, now: float) -> None: ...  # noqa: D102
    def together(self, now: float) -> AbstractContextManager[None]: ...  # noqa: D102


class Checker:
    """The health checks of one service: one timer for all nodes, and a task for each check under way.

    Nodes are checked in the order in which they are due. One whose time has come while there are too many checks
    under way waits for its turn. Nothing is checked as long as it is not known how requests are sent.

    Args:
        name: the service's, for the log.
        check: the options.
        balancing: is told.
        side: sends the checks.
        on_change: called after the balancer was told something new.
        rng: the source of jitter.

    Attributes:
        counts: checks `sent`, and how many of them were `ok`, `failed`, `draining` or `unknown`. Those of nodes
            that left meanwhile are none of them.
    """

    def __init__(
        self,
        name: str,
        check: HealthCheck,
        balancing: Balancing,
        side: SideRequests,
        on_change: Callable[[], None],
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.counts = {"sent": 0} | {verdict.value: 0 for verdict in Verdict}
        self._check = check
        self._balancing = balancing
        self._side = side
        self._on_change = on_change
        self._rng = rng or random.Random()
        self._targets: dict[Node, Target] = {}
        # When each target is due that is not being checked, in the loop's time.
        self._due: list[tuple[float, int, Target]] = []
        self._numbers = count()
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._say = Lines(log, name, _LINES_PER_MINUTE).say
        self._changed: dict[Target, str] = {}
        self._telling: asyncio.TimerHandle | None = None
        # Checks that were cancelled at the end.
        self._ending: list[asyncio.Task[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def interval(self) -> float:
        """Seconds between two checks of a node, before jitter."""
        return max(self._check.interval, len(self._targets) / self._check.per_second)

    def update(self, nodes: Collection[Node], left: Iterable[Node]) -> None:
        """The nodes of now, and those that have just left; within the swap."""
        self._loop = asyncio.get_running_loop()
        for node in left:
            self._forget(self._targets.pop(node, None))
        fresh = [node for node in nodes if node not in self._targets]
        targets = [Target(node, self._check) for node in fresh]
        self._targets.update(zip(fresh, targets, strict=True))
        if self._check.mandatory and fresh:
            now = time.monotonic()
            with self._balancing.together(now):
                for node in fresh:
                    self._balancing.set_health(node, healthy=False, now=now)
        self._spread(targets)
        self._arm()

    def resume(self) -> None:
        """There may be a way to send checks now."""
        if self._paused:
            # Else all would be asked now, however many there are.
            waiting = [target for _, _, target in self._due if not target.gone]
            self._due.clear()
            self._spread(waiting)
            self._arm()

    def draining(self, node: Node) -> None:
        """The node has answered a request in a way that says that it is about to stop."""
        target = self._targets.get(node)
        if target is not None and not target.state.leaving and target.state.learn(Verdict.DRAINING):
            self._note(target, f"it answered with {self._check.draining_header}")

    def stop(self) -> None:
        """Cancel all checks, and forget the nodes."""
        for timer in (self._timer, self._telling):
            if timer is not None:
                timer.cancel()
        self._timer = self._telling = None
        self._ending += [target.task for target in self._targets.values() if target.task is not None]
        for target in self._targets.values():
            self._forget(target)
        self._targets.clear()
        self._due.clear()
        self._changed.clear()

    async def close(self) -> None:
        """Stop, and wait until the checks under way have ended."""
        self.stop()
        await asyncio.gather(*self._ending, return_exceptions=True)
        self._ending.clear()

    def describe_in(self, state: dict[str, Any]) -> None:
        """Add what the checks showed to a description of the service and its nodes, as plain data."""
        state["checks"] = dict(self.counts)
        now = 0.0 if self._loop is None else self._loop.time()
        found = {target.node.address: target.as_dict(now) for target in self._targets.values()}
        for node in state["nodes"]:
            node["check"] = found.get(node["address"])

    def _forget(self, target: Target | None) -> None:
        if target is not None:
            target.gone = True
            self._changed.pop(target, None)
            if target.task is not None:
                target.task.cancel()

    def _spread(self, targets: list[Target]) -> None:
        """Have the targets be due one after the other, from now on, and all within one interval."""
        if not targets or self._loop is None:
            return
        apart = max(min(_APART, self.interval / len(targets)), 1 / self._check.per_second)
        # In another order than other clients do it at the same time.
        self._rng.shuffle(targets)
        now = self._loop.time()
        self._due += [(now + n * apart, next(self._numbers), target) for n, target in enumerate(targets)]
        heapq.heapify(self._due)

    def _arm(self) -> None:
        """Be called back when the next target is due, if it can be checked then."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._paused = bool(self._due) and self._check.path is not None and not self._side.ready
        if self._due and not self._paused and self._under_way < self._check.at_once and self._loop is not None:
            self._timer = self._loop.call_at(self._due[0][0], self._begin)

    def _begin(self) -> None:
        """Begin the checks that are due."""
        self._timer = None
        if self._loop is None:
            return
        now = self._loop.time()
        ready = self._check.path is None or self._side.ready
        while ready and self._due and self._due[0][0] <= now and self._under_way < self._check.at_once:
            target = heapq.heappop(self._due)[2]
            if not target.gone:
                self._under_way += 1
                self.counts["sent"] += 1
                target.task = self._loop.create_task(self._run(target))
                target.task.add_done_callback(partial(self._ended, target, now))
        self._arm()

    async def _run(self, target: Target) -> None:
        started_at = time.monotonic()
        verdict, why = await ask(target.node, self._check, self._side, self.interval)
        if not target.gone:
            self._learn(target, verdict, why, started_at)

    def _ended(self, target: Target, started: float, task: asyncio.Task[None]) -> None:
        self._under_way -= 1
        target.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: checking %s went wrong", self.name, target.node.address, exc_info=error)
        if not target.gone and self._loop is not None:
            interval = self.interval * (1 + self._check.jitter * self._rng.uniform(-1, 1))
            due = max(started + interval, self._loop.time())
            heapq.heappush(self._due, (due, next(self._numbers), target))
        if self._timer is None or (self._due and self._due[0][0] < self._timer.when()):
            self._arm()

    def _learn(self, target: Target, verdict: Verdict, why: str, started_at: float) -> None:
        node = target.node
        self.counts[verdict.value] += 1
        target.last = verdict, why, asyncio.get_running_loop().time()
        if verdict is not Verdict.OK:
            log.debug("%s: check of %s: %s: %s", self.name, node.address, verdict.value, why)
        changed = target.state.learn(verdict)
        confirmed = target.confirms(verdict, started_at)
        if changed or confirmed >= self._check.healthy_threshold:
            self._note(target, why)

    def _note(self, target: Target, why: str) -> None:
        self._changed[target] = why
        if self._telling is None and self._loop is not None:
            self._telling = self._loop.call_later(len(self._targets) * _PAUSE_PER_NODE, self._tell)

    def _tell(self) -> None:
        """Tell the balancer what is new."""
        self._telling = None
        changed, self._changed = self._changed, {}
        lines = 0
        now = time.monotonic()
        with self._balancing.together(now):
            for target, why in changed.items():
                node, state = target.node, target.state
                if (node.healthy, node.leaving) != (state.healthy, state.leaving):
                    lines += 1
                    if lines <= _LINES:
                        self._log(target, why, now)
                    self._balancing.set_health(node, healthy=state.healthy, now=now)
                    self._balancing.set_leaving(node, leaving=state.leaving, now=now)
                if target.confirmed >= self._check.healthy_threshold and node.ejected_at == target.ejected_at:
                    self._balancing.health_confirmed(node, now)
        if lines > _LINES:
            unfit = sum(not t.state.healthy or t.state.leaving for t in self._targets.values())
            said = "%d further nodes changed; %d of %d unfit"
            self._say(now, logging.WARNING, said, lines - _LINES, unfit, len(self._targets))
        self._on_change()

    def _log(self, target: Target, why: str, now: float) -> None:
        node, state = target.node, target.state
        if node.healthy != state.healthy:
            level = logging.INFO if state.healthy else logging.WARNING
            said = "healthy" if state.healthy else "unhealthy"
        else:
            level = logging.INFO
            said = "about to stop" if state.leaving else "not about to stop any more"
        rows = state.successes or state.failures
        row = f" ({rows} in a row)" if rows > 1 else ""
        self._say(now, level, "%s is %s: %s%s", node.address, said, why, row)
