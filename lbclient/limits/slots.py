"""`Slots`: how many attempts a service may have under way, and the queue of the requests that wait for one."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from lbclient.attempt import Attempt
from lbclient.call import Call
from lbclient.limits.limits import Limits

__all__ = ["Slots"]


class _Waiter:
    __slots__ = ("call", "number", "timer", "turn")

    def __init__(self, call: Call, number: int, turn: asyncio.Future[Attempt]) -> None:
        self.call = call
        self.number = number
        self.turn = turn
        self.timer: asyncio.TimerHandle | None = None


class Slots:
    """The attempts of one service that are under way, and the requests that wait until there may be another one.

    The queue is bounded in number and in time; who waits longest is first. Whoever begins an attempt adds it to
    `in_flight`, after a look at `waiting` and `most`, and calls `free` when it is over.

    Args:
        limits: how many there may be, how many may wait, and how long.
        begin: begins an attempt; returns None if no node has room for it.
        give_back: takes an attempt whose request was cancelled just as its turn had come.
        reached: makes the error for a request that may not wait (any longer), of the reason and `in_flight`.
        due_in: seconds after which there may be room although nothing else happened; None if there will not be.

    Attributes:
        in_flight: attempts under way, until the end of the response's body; most: how many there may be.
        waiting: requests that wait.
        counts: requests that were turned away since too many waited (`full`), or had waited too long (`expired`).
        on_free: called when an attempt has ended.
        closed: the error of those who come too late; None while it is open.
    """

    def __init__(
        self,
        limits: Limits,
        begin: Callable[[Call], Attempt | None],
        give_back: Callable[[Attempt], None],
        reached: Callable[[str, int], Exception],
        due_in: Callable[[], float | None],
    ) -> None:
        self.in_flight = 0
        self.most: float = limits.per_service or math.inf
        self.waiting = 0
        self.on_free: Callable[[], None] | None = None
        self.closed: Callable[[], Exception] | None = None
        self.counts = {"full": 0, "expired": 0}
        self._limits = limits
        self._begin = begin
        self._give_back = give_back
        self._reached = reached
        self._due_in = due_in
        self._alarm: asyncio.TimerHandle | None = None
        # First attempts all find the same room, so one of them that finds none answers for those behind it.
        self._first: OrderedDict[_Waiter, None] = OrderedDict()
        # Further attempts wait for nodes that they did not try yet: each has to look for itself.
        self._further: OrderedDict[_Waiter, None] = OrderedDict()
        self._number = 0
        self._pauses: set[asyncio.Timeout] = set()
        self._awake = False
        self._stuck = False

    async def wait(self, call: Call) -> Attempt:
        """Wait for a slot; returns the attempt that was begun there.

        Raises:
            LimitReached: if too many wait already, or it waited too long.
            SessionClosing: if it was closed.
        """
        if self.closed is not None:
            raise self.closed()
        loop = asyncio.get_running_loop()
        self._number += 1
        waiter = _Waiter(call, self._number, loop.create_future())
        turn = waiter.turn
        (self._further if call.tried else self._first)[waiter] = None
        self.waiting += 1
        try:
            if self.waiting > self._limits.waiting:
                self._make_room(waiter)
            else:
                # Those ahead may all wait for nodes that they did not try yet, and this one would take another.
                self.wake()
            if self._limits.wait is not None:
                waiter.timer = loop.call_later(self._limits.wait, self._expire, waiter)
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # It was cancelled just as its turn had come.
                self._give_back(turn.result())
            turn.cancel()
            raise
        finally:
            self._remove(waiter)
            # An error refers to this frame by its traceback: it must not refer to the future that has the error.
            del waiter, turn

    def _make_room(self, waiter: _Waiter) -> None:
        """See at once whether somebody's turn has come, since one too many waits."""
        if waiter.call.tried or not self._stuck:
            self._serve()
        if self.waiting > self._limits.waiting and not waiter.turn.done():
            self.counts["full"] += 1
            reason = f"{self._limits.waiting} requests wait already, which is what Limits.waiting allows"
            raise self._reached(reason, self.in_flight)

    def free(self) -> None:
        """An attempt is over."""
        self.in_flight -= 1
        if self.waiting:
            self.wake()
        if self.on_free is not None:
            self.on_free()

    def wake(self) -> None:
        """There may be room."""
        self._stuck = False
        # Later, since the attempt that ended here and now is still to be observed.
        if self.waiting and not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._serve_awake)

    async def pause(self, pause: Awaitable[None]) -> None:
        """Await the pause before a further attempt, but no longer than attempts may begin."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if self.most >= 0 else 0.0) as end:
                self._pauses.add(end)
                try:
                    await pause
                finally:
                    self._pauses.discard(end)

    def refuse(self) -> None:
        """Let no attempt begin any more."""
        # No number of attempts is below it: the path of each request needs no comparison of its own.
        self.most = -1.0
        pauses, self._pauses = self._pauses, set()
        for end in pauses:
            end.reschedule(0.0)

    def close(self, error: Callable[[], Exception]) -> None:
        """Turn all away who wait, and who will."""
        self.closed = error
        for waiter in (*self._first, *self._further):
            self._remove(waiter)
            if not waiter.turn.done():
                waiter.turn.set_exception(error())
        if self._alarm is not None:
            self._alarm.cancel()

    def _serve_awake(self) -> None:
        self._awake = False
        self._serve()
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        due_in = self._due_in() if self.waiting else None
        self._alarm = None if due_in is None else asyncio.get_running_loop().call_later(due_in, self.wake)

    def _serve(self) -> None:
        """Begin an attempt for each who waits and whom there is room for; who waits longest is first."""
        further = deque(self._further)
        self._stuck = False
        while True:
            first = None if self._stuck else next(iter(self._first), None)
            if further and (first is None or further[0].number < first.number):
                self._has_turn(further.popleft())
            elif first is None:
                return
            else:
                self._stuck = not self._has_turn(first)

    def _has_turn(self, waiter: _Waiter) -> bool:
        """Whether it waits no longer."""
        turn = waiter.turn
        if not turn.done():
            try:
                attempt = None if self.in_flight >= self.most else self._begin(waiter.call)
            except Exception as error:  # noqa: BLE001 - whatever a policy raises, those behind are still to be served
                turn.set_exception(error)
            else:
                if attempt is None:
                    return False
                turn.set_result(attempt)
        self._remove(waiter)
        return True

    def _expire(self, waiter: _Waiter) -> None:
        if not waiter.turn.done():
            self.counts["expired"] += 1
            reason = f"no slot came free within the {self._limits.wait:g} s that Limits.wait allows"
            waiter.turn.set_exception(self._reached(reason, self.in_flight))
            self._remove(waiter)

    def _remove(self, waiter: _Waiter) -> None:
        if waiter.timer is not None:
            waiter.timer.cancel()
            waiter.timer = None
        line = self._further if waiter in self._further else self._first
        if waiter in line:
            del line[waiter]
            self.waiting -= 1

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"in_flight": self.in_flight, "waiting": self.waiting, "limits_reached": dict(self.counts)}
