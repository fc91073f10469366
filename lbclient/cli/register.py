"""`lbclient register`: keeps a server in a registry, alone or for as long as a command runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any

import aiohttp
import click
from yarl import URL

from discovery import Endpoint, Registrar
from lbclient.cli.child import Child
from lbclient.cli.running import NotInstalled, run

__all__ = ["register"]

_COLOURS = {"registered": "green", "registering": "yellow", "unhealthy": "yellow", "lost": "red", "left": None}
_HEALTHY_BELOW = 400
_SECONDS = click.FloatRange(min=0, min_open=True)


def _pairs(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in values:
        key, separator, value = text.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"expected key=value, got {text!r}")
        if key in found:
            raise click.BadParameter(f"{key} is given twice")
        found[key] = value
    return found


def _http_url(_: click.Context, __: click.Parameter, text: str | None) -> URL | None:
    if text is None:
        return None
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter("expected a URL such as http://127.0.0.1:8080/health")
    return url


class _WithCommand(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except click.NoSuchOption as error:
            hint = "" if "--" in args else " If it is the command's own: put -- before the command."
            raise click.UsageError(f"{error.format_message()}{hint}", ctx) from None


@click.command(cls=_WithCommand)
@click.argument("url")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND ARGS...]")
@click.option(
    "--address", required=True, metavar="HOST:PORT", help="Where clients reach the server; https:// for TLS."
)
@click.option("--weight", type=float, default=1.0, help="Its share of the traffic under load; 1 by default.")
@click.option("--priority", type=int, default=0, help="Lower ones are preferred to higher ones; 0 by default.")
@click.option("--zone", default="", help="Where it stands.")
@click.option("--meta", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="Metadata; may be repeated.")
@click.option("--tag", "tags", multiple=True, help="A tag in Consul; may be repeated. Those of URL by default.")
@click.option("--id", default="", help="Name of the entry; made of the address by default.")
@click.option(
    "--ttl", type=_SECONDS, default=15.0, metavar="S", help="It is dropped S seconds after this died; 15."
)
@click.option("--health", callback=_http_url, metavar="URL", help="Registered only while this answers below 400.")
@click.option("--health-interval", type=_SECONDS, default=2.0, metavar="S", help="Ask it every S seconds; 2.")
@click.option(
    "--health-timeout", type=_SECONDS, default=1.0, metavar="S", help="No answer in S seconds is a no; 1."
)
@click.option(
    "--linger",
    type=click.FloatRange(min=0),
    default=1.0,
    metavar="S",
    help="Between leaving and passing on a signal, so that clients have heard of it; 1.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.pass_context
def register(
    context: click.Context,
    /,
    *,
    url: str,
    command: Sequence[str],
    address: str,
    meta: dict[str, str],
    health: URL | None,
    linger: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep a server registered at URL, while COMMAND runs.

    Without a COMMAND it stays until a signal. With one, SIGINT and SIGTERM first remove the entry, then, --linger
    seconds later, are passed on; a second one is passed on at once. SIGHUP, SIGUSR1 and SIGUSR2 are passed on as
    they are. The exit code is the command's own, or 128 and the number of the signal that ended it; 127 if it
    cannot be found. Changes are printed to standard output, or with a COMMAND to standard error.

    The registry may be out of reach at any time, also at the start: the entry is there as soon as it can be.
    Killed with -9, this leaves the COMMAND running, and the entry until its TTL is over.

    \b
      lbclient register etcd://127.0.0.1:2379/services/users/ --address 10.0.0.1:8080
      lbclient register consul://127.0.0.1:8500/users --address 10.0.0.1:8080 --weight 5 \\
          --health http://127.0.0.1:8080/health -- python -m users --port 8080
    """  # noqa: D301 - click leaves alone what stands below a backspace
    lines = _Lines(address, err=bool(command), as_json=as_json)
    asked = _Health(health) if health else None
    try:
        described = {name: options.pop(name) for name in ("weight", "priority", "zone")} | {"metadata": meta}
        endpoint = Endpoint.parse(address, **described)
    except ValueError as error:
        raise click.BadParameter(f"{address!r}: {error}", context, param_hint="--address or --weight") from None
    try:
        options["tags"] = options["tags"] or None
        registrar = Registrar(url, endpoint, health=asked, linger=0, wait=0, **options)
    except ImportError as error:
        raise NotInstalled(str(error)) from None
    except ValueError as error:
        raise click.UsageError(str(error), context) from None
    registrar.subscribe(lines.show)
    ways = asked or contextlib.nullcontext()
    run(_with_command(registrar, ways, command, linger) if command else _alone(registrar, ways))


async def _alone(registrar: Registrar, ways: AbstractAsyncContextManager[object]) -> int:
    async with ways, registrar:
        await asyncio.Event().wait()
    return 0


async def _with_command(
    registrar: Registrar, ways: AbstractAsyncContextManager[object], command: Sequence[str], linger: float
) -> int:
    async with ways, Child(command) as child:
        async with registrar:
            either: list[asyncio.Future[Any]] = [child.signalled, child.ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            was_registered = registrar.state == "registered" and not registrar.reason
        if not child.ended.done():
            if was_registered and not registrar.reason:
                await asyncio.wait([child.ended], timeout=linger)
            if not child.hurried:
                child.send(child.signalled.result())
        # Not awaited as such: being cancelled must not cancel the waiting for its end.
        await asyncio.wait([child.ended])
        return child.ended.result()


class Unhealthy(Exception):  # noqa: N818 - a line begins with this name
    """The health URL answered with an error."""


class _Health:
    """Asks a URL; any answer below 400 is a good one. Certificates are not checked: it is the server beside us."""

    def __init__(self, url: URL) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> None:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False))

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self) -> None:
        if self._session is None:
            raise RuntimeError("ask within the block")
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status >= _HEALTHY_BELOW:
                raise Unhealthy(f"status {response.status}")


class _Lines:
    """Prints each change of state, and the first reason in one."""

    def __init__(self, address: str, *, err: bool, as_json: bool) -> None:
        self._address = address
        self._err = err
        self._as_json = as_json
        self._last: tuple[str, bool] = ("registering", False)

    def show(self, state: str, reason: str) -> None:
        last, self._last = self._last, (state, bool(reason))
        if last == self._last:
            return
        now = datetime.now().astimezone()
        if self._as_json:
            time = now.isoformat(timespec="milliseconds")
            line = json.dumps({"time": time, "state": state, "reason": reason, "address": self._address})
        else:
            parts = (
                f"{now:%H:%M:%S.%f}"[:-3],
                click.style(f"{state:<10}", fg=_COLOURS[state]),
                self._address,
                reason,
            )
            line = "  ".join(part for part in parts if part)
        # A reader that went away ends the command by other ways.
        with contextlib.suppress(BrokenPipeError):
            click.echo(line, err=self._err)
