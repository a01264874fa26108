"""The short way between a WebSocket and whoever serves it, where the server offers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

__all__ = ["EXTENSION", "DirectWebSocket"]

#: In ``extensions`` of a WebSocket's ASGI scope: its DirectWebSocket.
EXTENSION: Final = "nuropb.direct"


class DirectWebSocket(Protocol):
    """A WebSocket without tasks and queues in between. All of it is called on the event loop's thread.

    ASGI stays in charge of the handshake, of messages that are not text, and of the end: ``websocket.disconnect`` comes
    by ``receive()`` as ever. What is sent by ASGI after :meth:`attach` may overtake nothing, for both write at once.
    """

    def attach(self, on_text: Callable[[str], object], on_writable: Callable[[], None]) -> None:
        """Have text messages given to ``on_text``, in order, those that wait for ``receive()`` first.

        After the handshake, once. ``on_writable`` is called when :attr:`is_writable` is true again.
        """

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up; what is written while it does not is kept in memory."""
        ...

    def write(self, text: str) -> None:
        """Send a text message. Never waits and never raises; nothing is sent once the connection has ended."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, and wait for the client's in the background. Doing it again changes nothing."""
