"""Users of etcd: one token per user and cluster, shared by all clients and renewed when it is refused."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any
from weakref import WeakValueDictionary

from discovery.etcd.wire import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    PERMISSION_DENIED,
    UNAUTHENTICATED,
    EtcdError,
)
from discovery.source import SourceError

__all__ = ["Authentication", "Password", "canceled_for_token", "needs_token", "shared_authentication"]

log = logging.getLogger(__name__)

Password = str | Callable[[], str]
_Ask = Callable[[Mapping[str, str]], Awaitable[Mapping[str, Any]]]

# Seconds without another try after a refusal: a check costs the server 75 ms of CPU, by design (bcrypt). With a
# password that stays wrong the time doubles; a new password from a function is tried at once.
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 30.0
# With code 3, in etcd's words: a call without a token, and (JWT) a token from before the last change of a role.
_NEEDS_TOKEN = ("user name is empty", "revision of auth store is old", "revision in header is old")


class Authentication:
    """A user of one cluster, and the token it has now.

    All members know a token, but each forgets it by its own clock (a simple token after 300 s without a call
    to that member) or in a restart. So there is one token for all, and the first call that is refused renews it;
    those that are refused meanwhile wait for that. It may be used in several event loops, not in several threads.

    Args:
        user: the user's name.
        password: its password, or a function that returns the one to authenticate with now; it must not block.

    Raises:
        TypeError: one of them is no text.
        ValueError: one of them is missing.
    """

    def __init__(self, user: str, password: Password) -> None:
        if not isinstance(user, str):
            raise TypeError(f"user must be a string, not {type(user).__name__}")
        if not (isinstance(password, str) or callable(password)):
            raise TypeError(f"password must be a string or a function, not {type(password).__name__}")
        if not user or not password:
            raise ValueError("a user needs a name" if not user else f"user {user!r} needs a password")
        self.user = user
        self._password = password
        self._token: str | None = None
        self._renewal: asyncio.Future[str | SourceError | None] | None = None
        self._renewal_at = ""
        self._tried = ""
        self._refused: tuple[str, float] = ("", 0.0)
        self._refusals = 0
        self._warned = False

    def __repr__(self) -> str:
        return f"<Authentication of user {self.user!r}>"

    async def token(self, ask: _Ask, url: str, *, refused: str | None = None) -> str:
        """The token for the next call; "" if etcd does not want any.

        Args:
            ask: sends the body of an authentication to one member.
            url: that member's, for messages.
            refused: the token that is not to be used again, if it is still this one.

        Raises:
            SourceError: there is none. If user and password were refused, neither this member nor another one is
                asked again for 5 s or a little more, and later longer; `retry_after` is what is left of it.
        """
        while self._token is None or self._token == refused:
            password = self._current_password(url)
            self._expect_not_refused(password)
            other = self._renewal
            if other is None or other.get_loop() is not asyncio.get_running_loop():
                return await self._renew(ask, url, password)
            url_asked = self._renewal_at
            # Shielded: this caller may be cancelled, the one that renews and the others go on.
            outcome = await asyncio.shield(other)
            if isinstance(outcome, str):
                return outcome
            if outcome is not None and url_asked == url:
                raise SourceError(str(outcome), retry_after=outcome.retry_after)
        return self._token

    def forget(self, token: str) -> None:
        """Not to use this token again."""
        if self._token == token:
            self._token = None

    def redact(self, content: bytes) -> bytes:
        """What a server sent, without password and token: somebody's error page may repeat the request."""
        secrets = (self._token or "", self._tried, json.dumps(self._tried)[1:-1])
        for secret in filter(None, secrets):
            content = content.replace(secret.encode(), b"***")
        return content

    def _current_password(self, url: str) -> str:
        if isinstance(self._password, str):
            return self._password
        try:
            password = self._password()
        except Exception as error:  # noqa: BLE001 - somebody else's function; its message may be a secret
            why = f"the function that gives it failed with {type(error).__name__}"
        else:
            if isinstance(password, str) and password:
                return password
            why = f"the function that gives it returned {type(password).__name__ if password else 'nothing'}"
        raise SourceError(f"etcd at {url}: no password for user {self.user!r}: {why}", retry_after=_FIRST_PAUSE)

    def _expect_not_refused(self, password: str) -> None:
        why, until = self._refused
        left = until - asyncio.get_running_loop().time()
        if left > 0 and password == self._tried:
            raise SourceError(why, retry_after=left)

    async def _renew(self, ask: _Ask, url: str, password: str) -> str:
        renewal = self._renewal = asyncio.get_running_loop().create_future()
        self._renewal_at = url
        outcome: str | SourceError | None = None
        try:
            outcome = self._token = await self._authenticate(ask, url, password)
        except SourceError as error:
            outcome = SourceError(str(error), retry_after=error.retry_after)
            raise
        else:
            return outcome
        finally:
            if self._renewal is renewal:
                self._renewal = None
            renewal.set_result(outcome)

    async def _authenticate(self, ask: _Ask, url: str, password: str) -> str:
        self._warn_of_plain_text(url)
        self._tried = password
        try:
            answer = await ask({"name": self.user, "password": password})
        except EtcdError as error:
            if error.code == FAILED_PRECONDITION and "not enabled" in str(error):
                if self._token != "":
                    log.warning("%s: authentication is not switched on, user %r is not needed", url, self.user)
                return ""
            if error.code not in (INVALID_ARGUMENT, PERMISSION_DENIED, UNAUTHENTICATED):
                raise
            raise self._refusal(url) from None
        token = answer.get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise SourceError(f"etcd at {url}: the answer to user {self.user!r} has no token")
        self._refusals = 0
        return token

    def _refusal(self, url: str) -> SourceError:
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._refusals)
        # Never sooner; later by a random share, so that the instances of a service do not ask all at once.
        pause *= random.uniform(1, 1.2)
        self._refusals = min(self._refusals + 1, 10)
        why = f"etcd at {url}: user {self.user!r} and its password were refused"
        self._refused = why, asyncio.get_running_loop().time() + pause
        return SourceError(why, retry_after=pause)

    def _warn_of_plain_text(self, url: str) -> None:
        scheme, _, member = url.partition("://")
        if scheme == "https" or self._warned or _is_loopback(member.rpartition(":")[0]):
            return
        self._warned = True
        log.warning("the password of user %r goes to etcd at %s unencrypted: use TLS", self.user, url)


def needs_token(error: EtcdError) -> bool:
    """Whether a call failed for want of a valid token, so that a new one may help."""
    return error.code == UNAUTHENTICATED or (
        error.code == INVALID_ARGUMENT and any(words in str(error) for words in _NEEDS_TOKEN)
    )


def canceled_for_token(reason: str) -> bool:
    """Whether a watch may have been canceled for its token; etcd 3.5.1 says "permission denied" then."""
    return any(words in reason for words in (*_NEEDS_TOKEN, "invalid auth token", "permission denied"))


_known: WeakValueDictionary[tuple[Any, ...], Authentication] = WeakValueDictionary()


def shared_authentication(
    members: Iterable[str], user: str | None, password: Password | None
) -> Authentication | None:
    """The `Authentication` of this user at these members; the same one for all that ask for the same.

    Fifty services in one registry are one user: they authenticate once, and back off together.

    Raises:
        TypeError, ValueError: as `Authentication`.
    """
    if user is None and password is None:
        return None
    if user is None or password is None:
        raise ValueError("give both user and password, or neither")
    made = Authentication(user, password)
    # A function is known by its identity: not every one can be hashed, and this one lives as long as the entry.
    secret = password if isinstance(password, str) else id(password)
    return _known.setdefault((frozenset(members), user, secret), made)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
