"""From the words of a command line to the options of a `BalancedSession`, by the names that the library has."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from lbclient.ejection import Ejection
from lbclient.health import HealthCheck
from lbclient.hedging import Hedge
from lbclient.limits import Limits, Throttle
from lbclient.retrying import Budget, Retry
from lbclient.routing import Routing, SlowStart

__all__ = ["PARTS", "Settings"]

# The budget is an option of `Retry`, and the others are those of the session with that name.
PARTS: Mapping[str, type] = {
    "retry": Retry,
    "budget": Budget,
    "hedge": Hedge,
    "limits": Limits,
    "throttle": Throttle,
    "ejection": Ejection,
    "health_check": HealthCheck,
    "routing": Routing,
    "slow_start": SlowStart,
}
_SIMPLE: Mapping[str, Any] = {"attempt_timeout": float, "connect_timeout": float, "deadline_header": str}
_BOOLEANS = {"true": True, "false": False}
_NONE = "none"


@dataclass(slots=True)
class Settings:
    """What was asked for; nothing stands for the library's own defaults.

    Attributes:
        given: what each option of the library is to be, by its full name such as `retry.statuses`.
        origins: the option of the command that said so, by the same name.
    """

    given: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def give(self, name: str, value: Any, origin: str) -> None:
        """Take one in; `click.UsageError` if it is there already."""
        if name in self.given:
            raise click.UsageError(f"{name} is given twice, by {self.origins[name]} and by {origin}")
        self.given[name] = value
        self.origins[name] = origin

    def read(self, assignments: Sequence[str]) -> None:
        """Take in what `--set` was given, such as `ejection.base=5`; `click.UsageError` if it makes no sense."""
        for text in assignments:
            name, separator, value = text.partition("=")
            if not separator:
                raise _wrong("--set", f"expected option=value, such as ejection.base=5, got {text!r}")
            self.give(name, _converted(name, _type_of(name), value), "--set")

    def options(self) -> dict[str, Any]:
        """The keyword arguments for a `BalancedSession`; `click.UsageError` for a value that it does not take."""
        options = {name: value for name, value in self.given.items() if name in _SIMPLE}
        budget = self._part("budget")
        for name in PARTS:
            more = {} if budget is None or name != "retry" else {"budget": budget}
            if name != "budget" and (made := self._part(name, more)) is not None:
                options[name] = made
        return options

    def _part(self, part: str, more: Mapping[str, Any] | None = None) -> Any:
        chosen = {n.partition(".")[2]: v for n, v in self.given.items() if n.startswith(f"{part}.")}
        if not chosen and not more:
            return None
        try:
            return PARTS[part](**chosen, **(more or {}))
        except (ValueError, TypeError) as error:
            # The library's messages begin with the name of the option.
            said = str(error)
            named = f"{part}.{said.partition(' ')[0]}"
            raise _wrong(self.origins.get(named, "--set"), f"{part}: {said}") from None


def _wrong(origin: str, message: str) -> click.UsageError:
    return click.BadParameter(message, click.get_current_context(silent=True), param_hint=origin)


def _type_of(name: str) -> Any:
    """The type of an option by its full name."""
    if name in _SIMPLE:
        return _SIMPLE[name]
    part, _, option = name.partition(".")
    hints = get_type_hints(PARTS[part]) if part in PARTS else {}
    known = [each.name for each in fields(PARTS[part]) if each.init] if part in PARTS else []
    if option in known:
        return hints[option]
    everything = [*_SIMPLE, *(f"{p}.{each.name}" for p, cls in PARTS.items() for each in fields(cls) if each.init)]
    near = difflib.get_close_matches(name, everything, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known or [*_SIMPLE, *PARTS])}"
    raise _wrong("--set", f"there is no option {name!r}; {hint}")


def _converted(name: str, kind: Any, text: str) -> Any:
    kinds = get_args(kind) if get_origin(kind) in (types.UnionType, Union) else (kind,)
    if types.NoneType in kinds and text.lower() == _NONE:
        return None
    for each in kinds:
        if (convert := _reader(each)) is None:
            continue
        try:
            return convert(text)
        except (ValueError, KeyError):
            raise _wrong("--set", f"{name} must be {_said(each)}, not {text!r}") from None
    raise _wrong("--set", f"{name} cannot be said on a command line")


def _reader(kind: Any) -> Callable[[str], Any] | None:
    if kind in (int, float, str):
        reader: Callable[[str], Any] = kind
        return reader
    if kind is bool:
        return lambda text: _BOOLEANS[text.lower()]
    if get_origin(kind) is Literal:
        return str
    if get_origin(kind) is Collection and get_args(kind)[0] in (int, str):
        one = get_args(kind)[0]
        return lambda text: [one(each.strip()) for each in text.split(",")]
    return None


def _said(kind: Any) -> str:
    if get_origin(kind) is Collection:
        return "whole numbers with commas between them"
    return {int: "a whole number", float: "a number", bool: "true or false"}[kind]
