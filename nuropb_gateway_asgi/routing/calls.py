"""Calls in flight: a table in which each ends exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Final

from msgspec import Raw

from ..exceptions import CallError
from ..generation_cache import GenerationCache
from ..handler_manager import Handler
from ..protocol import Failure, encode_failure, encode_response
from ..wire.interface import CallMessage

__all__ = ["SLOT_SECONDS", "Call", "CallTable", "ClientCall", "HostCall", "LookUpCall"]

#: Deadlines are kept by slots of this length, in seconds, and looked at as often.
SLOT_SECONDS: Final = 0.05
#: So many correlation ids of ended calls are remembered at least, to tell a late reply from one to nobody.
REMEMBERED: Final = 4096


class Call:
    """One request or command in flight."""

    __slots__ = ("message",)

    def __init__(self, message: CallMessage) -> None:
        self.message = message

    @property
    def caller(self) -> str | None:
        """The user whose call it is; None for this process itself."""
        return None

    def succeed(self, result: bytes | Raw) -> None:
        """Answer with ``result`` (JSON)."""
        raise NotImplementedError

    def fail(self, failure: Failure) -> None:
        """Answer with an error."""
        raise NotImplementedError


class ClientCall(Call):
    """A client's."""

    __slots__ = ("handler", "id", "trace_id")

    def __init__(self, message: CallMessage, handler: Handler, id_: str | None, trace_id: str | None) -> None:
        super().__init__(message)
        self.handler = handler
        self.id = id_
        self.trace_id = trace_id

    @property
    def caller(self) -> str | None:
        """The user of the connection."""
        return None if self.handler.identity is None else self.handler.identity.user_id

    def succeed(self, result: bytes | Raw) -> None:
        """Send the result to the client."""
        self.handler.send_frame(encode_response(self.id, self.trace_id, result))

    def fail(self, failure: Failure) -> None:
        """Send the error to the client."""
        self.handler.send_frame(encode_failure(self.id, self.trace_id, failure))


class HostCall(Call):
    """The host application's."""

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
            error = failure.error or failure.code.nuropb_class
            self.future.set_exception(
                CallError(failure.code.value, error, failure.description, retryable=failure.code.retryable)
            )


class LookUpCall(Call):
    """The gateway's own, for the directory."""

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


class CallTable:
    """The calls in flight, by correlation id, and their deadlines.

    Whoever takes a call out has to answer it, and nobody gets it twice. An entry costs a place in two dictionaries, no
    timer and no task.
    """

    __slots__ = ("_calls", "_due", "_ended", "_slot")

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._due: dict[int, list[str]] = {}
        self._slot = 0
        #: Ended calls: the service whose reply would be late, or "" once the reply was there.
        self._ended: GenerationCache[str, str] = GenerationCache(REMEMBERED)

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, correlation_id: str) -> bool:
        return correlation_id in self._calls

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._calls))

    def get(self, correlation_id: str) -> Call | None:
        """The call, which stays in the table."""
        return self._calls.get(correlation_id)

    def add(self, call: Call) -> None:
        """Take a call in."""
        message = call.message
        self._calls[message.correlation_id] = call
        slot = max(int(message.deadline / SLOT_SECONDS) + 1, self._slot)  # a slot of the past is not looked at again
        self._due.setdefault(slot, []).append(message.correlation_id)

    def take(self, correlation_id: str) -> Call | None:
        """Take a call out, if it is still there."""
        call = self._calls.pop(correlation_id, None)
        if call is not None:
            self._ended.add(correlation_id, call.message.service)
        return call

    def answered(self, correlation_id: str) -> None:
        """A call that was taken out was answered by its service: another reply to it is a double."""
        self._ended.add(correlation_id, "")

    def waited_for(self, correlation_id: str) -> str | None:
        """Who was to answer an ended call: a service, "" if it has, None if nothing is known of such a call."""
        return self._ended.get(correlation_id)

    def due(self, now: float) -> list[str]:
        """The calls whose time is up since this was asked last; ``now`` is a time of the event loop's clock."""
        slot = int(now / SLOT_SECONDS)
        if self._slot == 0:
            self._slot = min(self._due, default=slot)
        due: list[str] = []
        for each in range(self._slot, slot + 1):
            due += self._due.pop(each, ())
        self._slot = slot + 1
        return [correlation_id for correlation_id in due if correlation_id in self._calls]
