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

from ..authentication.origins import OriginPolicy
from ..authorization.rules import Delivery
from ..handler_manager import HandlerManager
from ..limits.admission import address_of
from ..protocol import SUBPROTOCOL, ClientFrame, CloseCode, ErrorCode, Request
from ..settings import Settings
from .connection import ClientLeft, Connection
from .direct import EXTENSION, DirectWebSocket
from .handshake import DenialLogFilter, Refusal, admitted, check_credentials, check_origin, check_subprotocol, register

__all__ = ["DenialLogFilter", "WebSocketHandler"]

logger = logging.getLogger(__name__)

_PROTOCOL_NAME = re.compile(r"[A-Za-z][A-Za-z0-9.-]{0,23}")
_TOKEN_WORDS = re.compile("bearer|token|auth|key|secret", re.IGNORECASE)


class WebSocketHandler(Connection, WebSocketEndpoint):
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
        WebSocketEndpoint.__init__(self, scope, receive, send)
        Connection.__init__(self, handler_manager, settings, address_of(scope.get("client")))
        self._origins = origins
        self._accepted = False
        self._left_with: int = 1006
        self._direct: DirectWebSocket | None = None

    # --- the connection, from its first to its last moment ----------------------------------------------------

    async def dispatch(self) -> None:
        """Serve the connection until it ends."""
        websocket = WebSocket(self.scope, receive=self.receive, send=self.send)
        try:
            await self.receive()  # websocket.connect
            try:
                # Before everything else: whoever is refused by a close code has been accepted first.
                check_origin(websocket.headers, self._origins)
                with admitted(self._manager, self._address):
                    await self._serve(websocket)
            except Refusal as refusal:
                await self._refuse(websocket, refusal)
        except ClientLeft:
            logger.debug("session %s: the client left", self.session_id)
        except WebSocketException:
            raise  # of a subclass: Starlette closes the connection with its code
        except Exception:
            # The server logs it. Without this the client would only see its connection break.
            if self._accepted:
                with contextlib.suppress(ClientLeft), anyio.move_on_after(self._settings.write_timeout):
                    await self._send({"type": "websocket.close", "code": int(CloseCode.INTERNAL_ERROR)})
            raise

    async def _serve(self, websocket: WebSocket) -> None:
        offered: Sequence[str] = self.scope["subprotocols"]
        subprotocol = check_subprotocol(offered)
        credentials = check_credentials(websocket.headers, offered, self._settings.auth_cookie)
        try:
            if credentials.token is not None:
                self._sends_pings = not credentials.legacy
                await register(self._manager, self, credentials.token, self._address)
                await self._accept(subprotocol)
            else:
                with self._manager.admission.waiting(self._address):
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
        """Called when the connection is authorised and registered, with ``identity`` set."""

    async def on_disconnect(self, websocket: WebSocket, close_code: int) -> None:
        """Called when the connection has ended; nothing can be sent any more.

        ``close_code`` is the code of who hung up, or what the server has for a connection that broke (1005 or 1006).
        """

    # --- Connection -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read and write until either side hangs up."""
        direct: DirectWebSocket | None = self.scope.get("extensions", {}).get(EXTENSION)
        if direct is None:
            await super().run()
            return
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._direct = direct
                direct.attach(self.on_message, self._flush)
                self._flush()
                while await self._is_there():
                    pass
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self._manager.unregister(self)

    async def _is_there(self) -> bool:
        """Wait for what does not come directly: a message that is not text, or the end."""
        try:
            return await self.receive_message() is not None
        except Refusal as refusal:
            self.close(refusal.close, refusal.failure.description)
            return True

    def _flush(self) -> None:
        """Write what waits, as far as the client keeps up, and then the reason to hang up."""
        direct = self._direct
        assert direct is not None  # noqa: S101 - it calls this
        while direct.is_writable:
            text = self._outbox.get_nowait()
            if text is None:
                self._writing_since = None
                if self._close is not None:
                    direct.close(*self._close)
                return
            direct.write(text)
        self._writing_since = self._clock()

    def send_frame(self, text: str) -> None:
        """Send a frame, or put it into the outbox of a client that does not keep up."""
        direct = self._direct
        if direct is None or self._writing_since is not None or self._close is not None:
            super().send_frame(text)
            return
        direct.write(text)
        if not direct.is_writable:
            self._writing_since = self._clock()

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Send an event, or put it into the outbox of a client that does not keep up, where it may be lost."""
        if self._direct is None or self._writing_since is not None:
            super().send_event(text, topic, delivery)
        else:
            self.send_frame(text)

    def close(self, code: int, reason: str = "") -> None:
        """Begin to hang up. The first call decides on code and reason."""
        super().close(code, reason)
        if self._direct is not None and self._writing_since is None:
            self._flush()

    async def receive_message(self) -> str | None:
        """The next message, or None once the client has left. Raises Refusal for a binary one."""
        message = await self.receive()
        if message["type"] != "websocket.receive":
            self._left_with = message.get("code") or CloseCode.NORMAL
            return None
        text: str | None = message.get("text")
        if text is None:
            raise Refusal(400, CloseCode.UNSUPPORTED_DATA, ErrorCode.BAD_REQUEST, "Text frames only")
        return text

    async def send_text(self, text: str) -> None:
        """Send a frame. Raises ClientLeft."""
        await self._send({"type": "websocket.send", "text": text})

    async def send_close(self, code: int, reason: str) -> None:
        """Send a close frame. Raises ClientLeft."""
        await self._send({"type": "websocket.close", "code": int(code), "reason": reason})

    async def _send(self, message: Message) -> None:
        try:
            await self.send(message)
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            # uvicorn raises an OSError when the client has gone, and servers raise RuntimeErrors of their own when
            # something is sent after the connection was closed.
            raise ClientLeft from error

    def on_message(self, message: str | bytes) -> ClientFrame | None:
        """Take a message of the client; its frame, if it is one."""
        frame = super().on_message(message)
        if isinstance(frame, Request) and frame.id is None and frame.trace_id is not None:
            # A client of nuropb_gw does not know the gateway's pings, and must not be hung up on for that.
            self._sends_pings = False
        return frame

    # --- handshake --------------------------------------------------------------------------------------------

    async def _accept(self, subprotocol: str | None) -> None:
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})
        self._accepted = True

    async def _refuse(self, websocket: WebSocket, refusal: Refusal) -> None:
        """Say no in the way that reaches the client: to a browser, a status before the accept is just 1006."""
        self._manager.refused[refusal.reason] += 1
        if "origin" in websocket.headers and refusal.close is not CloseCode.ORIGIN_NOT_ALLOWED:
            offered: Sequence[str] = self.scope["subprotocols"]
            # A browser fails a connection whose server selects none of what it offered, and would see no close code.
            harmless = (name for name in offered if _is_harmless(name))
            await self._accept(SUBPROTOCOL if SUBPROTOCOL in offered else next(harmless, None))
            await self.hang_up(refusal.close, refusal.failure)
            return
        if "websocket.http.response" not in self.scope.get("extensions", {}):
            await self._send({"type": "websocket.close"})  # HTTP 403
            return
        DenialLogFilter.expected += 1
        # Starlette's responses speak the websocket.http.response extension when the scope is a WebSocket's.
        await refusal.response()(self.scope, self.receive, self._send)


def _is_harmless(subprotocol: str) -> bool:
    """Whether a name may be sent back: it is the name of a protocol, and neither a token nor what introduces one."""
    return _PROTOCOL_NAME.fullmatch(subprotocol) is not None and _TOKEN_WORDS.search(subprotocol) is None
