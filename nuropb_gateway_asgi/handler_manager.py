"""Who is connected: handlers and their manager.

The manager knows nothing of sockets (a handler is anything with four methods) and nothing of the mesh (what it has
checked and cannot answer itself goes to whoever bound itself as the receiver).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, Hashable, Iterable, Iterator
from typing import Any, Final, Protocol, TypeAlias

from .authentication import Authenticator, Identity
from .authorization import Policy
from .exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached, ProtocolError
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
#: How often a handler is looked at, in seconds: an expired token ends its connection within this.
MAX_SWEEP_INTERVAL: Final = 0.5


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

    def on_registered(self, identity: Identity) -> None:
        """The connection is authorised; what is sent from here on follows what this method sends."""

    def send_frame(self, text: str) -> None:
        """Take a frame for the client. Never waits and never raises: a client that is too slow is hung up on."""

    def close(self, code: CloseCode, reason: str = "") -> None:
        """Begin to hang up; what was sent before is still delivered. Doing it again changes nothing."""

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

    Nothing here waits for a client: messages are put into the connections' outboxes.
    """

    def __init__(self, settings: Settings, authenticator: Authenticator, policy: Policy) -> None:
        self._settings = settings
        self._authenticator = authenticator
        self._policy = policy
        self._decoder = Decoder(max_size=settings.max_message_size, max_depth=settings.max_json_depth)
        self._handlers: dict[str, Handler] = {}
        self._user_sessions: dict[str, set[str]] = {}
        self._malformed: dict[str, int] = {}
        self._refreshing: set[str] = set()
        self._admitted = 0
        #: Handshakes refused, by reason, and connections that the gateway closed, by code: for the metrics.
        self.refused: Counter[str] = Counter()
        self.closed: Counter[int] = Counter()
        self._receive: MessageReceiver | None = None
        self._on_unregistered: Callable[[Handler], None] | None = None
        #: While it is set (with seconds to wait before the next attempt), no connection is let in.
        self.closed_for: float | None = None

    # --- binding ----------------------------------------------------------------------------------------------

    def bind_receiver(
        self,
        on_handler_message_received: MessageReceiver,
        on_handler_unregistered: Callable[[Handler], None] | None = None,
    ) -> None:
        """Say who gets the frames that this manager has checked, and who wants to know when a handler has gone.

        Once: one HandlerManager belongs to one ServiceMeshManager. Raises RuntimeError the second time.
        """
        if self._receive is not None:
            raise RuntimeError("another receiver is bound: a HandlerManager belongs to one ServiceMeshManager")
        self._receive = on_handler_message_received
        self._on_unregistered = on_handler_unregistered

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

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """A place for one connection, authorised or not yet, for as long as the context lasts.

        Raises ConnectionLimitReached when all places are taken.
        """
        if self._admitted >= self._settings.max_connections:
            raise ConnectionLimitReached("this process has all the connections it may have", per_user=False)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def register(self, handler: Handler, token: str) -> Identity:
        """Authorise ``handler`` by ``token`` and register it.

        Raises AuthenticationFailed, AuthenticationUnavailable or ConnectionLimitReached, and then nothing is
        registered; nor is it when the call is cancelled. From the moment of registration to the return nothing else
        runs. Raises RuntimeError when the session is registered already.
        """
        identity = await self._authenticate(token)
        if handler.session_id in self._handlers:
            raise RuntimeError(f"session {handler.session_id} is registered")
        sessions = self._user_sessions.get(identity.user_id, ())
        if len(sessions) >= self._settings.max_connections_per_user:
            raise ConnectionLimitReached("this user has all the connections one may have", per_user=True)
        handler.identity = identity
        self._handlers[handler.session_id] = handler
        self._user_sessions.setdefault(identity.user_id, set()).add(handler.session_id)
        handler.on_registered(identity)
        logger.debug("session %s registered, %d connections", handler.session_id, len(self._handlers))
        return identity

    def unregister(self, handler: Handler) -> None:
        """Forget ``handler``. Doing it again, or for one that never was registered, changes nothing."""
        if self._handlers.get(handler.session_id) is not handler:
            return
        del self._handlers[handler.session_id]
        self._malformed.pop(handler.session_id, None)
        self._refreshing.discard(handler.session_id)
        assert handler.identity is not None  # noqa: S101 - it was registered
        sessions = self._user_sessions[handler.identity.user_id]
        sessions.discard(handler.session_id)
        if not sessions:
            del self._user_sessions[handler.identity.user_id]
        if self._on_unregistered is not None:
            self._on_unregistered(handler)
        logger.debug("session %s unregistered, %d connections", handler.session_id, len(self._handlers))

    def get_handler(self, session_id: str) -> Handler | None:
        """The handler of a session, or None."""
        return self._handlers.get(session_id)

    def get_user_handlers(self, user_ids: Iterable[str]) -> list[Handler]:
        """The handlers of some users, each once, as of now."""
        sessions = {session_id for user_id in user_ids for session_id in self._user_sessions.get(user_id, ())}
        return [self._handlers[session_id] for session_id in sessions]

    async def _authenticate(self, token: str) -> Identity:
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
        if self._handlers.get(handler.session_id) is not handler:
            return None
        if self._decoder.is_too_big(data):
            description = f"Message of more than {self._settings.max_message_size} bytes"
            handler.send_frame(encode_error(Failure(ErrorCode.PAYLOAD_TOO_LARGE, description)))
            handler.close(CloseCode.MESSAGE_TOO_BIG, "message too big")
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
            handler.send_frame(_encode_failure(frame, failure))
        return frame

    def _on_malformed(self, handler: Handler, error: ProtocolError) -> None:
        failure = Failure(ErrorCode.BAD_REQUEST, error.description, error=_malformed_class(error))
        if error.id is None and error.trace_id is None:
            handler.send_frame(encode_error(failure))
        else:
            handler.send_frame(encode_failure(error.id, error.trace_id, failure))
        count = self._malformed.get(handler.session_id, 0) + 1
        self._malformed[handler.session_id] = count
        if count >= MAX_MALFORMED_FRAMES:
            handler.close(CloseCode.BAD_REQUEST, "too many malformed frames")

    def _on_frame(self, handler: Handler, frame: ClientFrame) -> None:
        if isinstance(frame, Request | Command):
            assert handler.identity is not None  # noqa: S101 - it is registered
            if not self._policy.may_call(handler.identity, frame.service, frame.method):
                description = f"Calling {frame.service}.{frame.method} is not allowed"
                handler.send_frame(_encode_failure(frame, Failure(ErrorCode.PERMISSION_DENIED, description)))
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
                handler.send_frame(_encode_failure(frame, failure))
                return
            self._refreshing.add(handler.session_id)
            handler.start_soon(self._refresh, handler, frame)
            return
        elif isinstance(frame, Subscribe):
            assert handler.identity is not None  # noqa: S101 - it is registered
            for topic in frame.topics:
                if not self._policy.may_subscribe(handler.identity, topic):
                    description = f"Subscribing to {topic} is not allowed"
                    handler.send_frame(_encode_failure(frame, Failure(ErrorCode.PERMISSION_DENIED, description)))
                    return
        if self._receive is None:
            raise RuntimeError("no receiver is bound to this HandlerManager")
        self._receive(handler, frame)

    async def _refresh(self, handler: Handler, frame: Authorize) -> None:
        """A newer token for a live connection. A token that is refused leaves the connection as it is."""
        try:
            identity = await self._authenticate(frame.token)
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

    def close(
        self, session_id: str, code: CloseCode = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> SendCount:
        """Hang up on one connection."""
        handler = self._handlers.get(session_id)
        return self._close([] if handler is None else [handler], code, reason)

    def close_user_ids(
        self, user_ids: Iterable[str], code: CloseCode = CloseCode.DISCONNECTED, reason: str = "disconnected"
    ) -> SendCount:
        """Hang up on all connections that some users have to this process."""
        return self._close(self.get_user_handlers(user_ids), code, reason)

    def close_all(self, code: CloseCode = CloseCode.DISCONNECTED, reason: str = "disconnected") -> SendCount:
        """Hang up on all connections of this process."""
        return self._close(self.handlers, code, reason)

    @staticmethod
    def _close(handlers: Iterable[Handler], code: CloseCode, reason: str) -> SendCount:
        count = 0
        for handler in handlers:
            handler.close(code, reason)
            count += 1
        return SendCount(count)

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
                handler.check(now)  # closed or not: it may hang in a write


def expiry(identity: Identity) -> int | None:
    """When the identity's token ends, in whole seconds since 1970: what clients are told."""
    return None if identity.expires_at is None else int(identity.expires_at)


def encode_authorized(frame: Authorize, identity: Identity) -> str:
    """The answer to an ``authorize`` that succeeded."""
    return encode_response(frame.id, frame.trace_id, encode_json({"expires_at": expiry(identity)}))


def _encode_failure(frame: ClientFrame, failure: Failure) -> str:
    # A cancel's id is that of a request, which has an answer of its own.
    id_ = None if isinstance(frame, Cancel) else getattr(frame, "id", None)
    trace_id = getattr(frame, "trace_id", None)
    if id_ is None and trace_id is None:
        return encode_error(failure)
    return encode_failure(id_, trace_id, failure)


def _malformed_class(error: ProtocolError) -> str:
    # nuropb_gw answered undecodable frames with the exception's class, and its clients may look at that.
    return "JSONDecodeError" if error.description.startswith("Error decoding JSON") else ""
