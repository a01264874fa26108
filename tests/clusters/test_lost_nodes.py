"""Nodes that die, stand still, and are restarted in turn, below a gateway with clients."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import anyio
import pytest
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelPreconditionFailed, DeliveryError

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from nuropb_gateway_asgi.mesh.rabbitmq._event_window import can_confirm_events
from tests.kit.amqp import peer_at, running
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
#: Seconds until events are published again if a stream has none of them: the broker keeps them for a stream without a
#: leader as long as their publisher is there, and this one leaves once they are refused.
AGAIN: Final = 5.0


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
        confirmed, published = await publish(cluster.url(set_.vhost, cluster.nodes[:1]), 0), 20
        await eventually(lambda: len(inbox) == 20)
        first, *_ = events = [frame["payload"] for frame in inbox]
        assert confirmed == set(range(20))
        for number, node in enumerate(cluster.nodes, 1):
            await in_thread(node.stop_app)
            began = time.monotonic()
            (other, *_) = (each for each in cluster.nodes if each is not node)
            new, published = await publish(cluster.url(set_.vhost, [other]), published), published + 20
            count, again = len(events), began + AGAIN
            # The subscriber has what the stream has, each event once and in order. A stream without a leader gets
            # events late, also those that a lost queue has refused at once.
            with anyio.fail_after(SECONDS):
                while len(events) == count or [frame["payload"] for frame in inbox] != events:
                    await anyio.sleep(0.1)
                    events = [first, *await kept(set_, first["position"])]
                    if len(events) == count and time.monotonic() > again:
                        new |= await publish(cluster.url(set_.vhost, [other]), published)
                        published, again = published + 20, time.monotonic() + AGAIN
            assert confirmed | new <= {each["event"] for each in events}
            record_property(f"without node {number}", f"{time.monotonic() - began:.2f} s, {len(new)} confirmed")
            confirmed |= new
            await in_thread(node.start_app)
            await in_thread(cluster.wait)
        numbers, positions = [each["event"] for each in events], [each["position"] for each in events]
        assert numbers == sorted(set(numbers))
        assert len({each["epoch"] for each in positions}) == 1
        record_property(
            "refused or not confirmed", f"{published - len(confirmed)}, of these lost: {published - len(events)}"
        )
        assert set_.caller.closed is None


# --- events of the gateway and of a hosted service --------------------------------------------------------------


async def stream_of(set_: Stage, node: RabbitMQNode | None = None) -> tuple[str, str]:
    """Return the names of the stream of the history, and of the node that leads it; ``node`` is asked.

    Both are empty while the broker does not know.
    """
    node = node or set_.cluster.nodes[0]
    listed = await in_thread(node.ctl, "list_queues", "--vhost", set_.vhost, "name", "leader")
    for line in listed.splitlines():
        if "-history-" in line:
            name, *_, leader = line.split("\t")
            return name.strip(), leader.strip()
    return "", ""


class Publisher:
    """Publishes numbered events, each with the name of its publisher."""

    def __init__(self, mesh: RabbitMQMesh, name: str) -> None:
        self.mesh = mesh
        self.name = name
        #: The events that the mesh took.
        self.published: list[int] = []

    def publish(self, number: int) -> None:
        body = json.dumps([self.name, number]).encode()
        self.mesh.publish("news.today", body, context=b"{}", trace_id="t", target=None)

    async def keep_publishing(self, pause: float) -> None:
        for number in itertools.count():
            with contextlib.suppress(MeshUnavailable):
                self.publish(number)
                self.published.append(number)
            await anyio.sleep(pause)

    async def finish(self) -> None:
        """Publish a last event, numbered -1, which follows all others."""
        await eventually(lambda: self.mesh.streams.can_publish)
        self.publish(-1)

    def lost(self, kept: Sequence[int]) -> list[int]:
        """Return the events that the stream has not; those that it has came in order, and each once."""
        assert kept[-1] == -1
        assert kept[:-1] == sorted(set(kept[:-1]))
        return sorted(set(self.published) - set(kept))


async def read_stream(url: str, stream: str, names: Iterable[str]) -> dict[str, list[int]]:
    """Return the numbers of all events of a stream, by their publishers, up to the last one of each."""
    kept: dict[str, list[int]] = {name: [] for name in names}

    async def take(message: DeliveredMessage) -> None:
        await message.channel.basic_ack(message.delivery_tag or 0)
        event = json.loads(message.body).get("event")
        if event is not None:  # else it is a mark, or a stamp
            kept[event[0]].append(event[1])

    with anyio.fail_after(SECONDS):
        while True:
            try:
                async with peer_at(url) as peer:
                    await peer.channel.basic_qos(prefetch_count=100)
                    await peer.channel.basic_consume(stream, take, arguments={"x-stream-offset": "first"})
                    await eventually(lambda: all(numbers[-1:] == [-1] for numbers in kept.values()))
                    break
            except ChannelPreconditionFailed:  # the node's copy is not there yet
                await anyio.sleep(0.1)
    return kept


def keeps_events(node: RabbitMQNode) -> bool:
    """Whether a stream gets the events from the broker that it missed without a leader."""
    return can_confirm_events({"version": node.ctl("version").strip()})


async def test_no_event_is_lost_while_a_history_changes_its_leader(
    cluster: RabbitMQCluster, record_property: Record
) -> None:
    """Events of other topics go by the same channel, as their number matters to a stream of RabbitMQ 3."""
    async with stage(cluster, "classic", history=["news.#:1h"], ping_interval=600) as set_:
        stream, name = await stream_of(set_)
        (leader,) = (node for node in cluster.nodes if node.name == name)
        others = [node for node in cluster.nodes if node is not leader]
        url = cluster.url(set_.vhost, others)
        keeps = await in_thread(keeps_events, leader)
        try:
            async with running(url) as gateway, running(url, role="service") as service:
                publishers = [Publisher(gateway.mesh, "gateway"), Publisher(service.mesh, "service")]
                for each in publishers:
                    for _ in range(1000):
                        each.mesh.publish("another.topic", b"{}", context=b"{}", trace_id="t", target=None)
                async with anyio.create_task_group() as tasks:
                    for each in publishers:
                        tasks.start_soon(each.keep_publishing, 0.005)
                    await in_thread(leader.stop_app)
                    while (await stream_of(set_, others[0]))[1] in ("", name):
                        await anyio.sleep(0.1)
                    had = [len(each.published) for each in publishers]
                    await eventually(
                        lambda: all(
                            len(each.published) > 100 + count for each, count in zip(publishers, had, strict=True)
                        )
                    )
                    tasks.cancel_scope.cancel()
                for each in publishers:
                    await each.finish()
                kept = await read_stream(
                    cluster.url(set_.vhost, others[:1]), stream, [each.name for each in publishers]
                )
                for each in publishers:
                    lost = each.lost(kept[each.name])
                    record_property(each.name, f"{len(each.published)} events, {len(lost)} lost")
                    assert each.mesh.statistics.reconnects == 0
                    assert not (keeps and lost)
        finally:
            await in_thread(leader.start_app)


async def test_events_that_are_published_while_nodes_are_restarted_in_turn(
    cluster: RabbitMQCluster, record_property: Record
) -> None:
    """A publisher loses its own node, too: of the events on their way there, it cannot know which ones arrive."""
    async with stage(cluster, "classic", history=["news.#:1h"], ping_interval=600) as set_:
        stream, _ = await stream_of(set_)
        keeps = await in_thread(keeps_events, cluster.nodes[0])
        async with running(cluster.url(set_.vhost), role="service") as service:
            publishers = [Publisher(set_.mesh, "gateway"), Publisher(service.mesh, "service")]
            async with anyio.create_task_group() as tasks:
                for each in publishers:
                    tasks.start_soon(each.keep_publishing, 0.01)
                for node in cluster.nodes:
                    await in_thread(node.stop_app)
                    await in_thread(node.start_app)
                    await in_thread(cluster.wait)
                    await eventually(lambda: all(each.mesh.connected for each in publishers))
                tasks.cancel_scope.cancel()
            for each in publishers:
                await each.finish()
            names = [each.name for each in publishers]
            kept = await read_stream(cluster.url(set_.vhost, cluster.nodes[:1]), stream, names)
            for each in publishers:
                lost, statistics = each.lost(kept[each.name]), each.mesh.statistics
                record_property(
                    each.name,
                    f"{len(each.published)} events, {len(lost)} lost, {statistics.unconfirmed_events} unknown, "
                    f"{statistics.refused_events} refused, {statistics.reconnects} reconnects",
                )
                assert not keeps or len(lost) <= statistics.unconfirmed_events
