"""A health check that says ok while requests fail brings nobody back."""

from __future__ import annotations

from aiohttp import web
from rig import Prefer, local, node_of, ok, until

from discovery import Static
from lbclient import BalancedSession, HealthCheck


async def test_a_node_that_was_ejected_for_failing_answers_stays_out_whatever_its_health_check_says() -> None:
    async def lies(request: web.BaseRequest) -> web.StreamResponse:
        return await ok(request) if request.path == "/healthz" else web.Response(status=500)

    async with local(lies) as liar, local() as good:
        check = HealthCheck(interval=0.02, timeout=30, healthy_threshold=1)
        async with BalancedSession(
            Static([liar.address, good.address]), policy=Prefer(liar.address), health_check=check
        ) as session:

            async def ejected() -> bool:
                async with session.get("/x"):
                    return bool(node_of(session, liar.address)["state"] == "ejected")

            await until(ejected)
            sent = len(liar.seen)
            await until(lambda: len(liar.seen) >= sent + 10)
            assert node_of(session, liar.address)["check"]["result"] == "ok"
            assert node_of(session, liar.address)["state"] == "ejected"
            requests = [seen.target for seen in liar.seen].count("/x")
            for _ in range(10):
                async with session.get("/x") as response:
                    assert response.status == 200
            assert [seen.target for seen in liar.seen].count("/x") == requests
