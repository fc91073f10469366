"""Every sequence of up to eight checks leads to the state that a model finds by looking at the whole of it."""

from __future__ import annotations

import copy
import re

import pytest

from lbclient import HealthCheck
from lbclient.health.state import HealthState, Verdict

LETTERS = {"o": Verdict.OK, "f": Verdict.FAILED, "d": Verdict.DRAINING, "u": Verdict.UNKNOWN}
LENGTH = 8


class Model:
    """What a sequence of checks, written as letters, means: it is looked at from the end, without any counting."""

    def __init__(self, check: HealthCheck) -> None:
        self._ill = re.compile(rf"(?=f{{{check.unhealthy_threshold}}})")
        self._well = re.compile(rf"(?=o{{{check.healthy_threshold}}})")
        self._check = check

    def healthy(self, checks: str) -> bool:
        ill = max((m.start() + self._check.unhealthy_threshold for m in self._ill.finditer(checks)), default=0)
        well = max((m.start() + self._check.healthy_threshold for m in self._well.finditer(checks)), default=0)
        if self._check.mandatory:
            if "o" not in checks:
                return False
            well = max(well, checks.index("o") + 1)
        return well > ill or not (ill or well)

    def leaving(self, checks: str) -> bool:
        return checks.replace("f", "").endswith("d")


@pytest.mark.parametrize(
    ("down", "up", "mandatory"), [(3, 2, False), (3, 2, True), (1, 1, False), (1, 3, True), (2, 3, False)]
)
def test_all_sequences_of_checks(down: int, up: int, mandatory: bool) -> None:
    check = HealthCheck(unhealthy_threshold=down, healthy_threshold=up, mandatory=mandatory)
    model = Model(check)
    seen = 0

    def follow(state: HealthState, checks: str, left: int) -> None:
        nonlocal seen
        seen += 1
        assert (state.healthy, state.leaving) == (model.healthy(checks), model.leaving(checks)), checks
        assert state.successes == len(checks) - len(checks.rstrip("o"))
        assert state.failures == len(checks) - len(checks.rstrip("f"))
        for letter, verdict in LETTERS.items() if left else ():
            after = copy.copy(state)
            changed = after.learn(verdict)
            assert changed is ((after.healthy, after.leaving) != (state.healthy, state.leaving))
            follow(after, checks if letter == "u" else checks + letter, left - 1)

    follow(HealthState(check), "", LENGTH)
    assert seen == sum(4**length for length in range(LENGTH + 1))
