"""What `lbclient get` prints: the attempts as they end, one answer, or the sum of many."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

import click

from lbclient.cli.sending import Answer, Request
from lbclient.cli.standing import Change, Standing
from lbclient.cli.story import Step, steps
from lbclient.cli.tally import Tally, counted

__all__ = ["Report"]

# Seconds between two looks at all endpoints, of which there may be thousands.
_LOOK = 0.05
_MOST_CHANGES = 10
_COLOURS = {"ready": "green", "unhealthy": "yellow", "leaving": "yellow", "ejected": "red"}


class Report:
    """Takes in answers and tells what became of them.

    Args:
        request: what is sent.
        standing: the endpoints.
    """

    def __init__(self, request: Request, standing: Standing) -> None:
        self.tally = Tally()
        self._request = request
        self._standing = standing
        self._changes: list[Change] = []
        self._look_at = 0.0

    def look(self) -> None:
        """See which endpoints are out; with --explain tell it."""
        changes = self._standing.look()
        self._changes += changes
        if self._request.explain and not self._request.as_json:
            for change in changes:
                click.secho(str(change), err=True, fg=_COLOURS[change.state])

    def record(self, answer: Answer, number: int) -> None:
        """Count one of many answers; with --explain tell its attempts."""
        request = self._request
        failure = answer.failure(request)
        self.tally.record(answer.hops, answer.milliseconds, answer.status, failure)
        if request.explain and request.as_json:
            click.echo(json.dumps({"request": number} | _outcome(answer, request)), err=True)
        elif request.explain:
            _explain(steps(answer, request), f"request {number}, ")
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK
            self.look()

    def one(self, answer: Answer) -> None:
        """Print the only answer; an error is for the caller to tell."""
        request = self._request
        if request.explain and not request.as_json:
            _explain(steps(answer, request))
        self.look()
        if request.as_json:
            result = _outcome(answer, request) | {"headers": answer.headers}
            click.echo(json.dumps(result | {"body": answer.body.decode(errors="replace")} | self._service()))
        elif answer.error is None:
            where = "?" if answer.by is None else answer.by.endpoint.address
            said = f"{answer.status} {answer.reason} from {where} in {answer.milliseconds:.1f} ms"
            click.secho(said, err=True, fg="red" if answer.failure(request) else "green")
            click.echo(answer.body, nl=sys.stdout.isatty() and not answer.body.endswith(b"\n"))

    def many(self, seconds: float) -> None:
        """Print the sum of all answers so far."""
        self.look()
        result = self.tally.as_dict() | {"seconds": round(seconds, 3)} | self._service()
        if self._request.as_json:
            click.echo(json.dumps(result))
            return
        _table(self.tally)
        statuses = ", ".join(f"{count} x {status}" for status, count in result["statuses"].items()) or "no answer"
        said = f"{counted(self.tally.requests, 'request')} in {seconds:.2f} s: {statuses}"
        said = f"{said}; {self.tally.failed} failed, {self.tally.retried} retried"
        if (hedges := result["hedges"]) is not None:
            said = f"{said}, {hedges['sent']} hedged ({hedges['won']} won)"
        click.secho(f"\n{said}", fg="red" if self.tally.failed else "green")
        if self.tally.milliseconds:
            which = ", of those that did not fail" if self.tally.failed else ""
            click.echo(f"p50 {result['p50_ms']:.1f} ms, p99 {result['p99_ms']:.1f} ms{which}")
        self._tell_service(result)
        for error in self.tally.errors:
            click.echo(error, err=True)

    def _service(self) -> dict[str, Any]:
        """What became of the service meanwhile, as plain data."""
        state = self._standing.describe()
        spared = state["counts"].get("would_have_ejected", {})
        return {
            "changes": [change.as_dict() for change in self._changes],
            "would_have_ejected": {reason: count for reason, count in spared.items() if count},
            "budget": state["budget"],
            "hedges": state.get("hedges"),
        }

    def _tell_service(self, result: dict[str, Any]) -> None:
        if not self._request.explain:
            # Else each was told when it happened.
            for change in self._changes[:_MOST_CHANGES]:
                click.secho(str(change), fg=_COLOURS[change.state])
            if (more := len(self._changes) - _MOST_CHANGES) > 0:
                click.echo(f"and {counted(more, 'further change')}: --explain or --json tells them")
        for reason, count in result["would_have_ejected"].items():
            click.echo(f"would have ejected {counted(count, 'endpoint')}: {reason.replace('_', ' ')}")
        # Whether a hedge was refused or a retry is not kept apart there.
        if refused := result["budget"]["refused"]:
            click.secho(f"the retry budget refused {counted(refused, 'further attempt')}", fg="yellow")


def _outcome(answer: Answer, request: Request) -> dict[str, Any]:
    return {
        "status": answer.status,
        "ms": round(answer.milliseconds, 3),
        "error": answer.failure(request),
        "attempts": [step.as_dict() for step in steps(answer, request)],
    }


def _explain(told: Iterable[Step], prefix: str = "") -> None:
    for number, step in enumerate(told, 1):
        attempt = step.attempt
        outcome = attempt.outcome.value if attempt.outcome else "under way"
        said = f"{prefix}attempt {number}: {attempt.endpoint.address:<21}  {outcome:<9}"
        said += f" {attempt.elapsed * 1000:7.1f} ms  picked by {attempt.picked}"
        more = str(step)
        click.secho(f"{said}: {more}" if more else said, err=True, dim=not more)


def _table(tally: Tally) -> None:
    # Most registries know no priorities.
    prioritized = any(counts.priority for counts in tally.endpoints.values())
    head = f"{'endpoint':<21}  {'attempts':>8}  {'share':>6}  {'failed':>6}"
    click.secho(f"{head}  priority" if prioritized else head, dim=True)
    everything = sum(counts.requests for counts in tally.endpoints.values())
    for address, counts in sorted(tally.endpoints.items()):
        share = counts.requests / everything
        failed = click.style(f"{counts.failed:>6}", fg="yellow" if counts.failed else None)
        priority = f"  {counts.priority:>8}" if prioritized else ""
        click.echo(f"{address:<21}  {counts.requests:>8}  {share:>6.1%}  {failed}{priority}")
