"""Revocations of tokens, in every process of the gateway and in those that start later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from ..authentication.revocation import DEFAULT_KEPT, MAX_KEPT, Revocation, decode_revocation, fingerprint
from ..exceptions import MeshUnavailable
from ..handler_manager import HandlerManager
from ..protocol import CloseCode

__all__ = ["Revoker"]

logger = logging.getLogger(__name__)

#: Seconds between two looks for revocations whose tokens have expired.
FORGET_INTERVAL: Final = 60.0
#: Seconds until a record that could not be written is tried again.
RECORD_RETRY: Final = 1.0


class Revoker:
    """Applies revocations to this process, and records them for all processes.

    ``record`` writes a record; it raises MeshUnavailable when the record may not have been written. A record that
    cannot be written is tried again after ``retry`` seconds. An ``issued_before`` may be at most ``leeway`` seconds
    ahead of this machine's clock.
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
        self._leeway = leeway
        self._retry = retry
        self._record = record
        self._forget_at = 0.0
        #: Records without effect: invalid ones, and those with an ``issued_before`` in the future.
        self.unreadable = 0
        #: Revoked tokens of sessions, still to be recorded.
        self._to_write: deque[Revocation] = deque()
        self._wake = asyncio.Event()

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
        if issued_before is not None and self._is_future(issued_before, now):
            raise ValueError("issued_before: a time in the future; expected unix seconds, not milliseconds")
        revocation = Revocation(
            user_id=user_id,
            session_id=session_id,
            token_id=token_id,
            issued_before=issued_before,
            until=now + DEFAULT_KEPT if until is None else until,
        )
        self._apply(revocation, now)
        await self._record(msgspec.json.encode(revocation))

    async def run(self) -> None:
        """Record the tokens of revoked sessions, until cancelled."""
        self._wake = asyncio.Event()  # an event belongs to the event loop that first waits for it
        while True:
            while self._to_write:
                try:
                    await self._record(msgspec.json.encode(self._to_write[0]))
                except MeshUnavailable:
                    await asyncio.sleep(self._retry)
                else:
                    self._to_write.popleft()
            self._wake.clear()
            await self._wake.wait()

    def on_record(self, record: bytes) -> None:
        """Apply a record that this or another process wrote, now or earlier."""
        try:
            revocation = decode_revocation(record)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError):
            self.unreadable += 1
            logger.warning("a record of a revocation cannot be read; it has no effect")
            return
        now = time.time()
        if revocation.issued_before is not None and self._is_future(revocation.issued_before, now):
            # It would also refuse all tokens that are issued from now on, until the revocation expires.
            self.unreadable += 1
            logger.warning("a record of a revocation has an issued_before in the future; it has no effect")
            return
        self._apply(revocation, now)

    def _is_future(self, issued_before: float, now: float) -> bool:
        return issued_before > now + self._leeway

    def _apply(self, revocation: Revocation, now: float) -> None:
        if revocation.session_id is not None:
            handler = self._handlers.get_session(revocation.session_id)
            if handler is None or handler.identity is None:
                return  # the session is another process's
            # Revoke the token itself, in whatever process it is used next.
            ends = handler.identity.ends_at
            until = revocation.until if ends is None else ends
            revocation = Revocation(token=fingerprint(handler.identity.token), until=until)
            self._to_write.append(revocation)
            self._wake.set()
            handler.close(CloseCode.TOKEN_REVOKED, "token revoked")
        self._handlers.revocations.add(revocation, now)
        if revocation.until > now:
            self._handlers.close_revoked()

    def sweep(self, now: float) -> None:
        """Forget revocations whose tokens have expired; ``now`` is a time of a monotonic clock."""
        if now >= self._forget_at:
            self._forget_at = now + FORGET_INTERVAL
            self._handlers.revocations.forget(time.time())
