"""Which clients are connected? The HandlerManager and its handlers.

The manager knows neither sockets (a handler is any object with the methods of :class:`Handler`) nor the mesh: frames
that it has checked and cannot answer itself go to its :class:`Receiver`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from .authentication import Authenticator, Identity
from .authentication.revocation import RevocationCheck
from .authentication.session_tokens import SessionTokens
from .authorization import CallVerdict, Policy, completed
from .authorization.patterns import is_private
from .authorization.rules import Delivery
from .authorization.topic_checks import TopicChecks
from .exceptions import AuthenticationFailed, AuthenticationUnavailable, ProtocolError, TokenExpired, UnknownKey
from .generation_cache import GenerationCache
from .journal import NO_JOURNAL, Journal
from .limits.admission import UNKNOWN_KEY_COST, Arrival
from .limits.buckets import Excess
from .limits.lifetimes import Lifetimes
from .limits.prices import BYTES_PER_UNIT, extra_for_size, extra_for_topics
from .limits.shared import SharedLimits
from .limits.slices import TOPICS_PER_SLICE
from .protocol import (
    CALL_FRAMES,
    FINAL,
    Authorize,
    Cancel,
    ClientFrame,
    CloseCode,
    Decoder,
    ErrorCode,
    Failure,
    Ping,
    Pong,
    Subscribe,
    TraceContext,
    Unsubscribe,
    encode_error,
    encode_failed,
    encode_failure,
    encode_json,
    encode_pong,
    encode_refusals,
    encode_response,
    error_members,
)
from .settings import Settings
from .tracing import Tracing

__all__ = ["Handler", "HandlerManager", "HandlerStatistics", "Receiver", "SendCount"]

logger = logging.getLogger(__name__)
#: For the lines about refused newer tokens, whose number is bounded.
refresh_logger = logging.getLogger(f"{__name__}.refreshes")

#: Malformed frames in a row, without a readable id, after which a connection is closed with 4501.
MAX_MALFORMED_FRAMES: Final = 10
#: Seconds over which ``retry_after_ms`` of a goodbye is spread, so that clients do not all reconnect in one moment.
GOODBYE_SPREAD: Final = 5.0
#: Sessions of other processes whose end is remembered at least: of those that are on their way when they are closed.
REMEMBERED_CLOSES: Final = 1000
#: Maximum of the seconds between two sweeps: a connection with an expired token is closed within this time.
MAX_SWEEP_INTERVAL: Final = 0.5
_EXCESSES: Final = {
    "connection": "Too many frames on this connection",
    "user": "Too many frames on all connections of this user",
    "rule": "Too many calls of this kind",
    "bindings": "Too many new topics of this user",
}

#: The frames that are refused in an overload; others keep connections alive, or make work less.
_CALLS: Final = frozenset({"request", "command", "describe"})
OVERLOADED: Final = "The gateway has more to do than it can"
#: The errors of calls that are refused in an overload, encoded once and used in turn. Clients try again at different
#: times, from half a second to one and a half.
_OVERLOADED: Final = itertools.cycle(
    [
        encode_json(error_members(Failure(ErrorCode.TOO_MANY_REQUESTS, OVERLOADED, retry_after_ms=wait))).decode()
        for wait in range(500, 1500, 10)
    ]
)
#: Private methods are not for clients, whatever the policy says.
_PRIVATE: Final = CallVerdict(allowed=False, rate=None)
#: The text for a client whose token is genuine, and has expired.
EXPIRED: Final = "The token has expired"
#: The answer while the authenticator cannot decide: the token may be valid, and the client may try again.
CANNOT_AUTHENTICATE: Final = Failure(
    ErrorCode.MESH_UNAVAILABLE, "Tokens cannot be checked at the moment", retry_after_ms=5000
)


class Handler(Hashable, Protocol):
    """A connection of any transport. All methods are called on the event loop's thread."""

    #: Unique among all connections of all gateways.
    session_id: str
    #: The address whose limits the connection counts for, see :func:`~.limits.admission.address_of`; "" for none.
    address: str
    #: The authenticated caller; None until the handler is registered.
    identity: Identity | None
    #: Time of registration, in unix seconds; set by the manager.
    connected_at: float

    def on_registered(self, identity: Identity) -> None:
        """Greet the client: the connection is authorised, and all other frames follow those sent here."""

    def send_frame(self, text: str) -> None:
        """Queue a frame for the client. Never waits and never raises; the connection of a slow client is closed."""

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Queue an event; ``delivery`` says what a slow client loses. Never waits and never raises."""

    def close(self, code: int, reason: str = "") -> None:
        """Begin to close the connection with a CloseCode or a code from 4000 to 4999; later calls change nothing.

        Frames queued before are still delivered.
        """

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` as a task that ends with the connection at the latest."""

    @property
    def outbox_size(self) -> int:
        """Bytes queued for the client."""

    def check(self, now: float) -> None:
        """Check pings and deadlines; ``now`` is a time of :func:`time.monotonic`."""


class Receiver(Protocol):
    """The owner of a HandlerManager's frames: the ServiceMeshManager, or a test in its place.

    All methods are called on the event loop's thread, and must not raise for anything that a client sent.
    """

    def on_handler_message_received(self, handler: Handler, frame: ClientFrame) -> None:
        """Take a checked frame, and answer it exactly once, now or later."""

    async def on_handler_arriving(self) -> None:
        """Prepare for one more handler. Awaited before its registration; may take a moment."""

    def on_handler_registered(self, handler: Handler) -> None:
        """Note that a handler was registered."""

    def on_handler_unregistered(self, handler: Handler) -> None:
        """Forget everything that belongs to a handler."""

    def on_handler_parked(self, handler: Handler) -> None:
        """Note that a session has lost its connection, and may come back."""

    def on_handler_refreshed(self, handler: Handler) -> None:
        """Note that a handler has a newer token, and so maybe fewer rights."""

    def calls_in_flight(self, handler: Handler) -> int:
        """Count the calls of a handler that still have to be answered."""
        ...


class SendCount(int):
    """The number of connections that a message went to. Awaitable, as nuropb_gw's methods were coroutines."""

    def __await__(self) -> Generator[None, None, int]:
        return int(self)
        yield  # makes this method a generator function, which __await__ has to be


@dataclass(slots=True)
class HandlerStatistics:
    """Counters of one transport's connections since the start."""

    #: Refused handshakes, by reason.
    refused: Counter[str] = field(default_factory=Counter)
    #: Connections closed by the gateway, by close code.
    closed: Counter[int] = field(default_factory=Counter)
    #: Frames over a rate limit, by the limit's scope.
    limited: Counter[str] = field(default_factory=Counter)
    #: Events dropped or replaced by later ones because a client was too slow.
    lost_events: int = 0


class HandlerManager:
    """Authorises connections, keeps them, checks their messages, and sends to them.

    Sending never waits for a client: messages are queued in the connections' outboxes. ``shared_limits`` are the limits
    that this transport shares with the others of the same process; ``clock`` is a monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        authenticator: Authenticator,
        policy: Policy,
        shared_limits: SharedLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self.shared_limits = shared = SharedLimits.of(settings) if shared_limits is None else shared_limits
        self.admission = shared.admission
        self.revocations = shared.revocations
        #: The tokens of all sessions, those of handlers registered for their own messages included.
        self.tokens = SessionTokens()
        self._authenticator = RevocationCheck(authenticator, self.revocations)
        self._policy = completed(policy)
        self._decoder = Decoder(max_size=settings.max_message_size, max_depth=settings.max_json_depth)
        self._handlers: dict[str, Handler] = {}
        self._user_sessions: dict[str, set[str]] = {}
        #: Handlers registered for their own messages only, by session.
        self._callers: dict[str, Handler] = {}
        #: The sessions without a connection, which they had and may have again.
        self._parked: set[str] = set()
        #: How sessions were closed for good that were not here, and may have been on their way from another process.
        self._absent: GenerationCache[str, tuple[int, str]] = GenerationCache(REMEMBERED_CLOSES)
        #: Malformed frames in a row, by session.
        self._malformed: dict[str, int] = {}
        #: Sessions whose newer token is being checked.
        self._refreshing: set[str] = set()
        self._limits = shared.rates
        self._overload = shared.overload
        #: Frames whose work is done in slices.
        self.slices = shared.slices
        self._busy = shared.slices.held
        self.topic_checks = TopicChecks(self._policy, TOPICS_PER_SLICE)
        #: The spans of connections and calls, if the gateway traces.
        self.tracing = Tracing.of(settings.tracing)
        #: The access log and the audit log, if the gateway writes any.
        self.journal: Journal = NO_JOURNAL
        self._lifetimes = Lifetimes(settings.max_connection_lifetime, settings.drain_timeout)
        self._clock = clock
        self.statistics = HandlerStatistics()
        self._receiver: Receiver | None = None
        #: Seconds until a refused client may try again, while no connection is admitted; None while connections are,
        #: infinite before the first is.
        self.closed_for: float | None = None

    def bind_receiver(self, receiver: Receiver) -> None:
        """Set the receiver of checked frames, once: one HandlerManager belongs to one ServiceMeshManager.

        Raises RuntimeError the second time.
        """
        if self._receiver is not None:
            raise RuntimeError("another receiver is bound: a HandlerManager belongs to one ServiceMeshManager")
        self._receiver = receiver

    # --- connections ------------------------------------------------------------------------------------------

    @property
    def authenticator(self) -> Authenticator:
        """The authenticator, which refuses revoked tokens."""
        return self._authenticator

    @property
    def decoder(self) -> Decoder:
        """The decoder of messages."""
        return self._decoder

    def __len__(self) -> int:
        return len(self._handlers) - len(self._parked)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is kept for any connection."""
        tables = (self._handlers, self._parked, self._callers, self._user_sessions, self._malformed, self._refreshing)
        return not (any(tables) or len(self._lifetimes) or len(self.tokens) or len(self.slices))

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The registered handlers, as of now."""
        return tuple(self._handlers.values())

    async def register(
        self, handler: Handler, token: str, *, listens: bool = True, handshake: TraceContext | None = None
    ) -> Identity:
        """Authorise ``handler`` by ``token`` and register it.

        A handler with ``listens=False`` exists for its own calls and ends with their answers. Every limit counts it, it
        ends with its user's token, and :meth:`close` closes it; but it is not one of :attr:`handlers`, to which
        messages are sent. ``handshake`` is the trace context of the request that the handler came with.

        Raises AuthenticationFailed, AuthenticationUnavailable or ConnectionLimitReached; the handler is then not
        registered, as when the call is cancelled. Nothing else runs between the registration and the return. Raises
        RuntimeError when the session is registered already.
        """
        checking, tracing = self.authenticate(token), self.tracing
        identity = await (checking if tracing is None else tracing.check(checking, handshake))
        if listens and self._receiver is not None:
            await self._receiver.on_handler_arriving()
        if self.revocations.refuses(identity):
            raise AuthenticationFailed("the token has been revoked")
        if self.get_session(handler.session_id) is not None:
            raise RuntimeError(f"session {handler.session_id} is registered")
        self.admission.enter(identity.user_id)
        handler.identity = identity
        handler.connected_at = time.time()
        if listens:
            self._handlers[handler.session_id] = handler
            self._user_sessions.setdefault(identity.user_id, set()).add(handler.session_id)
        else:
            self._callers[handler.session_id] = handler
        self.tokens.begin(handler.session_id, identity, brief=not listens)
        if listens:
            self.journal.on_connected(handler)
        if listens and tracing is not None:
            tracing.on_connected(handler.session_id, handshake)
        handler.on_registered(identity)
        if listens and self._receiver is not None:
            self._receiver.on_handler_registered(handler)
        logger.debug("session %s registered, %d connections", handler.session_id, len(self._handlers))
        return identity

    def unregister(self, handler: Handler) -> None:
        """Forget ``handler``. Does nothing for a handler that is not registered."""
        if self.get_session(handler.session_id) is not handler:
            return
        assert handler.identity is not None  # noqa: S101 - it was registered
        if handler.session_id in self._parked:
            self._parked.discard(handler.session_id)
        else:
            self.admission.leave(handler.identity.user_id)
        self.tokens.end(handler.session_id, handler.identity, brief=handler.session_id in self._callers)
        if self._callers.pop(handler.session_id, None) is None:
            del self._handlers[handler.session_id]
            sessions = self._user_sessions[handler.identity.user_id]
            sessions.discard(handler.session_id)
            if not sessions:
                del self._user_sessions[handler.identity.user_id]
        if self.tracing is not None:
            self.tracing.on_disconnected(handler.session_id)
        self._malformed.pop(handler.session_id, None)
        self._refreshing.discard(handler.session_id)
        self._lifetimes.forget(handler.session_id)
        self._limits.forget(handler.session_id)
        self.slices.forget(handler.session_id)
        if self._receiver is not None:
            self._receiver.on_handler_unregistered(handler)
        logger.debug("session %s unregistered, %d connections", handler.session_id, len(self._handlers))

    # --- sessions that outlive their connections --------------------------------------------------------------

    def replace(self, handler: Handler, successor: Handler) -> None:
        """Register ``successor`` in the place of ``handler``, whose user and session id it has."""
        self._handlers[handler.session_id] = successor

    def park(self, handler: Handler) -> None:
        """Keep a session whose connection has ended: it gives up its place among the connections."""
        assert handler.identity is not None  # noqa: S101 - it is registered
        self._parked.add(handler.session_id)
        self._lifetimes.forget(handler.session_id)
        if self.tracing is not None:
            self.tracing.on_disconnected(handler.session_id)
        self.admission.leave(handler.identity.user_id)
        if self._receiver is not None:
            self._receiver.on_handler_parked(handler)

    def unpark(self, handler: Handler, connection: Handler) -> None:
        """Give a parked session the place of a registered connection of the same user, whose own session ends."""
        assert handler.identity is not None  # noqa: S101 - it is registered
        assert connection.identity is not None  # noqa: S101 - it is registered
        self.admission.enter_again(connection.identity.user_id)
        self.unregister(connection)
        self.tokens.refresh(handler.session_id, handler.identity, connection.identity, time.time())
        self._parked.discard(handler.session_id)
        if self.tracing is not None:
            self.tracing.on_connected(handler.session_id, None)
        handler.identity, handler.connected_at = connection.identity, connection.connected_at
        if self._receiver is not None:
            self._receiver.on_handler_registered(handler)

    def rename(self, handler: Handler, session_id: str) -> None:
        """Give a session another id: that which it had in another process."""
        assert handler.identity is not None  # noqa: S101 - it is registered
        old, handler.session_id = handler.session_id, session_id
        self._handlers[session_id] = self._handlers.pop(old)
        self.tokens.rename(old, session_id, handler.identity)
        if self.tracing is not None:
            self.tracing.rename(old, session_id)
        for sessions in (self._user_sessions[handler.identity.user_id], self._parked, self._refreshing):
            if old in sessions:
                sessions.discard(old)
                sessions.add(session_id)
        self.slices.rename(old, session_id)
        self._malformed.pop(old, None)
        self._lifetimes.forget(old)
        self._limits.forget(old)

    def is_parked(self, handler: Handler) -> bool:
        """Tell whether a session has no connection at present."""
        return handler.session_id in self._parked

    def get_connected(self, user_ids: Iterable[str]) -> list[Handler]:
        """Return the handlers of some users that have a connection, each once. Raises TypeError for a string."""
        return [handler for handler in self.get_user_handlers(user_ids) if handler.session_id not in self._parked]

    def get_handler(self, session_id: str) -> Handler | None:
        """Return the handler of a session, or None."""
        return self._handlers.get(session_id)

    def get_session(self, session_id: str) -> Handler | None:
        """Return the handler of a session, also one registered with ``listens=False``, or None."""
        return self._handlers.get(session_id) or self._callers.get(session_id)

    def get_user_handlers(self, user_ids: Iterable[str]) -> list[Handler]:
        """Return the handlers of some users, each once. Raises TypeError for a string, which is one user's id."""
        sessions = {session_id for user_id in _users(user_ids) for session_id in self._user_sessions.get(user_id, ())}
        return [self._handlers[session_id] for session_id in sessions]

    def in_flight(self, handler: Handler) -> int:
        """Count the calls of ``handler`` that still have to be answered."""
        return 0 if self._receiver is None else self._receiver.calls_in_flight(handler)

    async def authenticate(self, token: str) -> Identity:
        """Return the identity that a token proves; nothing is registered.

        Raises AuthenticationFailed, and AuthenticationUnavailable if the authenticator cannot decide within
        AUTH_TIMEOUT.
        """
        try:
            async with asyncio.timeout(self._settings.auth_timeout):
                identity = await self._authenticator(token)
        except TimeoutError as error:
            logger.warning("the authenticator took longer than AUTH_TIMEOUT (%g s)", self._settings.auth_timeout)
            raise AuthenticationUnavailable("the authenticator did not answer in time") from error
        if identity is None:
            raise AuthenticationFailed("the token does not identify a user")
        if identity.has_ended(time.time()):
            raise TokenExpired("the token has expired")
        return identity

    # --- messages from clients --------------------------------------------------------------------------------

    def on_handler_message(self, handler: Handler, data: str | bytes, *, added: int = 0) -> ClientFrame | None:
        """Check a message of a registered handler, and answer it or pass its frame on.

        ``added`` bytes of it are the gateway's own, around a client's text, and count for no limit.
        Never waits, and never raises for anything that a client sent. Returns the frame, or None for a message that
        could not be decoded, or that waits behind a frame whose work is done in slices: see :attr:`slices`.
        """
        session_id = handler.session_id
        if self._handlers.get(session_id) is not handler and self._callers.get(session_id) is not handler:
            return None
        if session_id in self._busy:
            self.slices.hold(session_id, data)
            return None
        if self._decoder.is_too_big(data) and (not added or len(data) - added > self._decoder.max_size):
            description = f"Message of more than {self._settings.max_message_size} bytes"
            handler.send_frame(encode_error(Failure(ErrorCode.PAYLOAD_TOO_LARGE, description)))
            handler.close(CloseCode.MESSAGE_TOO_BIG, "message too big")
            return None
        assert handler.identity is not None  # noqa: S101 - it is registered
        if self._overload.active and self._overload.refuses() and self._refuse_late(handler, data):
            return None
        now = self._clock()
        excess = self._limits.on_frame(session_id, handler.identity.user_id, now)
        if excess is not None:
            self._refuse_at_a_glance(handler, data, excess)
            return None
        if len(data) > BYTES_PER_UNIT:
            self._limits.charge(session_id, handler.identity.user_id, now, extra_for_size(len(data)))
        try:
            frame = self._decoder.decode(data)
        except ProtocolError as error:
            self._on_malformed(handler, error)
            return None
        self._malformed.pop(handler.session_id, None)
        try:
            if self._admit(handler, frame):
                if self._receiver is None:
                    raise RuntimeError("no receiver is bound to this HandlerManager")
                self._receiver.on_handler_message_received(handler, frame)
        except Exception as error:
            _on_defect(handler, frame, error)
        return frame

    def _refuse_late(self, handler: Handler, data: str | bytes) -> bool:
        """Refuse a call that the process has no time for; return whether the frame was one."""
        kind, id_, trace_id = self._decoder.glance(data)
        if kind not in _CALLS:
            return False
        self.statistics.limited["overload"] += 1
        if id_ is None and trace_id is None:
            handler.send_frame(encode_error(Failure(ErrorCode.TOO_MANY_REQUESTS, OVERLOADED, retry_after_ms=1000)))
        else:
            handler.send_frame(encode_failed(id_, trace_id, next(_OVERLOADED).encode()))
        assert handler.identity is not None  # noqa: S101 - it is registered
        self._limits.charge(handler.session_id, handler.identity.user_id, self._clock(), 1)
        return True

    def refuse_late(self, handler: Handler, texts: Sequence[str]) -> list[str]:
        """Return the answers to the calls at the beginning of ``texts``, which are refused: see :attr:`Overload.late`.

        ``texts`` are short messages that follow each other. As many answers as there are of them take their frames; the
        frame behind them has to be given to :meth:`on_handler_message`.
        """
        session_id = handler.session_id
        if (
            (self._handlers.get(session_id) is not handler and self._callers.get(session_id) is not handler)
            or session_id in self._busy
            or self._decoder.max_size < BYTES_PER_UNIT
        ):
            return []
        answers = encode_refusals(texts, _OVERLOADED)
        if answers:
            count = len(answers)
            self._overload.refused += count
            self.statistics.limited["overload"] += count
            # So that a flood is over its rate in an overload, too, and its connection is closed.
            assert handler.identity is not None  # noqa: S101 - it is registered
            self._limits.charge(session_id, handler.identity.user_id, self._clock(), count)
        return answers

    def _refuse_at_a_glance(self, handler: Handler, data: str | bytes, excess: Excess) -> None:
        """Refuse a frame over a rate limit without decoding more than its type and ids."""
        kind, id_, trace_id = self._decoder.glance(data)
        if kind == "cancel":  # the id is that of a request, which has an answer of its own
            id_ = None
        # A pong has no answer, nor has an ack.
        answer = None if kind in ("pong", "ack") else functools.partial(_encode_answer, id_, trace_id)
        self.on_excess(handler, excess, answer)

    def on_excess(self, handler: Handler, excess: Excess, answer: Callable[[Failure], str] | None) -> None:
        """Refuse a frame over a rate limit; close the connection of a client that ignores the refusals."""
        self.statistics.limited[excess.scope] += 1
        if answer is not None:
            retry_after = math.ceil(excess.wait * 1000)
            failure = Failure(ErrorCode.TOO_MANY_REQUESTS, _EXCESSES[excess.scope], retry_after_ms=retry_after)
            handler.send_frame(answer(failure))
        if self._limits.on_refusal(handler.session_id, self._clock()):
            handler.close(CloseCode.TOO_MANY_REQUESTS, "too many requests")

    def _on_malformed(self, handler: Handler, error: ProtocolError) -> None:
        handler.send_frame(encode_malformed(error))
        if error.id is not None:
            return  # its caller is told of the mistake; the other callers of the connection must not suffer for it
        count = self._malformed.get(handler.session_id, 0) + 1
        self._malformed[handler.session_id] = count
        if count >= MAX_MALFORMED_FRAMES:
            handler.close(CloseCode.BAD_REQUEST, "too many malformed frames")

    def _admit(self, handler: Handler, frame: ClientFrame) -> bool:
        """Return whether a frame goes on to the receiver; answer it otherwise."""
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        if isinstance(frame, CALL_FRAMES):
            allowed, rate = _PRIVATE
            if not is_private(frame.method):
                allowed, rate = self._policy.judge_call(identity, frame.service, frame.method)
            if not allowed:
                description = f"Calling {frame.service}.{frame.method} is not allowed"
                handler.send_frame(encode_refusal(frame, Failure(ErrorCode.PERMISSION_DENIED, description)))
                return False
            excess = None if rate is None else self._limits.on_call(rate, identity.user_id, self._clock())
            if excess is not None:
                self.on_excess(handler, excess, functools.partial(encode_refusal, frame))
                return False
        elif isinstance(frame, Ping):
            handler.send_frame(encode_pong(frame.payload))
            return False
        elif isinstance(frame, Pong):
            return False
        elif isinstance(frame, Authorize):
            self._start_refresh(handler, frame)
            return False
        elif isinstance(frame, Subscribe | Unsubscribe):
            extra = extra_for_topics(len(frame.topics))
            if extra:
                self._limits.charge(handler.session_id, identity.user_id, self._clock(), extra)
            if isinstance(frame, Subscribe):
                steps = _subscribe(handler, frame, self.topic_checks, self._receiver)
                resume = functools.partial(self.on_handler_message, handler)
                self.slices.run(steps, handler.session_id, resume)
                return False
        return True

    def _start_refresh(self, handler: Handler, frame: Authorize) -> None:
        # One check at a time: else a client could flood the authenticator, and an older token overtake a newer one.
        if handler.session_id in self._refreshing:
            failure = Failure(ErrorCode.TOO_MANY_REQUESTS, "Another token is being checked", retry_after_ms=1000)
            handler.send_frame(encode_refusal(frame, failure))
            return
        self._refreshing.add(handler.session_id)
        handler.start_soon(self._refresh, handler, frame)

    async def _refresh(self, handler: Handler, frame: Authorize) -> None:
        """Check a newer token for a live connection.

        A refused token leaves the connection as it is, but counts like one in a handshake; too many close it.
        """
        try:
            checking = self.authenticate(frame.token)
            identity = await (checking if self.tracing is None else self.tracing.check(checking, None))
        except AuthenticationFailed as error:
            refresh_logger.info("session %s: token refresh refused: %s", handler.session_id, error)
            self.journal.on_refused(handler, "newer_token", str(error))
            description = EXPIRED if isinstance(error, TokenExpired) else "A valid bearer token is required"
            failure = Failure(ErrorCode.UNAUTHENTICATED, description)
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            assert handler.identity is not None  # noqa: S101 - it was registered
            if self.admission.on_wrong_token(handler.address, handler.identity.user_id, self._clock()):
                handler.close(CloseCode.INVALID_TOKEN, "too many wrong tokens")
            return
        except AuthenticationUnavailable as error:
            if isinstance(error, UnknownKey):
                self.admission.on_failure(handler.address, Arrival.WITH_TOKEN, self._clock(), UNKNOWN_KEY_COST)
            refresh_logger.info("session %s: token refresh postponed: %s", handler.session_id, error)
            handler.send_frame(encode_failure(frame.id, frame.trace_id, CANNOT_AUTHENTICATE))
            return
        except Exception as error:
            # The message of the exception may quote the token.
            logger.error("session %s: the authenticator raised %s", handler.session_id, type(error).__name__)
            failure = Failure(ErrorCode.INTERNAL, "The gateway could not check the token")
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            return
        finally:
            self._refreshing.discard(handler.session_id)
        if handler.identity is None or identity.user_id != handler.identity.user_id:
            failure = Failure(ErrorCode.PERMISSION_DENIED, "The token is another user's; open a new connection with it")
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            return
        if self.get_session(handler.session_id) is handler:
            self.tokens.refresh(handler.session_id, handler.identity, identity, time.time())
        handler.identity = identity
        handler.send_frame(encode_authorized(frame, identity))
        if self._receiver is not None:
            self._receiver.on_handler_refreshed(handler)

    # --- messages to clients ----------------------------------------------------------------------------------

    def send_message(self, session_id: str, message: Any) -> SendCount:
        """Send to one connection. ``message`` is a frame as text, or any JSON value."""
        handler = self._handlers.get(session_id)
        return _send([] if handler is None else [handler], message)

    def send_message_to_user_ids(self, user_ids: Iterable[str], message: Any) -> SendCount:
        """Send to all connections that some users have to this process."""
        return _send(self.get_user_handlers(user_ids), message)

    def send_message_to_all(self, message: Any) -> SendCount:
        """Send to all connections of this process."""
        return _send(self.handlers, message)

    def close_revoked(self, session_ids: Iterable[str]) -> SendCount:
        """Close those of some connections whose tokens have been revoked."""
        handlers = filter(None, map(self.get_session, session_ids))
        revoked = [each for each in handlers if each.identity is not None and self.revocations.refuses(each.identity)]
        return _close(revoked, CloseCode.TOKEN_REVOKED, "token revoked")

    def close(self, session_id: str, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected") -> SendCount:
        """Close one connection. A session that may be on its way from another process is closed once it is here."""
        handler = self.get_session(session_id)
        if handler is None and code >= FINAL:
            self._absent.add(session_id, (code, reason))
        return _close([] if handler is None else [handler], code, reason)

    def close_arrived(self, handler: Handler) -> None:
        """Close a session that came from another process, if it was closed, or revoked, on its way."""
        closing = self._absent.get(handler.session_id)
        if closing is None:
            return
        if closing[0] == CloseCode.TOKEN_REVOKED and self._receiver is not None:
            self.tokens.revoke(handler.session_id)
            self._receiver.on_handler_refreshed(handler)  # revokes the tokens that it has used here
        handler.close(*closing)

    def close_user_ids(
        self, user_ids: Iterable[str], code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> SendCount:
        """Close all connections that some users have to this process."""
        users = _users(user_ids)
        callers = [each for each in self._callers.values() if each.identity and each.identity.user_id in users]
        return _close(self.get_user_handlers(users) + callers, code, reason)

    def close_all(self, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected") -> SendCount:
        """Close all connections of this process."""
        return _close((*self.handlers, *self._callers.values()), code, reason)

    @staticmethod
    def say_goodbye(handler: Handler, reason: str) -> None:
        """Tell a client that its connection ends soon, and when to reconnect; each client gets a time of its own."""
        retry_after = random.randrange(int(GOODBYE_SPREAD * 1000))  # noqa: S311 - jitter
        goodbye = {"topic": "goodbye", "event": {"reason": reason, "retry_after_ms": retry_after}}
        handler.send_frame(encode_json({"type": "event", "payload": goodbye}).decode())

    # --- time -------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Enforce the time limits of all connections, until cancelled."""
        shortest = min(self._settings.ping_interval, self._settings.ping_timeout, self._settings.write_timeout)
        interval = min(MAX_SWEEP_INTERVAL, shortest / 4)
        self._overload.watch(asyncio.get_running_loop())
        try:
            await self._sweep(interval)
        finally:
            self._overload.stop()

    async def _sweep(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            now, wall = self._clock(), time.time()
            for handler in self.handlers:
                if handler.session_id in self._parked:
                    continue
                identity = handler.identity
                if identity is not None and identity.has_ended(wall):
                    handler.close(CloseCode.TOKEN_EXPIRED, "token expired")
                elif (
                    step := self._lifetimes.check(handler.session_id, wall - handler.connected_at, now)
                ) == "announce":
                    self.say_goodbye(handler, "lifetime")
                elif step == "close":
                    handler.close(CloseCode.DRAINING, "maximum lifetime of a connection")
                handler.check(now)  # also while it closes: it may hang in a write


def _subscribe(handler: Handler, frame: Subscribe, checks: TopicChecks, receiver: Receiver | None) -> Iterator[None]:
    """Pass a ``subscribe`` on if all of its topics are allowed. Yields between two slices, and never raises."""
    try:
        denied = yield from checks.first_denied(lambda: handler.identity, frame.topics)
        if denied is not None:
            failure = Failure(ErrorCode.PERMISSION_DENIED, f"Subscribing to {denied} is not allowed")
            handler.send_frame(encode_refusal(frame, failure))
        elif receiver is not None:
            receiver.on_handler_message_received(handler, frame)
    except Exception as error:
        _on_defect(handler, frame, error)


def _on_defect(handler: Handler, frame: ClientFrame, error: Exception) -> None:
    """Log an exception, and answer the frame that raised it."""
    logger.error("session %s: a frame could not be handled", handler.session_id, exc_info=error)
    failure = Failure(ErrorCode.INTERNAL, "The gateway could not handle this frame")
    handler.send_frame(encode_refusal(frame, failure))


def _send(handlers: Iterable[Handler], message: Any) -> SendCount:
    text = message if isinstance(message, str) else encode_json(message).decode()
    count = 0
    for handler in handlers:
        handler.send_frame(text)
        count += 1
    return SendCount(count)


def _close(handlers: Iterable[Handler], code: int, reason: str) -> SendCount:
    count = 0
    for handler in handlers:
        handler.close(code, reason)
        count += 1
    return SendCount(count)


def _users(user_ids: Iterable[str]) -> set[str]:
    if isinstance(user_ids, str):
        raise TypeError("user_ids: a string is not a list of user ids")
    return set(user_ids)


def expiry(identity: Identity) -> int | None:
    """Return the expiry that clients are told, in whole unix seconds, or None for a token without one."""
    return None if identity.expires_at is None else int(identity.expires_at)


def encode_authorized(frame: Authorize, identity: Identity) -> str:
    """Encode the answer to an ``authorize`` that succeeded."""
    return encode_response(frame.id, frame.trace_id, encode_json({"expires_at": expiry(identity)}))


def encode_refusal(frame: ClientFrame, failure: Failure) -> str:
    """Encode the answer to a refused frame."""
    # The id of a cancel is that of a request, which has an answer of its own.
    id_ = None if isinstance(frame, Cancel) else getattr(frame, "id", None)
    return _encode_answer(id_, getattr(frame, "trace_id", None), failure)


def _encode_answer(id_: str | None, trace_id: str | None, failure: Failure) -> str:
    if id_ is None and trace_id is None:
        return encode_error(failure)
    return encode_failure(id_, trace_id, failure)


def encode_malformed(error: ProtocolError) -> str:
    """Encode the answer to a message that is not a frame."""
    # nuropb_gw answered undecodable frames with the class of its exception, and its clients may look at that.
    name = "JSONDecodeError" if error.description.startswith("Error decoding JSON") else ""
    return _encode_answer(error.id, error.trace_id, Failure(ErrorCode.BAD_REQUEST, error.description, error=name))
