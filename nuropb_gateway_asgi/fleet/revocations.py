"""Revocations of tokens, in every process of the gateway and in those that start later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from ..authentication.revocation import (
    DEFAULT_KEPT,
    MAX_KEPT,
    Revocation,
    Unrevocation,
    decode_record,
    encode_record,
)
from ..authentication.session_tokens import Affected, affected_by
from ..exceptions import MeshUnavailable
from ..handler_manager import Handler, HandlerManager
from ..protocol import CloseCode

__all__ = ["Revoker"]

logger = logging.getLogger(__name__)

#: Seconds between two looks for revocations whose tokens have expired.
FORGET_INTERVAL: Final = 60.0
#: Seconds until a record that could not be written is tried again.
RECORD_RETRY: Final = 1.0
#: Connections that are looked at in one turn of the event loop: well under a millisecond's work.
CLOSE_AT_ONCE: Final = 100
#: Seconds by which the clock of the process that wrote a record may be ahead, or the leeway if that is more.
CLOCK_SKEW: Final = 300.0


class Revoker:
    """Applies revocations to this process, and records them for all processes.

    ``record`` writes a record; it raises MeshUnavailable when the record may not have been written. A record that
    cannot be written is tried again after ``retry`` seconds. An ``issued_before`` may be at most ``leeway`` seconds
    ahead of this machine's clock; in a record at most :data:`CLOCK_SKEW` seconds, if that is more.

    From :meth:`begin` until the mesh has called :meth:`on_records_read`, no token is accepted: the records may revoke
    it. A revocation finds the connections of its user, session or token by name. They are closed by a task, so that
    many records in a row cost other clients no time.
    """

    def __init__(
        self,
        handler_manager: HandlerManager,
        record: Callable[[bytes], Awaitable[None]],
        *,
        leeway: float = 0.0,
        retry: float = RECORD_RETRY,
    ) -> None:
        self._handlers = handler_manager
        self._revocations = handler_manager.revocations
        self._leeway = leeway
        self._retry = retry
        self._record = record
        self._forget_at = 0.0
        #: Records read since the start.
        self.read = 0
        #: Records without effect: invalid ones, and those with an ``issued_before`` in the future.
        self.unreadable = 0
        #: Revoked tokens of sessions, still to be recorded.
        self._to_write: deque[Revocation] = deque()
        #: Properties of tokens that were revoked, whose connections are still to be closed.
        self._to_close: dict[Affected, None] = {}
        self._wake = asyncio.Event()
        self._wake_closer = asyncio.Event()

    # --- the records from before the start --------------------------------------------------------------------

    def begin(self) -> None:
        """Accept no token until the records are read: the gateway starts."""
        self._revocations.complete = False
        self.read = 0

    def on_records_read(self) -> None:
        """Accept tokens: all records from before the start are read, or there are none."""
        self._revocations.complete = True

    @property
    def problem(self) -> str | None:
        """The reason why no token is accepted yet, in words for an operator, or None."""
        return None if self._revocations.complete else f"revocations are being read ({self.read})"

    # --- from the application and other services --------------------------------------------------------------

    async def revoke(
        self,
        *,
        user_id: str | None,
        session_id: str | None,
        token_id: str | None,
        issued_before: float | None,
        until: float | None,
    ) -> None:
        """Revoke in this process at once, and in all processes once the record is written."""
        now = time.time()
        if until is not None and not now < until <= now + MAX_KEPT:
            raise ValueError(f"until: not a time in the future, at most {MAX_KEPT / 86400:g} days from now")
        if user_id is not None and issued_before is None:
            issued_before = now
        if issued_before is not None and issued_before > now + self._leeway:
            raise ValueError("issued_before: a time in the future; expected unix seconds, not milliseconds")
        revocation = Revocation(
            user_id=user_id,
            session_id=session_id,
            token_id=token_id,
            issued_before=issued_before,
            until=now + DEFAULT_KEPT if until is None else until,
        )
        self._apply(revocation, now)
        await self._close_due()
        await self._record(encode_record(revocation))

    async def unrevoke(
        self, *, user_id: str | None, session_id: str | None, token_id: str | None, issued_before: float | None
    ) -> None:
        """Take a revocation back, in this process at once, and in all processes once the record is written."""
        now = time.time()
        if user_id is not None and issued_before is None:
            issued_before = now + self._skew
        unrevocation = Unrevocation(
            Revocation(
                user_id=user_id, session_id=session_id, token_id=token_id, issued_before=issued_before, until=now
            )
        )
        self._take_back(unrevocation)
        await self._record(encode_record(unrevocation))

    async def run(self) -> None:
        """Record the tokens of revoked sessions, until cancelled."""
        self._wake = asyncio.Event()  # an event belongs to the event loop that first waits for it
        while True:
            while self._to_write:
                revocation = self._to_write[0]
                try:
                    await self._record(encode_record(revocation))
                except MeshUnavailable:
                    await asyncio.sleep(self._retry)
                else:
                    # Taken back meanwhile, it is not there any more.
                    if self._to_write and self._to_write[0] is revocation:
                        self._to_write.popleft()
            self._wake.clear()
            await self._wake.wait()

    async def close_connections(self) -> None:
        """Close the connections whose tokens other processes have revoked, until cancelled."""
        self._wake_closer = asyncio.Event()
        while True:
            await self._close_due()
            self._wake_closer.clear()
            await self._wake_closer.wait()

    # --- from the mesh, and from connections ------------------------------------------------------------------

    def on_record(self, record: bytes) -> None:
        """Apply a record that this or another process wrote, now or earlier."""
        self.read += 1
        try:
            decoded = decode_record(record)
        except ValueError:
            self.unreadable += 1
            logger.warning("a record of a revocation cannot be read; it has no effect")
            return
        if isinstance(decoded, Unrevocation):
            self._take_back(decoded)
            return
        now = time.time()
        if decoded.issued_before is not None and decoded.issued_before > now + self._skew:
            # It would also refuse all tokens that are issued from now on, until the revocation expires.
            self.unreadable += 1
            logger.warning("a record of a revocation has an issued_before in the future; it has no effect")
            return
        self._apply(decoded, now)

    def on_refreshed(self, handler: Handler) -> None:
        """Revoke the newer token of a session that was revoked while the token was being checked."""
        if self._handlers.tokens.is_revoked(handler.session_id):
            now = time.time()
            self._revoke_session(Revocation(session_id=handler.session_id, until=now + DEFAULT_KEPT), now)

    def sweep(self, now: float) -> None:
        """Forget revocations whose tokens have expired; ``now`` is a time of a monotonic clock."""
        if now >= self._forget_at and self._revocations.forget(time.time()):
            self._forget_at = now + FORGET_INTERVAL

    @property
    def _skew(self) -> float:
        return max(self._leeway, CLOCK_SKEW)

    def _apply(self, revocation: Revocation, now: float) -> None:
        if revocation.session_id is not None:
            self._revoke_session(revocation, now)
        else:
            # Another transport of this process may have added it already: they share the revocations.
            self._revocations.add(revocation, now)
            if revocation.until > now:
                self._close_soon(affected_by(revocation))

    def _revoke_session(self, revocation: Revocation, now: float) -> None:
        """Revoke the tokens that a session of this process has used, in whatever process they are used next."""
        session_id = revocation.session_id
        assert session_id is not None  # noqa: S101 - the caller has checked it
        tokens = self._handlers.tokens
        tokens.revoke(session_id)
        for token, ends_at in tokens.used_by(session_id):
            until = revocation.until if ends_at is None else ends_at
            of_token = Revocation(token=token, of_session=session_id, until=until)
            if self._revocations.add(of_token, now):
                self._to_write.append(of_token)
            self._close_soon(affected_by(of_token))
        self._wake.set()
        self._handlers.close(session_id, CloseCode.TOKEN_REVOKED, "token revoked")

    def _take_back(self, unrevocation: Unrevocation) -> None:
        revocation = unrevocation.unrevoke
        self._revocations.remove(revocation)
        if revocation.session_id is not None and self._to_write:
            left = [each for each in self._to_write if each.of_session != revocation.session_id]
            self._to_write.clear()
            self._to_write.extend(left)

    def _close_soon(self, affected: Affected) -> None:
        if self._handlers.tokens.any(affected):
            self._to_close[affected] = None
            self._wake_closer.set()

    async def _close_due(self) -> None:
        """Close the connections whose tokens were revoked, a bounded number in each turn of the event loop."""
        room = CLOSE_AT_ONCE
        while self._to_close:
            affected = next(iter(self._to_close))
            del self._to_close[affected]
            sessions = self._handlers.tokens.sessions(affected)
            for at in range(0, len(sessions), CLOSE_AT_ONCE):
                some = sessions[at : at + CLOSE_AT_ONCE]
                if len(some) > room:
                    await asyncio.sleep(0)
                    room = CLOSE_AT_ONCE
                self._handlers.close_revoked(some)
                room -= len(some)
