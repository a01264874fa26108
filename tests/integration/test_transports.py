"""All kinds of connections at once: messages to a user or to all reach each kind, and limits count all kinds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nuropb_gateway_asgi import CloseCode
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.conftest import Broker
from tests.integration.scene import delete_queues
from tests.integration.test_fleet import delete_fleet
from tests.kit.clients import Client, connect, refusal
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.transports import EventStream, LineClient, connect_tcp, events, http_client
from tests.servers.surviving_service import SurvivingService, host

FREE: Final = "127.0.0.1:0"
KINDS: Final = ("websocket", "http", "tcp")


class Everywhere:
    """Connections of one user, one of each kind, to one gateway."""

    def __init__(self, socket: Client, stream: EventStream, lines: LineClient) -> None:
        self.socket = socket
        self.stream = stream
        self.lines = lines

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, running: RunningGateway, token: str, *topics: str) -> AsyncIterator[Everywhere]:
        async with (
            connect(running.url, token) as socket,
            events(running, token, topics) as stream,
            connect_tcp(running, token) as lines,
        ):
            for client in (socket, lines):
                assert (await client.ask("subscribe", topics=list(topics)))["error"] is None
            yield cls(socket, stream, lines)

    async def get(self, topic: str) -> list[Any]:
        """Return the next event of ``topic`` on each connection."""
        payloads = [await each.event(topic) for each in (self.socket, self.stream, self.lines)]
        return [payload["event"] for payload in payloads]

    async def closed(self) -> list[int]:
        """Wait for the end of the connections, and return their close codes."""
        last = (await self.stream.rest())[-1]["event"]["code"]
        return [(await self.socket.closed()).code, last, (await self.lines.closed()).code]


async def know_each_other(*gateways: RunningGateway) -> None:
    """Wait until all kinds of connections of all gateways are on the mesh, and reach each other."""
    kinds = [kind for running in gateways for kind in running.gateway.channels.values()]
    managers = [kind.service_mesh_manager for kind in kinds]
    await eventually(lambda: not any(running.gateway.not_ready() for running in gateways))
    async with asyncio.timeout(DEADLINE):
        for manager in managers:
            while (await manager.count()).processes < len(managers):
                await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    async with run_gateway(instance_id="one", tcp=FREE, max_connections_per_user=4) as running:
        await know_each_other(running)
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A shared gateway that every test leaves without connections and calls."""
    yield shared
    await shared.is_empty()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_message_to_a_user_reaches_connections_of_every_kind(running: RunningGateway, kind: str) -> None:
    manager = running.gateway.channels[kind].service_mesh_manager
    async with Everywhere.connected(running, "alice") as alice, connect(running.url, "bob") as bob:
        reached = await manager.send_to_users(["alice"], "private", {"n": 1})
        assert (reached.count, reached.missing) == (3, [])
        assert await alice.get("private") == [{"n": 1}] * 3
        assert (await manager.send_to_all("news", 2)).count == 4
        assert await alice.get("news") == [2] * 3
        assert (await bob.event("news"))["event"] == 2
        assert (await manager.count()).by_process == {"one": 2, "one-http": 1, "one-tcp": 1, "one-mcp": 0}
        sessions = (await manager.list_sessions("alice")).sessions
        assert {session.instance_id for session in sessions} == {"one", "one-http", "one-tcp"}
        assert (await manager.is_online(["alice", "carol"])).online == {"alice": True, "carol": False}
        assert (await manager.disconnect_users(["alice"], 4521, "bye")).count == 3
        assert await alice.closed() == [4521] * 3
        assert await bob.settled() == []


async def test_an_event_reaches_connections_of_every_kind_once(running: RunningGateway) -> None:
    async with Everywhere.connected(running, "alice", "demo.x", "demo.*") as alice:
        for number in range(20):
            await alice.lines.result("demo.publish", {"topic": "demo.x", "event": number})
        await alice.socket.result("demo.publish", {"topic": "any", "event": 21, "target": ["alice"]})
        for number in range(20):
            assert await alice.get("demo.x") == [number] * 3
        assert await alice.get("any") == [21] * 3


async def test_a_revoked_token_ends_connections_of_every_kind(running: RunningGateway) -> None:
    async with Everywhere.connected(running, "dave") as dave:
        await running.gateway.channels["tcp"].service_mesh_manager.revoke(user_id="dave")
        assert await dave.closed() == [CloseCode.TOKEN_REVOKED] * 3
    assert (await refusal(running.url, "dave")).status == 401
    async with http_client(running, "dave") as client:
        assert (await client.call("demo.echo")).status_code == 401


async def test_a_user_has_so_many_connections_of_all_kinds_together(running: RunningGateway) -> None:
    async with Everywhere.connected(running, "alice") as alice, connect(running.url, "alice"):
        assert (await refusal(running.url, "alice")).status == 429
        async with http_client(running, "alice") as client:
            assert (await client.call("demo.echo")).status_code == 429
        alice.lines.abort()
        await eventually(lambda: len(running.gateway.channels["tcp"].handler_manager) == 0)
        async with http_client(running, "alice") as client:
            assert (await client.call("demo.echo")).status_code == 200


async def test_a_token_for_one_kind_is_refreshed_on_that_alone(running: RunningGateway) -> None:
    async with connect_tcp(running, "alice:for:0.7") as brief, connect_tcp(running, "alice:for:0.7") as renewed:
        assert (await renewed.ask("authorize", token="alice"))["error"] is None
        assert (await brief.closed()).code == CloseCode.TOKEN_EXPIRED
        assert await renewed.result("demo.add", {"a": 1, "b": 1}) == 2


async def test_the_metrics_tell_the_kinds_apart(running: RunningGateway) -> None:
    async with Everywhere.connected(running, "alice") as alice, http_client(running, "alice") as client:
        for caller in (alice.socket, alice.lines):
            await caller.result("demo.add", {"a": 1, "b": 1})
        await client.call("demo.add", {"a": 1, "b": 1})
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        samples = [sample for family in families for sample in family.samples]
        ready = await client.get("/readyz")
    connections = {
        sample.labels["transport"]: sample.value for sample in samples if sample.name == "nuropb_gateway_connections"
    }
    assert connections == {**dict.fromkeys(KINDS, 1.0), "mcp": 0.0}
    called = {
        sample.labels["transport"]
        for sample in samples
        if sample.name == "nuropb_gateway_requests_total" and sample.labels["code"] == "ok"
    }
    assert called == set(KINDS)
    assert (ready.status_code, ready.json()["mesh"]) == (200, {"connected": True})


async def test_on_a_broker_two_gateways_reach_connections_of_every_kind(amqp_url: str, rabbitmq: Broker) -> None:
    name, service = (f"{what}-{secrets.token_hex(4)}" for what in ("gateway", "service"))
    settings = {"mesh_url": amqp_url, "service_name": name, "http": "on", "tcp": FREE, "expose": ["*.*"]}
    gateways = [make_gateway(**settings, expose_topics=["#"], instance_id=f"process-{n}") for n in range(2)]
    meshes = [channel.service_mesh_manager.mesh for each in gateways for channel in each.channels.values()]
    try:
        async with (
            run_gateway(gateways[0]) as one,
            run_gateway(gateways[1]) as two,
            host(amqp_url, service, SurvivingService()) as mesh,
            http_client(one, "bob") as bob,
        ):
            await know_each_other(one, two)
            await eventually(lambda: mesh.connected)
            async with (
                Everywhere.connected(one, "alice", "news.*") as here,
                Everywhere.connected(two, "alice", "news.*") as there,
            ):
                assert (await bob.call(f"{service}.echo", {"id": "1"})).json() == "1"
                assert await there.lines.result(f"{service}.echo", {"id": "2"}) == "2"
                manager = one.gateway.channels["tcp"].service_mesh_manager
                await manager.publish_event("news.a", {"n": 1})
                sent = {"user_ids": ["alice"], "topic": "private", "event": 2}
                reached = await manager.request(name, "send_to_users", sent)
                assert (reached["count"], reached["missing"]) == (6, [])
                for each in (here, there):
                    assert await each.get("news.a") == [{"n": 1}] * 3
                    assert await each.get("private") == [2] * 3
                count = await two.gateway.service_mesh_manager.count()
                assert (count.count, len(count.by_process)) == (6, 6)
            await eventually(lambda: one.occupancy == two.occupancy == (0, 0, 0))
            if rabbitmq.node is not None:
                queues = await asyncio.to_thread(rabbitmq.node.list_queues, rabbitmq.vhost)
                (own,) = (queue for queue in queues if queue["name"] == f"nuropb-{name}-sq")
                assert own["consumers"] == len(gateways)
    finally:
        await delete_queues(amqp_url, *(each for each in meshes if isinstance(each, RabbitMQMesh)))
        await delete_fleet(amqp_url, name)


async def test_no_log_has_what_a_client_sent(running: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "s3cret"
    async with http_client(running, f"bad:{secret}") as stranger, http_client(running, f"alice:{secret}") as client:
        for each in (stranger, client):
            await each.post(f"/rpc/demo/echo?token={secret}", json={"a": secret}, headers={"Cookie": secret})
            await each.post("/rpc/demo/fail", content=b'{"how":"' + secret.encode())
            await each.get(f"/events?topic={secret}")
        await client.call("demo.fail", {"how": secret})
    for line in (f'{{"type":"authorize","payload":{{"token":"bad:{secret}"}}}}', secret * 20000, f"{secret}\n" * 10):
        async with connect_tcp(running) as lines:
            await lines.send_text(line)
            await lines.closed()
    async with connect_tcp(running, f"alice:{secret}") as lines:
        await lines.send_text(f"{secret}\n" * 10)
        await lines.closed()
    # Only the server side counts: clients log freely, and the access log belongs to the host application here.
    ours = ("nuropb_gateway_asgi", "uvicorn.error", "asyncio", "websockets")
    records = [record for record in caplog.records if record.name.startswith(ours)]
    assert records
    assert not [record for record in records if secret in record.getMessage() + str(record.exc_info)]
