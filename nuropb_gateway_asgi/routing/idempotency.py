"""Calls with an idempotency key: a second call with the same key joins the first one, and both get its answer.

A scope is a session, or for calls by HTTP the user: each of these calls is a session of its own. In a session an answer
is there to be joined for as long as the client may not have it, and over HTTP for the resume window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol, runtime_checkable

from msgspec import Raw

from ..handler_manager import Handler
from ..protocol import Command, ErrorCode, Failure, Request, encode_failure, encode_response
from ..wire.interface import CallMessage
from .calls import ClientCall

__all__ = ["IdempotentCall", "IdempotentCalls"]

#: Answers of one session that are remembered at most.
MAX_ANSWERS: Final = 1024
#: Bytes of all answers over HTTP that are remembered at most, and what one takes beside its result.
HTTP_MEMORY: Final = 16_777_216
ANSWER_OVERHEAD: Final = 500
#: Failures after which a service may run the call again: it never saw it, or nobody knows.
_FORGOTTEN: Final = frozenset(
    {
        ErrorCode.MESH_UNAVAILABLE,
        ErrorCode.SERVICE_UNAVAILABLE,
        ErrorCode.TOO_MANY_REQUESTS,
        ErrorCode.TIMEOUT,
        ErrorCode.CANCELLED,
        ErrorCode.INTERNAL,
    }
)


@runtime_checkable
class _Remembers(Protocol):
    """A session that knows the frames that its client may not have."""

    def may_lack(self, text: str) -> bool:
        """Tell whether the client may not have this very frame."""
        ...


class _Waiting(NamedTuple):
    """A call that waits for the answer of an earlier one."""

    handler: Handler
    id: str | None
    trace_id: str | None
    places: dict[str, str]
    place: str


class _Answer(NamedTuple):
    """The outcome of a call. ``text`` is the frame by which a session got it; ``until`` is for calls over HTTP."""

    digest: bytes
    result: bytes | Raw
    failure: Failure | None
    text: str
    until: float


class IdempotentCall(ClientCall):
    """A call with an idempotency key. Its answer goes to all who joined."""

    __slots__ = ("digest", "joined", "key", "let_go", "on_ended", "scope")

    scope: str
    key: str
    digest: bytes
    joined: list[_Waiting]
    on_ended: Callable[[IdempotentCall, bytes | Raw, Failure | None, str], None]
    #: Gives back the place that the call has kept since its client left; None if it has not left.
    let_go: Callable[[], None] | None

    def id_of(self, place: str) -> str | None:
        """Return the client's id of the caller with this place."""
        return next((each.id for each in self.joined if each.place == place), self.id)

    def follow(self, former: Handler, handler: Handler, place: str | None = None) -> None:
        """Send the answer to ``handler`` in the place of ``former``, of all callers or of the one with this place."""
        own = self.message.correlation_id if self.id is None else self.id
        if self.handler is former and place in (None, own):
            self.handler = handler
        self.joined = [
            each._replace(handler=handler) if each.handler is former and place in (None, each.place) else each
            for each in self.joined
        ]

    def release(self) -> None:
        """Give back the places of all who wait."""
        super().release()
        if self.let_go is not None:
            self.let_go()
        for each in self.joined:
            each.places.pop(each.place, None)

    def succeed(self, result: bytes | Raw) -> None:
        """Send the result to all who wait."""
        text = encode_response(self.id, self.trace_id, result)
        self.handler.send_frame(text)
        for each in self.joined:
            each.handler.send_frame(encode_response(each.id, each.trace_id, result))
        self.on_ended(self, result, None, text)

    def fail(self, failure: Failure) -> None:
        """Send the error to all who wait."""
        text = encode_failure(self.id, self.trace_id, failure)
        self.handler.send_frame(text)
        for each in self.joined:
            each.handler.send_frame(encode_failure(each.id, each.trace_id, failure))
        self.on_ended(self, b"null", failure, text)


class IdempotentCalls:
    """The calls with idempotency keys of a process. ``window`` and the times of ``clock`` are in seconds."""

    def __init__(self, window: float, clock: Callable[[], float]) -> None:
        self._window = window
        self._clock = clock
        self._in_flight: dict[tuple[str, str], IdempotentCall] = {}
        #: Answers by scope and key; those of sessions.
        self._answers: dict[str, dict[str, _Answer]] = {}
        #: Answers over HTTP, the oldest first.
        self._http: dict[tuple[str, str], _Answer] = {}
        self._http_size = 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept but answers over HTTP."""
        return not (self._in_flight or self._answers)

    @staticmethod
    def scope_of(handler: Handler) -> str:
        """Return the scope of a handler's keys."""
        by_user = getattr(handler, "keys_are_the_users", False) and handler.identity is not None
        return f"user {handler.identity.user_id}" if by_user and handler.identity else handler.session_id

    def join(self, handler: Handler, frame: Request | Command, places: dict[str, str], place: str) -> bool | Failure:
        """Have a call take part in an earlier one with its key, or answer it at once.

        Returns False if there is none, and the refusal of a key that was used for another call.
        """
        key = frame.idempotency_key or ""
        scope, digest = self.scope_of(handler), _digest(frame)
        running = self._in_flight.get((scope, key))
        if running is not None:
            if running.digest != digest:
                return _OTHER_CALL
            running.joined.append(_Waiting(handler, frame.id, frame.trace_id, places, place))
            places[place] = running.message.correlation_id
            return True
        answer = self._find(handler, scope, key)
        if answer is None:
            return False
        if answer.digest != digest:
            return _OTHER_CALL
        places.pop(place, None)
        if answer.failure is None:
            handler.send_frame(encode_response(frame.id, frame.trace_id, answer.result))
        else:
            handler.send_frame(encode_failure(frame.id, frame.trace_id, answer.failure))
        return True

    def _find(self, handler: Handler, scope: str, key: str) -> _Answer | None:
        answer = self._answers.get(scope, {}).get(key)
        if answer is not None and isinstance(handler, _Remembers) and handler.may_lack(answer.text):
            return answer
        answer = self._http.get((scope, key))
        return answer if answer is not None and self._clock() < answer.until else None

    def make(
        self, message: CallMessage, handler: Handler, frame: Request | Command, trace_id: str, places: dict[str, str]
    ) -> IdempotentCall:
        """Make the first call with a key."""
        call = IdempotentCall(message, handler, frame.id, trace_id, places)
        call.scope, call.key, call.digest = self.scope_of(handler), frame.idempotency_key or "", _digest(frame)
        call.joined, call.on_ended, call.let_go = [], self._on_ended, None
        self._in_flight[call.scope, call.key] = call
        return call

    def leave(self, call: IdempotentCall, handler: Handler) -> bool:
        """Let a call over HTTP run on without a client that has gone: it may come again with the same key."""
        if call.scope == handler.session_id:
            self._in_flight.pop((call.scope, call.key), None)
            return False
        call.joined = [each for each in call.joined if each.handler is not handler]
        return True

    def _on_ended(self, call: IdempotentCall, result: bytes | Raw, failure: Failure | None, text: str) -> None:
        self._in_flight.pop((call.scope, call.key), None)
        if failure is not None and failure.code in _FORGOTTEN:
            return
        answer = _Answer(call.digest, bytes(result), failure, text, self._clock() + self._window)
        if call.scope == call.handler.session_id:
            if isinstance(call.handler, _Remembers):
                answers = self._answers.setdefault(call.scope, {})
                answers[call.key] = answer
                if len(answers) > MAX_ANSWERS:
                    del answers[next(iter(answers))]
        else:
            self._remember(call, answer)

    def _remember(self, call: IdempotentCall, answer: _Answer) -> None:
        former = self._http.pop((call.scope, call.key), None)
        if former is not None:
            self._http_size -= len(former.result) + ANSWER_OVERHEAD
        self._http[call.scope, call.key] = answer
        self._http_size += len(answer.result) + ANSWER_OVERHEAD
        now = self._clock()
        while self._http:
            first = next(iter(self._http))
            if self._http_size <= HTTP_MEMORY and now < self._http[first].until:
                break
            self._http_size -= len(self._http.pop(first).result) + ANSWER_OVERHEAD

    def forget(self, session_id: str) -> None:
        """Forget the answers of a session."""
        self._answers.pop(session_id, None)

    def rename(self, old: str, new: str) -> None:
        """Give a session's answers another session id."""
        answers = self._answers.pop(old, None)
        if answers is not None:
            self._answers[new] = answers


_OTHER_CALL: Final = Failure(
    ErrorCode.BAD_REQUEST, "payload.idempotency_key: it was used for another call; draw a new key for each call"
)


def _digest(frame: Request | Command) -> bytes:
    """Return a digest of what a call does."""
    text = f"{type(frame).__name__}\0{frame.service}\0{frame.method}\0".encode() + bytes(frame.params)
    return hashlib.blake2b(text, digest_size=16).digest()
