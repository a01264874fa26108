"""A user with few permissions, and a broker that closes connections."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from logging import LogRecord
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import _parts, probe
from nuropb_gateway_asgi.wire.history import parse_kept_topics
from tests.integration.conftest import Broker
from tests.integration.scene import log_lines
from tests.kit.amqp import (
    DEAD_LETTERS,
    EVENTS,
    RPC,
    changed_url,
    peer_at,
    reconnected,
    running,
)
from tests.kit.clients import connect
from tests.kit.gateways import eventually, run_gateway
from tests.servers.rabbitmq import RabbitMQNode


@dataclass(frozen=True)
class Restricted:
    """An empty vhost, and a user with the permission to declare a gateway's queues there and nothing else."""

    node: RabbitMQNode
    vhost: str
    url: str
    restricted_url: str


@pytest.fixture(scope="module")
def restricted(rabbitmq: Broker) -> Iterator[Restricted]:
    if rabbitmq.node is None:
        pytest.skip("the broker is not ours: rabbitmqctl cannot be used")
    node, name = rabbitmq.node, f"restricted-{secrets.token_hex(4)}"
    url = node.add_vhost(name)
    node.ctl("add_user", name, "hunter2")
    queues = "^nuropb-gateway-.*$"
    node.ctl("set_permissions", "--vhost", name, name, queues, ".*", ".*")
    yield Restricted(node, name, url, changed_url(url, username=name, password="hunter2"))
    node.ctl("delete_user", name)
    node.delete_vhost(name)


async def test_exchanges_that_may_not_be_declared_are_found_or_named(restricted: Restricted) -> None:
    async with (
        peer_at(restricted.url) as peer,
        running(restricted.restricted_url, "gateway-x", wait=False) as gateway,
    ):
        for name, kind in ((RPC, "direct"), (EVENTS, "topic"), (DEAD_LETTERS, "fanout")):
            missing = f"exchange {name} is missing, and this user may not declare it"
            await gateway.says(missing)
            assert not gateway.mesh.connected
            await peer.channel.exchange_declare(name, exchange_type=kind, durable=True)
        await gateway.connected()
        service = await peer.service()
        message = gateway.send(service)
        await peer.reply(await peer.take(service), 1)
        await gateway.told("reply", message)

        # A deleted exchange is reported, too, when the next connection is made.
        await peer.channel.exchange_delete(EVENTS)
        gateway.mesh.consuming.abort("test")
        await gateway.says(f"exchange {EVENTS} is missing")
        await peer.channel.exchange_declare(EVENTS, exchange_type="topic", durable=True)
        await gateway.connected()


async def test_an_exchange_of_another_kind_is_named(restricted: Restricted) -> None:
    async with peer_at(restricted.url) as peer:
        await peer.channel.exchange_delete(EVENTS)
        await peer.channel.exchange_declare(EVENTS, exchange_type="fanout", durable=True)
        async with running(restricted.url, "gateway-x", wait=False) as gateway:
            wrong = f"exchange {EVENTS} exists, but is not a durable topic exchange"
            await gateway.says(wrong)
            await peer.channel.exchange_delete(EVENTS)
            await gateway.connected()


async def test_queues_that_may_not_be_declared_are_named(restricted: Restricted) -> None:
    async with running(restricted.url, "gateway-x"):
        pass  # all exchanges are there
    async with running(restricted.restricted_url, "other", wait=False) as gateway:
        await gateway.says("nuropb-other-")
        assert "refused" in (gateway.mesh.problem or "").lower()
        assert "hunter2" not in (gateway.mesh.problem or "")


async def test_a_service_queue_with_other_arguments_is_a_warning_until_it_is_deleted(
    restricted: Restricted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parts, "RETRY_INTERVAL", 0.1)
    async with peer_at(restricted.url) as peer:
        await peer.channel.queue_declare("nuropb-gateway-y-sq", durable=True)
        async with running(restricted.url, "gateway-y") as gateway:
            (warning,) = gateway.mesh.warnings
            assert warning.startswith("the queue nuropb-gateway-y-sq is missing (")
            assert "x-dead-letter-exchange" in warning
            assert warning.endswith("): other services cannot call the gateway")
            service = await peer.service()
            message = gateway.send(service)
            await peer.reply(await peer.take(service), 1)
            await gateway.told("reply", message)
            await peer.channel.queue_delete("nuropb-gateway-y-sq")
            await eventually(lambda: not gateway.mesh.warnings)
            declared = await peer.channel.queue_declare("nuropb-gateway-y-sq", passive=True)
            assert declared.consumer_count == 1
            assert gateway.receiver.connections == [True]


async def test_connections_that_the_broker_closes_are_made_again(restricted: Restricted) -> None:
    async with running(restricted.url, "gateway-x") as gateway:
        async with peer_at(restricted.url) as peer:
            service = f"service-{secrets.token_hex(4)}"
            await peer.channel.queue_declare(service, durable=True)
            await peer.channel.queue_bind(service, RPC, service)
            calls = [gateway.send(service) for _ in range(20)]
            requests = [await peer.take(service) for _ in calls]
        await gateway.subscribe("topic")
        close = ("close_all_connections", "--vhost", restricted.vhost, "maintenance")
        await anyio.to_thread.run_sync(restricted.node.ctl, *close)
        async with peer_at(restricted.url) as peer:
            for request in requests:
                await peer.reply(request, 1)
            for message in calls:
                await gateway.told("reply", message)
            await reconnected(gateway, 2)
            await gateway.subscribe("last")
            await peer.event("topic", 1)
            await eventually(lambda: gateway.receiver.events == [("topic", 1)])
            await peer.channel.queue_delete(service)


@pytest.mark.parametrize(
    ("command", "limits", "words"),
    [
        ("set_vhost_limits", '{"max-connections": 0}', "connection limit (0) is reached"),
        ("set_vhost_limits", '{"max-queues": 0}', "queue limit in vhost"),
        ("set_user_limits", '{"max-connections": 0}', "user connection limit (0) is reached"),
        ("set_user_limits", '{"max-channels": 1}', "maximum allowed user limit of"),
    ],
    ids=["connections of the vhost", "queues of the vhost", "connections of the user", "channels of the user"],
)
async def test_a_limit_of_the_broker_is_told_in_its_own_words(
    restricted: Restricted, command: str, limits: str, words: str
) -> None:
    scope = ("--vhost", restricted.vhost) if command == "set_vhost_limits" else (restricted.vhost,)
    ctl = restricted.node.ctl
    async with running(restricted.url, "gateway-x"):
        pass  # all exchanges are there
    await asyncio.to_thread(ctl, command, *scope, limits)
    try:
        async with running(restricted.restricted_url, "gateway-x", wait=False) as gateway:
            await gateway.says(words)
            problem = gateway.mesh.problem or ""
            assert "the broker refuses more: one of its limits is reached" in problem
            assert "vhost: it does not exist" not in problem
    finally:
        clear = (
            ("clear_vhost_limits", *scope) if command == "set_vhost_limits" else ("clear_user_limits", *scope, "all")
        )
        await asyncio.to_thread(ctl, *clear)


async def test_each_history_that_the_user_may_not_have_is_one_line_and_an_ordinary_topic(
    restricted: Restricted, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_parts, "RETRY_INTERVAL", 0.1)
    permit = ("set_permissions", "--vhost", restricted.vhost, restricted.vhost)
    refused = {"configured": "configure", "written": "write", "consumed": "read"}
    history = [*(f"{name}.#:1h" for name in refused), "made.#:1h", "all.#:1h"]
    streams = {name: f"nuropb-gateway-h-history-{name}.#" for name in ("made", "all", *refused)}
    settings: dict[str, Any] = {"service_name": "gateway-h", "expose_topics": ["#"], "history": history}
    async with peer_at(restricted.url) as peer, running(restricted.url, "gateway-x"):
        # A stream that the operator has made needs no permission to configure it.
        await peer.channel.queue_declare(streams["made"], durable=True, arguments={"x-queue-type": "stream"})
        except_for = [f"^(?!.*history-({names})\\.).*$" for names in ("configured|made", "written", "consumed")]
        await asyncio.to_thread(restricted.node.ctl, *permit, *except_for)
        url = restricted.restricted_url
        found = await probe(url, "gateway-h", kept_topics=parse_kept_topics(history))
        with log_lines(caplog) as lines:
            async with run_gateway(mesh_url=url, **settings) as gateway:
                manager = gateway.gateway.service_mesh_manager
                await eventually(lambda: len(manager.warnings) == len(refused))  # before any client comes
                async with connect(gateway.url, "alice") as client:
                    for name, permission in refused.items():
                        topic = f"{name}.#"
                        answer = await client.ask("subscribe", topics=[topic], since={topic: {"last": 1}})
                        assert answer["error"]["code"] == "mesh_unavailable"
                        assert (await client.ask("subscribe", topics=[topic]))["error"] is None
                        await peer.event(f"{name}.new", permission)
                        event = await client.event(f"{name}.new")
                        assert (event["event"], "position" in event) == (permission, False)
                        (line,) = [
                            each for each in map(LogRecord.getMessage, lines()) if f"{streams[name]} is missing" in each
                        ]
                        assert "access to" in line
                        assert f"events of {topic} have no history, as the stream {streams[name]}" in found
                    for name in ("made", "all"):
                        await peer.event(f"{name}.new", name)
                        answer = await client.ask("subscribe", topics=[f"{name}.#"], since={f"{name}.#": {"last": 1}})
                        assert answer["result"]["history"][f"{name}.#"]["count"] == 1
                        assert f"events of {name}.#" not in found
                    await asyncio.to_thread(restricted.node.ctl, *permit, ".*", ".*", ".*")
                    await eventually(lambda: not manager.warnings)
                    again = {"consumed.#": {"seconds": 300}}
                    await client.ask("unsubscribe", topics=["consumed.#"])
                    answer = await client.ask("subscribe", topics=["consumed.#"], since=again)
                    found_now = answer["result"]["history"]["consumed.#"]
                    assert (found_now["recovered"], found_now["count"]) == (True, 1)
        for stream in streams.values():
            await peer.channel.queue_delete(stream)
