"""One Consul agent as all its clients in one event loop share it: connections, and turns to wait for changes."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from discovery.connection import new_session
from discovery.source import SourceError
from discovery.tls import TLS

__all__ = ["Agent", "Lease", "agent_at"]

log = logging.getLogger(__name__)

# An agent takes 200 connections of one client address (`http_max_conns_per_client`); other programs may be there.
_LONGEST_QUEUE = 150
_CONNECTIONS = 180
_WAIT_AGAIN_AFTER = 60.0  # seconds after the last refusal
_BETWEEN_CUTS = 1.0  # seconds: refusals that come together are one

_Stamp = tuple[object, ...]


@dataclass(slots=True, eq=False)
class Lease:
    """A session that one or more clients use."""

    session: aiohttp.ClientSession
    stamp: _Stamp
    users: int = 0


class Agent:
    """What the clients of one agent share.

    Not thread-safe, and of one event loop: `agent_at` finds the one of the running loop.

    A query that waits and that nobody wants any more is carried on by Consul to the end of its wait, and so long
    its connection counts: the turn is given back only then.

    Attributes:
        waiting: how many of the turns to wait for changes are taken.
    """

    def __init__(self, url: str, tls: TLS | None) -> None:
        self.url = url
        self.waiting = 0
        self._abandoned: list[float] = []  # when these queries will have ended
        self._longest = _LONGEST_QUEUE
        self._refused_at = float("-inf")
        self._tls = tls
        self._context: tuple[_Stamp, TLS] | None = None
        self._current: Lease | None = None
        self._users = 0

    def enter(self) -> Lease:
        """The shared session; a new one if there is none, or if files with certificates were replaced since.

        Raises:
            SourceError: a file with certificates cannot be used now.
        """
        stamp = _stamp(self._tls)
        if self._current is None or self._current.stamp != stamp:
            self._current = Lease(new_session(self._loaded(stamp), limit=_CONNECTIONS), stamp)
        self._current.users += 1
        self._users += 1
        return self._current

    async def leave(self, lease: Lease) -> None:
        """End what `enter` began; the last one closes the session."""
        lease.users -= 1
        self._users -= 1
        if not lease.users:
            self.doubt(lease)
            await lease.session.close()

    def doubt(self, lease: Lease) -> None:
        """Give this session to nobody else: its idle connections may be as dead as the one that fell silent."""
        if self._current is lease:
            self._current = None

    @property
    def idle(self) -> bool:
        """Whether nobody uses it, and nothing is left at the agent."""
        return not self._users and not self._still_there()

    def take_turn(self) -> bool:
        """Whether one more may wait for changes; end that with `end_turn`."""
        if time.monotonic() - self._refused_at > _WAIT_AGAIN_AFTER:
            self._longest = _LONGEST_QUEUE
        if self.waiting >= _LONGEST_QUEUE:
            self.say(f"{_LONGEST_QUEUE} services wait for changes, it would not take more: others ask every 2 s")
        if self.waiting + self._still_there() >= self._longest:
            return False
        self.waiting += 1
        return True

    def may_go_on(self) -> bool:
        """Whether one that has a turn may wait once more."""
        return self.waiting <= self._longest

    def end_turn(self, *, busy_until: float = 0.0) -> None:
        """Somebody else may wait, at once or from that moment on (of the monotonic clock)."""
        self.waiting -= 1
        self._abandoned.append(busy_until)

    def refused(self) -> None:
        """The agent has too many connections: fewer may wait, so that those who ask have some to use."""
        self.say("it refuses connections: for a minute fewer services wait for changes, others ask every 2 s")
        now = time.monotonic()
        if now - self._refused_at > _BETWEEN_CUTS:
            self._longest = max(1, min(self._longest, self.waiting or self._longest) * 3 // 4)
        self._refused_at = now

    def gone(self) -> None:
        """There is no agent now: what it had to do for us is gone as well."""
        self._abandoned.clear()
        self._longest = _LONGEST_QUEUE

    def _still_there(self) -> int:
        now = time.monotonic()
        self._abandoned = [until for until in self._abandoned if until > now]
        return len(self._abandoned)

    def say(self, text: str) -> None:
        """Log what is true of the agent, once in a process."""
        if (self.url, text) not in _said:
            _said.add((self.url, text))
            log.warning("Consul at %s: %s", self.url, text)

    def _loaded(self, stamp: _Stamp) -> TLS | None:
        # Reading the system's authorities takes 10 ms and more: not again for each session after an outage.
        if self._tls is None:
            return None
        if self._context is None or self._context[0] != stamp:
            try:
                self._context = stamp, TLS(context=self._tls.load())
            except ValueError as error:
                raise SourceError(str(error)) from error
        return self._context[1]


def agent_at(url: str, tls: TLS | None) -> Agent:
    """The agent that clients of the running event loop share if they speak to it in the same way."""
    for loop in tuple(_agents):
        if loop.is_closed():
            _agents.pop(loop, None)
    known = _agents.setdefault(asyncio.get_running_loop(), {})
    for key in [key for key, agent in known.items() if agent.idle]:
        del known[key]
    return known.setdefault((url, tls), Agent(url, tls))


_agents: dict[asyncio.AbstractEventLoop, dict[tuple[str, TLS | None], Agent]] = {}
_said: set[tuple[str, str]] = set()


def _stamp(tls: TLS | None) -> _Stamp:
    files = () if tls is None else (tls.ca, tls.cert, tls.key)
    return tuple(_state(file) for file in files if file)


def _state(file: str | Path) -> object:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
