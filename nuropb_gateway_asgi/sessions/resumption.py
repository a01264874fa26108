"""Resuming: the frames ``resume`` and ``ack``, and sessions that move between processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw

from ..exceptions import MeshUnavailable
from ..fleet import Fleet
from ..handler_manager import Handler, HandlerManager
from ..identifiers import new_id
from ..protocol import (
    Ack,
    ErrorCode,
    Failure,
    Resume,
    encode_error,
    encode_failure,
    encode_json,
    encode_response,
)
from ..routing import CallsInFlight, ClientCalls, EventRouter
from ..routing.calls import ClientCall
from ..settings import Settings
from ..tasks import TaskOwner
from ..wire.interface import CallMessage, Mesh
from .forwarding import ForwardedCall, Forwarder
from .handover import CallState, Cancel, Claim, Claimed, Forward, State, Take, decode_question
from .interface import ResumableConnection, ResumableSession
from .keys import digest_of, make_key, process_of
from .store import Past, Reason, Record, SessionStore

__all__ = ["Resumption"]

logger = logging.getLogger(__name__)

#: Seconds that a forwarded call gets beyond its deadline, for the answer to come from the other process.
FORWARD_GRACE: Final = 2.0
#: Seconds between two attempts to forward an answer, and for all of them.
FORWARD_INTERVAL: Final = 0.5
FORWARD_TIMEOUT: Final = 15.0
#: Seconds that the end of a process waits for such answers at most, and between two looks.
FLUSH_TIMEOUT: Final = 1.0
FLUSH_INTERVAL: Final = 0.01
_SUBJECT: Final = "session"
_UNKNOWN_OUTCOME: Final = Failure(ErrorCode.TIMEOUT, "The process with this call has gone; whether it ran is unknown")
_BAD_NUMBER: Final = Failure(ErrorCode.BAD_REQUEST, "payload.received: not a number of frames that were sent")

_encode = msgspec.json.encode
_decode_claimed = msgspec.json.Decoder(Claimed).decode
_decode_state = msgspec.json.Decoder(State).decode


class _Found(NamedTuple):
    """A session that comes from another process, and the address of that."""

    address: str
    state: State


class Resumption:
    """The sessions of a connection kind that clients may come back to.

    It observes sessions and peer processes. ``clock`` is a monotonic clock, in seconds. Within its context it owns the
    tasks that bring sessions, and answers of calls, from one process to another.
    """

    def __init__(
        self,
        settings: Settings,
        handler_manager: HandlerManager,
        fleet: Fleet,
        mesh: Mesh,
        events: EventRouter,
        calls: CallsInFlight,
        client_calls: ClientCalls,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._handlers = handler_manager
        self._fleet = fleet
        self._mesh = mesh
        self._events = events
        self._calls = calls
        self._client_calls = client_calls
        self._clock = clock
        self._tasks = TaskOwner()
        self.store = SessionStore(settings.resume_memory)
        #: Answers to ``resume``, by reason; "resumed" for those that brought a session back.
        self.answers: Counter[str] = Counter()
        #: Sessions that left for another process, and that came from one.
        self.handed_over = self.taken_over = 0
        #: Claimed sessions by their claims, with the ids of the events that they got since.
        self._claims: dict[str, tuple[Record, list[str]]] = {}
        #: Correlation ids of calls that stayed behind here, and of calls that stayed behind elsewhere.
        self._behind: dict[tuple[str, str], str] = {}
        self._elsewhere: dict[tuple[str, str], str] = {}
        #: Ids of sessions that wait for their state from another process.
        self._fetching: set[str] = set()
        #: Answers on their way to another process.
        self._forwarding = 0
        fleet.bind_observer(self)
        fleet.bind_answerer(_SUBJECT, self.on_question)

    async def __aenter__(self) -> Resumption:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for record in self.store:
            self._end(record, "ended")
        await self._tasks.__aexit__(exc_type, exc, traceback)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any session."""
        return not (len(self.store) or self._claims or self._behind or self._elsewhere)

    @property
    def may_be_taken(self) -> bool:
        """Whether there are sessions, and other processes that clients may take them to."""
        return bool(len(self.store) and self._fleet.members)

    # --- frames of clients ------------------------------------------------------------------------------------

    def on_ack(self, handler: Handler, frame: Ack) -> None:
        """Drop the frames that the client has."""
        if not isinstance(handler, ResumableSession):
            failure = Failure(ErrorCode.BAD_REQUEST, "ack: this session is not resumable; send resume first")
            handler.send_frame(encode_error(failure))
        elif not handler.acknowledge(frame.received):
            handler.send_frame(encode_error(_BAD_NUMBER))

    def on_resume(self, handler: Handler, frame: Resume) -> None:
        """Make a session resumable, or bring one back; answer once."""
        window = self._settings.resume_window
        if isinstance(handler, ResumableSession):
            self._refuse(handler, frame, "this session is resumable already")
        elif not (window and isinstance(handler, ResumableConnection) and handler.is_resumable):
            self.answers["off"] += 1
            result = {
                "resumed": False,
                "reason": "off",
                "session_id": handler.session_id,
                "key": "",
                "window": 0.0,
                "received": 0,
            }
            handler.send_frame(encode_response(frame.id, frame.trace_id, encode_json(result)))
        elif frame.key is None:
            self._start_anew(self._install(handler), frame, "new")
        elif self._client_calls.knows(handler) or self._events.topics_of(handler):
            self._refuse(handler, frame, "a key can be used only before the first call")
        else:
            self._come_back(handler, frame, frame.key)

    def _refuse(self, handler: Handler, frame: Resume, reason: str) -> None:
        failure = Failure(ErrorCode.BAD_REQUEST, f"resume: {reason}")
        handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))

    def _come_back(self, handler: ResumableConnection, frame: Resume, key: str) -> None:
        assert handler.identity is not None  # noqa: S101 - it is registered
        found = self.store.find(digest_of(key), handler.identity.user_id)
        if isinstance(found, Record) and found.claim is not None:
            found = Past(handler.identity.user_id, "unknown")
        if isinstance(found, Record):
            if found.session.acknowledge(frame.received):
                self._go_on(found, handler, frame, digest_of(key))
            else:
                handler.send_frame(encode_failure(frame.id, frame.trace_id, _BAD_NUMBER))
            return
        process = found.moved_to or process_of(key)
        session = self._install(handler)
        if found.reason != "unknown" and not found.moved_to:
            self._start_anew(session, frame, found.reason)
        elif not process or process == self._settings.instance_id:
            self._start_anew(session, frame, "unknown")
        else:
            self._tasks.start_soon(self._fetch, session, frame, key, process, name="session")

    def _install(self, connection: ResumableConnection) -> ResumableSession:
        """Register a session in the place of a connection. It sends nothing before its answer."""
        session = connection.open_session()
        session.bind_observer(self)
        self._handlers.replace(connection, session)
        self._events.replace(connection, session)
        self._client_calls.replace(connection, session)
        session.attach(connection)
        return session

    def _start_anew(self, session: ResumableSession, frame: Resume, reason: Reason) -> None:
        """Answer that the session is a new one."""
        key = make_key(self._settings.instance_id)
        self.store.add(session, digest_of(key))
        self._answer(session, frame, key, {"resumed": False, "reason": reason}, received=0)
        self.answers[reason] += 1

    def _go_on(self, record: Record, connection: ResumableConnection, frame: Resume, used: bytes) -> None:
        """Give a session of this process a new connection."""
        session = record.session
        if session.connected:  # the old connection is dead, but nobody has noticed
            session.detach()
            self._handlers.park(session)
        self._handlers.unpark(session, connection)
        self.store.unpark(record)
        session.attach(connection)
        self._renew_and_answer(record, frame, used)

    def _renew_and_answer(self, record: Record, frame: Resume, used: bytes) -> None:
        session = record.session
        key = make_key(self._settings.instance_id)
        self.store.renew(record, digest_of(key), used)
        self._events.end_denied(session)
        session.outbox.settle()
        result = {
            "resumed": True,
            "replay": len(session.outbox.kept),
            "in_flight": self._client_calls.ids(session),
            "topics": self._events.topics_of(session),
        }
        self._answer(session, frame, key, result, received=frame.received)
        self.answers["resumed"] += 1
        logger.debug("session %s: resumed", session.session_id)

    def _answer(
        self, session: ResumableSession, frame: Resume, key: str, result: dict[str, Any], *, received: int
    ) -> None:
        window = self._settings.resume_window
        result |= {"session_id": session.session_id, "key": key, "window": window, "received": received}
        session.go_on(encode_response(frame.id, frame.trace_id, encode_json(result)))

    # --- sessions without a connection ------------------------------------------------------------------------

    def on_parked(self, session: ResumableSession) -> None:
        """Keep a session that has lost its connection."""
        if session.session_id in self._fetching:
            self._handlers.park(session)
            return
        record = self.store.get(session.session_id)
        if record is None or record.session is not session:  # its resume was refused
            self._handlers.unregister(session)
            return
        self._handlers.park(session)
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
            self._end(record, reason)
        else:
            self._handlers.unregister(session)

    def _make_room(self) -> None:
        while (record := self.store.surplus()) is not None:
            self._end(record, "expired")

    def _end(self, record: Record, reason: Reason, moved_to: str = "") -> None:
        session = record.session
        user_id = "" if session.identity is None else session.identity.user_id
        self.store.remove(record, Past(user_id, reason, moved_to))
        self._handlers.unregister(session)
        logger.debug("session %s: %s", session.session_id, "moved" if moved_to else reason)

    def sweep(self, now: float) -> None:
        """End the sessions that no client came back to within the window; ``now`` is a time of the clock."""
        for record in self.store.overdue(now - self._settings.resume_window):
            self._end(record, "expired")

    # --- a session that comes from another process ------------------------------------------------------------

    async def _fetch(self, session: ResumableSession, frame: Resume, key: str, process: str) -> None:
        """Bring a session from the process that has it, and answer."""
        heard: list[tuple[str | None, str]] = []
        session.tap = lambda text: heard.append((self._events.delivering, text))
        self._fetching.add(session.session_id)
        try:
            found = await self._take(session, frame, key, process)
        finally:
            session.tap = None
            self._fetching.discard(session.session_id)
        if self._handlers.get_session(session.session_id) is not session:
            return  # the client has ended it meanwhile
        if isinstance(found, _Found):
            self._continue(session, frame, found, heard, key)
        elif not session.connected:
            self._handlers.unregister(session)
        elif isinstance(found, Failure):
            session.go_on(encode_failure(frame.id, frame.trace_id, found))
        else:
            self._start_anew(session, frame, found)

    async def _take(
        self, session: ResumableSession, frame: Resume, key: str, process: str
    ) -> _Found | Reason | Failure:
        """Return the session's state from the process that has it, or the reason why there is none."""
        assert session.identity is not None  # noqa: S101 - it is registered
        claim = _encode(Claim(key, session.identity.user_id, frame.received, self._settings.instance_id))
        for _ in range(2):  # a session may have moved on
            address = self._fleet.address_of(process)
            if address is None:
                return "gone"
            answer = await self._fleet.ask_one(address, _SUBJECT, claim)
            if answer is None:
                return "gone"
            try:
                claimed = _decode_claimed(answer)
            except msgspec.MsgspecError:
                return "gone"
            if not claimed.moved_to:
                break
            process = claimed.moved_to
        if claimed.bad_number:
            return _BAD_NUMBER
        if claimed.reason is not None:
            return claimed.reason
        try:
            await self._events.adopt(session, claimed.topics)
            answer = await self._fleet.ask_one(address, _SUBJECT, _encode(Take(claimed.claim)))
            if answer is not None:
                return _Found(address, _decode_state(answer))
        except (TimeoutError, MeshUnavailable, msgspec.MsgspecError):
            logger.debug("session %s: another process has it, but it could not be taken", session.session_id)
        self._events.forget(session)
        return "gone"

    def _continue(
        self,
        session: ResumableSession,
        frame: Resume,
        found: _Found,
        heard: list[tuple[str | None, str]],
        key: str,
    ) -> None:
        """Continue where the session ended in the old process."""
        address, state = found
        old = session.session_id
        known = set(state.events)
        twice = [text for id_, text in heard if id_ in known]
        own = session.outbox.take_waiting()
        session.outbox.take_over(frame.received, state.kept)
        for text in own:
            if not any(text is each for each in twice):
                session.outbox.put(text)
        self._handlers.rename(session, state.session_id)
        self._events.rename(old, state.session_id)
        self._client_calls.rename(old, state.session_id)
        for call in state.calls:
            self._expect(session, call, address)
        record = self.store.add(session, digest_of(key))
        self.taken_over += 1
        self._renew_and_answer(record, frame, digest_of(key))
        if not session.connected:  # the client may come back with the key that it used
            self.store.park(record, self._clock())

    def _expect(self, session: ResumableSession, state: CallState, origin: str) -> None:
        """Enter a call that another process has into the table of calls in flight."""
        places = self._client_calls.places_of(session)
        correlation_id, timeout = new_id(), max(state.seconds, 0.0) + FORWARD_GRACE
        deadline = self._clock() + timeout
        trace_id = state.trace_id or ""
        message = CallMessage("request", correlation_id, trace_id, "", "", b"{}", b"{}", deadline, timeout)
        call = ForwardedCall(message, session, state.id, state.trace_id, places)
        call.key, call.origin, call.on_released = state.call, origin, self._on_released
        places[state.call] = correlation_id
        self._elsewhere[session.session_id, state.call] = correlation_id
        self._calls.table.add(call)

    def _on_released(self, call: ForwardedCall) -> None:
        """Have the other process abandon a call that ended here without its answer."""
        place = call.handler.session_id, call.key
        if self._elsewhere.pop(place, None) is not None:
            self._tasks.start_soon(self._cancel, call.origin, *place, name="cancel")

    async def _cancel(self, address: str, session_id: str, key: str) -> None:
        await self._fleet.ask_one(address, _SUBJECT, _encode(Cancel(session_id, key)))

    # --- questions of other processes -------------------------------------------------------------------------

    def on_question(self, question: Raw, reply: Callable[[bytes], None]) -> None:
        """Answer the question of another process, now or later. Raises msgspec.MsgspecError for an unknown one."""
        asked = decode_question(question)
        if isinstance(asked, Claim):
            reply(_encode(self._on_claim(asked)))
        elif isinstance(asked, Take):
            self._on_take(asked, reply)
        elif isinstance(asked, Forward):
            self._on_forward(asked)
            reply(b"true")
        else:
            correlation_id = self._behind.pop((asked.session_id, asked.call), None)
            if correlation_id is not None:
                self._calls.abandon(correlation_id)
            reply(b"null")

    def _on_claim(self, claim: Claim) -> Claimed:
        found = self.store.find(digest_of(claim.key), claim.user_id)
        if isinstance(found, Past):
            return Claimed(reason=found.reason, moved_to=found.moved_to)
        session = found.session
        if found.claim is not None:
            return Claimed(reason="unknown")
        if not session.acknowledge(claim.received):
            return Claimed(bad_number=True)
        if session.connected:
            session.detach()
            self.on_parked(session)
            if self.store.get(session.session_id) is None:
                return Claimed(reason="expired")
        found.claim, found.taker = new_id(), claim.instance_id
        events: list[str] = []
        self._claims[found.claim] = found, events
        session.tap = functools.partial(self._note_event, events)
        return Claimed(claim=found.claim, topics=self._events.topics_of(session))

    def _note_event(self, events: list[str], text: str) -> None:
        if self._events.delivering is not None:
            events.append(self._events.delivering)

    def _on_take(self, take: Take, reply: Callable[[bytes], None]) -> None:
        self._mesh.when_events_are_in(functools.partial(self._hand_over, take.claim, reply))

    def _hand_over(self, claim: str, reply: Callable[[bytes], None]) -> None:
        record, events = self._claims.pop(claim, (None, []))
        if record is None or record.claim != claim:
            return  # it has ended meanwhile, and the other process hears nothing
        session = record.session
        session.tap = None
        session.outbox.settle()
        if session.outbox.overflowed:
            self._end(record, "overflow")
            return
        state = State(
            session_id=session.session_id,
            acknowledged=session.outbox.acknowledged,
            kept=session.outbox.kept,
            topics=self._events.topics_of(session),
            calls=self._leave_behind(session, record.taker),
            events=events,
        )
        reply(_encode(state))
        self.handed_over += 1
        self._end(record, "gone", record.taker)

    def _leave_behind(self, session: ResumableSession, process: str) -> list[CallState]:
        """Have the answers of a session's calls follow it to another process; return the calls."""
        calls = []
        for key, correlation_id in self._client_calls.detach(session).items():
            call = self._calls.table.get(correlation_id)
            if not isinstance(call, ClientCall):
                continue
            place = session.session_id, key
            self._behind[place] = correlation_id
            call.handler = Forwarder(
                session.session_id, session.identity, functools.partial(self._send, place, process)
            )
            seconds = call.message.deadline - self._clock()
            calls.append(CallState(key, call.id, call.trace_id, seconds))
        return calls

    def _send(self, place: tuple[str, str], process: str, text: str) -> None:
        self._behind.pop(place, None)
        self._tasks.start_soon(self._forward, process, Forward(*place, text), name="forward")

    async def _forward(self, process: str, message: Forward) -> None:
        """Bring the answer of a call to its session, whatever the mesh does meanwhile."""
        self._forwarding += 1
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORWARD_TIMEOUT):
                    while True:
                        address = self._fleet.address_of(process)
                        if address is not None and await self._fleet.ask_one(address, _SUBJECT, _encode(message)):
                            return
                        await asyncio.sleep(FORWARD_INTERVAL)
            logger.warning("an answer could not follow its session to process %s", process)
        finally:
            self._forwarding -= 1

    async def flush(self) -> None:
        """Wait until answers have followed their sessions, at most FLUSH_TIMEOUT seconds."""
        await asyncio.sleep(0)  # the tasks of the last answers begin
        end = self._clock() + FLUSH_TIMEOUT
        while self._forwarding and self._clock() < end:  # noqa: ASYNC110 - once in a process's life
            await asyncio.sleep(FLUSH_INTERVAL)

    def _on_forward(self, message: Forward) -> None:
        correlation_id = self._elsewhere.pop((message.session_id, message.call), None)
        call = None if correlation_id is None else self._calls.take(correlation_id)
        if isinstance(call, ForwardedCall):
            call.handler.send_frame(message.text)

    # --- peer processes: see fleet.members.FleetObserver ------------------------------------------------------

    def on_news(self, address: str, topic: str, news: Raw) -> None:
        """Take no news."""

    def on_member(self, address: str, new: bool) -> None:
        """Take no note of a new process."""

    def on_gone(self, address: str) -> None:
        """Answer the calls that a process has taken with it."""
        for place, correlation_id in tuple(self._elsewhere.items()):
            call = self._calls.table.get(correlation_id)
            if isinstance(call, ForwardedCall) and call.origin == address:
                self._elsewhere.pop(place, None)
                self._calls.fail(correlation_id, _UNKNOWN_OUTCOME)
