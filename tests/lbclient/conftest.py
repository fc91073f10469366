"""Fixtures: backends shared by all tests, certificates, and checks after each test that nothing leaked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trustme
from rig import Local, local, stats_of, until

from lbclient import BalancingMiddleware
from lbclient.sandbox import Backend, free_port

try:
    import uvloop
except ImportError:  # pragma: no cover - there is none for this interpreter
    uvloop = None

_LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The behaviour matrix runs on uvloop as well, everything else on asyncio only."""
    if uvloop is not None and item.path.name.startswith("test_matrix"):
        return _LOOPS | {"uvloop": uvloop.new_event_loop}
    return _LOOPS


@pytest.fixture(scope="session")
def processes() -> Iterator[list[Backend]]:
    """Four server processes; ask for `nodes` instead."""
    # A backend belongs to no loop; this one is only there to start and to stop them.
    loop = asyncio.new_event_loop()

    async def start() -> list[Backend]:
        return list(await asyncio.gather(*(Backend.start(f"b{n}") for n in range(1, 5))))

    async def stop() -> None:
        await asyncio.gather(*(backend.stop() for backend in backends))

    backends = loop.run_until_complete(start())
    yield backends
    loop.run_until_complete(stop())
    loop.close()


@pytest.fixture
async def nodes(processes: list[Backend]) -> AsyncIterator[list[Backend]]:
    """Four servers with statistics at zero. A test may pause them and have them refuse connections."""

    async def quiet() -> bool:
        stats = (await stats_of(processes)).values()
        return not any(stat["connections_open"] for stat in stats)

    await until(quiet)
    for backend in processes:
        await backend.reset()
    yield processes
    for backend in processes:
        await backend.resume()
        await backend.listen()


@pytest.fixture
async def mortal() -> AsyncIterator[Backend]:
    """A server of the test's own, to be killed."""
    async with await Backend.start("mortal") as backend:
        yield backend


@pytest.fixture
def unused_address() -> str:
    """An address at which connections are refused."""
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority that only the tests trust."""
    return trustme.CA()


@pytest.fixture(scope="session")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Make PEM files of a certificate for a name, and of its key."""
    folder = tmp_path_factory.mktemp("certificates")

    def make(name: str) -> tuple[Path, Path]:
        files = folder / f"{name}.pem", folder / f"{name}.key"
        certificate = authority.issue_cert(name)
        certificate.cert_chain_pems[0].write_to_path(files[0])
        certificate.private_key_pem.write_to_path(files[1])
        return files

    return make


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
async def tls_servers(authority: trustme.CA) -> AsyncIterator[Callable[[str], Awaitable[Local]]]:
    """Start servers with a certificate for a name."""
    async with AsyncExitStack() as stack:

        async def start(name: str) -> Local:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert(name).configure_cert(context)
            return await stack.enter_async_context(local(tls=context))

        yield start


@pytest.fixture(autouse=True)
def _lands_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test: no attempt is counted as under way, and no request waits for a slot."""
    made: list[BalancingMiddleware] = []
    init = BalancingMiddleware.__init__

    def recorded(self: BalancingMiddleware, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(BalancingMiddleware, "__init__", recorded)
    yield
    for middleware in made:
        state = middleware.describe()
        assert state["draining"] == []
        for name, service in state["services"].items():
            assert service["waiting"] == 0, name
            assert {node["address"]: node["in_flight"] for node in service["nodes"] if node["in_flight"]} == {}
            assert not any(node["state"] == "probing" for node in service["nodes"])


@pytest.fixture(autouse=True)
async def _leaves_no_task() -> AsyncIterator[None]:
    """After each test: every task that it started has ended."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: not (asyncio.all_tasks() - before - {asyncio.current_task()}), 1)
