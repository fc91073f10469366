"""When Dns asks again, what it keeps and how it weighs: on scripted answers, in virtual time, without sockets."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
import virtual_time
from hypothesis import given
from hypothesis import strategies as st

from discovery import Dns, Endpoint, SourceError, Watcher
from discovery.dns.client import Absent, Answer, SrvRecord
from discovery.dns.lookup import shares

Say = Answer | SourceError | None  # None: no answer, ever


def a(*addresses: str, ttl: float = 10) -> Answer:
    return Answer(records=addresses, ttl=ttl)


class Script:
    """In place of a DnsClient: what it says is looked up by name and type at the moment of the question."""

    def __init__(self) -> None:
        self.says: dict[tuple[str, str], Say] = {}
        self.asked: list[tuple[float, str, str]] = []
        self.at_once = self.most_at_once = 0

    def __call__(self, *_: object, **__: object) -> Script:
        return self

    async def ask(self, name: str, kind: str) -> Answer:
        self.asked.append((asyncio.get_running_loop().time() - 1000, name, kind))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            says = self.says.get((name, kind), Absent(f"{name} does not exist"))
            await asyncio.sleep(3600 if says is None else 0.001)
        finally:
            self.at_once -= 1
        if isinstance(says, Answer):
            return says
        assert says is not None
        raise says

    def times(self, kind: str = "A") -> list[float]:
        return [at for at, _, asked in self.asked if asked == kind]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr("discovery.dns.source.DnsClient", made)
    return made


def rounds(source: Dns, *changes: Callable[[], object]) -> list[list[str]]:
    """The hosts in each round; between two rounds a change is made."""

    async def main() -> list[list[str]]:
        found = []
        async with aclosing(source.watch()) as sets:
            for change in (*changes, lambda: None):
                found.append(sorted(endpoint.host for endpoint in await anext(sets)))
                change()
        return found

    return virtual_time.run(main())


@pytest.mark.parametrize(
    ("ttl", "shortest", "longest"),
    [
        (0, 1, 1.1),
        (0.5, 1, 1.1),
        (5, 5, 5.5),
        (29.9, 27, 30),
        (30, 27, 30),
        (86_400, 27, 30),
    ],
)
def test_the_next_question_comes_at_the_end_of_the_ttl(
    script: Script, ttl: float, shortest: float, longest: float
) -> None:
    script.says["web", "A"] = a("10.0.0.1", ttl=ttl)
    rounds(Dns("web", 80), *[lambda: None] * 100)
    times = script.times()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 100
    assert shortest <= min(gaps) < max(gaps) <= longest + 0.01  # the answer itself takes a moment
    assert len(set(gaps)) > 50


def test_the_smallest_ttl_of_all_answers_counts(script: Script) -> None:
    script.says["web", "A"] = a("10.0.0.1", ttl=20)
    script.says["web", "AAAA"] = a("fd00::1", ttl=4)
    rounds(Dns("web", 80), lambda: None)
    assert 4 <= script.times()[1] <= 4.5
    script.asked.clear()
    script.says["_x", "SRV"] = Answer(records=(SrvRecord(0, 0, 80, "web"),), ttl=20)
    script.says["web.", "A"] = a("10.0.0.1", ttl=7)
    rounds(Dns("_x", kind="srv"), lambda: None)
    assert 7 <= script.times("SRV")[1] <= 7.8


def test_equal_floor_and_ceiling(script: Script) -> None:
    script.says["web", "A"] = a("10.0.0.1", ttl=600)
    rounds(Dns("web", 80, min_ttl=3, max_ttl=3), lambda: None)
    assert script.times()[1] == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("other", [None, SourceError("SERVFAIL"), Absent("no AAAA records")])
def test_one_family_is_enough(script: Script, other: Say, caplog: pytest.LogCaptureFixture) -> None:
    script.says["web", "A"] = a("10.0.0.1")
    script.says["web", "AAAA"] = other
    source = Dns("web", 80)
    assert rounds(source, lambda: None) == [["10.0.0.1"]] * 2
    assert bool(source.skipped) == (not isinstance(other, Absent))
    assert len(caplog.messages) == len(source.skipped)


def test_a_family_that_never_answers_costs_a_second(script: Script) -> None:
    script.says["web", "A"] = a("10.0.0.1", ttl=100)
    script.says["web", "AAAA"] = None
    rounds(Dns("web", 80), lambda: None)
    assert 6 <= script.times()[1] <= 6.6
    assert script.at_once == 0


def test_a_family_that_fails_keeps_its_addresses_for_a_while(script: Script) -> None:
    script.says["web", "A"] = a("10.0.0.1")
    script.says["web", "AAAA"] = a("fd00::1")

    def fail() -> None:
        script.says["web", "AAAA"] = SourceError("SERVFAIL")
        script.says["web", "A"] = a("10.0.0.2")

    both = ["10.0.0.1", "fd00::1"]
    found = rounds(Dns("web", 80, max_ttl=20), fail, *[lambda: None] * 12)
    # A failure is asked about again after 5 s; what it had stays for twice max_ttl.
    assert found[0] == both
    assert found[1] == found[6] == ["10.0.0.2", "fd00::1"]
    assert found[9] == found[-1] == ["10.0.0.2"]


def test_a_family_that_is_absent_keeps_nothing(script: Script) -> None:
    script.says["web", "A"] = a("10.0.0.1")
    script.says["web", "AAAA"] = a("fd00::1")

    def leave() -> None:
        del script.says["web", "AAAA"]

    def fail() -> None:
        script.says["web", "AAAA"] = SourceError("SERVFAIL")

    assert rounds(Dns("web", 80), leave, fail) == [["10.0.0.1", "fd00::1"], ["10.0.0.1"], ["10.0.0.1"]]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (SourceError("A: SERVFAIL"), Absent("no AAAA"), "A: SERVFAIL"),
        (Absent("no A"), SourceError("AAAA: SERVFAIL"), "AAAA: SERVFAIL"),
        (SourceError("A: SERVFAIL"), SourceError("AAAA: SERVFAIL"), "A: SERVFAIL"),
        (Absent("no A"), Absent("no AAAA"), "no A"),
    ],
)
def test_no_family_at_all_is_an_error(script: Script, first: Say, second: Say, words: str) -> None:
    script.says["web", "A"] = a("10.0.0.1")
    script.says["web", "AAAA"] = a("fd00::1")

    def fail() -> None:
        script.says["web", "A"], script.says["web", "AAAA"] = first, second

    with pytest.raises(SourceError, match=words):
        rounds(Dns("web", 80), fail)


def srv(*records: tuple[int, int, str], additional: dict[Any, Answer] | None = None) -> Answer:
    return Answer(
        records=tuple(SrvRecord(priority, weight, 80, target) for priority, weight, target in records),
        ttl=10,
        additional=additional or {},
    )


def test_what_the_answer_brought_is_not_asked_for(script: Script) -> None:
    additional = {
        ("one", "A"): a("10.0.0.1"),
        ("one", "AAAA"): a("fd00::1"),
        ("two", "A"): a("10.0.0.2"),
    }
    script.says["_x", "SRV"] = srv((0, 0, "one"), (0, 0, "two"), (0, 0, "three"), additional=additional)
    script.says["two.", "AAAA"] = a("fd00::2")
    script.says["three.", "A"] = a("10.0.0.3")
    assert rounds(Dns("_x", kind="srv")) == [["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"]]
    asked = sorted((name, kind) for _, name, kind in script.asked)
    assert asked == [("_x", "SRV"), ("three.", "A"), ("three.", "AAAA"), ("two.", "AAAA")]
    script.asked.clear()
    script.says["_x", "SRV"] = srv((0, 0, "one"), additional={("one", "A"): a("10.0.0.1")})
    assert rounds(Dns("_x", kind="srv")) == [["10.0.0.1"]]
    assert len(script.asked) == 1
    script.says["one.", "AAAA"] = a("fd00::1")
    assert rounds(Dns("_x", kind="srv", family="ipv6")) == [["fd00::1"]]


def test_all_priorities_are_listed_and_an_address_counts_at_its_best_one(script: Script) -> None:
    script.says["_x", "SRV"] = srv((2, 1, "backup"), (1, 3, "one"), (2, 1, "one"), (3, 1, "gone"))
    script.says["one.", "A"] = a("10.0.0.1")
    script.says["backup.", "A"] = a("10.0.0.2")
    source = Dns("_x", kind="srv", family="ipv4")
    found = virtual_time.run(anext(source.watch()))
    assert [(e.host, e.priority, e.weight) for e in found] == [("10.0.0.1", 1, 3), ("10.0.0.2", 2, 1)]
    assert list(source.skipped) == ["gone"]


def test_a_target_that_fails_beside_a_preferred_one_is_skipped(script: Script) -> None:
    script.says["_x", "SRV"] = srv((1, 1, "one"), (2, 1, "backup"))
    script.says["one.", "A"] = a("10.0.0.1")
    script.says["backup.", "A"] = SourceError("backup: SERVFAIL")
    source = Dns("_x", kind="srv", family="ipv4")
    assert rounds(source) == [["10.0.0.1"]]
    assert dict(source.skipped) == {"backup": "backup: SERVFAIL"}


def test_a_failing_target_keeps_its_addresses_and_no_other_priority_takes_over(script: Script) -> None:
    script.says["_x", "SRV"] = srv((1, 1, "one"), (1, 1, "two"), (2, 1, "backup"))
    for number, name in enumerate(("one", "two", "backup"), 1):
        script.says[f"{name}.", "A"] = a(f"10.0.0.{number}")
    source = Dns("_x", kind="srv", family="ipv4")

    def fail(name: str) -> Callable[[], None]:
        def change() -> None:
            script.says[f"{name}.", "A"] = SourceError(f"{name}: SERVFAIL")

        return change

    assert rounds(source, fail("two")) == [["10.0.0.1", "10.0.0.2", "10.0.0.3"]] * 2
    assert dict(source.skipped) == {"two": "two: SERVFAIL"}
    with pytest.raises(SourceError, match="one: SERVFAIL"):
        rounds(source, fail("one"))


def test_many_targets_are_not_asked_for_all_at_once(script: Script) -> None:
    names = [f"t{number}" for number in range(1, 101)]
    script.says["_x", "SRV"] = srv(*((0, 1, name) for name in names))
    for number, name in enumerate(names, 1):
        script.says[f"{name}.", "A"] = a(f"10.0.0.{number}")
    assert len(rounds(Dns("_x", kind="srv"))[0]) == 100
    assert script.most_at_once <= 32


async def test_others_have_their_turn_while_many_endpoints_are_made(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, seen = [0], set()

    def make(**more: Any) -> Endpoint:
        seen.add(turns[0])
        return Endpoint(**more)

    async def count() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    monkeypatch.setattr("discovery.dns.lookup.Endpoint", make)
    script.says["web", "A"] = a(*(f"10.0.{number >> 8}.{number & 255}" for number in range(1000)))
    counting = asyncio.create_task(count())
    async with aclosing(Dns("web", 80).watch()) as sets:
        assert len(await anext(sets)) == 1000
    counting.cancel()
    assert len(seen) >= 4


def test_port_0_in_srv_is_skipped(script: Script) -> None:
    bad = SrvRecord(0, 1, 0, "one")
    script.says["_x", "SRV"] = Answer(records=(bad, SrvRecord(0, 1, 80, "one")), ttl=10)
    script.says["one.", "A"] = a("10.0.0.1")
    source = Dns("_x", kind="srv")
    assert rounds(source) == [["10.0.0.1"]]
    assert "port must be" in source.skipped["one at 10.0.0.1 port 0"]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0], [1]),
        ([0, 0], [1, 1]),
        ([5, 7], [5, 7]),
        ([1, 0], [1, 0.01]),
        ([30, 20, 0, 0], [30, 20, 0.25, 0.25]),
        ([600, 400, 0], [600, 400, 1]),
        ([65535, 0, 0], [65535, 0.5, 0.5]),
    ],
)
def test_shares(weights: list[int], expected: list[float]) -> None:
    assert shares(weights) == expected


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_weight_0_is_a_very_small_share_and_never_none(weights: list[int]) -> None:
    found = shares(weights)
    zeros = [share for weight, share in zip(weights, found, strict=True) if not weight]
    assert all(share > 0 for share in found)
    if any(weights):
        assert sum(zeros) <= min(1, sum(weights) / 100) * 1.000001
        assert [share for weight, share in zip(weights, found, strict=True) if weight] == [w for w in weights if w]
    else:
        assert set(found) == {1}


def test_an_outage_is_logged_once_and_its_end(script: Script, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    script.says["web", "A"] = a("10.0.0.1")

    async def main() -> None:
        async with Watcher(Dns("web", 80, family="ipv4")) as watcher:
            await watcher.ready()
            script.says["web", "A"] = SourceError("DNS: SERVFAIL")
            await asyncio.sleep(100)
            assert (watcher.snapshot.state, len(watcher.snapshot.endpoints)) == ("stale", 1)
            script.says["web", "A"] = a("10.0.0.2")
            await asyncio.sleep(5)
            assert [endpoint.host for endpoint in watcher.snapshot.endpoints] == ["10.0.0.2"]

    virtual_time.run(main())
    assert len(caplog.messages) == 3
    assert 40 < len(script.times()) < 120
