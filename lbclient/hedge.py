"""`Hedge`: a second attempt for requests that take long, and the first answer wins."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Hedge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """A second attempt at another node when the first has no answer yet (The Tail at Scale; gRFC A6).

    Only for idempotent requests whose body can be sent twice at the same time. A hedge costs the retry budget as
    much as a retry, so that slow servers get at most the budget's share of extra requests.

    Attributes:
        after: seconds to wait for the first attempt; None for the percentile.
        percentile: of the latencies of late, 0 to 1; there are no hedges before enough of them are known.
        linger: seconds for which the loser may still answer, so that its connection can be kept; then it is cut.
    """

    after: float | None = None
    percentile: float = 0.95
    linger: float = 1.0
