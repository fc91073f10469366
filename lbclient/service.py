"""`Service`: one logical name, from its watcher to the node for the next attempt."""

from __future__ import annotations

import asyncio
import random
import time
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
from lbclient.inquiries import Inquiries
from lbclient.limits.lifetimes import attempts_within
from lbclient.limits.slots import Slots
from lbclient.limits.throttle import Meter
from lbclient.node import Node
from lbclient.outcome import Outcome, asked, classify, classify_answer
from lbclient.passage import Passage
from lbclient.policies import Policy
from lbclient.refusals import closed, limit_reached, no_endpoints, throttled
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
        inquiries: the probes and health checks of its nodes.
        slots: the attempts under way, and the requests that wait.
        watches: whether anybody wants to see the heads of answers.
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
        self.inquiries = inquiries = Inquiries(name, settings.health_check)
        self.balancer = balancer = Balancer(
            name,
            partial(inquiries.equip, new_policy),
            ejection=settings.ejection,
            limit_per_node=settings.limits.per_node,
            routing=settings.routing,
            slow_start=settings.slow_start,
        )
        self.ledger = Ledger(settings.retry.budget, name)
        self.hedging = None if settings.hedge is None else Hedging(settings.hedge, settings.retry)
        self.rng = rng = random.Random()
        limits = settings.limits
        reached = partial(limit_reached, name, limits, balancer)
        self.slots = Slots(limits, self._begin_waiting, self.give_back, reached, self._due_in)
        self._new_attempt = attempts_within(limits, rng.random)
        self._meter = None if settings.throttle is None else Meter(settings.throttle, rng.random, name)
        self._shared = isinstance(origin, Watcher)
        if isinstance(origin, Watcher):
            self.watcher = origin
        else:
            source = open_source(origin) if isinstance(origin, str) else origin
            self.watcher = Watcher(source, name=name, **watching)
        self._wait = wait_for_endpoints
        # Deadlines of those who wait for the first snapshot.
        self._deadlines: set[asyncio.Timeout] = set()
        self._on_left = on_left
        inquiries.begin(balancer, self._on_health_change)
        self._unsubscribe: Callable[[], None] | None = None
        self._known: tuple[Endpoint, ...] | None = None
        self._policy_name = type(balancer.policy).__name__
        self._key: Key | None = getattr(balancer.policy, "key", None)
        self._session: Key | None = getattr(balancer.policy, "session", None)
        self._tells = hasattr(balancer.policy, "answered")
        self.watches = self._tells or inquiries.drained_by is not None

    def __repr__(self) -> str:
        return f"<Service {self.name}: {self.watcher.snapshot}>"

    def follow(self) -> None:
        """Start to follow the registry; doing it twice is harmless."""
        if self._unsubscribe is None:
            self._unsubscribe = self.watcher.subscribe(self._on_snapshot)
            self._on_snapshot(self.watcher.snapshot)
            self.watcher.start()

    async def close(self) -> None:
        """Stop to follow; whoever waits fails with `SessionClosing`, or `NoEndpoints` if there are none yet."""
        self.slots.close(partial(closed, self.name))
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self.inquiries.stop()
        if self._shared:
            # It goes on without us, and they may wait for it in vain for long.
            for deadline in self._deadlines:
                deadline.reschedule(0.0)
        else:
            await self.watcher.stop()
        await self.inquiries.close()
        if self.hedging is not None:
            await self.hedging.close()

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot.held:
            # Not now: we are inside a swap.
            asyncio.get_running_loop().call_soon(self._let_go)
        if snapshot.version and snapshot.endpoints is not self._known:
            self._known = snapshot.endpoints
            left = self.balancer.update(snapshot.endpoints, time.monotonic())
            if left:
                self._on_left(left)
            self.inquiries.update(self.balancer.nodes.values(), left)
            self.slots.wake()

    def _let_go(self) -> None:
        """Hold no endpoint that vanished from the registry and whose server fails as well."""
        nodes = self.balancer.nodes
        held = (nodes[a] for a in self.watcher.snapshot.held if a in nodes)
        gone = [node.address for node in held if node.ejected_at is not None or not node.healthy]
        # If all of them fail, it may as well be this machine's network.
        if gone and len(gone) < len(nodes):
            self.watcher.let_go(gone)

    def _on_health_change(self) -> None:
        self._let_go()
        self.slots.wake()  # a node that is back has room

    def enter(self, req: ClientRequest, passage: Passage) -> Call:
        """Take in a request; returns what the balancer may know of it.

        Raises:
            TypeError: for a key that is no string.
            Throttled: if the servers refuse too much.
        """
        if self.inquiries.any:
            self.inquiries.imitate(req)
        key = passage.key
        if key is None and self._key is not None:
            key = self._key(req)
        if key is not None and not isinstance(key, str):
            raise TypeError(f"key must be a string, or a function that returns one or None, not {key!r}")
        now = time.monotonic()
        passage.start(now)
        if self._meter is not None and self._meter.refuses(now):
            raise throttled(self.name, self._meter)
        self.ledger.deposit(now)
        return Call(key, now, None if self._session is None else self._session(req))

    def judge(self, result: ClientResponse | BaseException) -> tuple[Outcome, bool]:
        """What the end of an attempt shows about its node, and whether that is what the user's `classify` says."""
        if (said := asked(self.settings.classify, result)) is not None:
            return said, True
        return classify(result) if isinstance(result, BaseException) else classify_answer(result), False

    def begin(self, call: Call) -> Attempt | None:
        """Begin an attempt at a node that was not tried yet; None if something has to be waited for.

        `call.now` is the time; it is that of `enter` for a first attempt.
        """
        slots = self.slots
        if slots.waiting or slots.in_flight >= slots.most or not self.balancer.nodes:
            return None
        return self._begin(call)

    def begin_instead(self, call: Call, held: Attempt) -> Attempt | None:
        """Begin an attempt in the place of one that ends for it; None if there is no room even so."""
        slots = self.slots
        if slots.waiting or slots.in_flight > slots.most or not self.balancer.nodes:
            return None
        with held.aside():
            return self._begin(call)

    def _begin(self, call: Call) -> Attempt | None:
        node = self.balancer.pick(call)
        if node is None:
            return None
        slots = self.slots
        slots.in_flight += 1
        reason = self._reason(node, call) if call.tried or node.group.name else self._policy_name
        return self._new_attempt(node, reason, slots.free, call.now)

    def _begin_waiting(self, call: Call) -> Attempt | None:
        call.now = time.monotonic()
        attempt = self._begin(call) if self.balancer.nodes else None
        if attempt is None and (self.balancer.fails_fast or not self.balancer.nodes):
            raise self._no_endpoints(call)
        return attempt

    async def wait_and_begin(self, call: Call) -> Attempt:
        """Wait for the first snapshot and for a free slot, then begin an attempt.

        Raises:
            NoEndpoints: if there is none.
            LimitReached: if no slot comes free in time, or too many requests wait for one.
            SessionClosing: if the service was closed.
        """
        if not self.balancer.nodes and self.slots.closed is None:
            await self._first_snapshot(call)
            call.now = time.monotonic()
            if (attempt := self.begin(call)) is not None:
                return attempt
        return await self.slots.wait(call)

    def observe(self, attempt: Attempt, outcome: Outcome) -> None:
        """Record what the attempt showed, up to now."""
        now = time.monotonic()
        attempt.outcome = outcome
        attempt.elapsed = now - attempt.started_at
        if self._meter is not None and attempt.observed is None:
            # One whose body breaks off was accepted all the same, and one attempt must not count as two requests.
            self._meter.observe(outcome, now)
        self.balancer.observe(attempt, outcome, now)
        if attempt.node.ejected_at is not None and attempt.node.address in self.watcher.snapshot.held:
            self._let_go()
        if self.slots.waiting:
            self.slots.wake()  # a node that is back has room

    def _due_in(self) -> float | None:
        return self.balancer.due_in(time.monotonic())

    def give_back(self, attempt: Attempt) -> None:
        """End an attempt of which nothing will be sent, since its request was cancelled."""
        attempt.land()
        self.observe(attempt, Outcome.OURS)

    def answered(self, attempt: Attempt, response: ClientResponse, call: Call) -> None:
        """Show the head of an answer to those who want to see it."""
        self.inquiries.answered(attempt.node, response)
        if self._tells and isinstance(attempt.node.group, Route):
            policy: Any = attempt.node.group.policy
            call.now = attempt.started_at + attempt.elapsed
            policy.answered(attempt.node, response, call)

    def _reason(self, node: Node, call: Call) -> str:
        portion = node.group.name
        reason = f"{self._policy_name}, {portion}" if portion else self._policy_name
        return f"{reason}, not {' '.join(node.address for node in call.tried)}" if call.tried else reason

    async def _first_snapshot(self, call: Call) -> None:
        self.follow()
        if self.watcher.snapshot.version == 0:
            try:
                async with asyncio.timeout(None) as deadline:
                    self._deadlines.add(deadline)
                    await self.watcher.ready(self._wait)
            except (TimeoutError, RuntimeError):
                raise self._no_endpoints(call) from None
            finally:
                self._deadlines.discard(deadline)
        if not self.balancer.nodes:
            raise self._no_endpoints(call)

    def _no_endpoints(self, call: Call) -> NoEndpoints:
        return no_endpoints(self.name, self.watcher, self.balancer, tried=len(call.tried), wait=self._wait)

    def as_dict(self) -> dict[str, Any]:
        """The live state as plain data."""
        snapshot = self.watcher.snapshot.as_dict()
        # Those that `Routing` leaves out have no node.
        snapshot["known"] = len(snapshot.pop("endpoints"))
        balancer = self.balancer.as_dict(time.monotonic())
        parts = {"throttle": self._meter, "budget": self.ledger, "hedges": self.hedging}
        state = {
            "source": repr(self.watcher.source),
            **snapshot,
            "counts": {**self.watcher.counts, **balancer.pop("counts")},
            **self.slots.as_dict(),
            **{name: part.as_dict() for name, part in parts.items() if part is not None},
            **balancer,
        }
        self.inquiries.describe_in(state)
        return state
