"""A server program as a local process with a data folder of its own."""

import os
import shutil
import signal
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path

from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.ports import LOOPBACK
from lbclient.sandbox.process import Process


class LocalServer:
    """A server process on loopback whose data stays over restarts and goes with `remove`.

    Attributes:
        listen_host: Where the program has to listen.
        peer_host: Where other members of its cluster reach it.
        data: The program's data folder.
    """

    listen_host = LOOPBACK
    peer_host = LOOPBACK

    def __init__(self, program: Path, libraries: Path | None = None) -> None:
        self._program = program
        self._libraries = libraries
        self._process = Process()
        self._arguments: list[str] = []
        self._folder = Path(tempfile.mkdtemp(prefix=f"lbclient-{program.name}-"))
        self.data = str(self._folder / "data")
        self._backup = self._folder / "backup"
        self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.running

    def show(self, files: Iterable[Path]) -> None:
        """Let the program read these files: it can anyway."""

    async def start(self, arguments: Sequence[str], ports: Sequence[int]) -> None:  # noqa: ARG002 - for containers
        """Run the program with these arguments."""
        self._arguments = list(arguments)
        self._make_data_folder()
        argv = [str(self._program), *arguments]
        await self._process.start(argv, env=environment(self._libraries), log=self._folder / "log")

    async def kill(self) -> None:
        """Kill -9; fine if it is not running."""
        await self._process.kill()

    async def pause(self) -> None:
        """Freeze it."""
        await self._process.pause()

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._process.resume()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to those that it started."""
        os.kill(self._process.pid, number)

    async def restart(self) -> None:
        """Start it again with the data it had."""
        await self._process.restart()

    async def wipe(self) -> None:
        """Start it again without data."""
        await self._process.kill()
        shutil.rmtree(self.data, ignore_errors=True)
        await self.start(self._arguments, ())

    async def back_up(self) -> None:
        """Copy its data, in place of an earlier copy; it is killed for that and started again."""
        await self._process.kill()
        shutil.rmtree(self._backup, ignore_errors=True)
        shutil.copytree(self.data, self._backup)
        await self.restart()

    async def roll_back(self) -> None:
        """Start it again with the data that `back_up` copied."""
        await self._process.kill()
        shutil.rmtree(self.data, ignore_errors=True)
        shutil.copytree(self._backup, self.data)
        await self.restart()

    async def remove(self) -> None:
        """Kill it and remove its data."""
        await self._process.kill()
        self._remove()

    def _make_data_folder(self) -> None:
        Path(self.data).mkdir(mode=0o700, exist_ok=True)

    def expect_running(self, what: str) -> None:
        """Raise SandboxError with the last lines of the log if the process is not running.

        Raises:
            SandboxError: It is not.
        """
        if not self._remove.alive:
            raise SandboxError(f"{self._program.name} was stopped before {what}")
        self._process.expect_running(what)

    def tail(self) -> str:
        """Return the last lines that the program printed."""
        return self._process.tail()


def environment(libraries: Path | None) -> dict[str, str] | None:
    """Return the environment of a program with shared libraries of its own; None is this process's."""
    if libraries is None:
        return None
    known = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join([str(libraries), *([known] if known else [])])}
