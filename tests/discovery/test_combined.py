"""Several sources as one: on registries in memory, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence

import pytest
from virtual_time import run

from discovery import Endpoint, Failover, Memory, Merge, Snapshot, SourceError, Static, Watcher, open_source

A, B, C, D = (Endpoint(host=f"10.0.0.{n}", port=80) for n in (1, 2, 3, 4))


class Named(Memory):
    """A registry with a name of its own."""

    def __init__(self, name: str, endpoints: Sequence[Endpoint] = ()) -> None:
        self.name = name
        self.skipped: dict[str, str] = {}
        super().__init__(endpoints)

    def __repr__(self) -> str:
        return self.name


class Silent(Named):
    """A registry that hangs."""

    async def watch(self):  # noqa: ANN201 - as in Memory
        await asyncio.sleep(1e6)
        yield ()


def named(snapshot: Snapshot) -> str:
    return "".join("ABCD"[int(endpoint.host[-1]) - 1] for endpoint in snapshot.endpoints)


def test_a_merge_has_all_endpoints_and_each_address_once() -> None:
    async def main() -> None:
        one, two = Named("one", [A, B]), Named("two", [B, C])
        one.skipped, two.skipped = {"x": "bad"}, {"y": "bad", "z": "bad"}
        async with Watcher(Merge(one, two)) as watcher:
            first = await watcher.ready(1)
            assert (named(first), first.version, first.state, first.skipped) == ("ABC", 1, "live", 3)
            one.remove(B)
            await asyncio.sleep(0.1)
            assert (named(watcher.snapshot), watcher.snapshot.version) == ("ABC", 1)
            two.remove(B)
            await asyncio.sleep(0.1)
            assert named(watcher.snapshot) == "AC"

    run(main())


def test_a_part_that_is_out_of_reach_keeps_its_endpoints_and_is_named() -> None:
    async def main() -> None:
        one, two = Named("one", [A, B]), Named("two", [C])
        async with Watcher(Merge(one, two)) as watcher:
            await watcher.ready(1)
            one.fail("cut")
            two.add(D)
            await asyncio.sleep(60)
            now = watcher.snapshot
            assert (named(now), now.state, now.reason) == ("ABCD", "live", "one: stale: cut")
            one.remove(A)
            one.recover()
            await asyncio.sleep(3)
            now = watcher.snapshot
            assert (named(now), now.state, now.reason) == ("BCD", "live", "")

    run(main())


def test_a_merge_is_stale_only_without_any_and_loses_nothing_then() -> None:
    async def main() -> None:
        one, two = Named("one", [A]), Named("two", [B])
        async with Watcher(Merge(one, two)) as watcher:
            await watcher.ready(1)
            one.fail("cut")
            two.fail("gone")
            await asyncio.sleep(10)
            now = watcher.snapshot
            assert (named(now), now.state) == ("AB", "stale")
            assert set(now.reason.split("; ")) == {"cut", "gone"}
            # One is back: what the other listed before the outage is still there.
            two.set([C])
            two.recover()
            await asyncio.sleep(5)
            now = watcher.snapshot
            assert (named(now), now.state, now.reason) == ("AC", "live", "one: starting: cut")
            one.set([D])
            one.recover()
            await asyncio.sleep(5)
            assert (named(watcher.snapshot), watcher.snapshot.reason) == ("CD", "")

    run(main())


def test_at_the_start_all_are_waited_for_but_not_for_long() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with Watcher(Merge(Named("one", [A]), Silent("two"))) as watcher:
            assert named(await watcher.ready(9)) == "A"
            assert loop.time() - began == pytest.approx(2)
            assert watcher.snapshot.reason == "two: starting: no answer yet"
        # One that fails is not waited for.
        began = loop.time()
        broken = Named("broken")
        broken.fail("down")
        async with Watcher(Merge(Named("one", [A]), broken)) as watcher:
            assert named(await watcher.ready(9)) == "A"
            assert loop.time() - began < 0.1
        # Nothing at all is an error.
        async with Watcher(Merge(broken, Silent("two"))) as watcher:
            with pytest.raises(TimeoutError, match="down; no answer yet"):
                await watcher.ready(9)

    run(main())


def test_a_merge_in_which_one_loses_all_is_held_when_asked_for() -> None:
    async def main() -> None:
        one, two = Named("one", [A, B, C]), Named("two", [D])
        async with Watcher(Merge(one, two), collapse=0.5) as watcher:
            await watcher.ready(1)
            one.set([])
            await asyncio.sleep(1)
            assert (named(watcher.snapshot), watcher.snapshot.state) == ("ABCD", "held")
            await asyncio.sleep(30)
            assert (named(watcher.snapshot), watcher.snapshot.state) == ("D", "live")

    run(main())


def test_while_endpoints_are_held_a_part_that_is_out_of_reach_is_still_named() -> None:
    async def main() -> None:
        one, two = Named("one", [A, B]), Named("two")
        two.fail("cut")
        async with Watcher(Merge(one, two)) as watcher:
            await watcher.ready(5)
            one.set([])
            await asyncio.sleep(1)
            now = watcher.snapshot
            assert (named(now), now.state) == ("AB", "held")
            assert now.reason == ("the registry lists no endpoint any more; two: starting: cut")

    run(main())


def test_failover_uses_the_first_that_has_endpoints() -> None:
    async def main() -> None:
        one, two = Named("one"), Named("two", [C])
        source = Failover(one, two)
        async with Watcher(source) as watcher:
            assert named(await watcher.ready(1)) == "C"
            assert source.used is two
            one.add(A)
            await asyncio.sleep(0.1)
            assert (named(watcher.snapshot), source.used) == ("A", one)
            one.remove(A)
            await asyncio.sleep(0.1)
            assert named(watcher.snapshot) == "C"

    run(main())


def test_failover_is_patient_with_one_that_is_out_of_reach() -> None:
    async def main() -> None:
        one, two = Named("one", [A, B]), Named("two", [C])
        async with Watcher(Failover(one, two)) as watcher:
            await watcher.ready(1)
            one.fail("cut")
            await asyncio.sleep(9.9)
            assert (named(watcher.snapshot), watcher.snapshot.reason) == ("AB", "one: stale: cut")
            await asyncio.sleep(0.2)
            assert (named(watcher.snapshot), watcher.snapshot.state) == ("C", "live")
            one.recover()
            await asyncio.sleep(3)
            assert (named(watcher.snapshot), watcher.snapshot.reason) == ("AB", "")
            # Out of reach with nothing better behind it.
            two.set([])
            one.fail("cut")
            await asyncio.sleep(100)
            assert named(watcher.snapshot) == "AB"
            two.fail("gone")
            await asyncio.sleep(100)
            assert (named(watcher.snapshot), watcher.snapshot.state) == ("AB", "stale")

    run(main())


def test_failover_counts_the_time_in_which_none_could_be_reached() -> None:
    async def main() -> None:
        one, two = Named("one", [A, B]), Named("two", [C])
        async with Watcher(Failover(one, two)) as watcher:
            await watcher.ready(1)
            one.fail("cut")
            two.fail("gone")
            await asyncio.sleep(60)
            assert (named(watcher.snapshot), watcher.snapshot.state) == ("AB", "stale")
            two.recover()
            await asyncio.sleep(3)
            # Out of reach for a minute: no reason for another 10 s of patience.
            now = watcher.snapshot
            assert (named(now), now.state, now.reason) == ("C", "live", "one: starting: cut")

    run(main())


def test_failover_does_not_wait_for_a_silent_one_behind_a_good_one() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for sources, expected, longest in (
            ((Named("one", [A]), Silent("two"), Named("three", [C])), "A", 0.1),
            ((Named("one"), Named("two", [B]), Silent("three")), "B", 0.1),
            ((Silent("one"), Named("two", [B])), "B", 2.1),
        ):
            began = loop.time()
            async with Watcher(Failover(*sources)) as watcher:
                assert named(await watcher.ready(9)) == expected
                assert loop.time() - began < longest

    run(main())


@pytest.mark.parametrize("combination", [Merge, Failover])
def test_a_part_is_not_asked_sooner_than_it_wants_although_none_can_be_reached(
    combination: type[Merge | Failover],
) -> None:
    class Refused(Named):
        asked = 0

        async def watch(self):  # noqa: ANN202 - as in Memory
            self.asked += 1
            raise SourceError("wrong password", retry_after=5)
            yield ()

    async def main() -> None:
        one, two = Refused("one"), Named("two", [A])
        two.fail("down")
        async with Watcher(combination(one, two)) as watcher:
            await asyncio.sleep(60)
            assert 5 <= one.asked <= 13
            assert watcher.snapshot.reason == "wrong password; down"
            two.recover()
            await asyncio.sleep(3)
            assert (named(watcher.snapshot), watcher.snapshot.state) == ("A", "live")

    run(main())


def test_a_sign_of_life_of_a_part_is_not_sorted_again() -> None:
    async def main() -> None:
        one, two = Named("one", [B, C]), Named("two", [A])
        async with contextlib.aclosing(Merge(one, two).watch()) as sets:
            first = await anext(sets)
            one.set([B, C])
            assert await anext(sets) is first
            one.set([C])
            assert [e.address for e in await anext(sets)] == [A.address, C.address]

    run(main())


def test_failover_at_the_start_goes_to_the_second_when_the_first_is_down() -> None:
    async def main() -> None:
        one, two = Named("one", [A]), Named("two", [C])
        one.fail("down")
        async with Watcher(Failover(one, two)) as watcher:
            assert named(await watcher.ready(5)) == "C"

    run(main())


def test_nothing_is_left_when_it_stops() -> None:
    async def main() -> None:
        one, two = Named("one", [A]), Named("two", [B])
        two.fail()
        async with Watcher(Merge(one, Failover(one, two))) as watcher:
            await watcher.ready(5)
            await asyncio.sleep(10)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not one._changed

    run(main())


def test_each_part_says_in_the_log_what_becomes_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        one, two = Named("one", [A]), Named("two", [B])
        async with Watcher(Merge(one, two), name="users") as watcher:
            await watcher.ready(1)
            one.fail("cut")
            await asyncio.sleep(100)

    caplog.set_level(logging.INFO)
    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "one: live, 1 endpoint",
        "two: live, 1 endpoint",
        "users: live, 2 endpoints",
        "one: stale, 1 endpoint kept: cut",
    ]


def test_failover_says_in_the_log_which_source_it_uses(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        one, two = Named("one", [A]), Named("two", [B])
        async with Watcher(Failover(one, two), name="users") as watcher:
            await watcher.ready(1)
            one.set([])
            await asyncio.sleep(60)
            one.set([A])
            await asyncio.sleep(60)

    run(main())
    assert caplog.messages == ["two is used in place of one", "one is used in place of two"]


def test_urls() -> None:
    merged = open_source("static://10.0.0.1:80 + static://10.0.0.2:80")
    assert isinstance(merged, Merge)
    assert repr(merged) == "Merge(Static(10.0.0.1:80), Static(10.0.0.2:80))"
    both = open_source("static://10.0.0.1:80 + static://10.0.0.2:80 | static://10.0.0.3:80")
    assert isinstance(both, Failover)
    assert isinstance(both.sources[0], Merge)
    with pytest.raises(ValueError, match="unknown scheme 'nope'"):
        open_source("static://10.0.0.1:80 | nope://x")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="Merge needs two sources or more"):
        Merge(Static([A]))
    with pytest.raises(TypeError, match="'etcd' is no source"):
        Failover(Static([A]), "etcd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patience must be a number of seconds above 0, not 0"):
        Failover(Static([A]), Static([B]), patience=0)
