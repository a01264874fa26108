"""The sessions of a process: those with a connection, those without one, and their end."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..handler_manager import HandlerManager
from ..settings import Settings
from .interface import ResumableSession
from .store import Past, Reason, Record, SessionStore

__all__ = ["SessionKeeper"]

logger = logging.getLogger(__name__)


class SessionKeeper:
    """Keeps the sessions whose connections have ended, within the window and the memory for them.

    It observes the sessions (see ``handlers.session.SessionObserver``). ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(self, settings: Settings, handler_manager: HandlerManager, clock: Callable[[], float]) -> None:
        self._window = settings.resume_window
        self._handlers = handler_manager
        self._clock = clock
        self.store = SessionStore(settings.resume_memory)
        #: Ids of sessions that wait for their state from another process.
        self.arriving: set[str] = set()

    def on_parked(self, session: ResumableSession) -> None:
        """Keep a session that has lost its connection."""
        if session.session_id in self.arriving:
            self._handlers.park(session)
            return
        record = self.store.get(session.session_id)
        if record is None or record.session is not session:  # its resume was refused
            self._handlers.unregister(session)
            return
        self._handlers.park(session)
        self.park(record)

    def park(self, record: Record) -> None:
        """Start the window of a session without a connection."""
        self.store.park(record, self._clock())
        self._make_room()

    def on_grown(self, session: ResumableSession) -> None:
        """Count the frames of a session without a connection."""
        record = self.store.get(session.session_id)
        if record is not None:
            self.store.count(record)
            self._make_room()

    def on_ended(self, session: ResumableSession, reason: Reason) -> None:
        """Forget a session that is over."""
        record = self.store.get(session.session_id)
        if record is not None and record.session is session:
            self.end(record, reason)
        else:
            self._handlers.unregister(session)

    def _make_room(self) -> None:
        while (record := self.store.surplus()) is not None:
            self.end(record, "expired")

    def end(self, record: Record, reason: Reason, moved_to: str = "") -> None:
        """Forget a session; ``moved_to`` is the instance id of the process that has it now."""
        session = record.session
        user_id = "" if session.identity is None else session.identity.user_id
        self.store.remove(record, Past(user_id, reason, moved_to))
        self._handlers.unregister(session)
        logger.debug("session %s: %s", session.session_id, "moved" if moved_to else reason)

    def end_all(self) -> None:
        """Forget all sessions: the process ends."""
        for record in self.store:
            self.end(record, "gone")

    def sweep(self, now: float) -> None:
        """End the sessions that no client came back to within the window; ``now`` is a time of the clock."""
        for record in self.store.overdue(now - self._window):
            self.end(record, "expired")
