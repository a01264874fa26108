"""uvicorn, made fit for an open network.

``nuropb-gateway serve`` uses all of this; for uvicorn by itself, name the two protocols::

    uvicorn nuropb_gateway_asgi:app --http nuropb_gateway_asgi.server:HTTPProtocol \\
        --ws nuropb_gateway_asgi.server:WebSocketProtocol

What they add to uvicorn's own: every wait for a request has an end, heads have a size, whoever is refused hears why,
and what costs a peer nothing to send (fragments, pings, small messages by the thousand) costs little here, too.

They rely on parts of uvicorn 0.54 that are not its public interface; :data:`RELIED_ON` names them. With a uvicorn that
has them no longer, the two are uvicorn's own protocols, and :func:`unprotected` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import h11
import uvicorn
import websockets.http11
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.server import ServerProtocol

from ..handlers.direct import EXTENSION
from ..observability.logs import JSONFormatter
from ..protocol import CloseCode
from ..settings import Settings
from ..sockets import set_user_timeout
from .text_frames import encode_text, frame_size, is_fragment, is_hopeless, text_of

if sys.platform != "win32":
    import resource

__all__ = [
    "HTTPProtocol",
    "WebSocketProtocol",
    "allow_files",
    "make_config",
    "new_event_loop",
    "tune_collector",
    "unprotected",
]

logger = logging.getLogger(__name__)

#: Bytes of one line of a request's head: a token may have 8 KiB.
MAX_HEADER_LINE: Final = 16384
#: Seconds from the accept, or from the last response, to the end of a request's head; of a TLS handshake, too.
HEAD_TIMEOUT: Final = 10.0
#: Header lines of a request; websockets alone would take 128.
MAX_HEADERS: Final = 100
#: Bytes of a request's head.
MAX_HEAD: Final = 65536
#: Frames of one message, empty ones included: each costs 100 bytes or more, and only payload counts for ws_max_size.
MAX_FRAGMENTS: Final = 1024
#: Pings and pongs in a row, and how many of them are forgotten in a second.
CONTROL_BURST: Final = 100
CONTROL_RATE: Final = 10.0
#: Bytes that are looked at for a client's close frame, once the gateway has sent its own.
MAX_LATE: Final = 65536
#: Seconds for a client that was refused to close its side.
LINGER: Final = 2.0
#: Seconds for a shutdown to wait for connections.
SHUTDOWN_TIMEOUT: Final = 2
#: Bytes of the longest head of a frame.
MAX_FRAME_HEAD: Final = 14
#: Frames of a connection that are taken in a row before others get their turn.
FRAMES_PER_TURN: Final = 16
#: Files of a process that are not for connections of clients: the broker's, the policy's, those that logs go to.
SPARE_FILES: Final = 64
#: Connections without a request that there is room for, beside those that are served.
ROOM_FOR_HEADS: Final = 1000
#: Seconds between two log lines about connections that cannot be accepted.
ACCEPT_LOG_INTERVAL: Final = 60.0
#: Bytes of a handshake that are parsed at a time: of the 256 KiB that come in one piece, 40 000 messages could be made.
SLICE: Final = 8192
#: Containers made and not freed until the young ones are looked at, and how often until the older ones are.
COLLECT_AFTER: Final = (5000, 20, 50)

if "WEBSOCKETS_MAX_LINE_LENGTH" not in os.environ:
    # What that variable is for: 8 KiB otherwise. It is read when websockets is imported, maybe long before this module.
    websockets.http11.MAX_LINE_LENGTH = max(websockets.http11.MAX_LINE_LENGTH, MAX_HEADER_LINE)


class _Requests(h11.Connection):
    """Requests, with limits of their own; ``refusal`` is the status for what is none."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)
        self.refusal = HTTPStatus.BAD_REQUEST

    def next_event(self) -> Any:
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
        except h11.RemoteProtocolError as error:
            self.refusal = HTTPStatus(error.error_status_hint)
            raise
        return event

    @staticmethod
    def _check(request: h11.Request) -> None:
        longest = max((len(name) + len(value) for name, value in request.headers), default=0)
        if len(request.headers) > MAX_HEADERS or longest + len(": \r\n") > MAX_HEADER_LINE:
            raise h11.RemoteProtocolError("header fields too large", error_status_hint=431)
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("unknown version", error_status_hint=505)
        if len(request.target) > MAX_HEADER_LINE:
            raise h11.RemoteProtocolError("target too long", error_status_hint=414)


class _LimitedHTTPProtocol(H11Protocol):
    """HTTP/1.1. A connection on which no request is served has 10 s for the head of one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = self._requests = _Requests()
        self._deadline: asyncio.TimerHandle | None = None
        self._upgraded = self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _set_user_timeout(transport)
        if len(self.connections) > _most_connections():
            # Whoever says nothing for longest makes room: without files nobody else would be heard any more.
            silent = next(iter(_silent), self)
            silent._stop_watching()  # noqa: SLF001
            silent.transport.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    @property
    def _serving(self) -> bool:
        return not getattr(self.cycle, "response_complete", True)  # it is None before the first request

    def _watch(self) -> None:
        """Let the clock run while no request is served."""
        if self._refused:
            return
        if self._upgraded or self._serving:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_TIMEOUT, self._on_deadline)
            _silent[self] = None

    def _stop_watching(self) -> None:
        _silent.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._stop_watching()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read, so closing would wait for it
        elif self._requests.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._requests.refusal)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        headers = dict(event.headers)
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if event.http_version != b"1.1":
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        elif event.method != b"GET" or has_body or self._requests.trailing_data[0]:
            # Nothing may follow a handshake before its answer, and what does is a request within a request.
            self._refuse(HTTPStatus.BAD_REQUEST)
        else:
            self._upgraded = True
            super().handle_websocket_upgrade(event)

    def _refuse(self, status: HTTPStatus) -> None:
        if self._serving:
            # Its request turned out to be none behind the head. The application's answer has nowhere to go.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._requests.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_refusal(status))
        self.connections.discard(self)  # uvicorn's shutdown would close it once more, and h11 refuse that
        self._stop_watching()
        self._refused = True
        self._deadline = _hang_up(self.transport, self.loop)


#: Those on whose deadline the clock runs, the oldest first.
_silent: Final[dict[_LimitedHTTPProtocol, None]] = {}


def _most_connections() -> float:
    """How many connections this process has files for."""
    if sys.platform == "win32":
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if limit == resource.RLIM_INFINITY else max(limit - SPARE_FILES, 1)


def allow_files(connections: int) -> int | None:
    """Allow this process as many files as it takes for so many connections, and those that are only about to be one.

    If that is more than it may have: for how many connections there is room instead.
    """
    if sys.platform == "win32":
        return None
    wanted = connections + ROOM_FOR_HEADS + SPARE_FILES
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != limit < wanted:
        possible = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        with contextlib.suppress(OSError, ValueError):  # macOS has another limit, which it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (possible, most))
            limit = possible
    room = limit - SPARE_FILES
    return None if limit == resource.RLIM_INFINITY or room >= connections else max(room, 1)


class _Frames(ServerProtocol):
    """The frames of a connection. Too many of the kinds that carry nothing end it."""

    # Beside those of the library: a dictionary of more than 30 attributes is five times as large.
    __slots__ = ("_control", "_control_at", "_excess", "_fragments")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fragments = 0
        self._control = 0.0
        self._control_at = time.monotonic()
        self._excess: tuple[CloseCode, str] | None = None

    def recv_frame(self, frame: Frame) -> None:
        """Take a frame; what it raises ends the connection with what :meth:`fail` makes of it."""
        if frame.opcode in (Opcode.PING, Opcode.PONG):
            now = time.monotonic()
            self._control = max(self._control - (now - self._control_at) * CONTROL_RATE, 0.0) + 1
            self._control_at = now
            if self._control > CONTROL_BURST:
                self._excess = CloseCode.TOO_MANY_REQUESTS, "too many pings"
        elif frame.opcode is not Opcode.CLOSE:
            self._fragments = self._fragments + 1 if frame.opcode is Opcode.CONT else 1
            if self._fragments > MAX_FRAGMENTS:
                self._excess = CloseCode.MESSAGE_TOO_BIG, "too many fragments"
        if self._excess is not None:
            raise ProtocolError(self._excess[1])
        super().recv_frame(frame)

    def fail(self, code: int, reason: str = "") -> None:
        """End the connection."""
        super().fail(*(self._excess or (code, reason)))

    def send_response(self, response: Response) -> None:
        """Send the answer to a handshake; its headers go with it."""
        super().send_response(response)
        response.headers.clear()

    def reject(self, status: int, text: str) -> Response:
        """Refuse the handshake, without websockets' words, which quote what the client sent."""
        return super().reject(status, f"{HTTPStatus(status).phrase}\n")


class _Messages:
    """What waits for ``receive()``. An asyncio.Queue has 3 KiB of room for those who wait, and here that is one."""

    __slots__ = ("_items", "_readers")

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._readers: list[asyncio.Future[None]] = []

    def qsize(self) -> int:
        return len(self._items)

    def empty(self) -> bool:
        return not self._items

    def put_nowait(self, message: Any) -> None:
        self._items.append(message)
        for reader in self._readers:
            if not reader.done():
                reader.set_result(None)

    def get_nowait(self) -> Any:
        return self._items.pop(0)

    async def get(self) -> Any:
        """The next message. Cancelling it loses nothing."""
        while not self._items:
            reader = asyncio.get_running_loop().create_future()
            self._readers.append(reader)
            try:
                await reader
            finally:
                self._readers.remove(reader)
        return self._items.pop(0)


#: Of all that may be written to; only one that may not has an event of its own to wait for.
_WRITABLE: Final = asyncio.Event()
_WRITABLE.set()


class _LimitedWebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSockets by the library websockets.

    An application may have its messages without the detour by ASGI: see :class:`._direct.DirectWebSocket`, which this
    is. The library gets whole frames only, so that those of text can be taken out in front of it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = self.conn
        self.conn = _Frames(
            extensions=plain.available_extensions, max_size=self.config.ws_max_size, logger=plain.logger
        )
        plain.parser.close()  # which refers to its owner: now, and not by the garbage collector
        self.queue = _Messages()  # type: ignore[assignment]
        self.writable = _WRITABLE
        self._unread: bytes | bytearray = b""
        self._max_frame = self.config.ws_max_size + MAX_FRAME_HEAD
        self._late = 0
        self._failed = False
        self._fragmented = False
        self._on_text: Callable[[str], object] | None = None
        self._on_writable: Callable[[], None] | None = None
        self._waits_for_turn = False

    def data_received(self, data: bytes) -> None:
        if self.close_sent:
            self._late += len(data)
            if self._late > MAX_LATE:
                self._fail()
        if not self._failed:
            if not self._unread:
                self._unread = data
            elif isinstance(self._unread, bytearray):
                self._unread += data
            else:
                # Many small pieces of a large message are not to be copied again and again.
                self._unread = bytearray(self._unread) + data
            if not self._waits_for_turn:
                self._parse()

    async def receive(self) -> Any:
        message = await super().receive()
        self._parse()
        return message

    async def send(self, message: Any) -> None:
        await super().send(message)
        self._parse()  # uvicorn reads on after it has sent a close frame

    @property
    def _deaf(self) -> bool:
        """Whether nothing that came is to be looked at now."""
        return self.read_paused or self._failed or self.transport.is_closing()

    def _parse(self) -> None:
        """Parse what came, until there is a message for the application, which then has its turn."""
        while self._unread and not self._deaf and not self.handshake_initiated:
            piece, self._unread = bytes(self._unread[:SLICE]), self._unread[SLICE:]
            super().data_received(piece)
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._refuse_handshake()
        if self._unread and not self._deaf:
            self._parse_frames()

    def _parse_frames(self) -> None:
        buffer, start, count = self._unread, 0, 0
        while not self._deaf:
            size = frame_size(buffer, start)
            end = start + size
            if not size or end > len(buffer):
                if not size or (size <= self._max_frame and not is_hopeless(buffer, start)):
                    break
                end = len(buffer)  # its head is enough for the library to refuse it
            if self._on_text is not None:
                if count >= FRAMES_PER_TURN:
                    self._wait_for_turn()
                    break
                count += 1
                text = None if self._fragmented or self.close_sent else text_of(buffer, start, end)
                if text is not None:
                    start = end
                    self._on_text(text)
                    continue
            unfinished = is_fragment(buffer[start])
            self._fragmented = self._fragmented if unfinished is None else unfinished
            piece, start = bytes(buffer[start:end]), end
            super().data_received(piece)
        if start:
            self._unread = buffer[start:]

    def _wait_for_turn(self) -> None:
        """Let others have theirs before the rest of what has come."""
        self._waits_for_turn = True
        self.transport.pause_reading()
        self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._waits_for_turn = False
        if not self.transport.is_closing():
            self._parse()
            if not (self._waits_for_turn or self.read_paused):
                self.transport.resume_reading()

    def send_receive_event_to_app(self) -> None:
        if self._on_text is None or self.curr_msg_data_type != "text" or self.close_sent:
            super().send_receive_event_to_app()
            return
        try:
            text = b"".join(self.frames).decode()
        except UnicodeDecodeError:
            super().send_receive_event_to_app()  # which fails, too, and hangs up
            return
        self.frames = []
        self._on_text(text)

    # --- DirectWebSocket --------------------------------------------------------------------------------------

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        event.headers.clear()  # the scope has them, and the library would keep them, too
        if self.handshake_initiated and not self.conn.extensions and not self.close_sent:
            extensions: dict[Any, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self

    def attach(self, on_text: Callable[[str], object], on_writable: Callable[[], None]) -> None:
        self._on_text, self._on_writable = on_text, on_writable
        waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        for message in waiting:
            text = message.get("text")
            if text is None:
                self.queue.put_nowait(message)
            else:
                on_text(str(text))
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
        self._parse()

    @property
    def is_writable(self) -> bool:
        return self.writable.is_set()

    def write(self, text: str) -> None:
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(encode_text(text))

    def close(self, code: int, reason: str) -> None:
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def pause_writing(self) -> None:
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.writable = _WRITABLE
        if self._on_writable is not None:
            self._on_writable()

    def _refuse_handshake(self) -> None:
        # uvicorn would leave it without an answer. websockets has one, but not for what it cannot read at all.
        answer = b"".join(self.conn.data_to_send())
        self.transport.write(answer or _refusal(HTTPStatus.BAD_REQUEST))
        self.transport.close()
        self.handshake_complete = self.close_sent = True

    def handle_parser_exception(self) -> None:
        failed = self.conn.close_sent
        if failed is not None:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": failed.code, "reason": failed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._fail()

    def _fail(self) -> None:
        """Hear no more."""
        if not self._failed:
            self._failed = True
            if self.close_timer is not None:
                self.close_timer.cancel()
            self.close_timer = _hang_up(self.transport, self.loop)

    def handle_ping(self) -> None:
        if not self._failed:
            super().handle_ping()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read, so closing would wait for it


def _refusal(status: HTTPStatus) -> bytes:
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(status.phrase) + 1}\r\n\r\n{status.phrase}\n".encode()


def _hang_up(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> asyncio.TimerHandle | None:
    """Close, once the client has had time to see why.

    What it still sends is read, and dropped by the caller: to close before would be a reset, which may overtake the
    answer.
    """
    if not transport.can_write_eof():  # TLS has an exchange of its own
        transport.close()
        return None
    transport.write_eof()
    return loop.call_later(LINGER, transport.abort)


def _set_user_timeout(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        set_user_timeout(connection)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvicorn's choice of an event loop, on which TLS handshakes have an end: asyncio gives them 60 s. And of
    connections that cannot be accepted it logs now and then; asyncio does so thousands of times in a second.
    """
    loop = auto_loop_factory()()
    logged_at = -math.inf

    def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal logged_at
        if context.get("message") != "socket.accept() out of system resource":
            loop.default_exception_handler(context)
        elif loop.time() - logged_at >= ACCEPT_LOG_INTERVAL:
            logged_at = loop.time()
            logger.error("connections cannot be accepted: %s", context.get("exception"))

    loop.set_exception_handler(on_exception)
    create_server: Callable[..., Any] = loop.create_server

    def limited(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("ssl") is not None:
            kwargs.setdefault("ssl_handshake_timeout", HEAD_TIMEOUT)
        return create_server(*args, **kwargs)

    loop.create_server = limited  # type: ignore[method-assign]
    return loop


def tune_collector() -> None:
    """Have the garbage collector look at thousands of connections seldom. For a process whose application is made.

    With Python's own thresholds it looks at all of them again and again while clients come: 3000 that came in 5 s cost
    2 s of CPU and a pause of 0.6 s that way, and now none.
    """
    gc.collect()
    gc.freeze()  # modules and what they hold stay anyway
    gc.set_threshold(*COLLECT_AFTER)


def make_config(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """uvicorn as the gateway needs it. ``app`` is the application, or with ``factory`` where to find what makes it."""
    log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    if settings.log_format == "json":
        log_config["formatters"] = {name: {"()": JSONFormatter} for name in log_config["formatters"]}
    return uvicorn.Config(
        app,
        http=f"{__package__}:HTTPProtocol",
        ws=f"{__package__}:WebSocketProtocol",
        loop=f"{__package__}:new_event_loop",
        # Somewhat above the gateway's own limit, so that a message which is a little too big gets an explanation.
        ws_max_size=4 * settings.max_message_size,
        # A shutdown never waits longer for clients than this, after the gateway's own drain.
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        log_config=log_config,
        log_level=settings.log_level,
        server_header=False,
        lifespan="on",
        **options,
    )


#: Of uvicorn 0.54 and websockets 17: what is called, called back, read and set here.
RELIED_ON: Final[dict[type, str]] = {
    H11Protocol: "conn connections cycle loop transport connection_made connection_lost data_received "
    "on_response_complete send_400_response handle_websocket_upgrade",
    WebSocketsSansIOProtocol: "conn config loop transport queue read_paused handshake_initiated handshake_complete "
    "close_sent close_timer data_received receive send handle_parser_exception handle_ping keepalive_timeout writable "
    "pause_writing resume_writing handle_connect",
    ServerProtocol: "available_extensions logger handshake_exc close_sent data_to_send recv_frame fail reject parser "
    "send_response",
}


def unprotected() -> str | None:
    """Why the protocols here are uvicorn's own, if they are: what they are made of is not there any more."""
    missing = []
    for owner, names in RELIED_ON.items():
        initialisers = [vars(each)["__init__"] for each in owner.__mro__[:-1] if "__init__" in vars(each)]
        known = {*dir(owner), *(name for each in initialisers for name in each.__code__.co_names)}
        missing += [f"{owner.__name__}.{name}" for name in names.split() if name not in known]
    return f"uvicorn {uvicorn.__version__} has no {', '.join(missing)}" if missing else None


HTTPProtocol: type[H11Protocol] = H11Protocol if unprotected() else _LimitedHTTPProtocol
WebSocketProtocol: type[WebSocketsSansIOProtocol] = (
    WebSocketsSansIOProtocol if unprotected() else _LimitedWebSocketProtocol
)
