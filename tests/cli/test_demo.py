"""`lbclient demo`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cli.commandline import ROOT, Finished, Running, lbclient
from click.testing import CliRunner

from lbclient.cli.demo import demo
from lbclient.sandbox import EtcdCluster

Start = Callable[..., Running]

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


REGISTRIES = {"memory": "memory", "etcd": "etcd 3", "consul": "Consul 1"}
DURATION = 4
RATE = 60
BACKENDS = 4


def check(done: Finished) -> None:
    """Everything happened, and no request failed."""
    result = json.loads(done.out)
    assert (done.code, result["failed"], result["errors"]) == (0, 0, []), done.err
    assert result["requests"] >= RATE * DURATION * 0.9
    states = [endpoint["state"] for endpoint in result["endpoints"].values()]
    assert sorted(states) == ["drained", "killed", *["running"] * BACKENDS]
    assert all(endpoint["requests"] for endpoint in result["endpoints"].values())
    assert sum(endpoint["requests"] for endpoint in result["endpoints"].values()) >= result["requests"]
    assert len(result["added"]) == 2
    killed, drained = result["removals"]
    assert (killed["why"], drained["why"]) == ("killed", "drained")
    assert 0 <= killed["ms_to_last_connection_closed"] < 1000
    assert 0 <= drained["ms_to_last_connection_closed"] < 1000
    [failing], [stopped] = result["failing"], result["stopped"]
    assert failing["ejected_because"] == "5 failures in a row, the last: status 500"
    assert stopped["answered_by_others"] > 0
    for server in (failing, stopped):
        assert result["endpoints"][server["address"]]["state"] == "running"
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    events = ("kill -9 b", "has run out", "deregistered", "started and registered", "is stopped", "is back")
    failures = ("answers 500 to everything", ": 5 failures in a row", "works again", "SIGSTOP b", "SIGCONT b")
    for event in (*events, *failures):
        assert event in done.err
    said = "requests, 0 failed.\n1 server killed, 1 drained, 2 added, 1 failing, 1 silent; registry "
    assert f"{result['requests']} {said}" in done.err
    # One that was taken out is used again, after its probe.
    name = re.search(r"(b\d+) works again", done.err)
    assert name is not None
    assert f"the client uses {name[1]} again" in done.err


@pytest.fixture(scope="module")
def demos() -> Iterator[dict[str, Running]]:
    """One demo for each registry, all at once: they do little but wait."""
    options = ("--duration", str(DURATION), "--rate", str(RATE), "--backends", str(BACKENDS), "--json")
    started = {registry: Running("demo", "--registry", registry, *options) for registry in REGISTRIES}
    yield started
    for running in started.values():
        running.kill()


@pytest.mark.parametrize("registry", REGISTRIES)
def test_no_request_fails(registry: str, demos: dict[str, Running]) -> None:
    done = demos[registry].end()
    check(done)
    told = json.loads(done.out)["registry"]
    assert told["name"].startswith(REGISTRIES[registry])
    assert told["away_s"] >= DURATION * 0.14


async def test_a_registry_of_somebody_else_is_left_as_it_was(etcd: EtcdCluster, prefix: str) -> None:
    await etcd.put(f"{prefix}theirs", "10.0.0.1:80")
    url = f"etcd://{etcd.address}/{prefix}"
    done = lbclient("demo", "--registry", url, "--duration", "2", "--rate", "50", "--backends", "3")
    assert done.code == 0, done.err
    assert "was not started by the demo, so it is not stopped either" in done.out
    assert done.out.endswith("registry not stopped.\n")
    assert await etcd.get_prefix(prefix) == {f"{prefix}theirs": "10.0.0.1:80"}
    assert "\x1b" not in done.out
    assert re.search(r"^ +1\.\d s  \d+ requests, 0 failed", done.out, re.MULTILINE)


def test_on_a_terminal_it_is_a_table() -> None:
    out = _in_terminal("demo", "--duration", "2", "--rate", "50", "--backends", "3", columns=100, lines=24)
    assert "\x1b[32mrunning" in out
    plain = _ESCAPE.sub("", out)
    assert re.search(r"address +server +client says +attempts", plain)
    assert re.search(
        r"b1 +127\.0\.0\.1:\d+ +(running|killed|drained|errors|stopped) +(ready|ejected|probing|not listed) +\d+",
        plain,
    )
    assert re.search(r"killed +not listed", plain)
    assert re.search(r"drained +not listed", plain)
    assert "registry  stale" in plain
    assert re.search(
        r"\d+ requests, 0 failed\.\s+1 server killed, 1 drained, 2 added, 1 failing, 1 silent; registry away for",
        plain,
    )
    assert max(len(line) for line in re.split(r"[\r\n]+", plain)) <= 100


def test_ctrl_c_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    running = start("demo", "--registry", "etcd", TMPDIR=str(tmp_path))
    running.line("requests/s begin")
    children = running.children()
    assert len(children) == 6, "etcd and five servers"
    assert list(tmp_path.iterdir())
    done = running.end(signal.SIGINT)
    assert (done.code, done.err) == (130, "")
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        ("redis", "'redis' is neither memory, etcd or consul nor the URL of a registry"),
        ("etcd://127.0.0.1:1", "the prefix is missing"),
    ],
)
def test_wrong_usage(registry: str, message: str) -> None:
    done = CliRunner().invoke(demo, ["--registry", registry], obj=False)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")


@pytest.mark.parametrize("registry", ["etcd://127.0.0.1:1/x/", "consul://127.0.0.1:1/x"])
def test_a_registry_that_is_down(registry: str) -> None:
    done = lbclient("demo", "--registry", registry)
    assert (done.code, done.out) == (1, "")
    assert f"Error: {registry} cannot be used: " in done.err


def test_help_tells_why_the_posts_are_safe() -> None:
    assert "Idempotency-Key" in lbclient("demo", "--help").out


def _in_terminal(*arguments: str, columns: int, lines: int) -> str:
    """What a command prints on a terminal of that size."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "lbclient", *arguments],
        cwd=ROOT,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    out = b""
    try:
        while chunk := os.read(ours, 65536):
            out += chunk
    except OSError:
        pass  # the other side was closed: that is how Linux says so
    finally:
        os.close(ours)
        process.wait(10)
    assert process.returncode == 0
    return out.decode()
