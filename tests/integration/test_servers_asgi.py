"""A short conversation on each supported server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.kit.clients import bearer_subprotocol, connect, refusal, turned_away
from tests.kit.gateways import SERVERS, RunningGateway, Server, run_gateway

ORIGIN = "https://app.example.com"


@pytest.fixture(params=SERVERS, scope="module")
async def running(request: pytest.FixtureRequest) -> AsyncIterator[RunningGateway]:
    async with run_gateway(server=request.param, allowed_origins=[ORIGIN], max_message_size=1024) as running:
        yield running


async def test_a_conversation(running: RunningGateway) -> None:
    async with (
        connect(running.url, "alice", subprotocols=["nuropb.v1"]) as alice,
        connect(running.url, origin=ORIGIN, subprotocols=["nuropb.v1", bearer_subprotocol("bob")]) as bob,
    ):
        assert alice.hello["user_id"] == "alice"
        assert bob.hello["user_id"] == "bob"
        assert alice.subprotocol == bob.subprotocol == "nuropb.v1"
        await alice.request("demo.slow", {"seconds": 0.05}, id="slow")
        assert await alice.result("demo.echo", {"text": "ü€𝄞"}) == {"text": "ü€𝄞"}
        assert (await alice.answer("slow"))["error"] is None
        assert (await bob.ask("subscribe", topics=["demo.news"]))["result"] == {"topics": ["demo.news"]}
        await alice.call("demo.publish", {"topic": "demo.news", "event": [1]})
        assert (await bob.event("demo.news"))["event"] == [1]
        assert await bob.error_code("demo.fail", {"how": "bug"}) == "service_error"
        assert await bob.settled() == await alice.settled() == []
    await running.is_empty()


async def test_a_refusal_by_status(running: RunningGateway) -> None:
    refused = await refusal(running.url, "bad")
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await refusal(running.url, "alice", origin="https://evil.example.com")).status == 403
    await running.is_empty()


async def test_a_refusal_by_close_code(running: RunningGateway) -> None:
    code, frame = await turned_away(running.url, "bad", origin=ORIGIN)
    assert (code, frame["code"]) == (4510, "unauthenticated")
    await running.is_empty()


async def test_the_gateway_closes_connections(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        await client.send_text(b"binary")
        assert (await client.closed()).code == 1003
    async with connect(running.url, "alice") as client:
        await client.send_text("x" * 2000)
        closed = await client.closed()
        assert (closed.code, [frame["code"] for frame in closed.frames]) == (1009, ["payload_too_large"])
    await running.is_empty()


async def test_a_client_leaves_with_a_call_in_flight(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        await client.request("demo.slow", {"seconds": 3600})
        await client.settled()
        assert running.occupancy == (1, 1, 1)
        client.abort()
        await running.is_empty()


@pytest.mark.parametrize("server", ["websockets-sansio", "wsproto"])
async def test_the_server_stops_with_a_client_connected(server: Server) -> None:
    async with contextlib.AsyncExitStack() as until_the_end:
        running = await until_the_end.enter_async_context(run_gateway(server=server))
        async with connect(running.url, "alice") as client:
            await client.request("demo.slow", {"seconds": 3600})
            await client.settled()
            assert running.occupancy == (1, 1, 1)
            await until_the_end.aclose()
            assert running.occupancy == (0, 0, 0)
            assert (await client.closed()).code == 1012
