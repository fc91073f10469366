"""Certificates of a server."""

import ssl
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ServerTLS"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """Files in PEM form with which a server speaks TLS to its clients.

    Attributes:
        ca: Authorities for the sandbox's own requests to the server.
        cert: The server's certificate; etcd's must be one for clients, too: its gateway is its own client.
        key: Its private key.
        client_ca: Authorities of clients; None asks them for no certificate.
        client_cert: Certificate for the sandbox's own requests, if clients need one.
        client_key: Its private key.
    """

    ca: Path
    cert: Path
    key: Path
    client_ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    @property
    def files(self) -> list[Path]:
        """What the server has to read."""
        return [file for file in (self.cert, self.key, self.client_ca) if file]

    def context(self) -> ssl.SSLContext:
        """Return how the sandbox itself speaks to the server."""
        context = ssl.create_default_context(cafile=self.ca)
        if self.client_cert is not None:
            context.load_cert_chain(self.client_cert, self.client_key)
        return context
