"""Resuming: the frames ``resume`` and ``ack`` of clients, and questions of other processes about sessions."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from ..fleet import Fleet
from ..handler_manager import Handler, HandlerManager
from ..limits.prices import extra_for_topics
from ..protocol import Ack, ErrorCode, Failure, Resume, encode_error, encode_failure, encode_json, encode_response
from ..routing import CallsInFlight, ClientCalls, EventRouter
from ..settings import Settings
from ..tasks import TaskOwner
from ..topics import GATEWAY_TOPICS, matches
from ..wire.interface import Mesh
from .arrivals import Arrivals, Found
from .departures import Departures
from .handover import SUBJECT, Claim, Forward, Take, decode_question
from .interface import ResumableConnection, ResumableSession
from .keeper import SessionKeeper
from .keys import digest_of, make_key, process_of
from .store import Reason, Record

__all__ = ["Resumption"]

logger = logging.getLogger(__name__)


class _Payload(Struct):
    topic: str


class _EventFrame(Struct, tag_field="type", tag="event"):
    payload: _Payload


_decode_event = msgspec.json.Decoder(_EventFrame).decode

_BAD_NUMBER: Final = Failure(ErrorCode.BAD_REQUEST, "payload.received: not a number of frames that were sent")


class Resumption:
    """The sessions of a connection kind that clients may come back to.

    ``clock`` is a monotonic clock, in seconds. Within its context it owns the tasks that bring sessions, and answers of
    calls, from one process to another.
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
        self._events = events
        self._client_calls = client_calls
        self._clock = clock
        self._tasks = tasks = TaskOwner()
        self.keeper = keeper = SessionKeeper(settings, handler_manager, clock)
        self.store = keeper.store
        self.departures = Departures(keeper, fleet, mesh, events, calls, client_calls, tasks, clock)
        self.arrivals = Arrivals(
            lambda: settings.instance_id, handler_manager, fleet, events, calls, client_calls, tasks, clock
        )
        #: Answers to ``resume``, by reason; "resumed" for those that brought a session back.
        self.answers: Counter[str] = Counter()
        #: Sessions that are being brought from another process, by the digests of their keys.
        self._coming: dict[bytes, asyncio.Event] = {}
        fleet.bind_answerer(SUBJECT, self.on_question)

    async def __aenter__(self) -> Resumption:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.keeper.end_all()
        await self._tasks.__aexit__(exc_type, exc, traceback)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any session."""
        return (
            not (len(self.store) or self.keeper.arriving or self._coming)
            and self.departures.is_idle
            and self.arrivals.is_idle
        )

    def sweep(self, now: float) -> None:
        """End the sessions that no client came back to within the window; ``now`` is a time of the clock."""
        self.keeper.sweep(now)
        self.departures.sweep(now)

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
        digest = digest_of(key)
        coming = self._coming.get(digest)
        if coming is not None:  # the client has broken the connection on which its session was to come
            self._tasks.start_soon(self._resume_later, coming, handler, frame, name="session")
            return
        found = self.store.find(digest, handler.identity.user_id)
        if isinstance(found, Record):
            if found.session.acknowledge(frame.received):
                self._go_on(found, handler, frame, digest)
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
        session.bind_observer(self.keeper)
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
        self.departures.keep(record)
        if session.connected:  # the old connection is dead, but this process has not noticed
            session.detach()
            self._handlers.park(session)
        session.outbox.settle()
        if session.outbox.overflowed:
            self.keeper.end(record, "overflow")
            self._start_anew(self._install(connection), frame, "overflow")
            return
        self._handlers.unpark(session, connection)
        self.store.unpark(record)
        session.attach(connection)
        self._renew_and_answer(record, frame, used)

    def _renew_and_answer(self, record: Record, frame: Resume, used: bytes) -> None:
        session = record.session
        key = make_key(self._settings.instance_id)
        self.store.renew(record, digest_of(key), used)
        topics = self._events.topics_of(session)
        extra = extra_for_topics(len(topics))
        if extra and session.identity is not None:
            rates = self._handlers.shared_limits.rates
            rates.charge(session.session_id, session.identity.user_id, self._clock(), extra)
        denied = self._events.end_denied(session)  # the event for the client waits behind the kept frames
        if denied:
            session.outbox.drop(_of_topics(denied, self._events.topics_of(session)))
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

    async def _resume_later(self, coming: asyncio.Event, handler: ResumableConnection, frame: Resume) -> None:
        """Take a ``resume`` once the session with its key is here, or cannot be had."""
        await coming.wait()
        if self._handlers.get_session(handler.session_id) is handler:
            self.on_resume(handler, frame)

    async def _fetch(self, session: ResumableSession, frame: Resume, key: str, process: str) -> None:
        """Bring a session from the process that has it, and answer."""
        digest = digest_of(key)
        coming = self._coming[digest] = asyncio.Event()
        try:
            await self._bring(session, frame, key, process)
        finally:
            del self._coming[digest]
            coming.set()

    async def _bring(self, session: ResumableSession, frame: Resume, key: str, process: str) -> None:
        self.keeper.arriving.add(session.session_id)
        former = session.session_id
        try:
            found = await self.arrivals.find(session, frame, key, process)
        finally:
            self.keeper.arriving.discard(former)
        if self._handlers.get_session(former) is not session:
            self._events.forget(session)  # the client, or a revocation, has ended it meanwhile
            return
        if isinstance(found, Found):
            self.arrivals.take_in(session, frame, found)
            record = self.store.add(session, digest_of(key))
            self._renew_and_answer(record, frame, digest_of(key))
            self._events.continue_after(session, found.state.positions)
            if not session.connected:  # the client may come back with the key that it used
                self.keeper.park(record)
            self._handlers.close_arrived(session)
        elif not session.connected:
            self._handlers.unregister(session)
        elif found is None:
            session.go_on(encode_failure(frame.id, frame.trace_id, _BAD_NUMBER))
        else:
            self._start_anew(session, frame, found)

    # --- questions of other processes -------------------------------------------------------------------------

    def on_question(self, question: Raw, reply: Callable[[bytes], None]) -> None:
        """Answer the question of another process, now or later.

        Raises msgspec.MsgspecError for an unknown question.
        """
        asked = decode_question(question)
        if isinstance(asked, Claim):
            reply(msgspec.json.encode(self.departures.on_claim(asked)))
        elif isinstance(asked, Take):
            self.departures.on_take(asked, reply)
        elif isinstance(asked, Forward):
            self.arrivals.on_forward(asked)
            reply(b"true")
        else:
            self.departures.on_cancel(asked)
            reply(b"true")


def _of_topics(denied: list[str], allowed: list[str]) -> Callable[[str], bool]:
    """Return a test for frames: whether one is an event that came by a denied subscription, and by no allowed one."""

    def is_denied(text: str) -> bool:
        try:
            topic = _decode_event(text).payload.topic
        except (msgspec.MsgspecError, RecursionError):
            return False
        if topic in GATEWAY_TOPICS or any(matches(pattern, topic) for pattern in allowed):
            return False
        return any(matches(pattern, topic) for pattern in denied)

    return is_denied
