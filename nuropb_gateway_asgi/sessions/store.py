"""The resumable sessions of a process, by the digests of their keys, and how former ones ended. Pure.

Times are of one monotonic clock, in seconds, and given by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple, TypeAlias

from ..generation_cache import GenerationCache
from ..limits.memory import SharedMemory
from .interface import ResumableSession

__all__ = ["Past", "Reason", "Record", "SessionStore", "user_of"]

#: The reasons why a session cannot be resumed, for clients.
Reason: TypeAlias = Literal["new", "expired", "overflow", "unknown", "gone", "ended", "off"]
#: Former sessions whose end is remembered at least.
REMEMBERED: Final = 10_000
#: Bytes that a session without a connection takes beside its frames: entries in tables, subscriptions, calls.
SESSION_OVERHEAD: Final = 4096


def user_of(session: ResumableSession) -> str:
    """Return the user id of a session."""
    return "" if session.identity is None else session.identity.user_id


class Record:
    """A resumable session with its keys."""

    __slots__ = ("claim", "digests", "parked_at", "session", "taker")

    def __init__(self, session: ResumableSession, digest: bytes) -> None:
        self.session = session
        #: The digest of the latest key. That of the key before follows while the client may not have the latest one.
        self.digests = [digest]
        #: When the session lost its connection; None while it has one.
        self.parked_at: float | None = None
        #: The id under which another process is about to take the session, and that process's instance id.
        self.claim: str | None = None
        self.taker = ""


class Past(NamedTuple):
    """The end of a session: whose it was, why it ended, and the instance id of the process that has it now."""

    user_id: str
    reason: Reason
    moved_to: str = ""


class SessionStore:
    """The resumable sessions of a process.

    ``memory`` bounds the bytes of those without a connection, and ``per_user`` each user's number of them.
    """

    def __init__(self, memory: int, per_user: float) -> None:
        self._memory: SharedMemory[str] = SharedMemory(memory, per_user)
        self._by_digest: dict[bytes, Record] = {}
        self._by_session: dict[str, Record] = {}
        #: Sessions without a connection, those that lost it first at the beginning.
        self._parked: dict[str, Record] = {}
        self._past: GenerationCache[bytes, Past] = GenerationCache(REMEMBERED)

    def __len__(self) -> int:
        return len(self._by_session)

    def __iter__(self) -> Iterator[Record]:
        return iter(tuple(self._by_session.values()))

    @property
    def remembered(self) -> int:
        """The number of keys of former sessions whose end is remembered."""
        return len(self._past)

    @property
    def parked(self) -> int:
        """The number of sessions without a connection."""
        return len(self._parked)

    @property
    def parked_size(self) -> int:
        """Bytes of the sessions without a connection."""
        return self._memory.size

    def add(self, session: ResumableSession, digest: bytes) -> Record:
        """Add a session with its first key."""
        record = self._by_digest[digest] = self._by_session[session.session_id] = Record(session, digest)
        return record

    def get(self, session_id: str) -> Record | None:
        """Return the record of a session, or None."""
        return self._by_session.get(session_id)

    def find(self, digest: bytes, user_id: str) -> Record | Past:
        """Return the session of a key, or how it ended. Keys of other users are as unknown as those that never were."""
        record = self._by_digest.get(digest)
        if record is None:
            past = self._past.get(digest)
            return past if past is not None and past.user_id == user_id else Past(user_id, "unknown")
        identity = record.session.identity
        if identity is None or identity.user_id != user_id:
            return Past(user_id, "unknown")
        if digest != record.digests[0] and (record.session.proven or record.session.connected):
            return Past(user_id, "unknown")  # a used key
        if record.session.outbox.overflowed:
            return Past(user_id, "overflow")
        return record

    def renew(self, record: Record, digest: bytes, used: bytes) -> None:
        """Give a session its next key. The used one is good once more if the client never gets the next one."""
        for former in record.digests:
            if former != used:
                self._by_digest.pop(former, None)
        record.digests = [digest, used]
        self._by_digest[digest] = record

    def park(self, record: Record, now: float) -> None:
        """Note that a session has lost its connection."""
        record.parked_at = now
        self._parked[record.session.session_id] = record
        self.count(record)

    def unpark(self, record: Record) -> None:
        """Note that a session has a connection again."""
        self._parked.pop(record.session.session_id, None)
        self._memory.remove(record.session.session_id)
        record.parked_at = record.claim = None

    def count(self, record: Record) -> None:
        """Count the bytes of a session without a connection anew."""
        if record.parked_at is not None:
            session = record.session
            self._memory.put(session.session_id, user_of(session), SESSION_OVERHEAD + session.outbox.memory)

    def remove(self, record: Record, past: Past | None) -> None:
        """Forget a session, but for its end."""
        self.unpark(record)
        self._by_session.pop(record.session.session_id, None)
        for digest in record.digests:
            self._by_digest.pop(digest, None)
            if past is not None:
                self._past.add(digest, past)

    def surplus(self, user_id: str) -> Record | None:
        """Return the session that has to end, after one of ``user_id`` lost its connection or grew; None if all fit."""
        session_id = self._memory.surplus(user_id)
        return None if session_id is None else self._parked[session_id]

    def overdue(self, before: float) -> Iterator[Record]:
        """Return the sessions that lost their connection before a time."""
        for record in tuple(self._parked.values()):
            if record.parked_at is None or record.parked_at > before:
                return
            yield record
