"""Sessions that survive their connections: at the same process, at another one, and during a drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import issue_token
from tests.integration.test_fleet import SECRET, fleet
from tests.kit.clients import Client, Frame, connect
from tests.kit.gateways import RunningGateway, eventually
from tests.servers.processes import ServiceProcess


class ResumingClient:
    """A client that counts frames and comes back with its key."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.received = 0
        self.key = ""
        #: Counted frames of the session, in the order of their numbers.
        self.frames: list[Frame] = []

    async def resume(self, **payload: Any) -> Frame:
        """Send ``resume`` and return its result."""
        answer = await self.client.ask("resume", **payload)
        assert answer["error"] is None, answer["error"]
        result: Frame = answer["result"]
        self.key = result["key"]
        self.received = result["received"]
        return result

    async def next(self, count: int = 1) -> list[Frame]:
        """Return the next counted frames."""
        frames = []
        while len(frames) < count:
            frame = await self.client.next()
            topic = frame["payload"].get("topic") if frame["type"] == "event" else None
            if frame["type"] in ("response", "event", "error") and topic not in ("hello", "goodbye"):
                self.received += 1
                frames.append(frame)
        self.frames += frames
        return frames


@contextlib.asynccontextmanager
async def resuming(running: RunningGateway, user: str = "alice", **payload: Any) -> AsyncIterator[ResumingClient]:
    """Connect with a token of ``user``; ``payload`` is that of ``resume``, or nothing for no resume yet."""
    token = issue_token(SECRET, user, lifetime=600)
    async with connect(running.url, token) as client:
        yield ResumingClient(client)


@pytest.fixture
async def two(amqp_url: str) -> AsyncIterator[list[RunningGateway]]:
    async with fleet(amqp_url, 2, expose_topics=["#"]) as running:
        yield running


async def start(first: RunningGateway, client: ResumingClient, service: str) -> None:
    """Make a session with one answered frame, two calls in flight, and a subscription."""
    result = await client.resume()
    assert result["reason"] == "new"
    await client.client.send("subscribe", id="s", topics=["lab.#"])
    await client.next()
    await client.client.request(f"{service}.slow", {"seconds": 0.4}, id="quick")
    await client.client.request(f"{service}.slow", {"seconds": 1.5}, id="slow")
    await client.client.settled()


@pytest.mark.parametrize("to", [0, 1], ids=["the same process", "another process"])
async def test_calls_and_events_survive_a_lost_connection(
    two: list[RunningGateway], echo_service: ServiceProcess, to: int
) -> None:
    first, second = two[0], two[to]
    publish = first.gateway.service_mesh_manager.publish_event
    async with resuming(first) as client:
        await start(first, client, echo_service.service)
        session_id = client.client.hello["session_id"]
        client.client.abort()
    await eventually(lambda: not len(first.gateway.handler_manager))
    for number in range(5):
        await publish("lab.away", {"number": number})
    await asyncio.sleep(0.6)  # the first answer comes while no client is there
    async with resuming(second) as again:
        publishing = asyncio.create_task(_publish(publish, "lab.moving", 200))
        result = await again.resume(key=client.key, received=client.received)
        assert result["resumed"], result
        assert result["session_id"] == session_id
        assert result["in_flight"] == ["slow"]
        assert result["topics"] == ["lab.#"]
        await publishing
        frames = await again.next(5 + 2 + 200)
        events = [each["payload"]["event"]["number"] for each in frames if each["type"] == "event"]
        answers = [each["payload"]["id"] for each in frames if each["type"] == "response"]
        assert events == [*range(5), *range(200)]
        assert sorted(answers) == ["quick", "slow"]
        assert not await again.client.settled()
        await again.client.send("ack", received=again.received)
        assert not await again.client.settled()
    for running in two:
        resumption = running.gateway.service_mesh_manager.resumption
        await eventually(lambda resumption=resumption: resumption.is_idle)  # type: ignore[misc]


async def _publish(publish: Any, topic: str, count: int) -> None:
    for number in range(count):
        await publish(topic, {"number": number})
        if number % 5 == 0:
            await asyncio.sleep(0.001)
