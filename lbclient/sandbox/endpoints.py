"""What a backend answers: the handlers of its data ports."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

SERVER_HEADER = "X-Server"

# Unbounded enough for any test, and a typo in a test does not eat the machine's memory.
_MOST_BYTES = 1 << 30


def endpoints(name: str, port: int) -> Handler:
    """Return the handler of one data port of the backend `name`."""
    server = f"{name}:{port}"

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if "Expect" in request.headers:
            await _expect(request)
        path = request.raw_path.partition("?")[0]
        endpoint = _ENDPOINTS.get(path)
        if endpoint is None and path.startswith("/status/"):
            endpoint = _status
        if endpoint is None:
            response: web.StreamResponse = await _echo(request, name, port)
        else:
            response = await endpoint(request, server)
        if not response.prepared:
            response.headers[SERVER_HEADER] = server
        return response

    return handle


async def _expect(request: web.BaseRequest) -> None:
    # The low-level server leaves this to its handler.
    if request.headers["Expect"].lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0


async def _echo(request: web.BaseRequest, name: str, port: int) -> web.StreamResponse:
    body = await request.content.read()
    return web.json_response(
        {
            "server": name,
            "port": port,
            "method": request.method,
            "target": request.raw_path,
            "headers": [[key.decode("latin-1"), value.decode("latin-1")] for key, value in request.raw_headers],
            "body": body.decode(errors="replace"),
        }
    )


async def _ping(_request: web.BaseRequest, _server: str) -> web.StreamResponse:
    return web.Response(body=b"ok")


async def _slow(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    await asyncio.sleep(_number(request, "ms", 1000) / 1000)
    return web.Response(body=b"ok")


async def _stream(request: web.BaseRequest, server: str) -> web.StreamResponse:
    chunk = b"x" * _number(request, "size", 10)
    pause = _number(request, "ms", 0) / 1000
    response = web.StreamResponse(headers={SERVER_HEADER: server})
    await response.prepare(request)
    for _ in range(_number(request, "chunks", 3)):
        await response.write(chunk)
        await asyncio.sleep(pause)
    return response


async def _bytes(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    return web.Response(body=b"x" * _number(request, "n", 1))


async def _status(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    code = request.path.rpartition("/")[2]
    if not (code.isdecimal() and HTTPStatus.OK <= int(code) <= 999):  # noqa: PLR2004 - three digits on the wire
        return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"not a final status: {code}")
    response = web.Response(status=int(code))
    if "retry_after" in request.query:
        response.headers["Retry-After"] = request.query["retry_after"]
    return response


async def _redirect(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    location = request.query.get("to", "/")
    return web.Response(status=_number(request, "code", HTTPStatus.FOUND), headers={"Location": location})


async def _set_cookies(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    response = web.Response(body=b"ok")
    for key, value in request.query.items():
        response.set_cookie(key, value)
    return response


async def _websocket(request: web.BaseRequest, server: str) -> web.StreamResponse:
    socket = web.WebSocketResponse()
    socket.headers[SERVER_HEADER] = server
    if not socket.can_prepare(request):
        return web.Response(status=HTTPStatus.BAD_REQUEST, text="not a websocket handshake")
    await socket.prepare(request)
    async for message in socket:
        if message.type is web.WSMsgType.TEXT:
            if message.data == "close":
                await socket.close()
            else:
                await socket.send_str(message.data)
        elif message.type is web.WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


async def _drop(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    await request.content.read()
    _close(request)
    return web.Response()


async def _drop_body(request: web.BaseRequest, server: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={SERVER_HEADER: server, "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"x" * 500)
    _close(request)
    return response


async def _hang(_request: web.BaseRequest, _server: str) -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.Response()


async def _upload(request: web.BaseRequest, _server: str) -> web.StreamResponse:
    size, digest = 0, hashlib.sha256()
    async for chunk in request.content.iter_any():
        size += len(chunk)
        digest.update(chunk)
    return web.json_response({"bytes": size, "sha256": digest.hexdigest()})


def _close(request: web.BaseRequest) -> None:
    # A response returned after this is not written: aiohttp sees that the client is "gone".
    if request.transport is not None:
        request.transport.close()


def _number(request: web.BaseRequest, key: str, default: int) -> int:
    try:
        return min(max(int(request.query.get(key, default)), 0), _MOST_BYTES)
    except ValueError:
        return default


_ENDPOINTS: dict[str, Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]] = {
    "/ping": _ping,
    "/slow": _slow,
    "/stream": _stream,
    "/bytes": _bytes,
    "/redirect": _redirect,
    "/cookies/set": _set_cookies,
    "/ws": _websocket,
    "/drop": _drop,
    "/drop-body": _drop_body,
    "/hang": _hang,
    "/upload": _upload,
}
