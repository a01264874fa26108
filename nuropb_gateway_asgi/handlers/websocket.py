"""WebSocket connections, on Starlette."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import WebSocketException
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from .._admission import address_of
from .._outbox import Outbox
from ..authentication import Identity
from ..credentials import Credentials, find_credentials
from ..exceptions import AuthenticationFailed, AuthenticationUnavailable, ConnectionLimitReached, ProtocolError
from ..handler_manager import (
    CANNOT_AUTHENTICATE,
    HandlerManager,
    encode_authorized,
    encode_malformed,
    encode_refusal,
    expiry,
)
from ..origins import OriginPolicy
from ..protocol import (
    PING,
    SUBPROTOCOL,
    Authorize,
    CloseCode,
    ErrorCode,
    Failure,
    Request,
    encode_error,
    encode_event,
    encode_json,
)
from ..rules import Delivery
from ..settings import Settings

__all__ = ["DenialLogFilter", "WebSocketHandler"]

logger = logging.getLogger(__name__)

#: Frames that a connection may send before it is authorised, each answered with an error.
MAX_UNAUTHORISED_FRAMES: Final = 10
#: Bytes of UTF-8.
MAX_CLOSE_REASON: Final = 123
#: Seconds until a client that was turned away because of load should try again.
RETRY_AFTER: Final = 5
#: Frames that a connection may have handled in a row before others get their turn.
FRAMES_PER_TURN: Final = 16
_PROTOCOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9.-]{0,23}")
_TOKEN_WORDS = re.compile("bearer|token|auth|key|secret", re.IGNORECASE)
#: These do not wait for what is in the outbox: the client cannot or may not have it any more.
_AT_ONCE: Final = frozenset({CloseCode.SLOW_CONSUMER, CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_REVOKED})


class _ClientLeft(Exception):
    """The client is not there any more."""


class _Refusal(Exception):
    """The handshake ends here: as an HTTP status, or for browsers as a close code."""

    def __init__(
        self, status: int, close: CloseCode, code: ErrorCode, description: str, *, retry: bool = False
    ) -> None:
        super().__init__(description)
        self.reason = close.name.lower()
        self.status = status
        self.close = close
        self.failure = Failure(code, description, retry_after_ms=RETRY_AFTER * 1000 if retry else None)
        self.headers = {"Retry-After": str(RETRY_AFTER)} if retry else {}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"


class WebSocketHandler(WebSocketEndpoint):
    """One WebSocket connection: handshake, one task that reads, one that writes.

    To be subclassed for :meth:`on_connect` (called once the connection is registered) and :meth:`on_disconnect`.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        handler_manager: HandlerManager,
        settings: Settings,
        origins: OriginPolicy,
    ) -> None:
        super().__init__(scope, receive, send)
        self.session_id = uuid4().hex
        self.identity: Identity | None = None
        self.connected_at = 0.0
        self._manager = handler_manager
        self._settings = settings
        self._origins = origins
        self._outbox = Outbox(settings.outbox_size)
        self._tasks: TaskGroup | None = None
        self._accepted = False
        self._close: tuple[int, str] | None = None
        self._left_with: int = 1006
        self._clock = asyncio.get_running_loop().time
        self._writing_since: float | None = None
        self._heard_at = self._pinged_at = self._clock()
        self._awaits_pong = False
        # A client of nuropb_gw does not know the gateway's pings, and must not be hung up on for that.
        self._knows_pings = True

    # --- the connection, from its first to its last moment ----------------------------------------------------

    async def dispatch(self) -> None:
        """Serve the connection until it ends."""
        websocket = WebSocket(self.scope, receive=self.receive, send=self.send)
        try:
            await self.receive()  # websocket.connect
            try:
                # Before everything else: whoever is refused by a close code has been accepted first.
                self._check_origin(websocket)
                with self._manager.admission.connection():
                    await self._serve(websocket)
            except ConnectionLimitReached as error:
                logger.info("connection refused: %s", error)
                await self._refuse(websocket, _limit_reached(error))
            except _Refusal as refusal:
                await self._refuse(websocket, refusal)
        except _ClientLeft:
            logger.debug("session %s: the client left", self.session_id)
        except WebSocketException:
            raise  # of a subclass: Starlette closes the connection with its code
        except Exception:
            # The server logs it. Without this the client would only see its connection break.
            if self._accepted:
                with contextlib.suppress(_ClientLeft), anyio.move_on_after(self._settings.write_timeout):
                    await self._send({"type": "websocket.close", "code": int(CloseCode.INTERNAL_ERROR)})
            raise

    async def _serve(self, websocket: WebSocket) -> None:
        credentials = self._check_handshake(websocket)
        subprotocol = SUBPROTOCOL if SUBPROTOCOL in self.scope["subprotocols"] else None
        try:
            if credentials.token is not None:
                self._knows_pings = not credentials.legacy
                await self._register(credentials.token)
                await self._accept(subprotocol)
            else:
                with self._manager.admission.waiting(address_of(self.scope.get("client"))):
                    await self._accept(subprotocol)
                    if not await self._authorise_by_frame():
                        return
            await self.on_connect(websocket)
            await self._run(websocket)
        finally:
            self._manager.unregister(self)

    async def _run(self, websocket: WebSocket) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._read, websocket, name="websocket reader")
                await self._write()
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self._manager.unregister(self)
            await self.on_disconnect(websocket, self._left_with if self._close is None else self._close[0])

    async def on_connect(self, websocket: WebSocket) -> None:
        """Called when the connection is authorised and registered, with ``identity`` set."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Called when the connection has ended; nothing can be sent any more.

        ``close_code`` is the code of who hung up, or what the server has for a connection that broke (1005 or 1006).
        """

    async def _read(self, websocket: WebSocket) -> None:
        """Hand every message to the manager, which never waits: a connection that is not read loses its pongs."""
        for count in itertools.count(1):
            if count % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)  # receive() does not wait while there is more, and others want their turn
            message = await self.receive()
            if message["type"] != "websocket.receive":
                self._left_with = message.get("code") or CloseCode.NORMAL
                self._outbox.close(discard=True)
                if self._tasks is not None:
                    self._tasks.cancel_scope.cancel()  # the writer may hang in a send, which is of no use any more
                return
            self._heard_at = self._clock()
            text = message.get("text")
            if text is None:
                self.close(CloseCode.UNSUPPORTED_DATA, "text frames only")
                continue
            if self._close is not None:
                continue
            frame = self._manager.on_handler_message(self, text)
            if isinstance(frame, Request) and frame.id is None and frame.trace_id is not None:
                self._knows_pings = False

    async def _write(self) -> None:
        """Write what is in the outbox, then the close frame if the gateway is the one to hang up."""
        try:
            while (text := await self._outbox.get()) is not None:
                self._writing_since = self._clock()
                await self._send({"type": "websocket.send", "text": text})
                self._writing_since = None
            if self._close is not None:
                code, reason = self._close
                self._writing_since = self._clock()
                await self._send({"type": "websocket.close", "code": int(code), "reason": reason})
        except _ClientLeft:
            return
        finally:
            self._writing_since = None

    async def _send(self, message: Message) -> None:
        try:
            await self.send(message)
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            # uvicorn raises an OSError when the client has gone, and servers raise RuntimeErrors of their own when
            # something is sent after the connection was closed.
            raise _ClientLeft from error

    async def _accept(self, subprotocol: str | None) -> None:
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        self._accepted = True

    # --- handshake --------------------------------------------------------------------------------------------

    def _check_origin(self, websocket: WebSocket) -> None:
        origins = websocket.headers.getlist("origin")
        if len(origins) > 1 or (origins and not self._origins.allows(origins[0])):
            logger.info("connection refused: origin not allowed")
            raise _origin_not_allowed()

    def _check_handshake(self, websocket: WebSocket) -> Credentials:
        """The credentials, if the handshake is acceptable so far; raises _Refusal if it is not."""
        if self._manager.closed_for is not None:
            raise _not_open()
        offered: Sequence[str] = self.scope["subprotocols"]
        if offered and SUBPROTOCOL not in offered:
            raise _Refusal(
                400, CloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, ErrorCode.BAD_REQUEST, f"Only {SUBPROTOCOL} is spoken here"
            )
        credentials = find_credentials(websocket.headers, offered, self._settings.auth_cookie or None)
        if credentials.channel == "cookie" and "origin" not in websocket.headers:
            logger.info("connection refused: a cookie without an origin")
            raise _origin_not_allowed()
        if credentials.conflict or credentials.malformed:
            logger.info("connection refused: %s", "several tokens" if credentials.conflict else "unreadable token")
            raise _unauthenticated()
        return credentials

    async def _register(self, token: str) -> None:
        try:
            await self._manager.register(self, token)
        except AuthenticationFailed as error:
            logger.info("connection refused: %s", error)
            raise _unauthenticated() from error
        except AuthenticationUnavailable as error:
            logger.info("connection put off: %s", error)
            raise _cannot_authenticate() from error
        except ConnectionLimitReached as error:
            logger.info("connection refused: %s", error)
            raise _limit_reached(error) from error
        if self._manager.closed_for is not None:  # since the handshake began
            self._manager.unregister(self)
            raise _not_open()

    async def _authorise_by_frame(self) -> bool:
        """Wait for the first frame to bring the token; whether the connection is registered now."""
        try:
            async with asyncio.timeout(self._settings.auth_timeout):
                frame = await self._receive_authorize()
        except TimeoutError:
            failure = Failure(ErrorCode.UNAUTHENTICATED, "Authorisation did not come in time")
            await self._hang_up(CloseCode.AUTHORISATION_TIMEOUT, failure)
            return False
        except _Refusal as refusal:
            await self._hang_up(refusal.close, refusal.failure)
            return False
        if frame is None:
            return False
        try:
            await self._register(frame.token)
        except _Refusal as refusal:
            await self._hang_up(refusal.close, refusal.failure, frame)
            return False
        assert self.identity is not None  # noqa: S101 - it is registered
        self.send_frame(encode_authorized(frame, self.identity))
        return True

    async def _receive_authorize(self) -> Authorize | None:
        """The client's authorize frame, or None when it left. Every other frame is refused."""
        for _ in range(MAX_UNAUTHORISED_FRAMES):
            message = await self.receive()
            if message["type"] != "websocket.receive":
                return None
            text = message.get("text")
            if text is None:
                failure = Failure(ErrorCode.BAD_REQUEST, "Text frames only")
                raise _Refusal(400, CloseCode.UNSUPPORTED_DATA, failure.code, failure.description)
            if self._manager.decoder.is_too_big(text):
                raise _Refusal(413, CloseCode.MESSAGE_TOO_BIG, ErrorCode.PAYLOAD_TOO_LARGE, "Message too big")
            try:
                frame = self._manager.decoder.decode(text)
            except ProtocolError as error:
                answer = encode_malformed(error)
            else:
                if isinstance(frame, Authorize):
                    return frame
                failure = Failure(ErrorCode.UNAUTHENTICATED, "The first frame has to be authorize")
                answer = encode_refusal(frame, failure)
            await self._send({"type": "websocket.send", "text": answer})
        raise _Refusal(400, CloseCode.BAD_REQUEST, ErrorCode.BAD_REQUEST, "Too many frames before authorize")

    async def _hang_up(self, code: CloseCode, failure: Failure, frame: Authorize | None = None) -> None:
        answer = encode_error(failure) if frame is None else encode_refusal(frame, failure)
        await self._send({"type": "websocket.send", "text": answer})
        await self._send({"type": "websocket.close", "code": int(code), "reason": failure.description})

    async def _refuse(self, websocket: WebSocket, refusal: _Refusal) -> None:
        """Say no in the way that reaches the client: to a browser, a status before the accept is just 1006."""
        self._manager.refused[refusal.reason] += 1
        if "origin" in websocket.headers and refusal.close is not CloseCode.ORIGIN_NOT_ALLOWED:
            offered: Sequence[str] = self.scope["subprotocols"]
            # A browser fails a connection whose server selects none of what it offered, and would see no close code.
            harmless = (name for name in offered if _is_harmless(name))
            await self._accept(SUBPROTOCOL if SUBPROTOCOL in offered else next(harmless, None))
            await self._hang_up(refusal.close, refusal.failure)
            return
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self._send({"type": "websocket.close"})  # HTTP 403
            return
        DenialLogFilter.expected += 1
        failure = refusal.failure
        response = JSONResponse(
            {"code": failure.code.value, "description": failure.description},
            status_code=refusal.status,
            headers=refusal.headers,
        )
        # Starlette's responses speak the websocket.http.response extension when the scope is a WebSocket's.
        await response(self.scope, self.receive, self._send)

    # --- Handler ----------------------------------------------------------------------------------------------

    def on_registered(self, identity: Identity) -> None:
        """Say hello: the first frame on an authorised connection."""
        self.identity = identity
        settings = self._settings
        hello = {
            "session_id": self.session_id,
            "user_id": identity.user_id,
            "username": identity.username,
            "protocol": SUBPROTOCOL,
            "instance_id": settings.instance_id,
            "expires_at": expiry(identity),
            "limits": {
                "max_message_size": settings.max_message_size,
                "max_in_flight": settings.max_in_flight,
                "request_timeout": settings.request_timeout,
                "ping_interval": settings.ping_interval,
            },
        }
        self.send_frame(encode_event("hello", encode_json(hello)))

    def send_frame(self, text: str) -> None:
        """Put a frame into the outbox; if it does not fit, the client is too slow and is hung up on."""
        if not self._outbox.put(text):
            self.close(CloseCode.SLOW_CONSUMER, "slow consumer")

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Put an event into the outbox, where it may be lost instead of the connection."""
        if delivery == "close":
            self.send_frame(text)
        else:
            self._manager.lost_events += self._outbox.put_event(text, topic, delivery)

    def close(self, code: int, reason: str = "") -> None:
        """Begin to hang up. The first call decides on code and reason."""
        if self._close is None:
            # A close frame has room for so much of it, and servers fail over more (RFC 6455, 5.5).
            self._close = (code, reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore"))
            self._manager.closed[int(code)] += 1
            self._outbox.close(discard=code in _AT_ONCE)
            logger.debug("session %s: closing with %d", self.session_id, code)

    @property
    def outbox_size(self) -> int:
        """Bytes that wait for the client."""
        return self._outbox.size

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` until it ends or the connection does."""
        if self._tasks is not None:
            self._tasks.start_soon(function, *args)

    def check(self, now: float) -> None:
        """Look after the write deadline and the pings."""
        if self._writing_since is not None:
            if now - self._writing_since > self._settings.write_timeout:
                self.close(CloseCode.SLOW_CONSUMER, "slow consumer")
                if self._tasks is not None:
                    self._tasks.cancel_scope.cancel()  # the writer hangs in a send, and nothing can be said any more
            return
        if self._close is not None or not self._knows_pings:
            return
        if self._awaits_pong:
            # Whatever the client says shows that it is there.
            if self._heard_at >= self._pinged_at:
                self._awaits_pong = False
            elif now - self._pinged_at > self._settings.ping_timeout:
                self.close(CloseCode.NO_PONG, "no pong")
        elif now - self._pinged_at >= self._settings.ping_interval:
            self._pinged_at = now
            self._awaits_pong = True
            self.send_frame(PING)


def _is_harmless(subprotocol: str) -> bool:
    """Whether a name may be sent back: it is the name of a protocol, and neither a token nor what introduces one."""
    return _PROTOCOL_NAME.fullmatch(subprotocol) is not None and _TOKEN_WORDS.search(subprotocol) is None


def _unauthenticated() -> _Refusal:
    # Why is for the log: it would tell an attacker how far the token got.
    return _Refusal(401, CloseCode.INVALID_TOKEN, ErrorCode.UNAUTHENTICATED, "A valid bearer token is required")


def _not_open() -> _Refusal:
    return _Refusal(503, CloseCode.TRY_AGAIN_LATER, ErrorCode.MESH_UNAVAILABLE, "The gateway is not open", retry=True)


def _cannot_authenticate() -> _Refusal:
    code, description = CANNOT_AUTHENTICATE.code, CANNOT_AUTHENTICATE.description
    return _Refusal(503, CloseCode.TRY_AGAIN_LATER, code, description, retry=True)


def _origin_not_allowed() -> _Refusal:
    return _Refusal(403, CloseCode.ORIGIN_NOT_ALLOWED, ErrorCode.PERMISSION_DENIED, "Origin not allowed")


def _limit_reached(error: ConnectionLimitReached) -> _Refusal:
    if error.per_user:
        description = "This user has too many connections"
        return _Refusal(429, CloseCode.CONNECTION_LIMIT, ErrorCode.TOO_MANY_REQUESTS, description, retry=True)
    return _Refusal(503, CloseCode.TRY_AGAIN_LATER, ErrorCode.TOO_MANY_REQUESTS, "The gateway is full", retry=True)


class DenialLogFilter(logging.Filter):
    """Drops uvicorn's error "ASGI callable returned without completing handshake" for handshakes that were refused.

    uvicorn 0.54 (websockets-sansio) logs it for every refusal by an HTTP response, so anybody could fill a disk with
    it. Only as many are dropped as handshakes were refused.
    """

    expected = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        if DenialLogFilter.expected > 0 and str(record.msg).startswith("ASGI callable returned without completing"):
            DenialLogFilter.expected -= 1
            return False
        return True
