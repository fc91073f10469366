"""Websockets that are closed with a word of farewell when their node has left."""

from __future__ import annotations

from typing import Any
from weakref import ref

from aiohttp import ClientResponse, ClientWebSocketResponse, WSCloseCode

from lbclient.tried import attempts

__all__ = ["polite"]

# Where `attempts` looks.
_ATTEMPTS = "_lbclient_attempts"


class _Polite(ClientWebSocketResponse):
    """A websocket that its attempt knows; `attempts(websocket)` lists it, and those before it."""

    _cut: Exception | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for response in (*args, *kwargs.values()):
            if isinstance(response, ClientResponse) and (tries := attempts(response)):
                setattr(self, _ATTEMPTS, tries)
                # Weak, or a websocket that was forgotten could never be collected.
                tries[-1].websocket = ref(self)

    def exception(self) -> BaseException | None:
        """Why it was closed, if it was closed from this side because its node had left."""
        return self._cut or super().exception()

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"") -> bool:
        """Close it; with 1001, "going away" (RFC 6455, section 7.4.1), instead of 1000 if that is why."""
        # Whoever receives is told first, and may be faster to close it.
        if self._cut is not None and code == WSCloseCode.OK:
            code = WSCloseCode.GOING_AWAY
        return await super().close(code=code, message=message)

    async def say_farewell(self, error: Exception) -> None:
        """Close it since its node has left; whoever receives from it sees it close."""
        self._cut = error
        await self.close()


def polite(kind: type[Any]) -> type[Any]:
    """The class of websockets that does the same as this one and is polite as well."""
    if kind is ClientWebSocketResponse:
        return _Polite
    if not issubclass(kind, ClientWebSocketResponse):
        return kind  # its websockets are cut without a word
    return type(kind.__name__, (_Polite, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
