"""One child process on loopback."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.ports import free_port

__all__ = ["Process", "free_port"]

T = TypeVar("T")

_POLL = 0.005
_TAIL_LINES = 15
_TAIL_BYTES = 16_384


class Process:
    """A child process that does not outlive this one.

    It belongs to no event loop: a process that one loop started can be used and killed from another (a fixture
    of a whole test session has a loop of its own). On Linux start it from a thread that stays, such as the main
    one: the kernel kills the child when the *thread* that started it ends.
    """

    def __init__(self) -> None:
        self._argv: list[str] = []
        self._env: dict[str, str] | None = None
        self._log: Path | None = None
        self._log_start = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize | None = None  # type: ignore[type-arg]

    @property
    def running(self) -> bool:
        """Whether the process is there (a paused one is)."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the last start.

        Raises:
            SandboxError: It was never started.
        """
        if self._popen is None:
            raise SandboxError("the process was never started")
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._popen.poll() if self._popen else None

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path) -> None:
        """Start the program; its output is appended to `log`.

        Args:
            argv: Program and arguments.
            env: Whole environment; this process's own by default.
            log: File for standard output and standard error.

        Raises:
            SandboxError: It runs already, or the program cannot be executed.
        """
        if self.running:
            raise SandboxError(f"{self._argv[0]} runs already as {self.pid}")
        self._release()
        self._argv, self._env, self._log = list(argv), dict(env) if env is not None else None, log
        self._spawn(log)

    async def kill(self) -> None:
        """Kill with SIGKILL and wait until it has exited; fine if it has already."""
        if self._popen is None:
            return
        self._signal_group(signal.SIGKILL)
        await _happened(lambda: not self.running, None)
        self._release()

    async def terminate(self, timeout: float = 10.0) -> bool:  # noqa: ASYNC109 - waits outside of any loop's timer
        """Ask to exit with SIGTERM, kill after `timeout` seconds; return whether the asking was enough."""
        if self._popen is None:
            return True
        self._popen.terminate()
        gracefully = await _happened(lambda: not self.running, timeout)
        if not gracefully:
            await self.kill()
        self._release()
        return gracefully

    async def pause(self) -> None:
        """Freeze with SIGSTOP: connections stay open, nothing is answered; returns once it is frozen."""
        self._signal_group(signal.SIGSTOP)
        await _happened(lambda: not self.running or _is_stopped(self.pid), 1)

    async def resume(self) -> None:
        """Go on after `pause`."""
        self._signal_group(signal.SIGCONT)

    async def restart(self) -> None:
        """Start again with the same arguments, after killing it if it still runs.

        Raises:
            SandboxError: It was never started.
        """
        if self._log is None:
            raise SandboxError("the process was never started")
        await self.kill()
        await self.start(self._argv, env=self._env, log=self._log)

    async def until(self, check: Callable[[], T | None], *, what: str, timeout: float) -> T:  # noqa: ASYNC109
        """Poll `check` until it returns something.

        Raises:
            SandboxError: The process died first, or `timeout` seconds went by.
        """
        deadline = time.monotonic() + timeout
        while (found := check()) is None:
            self.expect_running(what)
            if time.monotonic() > deadline:
                raise SandboxError(f"{self._argv[0]}: no {what} after {timeout:g} s\n{self.tail()}")
            await asyncio.sleep(_POLL)
        return found

    def expect_running(self, what: str) -> None:
        """Raise SandboxError with the last lines of the log if the process is not running."""
        if not self.running:
            raise SandboxError(f"{self._argv[0]} exited with {self.returncode} before {what}\n{self.tail()}")

    def output(self) -> str:
        """Return everything printed since the last start."""
        if self._log is None:
            return ""
        with contextlib.suppress(OSError), self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")
        return ""

    def tail(self) -> str:
        """Return the last lines printed since the last start."""
        return "\n".join(self.output()[-_TAIL_BYTES:].splitlines()[-_TAIL_LINES:])

    def _spawn(self, log: Path) -> None:
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            try:
                # Not asyncio's: those die with their loop.
                self._popen = subprocess.Popen(  # noqa: S603 - what to run is the caller's
                    [*_death_signal(), *self._argv],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._env,
                    start_new_session=True,
                )
            except OSError as error:
                raise SandboxError(f"cannot start {self._argv[0]}: {error}") from error
        self._finalizer = weakref.finalize(self, _destroy, self._popen)

    def _signal_group(self, number: signal.Signals) -> None:
        # Its own session makes its process group's id its pid; a wrapper script's children are reached too.
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _release(self) -> None:
        if self._popen is not None and self._popen.stdin is not None:
            self._popen.stdin.close()
        if self._finalizer is not None:
            self._finalizer.detach()


async def _happened(check: Callable[[], bool], timeout: float | None) -> bool:  # noqa: ASYNC109
    deadline = None if timeout is None else time.monotonic() + timeout
    while not check():
        if deadline is not None and time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def _death_signal() -> list[str]:
    """Return the prefix that makes Linux kill the child when this process is gone, however it went."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return []
    # Nothing comes of a death before the signal was asked for: who has another parent by then ends by itself.
    still_ours = f'[ "$PPID" = {os.getpid()} ] && exec "$@"'
    return [setpriv, "--pdeathsig", "KILL", "--", "/bin/sh", "-c", still_ours, "sh"]


def _is_stopped(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # no /proc: the signal was sent, there is nothing to look at
    return status.rpartition(")")[2].split()[0] == "T"


def _destroy(popen: "subprocess.Popen[bytes]") -> None:
    """Kill a child that was forgotten."""
    if popen.stdin is not None:
        popen.stdin.close()
    if popen.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
