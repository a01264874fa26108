"""What hosts are told of: other tools, and events of topics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
from mcp.shared.exceptions import MCPError

from nuropb_gateway_asgi.agents.handler import AgentHandler
from nuropb_gateway_asgi.agents.serving import listening
from nuropb_gateway_asgi.agents.serving.listening import NOTHING, TOOLS, Listener, Listeners
from nuropb_gateway_asgi.agents.tools import Tool
from nuropb_gateway_asgi.authorization.rules import ToolOptions
from nuropb_gateway_asgi.handlers.exchange import Answer


class FakeHandler:
    """A handler whose frames are all answered with ``status``."""

    def __init__(self) -> None:
        self.trace_id = "trace"
        self.has_ended = False
        self.status = 200
        self.frames: list[bytes] = []
        self.on_event: Callable[[str, str], None] = lambda topic, payload: None
        self.on_ended: Callable[[], None] = lambda: None

    async def ask(self, frame: bytes, *, added: int = 0) -> Answer:
        self.frames.append(frame)
        return Answer(self.status, b'{"code":"permission_denied","description":"not allowed"}', {})


class Tools:
    """Tools that a test changes."""

    def __init__(self) -> None:
        self.now: list[Tool] = []

    async def find(self) -> Sequence[Tool]:
        return tuple(self.now)

    def add(self) -> None:
        name = f"orders__get{len(self.now)}"
        self.now.append(Tool(name, "orders", "get", "Gets an order.", {}, ToolOptions()))


def made(tools: Tools | None = None) -> tuple[Listener, FakeHandler]:
    handler = FakeHandler()
    return Listener(cast("AgentHandler", handler), None if tools is None else tools.find), handler


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "CHECK_INTERVAL", 0.001)


async def test_a_service_that_describes_other_tools_is_noticed() -> None:
    tools = Tools()
    listener, _ = made(tools)
    await listener.start()
    assert await listener.next() == NOTHING
    tools.add()
    assert await listener.next() == TOOLS
    assert await listener.next() == NOTHING


async def test_a_policy_that_changes_the_tools_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "CHECK_INTERVAL", 3600.0)
    tools, listeners = Tools(), Listeners()
    listener, _ = made(tools)
    await listener.start()
    with listeners.listening(listener):
        waiting = asyncio.ensure_future(listener.next())
        listeners.check()  # of a change that concerns others
        await asyncio.sleep(0)
        tools.add()
        listeners.check()
        assert await waiting == TOOLS


async def test_many_events_of_a_topic_are_one_change() -> None:
    listener, handler = made()
    await listener.add("topic://orders.#")
    await listener.add("topic://prices.eur")
    for _ in range(1000):
        handler.on_event("orders.shipped", "{}")
        handler.on_event("prices.eur", "{}")
        handler.on_event("others", "{}")
    assert [await listener.next() for _ in range(3)] == ["topic://orders.#", "topic://prices.eur", NOTHING]


async def test_a_topic_that_is_refused_or_left_changes_nothing() -> None:
    listener, handler = made()
    await listener.add("topic://news.a")
    await listener.remove("topic://news.a")
    await listener.remove("topic://news.never")
    handler.status = 403
    with pytest.raises(MCPError, match="not allowed"):
        await listener.add("topic://news.b")
    handler.on_event("news.a", "{}")
    handler.on_event("news.b", "{}")
    assert (listener.uris, await listener.next()) == ((), NOTHING)
    assert [b"unsubscribe" in frame for frame in handler.frames] == [False, True, False]


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "topic://", "topic://a.b*", "orders"])
async def test_any_other_uri_is_refused(uri: str) -> None:
    listener, handler = made()
    with pytest.raises(MCPError, match="Unknown resource"):
        await listener.add(uri)
    assert handler.frames == []


@pytest.mark.parametrize("by", ["the gateway", "a later stream"])
async def test_an_end_ends_the_wait(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    monkeypatch.setattr(listening, "CHECK_INTERVAL", 3600.0)
    listener, handler = made()
    waiting: asyncio.Future[Any] = asyncio.ensure_future(listener.next())
    await asyncio.sleep(0)
    (handler.on_ended if by == "the gateway" else listener.end)()
    assert await waiting is None
    handler.on_event("news.a", "{}")
    assert await listener.next() is None
