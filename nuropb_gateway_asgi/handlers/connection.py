"""The parts that all connections share: everything except the transport.

A transport implements :meth:`~Connection.receive_message`, :meth:`~Connection.send_text` and
:meth:`~Connection.send_close`. :class:`Connection` adds hello, the token in the first frame, a reader task and a writer
task, the outbox, pings and deadlines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

import anyio

from ..authentication import Identity
from ..authorization.rules import Delivery
from ..exceptions import ConnectionLimitReached, ProtocolError
from ..handler_manager import HandlerManager, encode_authorized, encode_malformed, encode_refusal, expiry
from ..journal import Traffic
from ..limits.admission import Arrival
from ..limits.prices import extra_for_size
from ..limits.turns import FRAMES_PER_TURN, TURNS_OF_OTHERS
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
from ..settings import Settings
from ..tasks import TaskOwner
from .handshake import register
from .refusals import Reason, Refusal, audit_refusal, log_refusal
from .session_carrier import SessionCarrier

__all__ = ["ClientLeft", "Connection"]

logger = logging.getLogger(__name__)

#: Frames that a client may send before it is authorised. Each is answered with an error.
MAX_UNAUTHORISED_FRAMES: Final = 10
#: Bytes of UTF-8 in the reason of a close frame (RFC 6455, 5.5). Servers fail on longer reasons.
MAX_CLOSE_REASON: Final = 123
#: Close codes that discard the outbox: the client cannot read it, or is no longer authorised to.
_DISCARDING: Final = frozenset({CloseCode.SLOW_CONSUMER, CloseCode.TOKEN_EXPIRED, CloseCode.TOKEN_REVOKED})


class ClientLeft(Exception):
    """Raised when the client has disconnected."""


class Connection(SessionCarrier, ABC):
    """A connection of any kind, as a :class:`~nuropb_gateway_asgi.Handler`."""

    #: Whether clients of nuropb_gw may use this kind of connection. They do not answer pings.
    may_be_legacy: ClassVar[bool] = False

    def __init__(self, handler_manager: HandlerManager, settings: Settings, address: str = "") -> None:
        super().__init__(handler_manager, settings, address)
        self._tasks: TaskOwner | None = None
        self._clock = time.monotonic
        #: Counters for the access log, if there is one.
        self._traffic: Traffic | None = None
        self._writing_since: float | None = None
        self._heard_at = self._pinged_at = self._clock()
        self._awaits_pong = False
        #: Whether to ping the client at all, and whether to close the connection if it does not answer.
        self._sends_pings = self._expects_pongs = True
        self._ping_interval = settings.ping_interval

    # --- the transport ----------------------------------------------------------------------------------------

    @abstractmethod
    async def receive_message(self) -> str | bytes | None:
        """Return the next message, or None once the client has left. Raises Refusal for an unacceptable message."""

    @abstractmethod
    async def send_text(self, text: str) -> None:
        """Send a frame. Waits until the client reads; may be cancelled. Raises ClientLeft."""

    @abstractmethod
    async def send_close(self, code: int, reason: str) -> None:
        """Tell the client that the gateway closes the connection, and why. Raises ClientLeft."""

    # --- from the first to the last frame ---------------------------------------------------------------------

    async def authorise_by_frame(self) -> bool:
        """Wait for the token in the first frame, and return whether the connection is registered.

        If it is not, the client has been told why, and the connection must end.
        """
        frame: Authorize | None = None
        try:
            frame = await self._await_authorize()
            if frame is not None:
                await register(self._manager, self, frame.token, self.address, Arrival.WITHOUT_TOKEN)
        except Refusal as refusal:
            audit_refusal(self._manager, refusal, self.address)
            await self.send_refusal(refusal, frame)
        finally:
            if frame is None:
                self._manager.admission.on_failure(self.address, Arrival.WITHOUT_TOKEN, time.monotonic())
        if frame is None or self.identity is None:
            return False
        self.send_frame(encode_authorized(frame, self.identity))
        return True

    async def _await_authorize(self) -> Authorize | None:
        """Return the client's authorize frame, or None if it left. Raises Refusal if its time or its place is over."""
        turned_out = False

        def turn_out() -> None:
            nonlocal turned_out
            if not deadline.expired():
                turned_out = True
                deadline.reschedule(asyncio.get_running_loop().time())

        try:
            async with asyncio.timeout(self._settings.auth_timeout) as deadline:
                with self._manager.admission.waiting(self.address, turn_out):
                    return await self._receive_authorize()
        except TimeoutError as error:
            if turned_out:
                full = ConnectionLimitReached("too many connections without a token", per_user=False)
                raise log_refusal(full) from error
            raise Refusal(Reason.NO_TOKEN_IN_TIME) from error

    async def _receive_authorize(self) -> Authorize | None:
        """Return the client's authorize frame, or None if it left. Every other frame is answered with an error."""
        for _ in range(MAX_UNAUTHORISED_FRAMES):
            message = await self.receive_message()
            if message is None:
                return None
            if self._manager.decoder.is_too_big(message):
                raise Refusal(Reason.TOO_BIG)
            try:
                frame = self._manager.decoder.decode(message)
            except ProtocolError as error:
                answer = encode_malformed(error)
            else:
                if isinstance(frame, Authorize):
                    return frame
                failure = Failure(ErrorCode.UNAUTHENTICATED, "The first frame must be authorize")
                answer = encode_refusal(frame, failure)
            await self.send_text(answer)
        raise Refusal(Reason.TOO_MANY_FRAMES)

    async def send_refusal(self, refusal: Refusal, frame: Authorize | None = None) -> None:
        """Tell a client that is not registered why it is refused (in answer to its ``frame``), and close."""
        failure = refusal.failure
        with anyio.move_on_after(self._settings.write_timeout):
            await self.send_text(encode_error(failure) if frame is None else encode_refusal(frame, failure))
            await self.send_close(refusal.close, failure.description)

    async def run(self) -> None:
        """Read and write until the client or the gateway closes the connection."""
        try:
            async with TaskOwner() as tasks:
                self._tasks = tasks
                tasks.start_soon(self._read, name="reader")
                await self._write()
        finally:
            self._tasks = None
            self.end()

    def end(self) -> None:
        """Note the end of the connection: its session is parked if it may outlive it, else it is unregistered."""
        self._manager.journal.on_ended(self, self._close, self.left_with, self._traffic)
        self._manager.unregister(self)
        session, self._session = self._session, None
        if session is not None:
            session.on_line_ended(self, on_purpose=self.ended_on_purpose, told=self.has_told_end)

    async def _read(self) -> None:
        """Hand every message to the manager, which never waits: pongs are read even while the client is slow."""
        count = 0
        while True:
            rests = TURNS_OF_OTHERS if count >= FRAMES_PER_TURN else 0
            while rests or self.is_busy():
                rests, count = max(0, rests - 1), 0
                await asyncio.sleep(0)  # receive_message() does not suspend while messages are buffered
            try:
                message = await self.receive_message()
            except Refusal as refusal:
                self.close(refusal.close, refusal.failure.description)
                continue
            if message is None:
                self.on_left()
                return
            units = 1 + extra_for_size(len(message))
            count += units
            await self._manager.shared_limits.large_frames.wait(units)
            self.on_message(message)

    def on_left(self) -> None:
        """End the connection, because the client has left."""
        self._outbox.close(discard=True)
        self.stop()  # the writer may wait in a send that can no longer succeed

    def on_message(self, message: str | bytes) -> bool:
        """Hand a message of the client to the manager; return whether it is still being worked on."""
        self._heard_at = self._clock()
        if self._traffic is not None:
            self._traffic.on_received(message)
        if self._close is not None:
            return False
        session = self._session
        if session is None:
            frame = self._manager.on_handler_message(self, message)
        else:
            session.proven = True
            frame = self._manager.on_handler_message(session, message)
        # Only clients of nuropb_gw send a trace id without an id. They do not answer pings, so stop sending them.
        if self.may_be_legacy and isinstance(frame, Request) and frame.id is None and frame.trace_id is not None:
            self._sends_pings = False
        held = self._manager.slices.held
        return bool(held) and self.session_id in held

    def is_busy(self) -> bool:
        """Return whether the client's last frame is still being worked on, so that later ones have to wait."""
        return self.session_id in self._manager.slices.held

    async def _write(self) -> None:
        """Write the frames in the outbox, then the reason to close if the gateway closes the connection."""
        try:
            while True:
                outbox = self._outbox
                text = await outbox.get()
                if text is not None:
                    self._writing_since = self._clock()
                    await self.send_text(text)
                    self._writing_since = None
                    if self._traffic is not None:
                        self._traffic.on_sent(text)
                elif outbox is self._outbox:  # else a session came or left
                    break
            if self._close is not None:
                self._writing_since = self._clock()
                await self.send_close(*self._close)
        except ClientLeft:
            return
        finally:
            self._writing_since = None

    @property
    def left_with(self) -> int | None:
        """The close code of a client that has left, on a transport with such codes."""
        return None

    def stop(self) -> None:
        """Stop reading and writing at once. Frames in the outbox are lost."""
        if self._tasks is not None:
            self._tasks.cancel()

    def cut(self) -> None:
        """Override to end the connection in the kernel, at once. Its client does not read."""

    # --- Handler ----------------------------------------------------------------------------------------------

    def on_registered(self, identity: Identity) -> None:
        """Send hello: the first frame on an authorised connection."""
        self.identity = identity
        self._traffic = self._manager.journal.count()
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
        if self.is_resumable and settings.resume_window:
            hello["resume"] = True
        self.send_frame(encode_event("hello", encode_json(hello)))

    def send_frame(self, text: str) -> None:
        """Put a frame into the outbox. If it does not fit, the client is too slow, and the connection is closed."""
        if not self._outbox.put(text):
            self.close(CloseCode.SLOW_CONSUMER, "slow consumer")

    def send_event(self, text: str, topic: str, delivery: Delivery) -> None:
        """Put an event into the outbox. ``delivery`` decides what happens if the client is too slow for it."""
        if delivery == "close":
            self.send_frame(text)
        else:
            self._manager.statistics.lost_events += self._outbox.put_event(text, topic, delivery)

    def close(self, code: int, reason: str = "") -> None:
        """Begin to close the connection. The first call decides on code and reason."""
        if self._close is None:
            self._close = (code, reason.encode()[:MAX_CLOSE_REASON].decode(errors="ignore"))
            self._manager.statistics.closed[int(code)] += 1
            self._outbox.close(discard=code in _DISCARDING)
            logger.debug("session %s: closing with %d", self.session_id, code)

    @property
    def outbox_size(self) -> int:
        """Bytes in the outbox."""
        return self._outbox.size

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Run ``function`` until it returns or the connection ends."""
        if self._tasks is not None:
            self._tasks.start_soon(function, *args)

    def check(self, now: float) -> None:
        """Enforce the write deadline, send the next ping, and close the connection if a pong is overdue."""
        if self._writing_since is not None:
            if now - self._writing_since > self._settings.write_timeout:
                self.close(CloseCode.SLOW_CONSUMER, "slow consumer")
                self.stop()  # the writer waits in a send, so a close frame could not be sent
                self.cut()
            return
        if self._close is not None or not self._sends_pings:
            return
        if self._awaits_pong:
            # Any message of the client shows that it is alive.
            if self._heard_at >= self._pinged_at:
                self._awaits_pong = False
            elif now - self._pinged_at > self._settings.ping_timeout:
                self.close(CloseCode.NO_PONG, "no pong")
        elif now - self._pinged_at >= self._ping_interval:
            self._pinged_at = now
            self._awaits_pong = self._expects_pongs
            self.send_frame(PING)
