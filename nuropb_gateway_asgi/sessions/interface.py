"""A connection and a session, as the room of the sessions sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ..handler_manager import Handler

__all__ = ["KeptFrames", "ResumableConnection", "ResumableSession"]


class KeptFrames(Protocol):
    """The frames of a session: those that wait, and those sent but not acknowledged."""

    acknowledged: int
    sent: int
    overflowed: bool

    @property
    def memory(self) -> int:
        """Bytes that the frames take."""
        ...

    @property
    def kept(self) -> list[str]:
        """The frames sent but not acknowledged."""
        ...

    def put(self, text: str) -> bool:
        """Take a frame, or return False if it does not fit."""
        ...

    def holds(self, text: str) -> bool:
        """Tell whether this very frame waits or is kept."""
        ...

    def settle(self) -> None:
        """Keep the frames that wait as if they had been sent."""

    def take_waiting(self) -> list[str]:
        """Remove the counted frames that wait, and return them."""
        ...

    def take_over(self, acknowledged: int, kept: list[str]) -> None:
        """Continue where the frames of another process ended."""


@runtime_checkable
class ResumableSession(Handler, Protocol):
    """A handler that outlives its connections."""

    #: Whether its client has sent a message since its last ``resume``.
    proven: bool
    #: Called with each frame, while the session moves between processes.
    tap: Callable[[str], None] | None

    @property
    def outbox(self) -> KeptFrames:
        """The session's frames."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the session has a connection."""
        ...

    def bind_observer(self, observer: Any) -> None:
        """Set the owner of the session."""

    def attach(self, line: Any) -> None:
        """Continue on a connection, whose client gets no frames before :meth:`go_on`."""

    def go_on(self, answer: str) -> None:
        """Send the answer to ``resume``, then all kept frames."""

    def detach(self) -> None:
        """Close the present connection, and continue without it."""

    def acknowledge(self, received: int) -> bool:
        """Take the client's word for the frames that it has. Returns False for a number that cannot be."""
        ...


@runtime_checkable
class ResumableConnection(Handler, Protocol):
    """A connection that a session may outlive."""

    @property
    def is_resumable(self) -> bool:
        """Whether it may, for this kind of connection."""
        ...

    def open_session(self) -> ResumableSession:
        """Make a session with the connection's user and session id, without attaching it."""
        ...
