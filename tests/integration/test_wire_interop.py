"""Encoding and decoding, compared with the code of nuropb itself. Skipped without nuropb (Python 3.12 and later)."""

from __future__ import annotations

import importlib
import importlib.util
import json
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from nuropb_gateway_asgi.wire import codec
from nuropb_gateway_asgi.wire.publish import encode_publish

__test__ = importlib.util.find_spec("nuropb") is not None
if __test__:
    from nuropb.encodings.serializor import decode_payload, encode_payload
    from nuropb.interface import NUROPB_PROTOCOL_VERSION, NUROPB_VERSION
    from nuropb.rmq_transport import decode_rmq_body

    pika: Any = importlib.import_module("pika")
    pika_frame: Any = importlib.import_module("pika.frame")

texts = st.text(st.characters(codec="utf-8"), max_size=10)
names = texts.filter(lambda text: len(text.encode()) <= 255)
hexes = st.uuids().map(lambda uuid: uuid.hex)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(texts, children, max_size=3),
    max_leaves=4,
)
objects = st.dictionaries(texts, json_values, max_size=3)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def received(frames: bytes) -> tuple[Any, Any, bytes]:
    """Decode a publish with nuropb's own AMQP library: method, properties, body."""
    decoded = []
    while frames:
        size, frame = pika_frame.decode_frame(frames)
        decoded.append(frame)
        frames = frames[size:]
    method, header, *bodies = decoded
    return method.method, header.properties, b"".join(body.fragment for body in bodies)


@given(st.sampled_from(["request", "command"]), names, names, objects, hexes, objects, st.none() | texts, st.booleans())
def test_nuropb_reads_our_calls(
    kind: Any,
    service: str,
    method: str,
    params: dict[str, Any],
    correlation_id: str,
    context: dict[str, Any],
    trace_id: str | None,
    mandatory: bool,
) -> None:
    body = codec.encode_call(
        kind,
        service=service,
        method=method,
        params=encoded(params),
        correlation_id=correlation_id,
        context=encoded(context),
        trace_id=trace_id,
    )
    frames = encode_publish(
        channel=1,
        exchange=codec.RPC_EXCHANGE,
        routing_key=service,
        kind=kind,
        correlation_id=correlation_id,
        trace_id=trace_id,
        body=body,
        frame_max=100,
        reply_to="reply",
        expiration="30000",
        mandatory=mandatory,
    )
    publish, properties, received_body = received(frames)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == (codec.RPC_EXCHANGE, service, mandatory)
    assert (properties.reply_to, properties.content_type) == ("reply", "application/json")
    assert properties.headers["encrypted"] == ""
    assert properties.headers["nuropb_version"] == NUROPB_VERSION
    assert decode_rmq_body(publish, properties, received_body) == {
        "nuropb_protocol": NUROPB_PROTOCOL_VERSION,
        "nuropb_type": kind,
        "nuropb_payload": {
            "tag": kind,
            "service": service,
            "method": method,
            "params": params,
            "correlation_id": correlation_id,
            "context": context,
            "trace_id": trace_id,
        },
        "correlation_id": correlation_id,
        "trace_id": trace_id,
        "ttl": "30000",
    }


@given(names, json_values, objects, hexes, st.none() | texts, st.none() | st.lists(texts, max_size=3))
def test_nuropb_reads_our_events(
    topic: str,
    event: Any,
    context: dict[str, Any],
    correlation_id: str,
    trace_id: str | None,
    target: list[str] | None,
) -> None:
    body = codec.encode_event(
        topic,
        encoded(event),
        context=encoded(context),
        trace_id=trace_id,
        correlation_id=correlation_id,
        target=target,
    )
    frames = encode_publish(
        channel=1,
        exchange=codec.EVENTS_EXCHANGE,
        routing_key=topic,
        kind="event",
        correlation_id=correlation_id,
        trace_id=trace_id,
        body=body,
        frame_max=131072,
    )
    publish, properties, received_body = received(frames)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == (codec.EVENTS_EXCHANGE, topic, False)
    assert (properties.reply_to, properties.expiration) == ("", None)
    message = decode_rmq_body(publish, properties, received_body)
    assert message["nuropb_type"] == "event"
    assert message["nuropb_payload"] == {
        "tag": "event",
        "topic": topic,
        "event": event,
        "context": context,
        "trace_id": trace_id,
        "correlation_id": correlation_id,
        "target": target,
    }


@given(
    st.builds(codec.ServiceCall, st.just("request"), names, objects, objects, hexes, names, st.none() | texts),
    json_values,
    st.none() | st.fixed_dictionaries({"error": texts, "description": texts}),
)
def test_nuropb_reads_our_responses(call: codec.ServiceCall, result: Any, error: dict[str, str] | None) -> None:
    body = codec.encode_reply(call, result=encoded(result), error=error, reply_to="reply")
    assert decode_payload(body) == {
        "tag": "response",
        "result": result,
        "error": error,
        "correlation_id": call.correlation_id,
        "trace_id": call.trace_id,
        "context": call.context,
        "warning": None,
        "reply_to": "reply",
    }


@given(
    st.fixed_dictionaries({"tag": st.just("response"), "result": json_values, "context": objects}),
    st.none() | st.fixed_dictionaries({"error": texts, "description": texts}),
)
def test_we_read_responses_of_nuropb(response: dict[str, Any], error: dict[str, str] | None) -> None:
    reply = codec.decode_reply("c", encode_payload(response | {"error": error, "warning": None, "reply_to": "r"}))
    assert (json.loads(bytes(reply.result)), reply.error) == (response["result"], error)


@given(names, json_values, objects, st.none() | texts, st.none() | st.lists(texts, max_size=3))
def test_we_read_events_of_nuropb(
    topic: str, event: Any, context: dict[str, Any], trace_id: str | None, target: list[str] | None
) -> None:
    payload = {"tag": "event", "topic": topic, "event": event, "context": context, "trace_id": trace_id}
    read = codec.decode_event(encode_payload(payload | {"target": target, "correlation_id": "c"}))
    assert (read.topic, read.trace_id, read.target) == (topic, trace_id, target)
    assert (json.loads(bytes(read.event)), json.loads(bytes(read.context))) == (event, context)


@given(names, names, objects, objects, st.none() | texts)
def test_we_read_calls_of_nuropb(
    service: str, method: str, params: dict[str, Any], context: dict[str, Any], trace_id: str | None
) -> None:
    payload = {"tag": "request", "service": service, "method": method, "params": params, "context": context}
    call = codec.decode_service_call(encode_payload(payload | {"trace_id": trace_id, "correlation_id": "c"}))
    assert call == codec.ServiceCall("request", method, params, context, "c", service, trace_id)


@given(names, names, hexes, st.none() | texts, st.booleans())
def test_we_send_the_properties_that_nuropb_sends(
    routing_key: str, reply_to: str, correlation_id: str, trace_id: str | None, encrypted: bool
) -> None:
    of_nuropb = pika.BasicProperties(
        content_type="application/json",
        correlation_id=correlation_id,
        reply_to=reply_to,
        headers={
            "nuropb_protocol": NUROPB_PROTOCOL_VERSION,
            "nuropb_version": NUROPB_VERSION,
            "nuropb_type": "request",
            "trace_id": trace_id,
            "encrypted": "yes" if encrypted else "",
        },
        expiration="3600000",
    )
    frames = encode_publish(
        channel=1,
        exchange=codec.RPC_EXCHANGE,
        routing_key=routing_key,
        kind="request",
        correlation_id=correlation_id,
        trace_id=trace_id,
        body=b"{}",
        frame_max=131072,
        reply_to=reply_to,
        expiration="3600000",
        encrypted=encrypted,
    )
    _, properties, _ = received(frames)
    assert properties == of_nuropb


@pytest.mark.parametrize("trace_id", [None, "", "t", "é"])
@pytest.mark.parametrize("kind", ["request", "command", "event", "response"])
def test_we_read_the_headers_that_nuropb_sends(kind: str, trace_id: str | None) -> None:
    headers = {
        "nuropb_protocol": NUROPB_PROTOCOL_VERSION,
        "nuropb_version": NUROPB_VERSION,
        "nuropb_type": kind,
        "trace_id": trace_id,
        "encrypted": "",
    }
    properties = pika.BasicProperties(content_type="application/json", headers=headers, reply_to="", correlation_id="c")
    frames = pika_frame.Header(1, 2, properties).marshal() + pika_frame.Body(1, b"{}").marshal()
    size, _, header = pamqp.frame.unmarshal(frames)
    _, _, body = pamqp.frame.unmarshal(frames[size:])
    assert isinstance(header, ContentHeader)
    assert isinstance(body, ContentBody)
    assert codec.message_type(header.properties.headers) == kind
    assert not codec.is_encrypted(header.properties.headers)
    assert (header.properties.correlation_id, header.properties.reply_to, body.value) == ("c", "", b"{}")
