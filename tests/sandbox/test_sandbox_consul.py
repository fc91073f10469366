import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import trustme

from lbclient.sandbox import ConsulServer, NotKillable, SandboxError, ServerTLS, start_consul


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def consul() -> AsyncIterator[ConsulServer]:
    async with await start_consul(own=True) as started:
        yield started


async def test_register_and_deregister(consul: ConsulServer) -> None:
    first = await consul.register("web", "127.0.0.1", 8001, tags=["a"], weights=(3, 1), meta={"zone": "z"})
    second = await consul.register("web", "127.0.0.2", 8002, id="second")
    found = {entry["Service"]["ID"]: entry["Service"] for entry in await consul.services("web")}
    assert set(found) == {first, second} == {"web-127.0.0.1-8001", "second"}
    assert (found[first]["Address"], found[first]["Port"]) == ("127.0.0.1", 8001)
    assert (found[first]["Tags"], found[first]["Meta"]) == (["a"], {"zone": "z"})
    assert found[first]["Weights"] == {"Passing": 3, "Warning": 1}
    await consul.deregister(first)
    assert [entry["Service"]["ID"] for entry in await consul.services("web")] == ["second"]
    await consul.deregister(second)
    assert await consul.services("web") == []


async def test_checks(consul: ConsulServer) -> None:
    checked = await consul.register("checked", "127.0.0.1", 8001, check_ttl=60)
    assert len(await consul.services("checked", passing=True)) == 1
    for status in ("critical", "warning"):
        await consul.set_check(checked, status)
        assert await _states(consul) == {status}
        assert await consul.services("checked", passing=True) == []
    await consul.set_check(checked, "passing")
    assert len(await consul.services("checked", passing=True)) == 1
    await consul.deregister(checked)


async def _states(consul: ConsulServer) -> set[str]:
    checks = [check for entry in await consul.services("checked") for check in entry["Checks"]]
    return {check["Status"] for check in checks if check["ServiceID"]}


async def test_registrations_are_kept_over_kill_and_restart_but_not_over_wipe(consul: ConsulServer) -> None:
    await consul.register("kept", "127.0.0.1", 8001)
    address = consul.address
    await consul.kill()
    with pytest.raises(SandboxError):
        await consul.services("kept")
    await consul.restart()
    assert consul.address == address
    assert len(await consul.services("kept")) == 1
    await consul.wipe()
    assert await consul.services("kept") == []


async def test_a_check_that_does_not_exist_is_an_error(consul: ConsulServer) -> None:
    with pytest.raises(SandboxError, match="nobody"):
        await consul.set_check("nobody", "passing")


async def test_one_given_by_the_environment_is_used_but_not_killed(
    consul: ConsulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LBCLIENT_CONSUL", consul.address)
    async with await start_consul() as given:
        assert (given.address, given.version, given.killable) == (consul.address, consul.version, False)
        await given.deregister(await given.register("given", "127.0.0.1", 8001))
        with pytest.raises(NotKillable, match="own=True"):
            await given.kill()
    assert consul.running


async def test_acls_and_https(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, pem = tmp_path / "ca.pem", tmp_path / "server.pem"
    authority.cert_pem.write_to_path(str(ca))
    server = authority.issue_cert("127.0.0.1")
    server.private_key_and_cert_chain_pem.write_to_path(str(pem))
    https = ServerTLS(ca=ca, cert=pem, key=pem, client_ca=ca)
    async with await ConsulServer.start(acl=True, https=https) as consul, aiohttp.ClientSession() as session:
        await consul.deregister(await consul.register("web", "127.0.0.1", 8001))
        await consul.register("web", "127.0.0.1", 8002)
        backup = await consul.snapshot()
        token = await consul.create_token('node_prefix "" { policy = "read" } service "web" { policy = "read" }')

        async def seen(token: str, address: str = consul.address, **options: Any) -> tuple[int, str]:
            url = f"{'https' if options else 'http'}://{address}/v1/health/service/web"
            async with session.get(url, headers={"X-Consul-Token": token}, **options) as response:
                return response.status, await response.text()

        assert await seen("") == (200, "[]")
        assert '"Port":8002' in (await seen(token))[1]
        await consul.change_token(token, 'key_prefix "" { policy = "read" }')
        assert await seen(token) == (200, "[]")
        await consul.revoke_token(token)
        assert (await seen(token))[0] == 403
        await consul.restore(backup)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        with pytest.raises(aiohttp.ClientError):
            await seen("", consul.https_address, ssl=context)
        authority.issue_cert("client").configure_cert(context)
        assert (await seen(consul.token, consul.https_address, ssl=context))[0] == 200


async def test_maintenance(consul: ConsulServer) -> None:
    kept = await consul.register("kept-alive", "127.0.0.1", 8001)
    for what in (kept, None):
        for enable in (True, False):
            await consul.maintenance(what, enable=enable)
            assert len(await consul.services("kept-alive", passing=True)) == (0 if enable else 1)
    await consul.deregister(kept)
