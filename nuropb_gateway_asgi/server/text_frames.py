"""The WebSocket frames that there are thousands of: a text message in one frame (RFC 6455, 5.2). Pure.

Everything else is the library's, which checks it all: frames of control, fragments, other kinds, and what is wrong.
"""

from __future__ import annotations

from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - where it could not be compiled
    from websockets.utils import apply_mask

__all__ = ["encode_text", "frame_size", "is_fragment", "is_hopeless", "text_of"]

_TEXT: Final = 0x81  # FIN, and no extension in use
_MASKED: Final = 0x80
_OPCODES: Final = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})


def is_hopeless(buffer: bytes | bytearray, start: int) -> bool:
    """Whether its first two bytes already make a frame of a client invalid."""
    return buffer[start] & 0x0F not in _OPCODES or not buffer[start + 1] & _MASKED


def frame_size(buffer: bytes | bytearray, start: int) -> int:
    """How many bytes the frame has that begins at ``start``, or 0 while its head has not come."""
    room = len(buffer) - start
    if room < 2:
        return 0
    second = buffer[start + 1]
    length = second & 0x7F
    size = 6 if second & _MASKED else 2
    if length < 126:
        return size + length
    extended = 2 if length == 126 else 8
    if room < 2 + extended:
        return 0
    return size + extended + int.from_bytes(buffer[start + 2 : start + 2 + extended])


def text_of(buffer: bytes | bytearray, start: int, end: int) -> str | None:
    """The text of the frame between ``start`` and ``end``; None for what the library has to look at.

    It is given whole, and it is the first frame of a message.
    """
    second = buffer[start + 1]
    if buffer[start] != _TEXT or not second & _MASKED:
        return None
    length = second & 0x7F
    # Anything longer is none of the thousands, and has more that can be wrong with its length.
    if length == 127:
        return None
    mask = start + (2 if length < 126 else 4)
    try:
        return apply_mask(buffer[mask + 4 : end], buffer[mask : mask + 4]).decode()
    except UnicodeDecodeError:
        return None


def is_fragment(first: int) -> bool | None:
    """Whether a frame with this ``first`` byte leaves a message unfinished; None if it has nothing to do with that."""
    return None if first & 0x08 else not first & 0x80


def encode_text(text: str) -> bytes:
    """A text message of a server."""
    data = text.encode()
    length = len(data)
    if length < 126:
        return bytes((_TEXT, length)) + data
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2) + data
    return b"\x81\x7f" + length.to_bytes(8) + data
