"""The ordinary handshake of a WebSocket, read from the request that h11 has parsed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["Opening", "read_opening"]

#: 16 bytes in base64, in the one form that an encoder writes (RFC 6455, 4.1).
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")
#: A list of tokens (RFC 9110, 5.6.1): options of a connection, and subprotocols.
_TOKENS: Final = re.compile(rb"[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*(?:,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*)*")
#: Text without control characters, as the websockets library wants it; h11 takes most of them.
_PRINTABLE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
#: Headers that may come once.
_SINGLE: Final = frozenset({b"connection", b"origin", b"sec-websocket-key", b"sec-websocket-version", b"upgrade"})
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Opening(NamedTuple):
    """An ordinary handshake: GET by HTTP/1.1, version 13, without compression."""

    target: bytes
    headers: list[tuple[bytes, bytes]]
    key: bytes
    subprotocols: list[str]

    def response(self, subprotocol: str | None, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Write the response that accepts it."""
        accept = base64.b64encode(hashlib.sha1(self.key + _GUID, usedforsecurity=False).digest())
        lines = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
            accept,
            b"\r\n",
        ]
        for name, value in headers:
            lines += (name.lower(), b": ", value, b"\r\n")
        if subprotocol:
            lines += (b"Sec-WebSocket-Protocol: ", subprotocol.encode("latin-1"), b"\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)


def read_opening(target: bytes, headers: list[tuple[bytes, bytes]], *, compresses: bool) -> Opening | None:
    """Read a handshake, or return None for one that the websockets library has to judge. Names are in lower case.

    The library refuses what is wrong, and negotiates extensions where the server ``compresses``.
    """
    single: dict[bytes, bytes] = {}
    subprotocols: list[str] = []
    for name, value in headers:
        if name in _SINGLE:
            if name in single:
                return None
            single[name] = value
        elif name == b"sec-websocket-protocol":
            if _TOKENS.fullmatch(value) is None:
                return None
            subprotocols += [word.strip() for word in value.decode("ascii").split(",")]
        elif name == b"sec-websocket-extensions" and compresses:
            return None
    connection, key = single.get(b"connection", b""), single.get(b"sec-websocket-key", b"")
    if (
        single.get(b"upgrade", b"").lower() != b"websocket"
        or single.get(b"sec-websocket-version") != b"13"
        or _KEY.fullmatch(key) is None
        or _TOKENS.fullmatch(connection) is None
        or b"upgrade" not in [option.strip(b" \t") for option in connection.lower().split(b",")]
        or _PRINTABLE.fullmatch(b"".join([value for _, value in headers])) is None
        or not target.isascii()
    ):
        return None
    return Opening(target, headers, key, subprotocols)
