"""Calls that wait to be sent, calls in flight, and requests to the gateway itself.

When the connection is lost, calls in flight fail (:meth:`Calls.lost`), or stay in flight until the session is resumed
or turns out to be over (:meth:`Calls.suspend`, :meth:`Calls.resume`).

Nothing here awaits: an answer completes a future. Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ._backoff import Backoff
from ._call import Call, Kind, encode_members
from ._options import Trace
from ._state import Limits
from .errors import (
    CallTimeout,
    ConnectionClosed,
    ConnectionLost,
    PayloadTooLarge,
    TooManyRequests,
    UnexpectedFrame,
    call_failed,
    caused_by,
)

__all__ = ["Calls"]

#: The kinds that the gateway counts against ``max_in_flight``.
_COUNTED: Final = frozenset({"request", "command"})
#: The kinds that concern one connection. Their answers are of no interest after it.
_OF_CONNECTION: Final = frozenset({"subscribe", "unsubscribe", "authorize"})
#: Seconds: far more than any gateway grants, in few digits.
_MAX_TIMEOUT: Final = 1e6
#: The members of a trace context.
_TRACE_MEMBERS: Final = ("traceparent", "tracestate", "baggage")


@dataclass(eq=False)
class Calls:
    """All calls of a client. ``grace`` is how many seconds after a deadline to expect the gateway's own timeout."""

    backoff: Backoff
    grace: float
    max_queue: int
    #: Levels of JSON in a frame that the gateway accepts.
    max_depth: int = 32
    #: Whether bytes are sent as tagged objects.
    binary: bool = False
    #: Returns the trace context of each call, or None.
    trace: Trace | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: In the order of sending.
        self._waiting: dict[Call, None] = {}
        self._in_flight: dict[str, Call] = {}
        #: Calls that failed, and pause before they are repeated.
        self._pausing: set[Call] = set()
        #: Ids of frames whose late answers are no surprise.
        self._forgotten: set[str] = set()
        self._ids = itertools.count(1)
        #: Number of counted calls in flight.
        self._counted = 0
        self._send: Callable[[str], None] | None = None
        #: Why there is no connection, after an attempt that failed; None while calls can be sent.
        self.problem: ConnectionLost | None = None
        #: Whether calls have to wait, because the gateway has not said hello, or has said goodbye.
        self._held = True

    @property
    def in_flight(self) -> int:
        """The number of frames without an answer yet."""
        return len(self._in_flight)

    def start(
        self,
        kind: Kind,
        payload: Mapping[str, object],
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        retries: int = 0,
        trace_id: str | None = None,
        idempotency_key: str | None = None,
    ) -> Call:
        """Make a call, now or as soon as the gateway accepts one more. ``timeout`` in seconds includes the waiting.

        Raises ValueError or TypeError for a call that can never be sent, and TooManyRequests if the queue is full.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError("timeout must be a number of seconds greater than 0")
        if len(self._waiting) >= self.max_queue:
            description = f"{self.max_queue} calls are already waiting to be sent; wait for an answer first"
            raise TooManyRequests("too_many_requests", description, retryable=True)
        more: dict[str, object] = {} if trace_id is None else {"trace_id": trace_id}
        if idempotency_key is not None or (idempotent and kind in _COUNTED):
            # One key for all its repetitions, so that the gateway joins them and the service can tell.
            more["idempotency_key"] = idempotency_key or secrets.token_hex(16)
        if self.trace is not None and (trace := self.trace()):
            more["trace"] = {name: trace[name] for name in _TRACE_MEMBERS if name in trace}
        members = encode_members({**payload, **more} if more else payload, self.max_depth, binary=self.binary)
        patience = self.limits.request_timeout if timeout is None else timeout
        call = Call(
            kind,
            members,
            self._loop.create_future(),
            deadline=self._loop.time() + patience,
            idempotent=idempotent or kind == "describe",
            retries=retries,
        )
        self._arm(call, call.deadline)
        self._waiting[call] = None
        self._flush()
        return call

    def ask(self, kind: Kind, payload: Mapping[str, object]) -> Call:
        """Send a request to the gateway itself, at once and on this connection.

        Its deadline is the gateway's default timeout for a call.
        """
        deadline = self._loop.time() + self.limits.request_timeout
        call = Call(kind, encode_members(payload, self.max_depth), self._loop.create_future(), deadline)
        self._transmit(call)
        return call

    def abandon(self, call: Call, reason: BaseException | None = None) -> None:
        """Stop waiting for ``call``, and cancel it at the gateway; with a ``reason``, its future fails with that."""
        if self._forget_unsent(call):
            call.stop_timers()
        elif not call.abandoned and self._in_flight.get(call.id) is call:
            call.abandoned = True
            # The gateway counts the call until it has answered. So does the client, but not for ever.
            self._arm(call, self._loop.time() + self.grace, self._give_up)
            self._cancel(call)
        if reason is not None and not call.future.done():
            call.future.set_exception(reason)

    # --- the connection ---------------------------------------------------------------------------------------

    def connected(self, send: Callable[[str], None]) -> None:
        """Use a new connection: :meth:`ask` may send, calls wait for :meth:`release`."""
        self._send = send
        self._held = True

    def release(self) -> None:
        """Send calls from now on."""
        self.problem = None
        self._held = False
        self._flush()

    def hold(self) -> None:
        """Send no more calls. Calls in flight are still answered."""
        self._held = True

    def answer(self, payload: Mapping[str, Any]) -> UnexpectedFrame | None:
        """Complete a call with the payload of a response. Returns a warning if the payload fits no call."""
        id_ = payload.get("id")
        call = self._in_flight.get(id_) if isinstance(id_, str) else None
        if call is None:
            if id_ in self._forgotten:
                self._forgotten.discard(id_)
                return None
            return UnexpectedFrame("the gateway sent a response to no call in flight")
        self._remove(call)
        call.stop_timers()
        unexpected: UnexpectedFrame | None = None
        error = payload.get("error")
        if call.abandoned or call.future.done():
            pass
        elif isinstance(error, dict):
            trace_id = payload.get("trace_id")
            self._failed(call, error, trace_id if isinstance(trace_id, str) else None)
        elif error is None and "result" in payload:
            call.future.set_result(payload["result"])
        else:
            unexpected = UnexpectedFrame("the gateway sent a response with neither result nor error")
            call.fail(unexpected)
        self._flush()
        return unexpected

    def suspend(self, error: ConnectionLost) -> None:
        """Note the end of a connection whose session may be resumed: calls stay in flight, and their timers go on.

        Requests to the gateway itself fail with ``error``.
        """
        self._send = None
        self._held = True
        for call in tuple(self._in_flight.values()):
            if call.kind in _OF_CONNECTION:
                self._remove(call)
                self._forgotten.add(call.id)
                call.fail(error.anew())

    def resume(self, in_flight: Collection[str]) -> None:
        """Continue in a resumed session: the gateway still has the calls ``in_flight``, and has not got the others.

        Those are sent again. Calls that were abandoned meanwhile are cancelled.
        """
        again: dict[Call, None] = {}
        for call in tuple(self._in_flight.values()):
            if call.id in in_flight:
                if call.abandoned:
                    self._cancel(call)
                    self._arm(call, self._loop.time() + self.grace, self._give_up)
                continue
            if call.kind in _OF_CONNECTION:
                continue  # it was sent on this connection
            self._remove(call)
            call.stop_timers()
            if not (call.abandoned or call.future.done()):
                again[call] = None
                self._arm(call, call.deadline)
        self._waiting = again | self._waiting

    def lost(self, error: ConnectionLost | ConnectionClosed, *, repeat: bool = True) -> None:
        """Note the end of the connection: idempotent calls wait for the next, others in flight fail with ``error``.

        Unless ``repeat`` is set, all in flight fail.
        """
        self._send = None
        self._held = True
        self._forgotten.clear()
        calls = tuple(self._in_flight.values())
        again: dict[Call, None] = {}
        for call in calls:
            self._remove(call)
            call.stop_timers()
            if call.abandoned or call.future.done():
                continue
            if call.idempotent and repeat:
                again[call] = None
                self._arm(call, call.deadline)
            else:
                call.fail(error.anew())
        self._waiting = again | self._waiting

    def close(self, error: ConnectionClosed) -> None:
        """End all calls with ``error``."""
        self.lost(error)
        for call in (*self._waiting, *self._pausing):
            call.fail(error.anew())
        self._waiting.clear()
        self._pausing.clear()

    # --- one call ---------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._waiting and not self._held and self._counted < self.limits.max_in_flight:
            call = next(iter(self._waiting))
            del self._waiting[call]
            self._transmit(call)

    def _transmit(self, call: Call) -> None:
        call.id = str(next(self._ids))
        timeout = b""
        if call.kind == "request":
            # At least a millisecond: the gateway refuses a frame without any time.
            timeout = b',"timeout":%.3f' % min(max(0.001, call.deadline - self._loop.time()), _MAX_TIMEOUT)
        kind, id_ = call.kind.encode(), call.id.encode()
        text = b'{"type":"%b","payload":{"id":"%b"%b%b}}' % (kind, id_, call.members, timeout)
        if len(text) > self.limits.max_message_size:
            # The gateway would close the connection for good.
            description = f"the frame exceeds the gateway's limit of {self.limits.max_message_size} bytes"
            call.fail(PayloadTooLarge("payload_too_large", description))
            return
        self._in_flight[call.id] = call
        self._counted += call.kind in _COUNTED
        if call.deadline < math.inf:
            self._arm(call, call.deadline + self.grace)
        if self._send is not None:
            self._send(text.decode())

    def _remove(self, call: Call) -> None:
        del self._in_flight[call.id]
        self._counted -= call.kind in _COUNTED

    def _arm(self, call: Call, moment: float, do: Callable[[Call], None] | None = None) -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.timer = self._loop.call_at(moment, do or self._expire, call)

    def _failed(self, call: Call, error: Mapping[str, Any], trace_id: str | None) -> None:
        failure = call_failed(error, trace_id)
        now = self._loop.time()
        wait = max(failure.retry_after or 0.0, self.backoff.delay(call.attempt))
        if not failure.retryable or call.attempt >= call.retries or now + wait >= call.deadline:
            call.fail(failure)
            return
        call.attempt += 1
        self._arm(call, call.deadline)
        self._pausing.add(call)
        call.pause = self._loop.call_at(now + wait, self._repeat, call)

    def _repeat(self, call: Call) -> None:
        self._pausing.discard(call)
        self._waiting[call] = None
        self._flush()

    def _expire(self, call: Call) -> None:
        sent = call not in self._waiting and call not in self._pausing
        description = "No answer in time; whether it ran is unknown"
        if not sent:
            why = "" if self.problem is None else f": {self.problem}; 'nuropb-gateway doctor' shows why"
            description = f"The call could not be sent in time{why}"
        self.abandon(call, caused_by(CallTimeout("timeout", description, retryable=not sent), self.problem))

    def _cancel(self, call: Call) -> None:
        if call.kind == "request" and self._send is not None:
            self._send(f'{{"type":"cancel","payload":{{"id":"{call.id}"}}}}')

    def _give_up(self, call: Call) -> None:
        # While there is no connection, the call stays: it is cancelled after a resumption.
        if self._send is not None and self._in_flight.get(call.id) is call:
            self._remove(call)
            self._flush()

    def _forget_unsent(self, call: Call) -> bool:
        if call in self._pausing:
            self._pausing.remove(call)
            return True
        with contextlib.suppress(KeyError):
            del self._waiting[call]
            return True
        return False
