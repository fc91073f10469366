"""`Entrant`: one of the attempts of a race, with a request and a task of its own."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

from aiohttp import ClientRequest, ClientResponse

from lbclient.attempt import Attempt
from lbclient.outcome import Outcome

__all__ = ["Entrant"]

_Send = Callable[[Attempt, ClientRequest], Coroutine[Any, Any, ClientResponse]]


class Entrant:
    """One of the attempts of a race.

    Args:
        attempt: where it goes.
        req: the request, which is left as it is: a loser still has its copy when the caller has the answer.
        send: sends the copy.

    Attributes:
        task: ends with the head of the answer.
        told: whether what a loser showed was recorded.
        said: what the user's `classify` said of its end; None as long as it was not asked.
    """

    __slots__ = ("_req", "attempt", "said", "task", "told")

    def __init__(self, attempt: Attempt, req: ClientRequest, send: _Send) -> None:
        self.attempt = attempt
        self.told = False
        self.said: tuple[Outcome | None] | None = None
        self._req = _twin(req)
        self.task = asyncio.create_task(send(attempt, self._req))

    @property
    def response(self) -> ClientResponse | None:
        """The answer, if there is one."""
        return _response(self.task)

    @property
    def error(self) -> BaseException:
        """Why there is none, once it has ended."""
        if self.task.cancelled():
            return asyncio.CancelledError()
        return self.task.exception() or asyncio.CancelledError()

    def hush(self) -> None:
        """No tracing any more: for it the request has ended."""
        traces = getattr(self._req, "_traces", None)
        if traces:
            traces.clear()

    def drop(self) -> None:
        """Give up: what was not sent will not be, and what is open is closed."""
        # Landed, the attempt refuses to send, should its connection be there in this very moment.
        self.attempt.land()
        if self.task.done():
            _close(self.task)
        else:
            self.task.cancel()
            self.task.add_done_callback(_close)


def _response(task: asyncio.Task[ClientResponse]) -> ClientResponse | None:
    # Asking for the exception keeps asyncio from complaining that nobody did.
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


def _close(task: asyncio.Task[ClientResponse]) -> None:
    response = _response(task)
    if response is not None:
        response.close()


def _twin(req: ClientRequest) -> ClientRequest:
    """A request that can be sent while the other one is; a body of bytes is shared by both."""
    twin = copy.copy(req)
    twin.headers = req.headers.copy()
    own = vars(twin)
    # aiohttp's timer of the whole request belongs to the caller's task. It keeps those who wait in a stack, so
    # that two tasks take each other's place in it.
    own["_timer"] = nullcontext()
    if own.get("_traces"):
        own["_traces"] = list(own["_traces"])
    if "Expect" in twin.headers:
        # The future that waits for `100 Continue`.
        twin.update_expect_continue()
    return twin
