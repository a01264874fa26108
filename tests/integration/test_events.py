"""Events on their way through a real broker: to their users, by subscribed processes only, and gaps."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _events, _mesh
from nuropb_gateway_asgi.mesh.rabbitmq._lane import Acknowledger
from tests.integration.conftest import Broker
from tests.integration.scene import delete_queues, scene
from tests.kit.clients import connect
from tests.kit.gateways import RunningGateway, eventually, run_gateway
from tests.servers.processes import ServiceProcess


def mesh_of(running: RunningGateway) -> RabbitMQMesh:
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    return mesh


@asynccontextmanager
async def process(url: str, name: str, **settings: Any) -> AsyncIterator[RunningGateway]:
    """One process of the gateway ``name``."""
    # Clients that are not read from answer no pings, and on a busy machine a test takes longer than two of them.
    options: dict[str, Any] = {"expose": ["*.*"], "expose_topics": ["#"], "ping_interval": 3600.0} | settings
    async with run_gateway(mesh_url=url, service_name=name, **options) as running:
        await eventually(lambda: running.gateway.service_mesh_manager.connected)
        yield running
    await delete_queues(url, mesh_of(running))


async def test_a_targeted_event_reaches_all_connections_of_its_users_whatever_its_topic(
    amqp_url: str, echo_service: ServiceProcess
) -> None:
    name, topic = f"gateway-{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}.private"
    async with (
        process(amqp_url, name) as one,
        process(amqp_url, name) as two,
        connect(one.url, "alice") as first,
        connect(two.url, "alice") as second,
        connect(two.url, "bob") as bob,
    ):
        # Without any subscription, the first event comes at once.
        await first.result(f"{echo_service.service}.emit", {"topic": topic, "event": 1, "target": ["alice"]})
        for client in (first, second):
            assert (await client.event(topic))["event"] == 1
            assert await client.settled() == []
        assert await bob.settled() == []


async def test_a_service_cannot_speak_to_clients_in_the_gateways_name(
    amqp_url: str, echo_service: ServiceProcess
) -> None:
    name, topic = f"gateway-{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}"
    farewell = {"reason": "draining", "retry_after_ms": 86_400_000}
    async with process(amqp_url, name) as running, connect(running.url, "alice") as alice:
        await alice.ask("subscribe", topics=["*"])
        emit = f"{echo_service.service}.emit"
        for more in ({}, {"target": ["alice"]}):
            await alice.result(emit, {"topic": "goodbye", "event": farewell, **more})
        await alice.result(emit, {"topic": topic, "event": 1})
        assert (await alice.event(topic))["event"] == 1
        assert await alice.settled() == []
        assert running.gateway.service_mesh_manager.statistics.reserved_events == 2


async def sent_to(rabbitmq: Broker, *processes: RunningGateway) -> dict[str, int]:
    """Return the bytes that the broker has sent to each consuming connection; nothing for a broker that is not ours."""
    if rabbitmq.node is None:
        return {}
    connections = await anyio.to_thread.run_sync(rabbitmq.node.list_connections)
    sent = {each["client_properties"].get("connection_name"): each["send_oct"] for each in connections}
    names = [f"{each.gateway.settings.service_name} {each.gateway.settings.instance_id} consume" for each in processes]
    return {name: sent[name] for name in names}


async def test_an_event_costs_nothing_where_nobody_wants_it(rabbitmq: Broker, echo_service: ServiceProcess) -> None:
    name, prefix = f"gateway-{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}"
    settings = {"targeted_topics": [f"{prefix}.users.#"]}
    async with (
        process(rabbitmq.url, name, **settings) as wants,
        process(rabbitmq.url, name, **settings) as other,
        process(rabbitmq.url, name, **settings) as empty,
        connect(wants.url, "alice") as alice,
        connect(other.url, "bob") as bob,
    ):
        await alice.ask("subscribe", topics=[f"{prefix}.orders.*"])
        await bob.ask("subscribe", topics=[f"{prefix}.news"])
        # At its start a process tries whether it may bind the topics, and gives them back.
        await eventually(lambda: mesh_of(empty).subscriptions.bindings == set())
        before = await sent_to(rabbitmq, wants, other, empty)
        for number in range(20):
            event = [number, "x" * 50_000]
            await alice.result(f"{echo_service.service}.emit", {"topic": f"{prefix}.orders.new", "event": event})
        assert [(await alice.event(f"{prefix}.orders.new"))["event"][0] for _ in range(20)] == list(range(20))
        await bob.settled()
        after = await sent_to(rabbitmq, wants, other, empty)
        counts = [process.gateway.service_mesh_manager.statistics.events for process in (wants, other, empty)]
        assert counts == [20, 0, 0]
        assert mesh_of(other).subscriptions.bindings == {f"{prefix}.news", f"{prefix}.users.#"}
        assert mesh_of(empty).subscriptions.bindings == set()
        if rabbitmq.node is not None:
            bindings = await anyio.to_thread.run_sync(rabbitmq.node.list_bindings, rabbitmq.vhost)
            events = [row for row in bindings if row["source_name"] == "nuropb-events-exchange"]
            keys = [
                {row["routing_key"] for row in events if row["destination_name"] == mesh_of(each).event_queue}
                for each in (wants, other, empty)
            ]
            users = f"{prefix}.users.#"
            assert keys == [{f"{prefix}.orders.*", users}, {f"{prefix}.news", users}, set()]
            sent = [after[each] - before[each] for each in after]
            # The others get their messages to themselves and those of peer processes only. They go on in all the time
            # that the events take, which on a busy machine is long.
            assert sent[0] > 20 * 50_000 > 4 * max(sent[1:]), sent


async def test_a_binding_lingers_a_while_after_its_last_subscriber(amqp_url: str) -> None:
    name, topic = f"gateway-{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}"
    async with process(amqp_url, name, targeted_topics=[]) as running, connect(running.url, "alice") as alice:
        await alice.ask("subscribe", topics=[topic])
        await alice.ask("unsubscribe", topics=[topic])
        assert mesh_of(running).subscriptions.bindings == {topic}
        await eventually(lambda: mesh_of(running).subscriptions.bindings == set())


# --- gaps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backlog", [5, 6])
async def test_whoever_subscribed_is_told_when_more_was_published_than_the_broker_keeps(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch, backlog: int
) -> None:
    monkeypatch.setattr(_events, "EVENT_QUEUE_LENGTH", 6)
    topic = f"t{secrets.token_hex(4)}"
    async with scene(amqp_url, expose_topics=["#"], targeted_topics=[]) as set_:
        alice, bob = set_.callers
        await alice.subscribe(topic)
        set_.proxy.refuse()
        set_.proxy.cut("consume")
        await eventually(lambda: not set_.mesh.consuming.up)
        for number in range(backlog):
            set_.service_mesh.publish(topic, b"%d" % number, context=b"{}", trace_id="t", target=None)
        published = set_.service_mesh.round_trips
        published.clear()
        await eventually(lambda: published)  # the broker has all earlier messages
        set_.proxy.accept()
        await eventually(lambda: len(alice.client.inbox) >= backlog)
        got = [(frame["payload"]["topic"], frame["payload"]["event"]) for frame in alice.client.inbox]
        gap = [("gap", {"reason": "overflow", "topics": [topic]})] if backlog == 6 else []
        assert got == [*gap, *((topic, number) for number in range(backlog))]
        assert bob.client.inbox == []


async def test_whoever_subscribed_is_told_when_a_process_is_always_too_slow(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_events, "EVENT_QUEUE_LENGTH", 6)
    monkeypatch.setattr(_mesh, "PREFETCH", 10)
    monkeypatch.setattr(_mesh, "REASSERT_INTERVAL", 0.3)
    topic = f"t{secrets.token_hex(4)}"
    async with scene(amqp_url, expose_topics=["#"], targeted_topics=[]) as set_:
        alice, bob = set_.callers
        await alice.subscribe(topic)
        # Without acknowledgements the broker sends no more than PREFETCH.
        monkeypatch.setattr(Acknowledger, "later", lambda *_: None)
        for number in range(17):
            set_.service_mesh.publish(topic, b"%d" % number, context=b"{}", trace_id="t", target=None)
        gap = {"topic": "gap", "event": {"reason": "overflow", "topics": [topic]}}
        await eventually(lambda: gap in [frame["payload"] for frame in alice.client.inbox])
        assert bob.client.inbox == []


async def test_whoever_subscribed_is_told_when_the_queue_is_a_new_one(amqp_url: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    async with scene(amqp_url, expose_topics=["#"]) as set_:
        alice, _ = set_.callers
        await alice.subscribe(topic)
        await delete_queues(amqp_url, set_.mesh)
        await eventually(lambda: alice.client.inbox)
        assert alice.client.inbox[0]["payload"] == {"topic": "gap", "event": {"reason": "expired", "topics": [topic]}}


async def test_whoever_subscribes_while_the_broker_is_away_is_told_once_it_is_back(amqp_url: str) -> None:
    topic = f"t{secrets.token_hex(4)}"
    async with scene(amqp_url, expose_topics=["#"]) as set_:
        alice, _ = set_.callers
        set_.proxy.refuse()
        set_.proxy.cut()
        await eventually(lambda: set_.not_ready)
        await alice.subscribe(topic)
        set_.proxy.accept()
        await eventually(lambda: alice.client.inbox)
        event = {"reason": "disconnected", "topics": [topic]}
        assert alice.client.inbox[0]["payload"] == {"topic": "gap", "event": event}
        assert topic in set_.mesh.subscriptions.bound
