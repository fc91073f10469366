"""Servers for the commands to talk to, and commands that do not outlive their test."""

from __future__ import annotations

import itertools
import signal
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
from cli.commandline import Running

from lbclient.sandbox import Backend, EtcdCluster, backends, free_port, start_etcd

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def servers() -> AsyncIterator[list[Backend]]:
    """Two servers."""
    async with backends(2) as started:
        yield started


@pytest.fixture
def both(servers: list[Backend]) -> str:
    """The URL of both servers."""
    return f"static://{','.join(server.address for server in servers)}"


@pytest.fixture
def dead() -> str:
    """An address at which connections are refused."""
    return f"127.0.0.1:{free_port()}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd() -> AsyncIterator[EtcdCluster]:
    """An etcd that tests may stop, if they start it again."""
    async with await start_etcd(own=True) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    """A prefix in etcd that no other test uses."""
    return f"test{next(_numbers)}/"


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """Start a command that is killed at the end of the test."""
    started: list[Running] = []
    # Under nohup it is ignored, and would be by the commands as well: they leave what is ignored alone.
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)

    def start(*arguments: str, **environment: str) -> Running:
        started.append(Running(*arguments, **environment))
        return started[-1]

    yield start
    for running in started:
        running.kill()
    signal.signal(signal.SIGHUP, inherited)
