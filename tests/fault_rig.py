"""`FaultServer`: an HTTP server in its own process that does wrong what it is told, and what it saw."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fault_record import Report, Trace
from faults import Fault

from lbclient.sandbox import free_port
from lbclient.sandbox.process import Process

__all__ = ["Fault", "FaultServer", "Report", "Trace", "fault_servers", "started"]

_PROGRAM = Path(__file__).with_name("fault_server.py")
_START_TIMEOUT = 20.0
_CONTROL_TIMEOUT = 20.0


class FaultServer:
    """A fault server on loopback; healthy as long as it was told nothing else.

    It belongs to no event loop, and does not outlive this process. What it saw can be read at any time, also while
    it is paused and after it was killed.

    Attributes:
        name: what the header `X-Server` says.
        port: stays the same over restarts.
    """

    def __init__(self, name: str, *, tls: tuple[Path, Path] | None = None) -> None:
        self.name = name
        self.port = free_port()
        self._tls = tls
        self._control = 0
        self._process = Process()
        folder = Path(tempfile.mkdtemp(prefix="fault-server-"))
        self._log, self._record = folder / "log", folder / "record"
        self._report = Report()
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    async def start(cls, name: str = "fault", *faults: Fault, tls: tuple[Path, Path] | None = None) -> Self:
        """Start one and wait until it listens; `tls` are PEM files of a certificate and of its key."""
        server = cls(name, tls=tls)
        await server._launch(faults, 0)
        return server

    def __repr__(self) -> str:
        return f"<FaultServer {self.name} at {self.address}>"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; a paused one is."""
        return self._process.running

    @property
    def report(self) -> Report:
        """What it saw up to now, since it was first started or `forget` was called."""
        self._report.read(self._record)
        return self._report

    def trace(self, request_id: str) -> Trace:
        """What it saw of one request."""
        return self.report.trace(request_id)

    def forget(self) -> None:
        """Begin the report anew; open connections stay counted."""
        report = self.report
        self._report = Report(open=report.open, offset=report.offset)

    async def play(self, *faults: Fault, seed: int = 0) -> None:
        """Do this from now on; the first fault that fits a request counts, and where none does it is healthy."""
        await self._tell("play", faults=[fault.as_dict() for fault in faults], seed=seed)

    async def refuse(self) -> None:
        """Have connections refused; those that are there stay."""
        await self._tell("refuse")

    async def fill(self) -> None:
        """Accept nothing more, with the queue of those who wait full: connecting neither succeeds nor fails."""
        await self._tell("fill")

    async def listen(self) -> None:
        """Accept connections again after `refuse` or `fill`."""
        await self._tell("listen")

    async def close_idle(self) -> int:
        """Close the connections that have no request; how many those were."""
        closed: int = (await self._tell("close idle"))["closed"]
        return closed

    async def kill(self) -> None:
        """Kill -9."""
        await self._process.kill()
        self.report.open = 0

    async def pause(self) -> None:
        """SIGSTOP: the kernel goes on to accept connections, nothing is answered."""
        await self._process.pause()

    async def resume(self) -> None:
        """SIGCONT."""
        await self._process.resume()

    async def terminate(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109 - not a limit for the caller
        """SIGTERM: it closes its port and idle connections, and finishes what runs; False if it was killed."""
        return await self._process.terminate(timeout)

    async def restart(self, *faults: Fault, seed: int = 0) -> None:
        """Start it on its port, killing it first if it runs; it has forgotten what it played before."""
        await self.kill()
        await self._launch(faults, seed)

    async def stop(self) -> None:
        """Kill it and remove its record."""
        await self._process.kill()
        self._remove()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _launch(self, faults: tuple[Fault, ...], seed: int) -> None:
        # Without site-packages it starts in half the time; it needs none of them.
        argv = [sys.executable, "-S", "-E", str(_PROGRAM), "--name", self.name, "--port", str(self.port)]
        argv += ["--record", str(self._record)]
        argv += ["--script", json.dumps({"faults": [fault.as_dict() for fault in faults], "seed": seed})]
        if self._tls is not None:
            argv += ["--cert", str(self._tls[0]), "--key", str(self._tls[1])]
        try:
            await self._process.start(argv, log=self._log)
            ready = await self._process.until(self._ready, what="its ready line", timeout=_START_TIMEOUT)
        except BaseException:
            await self._process.kill()
            raise
        self._control = ready["control"]

    def _ready(self) -> dict[str, Any] | None:
        for line in self._process.output().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                ready: dict[str, Any] = json.loads(line)
                return ready
        return None

    async def _tell(self, do: str, **options: Any) -> dict[str, Any]:
        self._process.expect_running(do)
        async with asyncio.timeout(_CONTROL_TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._control)
            try:
                writer.write(json.dumps({"do": do, **options}).encode() + b"\n")
                answer: dict[str, Any] = json.loads(await reader.readline())
            finally:
                writer.close()
                await writer.wait_closed()
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {do}: {answer['error']}")
        return answer


@asynccontextmanager
async def fault_servers(*names: str, tls: tuple[Path, Path] | None = None) -> AsyncIterator[list[FaultServer]]:
    """Start servers with these names at the same time, and stop them in the end."""
    starts = [asyncio.ensure_future(FaultServer.start(name, tls=tls)) for name in names]
    try:
        yield list(await asyncio.gather(*starts))
    finally:
        await asyncio.gather(*starts, return_exceptions=True)
        started = [start.result() for start in starts if not start.cancelled() and not start.exception()]
        await asyncio.gather(*(server.stop() for server in started))


def started(starts: Iterable[Awaitable[FaultServer]]) -> Iterator[dict[str, FaultServer]]:
    """For fixtures with a scope: servers by their names, started outside of any test's loop, and stopped."""
    loop = asyncio.new_event_loop()

    async def start() -> list[FaultServer]:
        return list(await asyncio.gather(*starts))

    servers = loop.run_until_complete(start())
    yield {server.name: server for server in servers}
    for server in servers:
        loop.run_until_complete(server.stop())
    loop.close()
