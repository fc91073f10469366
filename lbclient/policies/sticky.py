"""`Sticky`: all requests of a session to the same node, by a cookie."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from http.cookies import CookieError, Morsel
from typing import Any

from aiohttp import ClientRequest, ClientResponse

from lbclient.call import Call
from lbclient.node import Node
from lbclient.options import of_type
from lbclient.policies.keys import Key
from lbclient.policies.keys import cookie as cookie_key
from lbclient.policies.policy import Policy
from lbclient.policies.sampling import PowerOfTwo

__all__ = ["Sticky"]

# An answer that says that the server failed begins no session with it.
_FAILED = 500


class Sticky:
    """Session affinity: the first answer sets a cookie, and requests that carry it go to the same node.

    The cookie holds a hash of the node's address, which is looked up among the current nodes and nowhere else: a
    forged, foreign or old one leads to no other server, and means the same as none: the inner policy chooses by
    its own key, which is that of `lb_key` if the caller gave one. It is kept in the session's
    cookie jar, for the service's logical name only, and stands in `response.cookies`: an application that acts for
    many users passes it on to each and gets it back from each with `get(..., cookies=...)`. Such a one needs a
    session with `aiohttp.DummyCookieJar`, or its users would share the cookie in the jar.

    When the node left, was ejected, failed this very request or is full, another one is picked and the cookie says
    that one from then on. As long as it is usable its sessions stay with it, whatever zone or priority new ones
    would go to, and while it is in its slow start. A node whose weight was set to 0 is not picked any more, so
    its sessions move on, too. An answer with status 500 or above begins no session, and ends none.

    Args:
        cookie: the cookie's name.
        policy: picks the node of a new session: a policy, or a function that makes one. `PowerOfTwo` by default.
            `Prequal` probes for new sessions only.
        secret: with one the cookie tells nothing; without it an address can be found by trying all.
            All instances of an application need the same.
        secure: mark the cookie `Secure`: it is sent to https URLs only, by the session's jar as well.
        max_age: seconds after the last answer for which the cookie is kept; as long as the session by default.
        rng: the source of randomness of the default policy.

    Attributes:
        policy: the inner one.
        key: takes its key out of a request; None if it has no such function.

    Raises:
        TypeError: for a `policy`, `secret` or `rng` of another type.
        ValueError: for a `cookie` that cannot be the name of one, or a `max_age` that is no whole number above 0.
    """

    def __init__(
        self,
        cookie: str = "lb_node",
        policy: Policy | Callable[[], Policy] | None = None,
        *,
        secret: str | bytes = b"",
        secure: bool = False,
        max_age: int | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if max_age is not None and (isinstance(max_age, bool) or not isinstance(max_age, int) or max_age < 1):
            raise ValueError(f"max_age must be a whole number of seconds above 0, not {max_age!r}")
        of_type("rng", rng, random.Random)
        self._token_in = cookie_key(cookie)
        self._morsel = _morsel(cookie, secure=secure, max_age=max_age)
        self._renewed = max_age is not None
        self.policy: Policy = PowerOfTwo(rng=rng) if policy is None else _made(policy)
        self.key: Key | None = getattr(self.policy, "key", None)
        # A key for the hash may have 64 bytes, and a secret any number.
        self._secret = blake2b(_as_bytes(secret)).digest()
        self._nodes: tuple[Node, ...] = ()
        # Of the current nodes: the token of each address, and the node of each token.
        self._tokens: dict[str, str] = {}
        self._holders: dict[str, Node] = {}

    def session(self, req: ClientRequest) -> str | None:
        """The value of the cookie, whoever made it; None without one."""
        return self._token_in(req)

    def pick(self, nodes: tuple[Node, ...], call: Call) -> Node:
        """The node that the cookie names, else the inner policy's choice."""
        node = None if call.session is None else self.holder(nodes, call.session)
        if node is not None and node not in call.excluded:
            return node
        return self.policy.pick(nodes, call)

    def holder(self, nodes: tuple[Node, ...], session: str) -> Node | None:
        """The node that the cookie names, if it is one of these."""
        if nodes is not self._nodes:
            self._update(nodes)
        return self._holders.get(session)

    def answered(self, node: Node, response: ClientResponse, call: Call) -> None:
        """Have the cookie name the node that answered."""
        if hasattr(self.policy, "answered"):
            self.policy.answered(node, response, call)
        token = self._tokens.get(node.address) or self._token(node.address)
        due = self._renewed if call.session == token else response.status < _FAILED
        if due:
            self._set_cookie(response, token)

    def _update(self, nodes: tuple[Node, ...]) -> None:
        self._nodes = nodes
        known = self._tokens
        self._tokens = {node.address: known.get(node.address) or self._token(node.address) for node in nodes}
        self._holders = {self._tokens[node.address]: node for node in nodes}

    def _token(self, address: str) -> str:
        return blake2b(address.encode(), key=self._secret, digest_size=16).hexdigest()

    def _set_cookie(self, response: ClientResponse, token: str) -> None:
        morsel = self._morsel.copy()
        morsel.set(morsel.key, token, token)
        # aiohttp fills the session's jar from these, once the middlewares are through. Its setter of `cookies`
        # would make them anew, and lose those of the server that differ in their paths only.
        server = response._raw_cookie_headers or ()  # noqa: SLF001 - there is no public way in
        response._raw_cookie_headers = (*server, morsel.OutputString())  # noqa: SLF001 - as above
        # They are parsed at the first look, which may have been taken.
        response.cookies[morsel.key] = morsel


def _morsel(name: str, *, secure: bool, max_age: int | None) -> Morsel[str]:
    morsel: Morsel[str] = Morsel()
    try:
        morsel.set(name, "", "")
    except CookieError as error:
        raise ValueError(f"cookie takes the name of a cookie, not {name!r}: {error}") from None
    attributes: dict[str, Any] = {"path": "/", "httponly": True, "samesite": "Lax", "secure": secure}
    if max_age is not None:
        attributes["max-age"] = max_age
    morsel.update(attributes)
    return morsel


def _made(policy: Policy | Callable[[], Policy]) -> Policy:
    made: object = policy
    # A class has the method as well.
    if callable(policy) and (isinstance(policy, type) or not isinstance(policy, Policy)):
        made = policy()
    if isinstance(made, type) or not isinstance(made, Policy):
        raise TypeError(f"policy must be a policy or a function that makes one, not {policy!r}")
    return made


def _as_bytes(secret: str | bytes) -> bytes:
    if not isinstance(secret, (str, bytes)):
        raise TypeError(f"secret must be a string or bytes, not {secret!r}")
    # What comes from the environment may have lone surrogates.
    return secret.encode(errors="surrogatepass") if isinstance(secret, str) else secret
