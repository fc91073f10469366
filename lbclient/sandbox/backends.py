"""HTTP backends to balance over, each in a process of its own."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.ports import LOOPBACK
from lbclient.sandbox.process import Process
from lbclient.sandbox.stats import PortStats

__all__ = ["Backend", "PortStats", "backends"]

_START_TIMEOUT = 20.0
_CONTROL_TIMEOUT = aiohttp.ClientTimeout(total=10)
_SOURCE = Path(__file__).parents[2]


class Backend:
    """An HTTP server process on loopback; see `lbclient.sandbox.backend` for what it answers.

    Attributes:
        name: What the header `X-Server` says, with the port behind it.
        ports: Its data ports; they stay the same over restarts.
    """

    def __init__(self, name: str, *, tls: tuple[Path | str, Path | str] | None = None) -> None:
        self.name = name
        self.ports: list[int] = []
        self._tls = tls
        self._control = 0
        self._process = Process()
        folder = Path(tempfile.mkdtemp(prefix="lbclient-backend-"))
        self._log = folder / "log"
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @classmethod
    async def start(
        cls, name: str = "backend", *, ports: int = 1, tls: tuple[Path | str, Path | str] | None = None
    ) -> Self:
        """Start a backend and wait until it listens.

        Args:
            name: What it calls itself.
            ports: Number of independent servers in this one process.
            tls: PEM files of the certificate and of its key; plain HTTP without.

        Raises:
            SandboxError: It did not start.
        """
        backend = cls(name, tls=tls)
        await backend._launch(ports)
        return backend

    @property
    def addresses(self) -> list[str]:
        """Every data port as "127.0.0.1:port"."""
        return [f"{LOOPBACK}:{port}" for port in self.ports]

    @property
    def address(self) -> str:
        """The first data port as "127.0.0.1:port"."""
        return self.addresses[0]

    @property
    def port(self) -> int:
        """The first data port."""
        return self.ports[0]

    @property
    def pid(self) -> int:
        """Process id of the last start."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.running

    async def kill(self) -> None:
        """Kill -9: connections are reset or closed by the kernel."""
        await self._process.kill()

    async def terminate(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109 - not a limit for the caller
        """Have it exit gracefully, kill it after `timeout` seconds; return whether it was graceful."""
        return await self._process.terminate(timeout)

    async def pause(self) -> None:
        """Freeze it: connections are accepted by the kernel, nothing is answered."""
        await self._process.pause()

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._process.resume()

    async def restart(self) -> None:
        """Start it again on the same ports, killing it first if it runs; statistics begin at zero."""
        await self._process.kill()
        await self._launch(len(self.ports))

    async def stop(self) -> None:
        """Kill it and remove its log; it cannot be restarted."""
        await self._process.kill()
        self._remove()

    async def stats(self) -> dict[int, PortStats]:
        """Return the statistics of every data port."""
        answer: dict[str, PortStats] = await self._ask("GET", "/stats")
        return {int(port): stats for port, stats in answer.items()}

    async def stat(self) -> PortStats:
        """Return the statistics of the first data port."""
        return (await self.stats())[self.port]

    async def reset(self) -> None:
        """Set the statistics of all ports to zero; what is open or in flight stays counted."""
        await self._ask("POST", "/reset")

    async def left(self, port: int | None = None) -> None:
        """Count every request handled from now on as `after_leaving`; those on their way are let in first."""
        await self._tell("/left", port)

    async def back(self, port: int | None = None) -> None:
        """End what `left` began."""
        await self._tell("/back", port)

    async def refuse(self, port: int | None = None) -> None:
        """Stop listening: connecting is refused, open connections stay."""
        await self._tell("/refuse", port)

    async def listen(self, port: int | None = None) -> None:
        """Listen again after `refuse`."""
        await self._tell("/listen", port)

    async def close_idle(self, port: int | None = None) -> None:
        """Close the keep-alive connections that have no request in progress."""
        await self._tell("/close-idle", port)

    async def fail(self, port: int | None = None) -> None:
        """Answer every request that comes with 500 at once."""
        await self._tell("/fail", port)

    async def recover(self, port: int | None = None) -> None:
        """End what `fail` began."""
        await self._tell("/recover", port)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _launch(self, ports: int) -> None:
        argv = [sys.executable, "-m", "lbclient.sandbox.backend", "--name", self.name, "--ports", str(ports)]
        for port in self.ports:
            argv += ["--port", str(port)]
        if self._tls is not None:
            argv += ["--tls-cert", str(self._tls[0]), "--tls-key", str(self._tls[1])]
        try:
            await self._process.start(argv, env=_environment(), log=self._log)
            ready = await self._process.until(self._ready, what="its ready line", timeout=_START_TIMEOUT)
        except BaseException:
            await self._process.kill()
            raise
        self.ports, self._control = ready["ports"], ready["control"]

    def _ready(self) -> dict[str, Any] | None:
        for line in self._process.output().splitlines(keepends=True):
            if line.startswith("{") and line.endswith("\n"):
                ready: dict[str, Any] = json.loads(line)
                return ready
        return None

    async def _tell(self, command: str, port: int | None) -> None:
        await self._ask("POST", f"{command}?port={self.port if port is None else port}")

    async def _ask(self, method: str, path: str) -> Any:
        self._process.expect_running(f"answering {path}")
        # A session for each question: the next one may come from another event loop.
        async with (
            aiohttp.ClientSession(timeout=_CONTROL_TIMEOUT) as session,
            session.request(method, f"http://{LOOPBACK}:{self._control}{path}") as response,
        ):
            if not response.ok:
                raise SandboxError(f"{self.name}: {path}: {await response.text()}")
            return await response.json() if path == "/stats" else None


def _environment() -> dict[str, str]:
    """Return an environment in which the child finds this very package, installed or not."""
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(_SOURCE), *([path] if path else [])])}


@contextlib.asynccontextmanager
async def backends(
    count: int, *, tls: tuple[Path | str, Path | str] | None = None, prefix: str = "b"
) -> AsyncIterator[list[Backend]]:
    """Start `count` backends named b1, b2, ... at the same time and stop them at the end.

    Args:
        count: How many processes.
        tls: PEM files of the certificate and of its key; plain HTTP without.
        prefix: What the names begin with.
    """
    starts = [asyncio.ensure_future(Backend.start(f"{prefix}{i + 1}", tls=tls)) for i in range(count)]
    try:
        yield list(await asyncio.gather(*starts))
    finally:
        await asyncio.gather(*starts, return_exceptions=True)
        started = [start.result() for start in starts if not start.cancelled() and not start.exception()]
        await asyncio.gather(*(backend.stop() for backend in started))
