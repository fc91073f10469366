"""`lbclient get`: a request, or many, through a `BalancedSession`."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import click
from yarl import URL

from discovery import service_name
from lbclient.attempt import Attempt
from lbclient.cli.load import described
from lbclient.cli.running import FAILED, NO_ENDPOINTS, Failure, Unreachable, opened, run
from lbclient.cli.tally import Tally
from lbclient.errors import NoEndpoints
from lbclient.policies import DEFAULT, POLICIES
from lbclient.policies.hashing import Hashing
from lbclient.retrying import Retry
from lbclient.session import BalancedSession
from lbclient.tried import attempts

__all__ = ["get"]

_ERROR = 400
# The first answer of a registry comes within milliseconds; a longer wait is for one that is just coming back.
_WAIT = 5.0


def _headers(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for value in values:
        name, colon, content = value.partition(":")
        if not colon or not name.strip() or any(c in value for c in "\r\n\0"):
            raise click.BadParameter(f"expected 'Name: value', got {value!r}", context, parameter)
        pairs.append((name.strip(), content.strip()))
    return pairs


def _path(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value.startswith("/"):
        raise click.BadParameter(f"a path begins with a slash, {value!r} does not", context, parameter)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command was asked for; see its help."""

    url: str
    path: str
    service: str | None
    number: int
    concurrency: int
    method: str | None
    headers: list[tuple[str, str]]
    data: str | None
    policy: str
    key: str | None
    timeout: float
    attempts: int
    explain: bool
    as_json: bool

    @property
    def verb(self) -> str:
        """The method; data alone makes it a POST, as with curl."""
        return self.method or ("GET" if self.data is None else "POST")

    @property
    def name(self) -> str:
        """The logical name of the service."""
        return self.service or service_name(self.url)

    @property
    def target(self) -> URL:
        """The logical URL; a path that needs no escaping is sent byte for byte."""
        text = f"http://{self.name}{self.path}"
        return URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)


@click.command()
@click.argument("url")
@click.argument("path", callback=_path)
@click.option("--service", metavar="NAME", help="Logical name, sent as Host; taken from the URL by default.")
@click.option("-n", "--number", type=click.IntRange(1), default=1, help="How many requests.  [default: 1]")
@click.option("-c", "--concurrency", type=click.IntRange(1), default=1, help="How many at a time.  [default: 1]")
@click.option("-X", "--method", metavar="METHOD", help="GET by default; POST with --data.")
@click.option("-H", "--header", "headers", multiple=True, metavar="'K: V'", callback=_headers, help="A header.")
@click.option("-d", "--data", metavar="TEXT", help="Body of the request.")
@click.option("--policy", type=click.Choice(list(POLICIES)), default=DEFAULT, show_default=True)
@click.option("--key", metavar="TEXT", help="For ring_hash and maglev: the same key goes to the same endpoint.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds for each request with all its attempts.",
)
@click.option("--attempts", type=click.IntRange(1), default=3, show_default=True, help="For each request.")
@click.option("--explain", is_flag=True, help="Tell each attempt: where, what came of it, why there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def get(**options: Any) -> None:
    """Send a request, or many, to a service.

    Each attempt of each request for PATH goes to an endpoint that the balancer picks among those at URL. The body
    goes to standard output, the status to standard error; with -n a summary goes to standard output.

    Exit codes: 0 if all was well, 1 if a request failed or its status was 400 or more, 2 for wrong usage,
    3 if there was no endpoint to send to.

    \b
      lbclient get etcd://127.0.0.1:2379/services/users/ /v1/users/42 --explain
      lbclient get static://127.0.0.1:8001,127.0.0.1:8002 /health -n 1000 -c 20
    """  # noqa: D301 - click leaves alone what stands below a backspace
    run(_get(Options(**options)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What came of one request."""

    tries: tuple[Attempt, ...]
    milliseconds: float
    error: BaseException | None = None
    status: int | None = None
    reason: str = ""
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""

    def failure(self, options: Options) -> str:
        """Why it counts as failed, in words; empty if it does not."""
        if self.error is not None:
            return described(self.error, options.timeout)
        return f"status {self.status} {self.reason}".strip() if self.status and self.status >= _ERROR else ""


async def _get(options: Options) -> int:
    if options.key is None and isinstance(POLICIES[options.policy](), Hashing):
        raise click.UsageError(f"--policy {options.policy} needs a --key to hash")
    source = opened(options.url)
    try:
        session = BalancedSession(
            {options.name: source},
            policy=options.policy,
            retry=Retry(attempts=options.attempts),
            timeout=options.timeout,
        )
    except ValueError as error:
        raise click.UsageError(f"{error}; another name can be given with --service") from None
    async with session:
        try:
            await session.ready(min(_WAIT, options.timeout))
        except TimeoutError as error:
            raise Unreachable(f"no endpoints: {error}") from None
        if options.number > 1:
            return await _many(session, options)
        return _one(await _send(session, options), options)


async def _send(session: BalancedSession, options: Options) -> _Answer:
    began_at = time.monotonic()
    response = None
    try:
        sent = session.request(
            options.verb, options.target, headers=options.headers, data=options.data, lb_key=options.key
        )
        async with sent as response:
            body = await response.read()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        # A body that broke off has its attempts in the response.
        tries = attempts(response or error)
        return _Answer(tries=tries, milliseconds=(time.monotonic() - began_at) * 1000, error=error)
    return _Answer(
        tries=attempts(response),
        milliseconds=(time.monotonic() - began_at) * 1000,
        status=response.status,
        reason=response.reason or "",
        headers=list(response.headers.items()),
        body=body,
    )


def _one(answer: _Answer, options: Options) -> int:
    failure = answer.failure(options)
    if options.explain and not options.as_json:
        _explain(answer.tries)
    if options.as_json:
        click.echo(json.dumps(_as_dict(answer, failure)))
    elif answer.error is None:
        where = answer.tries[-1].endpoint.address if answer.tries else "?"
        said = f"{answer.status} {answer.reason} from {where} in {answer.milliseconds:.1f} ms"
        click.secho(said, err=True, fg="red" if failure else "green")
        click.echo(answer.body, nl=sys.stdout.isatty() and not answer.body.endswith(b"\n"))
    if isinstance(answer.error, NoEndpoints):
        raise Unreachable(str(answer.error))
    if answer.error is not None:
        raise Failure(f"{options.verb} {options.path}: {failure}")
    return FAILED if failure else 0


def _as_dict(answer: _Answer, failure: str) -> dict[str, Any]:
    return {
        "status": answer.status,
        "headers": answer.headers,
        "body": answer.body.decode(errors="replace"),
        "ms": round(answer.milliseconds, 3),
        "error": failure,
        "attempts": [attempt.as_dict() for attempt in answer.tries],
    }


def _explain(tries: Sequence[Attempt], request: int | None = None) -> None:
    prefix = "" if request is None else f"request {request}, "
    for number, attempt in enumerate(tries, 1):
        outcome = attempt.outcome.value if attempt.outcome else "under way"
        said = f"{prefix}attempt {number}: {attempt.endpoint.address:<21}  {outcome:<9}"
        said += f" {attempt.elapsed * 1000:7.1f} ms  picked by {attempt.picked}"
        click.secho(f"{said}: {attempt.error}" if attempt.error else said, err=True, dim=not attempt.error)


async def _many(session: BalancedSession, options: Options) -> int:
    tally = Tally()
    began_at = time.monotonic()
    numbers = iter(range(1, options.number + 1))
    missing = 0

    async def send() -> None:
        nonlocal missing
        for number in numbers:
            answer = await _send(session, options)
            failure = answer.failure(options)
            missing += isinstance(answer.error, NoEndpoints)
            tally.record(answer.tries, answer.milliseconds, answer.status, failure)
            if options.explain:
                _explain(answer.tries, number)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(options.concurrency, options.number)):
                workers.create_task(send())
    finally:
        # Ctrl-C shows what there is so far.
        _summary(tally, time.monotonic() - began_at, options)
    if missing == options.number:
        return NO_ENDPOINTS
    return FAILED if tally.failed else 0


def _summary(tally: Tally, seconds: float, options: Options) -> None:
    result = tally.as_dict() | {"seconds": round(seconds, 3)}
    if options.as_json:
        click.echo(json.dumps(result))
        return
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
    statuses = ", ".join(f"{count} x {status}" for status, count in result["statuses"].items()) or "no answer"
    said = (
        f"{tally.requests} requests in {seconds:.2f} s: {statuses}; {tally.failed} failed, {tally.retried} retried"
    )
    click.secho(f"\n{said}", fg="red" if tally.failed else "green")
    if tally.milliseconds:
        which = ", of those that did not fail" if tally.failed else ""
        click.echo(f"p50 {result['p50_ms']:.1f} ms, p99 {result['p99_ms']:.1f} ms{which}")
    for error in tally.errors:
        click.echo(error, err=True)
