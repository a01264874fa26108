"""Bindings of topics on a real broker: many at once, new ones first, and none that is not wanted any more."""

from __future__ import annotations

import asyncio

from nuropb_gateway_asgi.mesh.rabbitmq._subscriptions import BINDINGS_AT_ONCE
from tests.kit.amqp import Gateway, Peer
from tests.kit.gateways import eventually


async def test_many_topics_are_bound_and_bring_their_events(gateway: Gateway, peer: Peer) -> None:
    topics = [f"many.{number}" for number in range(5 * BINDINGS_AT_ONCE)]
    await asyncio.gather(*(gateway.subscribe(topic) for topic in topics))
    for topic in topics:
        await peer.event(topic)
    await eventually(lambda: len(gateway.receiver.events) == len(topics))
    assert [topic for topic, _ in gateway.receiver.events] == topics


async def test_a_topic_that_is_not_wanted_any_more_is_not_bound(gateway: Gateway) -> None:
    answers: list[bool] = []
    gone = [f"gone.{number}" for number in range(5 * BINDINGS_AT_ONCE)]
    for topic in gone:
        gateway.mesh.subscribe(topic, answers.append)
    for topic in gone:
        gateway.mesh.unsubscribe(topic)
    await gateway.subscribe("stays")
    assert len(answers) == len(gone)
    await eventually(lambda: gateway.mesh.subscriptions.bindings == {"stays"})


async def test_a_new_topic_is_bound_before_many_that_are_bound_again(gateway: Gateway) -> None:
    topics = [f"again.{number}" for number in range(10 * BINDINGS_AT_ONCE)]
    await asyncio.gather(*(gateway.subscribe(topic) for topic in topics))
    gateway.mesh.subscriptions.rebind()
    await gateway.subscribe("new")
    assert len(gateway.mesh.subscriptions.bound) < len(topics)


async def test_new_topics_are_bound_before_others_are_unbound(gateway: Gateway) -> None:
    topics = [f"old.{number}" for number in range(10 * BINDINGS_AT_ONCE)]
    await asyncio.gather(*(gateway.subscribe(topic) for topic in topics))
    for topic in topics:
        gateway.mesh.unsubscribe(topic)
    await gateway.subscribe("new")
    assert len(gateway.mesh.subscriptions.bindings) > len(topics) / 2
    await eventually(lambda: gateway.mesh.subscriptions.bindings == {"new"})
