"""What etcd's JSON gateway says: frames of a stream, errors, bytes and 64-bit numbers."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from discovery.source import SourceError

__all__ = [
    "FAILED_PRECONDITION",
    "INVALID_ARGUMENT",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "EtcdError",
    "Frames",
    "b64",
    "etcd_error",
    "quoted",
    "unb64",
]

_LONGEST_QUOTE = 200  # characters of an answer that is not etcd's

# gRPC status codes, https://grpc.io/docs/guides/status-codes/
INVALID_ARGUMENT, PERMISSION_DENIED, FAILED_PRECONDITION, UNAVAILABLE, UNAUTHENTICATED = 3, 7, 9, 14, 16


class EtcdError(SourceError):
    """etcd answered, with an error.

    Attributes:
        code: the gRPC status code; None if there was none.
    """

    def __init__(self, message: str, code: int | None = None, *, retry_after: float = 0.0) -> None:
        super().__init__(message, retry_after=retry_after)
        self.code = code


def b64(value: bytes) -> str:
    """Bytes as the gateway wants them."""
    return base64.b64encode(value).decode()


def unb64(text: str) -> bytes:
    """Bytes from what the gateway sent."""
    return base64.b64decode(text)


class Frames:
    """Cuts a stream into JSON objects, one per line, whatever the chunks are."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, chunk: bytes) -> list[dict[str, Any]]:
        """The objects that are complete with this chunk; `ValueError` if one is none."""
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            # Joined once, when the line is complete: adding up a long line would be quadratic.
            self._rest.append(chunk)
            return []
        lines = b"".join([*self._rest, head]).split(b"\n")
        self._rest = [tail]
        return [_object(line) for line in lines if line.strip()]

    def end(self) -> list[dict[str, Any]]:
        """What was left at the end of the stream: etcd 3.5.1 ends an error without a newline."""
        rest, self._rest = b"".join(self._rest), []
        return [_object(rest)] if rest.strip() else []


def etcd_error(where: str, answer: Mapping[str, Any]) -> EtcdError:
    """An error in any of the shapes of etcd's gateways, in words that say what to do."""
    inner = answer.get("error")
    details = inner if isinstance(inner, dict) else answer
    message = details.get("message") or (inner if isinstance(inner, str) else "") or "unknown error"
    code = details.get("grpc_code", details.get("code"))
    code = code if isinstance(code, int) else None
    hints = {
        PERMISSION_DENIED: "the user may not do this",
        UNAUTHENTICATED: "the user's token is not or no longer valid",
        UNAVAILABLE: "the member is cut off from the others or they elect a leader",
    }
    hint = hints.get(code or 0, "")
    if code == INVALID_ARGUMENT and "user name is empty" in str(message):
        hint = "authentication is switched on and no user was given"
    said = str(message).removeprefix("etcdserver: ")[:_LONGEST_QUOTE]
    return EtcdError(f"{where}: {said} ({hint})" if hint else f"{where}: {said}", code)


def _object(line: bytes) -> dict[str, Any]:
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {quoted(line)}")  # noqa: TRY004 - as json's own error
    return found


def quoted(content: bytes) -> str:
    """The beginning of what somebody sent who may not be etcd, for an error message."""
    return repr(content[:_LONGEST_QUOTE].decode(errors="replace").strip())
