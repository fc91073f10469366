"""`Announcer`: says in the log when requests begin or end to go elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lbclient.routing.lines import Lines
from lbclient.routing.portion import Portion

__all__ = ["Announcer"]

log = logging.getLogger(__name__)

# Lines in a minute.
_MOST = 20


class Announcer:
    """Compares the portions with those before, and logs once what began and what ended.

    Args:
        name: of the service.
        panic: what a panic is; see `Routing`.
    """

    def __init__(self, name: str, panic: str) -> None:
        self._say = Lines(log, name, _MOST).say
        self._panic = panic
        self._halted = False
        self._panics: dict[str, None] = {}
        self._taking: list[str] = []

    def note(self, portions: Sequence[Portion], nodes: int, now: float) -> None:
        """Take in the portions, and how many nodes there are, after a change of the nodes or their health."""
        halted = bool(nodes) and not portions
        if halted and not self._halted:
            said = "panic, too few of %d nodes are usable: requests %s"
            self._say(now, logging.WARNING, said, nodes, self._panic)
        elif self._halted and portions:
            self._say(now, logging.INFO, "panic is over")
        self._halted = halted
        panics = {portion.name: None for portion in portions if portion.panic}
        for portion in portions:
            if portion.panic and portion.name not in self._panics:
                said = "panic, too few nodes are usable: all %d are taken, usable or not%s"
                where = portion.name and f" ({portion.name})"
                self._say(now, logging.WARNING, said, len(portion.nodes), where)
        for name in self._panics:
            if name not in panics:
                self._say(now, logging.INFO, "panic is over%s", name and f" ({name})")
        self._panics = panics
        taking = [portion.name for portion in portions if portion.share > 0]
        # What begins with one portion is as it should be.
        if taking and taking != self._taking and (self._taking or len(taking) > 1):
            where = ", ".join(
                f"{portion.name or 'all nodes'} {portion.share:.1%}" for portion in portions if portion.share > 0
            )
            self._say(now, logging.INFO, "requests go to %s", where)
        self._taking = taking or self._taking
