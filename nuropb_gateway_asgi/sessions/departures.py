"""Sessions that leave this process for another one, and their calls, which stay."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from ..fleet import Fleet
from ..identifiers import new_id
from ..routing import CallsInFlight, ClientCalls, EventRouter
from ..routing.calls import ClientCall
from ..tasks import TaskOwner
from ..wire.interface import Mesh
from .forwarding import Forwarder
from .handover import SUBJECT, CallState, Cancel, Claim, Claimed, Forward, State, Take
from .interface import ResumableSession
from .keeper import SessionKeeper
from .keys import digest_of
from .store import Past, Record

__all__ = ["Departures"]

logger = logging.getLogger(__name__)

#: Seconds between two attempts to forward an answer, and for all of them.
FORWARD_INTERVAL: Final = 0.5
FORWARD_TIMEOUT: Final = 15.0
#: Seconds that the end of a process waits for such answers at most, and between two looks.
FLUSH_TIMEOUT: Final = 1.0
FLUSH_INTERVAL: Final = 0.01

#: The answer to a take of a session that has ended, or whose client came back since.
_NOTHING: Final = b"null"

_encode = msgspec.json.encode


class Departures:
    """Gives sessions to the processes that claim them, and sends the answers of their calls after them.

    ``tasks`` owns the tasks that send; ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(
        self,
        keeper: SessionKeeper,
        fleet: Fleet,
        mesh: Mesh,
        events: EventRouter,
        calls: CallsInFlight,
        client_calls: ClientCalls,
        tasks: TaskOwner,
        clock: Callable[[], float],
    ) -> None:
        self._keeper = keeper
        self._fleet = fleet
        self._mesh = mesh
        self._events = events
        self._calls = calls
        self._client_calls = client_calls
        self._tasks = tasks
        self._clock = clock
        #: Claimed sessions by their claims, with the ids of the events that they got since.
        self._claims: dict[str, tuple[Record, list[str]]] = {}
        #: Correlation ids of the calls that stayed here, by session and place.
        self._behind: dict[tuple[str, str], str] = {}
        #: Answers on their way.
        self._sending = 0
        #: Sessions that have left.
        self.count = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any session."""
        return not (self._claims or self._behind or self._sending)

    def on_claim(self, claim: Claim) -> Claimed:
        """Reserve a session for another process, and name its topics."""
        found = self._keeper.store.find(digest_of(claim.key), claim.user_id)
        if isinstance(found, Past):
            return Claimed(reason=found.reason, moved_to=found.moved_to)
        session = found.session
        if not session.acknowledge(claim.received):
            return Claimed(bad_number=True)
        self.keep(found)
        if session.connected:  # the old connection is dead, but this process has not noticed
            session.detach()
            self._keeper.on_parked(session)
        session.outbox.settle()
        if session.outbox.overflowed:
            self._keeper.end(found, "overflow")
            return Claimed(reason="overflow")
        if self._keeper.store.get(session.session_id) is not found:
            return Claimed(reason="expired")
        events: list[str] = []
        found.claim, found.taker = new_id(), claim.instance_id
        self._claims[found.claim] = found, events
        session.tap = functools.partial(self._note_event, events)
        return Claimed(claim=found.claim, topics=self._events.topics_of(session))

    def keep(self, record: Record) -> None:
        """Withdraw a session from the process that has claimed it: its client came back since, here or elsewhere."""
        if record.claim is not None and self._claims.pop(record.claim, None) is not None:
            record.session.tap = None
        record.claim = None

    def _note_event(self, events: list[str], text: str) -> None:
        if self._events.delivering is not None:
            events.append(self._events.delivering)

    def on_take(self, take: Take, reply: Callable[[bytes], None]) -> None:
        """Hand a claimed session over, once every event that was routed to this process before is in its buffer."""
        self._mesh.when_events_are_in(functools.partial(self._finish_answers, take.claim, reply))

    def _finish_answers(self, claim: str, reply: Callable[[bytes], None]) -> None:
        """Hand a session over once its subscriptions in the past are answered."""
        if claim in self._claims:
            session = self._claims[claim][0].session
            self._events.history.when_answered(session, functools.partial(self._hand_over, claim, reply))
        else:
            reply(_NOTHING)

    def _hand_over(self, claim: str, reply: Callable[[bytes], None]) -> None:
        record, events = self._claims.pop(claim, (None, []))
        if record is None or record.claim != claim:
            reply(_NOTHING)
            return
        session = record.session
        session.tap = None
        session.outbox.settle()
        if session.outbox.overflowed:
            self._keeper.end(record, "overflow")
            reply(_NOTHING)
            return
        state = State(
            session_id=session.session_id,
            kept=session.outbox.kept,
            topics=self._events.topics_of(session),
            calls=self._leave_behind(session, record.taker),
            events=events,
            positions=self._events.positions_of(session),
        )
        reply(_encode(state))
        self.count += 1
        self._keeper.end(record, "gone", record.taker)

    def sweep(self, now: float) -> None:
        """Forget the claims of sessions that have ended."""
        for claim, (record, _) in tuple(self._claims.items()):
            if record.claim != claim:
                del self._claims[claim]

    # --- calls that stay --------------------------------------------------------------------------------------

    def _leave_behind(self, session: ResumableSession, process: str) -> list[CallState]:
        """Have the answers of a session's calls follow it to another process; return the calls."""
        calls = []
        for key, correlation_id in self._client_calls.detach(session).items():
            call = self._calls.table.get(correlation_id)
            if not isinstance(call, ClientCall):
                continue
            place = session.session_id, key
            self._behind[place] = correlation_id
            send = functools.partial(self._send, place, process)
            call.follow(session, Forwarder(session.session_id, session.identity, send), key)
            calls.append(CallState(key, call.id_of(key), call.trace_id, call.message.deadline - self._clock()))
        return calls

    def _send(self, place: tuple[str, str], process: str, text: str) -> None:
        self._behind.pop(place, None)
        self._sending += 1
        self._tasks.start_soon(self._forward, process, Forward(*place, text), name="forwarded answer")

    async def _forward(self, process: str, message: Forward) -> None:
        """Bring the answer of a call to its session, whatever the mesh does meanwhile."""
        question = _encode(message)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORWARD_TIMEOUT):
                    while True:
                        address = self._fleet.address_of(process)
                        if address is not None and await self._fleet.ask_one(address, SUBJECT, question) is not None:
                            return
                        await asyncio.sleep(FORWARD_INTERVAL)
            logger.warning("an answer could not follow its session to process %s", process)
        finally:
            self._sending -= 1

    def on_cancel(self, cancel: Cancel) -> None:
        """Abandon a call that stayed here."""
        correlation_id = self._behind.pop((cancel.session_id, cancel.call), None)
        if correlation_id is not None:
            self._calls.abandon(correlation_id)

    async def flush(self) -> None:
        """Wait until answers have followed their sessions, at most FLUSH_TIMEOUT seconds."""
        end = self._clock() + FLUSH_TIMEOUT
        while self._sending and self._clock() < end:  # noqa: ASYNC110 - once in a process's life
            await asyncio.sleep(FLUSH_INTERVAL)
