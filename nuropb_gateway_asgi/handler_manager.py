"""Who is connected: handlers and their manager.

The manager knows nothing of sockets (a handler is anything with four methods) and nothing of the mesh (what it has
checked and cannot answer itself goes to whoever bound itself as the receiver).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable, Iterable
from typing import Any, Final, Protocol, TypeAlias

from .authentication import Authenticator, Identity
from .authentication.revocation import RevocationCheck
from .authorization import Policy
from .authorization.patterns import is_private
from .authorization.rules import Delivery
from .exceptions import AuthenticationFailed, AuthenticationUnavailable, ProtocolError
from .limits.buckets import Excess
from .limits.shared import SharedLimits
from .protocol import (
    Authorize,
    Cancel,
    ClientFrame,
    CloseCode,
    Command,
    Decoder,
    ErrorCode,
    Failure,
    Ping,
    Pong,
    Request,
    Subscribe,
    encode_error,
    encode_failure,
    encode_json,
    encode_pong,
    encode_response,
)
from .settings import Settings

__all__ = ["Handler", "HandlerManager", "MessageReceiver", "SendCount"]

logger = logging.getLogger(__name__)

#: So many malformed frames one after the other, and the connection ends with 4501.
MAX_MALFORMED_FRAMES: Final = 10
#: What ``retry_after_ms`` of a goodbye is spread over, in seconds: clients must not all come back in one moment.
GOODBYE_SPREAD: Final = 5.0
#: Connections end up to this part before MAX_CONNECTION_LIFETIME.
LIFETIME_JITTER: Final = 0.1
#: How often a handler is looked at, in seconds: an expired token ends its connection within this.
MAX_SWEEP_INTERVAL: Final = 0.5
_EXCESSES: Final = {
    "connection": "Too many frames on this connection",
    "user": "Too many frames on all connections of this user",
    "rule": "Too many calls of this kind",
}


#: What clients are told while nobody can say whether their token is valid: that it may be, and to try again.
CANNOT_AUTHENTICATE: Final = Failure(
    ErrorCode.MESH_UNAVAILABLE, "Tokens cannot be checked at the moment", retry_after_ms=5000
)


class Handler(Hashable, Protocol):
    """One connection, of whatever kind. All of it is called on the event loop's thread."""

    #: Unique among all connections of all gateways.
    session_id: str
    #: Who it is; None until the handler is registered.
    identity: Identity | None
    #: When it was registered, in unix seconds; set by the manager.
    connected_at: float

    def on_registered(self, identity: Identity) -> None:
        """The connection is authorised; what is sent from here on follows what this method sends."""

    def send_frame(self, text: str) -> None:
        """Take a frame for the client. Never waits and never raises: a client that is too slow is hung up on."""

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Take an event, by the rule for what becomes of it if the client is too slow. Never waits and never raises."""

    def close(self, code: int, reason: str = "") -> None:
        """Begin to hang up, with one of CloseCode or from 4000 to 4999; doing it again changes nothing.

        What was sent before is still delivered.
        """

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` until it ends or the connection does."""

    @property
    def outbox_size(self) -> int:
        """Bytes that wait for the client."""

    def check(self, now: float) -> None:
        """Look after pings and deadlines; ``now`` is a time of the event loop's clock."""


MessageReceiver: TypeAlias = Callable[[Handler, ClientFrame], None]


class SendCount(int):
    """To how many connections a message went. It may be awaited, as nuropb_gw's methods had to be."""

    def __await__(self) -> Generator[None, None, int]:
        return int(self)
        yield  # makes this a generator; nothing is ever waited for


class HandlerManager:
    """Authorises connections, keeps them, takes their messages, and sends to them.

    Nothing here waits for a client: messages are put into the connections' outboxes. ``process`` is what this kind of
    connection shares with the others of the same process, if there are others.
    """

    def __init__(
        self, settings: Settings, authenticator: Authenticator, policy: Policy, process: SharedLimits | None = None
    ) -> None:
        self._settings = settings
        self.process = process = SharedLimits.of(settings) if process is None else process
        self.admission = process.admission
        self.revocations = process.revocations
        self._authenticator = RevocationCheck(authenticator, self.revocations)
        self._policy = policy
        self._decoder = Decoder(max_size=settings.max_message_size, max_depth=settings.max_json_depth)
        self._handlers: dict[str, Handler] = {}
        self._user_sessions: dict[str, set[str]] = {}
        #: Those that were registered not to listen.
        self._callers: dict[str, Handler] = {}
        self._malformed: dict[str, int] = {}
        self._refreshing: set[str] = set()
        self._limits = process.rates
        self._clock: Callable[[], float] = time.monotonic
        #: Connections that were told that they are too old, and when they end, by the event loop's clock.
        self._retiring: dict[str, float] = {}
        #: Handshakes refused, by reason, connections that the gateway closed, by code, and frames over a rate limit, by
        #: whose: for the metrics.
        self.refused: Counter[str] = Counter()
        self.closed: Counter[int] = Counter()
        self.limited: Counter[str] = Counter()
        #: Events that were lost, or replaced by later ones, because a client was too slow for them.
        self.lost_events = 0
        self._receive: MessageReceiver | None = None
        self._on_unregistered: Callable[[Handler], None] | None = None
        self._on_arriving: Callable[[], Awaitable[None]] | None = None
        self._on_registered: Callable[[Handler], None] | None = None
        self._on_refreshed: Callable[[Handler], None] | None = None
        self._in_flight: Callable[[Handler], int] | None = None
        #: While it is set (with seconds to wait before the next attempt), no connection is let in.
        self.closed_for: float | None = None

    # --- binding ----------------------------------------------------------------------------------------------

    def bind_receiver(
        self,
        on_handler_message_received: MessageReceiver,
        on_handler_unregistered: Callable[[Handler], None] | None = None,
        *,
        on_handler_arriving: Callable[[], Awaitable[None]] | None = None,
        on_handler_registered: Callable[[Handler], None] | None = None,
        on_handler_refreshed: Callable[[Handler], None] | None = None,
        in_flight: Callable[[Handler], int] | None = None,
    ) -> None:
        """Say who gets the frames that this manager has checked, and who wants to know when handlers come and go, or
        have a newer token; and who knows how many answers a handler still has to get.

        ``on_handler_arriving`` is awaited before a handler is registered. It may take a moment and must not raise.
        Once: one HandlerManager belongs to one ServiceMeshManager. Raises RuntimeError the second time.
        """
        if self._receive is not None:
            raise RuntimeError("another receiver is bound: a HandlerManager belongs to one ServiceMeshManager")
        self._receive = on_handler_message_received
        self._on_unregistered = on_handler_unregistered
        self._on_arriving = on_handler_arriving
        self._on_registered = on_handler_registered
        self._on_refreshed = on_handler_refreshed
        self._in_flight = in_flight

    # --- connections ------------------------------------------------------------------------------------------

    @property
    def authenticator(self) -> Authenticator:
        """What turns a token into an identity."""
        return self._authenticator

    @property
    def decoder(self) -> Decoder:
        """What turns a message into a frame."""
        return self._decoder

    def __len__(self) -> int:
        return len(self._handlers)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """The registered handlers, as of now."""
        return tuple(self._handlers.values())

    async def register(self, handler: Handler, token: str, *, listens: bool = True) -> Identity:
        """Authorise ``handler`` by ``token`` and register it.

        One that does not listen is there for its own messages, and ends with their answers: it counts for every limit
        and ends with its user's token or by :meth:`close`, but is none of the ``handlers`` that others send to and
        look at.

        Raises AuthenticationFailed, AuthenticationUnavailable or ConnectionLimitReached, and then nothing is
        registered; nor is it when the call is cancelled. From the moment of registration to the return nothing else
        runs. Raises RuntimeError when the session is registered already.
        """
        identity = await self.authenticate(token)
        if listens and self._on_arriving is not None:
            await self._on_arriving()
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
        handler.on_registered(identity)
        if listens and self._on_registered is not None:
            self._on_registered(handler)
        logger.debug("session %s registered, %d connections", handler.session_id, len(self._handlers))
        return identity

    def unregister(self, handler: Handler) -> None:
        """Forget ``handler``. Doing it again, or for one that never was registered, changes nothing."""
        if self.get_session(handler.session_id) is not handler:
            return
        assert handler.identity is not None  # noqa: S101 - it was registered
        self.admission.leave(handler.identity.user_id)
        if self._callers.pop(handler.session_id, None) is None:
            del self._handlers[handler.session_id]
            sessions = self._user_sessions[handler.identity.user_id]
            sessions.discard(handler.session_id)
            if not sessions:
                del self._user_sessions[handler.identity.user_id]
        self._malformed.pop(handler.session_id, None)
        self._refreshing.discard(handler.session_id)
        self._retiring.pop(handler.session_id, None)
        self._limits.forget(handler.session_id)
        if self._on_unregistered is not None:
            self._on_unregistered(handler)
        logger.debug("session %s unregistered, %d connections", handler.session_id, len(self._handlers))

    def get_handler(self, session_id: str) -> Handler | None:
        """The handler of a session, or None."""
        return self._handlers.get(session_id)

    def get_session(self, session_id: str) -> Handler | None:
        """The same, also of one that does not listen."""
        return self._handlers.get(session_id) or self._callers.get(session_id)

    def get_user_handlers(self, user_ids: Iterable[str]) -> list[Handler]:
        """The handlers of some users, each once, as of now. Raises TypeError for a string, which is one user's id."""
        sessions = {session_id for user_id in _users(user_ids) for session_id in self._user_sessions.get(user_id, ())}
        return [self._handlers[session_id] for session_id in sessions]

    def in_flight(self, handler: Handler) -> int:
        """How many calls of ``handler`` are still to be answered."""
        return 0 if self._in_flight is None else self._in_flight(handler)

    async def authenticate(self, token: str) -> Identity:
        """Who this token is of, whatever it is to be used for; nothing is registered.

        Raises AuthenticationFailed, and AuthenticationUnavailable if it cannot be told within AUTH_TIMEOUT.
        """
        try:
            async with asyncio.timeout(self._settings.auth_timeout):
                identity = await self._authenticator(token)
        except TimeoutError as error:
            logger.warning("the authenticator took longer than %g s", self._settings.auth_timeout)
            raise AuthenticationUnavailable("the authenticator did not answer in time") from error
        if identity is None:
            raise AuthenticationFailed("the token does not identify anybody")
        if identity.expires_at is not None and identity.expires_at <= time.time():
            raise AuthenticationFailed("the token has expired")
        return identity

    # --- messages from clients --------------------------------------------------------------------------------

    def on_handler_message(self, handler: Handler, data: str | bytes) -> ClientFrame | None:
        """Take a message of a registered handler: answer it, or pass its frame on.

        Never waits and never raises for what a client sent. Returns the frame, if it was one.
        """
        session_id = handler.session_id
        if self._handlers.get(session_id) is not handler and self._callers.get(session_id) is not handler:
            return None
        if self._decoder.is_too_big(data):
            description = f"Message of more than {self._settings.max_message_size} bytes"
            handler.send_frame(encode_error(Failure(ErrorCode.PAYLOAD_TOO_LARGE, description)))
            handler.close(CloseCode.MESSAGE_TOO_BIG, "message too big")
            return None
        assert handler.identity is not None  # noqa: S101 - it is registered
        excess = self._limits.on_frame(handler.session_id, handler.identity.user_id, self._clock())
        if excess is not None:
            self._refuse_at_a_glance(handler, data, excess)
            return None
        try:
            frame = self._decoder.decode(data)
        except ProtocolError as error:
            self._on_malformed(handler, error)
            return None
        self._malformed.pop(handler.session_id, None)
        try:
            self._on_frame(handler, frame)
        except Exception:
            logger.exception("session %s: a frame could not be handled", handler.session_id)
            failure = Failure(ErrorCode.INTERNAL, "The gateway could not handle this frame")
            handler.send_frame(encode_refusal(frame, failure))
        return frame

    def _refuse_at_a_glance(self, handler: Handler, data: str | bytes, excess: Excess) -> None:
        """Refuse a frame over a rate limit, whatever it is, without decoding it."""
        kind, id_, trace_id = self._decoder.glance(data)
        if kind == "cancel":  # its id is that of a request, which has an answer of its own
            id_ = None
        # A pong has no answer.
        answer = None if kind == "pong" else functools.partial(_encode_answer, id_, trace_id)
        self._on_excess(handler, excess, answer)

    def _on_excess(self, handler: Handler, excess: Excess, answer: Callable[[Failure], str] | None) -> None:
        """Refuse a frame over a rate limit, and hang up on who goes on all the same."""
        self.limited[excess.scope] += 1
        if answer is not None:
            retry_after = math.ceil(excess.wait * 1000)
            failure = Failure(ErrorCode.TOO_MANY_REQUESTS, _EXCESSES[excess.scope], retry_after_ms=retry_after)
            handler.send_frame(answer(failure))
        if self._limits.on_refusal(handler.session_id, self._clock()):
            handler.close(CloseCode.TOO_MANY_REQUESTS, "too many requests")

    def _on_malformed(self, handler: Handler, error: ProtocolError) -> None:
        handler.send_frame(encode_malformed(error))
        count = self._malformed.get(handler.session_id, 0) + 1
        self._malformed[handler.session_id] = count
        if count >= MAX_MALFORMED_FRAMES:
            handler.close(CloseCode.BAD_REQUEST, "too many malformed frames")

    def _on_frame(self, handler: Handler, frame: ClientFrame) -> None:
        if isinstance(frame, Request | Command):
            assert handler.identity is not None  # noqa: S101 - it is registered
            if is_private(frame.method) or not self._policy.may_call(handler.identity, frame.service, frame.method):
                description = f"Calling {frame.service}.{frame.method} is not allowed"
                handler.send_frame(encode_refusal(frame, Failure(ErrorCode.PERMISSION_DENIED, description)))
                return
            rate = self._policy.rate(handler.identity, frame.service, frame.method)
            excess = None if rate is None else self._limits.on_call(rate, handler.identity.user_id, self._clock())
            if excess is not None:
                self._on_excess(handler, excess, functools.partial(encode_refusal, frame))
                return
        elif isinstance(frame, Ping):
            handler.send_frame(encode_pong(frame.payload))
            return
        elif isinstance(frame, Pong):
            return
        elif isinstance(frame, Authorize):
            # One at a time, or a client could keep the authenticator busy, and an older token overtake a newer one.
            if handler.session_id in self._refreshing:
                failure = Failure(ErrorCode.TOO_MANY_REQUESTS, "Another token is being looked at", retry_after_ms=1000)
                handler.send_frame(encode_refusal(frame, failure))
                return
            self._refreshing.add(handler.session_id)
            handler.start_soon(self._refresh, handler, frame)
            return
        elif isinstance(frame, Subscribe):
            assert handler.identity is not None  # noqa: S101 - it is registered
            for topic in frame.topics:
                if not self._policy.may_subscribe(handler.identity, topic):
                    description = f"Subscribing to {topic} is not allowed"
                    handler.send_frame(encode_refusal(frame, Failure(ErrorCode.PERMISSION_DENIED, description)))
                    return
        if self._receive is None:
            raise RuntimeError("no receiver is bound to this HandlerManager")
        self._receive(handler, frame)

    async def _refresh(self, handler: Handler, frame: Authorize) -> None:
        """A newer token for a live connection. A token that is refused leaves the connection as it is."""
        try:
            identity = await self.authenticate(frame.token)
        except AuthenticationFailed as error:
            logger.info("session %s: refresh refused: %s", handler.session_id, error)
            failure = Failure(ErrorCode.UNAUTHENTICATED, "A valid bearer token is required")
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            return
        except AuthenticationUnavailable as error:
            logger.info("session %s: refresh put off: %s", handler.session_id, error)
            handler.send_frame(encode_failure(frame.id, frame.trace_id, CANNOT_AUTHENTICATE))
            return
        except Exception as error:
            # Without its message, which may quote the token.
            logger.error("session %s: the authenticator raised %s", handler.session_id, type(error).__name__)
            failure = Failure(ErrorCode.INTERNAL, "The gateway could not check the token")
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            return
        finally:
            self._refreshing.discard(handler.session_id)
        if handler.identity is None or identity.user_id != handler.identity.user_id:
            failure = Failure(ErrorCode.PERMISSION_DENIED, "The token is another user's; connect anew with it")
            handler.send_frame(encode_failure(frame.id, frame.trace_id, failure))
            return
        handler.identity = identity
        handler.send_frame(encode_authorized(frame, identity))
        if self._on_refreshed is not None:
            self._on_refreshed(handler)

    # --- messages to clients ----------------------------------------------------------------------------------

    def send_message(self, session_id: str, message: Any) -> SendCount:
        """Send to one connection. ``message`` is a frame as text, or anything that JSON has."""
        handler = self._handlers.get(session_id)
        return self._send([] if handler is None else [handler], message)

    def send_message_to_user_ids(self, user_ids: Iterable[str], message: Any) -> SendCount:
        """Send to all connections that some users have to this process."""
        return self._send(self.get_user_handlers(user_ids), message)

    def send_message_to_all(self, message: Any) -> SendCount:
        """Send to all connections of this process."""
        return self._send(self.handlers, message)

    @staticmethod
    def _send(handlers: Iterable[Handler], message: Any) -> SendCount:
        text = message if isinstance(message, str) else encode_json(message).decode()
        count = 0
        for handler in handlers:
            handler.send_frame(text)
            count += 1
        return SendCount(count)

    def close_revoked(self) -> SendCount:
        """Hang up on all connections whose tokens have been revoked."""
        revoked = [
            handler
            for handler in (*self.handlers, *self._callers.values())
            if handler.identity is not None and self.revocations.refuses(handler.identity)
        ]
        return self._close(revoked, CloseCode.TOKEN_REVOKED, "token revoked")

    def close(self, session_id: str, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected") -> SendCount:
        """Hang up on one connection."""
        handler = self.get_session(session_id)
        return self._close([] if handler is None else [handler], code, reason)

    def close_user_ids(
        self, user_ids: Iterable[str], code: int = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> SendCount:
        """Hang up on all connections that some users have to this process."""
        users = _users(user_ids)
        callers = [each for each in self._callers.values() if each.identity and each.identity.user_id in users]
        return self._close(self.get_user_handlers(users) + callers, code, reason)

    def close_all(self, code: int = CloseCode.DISCONNECTED, reason: str = "disconnected") -> SendCount:
        """Hang up on all connections of this process."""
        return self._close((*self.handlers, *self._callers.values()), code, reason)

    @staticmethod
    def _close(handlers: Iterable[Handler], code: int, reason: str) -> SendCount:
        count = 0
        for handler in handlers:
            handler.close(code, reason)
            count += 1
        return SendCount(count)

    @staticmethod
    def say_goodbye(handler: Handler, reason: str) -> None:
        """Tell a client that its connection ends soon, and when to come back: each at another moment."""
        retry_after = random.randrange(int(GOODBYE_SPREAD * 1000))  # noqa: S311 - jitter
        goodbye = {"topic": "goodbye", "event": {"reason": reason, "retry_after_ms": retry_after}}
        handler.send_frame(encode_json({"type": "event", "payload": goodbye}).decode())

    # --- time -------------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Look after the time limits of all connections, until cancelled."""
        shortest = min(self._settings.ping_interval, self._settings.ping_timeout, self._settings.write_timeout)
        interval = min(MAX_SWEEP_INTERVAL, shortest / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval)
            now, wall = loop.time(), time.time()
            for handler in self.handlers:
                identity = handler.identity
                if identity is not None and identity.expires_at is not None and identity.expires_at <= wall:
                    handler.close(CloseCode.TOKEN_EXPIRED, "token expired")
                elif wall - handler.connected_at > self._lifetime(handler):
                    self._retire(handler, now)
                handler.check(now)  # closed or not: it may hang in a write

    def _retire(self, handler: Handler, now: float) -> None:
        """Have a connection end that is too old, after what is in flight."""
        ends = self._retiring.get(handler.session_id)
        if ends is None:
            self._retiring[handler.session_id] = now + self._settings.drain_timeout
            self.say_goodbye(handler, "lifetime")
        elif now >= ends:
            handler.close(CloseCode.DRAINING, "maximum lifetime of a connection")

    def _lifetime(self, handler: Handler) -> float:
        # Connections that came together go at different times, each always at the same.
        return self._settings.max_connection_lifetime * (
            1.0 - LIFETIME_JITTER * (hash(handler.session_id) % 1000) / 1000
        )


def _users(user_ids: Iterable[str]) -> set[str]:
    if isinstance(user_ids, str):
        raise TypeError("user_ids: it has to be a list of user ids, not a string")
    return set(user_ids)


def expiry(identity: Identity) -> int | None:
    """When the identity's token ends, in whole seconds since 1970: what clients are told."""
    return None if identity.expires_at is None else int(identity.expires_at)


def encode_authorized(frame: Authorize, identity: Identity) -> str:
    """The answer to an ``authorize`` that succeeded."""
    return encode_response(frame.id, frame.trace_id, encode_json({"expires_at": expiry(identity)}))


def encode_refusal(frame: ClientFrame, failure: Failure) -> str:
    """The answer to a frame that is refused."""
    # A cancel's id is that of a request, which has an answer of its own.
    id_ = None if isinstance(frame, Cancel) else getattr(frame, "id", None)
    return _encode_answer(id_, getattr(frame, "trace_id", None), failure)


def _encode_answer(id_: str | None, trace_id: str | None, failure: Failure) -> str:
    if id_ is None and trace_id is None:
        return encode_error(failure)
    return encode_failure(id_, trace_id, failure)


def encode_malformed(error: ProtocolError) -> str:
    """The answer to what is not a frame."""
    # nuropb_gw answered undecodable frames with the exception's class, and its clients may look at that.
    name = "JSONDecodeError" if error.description.startswith("Error decoding JSON") else ""
    return _encode_answer(error.id, error.trace_id, Failure(ErrorCode.BAD_REQUEST, error.description, error=name))
