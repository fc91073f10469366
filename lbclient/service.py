"""`Service`: one logical name, from its watcher to the node for the next attempt."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from discovery import Endpoint, Snapshot, Source, Watcher, open_source
from lbclient.balancer import Balancer
from lbclient.errors import NoEndpoints
from lbclient.node import Attempt, Node
from lbclient.outcome import Outcome

__all__ = ["Service"]

OnLeft = Callable[[Iterable[Node]], None]


class Service:
    """Joins one `Watcher` and one `Balancer`, and lets requests wait where waiting is right.

    The watcher is started by the first request. Each swap of its snapshot updates the balancer and reports
    the nodes that left within the swap itself: no attempt can begin in between.

    Args:
        name: the host name in URLs.
        origin: a source, a watcher (shared; the caller stops it), or the URL of a source.
        balancer: chooses the nodes.
        wait_for_endpoints: seconds a request waits for the first snapshot.
        on_left: called with the nodes that left, in the swap.
        watching: options of the `Watcher`, if it is made here.
    """

    def __init__(
        self,
        name: str,
        origin: Source | Watcher | str,
        balancer: Balancer,
        *,
        wait_for_endpoints: float,
        on_left: OnLeft,
        **watching: Any,
    ) -> None:
        self.name = name
        self.balancer = balancer
        self._shared = isinstance(origin, Watcher)
        if isinstance(origin, Watcher):
            self.watcher = origin
        else:
            source = open_source(origin) if isinstance(origin, str) else origin
            self.watcher = Watcher(source, name=name, **watching)
        self._wait = wait_for_endpoints
        self._on_left = on_left
        self._unsubscribe: Callable[[], None] | None = None
        self._queue: deque[tuple[asyncio.Future[Attempt], tuple[Node, ...]]] = deque()
        self._serving = False
        self._known: tuple[Endpoint, ...] | None = None
        self._first_reason = type(balancer.policy).__name__

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
        waiting, self._queue = self._queue, deque()
        for turn, tried in waiting:
            if not turn.done():
                turn.set_exception(self.no_endpoints(tried))

    def _on_snapshot(self, snapshot: Snapshot) -> None:
        if snapshot.held:
            # Not now: we are inside a swap.
            asyncio.get_running_loop().call_soon(self._let_go)
        if snapshot.version and snapshot.endpoints is not self._known:
            self._known = snapshot.endpoints
            left = self.balancer.update(snapshot.endpoints)
            if left:
                self._on_left(left)
            self.released()

    def _let_go(self) -> None:
        """Hold no endpoint that vanished from the registry and whose server fails as well."""
        nodes = self.balancer.nodes
        gone = [a for a in self.watcher.snapshot.held if a in nodes and nodes[a].ejected_at is not None]
        if gone:
            self.watcher.let_go(gone)

    def begin(self, tried: tuple[Node, ...] = ()) -> Attempt | None:
        """Begin an attempt at a node that was not tried yet; None if something has to be waited for."""
        if self._queue or not self.balancer.nodes:
            return None
        return self._begin(tried)

    def _begin(self, tried: tuple[Node, ...]) -> Attempt | None:
        if not self.balancer.nodes:
            raise self.no_endpoints(tried)
        node = self.balancer.pick(time.monotonic(), tried)
        return None if node is None else Attempt(node, self._reason(tried), self.released)

    async def wait_and_begin(self, tried: tuple[Node, ...] = ()) -> Attempt:
        """Wait for the first snapshot and for a free slot, then begin an attempt.

        Raises:
            NoEndpoints: if there is none.
        """
        if not self.balancer.nodes:
            await self._first_snapshot(tried)
            if (attempt := self.begin(tried)) is not None:
                return attempt
        turn: asyncio.Future[Attempt] = asyncio.get_running_loop().create_future()
        self._queue.append((turn, tried))
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
        for turn, tried in waiting:
            if turn.done():
                continue
            try:
                attempt = None if full and not tried else self._begin(tried)
            except Exception as error:  # noqa: BLE001 - whatever a policy raises, those behind are still to be served
                turn.set_exception(error)
                continue
            if attempt is not None:
                turn.set_result(attempt)
            else:
                full = full or not tried
                self._queue.append((turn, tried))

    def _reason(self, tried: tuple[Node, ...]) -> str:
        if not tried:
            return self._first_reason
        return f"{self._first_reason}, not {' '.join(node.address for node in tried)}"

    async def _first_snapshot(self, tried: tuple[Node, ...]) -> None:
        self.follow()
        if self.watcher.snapshot.version == 0:
            try:
                await self.watcher.ready(self._wait)
            except (TimeoutError, RuntimeError):
                raise self.no_endpoints(tried) from None
        if not self.balancer.nodes:
            raise self.no_endpoints(tried)

    def no_endpoints(self, tried: tuple[Node, ...] = ()) -> NoEndpoints:
        """The error that says what is known."""
        snapshot = self.watcher.snapshot
        healthy = sum(node.ejected_at is None for node in self.balancer.nodes.values())
        waited = f" after waiting {self._wait:g} s" if snapshot.version == 0 else ""
        return NoEndpoints(
            f"service {self.name!r} has no endpoint{waited}: {len(snapshot.endpoints)} known, {healthy} healthy, "
            f"{len(tried)} tried; discovery ({self.watcher.source!r}): {snapshot}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The live state as plain data."""
        snapshot = self.watcher.snapshot.as_dict()
        del snapshot["endpoints"]
        return {
            "source": repr(self.watcher.source),
            **snapshot,
            "counts": dict(self.watcher.counts),
            "waiting": sum(not turn.done() for turn, _ in self._queue),
            **self.balancer.as_dict(time.monotonic()),
        }
