"""One token for all, and what happens when it cannot be had; without a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from registry_rig import Fake, http

from discovery import Etcd, SourceError
from discovery.etcd.auth import Authentication
from discovery.etcd.client import EtcdClient
from discovery.etcd.wire import EtcdError

pytestmark = pytest.mark.usefixtures("nothing_leaks")

ONE, TWO = "https://one:2379", "https://two:2379"


class Server:
    """Answers to authentication one at a time, when a test says so."""

    def __init__(self) -> None:
        self.asked: list[Mapping[str, str]] = []
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, body: Mapping[str, str]) -> Mapping[str, Any]:
        self.asked.append(body)
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return {"token": answer}


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_meanwhile_waits_for_the_same_token() -> None:
    server, shared = Server(), Authentication("user", "s3cret")
    waiting = [asyncio.create_task(shared.token(server, url)) for url in (ONE, TWO, ONE)]
    await turns()
    server.answers.put_nowait("a.1")
    assert await asyncio.gather(*waiting) == ["a.1"] * 3
    assert await shared.token(server, ONE) == "a.1"
    assert server.asked == [{"name": "user", "password": "s3cret"}]
    server.answers.put_nowait("b.2")
    assert await shared.token(server, ONE, refused="a.1") == "b.2"
    # Refused late: somebody else has renewed it since.
    assert await shared.token(server, ONE, refused="a.1") == "b.2"
    assert len(server.asked) == 2


async def test_if_the_one_that_asks_is_cancelled_the_next_one_asks() -> None:
    server, shared = Server(), Authentication("user", "s3cret")
    first, second = (asyncio.create_task(shared.token(server, ONE)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    assert len(server.asked) == 2
    server.answers.put_nowait("a.1")
    assert await second == "a.1"
    third = asyncio.create_task(shared.token(server, ONE, refused="a.1"))
    fourth = asyncio.create_task(shared.token(server, ONE, refused="a.1"))
    await turns()
    fourth.cancel()
    server.answers.put_nowait("b.2")
    assert await third == "b.2"


async def test_a_failure_is_shared_by_those_at_the_same_member_only() -> None:
    server, shared = Server(), Authentication("user", "s3cret")
    waiting = [asyncio.create_task(shared.token(server, url)) for url in (ONE, ONE, TWO)]
    await turns()
    server.answers.put_nowait(SourceError("no answer"))
    server.answers.put_nowait("a.1")
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(each) for each in found] == ["no answer", "no answer", "a.1"]
    assert len(server.asked) == 2


async def test_a_refusal_is_shared_by_all() -> None:
    server, shared = Server(), Authentication("user", "s3cret")
    waiting = [asyncio.create_task(shared.token(server, url)) for url in (ONE, TWO)]
    await turns()
    server.answers.put_nowait(EtcdError("authentication failed, invalid user ID or password", 3))
    for each in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(each, SourceError)
        assert str(each) == "etcd at https://one:2379: user 'user' and its password were refused"
        assert each.retry_after > 4.9
    assert len(server.asked) == 1


@pytest.mark.parametrize("token", [None, "", 7, "a\r\nHost: x", "ä"])
async def test_an_answer_without_a_token(token: object) -> None:
    server = Server()
    server.answers.put_nowait(token)
    with pytest.raises(SourceError, match="the answer to user 'user' has no token"):
        await Authentication("user", "s3cret").token(server, ONE)


async def test_a_function_without_a_password() -> None:
    def broken() -> str:
        raise OSError("s3cret")

    for function, words in (
        (broken, "failed with OSError"),
        (lambda: "", "returned nothing"),
        (lambda: 7, "returned int"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            await Authentication("user", function).token(Server(), ONE)  # type: ignore[arg-type]
        assert "s3cret" not in str(caught.value)
        assert caught.value.retry_after >= 5


async def test_a_password_in_plain_text_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for url, warnings in (
        (ONE, 0),
        ("http://127.0.0.1:2379", 0),
        ("http://[::1]:2379", 0),
        ("http://localhost:2379", 0),
        ("http://etcd.example:2379", 1),
        ("http://10.0.0.1:2379", 1),
    ):
        caplog.clear()
        server, shared = Server(), Authentication("user", "s3cret")
        for refused in (None, "a.1"):
            server.answers.put_nowait("b.1" if refused else "a.1")
            await shared.token(server, url, refused=refused)
        assert len([message for message in caplog.messages if "unencrypted" in message]) == warnings
        assert "s3cret" not in caplog.text


async def test_a_new_token_that_is_refused_is_not_renewed_again_and_again() -> None:
    async def say(head: str) -> bytes:
        if "/auth/" in head:
            return http(json.dumps({"token": "a.1"}))
        return http('{"code":16,"message":"invalid auth token"}', status="401 Unauthorized")

    async with Fake(say) as server:
        with pytest.raises(SourceError, match=r"invalid auth token .* and it is new") as caught:
            await anext(Etcd("a", hosts=[server.address], user="user", password="s3cret").watch())
        assert caught.value.retry_after >= 5
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("reason", "tokens"),
    [
        ("rpc error: code = Unauthenticated desc = etcdserver: invalid auth token", 2),
        ("rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old", 2),
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", 2),
        ("", 1),
    ],
)
async def test_after_a_watch_canceled_for_its_token_there_is_a_new_one(reason: str, tokens: int) -> None:
    """Behind one address there may be several members: the one that answers the list may still know the token."""
    header = {"cluster_id": "7", "revision": "10"}

    async def say(head: str) -> bytes:
        if "/auth/" in head:
            return http(json.dumps({"token": "a.1"}))
        if "/kv/" in head:
            return http(json.dumps({"header": header}))
        canceled = {"header": header, "created": True, "canceled": True, "cancel_reason": reason}
        return http(json.dumps({"result": canceled}) + "\n")

    async with Fake(say) as server:
        source = Etcd("a", hosts=[server.address], user="user", password="s3cret")
        for _ in range(2):
            sets = source.watch()
            await anext(sets)
            with pytest.raises(SourceError, match="canceled the watch"):
                await anext(sets)
        assert sum("/auth/" in head for head in server.requests) == tokens


@pytest.mark.parametrize("status", ["400 Bad Request", "401 Unauthorized", "502 Bad Gateway", "200 OK"])
async def test_a_server_that_repeats_what_it_is_sent(status: str, caplog: pytest.LogCaptureFixture) -> None:
    """Some proxies do, on their error pages."""
    caplog.set_level("DEBUG")

    async def say(head: str) -> bytes:
        if "/auth/" in head:
            return http(json.dumps({"token": "t0ken.1"}))
        token = head.partition("Authorization: ")[2].split()[0]
        password = json.dumps('s3"cret')
        return http(f"no {token} {password}", status=status)

    async with Fake(say) as server:
        source = Etcd("a", hosts=[server.address], user="user", password='s3"cret')
        with pytest.raises(SourceError, match=r"no \*\*\* ") as caught:
            await anext(source.watch())
    for secret in ("t0ken", "s3", "cret"):
        assert secret not in str(caught.value)
        assert secret not in caplog.text


async def test_every_call_needs_the_token_and_authenticating_does_not() -> None:
    async def say(head: str) -> bytes:
        return http(json.dumps({"token": "a.1", "header": {}}))

    async with Fake(say) as server:
        client = EtcdClient([server.address], authentication=Authentication("user", "s3cret"))
        async with client:
            await client.call("/lease/grant", {"TTL": "5"})
            async with client.stream("/watch", {}):
                pass
        heads = [("Authorization: a.1" in head, head.split()[1]) for head in server.requests]
    assert heads == [(False, "/v3/auth/authenticate"), (True, "/v3/lease/grant"), (True, "/v3/watch")]
