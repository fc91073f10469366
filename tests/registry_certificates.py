"""Certificates in files, for registries that speak TLS."""

from __future__ import annotations

from pathlib import Path

import trustme

from lbclient.sandbox import ServerTLS


class Certificates:
    """A private authority and the files that servers and clients want.

    Args:
        folder: where the files go.
        names: what the server's certificate is for.
    """

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.client_cert, self.client_key = folder / "client.pem", folder / "client.key"
        self._names = names or ("127.0.0.1",)
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.ca)
        self._issue(self.cert, self.key, *self._names)
        self._issue(self.client_cert, self.client_key, "client")

    def server(self, *, of_clients: bool = False) -> ServerTLS:
        """For the server: with `of_clients` it wants a certificate of each client."""
        if not of_clients:
            return ServerTLS(ca=self.ca, cert=self.cert, key=self.key)
        return ServerTLS(
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            client_ca=self.ca,
            client_cert=self.client_cert,
            client_key=self.client_key,
        )

    def renew(self) -> None:
        """A new authority and new certificates in the same files."""
        self.__init__(self.folder, *self._names)  # type: ignore[misc]

    def _issue(self, cert: Path, key: Path, *names: str) -> None:
        issued = self._authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
