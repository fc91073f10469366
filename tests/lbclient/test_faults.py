"""The table of faults: method x body x fault x place of the healthy server, checked at the servers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from fault_rig import FaultServer, started
from fault_table import BODIES, HEALTHY_AT, KINDS, METHODS, Cell, Kind, Shows, cells
from rig import Prefer, until

from discovery import Endpoint, Static
from lbclient import BalancedSession
from lbclient.ejection import Ejection
from lbclient.retrying import Budget, Retry

CONTENT = b"0123456789abcdef" * 2500
BOUNDARY = "a-boundary"
FORM = (
    b"--a-boundary\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b'Content-Disposition: form-data; name="name"\r\n\r\nvalue\r\n'
    b"--a-boundary\r\nContent-Type: application/octet-stream\r\n"
    b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + CONTENT + b"\r\n--a-boundary--\r\n"
)
SENT = {
    "none": b"",
    "bytes": CONTENT,
    "json": json.dumps([CONTENT.decode()]).encode(),
    "form": FORM,
    "file": CONTENT,
    "generator": CONTENT,
}
DIGESTS = {body: (hashlib.sha256(data).hexdigest(), len(data)) for body, data in SENT.items()}
# The order of the faulty servers with the healthy one, "h", at its place.
ORDERS = {0: "hab", 1: "ahb", 2: "abh", -1: "abc"}


async def generate() -> AsyncIterator[bytes]:
    for start in range(0, len(CONTENT), 15_000):
        yield CONTENT[start : start + 15_000]


def form() -> aiohttp.FormData:
    data = aiohttp.FormData()
    # It takes no boundary of one's own.
    data._writer = aiohttp.MultipartWriter("form-data", boundary=BOUNDARY)
    data.add_field("name", "value")
    file = io.BytesIO(b"skip " + CONTENT)
    file.seek(5)
    data.add_field("file", file, filename="f", content_type="application/octet-stream")
    return data


def body_options(body: str, path: Path) -> dict[str, Any]:
    """The arguments of a request with this body."""
    match body:
        case "none":
            return {}
        case "bytes":
            return {"data": CONTENT}
        case "json":
            return {"json": [CONTENT.decode()]}
        case "form":
            return {"data": form()}
        case "generator":
            return {"data": generate()}
    file = path.open("rb")
    file.seek(5)
    return {"data": file}


@dataclass(frozen=True)
class Got:
    """What the caller got."""

    status: int | None = None
    server: str | None = None
    error: str = ""


@dataclass(frozen=True)
class Rig:
    """Servers by their names, and what a session needs to reach them."""

    servers: dict[str, FaultServer]
    ssl: ssl.SSLContext | bool = True

    def session(self, kind: Kind, order: str) -> BalancedSession:
        addresses = [self.servers[name].address for name in order]
        endpoints = [Endpoint.parse(address, tls=kind.tls) for address in addresses]
        return BalancedSession(
            {"users": Static(endpoints)},
            policy=Prefer(*addresses),
            attempt_timeout=kind.attempt_timeout,
            connect_timeout=0.2 if kind.port == "fill" else 5.0,
            # Neither what was learned of a server nor a budget may keep a request from what the rules say.
            ejection=Ejection(enforce=False),
            retry=Retry(backoff=0.001, backoff_cap=0.001, budget=Budget(per_second=1_000_000.0)),
            timeout=aiohttp.ClientTimeout(total=10, sock_read=0.6 if "SocketTimeoutError" in kind.errors else 10),
        )


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


@asynccontextmanager
async def playing(rig: Rig, kind: Kind) -> AsyncIterator[None]:
    """Have the faulty servers do it."""
    faulty = [rig.servers[name] for name in "abc"]
    for server in rig.servers.values():
        server.forget()
    for server in faulty:
        await server.play(kind.fault)
        await server.close_idle()
        if kind.port == "refuse":
            await server.refuse()
        if kind.port == "fill":
            await server.fill()
    yield
    for server in faulty:
        await server.listen()


async def send(rig: Rig, session: BalancedSession, cell: Cell, path: Path) -> Got:
    """Send the request of a cell."""
    headers = {"X-Request-Id": cell.request_id}
    if cell.method.endswith("with key"):
        headers["Idempotency-Key"] = cell.request_id
    scheme = "https" if cell.kind.tls else "http"
    status = server = None
    try:
        async with session.request(
            cell.verb, f"{scheme}://users/cell", headers=headers, ssl=rig.ssl, **body_options(cell.body, path)
        ) as response:
            status, server = response.status, response.headers["X-Server"]
            said = await response.json() if cell.verb != "HEAD" else {"id": cell.request_id}
            # The answer to another request would be worse than none.
            assert said["id"] == cell.request_id
    except Exception as error:  # noqa: BLE001 - whatever it is, the cell is compared with the table
        return Got(status, server, type(error).__name__)
    return Got(status, server)


def wrong(rig: Rig, cell: Cell, got: Got) -> list[str]:
    """In what the cell differs from the table, in words."""
    expected, order = cell.expected(), ORDERS[cell.healthy_at]
    traces = [rig.servers[name].trace(cell.request_id) for name in order]
    said = []
    if (heads := tuple(trace.heads for trace in traces)) != expected.heads:
        said.append(f"heads {heads}, not {expected.heads}")
    if (processed := tuple(trace.processed for trace in traces)) != expected.processed:
        said.append(f"processed {processed}, not {expected.processed}")
    if cell.method in ("POST", "PATCH") and sum(processed) > 1:
        said.append("PROCESSED TWICE")
    if any(body != DIGESTS[cell.body] for trace in traces for body in trace.bodies):
        said.append("another body")
    answered = None if expected.server is None else order[expected.server]
    if (got.status, got.server) != (expected.status, answered):
        said.append(f"{got}, not {expected.status} from {answered}")
    if got.error not in (expected.errors or ("",)):
        said.append(f"{got.error or 'no error'}, not {' or '.join(expected.errors) or 'none'}")
    return [f"{cell.request_id}: {text}" for text in said]


async def check(rig: Rig, results: dict[Cell, Got]) -> None:
    """Compare all servers with the table."""
    # A server may still have to read what it will never answer.
    with suppress(TimeoutError):
        await until(lambda: not any(wrong(rig, cell, got) for cell, got in results.items()), 1)
    found = [line for cell, got in results.items() for line in wrong(rig, cell, got)]
    assert not found, f"{len(found)} of {len(results)} cells:\n" + "\n".join(found[:20])


async def run_all(rig: Rig, name: str, path: Path) -> dict[Cell, Got]:
    """Send the requests of all cells with this fault, many at the same time."""
    kind, results = KINDS[name], {}
    async with AsyncExitStack() as stack:
        sessions = {
            place: await stack.enter_async_context(rig.session(kind, order)) for place, order in ORDERS.items()
        }
        places = asyncio.Semaphore(24)

        async def one(cell: Cell) -> None:
            async with places:
                results[cell] = await send(rig, sessions[cell.healthy_at], cell, path)

        await asyncio.gather(*(one(cell) for cell in cells(name)))
    return results


async def run_kept(rig: Rig, name: str, path: Path) -> dict[Cell, Got]:
    """The same one by one, with a connection to each server that was used before."""
    kind, results = KINDS[name], {}

    async def column(place: int) -> None:
        async with rig.session(kind, ORDERS[place]) as session:
            for cell in (cell for cell in cells(name) if cell.healthy_at == place):
                for server in rig.servers.values():
                    async with session.get(f"http://{server.address}/warm") as response:
                        await response.read()
                results[cell] = await send(rig, session, cell, path)

    await asyncio.gather(*(column(place) for place in ORDERS))
    return results


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.tls])
async def test_every_cell_of_the_table(plain: dict[str, FaultServer], skip: Path, name: str) -> None:
    rig, kind = Rig(plain), KINDS[name]
    async with playing(rig, kind):
        results = await (run_kept if kind.kept else run_all)(rig, name, skip)
        await check(rig, results)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.tls])
async def test_every_cell_of_the_table_with_tls(
    encrypted: dict[str, FaultServer], authority: trustme.CA, skip: Path, name: str
) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    rig = Rig(encrypted, context)
    async with playing(rig, KINDS[name]):
        await check(rig, await run_all(rig, name, skip))


def test_the_table_leaves_out_only_what_has_no_meaning() -> None:
    assert len(KINDS) == 32
    for name, kind in KINDS.items():
        found = {(cell.method, cell.body, cell.healthy_at) for cell in cells(name)}
        columns = len(METHODS) * len(BODIES) - 2 * (len(BODIES) - 1) - (kind.shows is Shows.TORN)
        assert len(found) == columns * len(HEALTHY_AT)
    assert sum(len(list(cells(name))) for name in KINDS) == 4076


def test_no_post_is_to_be_processed_twice() -> None:
    """The table itself does not say so by mistake."""
    for name in KINDS:
        for cell in cells(name):
            processed = cell.expected().processed
            assert max(processed) <= 1
            if cell.method in ("POST", "PATCH"):
                assert sum(processed) <= 1, cell.request_id
