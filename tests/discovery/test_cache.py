"""The last known good endpoints on disk: what is written, what is refused, and a start without a registry."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from patience import patience
from virtual_time import run

from discovery import Cache, Endpoint, Memory, Merge, Watcher
from discovery.snapshot import Snapshot

A = Endpoint(host="10.0.0.1", port=80, weight=2.5, zone="eu-1", tls=True, metadata={"v": "ü"}, id="a")
B = Endpoint(host="2001:db8::1", port=443)

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def memory(*endpoints: Endpoint) -> Memory:
    """A registry whose description does not change with its contents."""

    class Named(Memory):
        def __repr__(self) -> str:
            return "etcd://127.0.0.1:2379/users/"

    return Named(endpoints)


async def until(watcher: Watcher, check: Callable[[Snapshot], object]) -> Snapshot:
    async with patience(5):
        while not check(watcher.snapshot):
            await watcher.next_swap()
    return watcher.snapshot


class Recorded(Cache):
    """Remembers when what was written, on the clock of the loop; nothing gets to the disk."""

    def __init__(self, **options: float) -> None:
        super().__init__("nowhere", **options)
        self.saved: list[tuple[float, int]] = []
        self.error: OSError | None = None

    def save(self, source: str, endpoints: Sequence[Endpoint]) -> None:
        assert source == repr(memory())
        if self.error is not None:
            raise self.error
        self.saved.append((asyncio.get_running_loop().time(), len(endpoints)))


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time does not wait for threads."""

    async def here(call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    monkeypatch.setattr(asyncio, "to_thread", here)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.load("users") is None
    cache.save("users", (A, B))
    found = cache.load("users")
    assert found is not None
    assert set(found.endpoints) == {A, B}
    assert 0 <= found.age < 5
    assert cache.load("orders") is None
    assert [path.name for path in cache.folder.iterdir()] == [cache.path("users").name]
    assert stat.S_IMODE(cache.path("users").stat().st_mode) == 0o600


def age(content: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {**content, "saved_at": content["saved_at"] - seconds}


def sealed(content: dict[str, Any]) -> bytes:
    """With a checksum that fits."""
    from discovery.cache import _digest  # noqa: PLC0415 - to forge what `Cache` would have written

    rest = {name: value for name, value in content.items() if name != "sha256"}
    return json.dumps({**rest, "sha256": _digest(rest)}).encode()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text, _: text[:-20], "Expecting|Unterminated"),
        (lambda text, _: text.replace(b"10.0.0.1", b"10.6.6.6"), "checksum is wrong"),
        (lambda _, __: b"", "Expecting value"),
        (lambda _, __: b"[]", "damaged"),
        (lambda _, __: b"{}", "damaged: KeyError: 'sha256'"),
        (lambda _, __: b"[" * 100_000, "damaged: RecursionError"),
        (lambda _, __: b'{"\xff": 1}', "utf-8"),
        (lambda _, content: sealed({**content, "source": "other"}), "is of 'other'"),
        (lambda _, content: sealed({**content, "format": 2}), "format 2"),
        (lambda _, content: sealed(age(content, 101)), "101 s old, and 0 to 100 s are allowed"),
        (lambda _, content: sealed(age(content, -3600)), "-3600 s old"),
        (lambda _, content: sealed({**content, "endpoints": [{"host": "10.0.0.1"}]}), "damaged: TypeError"),
        (lambda _, content: sealed({**content, "endpoints": [{"host": "0.0.0.0", "port": 1}]}), "0.0.0.0"),
        (lambda _, content: sealed({**content, "endpoints": 7}), "damaged: TypeError"),
        (lambda _, content: sealed({**content, "saved_at": 10**400}), "damaged: OverflowError"),
        (lambda _, content: sealed({**content, "saved_at": float("nan")}), "nan s old"),
    ],
)
def test_a_file_that_cannot_be_trusted_is_refused_with_a_reason(
    tmp_path: Path,
    damage: Callable[[bytes, dict[str, Any]], bytes],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = Cache(tmp_path, max_age=100)
    cache.save("users", (A,))
    path = cache.path("users")
    text = path.read_bytes()
    path.write_bytes(damage(text, json.loads(text)))
    assert cache.load("users") is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"users: the cache {path} is not used: ")
    assert any(part in record.getMessage() for part in why.split("|"))


def test_a_clock_that_was_set_back_a_little_is_forgiven(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.save("users", (A,))
    path = cache.path("users")
    path.write_bytes(sealed(age(json.loads(path.read_text()), -30)))
    found = cache.load("users")
    assert found is not None
    assert found.age == 0


def test_a_folder_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Cache(tmp_path / "file" / "below").save("users", (A,))


def test_nothing_but_the_old_file_is_left_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    cache.save("users", (A,))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        cache.save("users", (A, B))
    assert [path.name for path in tmp_path.iterdir()] == [cache.path("users").name]
    found = cache.load("users")
    assert found is not None
    assert found.endpoints == (A,)


@pytest.mark.parametrize("wrong", [{"settle": 0}, {"settle": float("inf")}, {"max_age": -1}, {"max_age": True}])
def test_wrong_options_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a number of seconds above 0"):
        Cache(tmp_path, **wrong)


@pytest.mark.usefixtures("no_threads")
def test_a_set_is_written_when_it_was_stable_and_not_before() -> None:
    async def main() -> None:
        cache, source = Recorded(settle=10), memory(A)
        async with Watcher(source, cache=cache):
            for _ in range(10):
                await asyncio.sleep(9)
                source.set([A, B] if len(source.endpoints) == 1 else [A])
            changed_at = asyncio.get_running_loop().time()
            assert not cache.saved
            await asyncio.sleep(1000)
        assert cache.saved == [(pytest.approx(changed_at + 10, abs=0.1), 1)]

    run(main())


@pytest.mark.usefixtures("no_threads")
def test_what_is_held_or_stale_is_not_written() -> None:
    async def main() -> None:
        cache, source = Recorded(settle=1), memory(A, B)
        async with Watcher(source, on_empty="keep", cache=cache) as watcher:
            await asyncio.sleep(5)
            source.set([])
            await asyncio.sleep(5)
            assert watcher.snapshot.state == "held"
            source.fail()
            await asyncio.sleep(5)
            assert watcher.snapshot.state == "stale"
            assert [count for _, count in cache.saved] == [2]
            source.recover()
            await asyncio.sleep(5)
            watcher.accept()
            await asyncio.sleep(5)
            assert [count for _, count in cache.saved] == [2, 0]

    run(main())


def test_a_source_without_a_description_of_its_own_is_refused(tmp_path: Path) -> None:
    class Own:
        async def watch(self) -> Any:
            yield ()

    for source in (Own(), Merge(Memory(), Own())):
        Watcher(source)
        with pytest.raises(TypeError, match="needs a source with a __repr__ that says what it reads"):
            Watcher(source, cache=tmp_path)


@pytest.mark.usefixtures("no_threads")
def test_a_set_that_never_changes_is_written_again_before_it_is_too_old() -> None:
    async def main() -> None:
        cache = Recorded(settle=1, max_age=1000)
        async with Watcher(memory(A), cache=cache):
            await asyncio.sleep(1000)
        gaps = [b - a for (a, _), (b, _) in zip(cache.saved, cache.saved[1:], strict=False)]
        assert gaps == pytest.approx([100] * len(gaps), abs=2)
        assert len(gaps) == 9

    run(main())


@pytest.mark.usefixtures("no_threads")
def test_a_folder_that_cannot_be_written_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cache = Recorded(settle=1)
        cache.error = OSError(28, "No space left on device")
        async with Watcher(memory(A), name="users", cache=cache) as watcher:
            await asyncio.sleep(60)
            assert watcher.snapshot.state == "live"
            cache.error = None
            await asyncio.sleep(60)
            assert len(cache.saved) == 1

    run(main())
    assert (
        caplog.messages.count("users: the endpoints cannot be written down: [Errno 28] No space left on device")
        == 1
    )


async def test_the_watcher_writes_and_another_process_reads(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path, settle=0.01), memory(A, B)
    saved, real = asyncio.Event(), cache.save
    loop = asyncio.get_running_loop()

    def save(name: str, endpoints: Sequence[Endpoint]) -> None:
        real(name, endpoints)
        loop.call_soon_threadsafe(saved.set)

    cache.save = save  # type: ignore[method-assign]
    async with Watcher(source, cache=cache), patience(5):
        await saved.wait()
    found = Cache(tmp_path).load(repr(source))
    assert found is not None
    assert set(found.endpoints) == {A, B}


async def test_a_process_starts_without_its_registry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Cache(tmp_path).save(repr(memory()), (A, B))
    source = memory(B)
    source.fail("no route to host")
    async with Watcher(source, name="users", cache=tmp_path) as watcher:
        found = await watcher.ready(5)
        assert (set(found.endpoints), found.state, found.version) == ({A, B}, "stale", 1)
        assert found.reason == "no route to host; the endpoints are from the cache"
        assert "users: 2 endpoints from the cache, 0 s old" in caplog.text
        await until(watcher, lambda snapshot: snapshot is not found)
        assert "from the cache" in watcher.snapshot.reason
        source.recover()
        back = await until(watcher, lambda snapshot: snapshot.state == "live")
        assert (back.endpoints, back.version, back.reason) == ((B,), 2, "")


async def test_a_registry_that_says_nothing_at_the_start_is_not_waited_for(tmp_path: Path) -> None:
    class Silent(Memory):
        def __repr__(self) -> str:
            return "silent"

        async def watch(self) -> Any:
            await asyncio.Event().wait()
            yield ()

    Cache(tmp_path).save("silent", (A,))
    async with Watcher(Silent(), cache=tmp_path) as watcher:
        async with patience(3):
            found = await watcher.ready(30)
        assert (found.endpoints, found.reason) == ((A,), "no answer yet; the endpoints are from the cache")
        assert (found.age or 0) < 5


async def test_a_registry_that_answers_needs_no_cache(tmp_path: Path) -> None:
    Cache(tmp_path).save(repr(memory()), (A, B))
    async with Watcher(memory(), cache=tmp_path) as watcher:
        assert (await watcher.ready(5)).endpoints == ()
        await asyncio.sleep(0.1)
        assert watcher.snapshot.version == 1


async def test_an_empty_answer_does_not_wipe_what_the_cache_gave(tmp_path: Path) -> None:
    Cache(tmp_path).save(repr(memory()), (A,))
    source = memory()
    source.fail()
    async with Watcher(source, cache=tmp_path) as watcher:
        await watcher.ready(5)
        source.recover()
        held = await until(watcher, lambda snapshot: snapshot.state == "held")
        assert held.endpoints == (A,)
