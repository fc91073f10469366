"""What counts as a reason for a failure: without that rule a storm would prove nothing."""

from __future__ import annotations

import random

import pytest
from chaos_rig import SLACK, Chaos, Trouble
from proof_rig import Sent, quantile

from discovery import Endpoint, Memory
from lbclient import Outcome
from lbclient.attempt import Attempt
from lbclient.node import Node

ILL = "127.0.0.1:1"
WELL = "127.0.0.1:2"


def tried(address: str, outcome: Outcome, at: float) -> Attempt:
    attempt = Attempt(Node(Endpoint.parse(address)), "", lambda: None)
    attempt.outcome, attempt.started_at = outcome, at
    return attempt


def chaos() -> Chaos:
    return Chaos([], Memory(), random.Random(1), diary=[Trouble("killed", ILL, 10.0, 11.0)])


@pytest.mark.parametrize(
    ("start", "elapsed", "excused"),
    [(10.5, 0.1, True), (9.9, 0.2, True), (11 + SLACK / 2, 0.1, True), (9.0, 0.5, False), (12.0, 0.1, False)],
)
def test_a_failure_needs_a_fault_at_the_same_time(start: float, elapsed: float, excused: bool) -> None:
    sent = Sent("1", "GET", start, elapsed=elapsed, error="x", tries=(tried(ILL, Outcome.FAULT, start),))
    assert chaos().excuses(sent) is excused


def test_a_failure_needs_a_fault_of_each_server_that_failed() -> None:
    tries = (tried(ILL, Outcome.FAULT, 10.1), tried(WELL, Outcome.CONNECT, 10.2))
    assert not chaos().excuses(Sent("1", "GET", 10.1, elapsed=0.2, error="x", tries=tries))


def test_an_answer_that_broke_off_needs_a_fault_as_well() -> None:
    whole = (tried(WELL, Outcome.SUCCESS, 10.2),)
    assert not chaos().excuses(Sent("1", "GET", 10.1, elapsed=0.2, error="half a body", tries=whole))


def test_a_failure_without_an_attempt_has_no_excuse() -> None:
    assert not chaos().excuses(Sent("1", "GET", 10.1, elapsed=0.2, error="no endpoint"))


def test_a_request_that_is_under_way_has_not_failed() -> None:
    assert not Sent("1", "GET", 10.1).failed


def test_the_quantile_of_a_hundred_leaves_out_so_many() -> None:
    sent = [Sent("1", "GET", 0.0, elapsed=float(number)) for number in range(100)]
    assert (quantile(sent, 0.5), quantile(sent, 0.99), quantile([], 0.5)) == (50, 99, 0)
