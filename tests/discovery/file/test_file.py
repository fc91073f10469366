"""File against real files: what is written reaches the snapshot, however it is written."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from loop_gaps import loop_gaps
from patience import patience
from registry_rig import hosts, sees, stale, until

from discovery import File, SourceError, Watcher, open_source
from discovery.file import json_text

pytestmark = pytest.mark.usefixtures("nothing_leaks")

FAST = 0.05


def watching(path: Path) -> Watcher:
    return Watcher(File(path, interval=FAST))


def replace(path: Path, text: str) -> None:
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


async def look(source: File) -> list[str]:
    async with aclosing(source.watch()) as sets:
        return [endpoint.address for endpoint in await anext(sets)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "users.json"
    found.write_text('["10.0.0.1:80"]')
    return found


async def test_changes_reach_the_snapshot(path: Path) -> None:
    async with watching(path) as watcher:
        await until(watcher, sees("10.0.0.1"))
        path.write_text('["10.0.0.1:80", "10.0.0.2:80"]')
        await until(watcher, sees("10.0.0.1", "10.0.0.2"), 1)
        replace(path, '["10.0.0.3:80"]')
        await until(watcher, sees("10.0.0.3"), 1)
        replace(path, "[]")
        await until(watcher, sees(), 1)


async def test_links_are_followed_as_kubernetes_swaps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """users.json -> ..data/users.json, and ..data -> a folder that is exchanged as a whole."""
    monkeypatch.setattr("discovery.file.source._GRANULARITY", 0.05)
    for number in (1, 2):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "users.json").write_text(f'["10.0.0.{number}:80"]')
        os.utime(folder / "users.json", (1, 1))
    data, path = tmp_path / "..data", tmp_path / "users.json"
    data.symlink_to("..1")
    path.symlink_to("..data/users.json")
    async with watching(path) as watcher:
        received_at = (await until(watcher, sees("10.0.0.1"))).received_at or 0
        # By now only inode and times tell one from the other: their sizes are equal.
        await until(watcher, lambda snapshot: (snapshot.received_at or 0) > received_at + 0.2)
        (tmp_path / "..tmp").symlink_to("..2")
        (tmp_path / "..tmp").replace(data)
        await until(watcher, sees("10.0.0.2"), 1)


async def test_two_changes_with_one_time_stamp(path: Path) -> None:
    """The second one leaves size, inode and times as the first one did."""
    source = File(path, interval=FAST)
    real, stamp = Path.stat, path.stat()

    def same(self: Path, **more: bool) -> os.stat_result:
        found = real(self, **more)
        if self != path:
            return found
        kept = [*found[:7], *(int(time.time()) - 1,) * 3]
        return os.stat_result(kept, {"st_mtime": time.time() - 1, "st_mtime_ns": 5, "st_ctime_ns": 5})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "stat", same)
        async with aclosing(source.watch()) as sets:
            assert [endpoint.host for endpoint in await anext(sets)] == ["10.0.0.1"]
            path.write_text('["10.0.0.2:80"]')
            assert real(path).st_size == stamp.st_size
            assert [endpoint.host for endpoint in await anext(sets)] == ["10.0.0.2"]


async def test_a_quiet_file_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(path, (1, 1))
    reads = []
    content = File._content
    monkeypatch.setattr(File, "_content", lambda self, found: reads.append(1) or content(self, found))
    monkeypatch.setattr("discovery.file.source._GRANULARITY", 0.05)
    source = File(path, interval=0.01)
    async with aclosing(source.watch()) as sets:
        for _ in range(50):
            await anext(sets)
    assert 1 <= len(reads) < 15


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        (" \n", "the file is empty"),
        ('["10.0.0.2:80",\n "10.0.0.3:8', "line 2, column 2: Unterminated string"),
        ('["10.0.0.2:80"\n', "line 2, column 1: Expecting ',' or ']'"),
        ('{"servers": []}', "line 1, column 1: expected a list"),
        ("42", "line 1, column 1: expected a list"),
        ('["10.0.0.2:80"]\x00', "line 1, column 16: Extra data"),
        ('["10.0.0.2"]', "none of its 1 entries can be read; entry 1 (line 1): expected host:port"),
        (None, "No such file"),
    ],
)
async def test_a_broken_file_keeps_the_last_good_set(
    path: Path, text: str | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with watching(path) as watcher:
        await until(watcher, sees("10.0.0.1"))
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
            os.utime(path, (1, 1))  # it is not being written any more
        away = await until(watcher, stale, 2)
        assert hosts(away) == ["10.0.0.1"]
        assert away.reason.startswith(f"{path}: {words}")
        await asyncio.sleep(0.15)
        assert len(caplog.messages) == 2
        replace(path, '["10.0.0.4:80"]')
        await until(watcher, sees("10.0.0.4"), 4)


@pytest.mark.parametrize(
    ("name", "pieces", "pauses"),
    [
        # The beginning of a YAML list is a list: only the writing itself shows that it is not the end.
        ("users.yaml", [f"- 10.0.0.{number}:80\n" for number in range(1, 21)], (0.02, 2.5)),
        # The beginning of a JSON list is none, so the writer may take its time.
        ("users.json", ["[", '"10.0.0.1:80"', ',"10.0.0.2:80"', "]"], (0.15, 0.1)),
    ],
)
async def test_a_file_that_is_being_written_is_waited_for(
    tmp_path: Path,
    name: str,
    pieces: list[str],
    pauses: tuple[float, float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pause, settled = pauses
    path = tmp_path / name
    replace(path, '["10.0.0.1:80"]')
    os.utime(path, (1, 1))
    with pytest.MonkeyPatch.context() as patch:
        # A busy machine lets the writer stand still for seconds.
        patch.setattr("discovery.file.source._SETTLED", settled)
        patch.setattr("discovery.file.source._PATIENCE", 30)
        async with watching(path) as watcher:
            await until(watcher, sees("10.0.0.1"))
            with path.open("w") as file:
                for piece in pieces:
                    file.write(piece)
                    file.flush()
                    await asyncio.sleep(pause)
            os.utime(path, (1, 1))
            await until(watcher, lambda snapshot: len(snapshot.endpoints) > 1, 2 + settled)
            assert len(watcher.snapshot.endpoints) == "".join(pieces).count(":80")
            assert watcher.snapshot.version == 2
    assert len(caplog.messages) == 1


async def test_a_broken_file_is_parsed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    real = json_text.json_entries
    monkeypatch.setattr("discovery.file.source.json_entries", lambda text: parsed.append(text) or real(text))
    path.write_text("[")
    os.utime(path, (1, 1))
    source = File(path, interval=0.5)
    for _ in range(5):
        with pytest.raises(SourceError) as caught:
            await look(source)
        assert caught.value.retry_after == 0.5
    assert parsed == ["["]


@pytest.mark.parametrize("bad", ['"weight": -1', '"weight": NaN', '"weight": Infinity', '"priority": 0.5'])
async def test_a_bad_weight_or_priority_takes_one_entry_out(
    path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(f'["10.0.0.1:80", {{"host": "10.0.0.9", "port": 80, {bad}}}]')
    async with Watcher(File(path, interval=FAST)) as watcher:
        assert (await until(watcher, sees("10.0.0.1"))).skipped == 1
    (message,) = [message for message in caplog.messages if "skipped" in message]
    assert "entry 2" in message
    assert "must be" in message


async def test_bad_entries_are_skipped_counted_and_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = '{"host": "10.0.0.9", "port": 80, "wieght": 2}'
    path.write_text(f'["10.0.0.1:80",\n\n{bad},\n"10.0.0.3"]')
    source = File(path, interval=FAST)
    async with Watcher(source) as watcher:
        assert (await until(watcher, sees("10.0.0.1"))).skipped == 2
        assert dict(source.skipped) == {
            "entry 2 (line 3)": "unknown key 'wieght'; known ones are address, host, port, weight, priority, "
            "zone, tls, metadata, id",
            "entry 3 (line 4)": "expected host:port, got '10.0.0.3'",
        }
        replace(path, f'["10.0.0.1:80", "10.0.0.2:80", {bad}]')
        assert (await until(watcher, sees("10.0.0.1", "10.0.0.2"))).skipped == 1
        replace(path, '["10.0.0.1:80"]')
        assert (await until(watcher, sees("10.0.0.1"))).skipped == 0
    assert len([message for message in caplog.messages if "skipped" in message]) == 2


async def test_it_is_there_later(tmp_path: Path) -> None:
    path = tmp_path / "later" / "users.json"
    async with watching(path) as watcher:
        reason = (await until(watcher, lambda snapshot: snapshot.reason)).reason
        assert reason == f"{path}: No such file or directory"
        path.parent.mkdir()
        path.write_text('["10.0.0.1:80"]')
        await until(watcher, sees("10.0.0.1"), 4)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _large(path: Path) -> None:
    with path.open("w") as file:
        file.truncate(17 * 1024 * 1024)
    os.utime(path, (1, 1))


def _latin(path: Path) -> None:
    path.write_bytes('["10.0.0.1:80",\n "größe"]'.encode("latin-1"))
    os.utime(path, (1, 1))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_folder, "this is no file"),
        (_pipe, "this is no file"),
        (_large, "too large: 17825792 bytes"),
        (_latin, "line 2, column 5: this is not UTF-8"),
    ],
)
async def test_what_is_no_such_file(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "users.json"
    make(path)
    async with patience(3):
        with pytest.raises(SourceError, match=words):
            await look(File(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("users.json", '\ufeff{"version": [1], "endpoints": ["10.0.0.1:80"], "more": {}}'),
        ("users.yaml", "# servers\nversion: [1]\nendpoints:\n  - 10.0.0.1:80\nmore:\n"),
        ("users.YML", "- {host: 10.0.0.1, port: 80}"),
        ("users", "- address: http://10.0.0.1\n"),
        ("users.txt", ' \n["10.0.0.1:80"]'),
    ],
)
async def test_formats_by_ending_and_by_content(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert await look(File(path)) == ["10.0.0.1:80"]


async def test_the_named_format_wins(tmp_path: Path) -> None:
    path = tmp_path / "users.json"
    path.write_text("- 10.0.0.1:80")
    assert await look(File(path, format="yaml")) == ["10.0.0.1:80"]


@pytest.mark.parametrize("name", ["users.json", "users.yaml"])
async def test_ten_thousand_entries_do_not_hold_up_the_loop(tmp_path: Path, name: str) -> None:
    entry = {"port": 80, "weight": 2.5, "zone": "eu-1", "metadata": {"version": "1"}}
    lines = [json.dumps({"host": f"10.0.{number >> 8}.{number & 255}", **entry}) for number in range(10_000)]
    path = tmp_path / name
    path.write_text("[" + ",\n".join(lines) + "]" if name.endswith("json") else "- " + "\n- ".join(lines))
    os.utime(path, (1, 1))
    found = []
    # A thread gives way every 5 ms, what is parsed in one go does not: 180 ms for YAML by libyaml. On a busy
    # machine the loop may be late to ask for its turn, but not each time.
    for _ in range(10):
        async with loop_gaps(time.process_time) as gaps:
            assert len(await look(File(path))) == 10_000
        found.append((len(gaps), gaps[0]))
        if len(gaps) > 20 and gaps[0] < 0.1:
            break
    else:
        pytest.fail(f"turns of the loop, and the longest time to one: {found}")


async def test_a_relative_path_is_made_absolute(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    source = File("users.json")
    monkeypatch.chdir("/")
    assert await look(source) == ["10.0.0.1:80"]
    assert repr(source) == f"file://{path}"


async def test_by_url(tmp_path: Path) -> None:
    path = tmp_path / "a b?.yaml"
    path.write_text("[]")
    url = f"file://{tmp_path}/a%20b%3F.yaml?interval=0.1"
    async with Watcher(open_source(url)) as watcher:
        await until(watcher, sees(), 2)


async def test_two_watchers_of_one_source(path: Path) -> None:
    source = File(path, interval=FAST)
    async with Watcher(source) as one, Watcher(source) as two:
        await until(one, sees("10.0.0.1"))
        replace(path, '["10.0.0.2:80"]')
        await until(one, sees("10.0.0.2"))
        await until(two, sees("10.0.0.2"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: File(""), "name of a file"),
        (lambda: File("a\0b"), "name of a file"),
        (lambda: File("/"), "names no file"),
        (lambda: File("a.json", interval=0), "interval"),
        (lambda: File("a.json", format="toml"), "json, yaml"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], File], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
