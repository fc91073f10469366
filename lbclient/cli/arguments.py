"""From one word of the command line `lbclient get` to what it means; `click.BadParameter` if that is nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from lbclient.options import methods

__all__ = ["headers", "hedge", "method", "path", "statuses", "where"]

# The percentile of the latencies is known after so many.
_KNOWN = 100
_PERCENTILE = re.compile(r"[pP](\d+(?:\.\d+)?)")


def headers(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of name and value."""
    pairs = []
    for value in values:
        name, colon, content = value.partition(":")
        if not colon or not name.strip() or any(c in value for c in "\r\n\0"):
            raise click.BadParameter(f"expected 'Name: value', got {value!r}", context, parameter)
        pairs.append((name.strip(), content.strip()))
    return pairs


def path(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """A path of a URL."""
    if not value.startswith("/"):
        raise click.BadParameter(f"a path begins with a slash, {value!r} does not", context, parameter)
    return value


def method(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """The name of an HTTP method."""
    try:
        return None if value is None else next(iter(methods("method", [value])))
    except ValueError:
        raise click.BadParameter(f"expected a method such as PUT, got {value!r}", context, parameter) from None


def statuses(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """Statuses with commas between them."""
    try:
        return None if value is None else [int(status) for status in value.split(",") if status.strip()]
    except ValueError:
        raise click.BadParameter(
            f"expected statuses with commas between them, such as 500,503, got {value!r}", context, parameter
        ) from None


def hedge(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, float] | None:
    """The option of `Hedge`, and its value."""
    if value is None:
        return None
    if percentile := _PERCENTILE.fullmatch(value):
        if context.params["number"] <= _KNOWN:
            said = f"{value} is known after {_KNOWN} requests: give seconds such as 0.2, or more requests with -n"
            raise click.BadParameter(said, context, parameter)
        return "percentile", float(percentile[1]) / 100
    try:
        return "after", float(value)
    except ValueError:
        said = f"expected seconds such as 0.2, or a percentile such as p95, got {value!r}"
        raise click.BadParameter(said, context, parameter) from None


def where(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> dict[str, list[str]] | None:
    """Keys of metadata, each with the values that are allowed."""
    found: dict[str, list[str]] = {}
    for value in values:
        key, separator, content = value.partition("=")
        if not separator or not key:
            raise click.BadParameter(f"expected key=value, got {value!r}", context, parameter)
        found.setdefault(key, []).append(content)
    return found or None
