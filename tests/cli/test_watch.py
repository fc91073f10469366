"""`lbclient watch`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest
from cli.commandline import Running, lbclient
from click.testing import CliRunner

from lbclient.cli.watch import watch
from lbclient.sandbox import EtcdCluster

Start = Callable[..., Running]


def test_once_prints_the_set(both: str) -> None:
    done = lbclient("watch", "--once", both)
    assert (done.code, done.err) == (0, "")
    assert sorted(f"static://{','.join(done.out.split())}") == sorted(both)


async def test_once_as_json(etcd: EtcdCluster, prefix: str) -> None:
    await etcd.put(f"{prefix}a", '{"Addr": "10.0.0.1:80", "Metadata": {"weight": 3, "zone": "east"}}')
    url = f"etcd://{etcd.address}/{prefix}"
    done = lbclient("watch", "--once", "--json", url)
    snapshot = json.loads(done.out)
    assert (done.code, snapshot["version"], snapshot["state"]) == (0, 1, "live")
    [endpoint] = snapshot["endpoints"]
    assert (endpoint["address"], endpoint["weight"], endpoint["zone"]) == ("10.0.0.1:80", 3, "east")
    assert lbclient("watch", "--once", url).out.startswith("10.0.0.1:80  weight=3  zone=east")


async def test_priorities_are_shown_where_there_are_some(etcd: EtcdCluster, prefix: str) -> None:
    await etcd.put(f"{prefix}a", '{"Addr": "10.0.0.1:80", "Metadata": {"priority": 0}}')
    await etcd.put(f"{prefix}b", '{"Addr": "10.0.0.2:80", "Metadata": {"priority": 1}}')
    done = lbclient("watch", "--once", f"etcd://{etcd.address}/{prefix}")
    assert done.out.splitlines() == ["10.0.0.1:80", "10.0.0.2:80  priority=1"]


async def test_each_change_is_a_line(etcd: EtcdCluster, prefix: str, start: Start) -> None:
    await etcd.put(f"{prefix}a", "10.0.0.1:80")
    running = start("watch", f"etcd://{etcd.address}/{prefix}")
    assert running.line().split()[1:] == ["v1", "live", "1", "endpoint", "+10.0.0.1:80"]
    await etcd.put(f"{prefix}b", "10.0.0.2:80")
    assert running.line().split()[1:] == ["v2", "live", "2", "endpoints", "+10.0.0.2:80"]
    await etcd.delete(f"{prefix}a")
    assert running.line().split()[1:] == ["v3", "live", "1", "endpoint", "-10.0.0.1:80"]
    await etcd.put(f"{prefix}b", '{"Addr": "10.0.0.2:80", "Metadata": {"weight": 2}}')
    assert running.line().split()[1:] == ["v4", "live", "1", "endpoint", "~10.0.0.2:80"]
    await etcd.put(f"{prefix}c", "no address")
    assert running.line().split()[1:] == ["v4", "live", "1", "endpoint", "1", "unreadable"]
    done = running.end(signal.SIGINT)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err


async def test_the_registry_goes_away_and_comes_back(etcd: EtcdCluster, prefix: str, start: Start) -> None:
    await etcd.put(f"{prefix}a", "10.0.0.1:80")
    running = start("watch", "--json", f"etcd://{etcd.address}/{prefix}")
    first = json.loads(running.line())
    assert (first["version"], first["state"], first["count"]) == (1, "live", 1)
    assert [endpoint["address"] for endpoint in first["added"]] == ["10.0.0.1:80"]
    await etcd.kill_all()
    stale = json.loads(running.line())
    assert (stale["version"], stale["state"], stale["count"], stale["added"]) == (1, "stale", 1, [])
    assert "etcd" in stale["reason"]
    await etcd.restart_all()
    live = json.loads(running.line('"live"'))
    assert (live["version"], live["state"], live["reason"]) == (1, "live", "")
    done = running.end(signal.SIGTERM)
    assert done.code == 143
    assert done.err == ""


def test_a_registry_that_is_down_is_tried_again(dead: str, start: Start) -> None:
    running = start("watch", f"etcd://{dead}/users/")
    assert "is not reached yet, trying again: " in running.line(err=True)
    done = running.end(signal.SIGINT)
    assert (done.code, done.out) == (130, "")


@pytest.mark.parametrize("once", [["--once"], []])
def test_a_registry_that_stays_down(dead: str, once: list[str]) -> None:
    done = lbclient("watch", *once, "--timeout", "2.5", f"etcd://{dead}/users/")
    assert (done.code, done.out) == (1, "")
    assert "nothing received within 2.5 s" in done.err
    assert f"etcd at http://{dead}: cannot connect" in done.err


async def test_an_empty_service(etcd: EtcdCluster, prefix: str, start: Start) -> None:
    url = f"etcd://{etcd.address}/{prefix}"
    done = lbclient("watch", "--once", url)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"{url}: the registry answers; there are no endpoints\n"
    await etcd.put(f"/{prefix}a", "10.0.0.1:80")
    running = start("watch", url)
    assert running.line().split()[1:] == ["v1", "live", "0", "endpoints"]
    assert f"/{prefix} has 1: is that the one you mean?" in running.line("is that", err=True)


def test_a_reader_that_goes_away_ends_it(both: str, start: Start) -> None:
    running = start("watch", both)
    running.line()
    running.stop_reading()
    done = running.end()
    assert (done.code, done.err) == (141, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zookeeper://h/x"], "unknown scheme 'zookeeper'; known ones are static, etcd"),
        (["etcd://:secret@h/x/"], "before the @ there must be user:password"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(watch, arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert "secret" not in done.output


def test_a_missing_extra() -> None:
    done = lbclient("watch", "etcd://127.0.0.1:1/users/", hide="etcd3")
    assert done.code == 2
    assert done.err == "Error: etcd support is not installed: pip install 'lbclient[etcd]'\n"
