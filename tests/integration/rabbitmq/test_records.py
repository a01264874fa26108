"""Records go by a channel of their own, and their writer learns whether the broker has them."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pamqp.frame
import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp import commands

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import _parts
from tests.integration.scene import delete_queues, delete_shared
from tests.kit.amqp import Gateway, Peer, reconnected, running
from tests.kit.gate_proxy import Proxy
from tests.kit.gateways import DEADLINE, eventually


@pytest.fixture(params=["fast", "plain"])
async def writer(request: pytest.FixtureRequest, proxy: Proxy, amqp_url: str) -> AsyncIterator[Gateway]:
    """A mesh behind a proxy, whose stream of records is there."""
    name = f"gateway-{secrets.token_hex(4)}"
    async with running(proxy.url(), name, lane=request.param) as gateway:
        await eventually(lambda: gateway.receiver.records_read)
        yield gateway
    await delete_queues(amqp_url, gateway.mesh)
    await delete_shared(amqp_url, name)


def published(sent: bytes) -> dict[int, set[str]]:
    """Return the routing keys of all messages that a client has sent, by channels."""
    keys: dict[int, set[str]] = defaultdict(set)
    while sent:
        size, channel, frame = pamqp.frame.unmarshal(sent)
        sent = sent[size:]
        if isinstance(frame, commands.Basic.Publish):
            keys[channel].add(frame.routing_key)
    return keys


def read(gateway: Gateway) -> list[bytes]:
    """Return the records that a process has read, without markers."""
    return [each for each in gateway.receiver.records if not each.startswith(b"{")]


async def test_a_channel_publishes_records_and_nothing_else(
    writer: Gateway, proxy: Proxy, peer: Peer, amqp_url: str
) -> None:
    service = await peer.service()
    async with running(amqp_url, writer.service_name, role="observer") as reader:
        await writer.mesh.record(b"first")
        await writer.told("taken", writer.send(service, kind="command"))
        writer.mesh.publish("some.topic", b"{}", context=b"{}", trace_id="t", target=None)
        await writer.mesh.record(b"second")
        await eventually(lambda: read(reader) == [b"first", b"second"])
    await delete_queues(amqp_url, reader.mesh)
    stream = writer.mesh.peers.stream
    keys = published(bytes(proxy.link("stream").sent))
    assert [each for each in keys.values() if "some.topic" in each]
    assert {stream} in keys.values()


async def test_many_records_are_written_at_once(writer: Gateway) -> None:
    records = [b"%d" % number for number in range(500)]
    await asyncio.gather(*(writer.mesh.record(record) for record in records))
    await eventually(lambda: len(read(writer)) == 500)
    assert read(writer) == records


async def until_deleted(peer: Peer, stream: str) -> None:
    """Raise ChannelNotFoundEntity once there is no stream: the broker tells of its end before that."""
    while True:
        await peer.channel.queue_declare(stream, passive=True)


async def test_a_record_without_a_stream_fails(writer: Gateway, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_parts, "SETTLE_TIME", 60.0)  # the mesh would declare the stream again
    await peer.channel.queue_delete(writer.mesh.peers.stream)
    with anyio.fail_after(DEADLINE), pytest.raises(ChannelNotFoundEntity):
        await until_deleted(peer, writer.mesh.peers.stream)
    with pytest.raises(MeshUnavailable, match="did not confirm"):
        await writer.mesh.record(b"returned")
    writer.mesh.streams.link.abort("by the test")
    await written(writer)


async def held(writer: Gateway, proxy: Proxy, amqp_url: str) -> asyncio.Task[Any]:
    """Write a record that the broker confirms, and hold the confirm back."""
    async with running(amqp_url, writer.service_name, role="observer") as reader:
        proxy.link("stream").to_client.clear()
        task = asyncio.create_task(writer.mesh.record(b"held"))
        await eventually(lambda: read(reader) == [b"held"])
    await delete_queues(amqp_url, reader.mesh)
    assert not task.done()
    return task


async def written(writer: Gateway) -> None:
    """Write a record once the stream is there."""
    with anyio.fail_after(DEADLINE):
        while True:
            try:
                await writer.mesh.record(b"again")
            except MeshUnavailable:
                await asyncio.sleep(0.05)
            else:
                break
    await eventually(lambda: read(writer)[-1:] == [b"again"])


async def test_a_record_fails_whose_connection_is_lost_before_the_confirm(
    writer: Gateway, proxy: Proxy, amqp_url: str
) -> None:
    task = await held(writer, proxy, amqp_url)
    proxy.cut("stream")
    with pytest.raises(MeshUnavailable, match="did not confirm"):
        await task
    await reconnected(writer)
    await written(writer)


async def test_a_record_that_nobody_waits_for_any_more_disturbs_no_other(
    writer: Gateway, proxy: Proxy, amqp_url: str
) -> None:
    task = await held(writer, proxy, amqp_url)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    proxy.link("stream").to_client.set()
    await written(writer)
    assert writer.mesh.statistics.reconnects == 0
