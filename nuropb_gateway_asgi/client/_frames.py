"""Frames as text: decoding of received ones, and the frames that keep a connection alive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ._json import TAG, decode

__all__ = ["PING", "decode_frame", "encode_pong", "is_counted"]

PING: Final = '{"type":"ping"}'
#: The types of frames that a resumable session counts, and the topics of the events that belong to one connection.
_COUNTED: Final = frozenset({"response", "event", "error"})
_NOT_COUNTED: Final = frozenset({"hello", "goodbye", "closed"})


def decode_frame(data: str | bytes, *, binary: bool = False) -> dict[str, Any] | None:
    """Decode a message, with bytes if ``binary``; return None unless it is a JSON object in a text message."""
    if isinstance(data, bytes):
        return None
    try:
        frame = decode(data) if binary and TAG in data else msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def encode_pong(ping: Mapping[str, Any]) -> str:
    """Encode the answer to ``ping``, with the same payload."""
    payload = {"payload": ping["payload"]} if "payload" in ping else {}
    return msgspec.json.encode({"type": "pong", **payload}).decode()


def is_counted(frame: Mapping[str, Any]) -> bool:
    """Return whether a resumable session counts this frame of the gateway."""
    kind = frame.get("type")
    if kind == "event":
        payload = frame.get("payload")
        topic = payload.get("topic") if isinstance(payload, dict) else None
        return not (isinstance(topic, str) and topic in _NOT_COUNTED)
    return isinstance(kind, str) and kind in _COUNTED
