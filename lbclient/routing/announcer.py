"""`Announcer`: says in the log when requests begin or end to go elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lbclient.routing.portion import Portion

__all__ = ["Announcer"]

log = logging.getLogger(__name__)


class Announcer:
    """Compares the portions with those before, and logs once what began and what ended.

    Args:
        name: of the service.
        panic: what a panic is; see `Routing`.
    """

    def __init__(self, name: str, panic: str) -> None:
        self._name = name
        self._panic = panic
        self._halted = False
        self._panics: dict[str, None] = {}
        self._taking: list[str] = []

    def note(self, portions: Sequence[Portion], nodes: int) -> None:
        """Take in the portions, and how many nodes there are, after a change of the nodes or their health."""
        halted = bool(nodes) and not portions
        if halted and not self._halted:
            log.warning("%s: panic, too few of %d nodes are usable: requests %s", self._name, nodes, self._panic)
        elif self._halted and portions:
            log.info("%s: panic is over", self._name)
        self._halted = halted
        panics = {portion.name: None for portion in portions if portion.panic}
        for portion in portions:
            if portion.panic and portion.name not in self._panics:
                said = "%s: panic, too few nodes are usable: all %d are taken, usable or not%s"
                log.warning(said, self._name, len(portion.nodes), portion.name and f" ({portion.name})")
        for name in self._panics:
            if name not in panics:
                log.info("%s: panic is over%s", self._name, name and f" ({name})")
        self._panics = panics
        taking = [portion.name for portion in portions if portion.share > 0]
        # What begins with one portion is as it should be.
        if taking and taking != self._taking and (self._taking or len(taking) > 1):
            where = ", ".join(
                f"{portion.name or 'all nodes'} {portion.share:.1%}" for portion in portions if portion.share > 0
            )
            log.info("%s: requests go to %s", self._name, where)
        self._taking = taking or self._taking
