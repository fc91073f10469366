"""`Retry-After` as RFC 9110 has it, and what servers make of it."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from multidict import CIMultiDict

from lbclient.retrying import retry_after

DATE = "Sun, 06 Nov 1994 08:49:30 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("7", 7),
        (" 120 ", 120),
        ("007", 7),
        ("9" * 30, 1e30),
        ("9" * 400, float("inf")),
        ("-5", 0),
        ("+5", 0),
        ("1.5", 0),
        ("1e3", 0),
        ("5 s", 0),
        ("\u0663", 0),
        ("\u00b2", 0),
        ("", 0),
        ("soon", 0),
        ("Sun", 0),
        ("Sunday", 0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 7),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 7),
        ("Sun Nov  6 08:49:37 1994", 7),
        ("Sun, 06 Nov 1994 08:49:37 +0000", 7),
        ("Sun, 06 Nov 1994 08:49:30 GMT", 0),
        ("Sat, 05 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 9999 08:49:30 GMT", 252_613_900_800),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 0),
        ("Sun, 36 Nov 1994 08:49:37 GMT", 0),
        ("Sun, 06 Nov 1994 28:49:37 GMT", 0),
        ("Sun, 06 Nov", 0),
    ],
)
def test_seconds_and_moments_are_read_and_all_else_is_ignored(value: str, seconds: float) -> None:
    found = retry_after(CIMultiDict({"Retry-After": value, "Date": DATE}))
    assert found == pytest.approx(seconds, rel=1e-3)


def test_there_may_be_none() -> None:
    assert retry_after(CIMultiDict()) == 0


@pytest.mark.parametrize("date", [{}, {"Date": "yesterday"}])
def test_without_the_answers_own_clock_it_is_this_machines(date: dict[str, str]) -> None:
    value = formatdate(time.time() + 100, usegmt=True)
    assert 98 <= retry_after(CIMultiDict({"Retry-After": value, **date})) <= 101


def test_the_first_of_several_holds() -> None:
    headers = CIMultiDict([("Retry-After", "3"), ("Retry-After", "9")])
    assert retry_after(headers) == 3
