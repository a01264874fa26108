"""Connections that are cut, queues that are deleted, and messages that the broker delivers again."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _mesh, _self_check
from tests.kit.amqp import (
    Gateway,
    Peer,
    peer_at,
    queues_of,
    reconnected,
)
from tests.kit.gate_proxy import Proxy
from tests.kit.gateways import eventually


@pytest.mark.parametrize("purpose", ["publish", "consume", ""])
async def test_replies_arrive_although_the_connection_was_cut(
    proxied: Gateway, proxy: Proxy, peer: Peer, purpose: str
) -> None:
    service = await peer.service()
    calls = [proxied.send(service) for _ in range(50)]
    requests = [await peer.take(service) for _ in calls]
    for request in requests[:20]:
        await peer.reply(request, "before")
    proxy.cut(purpose)
    for request in requests[20:]:
        await peer.reply(request, "after")
    for message in calls:
        await proxied.told("reply", message)
    await reconnected(proxied)
    # A call is never sent twice: it may have run.
    assert len(requests) == len(calls)
    last = proxied.send(service)
    assert (await peer.take(service)).header.properties.correlation_id == last.correlation_id


async def test_more_replies_than_the_prefetch_wait_for_the_gateway_and_are_each_given_once(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    count = _mesh.PREFETCH + 200
    service = await peer.service()
    calls = [proxied.send(service) for _ in range(count)]
    requests = [await peer.take(service) for _ in calls]
    proxy.refuses = True
    proxy.cut("consume")
    await asyncio.gather(*(peer.reply(request, number) for number, request in enumerate(requests)))
    proxy.refuses = False
    await eventually(lambda: len(proxied.receiver.told) >= len(calls))
    assert [proxied.receiver.result(message) for message in calls] == list(range(count))
    assert len(proxied.receiver.told) == count


async def test_a_reply_that_comes_again_is_given_once(proxied: Gateway, proxy: Proxy, peer: Peer) -> None:
    service = await peer.service()
    message = proxied.send(service)
    proxy.link("consume").to_broker.clear()  # so that acknowledgements do not arrive
    await peer.reply(await peer.take(service), 1)
    await proxied.told("reply", message)
    proxy.cut("consume")
    await eventually(lambda: proxied.receiver.unexpected == [message.correlation_id])
    await proxied.told("reply", message)


async def test_an_event_that_comes_again_is_given_once(proxied: Gateway, proxy: Proxy, peer: Peer) -> None:
    topic = f"t{secrets.token_hex(4)}"
    await proxied.subscribe(topic)

    proxy.link("consume").to_broker.clear()
    for number in range(5):
        await peer.event(topic, number)
    await eventually(lambda: len(proxied.receiver.events) == 5)
    proxy.cut("consume")
    await peer.event(topic, "last")
    await eventually(lambda: (topic, "last") in proxied.receiver.events)
    assert [event for _, event in proxied.receiver.events] == [0, 1, 2, 3, 4, "last"]
    assert proxied.mesh.statistics.repeated_events == 5
    # Without a loss in between, the same id is not a repetition.
    for _ in range(2):
        await peer.event(topic, "same id", correlation_id="i")
    await eventually(lambda: len(proxied.receiver.events) == 8)


async def test_subscriptions_outlive_the_connection(proxied: Gateway, proxy: Proxy, peer: Peer) -> None:
    prefix = f"t{secrets.token_hex(4)}"
    for topic in ("stays", "goes"):
        await proxied.subscribe(f"{prefix}.{topic}")
    proxy.refuses = True
    proxy.cut("consume")
    await peer.event(f"{prefix}.stays")  # the event waits in the queue
    await eventually(lambda: not proxied.mesh.consuming.up)
    proxied.mesh.unsubscribe(f"{prefix}.goes")
    await proxied.subscribe(f"{prefix}.comes")
    proxy.refuses = False
    await reconnected(proxied)
    await proxied.subscribe(f"{prefix}.last")
    await eventually(lambda: f"{prefix}.goes" not in proxied.mesh.subscriptions.bindings)  # new topics go first
    for topic in ("goes", "comes", "stays", "last"):
        await peer.event(f"{prefix}.{topic}")
    await eventually(lambda: (f"{prefix}.last", None) in proxied.receiver.events)
    topics = [topic.removeprefix(f"{prefix}.") for topic, _ in proxied.receiver.events]
    assert topics == ["stays", "comes", "stays", "last"]


async def test_who_subscribes_again_while_a_binding_is_removed_is_told_when_it_is_back(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    topic = f"t{secrets.token_hex(4)}"
    for each in (topic, f"{topic}.other"):
        await proxied.subscribe(each)
    link = proxy.link("consume")
    link.to_broker.clear()
    before = len(link.sent)
    for each in (topic, f"{topic}.other"):
        proxied.mesh.unsubscribe(each)
    await anyio.wait_all_tasks_blocked()
    again: list[bool] = []
    for each in (topic, f"{topic}.other"):
        proxied.mesh.subscribe(each, again.append)
    await anyio.wait_all_tasks_blocked()
    # One of the two bindings is being removed now.
    assert len(again) <= 1
    assert len(link.sent) == before
    link.to_broker.set()
    await eventually(lambda: again == [True, True])
    for each in (topic, f"{topic}.other"):
        await peer.event(each)
    await eventually(lambda: len(proxied.receiver.events) == 2)


async def test_queues_that_were_deleted_are_made_again(gateway: Gateway, peer: Peer) -> None:
    topic = f"t{secrets.token_hex(4)}"
    await gateway.subscribe(topic)
    for number, queue in enumerate((gateway.mesh.reply_queue, gateway.mesh.event_queue), 1):
        await peer.channel.queue_delete(queue)
        await reconnected(gateway, number)
    service = await peer.service()
    message = gateway.send(service)
    await peer.reply(await peer.take(service), 1)
    await gateway.told("reply", message)
    await gateway.subscribe(f"{topic}.last")
    await peer.event(topic, 1)
    await eventually(lambda: gateway.receiver.events == [(topic, 1)])


async def test_nothing_is_taken_while_the_broker_is_away(proxied: Gateway, proxy: Proxy) -> None:
    proxy.refuses = True
    proxy.cut()
    await eventually(lambda: not proxied.mesh.connected and not proxied.mesh.can_publish)
    with pytest.raises(MeshUnavailable):
        proxied.send("anybody")
    with pytest.raises(MeshUnavailable):
        proxied.mesh.publish("topic", b"1", context=b"{}", trace_id="t", target=None)
    assert proxied.mesh.problem is not None
    proxy.refuses = False
    await reconnected(proxied)
    assert proxied.mesh.problem is None
    assert proxied.receiver.connections == [True, False, True]
    message = proxied.send("nobody-at-all")
    await proxied.told("returned", message)


async def test_a_peer_that_says_nothing_more_is_given_up(
    proxied: Gateway, proxy: Proxy, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_self_check, "PING_INTERVAL", 0.2)
    monkeypatch.setattr(_self_check, "PING_TIMEOUT", 0.5)
    for link in proxy.links():
        link.to_broker.clear()
        link.to_client.clear()
    await reconnected(proxied, 2)
    monkeypatch.undo()
    await proxied.connected()
    service = await peer.service()
    message = proxied.send(service)
    await peer.reply(await peer.take(service), 1)
    await proxied.told("reply", message)


def test_a_mesh_runs_again_in_another_event_loop(amqp_url: str) -> None:
    gateway = Gateway(RabbitMQMesh(amqp_url, service_name="again"), "again")

    async def run(topic: str) -> None:
        async with peer_at(amqp_url) as peer:
            async with gateway.mesh:
                await gateway.connected()
                await gateway.subscribe(topic)
                await peer.event(topic)
                await eventually(lambda: (topic, None) in gateway.receiver.events)
                await gateway.told("returned", gateway.send("nobody-at-all"))
            assert not gateway.mesh.connected
            for queue in queues_of(gateway):
                await peer.channel.queue_delete(queue)

    for _ in range(2):
        asyncio.run(run(f"t{secrets.token_hex(4)}"))
    assert gateway.receiver.connections == [True, False] * 2


#: Declarations of a queue that keep the gateway's own one away, and the broker's words for it.
TAKEN: list[tuple[dict[str, Any], str]] = [
    ({"exclusive": True}, "RESOURCE_LOCKED"),
    ({"durable": True, "arguments": {"x-expires": 50_000}}, "PRECONDITION_FAILED"),
]


@pytest.mark.parametrize(("declaration", "said"), TAKEN, ids=["exclusive", "arguments"])
@pytest.mark.parametrize("which", ["reply_queue", "event_queue", "peer queue"])
async def test_queues_that_cannot_be_had_any_more_are_replaced_by_new_ones(
    proxied: Gateway,
    proxy: Proxy,
    peer: Peer,
    remover: list[str],
    which: str,
    declaration: dict[str, Any],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await proxied.subscribe("news.#")
    service = await peer.service()
    lost = proxied.send(service)
    request = await peer.take(service)
    mesh = proxied.mesh
    former = [mesh.reply_queue, mesh.event_queue, mesh.peers.queue]
    queue = mesh.peers.queue if which == "peer queue" else getattr(mesh, which)
    proxy.refuses = True
    proxy.cut()
    await eventually(lambda: not mesh.connected)
    await peer.channel.queue_delete(queue)
    await peer.channel.queue_declare(queue, **declaration)
    proxy.refuses = False
    await eventually(lambda: not set(former) & {mesh.reply_queue, mesh.event_queue, mesh.peers.queue})
    await reconnected(proxied)
    remover += [*former, mesh.reply_queue, mesh.event_queue, mesh.peers.queue]
    assert ("replies lost", None) in proxied.receiver.told
    assert any(said in record.getMessage() for record in caplog.records)
    # Calls, events and messages of peer processes come by the new ones.
    message = proxied.send(service)
    await peer.reply(await peer.take(service), 1)
    await proxied.told("reply", message)
    await peer.reply(request, 0)  # into the former queue, if it is there
    await proxied.subscribe("news.#")  # bound again
    await peer.event("news.today", 1)
    await eventually(lambda: ("news.today", 1) in proxied.receiver.events)
    mesh.tell(mesh.address, b"hello")
    await eventually(lambda: b"hello" in proxied.receiver.siblings)
    await eventually(lambda: proxied.receiver.gaps)
    assert lost.correlation_id not in proxied.receiver.replies
