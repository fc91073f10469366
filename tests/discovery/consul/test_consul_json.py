"""A list taken apart in slices is what `json.loads` makes of it, and no slice is long."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
import virtual_time
from hypothesis import example, given
from hypothesis import strategies as st
from registry_rig import Fake, http, until

from discovery import Consul, Watcher
from discovery.consul.elements import elements
from discovery.records import Records

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def key_of(number: int, value: Any) -> str:
    return f"n/{value['id']}" if isinstance(value, dict) and "id" in value else f"entry {number}"


def taken(document: bytes, *cuts: int, known: dict[str, str] | None = None) -> dict[str, str]:
    """The elements of a document that arrives cut at these places."""
    places = sorted({0, len(document), *(cut % (len(document) + 1) for cut in cuts)})
    chunks = [document[begin:end] for begin, end in itertools.pairwise(places)]
    return virtual_time.run(elements(chunks, known or {}, key_of))


@example(document=[1.5e300], cuts=[4], indent=None, ascii_only=True)
@example(document=[1.5], cuts=[3], indent=None, ascii_only=True)
# Of two with the same key the later one counts, at the place of the first.
@example(document=[{"id": None, "x": 1}, 2, {"id": None}], cuts=[], indent=None, ascii_only=True)
@given(st.lists(values), st.lists(st.integers(min_value=0)), st.sampled_from([None, 1]), st.booleans())
def test_as_json_loads(document: list[Any], cuts: list[int], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="utf-8"):
            taken(text, *cuts)
        return
    found = taken(text, *cuts)
    expected = {key_of(number, value): value for number, value in enumerate(document)}
    assert [json.loads(each) for each in found.values()] == list(expected.values())


entries = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 20), "x": st.integers(0, 2)}) | values, unique_by=repr, max_size=12
)


@given(entries, entries, st.lists(st.integers(min_value=0)))
def test_what_was_known_changes_nothing(before: list[Any], after: list[Any], cuts: list[int]) -> None:
    text = json.dumps(after).encode()
    known = taken(json.dumps(before).encode())
    assert taken(text, *cuts, known=known) == taken(text)


def test_what_stands_there_as_before_is_not_parsed_again() -> None:
    document = [{"id": number, "x": 1} for number in range(100)]
    known = taken(json.dumps(document).encode())
    asked: list[int] = []

    def ask(number: int, value: Any) -> str:
        asked.append(value["id"])
        return key_of(number, value)

    document[50]["x"] = 2
    document.insert(70, {"id": 200})
    del document[10]
    found = virtual_time.run(elements([json.dumps(document).encode()], known, ask))
    assert asked == [11, 50, 200]
    assert [json.loads(text) for text in found.values()] == document
    assert found["n/99"] is known["n/99"]


@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "{}",
        "null",
        "[",
        "[1",
        "[1,",
        "[1,]",
        "[,]",
        "[1]]",
        "[1] x",
        "[1 2]",
        "<html>",
        '["',
        "1",
        "[" * 9999,
    ],
)
def test_what_is_no_list_is_refused(document: str) -> None:
    for known in ({}, {"n/1": '{"id": 1}'}):
        with pytest.raises(ValueError, match=r"list|JSON"):
            taken(document.encode(), *range(min(len(document), 20)), known=known)


def test_the_loop_goes_on_between_slices_of_64_kilobytes() -> None:
    document = json.dumps([{"id": number, "x": "x" * 600} for number in range(10_000)]).encode()

    async def turns() -> int:
        count = 0

        async def tick() -> None:
            nonlocal count
            while True:
                count += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        found = await elements([document], {}, key_of)
        during, count = count, 0
        again = await elements([document], found, key_of)
        ticking.cancel()
        assert (len(found), again) == (10_000, found)
        return min(during, count)

    assert virtual_time.run(turns()) >= len(document) // 65_536


def test_an_element_longer_than_many_slices_is_not_parsed_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, decode = 0, json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, text: str, at: int = 0) -> tuple[Any, int]:
        nonlocal tried
        tried += 1
        return decode(self, text, at)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    document = json.dumps([{"id": 1, "x": "x" * 6_000_000}]).encode()
    assert len(virtual_time.run(elements([document], {}, key_of))) == 1
    assert tried < 10


def test_records_are_applied_in_small_steps() -> None:
    read: list[str] = []
    records: Records[str] = Records(lambda key, _: read.append(key) or ())  # type: ignore[func-returns-value]
    steps = records.replacing({f"{number}": "x" for number in range(1_000)})
    longest = before = 0
    for _ in steps:
        longest, before = max(longest, len(read) - before), len(read)
    assert len(read) == 1_000
    assert longest <= 25
    assert len(list(records.replacing({}))) >= 1_000 // 25


async def test_ten_thousand_instances_and_then_one_more(nothing_leaks: None) -> None:
    def instance(number: int) -> dict[str, Any]:
        service = {
            "ID": f"i{number}",
            "Address": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            "Port": 80,
        }
        return {"Node": {"Node": "n"}, "Service": {**service, "Meta": {"text": "x" * 400}}}

    body = json.dumps([instance(number) for number in range(10_000)])
    more = json.dumps([instance(number) for number in range(10_001)])
    go_on = asyncio.Event()

    async def say(head: str) -> bytes:
        if "index=7" in head:
            await asyncio.Event().wait()
        if "index=5" in head:
            await go_on.wait()
            return http(more, headers="X-Consul-Index: 7\r\n")
        return http("[]" if "filter" in head else body, headers="X-Consul-Index: 5\r\n")

    async with Fake(say) as fake, Watcher(Consul("web", address=fake.address)) as watcher:
        first = await until(watcher, lambda snapshot: len(snapshot.endpoints) == 10_000)
        go_on.set()
        second = await until(watcher, lambda snapshot: len(snapshot.endpoints) == 10_001)
        assert (first.version, second.version) == (1, 2)
