"""What tests do to the data and the users of an etcd, and how they reach it."""

import base64
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from lbclient.sandbox.errors import SandboxError
from lbclient.sandbox.ports import LOOPBACK
from lbclient.sandbox.server import ask_first
from lbclient.sandbox.tls import ServerTLS

__all__ = ["EtcdAccess", "EtcdClient"]

_ATTEMPTS = 3
# A token expired, or was lost in a restart, or is older than the last change of a role.
_NEEDS_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")


class EtcdAccess:
    """How the sandbox itself reaches the members of one cluster.

    Attributes:
        tls: Their certificates; None is plain HTTP.
        root: Password of the user root, once authentication is switched on.
        token: The token for it.
    """

    def __init__(self, tls: ServerTLS | None = None, flags: Mapping[str, str] | None = None) -> None:
        self.tls = tls
        self._more = dict(flags or {})
        self.root = ""
        self.token = ""

    @property
    def scheme(self) -> str:
        """Of the members' URLs."""
        return "http" if self.tls is None else "https"

    def flags(self, listen_host: str, port: int) -> dict[str, str]:
        """What the program has to be told."""
        flags = {
            "listen-client-urls": f"{self.scheme}://{listen_host}:{port}",
            "advertise-client-urls": f"{self.scheme}://{LOOPBACK}:{port}",
        }
        if self.tls is not None:
            flags |= {"cert-file": str(self.tls.cert), "key-file": str(self.tls.key)}
            if self.tls.client_ca is not None:
                flags |= {"trusted-ca-file": str(self.tls.client_ca), "client-cert-auth": "true"}
        return flags | self._more


class EtcdClient(ABC):
    """What a test does to the data and to the users, over etcd's JSON gateway."""

    def __init__(self, access: EtcdAccess | None = None) -> None:
        self._access = access or EtcdAccess()

    @abstractmethod
    def _reachable(self) -> list[str]:
        """The addresses of members to try."""

    async def put(self, key: str, value: str | bytes, ttl: int | None = None) -> int | None:
        """Set a key.

        Args:
            key: The key.
            value: Its value.
            ttl: Seconds after which it disappears.

        Returns:
            The id of the lease that was made for `ttl`.
        """
        body: dict[str, Any] = {"key": _encoded(key), "value": _encoded(value)}
        lease = None
        if ttl is not None:
            lease = int((await self._ask("/v3/lease/grant", {"TTL": ttl}))["ID"])
            body["lease"] = str(lease)
        await self._ask("/v3/kv/put", body)
        return lease

    async def get_prefix(self, prefix: str) -> dict[str, str]:
        """Return the keys that begin with `prefix`, and their values."""
        answer = await self._ask("/v3/kv/range", _range(prefix))
        return {_decoded(pair["key"]): _decoded(pair.get("value", "")) for pair in answer.get("kvs", [])}

    async def delete(self, key: str) -> None:
        """Delete one key; fine if there is none."""
        await self._ask("/v3/kv/deleterange", {"key": _encoded(key)})

    async def delete_prefix(self, prefix: str) -> None:
        """Delete all keys that begin with `prefix`."""
        await self._ask("/v3/kv/deleterange", _range(prefix))

    async def revoke(self, lease: int) -> None:
        """End a lease before its time: its keys disappear."""
        await self._ask("/v3/lease/revoke", {"ID": str(lease)})

    async def revision(self) -> int:
        """Return the store's current revision."""
        answer = await self._ask("/v3/kv/range", {"key": _encoded("\0"), "count_only": True})
        return int(answer["header"]["revision"])

    async def compact(self) -> int:
        """Forget all history, as etcd does by itself from time to time; return the revision that remains."""
        revision = await self.revision()
        await self._ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    async def enable_auth(self, password: str = "root") -> None:  # noqa: S107 - of a server on loopback
        """Switch authentication on: from now on the calls here are made as the user root, with this password."""
        await self._ask("/v3/auth/user/add", {"name": "root", "password": password})
        await self._ask("/v3/auth/role/add", {"name": "root"})
        await self._ask("/v3/auth/user/grant", {"user": "root", "role": "root"})
        await self._ask("/v3/auth/enable", {})
        self._access.root = password

    async def disable_auth(self) -> None:
        """Switch authentication off."""
        await self._ask("/v3/auth/disable", {})
        self._access.root = self._access.token = ""
        await self.remove_user("root")

    async def add_user(self, name: str, password: str) -> None:
        """Add a user, and a role of the same name that may do nothing yet."""
        await self._ask("/v3/auth/user/add", {"name": name, "password": password})
        await self._ask("/v3/auth/role/add", {"name": name})
        await self._ask("/v3/auth/user/grant", {"user": name, "role": name})

    async def remove_user(self, name: str) -> None:
        """Remove a user, and the role of the same name."""
        await self._ask("/v3/auth/user/delete", {"name": name})
        await self._ask("/v3/auth/role/delete", {"role": name})

    async def change_password(self, name: str, password: str) -> None:
        """Change it; the user's tokens are void."""
        await self._ask("/v3/auth/user/changepw", {"name": name, "password": password})

    async def permit(self, name: str, prefix: str, *, write: bool = False) -> None:
        """Let a user read the keys that begin with `prefix`, and write them too if wanted."""
        permission = {"permType": "READWRITE" if write else "READ", **_range(prefix)}
        await self._ask("/v3/auth/role/grant", {"name": name, "perm": permission})

    async def forbid(self, name: str, prefix: str) -> None:
        """Take back what `permit` gave."""
        await self._ask("/v3/auth/role/revoke", {"role": name, **_range(prefix)})

    @property
    def _scheme(self) -> str:
        return self._access.scheme

    @property
    def _context(self) -> ssl.SSLContext | None:
        return None if self._access.tls is None else self._access.tls.context()

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        access = self._access
        if not access.root:
            return await self._ask_first(path, body)
        for _ in range(_ATTEMPTS):
            try:
                if not access.token:
                    answer = await self._ask_first(
                        "/v3/auth/authenticate", {"name": "root", "password": access.root}
                    )
                    access.token = answer["token"]
                return await self._ask_first(path, body)
            except SandboxError as error:
                access.token = ""
                if "authentication is not enabled" in str(error):
                    # The data was wiped, and the users with it.
                    access.root = ""
                    return await self._ask_first(path, body)
                if not any(words in str(error) for words in _NEEDS_TOKEN):
                    raise
        return await self._ask_first(path, body)

    async def _ask_first(self, path: str, body: dict[str, Any]) -> Any:
        return await ask_first(
            self._reachable(),
            "POST",
            path,
            body,
            scheme=self._scheme,
            context=self._context,
            headers={"Authorization": self._access.token} if self._access.token else {},
        )


def _range(prefix: str) -> dict[str, str]:
    start = prefix.encode() or b"\0"
    return {"key": _encoded(start), "range_end": _encoded(_after(prefix.encode()))}


def _after(prefix: bytes) -> bytes:
    """Return the first key behind all those with this prefix; etcd takes a zero byte for "to the end"."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def _encoded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode(errors="replace")
