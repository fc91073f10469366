"""The program of a fault server: an HTTP server that does wrong what it is told to over a control port.

It speaks HTTP/1.1 by itself (see `fault_wire`), prints one line of JSON when it listens, `{"port": ..., "control":
...}`, and appends what it sees to a record file with one write each, so that a server that was killed has still
told all. It finishes what runs on SIGTERM, and is gone at once when its standard input ends.

Control: one line of JSON, `{"do": NAME, ...}`, is answered by one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from fault_record import Meter, Record
from fault_wire import Ear, Head, Wire, answer, split
from faults import Fault, Script

_BACKLOG = 512
# Who was answered before its body was read gets so long to notice.
_LINGER = 1.0


@dataclass(eq=False)
class Connection:
    """A connection that was accepted."""

    number: int
    wire: Wire | None = None
    busy: bool = False


class Server:
    """The data port."""

    def __init__(self, name: str, port: int, tls: ssl.SSLContext | None, record: str, script: Script) -> None:
        self.name = name
        self.port = port
        self.script = script
        self._tls = tls
        self._meter = Meter()
        self.record = Record(record, self._meter)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._fillers: dict[tuple[str, int], socket.socket] = {}
        self._connections: dict[Connection, asyncio.Task[None]] = {}
        self._count = 0
        self._stopping = asyncio.Event()

    def listen(self) -> None:
        """Accept connections, whatever was before."""
        for filler in self._fillers.values():
            filler.close()
        if self._listener is None:
            self._listener = socket.socket()
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind(("127.0.0.1", self.port))
            self._listener.settimeout(0)
            self.port = self._listener.getsockname()[1]
        self._listener.listen(_BACKLOG)
        if self._accepting is None:
            self._accepting = asyncio.create_task(self._accept(self._listener))

    async def refuse(self) -> None:
        """Have connections refused; those that are there stay."""
        await self._stop_accepting()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def fill(self) -> None:
        """Accept nothing, and have no room for who waits: connecting neither succeeds nor fails."""
        self.listen()
        self._fillers.clear()
        await self._stop_accepting()
        assert self._listener is not None
        self._listener.listen(0)
        for _ in range(2):
            filler = socket.socket()
            filler.settimeout(0)
            filler.connect_ex(("127.0.0.1", self.port))
            try:
                filler.getpeername()
            except OSError:
                # There was no room for it, and its port may be that of a client later on.
                filler.close()
            else:
                self._fillers[filler.getsockname()] = filler

    def close_idle(self) -> int:
        """Close the connections on which there is no request; how many."""
        idle = [c.wire for c in self._connections if not c.busy and c.wire is not None]
        for wire in idle:
            wire.close()
        return len(idle)

    async def stop(self) -> None:
        """Finish what runs."""
        self._stopping.set()
        await self.refuse()
        self.close_idle()
        if self._connections:
            await asyncio.wait(tuple(self._connections.values()))

    async def _until_stop(self, what: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.create_task(what), asyncio.create_task(self._stopping.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def _stop_accepting(self) -> None:
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            accepting.cancel()
            await asyncio.wait([accepting])

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError:  # no descriptors, or who wanted to connect is gone
                await asyncio.sleep(0.01)
                continue
            if peer in self._fillers:
                del self._fillers[peer]
                sock.close()
                continue
            # asyncio does it only for sockets that were made with the protocol's number.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._count += 1
            connection = Connection(self._count)
            self.record.note("open", connection.number)
            self._connections[connection] = asyncio.create_task(self._serve(connection, sock))

    async def _serve(self, connection: Connection, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = Ear()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=self._tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            connection.wire = wire = Wire(reader, writer, self._meter)
            try:
                await self._requests(connection, wire)
            finally:
                wire.close()
        except (EOFError, OSError, ValueError, asyncio.CancelledError):
            pass  # the client has gone, has not liked the certificate, or speaks something else
        finally:
            # It is told of when the client can know it: asyncio closes sockets a step after it was asked to.
            if connection.wire is not None:
                await connection.wire.closed(_LINGER)
            self._connections.pop(connection, None)
            self.record.note("close", connection.number)

    async def _requests(self, connection: Connection, wire: Wire) -> None:
        reused = False
        while not self._stopping.is_set():
            connection.busy = False
            target = await wire.target()
            connection.busy = True
            if not await self._request(connection.number, wire, self.script.choose(target, reused=reused)):
                return
            reused = True

    async def _request(self, number: int, wire: Wire, fault: Fault) -> bool:
        """Do one request; whether the connection is kept."""
        head, body = None, b""
        if fault.reads != "nothing":
            head = await wire.head()
            self.record.note("head", number, head.request_id, head.method, head.target)
            unread = head.has_body and fault.reads != "all"
            if not unread:
                body = await wire.body(head)
                self.record.note("body", number, head.request_id, hashlib.sha256(body).hexdigest(), len(body))
        else:
            unread = True
        if fault.delay:
            await asyncio.sleep(fault.delay)
        data = self._answer(fault, head, body)
        if data:
            *earlier, last = split(data, fault.pieces)
            await wire.drip(earlier, fault.pause)
            if fault.sends == "all" and head is not None:
                self.record.note("answer", number, head.request_id, fault.status)
            wire.write(last)
        if fault.then == "reset":
            wire.reset()
        elif fault.then == "silence":
            await self._until_stop(wire.silence())
        elif data and unread:
            await wire.linger(_LINGER)
        elif fault.then == "keep" and head is not None:
            return head.keeps and fault.headers.get("Connection") != "close"
        return False

    def _answer(self, fault: Fault, head: Head | None, body: bytes) -> bytes:
        said = {
            "server": self.name,
            "id": head.request_id if head else "",
            "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        headers = {"Content-Type": "application/json", "X-Server": self.name}
        if self._stopping.is_set():
            headers["Connection"] = "close"
        return answer(fault, head.method if head else "GET", json.dumps(said).encode(), headers)


class Control:
    """The control port."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            try:
                said = await self._do(**json.loads(line))
            except (OSError, TypeError, ValueError) as error:
                said = {"error": f"{type(error).__name__}: {error}"}
            writer.write(json.dumps(said).encode() + b"\n")
        writer.close()

    async def _do(self, do: str, **options: Any) -> dict[str, Any]:
        server = self._server
        match do:
            case "play":
                server.script = Script(options["faults"], options["seed"])
            case "listen":
                server.listen()
            case "refuse":
                await server.refuse()
            case "fill":
                await server.fill()
            case "close idle":
                return {"closed": server.close_idle()}
            case _:
                raise ValueError(f"no such command: {do}")
        return {}


def _tls(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


def _exit_at_eof() -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        os._exit(0)


async def _main(options: argparse.Namespace) -> None:
    script = Script(**json.loads(options.script))
    server = Server(options.name, options.port, _tls(options.cert, options.key), options.record, script)
    server.listen()
    server.record.note("start", 0, os.getpid())
    control = await asyncio.start_server(Control(server).talk, "127.0.0.1", 0)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), _exit_at_eof)
    ready = {"port": server.port, "control": control.sockets[0].getsockname()[1]}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop()
    # The interpreter's farewell takes longer than everything else.
    os._exit(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="fault")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--record", required=True)
    parser.add_argument("--script", default='{"faults": [], "seed": 0}')
    parser.add_argument("--cert")
    parser.add_argument("--key")
    asyncio.run(_main(parser.parse_args()))
