"""Real registries, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from rig import until

from lbclient.sandbox import ConsulServer, EtcdCluster, start_consul, start_etcd


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcd() -> AsyncIterator[EtcdCluster]:
    async with await start_etcd("3.5") as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def consul() -> AsyncIterator[ConsulServer]:
    async with await start_consul() as server:
        yield server


@pytest.fixture(autouse=True)
async def _leaves_no_task() -> AsyncIterator[None]:
    """After each test: every task that it started has ended."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: not (asyncio.all_tasks() - before - {asyncio.current_task()}), 1)
