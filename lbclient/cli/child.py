"""A command that runs as a child of ours, and the signals that are meant for it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from lbclient.cli.running import Failure

__all__ = ["Child"]

# As shells report it.
_BY_SIGNAL = 128

_ENDING = (signal.SIGINT, signal.SIGTERM)
_PASSED_ON = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class NotFound(Failure):
    """There is no such command."""

    exit_code = 127


class NotExecutable(Failure):
    """The command is there, and cannot be run."""

    exit_code = 126


class Child:
    """A command, started when the block is entered; it has ended when the block has.

    It has a process group of its own, so that Ctrl-C at a terminal reaches us alone, and the order of things is
    ours to decide. At a terminal it therefore has nothing to read. SIGHUP, SIGUSR1 and SIGUSR2 are passed on; of
    SIGINT and SIGTERM only those that follow the first one, which `signalled` tells.

    Args:
        command: the program and its arguments.

    Attributes:
        signalled: the first SIGINT or SIGTERM, once it has come.
        hurried: whether another one has come since, and was passed on.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.signalled: asyncio.Future[signal.Signals] = asyncio.get_running_loop().create_future()
        self.hurried = False
        self._command = command
        self._process: Process | None = None
        self._wait: asyncio.Task[int] | None = None

    @property
    def ended(self) -> asyncio.Task[int]:
        """The waiting for its end; the result is its exit code, as a shell would report it."""
        if self._wait is None:
            raise RuntimeError("the command was not started")
        return self._wait

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in (*_ENDING, *_PASSED_ON):
            # What is ignored stays ignored: nohup, and jobs in the background.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._received, number)
        quiet = sys.stdin is None or sys.stdin.isatty()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=DEVNULL if quiet else None, process_group=0
            )
        except OSError as error:
            kind = NotFound if isinstance(error, FileNotFoundError) else NotExecutable
            raise kind(f"cannot run {self._command[0]}: {error.strerror or error}") from None
        self._wait = asyncio.create_task(self._end(self._process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.ended.done():
            self.send(signal.SIGTERM)
            await asyncio.wait([self.ended])

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; fine if it has ended."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _received(self, number: signal.Signals) -> None:
        if number in _PASSED_ON:
            self.send(number)
        elif not self.signalled.done():
            self.signalled.set_result(number)
        else:
            self.hurried = True
            self.send(number)

    @staticmethod
    async def _end(process: Process) -> int:
        code = await process.wait()
        return code if code >= 0 else _BY_SIGNAL - code
