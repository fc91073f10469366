"""What Consul's own tools take from the environment, where the program says nothing."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from discovery.connection import address as canonical
from discovery.source import SourceError
from discovery.tls import TLS, as_tls

__all__ = ["Access", "Token", "access"]

log = logging.getLogger(__name__)

Token = str | Callable[[], str]

_DEFAULT = "127.0.0.1:8500"
_PORTS = {"http": 80, "https": 443}  # of an address with a scheme and without a port, as in any URL
# What Go's strconv.ParseBool knows.
_TRUE, _FALSE = {"1", "t", "T", "true", "TRUE", "True"}, {"0", "f", "F", "false", "FALSE", "False"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach an agent, and as whom.

    Attributes:
        address: `host:port`.
        tls: how to speak TLS; None is plain HTTP.
        namespace: Consul Enterprise's namespace; empty for none.
    """

    address: str
    tls: TLS | None
    namespace: str
    _token: Token | Path = field(repr=False)

    def token(self) -> str:
        """The token as it is now; empty for none.

        Raises:
            SourceError: it cannot be had; the message does not repeat it.
        """
        try:
            return self._current()
        except OSError as error:
            raise SourceError(f"Consul's token cannot be read: {error}", retry_after=1.0) from error
        except _BadTokenError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - somebody else's function; its message may be a secret
            why = f"the callable raised {type(error).__name__}"
        raise SourceError(f"Consul's token cannot be had: {why}", retry_after=1.0)

    def _current(self) -> str:
        if isinstance(self._token, Path):
            # What is not ASCII is refused as any other bad token.
            return _valid_token(self._token.read_text("ascii", "replace").strip())
        return _valid_token(self._token if isinstance(self._token, str) else self._token())


class _BadTokenError(ValueError):
    """A token that cannot be one; the message does not repeat it."""


def access(
    *,
    address: str | None = None,
    token: Token | None = None,
    token_file: str | Path | None = None,
    tls: bool | ssl.SSLContext | TLS | None = None,
    ns: str | None = None,
) -> Access:
    """What the program says, and for the rest the variables, as Consul's own tools do.

    None means "not said". An address that the program gives gets the environment's token, too: that is what
    `consul -http-addr` does; a token that is empty keeps it back.

    Raises:
        ValueError: an argument or a variable that is needed makes no sense; the message names it, without secrets.
        TypeError: an argument has the wrong type.
    """
    where, https = _given(address, tls) if address is not None else _from_variable()
    secure = _as_tls(https if tls is None else tls)
    if os.environ.get("CONSUL_HTTP_AUTH"):
        _warn("CONSUL_HTTP_AUTH is not supported: no user and password are sent")
    found = Access(
        address=where,
        tls=secure,
        namespace=ns if ns is not None else os.environ.get("CONSUL_NAMESPACE", ""),
        _token=_which_token(token, token_file),
    )
    if token is None or isinstance(token, str):
        # Said at once; what a callable gives is its own business later.
        try:
            found._current()  # noqa: SLF001 - of the class above
        except OSError as error:
            raise ValueError(f"the token file cannot be read: {error}") from error
    return found


def _given(address: str, tls: object) -> tuple[str, bool]:
    return canonical(address, default_port=8500), tls is None and _wants_tls()


def _from_variable() -> tuple[str, bool]:
    """Address, and whether it is one for HTTPS."""
    text = os.environ.get("CONSUL_HTTP_ADDR") or _DEFAULT
    if "@" in text:
        raise ValueError("CONSUL_HTTP_ADDR: user and password in an address are not supported")
    scheme, separator, rest = text.partition("://")
    if separator and scheme not in _PORTS:
        raise ValueError(f"CONSUL_HTTP_ADDR: only http and https are supported, not {scheme!r}")
    host = (rest if separator else text).removesuffix("/")
    try:
        found = canonical(host, default_port=_PORTS[scheme] if separator else 8500)
    except ValueError as error:
        raise ValueError(f"CONSUL_HTTP_ADDR: {error}") from error
    return found, scheme == "https" or _wants_tls()


def _wants_tls() -> bool:
    return _boolean("CONSUL_HTTP_SSL", default=False)


def _as_tls(tls: bool | ssl.SSLContext | TLS) -> TLS | None:
    """With the variables' files where a `TLS` names none, one by one, but certificate and key as a pair."""
    said = tls if isinstance(tls, TLS) else None
    if (tls is not True and said is None) or (said and said.context is not None):
        return as_tls(tls)
    if not _boolean("CONSUL_HTTP_SSL_VERIFY", default=True):
        _warn("CONSUL_HTTP_SSL_VERIFY=false is not honoured, certificates are verified: name their authority")
    more: dict[str, Any] = {}
    for name, variable in _OF_TLS.items():
        is_said = getattr(said, name, None) or (name == "key" and said and said.cert)
        if not is_said and (value := os.environ.get(variable)):
            more[name] = value
    if os.environ.get("CONSUL_CAPATH") and not (more.get("ca") or (said and said.ca)):
        _warn("CONSUL_CAPATH is not supported: put the authorities into one file and name it in CONSUL_CACERT")
    try:
        return TLS(**more) if said is None else replace(said, **more) if more else said
    except ValueError as error:
        names = ", ".join(_OF_TLS[name] for name in more)
        raise ValueError(f"{error} (given by {names})" if names else str(error)) from error


_OF_TLS = {
    "ca": "CONSUL_CACERT",
    "cert": "CONSUL_CLIENT_CERT",
    "key": "CONSUL_CLIENT_KEY",
    "server_name": "CONSUL_TLS_SERVER_NAME",
}


def _which_token(token: Token | None, file: str | Path | None) -> Token | Path:
    if token is not None and file is not None:
        raise ValueError("give either a token or a token_file, not both")
    if token is not None and not isinstance(token, str) and not callable(token):
        raise TypeError(f"token must be a string or a callable, not of {type(token).__name__}")
    if token is not None:
        return token
    if file is not None:
        return Path(file)
    # The file first, as in Consul's own tools.
    by_variable = os.environ.get("CONSUL_HTTP_TOKEN_FILE")
    return Path(by_variable) if by_variable else os.environ.get("CONSUL_HTTP_TOKEN", "")


def _valid_token(token: object) -> str:
    if not isinstance(token, str) or (
        token and not (token.isascii() and token.isprintable() and " " not in token)
    ):
        raise _BadTokenError("the token must consist of printable ASCII characters without spaces")
    return token


def _boolean(variable: str, *, default: bool) -> bool:
    text = os.environ.get(variable, "")
    if text and text not in _TRUE | _FALSE:
        raise ValueError(f"{variable} must be true or false, not {text!r}")
    return text in _TRUE if text else default


@functools.cache
def _warn(text: str) -> None:
    """Once in a process: there may be hundreds of sources."""
    log.warning("%s", text)
