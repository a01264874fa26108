"""AMQP frames of messages, read by hand for the fast lane. Pure: bytes in, messages and other bytes out.

AMQP 0-9-1, sections 2.3.5 and 4.2: a frame is type (1), channel (2), size (4), payload, 0xCE. A message is a method
frame (basic.deliver or basic.return), a header frame and as many body frames as its size needs. All other frames are
for aiormq, which gets them unchanged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from pamqp import commands
from pamqp.header import ContentHeader

from ...wire import codec

__all__ = ["HEARTBEAT_FRAME", "Content", "Incoming", "Splitter"]

#: The frame that a peer sends when it has no other to send.
HEARTBEAT_FRAME: Final = b"\x08\x00\x00\x00\x00\x00\x00\xce"

#: Type, channel, size.
_FRAME: Final = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY, _END = 1, 2, 3, 0xCE
#: Bytes of a frame around its payload.
_AROUND: Final = 8
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_RETURN: Final = b"\x00\x3c\x00\x32"
_ACK: Final = b"\x00\x3c\x00\x50"
_NACK: Final = b"\x00\x3c\x00\x78"
_MESSAGES: Final = frozenset({_DELIVER, _RETURN})
_CONFIRMS: Final = frozenset({_ACK, _NACK})
_BLOCKED: Final = b"\x00\x0a\x00\x3c"
_UNBLOCKED: Final = b"\x00\x0a\x00\x3d"
_CONTENT_TYPE, _CONTENT_ENCODING, _HEADERS, _DELIVERY_MODE, _PRIORITY, _CORRELATION_ID, _MORE = (
    *(0x8000, 0x4000, 0x2000, 0x1000, 0x0800, 0x0400),
    0x0001,
)
#: Of a content header: class (2), weight (2), size of the body (8), flags (2).
_FIXED: Final = 14

# Entries of a table of headers as NuroPb writes them. No text of a client can look like one of them, because it cannot
# contain the zeros of a length.
_OUR_PROTOCOL: Final = b"\x0fnuropb_protocolS\x00\x00\x00\x05" + codec.PROTOCOL_VERSION.encode()
_IS_RESPONSE: Final = b"\x0bnuropb_typeS\x00\x00\x00\x08response"
_IS_ENCRYPTED: Final = b"\x09encryptedS\x00\x00\x00\x03yes"
#: The entry in which the broker says where in its stream a message is, and its value: a signed integer of 8 bytes.
_STREAM_OFFSET: Final = b"\x0fx-stream-offsetl"
_INTEGER: Final = struct.Struct(">q")

_NO_PROPERTIES: Final = commands.Basic.Properties()


class Incoming:
    """A received message. Of its properties only the correlation id is decoded at once.

    ``header`` is the payload of the header frame. An undecodable property counts as absent.
    """

    __slots__ = ("_header", "_properties", "body", "correlation_id", "delivery_tag", "redelivered")

    def __init__(self, delivery_tag: int, redelivered: bool, header: bytes, body: bytes) -> None:
        self.delivery_tag = delivery_tag
        self.redelivered = redelivered
        self.body = body
        self.correlation_id = _correlation_id(header)
        self._header = header
        self._properties: commands.Basic.Properties | None = None

    @property
    def headers(self) -> Mapping[str, Any] | None:
        """The table of headers, if there is one."""
        return self._read().headers

    @property
    def reply_to(self) -> str | None:
        """The queue for the reply."""
        return self._read().reply_to

    @property
    def kind(self) -> codec.MessageType:
        """The type of this message of NuroPb. Raises InvalidMessage for other messages."""
        if _IS_RESPONSE in self._header and _OUR_PROTOCOL in self._header:
            return "response"
        return codec.message_type(self.headers)

    @property
    def encrypted(self) -> bool:
        """Whether the headers say that the body is encrypted."""
        return _IS_ENCRYPTED in self._header

    @property
    def stream_offset(self) -> int | None:
        """The offset of the message in its stream, or None."""
        # As RabbitMQ writes it: pamqp takes many times as long, and a process reads all records when it starts.
        _, found, value = self._header.partition(_STREAM_OFFSET)
        offset: Any = None
        if found and len(value) >= _INTEGER.size:
            offset = _INTEGER.unpack_from(value)[0]
        elif self.headers is not None:
            offset = self.headers.get("x-stream-offset")
        return offset if isinstance(offset, int) else None

    def _read(self) -> commands.Basic.Properties:
        if self._properties is None:
            content = ContentHeader()
            try:
                content.unmarshal(self._header)
            except Exception:  # pamqp and its codecs raise many kinds for the bytes that a peer may write
                content.properties = _NO_PROPERTIES
            self._properties = content.properties
        return self._properties


def _correlation_id(header: bytes) -> str | None:
    try:
        flags = (header[12] << 8) | header[13]
        if not flags & _CORRELATION_ID or flags & _MORE:
            return None
        at = _FIXED
        if flags & _CONTENT_TYPE:
            at += 1 + header[at]
        if flags & _CONTENT_ENCODING:
            at += 1 + header[at]
        if flags & _HEADERS:
            at += 4 + int.from_bytes(header[at : at + 4], "big")
        at += bool(flags & _DELIVERY_MODE) + bool(flags & _PRIORITY) + 1
        return header[at : at + header[at - 1]].decode()
    except (IndexError, UnicodeDecodeError):
        return None


class Taker(Protocol):
    """A consumer of the frames of one channel."""

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame, or return False to have it passed on."""


class Content:
    """Assembles the messages of one channel, and reads its confirms.

    ``on_message`` gets each delivery, and ``on_return`` the correlation id of each returned message. ``on_confirm``
    gets the tag of a confirm, whether it includes all earlier tags, and whether the messages were accepted.
    """

    __slots__ = ("_body", "_header", "_missing", "_on_confirm", "_on_message", "_on_return", "_start")

    def __init__(
        self,
        *,
        on_message: Callable[[Incoming], None] | None = None,
        on_return: Callable[[str], None] | None = None,
        on_confirm: Callable[[int, bool, bool], None] | None = None,
    ) -> None:
        self._on_message = on_message
        self._on_return = on_return
        self._on_confirm = on_confirm
        #: The method frame of the message that is being received; empty between two messages.
        self._start = b""
        self._header = b""
        self._body: list[bytes] = []
        self._missing = 0

    def take(self, kind: int, payload: bytes) -> bool:
        """Take a frame of the channel, or return False to have it passed on."""
        if kind == _METHOD:
            method = payload[:4]
            if method in _MESSAGES:
                self._start = payload
                return True
            if self._on_confirm is not None and method in _CONFIRMS:
                self._on_confirm(int.from_bytes(payload[4:12], "big"), bool(payload[12] & 1), method == _ACK)
                return True
            return False
        if not self._start:
            return False
        if kind == _HEADER:
            self._header = payload
            self._missing = int.from_bytes(payload[4:12], "big")
            if not self._missing:
                self._complete(b"")
        elif kind == _BODY:
            self._missing -= len(payload)
            if not self._body and self._missing <= 0:
                self._complete(payload)
            else:
                self._body.append(payload)
                if self._missing <= 0:
                    self._complete(b"".join(self._body))
        return True

    def _complete(self, body: bytes) -> None:
        start, header = self._start, self._header
        self._start = self._header = b""
        if self._body:
            self._body = []
        if start[:4] == _DELIVER:
            if self._on_message is not None:
                at = 5 + start[4]  # behind the consumer's tag
                tag = int.from_bytes(start[at : at + 8], "big")
                self._on_message(Incoming(tag, bool(start[at + 8] & 1), header, body))
        elif self._on_return is not None:
            self._on_return(_correlation_id(header) or "")


class Splitter:
    """Splits received bytes into frames, gives the frames of some channels to takers, and returns the others.

    ``on_blocked`` is called when the broker begins (True) or ends (False) to block publishers.
    """

    __slots__ = ("_on_blocked", "_rest", "_takers", "took")

    def __init__(self, on_blocked: Callable[[bool], None]) -> None:
        self._on_blocked = on_blocked
        self._rest = b""
        self._takers: dict[int, Taker] = {}
        #: Whether a frame of the last bytes was taken.
        self.took = False

    def add(self, channel: int, taker: Taker) -> None:
        """Give the frames of ``channel`` to ``taker`` from now on."""
        self._takers[channel] = taker

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return the frames that were not taken. The beginning of an incomplete frame is kept."""
        self.took = False
        if self._rest:
            data = self._rest + data
        at, size = 0, len(data)
        passed: list[bytes] = []
        takers = self._takers
        while size - at >= _AROUND:
            kind, channel, length = _FRAME.unpack_from(data, at)
            end = at + _AROUND + length
            if kind > _AROUND or (end <= size and data[end - 1] != _END):
                # Not a frame: the broker's protocol header, or garbage. aiormq reports it.
                passed.append(data[at:])
                at = size
                break
            if end > size:
                break
            taker = takers.get(channel)
            if taker is not None and taker.take(kind, data[at + 7 : end - 1]):
                self.took = True
            else:
                if channel == 0 and kind == _METHOD:
                    self._look(data[at + 7 : at + 11])
                passed.append(data[at:end])
            at = end
        self._rest = data[at:] if at < size else b""
        return b"".join(passed)

    def _look(self, method: bytes) -> None:
        if method == _BLOCKED:
            self._on_blocked(True)
        elif method == _UNBLOCKED:
            self._on_blocked(False)
