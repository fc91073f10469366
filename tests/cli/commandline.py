"""The real command in a process of its own."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_TIMEOUT = 40


@dataclass(frozen=True)
class Finished:
    """What a command has left behind."""

    code: int
    out: str
    err: str


def lbclient(*arguments: str, hide: str = "") -> Finished:
    """Run a command to its end; `hide` is a package that it cannot import."""
    done = subprocess.run(
        _argv(arguments, hide),
        cwd=ROOT,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


class Running:
    """A command that runs, to be read line by line and to be ended by a signal."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        # A shell's background jobs ignore Ctrl-C, and their children would inherit that.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self.process = subprocess.Popen(
                _argv(arguments, ""),
                cwd=ROOT,
                env=_environment() | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        finally:
            signal.signal(signal.SIGINT, before)
        self._read: dict[int, bytes] = {}

    def line(self, pattern: str = "", *, err: bool = False) -> str:
        """The next line of standard output (or of standard error) in which the pattern is found."""
        while not re.search(pattern, line := self._line(err=err)):
            pass
        return line

    def _line(self, *, err: bool) -> str:
        stream = self.process.stderr if err else self.process.stdout
        assert stream is not None
        descriptor = stream.fileno()
        deadline = time.monotonic() + _TIMEOUT
        while b"\n" not in (read := self._read.get(descriptor, b"")):
            assert select.select([descriptor], [], [], max(0, deadline - time.monotonic()))[0], "no line came"
            more = os.read(descriptor, 65536)
            assert more, f"the command has ended with {self.process.wait()}: {read!r}"
            self._read[descriptor] = read + more
        line, _, self._read[descriptor] = read.partition(b"\n")
        return line.decode()

    def stop_reading(self) -> None:
        """Close the reading end of its standard output."""
        assert self.process.stdout is not None
        self.process.stdout.close()

    def end(self, number: signal.Signals | None = None) -> Finished:
        """Send it a signal and wait until it has ended; what was not read as a line yet is returned."""
        if number is not None:
            self.process.send_signal(number)
        if self.process.stdout is not None and self.process.stdout.closed:
            self.process.stdout = None
        out, err = self.process.communicate(timeout=_TIMEOUT)
        return Finished(self.process.returncode, (out or b"").decode(), err.decode())

    def children(self) -> list[int]:
        """The ids of its child processes."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                found.append(int(stat.parent.name))
        return found

    def kill(self) -> None:
        self.process.kill()
        if self.process.stdout is not None and self.process.stdout.closed:
            self.process.stdout = None
        self.process.communicate(timeout=_TIMEOUT)


def _argv(arguments: tuple[str, ...], hide: str) -> list[str]:
    if not hide:
        return [sys.executable, "-m", "lbclient", *arguments]
    code = f"import sys; sys.modules[{hide!r}] = None; from lbclient.__main__ import main; main()"
    return [sys.executable, "-c", code, *arguments]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
