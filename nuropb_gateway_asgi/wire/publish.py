"""The frames that publish a message of NuroPb. Pure.

AMQP 0-9-1, sections 4.2.3 to 4.2.6: a publish is a method frame, a header frame and body frames, each of type (1),
channel (2), size (4), payload, 0xCE. NuroPb sets the same five properties on every message, so they are laid out once
here, instead of being encoded one by one for each message.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

from .codec import MAX_TRACE_ID_LENGTH, MESSAGE_TYPES, NUROPB_VERSION, PROTOCOL_VERSION, InvalidMessage, MessageType

__all__ = ["encode_publish", "expiration", "on_channel"]

#: A day. No caller waits longer, and an expiration out of RabbitMQ's range closes the channel.
MAX_EXPIRATION_MS: Final = 86_400_000
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


def expiration(seconds: float) -> str:
    """Format an AMQP expiration: whole milliseconds, at least 1 and at most a day."""
    return str(min(max(int(seconds * 1000), 1), MAX_EXPIRATION_MS))


def _short(value: str) -> bytes:
    data = value.encode()
    if len(data) > 255:
        raise InvalidMessage("a name has more than 255 bytes")
    return len(data).to_bytes() + data


#: For the few names that come again and again.
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
    """Encode the frames that publish one message.

    Raises InvalidMessage if a name is too long for a short string, or ``trace_id`` for its frame: a header frame cannot
    be split, and one over ``frame_max`` would close the connection with all its calls in flight.
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


def on_channel(frames: bytes, channel: int) -> bytes:
    """Return the frames of one message as those of ``channel``."""
    if frames[1:3] == channel.to_bytes(2):
        return frames
    moved = bytearray(frames)
    at = 0
    while at < len(moved):
        kind, _, length = _FRAME.unpack_from(moved, at)
        _FRAME.pack_into(moved, at, kind, channel, length)
        at += _FRAME.size + length + len(_END)
    return bytes(moved)


@functools.lru_cache(maxsize=256)
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    method = b"%b%b%b%b" % (_BASIC_PUBLISH, _short(exchange), _short(routing_key), b"\x01" if mandatory else b"\x00")
    return b"%b%b%b" % (_FRAME.pack(1, channel, len(method)), method, _END)
