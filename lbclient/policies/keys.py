"""What hashing policies hash: keys taken from a request."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import ClientRequest
from xxhash import xxh64_intdigest

__all__ = ["Key", "cookie", "hashed", "header", "path_part"]

# Takes the key out of a request; None if there is none in it.
Key = Callable[[ClientRequest], str | None]


def hashed(key: str, seed: int = 0) -> int:
    """The hash of a key (XXH64), a whole number below 2**64."""
    # Servers decode headers in a way that leaves lone surrogates for bytes that are no UTF-8.
    return xxh64_intdigest(key.encode("utf-8", "surrogatepass"), seed)


def header(name: str) -> Key:
    """The value of a header; a request without it, or with an empty one, has no key.

    Raises:
        ValueError: for a name that no header has.
    """
    _expect_name("header", name)

    def key(req: ClientRequest) -> str | None:
        return req.headers.get(name) or None

    return key


def cookie(name: str) -> Key:
    """The value of a cookie, from the session's jar or the request's own; None without it, or for an empty one.

    Raises:
        ValueError: for a name that no cookie has.
    """
    _expect_name("cookie", name)

    def key(req: ClientRequest) -> str | None:
        for pair in req.headers.get("Cookie", "").split(";"):
            found, equals, value = pair.partition("=")
            if equals and found.strip() == name:
                return value.strip().strip('"') or None
        return None

    return key


def path_part(index: int) -> Key:
    """A part of the path, decoded: in `/users/42/orders` number 0 is `users`, and -1 is `orders`.

    A request whose path has no such part, or an empty one, has no key.

    Raises:
        ValueError: unless the index is a whole number.
    """
    if isinstance(index, bool) or not isinstance(index, int):
        raise ValueError(f"path_part takes the number of a part, 0 for the first, not {index!r}")  # noqa: TRY004 - bad options are all told in one way

    def key(req: ClientRequest) -> str | None:
        parts = req.url.parts[1:]
        return (parts[index] or None) if -len(parts) <= index < len(parts) else None

    return key


def _expect_name(kind: str, name: str) -> None:
    # The delimiters of RFC 9110, 5.6.2: neither headers nor cookies have them in their names.
    if (
        not isinstance(name, str)
        or not name
        or not name.isascii()
        or any(c <= " " or c in '"(),/:;<=>?@[\\]{}\x7f' for c in name)
    ):
        raise ValueError(f"{kind} takes the name of a {kind}, not {name!r}")
