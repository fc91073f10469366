"""Writes docs/defaults.md: every option of every public class with its default and where that comes from.

Names and defaults are read from the signatures, the rest from the docstrings. An origin is what stands in
parentheses in the description of an option and begins with the name of a project or a document: "(Envoy: 30 s)".
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docstring_parser

import discovery
import lbclient

TARGET = Path(__file__).parent / "defaults.md"
SOURCES = (
    "aiohttp|Consul|Envoy|etcd|Finagle|gRPC|gRFC|HAProxy|IANA|Kubernetes|Linkerd|Maglev|Mirrokni|nginx|Node|Prequal|"
    "RFC|SRE|Site Reliability|SkyDNS|Tail at Scale|The Tail at Scale|uvicorn|W3C|Eureka|Nacos"
)
ORIGIN = re.compile(rf"\(((?:[\w ]+ )?(?:{SOURCES})\b[^()]*)\)")
# The same options as in BalancedSession, and what is no choice of a behaviour.
NO_OPTIONS = {"BalancingMiddleware", "Endpoint", "Memory", "Outcome", "Snapshot"}
# Options for which None stands for an object.
OWN = {
    ("BalancedSession", "retry"): lbclient.Retry(),
    ("BalancedSession", "limits"): lbclient.Limits(),
    ("BalancedSession", "ejection"): lbclient.Ejection(),
}
# Those for tests, and names.
NOT_SHOWN = {"rng", "clock", "services", "name"}
HEAD = """# Defaults

Written by `make docs` from the code. *Own choice* marks a default that comes from no other project; the sentence
beside it says what it is for. Options that are off by default have no origin.

| option | default | origin | what it is |
|---|---|---|---|
"""


class Row(NamedTuple):
    """One option."""

    name: str
    default: str
    origin: str
    meaning: str


def shown(value: Any) -> str:  # noqa: PLR0911 - a table of types
    """A default as a reader would write it."""
    if isinstance(value, frozenset | set):
        return ", ".join(sorted(map(str, value)))
    if isinstance(value, range):
        return f"{value.start} to {value.stop - 1}"
    if isinstance(value, tuple):
        return ", ".join(shown(item) for item in value) or "none"
    if isinstance(value, type):
        return f"`{value.__name__}`"
    if inspect.isfunction(value):
        return f"`{value.__name__}`"
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__}()`" if value == type(value)() else f"`{value!r}`"
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".")
    if value is None:
        return "none"
    return (f"`{value}`" if value else "empty") if isinstance(value, str | bytes) else str(value)


def defaults(cls: type) -> Iterator[tuple[str, Any]]:
    """The options of a class that have a default."""
    factories = {}
    if dataclasses.is_dataclass(cls):
        factories = {f.name: f.default_factory for f in dataclasses.fields(cls)}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.default is inspect.Parameter.empty or name in NOT_SHOWN or name.startswith("_"):
            continue
        value = parameter.default
        if factories.get(name, dataclasses.MISSING) is not dataclasses.MISSING:
            value = factories[name]()
        yield name, OWN.get((cls.__name__, name), value)


def descriptions(cls: type) -> dict[str, str]:
    """What the docstring says of each option; several may share a line."""
    found: dict[str, str] = {}
    for entry in docstring_parser.parse(inspect.getdoc(cls) or "", docstring_parser.DocstringStyle.GOOGLE).params:
        text = " ".join((entry.description or "").split())
        for name in entry.arg_name.split(","):
            found[name.strip()] = text
    return found


def rows() -> Iterator[Row]:
    """All options; `LookupError` for one that its docstring does not describe."""
    for module in (lbclient, discovery):
        for public in sorted(module.__all__):
            cls = getattr(module, public)
            if not isinstance(cls, type) or issubclass(cls, BaseException) or public in NO_OPTIONS:
                continue
            said = descriptions(cls)
            for name, value in defaults(cls):
                if name not in said:
                    raise LookupError(f"the docstring of {public} does not describe {name}")
                origins = ORIGIN.findall(said[name])
                off = value is None or value is False or value in ("", b"", ())
                origin = "; ".join(origins) or ("" if off else "*own choice*")
                yield Row(f"`{public}.{name}`", shown(value), origin, said[name])


def text() -> str:
    """The whole file."""
    return HEAD + "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows()
    )


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{TARGET.name} written\n")
