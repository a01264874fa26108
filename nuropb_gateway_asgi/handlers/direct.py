"""The fast paths of WebSockets and of streams: server and handler call each other, without tasks and queues."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final, Protocol, cast

__all__ = [
    "CUT",
    "EXTENSION",
    "NEVER_LATE",
    "RESPONSE",
    "SIZE_FACTOR",
    "DirectResponse",
    "DirectWebSocket",
    "Lateness",
]

#: The key of a DirectWebSocket in the ``extensions`` of a WebSocket's ASGI scope.
EXTENSION: Final = "nuropb.direct"
#: The key of a function in the ``extensions`` of an HTTP request's ASGI scope; it ends the connection at once.
CUT: Final = "nuropb.cut"
#: The key of a DirectResponse in the ``extensions`` of an HTTP request's ASGI scope.
RESPONSE: Final = "nuropb.response"
#: The server's limit for a message, in multiples of MAX_MESSAGE_SIZE: a message that is slightly above the gateway's
#: own limit gets an explanation.
SIZE_FACTOR: Final = 4


class Lateness(Protocol):
    """Tells whether calls that arrive now are refused: see :attr:`~..limits.overload.Overload.late`."""

    late: bool


class _NeverLate:
    __slots__ = ()
    late: ClassVar[bool] = False


#: For a WebSocket without an application.
NEVER_LATE: Final = cast("Lateness", _NeverLate())


class DirectWebSocket(Protocol):
    """A WebSocket whose server hands over and takes text messages by plain calls, on the event loop's thread.

    ASGI still carries the handshake, binary messages, and the end: ``websocket.disconnect`` comes from ``receive()`` as
    usual. Messages sent by ASGI after :meth:`attach` keep their order: both ways write to the transport at once.
    """

    def prepare(self, max_size: int) -> bool:
        """Limit messages to ``max_size`` bytes, and frames and pings as the server does it for the gateway.

        To be called once, before the handshake is accepted. Returns whether :meth:`attach` may be called: not on a
        connection that is compressed, because the operator has chosen so.
        """
        ...

    def attach(
        self,
        on_text: Callable[[str], bool],
        on_writable: Callable[[], None],
        is_busy: Callable[[], bool],
        on_late: Callable[[list[str]], int],
        lateness: Lateness,
        take_large: Callable[[int], bool],
    ) -> None:
        """Have text messages given to ``on_text``, in order. Messages that wait for ``receive()`` come first.

        To be called once, after the handshake. The server calls ``on_writable`` when :attr:`is_writable` becomes true.
        ``on_text`` returns whether its message is still being worked on: the server then reads no more of the client
        before ``is_busy`` returns False.
        While ``lateness.late``, ``on_late`` is given some messages at a time first: it returns how many of them, from
        the first one on, it has taken and answered. The server asks ``take_large`` with the units of a large message
        before it hands it over, and if that returns False, again in the next iteration of the event loop.
        """

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up. While it does not, written messages are kept in memory."""
        ...

    def write(self, text: str) -> None:
        """Send a text message. Never waits and never raises. After the end of the connection, nothing is sent."""

    def write_all(self, texts: list[str]) -> None:
        """Send some text messages, in one write."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, and wait for the client's in the background. Repeated calls change nothing."""

    def cut(self) -> None:
        """End the connection of a client that does not read: at once, in the kernel as well, without a close frame."""


class DirectResponse(Protocol):
    """A response without an end, whose server takes its parts by plain calls, on the event loop's thread.

    ASGI carries the beginning: the head, and one part of the body. It carries the end as well, and the parts keep their
    order: both ways write to the transport at once.
    """

    def prepare(self) -> None:
        """Watch the response from its head on, until :meth:`attach` is called."""

    def attach(self, on_writable: Callable[[], None], sent: bytes) -> bool:
        """Return whether :meth:`write` may be called: if head and ``sent`` have come as they were sent, and no more.

        They have not where a middleware of the application compresses or delays responses, or counts their bytes. The
        server calls ``on_writable`` when :attr:`is_writable` becomes true.
        """
        ...

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up. While it does not, written parts are kept in memory."""
        ...

    def write(self, body: bytes) -> None:
        """Send a part of the body. Never waits and never raises. After the end of the connection, nothing is sent."""
