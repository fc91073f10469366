"""`lbclient register`."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.commandline import Running, lbclient
from click.testing import CliRunner

from lbclient.cli.register import register
from lbclient.sandbox import Backend, EtcdCluster

Start = Callable[..., Running]

SERVER = ("--address", "10.0.0.1:80", "--ttl", "2")

# Tells what it is sent, and how many keys etcd has below the prefix at that moment.
PROGRAM = """
import base64, json, signal, sys, time, urllib.request
address, prefix, code = sys.argv[1:]
def count():
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    key, range_end = (base64.b64encode(text.encode()).decode() for text in (prefix, end))
    body = {"key": key, "range_end": range_end}
    request = urllib.request.Request(f"http://{address}/v3/kv/range", json.dumps(body).encode())
    return json.load(urllib.request.urlopen(request)).get("count", "0")
def tell(number, frame):
    print(signal.Signals(number).name, count(), flush=True)
    if number != signal.SIGHUP:
        sys.exit(int(code))
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, tell)
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def url(etcd: EtcdCluster, prefix: str) -> str:
    return f"etcd://{etcd.address}/{prefix}"


async def test_alone_until_a_signal(etcd: EtcdCluster, prefix: str, start: Start) -> None:
    running = start(
        "register",
        url(etcd, prefix),
        *SERVER,
        "--weight",
        "5",
        "--priority",
        "1",
        "--zone",
        "east",
        "--meta",
        "a=b=c",
        "--linger",
        "30",
    )
    assert running.line().split()[1:] == ["registered", "10.0.0.1:80"]
    assert {key: json.loads(value) for key, value in (await etcd.get_prefix(prefix)).items()} == {
        f"{prefix}10.0.0.1:80": {
            "Op": 0,
            "Addr": "10.0.0.1:80",
            "Metadata": {"a": "b=c", "weight": 5, "priority": 1, "zone": "east"},
        }
    }
    sent_at = time.monotonic()
    done = running.end(signal.SIGTERM)
    assert (done.code, done.err) == (143, "")
    assert done.out.split()[1:] == ["left", "10.0.0.1:80"]
    assert time.monotonic() - sent_at < 3
    assert await etcd.get_prefix(prefix) == {}


async def test_the_entry_is_gone_before_the_command_is_told(etcd: EtcdCluster, prefix: str, start: Start) -> None:
    program = (sys.executable, "-c", PROGRAM, etcd.address, prefix, "5")
    running = start("register", url(etcd, prefix), *SERVER, "--linger", "0.4", "--json", "--", *program)
    first = json.loads(running.line(err=True))
    assert (first["state"], first["reason"], first["address"]) == ("registered", "", "10.0.0.1:80")
    assert running.line() == "ready"
    # Many programs reload at this one: it is passed on, and nothing else happens.
    running.process.send_signal(signal.SIGHUP)
    assert running.line() == "SIGHUP 1"
    sent_at = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert json.loads(running.line(err=True))["state"] == "left"
    assert running.line() == "SIGTERM 0"
    assert 0.4 <= time.monotonic() - sent_at < 3
    done = running.end()
    assert (done.code, done.out, done.err) == (5, "", "")


async def test_a_second_signal_does_not_wait(etcd: EtcdCluster, prefix: str, start: Start) -> None:
    program = (sys.executable, "-c", PROGRAM, etcd.address, prefix, "0")
    running = start("register", url(etcd, prefix), *SERVER, "--linger", "30", "--", *program)
    running.line("registered", err=True)
    assert running.line() == "ready"
    running.process.send_signal(signal.SIGINT)
    running.line("left", err=True)
    running.process.send_signal(signal.SIGINT)
    assert running.line() == "SIGINT 0"
    assert running.end().code == 0


@pytest.mark.parametrize(("script", "code"), [("sleep 0.3; exit 7", 7), ("kill -9 $$", 137)])
async def test_the_command_ends_by_itself(etcd: EtcdCluster, prefix: str, script: str, code: int) -> None:
    began_at = time.monotonic()
    done = lbclient("register", url(etcd, prefix), *SERVER, "--linger", "60", "--", "sh", "-c", script)
    assert (done.code, done.out) == (code, "")
    assert done.err.splitlines()[-1].split()[1:] == ["left", "10.0.0.1:80"]
    assert await etcd.get_prefix(prefix) == {}
    assert time.monotonic() - began_at < 10


async def test_a_command_that_cannot_be_run_is_never_registered(
    etcd: EtcdCluster, prefix: str, tmp_path: Path
) -> None:
    revision = await etcd.revision()
    done = lbclient("register", url(etcd, prefix), *SERVER, "--", "no-such-command", "--port", "1")
    assert (done.code, done.out, done.err) == (
        127,
        "",
        "Error: cannot run no-such-command: No such file or directory\n",
    )
    done = lbclient("register", url(etcd, prefix), *SERVER, "--", str(tmp_path))
    assert (done.code, done.err) == (126, f"Error: cannot run {tmp_path}: Permission denied\n")
    assert await etcd.revision() == revision


async def test_registered_only_while_the_health_url_answers(
    etcd: EtcdCluster, prefix: str, servers: list[Backend], start: Start
) -> None:
    arguments = ("register", url(etcd, prefix), *SERVER, "--health-interval", "0.1", "--health")
    sick = start(*arguments, f"http://{servers[0].address}/status/503")
    assert sick.line().split(maxsplit=3)[1:] == ["unhealthy", "10.0.0.1:80", "Unhealthy: status 503"]
    assert await etcd.get_prefix(prefix) == {}
    fine = start(*arguments, f"http://{servers[0].address}/ping")
    assert fine.line().split()[1:] == ["registered", "10.0.0.1:80"]
    assert len(await etcd.get_prefix(prefix)) == 1
    assert fine.end(signal.SIGINT).code == 130
    assert sick.end(signal.SIGINT).code == 130


def test_a_registry_that_is_down_does_not_keep_the_command_from_running(dead: str) -> None:
    done = lbclient("register", f"etcd://{dead}/users/", *SERVER, "--", "sh", "-c", "sleep 0.2; echo served")
    assert (done.code, done.out) == (0, "served\n")
    assert f"registering  10.0.0.1:80  etcd at http://{dead}: cannot connect" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["etcd://h/x/"], "Missing option '--address'"),
        (["static://a:1", "--address", "a:1"], "a registrar needs the URL of etcd or Consul, not Static(a:1)"),
        (["etcd://h/", "--address", "a:1"], "etcd: the prefix is missing; it looks like etcd://127.0.0.1"),
        (["etcd://h/x/", "--address", "a"], "expected host:port, got 'a'"),
        (["etcd://h/x/", "--address", "0.0.0.0:1"], "was the listening address registered?"),
        (["etcd://h/x/", "--address", "a:1", "--ttl", "1"], "ttl must be at least 2 seconds, not 1.0"),
        (
            ["etcd://h/x/", "--address", "a:1", "--weight", "-1"],
            "weight must be finite and not negative, not -1.0",
        ),
        (["etcd://h/x/", "--address", "a:1", "--meta", "a"], "expected key=value, got 'a'"),
        (["etcd://h/x/", "--address", "a:1", "--meta", "a=1", "--meta", "a=2"], "a is given twice"),
        (["etcd://h/x/", "--address", "a:1", "--health", "localhost"], "such as http://127.0.0.1:8080/health"),
        (["etcd://h/x/", "--address", "a:1", "--tag", "b"], "tags is not for Etcd"),
        (["consul://h/x", "--address", "a:1", "--weight", "0.5"], "whole numbers from 1 to 65535, not 0.5"),
        (["etcd://h/x/", "--address", "a:1", "serve", "--port", "1"], "put -- before the command"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(register, arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert "Traceback" not in done.output
