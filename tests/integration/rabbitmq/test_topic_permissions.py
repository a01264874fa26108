"""A user who may have the events of some topics only, by the broker's topic permissions."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import anyio
import pytest

from nuropb_gateway_asgi.mesh import hosting
from nuropb_gateway_asgi.mesh.rabbitmq import probe
from tests.integration.conftest import Broker
from tests.integration.scene import scene
from tests.kit.amqp import EVENTS, Gateway, changed_url, peer_at, running
from tests.kit.gateways import DEADLINE, eventually
from tests.servers.processes import unavailable
from tests.servers.rabbitmq import RabbitMQNode


class Limited:
    """A vhost, and a user who may have events of the topics ``orders`` and ``orders.*``."""

    def __init__(self, node: RabbitMQNode, vhost: str) -> None:
        self.node, self.vhost = node, vhost
        self.url = node.add_vhost(vhost)
        asyncio.run(self._declare())  # RabbitMQ 4.3 accepts permissions for exchanges that are there
        node.ctl("add_user", vhost, "hunter2")
        node.ctl("set_permissions", "--vhost", vhost, vhost, ".*", ".*", ".*")
        self._allowed = ""
        self.allow("^orders")
        self.limited_url = changed_url(self.url, username=vhost, password="hunter2")

    async def _declare(self) -> None:
        async with peer_at(self.url) as peer:
            await peer.channel.exchange_declare(EVENTS, exchange_type="topic", durable=True)

    def allow(self, topics: str) -> None:
        if topics != self._allowed:
            self.node.ctl("set_topic_permissions", "--vhost", self.vhost, self.vhost, EVENTS, topics, topics)
            self._allowed = topics

    def delete(self) -> None:
        self.node.ctl("delete_user", self.vhost)
        self.node.delete_vhost(self.vhost)


@pytest.fixture(scope="module")
def shared(rabbitmq: Broker) -> Iterator[Limited]:
    if rabbitmq.node is None:
        unavailable("the broker is not ours, so its users cannot be changed")
    made = Limited(rabbitmq.node, f"limited-{secrets.token_hex(4)}")
    yield made
    made.delete()


@pytest.fixture
def limited(shared: Limited) -> Limited:
    """The vhost of all tests, for each rabbitmqctl takes a second or two."""
    shared.allow("^orders")
    return shared


@pytest.fixture
def fresh(node: RabbitMQNode) -> Iterator[Limited]:
    """A vhost in which there is nothing yet."""
    made = Limited(node, f"limited-{secrets.token_hex(4)}")
    yield made
    made.delete()


async def subscribe(gateway: Gateway, topic: str) -> bool:
    """Subscribe, and return whether the broker has bound the topic."""
    bound: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    gateway.mesh.subscribe(topic, bound.set_result)
    with anyio.fail_after(DEADLINE):
        return await bound


async def test_a_refused_topic_fails_alone_and_costs_no_connection(limited: Limited) -> None:
    async with peer_at(limited.url) as peer, running(limited.limited_url) as gateway:
        assert await subscribe(gateway, "orders.new")
        assert not await subscribe(gateway, "users.new")
        assert not await subscribe(gateway, "users.new")
        gateway.mesh.subscriptions.rebind()  # as it happens at intervals
        assert await subscribe(gateway, "orders.*")
        gateway.mesh.unsubscribe("users.new")
        await peer.event("users.new", "secret")
        await peer.event("orders.new", 1)
        await eventually(lambda: gateway.receiver.events)
        assert gateway.receiver.events == [("orders.new", 1)]
        assert (gateway.mesh.statistics.reconnects, gateway.receiver.connections) == (0, [True])


async def test_one_refused_topic_among_many_that_are_bound_together_fails_alone(limited: Limited) -> None:
    async with running(limited.limited_url) as gateway:
        topics = [f"orders.{number}" for number in range(100)]
        topics[50] = "users.new"
        answers = await asyncio.gather(*(subscribe(gateway, topic) for topic in topics))
        assert [topic for topic, bound in zip(topics, answers, strict=True) if not bound] == ["users.new"]
        assert gateway.mesh.subscriptions.bindings == set(topics) - {"users.new"}
        assert gateway.mesh.statistics.reconnects == 0


async def test_a_refused_topic_is_tried_again_on_the_next_connection(limited: Limited) -> None:
    async with running(limited.limited_url) as gateway:
        assert not await subscribe(gateway, "users.new")
        await asyncio.to_thread(limited.allow, "^(orders|users)")
        gateway.mesh.consuming.abort("by the test")
        await eventually(lambda: gateway.mesh.statistics.reconnects == 1 and gateway.mesh.connected)
        assert await subscribe(gateway, "users.new")


async def test_a_topic_that_is_refused_later_is_reported(limited: Limited) -> None:
    async with running(limited.limited_url) as gateway:
        assert await subscribe(gateway, "orders.new")
        await asyncio.to_thread(limited.allow, "^users")
        gateway.mesh.consuming.abort("by the test")
        await eventually(lambda: gateway.receiver.refused)
        assert gateway.receiver.refused == ["orders.new"]
        gateway.mesh.unsubscribe("orders.new")  # which the broker refuses, too
        assert await subscribe(gateway, "users.new")
        assert gateway.mesh.statistics.reconnects == 1


async def test_one_clients_refused_subscription_is_its_own_affair(limited: Limited) -> None:
    async with scene(limited.limited_url, service_url=limited.url, expose_topics=["#"], targeted_topics=[]) as set_:
        alice, bob = set_.callers
        await bob.subscribe("orders.new")
        await alice.client.send("subscribe", topics=["orders.old", "users.new"], id="refused")
        await alice.ended(["refused"])
        error = alice.error("refused")
        assert error["code"] == "permission_denied"
        assert error["description"] == "Subscribing to users.new is not allowed by the broker"
        assert set_.running.gateway.service_mesh_manager.events.topics == {"orders.new"}
        await alice.subscribe("orders.old")
        assert [await each.call() for each in set_.callers] == ["ok", "ok"]
        assert set_.mesh.statistics.reconnects == 0
        # It is no concern of the operator's.
        assert (await set_.http.get("/readyz")).json()["warnings"] == []


async def test_an_operator_learns_of_refused_topics_of_the_gateway_before_any_client_comes(limited: Limited) -> None:
    async with scene(limited.limited_url, service_url=limited.url, clients=0) as set_:
        manager = set_.running.gateway.service_mesh_manager
        await eventually(lambda: manager.warnings)
        answer = await set_.http.get("/readyz")
        assert answer.status_code == 200
        (warning,) = answer.json()["warnings"]
        assert "events of the topic # do not come" in warning
        assert set_.mesh.statistics.reconnects == 0


async def test_a_hosted_service_does_without_refused_topics(limited: Limited) -> None:
    class Hears:
        def __init__(self) -> None:
            self.events: list[str] = []

        def answer(self) -> int:
            return 42

        def _handle_event_(self, topic: str, *more: object) -> None:
            self.events.append(topic)

    service = Hears()
    topics = ["users.#", "orders.#"]
    async with (
        peer_at(limited.url) as peer,
        hosting(service, limited.limited_url, service_name="hears", event_topics=topics) as manager,
    ):
        await eventually(lambda: manager.connected)
        assert await manager.request("hears", "answer") == 42
        await peer.event("users.new")
        await peer.event("orders.new")
        await eventually(lambda: service.events)
        assert service.events == ["orders.new"]
        (warning,) = manager.warnings
        assert "users.#" in warning


async def test_a_check_tells_of_refusals_and_leaves_nothing_behind(fresh: Limited) -> None:
    assert "topic" not in await probe(fresh.limited_url, "checked", ["orders.#"])
    found = await probe(fresh.limited_url, "checked", ["orders.#", "#"])
    assert "events with a target do not come of the topic #" in found
    own = r"^nuropb-(checked-.*(q|fx)|(rpc|events|dl)-exchange)$"
    await asyncio.to_thread(fresh.node.ctl, "set_permissions", "--vhost", fresh.vhost, fresh.vhost, own, ".*", ".*")
    found = await probe(fresh.limited_url, "checked")
    assert "revocations reach this process only, as nuropb-checked-records cannot be used" in found
    assert await asyncio.to_thread(fresh.node.list_queues, fresh.vhost) == []
    own = r"^nuropb-(checked-.*(rq|eq|fq|fx)|(rpc|events|dl)-exchange)$"
    await asyncio.to_thread(fresh.node.ctl, "set_permissions", "--vhost", fresh.vhost, fresh.vhost, own, ".*", ".*")
    with pytest.raises(ConnectionError, match="nuropb-checked-sq"):
        await probe(fresh.limited_url, "checked")
