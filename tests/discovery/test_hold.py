"""Endpoints that vanish together: the rules by table, the same through a watcher in virtual time."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import run

from discovery import Endpoint, Memory, Snapshot, SourceError, Watcher
from discovery.hold import Hold

A, B, C, D = (Endpoint(host=f"10.0.0.{n}", port=80) for n in (1, 2, 3, 4))
A2 = Endpoint(host="10.0.0.1", port=80, weight=7)


def named(endpoints: Sequence[Endpoint]) -> str:
    return "".join("ABCD"[int(endpoint.host[-1]) - 1] for endpoint in endpoints)


class Row(NamedTuple):
    """The registry lists `before`, then `now`; after so many seconds the watcher shows `shown` in `state`."""

    before: str
    now: str
    after: float
    shown: str
    state: str
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed
    followed: bool = True


COLLAPSE = {"collapse": 0.5}
ACCEPT: dict[str, Any] = {"on_empty": "accept"}
KEEP: dict[str, Any] = {"on_empty": "keep"}
# What the registry says is a set, `-` for empty, `!` for an error, `?` for nothing at all.
TABLE = [
    # unknown
    Row("?", "?", 60, "", "starting"),
    Row("?", "-", 0, "", "live"),
    Row("?", "!", 60, "", "starting"),
    Row("?", "AB", 0, "AB", "live"),
    # empty, all at once
    Row("ABC", "-", 0, "ABC", "held"),
    Row("ABC", "-", 29, "ABC", "held"),
    Row("ABC", "-", 31, "", "live"),
    Row("ABC", "-", 4, "ABC", "held", {"hold_for": 5}),
    Row("ABC", "-", 6, "", "live", {"hold_for": 5}),
    Row("ABC", "-", 0, "", "live", ACCEPT),
    Row("ABC", "-", 9999, "ABC", "held", KEEP),
    # the last one leaves: somebody removed it; but after an outage nobody knows
    Row("A", "-", 0, "", "live"),
    Row("A", "-", 0, "A", "held", {}, followed=False),
    Row("A", "-", 31, "", "live", {}, followed=False),
    Row("A", "-", 0, "", "live", ACCEPT, followed=False),
    # shrunk
    Row("ABCD", "A", 0, "A", "live"),
    Row("ABCD", "A", 0, "ABCD", "held", COLLAPSE),
    Row("ABCD", "A", 31, "A", "live", COLLAPSE),
    Row("ABCD", "AB", 0, "AB", "live", COLLAPSE),
    Row("ABCD", "A", 0, "ABCD", "held", {**COLLAPSE, **ACCEPT}),
    Row("ABCD", "-", 0, "", "live", {**COLLAPSE, **ACCEPT}),
    Row("AB", "A", 0, "A", "live", {"collapse": 0.0}),
    Row("AB", "A", 0, "AB", "held", {"collapse": 0.0}, followed=False),
    Row("ABC", "AD", 0, "ABCD", "held", {"collapse": 0.5}),
    # an error takes nothing, however old the set gets
    Row("ABC", "!", 0, "ABC", "stale"),
    Row("ABC", "!", 9999, "ABC", "stale"),
    Row("ABC", "!", 9999, "ABC", "stale", ACCEPT),
    Row("-", "!", 9999, "", "stale"),
]


class Played:
    """A source that lists what it is told; an error lasts."""

    def __init__(self) -> None:
        self.says = "?"
        self.again = asyncio.Event()
        self.broken = False
        self.rewound = False

    def say(self, what: str, *, followed: bool = True) -> None:
        self.says, self.broken = what, not followed
        self.again.set()

    async def watch(self) -> AsyncGenerator[Sequence[Endpoint], None]:
        while True:
            self.again.clear()
            if self.broken or self.says == "!":
                self.broken = False
                raise SourceError("played")
            if self.says != "?":
                yield tuple({"A": A, "B": B, "C": C, "D": D, "a": A2}[each] for each in self.says if each != "-")
            await self.again.wait()


@pytest.mark.parametrize("row", TABLE)
def test_what_stays_of_what_vanished(row: Row) -> None:
    async def main() -> Snapshot:
        source = Played()
        async with Watcher(source, **row.options) as watcher:
            source.say(row.before)
            await asyncio.sleep(1)
            source.say(row.now, followed=row.followed)
            await asyncio.sleep(row.after + 0.5)
            return watcher.snapshot

    shown = run(main())
    assert (named(shown.endpoints), shown.state) == (row.shown, row.state)
    assert (shown.state == "held") == bool(shown.held) == (shown.state == "held" and bool(shown.reason))


async def after(watcher: Watcher, source: Played, *said: str | float) -> Snapshot:
    """The snapshot after the source said all that; numbers are seconds."""
    for each in said:
        if isinstance(each, str):
            source.say(each)
            await asyncio.sleep(0.1)
        else:
            await asyncio.sleep(each)
    return watcher.snapshot


def story(*said: str | float, **options: Any) -> tuple[str, str, str]:
    """What is shown, what is held, and the state, at the end."""

    async def main() -> Snapshot:
        source = Played()
        async with Watcher(source, **options) as watcher:
            return await after(watcher, source, *said)

    end = run(main())
    held = named([endpoint for endpoint in end.endpoints if endpoint.address in end.held])
    return named(end.endpoints), held, end.state


def test_deletes_one_at_a_time_are_never_held() -> None:
    assert story("ABCD", "ABC", "AB", "A", "-") == ("", "", "live")
    assert story("ABCD", "ABC", "AB", "A", "-", collapse=0.0) == ("", "", "live")


@pytest.mark.parametrize(
    ("sets", "options", "expected"),
    [
        # All leases of a set end at one moment: etcd sends that in pieces.
        (["ABC", "A", "-"], {}, ("ABCD", "held")),
        (["AB", "A", "-"], {}, ("ABCD", "held")),
        (["ABC", "A", "-"], ACCEPT, ("", "live")),
        (["ABC", "AB", "A"], {}, ("A", "live")),
        (["AB", "A"], COLLAPSE, ("ABCD", "held")),
        (["ABC", "AB"], COLLAPSE, ("AB", "live")),
        (["ABC", "ABCD", "ABC"], {"collapse": 0.0}, ("ABC", "live")),
        (["ABC", "ABCD", "-"], {}, ("ABCD", "held")),
        # What went earlier is not brought back.
        (["ABC", 0.06, "A", "-"], {}, ("ABC", "held")),
        (["AB", 0.06, "A", 0.06, "-"], {}, ("", "live")),
        # One at a time, however fast.
        (["ABC", "AB", "A", "-"], {}, ("", "live")),
        (["ABC", "AB", "A"], {"collapse": 0.0}, ("A", "live")),
    ],
)
def test_those_that_vanish_in_pieces_within_a_moment_vanish_together(
    sets: list[str | float], options: dict[str, Any], expected: tuple[str, str]
) -> None:
    async def main() -> Snapshot:
        source = Played()
        async with Watcher(source, **options) as watcher:
            await after(watcher, source, "ABCD")
            for each in sets:
                if isinstance(each, str):
                    source.say(each)
                await asyncio.sleep(each if isinstance(each, float) else 0.001)
            return watcher.snapshot

    end = run(main())
    assert (named(end.endpoints), end.state) == expected


@pytest.mark.parametrize(
    ("options", "followed", "expected"),
    [({}, False, ("ABCD", "held")), ({}, True, ("ABCD", "held")), (ACCEPT, False, ("A", "live"))],
)
def test_what_a_registry_that_lost_data_does_not_list_is_held(
    options: dict[str, Any], followed: bool, expected: tuple[str, str]
) -> None:
    """The first server that is back must not send the others away."""

    async def main() -> Snapshot:
        source = Played()
        async with Watcher(source, **options) as watcher:
            await after(watcher, source, "ABCD")
            source.rewound = True
            source.say("A", followed=followed)
            await asyncio.sleep(1)
            source.rewound = False
            return await after(watcher, source, 20.0)

    end = run(main())
    assert (named(end.endpoints), end.state) == expected
    assert not end.held or end.reason == "the registry has lost data, 3 of 4 endpoints with it"


def test_those_that_come_back_are_held_no_more_and_the_others_keep_their_time() -> None:
    assert story("ABC", "-", 20.0, "B") == ("ABC", "AC", "held")
    assert story("ABC", "-", 20.0, "B", 9.0) == ("ABC", "AC", "held")
    assert story("ABC", "-", 20.0, "B", 11.0) == ("B", "", "live")
    assert story("ABC", "-", "ABC") == ("ABC", "", "live")


def test_a_registry_that_fills_up_again_one_by_one_is_followed() -> None:
    assert story("ABC", "-", "D", "DA") == ("ABCD", "BC", "held")
    assert story("ABC", "-", "DA", "D") == ("BCD", "BC", "held")


def test_what_is_kept_gets_a_time_when_others_come() -> None:
    assert story("ABC", "-", 9999.0, "D", 29.0, on_empty="keep") == ("ABCD", "ABC", "held")
    assert story("ABC", "-", 9999.0, "D", 31.0, on_empty="keep") == ("D", "", "live")


def test_a_hold_does_not_end_while_the_registry_is_out_of_reach() -> None:
    assert story("ABC", "-", "!", 100.0) == ("ABC", "ABC", "stale")
    assert story("ABC", "-", "!", 100.0, "AB", 9.0) == ("AB", "", "live")
    assert story("ABC", "-", "!", 100.0, "-", 9.0) == ("", "", "live")


def test_two_collapses_have_a_time_each() -> None:
    assert story("ABCD", "AB", 20.0, "-", 15.0, collapse=0.4) == ("AB", "AB", "held")


def test_a_held_description_is_the_last_one_known() -> None:
    async def main() -> Snapshot:
        source = Played()
        async with Watcher(source) as watcher:
            return await after(watcher, source, "AB", "aB", "-")

    assert run(main()).endpoints == (A2, B)


def test_a_hold_is_over_at_once_when_it_is_accepted_and_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        memory = Memory([A, B, C])
        async with Watcher(memory, name="users") as watcher:
            await watcher.ready(1)
            memory.set([])
            held = await watcher.newer_than(0)
            await asyncio.sleep(0)
            held = watcher.snapshot
            assert held.version == 1
            assert held.reason == "the registry lists no endpoint any more"
            assert held.as_dict()["held"] == {e.address: pytest.approx(30, abs=0.1) for e in (A, B, C)}
            assert str(held).startswith("3 endpoints, held, 3 of them vanished from the registry (")
            watcher.let_go([B.address, "10.9.9.9:80"])
            assert (named(watcher.snapshot.endpoints), watcher.snapshot.version) == ("AC", 2)
            watcher.accept()
            assert (watcher.snapshot.endpoints, watcher.snapshot.state) == ((), "live")
            version = watcher.snapshot.version
            watcher.accept()
            assert watcher.snapshot.version == version
            assert watcher.counts == {"updates": 2, "changes": 3, "outages": 0, "holds": 1}

    caplog.set_level(logging.INFO)
    run(main())
    assert [record.getMessage() for record in caplog.records] == [
        "users: live, 3 endpoints",
        "users: the registry lists no endpoint any more: 3 endpoints held",
        "users: no longer held: 1 endpoint",
        "users: no longer held: 2 endpoints",
    ]


def test_iteration_tells_when_something_held_comes_back() -> None:
    async def main() -> None:
        memory, seen = Memory([A, B]), []
        async with Watcher(memory) as watcher:
            async for snapshot in watcher:
                seen.append((snapshot.state, len(snapshot.held)))
                match len(seen):
                    case 2:
                        memory.set([])
                    case 3:
                        memory.set([A])
                    case 4:
                        break
        assert seen == [("starting", 0), ("live", 0), ("held", 2), ("held", 1)]

    run(main())


def test_nothing_is_left_of_a_hold_when_the_watcher_stops() -> None:
    async def main() -> None:
        memory = Memory([A, B])
        async with Watcher(memory) as watcher:
            await watcher.ready(1)
            memory.set([])
            await asyncio.sleep(1)
        await asyncio.sleep(60)  # a timer that is left would swap
        assert watcher.snapshot.state == "stale"

    run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_empty": "wait"}, "on_empty must be one of hold, accept, keep, not 'wait'"),
        ({"hold_for": 0}, "hold_for must be a number of seconds above 0, not 0"),
        ({"hold_for": math.nan}, "not nan"),
        ({"hold_for": True}, "not True"),
        ({"collapse": 1}, "collapse must be a share from 0 to below 1, or None, not 1"),
        ({"collapse": -0.1}, "not -0.1"),
        ({"collapse": math.nan}, "not nan"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        Watcher(Memory(), **options)


SETS = st.frozensets(st.sampled_from([A, B, C, D]))


@given(
    steps=st.lists(st.tuples(SETS, st.floats(0, 20), st.booleans()), min_size=1, max_size=12),
    collapse=st.none() | st.sampled_from([0.0, 0.3, 0.5]),
    on_empty=st.sampled_from(["hold", "accept", "keep"]),
)
def test_whatever_happens_a_hold_has_an_end_and_holds_nothing_that_is_listed(
    steps: list[tuple[frozenset[Endpoint], float, bool]], collapse: float | None, on_empty: Any
) -> None:
    hold = Hold(on_empty, seconds=30, collapse=collapse)
    before: frozenset[Endpoint] = frozenset()
    now = 0.0
    known: set[Endpoint] = set()
    for listed, seconds, followed in steps:
        now += seconds
        hold.begin(before, listed, now, followed=followed)
        hold.expire(now)
        known |= before
        assert not {e.address for e in listed} & hold.until.keys()
        assert set(hold.endpoints) <= known
        assert all(now < until <= now + 30 or (math.isinf(until) and not listed) for until in hold.until.values())
        before = listed
    hold.expire(now + 30.001)
    assert not hold.until or all(math.isinf(until) for until in hold.until.values())
