"""The queue by itself, in virtual time: its bounds, and that nobody waits who need not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from virtual_time import run

from lbclient import Limits
from lbclient.call import Call
from lbclient.errors import LimitReached, SessionClosing
from lbclient.limits.slots import Slots


class Service:
    """So many slots, numbered; `closed_to` are the calls that have no use for the free ones."""

    def __init__(self, slots: int, **limits: Any) -> None:
        self.slots = Slots(Limits(**limits), self._begin, self._give_back, self._reached, self._due_in)
        self.due_in: float | None = None
        self.left = slots
        self.closed_to: set[Call] = set()
        self.looks = 0
        self.given_back: list[Any] = []

    def _begin(self, call: Call) -> Any:
        self.looks += 1
        if not self.left or call in self.closed_to:
            return None
        self.left -= 1
        self.slots.in_flight += 1
        return object()

    def _due_in(self) -> float | None:
        return self.due_in

    def _give_back(self, attempt: Any) -> None:
        self.given_back.append(attempt)
        self.free()

    def _reached(self, why: str, in_flight: int) -> LimitReached:
        return LimitReached(f"{why}; {in_flight} in flight")

    def free(self, count: int = 1) -> None:
        for _ in range(count):
            self.left += 1
            self.slots.free()


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def waits(service: Service, call: Call | None = None) -> asyncio.Task[Any]:
    return asyncio.create_task(service.slots.wait(call or Call()))


def second(*nodes: Any) -> Call:
    """A call that had an attempt already."""
    call = Call()
    call.tried = nodes or (object(),)  # type: ignore[assignment]
    return call


def test_who_waits_too_long_fails_after_exactly_that_time() -> None:
    async def main() -> None:
        service = Service(0, wait=7.0)
        began = now()
        with pytest.raises(LimitReached, match=r"within the 7 s that Limits.wait allows; 0 in flight"):
            await service.slots.wait(Call())
        assert now() - began == pytest.approx(7.0)
        assert service.slots.counts == {"full": 0, "expired": 1}
        assert service.slots.waiting == 0

    run(main())


def test_without_a_bound_they_wait_for_ever() -> None:
    async def main() -> None:
        service = Service(0, wait=None)
        task = waits(service)
        await asyncio.sleep(1e6)
        service.free()
        await task

    run(main())


def test_who_waits_is_looked_after_when_time_alone_makes_room() -> None:
    async def main() -> None:
        service = Service(0)
        service.due_in = 3.0
        began, task = now(), waits(service)
        await asyncio.sleep(1)
        service.left, service.due_in = 1, None
        await task
        assert now() - began == pytest.approx(3.0)

    run(main())


def test_a_timer_is_gone_with_its_request() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        service = Service(0, wait=30.0)
        tasks = [waits(service) for _ in range(4)]
        await turns()
        service.left += 1
        service.slots.wake()
        tasks[2].cancel()
        await asyncio.wait(tasks[:1])
        await asyncio.wait(tasks[2:3])
        service.slots.close(lambda: SessionClosing("closed"))
        await asyncio.wait(tasks)
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    run(main())


def test_there_is_no_timer_where_there_is_room() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        service = Service(1)
        task = waits(service, second())
        await turns()
        assert task.done()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    run(main())


@pytest.mark.parametrize("most", [0, 1, 5])
def test_one_more_than_may_wait_fails_at_once(most: int) -> None:
    async def main() -> None:
        service = Service(0, waiting=most)
        tasks = [waits(service) for _ in range(most)]
        await turns()
        with pytest.raises(LimitReached, match=f"{most} requests wait already, which is what"):
            await service.slots.wait(Call())
        assert (service.slots.waiting, service.slots.counts["full"]) == (most, 1)
        service.free(most)
        await asyncio.gather(*tasks)

    run(main())


def test_who_finds_the_queue_full_but_a_slot_free_has_it() -> None:
    """The one that waits has no use for the slot: it would hold up those who have."""

    async def main() -> None:
        service = Service(1, waiting=1)
        picky = second()
        service.closed_to.add(picky)
        waiting = waits(service, picky)
        await turns()
        assert not waiting.done()
        await service.slots.wait(Call())
        with pytest.raises(LimitReached):
            await service.slots.wait(Call())
        waiting.cancel()
        await turns()

    run(main())


def test_those_who_were_cancelled_take_no_place_in_the_queue() -> None:
    async def main() -> None:
        service = Service(0, waiting=3, wait=None)
        first = waits(service)
        for _ in range(100):
            gone = [waits(service) for _ in range(2)]
            await turns()
            assert service.slots.waiting == 3
            for task in gone:
                task.cancel()
            await turns()
        assert service.slots.waiting == 1
        service.free()
        await first

    run(main())


def test_first_and_further_attempts_are_served_in_the_order_in_which_they_came() -> None:
    async def main() -> None:
        service = Service(0)
        served: list[int] = []

        async def one(number: int, call: Call) -> None:
            await service.slots.wait(call)
            served.append(number)

        tasks = []
        for number, kind in enumerate((Call, second, second, Call, Call, second, Call)):
            tasks.append(asyncio.create_task(one(number, kind())))
            await turns(1)
        for count in range(1, 8):
            service.free()
            await turns()
            assert served == list(range(count))
        await asyncio.gather(*tasks)

    run(main())


def test_a_slot_that_comes_free_costs_no_look_at_each_who_waits() -> None:
    async def main() -> None:
        service = Service(0, waiting=5000)
        tasks = [waits(service) for _ in range(5000)]
        await turns()
        service.looks = 0
        service.free()
        await turns()
        assert service.looks <= 2
        service.free(4999)
        await asyncio.gather(*tasks)

    run(main())


def test_refusing_under_a_full_queue_looks_at_no_node() -> None:
    async def main() -> None:
        service = Service(0, waiting=1)
        waiting = waits(service)
        await turns()
        service.looks = 0
        for _ in range(100):
            with pytest.raises(LimitReached):
                await service.slots.wait(Call())
        assert service.looks == 0
        service.free()
        await waiting

    run(main())


def test_none_begins_beyond_the_limit_of_the_service() -> None:
    async def main() -> None:
        service = Service(100, per_service=3)
        tasks = [waits(service) for _ in range(9)]
        for ended in range(7):
            await turns()
            assert service.slots.in_flight == 3
            assert sum(task.done() for task in tasks) == 3 + ended
            service.free()

    run(main())


async def _closing(service: Service) -> None:
    service.slots.close(lambda: SessionClosing("closed"))


async def _expiring(_: Service) -> None:
    await asyncio.sleep(31)


@pytest.mark.parametrize("ends", [_closing, _expiring])
def test_who_is_cancelled_while_the_waiting_ends_for_another_reason_is_just_cancelled(
    ends: Callable[[Service], Any],
) -> None:
    async def main() -> None:
        service = Service(0)
        task = waits(service)
        await turns()
        task.cancel()
        await ends(service)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.given_back == []
        assert service.slots.waiting == 0

    run(main())


def test_who_comes_after_closing_fails_at_once() -> None:
    async def main() -> None:
        service = Service(1)
        service.slots.close(lambda: SessionClosing("closed"))
        with pytest.raises(SessionClosing):
            await service.slots.wait(Call())

    run(main())
