"""Backends that are started for one test, and what becomes of them."""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
import trustme

from lbclient.sandbox import Backend, PortStats, SandboxError, backends


async def until(question: Callable[[], Awaitable[PortStats]], check: Callable[[PortStats], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if check(await question()):
                return
            await asyncio.sleep(0.01)


async def test_restart_keeps_the_port_and_forgets_the_counts(session: aiohttp.ClientSession) -> None:
    async with await Backend.start("b") as backend:
        address, pid = backend.address, backend.pid
        async with session.get(f"http://{address}/ping") as response:
            await response.read()
        await backend.kill()
        assert not backend.running
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://{address}/ping")
        with pytest.raises(SandboxError, match="before answering /stats"):
            await backend.stats()
        await backend.restart()
        assert (backend.address, backend.pid != pid) == (address, True)
        async with session.get(f"http://{address}/ping") as response:
            assert await response.read() == b"ok"
        assert (await backend.stat())["requests"] == 1


async def test_fail_answers_500_to_what_comes_until_it_recovers(session: aiohttp.ClientSession) -> None:
    async with await Backend.start("b") as backend:
        slow = asyncio.create_task(session.get(f"http://{backend.address}/slow?ms=3000"))
        await until(backend.stat, lambda stat: stat["in_flight"] == 1)
        await backend.fail()
        for path in ("/ping", "/v1/users/42", "/hang"):
            async with session.get(f"http://{backend.address}{path}") as response:
                assert response.status == 500
        assert (await slow).status == 200
        await backend.recover()
        async with session.get(f"http://{backend.address}/ping") as response:
            assert response.status == 200
        assert (await backend.stat())["requests"] == 5


async def test_terminate_finishes_what_is_in_progress(session: aiohttp.ClientSession) -> None:
    async with await Backend.start("b") as backend:
        async with session.get(f"http://{backend.address}/ping") as response:
            await response.read()
        slow = asyncio.create_task(session.get(f"http://{backend.address}/slow?ms=3000"))
        stream = asyncio.create_task(session.get(f"http://{backend.address}/stream?chunks=30&ms=100&size=1000"))
        await until(backend.stat, lambda stat: stat["in_flight"] == 2)
        ending = asyncio.create_task(backend.terminate(20))
        async with await slow as response:
            assert await response.read() == b"ok"
            assert response.headers["Connection"] == "close"
        async with await stream as response:
            assert len(await response.read()) == 30_000
        assert await ending is True
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"http://{backend.address}/ping")


async def test_terminate_is_over_at_once_when_idle(session: aiohttp.ClientSession) -> None:
    async with await Backend.start("b") as backend:
        async with session.get(f"http://{backend.address}/ping") as response:
            await response.read()
        begin = time.monotonic()
        assert await backend.terminate() is True
        assert time.monotonic() - begin < 5


async def test_a_taken_port_is_an_error_with_its_reason() -> None:
    async with await Backend.start("b") as first:
        second = Backend("c")
        second.ports = first.ports
        with pytest.raises(SandboxError, match="Address already in use"):
            await second.restart()
        await second.stop()


async def test_several_start_at_once() -> None:
    begin = time.monotonic()
    async with backends(5) as started:
        assert time.monotonic() - begin < 10
        assert [backend.name for backend in started] == ["b1", "b2", "b3", "b4", "b5"]
        assert len({backend.address for backend in started}) == 5
        assert all(backend.running for backend in started)
    assert not any(backend.running for backend in started)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return tmp_path / "cert.pem", tmp_path / "key.pem", context


async def test_connections_are_counted_with_tls(certificate: tuple[Path, Path, ssl.SSLContext]) -> None:
    cert, key, context = certificate
    async with await Backend.start("b", tls=(cert, key)) as backend:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            url = f"https://{backend.address}"
            for _ in range(3):
                async with session.get(f"{url}/ping") as response:
                    assert await response.read() == b"ok"
            stat = await backend.stat()
            assert (stat["requests"], stat["connections_open"], stat["connections_total"]) == (3, 1, 1)
            await backend.close_idle()
            await until(backend.stat, lambda stat: stat["connections_open"] == 0)
            await asyncio.gather(*(session.get(f"{url}/slow?ms=50") for _ in range(3)))
            stat = await backend.stat()
            assert (stat["connections_max"], stat["connections_total"]) == (3, 4)
        await until(backend.stat, lambda stat: stat["connections_open"] == 0)
        begin = time.monotonic()
        assert await backend.terminate() is True
        assert time.monotonic() - begin < 5
