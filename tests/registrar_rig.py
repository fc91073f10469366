"""For tests with registrars: waiting for a state without polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from patience import patience

from discovery import Registrar


async def stands(
    registrar: Registrar,
    *states: str,
    reason: str = "",
    timeout: float = 10.0,  # noqa: ASYNC109 - the message names the registrar
) -> None:
    """Wait until a registrar has one of these states, with these words in the reason."""
    reached = asyncio.Event()

    def look(state: str, why: str) -> None:
        if state in states and reason in why:
            reached.set()

    end = registrar.subscribe(look)
    look(registrar.state, registrar.reason)
    try:
        async with patience(timeout):
            await reached.wait()
    except TimeoutError:
        raise AssertionError(f"still {registrar!r} after {timeout} s, not {states} {reason!r}") from None
    finally:
        end()


class Vote:
    """A health check that says what a test wants."""

    def __init__(self, answer: Callable[[], object] = lambda: True) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self) -> bool | None:
        self.asked += 1
        said = self.answer()
        return await said if asyncio.iscoroutine(said) else said  # type: ignore[return-value]
