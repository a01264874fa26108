"""What a client has asked for: calls that wait to be sent, calls in flight, and questions to the gateway itself.

Nothing here waits: an answer ends a future. All of it happens on one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from ..protocol import encode_json
from ._backoff import Backoff
from ._state import Limits
from .errors import (
    CallTimeout,
    ConnectionClosed,
    ConnectionLost,
    PayloadTooLarge,
    TooManyRequests,
    UnexpectedFrame,
    call_failed,
)

__all__ = ["Call", "Calls", "Kind"]

Kind: TypeAlias = Literal["request", "command", "describe", "subscribe", "unsubscribe", "authorize"]

#: What the gateway counts against ``max_in_flight``.
_WEIGHS: Final = frozenset({"request", "command"})
#: Seconds; far beyond what any gateway grants, and still a number of few digits.
_MAX_TIMEOUT: Final = 1e6


@dataclass(eq=False)
class Call:
    """One of them."""

    kind: Kind
    #: The payload's members as JSON, each with a comma in front, without ``id`` and ``timeout``.
    members: bytes
    future: asyncio.Future[Any]
    #: A time of the loop's clock.
    deadline: float = math.inf
    idempotent: bool = False
    retries: int = 0
    attempt: int = 0
    #: What its answer will name; empty as long as it was not sent.
    id: str = ""
    #: Nobody waits for the answer any more, but the gateway may still be busy with it.
    abandoned: bool = False
    timer: asyncio.TimerHandle | None = None
    pause: asyncio.TimerHandle | None = None

    def stop_timers(self) -> None:
        """Nothing will happen by itself any more."""
        for timer in (self.timer, self.pause):
            if timer is not None:
                timer.cancel()

    def fail(self, error: BaseException) -> None:
        """End it with ``error``."""
        self.stop_timers()
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(eq=False)
class Calls:
    """All calls of a client. ``grace`` is how long the gateway's own timeout may take to arrive, in seconds."""

    backoff: Backoff
    grace: float
    max_queue: int
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        #: In the order in which they will be sent.
        self._waiting: dict[Call, None] = {}
        self._in_flight: dict[str, Call] = {}
        #: Those that wait before they are made again.
        self._pausing: set[Call] = set()
        self._ids = itertools.count(1)
        self._weight = 0
        self._send: Callable[[str], None] | None = None
        self._held = True

    @property
    def in_flight(self) -> int:
        """How many frames have no answer yet."""
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
    ) -> Call:
        """Make a call, now or as soon as there is room. ``timeout`` is in seconds, waiting included.

        Raises ValueError or TypeError for what can never be sent, and TooManyRequests when too many wait.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise ValueError("timeout must be a number of seconds greater than 0")
        if len(self._waiting) >= self.max_queue:
            description = f"{self.max_queue} calls wait to be sent; wait for an answer first"
            raise TooManyRequests("too_many_requests", description, retryable=True)
        members = _members(payload if trace_id is None else {**payload, "trace_id": trace_id})
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
        """Ask something of the gateway itself, on this connection and at once; it is no call, and has no deadline."""
        call = Call(kind, _members(payload), self._loop.create_future())
        self._transmit(call)
        return call

    def abandon(self, call: Call, reason: BaseException | None = None) -> None:
        """Nobody waits for the answer any more; ``reason`` is for who still does."""
        if self._forget_unsent(call):
            call.stop_timers()
        elif not call.abandoned and self._in_flight.get(call.id) is call:
            call.abandoned = True
            # The gateway counts it until it has answered, and so does the client; but not for ever.
            self._arm(call, self._loop.time() + self.grace, self._give_up)
            if call.kind == "request" and self._send is not None:
                self._send(f'{{"type":"cancel","payload":{{"id":"{call.id}"}}}}')
        if reason is not None and not call.future.done():
            call.future.set_exception(reason)

    # --- the connection ---------------------------------------------------------------------------------------

    def connected(self, send: Callable[[str], None]) -> None:
        """There is a connection: what :meth:`ask` says may be sent."""
        self._send = send
        self._held = True

    def release(self) -> None:
        """Calls may be sent."""
        self._held = False
        self._flush()

    def hold(self) -> None:
        """Calls may be sent no longer, but those in flight will be answered."""
        self._held = True

    def answer(self, payload: Mapping[str, Any]) -> UnexpectedFrame | None:
        """Take the payload of a response; why it is of no use, if it is of none."""
        id_ = payload.get("id")
        call = self._in_flight.get(id_) if isinstance(id_, str) else None
        if call is None:
            return UnexpectedFrame("a response to nothing that is in flight")
        self._land(call)
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
            unexpected = UnexpectedFrame("a response with neither result nor error")
            call.fail(unexpected)
        self._flush()
        return unexpected

    def lost(self, error: ConnectionLost | ConnectionClosed) -> None:
        """The connection has gone, and with it the answers. What may run twice is made again on the next one."""
        self._send = None
        self._held = True
        calls = tuple(self._in_flight.values())
        again: dict[Call, None] = {}
        for call in calls:
            self._land(call)
            call.stop_timers()
            if call.abandoned or call.future.done():
                continue
            if call.idempotent:
                again[call] = None
                self._arm(call, call.deadline)
            else:
                call.fail(error.anew())
        self._waiting = again | self._waiting

    def close(self, error: ConnectionClosed) -> None:
        """There will be no connection any more."""
        self.lost(error)
        for call in (*self._waiting, *self._pausing):
            call.fail(error.anew())
        self._waiting.clear()
        self._pausing.clear()

    # --- one call ---------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._waiting and not self._held and self._weight < self.limits.max_in_flight:
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
            # The gateway would hang up for good.
            description = f"the frame has more than the {self.limits.max_message_size} bytes that the gateway takes"
            call.fail(PayloadTooLarge("payload_too_large", description))
            return
        self._in_flight[call.id] = call
        self._weight += call.kind in _WEIGHS
        if call.deadline < math.inf:
            self._arm(call, call.deadline + self.grace)
        if self._send is not None:
            self._send(text.decode())

    def _land(self, call: Call) -> None:
        del self._in_flight[call.id]
        self._weight -= call.kind in _WEIGHS

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
        call.pause = self._loop.call_at(now + wait, self._again, call)

    def _again(self, call: Call) -> None:
        self._pausing.discard(call)
        self._waiting[call] = None
        self._flush()

    def _expire(self, call: Call) -> None:
        sent = call not in self._waiting and call not in self._pausing
        description = "No answer in time; whether it ran is unknown" if sent else "It could not be sent in time"
        self.abandon(call, CallTimeout("timeout", description, retryable=not sent))

    def _give_up(self, call: Call) -> None:
        if self._in_flight.get(call.id) is call:
            self._land(call)
            self._flush()

    def _forget_unsent(self, call: Call) -> bool:
        if call in self._pausing:
            self._pausing.remove(call)
            return True
        with contextlib.suppress(KeyError):
            del self._waiting[call]
            return True
        return False


def _members(payload: Mapping[str, object]) -> bytes:
    """The members of an object as JSON, each with a comma in front. Raises TypeError for what is no JSON."""
    text = encode_json({name: value for name, value in payload.items() if value is not None})[1:-1]
    return b"," + text if text else b""
