"""For all tests: what counts in a random story is what comes out of it, and never how long it took."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

# By default an example that takes 200 ms is a failure, and on a busy machine that is any. And to explain a failure
# each line of its examples is traced: a story is slow then, and what was reported was a test that ran out of time.
settings.register_profile(
    "suite",
    settings.default,
    deadline=None,
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
