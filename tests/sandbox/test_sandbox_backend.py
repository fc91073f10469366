import asyncio
import contextlib
import hashlib
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
import pytest_asyncio

from lbclient.sandbox import Backend, PortStats, SandboxError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Backend]:
    """One backend for the tests that leave it as it was; started in another event loop than theirs."""
    async with await Backend.start("b1", ports=2) as started:
        yield started


@pytest_asyncio.fixture
async def backend(shared: Backend) -> Backend:
    await shared.reset()
    return shared


async def until(question: Callable[[], Awaitable[PortStats]], check: Callable[[PortStats], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if check(await question()):
                return
            await asyncio.sleep(0.01)


async def exchange(address: str, request: bytes) -> bytes:
    """Send bytes and return the answer's, up to the connection's end."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


def sent(port: int, request: bytes) -> socket.socket:
    """Connect and send; when this returns, the bytes are in the kernel's buffers of the other side."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    sock.sendall(request)
    return sock


@pytest.mark.parametrize(
    "target",
    ["/", "/a%2Fb/%7e/c%20d", "/?q=%26&empty=&x=a+b", "//double", "/%zz", "/a;b=c?d#", "http://other/absolute"],
)
async def test_the_echo_has_the_target_byte_for_byte(backend: Backend, target: str) -> None:
    headers = "Host: Shop\r\nX-a: 1\r\nx-A: 2\r\nContent-Length: 3\r\nConnection: close"
    request = f"POST {target} HTTP/1.1\r\n{headers}\r\n\r\nabc"
    head, _, body = (await exchange(backend.address, request.encode())).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert f"X-Server: b1:{backend.port}".encode() in head.splitlines()
    echo = json.loads(body)
    assert echo["target"] == target
    assert (echo["server"], echo["port"], echo["method"], echo["body"]) == ("b1", backend.port, "POST", "abc")
    assert echo["headers"][:3] == [["Host", "Shop"], ["X-a", "1"], ["x-A", "2"]]


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/ping", 200, b"ok"),
        ("/slow?ms=1", 200, b"ok"),
        ("/stream?chunks=4&ms=1&size=3", 200, b"x" * 12),
        ("/bytes?n=100000", 200, b"x" * 100000),
        ("/status/503", 503, b""),
        ("/status/204", 204, b""),
        ("/status/99", 400, b"not a final status: 99"),
        ("/ws", 400, b"not a websocket handshake"),
    ],
)
async def test_answers(
    backend: Backend, session: aiohttp.ClientSession, path: str, status: int, body: bytes
) -> None:
    async with session.get(f"http://{backend.address}{path}") as response:
        assert (response.status, await response.read()) == (status, body)
        assert response.headers["X-Server"] == f"b1:{backend.port}"


async def test_answers_with_headers(backend: Backend, session: aiohttp.ClientSession) -> None:
    url = f"http://{backend.address}"
    async with session.get(f"{url}/status/429?retry_after=7") as response:
        assert (response.status, response.headers["Retry-After"]) == (429, "7")
    async with session.get(f"{url}/redirect?to=/ping&code=307", allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (307, "/ping")
    async with session.get(f"{url}/cookies/set?a=1&b=2") as response:
        assert {key: morsel.value for key, morsel in response.cookies.items()} == {"a": "1", "b": "2"}


async def test_uploads_are_read_as_a_stream(backend: Backend, session: aiohttp.ClientSession) -> None:
    content = b"0123456789" * 300_000
    async with session.put(
        f"http://{backend.address}/upload", data=io.BytesIO(content), expect100=True
    ) as response:
        assert await response.json() == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


async def test_websocket(backend: Backend, session: aiohttp.ClientSession) -> None:
    async with session.ws_connect(f"http://{backend.address}/ws") as websocket:
        await websocket.send_str("hello")
        assert await websocket.receive_str() == "hello"
        await websocket.send_bytes(b"\0")
        assert await websocket.receive_bytes() == b"\0"
        await websocket.send_str("close")
        assert (await websocket.receive()).type is aiohttp.WSMsgType.CLOSE


async def test_broken_answers(backend: Backend, session: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await session.post(f"http://{backend.address}/drop", data=b"x" * 1000)
    async with session.get(f"http://{backend.address}/drop-body") as response:
        assert response.headers["Content-Length"] == "1000"
        with pytest.raises(aiohttp.ClientPayloadError, match="received 500 of 1000"):
            await response.read()
    with pytest.raises(TimeoutError):
        await session.get(f"http://{backend.address}/hang", timeout=aiohttp.ClientTimeout(total=0.1))
    await until(backend.stat, lambda stat: stat["in_flight"] == 0 and stat["connections_open"] == 0)
    assert backend._process.output().count("\n") == 1


async def test_requests_are_counted_for_each_port(backend: Backend, session: aiohttp.ClientSession) -> None:
    before = time.monotonic()
    first, second = backend.ports
    for _ in range(3):
        async with session.get(f"http://127.0.0.1:{first}/ping", headers={"X-Request-Id": "r1"}) as response:
            await response.read()
    async with session.post(f"http://127.0.0.1:{second}/x", headers={"X-Request-Id": "r2"}) as response:
        assert (await response.json())["port"] == second
    stats = await backend.stats()
    assert stats[first]["by_method"] == {"GET": 3}
    assert stats[first]["ids"] == {"r1": 3}
    assert (stats[first]["requests"], stats[first]["connections_total"]) == (3, 1)
    assert (stats[second]["by_method"], stats[second]["ids"]) == ({"POST": 1}, {"r2": 1})
    last = stats[first]["last_request_at"]
    assert last is not None
    assert before < last < time.monotonic()
    await backend.reset()
    after = await backend.stat()
    assert (after["requests"], after["ids"], after["connections_open"]) == (0, {}, 1)
    assert (after["connections_max"], after["last_request_at"]) == (1, None)


async def test_what_is_in_flight_is_counted(backend: Backend, session: aiohttp.ClientSession) -> None:
    tasks = [asyncio.create_task(session.get(f"http://{backend.address}/hang")) for _ in range(4)]
    await until(backend.stat, lambda stat: stat["in_flight"] == stat["connections_open"] == 4)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(backend.stat, lambda stat: stat["in_flight"] == stat["connections_open"] == 0)
    stat = await backend.stat()
    assert (stat["connections_max"], stat["connections_total"]) == (4, 4)
    assert stat["last_connection_closed_at"] is not None


async def test_requests_after_leaving_are_counted(backend: Backend, session: aiohttp.ClientSession) -> None:
    first, second = backend.ports

    async def ping(port: int) -> None:
        async with session.get(f"http://127.0.0.1:{port}/ping") as response:
            await response.read()

    await ping(first)
    await backend.left(first)
    await ping(first)
    await ping(first)
    await ping(second)
    await backend.back(first)
    await ping(first)
    stats = await backend.stats()
    assert (stats[first]["after_leaving"], stats[second]["after_leaving"]) == (2, 0)


async def test_what_was_sent_before_leaving_is_not_late(backend: Backend) -> None:
    """A frozen process reads requests and the news of leaving in one go; the requests came first."""
    leaving = f"POST /left?port={backend.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        await backend.pause()
        early = [stack.enter_context(sent(backend.port, PING)) for _ in range(20)]
        news = stack.enter_context(sent(backend._control, leaving))
        await backend.resume()
        assert news.recv(1000).startswith(b"HTTP/1.1 200 ")
        stat = await backend.stat()
        assert (stat["requests"], stat["after_leaving"]) == (20, 0)
        assert all(sock.recv(1000).endswith(b"ok") for sock in early)
        early[0].sendall(PING)
        assert early[0].recv(1000).endswith(b"ok")
        assert (await backend.stat())["after_leaving"] == 1
    await backend.back()


async def test_refusing_leaves_open_connections_alone(backend: Backend, session: aiohttp.ClientSession) -> None:
    url = f"http://{backend.address}/ping"
    async with session.get(url) as response:
        await response.read()
    await backend.refuse()
    async with session.get(url) as response:
        assert await response.read() == b"ok"
    async with aiohttp.ClientSession() as other:
        with pytest.raises(aiohttp.ClientConnectorError):
            await other.get(url)
        await backend.listen()
        async with other.get(url) as response:
            assert await response.read() == b"ok"
    stat = await backend.stat()
    assert (stat["requests"], stat["connections_total"]) == (3, 2)


async def test_only_idle_connections_are_closed(backend: Backend, session: aiohttp.ClientSession) -> None:
    busy = asyncio.create_task(session.get(f"http://{backend.address}/slow?ms=3000"))
    await until(backend.stat, lambda stat: stat["in_flight"] == 1)
    async with session.get(f"http://{backend.address}/ping") as response:
        await response.read()
    assert (await backend.stat())["connections_open"] == 2
    await backend.close_idle()
    await until(backend.stat, lambda stat: stat["connections_open"] == 1)
    async with await busy as response:
        assert await response.read() == b"ok"


async def test_commands_for_unknown_ports_are_refused(backend: Backend) -> None:
    with pytest.raises(SandboxError, match="not a port of this backend"):
        await backend.left(1)
