"""The exchanges, queues and bindings that a mesh makes on the broker."""

from __future__ import annotations

import json
from typing import Any, Final

import aiormq
import anyio
import pytest

from tests.integration.conftest import Broker
from tests.kit.amqp import (
    DEAD_LETTERS,
    EVENTS,
    RPC,
    Gateway,
    Peer,
    queues_of,
    running,
)
from tests.kit.gateways import eventually
from tests.servers.rabbitmq import RabbitMQNode

REPLY_ARGUMENTS: Final[dict[str, Any]] = {"x-expires": 60_000, "x-queue-type": "classic"}
EVENT_ARGUMENTS: Final[dict[str, Any]] = REPLY_ARGUMENTS | {"x-max-length": 10_000, "x-overflow": "drop-head"}
SERVICE_ARGUMENTS: Final[dict[str, Any]] = {"x-dead-letter-exchange": DEAD_LETTERS}


async def test_the_queues_are_durable_and_not_exclusive_and_have_these_arguments(gateway: Gateway, peer: Peer) -> None:
    # A declaration succeeds only with equal arguments, and never for an exclusive queue of another connection.
    mesh, name = gateway.mesh, gateway.service_name
    for queue, arguments in zip(queues_of(gateway), (REPLY_ARGUMENTS, EVENT_ARGUMENTS, SERVICE_ARGUMENTS), strict=True):
        same: dict[str, Any] = {"durable": True, "arguments": arguments}
        await peer.channel.queue_declare(queue, **same)
        differences: list[dict[str, Any]] = [{"durable": False}, {"auto_delete": True}, {"arguments": {}}]
        for different in differences:
            channel = await peer.connection.channel()
            with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
                await channel.queue_declare(queue, **{**same, **different})
    assert mesh.service_queue == f"nuropb-{name}-sq"
    for queue, end in ((mesh.reply_queue, "-rq"), (mesh.event_queue, "-eq")):
        assert queue.startswith(f"nuropb-{name}-")
        unique = queue.removeprefix(f"nuropb-{name}-").removesuffix(end)
        assert len(unique) == 32
        int(unique, 16)


@pytest.mark.parametrize(("exchange", "kind"), [(RPC, "direct"), (EVENTS, "topic"), (DEAD_LETTERS, "fanout")])
async def test_the_exchanges_are_nuropbs(gateway: Gateway, peer: Peer, exchange: str, kind: str) -> None:
    same: dict[str, Any] = {"exchange_type": kind, "durable": True}
    await peer.channel.exchange_declare(exchange, **same)
    differences: list[dict[str, Any]] = [{"durable": False}, {"auto_delete": True}, {"exchange_type": "headers"}]
    for different in differences:
        channel = await peer.connection.channel()
        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
            await channel.exchange_declare(exchange, **{**same, **different})


async def test_processes_of_one_gateway_share_the_service_queue_and_no_other(
    amqp_url: str, gateway: Gateway, remover: list[str]
) -> None:
    async with running(amqp_url, gateway.service_name) as other:
        remover += queues_of(other)
        assert len({*queues_of(gateway), *queues_of(other)}) == 5


async def test_rabbitmq_itself_says_the_same(
    gateway: Gateway, peer: Peer, node: RabbitMQNode, rabbitmq: Broker
) -> None:
    await gateway.subscribe("orders.#")
    vhost = rabbitmq.vhost

    def listed(*arguments: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(node.ctl(*arguments, "--vhost", vhost, "--formatter", "json"))
        return rows

    def look() -> tuple[Any, ...]:
        names = queues_of(gateway)
        queues = {row["name"]: row for row in node.list_queues(vhost) if row["name"] in names}
        bindings = listed("list_bindings", "source_name", "destination_name", "routing_key")
        consumers = listed("list_consumers", "queue_name", "ack_required", "prefetch_count")
        return queues, bindings, consumers

    queues, bindings, consumers = await anyio.to_thread.run_sync(look)
    mesh = gateway.mesh
    for queue, arguments in zip(queues_of(gateway), (REPLY_ARGUMENTS, EVENT_ARGUMENTS, SERVICE_ARGUMENTS), strict=True):
        row = queues[queue]
        assert (row["durable"], row["auto_delete"], row["exclusive"]) == (True, False, False)
        # RabbitMQ 4 adds the default type to the arguments.
        assert (row["arguments"], row["consumers"]) == (arguments | row["arguments"], 1)
        assert set(row["arguments"]) - set(arguments) <= {"x-queue-type"}
        (consumer,) = (each for each in consumers if each["queue_name"] == queue)
        assert consumer["ack_required"] is True
        assert consumer["prefetch_count"] > 1
    bound = {
        (row["source_name"], row["destination_name"], row["routing_key"])
        for row in bindings
        if row["destination_name"] in queues and row["source_name"]
    }
    assert bound == {
        (RPC, mesh.service_queue, gateway.service_name),
        (EVENTS, mesh.event_queue, "orders.#"),
    }


async def test_an_event_queue_is_bound_to_what_is_wanted_and_to_nothing_else(gateway: Gateway, peer: Peer) -> None:
    for topic in ("a.*", "b", "last"):
        await gateway.subscribe(topic)
    gateway.mesh.unsubscribe("b")
    await gateway.subscribe("c.#")
    gateway.mesh.unsubscribe("c.#")
    await gateway.subscribe("d")
    # Topics are bound before others are unbound.
    await eventually(lambda: gateway.mesh.subscriptions.bindings == {"a.*", "d", "last"})
    for topic in ("a.x", "a.x.y", "b", "c", "c.x", "d", "last"):
        await peer.event(topic)
    await eventually(lambda: ("last", None) in gateway.receiver.events)
    assert [topic for topic, _ in gateway.receiver.events] == ["a.x", "d", "last"]
