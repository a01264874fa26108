"""Messages that break the protocol, on every queue of a gateway."""

from __future__ import annotations

import datetime as dt
import secrets
import struct
from typing import Any, Final
from uuid import uuid4

import anyio
import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import _sockets
from tests.kit.amqp import (
    DEAD_LETTERS,
    EVENTS,
    Gateway,
    Peer,
    Properties,
    encode,
    nuropb_properties,
    reply_properties,
    response,
)
from tests.kit.gateways import DEADLINE, eventually

NOT_UTF8: Final = b"\xff\xfe\xff\xfe"


GOOD_REPLY: Final = encode(response(1))
POISONED_REPLIES: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "empty": (b"", {}),
    "half": (b"{", {}),
    "more than one": (GOOD_REPLY + b"}", {}),
    "bytes": (b"\xff\xfe", {}),
    "text that is not UTF-8": (b'{"result":"\xff"}', {}),
    "list": (b"[]", {}),
    "null": (b"null", {}),
    "text": (b'"text"', {}),
    "deep list": (b"[" * 100_000, {}),
    "deep result": (b'{"result":' * 5000 + b"1" + b"}" * 5000, {}),
    "other version": (GOOD_REPLY, {"nuropb_protocol": "0.1.0"}),
    "no version": (GOOD_REPLY, {"nuropb_protocol": None}),
    "version that is a number": (GOOD_REPLY, {"nuropb_protocol": 1}),
    "request": (GOOD_REPLY, {"nuropb_type": "request"}),
    "command": (GOOD_REPLY, {"nuropb_type": "command"}),
    "event": (GOOD_REPLY, {"nuropb_type": "event"}),
    "type in capitals": (GOOD_REPLY, {"nuropb_type": "Response"}),
    "no type": (GOOD_REPLY, {"nuropb_type": None}),
    "type that is a list": (GOOD_REPLY, {"nuropb_type": ["response"]}),
    "type that is a table": (GOOD_REPLY, {"nuropb_type": {"response": 1}}),
}


@pytest.mark.parametrize("what", POISONED_REPLIES)
async def test_poison_on_the_reply_queue_is_dropped_and_counted(gateway: Gateway, peer: Peer, what: str) -> None:
    body, headers = POISONED_REPLIES[what]
    service = await peer.service()
    message = gateway.send(service)
    request = await peer.take(service)
    properties = reply_properties(message.correlation_id, **headers)
    await peer.publish("", gateway.mesh.reply_queue, body, properties)
    await peer.reply(request, "right")
    await gateway.told("reply", message)
    assert gateway.receiver.result(message) == "right"
    assert gateway.mesh.statistics.dropped_replies == 1
    assert gateway.receiver.connections == [True]


async def test_replies_to_nobody_are_dropped_and_counted(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    queue = gateway.mesh.reply_queue
    message = gateway.send(service)
    request = await peer.take(service)
    no_headers = Properties(correlation_id=message.correlation_id)
    empty = Properties(correlation_id=message.correlation_id, headers={})
    for properties in (no_headers, empty, Properties(), reply_properties(None), reply_properties("")):
        await peer.publish("", queue, encode(response("forged")), properties)
    for forged in ("x", uuid4().hex, message.correlation_id.upper(), f"{message.correlation_id} "):
        await peer.publish("", queue, encode(response("forged")), reply_properties(forged))
    body = {**response("forged"), "correlation_id": message.correlation_id}
    await peer.publish("", queue, encode(body), reply_properties(uuid4().hex))
    # nuropb sends two replies to a failed call: the first is the true one.
    await peer.publish(
        "", queue, encode(response(None, {"error": "E", "description": "d"})), reply_properties(message.correlation_id)
    )
    for _ in range(3):
        await peer.reply(request, "double")
    last = gateway.send(service)
    await peer.reply(await peer.take(service), "last")
    await gateway.told("reply", last)
    await gateway.told("reply", message)
    assert gateway.receiver.replies[message.correlation_id].error == {"error": "E", "description": "d"}
    assert gateway.mesh.statistics.dropped_replies == 5
    assert len(gateway.receiver.unexpected) == 5 + 3


async def test_nobody_can_pretend_to_be_the_gateways_own_ping(gateway: Gateway, peer: Peer) -> None:
    service = await peer.service()
    message = gateway.send(service)
    for correlation_id in (gateway.mesh.self_check.message_id, gateway.mesh.self_check.message_id.upper()):
        await peer.publish("", gateway.mesh.reply_queue, b"{", reply_properties(correlation_id))
    await peer.reply(await peer.take(service), 1)
    await gateway.told("reply", message)
    assert gateway.mesh.connected


GOOD_EVENT: Final = encode({"topic": "t", "event": 1})
POISONED_EVENTS: Final[dict[str, tuple[bytes, dict[str, Any]]]] = {
    "empty": (b"", {}),
    "half": (b"{", {}),
    "text that is not UTF-8": (b'{"topic":"\xff","event":1}', {}),
    "list": (b"[]", {}),
    "deep list": (b"[" * 100_000, {}),
    "topic that is a number": (encode({"topic": 1, "event": 1}), {}),
    "no topic": (encode({"event": 1}), {}),
    "no event": (encode({"topic": "t"}), {}),
    "target that is text": (encode({"topic": "t", "event": 1, "target": "u"}), {}),
    "trace id that is a number": (encode({"topic": "t", "event": 1, "trace_id": 1}), {}),
    "no JSON": (b'{"topic":"t","event":NaN}', {}),
    "other version": (GOOD_EVENT, {"nuropb_protocol": "0.1.0"}),
    "request": (GOOD_EVENT, {"nuropb_type": "request"}),
    "response": (GOOD_EVENT, {"nuropb_type": "response"}),
    "nothing of NuroPb": (GOOD_EVENT, {"nuropb_type": None, "nuropb_protocol": None}),
}


@pytest.mark.parametrize("what", POISONED_EVENTS)
async def test_poison_on_the_event_queue_is_dropped_and_counted(gateway: Gateway, peer: Peer, what: str) -> None:
    body, headers = POISONED_EVENTS[what]
    topic = f"t{secrets.token_hex(4)}"
    await gateway.subscribe(topic)
    await peer.publish(EVENTS, topic, body, nuropb_properties("event", uuid4().hex, **headers))
    await peer.publish(EVENTS, topic, body, Properties())
    await peer.event(topic, [1])
    await eventually(lambda: gateway.receiver.events)
    assert gateway.receiver.events == [(topic, [1])]
    assert gateway.mesh.statistics.dropped_events == 2
    assert gateway.receiver.connections == [True]


async def test_an_event_with_a_malformed_target_is_told_to_the_operator_once(
    gateway: Gateway, peer: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    topic = f"t{secrets.token_hex(4)}"
    await gateway.subscribe(topic)
    body, headers = POISONED_EVENTS["target that is text"]
    for _ in range(3):
        await peer.publish(EVENTS, topic, body, nuropb_properties("event", uuid4().hex, **headers))
    await eventually(lambda: gateway.mesh.statistics.dropped_events == 3)
    lines = [record for record in caplog.records if "was dropped" in record.message and record.levelname == "WARNING"]
    assert [record.message.partition("read: ")[2] for record in lines] == [
        "Expected `array | null`, got `str` - at `$.target`"
    ]


async def test_poison_on_the_service_queue_is_dead_lettered_and_the_next_call_answered(
    gateway: Gateway, peer: Peer
) -> None:
    dead = await peer.queue(DEAD_LETTERS)
    answers = await peer.queue()
    queue = gateway.mesh.service_queue
    body = {"tag": "request", "service": "s", "method": "nuropb_describe", "params": {}, "context": {}}
    good = nuropb_properties("request", "c", reply_to=answers)
    poison: list[tuple[bytes, Properties]] = [
        (b"{", good),
        (b"\xff", good),
        (b"[]", good),
        (b"[" * 100_000, good),
        (encode({**body, "params": []}), good),
        (encode({**body, "method": 1}), good),
        (encode({"tag": "request", "method": "nuropb_describe", "params": {}}), good),
        (encode(body), Properties()),
        (encode(body), nuropb_properties("response", "c", reply_to=answers)),
        (encode(body), nuropb_properties("request", "c", reply_to=answers, nuropb_protocol="0.2")),
        (encode(body), nuropb_properties("request", "c", reply_to=answers, encrypted="yes")),
        (b"{", nuropb_properties("event", "c")),
        (encode({"topic": "t"}), nuropb_properties("event", "c")),
    ]
    for content, properties in poison:
        await peer.publish("", queue, content, properties)
        await peer.take(dead)
    await peer.publish("", queue, encode(body), nuropb_properties("request", "last", reply_to=answers))
    assert (await peer.take(answers)).header.properties.correlation_id == "last"
    assert gateway.receiver.connections == [True]


@pytest.mark.parametrize(
    "error", ["text", [1], True, {"error": {"a": 1}}, {}], ids=["text", "list", "true", "nested", "empty"]
)
async def test_a_reply_whose_error_is_none_ends_the_call_all_the_same(gateway: Gateway, peer: Peer, error: Any) -> None:
    service = await peer.service()
    message = gateway.send(service)
    await peer.take(service)
    body = encode({"result": None, "error": error})
    await peer.publish("", gateway.mesh.reply_queue, body, reply_properties(message.correlation_id))
    await gateway.told("reply" if isinstance(error, dict) else "unreadable", message)


def deep_table() -> tuple[bytes, bytes]:
    """Make a header of text, and one of the same length of deeply nested lists."""
    deep = b""
    for _ in range(3000):
        deep = b"A" + struct.pack(">I", len(deep)) + deep
    size = len(deep) - 5
    return b"S" + struct.pack(">I", size) + b"@" * size, deep


TEXT_HEADER, DEEP_HEADER = deep_table()

#: Properties, a routing key, and the bytes to replace, old and new, so that no library of Python can decode them.
UNREADABLE: Final = {
    "correlation id": (reply_properties("@@@@"), "key", b"@@@@", NOT_UTF8),
    "reply to": (nuropb_properties("request", "c", reply_to="@@@@"), "key", b"@@@@", NOT_UTF8),
    "name of a header": (reply_properties("c", **{"@@@@": 1}), "key", b"@@@@", NOT_UTF8),
    "timestamp": (
        Properties(timestamp=dt.datetime.fromtimestamp(0x40404040, tz=dt.UTC)),
        "key",
        b"\x00\x00\x00\x00@@@@",
        b"\x00\xff\xff\xff\xff\xff\xff\xff",
    ),
    "deep header": (reply_properties("c", text="@" * (len(TEXT_HEADER) - 5)), "key", TEXT_HEADER, DEEP_HEADER),
    "routing key": (nuropb_properties("event", "c"), "@@@@", b"@@@@", NOT_UTF8),
}


@pytest.mark.parametrize("lane", ["fast", "plain"])
@pytest.mark.parametrize("what", UNREADABLE)
async def test_a_message_that_the_library_cannot_read_costs_one_connection_at_most(
    gateway: Gateway, peer: Peer, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(_sockets.Socket, "careful", False)
    mesh = gateway.mesh
    await gateway.subscribe("key")
    await gateway.subscribe("#")
    dead = await peer.queue(DEAD_LETTERS)
    properties, key, *change = UNREADABLE[what]
    for _ in range(2):
        await peer.publish_raw(EVENTS, key, encode({"topic": "key", "event": 1}), properties, *change)
        if what != "routing key":
            await peer.publish_raw("", mesh.reply_queue, b"{}", properties, *change)
            await peer.publish_raw("", mesh.service_queue, b"{}", properties, *change)
    # The mesh still answers.
    service = await peer.service()
    await eventually(lambda: gateway.mesh.connected)
    message = gateway.send(service)
    await peer.reply(await peer.take(service), "right")
    await gateway.told("reply", message)
    await peer.event("key", "last")
    await eventually(lambda: ("key", "last") in gateway.receiver.events)
    answers = await peer.queue()
    body = {"tag": "request", "service": "s", "method": "nuropb_describe", "params": {}, "context": {}}
    properties = nuropb_properties("request", "c", reply_to=answers)
    await peer.publish("", mesh.service_queue, encode(body), properties)
    await peer.take(answers)
    # On the fast lane aiormq never sees the message.
    await eventually(lambda: mesh.statistics.reconnects == (1 if mesh.lane == "plain" else 0))
    if what == "routing key":
        # A NuroPb event has its topic in the body.
        assert gateway.receiver.events == [("key", 1), ("key", 1), ("key", "last")]
    else:
        assert gateway.receiver.events == [("key", "last")]
        assert mesh.statistics.dropped_events == 2
        # With undecodable headers alone it may look like a response, but to no call in flight.
        assert mesh.statistics.dropped_replies + len(gateway.receiver.unexpected) == 2
        with anyio.fail_after(DEADLINE):
            while (await peer.waiting(dead) or 0) < 2:  # the broker moves them there when it has read the rejections
                await anyio.sleep(0.01)
        assert await peer.waiting(dead) == 2
        await peer.channel.queue_purge(dead)
