"""`OutlierDetector`: takes failing nodes out, and lets them back in."""

from __future__ import annotations

import logging
import math
import random
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from lbclient.attempt import Attempt
from lbclient.ejection.ejection import Ejection
from lbclient.ejection.finding import Finding, Reason
from lbclient.ejection.probes import Probes
from lbclient.ejection.statistics import outliers
from lbclient.node import Node
from lbclient.outcome import ANSWERS, Outcome
from lbclient.routing import Lines, Routing
from lbclient.tally import Tally

__all__ = ["OutlierDetector"]

log = logging.getLogger(__name__)

# Looked up for each request.
_SUCCESS = Outcome.SUCCESS
_SAY_NOTHING = frozenset({Outcome.OURS, Outcome.LEFT})
# They are failures in a row. Of these all but ERROR, the server's own 500s, are Envoy's gateway failures.
_IN_A_ROW = frozenset({Outcome.ERROR, Outcome.GATEWAY, Outcome.FAULT, Outcome.TIMEOUT, Outcome.BROKEN})
# The server does its work, or says that it has too much of it.
_WORKS = frozenset({Outcome.SUCCESS, Outcome.OVERLOAD})
# Seconds after which a node is due again while no node is usable: the first server that is back is found within a
# second, also where the policy prefers others that fail faster.
_OUTAGE = 0.5
# After an outage, probes per second at most: with many nodes they are not looked after that often.
_PROBES = 10.0
# Lines in the log in a minute.
_LINES = 100
# A node has probes that show nothing for one part in so many of the time, or more where they take long.
_PAUSE = 100.0


class OutlierDetector:
    """Judges the nodes of one service by their attempts, by the rules of `Ejection`.

    An outcome costs a few additions. Once per interval one outcome also pays for the statistics, which look at the
    nodes that had attempts in it.

    Args:
        name: the service's name, for log lines.
        options: the rules.
        routing: knows whether a node can be spared.
        rng: where the jitter comes from.

    Attributes:
        probes: which ejected nodes are due.
        restored: how often a node came back.
        outage: whether no node is usable, or none is used; ejected ones are due soon then.
    """

    def __init__(self, name: str, options: Ejection, routing: Routing, rng: random.Random) -> None:
        self.probes = Probes(patience=options.base)
        self.restored = 0
        self.outage = False
        self._recovers_until = -math.inf
        self._say = Lines(log, name, _LINES).say
        self._options = options
        self._routing = routing
        self._random = rng.random
        self._connect_failures = options.connect_failures or math.inf
        self._failures = options.failures or math.inf
        self._gateway_failures = options.gateway_failures or math.inf
        self._has_statistics = options.success_rate_deviations is not None or options.failure_rate is not None
        self._nodes: Mapping[str, Node] = {}
        self._ejected = 0
        # It is not said with each failure that more nodes should be out than may be.
        self._quiet_until = -math.inf
        # Nodes with attempts in this interval, and its end: an interval begins with its first attempt.
        self._listed: list[Node] = []
        self._interval_until = math.inf
        self._ejections: Counter[Reason] = Counter()
        self._would_have: Counter[Reason] = Counter()

    def settle(self, nodes: Mapping[str, Node], now: float, *, halted: bool) -> None:
        """Take in who is there, in what state, and whether a panic keeps all requests back, after any change."""
        self._nodes = nodes
        ejected = [node for node in nodes.values() if node.ejected_at is not None]
        # Where no node has a weight those of weight 0 are as good as any.
        weightless = not any(node.weight > 0 for node in nodes.values())
        halted = halted or not any(not node.out and (weightless or node.weight > 0) for node in nodes.values())
        outage = bool(nodes) and halted
        if outage is not self.outage:
            self.outage = outage
            self._recovers_until = now + self._options.cap
            for node in ejected:
                if outage:
                    node.ejected_until = min(node.ejected_until or now, now + self._jittered(_OUTAGE))
                else:
                    # The one that is back would have all requests for as long as the others are out.
                    node.ejected_until = now + self._options.interval * self._random()
        self._ejected = len(ejected)
        self.probes.rebuild(ejected, weightless=weightless or outage)

    def observe(self, attempt: Attempt, outcome: Outcome, now: float) -> Collection[Node]:
        """Take in an outcome; returns the nodes that were taken out or let in by it."""
        node = attempt.node
        if node.ejected_at is not None:
            # Attempts that began before the ejection say nothing new. Later ones are the probe, or went there
            # because nothing else was left: those may bring it back as well.
            is_later = attempt.started_at >= node.ejected_at
            return self._observe_ejected(node, attempt, outcome, now) if is_later else ()
        if attempt.started_at < node.returned_at or outcome in _SAY_NOTHING:
            return ()
        tally = node.tally or node.begin_tally()
        changed: Collection[Node] = ()
        if outcome is _SUCCESS:
            node.connect_failures = 0
            tally.successes += 1
        elif outcome is Outcome.OVERLOAD:
            node.connect_failures = 0
            return ()
        else:
            tally.failed += 1
            changed = self._fail(node, tally, attempt, outcome, now)
        if self._has_statistics:
            tally.seen += 1
            if not tally.listed:
                self._list(node, tally, now)
        if now >= self._interval_until:
            return (*changed, *self._judge_interval(now))
        return changed

    def observe_body(self, attempt: Attempt, now: float) -> Collection[Node]:
        """Take in that the body broke off after the head was counted as a success; returns the same."""
        node = attempt.node
        tally = node.tally or node.begin_tally()
        if node.ejected_at is not None:
            return ()
        if attempt is node.probe and not tally.successes:
            return self._eject(Finding(node, Reason.PROBE, "the body of its probe's answer broke off"), now)
        if attempt.started_at < node.returned_at:
            return ()
        tally.failed += tally.failed < tally.seen
        tally.fail_late(node.attempts)
        return self._judge_row(node, tally, attempt, Outcome.FAULT, now)

    def restore(self, node: Node, probe: Attempt | None, now: float) -> Collection[Node]:
        """Let a node back in, thanks to this attempt or a health check."""
        out_for = 0.0 if node.ejected_at is None else now - node.ejected_at
        node.restore(now, probe)
        if node.tally is not None:
            node.tally.forget()
        self.restored += 1
        self._say(now, logging.INFO, "%s is back in service, %.0f s after it last failed", node.address, out_for)
        return (node,)

    def as_dict(self) -> dict[str, Any]:
        """Counters, for metrics."""
        return {
            "ejections": {reason.value: self._ejections[reason] for reason in Reason},
            "would_have_ejected": {reason.value: self._would_have[reason] for reason in Reason},
            "restored": self.restored,
        }

    def _observe_ejected(self, node: Node, attempt: Attempt, outcome: Outcome, now: float) -> Collection[Node]:
        is_probe = attempt is node.probe
        if outcome in _SAY_NOTHING:
            if is_probe:
                node.probe = None
                # Where callers give up, a silent node would have one request after the other.
                longest = _OUTAGE if self.outage else min(self._options.interval, self._options.base)
                pause = min(longest, _PAUSE * (now - attempt.started_at))
                node.ejected_until = max(node.ejected_until or now, now + pause)
                self.probes.add(node)
            return ()
        if outcome in (ANSWERS if node.unreachable else _WORKS):
            return self.restore(node, attempt, now)
        if outcome is Outcome.CONNECT:
            node.connect_failures += 1
        if is_probe:
            self._eject(Finding(node, Reason.PROBE, f"its probe failed: {_said(attempt, outcome)}"), now)
        return ()

    def _fail(self, node: Node, tally: Tally, attempt: Attempt, outcome: Outcome, now: float) -> Collection[Node]:
        if outcome is Outcome.CONNECT:
            node.connect_failures += 1
            if node.connect_failures < self._connect_failures:
                return ()
            because = f"{node.connect_failures} failed connections in a row, the last: {_said(attempt, outcome)}"
            return self._eject(Finding(node, Reason.CONNECT_FAILURES, because), now)
        if outcome in ANSWERS:
            node.connect_failures = 0
        tally.fail(node.attempts, gateway=outcome is not Outcome.ERROR)
        return self._judge_row(node, tally, attempt, outcome, now)

    def _judge_row(
        self, node: Node, tally: Tally, attempt: Attempt, outcome: Outcome, now: float
    ) -> Collection[Node]:
        last = f"in a row, the last: {_said(attempt, outcome)}"
        if tally.gateway_in_row >= self._gateway_failures:
            because = f"{tally.gateway_in_row} gateway failures {last}"
            return self._eject(Finding(node, Reason.GATEWAY_FAILURES, because), now)
        if tally.in_row >= self._failures:
            return self._eject(Finding(node, Reason.FAILURES, f"{tally.in_row} failures {last}"), now)
        return ()

    def _list(self, node: Node, tally: Tally, now: float) -> None:
        """The first attempt of a node in this interval."""
        if not self._listed:
            self._interval_until = now + self._options.interval
        self._listed.append(node)
        tally.listed = True

    def _judge_interval(self, now: float) -> list[Node]:
        """Take the statistics, and begin another interval with the next attempt."""
        # After a pause of a whole interval nobody cares any more.
        is_late = now >= self._interval_until + self._options.interval
        counts: list[tuple[Node, int, int]] = []
        for node in self._listed:
            tally = node.tally
            if tally is None:
                continue
            if tally.seen and node.ejected_at is None and not node.left:
                counts.append((node, tally.seen, tally.failed))
            tally.seen = tally.failed = 0
            tally.listed = False
        if is_late:
            counts = []
        self._listed = []
        self._interval_until = math.inf
        return [node for finding in outliers(counts, self._options) for node in self._eject(finding, now)]

    def _eject(self, finding: Finding, now: float) -> Collection[Node]:
        """Take the node out if that is allowed, or leave it out for longer; returns it if it was in."""
        node, reason, because = finding
        was_in = node.ejected_at is None
        if not self._options.enforce:
            self._note_only(finding, now)
            return ()
        if was_in and reason is not Reason.CONNECT_FAILURES and not self._can_spare(node):
            if now >= self._quiet_until:
                self._quiet_until = now + self._options.base
                said = "%s fails and stays in, since no more nodes may be out, or none would be left: %s"
                self._say(now, logging.WARNING, said, node.address, because)
            return ()
        if was_in:
            healthy = max(0.0, now - node.returned_at)
            node.ejections = max(0, node.ejections - int(healthy / self._options.base))
            self._ejected += 1
        if self.outage:
            seconds = _OUTAGE
        elif now < self._recovers_until and self._ejected > len(self._nodes) / 2:
            # The others come back one by one, and until then the first ones have all requests.
            seconds = min(self._options.base, max(self._options.interval, self._ejected / _PROBES))
        else:
            # Beyond 32 doublings the cap holds anyway; the power would overflow some day.
            seconds = min(self._options.cap, self._options.base * 2 ** min(node.ejections, 32))
            node.ejections += 1
        seconds = self._jittered(seconds)
        node.eject(now, now + seconds, because, unreachable=reason is Reason.CONNECT_FAILURES)
        self.probes.add(node)
        self._ejections[reason] += 1
        # In an outage each node is probed twice a second.
        if self.outage and not was_in:
            log.debug("%s: the probe of an outage failed: %s", node.address, because)
        else:
            self._say(now, logging.WARNING, "%s is ejected for %.0f s: %s", node.address, seconds, because)
        return (node,) if was_in else ()

    def _note_only(self, finding: Finding, now: float) -> None:
        node, reason, because = finding
        if node.tally is None or now < node.tally.quiet_until:
            return
        node.tally.quiet_until = now + self._options.base
        self._would_have[reason] += 1
        self._say(now, logging.WARNING, "%s would have been ejected: %s", node.address, because)

    def _can_spare(self, node: Node) -> bool:
        # The small addition keeps floats from turning 29 into 28.
        most = max(1.0, self._options.max_ejected * len(self._nodes) + 1e-9)
        return self._ejected + 1 <= most and self._routing.can_spare(node, self._nodes.values())

    def _jittered(self, seconds: float) -> float:
        return seconds * (1 + self._options.jitter * self._random())


def _said(attempt: Attempt, outcome: Outcome) -> str:
    return attempt.error or outcome.value
