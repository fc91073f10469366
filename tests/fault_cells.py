"""What the tests of the table of faults share: requests as its cells say, and what differs from it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from fault_kinds import Kind, Shows
from fault_rig import FaultServer
from fault_table import Cell, Expected
from rig import Prefer, until

from discovery import Endpoint, Static
from lbclient import BalancedSession, BalancingMiddleware, Hedge
from lbclient.ejection import Ejection
from lbclient.retrying import Budget, Retry

__all__ = ["CONTENT", "Results", "Rig", "check", "playing", "run"]

CONTENT = b"0123456789abcdef" * 2500
_BOUNDARY = "a-boundary"
_FORM = (
    b"--a-boundary\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b'Content-Disposition: form-data; name="name"\r\n\r\nvalue\r\n'
    b"--a-boundary\r\nContent-Type: application/octet-stream\r\n"
    b'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + CONTENT + b"\r\n--a-boundary--\r\n"
)
_SENT = {
    "none": b"",
    "bytes": CONTENT,
    "json": json.dumps([CONTENT.decode()]).encode(),
    "form": _FORM,
    "file": CONTENT,
    "generator": CONTENT,
}
_DIGESTS = {body: (hashlib.sha256(data).hexdigest(), len(data)) for body, data in _SENT.items()}
# The order of the faulty servers with the healthy one, "h", at its place.
_ORDERS = {0: "hab", 1: "ahb", 2: "abh", -1: "abc"}
_TOTAL = 30.0
# Longer than that: nothing but a hedge helps then.
_NEVER = 2 * _TOTAL
_ERROR = 500
_ALL_AT_ONCE = 500
# Seconds after which a server is late; those that are well may be stopped for a moment by a busy machine.
_IN_TIME = 2.5


async def _generate() -> AsyncIterator[bytes]:
    for start in range(0, len(CONTENT), 15_000):
        yield CONTENT[start : start + 15_000]


def _form() -> aiohttp.FormData:
    data = aiohttp.FormData()
    # It takes no boundary of one's own.
    data._writer = aiohttp.MultipartWriter("form-data", boundary=_BOUNDARY)
    data.add_field("name", "value")
    file = io.BytesIO(b"skip " + CONTENT)
    file.seek(5)
    data.add_field("file", file, filename="f", content_type="application/octet-stream")
    return data


def _body_options(body: str, path: Path) -> dict[str, Any]:
    """The arguments of a request with this body."""
    match body:
        case "none":
            return {}
        case "bytes":
            return {"data": CONTENT}
        case "json":
            return {"json": [CONTENT.decode()]}
        case "form":
            return {"data": _form()}
        case "generator":
            return {"data": _generate()}
    file = path.open("rb")
    file.seek(5)
    return {"data": file}


@dataclass(frozen=True)
class _Got:
    """What the caller got."""

    status: int | None = None
    server: str | None = None
    error: str = ""


@dataclass
class Results:
    """What came of the requests; `blamed` has the nodes that failed although they only lost, in words."""

    got: dict[Cell, _Got] = field(default_factory=dict)
    blamed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Session:
    """A session for some of the cells, and what balances in it."""

    client: BalancedSession | aiohttp.ClientSession
    balancing: BalancedSession | BalancingMiddleware

    def services(self) -> Iterable[dict[str, Any]]:
        services: dict[str, dict[str, Any]] = self.balancing.describe()["services"]
        return services.values()

    async def blamed(self) -> list[str]:
        """The nodes with failures, once the last loser has ended."""
        await until(lambda: not any(s["hedges"]["lingering"] for s in self.services() if "hedges" in s))
        return [
            f"{n['address']} failed {n['failures']} times"
            for s in self.services()
            for n in s["nodes"]
            if n["failures"]
        ]


@dataclass(frozen=True)
class Rig:
    """Servers by their names, and what a session needs to reach them."""

    servers: dict[str, FaultServer]
    ssl: ssl.SSLContext | bool = True

    @asynccontextmanager
    async def session(self, like: Cell) -> AsyncIterator[_Session]:
        """For cells with the same fault, order and way as this one, and as patient."""
        kind, patient = like.kind, like.patient
        addresses = [self.servers[name].address for name in _ORDERS[like.healthy_at]]
        services = {"users": Static([Endpoint.parse(address, tls=kind.tls) for address in addresses])}
        options: dict[str, Any] = {
            "policy": Prefer(*addresses),
            "attempt_timeout": None if patient else kind.attempt_timeout,
            # Neither what was learned of a server nor a budget may keep a request from what the rules say.
            "ejection": Ejection(enforce=False),
            "retry": Retry(backoff=0.001, backoff_cap=0.001, budget=Budget(per_second=1_000_000.0)),
            "hedge": Hedge(after=0.02, linger=0.1) if like.way.hedged else None,
        }
        connect = _IN_TIME if kind.port == "fill" else 10.0
        read = _IN_TIME if "SocketTimeoutError" in kind.errors else _TOTAL
        timeout = aiohttp.ClientTimeout(
            total=_TOTAL, sock_connect=_NEVER if patient else connect, sock_read=_NEVER if patient else read
        )
        if not like.way.foreign:
            async with BalancedSession(services, timeout=timeout, **options) as session:
                yield _Session(session, session)
            return
        async with (
            BalancingMiddleware(services, **options) as balancing,
            aiohttp.ClientSession(middlewares=(balancing,), timeout=timeout) as client,
        ):
            yield _Session(client, balancing)


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
    try:
        yield
    finally:
        for server in faulty:
            await server.listen()


async def run(rig: Rig, cells: Iterable[Cell], path: Path, *, at_once: int = 24) -> Results:
    """Send the requests of these cells, which have the same fault, some of them at the same time."""
    columns: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        if cell.kind.late:
            # Most of them just wait.
            at_once = _ALL_AT_ONCE
        columns.setdefault((cell.way, cell.healthy_at, cell.patient), []).append(cell)
    results = Results()
    places = asyncio.Semaphore(at_once)
    async with asyncio.TaskGroup() as group:
        for column in columns.values():
            group.create_task(_run_column(rig, column, path, results, places))
    return results


async def _run_column(
    rig: Rig, cells: list[Cell], path: Path, results: Results, places: asyncio.Semaphore
) -> None:
    like = cells[0]
    async with rig.session(like) as session:

        async def one(cell: Cell) -> None:
            async with places:
                results.got[cell] = await _send(rig, session.client, cell, path)

        if like.kind.kept:
            for cell in cells:
                await _warm_up(rig, session.client)
                await one(cell)
        else:
            await asyncio.gather(*(one(cell) for cell in cells))
        if like.patient or (like.kind.shows is Shows.ANSWER and like.kind.status < _ERROR):
            # Every server of these answers, or loses a race.
            results.blamed += await session.blamed()


async def _warm_up(rig: Rig, client: BalancedSession | aiohttp.ClientSession) -> None:
    """Have a connection to each server that was used before."""
    for server in rig.servers.values():
        async with client.get(f"http://{server.address}/warm") as response:
            await response.read()


async def _send(rig: Rig, client: BalancedSession | aiohttp.ClientSession, cell: Cell, path: Path) -> _Got:
    headers = {"X-Request-Id": cell.request_id}
    if cell.method.endswith("with key"):
        headers["Idempotency-Key"] = cell.request_id
    scheme = "https" if cell.kind.tls else "http"
    status = server = None
    try:
        async with client.request(
            cell.verb, f"{scheme}://users/cell", headers=headers, ssl=rig.ssl, **_body_options(cell.body, path)
        ) as response:
            status, server = response.status, response.headers["X-Server"]
            said = await response.json() if cell.verb != "HEAD" else {"id": cell.request_id}
            # The answer to another request would be worse than none.
            assert said["id"] == cell.request_id
    except Exception as error:  # noqa: BLE001 - whatever it is, the cell is compared with the table
        return _Got(status, server, type(error).__name__)
    return _Got(status, server)


def _differences(rig: Rig, cell: Cell, got: _Got, expected: Expected) -> list[str]:
    order = _ORDERS[cell.healthy_at]
    traces = [rig.servers[name].trace(cell.request_id) for name in order]
    said = []
    for what in ("heads", "processed"):
        seen, allowed = tuple(getattr(trace, what) for trace in traces), getattr(expected, what)
        # A loser may have seen less.
        least = tuple(0 if place in expected.lost else count for place, count in enumerate(allowed))
        if not all(low <= count <= high for low, count, high in zip(least, seen, allowed, strict=True)):
            said.append(f"{what} {seen}, not {allowed}")
    answered = None if expected.server is None else order[expected.server]
    if (got.status, got.server) != (expected.status, answered):
        said.append(f"{got}, not {expected.status} from {answered}")
    if got.error not in (expected.errors or ("",)):
        said.append(f"{got.error or 'no error'}, not {' or '.join(expected.errors) or 'none'}")
    return said


def _wrong(rig: Rig, cell: Cell, got: _Got) -> list[str]:
    """In what the cell differs from what is nearest to it in the table, in words."""
    said = min((_differences(rig, cell, got, expected) for expected in cell.expected()), key=len)
    traces = [server.trace(cell.request_id) for server in rig.servers.values()]
    if cell.method in ("POST", "PATCH") and sum(trace.processed for trace in traces) > 1:
        said.append("PROCESSED TWICE")
    if sum(trace.heads for trace in traces) > cell.kind.attempts:
        said.append("MORE THAN ALL ATTEMPTS")
    if any(body != _DIGESTS[cell.body] for trace in traces for body in trace.bodies):
        said.append("another body")
    return [f"{cell.request_id}: {text}" for text in said]


async def check(rig: Rig, results: Results) -> None:
    """Compare all servers with the table."""
    # A server may still have to read what it will never answer.
    with suppress(TimeoutError):
        await until(lambda: not any(_wrong(rig, cell, got) for cell, got in results.got.items()), 1)
    found = [line for cell, got in results.got.items() for line in _wrong(rig, cell, got)] + results.blamed
    assert not found, f"{len(found)} in {len(results.got)} cells:\n" + "\n".join(found[:20])
