"""WebSocket connections, on Starlette."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence

import anyio
from starlette.endpoints import WebSocketEndpoint
from starlette.exceptions import WebSocketException
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..authentication.credentials import Credentials, find_credentials, take_subprotocols
from ..authentication.origins import OriginPolicy
from ..handler_manager import HandlerManager
from ..journal import CountedWriter
from ..limits.admission import Arrival, address_of
from ..protocol import SUBPROTOCOL, CloseCode
from ..settings import Settings
from ..tasks import TaskOwner
from .connection import ClientLeft
from .direct import EXTENSION, SIZE_FACTOR, DirectWebSocket
from .direct_connection import DirectConnection
from .handshake import admitted, arrival_of, check_credentials, check_origin, check_subprotocol, register
from .refusals import DenialLogFilter, Reason, Refusal, count_refusal

__all__ = ["WebSocketHandler"]

logger = logging.getLogger(__name__)

_PROTOCOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9.-]{0,23}")
_TOKEN_WORDS = re.compile("bearer|token|auth|key|secret", re.IGNORECASE)


class WebSocketHandler(DirectConnection, WebSocketEndpoint):
    """A WebSocket connection: handshake, frames and close.

    Applications may subclass it and override :meth:`on_connect` and :meth:`on_disconnect`.
    """

    may_be_legacy = True
    _direct: DirectWebSocket | CountedWriter | None = None

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
        WebSocketEndpoint.__init__(self, scope, receive, send)
        DirectConnection.__init__(self, handler_manager, settings, address_of(scope.get("client")))
        self._origins = origins
        self._accepted = False
        self._left_with: int = 1006
        #: The server's side of the fast path, and whether this connection may take it.
        self._offered_direct: DirectWebSocket | None = scope.get("extensions", {}).get(EXTENSION)
        self._is_direct = False
        #: The client's subprotocols, which may contain a token; emptied once it is read.
        self._offered: Sequence[str] = ()

    # --- the connection, from its first to its last moment ----------------------------------------------------

    async def dispatch(self) -> None:
        """Serve the connection until it ends."""
        # First of all, so that neither a subclass nor a middleware sees the token when something fails.
        self._offered = take_subprotocols(self.scope)
        websocket = WebSocket(self.scope, receive=self.receive, send=self.send)
        try:
            await self.receive()  # websocket.connect
            try:
                # The origin comes first: a refusal by close code accepts the connection, and a page of a foreign
                # origin must not get that far.
                check_origin(websocket.headers, self._origins)
                credentials = find_credentials(websocket.headers, self._offered, self._settings.auth_cookie or None)
                with admitted(self._manager, self.address, arrival_of(credentials)):
                    await self._serve(websocket, credentials)
            except Refusal as refusal:
                await self._refuse(websocket, refusal)
        except ClientLeft:
            logger.debug("session %s: the client left", self.session_id)
        except WebSocketException:
            raise  # by a subclass: Starlette closes the connection with its code
        except Exception:
            # The server logs the exception. Without a close frame the client would see a broken connection.
            if self._accepted:
                with contextlib.suppress(ClientLeft), anyio.move_on_after(self._settings.write_timeout):
                    await self._send({"type": "websocket.close", "code": int(CloseCode.INTERNAL_ERROR)})
            raise

    async def _serve(self, websocket: WebSocket, credentials: Credentials) -> None:
        subprotocol = check_subprotocol(self._offered)
        check_credentials(credentials, websocket.headers)
        self._offered = ()
        try:
            if credentials.token is not None:
                self._sends_pings = not credentials.legacy
                arrival = Arrival.WITH_TOKEN
                await register(self._manager, self, credentials.token, self.address, arrival, websocket.headers)
                await self._accept(subprotocol)
            else:
                await self._accept(subprotocol)
                if not await self.authorise_by_frame():
                    return
            await self.on_connect(websocket)
            try:
                await self.run()
            finally:
                await self.on_disconnect(websocket, self._left_with if self._close is None else self._close[0])
        finally:
            self._manager.unregister(self)

    async def on_connect(self, websocket: WebSocket) -> None:
        """Override to act when the connection is authorised and registered. ``identity`` is set."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Override to act when the connection has ended. Nothing can be sent any more.

        ``close_code`` is the code of the side that closed first, or the server's code for a broken connection (1005 or
        1006).
        """

    # --- DirectConnection -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and write until the client or the gateway closes the connection."""
        direct = self._offered_direct
        if direct is None or not self._is_direct:
            await super().run()
            return
        try:
            async with TaskOwner() as tasks:
                self._tasks = tasks
                self._direct = direct if self._traffic is None else CountedWriter(direct, self._traffic)
                limits = self._manager.shared_limits
                large = limits.large_frames.take
                direct.attach(self.on_message, self._flush, self.is_busy, self.on_late, limits.overload, large)
                self._flush()
                while True:
                    try:
                        if await self.receive_message() is None:
                            break
                    except Refusal as refusal:  # a binary message, the only one that does not come by attach()
                        self.close(refusal.close, refusal.failure.description)
        finally:
            self._tasks = None
            self.end()

    @property
    def ended_on_purpose(self) -> bool:
        """Whether client or gateway ended the connection for good."""
        return super().ended_on_purpose or (self._close is None and self._left_with == CloseCode.NORMAL)

    @property
    def left_with(self) -> int:
        """The close code of a client that has left."""
        return self._left_with

    def on_late(self, texts: list[str]) -> int:
        """Refuse the calls at the beginning of ``texts``, for which the process has no time; return their number."""
        self._heard_at = self._clock()
        if self._close is not None:
            return 0
        session, direct = self._session, self._direct
        handler = self if session is None else session
        answers = self._manager.refuse_late(handler, texts)
        if session is not None:
            session.proven = True
        if self._traffic is not None:
            for text in texts[: len(answers)]:
                self._traffic.on_received(text)
        if session is not None or direct is None or self._writing_since is not None:
            for answer in answers:
                handler.send_frame(answer)
        elif answers:
            direct.write_all(answers)
            if not direct.is_writable:
                self._writing_since = self._clock()
        return len(answers)

    def cut(self) -> None:
        """End the connection at once, where the server has a way."""
        if self._offered_direct is not None:
            self._offered_direct.cut()

    async def receive_message(self) -> str | None:
        """Return the next message, or None once the client has left. Raises Refusal for a binary message."""
        message = await self.receive()
        if message["type"] != "websocket.receive":
            self._left_with = message.get("code") or CloseCode.NORMAL
            return None
        text: str | None = message.get("text")
        if text is None:
            raise Refusal(Reason.BINARY)
        return text

    async def send_text(self, text: str) -> None:
        """Send a frame by ASGI. Raises ClientLeft."""
        await self._send({"type": "websocket.send", "text": text})

    async def send_close(self, code: int, reason: str) -> None:
        """Send a close frame by ASGI. Raises ClientLeft."""
        await self._send({"type": "websocket.close", "code": int(code), "reason": reason})

    async def _send(self, message: Message) -> None:
        try:
            await self.send(message)
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            # uvicorn raises OSError once the client has gone; other servers raise RuntimeError for a message after the
            # end of a connection.
            raise ClientLeft from error

    # --- handshake --------------------------------------------------------------------------------------------

    async def _accept(self, subprotocol: str | None) -> None:
        if self._offered_direct is not None:
            self._is_direct = self._offered_direct.prepare(SIZE_FACTOR * self._settings.max_message_size)
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        self._accepted = True

    async def _refuse(self, websocket: WebSocket, refusal: Refusal) -> None:
        """Refuse a handshake: by an HTTP status, or by a close code for browsers, which report a status as 1006."""
        count_refusal(self._manager, refusal, self.address)
        if "origin" in websocket.headers and refusal.close is not CloseCode.ORIGIN_NOT_ALLOWED:
            offered: Sequence[str] = self.scope["subprotocols"]
            # A browser drops a connection whose server selects none of the offered subprotocols, close code included.
            harmless = (name for name in offered if _is_harmless(name))
            await self._accept(SUBPROTOCOL if SUBPROTOCOL in offered else next(harmless, None))
            await self.send_refusal(refusal)
            return
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self._send({"type": "websocket.close"})  # HTTP 403
            return
        DenialLogFilter.expected += 1
        # In a WebSocket's scope, Starlette's responses use the extension websocket.http.response.
        await refusal.response()(self.scope, self.receive, self._send)


def _is_harmless(subprotocol: str) -> bool:
    """Whether a client's subprotocol may be sent back: the name of a protocol, and not a token or a token's prefix."""
    return _PROTOCOL_NAME.fullmatch(subprotocol) is not None and _TOKEN_WORDS.search(subprotocol) is None
