"""Real registries for all tests of one run, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from lbclient.sandbox import ConsulServer, EtcdCluster, start_consul, start_etcd

_numbers = itertools.count()


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=["3.4", "3.5"])
async def etcd(request: pytest.FixtureRequest) -> AsyncIterator[EtcdCluster]:
    async with await start_etcd(request.param) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def consul() -> AsyncIterator[ConsulServer]:
    async with await start_consul() as server:
        yield server


@pytest.fixture
def unique() -> str:
    """A name that no other test uses: the servers are shared."""
    return f"t{os.getpid()}-{next(_numbers)}"


def _open_sockets() -> set[str]:
    found = set()
    for descriptor in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(str(descriptor.readlink()))
    return {target for target in found if target.startswith("socket:")}


@pytest.fixture
async def nothing_leaks() -> AsyncIterator[None]:
    """No task and no socket more than before the test."""
    tasks, sockets = asyncio.all_tasks(), _open_sockets()

    def left() -> set[object]:
        here = {asyncio.current_task()}
        return (asyncio.all_tasks() - tasks - here) | (_open_sockets() - sockets)

    yield
    # Transports close themselves in the loop's next turns, and those of a test's own servers when they hear of it.
    for _ in range(200):
        if not left():
            break
        await asyncio.sleep(0.005)
    assert left() == set()
