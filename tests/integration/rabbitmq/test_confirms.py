"""Events are confirmed by the broker, and keep their order with all messages that are compared with them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest

from nuropb_gateway_asgi.mesh import hosting
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _mesh, _streams
from nuropb_gateway_asgi.mesh.rabbitmq._event_window import WINDOW
from tests.integration.scene import delete_queues
from tests.kit.amqp import EVENTS, Gateway, Peer, running
from tests.kit.gateways import eventually


@pytest.fixture(params=["fast", "plain"])
def lane(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def confirms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the broker confirms events, of any version: none fails without a change of leaders."""
    can = bool(getattr(request, "param", True))
    monkeypatch.setattr(_streams, "can_confirm_events", lambda properties: can)
    return can


def publish(gateway: Gateway, topic: str, *numbers: int) -> None:
    for number in numbers:
        gateway.mesh.publish(topic, b"%d" % number, context=b"{}", trace_id="t", target=None)


async def full_queue(peer: Peer, topic: str) -> str:
    """Declare a queue that takes one event of a topic, and refuses the others."""
    limits: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    declared = await peer.channel.queue_declare(exclusive=True, arguments=limits)
    assert declared.queue is not None
    await peer.channel.queue_bind(declared.queue, EVENTS, topic)
    return declared.queue


async def test_an_event_that_a_queue_refuses_is_counted_and_comes_to_others_once(gateway: Gateway, peer: Peer) -> None:
    topic = f"{gateway.service_name}.new"
    await full_queue(peer, topic)
    other = await peer.queue(EVENTS, topic)
    publish(gateway, topic, *range(10))
    await eventually(lambda: gateway.mesh.statistics.refused_events == 9)
    for number in range(10):
        assert b'"event":%d' % number in (await peer.take(other)).body.replace(b" ", b"")
    assert await peer.waiting(other) == 0


@pytest.mark.parametrize("confirms", [True, False], indirect=True)
async def test_a_marker_comes_behind_all_events_of_its_process(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mesh, "MESSAGE_EXPIRES", 60.0)  # a busy machine takes long for all of these
    topic = f"{gateway.service_name}.new"
    await gateway.subscribe(topic)
    had: list[int] = []
    for turn in range(3):
        publish(gateway, topic, *range(turn * 2 * WINDOW, (turn + 1) * 2 * WINDOW))
        gateway.mesh.when_events_are_in(lambda: had.append(len(gateway.receiver.events)))
    await eventually(lambda: len(had) == 3)
    assert had == [2 * WINDOW, 4 * WINDOW, 6 * WINDOW]
    assert gateway.receiver.events == [(topic, number) for number in range(6 * WINDOW)]


async def test_a_process_that_ends_has_published_its_events(amqp_url: str, peer: Peer, lane: Literal["fast"]) -> None:
    async with running(amqp_url, lane=lane) as gateway:
        queue = await peer.queue(EVENTS, gateway.service_name)
        publish(gateway, gateway.service_name, *range(5 * WINDOW))
    assert await peer.waiting(queue) == 5 * WINDOW
    assert gateway.mesh.statistics.unconfirmed_events == 0
    await delete_queues(amqp_url, gateway.mesh)


@contextlib.asynccontextmanager
async def a_service(url: str, peer: Peer) -> AsyncIterator[Any]:
    name = await peer.queue()  # a name that nobody else has

    class Orders:
        """A service."""

        def make(self, count: int) -> Any:
            for number in range(count):
                manager.mesh.publish(name, b"%d" % number, context=b"{}", trace_id="t", target=None)
            return name

    async with hosting(Orders(), url, service_name=name) as manager:
        await eventually(lambda: manager.connected)
        yield manager, name
    assert isinstance(manager.mesh, RabbitMQMesh)
    await peer.channel.queue_delete(manager.mesh.service_queue)


async def test_events_of_a_hosted_service_are_confirmed(amqp_url: str, peer: Peer) -> None:
    async with a_service(amqp_url, peer) as (manager, name):
        await full_queue(peer, name)
        queue = await peer.queue(EVENTS, name)
        await manager.request(name, "make", {"count": 10})
        for _ in range(10):
            await peer.take(queue)
        assert await peer.waiting(queue) == 0
        await eventually(lambda: manager.mesh.statistics.refused_events == 9)


async def test_events_that_the_broker_may_not_have_are_told_when_the_connection_is_lost(
    gateway: Gateway, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"{gateway.service_name}.new"
    queue = await peer.queue(EVENTS, topic)
    publish(gateway, topic, 1, 2, 3)
    gateway.mesh.streams.link.abort("by the test")
    await eventually(lambda: gateway.mesh.statistics.reconnects and gateway.mesh.connected)
    assert gateway.mesh.statistics.unconfirmed_events == 3
    assert "whether the broker has 3 of the latest events is unknown" in caplog.text
    publish(gateway, topic, 4)
    while b'"event":4' not in (await peer.take(queue)).body.replace(b" ", b""):
        pass
    assert await peer.waiting(queue) == 0  # none was published again
