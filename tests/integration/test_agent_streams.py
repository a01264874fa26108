"""Streams for agents whose version begins with a handshake: progress, other tools, and events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from mcp.shared.exceptions import MCPError

from nuropb_gateway_asgi import Settings
from nuropb_gateway_asgi.agents.serving import server as server_module
from nuropb_gateway_asgi.agents.serving.sessions import MAX_SESSIONS, MAX_TOPICS
from nuropb_gateway_asgi.mesh.demo import DemoService
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.kit.agents import MODES, Mode, agent, headers, post
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.turnstile import Turnstile

VERSION: Final = "2025-11-25"
PAGE: Final = "https://app.example.com"
NEWS: Final = "topic://news.today"


@pytest.fixture(scope="module")
async def turnstile() -> Turnstile:
    return Turnstile()


@pytest.fixture(scope="module")
async def shared(turnstile: Turnstile) -> AsyncIterator[RunningGateway]:
    gateway = make_gateway(
        mesh=EmbeddedMesh({"demo": DemoService(), "turnstile": turnstile}),
        mcp="on",
        expose=["*.*"],
        expose_tools=["demo.*", "turnstile.*"],
        expose_topics=["news.#"],
        allowed_origins=[PAGE],
        max_connections_per_user=3 * MAX_SESSIONS,
    )
    async with run_gateway(gateway) as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A shared gateway that every test leaves without connections and calls."""
    yield shared
    await shared.is_empty()


class Stream:
    """The stream of a session, as its host reads it."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def message(self) -> Any:
        """Return the next notification."""
        async with asyncio.timeout(DEADLINE):
            async for line in self._lines:
                if line.startswith("data: "):
                    return json.loads(line.removeprefix("data: "))
        raise EOFError


def sent(session: str, token: str | None = "alice") -> dict[str, str]:
    named = {} if token is None else {"Authorization": f"Bearer {token}"}
    return {**named, "Accept": "text/event-stream", "MCP-Protocol-Version": VERSION, "Mcp-Session-Id": session}


@contextlib.asynccontextmanager
async def stream(running: RunningGateway, session: str, token: str = "alice") -> AsyncIterator[Stream]:
    """Open the stream of a session."""
    async with (
        httpx2.AsyncClient(timeout=DEADLINE) as client,
        client.stream("GET", running.site.http("/mcp"), headers=sent(session, token)) as response,
    ):
        assert (response.status_code, response.headers["Content-Type"]) == (200, "text/event-stream")
        yield Stream(response)


async def ask(running: RunningGateway, session: str, method: str, token: str = "alice", **params: Any) -> Any:
    """Send a request of a session and return its result, or its error."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    more = {"MCP-Protocol-Version": VERSION, "Mcp-Session-Id": session}
    answer = (await post(running.site, body, headers(token=token) | more)).json()
    return answer.get("result", answer.get("error"))


async def publish(running: RunningGateway, topic: str = "news.today") -> None:
    arguments = {"topic": topic, "event": {"n": 1}}
    await ask(running, "publisher", "tools/call", token="editor", name="demo__publish", arguments=arguments)


# --- progress -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_a_slow_call_reports_its_progress(
    running: RunningGateway, turnstile: Turnstile, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "PROGRESS_INTERVAL", 0.01)
    told: list[str | None] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        told.append(message)
        if len(told) == 1:
            turnstile.open()

    async with agent(running.site, "alice", mode) as client:
        result = await client.call_tool("turnstile__wait", {}, progress_callback=progress)
    assert result.structured_content == {"result": "through"}
    assert told[0] == "In progress for 0 s"


async def test_a_client_that_takes_no_stream_gets_the_answer_alone(
    running: RunningGateway, turnstile: Turnstile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "PROGRESS_INTERVAL", 0.01)
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "demo__slow", "arguments": {"seconds": 0.1}, "_meta": {"progressToken": 1}},
    }
    answer = await post(running.site, body, headers() | {"MCP-Protocol-Version": VERSION, "Accept": "application/json"})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["result"]["isError"] is False


# --- changes ------------------------------------------------------------------------------------------------------


async def test_the_sdk_is_told_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    rule = '[[rule]]\nallow = "{}"\nmethods = ["demo.*"]\n'
    path.write_text(rule.format("call") + rule.format("tool"))
    told: list[str] = []

    async def on_message(message: Any) -> None:
        told.append(message.method)

    gateway = make_gateway(Settings(policy=str(path), mcp="on"))
    async with run_gateway(gateway) as running:
        async with agent(running.site, "alice", "legacy", message_handler=on_message) as client:
            assert client.server_capabilities.tools.list_changed is True
            assert client.server_capabilities.resources.subscribe is True
            await eventually(lambda: len(gateway.connection_kinds["mcp"].handler_manager) == 1)
            assert len((await client.list_tools()).tools) > 1
            path.write_text(rule.format("call") + rule.format("tool").replace("*", "add"))
            await eventually(lambda: told == ["notifications/tools/list_changed"])
            assert [tool.name for tool in (await client.list_tools(cache_mode="bypass")).tools] == ["demo__add"]
        await running.is_empty()


@pytest.mark.filterwarnings("ignore:resources/(un)?subscribe is removed")
async def test_the_sdk_is_told_of_events_of_the_topics_it_subscribes_to(running: RunningGateway) -> None:
    told: list[str] = []

    async def on_message(message: Any) -> None:
        told.append(str(message.params.uri))

    async with agent(running.site, "alice", "legacy", message_handler=on_message) as client:
        await eventually(lambda: running.occupancy[:2] == (1, 1))
        await client.subscribe_resource(NEWS)
        await client.subscribe_resource("topic://news.sport")
        await client.unsubscribe_resource("topic://news.sport")
        with pytest.raises(MCPError, match="not allowed"):
            await client.subscribe_resource("topic://secret.x")
        await publish(running, "news.sport")
        await publish(running)
        await eventually(lambda: told == [NEWS])


# --- sessions -----------------------------------------------------------------------------------------------------


async def test_a_topic_may_come_before_the_stream_and_survives_it(running: RunningGateway) -> None:
    assert await ask(running, "early", "resources/subscribe", uri=NEWS) == {}
    for _ in range(2):
        async with stream(running, "early") as opened:
            await eventually(lambda: running.occupancy[1] == 1)
            heard = asyncio.ensure_future(opened.message())
            while not heard.done():  # the stream subscribes behind its first bytes
                await publish(running)
            assert await heard == {
                "jsonrpc": "2.0",
                "method": "notifications/resources/updated",
                "params": {"uri": NEWS},
            }
        await running.is_empty()


async def test_a_session_of_another_user_is_another_session(running: RunningGateway) -> None:
    async with stream(running, "s") as alices, stream(running, "s", "bob") as bobs:
        await eventually(lambda: running.occupancy[1] == 2)
        await ask(running, "s", "resources/subscribe", uri=NEWS)
        await ask(running, "s", "resources/subscribe", token="bob", uri="topic://news.sport")
        await ask(running, "s", "resources/unsubscribe", token="bob", uri=NEWS)
        await publish(running)
        await publish(running, "news.sport")
        assert (await alices.message())["params"] == {"uri": NEWS}
        assert (await bobs.message())["params"] == {"uri": "topic://news.sport"}


async def test_the_last_stream_of_a_session_takes_the_place_of_the_one_before(running: RunningGateway) -> None:
    async with stream(running, "twice") as first, stream(running, "twice") as second:
        with pytest.raises(EOFError):
            await first.message()
        await ask(running, "twice", "resources/subscribe", uri=NEWS)
        await publish(running)
        assert (await second.message())["params"] == {"uri": NEWS}


async def test_a_session_has_a_bounded_number_of_topics(running: RunningGateway) -> None:
    for number in range(MAX_TOPICS):
        assert await ask(running, "many", "resources/subscribe", uri=f"topic://news.{number}") == {}
    refused = await ask(running, "many", "resources/subscribe", uri="topic://news.more")
    assert "at most 64 resources" in refused["message"]


async def test_the_oldest_session_without_a_stream_makes_room(running: RunningGateway) -> None:
    await ask(running, "oldest", "resources/subscribe", token="eve", uri=NEWS)
    for number in range(MAX_SESSIONS):
        await ask(running, f"session-{number}", "resources/subscribe", token="eve", uri=NEWS)
    async with (
        stream(running, "oldest", "eve") as forgotten,
        stream(running, f"session-{MAX_SESSIONS - 1}", "eve") as known,
    ):
        await eventually(lambda: running.occupancy[1] == 2)
        heard = asyncio.ensure_future(known.message())
        while not heard.done():
            await publish(running)
        await ask(running, "oldest", "resources/subscribe", token="eve", uri="topic://news.sport")
        await publish(running, "news.sport")
        assert (await forgotten.message())["params"] == {"uri": "topic://news.sport"}


async def test_a_drain_ends_the_streams() -> None:
    async with run_gateway(mcp="on") as running, stream(running, "s") as opened:
        await running.gateway.drain()
        with pytest.raises(EOFError):
            await opened.message()


async def test_a_token_that_ends_ends_the_stream() -> None:
    async with run_gateway(mcp="on") as running:
        async with stream(running, "s", "alice:for:0.2") as opened:
            with pytest.raises(EOFError):
                await opened.message()
        await running.is_empty()


# --- hostile hosts ------------------------------------------------------------------------------------------------

REFUSED: Final[dict[str, tuple[dict[str, str], int]]] = {
    "no token": (sent("s", None), 401),
    "an unknown token": (sent("s", "bad"), 401),
    "a foreign origin": (sent("s") | {"Origin": "https://evil.example"}, 403),
    "DNS rebinding": (sent("s") | {"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    "no stream in Accept": (sent("s") | {"Accept": "application/json"}, 406),
    "a version without a handshake": (sent("s") | {"MCP-Protocol-Version": "2026-07-28"}, 405),
    "an unknown version": (sent("s") | {"MCP-Protocol-Version": "1999-01-01"}, 405),
    "a trace id of control characters": (sent("s") | {"X-Trace-Id": "a\tb"}, 400),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_hostile_stream_gets_its_answer(running: RunningGateway, name: str) -> None:
    given, status = REFUSED[name]
    async with httpx2.AsyncClient(timeout=DEADLINE) as client:
        answer = await client.get(running.site.http("/mcp"), headers=given)
    assert answer.status_code == status
    assert "error" in answer.json()


async def test_a_page_of_an_allowed_origin_may_open_a_stream(running: RunningGateway) -> None:
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    async with httpx2.AsyncClient(timeout=DEADLINE) as client:
        answer = await client.options(running.site.http("/mcp"), headers=asked)
    assert answer.status_code == 200
    assert "GET" in answer.headers["Access-Control-Allow-Methods"]
