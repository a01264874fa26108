"""Topics with history on a real broker, and on the embedded mesh: the past, positions, and their limits."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aio_pika
import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.client import Recovered
from nuropb_gateway_asgi.client import connect as python_connect
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _marks
from nuropb_gateway_asgi.wire import codec
from nuropb_gateway_asgi.wire import history as wire_history
from tests.integration.test_fleet import SECRET, fleet
from tests.integration.test_resume import ResumingClient, resuming
from tests.kit.clients import Client, Frame, connect
from tests.kit.gateways import RunningGateway, eventually, run_gateway


@dataclass
class Scene:
    """Processes of one gateway that keep the events of a topic, and what a test does with them."""

    processes: list[RunningGateway]
    topic: str

    @property
    def first(self) -> RunningGateway:
        return self.processes[0]

    @property
    def pattern(self) -> str:
        return f"{self.topic}.#"

    async def publish(self, *events: Any, name: str = "new") -> None:
        """Publish events by the first process; they are on their way to the broker."""
        for event in events:
            await self.first.gateway.service_mesh_manager.publish_event(f"{self.topic}.{name}", event)

    @contextlib.asynccontextmanager
    async def client(self, at: int = 0, user: str = "alice") -> AsyncIterator[Client]:
        url = self.processes[at].url
        async with connect(url, issue_token(SECRET, user, lifetime=600)) as client:
            yield client

    def log(self, at: int = 0) -> Any:
        mesh = self.processes[at].gateway.service_mesh_manager.mesh
        assert isinstance(mesh, RabbitMQMesh)
        return mesh.histories[self.pattern]


async def since(client: Client, pattern: str, start: dict[str, Any]) -> dict[str, Any]:
    """Subscribe to a topic that begins in the past; return its part of the answer."""
    answer = await client.ask("subscribe", topics=[pattern], since={pattern: start})
    assert answer["error"] is None, answer["error"]
    found: dict[str, Any] = answer["result"]["history"][pattern]
    return found


async def contents(client: Client, count: int) -> list[Any]:
    """Return the contents of the next events, whose offsets have to grow."""
    frames = [await client.next() for _ in range(count)]
    assert [frame["type"] for frame in frames] == ["event"] * count
    offsets = [frame["payload"]["position"]["offset"] for frame in frames]
    assert offsets == sorted(set(offsets))
    return [frame["payload"]["event"] for frame in frames]


@contextlib.asynccontextmanager
async def scene(url: str, count: int = 1, time: str = "1h", **settings: Any) -> AsyncIterator[Scene]:
    topic = f"t{secrets.token_hex(4)}"
    settings = {"expose_topics": ["#"], "history": [f"{topic}.#:{time}"]} | settings
    if not url:
        async with run_gateway(jwt_key=SECRET, authenticator=None, **settings) as running:
            yield Scene([running], topic)
        return
    async with fleet(url, count, **settings) as processes:
        made = Scene(processes, topic)
        try:
            yield made
        finally:
            await delete(url, made.log().stream)


async def delete(url: str, stream: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(stream)


@pytest.fixture(params=["embedded", "fast", "plain"])
async def any_scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """One process, on each kind of mesh."""
    url = "" if request.param == "embedded" else request.getfixturevalue("amqp_url")
    settings = {} if request.param == "embedded" else {"mesh_lane": request.param}
    async with scene(url, **settings) as made:
        yield made


@pytest.fixture
async def two(amqp_url: str) -> AsyncIterator[Scene]:
    async with scene(amqp_url, 2) as made:
        yield made


# --- on each mesh -----------------------------------------------------------------------------------------------


async def test_the_past_comes_before_live_events(any_scene: Scene) -> None:
    async with any_scene.client() as client:
        await any_scene.publish(*range(20))
        found = await since(client, any_scene.pattern, {"last": 5})
        assert (found["recovered"], found["count"]) == (True, 5)
        await any_scene.publish("live")
        assert await contents(client, 6) == [15, 16, 17, 18, 19, "live"]
        assert await client.settled() == []


async def test_a_client_goes_on_after_its_position(any_scene: Scene) -> None:
    async with any_scene.client() as client:
        await client.ask("subscribe", topics=[any_scene.pattern])
        await any_scene.publish(1, 2)
        await client.next()
        position = (await client.next())["payload"]["position"]
    await any_scene.publish(*range(3, 40))
    async with any_scene.client() as client:
        found = await since(client, any_scene.pattern, position)
        assert (found["recovered"], found["count"], found["epoch"]) == (True, 37, position["epoch"])
        assert await contents(client, 37) == list(range(3, 40))
        again = await since(client, any_scene.pattern, {"epoch": found["epoch"], "offset": found["offset"]})
        assert (again["recovered"], again["count"], again["offset"]) == (True, 0, found["offset"])


async def test_the_events_of_the_last_seconds_come(any_scene: Scene) -> None:
    async with any_scene.client() as client:
        await any_scene.publish(1, 2, 3)
        found = await since(client, any_scene.pattern, {"seconds": 300})
        assert (found["recovered"], found["count"]) == (True, 3)
        assert await contents(client, 3) == [1, 2, 3]


async def test_a_history_without_events_is_complete(any_scene: Scene) -> None:
    async with any_scene.client() as client:
        for start in ({"last": 1}, {"seconds": 5}):
            found = await since(client, any_scene.pattern, start)
            assert (found["recovered"], found["count"]) == (True, 0)
        position = {"epoch": found["epoch"], "offset": found["offset"]}
        await any_scene.publish("new")
        assert await contents(client, 1) == ["new"]
        assert (await since(client, any_scene.pattern, position))["count"] == 1


async def test_a_narrow_pattern_finds_its_last_events_among_many_others(any_scene: Scene) -> None:
    pattern = f"{any_scene.topic}.rare"
    async with any_scene.client() as client:
        await any_scene.publish("rare", "also rare", name="rare")
        await any_scene.publish(*range(100))
        found = await since(client, pattern, {"last": 2})
        assert (found["recovered"], found["count"]) == (True, 2)
        assert await contents(client, 2) == ["rare", "also rare"]
        assert await client.settled() == []


@pytest.mark.parametrize("change", [{"epoch": "another"}, {"offset": 10**12}])
async def test_a_position_of_another_history_is_not_recovered(any_scene: Scene, change: dict[str, Any]) -> None:
    async with any_scene.client() as client:
        await any_scene.publish(1, 2)
        found = await since(client, any_scene.pattern, {"last": 2})
        position = {"epoch": found["epoch"], "offset": found["offset"]} | change
        found = await since(client, any_scene.pattern, position)
        assert (found["recovered"], found["count"]) == (False, 0)


async def test_no_event_is_lost_or_doubled_between_the_past_and_live_ones(any_scene: Scene) -> None:
    async def publish() -> None:
        for number in range(400):
            await any_scene.publish(number)
            await asyncio.sleep(0.001)

    async with any_scene.client() as other, any_scene.client() as client:
        await other.ask("subscribe", topics=[any_scene.pattern])
        publishing = asyncio.create_task(publish())
        position = (await other.next())["payload"]["position"]
        for _ in range(50):
            await other.next()
        await client.send("subscribe", id="s", topics=[any_scene.pattern], since={any_scene.pattern: position})
        found = (await client.answer("s"))["result"]["history"][any_scene.pattern]
        assert found["recovered"]
        assert found["count"] > 0
        assert await contents(client, 399) == list(range(1, 400))
        await publishing
        other.abort()  # the rest that it has not read would delay its goodbye


async def test_a_subscriber_of_a_wider_topic_gets_each_event_once(any_scene: Scene) -> None:
    async with any_scene.client() as client:
        await client.ask("subscribe", topics=[f"{any_scene.topic}.*.*", any_scene.pattern, "#"])
        await any_scene.publish(*range(50))
        assert await contents(client, 50) == list(range(50))
        assert await client.settled() == []


async def test_events_with_a_target_are_never_replayed(any_scene: Scene) -> None:
    async with any_scene.client(user="bob") as client:
        manager = any_scene.first.gateway.service_mesh_manager
        await manager.publish_event(f"{any_scene.topic}.private", "secret", target=["alice"])
        await any_scene.publish("public")
        assert (await since(client, any_scene.pattern, {"last": 10}))["count"] == 1
        assert await contents(client, 1) == ["public"]


# --- streams ----------------------------------------------------------------------------------------------------


async def test_events_are_kept_while_nobody_is_subscribed_and_the_stream_is_not_consumed(two: Scene) -> None:
    await two.publish(*range(10))
    assert two.log().epoch is None
    async with two.client(1) as client:
        assert (await since(client, two.pattern, {"last": 10}))["count"] == 10
        assert two.log(0).epoch is None
        assert two.log(1).epoch is not None


async def test_all_processes_know_the_same_epoch(two: Scene) -> None:
    async with two.client(0) as one, two.client(1) as other:
        asked = [since(each, two.pattern, {"last": 1}) for each in (one, other)]
        await asyncio.gather(*asked)
        await eventually(lambda: two.log(0).epoch == two.log(1).epoch is not None)
        first = await since(one, two.pattern, {"last": 1})
        assert (await since(other, two.pattern, {"epoch": first["epoch"], "offset": first["offset"]}))["recovered"]


async def test_the_epoch_outlives_all_processes(amqp_url: str) -> None:
    async with scene(amqp_url) as one:
        async with one.client() as client:
            await one.publish(1)
            before = await since(client, one.pattern, {"last": 1})
        settings: dict[str, Any] = {
            "mesh_url": amqp_url,
            "service_name": one.first.gateway.settings.service_name,
            "expose_topics": ["#"],
            "history": [f"{one.pattern}:1h"],
        }
        async with run_gateway(**settings) as later:
            await eventually(lambda: later.gateway.service_mesh_manager.connected)
            async with connect(later.url, "alice") as client:
                after = await since(client, one.pattern, {"epoch": before["epoch"], "offset": before["offset"]})
                assert (after["epoch"], after["recovered"]) == (before["epoch"], True)


async def test_a_stream_that_was_deleted_has_another_epoch(two: Scene, amqp_url: str) -> None:
    async with two.client() as client:
        await two.publish(1)
        before = await since(client, two.pattern, {"last": 1})
        assert await contents(client, 1) == [1]
        await delete(amqp_url, two.log().stream)
        gap = await client.event("gap")
        assert gap["event"] == {"reason": "expired", "topics": [two.pattern]}
        await eventually(lambda: two.log().epoch not in (None, before["epoch"]))
        await two.publish(*range(5))
        assert await contents(client, 5) == list(range(5))
        after = await since(client, two.pattern, {"epoch": before["epoch"], "offset": before["offset"]})
        assert (after["recovered"], after["count"]) == (False, 0)


async def test_what_the_broker_has_dropped_is_not_recovered(amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_history, "LAST_BYTES", 1 << 20)
    async with scene(amqp_url, time="last") as kept, kept.client() as client:
        await kept.publish("first")
        first = await since(client, kept.pattern, {"last": 1})
        await contents(client, 1)
        await client.ask("unsubscribe", topics=[kept.pattern])
        for _ in range(45):
            await kept.publish("x" * 50_000)
            await asyncio.sleep(0.01)  # the broker keeps or drops what comes together as a whole
        found = await since(client, kept.pattern, {"last": 1})
        assert (found["recovered"], found["count"]) == (True, 1)
        for start in (
            {"epoch": first["epoch"], "offset": first["offset"]},
            {"last": 46},
            {"seconds": 300},
        ):
            found = await since(client, kept.pattern, start)
            assert (found["recovered"], found["count"]) == (False, 0), start


async def test_a_lost_connection_to_the_broker_costs_no_event(two: Scene) -> None:
    mesh = two.processes[1].gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    async with two.client(1) as client:
        await client.ask("subscribe", topics=[two.pattern])
        await two.publish(*range(100))
        mesh.streams.link.abort("test")
        await two.publish(*range(100, 200))
        await eventually(lambda: mesh.streams.link.up)
        await two.publish(*range(200, 300))
        assert await contents(client, 300) == list(range(300))


async def test_many_subscriptions_share_a_mark(two: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_marks, "MARK_INTERVAL", 1.0)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(two.client()) for _ in range(10)]
        found = [await since(clients[0], two.pattern, {"last": 1})]
        found += await asyncio.gather(*(since(client, two.pattern, {"last": 1}) for client in clients[1:]))
        assert len({each["offset"] for each in found}) == 2


async def test_a_stream_with_other_arguments_is_used_with_a_warning(amqp_url: str) -> None:
    name, topic = f"gateway-{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}"
    stream = f"nuropb-{name}-history-{topic}.#"
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_queue(stream, durable=True, arguments={"x-queue-type": "stream", "x-max-age": "5m"})
    settings: dict[str, Any] = {"mesh_url": amqp_url, "service_name": name, "expose_topics": ["#"]}
    try:
        async with run_gateway(history=[f"{topic}.#:1h"], **settings) as running:
            await eventually(lambda: running.gateway.service_mesh_manager.connected)
            (warning,) = running.gateway.service_mesh_manager.warnings
            assert warning.startswith(f"the stream {stream} was made with other arguments than HISTORY says")
            async with connect(running.url, "alice") as client:
                assert (await since(client, f"{topic}.#", {"last": 1}))["recovered"]
                await delete(amqp_url, stream)
                await client.event("gap")
                await eventually(lambda: not running.gateway.service_mesh_manager.warnings)
    finally:
        await delete(amqp_url, stream)


async def test_a_queue_of_another_kind_makes_the_topic_an_ordinary_one(amqp_url: str) -> None:
    name, topic = f"gateway-{secrets.token_hex(4)}", f"t{secrets.token_hex(4)}"
    stream = f"nuropb-{name}-history-{topic}.#"
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await channel.declare_queue(stream, durable=True)
    settings: dict[str, Any] = {"mesh_url": amqp_url, "service_name": name, "expose_topics": ["#"]}
    try:
        async with run_gateway(history=[f"{topic}.#:1h"], **settings) as running:
            manager = running.gateway.service_mesh_manager
            await eventually(lambda: manager.connected and manager.warnings)
            assert manager.warnings[0].startswith(f"the stream {stream} is missing")
            async with connect(running.url, "alice") as client:
                answer = await client.ask("subscribe", topics=[f"{topic}.#"], since={f"{topic}.#": {"last": 1}})
                assert answer["error"]["code"] == "mesh_unavailable"
                await client.ask("subscribe", topics=[f"{topic}.#"])
                await manager.publish_event(f"{topic}.new", 1)
                assert "position" not in await client.event(f"{topic}.new")
    finally:
        await delete(amqp_url, stream)


async def test_messages_that_are_no_events_disturb_nobody(two: Scene, amqp_url: str) -> None:
    async with two.client() as client, await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        await two.publish("before")
        exchange = await channel.get_exchange(codec.EVENTS_EXCHANGE, ensure=False)
        await exchange.publish(aio_pika.Message(b"not JSON"), routing_key=f"{two.topic}.garbage")
        assert (await since(client, two.pattern, {"last": 5}))["count"] == 1
        await exchange.publish(aio_pika.Message(b"not JSON"), routing_key=f"{two.topic}.garbage")
        await two.publish("after")
        assert await contents(client, 2) == ["before", "after"]


# --- sessions ---------------------------------------------------------------------------------------------------


async def events_of(client: ResumingClient, count: int) -> list[Frame]:
    return [frame["payload"] for frame in await client.next(count)]


@pytest.mark.parametrize("to", [0, 1], ids=["the same process", "another process"])
async def test_a_resumed_session_gets_each_event_once(two: Scene, to: int) -> None:
    async with resuming(two.first) as client:
        await client.resume()
        await client.client.send("subscribe", id="s", topics=[two.pattern, "#"])
        await client.next()
        await two.publish(*range(10))
        await client.next(10)
        client.client.abort()
    await eventually(lambda: not len(two.first.gateway.handler_manager))
    await two.publish(*range(10, 20))
    async with resuming(two.processes[to]) as again:
        publishing = asyncio.create_task(two.publish(*range(20, 220)))
        result = await again.resume(key=client.key, received=client.received)
        assert result["resumed"], result
        payloads = await events_of(again, 210)
        await publishing
        assert [each["event"] for each in payloads] == list(range(10, 220))
        assert all(each["position"]["epoch"] == payloads[0]["position"]["epoch"] for each in payloads)
        assert not await again.client.settled()
        await two.publish("later")
        assert [each["event"] for each in await events_of(again, 1)] == ["later"]


async def test_a_session_that_moves_to_and_fro_gets_each_event_once(two: Scene) -> None:
    number = 0

    async def publish() -> None:
        nonlocal number
        for _ in range(400):
            await two.publish(number)
            number += 1
            await asyncio.sleep(0.002)

    heard: list[Any] = []
    async with resuming(two.first) as client:
        await client.resume()
        await client.client.send("subscribe", id="s", topics=[two.pattern])
        await client.next()
        publishing = asyncio.create_task(publish())
        heard += await events_of(client, 20)
        client.client.abort()
    for move in (1, 0, 1, 1, 0):
        async with resuming(two.processes[move]) as again:
            result = await again.resume(key=client.key, received=client.received)
            assert result["resumed"], result
            heard += await events_of(again, 40)
            again.client.abort()
            client = again
    await publishing
    async with resuming(two.processes[1]) as again:
        assert (await again.resume(key=client.key, received=client.received))["resumed"]
        heard += await events_of(again, 400 - len(heard))
        assert not await again.client.settled()
    assert [each["event"] for each in heard] == list(range(400))


# --- the Python client ------------------------------------------------------------------------------------------


async def test_the_python_client_misses_nothing_without_a_session(two: Scene) -> None:
    heard: list[Any] = []
    told: list[Recovered] = []
    token = issue_token(SECRET, "alice", lifetime=600)
    async with python_connect(two.first.url, token=token, resume=False) as client:
        subscription = client.subscribe(two.pattern, lambda event: heard.append(event.event), since={"last": 5})
        subscription.on("recovered", told.append)
        subscription.on("gap", lambda gap: heard.append(gap))
        await subscription.ready()
        for number in range(3):
            await two.publish(*range(number * 50, number * 50 + 25))
            two.first.gateway.handler_manager.close_all(1012, "service restart")
            await two.publish(*range(number * 50 + 25, number * 50 + 50))
            # Once it is told, too: a connection that is closed before has nothing to tell.
            await eventually(lambda: len(heard) >= number * 50 + 50 and len(told) == number + 2)  # noqa: B023
    assert heard == list(range(150))
    assert [each.recovered for each in told] == [True] * 4
