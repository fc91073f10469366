"""A running stream of etcd's answers, as its JSON gateway sends them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp

from discovery.connection import as_source_error
from discovery.etcd.auth import canceled_for_token
from discovery.etcd.wire import Frames, etcd_error
from discovery.source import SourceError

__all__ = ["Stream"]


class Stream:
    """A running stream of answers."""

    def __init__(self, response: aiohttp.ClientResponse, where: str, *, forget_token: Callable[[], None]) -> None:
        self._response = response
        self._where = where
        self._forget_token = forget_token
        self._frames = Frames()

    async def read(self, *, until: float) -> list[dict[str, Any]]:
        """The answers that came, one or more; none if there was none until then (seconds of the loop's clock).

        Raises:
            EtcdError: the stream ended with an error.
            SourceError: it ended.
        """
        try:
            async with asyncio.timeout_at(until):
                # readany(): readline() gives up on a line above 512 KiB, and the last one may have no end.
                chunk = await self._response.content.readany()
        except TimeoutError:
            return []
        except (aiohttp.ClientError, OSError) as error:
            raise as_source_error(self._where, error, timeout=0) from error
        try:
            answers = self._frames.feed(chunk) if chunk else self._frames.end()
        except ValueError as error:
            raise SourceError(f"{self._where}: the stream is not etcd's: {error}") from error
        for answer in answers:
            if answer.get("error"):
                raise etcd_error(self._where, answer)
            if canceled_for_token(str(answer.get("result", {}).get("cancel_reason", ""))):
                # Another member may answer at the same address, and still know it: the next call would not notice.
                self._forget_token()
        if not chunk and not answers:
            raise SourceError(f"{self._where}: it ended the stream")
        return answers
