"""Whatever happens to a registry, its watchers have what it has once it is quiet.

Random changes and random disasters on real servers, with the same watchers from the first to the last.
Short here; `make soak` runs them for longer, with another seed each time.
"""

from __future__ import annotations

import asyncio
import logging
import random

import pytest
from registry_rig import Proxy
from storm_rig import (
    SECONDS,
    SEED,
    ConsulWriter,
    Disaster,
    EtcdWriter,
    converge,
    endpoint_of,
    flaky,
    followed,
    ignored,
    passing,
    storm,
)

from discovery import Consul, Endpoint, Etcd, Watcher
from discovery.endpoint import endpoint_tuple
from lbclient.sandbox import start_consul, start_etcd

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("members", [1] if SECONDS < 60 else [1, 3])
async def test_etcd(unique: str, members: int, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(SEED)
    async with await start_etcd("3.5", own=True, members=members) as cluster, Proxy(cluster.address) as way:
        server = cluster.members[0]

        async def pause() -> None:
            number = rng.randrange(members)
            await cluster.pause(number)
            await asyncio.sleep(rng.choice([0.3, 1, 3.5]))
            await cluster.resume(number)

        async def kill() -> None:
            number = rng.randrange(members)
            await cluster.kill(number)
            await asyncio.sleep(rng.choice([0, 0.3, 1]))
            await cluster.restart(number)

        disasters: dict[str, Disaster] = {
            "pause": pause,
            "kill": kill,
            "compact": ignored(cluster.compact),
            "delete": ignored(lambda: cluster.delete_prefix(f"{unique}/")),
        }
        if members == 1:
            await server.back_up()
            disasters |= {"wipe": cluster.wipe, "back up": server.back_up, "roll back": server.roll_back}
        writers = [EtcdWriter(cluster, unique, random.Random(SEED + number)) for number in range(3)]
        hosts = cluster.addresses
        watchers = [
            Watcher(Etcd(unique, hosts=hosts), on_empty="accept"),
            Watcher(Etcd(unique, hosts=hosts, probe_interval=0.3), hold_for=0.5, collapse=0.5),
            Watcher(Etcd(unique, hosts=[way.address]), on_empty="accept"),
        ]

        def operations() -> int:
            return sum(writer.operations for writer in writers)

        async with followed(*watchers):
            running = (*(writer.run() for writer in writers), flaky(way, rng))
            happened = await storm(running, disasters, rng, lambda: operations() > 300 * SECONDS)
            await way.cut()
            await way.accept()

            async def registered() -> tuple[Endpoint, ...]:
                found = await cluster.get_prefix(f"{unique}/")
                return endpoint_tuple(endpoint_of(key, value) for key, value in found.items())

            await converge(watchers, registered)
            # And it goes on from there.
            await cluster.put(f"{unique}/end", "10.9.9.9:80")
            await converge(watchers, registered)
        logging.getLogger(__name__).info("%d operations, %s, %s", operations(), watchers[0].counts, happened)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.timeout(SECONDS + 120)
async def test_consul(unique: str, caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(SEED)
    async with await start_consul(own=True) as server, Proxy(server.address) as way:
        backups = [await server.snapshot()]

        async def pause() -> None:
            await server.pause()
            await asyncio.sleep(rng.choice([0.3, 1, 3.5]))
            await server.resume()

        async def kill() -> None:
            await server.kill()
            await asyncio.sleep(rng.choice([0, 0.3]))
            await server.restart()

        async def back_up() -> None:
            backups.append(await server.snapshot())

        async def restore() -> None:
            await server.restore(rng.choice(backups))

        disasters: dict[str, Disaster] = {
            "pause": pause,
            "kill": kill,
            "wipe": server.wipe,
            "back up": ignored(back_up),
            "restore": ignored(restore),
        }
        writers = [
            ConsulWriter(server.address, unique, range(n, n + 50), random.Random(SEED + n)) for n in (0, 50)
        ]
        watchers = [
            Watcher(Consul(unique, address=server.address), on_empty="accept"),
            Watcher(Consul(unique, address=server.address, probe_interval=0.3), hold_for=0.5, collapse=0.5),
            Watcher(Consul(unique, address=way.address), on_empty="accept"),
        ]

        def operations() -> int:
            return sum(writer.operations for writer in writers)

        async with followed(*watchers):
            running = (*(writer.run() for writer in writers), flaky(way, rng))
            happened = await storm(running, disasters, rng, lambda: operations() > 100 * SECONDS)
            await way.cut()
            await way.accept()

            async def registered() -> tuple[Endpoint, ...]:
                return endpoint_tuple(passing(each) for each in await server.services(unique, passing=True))

            await converge(watchers, registered)
            # And it goes on from there.
            await server.register(unique, "10.9.9.9", 80)
            await converge(watchers, registered)
        logging.getLogger(__name__).info("%d operations, %s, %s", operations(), watchers[0].counts, happened)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
