"""Following one query at a Consul agent: waiting for its changes, or asking every now and then."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from discovery.consul.client import Answer, ConsulClient, ConsulError, Overloaded
from discovery.source import SourceError

__all__ = ["Follower", "Pace"]

# Nothing has this id: the answer is an empty list with the true index, whatever the number of instances. It stands
# in place of the user's own expression, which has no influence on the index.
_NOTHING = ("filter", 'Service.ID == "-"')
_ASK_EVERY = 2.0  # seconds between two questions where waiting is not possible
# An agent that has too many connections hangs up at once; later it is something else that ended the wait.
_REFUSED_WITHIN = 1.0
_WAIT_AGAIN_AFTER = 60.0  # seconds after a refusal
_DOUBT = (
    0.5  # seconds until the second look when a probe shows a newer index than the poll: its answer may be late
)
# Seconds of the first wait, doubled with each: in a crowd that begins, connections become free soon.
_FIRST_WAIT = 2.0

_Params = Sequence[tuple[str, str]]


class Follower:
    """The answers to one query, one after the other; to be used in `async with`.

    It waits for changes if its turn comes and the agent lets it
    (https://developer.hashicorp.com/consul/api-docs/features/blocking), else it asks every 2 s for one.

    Attributes:
        asks: whether it asks now.

    Args:
        client: of the agent, inside of `async with`.
        path: what to ask for.
        params: of the query and of the probes.
        expression: the user's filter expression; empty for none.
        wait: longest time in seconds for which the agent may keep a query waiting.
        probe_interval: longest time in seconds between two signs of life.
        pace: limits how often all is asked for.
    """

    def __init__(
        self,
        client: ConsulClient,
        path: str,
        params: _Params,
        expression: str,
        *,
        wait: float,
        probe_interval: float,
        pace: Pace,
    ) -> None:
        self.asks = False
        self._client = client
        self._path = path
        self._probe = [*params, _NOTHING]
        self._params = [*params, *([("filter", expression)] if expression else [])]
        self._wait = wait
        self._next_wait = min(wait, _FIRST_WAIT)
        self._probe_interval = probe_interval
        self._pace = pace
        self._index = 0
        self._poll: asyncio.Task[Answer] | None = None
        self._polled_at = self._poll_ends_at = self._complete_at = 0.0
        self._refused_until = 0.0
        self._has_turn = False
        self._is_late = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._drop()
        self._end_turn()

    async def next(self) -> Answer | None:
        """A complete answer, raw; or None for a sign of life. The first one is an answer.

        Raises:
            SourceError: the agent cannot be reached, does not answer in time, or says no.
        """
        if not self._index:
            return await self._complete()
        self.asks = not self._may_wait()
        if self.asks:
            return await self._asked()
        try:
            return await self._waited()
        except Overloaded:
            if time.monotonic() - self._polled_at > _REFUSED_WITHIN:
                raise
            self._poll_ends_at = 0.0
            self._end_turn()
            # Perhaps it does answer what needs no waiting.
            answer = await self._complete()
            self._ask_for_a_while()
            return answer

    async def _waited(self) -> Answer | None:
        if self._poll is None:
            self._poll = asyncio.create_task(self._long_poll(), name=f"poll {self._client.url}{self._path}")
        while not await _done(self._poll, _DOUBT if self._is_late else self._until_probe()):
            try:
                probe = await self._ask(self._probe)
            except Overloaded:
                # It is there, but has no second connection for us: we keep the one that we have.
                self._ask_for_a_while()
                continue
            if max(probe.index, 1) < self._index:
                # A server restored from a backup: the poll would wait in silence until it catches up.
                await self._begin_anew()
            elif self._poll_ends_at and probe.index > self._index:
                # The poll should have told. Its answer may be on the way; or its connection is dead, and silent.
                if self._is_late:
                    await self._begin_anew()
                self._is_late = not self._is_late
            else:
                self._is_late = False
            return None
        poll, self._poll, self._is_late = self._poll, None, False
        try:
            answer = poll.result()
        except ConsulError:
            self._poll_ends_at = 0.0
            raise
        self._poll_ends_at = 0.0
        # Consul's rules for the index: below 1 it would not block, and a smaller one means to begin anew.
        self._index = 0 if answer.index < self._index else max(answer.index, 1)
        return answer

    async def _begin_anew(self) -> None:
        await self._drop()
        self._end_turn()
        self._index = 0

    async def _asked(self) -> Answer | None:
        await asyncio.sleep(_ASK_EVERY * random.uniform(0.8, 1.2))
        # A wait after this ends soon, or what changed without the index might be hidden for the time of two.
        self._next_wait = min(self._wait, _FIRST_WAIT)
        probe = await self._ask(self._probe)
        # A token's rights may change without the index; a poll is answered completely at the end of its wait, too.
        if max(probe.index, 1) == self._index and time.monotonic() - self._complete_at < self._wait:
            return None
        return await self._complete()

    def _ask_for_a_while(self) -> None:
        self._refused_until = time.monotonic() + _WAIT_AGAIN_AFTER * random.uniform(0.8, 1.2)
        self._client.shared.refused()

    async def _complete(self) -> Answer:
        """What there is now."""
        await asyncio.sleep(self._pace.delay(time.monotonic()))
        try:
            answer = await self._ask(self._params)
        except Overloaded:
            self._client.shared.refused()
            raise
        self._index = max(answer.index, 1)
        self._complete_at = time.monotonic()
        return answer

    async def _long_poll(self) -> Answer:
        await asyncio.sleep(self._pace.delay(time.monotonic()))
        wait, self._next_wait = self._next_wait, min(self._wait, 2 * self._next_wait)
        self._polled_at = time.monotonic()
        # Consul adds up to a sixteenth of the wait, so that not all come back at the same moment.
        longest = wait * 17 / 16
        self._poll_ends_at = self._polled_at + longest
        params = [*self._params, ("index", str(self._index)), ("wait", f"{wait * 1000:.0f}ms")]
        return await self._ask(params, timeout=longest + 5)

    async def _ask(self, params: _Params, *, timeout: float | None = None) -> Answer:  # noqa: ASYNC109 - the client's
        answer = await self._client.get(self._path, params, timeout=timeout, raw=True)
        if not answer.has_leader:
            raise SourceError(f"Consul at {self._client.url} knows no leader")
        return answer

    def _may_wait(self) -> bool:
        if self._poll is not None:
            return True
        shared, is_refused = self._client.shared, time.monotonic() < self._refused_until
        if self._has_turn and (is_refused or not shared.may_go_on()):
            self._end_turn()
        elif not self._has_turn and not is_refused:
            self._has_turn = shared.take_turn()
        return self._has_turn

    def _end_turn(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._client.shared.end_turn(busy_until=self._poll_ends_at)
            self._poll_ends_at = 0.0

    async def _drop(self) -> None:
        """End the poll and its connection."""
        if self._poll is not None:
            poll, self._poll = self._poll, None
            poll.cancel()
            await asyncio.wait([poll])
            if not poll.cancelled():
                poll.exception()  # it was asked for, so that asyncio does not complain that nobody did

    def _until_probe(self) -> float:
        # Never later than the interval: how soon a silent agent is noticed is a promise. Down to 20 % sooner, so
        # that many clients do not ask at the same moment.
        return self._probe_interval * random.uniform(0.8, 0.95)


class Pace:
    """A token bucket, as the generic cell rate algorithm: one number is all its state.

    https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._interval = 1 / rate
        self._slack = (burst - 1) / rate
        self._next_at = float("-inf")

    def delay(self, now: float) -> float:
        """Seconds to wait; the turn is taken."""
        at = max(self._next_at, now - self._slack)
        self._next_at = at + self._interval
        return max(0.0, at - now)


async def _done(task: asyncio.Task[Any], within: float) -> bool:
    await asyncio.wait([task], timeout=within)
    return task.done()
