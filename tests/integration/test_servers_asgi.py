"""A short conversation on each supported server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.kit.clients import bearer_subprotocol, connect, refusal, turned_away
from tests.kit.gateways import SERVERS, RunningGateway, Server, make_gateway, run_gateway, serve

ORIGIN = "https://app.example.com"


class Monitor:
    """A middleware as of a monitoring tool: it keeps the scope of each WebSocket, and copies of it, by moment."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self.app(scope, receive, send)
            return
        copied = dict(scope)

        def look(moment: str) -> None:
            for name, each in (("scope", scope), ("copy", copied)):
                self.seen.append((f"{name} {moment}", f"{each['headers']!r} {each['subprotocols']!r}"))

        async def watched(message: Message) -> None:
            look(f"before {message['type']}")
            await send(message)
            look(f"after {message['type']}")

        try:
            await self.app(copied, receive, watched)
        finally:
            look("at the end")


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


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("prefix", ["", "/mounted"])
async def test_a_monitoring_tool_never_sees_the_token_of_a_subprotocol(server: Server, prefix: str) -> None:
    gateway = make_gateway(allowed_origins=[ORIGIN])
    lifespan = gateway.lifespan
    app: ASGIApp = Starlette(routes=[Mount(prefix, gateway.app)], lifespan=lifespan) if prefix else gateway.app
    monitor = Monitor(app)
    offered = ["nuropb.v1", bearer_subprotocol("alice"), "chat"]
    async with serve(monitor, server=server) as site:
        url = site.ws(f"{prefix}/ws")
        async with connect(url, origin=ORIGIN, subprotocols=offered) as client:
            assert (client.hello["user_id"], client.subprotocol) == ("alice", "nuropb.v1")
            assert (await client.result("demo.whoami"))["Authorization"] == "Bearer alice"
        secrets = [bearer_subprotocol("alice")]
        for refused in (bearer_subprotocol("bad-token"), "base64url.bearer.nuropb.unreadable-x"):
            code, _ = await turned_away(url, origin=ORIGIN, subprotocols=["nuropb.v1", refused])
            assert code == 4510
            secrets.append(refused)
        assert (await refusal(url, origin="https://evil.example.com", subprotocols=offered)).status == 403
    moments = {moment for moment, _ in monitor.seen}
    assert {"scope after websocket.accept", "copy at the end", "scope at the end"} <= moments
    for moment, seen in monitor.seen:
        assert not [secret for secret in secrets if secret.partition("nuropb.")[2] in seen], moment
        assert "nuropb.v1" in seen
