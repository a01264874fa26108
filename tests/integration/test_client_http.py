"""The JavaScript client where WebSockets are blocked: a stream of events, and a POST for each call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.kit.conformance import THE_END, JavaScriptDriver
from tests.kit.gateways import RunningGateway, eventually, run_gateway
from tests.kit.javascript import node
from tests.kit.scripted import Markers
from tests.servers.javascript import CLIENT


@pytest.fixture(scope="module")
async def driver() -> AsyncIterator[JavaScriptDriver]:
    async with JavaScriptDriver.start(*node(), str(CLIENT / "tests" / "driver.js")) as running:
        yield running


async def play(
    driver: JavaScriptDriver, url: str, steps: list[dict[str, Any]], *, token: Any = "alice", **options: Any
) -> None:
    """Run the client's steps of a script."""
    markers = Markers()
    markers.set(THE_END)
    await driver.run(url, {"token": token, "options": options, "client": steps}, markers)


async def has_left(running: RunningGateway) -> None:
    """Wait until no stream and no call is left."""
    await eventually(lambda: not len(running.gateway.channels["http"].handler_manager))


async def test_calls_and_events_pass_over_http(driver: JavaScriptDriver) -> None:
    async with run_gateway(http="on", expose_topics=["demo.#"]) as running:
        steps: list[dict[str, Any]] = [
            {"request": ["demo", "add", {"a": 2, "b": 3}], "as": "a", "trace_id": "t-1", "idempotent": True},
            {"result": "a", "is": 5},
            {"heard": "state", "is": {"name": "open", "hello": {"username": "Alice"}}},
            {"request": ["demo", "add", {"a": 2, "b": "x"}], "as": "b"},
            {"error": "b", "is": {"class": "InvalidParams", "retryable": False}},
            {"command": ["demo", "add", {"a": 2, "b": 3}], "as": "c"},
            {"result": "c", "is": None},
            {"request": ["nothing", "add"], "as": "d"},
            {"error": "d", "is": {"class": "PermissionDenied"}},
            {"subscribe": "demo.tick", "as": "s"},
            {"ready": "s"},
            {"event": "s", "is": {"topic": "demo.tick"}},
            {"event": "s", "is": {"topic": "demo.tick"}},
            # Another topic needs another stream, which goes on behind the last event.
            {"subscribe": "demo.other", "as": "u"},
            {"ready": "u"},
            {"event": "s", "is": {"topic": "demo.tick"}},
            {"silent": "s.gap"},
            {"subscribe": "secret.#", "as": "t"},
            {"subscribe": "demo.third", "as": "v"},
            {"refused": "t", "is": {"class": "PermissionDenied"}},
            {"ready": "v"},
            {"event": "s", "is": {"topic": "demo.tick"}},
            {"unsubscribe": "s"},
            {"describe": "demo", "as": "e"},
            {"error": "e", "is": {"class": "MethodNotFound"}},
        ]
        await play(driver, running.url, steps, transport="sse")
        await has_left(running)


async def test_a_refused_token_is_replaced_once_over_http(driver: JavaScriptDriver) -> None:
    async with run_gateway(http="on") as running:
        steps: list[dict[str, Any]] = [
            {"heard": "state", "is": {"name": "closed", "error": {"close_code": 4510}}},
        ]
        await play(driver, running.url, steps, token=["bad", "bad"], transport="sse")
        steps = [{"request": ["demo", "add", {"a": 2, "b": 3}], "as": "a"}, {"result": "a", "is": 5}]
        await play(driver, running.url, steps, token=["bad", "alice"], transport="sse")


async def test_where_websockets_are_blocked_the_client_goes_over_http_by_itself(driver: JavaScriptDriver) -> None:
    async with run_gateway(http="on") as running:
        steps: list[dict[str, Any]] = [
            {"request": ["demo", "add", {"a": 2, "b": 3}], "as": "a"},
            {"result": "a", "is": 5},
        ]
        # No WebSocket is accepted at this path, and the paths beside it are those of the gateway.
        await play(driver, running.site.ws("/blocked"), steps)
