"""`Service`: one logical name, from its watcher to the node for the next attempt."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from aiohttp import ClientRequest, ClientResponse

from discovery import Endpoint, Snapshot, Source, Watcher, open_source
from lbclient.attempt import Attempt
from lbclient.balancer import Balancer
from lbclient.call import Call
from lbclient.errors import NoEndpoints
from lbclient.hedging import Hedging
from lbclient.node import Node
from lbclient.options import service_host
from lbclient.outcome import Outcome, classify, classify_answer
from lbclient.passage import Passage
from lbclient.policies import Policy
from lbclient.probing import Prober, prequal_in
from lbclient.retrying import Ledger
from lbclient.route import Route
from lbclient.settings import Settings

__all__ = ["Service"]

# Takes the key of a request, for policies that hash.
Key = Callable[[ClientRequest], str | None]
OnLeft = Callable[[Iterable[Node]], None]


class Service:
    """Joins one `Watcher` and one `Balancer`, and lets requests wait where waiting is right.

    The watcher is started by the first request. Each swap of its snapshot updates the balancer and reports
    the nodes that left within the swap itself: no attempt can begin in between.

    Args:
        name: the host name in URLs.
        origin: a source, a watcher (shared; the caller stops it), or the URL of a source.
        new_policy: makes the policy for a group of its nodes.
        settings: its options.
        wait_for_endpoints: seconds a request waits for the first snapshot.
        on_left: called with the nodes that left, in the swap.
        watching: options of the `Watcher`, if it is made here.

    Attributes:
        balancer: chooses the nodes.
        ledger: the retries and hedges there may be.
        hedging: races attempts; None if they are not hedged.
        rng: where the pauses between attempts are drawn from.
    """

    def __init__(
        self,
        name: str,
        origin: Source | Watcher | str,
        new_policy: Callable[[], Policy],
        settings: Settings,
        *,
        wait_for_endpoints: float,
        on_left: OnLeft,
        **watching: Any,
    ) -> None:
        self.name = name
        self.settings = settings
        prober = Prober(service_host(name))
        self.balancer = balancer = Balancer(
            name,
            partial(prober.equip, new_policy),
            ejection=settings.ejection,
            limit_per_node=settings.limits.per_node,
            routing=settings.routing,
            slow_start=settings.slow_start,
        )
        self.ledger = Ledger(settings.retry.budget)
        self.hedging = None if settings.hedge is None else Hedging(settings.hedge, settings.retry)
        self.rng = random.Random()
        self._shared = isinstance(origin, Watcher)
        if isinstance(origin, Watcher):
            self.watcher = origin
        else:
            source = open_source(origin) if isinstance(origin, str) else origin
            self.watcher = Watcher(source, name=name, **watching)
        self._wait = wait_for_endpoints
        self._on_left = on_left
        self._prober = prober if prequal_in(balancer.policy) is not None else None
        self._unsubscribe: Callable[[], None] | None = None
        self._queue: deque[tuple[asyncio.Future[Attempt], Call]] = deque()
        self._serving = False
        self._alarm: asyncio.TimerHandle | None = None
        self._known: tuple[Endpoint, ...] | None = None
        self._policy_name = type(balancer.policy).__name__
        self._key: Key | None = getattr(balancer.policy, "key", None)
        self._session: Key | None = getattr(balancer.policy, "session", None)
        self._answered = hasattr(balancer.policy, "answered")

    def __repr__(self) -> str:
        return f"<Service {self.name}: {self.watcher.snapshot}>"

    def follow(self) -> None:
        """Start to follow the registry; doing it twice is harmless."""
        if self._unsubscribe is None:
            self._unsubscribe = self.watcher.subscribe(self._on_snapshot)
            self._on_snapshot(self.watcher.snapshot)
            self.watcher.start()

    async def close(self) -> None:
        """Stop to follow; whoever waits fails with `NoEndpoints`."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if not self._shared:
            await self.watcher.stop()
        if self._prober is not None:
            await self._prober.close()
        if self.hedging is not None:
            await self.hedging.close()
        waiting, self._queue = self._queue, deque()
        self._wake()
        for turn, call in waiting:
            if not turn.done():
                turn.set_exception(self.no_endpoints(call))

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot.held:
            # Not now: we are inside a swap.
            asyncio.get_running_loop().call_soon(self._let_go)
        if snapshot.version and snapshot.endpoints is not self._known:
            self._known = snapshot.endpoints
            left = self.balancer.update(snapshot.endpoints, time.monotonic())
            if left:
                self._on_left(left)
                if self._prober is not None:
                    self._prober.forget(left)
            self.released()

    def _let_go(self) -> None:
        """Hold no endpoint that vanished from the registry and whose server fails as well."""
        nodes = self.balancer.nodes
        gone = [a for a in self.watcher.snapshot.held if a in nodes and nodes[a].ejected_at is not None]
        # If all of them fail, it may as well be this machine's network.
        if len(gone) < len(nodes):
            self.watcher.let_go(gone)

    def enter(self, req: ClientRequest, passage: Passage) -> Call:
        """Take in a request; returns what the balancer may know of it.

        Raises:
            TypeError: for a key that is no string.
        """
        if self._prober is not None:
            self._prober.imitate(req)
        key = passage.key
        if key is None and self._key is not None:
            key = self._key(req)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key must be a string, or a function that returns one or None, not {key!r}")
        call = Call(key, time.monotonic(), None if self._session is None else self._session(req))
        self.ledger.deposit(call.now)
        return call

    def judge(self, result: ClientResponse | BaseException) -> Outcome:
        """What the end of an attempt shows about its node."""
        if self.settings.classify is not None and (said := self.settings.classify(result)) is not None:
            return said
        return classify(result) if isinstance(result, BaseException) else classify_answer(result)

    def begin(self, call: Call) -> Attempt | None:
        """Begin an attempt at a node that was not tried yet; None if something has to be waited for."""
        if self._queue or not self.balancer.nodes:
            return None
        return self._begin(call)

    def _begin(self, call: Call) -> Attempt | None:
        if not self.balancer.nodes:
            raise self.no_endpoints(call)
        call.now = time.monotonic()
        node = self.balancer.pick(call)
        return None if node is None else Attempt(node, self._reason(node, call), self.released)

    async def wait_and_begin(self, call: Call) -> Attempt:
        """Wait for the first snapshot and for a free slot, then begin an attempt.

        Raises:
            NoEndpoints: if there is none.
        """
        if not self.balancer.nodes:
            await self._first_snapshot(call)
            if (attempt := self.begin(call)) is not None:
                return attempt
        turn: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, call))
        # Those ahead may all wait for nodes that they did not try yet, and this one would take another.
        self.released()
        try:
            return await turn
        except BaseException:
            if not turn.cancel() and not turn.cancelled() and turn.exception() is None:
                # It was cancelled just as its turn had come.
                turn.result().land()
                self.observe(turn.result(), Outcome.OURS)
            raise

    def observe(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record what the attempt showed, up to now."""
        now = time.monotonic()
        attempt.outcome = outcome
        attempt.elapsed = now - attempt.started_at
        self.balancer.observe(attempt, outcome, now)
        if attempt.node.ejected_at is not None and attempt.node.address in self.watcher.snapshot.held:
            self._let_go()
        if self._queue:
            self.released()  # a node that is back has room

    def released(self) -> None:
        """There may be room for those who wait."""
        # Later, since the attempt that ended here and now is still to be observed.
        if self._queue and not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Begin an attempt for each who waits and whom there is room for; who waits longest is first."""
        self._serving = False
        waiting, self._queue = self._queue, deque()
        full = False
        for turn, call in waiting:
            if turn.done():
                continue
            try:
                attempt = None if full and not call.tried else self._begin(call)
                if attempt is None and self.balancer.fails_fast:
                    raise self.no_endpoints(call)  # noqa: TRY301 - it goes to the waiting request
            except Exception as error:  # noqa: BLE001 - whatever a policy raises, those behind are still to be served
                turn.set_exception(error)
                continue
            if attempt is not None:
                turn.set_result(attempt)
            else:
                full = full or not call.tried
                self._queue.append((turn, call))
        self._wake()

    def _wake(self) -> None:
        """Look again when an ejected node is due, should nothing else happen while no node is usable."""
        if self._alarm is not None:
            self._alarm.cancel()
        due_in = self.balancer.due_in(time.monotonic()) if self._queue else None
        self._alarm = None if due_in is None else asyncio.get_running_loop().call_later(due_in, self.released)

    def answered(self, attempt: Attempt, response: ClientResponse, call: Call) -> None:
        """Show the head of an answer to a policy that wants to see it."""
        if self._answered and isinstance(attempt.node.group, Route):
            policy: Any = attempt.node.group.policy
            call.now = attempt.started_at + attempt.elapsed
            policy.answered(attempt.node, response, call)

    def _reason(self, node: Node, call: Call) -> str:
        reason = self._policy_name
        if isinstance(node.group, Route) and node.group.name:
            reason = f"{reason}, {node.group.name}"
        return f"{reason}, not {' '.join(node.address for node in call.tried)}" if call.tried else reason

    async def _first_snapshot(self, call: Call) -> None:
        self.follow()
        if self.watcher.snapshot.version == 0:
            try:
                await self.watcher.ready(self._wait)
            except (TimeoutError, RuntimeError):
                raise self.no_endpoints(call) from None
        if not self.balancer.nodes:
            raise self.no_endpoints(call)

    def no_endpoints(self, call: Call) -> NoEndpoints:
        """The error that says what is known."""
        snapshot = self.watcher.snapshot
        healthy = sum(not node.out for node in self.balancer.nodes.values())
        waited = f" after waiting {self._wait:g} s" if snapshot.version == 0 else ""
        return NoEndpoints(
            f"service {self.name!r} has no endpoint{waited}: {len(snapshot.endpoints)} known, "
            f"{len(self.balancer.nodes)} matching, {healthy} healthy, {len(call.tried)} tried; "
            f"discovery ({self.watcher.source!r}): {snapshot}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The live state as plain data."""
        snapshot = self.watcher.snapshot.as_dict()
        del snapshot["endpoints"]
        probes = {} if self._prober is None else {"probes": dict(self._prober.counts)}
        balancer = self.balancer.as_dict(time.monotonic())
        return {
            "source": repr(self.watcher.source),
            **snapshot,
            "counts": {**self.watcher.counts, **balancer.pop("counts")},
            **probes,
            "waiting": sum(not turn.done() for turn, _ in self._queue),
            **balancer,
        }
