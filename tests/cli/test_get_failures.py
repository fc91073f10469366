"""`lbclient get` when servers fail: what can be set, and what is told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli.commandline import lbclient
from click.testing import CliRunner

from lbclient.cli.get import get
from lbclient.cli.settings import PARTS, Settings
from lbclient.sandbox import Backend

BY_TURNS = ("--policy", "round_robin")


def told(*arguments: str) -> dict[str, Any]:
    """What a command says with --json."""
    result: dict[str, Any] = json.loads(lbclient("get", *arguments, "--json").out)
    return result


async def seen(servers: list[Backend]) -> int:
    """How many requests the servers saw since the last call."""
    stats = [await server.stat() for server in servers]
    for server in servers:
        await server.reset()
    return sum(stat["requests"] for stat in stats)


@pytest.mark.parametrize(
    ("arguments", "requests", "because"),
    [
        (["/status/500"], 1, "its status is none of 429, 502, 503, 504"),
        (["/status/500", "--retry-status", "500,503"], 3, "no more than 3 attempts"),
        (["/status/503", "--attempts", "2"], 2, "no more than 2 attempts"),
        (["/status/503", "--attempts", "1"], 1, "no more than 1 attempt"),
        (
            ["/status/503", "--set", "budget.share=0", "--set", "budget.per_second=0"],
            1,
            "the retry budget is used up",
        ),
        (["/status/429?retry_after=60"], 1, "Retry-After asks for more than 5 s"),
        (["/drop", "-d", "x"], 1, "POST may have been processed, and has no Idempotency-Key"),
        (["/drop", "-d", "x", "-H", "idempotency-key: 1"], 3, "no more than 3 attempts"),
        (["/drop", "-d", "x", "--set", "retry.idempotency_key=X-Once"], 3, "no more than 3 attempts"),
        (["/drop-body"], 1, "a part of the answer is there already"),
        (["/hang", "--timeout", "3"], 1, "no time is left"),
        (["/hang", "--attempt-timeout", "1.5", "--attempts", "2"], 2, "no more than 2 attempts"),
        (["/redirect?to=/status/500"], 2, "its status is none of 429, 502, 503, 504"),
    ],
)
async def test_why_it_ended(
    both: str, servers: list[Backend], arguments: list[str], requests: int, because: str
) -> None:
    await seen(servers)
    *earlier, last = told(both, *arguments)["attempts"]
    assert (last["repeated"], last["because"]) == (False, because)
    assert len(earlier) + 1 == requests == await seen(servers)
    followed = None if "redirect" in arguments[0] else True
    assert [attempt["repeated"] for attempt in earlier] == [followed] * len(earlier)


def test_what_was_never_sent_may_be_repeated_whatever_it_is(dead: str) -> None:
    *earlier, last = told(f"static://{dead}", "/ping", "-d", "x")["attempts"]
    assert [attempt["because"] for attempt in earlier] == ["nothing was sent"] * 2
    assert (last["repeated"], last["because"]) == (False, "no more than 3 attempts")


def test_explain_tells_why_there_was_another_attempt(both: str, dead: str) -> None:
    statuses = lbclient("get", both, "/status/503", "--explain").err
    again = "status 503; tried again: GET may be sent twice, and its status is one of 429, 502, 503, 504"
    assert statuses.count(again) == 2
    unsent = lbclient(
        "get", f"{both},{dead}", "/ping", "-d", "x", "-n", "9", "--policy", "round_robin", "--explain"
    )
    assert re.search(rf"{dead} .* Cannot connect .*; tried again: nothing was sent", unsent.err)


async def test_a_hedged_race_shows_both_attempts(both: str, servers: list[Backend]) -> None:
    await seen(servers)
    done = lbclient("get", both, "/slow?ms=2000", "--hedge", "0.05", "--explain")
    first, second, said, *_ = done.err.splitlines()
    assert await seen(servers) == 2
    assert "picked by hedge after 50 ms, " in second
    # On a busy machine the second one may be faster.
    winner, loser = (first, second) if "success" in first else (second, first)
    assert loser.endswith(": the other attempt was answered first")
    assert said.startswith(f"200 OK from {winner.split()[2]} in ")


def test_hedges_are_counted_and_are_no_retries(both: str) -> None:
    # Four at once, of which none is answered before its hedge is due, be the machine ever so busy.
    arguments = (both, "/slow?ms=2000", "-n", "4", "--concurrency", "4", "--hedge", "0.02")
    result = told(*arguments)
    assert (result["retried"], result["failed"], result["hedges"]["sent"]) == (0, 0, 4)
    assert "4 hedged (" in lbclient("get", *arguments).out
    race = told(both, "/slow?ms=2000", "--hedge", "0.02")["attempts"]
    assert [attempt["hedge"] for attempt in race] == [False, True]
    assert all(attempt["repeated"] is None for attempt in race)


def test_an_ejection_is_told_with_its_reason(both: str) -> None:
    arguments = (
        both,
        "/status/500",
        "-n",
        "20",
        *BY_TURNS,
        "--set",
        "ejection.failures=2",
        "--set",
        "ejection.base=9",
    )
    [change] = told(*arguments)["changes"]
    assert (change["state"], change["because"]) == ("ejected", "2 failures in a row, the last: status 500")
    assert 8 < change["seconds"] < 10
    said = r"127.0.0.1:\d+ is ejected for \S+ s: 2 failures in a row, the last: status 500\n"
    summary = lbclient("get", *arguments)
    assert len(re.findall(said, summary.out)) == 1
    explained = lbclient("get", *arguments, "--explain")
    assert len(re.findall(said, explained.err)) == 1
    assert "ejected" not in explained.out


def test_what_would_have_been_ejected(both: str) -> None:
    arguments = (both, "/status/500", "-n", "20", *BY_TURNS, "--set", "ejection.enforce=False")
    result = told(*arguments)
    assert (result["changes"], result["would_have_ejected"]) == ([], {"failures": 2})
    assert "would have ejected 2 endpoints: failures" in lbclient("get", *arguments).out


@pytest.mark.parametrize("path", ["tcp", "/ping"])
def test_an_endpoint_whose_check_fails_gets_no_request(both: str, dead: str, path: str) -> None:
    result = told(f"{both},{dead}", "/ping", "-n", "20", "--policy", "round_robin", "--health-check", path)
    assert len(result["endpoints"]) == 2
    assert dead not in result["endpoints"]
    assert [(change["address"], change["state"]) for change in result["changes"]] == [(dead, "unhealthy")]
    assert "onnect call failed" in result["changes"][0]["because"]


def test_only_endpoints_with_the_metadata(servers: list[Backend], dead: str, tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    versions = zip([dead, *(server.address for server in servers)], "abc", strict=True)
    file.write_text(json.dumps([{"address": a, "metadata": {"version": v}} for a, v in versions]))
    result = told(f"file://{file}", "/ping", "-n", "9", "--where", "version=b", "--where", "version=c")
    assert result["endpoints"].keys() == {server.address for server in servers}
    assert result["retried"] == 0
    none = lbclient("get", f"file://{file}", "/ping", "--where", "version=z")
    assert none.code == 3
    assert "3 known, 0 matching" in none.err


def test_the_budget_says_what_it_refused(both: str) -> None:
    arguments = (both, "/status/503", "-n", "20", "--set", "budget.share=0", "--set", "budget.per_second=0.5")
    result = told(*arguments)
    assert (result["budget"]["withdrawn"], result["budget"]["refused"]) == (5, 18)
    assert "the retry budget refused 18 further attempts" in lbclient("get", *arguments).out


def test_explain_as_json_is_a_line_for_each_request(both: str) -> None:
    done = lbclient("get", both, "/status/500", "-n", "3", "--explain", "--json")
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert [(line["request"], line["status"], len(line["attempts"])) for line in lines] == [
        (1, 500, 1),
        (2, 500, 1),
        (3, 500, 1),
    ]
    assert json.loads(done.out)["requests"] == 3


def _in_words(value: object) -> str:
    return str(value) if isinstance(value, str) or not isinstance(value, Collection) else ",".join(map(str, value))


@pytest.mark.parametrize("part", PARTS)
def test_every_plain_option_of_the_library_can_be_set(part: str) -> None:
    cls = PARTS[part]
    default = cls()
    # What is no plain value: classes of exceptions, other options, and conditions, for which there is --where.
    beyond = {"exceptions", "budget", "where", "slow_start"}
    names = [each.name for each in fields(cls) if each.init and (part == "slow_start" or each.name not in beyond)]
    names = [name for name in names if name != "subset"]
    settings = Settings()
    settings.read([f"{part}.{name}={_in_words(getattr(default, name))}" for name in names])
    made = settings.options()
    made = made["retry"].budget if part == "budget" else made[part]
    for name in names:
        value, expected = getattr(made, name), getattr(default, name)
        assert value == expected or set(value) == set(expected), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-X", "G T"], "'--method': expected a method such as PUT, got 'G T'"),
        (["--attempts", "0"], "0 is not in the range x>=1"),
        (["--attempt-timeout", "0"], "0.0 is not in the range x>0"),
        (["--attempt-timeout", "nan"], "attempt_timeout must be above 0, not nan"),
        (["--retry-status", "5xx"], "expected statuses with commas between them, such as 500,503, got '5xx'"),
        (["--retry-status", "200"], "--retry-status: retry: statuses must be a collection of statuses from 400"),
        (["--hedge", "soon"], "expected seconds such as 0.2, or a percentile such as p95, got 'soon'"),
        (["--hedge", "-1"], "--hedge: hedge: after must be 0 or more, not -1.0"),
        (["--hedge", "p200", "-n", "1000"], "--hedge: hedge: percentile must be a number from 0 to 1, not 2.0"),
        (["--hedge", "p95", "-n", "100"], "p95 is known after 100 requests: give seconds such as 0.2, or more"),
        (["--health-check", "healthz"], "--health-check: health_check: path must begin with one slash"),
        (["--where", "v2"], "expected key=value, got 'v2'"),
        (["--set", "retry.attempts"], "expected option=value, such as ejection.base=5, got 'retry.attempts'"),
        (["--set", "retry.attemps=2"], "there is no option 'retry.attemps'; did you mean retry.attempts?"),
        (["--set", "x=2"], "there is no option 'x'; there are attempt_timeout, connect_timeout, deadline_header"),
        (["--set", "retry.xyz=2"], "there is no option 'retry.xyz'; there are attempts, methods, statuses"),
        (["--set", "retry.attempts=two"], "retry.attempts must be a whole number, not 'two'"),
        (["--set", "ejection.enforce=1"], "ejection.enforce must be true or false, not '1'"),
        (["--set", "ejection.base=x"], "ejection.base must be a number, not 'x'"),
        (["--set", "ejection.base=301"], "ejection: need base <= cap, not base=301.0, cap=300.0"),
        (["--set", "health_check.statuses=ok"], "must be whole numbers with commas between them, not 'ok'"),
        (["--set", "retry.exceptions=OSError"], "retry.exceptions cannot be said on a command line"),
        (["--set", "routing.panic=now"], "routing: panic must be one of all, fail, wait, not 'now'"),
        (["--set", "deadline_header=a:b"], "deadline_header must be the name of a header, not 'a:b'"),
        (
            ["--attempts", "2", "--set", "retry.attempts=3"],
            "retry.attempts is given twice, by --set and by --attempts",
        ),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(get, ["static://127.0.0.1:80", "/", *arguments])
    assert done.exit_code == 2, done.output
    assert message in done.output.replace("\n", " ")
