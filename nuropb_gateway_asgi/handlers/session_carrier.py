"""The part of a connection that carries a session: its identity, its outbox, and the session that may outlive it."""

from __future__ import annotations

from typing import ClassVar, Final

from ..authentication import Identity
from ..handler_manager import HandlerManager
from ..identifiers import new_id
from ..protocol import FINAL
from ..settings import Settings
from .kept_frames import SessionOutbox
from .outbox import Outbox
from .session import Session

__all__ = ["SessionCarrier"]

#: Bytes that are kept at most for a client that cannot acknowledge frames: about what network and proxies hold.
FORGETFUL_BUFFER: Final = 65536


class SessionCarrier:
    """The base of connections: at first a connection is its own session, and ends with it."""

    #: Whether a session may outlive this kind of connection, and whether it forgets the oldest frames of a full buffer.
    is_resumable: ClassVar[bool] = True
    forgets_frames: ClassVar[bool] = False
    #: The session that has this connection, once it is resumable.
    _session: Session | None = None

    def __init__(self, handler_manager: HandlerManager, settings: Settings, address: str) -> None:
        self.session_id = new_id()
        self.address = address
        self.identity: Identity | None = None
        self.connected_at = 0.0
        self._manager = handler_manager
        self._settings = settings
        self._outbox = Outbox(settings.outbox_size)
        #: The code and reason to close with, once that is decided.
        self._close: tuple[int, str] | None = None

    @property
    def ended_on_purpose(self) -> bool:
        """Whether client or gateway ended the connection for good."""
        return self._close is not None and self._close[0] >= FINAL

    @property
    def has_told_end(self) -> bool:
        """Whether the client was told of the end in a frame."""
        return False

    def open_session(self) -> Session:
        """Make a session of the connection's own, which :meth:`~.session.Session.attach` will give to it."""
        assert self.identity is not None  # noqa: S101 - it is registered
        settings = self._settings
        keep = min(settings.resume_buffer, FORGETFUL_BUFFER) if self.forgets_frames else settings.resume_buffer
        outbox = SessionOutbox(settings.outbox_size, keep, forgets=self.forgets_frames)
        return Session(self.session_id, self.identity, self.connected_at, outbox, self._manager)

    def carry(self, session: Session | None) -> None:
        """Give the client's messages to ``session`` and send the frames of its outbox; stop with None."""
        self._session = session
        former, self._outbox = self._outbox, Outbox(0) if session is None else session.outbox
        if session is not None:
            while (text := former.get_nowait()) is not None:
                session.outbox.put_first(text)
            self.session_id = session.session_id
        former.close()

    def take_answer(self, answer: str) -> bool:
        """Leave the answer to ``resume`` to the client."""
        return False

    @property
    def is_ready(self) -> bool:
        """Whether a frame that nothing waits before may be written at once: not where a task writes."""
        return False

    def write_now(self, text: str) -> None:
        """Write a frame that nothing waits before. To be called if the connection is ready."""
        raise NotImplementedError

    def wake(self) -> None:
        """Send the frames in the outbox."""
