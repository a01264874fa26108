"""Frames with properties that pamqp cannot decode, made decodable. Pure: bytes in, bytes out.

A name that is not UTF-8, a date after the year 9999, or a table nested too deep ends a connection of aiormq. The
message is unacknowledged then, so the broker delivers it again and it ends the next connection, and so on. Without its
properties it is a message like any other that does not come from NuroPb.
"""

from __future__ import annotations

import logging
import struct
from typing import Final

import pamqp.frame
from pamqp.exceptions import PAMQPException

from ._errors import explain

__all__ = ["ReadableFrames"]

logger = logging.getLogger(__name__)

#: Type, channel, size (AMQP 0-9-1, section 4.2.3).
_START: Final = struct.Struct(">BHI")
_METHOD, _HEADER, _LAST_TYPE = 1, 2, 8
#: Bytes of a frame around its payload: its start and its end.
_AROUND: Final = 8
_DELIVER: Final = b"\x00\x3c\x00\x3c"


class ReadableFrames:
    """Passes the bytes of one connection on, with undecodable frames replaced by decodable ones of the same size."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take received bytes; return the complete frames. The beginning of an incomplete frame is kept."""
        data = self._rest + data
        at = 0
        ready: list[bytes] = []
        while len(data) - at >= _AROUND:
            kind, _, length = _START.unpack_from(data, at)
            if kind > _LAST_TYPE:  # not a frame: the broker's protocol header, or garbage
                self._rest = b""
                return b"".join((*ready, data[at:]))
            end = at + _AROUND + length
            if end > len(data):
                break
            ready.append(_readable(data[at:end]))
            at = end
        self._rest = data[at:]
        return b"".join(ready)


def _readable(frame: bytes) -> bytes:
    try:
        pamqp.frame.unmarshal(frame)
    except (PAMQPException, RecursionError) as error:
        logger.debug("mesh: the properties of a message cannot be decoded: %s", explain(error))
        return frame[: _START.size] + _made_readable(frame[0], frame[_START.size :])
    return frame


def _made_readable(kind: int, payload: bytes) -> bytes:
    if kind == _HEADER:  # class (2 bytes), weight (2) and size of the body (8), then the flags of the properties
        return payload[:12] + b"\x00\x00" + payload[14:]
    if kind == _METHOD and payload.startswith(_DELIVER):
        names = 4 + 1 + payload[4] + 8 + 1  # behind the consumer's tag, the delivery's tag and a flag
        key = names + 1 + payload[names]
        ascii_names = b"".join(_made_ascii(payload[at : at + 1 + payload[at]]) for at in (names, key))
        return payload[:names] + ascii_names + payload[-1:]
    return payload


def _made_ascii(short_string: bytes) -> bytes:
    return short_string[:1] + bytes(byte if byte < 0x80 else 0x3F for byte in short_string[1:])
