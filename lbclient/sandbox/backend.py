"""The HTTP server program of the sandbox: `python -m lbclient.sandbox.backend --name b1`.

It prints one line of JSON when it is ready, `{"name": ..., "ports": [...], "control": port}`, exits gracefully
on SIGTERM, and at once when its standard input ends.
"""

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from lbclient.sandbox.dataport import DataPort, tls_context
from lbclient.sandbox.ports import listening_socket

_ACTIONS: dict[str, Callable[[DataPort], Awaitable[None]]] = {
    "/left": DataPort.left,
    "/back": DataPort.back,
    "/refuse": DataPort.refuse,
    "/listen": DataPort.listen,
    "/close-idle": DataPort.close_idle,
    "/fail": DataPort.fail,
    "/recover": DataPort.recover,
}


class Control:
    """Answers on the control port, so that asking for statistics does not change them."""

    def __init__(self, ports: list[DataPort]) -> None:
        self._ports = {port.port: port for port in ports}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the control port."""
        if request.path == "/stats":
            return web.json_response({port: data.stats.as_json() for port, data in self._ports.items()})
        if request.path == "/reset":
            for data in self._ports.values():
                data.stats.reset()
            return web.Response()
        action = _ACTIONS.get(request.path)
        if action is None:
            return web.Response(status=HTTPStatus.NOT_FOUND, text=f"no such command: {request.path}")
        port = request.query.get("port", "")
        chosen = self._ports.get(int(port)) if port.isdecimal() else None
        if chosen is None:
            return web.Response(status=HTTPStatus.BAD_REQUEST, text=f"not a port of this backend: {port!r}")
        try:
            await action(chosen)
        except OSError as error:
            return web.Response(status=HTTPStatus.CONFLICT, text=str(error))
        return web.Response()


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    tls = tls_context(options.tls_cert, options.tls_key)
    wanted = options.port + [0] * (options.ports - len(options.port))
    ports = [DataPort(options.name, port, tls) for port in wanted]
    for port in ports:
        await port.listen()
    loop = asyncio.get_running_loop()
    control = listening_socket()
    server = web.Server(Control(ports).handle, access_log=None)
    await loop.create_server(server, sock=control)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), _exit_at_eof)
    ready = {
        "name": options.name,
        "ports": [port.port for port in ports],
        "control": control.getsockname()[1],
    }
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await asyncio.gather(*(port.drain() for port in ports))
    # Nothing is left to be kept; the interpreter's own farewell takes longer than everything above.
    os._exit(0)


def _exit_at_eof() -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        os._exit(0)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m lbclient.sandbox.backend", description=__doc__)
    parser.add_argument("--name", default="backend", help="what X-Server and the echo say")
    parser.add_argument("--port", type=int, action="append", default=[], help="a data port; may be repeated")
    parser.add_argument("--ports", type=int, default=1, help="how many data ports; the rest is chosen")
    parser.add_argument("--tls-cert", help="PEM file; makes the data ports speak TLS")
    parser.add_argument("--tls-key", help="PEM file")
    options = parser.parse_args()
    # What is imported stays: collections during a measurement need not look at it again.
    gc.collect()
    gc.freeze()
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()
