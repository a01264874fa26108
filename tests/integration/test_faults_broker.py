"""A broker that is away or blocks publishers, and an operator who deletes what the gateway needs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import aio_pika
import anyio
import pytest

from nuropb_gateway_asgi import CallError
from nuropb_gateway_asgi.mesh.rabbitmq import _mesh
from nuropb_gateway_asgi.wire import codec
from tests.integration.scene import Caller, Record, Scene, eventually_within, log_lines, scene
from tests.integration.test_history import contents, since
from tests.integration.test_history import scene as history_scene
from tests.integration.test_resume import resuming
from tests.kit.amqp import peer_at
from tests.kit.gateways import eventually
from tests.kit.waiting import in_time
from tests.servers.rabbitmq import RabbitMQNode

#: Seconds.
NOTICED, RECOVERED, FAST = 2.0, 3.0, 1.0
#: The broker checks its memory and disk at intervals, and the gateway learns of a block by publishing.
BLOCK_NOTICED = 10.0
#: Attempts to connect, of all links together, within a second.
ATTEMPTS = 4.0


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(function, *arguments)


async def ctl(node: RabbitMQNode, *arguments: str) -> str:
    result: str = await in_thread(node.ctl, *arguments)
    return result


#: Seconds; longer than a broker takes to stop. A call that timed out earlier would count as a fault of its service.
HELD: Final = 8.0


async def go_away(set_: Scene, function: Callable[[], None]) -> None:
    """Stop the broker by ``function``; the fault begins with the end of the first connection."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, function)
        await eventually_within(20, lambda: len(set_.proxy.connections()) < 3)
        set_.begin()
        await set_.notices(NOTICED)


async def fail_fast(callers: list[Caller], reason: str = "mesh_unavailable") -> None:
    for caller in callers:
        assert await caller.ended(await caller.start(timeout=20.0), within=FAST) == {reason: 1}


@pytest.mark.parametrize("how", ["stop_app", "kill"])
async def test_the_broker_goes_away_and_comes_back(
    own_node: RabbitMQNode, how: str, caplog: pytest.LogCaptureFixture, record_property: Record
) -> None:
    stop, start = {"stop_app": (own_node.stop_app, own_node.start_app), "kill": (own_node.kill, own_node.start)}[how]
    async with scene(own_node.url(), clients=4) as set_:
        started = time.monotonic()
        calls = [(caller, await caller.start("hold", 25, timeout=HELD)) for caller in set_.callers]
        # The service takes 32 at the same time; the others are in its queue.
        await eventually_within(5, lambda: set_.service.holding >= 32)
        with log_lines(caplog) as lines:
            began = time.monotonic()
            await go_away(set_, stop)
            assert (await set_.readyz())[0] == 503
            await fail_fast(set_.callers)
            for caller, ids in calls:
                assert await caller.ended(ids, within=HELD + 2 + started - time.monotonic()) == {"timeout": 25}
                assert all(caller.seconds(id_) >= HELD for id_ in ids)
            status, reasons = await set_.readyz()
            assert (status, "Connect" in reasons) == (503, True), reasons
            await in_thread(start)
            accepts = time.monotonic()
            # The service's connections have the same log lines.
            assert len(lines()) <= 2 * (accepts - began + 1), [record.getMessage() for record in lines()]
            record_property("log lines of two", f"{len(lines())} in {accepts - began:.1f} s")
        set_.service.released.set()
        await set_.recovers(RECOVERED, since=accepts)
        set_.check(record_property, how, calls)


#: Events that are published at a time.
EVENTS: Final = 50


async def publish_numbers(url: str, topic: str, first: int) -> None:
    """Publish EVENTS numbered events, and wait until the broker has them."""
    async with peer_at(url) as peer:
        for number in range(first, first + EVENTS):
            await peer.event(f"{topic}.new", number)


async def test_an_outage_of_the_broker_costs_no_event_and_no_position(own_node: RabbitMQNode) -> None:
    url = own_node.url()
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(history_scene(url, 2, ping_interval=600))
        listeners = [await stack.enter_async_context(made.client(at)) for at in (0, 1)]
        session = await stack.enter_async_context(resuming(made.first))
        await session.resume()
        await session.client.send("subscribe", id="s", topics=[made.pattern])
        for each in listeners:
            await each.ask("subscribe", topics=[made.pattern])
        await session.next()
        await publish_numbers(url, made.topic, 0)
        for each in listeners:
            assert await contents(each, EVENTS) == list(range(EVENTS))
        position = (await session.next(EVENTS))[-1]["payload"]["position"]
        session.client.abort()

        await anyio.to_thread.run_sync(own_node.stop_app)
        await eventually(lambda: not made.first.gateway.service_mesh_manager.connected)
        async with made.client() as client:
            answer = await client.ask("subscribe", topics=[made.pattern], since={made.pattern: position})
            assert answer["error"]["code"] == "mesh_unavailable"
        await anyio.to_thread.run_sync(own_node.start_app)
        await eventually(lambda: all(each.gateway.service_mesh_manager.connected for each in made.processes))
        async with made.client() as client:
            # A broker that has just started drops events for a stream that has no leader yet.
            wanted = {"topics": [made.pattern], "since": {made.pattern: position}}
            while (await client.ask("subscribe", **wanted))["error"] is not None:
                await asyncio.sleep(0.05)
        await publish_numbers(url, made.topic, EVENTS)

        for each in listeners:
            assert await contents(each, EVENTS) == list(range(EVENTS, 2 * EVENTS))
            assert await each.settled() == []
        async with made.client(1) as client:  # one without a session goes on behind its position, at another process
            found = await since(client, made.pattern, position)
            assert (found["recovered"], found["count"], found["epoch"]) == (True, EVENTS, position["epoch"])
            assert await contents(client, EVENTS) == list(range(EVENTS, 2 * EVENTS))
        again = await stack.enter_async_context(resuming(made.processes[1]))
        assert (await again.resume(key=session.key, received=session.received))["resumed"]
        frames = await again.next(EVENTS)
        assert [frame["payload"]["event"] for frame in frames] == list(range(EVENTS, 2 * EVENTS))
        assert {each["payload"]["position"]["epoch"] for each in frames} == {position["epoch"]}
        assert not await again.client.settled()
        assert made.log(0).epoch == made.log(1).epoch == position["epoch"]


@contextlib.asynccontextmanager
async def alarm(node: RabbitMQNode, kind: str) -> AsyncIterator[Callable[[], Any]]:
    """Raise an alarm; yield a function that clears it."""
    raise_, clear = {
        "memory": (("set_vm_memory_high_watermark", "0.00001"), ("set_vm_memory_high_watermark", "0.6")),
        "disk": (("set_disk_free_limit", "100000GB"), ("set_disk_free_limit", "1MB")),
    }[kind]
    await ctl(node, *raise_)
    try:
        yield lambda: ctl(node, *clear)
    finally:
        await ctl(node, *clear)


@pytest.mark.parametrize("kind", ["memory", "disk"])
async def test_an_alarm_blocks_publishers(own_node: RabbitMQNode, kind: str, record_property: Record) -> None:
    async with scene(own_node.url(), max_in_flight=10_000) as set_, alarm(own_node, kind) as clear:
        set_.begin()
        calls, revoking = [], []
        manager = set_.running.gateway.service_mesh_manager
        async with in_time(BLOCK_NOTICED):
            while not set_.not_ready:
                calls += [(caller, await caller.start(count=10, timeout=1.0)) for caller in set_.callers]
                revoking.append(asyncio.create_task(manager.revoke(user_id="nobody")))
                await asyncio.sleep(0.02)
        await set_.notices(1)
        async with in_time(NOTICED):
            revoked = await asyncio.gather(*revoking, return_exceptions=True)
        assert {getattr(each, "code", "ok") for each in revoked} <= {"ok", "mesh_unavailable"}
        with pytest.raises(CallError, match="mesh_unavailable"):
            await manager.publish_event("news", {})
        await fail_fast(set_.callers)
        for caller, ids in calls:
            assert (await caller.ended(ids, within=4)).keys() <= {"ok", "timeout", "mesh_unavailable"}
        await eventually_within(NOTICED, lambda: "blocks publishers" in set_.not_ready)
        assert (await set_.readyz())[0] == 503
        assert 'mesh_blocked{transport="websocket"} 1.0' in (await set_.http.get("/metrics")).text
        not_run = [id_ for _, ids in calls for id_ in ids if id_ not in set_.service.calls]
        await clear()
        await set_.recovers(RECOVERED)
        ran_late = [id_ for id_ in not_run if id_ in set_.service.calls]
        record_property("ran late", f"{len(ran_late)} of {len(not_run)}")
        set_.check(record_property, f"{kind} alarm", calls)
        assert ran_late == []


# --- the operator -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def few_attempts(set_: Scene) -> Iterator[None]:
    """Check that the gateway limits its attempts to connect."""
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    assert set_.proxy.accepted_since(began) <= ATTEMPTS * (seconds + 1)


@contextlib.asynccontextmanager
async def operator(url: str) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


async def declare(channel: aio_pika.abc.AbstractChannel) -> None:
    for name, kind in (
        (codec.RPC_EXCHANGE, "direct"),
        (codec.EVENTS_EXCHANGE, "topic"),
        (codec.DEAD_LETTER_EXCHANGE, "fanout"),
    ):
        await channel.declare_exchange(name, kind, durable=True)


async def delete_exchanges(channel: aio_pika.abc.AbstractChannel) -> None:
    for name in (codec.RPC_EXCHANGE, codec.EVENTS_EXCHANGE, codec.DEAD_LETTER_EXCHANGE):
        await channel.exchange_delete(name)


async def subscribe(caller: Caller, topic: str) -> None:
    await caller.client.send("subscribe", topics=[topic], id=(id_ := f"subscribe-{topic}"))
    caller.sent[id_] = time.monotonic()
    await caller.ended([id_])


async def hears(set_: Scene, caller: Caller, topic: str) -> None:
    """Publish until an event arrives: events published before the queue is bound again are lost."""
    manager = set_.running.gateway.service_mesh_manager
    while not any(frame["payload"]["topic"] == topic for frame in caller.client.inbox):
        if not set_.not_ready:
            await manager.publish_event(topic, {})
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("which", ["reply_queue", "event_queue"])
async def test_a_queue_is_deleted(amqp_url: str, which: str, record_property: Record) -> None:
    """The broker cancels its consumer with it."""
    async with scene(amqp_url, expose_topics=["#"]) as set_, operator(amqp_url) as channel:
        caller = set_.callers[0]
        await subscribe(caller, "news")
        reconnected = set_.reconnected()
        set_.begin()
        await channel.queue_delete(getattr(set_.mesh, which))
        await set_.notices(NOTICED, reconnected)
        await set_.recovers(RECOVERED)
        async with in_time(RECOVERED):
            await hears(set_, caller, "news")
        set_.check(record_property, f"{which} deleted")


async def test_the_service_queue_is_deleted(amqp_url: str, record_property: Record) -> None:
    """Clients are served meanwhile, and the connections stay."""
    async with scene(amqp_url) as set_, operator(amqp_url) as channel:
        manager = set_.running.gateway.service_mesh_manager
        reconnected = set_.reconnected()
        set_.begin()
        await channel.queue_delete(set_.mesh.service_queue)
        assert [await caller.call() for caller in set_.callers] == ["ok"] * len(set_.callers)
        async with in_time(RECOVERED):
            while True:
                with contextlib.suppress(CallError):
                    await manager.describe(set_.running.gateway.settings.service_name)
                    break
                await asyncio.sleep(0.05)
        assert not reconnected()
        set_.check(record_property, "service_queue deleted")


@pytest.mark.parametrize("again", [False, True])
async def test_the_exchanges_are_deleted(
    own_node: RabbitMQNode, again: bool, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    """The broker reports neither this nor the loss of bindings, so the gateway declares them again at intervals."""
    monkeypatch.setattr(_mesh, "REASSERT_INTERVAL", 1.0)
    async with scene(own_node.url(), expose_topics=["#"]) as set_, operator(own_node.url()) as channel:
        caller = set_.callers[0]
        await subscribe(caller, "news")
        with few_attempts(set_):
            await delete_exchanges(channel)
            if again:
                await declare(channel)
            set_.begin()
            async with in_time(2 * RECOVERED):
                while (code := await caller.call(timeout=1.0)) != "ok":
                    assert code in ("mesh_unavailable", "service_unavailable", "timeout")
                set_.recovered = time.monotonic() - set_.began
                await hears(set_, caller, "news")
        set_.check(record_property, "exchanges deleted" + ", declared again" * again)


async def test_the_operator_closes_all_connections(own_node: RabbitMQNode, record_property: Record) -> None:
    async with scene(own_node.url()) as set_:
        with few_attempts(set_):
            reconnected = set_.reconnected()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ctl, own_node, "close_all_connections", "maintenance")
                await eventually_within(20, lambda: len(set_.proxy.connections()) < 3)
                set_.begin()
                await set_.notices(NOTICED, reconnected)
            await set_.recovers(RECOVERED)
        set_.check(record_property, "connections closed by the operator")


async def test_credentials_are_revoked(own_node: RabbitMQNode, record_property: Record) -> None:
    user = f"gateway-{secrets.token_hex(4)}"
    allow = ("set_permissions", user, ".*", ".*", ".*")
    await ctl(own_node, "add_user", user, "first")
    await ctl(own_node, *allow)
    url = own_node.url().replace("guest:guest", f"{user}:first")
    async with scene(url, service_url=own_node.url()) as set_:
        await ctl(own_node, "change_password", user, "second")
        set_.proxy.cut()
        set_.begin()
        await set_.notices(NOTICED)
        await fail_fast(set_.callers)
        await eventually_within(NOTICED, lambda: "refuses the credentials" in set_.not_ready)
        with few_attempts(set_):
            await ctl(own_node, "change_password", user, "first")
        await set_.recovers(RECOVERED)
        set_.check(record_property, "password changed")

        with few_attempts(set_):
            await ctl(own_node, "clear_permissions", user)
            set_.proxy.cut()
            set_.begin()
            await set_.notices(NOTICED)
            await eventually_within(NOTICED, lambda: "refuses the vhost" in set_.not_ready)
            await ctl(own_node, *allow)
        await set_.recovers(RECOVERED)

        # Without a cut: open connections last until the broker gets a request.
        with few_attempts(set_):
            await ctl(own_node, "clear_permissions", user)
            set_.begin()
            await set_.notices(20)
            await ctl(own_node, *allow)
        await set_.recovers(RECOVERED)
    await ctl(own_node, "delete_user", user)


async def test_the_vhost_is_deleted(own_node: RabbitMQNode, record_property: Record) -> None:
    vhost = f"mesh-{secrets.token_hex(4)}"
    url = await in_thread(own_node.add_vhost, vhost)
    async with scene(url) as set_:
        with few_attempts(set_):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ctl, own_node, "delete_vhost", vhost)
                await eventually_within(20, lambda: len(set_.proxy.connections()) < 3)
                set_.begin()
                await set_.notices(NOTICED)
            await eventually_within(NOTICED, lambda: "refuses the vhost" in set_.not_ready)
            await fail_fast(set_.callers)
            await in_thread(own_node.add_vhost, vhost)
        await set_.recovers(RECOVERED)
        set_.check(record_property, "vhost deleted")
    await ctl(own_node, "delete_vhost", vhost)
