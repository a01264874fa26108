"""The end of connections: clients that leave, age, operators, drains, and the hooks of subclasses."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from typing import Any

import pytest
from starlette.exceptions import WebSocketException
from starlette.websockets import WebSocket

from nuropb_gateway_asgi import WebSocketHandler, drain
from tests.integration.websocket.conftest import LONG
from tests.kit.clients import connect
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.leftovers import holding
from tests.kit.turnstile import at_turnstile
from tests.unit.fakes import FakeHandler

# --- leaving ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abort", [True, False])
async def test_nothing_stays_of_who_leaves(running: RunningGateway, abort: bool) -> None:
    before = running.gateway.service_mesh_manager.statistics.abandoned
    async with connect(running.url, "alice") as client:
        for number in range(20):
            await client.request("demo.slow", LONG, id=str(number))
            await client.request("demo.slow", LONG)
        await client.ask("subscribe", topics=["demo.a", "demo.#"])
        assert running.occupancy == (1, 1, 40)
        session_id = client.hello["session_id"]
        assert holding(running.gateway, session_id)
        if abort:
            client.abort()
            await running.is_empty()
    await running.is_empty()
    assert running.gateway.service_mesh_manager.statistics.abandoned == before + 40
    await eventually(lambda: not holding(running.gateway, session_id))


async def test_a_crowd_that_comes_and_goes() -> None:
    rng = random.Random(4711)
    session_ids = []
    async with run_gateway(max_connections=12) as running:

        async def visit(number: int) -> None:
            with contextlib.suppress(Exception):  # refused, or closed in the middle
                async with connect(running.url, f"user{number % 3}") as client:
                    session_ids.append(client.hello["session_id"])
                    await client.request("demo.slow", LONG)
                    await client.send("subscribe", topics=["demo.#"])
                    if rng.random() < 0.5:
                        await client.result("demo.publish", {"topic": "demo.x", "event": number})
                    if rng.random() < 0.5:
                        client.abort()

        await asyncio.gather(*(visit(number) for number in range(60)))
        await running.is_empty()
        assert len(session_ids) >= 12
        assert [each for each in session_ids if holding(running.gateway, each)] == []
        async with connect(running.url, "alice") as client:
            assert await client.result("demo.echo") == {}


async def test_a_connection_that_is_too_old_is_asked_to_come_again() -> None:
    async with run_gateway(max_connection_lifetime=0.5, drain_timeout=0.5) as running:
        async with connect(running.url, "alice") as client:
            await client.request("demo.slow", {"seconds": 0.4}, id="1")
            event = (await client.event("goodbye"))["event"]
            assert event["reason"] == "lifetime"
            assert 0 <= event["retry_after_ms"] < 5000
            await client.request("demo.echo", {"still": "there"}, id="2")
            assert (await client.answer("2"))["result"] == {"still": "there"}
            closed = await client.closed()
            assert closed.code == 4001
            assert [frame["payload"].get("id") for frame in closed.frames] in ([], ["1"])
        await running.is_empty()
        assert holding(running.gateway, client.hello["session_id"]) == []


async def test_connections_that_came_together_end_apart() -> None:
    async with run_gateway(max_connection_lifetime=1000.0, max_connections_per_user=200, write_timeout=0.04) as running:
        manager = running.gateway.handler_manager
        handlers = [FakeHandler() for _ in range(200)]
        for handler in handlers:
            await manager.register(handler, "alice")
        told = []
        for age in (899, 920, 940, 960, 980, 1001):
            for handler in handlers:
                handler.connected_at = time.time() - age
                handler.checks.clear()
            await eventually(lambda: all(handler.checks for handler in handlers))
            told.append(sum(any(frame["payload"]["topic"] == "goodbye" for frame in each.frames) for each in handlers))
        for handler in handlers:
            manager.unregister(handler)
    assert (told[0], told[-1]) == (0, 200)
    assert all(later - earlier < 100 for earlier, later in itertools.pairwise(told))


async def test_the_operator_hangs_up(running: RunningGateway) -> None:
    manager = running.gateway.handler_manager
    async with (
        connect(running.url, "alice") as one,
        connect(running.url, "alice:2") as two,
        connect(running.url, "bob") as bob,
    ):
        assert await manager.send_message_to_user_ids(["alice", "nobody"], {"type": "event", "payload": 1}) == 2
        assert await manager.close_user_ids(["alice"], reason="enough of you " * 20) == 2
        for client in (one, two):
            closed = await client.closed()
            assert (closed.code, closed.frames) == (4503, [{"type": "event", "payload": 1}])
            assert closed.reason.startswith("enough of you")
        await eventually(lambda: manager.get_user_handlers(["alice"]) == [])
        assert await bob.result("demo.echo") == {}


async def test_draining_says_goodbye_and_waits_for_answers() -> None:
    async with at_turnstile() as (running, turnstile), connect(running.url, "alice") as client:
        await client.request("turnstile.wait", id="waiting")
        await client.settled()
        draining = asyncio.create_task(running.gateway.drain())
        goodbye = await client.next()
        assert goodbye["payload"]["topic"] == "goodbye"
        assert goodbye["payload"]["event"]["reason"] == "draining"
        assert 0 <= goodbye["payload"]["event"]["retry_after_ms"] <= 5000
        assert not draining.done()
        turnstile.open()
        assert (await client.answer("waiting"))["result"] == "through"
        await draining


async def test_calls_that_were_on_their_way_when_draining_began_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "GOODBYE_GRACE", 3600.0)
    async with run_gateway(drain_timeout=3600.0) as running:
        async with connect(running.url, "alice") as client:
            draining = asyncio.create_task(running.gateway.drain())
            await client.event("goodbye")
            assert await client.result("demo.echo", {"a": 1}) == {"a": 1}
            assert not draining.done()
        await draining  # no client is left that could call


async def test_what_was_said_last_is_on_its_way_when_a_drain_ends() -> None:
    async with run_gateway() as running, connect(running.url, "alice") as client:
        (handler,) = running.gateway.handler_manager.handlers
        await running.gateway.drain()
        assert handler.outbox_size == 0  # now the server may close the connection at once
        assert (await client.next())["payload"]["topic"] == "goodbye"


# --- subclasses -------------------------------------------------------------------------------------------------


async def test_hooks_of_a_subclass() -> None:
    calls: list[Any] = []

    class Handler(WebSocketHandler):
        async def on_connect(self, websocket: WebSocket) -> None:
            assert self.identity is not None
            calls.append(("connect", self.identity.user_id, websocket.headers["X-Test"]))

        async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
            calls.append(("disconnect", close_code))

    async with run_gateway(make_gateway(handler_class=Handler)) as running:
        async with connect(running.url, "alice", headers=[("X-Test", "1")]):
            pass
        await eventually(lambda: len(calls) == 2)
        async with connect(running.url, "alice", headers=[("X-Test", "2")]) as client:
            await client.send_text(b"")
            await client.closed()
        await eventually(lambda: len(calls) == 4)
        async with connect(running.url, "alice", headers=[("X-Test", "3")]) as client:
            await client.connection.close(3333)
        await eventually(lambda: len(calls) == 6)
        async with connect(running.url, "alice", headers=[("X-Test", "4")]) as client:
            client.abort()
        await eventually(lambda: len(calls) == 8)
    assert calls[::2] == [("connect", "alice", number) for number in "1234"]
    assert calls[1:6:2] == [("disconnect", 1000), ("disconnect", 1003), ("disconnect", 3333)]
    assert calls[7] in (("disconnect", 1005), ("disconnect", 1006))


async def test_a_hook_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Handler(WebSocketHandler):
        async def on_connect(self, websocket: WebSocket) -> None:
            raise ZeroDivisionError

    async with run_gateway(make_gateway(handler_class=Handler)) as running:
        with caplog.at_level(logging.ERROR):
            async with connect(running.url, "alice", hello=False) as client:
                assert (await client.closed()).code == 1011
            await running.is_empty()
    assert "ZeroDivisionError" in caplog.text


async def test_a_hook_that_refuses() -> None:
    class Handler(WebSocketHandler):
        async def on_connect(self, websocket: WebSocket) -> None:
            raise WebSocketException(4403, "not today")

    async with run_gateway(make_gateway(handler_class=Handler)) as running:
        async with connect(running.url, "alice", hello=False) as client:
            closed = await client.closed()
            assert (closed.code, closed.reason, closed.frames) == (4403, "not today", [])
        await running.is_empty()
