"""What the clients of HTTP registries share: addresses, TLS, a quiet session, and errors as sentences."""

from __future__ import annotations

import asyncio
import functools

import aiohttp
from aiohttp.client_proto import ResponseHandler

from discovery.endpoint import Endpoint, split_host_port
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["address", "as_source_error", "new_session", "positive"]

_LONGEST = 86_400  # seconds: longer than any sensible time, short enough for every timer


def address(text: str, *, default_port: int) -> str:
    """A registry's address in canonical form: `host:port`.

    Raises:
        ValueError: it is none; credentials in it are not repeated.
    """
    if "@" in text:
        raise ValueError("user and password do not belong into an address: give them as options")
    if "://" in text:
        raise ValueError(f"expected host:port without a scheme, got {text!r}")
    host, port = split_host_port(text, default_port=default_port)
    return Endpoint(host=host, port=port).address


def positive(name: str, seconds: float) -> float:
    """The number of seconds as a float; `ValueError` with its name if it is none or not above 0."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _LONGEST:
        raise ValueError(f"{name} must be a number of seconds above 0, not {seconds!r}")
    return float(seconds)


def new_session(tls: TLS | None, *, limit: int = 100) -> aiohttp.ClientSession:
    """A session that keeps connections; no cookies, no proxies, no timeouts: each call brings its own.

    Args:
        tls: how to speak TLS; None is plain HTTP.
        limit: so many connections at most; who needs one more waits.

    Raises:
        SourceError: a file with certificates cannot be used now.
    """
    try:
        context = None if tls is None else tls.load()
    except ValueError as error:
        raise SourceError(str(error)) from error
    connector = aiohttp.TCPConnector(ssl=True if context is None else context, limit=limit)
    connector._factory = functools.partial(_Handler, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # noqa: SLF001
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
    )


class _Handler(ResponseHandler):
    """Closes a connection at once.

    Over TLS aiohttp waits up to 30 s for the server to say goodbye when a request is cancelled, and Consul
    does so only when it has ended a query that nobody waits for any more.
    """

    def close(self) -> None:
        self.abort()


def as_source_error(where: str, error: Exception, *, timeout: float) -> SourceError:
    """What went wrong on the way to the registry, in a sentence that begins with its address."""
    match error:
        case TimeoutError():
            why = f"no answer within {timeout:g} s"
        case aiohttp.ClientConnectorCertificateError():
            why = f"its TLS certificate is not accepted: {error.certificate_error}"
        case aiohttp.ClientOSError() if _is_about_our_certificate(error):
            why = f"it does not accept our TLS client certificate, or wants one: {error.strerror or error}"
        case aiohttp.ClientConnectorSSLError() | aiohttp.ClientConnectorError(os_error=ConnectionResetError()):
            # A reset while connecting comes from the TLS handshake; TCP alone would say "refused".
            why = f"no TLS connection, does it speak plain HTTP on this port? ({error.os_error!r})"
        case aiohttp.ClientConnectorError():
            why = f"cannot connect: {error.os_error.strerror or error.os_error}"
        case aiohttp.ClientOSError():
            why = f"the connection broke: {error.strerror or error}"
        case aiohttp.ServerDisconnectedError():
            why = "it closed the connection without an answer"
            why += ", does it want TLS on this port?" if " http://" in where else ""
        case aiohttp.ClientPayloadError():
            why = "the connection broke in the middle of an answer"
        case _:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return SourceError(f"{where}: {why}")


def _is_about_our_certificate(error: aiohttp.ClientOSError) -> bool:
    # TLS 1.3: the server looks at it after our side of the handshake is done, so it is like any broken connection.
    text = str(error)
    return "ALERT" in text and ("CERTIFICATE" in text or "UNKNOWN_CA" in text)
