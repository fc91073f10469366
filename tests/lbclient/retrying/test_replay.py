"""Which requests may be sent twice: by their method or their key, and by their body."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, web
from rig import Prefer, drop, local

from discovery import Static
from lbclient import BalancedSession, BalancingMiddleware, Outcome, Retry, attempts

KEY = "Idempotency-Key"


class Once(io.BytesIO):
    """A file that says where it is, but cannot go back."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise io.UnsupportedOperation("seek")


class Stream(io.RawIOBase):
    """The same without being a BytesIO: what has no length."""

    def __init__(self) -> None:
        self._left = b"0123456789"

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return 10 - len(self._left)

    def readinto(self, buffer: Any) -> int:
        taken, self._left = self._left[:4], self._left[4:]
        buffer[: len(taken)] = taken
        return len(taken)


async def generate() -> AsyncIterator[bytes]:
    yield b"0123456789"


class Iterable:
    def __aiter__(self) -> AsyncIterator[bytes]:
        return generate()


def at_three(file: Any) -> Any:
    file.write(b"not0123456789")
    file.seek(3)
    return file


def opened() -> Any:
    return at_three(tempfile.TemporaryFile())


def form(value: Any) -> aiohttp.FormData:
    data = aiohttp.FormData()
    data.add_field("before", "text")
    data.add_field("part", value, filename="f", content_type="text/plain")
    return data


def part(kind: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: form(kind())


AGAIN: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"0123456789",
    "bytearray": lambda: bytearray(b"0123456789"),
    "memoryview": lambda: memoryview(b"0123456789"),
    "str": lambda: "0123456789",
    "StringIO": lambda: io.StringIO("0123456789"),
    "BytesIO": lambda: at_three(io.BytesIO()),
    "file": opened,
    "buffered": lambda: io.BufferedReader(at_three(io.BytesIO())),
    "form of bytes": part(lambda: b"0123456789"),
    "form of BytesIO": part(lambda: at_three(io.BytesIO())),
    "form of a file": part(opened),
}
ONCE: dict[str, Callable[[], Any]] = {
    "generator": generate,
    "iterable": Iterable,
    "no way back": lambda: Once(b"0123456789"),
    "stream": Stream,
    "form of a generator": part(generate),
    "form of a stream": part(Stream),
    "form of no way back": part(lambda: Once(b"0123456789")),
}


@pytest.mark.parametrize("kind", AGAIN | ONCE)
async def test_a_body_is_sent_again_from_where_it_was_or_not_at_all(kind: str) -> None:
    """Never the rest of it, and never nothing."""
    async with local(drop) as bad, local() as good:
        services = Static([bad.address, good.address])
        async with BalancedSession(services, policy=Prefer(bad.address)) as session:
            if kind in AGAIN:
                async with session.put("/x", data=AGAIN[kind]()) as response:
                    assert len(attempts(response)) == 2
            else:
                with pytest.raises(aiohttp.ServerDisconnectedError):
                    await session.put("/x", data=ONCE[kind]())
        for seen in (*bad.seen, *good.seen):
            assert seen.body.count(b"0123456789") == 1
            assert b"not" not in seen.body
        assert (len(bad.seen), len(good.seen)) == (1, kind in AGAIN)


@pytest.mark.parametrize("kind", ONCE)
async def test_a_body_that_was_not_touched_is_sent_whatever_it_is(kind: str, unused_address: str) -> None:
    async with local() as good:
        services = Static([unused_address, good.address])
        async with (
            BalancedSession(services, policy=Prefer(unused_address)) as session,
            session.post("/x", data=ONCE[kind]()) as response,
        ):
            assert [attempt.outcome for attempt in attempts(response)] == [Outcome.CONNECT, Outcome.SUCCESS]
        assert good.seen[0].body.count(b"0123456789") == 1


async def test_a_file_is_rewound_after_an_answer_as_well(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"abc" + os.urandom(500_000))

    async def busy(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503)

    async with local(busy) as bad, local() as good:
        services = Static([bad.address, good.address])
        with path.open("rb") as file:
            file.seek(3)
            async with (
                BalancedSession(services, policy=Prefer(bad.address)) as session,
                session.put("/x", data=file) as response,
            ):
                assert response.status == 200
        assert bad.seen[0].body == good.seen[0].body == path.read_bytes()[3:]


async def test_the_methods_are_the_users_choice() -> None:
    async with local(drop) as bad, local() as good:
        services = Static([bad.address, good.address])
        retry = Retry(methods=["post"], backoff=0)
        async with BalancedSession(services, policy=Prefer(bad.address), retry=retry) as session:
            async with session.post("/x", data=b"1") as response:
                assert len(attempts(response)) == 2
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await session.put("/x", data=b"1")


@pytest.mark.parametrize("header", [KEY, "X-Request-Key"])
async def test_requests_get_a_key_of_their_own_that_all_their_attempts_share(header: str) -> None:
    async with local(drop) as bad, local() as good:
        services = Static([bad.address, good.address])
        retry = Retry(idempotency_key=header, backoff=0)
        async with BalancedSession(services, policy=Prefer(bad.address), retry=retry) as session:
            for method in ("POST", "PATCH", "PUT"):
                async with session.request(method, "/x", data=b"1") as response:
                    assert len(attempts(response)) == 2
        keys = [seen.headers.get(header) for seen in bad.seen]
        assert keys == [seen.headers.get(header) for seen in good.seen]
        assert keys[2] is None, "PUT needs none"
        assert len({*keys}) == 3
        assert len(keys[0] or "") == 36


async def test_a_redirect_keeps_the_key_and_the_callers_own_wins() -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/1":
            return web.Response(status=307, headers={"Location": "/2"})
        return web.Response()

    retry = Retry(idempotency_key=KEY)
    async with local(answer) as server, BalancedSession(Static([server.address]), retry=retry) as session:
        await session.post("/1", data=b"1")
        await session.post("/1", data=b"1", headers={KEY.lower(): "mine"})
        keys = [seen.headers.getall(KEY) for seen in server.seen]
    assert keys[0] == keys[1]
    assert keys[2:] == [["mine"], ["mine"]]


async def test_without_the_option_nothing_is_made_up() -> None:
    async with local() as server, BalancedSession(Static([server.address])) as session:
        await session.post("/x", data=b"1")
        assert KEY not in server.seen[0].headers


async def test_a_middleware_outside_that_sends_once_more_sends_the_same_key() -> None:
    async def twice(req: ClientRequest, handler: ClientHandlerType) -> ClientResponse:
        await handler(req)
        return await handler(req)

    retry = Retry(idempotency_key=KEY)
    async with local() as server, BalancingMiddleware({"users": Static([server.address])}, retry=retry) as lb:
        async with aiohttp.ClientSession(middlewares=(twice, lb)) as session:
            await session.post("http://users/x", data=b"1")
        assert len({seen.headers[KEY] for seen in server.seen}) == 1
        assert len(server.seen) == 2
