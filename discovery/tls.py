"""How to speak TLS to a registry: `TLS`, certificates by file names."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TLS", "as_tls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TLS:
    """Verified TLS; the files are read at construction, and again whenever a source connects anew.

    So certificates that are renewed in place are used without a restart.

    Attributes:
        ca: PEM file with the certificate authorities to trust instead of the system's.
        cert: PEM file with the client's certificate and the chain behind it.
        key: PEM file with its private key, not encrypted; None if `cert` holds it as well.
        server_name: the name that the server's certificate is checked for; the address's host by default.
        context: a context of your own in place of the files.

    Raises:
        ValueError: the options contradict each other, or a file cannot be used; the message names it.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None
    context: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        if self.context is not None and (self.ca or self.cert or self.key):
            raise ValueError("TLS: give either a context or files, not both")
        if self.key and not self.cert:
            raise ValueError(f"TLS: the key {str(self.key)!r} needs a cert")
        self.load()

    def load(self) -> ssl.SSLContext:
        """The context, with the files as they are now; `ValueError` if one of them cannot be used."""
        if self.context is not None:
            return self.context
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (OSError, ValueError) as error:
            raise ValueError(f"TLS: the authorities in {str(self.ca)!r} cannot be used: {error}") from error
        if self.cert:
            try:
                # A password would be asked for at the terminal; "" is refused at once instead.
                context.load_cert_chain(self.cert, self.key, password="")
            except (OSError, ValueError) as error:
                files = " and ".join(repr(str(file)) for file in (self.cert, self.key) if file)
                raise ValueError(f"TLS: the certificate in {files} cannot be used: {error}") from error
        return context


def as_tls(tls: bool | ssl.SSLContext | TLS) -> TLS | None:
    """What a source was given as `tls`: False is none at all, True is the system's authorities.

    Raises:
        TypeError: it is nothing of the kind.
    """
    if isinstance(tls, TLS):
        return tls
    if isinstance(tls, ssl.SSLContext):
        return TLS(context=tls)
    if isinstance(tls, bool):
        return TLS() if tls else None
    raise TypeError(f"tls must be True, False, a TLS or an ssl.SSLContext, not {tls!r}")
