"""What an aiohttp application says of its load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rig import until

from lbclient import LoadReporter
from lbclient.load_report import HEADER, LoadReport
from lbclient.load_reporter import LatencyEstimate


class Clock:
    """Seconds that pass when the test says so."""

    now = 50.0

    def __call__(self) -> float:
        return self.now


class App:
    """An application with a reporter; `/hold` waits until `release` is set."""

    def __init__(self, **options: bool) -> None:
        self.clock = Clock()
        self.reporter = LoadReporter(clock=self.clock, **options)
        self.release = asyncio.Event()
        self.app = web.Application()
        self.app.add_routes(
            [
                web.get("/hold", self.hold),
                web.get("/late/{milliseconds}", self.late),
                web.get("/stream", self.stream),
                web.get("/ws", self.websocket),
            ]
        )
        for error in (ZeroDivisionError, web.HTTPBadGateway, web.HTTPNotFound):
            self.app.router.add_get(f"/{error.__name__}", self.raising(error))
        self.reporter.setup(self.app)
        self.url = ""

    async def hold(self, _: web.Request) -> web.Response:
        await self.release.wait()
        return web.Response(text="ok")

    async def late(self, request: web.Request) -> web.Response:
        self.clock.now += int(request.match_info["milliseconds"]) / 1000
        return web.Response(text="ok")

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.clock.now += 0.25
        response = web.StreamResponse()
        await response.prepare(request)
        await self.release.wait()
        self.clock.now += 3
        return response

    async def websocket(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for _ in response:
            pass
        return response

    def raising(self, error: type[Exception]) -> web.Handler:  # type: ignore[name-defined]
        async def handler(_: web.Request) -> web.Response:
            raise error

        return handler

    @property
    def report(self) -> LoadReport:
        return self.reporter.report


@asynccontextmanager
async def serving(**options: bool) -> AsyncIterator[tuple[App, aiohttp.ClientSession]]:
    app = App(**options)
    runner = web.AppRunner(app.app, handler_cancellation=True, access_log=None, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = "http://{}:{}".format(*runner.addresses[0])
    try:
        async with aiohttp.ClientSession(base) as session:
            yield app, session
    finally:
        app.release.set()
        await runner.cleanup()


async def probe(session: aiohttp.ClientSession) -> LoadReport | None:
    async with session.get("/-/load") as response:
        assert response.status == 204
        return LoadReport.parse(response.headers[HEADER])


async def test_requests_in_flight_are_counted_while_they_are_held_and_probes_are_not() -> None:
    async with serving() as (app, session):
        held = [asyncio.ensure_future(session.get("/hold")) for _ in range(10)]
        await until(lambda: app.reporter.in_flight == 10)
        assert await asyncio.gather(*(probe(session) for _ in range(5))) == [LoadReport(10)] * 5
        app.clock.now += 0.5
        app.release.set()
        for response in await asyncio.gather(*held):
            response.release()
        assert await probe(session) == LoadReport(0, 0.5)


async def test_latency_is_the_median_of_recent_requests() -> None:
    async with serving() as (_, session):
        for milliseconds in (10, 900, 20):
            await session.get(f"/late/{milliseconds}")
        assert await probe(session) == LoadReport(0, pytest.approx(0.02))


async def test_a_response_tells_of_the_load_without_its_own_request() -> None:
    async with serving() as (app, session):
        held = asyncio.ensure_future(session.get("/hold"))
        await until(lambda: app.reporter.in_flight == 1)
        async with session.get("/late/30") as response:
            assert LoadReport.parse(response.headers[HEADER]) == LoadReport(1, pytest.approx(0.03))
        async with session.get("/stream") as response:
            report = LoadReport.parse(response.headers[HEADER])
            assert report is not None
            assert report.rif == 1
            assert app.reporter.in_flight == 2
            app.release.set()
        (await held).release()


async def test_responses_say_nothing_if_that_is_not_wanted() -> None:
    async with serving(on_responses=False) as (_, session):
        async with session.get("/late/10") as response:
            assert HEADER not in response.headers
        assert await probe(session) == LoadReport(0, pytest.approx(0.01))


@pytest.mark.parametrize("path", ["/ZeroDivisionError", "/HTTPBadGateway"])
async def test_requests_that_fail_do_not_make_a_server_look_fast(path: str) -> None:
    async with serving() as (app, session):
        async with session.get(path) as response:
            assert response.status >= 500
        assert app.report == LoadReport(0, None)


async def test_a_not_found_counts_like_any_answer() -> None:
    async with serving() as (app, session):
        async with session.get("/HTTPNotFound"), session.get("/nowhere"):
            pass
        assert app.report == LoadReport(0, 0.0)


async def test_a_stream_takes_until_its_head_and_is_in_flight_until_its_end() -> None:
    async with serving() as (app, session), session.get("/stream") as response:
        assert app.report == LoadReport(1, 0.25)
        app.release.set()
        await response.read()
        assert app.report == LoadReport(0, 0.25)


async def test_a_websocket_is_in_flight_and_says_nothing_about_latency() -> None:
    async with serving() as (app, session):
        async with session.ws_connect("/ws"):
            assert app.report == LoadReport(1, None)
        await until(lambda: app.reporter.in_flight == 0)


async def test_a_cancelled_request_is_in_flight_no_more() -> None:
    async with serving() as (app, session):
        held = asyncio.ensure_future(session.get("/hold"))
        await until(lambda: app.reporter.in_flight == 1)
        held.cancel()
        await until(lambda: app.reporter.in_flight == 0)


async def test_sub_applications_are_counted_and_the_path_can_be_chosen() -> None:
    inner, outer, reporter = App(), web.Application(), LoadReporter()
    reporter.setup(outer, path="/-/busy")
    outer.add_subapp("/inner", inner.app)
    runner = web.AppRunner(outer, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession("http://{}:{}".format(*runner.addresses[0])) as session:
        held = asyncio.ensure_future(session.get("/inner/hold"))
        await until(lambda: reporter.in_flight == 1)
        async with session.get("/-/busy") as response:
            assert response.headers[HEADER] == "TEXT named_metrics.rif=1"
        inner.release.set()
        (await held).release()
    await runner.cleanup()


def test_latency_is_that_of_the_nearest_load() -> None:
    estimate = LatencyEstimate()
    for rif, latency in ((0, 0.01), (10, 0.1), (80, 0.8)):
        estimate.add(rif, latency, 0.0)
    assert [estimate.at(rif, 1.0) for rif in (0, 4, 6, 10, 30, 60, 900)] == [0.01, 0.01, 0.1, 0.1, 0.1, 0.8, 0.8]


def test_old_latencies_are_forgotten() -> None:
    estimate = LatencyEstimate()
    estimate.add(3, 5.0, 0.0)
    estimate.add(9, 0.1, 6.0)
    assert estimate.at(3, 10.0) == 5.0
    assert estimate.at(3, 10.1) == 0.1
    assert estimate.at(3, 16.1) is None


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 100), st.floats(0, 5)), max_size=300))
def test_an_estimate_is_within_what_was_seen(
    story: list[tuple[int, float, float]],
) -> None:
    estimate, now, seen = LatencyEstimate(), 0.0, []
    for rif, latency, pause in story:
        now += pause
        estimate.add(rif, latency, now)
        seen.append(latency)
        assert min(seen) <= (estimate.at(rif, now) or 0) <= max(seen)


def test_memory_is_bounded_however_many_requests_are_in_flight() -> None:
    estimate = LatencyEstimate()
    for rif in range(100_000):
        estimate.add(rif, 0.01, 0.0)
    assert len(estimate._recent) == 100 + 3 * 90
    assert {len(latencies) for latencies in estimate._recent.values()} == {1, 10, 16}


async def test_one_reporter_for_an_application_and_its_sub_application_counts_each_request_once() -> None:
    outer, inner = App(), App()
    inner.app = web.Application()
    inner.app.add_routes([web.get("/hold", inner.hold), web.get("/late/{milliseconds}", outer.late)])
    outer.reporter.setup(inner.app)
    outer.app.add_subapp("/inner", inner.app)
    runner = web.AppRunner(outer.app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession("http://{}:{}".format(*runner.addresses[0])) as session:
        held = asyncio.ensure_future(session.get("/inner/hold"))
        await until(lambda: outer.reporter.in_flight > 0)
        assert await probe(session) == LoadReport(1)
        inner.release.set()
        (await held).release()
        async with session.get("/inner/late/20") as response:
            assert response.headers[HEADER].startswith("TEXT named_metrics.rif=0,")
    await runner.cleanup()
    assert outer.reporter.in_flight == 0
    latencies = [latency for kept in outer.reporter._latency._recent.values() for _, latency in kept]
    assert latencies == pytest.approx([0.0, 0.02])


async def test_reporters_of_an_application_and_its_sub_application_count_for_themselves() -> None:
    outer, inner = App(), App()
    outer.app.add_subapp("/inner", inner.app)
    runner = web.AppRunner(outer.app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession("http://{}:{}".format(*runner.addresses[0])) as session:
        held = [asyncio.ensure_future(session.get("/hold"))]
        await until(lambda: outer.reporter.in_flight == 1)
        held.append(asyncio.ensure_future(session.get("/inner/hold")))
        await until(lambda: (outer.reporter.in_flight, inner.reporter.in_flight) == (2, 1))
        for app in (outer, inner):
            app.release.set()
        for response in await asyncio.gather(*held):
            response.release()
    await runner.cleanup()
    assert sorted(outer.reporter._latency._recent) == [0, 1]
    assert sorted(inner.reporter._latency._recent) == [0]


def test_a_clock_is_a_function() -> None:
    with pytest.raises(TypeError, match=r"clock must be a function .* such as time\.monotonic, not 3"):
        LoadReporter(clock=3)  # type: ignore[arg-type]
