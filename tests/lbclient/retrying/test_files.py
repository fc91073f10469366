"""Uploads of files, which aiohttp reads in threads: a read that outlives its attempt takes nothing away."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from rig import Prefer, in_flight, local, wire

from discovery import Static
from lbclient import BalancedSession, Outcome, Retry, attempts
from lbclient.retrying.file_bodies import take_turns

# Of how many bytes aiohttp asks for at once.
_CHUNK = 2**18
CONTENT = b"".join(bytes([n]) * _CHUNK for n in range(6))


class Slow(io.RawIOBase):
    """A file whose second read takes until somebody else has read from it, or for a while if nobody does."""

    def __init__(self) -> None:
        self._file = io.BytesIO(CONTENT)
        self._reads = 0
        self.reading = threading.Event()
        self._passed = threading.Event()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads == 2:
            self.reading.set()
            self._passed.wait(0.8)
            return self._file.read(size)
        data = self._file.read(size)
        if self._reads == 3:
            self._passed.set()
        return data


def multipart(file: Any) -> aiohttp.MultipartWriter:
    writer = aiohttp.MultipartWriter("form-data", boundary="x")
    writer.append(file).set_content_disposition("form-data", name="file", filename="file")
    return writer


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("failure", ["answer", "timeout"])
async def test_a_read_that_goes_on_after_its_attempt_shifts_nothing(failure: str, parts: bool) -> None:
    file = Slow()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.to_thread(file.reading.wait, 10)
        if failure == "answer":
            writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        await reader.read(-1)

    async with wire(talk) as bad, local() as good:
        timeout = {"attempt_timeout": 0.6} if failure == "timeout" else {}
        async with (
            BalancedSession(
                Static([bad, good.address]), policy=Prefer(bad), retry=Retry(backoff=0), **timeout
            ) as session,
            session.put("/x", data=multipart(file) if parts else file, timeout=10) as response,
        ):
            first = Outcome.GATEWAY if failure == "answer" else Outcome.FAULT
            assert [attempt.outcome for attempt in attempts(response)] == [first, Outcome.SUCCESS]
            assert in_flight(session) == 0
        (seen,) = good.seen
        assert CONTENT in seen.body if parts else seen.body == CONTENT


async def test_a_read_that_begins_after_the_end_of_its_attempt_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    with path.open("rb") as file:
        body: Any = aiohttp.payload.PAYLOAD_REGISTRY.get(file)
        take_turns(body)
        size, start = body._read_and_available_len(None)
        assert (size, CONTENT.startswith(start)) == (len(CONTENT), True)
        late_first, late = body._read_and_available_len, body._read
        take_turns(body)
        assert body._read_and_available_len(None)[1] == start
        assert (late_first(None)[1], late(None)) == (b"", b"")
        assert start + body._read(None) == CONTENT[: 2 * len(start)]
