"""All servers are restarted, one after the other, under load: no request fails."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from fault_rig import FaultServer
from proof_rig import (
    HEALTHY,
    WHOLE,
    Load,
    milliseconds,
    posts_processed_twice,
    processed,
    quantile,
    report,
    tries_of,
    working,
)
from rig import until

from discovery import Consul, Etcd, Registrar
from lbclient import BalancedSession
from lbclient.sandbox import ConsulServer, EtcdCluster

BACKENDS = 6
ROUNDS = 10 if WHOLE else 2
# Seconds that a server lingers after its entry is gone. Clients hear of it within some milliseconds; the default
# of a `Registrar` is 1 s, since other machines may be slower.
LINGER = 0.25 if WHOLE else 0.15


class Deployment:
    """The servers, each with its entry in the registry. They know nothing of the client."""

    def __init__(self, source: Etcd | Consul, made: list[FaultServer]) -> None:
        self.servers = made
        self.restarts = self.late = self.under_way = 0
        # What each had read in all when it was started the last time.
        self.heads: dict[str, int] = {}
        self._source = source
        self._registrars: dict[str, Registrar] = {}

    async def enter(self, server: FaultServer) -> None:
        """Register."""
        registrar = self._registrars[server.address] = Registrar(self._source, server.address, linger=LINGER)
        await registrar.registered(20)

    async def leave(self, server: FaultServer) -> None:
        """Deregister, and give the clients time to hear of it."""
        report = server.report
        busy = report.processed - report.answered
        await self._registrars.pop(server.address).leave()
        self.under_way += busy

    def all_are_busy(self) -> bool:
        """Whether each had its part of the load in its present life."""
        return all(server.report.heads > self.heads.get(server.name, 0) for server in self.servers)

    async def restart(self, server: FaultServer) -> None:
        """Deregister, drain, stop, start, register."""
        await self.leave(server)
        left_at = time.monotonic()
        assert await server.terminate(), f"{server} did not end by itself"
        self.late += sum(at > left_at for at in server.report.heads_at)
        # In each of its lives it had its part of the load.
        assert server.report.heads > self.heads.get(server.name, 0)
        self.heads[server.name] = server.report.heads
        await server.restart(*HEALTHY)
        self.restarts += 1
        await self.enter(server)


async def roll(source: Etcd | Consul, title: str) -> None:
    async with working(BACKENDS) as made:
        deployment = Deployment(source, made)
        for server in made:
            await deployment.enter(server)
        async with BalancedSession(source, name="users") as session:
            await session.ready(20)
            load = Load(session)
            began_at = time.monotonic()
            async with load.running():
                await until(deployment.all_are_busy)
                for _ in range(ROUNDS):
                    for server in made:
                        await deployment.restart(server)
                await until(deployment.all_are_busy)
            seconds = time.monotonic() - began_at
        await asyncio.gather(*(deployment.leave(server) for server in made))
        tries = len(tries_of(load.sent))
        report(
            title,
            [
                ("requests", len(load.sent)),
                ("failed", len(load.failed)),
                ("attempts", tries),
                ("restarts", deployment.restarts),
                ("under way when their server left", deployment.under_way),
                ("read by a server after its linger", deployment.late),
                ("p50", milliseconds(quantile(load.sent, 0.5))),
                ("p99", milliseconds(quantile(load.sent, 0.99))),
                ("seconds", f"{seconds:.1f}"),
            ],
        )
        assert [str(sent) for sent in load.failed] == []
        assert posts_processed_twice(load, made) == []
        times = processed(made)
        assert set(times) == {sent.id for sent in load.sent}
        assert sum(times.values()) <= tries
        assert deployment.late == 0
        assert deployment.under_way > 0
        # The load was there all the time; a machine that does other things as well may be late.
        assert len(load.sent) > 0.5 * load.rate * seconds


@pytest.mark.timeout(120)
async def test_a_rolling_restart_loses_nothing_with_etcd(etcd: EtcdCluster) -> None:
    await roll(Etcd(f"rolling-{os.getpid()}", hosts=etcd.addresses), "rolling restart of all of 6, etcd")


@pytest.mark.timeout(120)
async def test_a_rolling_restart_loses_nothing_with_consul(consul: ConsulServer) -> None:
    await roll(Consul(f"rolling-{os.getpid()}", address=consul.address), "rolling restart of all of 6, Consul")
