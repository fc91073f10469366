"""Running a command: its event loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NoReturn

import click

from discovery import Source, open_source

__all__ = ["FAILED", "NO_ENDPOINTS", "Failure", "Unreachable", "opened", "run"]

FAILED = 1
NO_ENDPOINTS = 3

# What a shell reports for a program that a signal ended is 128 and the signal's number.
_BY_SIGNAL = 128
_BROKEN_PIPE = _BY_SIGNAL + signal.SIGPIPE
_STDOUT = 1
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failure(click.ClickException):
    """Ends the command with a message on standard error."""

    exit_code = FAILED


class Unreachable(Failure):
    """There is no endpoint to send anything to."""

    exit_code = NO_ENDPOINTS


class NotInstalled(Failure):
    """The command needs a package that is not there."""

    exit_code = 2


def opened(url: str, *, option: str = "URL") -> Source:
    """The source of a registry's URL.

    Raises:
        click.BadParameter: the URL is none that can be read; exits with 2.
        NotInstalled: the package for this registry is missing; exits with 2.
    """
    try:
        return open_source(url)
    except ImportError as error:
        raise NotInstalled(str(error)) from None
    except ValueError as error:
        raise click.BadParameter(str(error), click.get_current_context(), param_hint=option) from None


def run(command: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command to its exit code; a signal or a reader that went away cancels it, so that it can clean up."""
    try:
        code = asyncio.run(_to_its_end(command))
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = _BY_SIGNAL + signal.SIGINT
    except BrokenPipeError:
        code = _BROKEN_PIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        click.echo(f"Error: {error}", err=True)
        code = FAILED
        _give_up_stdout()
    if code == _BROKEN_PIPE:
        _give_up_stdout()
    sys.exit(code)


def _give_up_stdout() -> None:
    # The interpreter would try to write what is still in its buffer, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)


async def _to_its_end(command: Coroutine[Any, Any, int]) -> int:
    loop = asyncio.get_running_loop()
    task = loop.create_task(command)
    received: list[signal.Signals] = []

    def cancel(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()
        # A second one does not wait for the cleaning up.
        loop.remove_signal_handler(number)

    for number in _SIGNALS:
        # What is ignored stays ignored: nohup, and jobs in the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, cancel, number)
    with _reader_gone(loop, lambda: cancel(signal.SIGPIPE)):
        try:
            return await task
        except asyncio.CancelledError:
            if not received:
                raise
            return _BY_SIGNAL + received[0]


@contextlib.contextmanager
def _reader_gone(loop: asyncio.AbstractEventLoop, act: Callable[[], None]) -> Iterator[None]:
    """Act when standard output is a pipe that nobody reads any more, not only at the next line written into it."""
    # Only Linux is known to call the writing end readable exactly then.
    there = sys.platform == "linux" and sys.stdout is not None
    watched = there and stat.S_ISFIFO(os.fstat(_STDOUT).st_mode)

    def gone() -> None:
        loop.remove_reader(_STDOUT)
        act()

    if watched:
        loop.add_reader(_STDOUT, gone)
    try:
        yield
    finally:
        if watched:
            loop.remove_reader(_STDOUT)
