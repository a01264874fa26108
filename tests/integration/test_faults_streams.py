"""The broker's coordinator of streams is away: streams cannot be used, and calls do not notice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any, Final, Literal

import anyio
import pytest

from nuropb_gateway_asgi import CallError
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _parts
from tests.integration.scene import Record, Scene, delete_queues, scene
from tests.kit.amqp import peer_at, running
from tests.kit.clients import connect
from tests.kit.gateways import DEADLINE, eventually
from tests.servers.rabbitmq import RabbitMQNode

#: As for a while after the end of a node: nothing has the coordinator's name.
TAKE_AWAY: Final = (
    "persistent_term:put(taken, whereis(rabbit_stream_coordinator)), unregister(rabbit_stream_coordinator)."
)
BRING_BACK: Final = "register(rabbit_stream_coordinator, persistent_term:get(taken))."


@contextlib.asynccontextmanager
async def without_coordinator(node: RabbitMQNode) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(node.ctl, "eval", TAKE_AWAY)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(node.ctl, "eval", BRING_BACK)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "RETRY_INTERVAL", 2.0)  # longer than between two attempts to connect


def publish(set_: Scene, topic: str, *numbers: int) -> None:
    for number in numbers:
        set_.mesh.publish(topic, b"%d" % number, context=b"{}", trace_id="t", target=None)


async def cut_off(mesh: RabbitMQMesh, use: Any) -> None:
    """Use a stream until the broker has closed the connection of streams for it, twice.

    A connection that has used it before goes on, so it is ended first.
    """
    mesh.streams.link.abort("by the test")
    before = mesh.streams.link.connects
    with anyio.fail_after(DEADLINE):
        while mesh.streams.link.connects < before + 2:
            with contextlib.suppress(MeshUnavailable):
                use()
            await anyio.sleep(0.05)


@pytest.mark.parametrize("lane", ["fast", "plain"])
async def test_calls_go_on_while_no_stream_can_be_used(
    own_node: RabbitMQNode, lane: Literal["fast", "plain"], record_property: Record, caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"expose_topics": ["#"], "history": ["kept.#:1h"], "mesh_lane": lane}
    settings["request_timeout"] = DEADLINE  # for the calls that are held meanwhile
    async with scene(own_node.url(), **settings) as set_:
        manager, mesh = set_.running.gateway.service_mesh_manager, set_.mesh
        async with connect(set_.running.url, "carol") as client:
            await client.ask("subscribe", topics=["kept.#"], since={"kept.#": {"last": 1}})
            in_flight = await set_.hold(10)
            async with without_coordinator(own_node):
                await cut_off(mesh, lambda: publish(set_, "kept.new", 1))
                await cut_off(
                    set_.service_mesh,
                    lambda: set_.service_mesh.publish("kept.new", b"2", context=b"{}", trace_id="t", target=None),
                )
                rounds = [(caller, await caller.start(count=20)) for caller in set_.callers]
                began = time.monotonic()
                while time.monotonic() - began < 3.0:
                    assert [await caller.call() for caller in set_.callers] == ["ok", "ok"]
                    answer = await client.ask("subscribe", topics=["kept.other"], since={"kept.other": {"last": 1}})
                    assert answer["error"] is None or answer["error"]["code"] == "mesh_unavailable"
                    with contextlib.suppress(CallError):
                        await manager.revoke(user_id="nobody")
                set_.service.released.set()
                for caller, ids in (*in_flight, *rounds):
                    assert set(await caller.ended(ids)) == {"ok"}
                await eventually(lambda: any("events of kept.# have no history" in each for each in manager.warnings))
                assert manager.connected
                assert not set_.not_ready
            for each in (mesh, set_.service_mesh):
                assert (each.publishing.connects, each.consuming.connects) == (1, 1)
            await eventually(lambda: not manager.warnings and mesh.streams.can_publish)
            await manager.revoke(user_id="nobody")
            publish(set_, "kept.new", 3)
            while (await client.event("kept.new"))["event"] != 3:
                pass
            answer = await client.ask("subscribe", topics=["kept.last"], since={"kept.last": {"last": 1}})
            assert answer["result"]["history"]["kept.last"]["recovered"]
        set_.check(record_property, "no coordinator of streams", in_flight)
    assert "Task exception was never retrieved" not in caplog.text
    async with peer_at(own_node.url()) as peer:
        await peer.channel.queue_delete(mesh.histories["kept.#"].stream)


async def test_a_process_that_starts_meanwhile_calls_at_once_and_reads_the_records_later(
    own_node: RabbitMQNode,
) -> None:
    url = own_node.url()
    async with running(url) as first, peer_at(url) as peer, contextlib.AsyncExitStack() as stack:
        await eventually(lambda: first.receiver.records_read)
        await first.mesh.record(b"earlier")
        service = await peer.service()
        async with without_coordinator(own_node):
            second = await stack.enter_async_context(running(url, first.service_name))
            for number in range(20):
                message = second.send(service)
                await peer.reply(await peer.take(service), number)
                await second.told("reply", message)
                await anyio.sleep(0.1)
            assert second.receiver.records_read == 0
            warnings = " ".join(second.mesh.warnings)
            assert "is missing (the broker closed the connection for an error of its own (INTERNAL_ERROR))" in warnings
        await eventually(lambda: second.receiver.records_read)
        assert b"earlier" in second.receiver.records
        assert (second.mesh.publishing.connects, second.mesh.consuming.connects) == (1, 1)
        assert second.receiver.connections == [True]
        assert second.mesh.warnings == []
    await delete_queues(url, first.mesh, second.mesh)
