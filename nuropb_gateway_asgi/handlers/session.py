"""A session that outlives its connections: the handler that a resumable connection becomes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from ..authentication import Identity
from ..authorization.rules import Delivery
from ..handler_manager import HandlerManager
from ..protocol import FINAL, CloseCode, is_counted
from .kept_frames import SessionOutbox

__all__ = ["Line", "Session", "SessionObserver"]


class Line(Protocol):
    """The connection that a session has at present."""

    session_id: str
    address: str

    def carry(self, session: Session | None) -> None:
        """Give the client's messages to ``session`` and send the frames of its outbox; stop with None."""

    def take_answer(self, answer: str) -> bool:
        """Take the answer to ``resume`` if it is the connection's own and not its client's."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a frame that nothing waits before may be written at once, by :meth:`write_now`."""
        ...

    def write_now(self, text: str) -> None:
        """Write a frame that nothing waits before."""

    def wake(self) -> None:
        """Send the frames that wait in the outbox."""

    def close(self, code: int, reason: str = "") -> None:
        """Begin to close the connection."""

    def cut(self) -> None:
        """End the connection in the kernel, at once."""

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run a task that ends with the connection at the latest."""

    def check(self, now: float) -> None:
        """Check pings and deadlines."""


class SessionObserver(Protocol):
    """The owner of the sessions of a process."""

    def on_parked(self, session: Session) -> None:
        """Note that a session has lost its connection."""

    def on_grown(self, session: Session) -> None:
        """Note that a session without a connection keeps more."""

    def on_ended(self, session: Session, reason: Any) -> None:
        """Note that a session is over: ``ended`` on purpose, or by ``overflow``."""


class Session:
    """A :class:`~nuropb_gateway_asgi.handler_manager.Handler` whose connections may change.

    Without a connection it is parked: its frames wait in the outbox. ``manager`` counts the events that slow clients
    lose.
    """

    def __init__(
        self, session_id: str, identity: Identity, connected_at: float, outbox: SessionOutbox, manager: HandlerManager
    ) -> None:
        self.session_id = session_id
        #: That of the present connection, or of the last one.
        self.address = ""
        self.identity: Identity | None = identity
        self.connected_at = connected_at
        self.outbox = outbox
        #: Whether the client has sent a message since its last ``resume``, and so has read the answer.
        self.proven = False
        #: Called with each frame while the session moves between processes.
        self.tap: Callable[[str], None] | None = None
        #: The address of the latest connection, whose limits the session counts for.
        self.address = ""
        self._line: Line | None = None
        self._manager = manager
        self._observer: SessionObserver | None = None
        #: Whether the last connection told its client of its end in a frame that the client may have counted.
        self._told_end = False
        self.over = False

    def bind_observer(self, observer: SessionObserver) -> None:
        """Set the owner of the session."""
        self._observer = observer

    @property
    def connected(self) -> bool:
        """Whether the session has a connection."""
        return self._line is not None

    # --- its connections --------------------------------------------------------------------------------------

    def attach(self, line: Line) -> None:
        """Continue on ``line``, whose client gets no frames before :meth:`go_on`."""
        self.detach()
        self._line, self.address = line, line.address
        self._told_end = self.proven = False
        self.outbox.begin()
        line.carry(self)

    def go_on(self, answer: str) -> None:
        """Send the answer to ``resume``, then all kept frames, then those that wait."""
        line = self._line
        self.outbox.go_on(None if line is not None and line.take_answer(answer) else answer)
        if line is not None:
            line.wake()

    def detach(self) -> None:
        """Close the present connection, if there is one, and continue without it."""
        line, self._line = self._line, None
        if line is not None:
            line.carry(None)
            self.outbox.close(discard=True)
            self.outbox.settle()
            line.close(CloseCode.DRAINING, "the session continues on another connection")

    def on_line_ended(self, line: Line, *, on_purpose: bool, told: bool = False) -> None:
        """Note the end of a connection; ``told`` if its client got a ``closed`` event. Ends or parks the session."""
        if self._line is not line:
            return
        self._line = None
        self._told_end = told
        self.outbox.close(discard=True)
        self.outbox.settle()
        if on_purpose:
            self._end("ended")
        elif self.outbox.overflowed:
            self._end("overflow")
        elif self._observer is not None and not self.over:
            self._observer.on_parked(self)

    def _end(self, reason: str) -> None:
        if not self.over:
            self.over = True
            if self._observer is not None:
                self._observer.on_ended(self, reason)

    def cut(self) -> None:
        """Cut the present connection, if there is one: as by a network, and the session waits for its client."""
        if self._line is not None:
            self._line.cut()

    def acknowledge(self, received: int) -> bool:
        """Take the client's word for the frames that it has. Returns False for a number that cannot be."""
        if self._told_end and received == self.outbox.sent + 1:
            received -= 1  # the client has counted the last frame of a connection, which belonged to that alone
        return self.outbox.acknowledge(received)

    def may_lack(self, text: str) -> bool:
        """Tell whether the client may not have this very frame."""
        return self.outbox.holds(text)

    # --- Handler ----------------------------------------------------------------------------------------------

    def on_registered(self, identity: Identity) -> None:
        """Take the identity; the connection has greeted the client."""
        self.identity = identity

    def send_frame(self, text: str) -> None:
        """Put a frame into the outbox; without a connection, only if it is a counted one."""
        line = self._line
        if line is not None:
            if self.tap is None and line.is_ready and self.outbox.pass_on(text):
                line.write_now(text)
            elif not self.outbox.put(text):
                self.outbox.overflow()
                line.close(CloseCode.SLOW_CONSUMER, "slow consumer")
            elif self.tap is None:
                line.wake()
        elif is_counted(text):
            if self.outbox.store(text):
                self._grow()
            else:
                self.outbox.overflow()
                self._end("overflow")
        if self.tap is not None:
            self.tap(text)

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Put an event into the outbox; ``delivery`` decides what happens if there is no room for it."""
        line = self._line
        if delivery == "close" or (line is None and not self.outbox.has_room_for(text)):
            self.send_frame(text)
            return
        self._manager.statistics.lost_events += self.outbox.put_event(text, topic, delivery)
        if self.tap is not None:
            self.tap(text)
        elif line is not None:
            line.wake()
        if line is None:
            self._grow()

    def _grow(self) -> None:
        if self._observer is not None:
            self._observer.on_grown(self)

    def close(self, code: int, reason: str = "") -> None:
        """Close the connection; end the session if the client is not to come back."""
        if self._line is not None:
            self._line.close(code, reason)
        elif code >= FINAL:
            self._end("ended")

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` until it returns or the connection ends; not at all without a connection."""
        if self._line is not None:
            self._line.start_soon(function, *args)

    @property
    def outbox_size(self) -> int:
        """Bytes queued for the client; 0 while there is no connection that takes them."""
        return 0 if self._line is None else self.outbox.size

    def check(self, now: float) -> None:
        """Check pings and deadlines of the connection."""
        if self._line is not None:
            self._line.check(now)
            self.outbox.age(now)
