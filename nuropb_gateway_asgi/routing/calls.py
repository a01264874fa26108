"""Calls in flight: the kinds of calls, and the table in which each ends exactly once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Raw

from ..authentication import Identity
from ..generation_cache import GenerationCache
from ..handler_manager import Handler
from ..protocol import ErrorCode, Failure, encode_failure, encode_response
from ..tracing import CallTrace
from ..wire.interface import CallMessage
from .failures import INTERNAL, call_error

__all__ = [
    "SLOT_SECONDS",
    "ApplicationCall",
    "Call",
    "CallTable",
    "ClientCall",
    "LookUpCall",
    "OrphanCall",
    "State",
    "refuse_unless",
]

logger = logging.getLogger(__name__)

#: Length of a slot of deadlines, in seconds, and the interval at which they are looked at.
SLOT_SECONDS: Final = 0.05
#: Correlation ids of ended calls that are remembered at least, to tell a late reply from an unknown one.
REMEMBERED_CALLS: Final = 4096
#: A call's place among those of its user at its service: it needs none, as a call of this process itself; it waits for
#: one; it has one and is not sent yet; it has one, and the mesh has the call.
State: TypeAlias = Literal["free", "waiting", "started", "sent"]


class Call:
    """A request or command in flight."""

    __slots__ = ("began", "caller", "message", "state", "trace")

    def __init__(self, message: CallMessage, caller: str | None = None) -> None:
        self.message = message
        #: The id of the calling user; None for calls of this process itself.
        self.caller = caller
        self.state: State = "free"
        #: Its span, if it is recorded.
        self.trace: CallTrace | None = None
        #: The time from which the service could work on it.
        self.began = message.deadline - message.timeout

    def release(self) -> None:
        """Give back the call's place among those of its connection, if it has one."""

    def succeed(self, result: bytes | Raw) -> None:
        """Answer with ``result`` (JSON)."""
        raise NotImplementedError

    def fail(self, failure: Failure) -> None:
        """Answer with an error."""
        raise NotImplementedError


class ClientCall(Call):
    """A call of a client. ``places`` are the correlation ids of its connection's calls, by the ids of the client."""

    __slots__ = ("handler", "id", "places", "trace_id")

    def __init__(
        self, message: CallMessage, handler: Handler, id_: str | None, trace_id: str | None, places: dict[str, str]
    ) -> None:
        super().__init__(message, None if handler.identity is None else handler.identity.user_id)
        self.handler = handler
        self.id = id_
        self.trace_id = trace_id
        self.places = places

    def id_of(self, place: str) -> str | None:
        """Return the client's id of the caller with this place."""
        return self.id

    def follow(self, former: Handler, handler: Handler, place: str | None = None) -> None:
        """Send the answer to ``handler`` in the place of ``former``; ``place`` is that of a single caller."""
        self.handler = handler

    def release(self) -> None:
        """Give back the place among the connection's calls."""
        self.places.pop(self.message.correlation_id if self.id is None else self.id, None)

    def succeed(self, result: bytes | Raw) -> None:
        """Send the result to the client."""
        self.handler.send_frame(encode_response(self.id, self.trace_id, result))

    def fail(self, failure: Failure) -> None:
        """Send the error to the client."""
        self.handler.send_frame(encode_failure(self.id, self.trace_id, failure))


class ApplicationCall(Call):
    """A call of the host application, which awaits ``future``."""

    __slots__ = ("future",)

    def __init__(self, message: CallMessage, future: asyncio.Future[bytes | Raw]) -> None:
        super().__init__(message)
        self.future = future

    def succeed(self, result: bytes | Raw) -> None:
        """Set the result of the future."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, failure: Failure) -> None:
        """Set a CallError as the exception of the future."""
        if not self.future.done():
            self.future.set_exception(call_error(failure))


class LookUpCall(Call):
    """A call of the gateway itself, for a service's description."""

    __slots__ = ("done",)

    def __init__(self, message: CallMessage, done: Callable[[bytes | Raw | Failure], None]) -> None:
        super().__init__(message)
        self.done = done

    def succeed(self, result: bytes | Raw) -> None:
        """Call back with the result."""
        self.done(result)

    def fail(self, failure: Failure) -> None:
        """Call back with the failure."""
        self.done(failure)


class OrphanCall(Call):
    """A call that a service may be working on for a client that waits no longer."""

    __slots__ = ()

    def __init__(self, call: Call) -> None:
        message = msgspec.structs.replace(call.message, params=b"{}", context=b"{}")  # these may be large
        super().__init__(message, call.caller)
        self.state = call.state
        self.began = call.began


def refuse_unless(names: Callable[[Identity, str, str], bool], call: Call | None, description: str) -> Failure | None:
    """Refuse a client's call that only a wildcard allows; ``names`` is the policy's answer to that question."""
    if not isinstance(call, ClientCall) or call.handler.identity is None:
        return None
    service = call.message.service
    try:
        if names(call.handler.identity, service, call.message.method):
            return None
    except Exception:  # no caller above knows which client to answer, and other calls may wait for the look-up
        logger.exception("policy raised for service %s; call refused", service)
        return INTERNAL
    return Failure(ErrorCode.PERMISSION_DENIED, description)


class CallTable:
    """The calls in flight, by correlation id, and their deadlines.

    :meth:`take` removes a call; its caller must then answer it. A call is removed at most once. An entry costs a place
    in two dictionaries, no timer and no task.
    """

    __slots__ = ("_calls", "_due", "_ended", "_orphans", "_slot")

    def __init__(self, remembered: int = REMEMBERED_CALLS) -> None:
        self._calls: dict[str, Call] = {}
        self._due: dict[int, list[str]] = {}
        self._orphans: dict[str, OrphanCall] = {}
        self._slot = 0
        #: Ended calls: the service whose reply would be late, or "" once its reply was there.
        self._ended: GenerationCache[str, str] = GenerationCache(remembered)

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, correlation_id: str) -> bool:
        return correlation_id in self._calls

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._calls))

    @property
    def deadlines(self) -> int:
        """The number of deadlines that are still to be looked at, those of ended calls included."""
        return sum(map(len, self._due.values()))

    @property
    def remembered(self) -> int:
        """The number of ended calls that are remembered, to know a late reply."""
        return len(self._ended)

    @property
    def orphans(self) -> tuple[str, ...]:
        """The calls that were given up by :meth:`orphan`, and whose answer or deadline is still to come."""
        return tuple(self._orphans)

    @property
    def looked_at(self) -> float:
        """The time up to which :meth:`due` has looked at deadlines; 0 before the first time."""
        return self._slot * SLOT_SECONDS

    def get(self, correlation_id: str) -> Call | None:
        """Return a call that stays in the table, or None."""
        return self._calls.get(correlation_id)

    def add(self, call: Call) -> None:
        """Add a call."""
        message = call.message
        self._calls[message.correlation_id] = call
        slot = max(int(message.deadline / SLOT_SECONDS) + 1, self._slot)  # a slot of the past is not looked at again
        self._due.setdefault(slot, []).append(message.correlation_id)

    def take(self, correlation_id: str, *, answered: bool = False) -> Call | None:
        """Remove a call and return it, or None if it is not in the table.

        Another reply to a call that its service has ``answered`` is a double.
        """
        call = self._calls.pop(correlation_id, None)
        if call is not None:
            self._ended.add(correlation_id, "" if answered else call.message.service)
        return call

    def orphan(self, call: Call) -> None:
        """Keep a removed call until its answer or its deadline, for its place."""
        self._orphans[call.message.correlation_id] = OrphanCall(call)

    def get_orphan(self, correlation_id: str) -> OrphanCall | None:
        """Return a call that was given up, or None."""
        return self._orphans.get(correlation_id)

    def take_orphan(self, correlation_id: str, *, answered: bool = False) -> OrphanCall | None:
        """Remove a call that was given up and return it, or None."""
        orphan = self._orphans.pop(correlation_id, None)
        if orphan is not None and answered:
            self._ended.add(correlation_id, "")
        return orphan

    def waited_for(self, correlation_id: str) -> str | None:
        """Return the service that owes an ended call its answer, "" if it has answered, None for an unknown call."""
        return self._ended.get(correlation_id)

    def due(self, now: float) -> list[str]:
        """Return the calls whose deadline has passed since the last time, also those given up.

        ``now`` is a time of their clock.
        """
        slot = int(now / SLOT_SECONDS)
        if self._slot == 0:
            self._slot = min(self._due, default=slot)
        due: list[str] = []
        for each in range(self._slot, slot + 1):
            due += self._due.pop(each, ())
        self._slot = slot + 1
        return [each for each in due if each in self._calls or each in self._orphans]
