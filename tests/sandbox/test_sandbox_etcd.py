import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from registry_certificates import Certificates

from lbclient.sandbox import EtcdCluster, EtcdServer, NotKillable, SandboxError, start_etcd
from lbclient.sandbox.binaries import Launcher


@pytest.fixture(autouse=True)
def _own_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LBCLIENT_ETCD", raising=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["3.4", "3.5"])
async def etcd(request: pytest.FixtureRequest) -> AsyncIterator[EtcdCluster]:
    async with await start_etcd(request.param, own=True) as started:
        assert started.version.startswith(f"{request.param}.")
        yield started


async def test_keys_are_kept_over_kill_and_restart(etcd: EtcdCluster) -> None:
    await etcd.put("/kept/a", "1")
    await etcd.put("/kept/ä", "ü".encode())
    await etcd.put("/other", "2")
    await etcd.delete("/kept/nothing")
    assert await etcd.get_prefix("/kept/") == {"/kept/a": "1", "/kept/ä": "ü"}
    address = etcd.address
    await etcd.kill()
    with pytest.raises(SandboxError, match="there is no running server"):
        await etcd.put("/kept/b", "1")
    await etcd.restart()
    assert etcd.address == address
    assert await etcd.get_prefix("/kept/") == {"/kept/a": "1", "/kept/ä": "ü"}
    await etcd.delete("/kept/a")
    assert await etcd.get_prefix("/kept/") == {"/kept/ä": "ü"}
    await etcd.delete_prefix("/kept/")
    assert await etcd.get_prefix("") == {"/other": "2"}


async def test_wipe_forgets_everything(etcd: EtcdCluster) -> None:
    await etcd.put("/wiped", "1")
    assert await etcd.revision() > 1
    await etcd.wipe()
    assert await etcd.get_prefix("") == {}
    assert await etcd.revision() == 1


async def test_leases_and_compaction(etcd: EtcdCluster) -> None:
    lease = await etcd.put("/leased", "1", ttl=60)
    assert lease is not None
    assert await etcd.get_prefix("/leased") == {"/leased": "1"}
    await etcd.revoke(lease)
    assert await etcd.get_prefix("/leased") == {}
    assert await etcd.compact() == await etcd.revision()
    with pytest.raises(SandboxError, match="compacted"):
        await etcd.compact()


async def test_a_paused_server_answers_nothing_until_it_goes_on(etcd: EtcdCluster) -> None:
    await etcd.pause()
    timeout = aiohttp.ClientTimeout(total=0.2)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        with pytest.raises(TimeoutError):
            await session.get(f"http://{etcd.address}/health")
    await etcd.resume()
    await etcd.put("/after", "1")


async def test_three_members_survive_the_death_of_one() -> None:
    async with await start_etcd("3.5", own=True, members=3) as cluster:
        assert len(set(cluster.addresses)) == 3
        await cluster.put("/a", "1")
        await cluster.kill(0)
        await cluster.put("/b", "2")
        assert await cluster.get_prefix("/") == {"/a": "1", "/b": "2"}
        await cluster.restart(0)
        assert await cluster.members[0].get_prefix("/") == {"/a": "1", "/b": "2"}
        await cluster.kill_all()
        await cluster.restart_all()
        assert await cluster.get_prefix("/") == {"/a": "1", "/b": "2"}
        await cluster.wipe()
        assert await cluster.get_prefix("/") == {}


async def test_one_given_by_the_environment_is_used_but_not_killed(
    etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LBCLIENT_ETCD", f" {etcd.address} ,")
    async with await start_etcd() as given:
        assert (given.addresses, given.version, given.killable) == (etcd.addresses, etcd.version, False)
        await given.put("/given", "1")
        for stop in (given.kill, given.pause, given.resume, given.restart, given.wipe):
            with pytest.raises(NotKillable, match="own=True"):
                await stop()
    assert await etcd.get_prefix("/given") == {"/given": "1"}


async def test_one_of_another_line_is_not_used(etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBCLIENT_ETCD", etcd.address)
    other = "3.4" if etcd.version.startswith("3.5") else "3.5"
    async with await start_etcd(other) as started:
        assert started.killable
        assert started.address != etcd.address


async def test_a_wrong_address_in_the_environment_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LBCLIENT_ETCD", "127.0.0.1:1")
    with pytest.raises(SandboxError, match=r"127\.0\.0\.1:1"):
        await start_etcd()


async def test_one_member_without_a_cluster_around_it() -> None:
    async with await EtcdServer.start() as server:
        assert server.addresses == [server.address]
        await server.put("/a", "1")
        await asyncio.gather(*(server.put(f"/many/{number}", "x") for number in range(20)))
        assert len(await server.get_prefix("/many/")) == 20
        assert server.running
    assert not server.running
    with pytest.raises(SandboxError):
        await server.get_prefix("/")


async def test_with_tls_and_users(tmp_path: Path) -> None:
    tls = Certificates(tmp_path).server(of_clients=True)
    async with await start_etcd(
        "3.5", own=True, tls=tls, flags={"auth-token-ttl": "1", "bcrypt-cost": "4"}
    ) as etcd:
        await etcd.put("/a", "1")
        await etcd.enable_auth()
        await etcd.add_user("user", "password")
        await etcd.permit("user", "/a", write=True)
        await etcd.put("/b", "2")
        (server,) = etcd.members
        for _ in range(2):
            assert await server.get_prefix("/") == {"/a": "1", "/b": "2"}
            await etcd.restart()
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"https://{etcd.address}/health")
        await etcd.change_password("user", "other")
        await etcd.forbid("user", "/a")
        await etcd.remove_user("user")
        await etcd.disable_auth()
        await etcd.put("/a", "2")
        await etcd.enable_auth("again")
        await etcd.wipe()
        assert await etcd.get_prefix("/") == {}


async def test_a_container_can_read_the_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        "lbclient.sandbox.containers._docker", lambda *arguments, **_: seen.extend(arguments) or ""
    )
    launcher = Launcher("etcd", "3.5.21", "Docker", image="etcd")
    server = launcher.server()
    server.show([tmp_path / "a.pem", tmp_path / "b.pem"])
    await server.start(["--name=m0"], [1])
    mount = f"{tmp_path}:{tmp_path}:ro"
    assert (seen.count(mount), seen[seen.index(mount) - 1]) == (1, "--volume")
    assert seen.index(mount) < seen.index("etcd") < seen.index("--name=m0")
