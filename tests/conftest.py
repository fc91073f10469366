"""For all tests: what counts in a random story is what comes out of it, and never how long it took."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# By default an example that takes 200 ms is a failure, and on a busy machine that is any.
settings.register_profile("suite", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
