"""Nodes that die, stand still, and are restarted in turn, below a gateway with clients."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest
from aiormq.exceptions import DeliveryError

from tests.kit.amqp import peer_at
from tests.kit.clients import connect
from tests.kit.clustered import SECONDS, Stage, eventually, in_thread, mesh_of, stage, warnings_of
from tests.kit.gateways import run_gateway
from tests.servers.cluster import RabbitMQCluster
from tests.servers.rabbitmq import RabbitMQNode

Record = Callable[[str, object], None]

TYPES = ("classic", "quorum")


async def hold(set_: Stage, count: int) -> list[str]:
    """Start calls that the service holds, and wait until it does."""
    ids = await set_.caller.start("hold", count, timeout=SECONDS)
    await eventually(lambda: set_.service.holding >= count)
    return ids


@pytest.mark.parametrize("queue_type", TYPES)
async def test_calls_and_events_go_on_without_the_node_that_had_the_queues(
    cluster: RabbitMQCluster, queue_type: str, record_property: Record
) -> None:
    async with stage(cluster, queue_type) as set_:
        await set_.caller.subscribe("news.#")
        former = set_.mesh.reply_queue
        held = await hold(set_, 10)
        await set_.lose_home()
        began = time.monotonic()
        record_property("answered again", f"{await set_.answered():.2f} s")
        await set_.hears("news.today")
        record_property("events again", f"{time.monotonic() - began:.2f} s")
        ended = await set_.caller.ended(held, within=SECONDS)
        record_property("calls in flight", dict(ended))
        record_property("seconds to their answers", f"{max(set_.caller.seconds(id_) for id_ in held):.2f} s")
        assert ended == {"timeout": 10}
        assert not set_.home.running
        if queue_type == "quorum":  # its copies take over; the stream of records may need a second attempt
            await eventually(lambda: not set_.mesh.warnings)
        else:
            assert set_.mesh.reply_queue != former
        assert (set_.caller.doubled, set_.caller.mixed_up, set_.service.repeated) == (0, 0, 0)
        assert set_.caller.closed is None


async def test_the_service_queue_is_missed_in_one_warning_and_taken_again(
    cluster: RabbitMQCluster, caplog: pytest.LogCaptureFixture, record_property: Record
) -> None:
    async with stage(cluster, "classic") as set_:
        await set_.lose_home()
        began = time.monotonic()
        await set_.answered()
        # A gateway that starts now is ready as well.
        async with run_gateway(
            mesh_url=cluster.url(set_.vhost, set_.others), service_name=set_.gateway_name, expose=["*.*"]
        ) as second:
            await eventually(lambda: not second.gateway.not_ready())
            record_property("a new gateway is ready", f"{time.monotonic() - began:.2f} s")
            for running in (set_.running, second):
                status, warnings = await warnings_of(running)
                assert status == 200
                assert any(f"nuropb-{set_.gateway_name}-sq is missing" in each for each in warnings), warnings
            await in_thread(set_.home.start)
            began = time.monotonic()
            await eventually(lambda: not mesh_of(second).warnings and not set_.mesh.warnings)
            record_property("the warning is gone", f"{time.monotonic() - began:.2f} s")
            assert await warnings_of(second) == (200, [])
        lines = [record.getMessage() for record in caplog.records if "-sq is missing" in record.getMessage()]
        assert len(lines) == 2, lines  # one for each gateway
        await eventually(lambda: set_.ready())
        # Services reach the gateway's own methods again.
        assert (await set_.running.gateway.service_mesh_manager.describe(set_.gateway_name)).methods


@pytest.mark.parametrize("queue_type", TYPES)
async def test_nodes_are_restarted_in_turn(cluster: RabbitMQCluster, queue_type: str, record_property: Record) -> None:
    """As an operator upgrades a cluster: each node is closed in good order and comes back before the next one."""
    async with stage(cluster, queue_type) as set_:
        codes: Counter[str] = Counter()
        longest = 0.0

        async def keep_calling() -> None:
            nonlocal longest
            well = time.monotonic()
            while True:
                code = await set_.caller.call(timeout=5.0)
                codes[code] += 1
                if code == "ok":
                    longest = max(longest, time.monotonic() - well)
                    well = time.monotonic()
                await anyio.sleep(0.05)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep_calling)
            for node in cluster.nodes:
                await in_thread(node.stop_app)
                await in_thread(node.start_app)
                await eventually(set_.ready)
                await set_.answered()
            tasks.cancel_scope.cancel()
        record_property("answers", dict(codes))
        record_property("longest time without an answer", f"{longest:.2f} s")
        await eventually(lambda: not set_.mesh.warnings)
        assert set_.caller.closed is None
        assert set_.service.repeated == 0


@pytest.mark.parametrize("queue_type", TYPES)
async def test_calls_go_on_without_a_node_that_stands_still(
    cluster: RabbitMQCluster, queue_type: str, record_property: Record
) -> None:
    """The other nodes take it for dead after TICK_TIME; until then, they wait for it with every new queue."""
    async with stage(cluster, queue_type) as set_:
        await set_.lose_home(RabbitMQNode.freeze)
        try:
            record_property("answered again", f"{await set_.answered():.2f} s")
        finally:
            await in_thread(set_.home.kill)  # going on, it could find itself in a partition that does not end
        assert set_.caller.closed is None


# --- histories --------------------------------------------------------------------------------------------------


#: Seconds for the confirm of an event. RabbitMQ 3.10 may never confirm one that came while its stream had no leader.
CONFIRM_TIMEOUT: Final = 10.0


async def publish(url: str, first: int, count: int = 20) -> set[int]:
    """Publish numbered events, each once, and return those that the broker has confirmed.

    The broker refuses events whose classic queues are lost with their node, whether or not the stream has the event.
    """
    confirmed = set()
    left = deque(range(first, first + count))
    while left:
        async with peer_at(url) as peer:
            with anyio.move_on_after(CONFIRM_TIMEOUT):
                while left:
                    number = left.popleft()
                    with contextlib.suppress(DeliveryError):
                        await peer.event("news.today", number)
                        confirmed.add(number)
    return confirmed


async def kept(set_: Stage, position: dict[str, Any]) -> list[dict[str, Any]]:
    """Subscribe behind a position by a new client; return the payloads of the events since then, none missing."""
    async with connect(set_.running.url, "bob") as client:
        with anyio.fail_after(SECONDS):
            while True:
                answer = await client.ask("subscribe", topics=["news.#"], since={"news.#": position})
                if answer["error"] is None:
                    break
                assert answer["error"]["code"] == "mesh_unavailable"
                await anyio.sleep(0.1)
        found = answer["result"]["history"]["news.#"]
        assert found["recovered"]
        return [await client.event("news.today") for _ in range(found["count"])]


async def test_a_history_outlives_the_restart_of_each_node(cluster: RabbitMQCluster, record_property: Record) -> None:
    async with stage(cluster, "classic", history=["news.#:1h"], ping_interval=600) as set_:
        await set_.caller.subscribe("news.#")
        inbox = set_.caller.client.inbox
        confirmed = await publish(cluster.url(set_.vhost, cluster.nodes[:1]), 0)
        await eventually(lambda: len(inbox) == 20)
        first, *_ = events = [frame["payload"] for frame in inbox]
        assert confirmed == set(range(20))
        for number, node in enumerate(cluster.nodes, 1):
            await in_thread(node.stop_app)
            began = time.monotonic()
            (other, *_) = (each for each in cluster.nodes if each is not node)
            new = await publish(cluster.url(set_.vhost, [other]), 20 * number)
            count = len(events)
            events = [first, *await kept(set_, first["position"])]
            assert confirmed | new <= {each["event"] for each in events}
            assert len(events) > count
            await eventually(lambda: len(inbox) >= len(events))  # noqa: B023
            record_property(f"without node {number}", f"{time.monotonic() - began:.2f} s, {len(new)} confirmed")
            # The subscriber has what the stream has, each event once and in order.
            assert [frame["payload"] for frame in inbox] == events
            confirmed |= new
            await in_thread(node.start_app)
            await in_thread(cluster.wait)
        numbers, positions = [each["event"] for each in events], [each["position"] for each in events]
        assert numbers == sorted(set(numbers))
        assert len({each["epoch"] for each in positions}) == 1
        record_property("refused or not confirmed", f"{80 - len(confirmed)}, of these lost: {80 - len(events)}")
        assert set_.caller.closed is None
