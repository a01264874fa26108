"""A gateway and a client for the tests of WebSocket connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from tests.kit.clients import Client, connect
from tests.kit.gateways import RunningGateway, run_gateway

#: Lifetime of a token that expires during a test, in seconds: long enough to connect with it on a busy machine.
BRIEFLY: Final = 0.7
#: Parameters of a call that does not end by itself.
LONG: Final = {"seconds": 3600}


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    async with run_gateway(expose=["demo.*", "nobody.*"]) as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A shared gateway that every test leaves without connections and calls."""
    yield shared
    await shared.is_empty()


@pytest.fixture
async def client(running: RunningGateway) -> AsyncIterator[Client]:
    """A client that every test leaves without unread frames."""
    async with connect(running.url, "alice") as client:
        yield client
        assert await client.settled() == []


async def publish(client: Client, topic: str, event: Any, **more: Any) -> None:
    """Have the demo service publish an event."""
    await client.result("demo.publish", {"topic": topic, "event": event, **more})
