"""The user's own judgement of answers and exceptions, and what happens if it fails."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.client_reqrep import ConnectionKey
from rig import Prefer, drop, hang, in_flight, local, node_of, ok, wire

from discovery import Static
from lbclient import BalancedSession, NoEndpoints, Outcome, Retry, attempts
from lbclient.errors import NodeLeft
from lbclient.outcome import asked, classify

KEY = ConnectionKey("a", 1, is_ssl=False, ssl=True, proxy=None, proxy_auth=None, proxy_headers_hash=None)
REFUSED = OSError(errno.ECONNREFUSED, "refused")


def outcomes(result: aiohttp.ClientResponse | BaseException) -> list[Outcome | None]:
    return [attempt.outcome for attempt in attempts(result)]


def body_error(cause: BaseException) -> aiohttp.ClientOSError:
    error = aiohttp.ClientOSError(None, "Can not write request body for http://users/x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NodeLeft(), Outcome.LEFT),
        (NoEndpoints(), Outcome.OURS),
        (aiohttp.ClientProxyConnectionError(KEY, REFUSED), Outcome.OURS),
        (aiohttp.ClientConnectorError(KEY, REFUSED), Outcome.CONNECT),
        (aiohttp.ClientConnectorDNSError(KEY, REFUSED), Outcome.CONNECT),
        (aiohttp.ClientConnectorSSLError(KEY, REFUSED), Outcome.CONNECT),
        (aiohttp.ClientConnectorCertificateError(KEY, REFUSED), Outcome.CONNECT),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EMFILE, "")), Outcome.OURS),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.ENOMEM, "")), Outcome.OURS),
        (aiohttp.ClientConnectorError(KEY, OSError(errno.EADDRNOTAVAIL, "no IPv6 here")), Outcome.CONNECT),
        (aiohttp.ConnectionTimeoutError(), Outcome.CONNECT),
        (aiohttp.ServerFingerprintMismatch(b"", b"", "a", 1), Outcome.CONNECT),
        (aiohttp.ServerDisconnectedError(), Outcome.FAULT),
        (aiohttp.SocketTimeoutError(), Outcome.FAULT),
        (aiohttp.ClientConnectionResetError(), Outcome.FAULT),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), Outcome.FAULT),
        (body_error(aiohttp.ClientConnectionResetError()), Outcome.FAULT),
        (body_error(ConnectionError("Connection lost")), Outcome.FAULT),
        (body_error(FileNotFoundError()), Outcome.OURS),
        (body_error(ConnectionResetError("of another server")), Outcome.OURS),
        (aiohttp.ClientPayloadError(), Outcome.BROKEN),
        (aiohttp.ClientConnectionError("Connector is closed."), Outcome.OURS),
        (TimeoutError(), Outcome.OURS),
        (KeyboardInterrupt(), Outcome.OURS),
        (ValueError(), Outcome.OURS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_an_exception_shows(error: BaseException, outcome: Outcome) -> None:
    assert classify(error) is outcome


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NodeLeft(), NoEndpoints()])
def test_what_is_no_sign_of_a_server_is_not_asked_about(error: BaseException) -> None:
    assert asked(lambda _: Outcome.FAULT, error) is None
    assert asked(lambda _: Outcome.FAULT, ValueError()) is Outcome.FAULT
    assert asked(lambda _: None, ValueError()) is None


async def answer(request: web.BaseRequest) -> web.StreamResponse:
    said = request.query.get("said", "")
    return web.Response(status=int(request.query.get("status", 200)), headers={"X-Said": said}, text="x" * 5)


def by_header(result: Any) -> Outcome | None:
    said = result.headers.get("X-Said") if isinstance(result, aiohttp.ClientResponse) else None
    return Outcome(said) if said else None


@pytest.mark.parametrize(
    ("method", "status", "said", "attempts_made"),
    [
        ("GET", 200, "", 1),
        ("GET", 200, "gateway", 3),
        ("GET", 200, "overload", 3),
        ("GET", 404, "fault", 3),
        ("GET", 500, "connect", 3),
        ("POST", 500, "connect", 1),
        ("POST", 200, "overload", 1),
        ("GET", 500, "error", 1),
        ("GET", 503, "error", 3),
        ("GET", 503, "success", 1),
        ("GET", 503, "ours", 1),
        ("GET", 503, "timeout", 1),
        ("GET", 503, "broken", 3),
    ],
)
async def test_what_the_user_says_of_an_answer_decides(
    method: str, status: int, said: str, attempts_made: int
) -> None:
    async with (
        local(answer) as server,
        BalancedSession(Static([server.address]), classify=by_header, retry=Retry(backoff=0)) as session,
        session.request(method, f"/x?status={status}&said={said}") as response,
    ):
        assert outcomes(response) == [Outcome(said or "success")] * attempts_made
        assert len(server.seen) == attempts_made
        assert await response.text() == "xxxxx"
        failures = attempts_made if said not in ("", "success", "ours") else 0
        assert node_of(session, server.address)["failures"] == failures


async def test_what_the_user_says_of_an_exception_decides() -> None:
    def lenient(result: Any) -> Outcome | None:
        return Outcome.OURS if isinstance(result, aiohttp.ServerDisconnectedError) else None

    async with (
        local(drop) as server,
        BalancedSession(Static([server.address]), classify=lenient) as session,
    ):
        with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
            await session.get("/x")
        assert outcomes(caught.value) == [Outcome.OURS]
        assert node_of(session, server.address)["failures"] == 0
    assert len(server.seen) == 1


async def test_the_word_connect_sends_nothing_twice_that_may_have_been_processed() -> None:
    async with (
        local(drop) as server,
        local() as other,
        BalancedSession(
            Static([server.address, other.address]),
            policy=Prefer(server.address),
            classify=lambda _: Outcome.CONNECT,
        ) as session,
    ):
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.post("/x", data=b"1")
    assert (len(server.seen), len(other.seen)) == (1, 0)


async def test_the_users_word_on_a_missed_deadline_is_kept() -> None:
    async with (
        local(hang) as server,
        BalancedSession(Static([server.address]), classify=lambda _: Outcome.OURS) as session,
    ):
        with pytest.raises(TimeoutError) as caught:
            await session.get("/x", timeout=2.5)
        assert outcomes(caught.value) == [Outcome.OURS]


class BugError(Exception):
    pass


def bug(_: object) -> Outcome | None:
    raise BugError("oops")


WRONG: list[tuple[Any, type[Exception], str]] = [
    (bug, BugError, "oops"),
    (lambda _: True, TypeError, "classify must return None or an Outcome other than LEFT, not True"),
    (lambda _: "fault", TypeError, "not 'fault'"),
    (lambda _: Outcome.LEFT, TypeError, "not <Outcome.LEFT"),
]


@pytest.mark.parametrize(("function", "error", "said"), WRONG)
@pytest.mark.parametrize("served", [ok, drop], ids=["answer", "exception"])
async def test_a_judgement_that_fails_is_raised_and_leaks_nothing(
    function: Any, error: type[Exception], said: str, served: Any
) -> None:
    async with (
        local(served) as server,
        BalancedSession(Static([server.address]), classify=function) as session,
    ):
        for number in range(1, 3):
            with pytest.raises(error, match=said) as caught:
                await session.get("/x")
            # The usual judgement is recorded.
            assert outcomes(caught.value) == [Outcome.SUCCESS if served is ok else Outcome.FAULT]
            if served is drop:
                assert isinstance(caught.value.__context__, aiohttp.ServerDisconnectedError)
            assert in_flight(session) == 0
            assert len(server.seen) == number
        if error is BugError:
            assert caught.value.__notes__[0].startswith("raised by classify, which was asked about ")


async def test_a_judgement_that_fails_closes_a_connection_with_a_body_on_it() -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x")
        return await hang(request)

    async with local(endless) as server, BalancedSession(Static([server.address]), classify=bug) as session:
        with pytest.raises(BugError):
            await session.get("/x")
        assert in_flight(session) == 0
        assert session.client_session.connector is not None
        assert not session.client_session.connector._acquired


async def test_a_judgement_that_fails_tells_no_secrets_of_the_request() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

    async with wire(garbage) as address, BalancedSession(Static([address]), classify=bug) as session:
        with pytest.raises(BugError) as caught:
            await session.get("/x?token=hush", headers={"Authorization": "Bearer hush"})
        assert "ClientResponseError" in caught.value.__notes__[0]
        assert "hush" not in "".join(caught.value.__notes__)
