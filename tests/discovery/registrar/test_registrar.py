"""The rules of a registrar that need no server: its options, its beats, its patience."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import pytest
import virtual_time
from registrar_rig import Vote, stands

from discovery import Consul, Endpoint, Etcd, Registrar, SourceError, Static
from discovery.registrar.health import complaint_of

ETCD = "etcd://127.0.0.1:1/users/"
CONSUL = "consul://127.0.0.1:1/users"
SERVER = "10.0.0.1:80"


class Scripted:
    """An etcd of one member in virtual time: answers at once, unless told to fail."""

    def __init__(self, fail: Callable[[float], Exception | None] = lambda _: None, *, delay: float = 0) -> None:
        self.members = ("a",)
        self.turn = 0
        self.calls: list[tuple[float, str, float | None]] = []
        self.connected = 0
        self._fail = fail
        self._delay = delay
        self._pairs: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        self.connected += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def rotate(self) -> None:
        pass

    async def call(self, path: str, body: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:  # noqa: ASYNC109 - the client's own
        now = asyncio.get_running_loop().time()
        self.calls.append((now, path, timeout))
        await asyncio.sleep(self._delay)
        if error := self._fail(now):
            raise error
        if path == "/kv/put":
            self._pairs[body["key"]] = body
        if path == "/kv/range":
            return {"kvs": [self._pairs[body["key"]]]} if body["key"] in self._pairs else {}
        return {"result": {"TTL": "15"}} if path == "/lease/keepalive" else {}

    def times(self, path: str) -> list[float]:
        return [at for at, called, _ in self.calls if called == path]


class Undecided:
    """Neither true nor false, as the arrays of numpy."""

    def __bool__(self) -> bool:
        raise ValueError("both")


def scripted(client: Scripted, **options: Any) -> Registrar:
    source = Etcd("users", hosts=["127.0.0.1:1"])
    source.client = lambda: client  # type: ignore[method-assign, assignment, return-value]
    return Registrar(source, SERVER, **{"linger": 0, "rng": random.Random(7), **options})


def test_the_beats() -> None:
    """Every third of the TTL, 10 % sooner or later; every third beat a look at the key; nothing written anew."""

    async def main() -> Scripted:
        client = Scripted()
        async with scripted(client, ttl=15):
            await asyncio.sleep(200 * 5)
        return client

    client = virtual_time.run(main())
    beats = client.times("/lease/keepalive")
    assert 190 <= len(beats) <= 210
    between = [later - sooner for sooner, later in itertools.pairwise(beats)]
    assert 4.5 - 1e-6 <= min(between) < 4.7
    assert 5.3 < max(between) <= 5.5 + 1e-6
    assert {timeout for _, path, timeout in client.calls if path == "/lease/keepalive"} == {5.0}
    assert len(client.times("/kv/range")) == 1 + len(beats) // 3
    assert (len(client.times("/lease/grant")), len(client.times("/kv/put")), client.connected) == (1, 1, 1)
    assert client.calls[-1][1] == "/lease/revoke"


def test_a_slow_answer_does_not_stretch_the_interval() -> None:
    async def main() -> list[float]:
        client = Scripted(delay=4)
        async with scripted(client, ttl=15):
            await asyncio.sleep(100)
        return client.times("/lease/keepalive")[1:]

    beats = virtual_time.run(main())
    # A third one takes longer: it looks at the key, too.
    assert len(beats) >= 15
    assert min(later - sooner for sooner, later in itertools.pairwise(beats)) <= 5.5


def test_it_never_gives_up_and_does_not_hammer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "discovery.registrar")
    outage = (1100.0, 1100.0 + 10_800)

    def fail(now: float) -> Exception | None:
        error = RuntimeError("a bug") if int(now) % 3 == 0 else SourceError(f"down at {now}")
        return error if outage[0] < now < outage[1] else None

    async def main() -> Scripted:
        client = Scripted(fail)
        async with scripted(client, ttl=15) as registrar:
            await asyncio.sleep(105)
            assert registrar.state == "registered"
            assert registrar.reason
            await asyncio.sleep(20)
            assert registrar.state == "lost"
            await asyncio.sleep(10_800)
            assert (registrar.state, registrar.reason) == ("registered", "")
        return client

    client = virtual_time.run(main())
    tries = [at for at, *_ in client.calls if outage[0] < at < outage[1]]
    # A delay of 2 s, 20 % more or less.
    assert 10_800 / 2.5 < len(tries) < 10_800 / 1.5
    assert max(later - sooner for sooner, later in itertools.pairwise(tries)) <= 2.4 + 1e-6
    back = min(at for at, *_ in client.calls if at >= outage[1])
    assert back - outage[1] <= 2.4
    # New connections each time: certificates are read again.
    assert client.connected >= len(tries)
    words = [record.getMessage().split(": ")[2].split(",")[0] for record in caplog.records]
    assert words == ["registered", "no sign of life arrives", "no longer registered", "registered", "left"]


def test_a_registry_that_asks_for_patience_gets_it() -> None:
    async def main() -> Scripted:
        client = Scripted(lambda _: SourceError("who are you?", retry_after=30))
        async with scripted(client, wait=0) as registrar:
            await asyncio.sleep(5)
            await asyncio.wait(
                [asyncio.create_task(registrar.update(Endpoint(host="10.0.0.1", port=80, weight=2)))], timeout=1
            )
            await asyncio.sleep(200)
        return client

    tries = [at for at, path, _ in virtual_time.run(main()).calls if path != "/lease/revoke"]
    assert tries == [1000.0 + 30 * number for number in range(7)]


def test_nothing_is_written_before_the_first_verdict() -> None:
    async def main() -> None:
        client, vote = Scripted(), Vote()
        verdict = asyncio.Event()
        vote.answer = verdict.wait
        async with scripted(client, health=vote, health_interval=7, health_timeout=60, wait=0) as registrar:
            updated = asyncio.create_task(registrar.update(Endpoint(host="10.0.0.1", port=80, weight=2)))
            await asyncio.sleep(50)
            assert (client.calls, registrar.state, updated.done()) == ([], "registering", False)
            verdict.set()
            await updated
            assert registrar.state == "registered"
            asked = vote.asked
            await asyncio.sleep(70.5)
            assert vote.asked - asked == 10
        assert client.times("/kv/put") == [1050.0]

    virtual_time.run(main())


def test_another_wording_of_a_complaint_is_no_news() -> None:
    async def main() -> tuple[Scripted, list[str]]:
        client, vote, heard = Scripted(), Vote(), list[str]()
        vote.answer = lambda: {}[vote.asked]
        registrar = scripted(client, ttl=600, health=vote, health_interval=1)
        registrar.subscribe(lambda state, reason: heard.append(f"{state} {reason}"))
        async with registrar:
            await asyncio.sleep(50)
        return client, heard

    client, heard = virtual_time.run(main())
    assert len(client.times("/kv/txn")) == 1
    assert heard == ["unhealthy KeyError: 1", "left "]


def test_leaving_before_anything_was_written_asks_nobody() -> None:
    async def main() -> None:
        client = Scripted()
        async with scripted(client, health=lambda: asyncio.sleep(60), wait=0, linger=30) as registrar:
            await asyncio.sleep(0.1)
            began_at = asyncio.get_running_loop().time()
        assert (client.calls, registrar.state, registrar.reason) == ([], "left", "")
        assert asyncio.get_running_loop().time() == began_at
        with pytest.raises(RuntimeError, match="has left"):
            await registrar.update(registrar.endpoint)
        never = scripted(client)
        await never.leave()
        assert (never.state, client.calls) == ("left", [])
        await never.leave()

    virtual_time.run(main())


def test_a_call_that_hangs_while_leaving_is_cut_off() -> None:
    async def main() -> None:
        registrar = scripted(Scripted(delay=3600), wait=0)
        async with registrar:
            await asyncio.sleep(10)
            began_at = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began_at == 1.5
        assert (registrar.state, registrar.reason) == ("left", "no answer within 1 s")

    virtual_time.run(main())


def test_the_loop_ends_with_its_event_loop() -> None:
    """Even a registrar that nobody leaves takes its entry away when the program ends."""
    client = Scripted()

    async def main() -> None:
        registrar = scripted(client)
        await registrar.registered()

    virtual_time.run(main())
    assert client.calls[-1][1] == "/lease/revoke"


def test_the_end_of_the_ttl_is_known_although_the_registry_is_not_to_be_asked_yet() -> None:
    def fail(now: float) -> Exception | None:
        return SourceError("refused", retry_after=60) if now > 1100 else None

    async def main() -> float:
        async with scripted(Scripted(fail), ttl=15) as registrar:
            await asyncio.sleep(108)
            assert (registrar.state, registrar.reason) == ("registered", "refused")
            await asyncio.sleep(9)
            assert (registrar.state, registrar.reason) == ("lost", "refused")
            left_at = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - left_at

    assert virtual_time.run(main()) == 0


def test_a_check_that_swallows_its_cancellation_does_not_keep_us_from_leaving() -> None:
    async def main() -> float:
        async def stubborn() -> bool:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3)
            return True

        async with scripted(Scripted(), health=stubborn, health_timeout=5, health_interval=60):
            await asyncio.sleep(58)  # entered after 3 s: the second call is under way
            left_at = asyncio.get_running_loop().time()
        return asyncio.get_running_loop().time() - left_at

    assert virtual_time.run(main()) == 0


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda: True, ""),
        (lambda: None, ""),
        (lambda: False, "the health check said no"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: asyncio.sleep(2), "did not answer within 1 s"),
        (lambda: asyncio.sleep(0.5, result=True), ""),
        (lambda: asyncio.sleep(0.5, result=False), "the health check said no"),
        (lambda: {}["x\ny" * 200], "KeyError: 'x"),
        (Undecided, "ValueError: both"),
    ],
)
def test_complaints(answer: Callable[[], Any], complaint: str) -> None:
    said = virtual_time.run(complaint_of(answer, within=1))
    assert complaint in said
    assert bool(said) == bool(complaint)
    assert said.isprintable()
    assert len(said) <= 200


def test_a_check_that_cancels_itself_is_a_complaint_and_our_own_cancellation_is_none() -> None:
    async def main() -> None:
        async def cancelled() -> bool:
            raise asyncio.CancelledError

        assert await complaint_of(cancelled, within=1) == "the health check was cancelled"
        task = asyncio.create_task(complaint_of(lambda: asyncio.sleep(60, result=True), within=100))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    virtual_time.run(main())


@pytest.mark.parametrize(
    ("registry", "endpoint", "options", "words"),
    [
        ("static://10.0.0.1:80", SERVER, {}, "needs the URL of etcd or Consul, not Static"),
        ("etcd://h/", SERVER, {}, "the prefix is missing"),
        (ETCD, "10.0.0.1", {}, "expected host:port, got '10.0.0.1'"),
        (ETCD, "0.0.0.0:80", {}, "was the listening address registered?"),
        (ETCD, SERVER, {"ttl": 1.9}, "ttl must be at least 2 seconds, not 1.9"),
        (ETCD, SERVER, {"ttl": -1}, "ttl must be a number of seconds above 0, not -1"),
        (ETCD, SERVER, {"health_interval": 0}, "health_interval must be a number of seconds above 0, not 0"),
        (ETCD, SERVER, {"health_timeout": "1"}, "health_timeout must be a number"),
        (ETCD, SERVER, {"linger": -1}, "linger must be a number of seconds"),
        (ETCD, SERVER, {"wait": -1}, "wait must be a number of seconds"),
        (ETCD, SERVER, {"id": "/x"}, "must not begin or end with a slash, not '/x'"),
        (ETCD, SERVER, {"id": "a\nb"}, "an id must be printable"),
        (ETCD, SERVER, {"records": "kratos"}, "records to write must be one of etcd, address, not 'kratos'"),
        (ETCD, SERVER, {"tags": ["a"]}, "tags is not for Etcd"),
        (ETCD, SERVER, {"deregister_after": 60}, "deregister_after is not for Etcd"),
        (CONSUL, SERVER, {"records": "etcd"}, "records is not for Consul"),
        (CONSUL, SERVER, {"deregister_after": 10}, "deregister_after must be at least 60 seconds, not 10"),
        (CONSUL, SERVER, {"id": "a/../b"}, "without slashes and quotes, not 'a/../b'"),
        (CONSUL, SERVER, {"id": 'a"b'}, "without slashes and quotes"),
        (CONSUL, SERVER, {"tags": [""]}, "tags must be texts that are not empty"),
        (
            ETCD,
            Endpoint(host="a", port=1, zone="x", metadata={"zone": "y"}),
            {},
            "metadata zone='y' contradicts the endpoint's own zone",
        ),
        (ETCD, Endpoint(host="a", port=1, metadata={"weight": "5"}), {}, "contradicts the endpoint's own weight"),
        (ETCD, Endpoint(host="a", port=1, weight=2), {"records": "address"}, "has no place for weight"),
        (
            ETCD,
            Endpoint(host="a", port=1, priority=2),
            {"records": "address"},
            "has no place for weight, priority",
        ),
        (CONSUL, Endpoint(host="a", port=1, metadata={"priority": "5"}), {}, "the endpoint's own priority"),
        (CONSUL, Endpoint(host="a", port=1, weight=0.5), {}, "whole numbers from 1 to 65535, not 0.5; multiply"),
        (CONSUL, Endpoint(host="a", port=1, metadata={"a b": "x"}), {}, "not 'a b' with 1 bytes"),
        (CONSUL, Endpoint(host="a", port=1, metadata={"a": "x" * 513}), {}, "not 'a' with 513 bytes"),
        (CONSUL, Endpoint(host="a", port=1, metadata={str(n): "" for n in range(65)}), {}, "at most 64 entries"),
        (CONSUL, Endpoint(host="a", port=1, metadata={"secure": "true"}), {}, "contradicts the endpoint's own"),
    ],
)
def test_wrong_options(registry: str, endpoint: str | Endpoint, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Registrar(registry, endpoint, **options)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match=r"needs an Etcd, a Consul or the URL of one, not Static\(a:1\)"):
        Registrar(Static(["a:1"]), SERVER)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="health must be a function, not True"):
        Registrar(ETCD, SERVER, health=True)  # type: ignore[arg-type]


def test_what_the_source_says_is_the_default() -> None:
    with pytest.raises(ValueError, match="has no place for weight"):
        Registrar(f"{ETCD}?records=address", Endpoint(host="a", port=1, weight=2))
    registrar = Registrar(Consul("users", tag=["a", "b"]), SERVER)
    assert registrar._registration._tags == ["a", "b"]  # type: ignore[attr-defined]
    assert (
        repr(registrar) == "<Registrar consul://127.0.0.1:8500/users?tag=a&tag=b: users-10.0.0.1:80: registering>"
    )


def test_a_listener_hears_each_change_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> list[tuple[str, str]]:
        heard: list[tuple[str, str]] = []
        registrar = scripted(Scripted(), health=(vote := Vote()), health_interval=1)
        registrar.subscribe(lambda *_: 1 / 0)
        end = registrar.subscribe(lambda *news: heard.append(news))
        async with registrar:
            vote.answer = lambda: False
            await stands(registrar, "unhealthy")
            vote.answer = lambda: True
            await stands(registrar, "registered")
            end()
        return heard

    heard = virtual_time.run(main())
    assert heard == [("registered", ""), ("unhealthy", "the health check said no"), ("registered", "")]
    assert "a listener failed" in caplog.text
