"""`lbclient get`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.commandline import Running, lbclient
from click.testing import CliRunner

from lbclient.cli.get import get
from lbclient.sandbox import Backend, EtcdCluster


def test_the_body_goes_to_stdout_and_the_status_to_stderr(both: str) -> None:
    done = lbclient("get", both, "/v1/users/42?a=b%2Fc")
    assert done.code == 0
    assert json.loads(done.out)["target"] == "/v1/users/42?a=b%2Fc"
    assert done.err.startswith("200 OK from 127.0.0.1:")


def test_method_headers_body_and_name_arrive(both: str) -> None:
    done = lbclient("get", both, "/v1", "-X", "PUT", "-H", "X-One: 1", "-d", "hello", "--service", "users")
    sent = json.loads(done.out)
    assert (done.code, sent["method"], sent["body"]) == (0, "PUT", "hello")
    assert ["Host", "users"] in sent["headers"]
    assert ["X-One", "1"] in sent["headers"]


def test_data_alone_makes_it_a_post(both: str) -> None:
    assert json.loads(lbclient("get", both, "/v1", "-d", "hello").out)["method"] == "POST"


def test_an_error_status_is_a_failure_whose_body_is_shown(both: str) -> None:
    done = lbclient("get", both, "/status/503")
    assert done.code == 1
    assert done.err.startswith("503 Service Unavailable from 127.0.0.1:")


def test_explain_tells_each_attempt(both: str, dead: str) -> None:
    done = lbclient("get", f"{both},{dead}", "/ping", "-n", "20", "--explain", "--policy", "round_robin")
    assert done.code == 0
    assert f"attempt 1: {dead}" in done.err
    assert "picked by RoundRobin: ClientConnectorError: Cannot connect" in done.err
    assert f"picked by RoundRobin, not {dead}" in done.err


def test_json_of_one_request(both: str) -> None:
    result = json.loads(lbclient("get", both, "/ping", "--json").out)
    assert (result["status"], result["body"], result["error"]) == (200, "ok", "")
    assert [attempt["outcome"] for attempt in result["attempts"]] == ["success"]


def test_many_requests_are_summed_up(both: str, dead: str, servers: list[Backend]) -> None:
    done = lbclient("get", f"{both},{dead}", "/ping", "-n", "60", "-c", "6")
    assert done.code == 0
    assert all(server.address in done.out for server in servers)
    assert "60 x 200; 0 failed" in done.out
    assert "p50 " in done.out


def test_priorities_are_shown_where_there_are_some(
    both: str, dead: str, servers: list[Backend], tmp_path: Path
) -> None:
    one, other = (server.address for server in servers)
    file = tmp_path / "endpoints.json"
    file.write_text(json.dumps([dead, {"address": one, "priority": 1}, {"address": other, "priority": 2}]))
    done = lbclient("get", f"file://{file}", "/ping", "-n", "20", "-c", "1", "--explain")
    head, *rows = [line.split() for line in done.out.splitlines()[:3]]
    assert head[-1] == "priority"
    assert {row[0]: row[-1] for row in rows} == {dead: "0", one: "1"}
    assert f"picked by PowerOfTwo, priority 1, not {dead}" in done.err
    assert "priority" not in lbclient("get", both, "/ping", "-n", "20").out


@pytest.mark.parametrize("policy", ["random", "least_request"])
def test_json_of_many_requests(both: str, policy: str, servers: list[Backend]) -> None:
    done = lbclient("get", both, "/ping", "-n", "40", "-c", "4", "--json", "--policy", policy)
    result = json.loads(done.out)
    assert done.code == 0
    assert (result["requests"], result["failed"], result["statuses"]) == (40, 0, {"200": 40})
    assert result["endpoints"].keys() == {server.address for server in servers}
    assert sum(endpoint["requests"] for endpoint in result["endpoints"].values()) == 40
    assert 0 < result["p50_ms"] <= result["p99_ms"]


@pytest.mark.parametrize("policy", ["ring_hash", "maglev"])
def test_a_key_sends_all_requests_to_one_endpoint(both: str, policy: str) -> None:
    done = lbclient("get", both, "/ping", "-n", "20", "--json", "--policy", policy, "--key", "user-42")
    (endpoint,) = json.loads(done.out)["endpoints"].values()
    assert endpoint["requests"] == 20


def test_the_only_server_refuses(dead: str) -> None:
    done = lbclient("get", f"static://{dead}", "/ping", "--attempts", "2")
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("Error: GET /ping: ClientConnectorError: Cannot connect to host")


def test_a_server_that_is_too_slow(both: str) -> None:
    done = lbclient("get", both, "/hang", "--timeout", "0.3")
    assert (done.code, done.err) == (1, "Error: GET /hang: no complete answer within 0.3 s\n")


def test_one_failure_of_many_is_a_failure(dead: str) -> None:
    done = lbclient("get", f"static://{dead}", "/ping", "-n", "3", "--json")
    result = json.loads(done.out)
    assert (done.code, result["requests"], result["failed"]) == (1, 3, 3)
    assert "Cannot connect" in result["errors"][0]


def test_a_registry_that_is_down(dead: str) -> None:
    done = lbclient("get", f"etcd://{dead}/services/users/", "/ping", "--timeout", "2.5")
    assert done.code == 3
    assert "Error: no endpoints: " in done.err
    assert f"etcd at http://{dead}: cannot connect" in done.err


def test_an_empty_service(etcd: EtcdCluster, prefix: str) -> None:
    done = lbclient("get", f"etcd://{etcd.address}/{prefix}", "/ping")
    assert done.code == 3
    assert "has no endpoint: 0 known" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zookeeper://h/x", "/"], "unknown scheme 'zookeeper'; known ones are static, etcd"),
        (["static://127.0.0.1:80", "ping"], "a path begins with a slash, 'ping' does not"),
        (["static://127.0.0.1:80", "/", "-H", "X"], "expected 'Name: value', got 'X'"),
        (["static://127.0.0.1:80", "/", "--policy", "best"], "'best' is not one of 'round_robin', "),
        (["static://127.0.0.1:80", "/", "--policy", "maglev"], "--policy maglev needs a --key to hash"),
        (["static://127.0.0.1:80", "/", "--service", "a b"], "'a b' cannot be one"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(get, arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("package", "url", "message"),
    [
        ("click", "static://127.0.0.1:80", "the command line needs: pip install 'lbclient[cli]'"),
        ("consul", "consul://127.0.0.1:1/users", "pip install 'lbclient[consul]'"),
    ],
)
def test_a_missing_extra(package: str, url: str, message: str) -> None:
    done = lbclient("get", url, "/", hide=package)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_ctrl_c_sums_up_what_was_done(start: Callable[..., Running], both: str) -> None:
    running = start("get", both, "/ping", "-n", "1000000", "--explain")
    running.line("request 5,", err=True)
    done = running.end(signal.SIGINT)
    assert done.code == 130
    assert "0 failed" in done.out
    assert "Traceback" not in done.err
