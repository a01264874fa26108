"""What all kinds of connections have in common: everything but the bytes.

A kind of connection says how a message is received and sent and how to hang up, and leaves the rest to
:class:`Connection`: hello, the first frame's token, one task that reads and one that writes, the outbox, pings and
deadlines.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup

from ..authentication import Identity
from ..authorization.rules import Delivery
from ..exceptions import ProtocolError
from ..handler_manager import HandlerManager, encode_authorized, encode_malformed, encode_refusal, expiry
from ..identifiers import new_id
from ..protocol import (
    PING,
    SUBPROTOCOL,
    Authorize,
    ClientFrame,
    CloseCode,
    ErrorCode,
    Failure,
    encode_error,
    encode_event,
    encode_json,
)
from ..settings import Settings
from .handshake import Refusal, register
from .outbox import Outbox

__all__ = ["ClientLeft", "Connection"]

logger = logging.getLogger(__name__)

#: Frames that a connection may send before it is authorised, each answered with an error.
MAX_UNAUTHORISED_FRAMES: Final = 10
#: Bytes of UTF-8: a close frame has room for so much of a reason, and servers fail over more (RFC 6455, 5.5).
MAX_CLOSE_REASON: Final = 123
#: Frames that a connection may have handled in a row before others get their turn.
FRAMES_PER_TURN: Final = 16
#: These do not wait for what is in the outbox: the client cannot or may not have it any more.
_AT_ONCE: Final = frozenset({CloseCode.SLOW_CONSUMER, CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_REVOKED})


class ClientLeft(Exception):
    """The client is not there any more."""


class Connection(ABC):
    """One connection of any kind, as a :class:`~nuropb_gateway_asgi.Handler`."""

    def __init__(self, handler_manager: HandlerManager, settings: Settings, address: str = "") -> None:
        self.session_id = new_id()
        self.identity: Identity | None = None
        self.connected_at = 0.0
        self._manager = handler_manager
        self._settings = settings
        #: Whom it counts for, see :func:`.._admission.address_of`.
        self._address = address
        self._outbox = Outbox(settings.outbox_size)
        self._tasks: TaskGroup | None = None
        self._close: tuple[int, str] | None = None
        self._clock = asyncio.get_running_loop().time
        self._writing_since: float | None = None
        self._heard_at = self._pinged_at = self._clock()
        self._awaits_pong = False
        #: Whether the client is pinged at all, and hung up on if it does not answer.
        self._sends_pings = self._expects_pongs = True
        self._ping_interval = settings.ping_interval

    # --- what a kind of connection is -------------------------------------------------------------------------

    @abstractmethod
    async def receive_message(self) -> str | bytes | None:
        """The next message, or None once the client has left. Raises Refusal for what cannot be one."""

    @abstractmethod
    async def send_text(self, text: str) -> None:
        """Send a frame. Raises ClientLeft. It may take as long as the client does, and may be cancelled."""

    @abstractmethod
    async def send_close(self, code: int, reason: str) -> None:
        """Tell the client that this is the end, and why. Raises ClientLeft."""

    # --- from the first to the last frame ---------------------------------------------------------------------

    async def authorise_by_frame(self) -> bool:
        """Wait for the first frame to bring the token; whether the connection is registered now.

        If not, the client has been told why, and the connection is to end.
        """
        frame: Authorize | None = None
        try:
            async with asyncio.timeout(self._settings.auth_timeout):
                frame = await self._receive_authorize()
            if frame is None:
                return False
            await register(self._manager, self, frame.token, self._address)
        except TimeoutError:
            failure = Failure(ErrorCode.UNAUTHENTICATED, "Authorisation did not come in time")
            await self.hang_up(CloseCode.AUTHORISATION_TIMEOUT, failure)
            return False
        except Refusal as refusal:
            await self.hang_up(refusal.close, refusal.failure, frame)
            return False
        assert self.identity is not None  # noqa: S101 - it is registered
        self.send_frame(encode_authorized(frame, self.identity))
        return True

    async def _receive_authorize(self) -> Authorize | None:
        """The client's authorize frame, or None when it left. Every other frame is refused."""
        for _ in range(MAX_UNAUTHORISED_FRAMES):
            message = await self.receive_message()
            if message is None:
                return None
            if self._manager.decoder.is_too_big(message):
                raise Refusal(413, CloseCode.MESSAGE_TOO_BIG, ErrorCode.PAYLOAD_TOO_LARGE, "Message too big")
            try:
                frame = self._manager.decoder.decode(message)
            except ProtocolError as error:
                answer = encode_malformed(error)
            else:
                if isinstance(frame, Authorize):
                    return frame
                failure = Failure(ErrorCode.UNAUTHENTICATED, "The first frame has to be authorize")
                answer = encode_refusal(frame, failure)
            await self.send_text(answer)
        raise Refusal(400, CloseCode.BAD_REQUEST, ErrorCode.BAD_REQUEST, "Too many frames before authorize")

    async def hang_up(self, code: CloseCode, failure: Failure, frame: Authorize | None = None) -> None:
        """Tell a client that is not registered why it will not be, and hang up."""
        with anyio.move_on_after(self._settings.write_timeout):
            await self.send_text(encode_error(failure) if frame is None else encode_refusal(frame, failure))
            await self.send_close(code, failure.description)

    async def run(self) -> None:
        """Read and write until either side hangs up."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._read, name="reader")
                await self._write()
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            self._manager.unregister(self)

    async def _read(self) -> None:
        """Hand every message to the manager, which never waits: a connection that is not read loses its pongs."""
        for count in itertools.count(1):
            if count % FRAMES_PER_TURN == 0:
                await asyncio.sleep(0)  # receiving does not wait while there is more, and others want their turn
            try:
                message = await self.receive_message()
            except Refusal as refusal:
                self.close(refusal.close, refusal.failure.description)
                continue
            if message is None:
                self.on_left()
                return
            self.on_message(message)

    def on_left(self) -> None:
        """The client has left."""
        self._outbox.close(discard=True)
        self.stop()  # the writer may hang in a send, which is of no use any more

    def on_message(self, message: str | bytes) -> ClientFrame | None:
        """Take a message of the client; its frame, if it is one."""
        self._heard_at = self._clock()
        return None if self._close is not None else self._manager.on_handler_message(self, message)

    async def _write(self) -> None:
        """Write what is in the outbox, then the reason to hang up if the gateway is the one who does."""
        try:
            while (text := await self._outbox.get()) is not None:
                self._writing_since = self._clock()
                await self.send_text(text)
                self._writing_since = None
            if self._close is not None:
                self._writing_since = self._clock()
                await self.send_close(*self._close)
        except ClientLeft:
            return
        finally:
            self._writing_since = None

    def stop(self) -> None:
        """End reading and writing now, whatever waits."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

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
                self.stop()  # the writer hangs in a send, and nothing can be said any more
            return
        if self._close is not None or not self._sends_pings:
            return
        if self._awaits_pong:
            # Whatever the client says shows that it is there.
            if self._heard_at >= self._pinged_at:
                self._awaits_pong = False
            elif now - self._pinged_at > self._settings.ping_timeout:
                self.close(CloseCode.NO_PONG, "no pong")
        elif now - self._pinged_at >= self._ping_interval:
            self._pinged_at = now
            self._awaits_pong = self._expects_pongs
            self.send_frame(PING)
