"""Calls, events and commands as they are on the wire, and their confirms."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from typing import Any, Final, Literal

import anyio
import pytest
from pamqp import commands

from tests.kit.amqp import (
    EVENTS,
    RPC,
    Gateway,
    Peer,
    encode,
    present,
    reply_properties,
    response,
    sent_by,
)
from tests.kit.gate_proxy import Proxy
from tests.kit.gateways import DEADLINE, eventually
from tests.servers.processes import call_with_nuropb, nuropb_python


@pytest.mark.parametrize("kind", ["request", "command"])
async def test_a_call_on_the_wire_is_nuropbs(gateway: Gateway, peer: Peer, kind: Literal["request", "command"]) -> None:
    service = await peer.service()
    before = time.monotonic()
    message = gateway.send(service, kind=kind, params=b'{"a":"\xc3\xbc"}', trace_id="trace \u00fc", seconds=12.3)
    after = time.monotonic()

    arrived = await peer.take(service)
    assert isinstance(arrived.delivery, commands.Basic.GetOk)
    assert (arrived.delivery.exchange, arrived.delivery.routing_key) == (RPC, service)
    properties = sent_by(gateway, arrived)
    expiration = properties.pop("expiration")
    assert properties == {
        "content_type": "application/json",
        "correlation_id": message.correlation_id,
        "reply_to": gateway.mesh.reply_queue,
        "headers": {
            "nuropb_protocol": "0.1.1",
            "nuropb_version": "0.1.8",
            "nuropb_type": kind,
            "trace_id": "trace \u00fc",
            "encrypted": "",
        },
    }
    # The time left, in whole milliseconds.
    assert int((message.deadline - after) * 1000) <= int(expiration) <= (message.deadline - before) * 1000
    assert json.loads(arrived.body) == {
        "tag": kind,
        "service": service,
        "method": "method",
        "params": {"a": "\u00fc"},
        "correlation_id": message.correlation_id,
        "context": {"user_id": "u"},
        "trace_id": "trace \u00fc",
    }


async def test_an_event_on_the_wire_is_nuropbs(gateway: Gateway, peer: Peer) -> None:
    topic = f"topic.{secrets.token_hex(4)}"
    queue = await peer.queue(EVENTS, topic)
    gateway.mesh.publish(topic, b'{"n":1}', context=b'{"user_id":"u"}', trace_id="t", target=["u"])
    arrived = await peer.take(queue)
    properties = sent_by(gateway, arrived)
    correlation_id = properties.pop("correlation_id")
    assert len(correlation_id) == 32
    assert properties == {
        "content_type": "application/json",
        "reply_to": "",
        "headers": {
            "nuropb_protocol": "0.1.1",
            "nuropb_version": "0.1.8",
            "nuropb_type": "event",
            "trace_id": "t",
            "encrypted": "",
        },
    }
    assert json.loads(arrived.body) == {
        "tag": "event",
        "topic": topic,
        "event": {"n": 1},
        "context": {"user_id": "u"},
        "trace_id": "t",
        "correlation_id": correlation_id,
        "target": ["u"],
    }


@pytest.mark.parametrize("kind", ["request", "command", "event"])
async def test_nuropbs_own_client_sends_the_same(amqp_url: str, gateway: Gateway, peer: Peer, kind: str) -> None:
    nuropb_python()  # where there is none, the test is skipped before anything runs
    name = await peer.service()
    await peer.channel.queue_bind(name, EVENTS, name)

    def call() -> None:
        if kind == "event":
            call_with_nuropb(amqp_url, event=name, params={"a": 1})
        else:
            call_with_nuropb(amqp_url, name, "method", {"a": 1}, context={"user_id": "u"}, command=kind == "command")

    if kind == "event":
        gateway.mesh.publish(name, b'{"a":1}', context=b"{}", trace_id="t", target=None)
    else:
        gateway.send(name, kind="command" if kind == "command" else "request", params=b'{"a":1}')
    ours = await peer.take(name)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, call)
        theirs = await peer.take(name)
        if kind == "request":
            await peer.reply(theirs, 1)

    properties = [sent_by(gateway, ours), present(theirs.header.properties)]
    bodies = [json.loads(message.body) for message in (ours, theirs)]
    for each in properties:
        # These differ from call to call.
        each["correlation_id"] = len(each["correlation_id"])
        each["reply_to"] = bool(each["reply_to"])
        each["expiration"] = "expiration" in each
        each["headers"]["trace_id"] = type(each["headers"]["trace_id"])
    for each in bodies:
        each["correlation_id"] = len(each["correlation_id"])
        each["trace_id"] = type(each["trace_id"])
    assert properties[0] == properties[1]
    assert bodies[0] == bodies[1]


#: A body frame holds eight bytes less than the 131072 that RabbitMQ proposes for a frame.
FRAME_ROOM: Final = 131_064


@pytest.mark.parametrize("size", [FRAME_ROOM - 1, FRAME_ROOM, FRAME_ROOM + 1, 2 * FRAME_ROOM, 1_000_000])
async def test_bodies_of_every_size_arrive_whole_in_both_directions(gateway: Gateway, peer: Peer, size: int) -> None:
    service = await peer.service()
    gateway.send(service)
    empty = await peer.take(service)
    # The same call, with a text that makes its body as big as wanted.
    text = b"x" * (size - len(empty.body) - len('"x":""'))
    message = gateway.send(service, params=b'{"x":"%b"}' % text)
    arrived = await peer.take(service)
    assert len(arrived.body) == size
    assert json.loads(arrived.body)["params"] == {"x": text.decode()}

    reply = encode({**response(), "correlation_id": message.correlation_id})
    result = "y" * (size - len(reply) + len("null") - len('""'))
    body = encode({**response(result), "correlation_id": message.correlation_id})
    assert len(body) == size
    await peer.publish("", gateway.mesh.reply_queue, body, reply_properties(message.correlation_id))
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == result


async def test_a_call_whose_time_is_up_is_not_sent(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    gateway.send(service, seconds=-1)
    message = gateway.send(service)
    assert (await peer.take(service)).header.properties.correlation_id == message.correlation_id
    assert gateway.mesh.statistics.expired_unsent == 1


@pytest.mark.parametrize(
    ("service", "trace_id"),
    [("x" * 256, "t"), ("\u00fc" * 128, "t"), ("x", "t" * 140_000)],
    ids=["service", "bytes of the service", "trace id"],
)
async def test_what_does_not_fit_is_refused_and_harms_nobody(
    gateway: Gateway, peer: Peer, service: str, trace_id: str
) -> None:
    with pytest.raises(ValueError, match="more than"):
        gateway.send(service, trace_id=trace_id)
    message = gateway.send("x" * 255)
    await gateway.told("returned", message)
    assert gateway.receiver.connections == [True]


async def test_what_is_returned_may_be_big(gateway: Gateway) -> None:
    message = gateway.send("nobody-at-all", params=b'{"x":"%b"}' % (b"x" * 300_000))
    await gateway.told("returned", message)


# --- commands -------------------------------------------------------------------------------------------------------


async def test_a_command_is_taken_when_the_broker_has_confirmed_it_and_not_before(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    service = await peer.service()
    link = proxy.link("publish")
    link.to_client.clear()
    commands_ = [proxied.send(service, kind="command") for _ in range(3)]
    for command in commands_:
        assert (await peer.take(service)).header.properties.correlation_id == command.correlation_id
    # The service has them, and the gateway does not know.
    assert proxied.receiver.told == []
    link.to_client.set()
    for command in commands_:
        await proxied.told("taken", command)


async def test_a_command_to_nobody_is_returned_before_it_is_confirmed(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    returned = gateway.send("nobody-at-all", kind="command")
    taken = gateway.send(service, kind="command")
    await gateway.told("taken", taken)
    about = [what for what, correlation_id in gateway.receiver.told if correlation_id == returned.correlation_id]
    assert about[0] == "returned"


async def test_a_command_that_was_not_confirmed_before_the_cut_is_lost(
    proxied: Gateway, proxy: Proxy, peer: Peer
) -> None:
    service = await peer.service()
    proxy.link("publish").to_client.clear()
    command = proxied.send(service, kind="command")
    await peer.take(service)
    proxy.cut("publish")
    await proxied.told("lost", command)
    # Confirms of the new connection are about its own commands.
    await proxied.connected()
    again = proxied.send(service, kind="command")
    await proxied.told("taken", again)
    await proxied.told("lost", command)


async def test_a_command_that_the_broker_does_not_take_has_failed(gateway: Gateway, peer: Peer) -> None:
    name = f"service-{secrets.token_hex(4)}"
    full: dict[str, Any] = {"x-max-length": 1, "x-overflow": "reject-publish"}
    await peer.channel.queue_declare(name, exclusive=True, arguments=full)
    await peer.channel.queue_bind(name, RPC, name)
    # The broker may notice a little late that the queue is full.
    sent = [gateway.send(name, kind="command") for _ in range(50)]
    await eventually(lambda: len(gateway.receiver.told) == len(sent))
    told = Counter(what for what, _ in gateway.receiver.told)
    assert told.keys() == {"taken", "failed"}
    assert told["taken"] == await peer.waiting(name)


async def test_a_call_that_nobody_took_in_time_is_gone(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    gateway.send(service, seconds=0.1)
    last = gateway.send(service, kind="command")
    await gateway.told("taken", last)
    with anyio.fail_after(DEADLINE):
        while await peer.waiting(service) != 1:
            await asyncio.sleep(0.005)
    assert (await peer.take(service)).header.properties.correlation_id == last.correlation_id
