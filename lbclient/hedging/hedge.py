"""`Hedge`: a second attempt for requests that take long, and the first answer wins."""

from __future__ import annotations

from dataclasses import dataclass

from lbclient.options import at_least, finite, within

__all__ = ["Hedge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """A second attempt at another node when the first has no answer yet (The Tail at Scale; gRFC A6).

    The first useful answer wins: one that `Retry` would not repeat. As long as there are failures only, the other
    attempt is waited for; if both fail, the request goes on as after any failure.

    Only for idempotent requests (`Retry.methods`, or an `Idempotency-Key`) without a body or with one of bytes in
    memory (JSON and plain forms are such); never for websockets, nor with an `upload_tracker`. There is none if no
    other usable node is left that was not tried and has room, or when `Retry.attempts` are used up: a hedge is one
    of them. It costs the retry budget as much as a retry, so that servers that all get slow, however slow, see at
    most the budget's share of extra requests. The loser never counts against its server.

    Attributes:
        after: seconds to wait for the first attempt; None for the percentile (gRFC A6, `hedgingDelay`).
        percentile: 0 to 1, of the last 1000 latencies; no hedges before 100 are known (The Tail at Scale, 95th).
        linger: seconds for which a loser may still answer, so that its connection can be kept; then it is closed.

    Raises:
        ValueError: at construction, for a wrong value.
    """

    after: float | None = None
    percentile: float = 0.95
    linger: float = 1.0

    def __post_init__(self) -> None:
        if self.after is not None:
            at_least("after", self.after, 0)
            finite("after", self.after)
        within("percentile", self.percentile, 0, 1)
        at_least("linger", self.linger, 0)
        finite("linger", self.linger)
