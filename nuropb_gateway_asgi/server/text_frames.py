"""Fast path for unfragmented WebSocket text frames (RFC 6455, 5.2). Pure.

The websockets library parses and checks all other frames: control frames, fragments, binary frames, invalid frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - websockets without its C extension
    from websockets.utils import apply_mask

__all__ = [
    "MAX_SHORT",
    "decode_pong",
    "decode_text",
    "encode_text",
    "encode_texts",
    "frame_size",
    "has_invalid_head",
    "is_fragment",
    "take_texts",
]

_TEXT: Final = 0x81  # FIN, without the bits of extensions
_MASKED: Final = 0x80
#: Bytes of the messages that :func:`take_texts` takes at most.
MAX_SHORT: Final = 2048
_OPCODES: Final = frozenset({0x0, 0x1, 0x2, 0x8, 0x9, 0xA})


def has_invalid_head(buffer: bytes | bytearray, start: int) -> bool:
    """Return whether the first two bytes alone make a client's frame invalid."""
    return buffer[start] & 0x0F not in _OPCODES or not buffer[start + 1] & _MASKED


def frame_size(buffer: bytes | bytearray, start: int) -> int:
    """Return the bytes of the frame that begins at ``start``, or 0 while its head is incomplete."""
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


def decode_text(buffer: bytes | bytearray, start: int, end: int) -> str | None:
    """Return the text of the frame between ``start`` and ``end``, or None if the library has to take the frame.

    The frame must be complete, and the first of its message.
    """
    second = buffer[start + 1]
    if buffer[start] != _TEXT or not second & _MASKED:
        return None
    length = second & 0x7F
    # Frames of 64 KiB and more are rare, and their 8 bytes of length need more checks.
    if length == 127:
        return None
    mask = start + (2 if length < 126 else 4)
    try:
        return apply_mask(buffer[mask + 4 : end], buffer[mask : mask + 4]).decode()
    except UnicodeDecodeError:
        return None


def take_texts(buffer: bytes | bytearray, start: int, most: int) -> tuple[list[str], list[int]]:
    """Return the texts of the frames from ``start`` on, and where each of them ends.

    It takes up to ``most`` frames, and stops at one that is incomplete, longer than MAX_SHORT, or not a whole text.
    One function for all of them: a call of a function for each frame would cost as much as its decoding.
    """
    texts: list[str] = []
    ends: list[int] = []
    room = len(buffer)
    while len(texts) < most and start + 6 <= room and buffer[start] == _TEXT:
        mask, size = start + 2, buffer[start + 1] - _MASKED
        if size == 126 and start + 8 <= room:
            mask, size = start + 4, buffer[start + 2] << 8 | buffer[start + 3]
            if size > MAX_SHORT:
                break
        elif not 0 <= size < 126:
            break
        start = mask + 4 + size
        if start > room:
            break
        try:
            texts.append(apply_mask(buffer[mask + 4 : start], buffer[mask : mask + 4]).decode())
        except UnicodeDecodeError:
            break
        ends.append(start)
    return texts, ends


def decode_pong(buffer: bytes | bytearray, start: int, end: int) -> bytes | None:
    """Return the payload of the frame between ``start`` and ``end`` if it is a pong of 4 bytes, else None."""
    if buffer[start : start + 2] != b"\x8a\x84" or end - start != 10:
        return None
    return apply_mask(buffer[start + 6 : end], buffer[start + 2 : start + 6])


def is_fragment(first: int) -> bool | None:
    """Return whether a frame with this ``first`` byte leaves its message unfinished, or None for a control frame."""
    return None if first & 0x08 else not first & 0x80


def encode_text(text: str) -> bytes:
    """Write a server's text message as one frame."""
    data = text.encode()
    length = len(data)
    if length < 126:
        return bytes((_TEXT, length)) + data
    if length < 65536:
        return b"\x81\x7e" + length.to_bytes(2) + data
    return b"\x81\x7f" + length.to_bytes(8) + data


def encode_texts(texts: Iterable[str]) -> bytes:
    """Write a server's text messages as one frame each."""
    frames: list[bytes] = []
    for text in texts:
        data = text.encode()
        length = len(data)
        # Written out for the size of an answer.
        frames.append(b"\x81\x7e" + length.to_bytes(2) + data if 126 <= length < 65536 else encode_text(text))
    return b"".join(frames)
