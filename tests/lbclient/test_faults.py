"""The table of faults: method x body x fault x place of the healthy server, checked at the servers."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
from fault_cells import CONTENT, Rig, check, playing, run
from fault_kinds import KINDS, Shows
from fault_rig import FaultServer, started
from fault_table import BODIES, HEALTHY_AT, METHODS, Way, cells, sample

# How the requests of a sample are sent.
WAYS = [Way(hedged=True), Way(foreign=True), Way(hedged=True, foreign=True)]


@pytest.fixture(scope="module")
def plain() -> Iterator[dict[str, FaultServer]]:
    yield from started(FaultServer.start(name) for name in "abch")


@pytest.fixture(scope="module")
def encrypted(pem: Callable[[str], tuple[Path, Path]]) -> Iterator[dict[str, FaultServer]]:
    """Servers of which only "h" has the right certificate."""
    yield from started(FaultServer.start(name, tls=pem("users" if name == "h" else "mallory")) for name in "abch")


@pytest.fixture
def skip(tmp_path: Path) -> Path:
    """A file whose first 5 bytes are not for sending."""
    path = tmp_path / "body"
    path.write_bytes(b"skip " + CONTENT)
    return path


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.tls])
async def test_every_cell_of_the_table(plain: dict[str, FaultServer], skip: Path, name: str) -> None:
    rig = Rig(plain)
    async with playing(rig, KINDS[name]):
        await check(rig, await run(rig, cells(name), skip))


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.tls])
async def test_a_sample_of_the_table_with_races_and_in_foreign_sessions(
    plain: dict[str, FaultServer], skip: Path, name: str
) -> None:
    rig = Rig(plain)
    async with playing(rig, KINDS[name]):
        results = await run(rig, chain(*(sample(name, way) for way in WAYS)), skip, at_once=48)
        await check(rig, results)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.tls])
async def test_the_table_with_tls(
    encrypted: dict[str, FaultServer], client_tls: ssl.SSLContext, skip: Path, name: str
) -> None:
    rig = Rig(encrypted, client_tls)
    async with playing(rig, KINDS[name]):
        every = chain(cells(name), *(sample(name, way) for way in WAYS))
        await check(rig, await run(rig, every, skip))


def test_the_table_leaves_out_only_what_has_no_meaning() -> None:
    assert len(KINDS) == 32
    for name, kind in KINDS.items():
        found = {(cell.method, cell.body, cell.healthy_at) for cell in cells(name)}
        columns = len(METHODS) * len(BODIES) - 2 * (len(BODIES) - 1) - (kind.shows is Shows.TORN)
        assert len(found) == columns * len(HEALTHY_AT)
    assert sum(len(list(cells(name))) for name in KINDS) == 4076


@pytest.mark.parametrize("way", WAYS[:2], ids=str)
def test_a_sample_has_every_pair(way: Way) -> None:
    for name in KINDS:
        whole, part = list(cells(name)), list(sample(name, way))
        assert len(part) < 0.3 * len(whole)
        assert {(c.method, c.body) for c in part} == {(c.method, c.body) for c in whole}
        assert {(c.body, c.healthy_at) for c in part} == {(c.body, c.healthy_at) for c in whole}
        places = {(c.method, c.healthy_at) for c in whole if c.method != "HEAD"}
        assert {(c.method, c.healthy_at) for c in part if c.method != "HEAD"} == places
    assert {c.healthy_at for name in KINDS for c in sample(name, way) if c.method == "HEAD"} == set(HEALTHY_AT)


def test_no_post_is_to_be_processed_twice() -> None:
    """The table itself does not say so by mistake."""
    for name, kind in KINDS.items():
        for cell in chain(cells(name), *(sample(name, way) for way in WAYS)):
            allowed = list(cell.expected())
            assert len(allowed) == 1 or cell.races, cell.request_id
            for expected in allowed:
                assert max(expected.processed) <= 1
                assert sum(expected.processed) <= (1 if cell.method in ("POST", "PATCH") else kind.attempts)
