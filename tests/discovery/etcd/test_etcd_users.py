"""Etcd with authentication on real servers: users, tokens that are lost, passwords and permissions that change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from registry_rig import Proxy, hosts, sees, stale, until

from discovery import Etcd, Snapshot, SourceError, Watcher
from discovery.etcd.auth import Authentication
from lbclient.sandbox import EtcdCluster, start_etcd

pytestmark = pytest.mark.usefixtures("nothing_leaks", "nothing_is_told")

PASSWORD = "s3cret/%:@pass"
LOGIN = b"POST /v3/auth/authenticate "
FLAGS = {"bcrypt-cost": "4"}


both = pytest.mark.parametrize("server", ["3.4", "3.5"], indirect=True, scope="module")


@pytest.fixture
def nothing_is_told(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No password in any line of any log."""
    caplog.set_level(logging.DEBUG)
    yield
    assert "s3cret" not in caplog.text


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["3.5"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[EtcdCluster]:
    async with await start_etcd(request.param, own=True, flags={**FLAGS, "auth-token-ttl": "1"}) as cluster:
        await cluster.enable_auth()
        yield cluster


@pytest_asyncio.fixture
async def user(server: EtcdCluster, unique: str) -> str:
    """A user that may read the prefix of the same name, in which there is one endpoint."""
    await server.add_user(unique, PASSWORD)
    await server.permit(unique, f"{unique}/")
    await server.put(f"{unique}/a", "10.0.0.1:80")
    return unique


def states(watcher: Watcher) -> list[Snapshot]:
    """All snapshots from now on, as they come."""
    seen: list[Snapshot] = []
    watcher.subscribe(seen.append)
    return seen


def authentication(source: Etcd) -> Authentication:
    found = source.client()._authentication
    assert found is not None
    return found


@both
async def test_a_user_reads_and_watches(server: EtcdCluster, user: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Proxy(server.address) as way:
        source = Etcd(user, hosts=[way.address], user=user, password=PASSWORD)
        async with Watcher(source) as watcher:
            await until(watcher, sees("10.0.0.1"))
            await server.put(f"{user}/b", "10.0.0.2:80")
            await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        assert way.sent.count(LOGIN) == 1
        token = authentication(source)._token
        assert token
        assert token.encode() in way.sent
    for shown in (caplog.text, repr(source), repr(authentication(source)), str(vars(source))):
        assert token not in shown


@both
async def test_without_a_user_it_is_told_that_one_is_needed(server: EtcdCluster, user: str) -> None:
    with pytest.raises(SourceError, match="authentication is switched on and no user was given"):
        await anext(Etcd(user, hosts=server.addresses).watch())


@both
async def test_a_token_that_expires_in_a_quiet_watch_is_renewed(server: EtcdCluster, user: str) -> None:
    async with Proxy(server.address) as way:
        source = Etcd(user, hosts=[way.address], user=user, password=PASSWORD, probe_interval=5)
        async with Watcher(source) as watcher:
            await until(watcher, sees("10.0.0.1"))
            seen = states(watcher)
            # The probe comes after 3 s and more. The token lives for 1 s, but etcd looks at them once a second,
            # and one that is used in between lives on.
            await way.saw(LOGIN, 2)
            await until(watcher, lambda _: len(seen) >= 1)
            await server.put(f"{user}/b", "10.0.0.2:80")
            await until(watcher, sees("10.0.0.1", "10.0.0.2"))
            assert {snapshot.state for snapshot in seen} == {"live"}
        assert way.sent.count(b"POST /v3/watch ") == 1


@both
async def test_a_restart_that_loses_the_tokens(server: EtcdCluster, user: str) -> None:
    async with Watcher(Etcd(user, hosts=server.addresses, user=user, password=PASSWORD)) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await server.kill()
        await until(watcher, stale)
        await server.restart()
        await until(watcher, sees("10.0.0.1"), 4)
        await server.put(f"{user}/b", "10.0.0.2:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))


async def test_calls_at_the_same_time_share_one_renewal(server: EtcdCluster, user: str) -> None:
    async with Proxy(server.address) as way:
        sources = [Etcd(user, hosts=[way.address], user=user, password=PASSWORD) for _ in range(2)]
        shared = authentication(sources[0])
        assert shared is authentication(sources[1])
        async with sources[0].client() as one, sources[1].client() as two:
            for number in (1, 2):
                calls = [each.call("/kv/range", sources[0]._range) for each in (one, two) * 10]
                answers = await asyncio.gather(*calls)
                assert [len(answer["kvs"]) for answer in answers] == [1] * 20
                assert way.sent.count(LOGIN) == number
                shared._token = "lost.1"
    assert authentication(Etcd(user, hosts=server.addresses, user=user, password=PASSWORD)) is not shared
    assert authentication(Etcd(user, hosts=[way.address], user=user, password="other")) is not shared


async def test_a_refused_password_is_tried_once_in_five_seconds_at_one_member(
    server: EtcdCluster, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Proxy(server.address) as one, Proxy(server.address) as two, Proxy(server.address) as three:
        ways = [way.address for way in (one, two, three)]
        source = Etcd(user, hosts=ways, user=user, password="s3cret-wrong")
        for _ in range(3):
            with pytest.raises(SourceError, match=f"user '{user}' and its password were refused") as caught:
                await anext(source.watch())
            assert "s3cret" not in repr(caught.value)
            assert caught.value.retry_after > 4
        # Another source with the same user, and the registrar of either.
        async with Etcd("b", hosts=ways, user=user, password="s3cret-wrong").client() as client:
            client.rotate()
            with pytest.raises(SourceError, match="were refused"):
                await client.call("/lease/grant", {"TTL": "5"})
        assert [way.sent.count(LOGIN) for way in (one, two, three)] == [1, 0, 0]
    monkeypatch.setattr("discovery.etcd.auth._FIRST_PAUSE", 0.2)
    async with Proxy(server.address) as way:
        source = Etcd(user, hosts=[way.address], user=user, password="s3cret-new")
        async with Watcher(source) as watcher:
            await way.saw(LOGIN, 2)
            await server.change_password(user, "s3cret-new")
            await until(watcher, sees("10.0.0.1"))


async def test_the_first_refusal_says_five_seconds_and_later_ones_more(server: EtcdCluster, user: str) -> None:
    source = Etcd(user, hosts=server.addresses, user=user, password="s3cret-wrong")
    pauses = []
    for _ in range(5):
        with pytest.raises(SourceError) as caught:
            await anext(source.watch())
        pauses.append(caught.value.retry_after)
        authentication(source)._refused = ("", 0.0)
    assert [low <= pause <= low * 1.2 for low, pause in zip((5, 10, 20, 30, 30), pauses, strict=True)] == [
        True
    ] * 5


async def test_a_password_from_a_function_may_change(server: EtcdCluster, user: str) -> None:
    passwords = [PASSWORD]
    source = Etcd(user, hosts=server.addresses, user=user, password=lambda: passwords[-1], probe_interval=0.2)
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1"))
        # The watch is there when an event has come through it; before, the change would end it.
        await server.put(f"{user}/b", "10.0.0.2:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2"))
        seen = states(watcher)
        passwords.append("s3cret-2")
        await server.change_password(user, "s3cret-2")
        before = len(seen)
        await until(watcher, lambda _: len(seen) > before + 3)
        assert {snapshot.state for snapshot in seen} == {"live"}
        # Changed in etcd first: refused, but the new one is tried as soon as it is known.
        await server.change_password(user, "s3cret-3")
        away = await until(watcher, stale)
        assert "were refused" in away.reason
    passwords.append("s3cret-3")
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1", "10.0.0.2"), 2)


@both
async def test_a_permission_that_is_missing_is_told_and_may_be_granted_later(
    server: EtcdCluster, user: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.put(f"{unique}-other/a", "10.0.0.2:80")
    async with Proxy(server.address) as one, Proxy(server.address) as two:
        ways = [one.address, two.address]
        source = Etcd(f"{unique}-other", hosts=ways, user=user, password=PASSWORD)
        with pytest.raises(SourceError) as caught:
            await anext(source.watch())
        assert f"user '{user}' may not read the keys that begin with '{unique}-other/'" in str(caught.value)
        assert caught.value.retry_after >= 5
        assert two.sent == b""
        monkeypatch.setattr("discovery.etcd.source._PAUSE", 0.2)
        async with Watcher(source) as watcher:
            await until(watcher, lambda snapshot: "may not read" in snapshot.reason)
            await server.permit(user, f"{unique}-other/")
            await until(watcher, sees("10.0.0.2"), 4)


async def test_a_role_that_is_revoked_while_watching_is_noticed(
    server: EtcdCluster, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discovery.etcd.source._PAUSE", 0.2)
    source = Etcd(user, hosts=server.addresses, user=user, password=PASSWORD, probe_interval=0.2)
    async with Watcher(source) as watcher:
        await until(watcher, sees("10.0.0.1"))
        await server.forbid(user, f"{user}/")
        away = await until(watcher, stale, 1)
        assert (hosts(away), away.version) == (["10.0.0.1"], 1)
        # What notices it may also be the watch, which etcd cancels with less to say.
        await until(watcher, lambda snapshot: f"user '{user}' may not read" in snapshot.reason, 2)
        await server.permit(user, f"{user}/")
        await until(watcher, sees("10.0.0.1"), 4)


async def test_a_user_that_is_not_needed_is_fine(
    etcd: EtcdCluster, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    await etcd.put(f"{unique}/a", "10.0.0.1:80")
    source = Etcd(unique, hosts=etcd.addresses, user="user", password=PASSWORD)
    for _ in range(2):
        async with Watcher(source) as watcher:
            await until(watcher, sees("10.0.0.1"))
    said = [message for message in caplog.messages if "is not switched on" in message]
    assert len(said) == 1


async def test_authentication_is_switched_on_and_off_while_watching(unique: str) -> None:
    async with await start_etcd("3.5", own=True, flags=FLAGS) as own:
        await own.add_user("user", PASSWORD)
        await own.permit("user", f"{unique}/")
        await own.put(f"{unique}/a", "10.0.0.1:80")
        source = Etcd(unique, hosts=own.addresses, user="user", password=PASSWORD, probe_interval=0.2)
        async with Watcher(source) as watcher:
            await until(watcher, sees("10.0.0.1"))
            seen = states(watcher)
            for switch in (own.enable_auth, own.disable_auth):
                await switch()
                before = len(seen)
                await until(watcher, lambda _, before=before: len(seen) > before + 3)  # type: ignore[misc]
            assert {snapshot.state for snapshot in seen} == {"live"}
            assert authentication(source)._token


async def test_three_members_know_one_token(unique: str) -> None:
    async with (
        await start_etcd("3.5", own=True, members=3, flags=FLAGS) as three,
        contextlib.AsyncExitStack() as stack,
    ):
        await three.enable_auth()
        await three.add_user("user", PASSWORD)
        await three.permit("user", f"{unique}/")
        await three.put(f"{unique}/a", "10.0.0.1:80")
        ways = [await stack.enter_async_context(Proxy(address)) for address in three.addresses]
        source = Etcd(unique, hosts=[way.address for way in ways], user="user", password=PASSWORD)
        watcher = await stack.enter_async_context(Watcher(source))
        await until(watcher, sees("10.0.0.1"))
        for way in ways:
            began = asyncio.create_task(until(watcher, stale))
            await asyncio.sleep(0)
            await way.cut()
            await began
            await until(watcher, sees("10.0.0.1"))
            await way.accept()
        assert [way.sent.count(LOGIN) for way in ways] == [1, 0, 0]
        await three.kill(0)
        await three.put(f"{unique}/b", "10.0.0.2:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2"), 15)
        # A member that does not know the token any more is one more call, not an outage.
        authentication(source)._token = "lost.1"
        await three.put(f"{unique}/c", "10.0.0.3:80")
        await until(watcher, sees("10.0.0.1", "10.0.0.2", "10.0.0.3"))


async def test_a_jwt_older_than_the_last_change_of_a_role_is_renewed(unique: str, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"0123456789abcdef" * 4)
    kind = f"jwt,priv-key={tmp_path / 'key'},sign-method=HS256,ttl=10m"
    async with await start_etcd("3.5", own=True, flags={**FLAGS, "auth-token": kind}) as own:
        await own.enable_auth()
        await own.add_user("user", PASSWORD)
        await own.permit("user", f"{unique}/")
        await own.put(f"{unique}/a", "10.0.0.1:80")
        async with Proxy(own.address) as way:
            source = Etcd(unique, hosts=[way.address], user="user", password=PASSWORD, probe_interval=0.2)
            async with Watcher(source) as watcher:
                await until(watcher, sees("10.0.0.1"))
                # The watch is there when an event has come through it; before, the change would end it.
                await own.put(f"{unique}/b", "10.0.0.2:80")
                await until(watcher, sees("10.0.0.1", "10.0.0.2"))
                seen = states(watcher)
                await own.permit("user", "other/")
                await way.saw(LOGIN, 2)
                before = len(seen)
                await until(watcher, lambda _: len(seen) > before + 2)
                assert {snapshot.state for snapshot in seen} == {"live"}
                assert way.sent.count(LOGIN) == 2
