"""Limits on the frames of a WebSocket: fragments, pings and pongs."""

from __future__ import annotations

import math
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from websockets.exceptions import ProtocolError
from websockets.frames import Opcode
from websockets.server import ServerProtocol

from ..protocol import CloseCode

if TYPE_CHECKING:
    from websockets.frames import Frame
    from websockets.http11 import Response

__all__ = ["CONTROL_BURST", "CONTROL_RATE", "MAX_FRAGMENTS", "LimitedServerProtocol"]

#: Frames of one message, empty frames included. Each costs 100 bytes or more, and ws_max_size counts payload only.
MAX_FRAGMENTS: Final = 1024
#: Size of the leaky bucket for pings and pongs, and its leak in frames per second.
CONTROL_BURST: Final = 100
CONTROL_RATE: Final = 10.0


class LimitedServerProtocol(ServerProtocol):
    """websockets' protocol that also fails connections with too many fragments, pings or pongs.

    ``is_limited`` switches these limits. ``max_message`` is a limit for the payload of a message in bytes, in addition
    to the library's own ``max_size``.
    """

    # In slots, as a dictionary of more than 30 attributes, the library's included, takes five times the memory.
    __slots__ = ("_control", "_control_at", "_excess", "_fragments", "_size", "is_limited", "max_message")

    def __init__(self, *args: Any, is_limited: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_limited = is_limited
        self.max_message: float = math.inf
        self._fragments = self._size = 0
        self._control = 0.0
        self._control_at = time.monotonic()
        self._excess: tuple[CloseCode, str] | None = None

    def recv_frame(self, frame: Frame) -> None:
        """Take a frame. The caller turns a ProtocolError into a call of :meth:`fail`."""
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            now = time.monotonic()
            self._control = max(self._control - (now - self._control_at) * CONTROL_RATE, 0.0) + 1
            self._control_at = now
            if self._control > CONTROL_BURST:
                self._excess = CloseCode.TOO_MANY_REQUESTS, "too many pings"
        elif frame.opcode is not Opcode.CLOSE:
            if frame.opcode is not Opcode.CONT:
                self._fragments = self._size = 0
            self._fragments += 1
            self._size += len(frame.data)
            if self._fragments > MAX_FRAGMENTS:
                self._excess = CloseCode.MESSAGE_TOO_BIG, "too many fragments"
            elif self._size > self.max_message:
                self._excess = CloseCode.MESSAGE_TOO_BIG, "message too big"
        if self._excess is not None and self.is_limited:
            raise ProtocolError(self._excess[1])
        super().recv_frame(frame)

    def fail(self, code: int, reason: str = "") -> None:
        """Fail the connection, with the code of the exceeded limit if there is one."""
        super().fail(*((self.is_limited and self._excess) or (code, reason)))

    def send_response(self, response: Response) -> None:
        """Send the response to a handshake, and free its headers."""
        super().send_response(response)
        response.headers.clear()

    def reject(self, status: int, text: str) -> Response:
        """Refuse the handshake with the phrase of ``status``: the text of websockets quotes the client's request."""
        return super().reject(status, f"{HTTPStatus(status).phrase}\n")
