from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pamqp.frame
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Raw
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from nuropb_gateway_asgi.wire import codec
from nuropb_gateway_asgi.wire.codec import InvalidMessage, NotJson, ServiceCall
from nuropb_gateway_asgi.wire.interface import EventMessage, Reply
from nuropb_gateway_asgi.wire.publish import encode_publish, expiration

texts = st.text(st.characters(codec="utf-8"), max_size=10)
names = texts.filter(lambda text: len(text.encode()) <= 255)
trace_ids = st.none() | texts | st.just("é" * 128)
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
kinds = st.sampled_from(["request", "response", "event", "command"])


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def same(body: bytes, expected: dict[str, Any]) -> bool:
    """Compare as JSON, regardless of the order of members; for Python, True equals 1."""
    return json.dumps(json.loads(body), sort_keys=True) == json.dumps(expected, sort_keys=True)


# --- bodies that go out -----------------------------------------------------------------------------------------


@given(st.sampled_from(["request", "command"]), texts, texts, objects, hexes, objects, trace_ids)
def test_a_call_has_the_seven_members_of_nuropb(
    kind: Any,
    service: str,
    method: str,
    params: dict[str, Any],
    correlation_id: str,
    context: dict[str, Any],
    trace_id: str | None,
) -> None:
    expected = {
        "tag": kind,
        "service": service,
        "method": method,
        "params": params,
        "correlation_id": correlation_id,
        "context": context,
        "trace_id": trace_id,
    }
    for given_params in (encoded(params), Raw(encoded(params))):
        body = codec.encode_call(
            kind,
            service=service,
            method=method,
            params=given_params,
            correlation_id=correlation_id,
            context=encoded(context),
            trace_id=trace_id,
        )
        assert same(body, expected)


@given(texts, json_values, objects, trace_ids, hexes, st.none() | st.lists(texts, max_size=3))
def test_an_event_has_the_seven_members_of_nuropb(
    topic: str,
    event: Any,
    context: dict[str, Any],
    trace_id: str | None,
    correlation_id: str,
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
    expected = {
        "tag": "event",
        "topic": topic,
        "event": event,
        "context": context,
        "trace_id": trace_id,
        "correlation_id": correlation_id,
        "target": target,
    }
    assert same(body, expected)
    received = codec.decode_event(body)
    assert (received.topic, received.trace_id, received.target) == (topic, trace_id, target)
    assert same(b'{"event":%b,"context":%b}' % (received.event, received.context), {"event": event, "context": context})


@given(
    st.builds(ServiceCall, kinds, texts, objects, objects, texts, texts, trace_ids),
    json_values,
    st.none() | st.fixed_dictionaries({"error": texts, "description": texts}),
    texts,
)
def test_a_response_has_the_eight_members_of_nuropb_and_the_context_of_the_request(
    call: ServiceCall, result: Any, error: dict[str, str] | None, reply_to: str
) -> None:
    body = codec.encode_reply(call, result=encoded(result), error=error, reply_to=reply_to)
    expected = {
        "tag": "response",
        "result": result,
        "error": error,
        "correlation_id": call.correlation_id,
        "trace_id": call.trace_id,
        "context": call.context,
        "warning": None,
        "reply_to": reply_to,
    }
    assert same(body, expected)
    reply = codec.decode_reply("c", body)
    assert reply.correlation_id == "c"
    assert reply.error == error
    assert same(b'{"result":%b}' % reply.result, {"result": result})


@given(st.sampled_from(["request", "command"]), texts, texts, objects, hexes, objects, trace_ids)
def test_a_call_is_read_as_it_was_written(
    kind: Any,
    service: str,
    method: str,
    params: dict[str, Any],
    correlation_id: str,
    context: dict[str, Any],
    trace_id: str | None,
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
    expected = ServiceCall(kind, method, params, context, correlation_id, service, trace_id)
    assert codec.decode_service_call(body) == expected


# --- bodies that come in ----------------------------------------------------------------------------------------

DEEP = b"[" * 100_000

REPLIES = [
    # body, result, error
    (b"{}", b"null", None),
    (b'{"result":null,"error":null}', b"null", None),
    (b'{"tag":"response","result":{"total": 3},"warning":null,"x":1}', b'{"total": 3}', None),
    (b'{"result":"\xc3\xa9"}', b'"\xc3\xa9"', None),
    (b'{"result":"\\u00e9","correlation_id":"another"}', b'"\\u00e9"', None),
    (b'{"result":1,"error":{"error":"E","description":"d"}}', b"1", {"error": "E", "description": "d"}),
    (b'{"error":{}}', b"null", {}),
    (b'{"result":18446744073709551616}', b"18446744073709551616", None),
]


@pytest.mark.parametrize(("body", "result", "error"), REPLIES)
def test_of_a_response_the_result_stays_json(body: bytes, result: bytes, error: dict[str, Any] | None) -> None:
    reply = codec.decode_reply("c", body)
    assert isinstance(reply, Reply)
    assert (reply.correlation_id, bytes(reply.result), reply.error) == ("c", result, error)


NO_JSON = [
    b'{"result":NaN}',
    b'{"result":[1,-Infinity]}',
    b'{"result":1,"x":Infinity}',
    b'{"result":"\\ud800"}',
    b'{"error":{"error":"E","description":"\\udfff"}}',
]


@pytest.mark.parametrize("body", NO_JSON)
def test_a_response_that_only_python_reads_is_told_apart(body: bytes) -> None:
    assert isinstance(json.loads(body), dict)
    with pytest.raises(NotJson, match=r"^the response holds a value that JSON does not have$"):
        codec.decode_reply("c", body)


UNREADABLE = [
    b"",
    b"canary",
    b"null",
    b"[]",
    b"[NaN]",
    b'"canary"',
    b'{"result":canary}',
    b'{"result":1}canary',
    b'{"result":"canary\xff"}',
    b'{"x":"canary\xff"}',
    b'{"result":' + DEEP,
    b'{"error":{"canary":' + DEEP,
    b'{"error":{"canary":%b}}' % (b"1" * 5000),
    DEEP,
]


@pytest.mark.parametrize("body", UNREADABLE)
@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda body: codec.decode_reply("c", body), "the response cannot be read"),
        (codec.decode_event, "the event cannot be read"),
        (codec.decode_service_call, "the request cannot be read"),
    ],
)
def test_what_nobody_can_read_is_named_and_not_quoted(
    decode: Callable[[bytes], Any], message: str, body: bytes
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode(body)
    assert type(caught.value) is InvalidMessage
    assert str(caught.value).startswith((f"{message} (", f"{message}: Expected", f"{message}: Object"))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("decode", "start", "end"),
    [
        (lambda body: codec.decode_reply("c", body), b'{"result":', b"}"),
        (codec.decode_event, b'{"topic":"t","event":', b"}"),
        (codec.decode_service_call, b'{"tag":"t","method":"m","context":{},"params":{"p":', b"}}"),
    ],
    ids=["response", "event", "request"],
)
def test_on_every_python_a_message_has_as_many_levels(decode: Callable[[bytes], Any], start: bytes, end: bytes) -> None:
    inside = codec.MAX_DEPTH - len(end)
    assert decode(start + b'[ "[", ' * inside + b"1" + b"]" * inside + end)
    with pytest.raises(InvalidMessage, match=r"nested more than 900 levels deep$|\(RecursionError\)$"):
        decode(start + b'[ "]", ' * (inside + 1) + b"1" + b"]" * (inside + 1) + end)


@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")) | json_values.map(encoded))
@example(b'{"error":1}')
@example(b'{"tag":1,"topic":"t","event":1,"target":1}')
def test_no_message_of_the_mesh_gets_further_than_the_decoders(body: bytes) -> None:
    for decode in (lambda data: codec.decode_reply("c", data), codec.decode_event, codec.decode_service_call):
        try:
            decode(body)
        except InvalidMessage as error:
            message = str(error)
        else:
            message = "fine"
        assert message.isascii()


EVENTS = [
    # body, event
    (b'{"topic":"a.b","event":{"x": 1}}', EventMessage("a.b", b'{"x": 1}')),
    (b'{"topic":"","event":null,"target":null,"trace_id":null}', EventMessage("", b"null")),
    (
        b'{"tag":"event","topic":"a","event":[],"target":["u",5,null],"trace_id":"t","context":{"a":1},"x":1}',
        EventMessage("a", b"[]", "t", ["u", "5", "None"], b'{"a":1}'),
    ),
    (b'{"topic":"a","event":1,"target":[]}', EventMessage("a", b"1", None, [])),
]


@pytest.mark.parametrize(("body", "event"), EVENTS)
def test_of_an_event_what_it_carries_stays_json(body: bytes, event: EventMessage) -> None:
    received = codec.decode_event(body)
    received.event, received.context = bytes(received.event), bytes(received.context)
    assert received == event


@pytest.mark.parametrize(
    "body",
    [
        b'{"event":1}',
        b'{"topic":"a"}',
        b'{"topic":null,"event":1}',
        b'{"topic":5,"event":1}',
        b'{"topic":"a","event":NaN}',
        b'{"topic":"a","event":"\xff"}',
        b'{"topic":"a","event":1,"context":{"\xff":1}}',
        b'{"topic":"a","event":1,"target":"u"}',
        b'{"topic":"a","event":1,"trace_id":5}',
    ],
)
def test_an_event_without_the_members_of_an_event_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match=r"^the event cannot be read"):
        codec.decode_event(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"method":"m","params":{},"context":{}}',
        b'{"tag":"request","params":{},"context":{}}',
        b'{"tag":"request","method":"m","context":{}}',
        b'{"tag":"request","method":"m","params":{}}',
        b'{"tag":"request","method":"m","params":[],"context":{}}',
        b'{"tag":"request","method":"m","params":{},"context":null}',
        b'{"tag":"request","method":"m","params":{"a":NaN},"context":{}}',
        b'{"tag":"request","method":"m","params":{"a":1e999},"context":{}}',
        b'{"tag":"request","method":null,"params":{},"context":{}}',
    ],
)
def test_a_request_without_the_members_of_a_request_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match=r"^the request cannot be read"):
        codec.decode_service_call(body)


# --- headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["request", "response", "event", "command"])
def test_the_headers_name_the_type_of_a_message(kind: str) -> None:
    assert codec.message_type({"nuropb_protocol": "0.1.1", "nuropb_type": kind, "any": 1}) == kind


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (None, "no headers"),
        ({}, "no headers"),
        ({"nuropb_type": "event"}, "not of protocol 0.1.1"),
        ({"nuropb_protocol": "0.1.2", "nuropb_type": "event"}, "not of protocol 0.1.1"),
        ({"nuropb_protocol": b"0.1.1", "nuropb_type": "event"}, "not of protocol 0.1.1"),
        ({"nuropb_protocol": ["0.1.1"], "nuropb_type": "event"}, "not of protocol 0.1.1"),
        ({"nuropb_protocol": "0.1.1"}, "no known message type"),
        ({"nuropb_protocol": "0.1.1", "nuropb_type": "canary"}, "no known message type"),
        ({"nuropb_protocol": "0.1.1", "nuropb_type": None}, "no known message type"),
        ({"nuropb_protocol": "0.1.1", "nuropb_type": {"a": 1}}, "no known message type"),
    ],
)
def test_headers_of_somebody_else_are_invalid(headers: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        codec.message_type(headers)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (None, False),
        ({}, False),
        ({"encrypted": ""}, False),
        ({"encrypted": True}, False),
        ({"encrypted": "no"}, False),
        ({"encrypted": "yes"}, True),
    ],
)
def test_the_headers_tell_whether_a_body_is_encrypted(headers: dict[str, Any] | None, expected: bool) -> None:
    assert codec.is_encrypted(headers) is expected


# --- expiration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (30, "30000"),
        (1.5, "1500"),
        (0.0019, "1"),
        (0.0001, "1"),
        (0, "1"),
        (-1e9, "1"),
        (86399.999, "86399999"),
        (86400, "86400000"),
        (86401, "86400000"),
        (1e300, "86400000"),
    ],
)
def test_an_expiration_is_whole_milliseconds_of_a_day(seconds: float, expected: str) -> None:
    assert expiration(seconds) == expected


# --- frames -----------------------------------------------------------------------------------------------------


def by_pamqp(
    *,
    channel: int,
    exchange: str,
    routing_key: str,
    kind: str,
    correlation_id: str,
    trace_id: str | None,
    body: bytes,
    frame_max: int,
    reply_to: str = "",
    expiration: str | None = None,
    mandatory: bool = False,
    encrypted: bool = False,
) -> bytes:
    """Encode the same publish by pamqp."""
    publish = commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory)
    properties = commands.Basic.Properties(
        content_type="application/json",
        headers={
            "nuropb_protocol": "0.1.1",
            "nuropb_version": "0.1.8",
            "nuropb_type": kind,
            "trace_id": trace_id,
            "encrypted": "yes" if encrypted else "",
        },
        correlation_id=correlation_id,
        reply_to=reply_to,
        expiration=expiration,
    )
    header = ContentHeader(body_size=len(body), properties=properties)
    room = frame_max - 8
    bodies = [ContentBody(body[start : start + room]) for start in range(0, len(body), room)]
    frames: list[commands.Basic.Publish | ContentHeader | ContentBody] = [publish, header, *bodies]
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


def with_reply_to(frames: bytes) -> bytes:
    """Insert an empty ``reply_to``, which NuroPb sends and pamqp leaves out."""
    size = struct.unpack_from(">I", frames, 3)[0]
    start = 7 + size + 1  # of the header frame: type, channel, size, class, weight, body size, flags
    length = struct.unpack_from(">I", frames, start + 3)[0]
    flags = struct.unpack_from(">H", frames, start + 19)[0]
    header = bytearray(frames[start + 7 : start + 7 + length])
    header[12:14] = struct.pack(">H", flags | 0x0200)
    header.append(0)
    return b"".join(
        (frames[: start + 3], struct.pack(">I", len(header)), header, frames[start + 7 + length :]),
    )


def publish(**changes: Any) -> dict[str, Any]:
    return {
        "channel": 1,
        "exchange": codec.RPC_EXCHANGE,
        "routing_key": "orders",
        "kind": "request",
        "correlation_id": "0123456789abcdef0123456789abcdef",
        "trace_id": "t",
        "body": b"{}",
        "frame_max": 4096,
        "reply_to": "nuropb-nuropb-gateway-0123-rq",
        "expiration": "30000",
        "mandatory": True,
    } | changes


FRAME_MAX = 4096
ROOM = FRAME_MAX - 8


@pytest.mark.parametrize(
    "size",
    [0, 1, 2, *(times * ROOM + more for times in (1, 2, 3, 40) for more in (-9, -8, -7, -1, 0, 1, 7, 8, 9)), FRAME_MAX],
)
def test_a_body_is_cut_where_the_frames_end(size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    message = publish(body=body, frame_max=FRAME_MAX)
    frames = encode_publish(**message)
    assert frames == by_pamqp(**message)
    parts: list[bytes] = []
    while frames:
        consumed, _, frame = pamqp.frame.unmarshal(frames)
        assert consumed <= FRAME_MAX
        if isinstance(frame, ContentBody):
            parts.append(frame.value)
        frames = frames[consumed:]
    assert b"".join(parts) == body
    assert len(parts) == -(-size // ROOM)


@given(
    st.fixed_dictionaries(
        {
            "channel": st.integers(1, 65535),
            "exchange": st.sampled_from(["", codec.RPC_EXCHANGE, codec.EVENTS_EXCHANGE, codec.DEAD_LETTER_EXCHANGE]),
            "routing_key": names,
            "kind": kinds,
            "correlation_id": hexes | names.filter(bool),
            "trace_id": trace_ids,
            "body": st.binary(max_size=300),
            "frame_max": st.integers(9, 200) | st.just(131072),
            "reply_to": names.filter(bool),
            "expiration": st.none() | st.integers(1, 86_400_000).map(str),
            "mandatory": st.booleans(),
            "encrypted": st.booleans(),
        }
    )
)
def test_a_publish_is_byte_for_byte_what_pamqp_makes_of_it(message: dict[str, Any]) -> None:
    assert encode_publish(**message) == by_pamqp(**message)


@given(hexes, trace_ids, names, st.binary(max_size=100), st.sampled_from(["event", "response"]), st.booleans())
def test_an_event_and_a_response_have_a_reply_to_that_is_empty(
    correlation_id: str, trace_id: str | None, routing_key: str, body: bytes, kind: str, encrypted: bool
) -> None:
    message = publish(
        exchange=codec.EVENTS_EXCHANGE if kind == "event" else "",
        routing_key=routing_key,
        kind=kind,
        correlation_id=correlation_id,
        trace_id=trace_id,
        body=body,
        reply_to="",
        expiration=None,
        mandatory=False,
        encrypted=encrypted,
    )
    frames = encode_publish(**message)
    assert frames == with_reply_to(by_pamqp(**message))
    defaults = {name: message[name] for name in message if name not in ("reply_to", "expiration", "mandatory")}
    assert encode_publish(**defaults) == frames


def test_the_properties_are_the_five_of_nuropb_and_no_others() -> None:
    frames = encode_publish(**publish(trace_id=None))
    consumed, channel, method = pamqp.frame.unmarshal(frames)
    assert isinstance(method, commands.Basic.Publish)
    assert (channel, method.exchange, method.routing_key) == (1, "nuropb-rpc-exchange", "orders")
    assert method.mandatory
    assert not method.immediate
    _, _, header = pamqp.frame.unmarshal(frames[consumed:])
    assert isinstance(header, ContentHeader)
    assert {name: value for name, value in header.properties if value} == {
        "content_type": "application/json",
        "headers": {
            "nuropb_protocol": "0.1.1",
            "nuropb_version": "0.1.8",
            "nuropb_type": "request",
            "trace_id": None,
            "encrypted": "",
        },
        "correlation_id": "0123456789abcdef0123456789abcdef",
        "reply_to": "nuropb-nuropb-gateway-0123-rq",
        "expiration": "30000",
    }


@pytest.mark.parametrize("name", ["exchange", "routing_key", "correlation_id", "reply_to", "expiration"])
@pytest.mark.parametrize("text", ["a" * 256, "é" * 128, "😀" * 64])
def test_a_name_that_is_no_short_string_is_refused(name: str, text: str) -> None:
    with pytest.raises(InvalidMessage, match=r"^a name has more than 255 bytes$"):
        encode_publish(**publish(**{name: text}))
    shorter = publish(**{name: text[1:]})
    assert text[1:].encode() in encode_publish(**shorter)


def test_a_header_fits_its_frame_whatever_the_trace_id() -> None:
    longest = publish(
        trace_id="😀" * 512, correlation_id="c" * 255, reply_to="r" * 255, expiration="86400000", encrypted=True
    )
    frames = encode_publish(**longest)
    consumed, _, _ = pamqp.frame.unmarshal(frames)
    size, _, _ = pamqp.frame.unmarshal(frames[consumed:])
    assert size <= FRAME_MAX  # AMQP's smallest frame_max
    with pytest.raises(InvalidMessage, match=r"^a trace_id has more than 512 characters$"):
        encode_publish(**longest | {"trace_id": "t" * 513})


def test_the_names_are_those_of_nuropb() -> None:
    names_ = (codec.RPC_EXCHANGE, codec.EVENTS_EXCHANGE, codec.DEAD_LETTER_EXCHANGE)
    assert names_ == ("nuropb-rpc-exchange", "nuropb-events-exchange", "nuropb-dl-exchange")
    assert (codec.PROTOCOL_VERSION, codec.NUROPB_VERSION) == ("0.1.1", "0.1.8")
