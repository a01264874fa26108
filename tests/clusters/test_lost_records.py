"""Records of a gateway's processes while their stream loses its leader."""

from __future__ import annotations

import secrets

import anyio
import anyio.lowlevel

from tests.kit.amqp import Gateway, peer_at, running
from tests.kit.clustered import SECONDS, eventually, in_thread
from tests.servers.cluster import RabbitMQCluster
from tests.servers.rabbitmq import RabbitMQNode


async def leader_of(cluster: RabbitMQCluster, vhost: str, stream: str) -> RabbitMQNode:
    """Return the node that leads a stream."""
    listed = await in_thread(cluster.nodes[0].ctl, "list_queues", "--vhost", vhost, "name", "leader")
    names = dict(line.split("\t") for line in listed.splitlines() if line.startswith(stream))
    (leader,) = (node for node in cluster.nodes if node.name == names[stream].strip())
    return leader


async def record(gateway: Gateway, body: bytes) -> None:
    """Write a record, which the broker confirms."""
    with anyio.fail_after(SECONDS):
        await gateway.mesh.record(body)


def read(gateway: Gateway) -> list[bytes]:
    """Return the records that a process has read, without the markers of others."""
    return [each for each in gateway.receiver.records if each in (b"before", b"on its way", b"after")]


async def test_no_record_is_lost_after_their_stream_has_changed_its_leader(cluster: RabbitMQCluster) -> None:
    """The commands go by another channel, as the numbers of a channel matter to a stream of RabbitMQ 3."""
    unique = secrets.token_hex(4)
    vhost, name = f"vhost-{unique}", f"gateway-{unique}"
    url = await in_thread(cluster.add_vhost, vhost)
    async with running(url, name) as first:
        await eventually(lambda: first.receiver.records_read)
    leader = await leader_of(cluster, vhost, first.mesh.peers.stream)
    others = [node for node in cluster.nodes if node is not leader]
    url = cluster.url(vhost, others)
    async with (
        peer_at(cluster.url(vhost, others[:1])) as peer,
        running(url, name) as writer,
        running(url, name) as reader,
    ):
        await eventually(lambda: writer.receiver.records_read and reader.receiver.records_read)
        service = await peer.service()
        for _ in range(300):
            writer.send(service, kind="command")
        await eventually(lambda: [what for what, _ in writer.receiver.told] == ["taken"] * 300)
        await record(writer, b"before")
        await eventually(lambda: read(reader) == [b"before"])
        async with anyio.create_task_group() as tasks:
            await in_thread(leader.freeze)
            try:
                tasks.start_soon(record, writer, b"on its way")
                # The broker has read the record once a later message has come back.
                arrived = anyio.Event()
                await anyio.lowlevel.checkpoint()
                writer.mesh.streams.self_check.when_proven(arrived.set)
                await eventually(arrived.is_set)
                assert read(reader) == [b"before"]
            finally:
                await in_thread(leader.kill)  # going on, it could find itself in a partition that does not end
            await eventually(lambda: len(read(reader)) == 2)  # the broker has sent it again
            await record(writer, b"after")
        await eventually(lambda: len(read(reader)) == 3)
        assert read(reader) == [b"before", b"on its way", b"after"]
        assert writer.mesh.statistics.reconnects == 0
