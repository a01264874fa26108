"""Sessions that come from another process, and their calls, which are still there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from msgspec import Raw

from ..exceptions import MeshUnavailable
from ..fleet import Fleet
from ..handler_manager import HandlerManager
from ..identifiers import new_id
from ..protocol import ErrorCode, Failure, Resume
from ..routing import CallsInFlight, ClientCalls, EventRouter
from ..tasks import TaskOwner
from ..wire.interface import CallMessage
from .forwarding import ForwardedCall
from .handover import SUBJECT, CallState, Cancel, Claim, Claimed, Forward, State, Take
from .interface import ResumableSession
from .store import Reason

__all__ = ["Arrivals", "Found"]

logger = logging.getLogger(__name__)

#: Seconds that a call gets beyond its deadline, for the answer to come from the other process.
FORWARD_GRACE: Final = 2.0
_UNKNOWN_OUTCOME: Final = Failure(ErrorCode.TIMEOUT, "The process with this call has gone; whether it ran is unknown")

_encode = msgspec.json.encode
_decode_claimed = msgspec.json.Decoder(Claimed).decode
_decode_state = msgspec.json.Decoder(State).decode


class Found(NamedTuple):
    """A session's state, the address of the process that it comes from, and the events heard here meanwhile."""

    address: str
    state: State
    #: Frames with the ids of their events.
    heard: list[tuple[str | None, str]]


class Arrivals:
    """Takes sessions from other processes. It observes these processes (see ``fleet.members.FleetObserver``).

    ``tasks`` owns the tasks that tell other processes of cancelled calls; ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(
        self,
        instance_id: Callable[[], str],
        handler_manager: HandlerManager,
        fleet: Fleet,
        events: EventRouter,
        calls: CallsInFlight,
        client_calls: ClientCalls,
        tasks: TaskOwner,
        clock: Callable[[], float],
    ) -> None:
        self._instance_id = instance_id
        self._handlers = handler_manager
        self._fleet = fleet
        self._events = events
        self._calls = calls
        self._client_calls = client_calls
        self._tasks = tasks
        self._clock = clock
        #: Correlation ids of the calls that other processes have, by session and place.
        self._elsewhere: dict[tuple[str, str], str] = {}
        #: Sessions that have come.
        self.count = 0
        fleet.bind_observer(self)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any session."""
        return not self._elsewhere

    async def find(self, session: ResumableSession, frame: Resume, key: str, process: str) -> Found | Reason | None:
        """Bring a session's state from the process that has it.

        Returns the reason if it cannot be had, and None if the number of received frames cannot be. ``session`` takes
        the events of its topics meanwhile.
        """
        heard: list[tuple[str | None, str]] = []
        session.tap = lambda text: heard.append((self._events.delivering, text))
        try:
            found = await self._claim(session, frame, key, process)
            if not isinstance(found, _Claim):
                return found
            await self._events.adopt(session, found.claimed.topics)
            answer = await self._fleet.ask_one(found.address, SUBJECT, _encode(Take(found.claimed.claim)))
            if answer is not None:
                return Found(found.address, _decode_state(answer), heard)
        except (TimeoutError, MeshUnavailable, msgspec.MsgspecError, RecursionError):
            logger.debug("session %s: another process has it, but it could not be taken", session.session_id)
        finally:
            session.tap = None
        self._events.forget(session)
        return "gone"

    async def _claim(self, session: ResumableSession, frame: Resume, key: str, process: str) -> _Claim | Reason | None:
        assert session.identity is not None  # noqa: S101 - it is registered
        claim = _encode(Claim(key, session.identity.user_id, frame.received, self._instance_id()))
        for _ in range(2):  # the session may have moved on
            address = self._fleet.address_of(process)
            if address is None:
                return "gone"
            answer = await self._fleet.ask_one(address, SUBJECT, claim)
            if answer is None:
                return "gone"
            claimed = _decode_claimed(answer)
            if not claimed.moved_to:
                if claimed.bad_number:
                    return None
                return _Claim(address, claimed) if claimed.reason is None else claimed.reason
            process = claimed.moved_to
        return "gone"

    def take_in(self, session: ResumableSession, frame: Resume, found: Found) -> None:
        """Continue where the session ended in the old process."""
        state = found.state
        known = set(state.events)
        twice = [text for id_, text in found.heard if id_ in known]
        own = session.outbox.take_waiting()
        session.outbox.take_over(frame.received, state.kept)
        for text in own:
            if not any(text is each for each in twice):
                session.outbox.put(text)
        former = session.session_id
        self._handlers.rename(session, state.session_id)
        self._events.rename(former, state.session_id)
        self._client_calls.rename(session, former)
        for call in state.calls:
            self._expect(session, call, found.address)
        self.count += 1

    # --- calls that other processes have ----------------------------------------------------------------------

    def _expect(self, session: ResumableSession, state: CallState, origin: str) -> None:
        """Enter a call that another process has into the table of calls in flight."""
        places = self._client_calls.places_of(session)
        correlation_id, timeout = new_id(), max(state.seconds, 0.0) + FORWARD_GRACE
        deadline, trace_id = self._clock() + timeout, state.trace_id or ""
        message = CallMessage("request", correlation_id, trace_id, "", "", b"{}", b"{}", deadline, timeout)
        call = ForwardedCall(message, session, state.id, state.trace_id, places)
        call.key, call.origin, call.on_released = state.call, origin, self._on_released
        places[state.call] = correlation_id
        self._elsewhere[session.session_id, state.call] = correlation_id
        self._calls.table.add(call)

    def on_forward(self, message: Forward) -> None:
        """Answer a call with the frame that came from the process that had it."""
        correlation_id = self._elsewhere.pop((message.session_id, message.call), None)
        call = None if correlation_id is None else self._calls.take(correlation_id)
        if isinstance(call, ForwardedCall):
            call.handler.send_frame(message.text)

    def _on_released(self, call: ForwardedCall) -> None:
        """Have the other process abandon a call that ended here without its answer."""
        place = call.handler.session_id, call.key
        if self._elsewhere.pop(place, None) is not None and self._calls.running:
            self._tasks.start_soon(self._cancel, call.origin, Cancel(*place), name="cancelled call")

    async def _cancel(self, address: str, cancel: Cancel) -> None:
        await self._fleet.ask_one(address, SUBJECT, _encode(cancel))

    # --- peer processes ---------------------------------------------------------------------------------------

    def on_news(self, address: str, topic: str, news: Raw) -> None:
        """Take no news."""

    def on_member(self, address: str, new: bool) -> None:
        """Take no note of a new process."""

    def on_moved(self) -> None:
        """Take no note of this process's own new address."""

    def on_gone(self, address: str) -> None:
        """Answer the calls that a process has taken with it."""
        for place, correlation_id in tuple(self._elsewhere.items()):
            call = self._calls.table.get(correlation_id)
            if isinstance(call, ForwardedCall) and call.origin == address:
                self._elsewhere.pop(place, None)
                self._calls.fail(correlation_id, _UNKNOWN_OUTCOME)


class _Claim(NamedTuple):
    """A claimed session, and the address of the process that has it."""

    address: str
    claimed: Claimed
