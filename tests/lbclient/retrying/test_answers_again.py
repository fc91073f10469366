"""Answers after which a request is tried again: where, when, how often, and what is left behind."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web
from patience import Stopwatch
from rig import Answer, Prefer, drop, local, node_of

from discovery import Static
from lbclient import BalancedSession, Budget, Outcome, Retry, attempts

AT_ONCE = Retry(backoff=0)


def status(code: int, **headers: str) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=code, text="no", headers=sent)

    return answer


def outcomes(result: aiohttp.ClientResponse | BaseException) -> list[Outcome | None]:
    return [attempt.outcome for attempt in attempts(result)]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; these are the pauses that were asked for."""
    asked: list[float] = []

    async def sleep(seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr("lbclient.exchange.sleep", sleep)
    return asked


@pytest.mark.parametrize("code", [429, 502, 503, 504])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST", "PATCH"])
async def test_idempotent_requests_go_elsewhere_after_these_statuses(method: str, code: int) -> None:
    async with local(status(code)) as bad, local() as good:
        services = Static([bad.address, good.address])
        async with (
            BalancedSession(services, policy=Prefer(bad.address), retry=AT_ONCE) as session,
            session.request(method, "/x", data=None if method in ("GET", "HEAD") else b"body") as response,
        ):
            again = method not in ("POST", "PATCH")
            assert response.status == (200 if again else code)
            assert len(attempts(response)) == 1 + again
            assert attempts(response)[0].error == f"status {code}"
            assert node_of(session, bad.address)["failures"] == 1
        assert (len(bad.seen), len(good.seen)) == (1, again)
        assert {seen.body for seen in (*bad.seen, *good.seen)} == {b"" if method in ("GET", "HEAD") else b"body"}


@pytest.mark.parametrize("code", [408, 425, 500, 599])
async def test_the_statuses_are_the_users_choice(code: int) -> None:
    async with local(status(code)) as bad, local() as good:
        services = Static([bad.address, good.address])
        for retry, final in ((Retry(statuses={code}, backoff=0), 200), (AT_ONCE, code)):
            async with (
                BalancedSession(services, policy=Prefer(bad.address), retry=retry) as session,
                session.get("/x") as response,
            ):
                assert response.status == final


async def test_a_service_has_its_own_rules() -> None:
    async with local(status(503)) as one, local(status(503)) as two:
        services = {"once": Static([one.address]), "often": Static([two.address])}
        async with BalancedSession(
            services, retry={"often": Retry(attempts=5, backoff=0), "once": Retry(attempts=1)}
        ) as s:
            for name in services:
                async with s.get(f"http://{name}/x") as response:
                    assert response.status == 503
        assert (len(one.seen), len(two.seen)) == (1, 5)


async def test_the_last_answer_is_returned_as_it_is_with_all_attempts() -> None:
    async with local(status(503, X_Who="one")) as one, local(status(502, X_Who="two")) as two:
        services = Static([one.address, two.address])
        async with (
            BalancedSession(services, policy=Prefer(one.address), retry=Retry(attempts=2, backoff=0)) as session,
            session.get("/x") as response,
        ):
            assert (response.status, response.headers["X-Who"]) == (502, "two")
            assert await response.text() == "no"
            assert [attempt.endpoint.address for attempt in attempts(response)] == [one.address, two.address]
            assert outcomes(response) == [Outcome.GATEWAY] * 2


async def test_all_tried_means_from_the_beginning() -> None:
    async with local(status(503)) as one, local(status(503)) as two:
        services = Static([one.address, two.address])
        async with (
            BalancedSession(services, retry=Retry(attempts=6, backoff=0)) as session,
            session.get("/x") as response,
        ):
            assert len(attempts(response)) == 6
        assert (len(one.seen), len(two.seen)) == (3, 3)


@pytest.mark.parametrize(
    "case",
    [
        (503, "2", True, 2, 0),
        (503, "60", True, 2, 0),
        (503, "2", False, 3, 2),
        (503, "60", False, 1, None),
        (429, "2", True, 2, 2),
        (429, "60", True, 1, None),
        (429, "2", False, 3, 2),
        (429, "-2", False, 3, 0),
        (429, "soon", False, 3, 0),
        (502, "2", False, 3, 2),
        (429, "Sun, 06 Nov 1994 08:49:32 GMT", False, 3, 2),
        (429, "Sun, 06 Nov 1994 08:50:30 GMT", False, 1, None),
    ],
)
async def test_retry_after_is_kept_where_it_holds(
    pauses: list[float], case: tuple[int, str, bool, int, float | None]
) -> None:
    """That of a 429 everywhere, that of others at their own node; longer ones are the caller's."""
    # The status, what it asks for, whether there is another node, the attempts, and the shortest pause.
    code, asked, others, made, least = case
    headers = {"Retry_After": asked, "Date": "Sun, 06 Nov 1994 08:49:30 GMT"}
    async with local(status(code, **headers)) as bad, local() as good:
        services = Static([bad.address, good.address] if others else [bad.address])
        async with (
            BalancedSession(services, policy=Prefer(bad.address)) as session,
            session.get("/x") as response,
        ):
            assert len(attempts(response)) == made
            assert response.status == (200 if others and made == 2 else code)
            told = attempts(response)[0].error
        assert len(pauses) == made - 1
        assert all(least is not None and least <= pause < least + 0.06 for pause in pauses)
        assert ("Retry-After asks for more than 5 s" in told) is (least is None)


async def test_a_pause_that_would_end_after_the_deadline_is_not_begun(pauses: list[float]) -> None:
    async with local(status(429, Retry_After="3")) as server, BalancedSession(Static([server.address])) as session:
        async with session.get("/x", timeout=2.9) as response:
            assert response.status == 429
            assert attempts(response)[0].error == "status 429; not tried again: the deadline is too near"
        assert pauses == []
        async with session.get("/x", timeout=20) as response:
            assert len(attempts(response)) == 3
        assert len(pauses) == 2


async def test_an_error_is_raised_at_once_if_no_time_is_left_for_the_pause(unused_address: str) -> None:
    retry = Retry(backoff=1e9, backoff_cap=1e9)
    async with BalancedSession(Static([unused_address]), retry=retry) as session:
        with Stopwatch() as watch, pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.get("/x", timeout=30)
        assert watch.seconds < 5
        assert caught.value.__notes__ == ["not tried again: the deadline is too near"]


NOTHING = Retry(backoff=0, budget=Budget(share=0, per_second=0))


@pytest.mark.parametrize("served", [status(503), drop], ids=["answer", "exception"])
async def test_an_empty_budget_is_named_as_the_reason(served: Answer) -> None:
    async with local(served) as server, BalancedSession(Static([server.address]), retry=NOTHING) as session:
        if served is drop:
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.get("/x")
            assert caught.value.__notes__ == ["not tried again: the retry budget is used up"]
            (attempt,) = attempts(caught.value)
        else:
            async with session.get("/x") as response:
                (attempt,) = attempts(response)
        assert attempt.error.endswith("; not tried again: the retry budget is used up")
        budget = session.describe()["services"]["service"]["budget"]
        assert budget == {"requests": 1, "retries": 0, "withdrawn": 0, "refused": 1}
    assert len(server.seen) == 1


async def test_servers_that_all_fail_see_no_more_than_the_budget() -> None:
    """No storm: a tenth more and five, where three attempts each would have been 600."""
    retry = Retry(backoff=0, budget=Budget(share=0.1, per_second=0.5))
    async with local(status(503)) as one, local(status(503)) as two:
        async with BalancedSession(Static([one.address, two.address]), retry=retry) as session:
            for _ in range(200):
                async with session.get("/x"):
                    pass
        assert 200 <= len(one.seen) + len(two.seen) <= 200 + 20 + 5


async def test_a_refused_connection_is_free_while_another_node_is_there(unused_address: str) -> None:
    async with local() as good:
        services = Static([unused_address, good.address])
        async with (
            BalancedSession(services, policy=Prefer(unused_address), retry=NOTHING) as session,
            session.post("/x") as response,
        ):
            assert outcomes(response) == [Outcome.CONNECT, Outcome.SUCCESS]
            budget = session.describe()["services"]["service"]["budget"]
    assert budget == {"requests": 1, "retries": 1, "withdrawn": 0, "refused": 0}
