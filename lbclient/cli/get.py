"""`lbclient get`: a request, or many, through a `BalancedSession`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from lbclient.cli import arguments
from lbclient.cli.report import Report
from lbclient.cli.running import FAILED, NO_ENDPOINTS, Failure, Unreachable, opened, run
from lbclient.cli.sending import Request, send
from lbclient.cli.settings import PARTS, Settings
from lbclient.cli.standing import Standing
from lbclient.errors import NoEndpoints
from lbclient.health import HealthCheck
from lbclient.options import service_host
from lbclient.policies import DEFAULT, POLICIES
from lbclient.policies.hashing import Hashing
from lbclient.retrying import Retry
from lbclient.session import BalancedSession

__all__ = ["get"]

# The first answer of a registry comes within milliseconds; a longer wait is for one that is just coming back.
_WAIT = 5.0
_TCP = "tcp"
_POLL = 0.01
_STATUSES = ",".join(map(str, sorted(Retry().statuses)))
_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("url")
@click.argument("path", callback=arguments.path)
@click.option("--service", metavar="NAME", help="Logical name, sent as Host; taken from the URL by default.")
@click.option(
    "-n",
    "--number",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    is_eager=True,
    show_default=True,
    help="How many requests.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    show_default=True,
    help="How many at a time.",
)
@click.option(
    "-X", "--method", metavar="METHOD", callback=arguments.method, help="GET by default; POST with --data."
)
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'K: V'", callback=arguments.headers, help="A header."
)
@click.option("-d", "--data", metavar="TEXT", help="Body of the request.")
@click.option(
    "--timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds for each request with all its attempts.",
)
@click.option(
    "--policy",
    type=click.Choice(list(POLICIES)),
    default=DEFAULT,
    metavar="NAME",
    help=f"How endpoints are picked: {', '.join(POLICIES)}.  [default: {DEFAULT}]",
)
@click.option("--key", metavar="TEXT", help="For ring_hash and maglev: the same key goes to the same endpoint.")
@click.option(
    "--where",
    multiple=True,
    metavar="K=V",
    callback=arguments.where,
    help="Only endpoints with this metadata; may be repeated. If there is none, nothing is sent.",
)
@click.option("--attempts", type=click.IntRange(1), metavar="N", help="For each request.  [default: 3]")
@click.option(
    "--attempt-timeout", type=_SECONDS, metavar="S", help="Seconds for one attempt.  [default: as --timeout]"
)
@click.option(
    "--retry-status",
    metavar="LIST",
    callback=arguments.statuses,
    help=f"Statuses after which a request that may be sent twice is tried again.  [default: {_STATUSES}]",
)
@click.option(
    "--hedge",
    metavar="WHEN",
    callback=arguments.hedge,
    help="Send it to another endpoint as well if there is no answer after so many seconds (0.2), or after that "
    "percentile of the latencies (p95).",
)
@click.option(
    "--health-check",
    metavar="PATH",
    help="Ask all endpoints for this before and meanwhile: those whose status is not 200 to 299 get no requests "
    "if there are others. With tcp they are only connected to.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="OPTION=VALUE",
    help="Any other option of the library, such as ejection.base=5, ejection.enforce=false, retry.backoff=0.1, "
    "budget.share=0, limits.per_node=10, health_check.interval=1, routing.zone=east, routing.panic=fail or "
    f"deadline_header=X-Deadline-Ms; may be repeated. There are those of {', '.join(PARTS)}.",
)
@click.option(
    "--explain", is_flag=True, help="Tell each attempt: where, why there, what came of it and what then."
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the result as one JSON object; with -n and --explain one for each request on standard error, too.",
)
def get(*, policy: str, assignments: Sequence[str], **options: Any) -> None:
    """Send a request, or many, to a service.

    Each attempt of each request for PATH goes to an endpoint that the balancer picks among those at URL. The body
    goes to standard output, the status to standard error; with -n a summary goes to standard output.

    What fails is tried again at another endpoint if that does no harm: POST and PATCH only if nothing was sent, or
    with -H 'Idempotency-Key: ...'. Endpoints that fail again and again are taken out ("ejected") for 30 s.

    Exit codes: 0 if all was well, 1 if a request failed or its status was 400 or more, 2 for wrong usage,
    3 if there was no endpoint to send to.

    \b
      lbclient get etcd://127.0.0.1:2379/services/users/ /v1/users/42 --explain
      lbclient get static://127.0.0.1:8001,127.0.0.1:8002 /health -n 1000 -c 20
      lbclient get consul://127.0.0.1:8500/users /v1/users/42 -n 1000 -c 20 \\
          --retry-status 500,502,503,504 --attempt-timeout 1 --hedge p95 --health-check /healthz
    """  # noqa: D301 - click leaves alone what stands below a backspace
    settings = _settings(assignments, options)
    library = settings.options()
    request = Request(**options, retry=library.get("retry") or Retry())
    if request.key is None and isinstance(POLICIES[policy](), Hashing):
        raise click.UsageError(f"--policy {policy} needs a --key to hash")
    run(_get(request, policy=policy, **library))


def _settings(assignments: Sequence[str], options: dict[str, Any]) -> Settings:
    """Take the options out that are the library's."""
    settings = Settings()
    settings.read(assignments)
    for option, name in (
        ("attempts", "retry.attempts"),
        ("attempt_timeout", "attempt_timeout"),
        ("retry_status", "retry.statuses"),
        ("where", "routing.where"),
    ):
        if (value := options.pop(option)) is not None:
            settings.give(name, value, f"--{option.replace('_', '-')}")
    if (hedge := options.pop("hedge")) is not None:
        settings.give(f"hedge.{hedge[0]}", hedge[1], "--hedge")
    if (path := options.pop("health_check")) is not None:
        settings.give("health_check.path", None if path == _TCP else path, "--health-check")
        # Who asks for it here wants to see its effect at once.
        settings.given.setdefault("health_check.mandatory", True)
    if "routing.where" in settings.given:
        settings.given.setdefault("routing.fallback", "none")
    return settings


async def _get(request: Request, **options: Any) -> int:
    source = opened(request.url)
    try:
        service_host(request.name)
    except ValueError as error:
        raise click.UsageError(f"{error}; another name can be given with --service") from None
    try:
        session = BalancedSession({request.name: source}, timeout=request.timeout, **options)
    except (ValueError, TypeError) as error:
        raise click.UsageError(str(error)) from None
    standing = Standing(session, request.name)
    async with session:
        try:
            await session.ready(min(_WAIT, request.timeout))
        except TimeoutError as error:
            raise Unreachable(f"no endpoints: {error}") from None
        check: HealthCheck | None = options.get("health_check")
        if check is not None:
            await _asked(standing, check.timeout)
        report = Report(request, standing)
        report.look()
        return await (_many if request.number > 1 else _one)(session, request, report)


async def _asked(standing: Standing, seconds: float) -> None:
    """Wait until each endpoint was asked whether it is well."""
    for _ in range(int(seconds / _POLL)):
        if not any(map(_is_open, standing.describe()["nodes"])):
            return
        await asyncio.sleep(_POLL)


def _is_open(node: Mapping[str, Any]) -> bool:
    """Whether nothing is known of an endpoint, or what is known has not reached the balancer yet."""
    check = node["check"]
    return check is None or (check["result"] == "ok" and node["state"] == "unhealthy")


async def _one(session: BalancedSession, request: Request, report: Report) -> int:
    answer = await send(session, request)
    report.one(answer)
    failure = answer.failure(request)
    if isinstance(answer.error, NoEndpoints):
        raise Unreachable(str(answer.error))
    if answer.error is not None:
        raise Failure(f"{request.verb} {request.path}: {failure}")
    return FAILED if failure else 0


async def _many(session: BalancedSession, request: Request, report: Report) -> int:
    began_at = time.monotonic()
    numbers = iter(range(1, request.number + 1))
    missing = 0

    async def work() -> None:
        nonlocal missing
        for number in numbers:
            answer = await send(session, request)
            missing += isinstance(answer.error, NoEndpoints)
            report.record(answer, number)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(request.concurrency, request.number)):
                workers.create_task(work())
    finally:
        # Ctrl-C shows what there is so far.
        report.many(time.monotonic() - began_at)
    if missing == request.number:
        return NO_ENDPOINTS
    return FAILED if report.tally.failed else 0
