"""NuroPb 0.1.8 on AMQP 0-9-1: names, message bodies, properties and the frames of a publish. Pure.

What peers send and expect was read in nuropb 0.1.8 and seen on RabbitMQ; ``docs/mesh.md`` has it in words.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from .interface import EventMessage, Reply

__all__ = [
    "DEAD_LETTER_EXCHANGE",
    "EVENTS_EXCHANGE",
    "RPC_EXCHANGE",
    "InvalidMessage",
    "NotJson",
    "ServiceCall",
    "decode_event",
    "decode_reply",
    "decode_service_call",
    "encode_call",
    "encode_event",
    "encode_publish",
    "encode_reply",
    "expiration",
    "is_encrypted",
    "message_type",
]

RPC_EXCHANGE: Final = "nuropb-rpc-exchange"
EVENTS_EXCHANGE: Final = "nuropb-events-exchange"
DEAD_LETTER_EXCHANGE: Final = "nuropb-dl-exchange"
PROTOCOL_VERSION: Final = "0.1.1"
NUROPB_VERSION: Final = "0.1.8"
MESSAGE_TYPES: Final = ("request", "response", "event", "command")
#: A day; nobody waits longer, and an expiration that does not fit RabbitMQ's range closes the channel.
MAX_EXPIRATION_MS: Final = 86_400_000
#: Clients may send 128 characters; other services whatever they like.
MAX_TRACE_ID_LENGTH: Final = 512

MessageType = Literal["request", "response", "event", "command"]


class InvalidMessage(ValueError):
    """A message of the mesh is not what the wire protocol says. The text names what is wrong, not the content."""


class NotJson(InvalidMessage):
    """A reply is JSON for Python only: it has NaN, Infinity or a lone surrogate in it."""


class ServiceCall(Struct, gc=False):
    """A request or command that another service sent to the gateway."""

    tag: str
    method: str
    params: dict[str, Any]
    context: dict[str, Any]
    correlation_id: str = ""
    service: str = ""
    trace_id: str | None = None


class _ReplyBody(Struct, gc=False):
    result: Raw = Raw(b"null")
    error: dict[str, Any] | None = None


class _EventBody(Struct, gc=False):
    topic: str
    event: Raw
    context: Raw = Raw(b"{}")
    trace_id: str | None = None
    target: list[Any] | None = None


_encode = msgspec.json.encode
_decode_reply = msgspec.json.Decoder(_ReplyBody).decode
_decode_event = msgspec.json.Decoder(_EventBody).decode
_decode_call = msgspec.json.Decoder(ServiceCall).decode
_DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


# --- bodies ---------------------------------------------------------------------------------------------------


def encode_call(
    kind: Literal["request", "command"],
    *,
    service: str,
    method: str,
    params: bytes | Raw,
    correlation_id: str,
    context: bytes,
    trace_id: str | None,
) -> bytes:
    """The body of a request or command. ``params`` and ``context`` are JSON objects and go in as they are."""
    return b'{"tag":"%b","service":%b,"method":%b,"params":%b,"correlation_id":"%b","context":%b,"trace_id":%b}' % (
        kind.encode(),
        _encode(service),
        _encode(method),
        params,
        correlation_id.encode(),
        context,
        _encode(trace_id),
    )


def encode_event(
    topic: str,
    event: bytes | Raw,
    *,
    context: bytes | Raw,
    trace_id: str | None,
    correlation_id: str,
    target: list[str] | None,
) -> bytes:
    """The body of an event. Receivers read all members with ``[]``, so every one of them is there."""
    return b'{"tag":"event","topic":%b,"event":%b,"context":%b,"trace_id":%b,"correlation_id":"%b","target":%b}' % (
        _encode(topic),
        event,
        context,
        _encode(trace_id),
        correlation_id.encode(),
        _encode(target),
    )


def encode_reply(call: ServiceCall, *, result: bytes, error: Mapping[str, Any] | None, reply_to: str) -> bytes:
    """The body of a response: the context of the request comes back as it was."""
    return (
        b'{"tag":"response","result":%b,"error":%b,"correlation_id":%b,"trace_id":%b,"context":%b,'
        b'"warning":null,"reply_to":%b}'
    ) % (
        result,
        _encode(error),
        _encode(call.correlation_id),
        _encode(call.trace_id),
        _encode(call.context),
        _encode(reply_to),
    )


def decode_reply(correlation_id: str, body: bytes) -> Reply:
    """A response. The correlation id is the property's: peers do not check the one in the body.

    Raises NotJson where only Python would call it JSON, and InvalidMessage for what nobody would.
    """
    try:
        body.decode()
        reply = _decode_reply(body)
    except _DECODE_ERRORS as error:
        if _is_pythons_json(body):
            raise NotJson("the response holds a value that JSON does not have") from error
        raise InvalidMessage(f"the response cannot be read ({type(error).__name__})") from error
    return Reply(correlation_id, reply.result, reply.error)


def _is_pythons_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def decode_event(body: bytes) -> EventMessage:
    """An event; what it carries stays JSON. Raises InvalidMessage."""
    try:
        body.decode()
        event = _decode_event(body)
    except _DECODE_ERRORS as error:
        raise InvalidMessage(f"the event cannot be read ({type(error).__name__})") from error
    target = None if event.target is None else [str(user_id) for user_id in event.target]
    return EventMessage(event.topic, event.event, event.trace_id, target, event.context)


def decode_service_call(body: bytes) -> ServiceCall:
    """A request or command of another service. Raises InvalidMessage."""
    try:
        call = _decode_call(body)
    except _DECODE_ERRORS as error:
        raise InvalidMessage(f"the request cannot be read ({type(error).__name__})") from error
    return call


def message_type(headers: Mapping[str, Any] | None) -> MessageType:
    """What kind of message the headers announce. Raises InvalidMessage unless they are NuroPb's."""
    if not headers:
        raise InvalidMessage("no headers")
    if headers.get("nuropb_protocol") != PROTOCOL_VERSION:
        raise InvalidMessage("not of protocol " + PROTOCOL_VERSION)
    kind = headers.get("nuropb_type")
    if kind not in MESSAGE_TYPES:
        raise InvalidMessage("no known message type")
    result: MessageType = kind
    return result


def is_encrypted(headers: Mapping[str, Any] | None) -> bool:
    """Whether the headers say that the body is encrypted."""
    return headers is not None and headers.get("encrypted") == "yes"


def expiration(seconds: float) -> str:
    """An AMQP expiration: whole milliseconds, at least 1 and at most a day."""
    return str(min(max(int(seconds * 1000), 1), MAX_EXPIRATION_MS))


# --- frames ---------------------------------------------------------------------------------------------------
#
# AMQP 0-9-1, sections 4.2.3 to 4.2.6: a publish is a method frame, a header frame and body frames, each
# type (1), channel (2), size (4), payload, 0xCE. The properties that NuroPb sets are always the same five, so they
# are laid out here once instead of being asked for one by one for every message.

_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">HHQH")
_LONG = struct.Struct(">I")
_END: Final = b"\xce"
_BASIC_PUBLISH: Final = b"\x00\x3c\x00\x28\x00\x00"
_BASIC_CLASS: Final = 60
_CONTENT_TYPE: Final = 0x8000
_HEADERS: Final = 0x2000
_CORRELATION_ID: Final = 0x0400
_REPLY_TO: Final = 0x0200
_EXPIRATION: Final = 0x0100
_FLAGS: Final = _CONTENT_TYPE | _HEADERS | _CORRELATION_ID | _REPLY_TO


def _short(value: str) -> bytes:
    data = value.encode()
    if len(data) > 255:
        raise InvalidMessage("a name has more than 255 bytes")
    return len(data).to_bytes() + data


#: For the few that come again and again.
_known_short = functools.lru_cache(maxsize=256)(_short)


def _long(value: str) -> bytes:
    data = value.encode()
    return _LONG.pack(len(data)) + data


def _entry(key: str, value: str) -> bytes:
    return _short(key) + b"S" + _long(value)


_CONTENT_TYPE_JSON: Final = _short("application/json")
_TABLES: Final = {
    (kind, encrypted): b"".join(
        (
            _entry("encrypted", "yes" if encrypted else ""),
            _entry("nuropb_protocol", PROTOCOL_VERSION),
            _entry("nuropb_type", kind),
            _entry("nuropb_version", NUROPB_VERSION),
            _short("trace_id"),
        )
    )
    for kind in MESSAGE_TYPES
    for encrypted in (False, True)
}


def encode_publish(
    *,
    channel: int,
    exchange: str,
    routing_key: str,
    kind: MessageType,
    correlation_id: str,
    trace_id: str | None,
    body: bytes,
    frame_max: int,
    reply_to: str = "",
    expiration: str | None = None,
    mandatory: bool = False,
    encrypted: bool = False,
) -> bytes:
    """The frames that publish one message.

    Raises InvalidMessage where a name is too long for a short string, or ``trace_id`` for its frame: a header frame
    cannot be split, and one over ``frame_max`` closes the connection, and all others with it.
    """
    if trace_id is not None and len(trace_id) > MAX_TRACE_ID_LENGTH:
        raise InvalidMessage(f"a trace_id has more than {MAX_TRACE_ID_LENGTH} characters")
    table = _TABLES[kind, encrypted]
    trace = b"V" if trace_id is None else b"S" + _long(trace_id)
    flags, expires = _FLAGS, b""
    if expiration is not None:
        flags |= _EXPIRATION
        expires = _known_short(expiration)
    properties = b"".join(
        (
            _CONTENT_TYPE_JSON,
            _LONG.pack(len(table) + len(trace)),
            table,
            trace,
            _short(correlation_id),
            _known_short(reply_to),
            expires,
        )
    )
    frames = [
        _publish_method(channel, exchange, routing_key, mandatory),
        _FRAME.pack(2, channel, _HEADER.size + len(properties)),
        _HEADER.pack(_BASIC_CLASS, 0, len(body), flags),
        properties,
        _END,
    ]
    room = frame_max - _FRAME.size - 1
    for start in range(0, len(body), room):
        part = body if len(body) <= room else body[start : start + room]
        frames += (_FRAME.pack(3, channel, len(part)), part, _END)
    return b"".join(frames)


@functools.lru_cache(maxsize=256)
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    method = b"%b%b%b%b" % (_BASIC_PUBLISH, _short(exchange), _short(routing_key), b"\x01" if mandatory else b"\x00")
    return b"%b%b%b" % (_FRAME.pack(1, channel, len(method)), method, _END)
