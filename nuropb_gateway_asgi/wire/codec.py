"""NuroPb 0.1.8 on AMQP 0-9-1: names, headers and message bodies. Pure.

The formats were read in the source of nuropb 0.1.8 and seen on RabbitMQ; docs/mesh.md describes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from ..protocol import nests_deeper
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
    "encode_reply",
    "is_encrypted",
    "message_type",
]

RPC_EXCHANGE: Final = "nuropb-rpc-exchange"
EVENTS_EXCHANGE: Final = "nuropb-events-exchange"
DEAD_LETTER_EXCHANGE: Final = "nuropb-dl-exchange"
PROTOCOL_VERSION: Final = "0.1.1"
NUROPB_VERSION: Final = "0.1.8"
#: Characters of a topic, which is a routing key of at most 255 bytes, and of a trace id; services send any number.
MAX_TOPIC_LENGTH: Final = 255
MAX_TRACE_ID_LENGTH: Final = 512
#: Levels of a message. Up to Python 3.11 the interpreter's recursion limit, of 1000, refuses more by itself; newer ones
#: read what fits their stack, and hand it on to clients, whose own limits it passes.
MAX_DEPTH: Final = 900
MESSAGE_TYPES: Final = ("request", "response", "event", "command")
MessageType = Literal["request", "response", "event", "command"]


class InvalidMessage(ValueError):
    """A message of the mesh that breaks the wire protocol. The text names the fault, never the content."""


class NotJson(InvalidMessage):
    """A reply that is JSON for Python only: it has NaN, Infinity or a lone surrogate in it."""


class ServiceCall(Struct, gc=False):
    """A request or command from another service."""

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
    """Encode the body of a request or command. ``params`` and ``context`` are JSON objects, copied unchanged."""
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
    """Encode the body of an event, with every member: receivers read all of them with ``[]``."""
    return b'{"tag":"event","topic":%b,"event":%b,"context":%b,"trace_id":%b,"correlation_id":"%b","target":%b}' % (
        _encode(topic),
        event,
        context,
        _encode(trace_id),
        correlation_id.encode(),
        _encode(target),
    )


def encode_reply(call: ServiceCall, *, result: bytes, error: Mapping[str, Any] | None, reply_to: str) -> bytes:
    """Encode the body of a response. It carries the context of the request, unchanged."""
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
    """Decode a response. The correlation id is the property's: peers do not check the one in the body.

    Raises NotJson for a body that is JSON for Python only, and InvalidMessage for any other undecodable one.
    """
    try:
        body.decode()
        reply = _decode_reply(body)
    except _DECODE_ERRORS as error:
        if _is_pythons_json(body):
            raise NotJson("the response holds a value that JSON does not have") from error
        raise InvalidMessage(f"the response cannot be read ({type(error).__name__})") from error
    _check_depth("response", body)
    return Reply(correlation_id, reply.result, reply.error)


def _check_depth(what: str, body: bytes) -> None:
    if nests_deeper(body, MAX_DEPTH):
        raise InvalidMessage(f"the {what} is nested more than {MAX_DEPTH} levels deep")


def _is_pythons_json(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def decode_event(body: bytes) -> EventMessage:
    """Decode an event, but for its payload, which stays JSON. Raises InvalidMessage."""
    try:
        body.decode()
        event = _decode_event(body)
    except msgspec.ValidationError as error:  # which tells the member and both types, and no content
        raise InvalidMessage(f"the event cannot be read: {error}") from error
    except _DECODE_ERRORS as error:
        raise InvalidMessage(f"the event cannot be read ({type(error).__name__})") from error
    _check_depth("event", body)
    # Clients get both in a frame whose size is that of the event, as far as their limits are concerned.
    if len(event.topic) > MAX_TOPIC_LENGTH or len(event.trace_id or "") > MAX_TRACE_ID_LENGTH:
        raise InvalidMessage("the event has a topic or a trace_id that is too long")
    target = None if event.target is None else [str(user_id) for user_id in event.target]
    return EventMessage(event.topic, event.event, event.trace_id, target, event.context)


def decode_service_call(body: bytes) -> ServiceCall:
    """Decode a request or command from another service. Raises InvalidMessage."""
    try:
        call = _decode_call(body)
    except _DECODE_ERRORS as error:
        raise InvalidMessage(f"the request cannot be read ({type(error).__name__})") from error
    _check_depth("request", body)
    return call


def message_type(headers: Mapping[str, Any] | None) -> MessageType:
    """Return the type of message that headers announce. Raises InvalidMessage unless they are NuroPb's."""
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
    """Return whether headers say that the body is encrypted."""
    return headers is not None and headers.get("encrypted") == "yes"
