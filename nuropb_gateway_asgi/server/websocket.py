"""WebSocket protocol for uvicorn, with limits on frames and a direct way to the application.

Whole text frames are decoded before the websockets library sees them; every other frame is the library's.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, Self, cast
from urllib.parse import unquote

import websockets.http11
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from ..handlers.direct import EXTENSION, NEVER_LATE, Lateness
from ..limits.prices import BYTES_PER_UNIT
from ..limits.turns import FRAMES_PER_TURN, TURNS_OF_OTHERS
from ..protocol import CloseCode
from ..sockets import hasten_end
from .closing import close_after_reading, cut, refusal
from .frame_limits import LimitedServerProtocol
from .http import MAX_HEADER_LINE
from .message_queue import MessageQueue
from .opening import Opening
from .text_frames import (
    decode_pong,
    decode_text,
    encode_text,
    encode_texts,
    frame_size,
    has_invalid_head,
    is_fragment,
    take_texts,
)

__all__ = [
    "LATE_AT_ONCE",
    "MAX_FRAME_HEAD",
    "MAX_LATE",
    "SLICE",
    "PlacedWebSocketProtocol",
    "WebSocketProtocol",
]

#: Bytes that are parsed in search of a client's close frame, after the gateway has sent its own.
MAX_LATE: Final = 65536
#: Bytes of the longest head of a frame.
MAX_FRAME_HEAD: Final = 14
#: Frames that are refused together while calls are late. They cost as much as one frame that is not.
LATE_AT_ONCE: Final = 16
#: Bytes of a handshake that are parsed at a time: the 256 KiB of one read could contain 40,000 messages.
SLICE: Final = 8192

if "WEBSOCKETS_MAX_LINE_LENGTH" not in os.environ:
    # The library's limit is 8 KiB. It reads the variable when it is imported, which may be long before this module.
    websockets.http11.MAX_LINE_LENGTH = max(websockets.http11.MAX_LINE_LENGTH, MAX_HEADER_LINE)

#: Event of all connections that may be written to. A paused connection has an event of its own.
_WRITABLE: Final = asyncio.Event()
_WRITABLE.set()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSockets by the websockets library, and a :class:`~..handlers.direct.DirectWebSocket` for the application.

    The library gets whole frames only, so that text frames can be taken out in front of it. A connection with an
    ordinary handshake (:meth:`opened`) has no protocol of the library before its first other frame.
    """

    #: Whether the server's operator has chosen this class: then its limits hold for every connection, and the
    #: operator's compression for the gateway's, too.
    is_chosen = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._library: ServerProtocol | None = None
        super().__init__(*args, **kwargs)
        plain = self.conn
        self._library = LimitedServerProtocol(
            extensions=plain.available_extensions,
            max_size=self.config.ws_max_size,
            logger=plain.logger,
            is_limited=self.is_chosen,
        )
        plain.parser.close()  # breaks its reference cycle now, without the garbage collector
        #: The handshake that the HTTP protocol has read, if it is an ordinary one.
        self._opening: Opening | None = None
        self._max_message: float = math.inf
        self.queue = MessageQueue()  # type: ignore[assignment]
        self.writable = _WRITABLE
        self._unread: bytes | bytearray = b""
        self._max_frame = self.config.ws_max_size + MAX_FRAME_HEAD
        self._late = 0
        self._failed = self._prepared = False
        self._fragmented = False
        self._on_text: Callable[[str], bool] | None = None
        self._on_writable: Callable[[], None] | None = None
        self._is_busy: Callable[[], bool] = bool  # no application yet: never busy
        self._on_late: Callable[[list[str]], int] = len
        self._lateness: Lateness = NEVER_LATE
        self._take_large: Callable[[int], bool] = bool
        #: Whether the application works on its last message, and takes no other one.
        self._busy = self._waits_for_turn = False
        #: Iterations of the event loop that the connection leaves to others before its next turn.
        self._rests = 0

    @property
    def conn(self) -> ServerProtocol:
        """The library's protocol, made when it is first needed."""
        if self._library is None:
            self._library = limited = LimitedServerProtocol(
                state=State.OPEN if self.handshake_complete else State.CONNECTING,
                max_size=self.config.ws_max_size,
                logger=self.logger,
                is_limited=self._prepared or self.is_chosen,
            )
            limited.max_message = self._max_message
            # Newer releases log the refusal of a handshake otherwise unless they have judged it themselves.
            vars(limited)["accept_called"] = True
        return self._library

    @conn.setter
    def conn(self, protocol: ServerProtocol) -> None:
        self._library = protocol

    @property
    def _limited(self) -> LimitedServerProtocol:
        return cast("LimitedServerProtocol", self.conn)

    # --- an ordinary handshake ----------------------------------------------------------------------------------

    @classmethod
    def opened(cls, config: Any, server_state: Any, app_state: Any) -> Self | None:
        """Make a protocol for :meth:`open`, or return None if its server's connections have to be made as usual.

        It shares the attributes that are the same in all connections of a server, as attributes of a class.
        """
        kept: Any = vars(config).get(_KEPT)
        if kept is None or kept[:2] != (cls, id(server_state)) or kept[2] is not app_state:
            kept = (cls, id(server_state), app_state, _shared_class(cls, config, server_state, app_state))
            vars(config)[_KEPT] = kept
        made: type[Self] | None = kept[3]
        if made is None:
            return None
        self = made.__new__(made)
        self.default_headers = server_state.default_headers
        self.queue = MessageQueue()  # type: ignore[assignment]
        return self

    def open(self, opening: Opening, transport: asyncio.Transport, server: Any, client: Any, scheme: str) -> None:
        """Start the application, as uvicorn does after it has parsed a handshake.

        Addresses and scheme are as the HTTP protocol has found them.
        """
        self.connections.add(self)
        self.transport, self.server, self.client = transport, server, client
        self.scheme = "wss" if scheme == "https" else "ws"
        self._opening = opening
        path, _, query = opening.target.partition(b"?")
        root = self.root_path
        extensions: Any = {"websocket.http.response": {}, EXTENSION: self}
        self.scope = {
            "type": "websocket",
            "asgi": {"version": self.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": root,
            "path": root + unquote(path.decode("ascii")),
            "raw_path": root.encode("ascii") + path,
            "query_string": query,
            "headers": opening.headers,
            "subprotocols": opening.subprotocols,
            "state": self.app_state.copy(),
            "extensions": extensions,
        }
        self.queue.put_nowait({"type": "websocket.connect"})
        task = self.loop.create_task(self.run_asgi())
        task.add_done_callback(self.on_task_complete)
        self.tasks.add(task)

    def _accept(self, opening: Opening, message: Any) -> None:
        """Send the response to an ordinary handshake."""
        if self.logger.isEnabledFor(logging.INFO):
            address, path = get_client_addr(self.scope), get_path_with_query_string(self.scope)
            self.logger.info('%s - "WebSocket %s" [accepted]', address, path)
            self.logger.info("connection open")
        self._opening = None
        if not self.transport.is_closing():
            self.handshake_complete = True
            headers = [*self.default_headers, *message.get("headers", ())]
            self.transport.write(opening.response(message.get("subprotocol"), headers))
            self.start_keepalive()

    # --- frames ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Keep data, and parse it unless the connection waits for its turn."""
        if self._lateness.late and not (self._unread or self._waits_for_turn or self._failed or self.read_paused):
            start = self._refuse_late(data, 0)
            if start == len(data):
                return
            data = data[start:]
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
                # A bytearray grows in place: a large message in many small pieces is not copied with each piece.
                self._unread = bytearray(self._unread) + data
            if self._waits_for_turn:
                return
            if self.handshake_initiated:
                self._parse_frames()
            else:
                self._parse()

    async def receive(self) -> Any:
        """Wait for a message of the client, and parse on after it."""
        message = await self.queue.get()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
        self._parse()
        return message

    async def send(self, message: Any) -> None:
        """Send a message of the application."""
        if self._opening is not None and message["type"] == "websocket.accept" and not self.disconnected:
            self._accept(self._opening, message)
            return
        await super().send(message)
        if self._prepared and message["type"] == "websocket.close" and self.close_timer is not None:
            self._await_close()
        self._parse()  # uvicorn resumes reading after a close frame

    @property
    def _is_deaf(self) -> bool:
        """Whether received data has to wait, or is dropped."""
        return self.read_paused or self._failed or self.transport.is_closing()

    def _parse(self) -> None:
        """Parse received data up to the first message for the application, which then has its turn."""
        while self._unread and not self._is_deaf and not self.handshake_initiated:
            piece, self._unread = bytes(self._unread[:SLICE]), self._unread[SLICE:]
            super().data_received(piece)
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._refuse_handshake()
        if self._unread and not self._is_deaf:
            self._parse_frames()

    def _parse_frames(self) -> None:
        buffer, start, count = self._unread, 0, 0
        while start < len(buffer) and not self._is_deaf:
            size = frame_size(buffer, start)
            end = start + size
            if not size or end > len(buffer):
                if not size or (size <= self._max_frame and not has_invalid_head(buffer, start)):
                    break
                end = len(buffer)  # the library refuses the frame by its head, unless its own limit is higher
                if self._prepared and not has_invalid_head(buffer, start):
                    self._limited.fail(CloseCode.MESSAGE_TOO_BIG, "message too big")
                    self.handle_parser_exception()
                    break
            if self._on_text is not None:
                if count >= FRAMES_PER_TURN or self._busy:
                    self._wait_for_turn()
                    break
                if self._lateness.late and (late := self._refuse_late(buffer, start)) > start:
                    start = late
                    count += 1
                    continue
                units = 1 + size // BYTES_PER_UNIT
                if units > 1 and not self._take_large(units):
                    self._wait_for_turn()
                    break
                count += units
                text = None if self._fragmented or self.close_sent else decode_text(buffer, start, end)
                if text is not None:
                    start = end
                    self._busy = self._on_text(text)
                    continue
            if self._takes_pong(buffer, start, end):
                start = end
                continue
            unfinished = is_fragment(buffer[start])
            self._fragmented = self._fragmented if unfinished is None else unfinished
            piece, start = bytes(buffer[start:end]), end
            super().data_received(piece)
        if start:
            self._unread = buffer[start:]
        if count >= FRAMES_PER_TURN and not self._is_deaf:
            self._rests = TURNS_OF_OTHERS
            if not self._waits_for_turn:
                self._wait_for_turn()

    def _refuse_late(self, buffer: bytes | bytearray, start: int) -> int:
        """Have the calls from ``start`` on refused; return the start of the first frame that is not refused."""
        if self._fragmented or self.close_sent:
            return start
        texts, ends = take_texts(buffer, start, LATE_AT_ONCE)
        taken = self._on_late(texts) if texts else 0
        return ends[taken - 1] if taken else start

    def _takes_pong(self, buffer: bytes | bytearray, start: int, end: int) -> bool:
        """Take the answer to a ping, without the library's protocol if there is none yet."""
        if self._library is not None or self.pending_ping_payload is None:
            return False
        payload = decode_pong(buffer, start, end)
        if payload is None or payload != self.pending_ping_payload:
            return False
        self.handle_pong(Frame(Opcode.PONG, payload))
        return True

    def send_keepalive_ping(self) -> None:
        """Send a ping, without the library's protocol if there is none yet."""
        if self._library is not None or not self.handshake_complete:
            super().send_keepalive_ping()
            return
        self.ping_timer = None
        if self.close_sent or self.transport.is_closing():
            return
        self.pending_ping_payload = payload = os.urandom(4)
        self.ping_sent_at = self.loop.time()
        self.transport.write(b"\x89\x04" + payload)
        if self.ping_timeout is not None:
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
        else:
            self.schedule_ping()

    def _wait_for_turn(self) -> None:
        """Parse the rest of the received data in a later iteration of the event loop."""
        self._waits_for_turn = True
        self.transport.pause_reading()
        self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        if self._rests:
            self._rests -= 1
            self.loop.call_soon(self._take_turn)
            return
        self._waits_for_turn = False
        self._busy = self._is_busy()
        if self._busy:
            self._wait_for_turn()
        elif not self.transport.is_closing():
            self._parse()
            if not (self._waits_for_turn or self.read_paused):
                self.transport.resume_reading()

    def send_receive_event_to_app(self) -> None:
        """Hand a message that the library has parsed to the application."""
        if self._on_text is None or self.curr_msg_data_type != "text" or self.close_sent:
            super().send_receive_event_to_app()
            return
        try:
            text = b"".join(self.frames).decode()
        except UnicodeDecodeError:
            super().send_receive_event_to_app()  # fails as well, and closes the connection
            return
        self.frames = []
        self._busy = self._on_text(text)

    # --- DirectWebSocket ----------------------------------------------------------------------------------------

    def handle_connect(self, event: Any) -> None:
        """Start the application, and offer it the direct way."""
        super().handle_connect(event)
        event.headers.clear()  # the scope has them, and the library would keep them as well
        if self.handshake_initiated and not self.close_sent:
            extensions: dict[Any, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self

    def prepare(self, max_size: int) -> bool:
        """Have the connection as the gateway needs it, before the application accepts the handshake."""
        self._prepared = True
        self._max_message = max_size
        self._max_frame = min(max_size, self.config.ws_max_size) + MAX_FRAME_HEAD
        if self._library is None:
            return True
        self._limited.is_limited = True
        self._limited.max_message = max_size
        if self.conn.extensions and not self.is_chosen:
            # The response has not been sent: without the header the client compresses nothing either.
            self.conn.extensions = []
            del self.response.headers["Sec-WebSocket-Extensions"]
        return not self.conn.extensions

    def attach(
        self,
        on_text: Callable[[str], bool],
        on_writable: Callable[[], None],
        is_busy: Callable[[], bool],
        on_late: Callable[[list[str]], int],
        lateness: Lateness,
        take_large: Callable[[int], bool],
    ) -> None:
        """Give text messages to ``on_text``, the waiting messages first."""
        self._on_text, self._on_writable, self._is_busy = on_text, on_writable, is_busy
        self._on_late, self._lateness, self._take_large = on_late, lateness, take_large
        waiting = [self.queue.get_nowait() for _ in range(self.queue.qsize())]
        for message in waiting:
            text = message.get("text")
            if text is None:
                self.queue.put_nowait(message)
            else:
                self._busy = on_text(str(text)) or self._busy
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self.transport.resume_reading()
        self._parse()

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up with reading."""
        return self.writable.is_set()

    def write(self, text: str) -> None:
        """Send a text message, unless the connection has ended."""
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(encode_text(text))

    def write_all(self, texts: list[str]) -> None:
        """Send some text messages in one write, unless the connection has ended."""
        if not (self.close_sent or self.disconnected or self.transport.is_closing()):
            self.transport.write(encode_texts(texts))

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, unless the connection has ended, and wait for the client's in the background."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._await_close()

    def cut(self) -> None:
        """End the connection at once."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        cut(self.transport)

    def pause_writing(self) -> None:
        """Have writers wait: the client does not keep up."""
        self.writable = asyncio.Event()

    def resume_writing(self) -> None:
        """Have writers continue."""
        super().resume_writing()
        self.writable = _WRITABLE
        if self._on_writable is not None:
            self._on_writable()

    # --- ends ---------------------------------------------------------------------------------------------------

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application."""
        hasten_end(self.transport.get_extra_info("socket"))
        super().connection_lost(exc)

    def handle_close(self, event: Any) -> None:
        """Close the connection after the client's close frame; cut it if the client does not read what is before."""
        super().handle_close(event)
        if self._prepared and not self.close_sent and self.close_timer is None:
            self._await_close()

    def _await_close(self) -> None:
        """Cut the connection if it still is there after the time for a closing handshake."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(self.close_timeout, cut, self.transport)

    def _refuse_handshake(self) -> None:
        # uvicorn sends no response here. websockets has one, except for requests that it cannot parse at all.
        answer = b"".join(self.conn.data_to_send())
        self.transport.write(answer or refusal(HTTPStatus.BAD_REQUEST))
        self.transport.close()
        self.handshake_complete = self.close_sent = True

    def handle_parser_exception(self) -> None:
        """Send the close frame for an invalid frame or an exceeded limit."""
        failed = self.conn.close_sent
        if failed is not None:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": failed.code, "reason": failed.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._fail()

    def _fail(self) -> None:
        """Drop all further data, and close the connection."""
        if not self._failed:
            self._failed = True
            if self.close_timer is not None:
                self.close_timer.cancel()
            self.close_timer = close_after_reading(self.transport, self.loop)

    def handle_ping(self) -> None:
        """Answer a ping, unless the connection has failed."""
        if not self._failed:
            super().handle_ping()

    def keepalive_timeout(self) -> None:
        """Close the connection of a client that does not answer pings."""
        if (self._waits_for_turn or self.read_paused) and not self.close_sent:
            # The answer may be in what this process, which is late, has not read yet.
            self.pong_timer = self.loop.call_later(self.ping_timeout or 0.0, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        if self.transport.get_write_buffer_size():
            cut(self.transport)  # close() would wait for a client that does not read


#: The name under which a configuration of uvicorn keeps the class of its connections with an ordinary handshake.
_KEPT: Final = "_nuropb_gateway_class"
#: The attributes that each connection has for itself.
_OWN: Final = frozenset({"_library", "conn", "default_headers", "frames", "queue"})


def _shared_class(
    cls: type[WebSocketProtocol], config: Any, server_state: Any, app_state: Any
) -> type[WebSocketProtocol] | None:
    """Make a class whose attributes are those that two connections of a server have in common.

    Returns None if the two differ in anything unknown.
    """
    one, other = (vars(cls(config=config, server_state=server_state, app_state=app_state)) for _ in range(2))
    common = {
        name: value
        for name, value in one.items()
        if name not in _OWN
        and (value is other[name] or (type(value) in (bool, bytes, float, int, str) and value == other[name]))
    }
    for each in (one, other):
        each["_library"].parser.close()
    if {*one} - {*common} != _OWN - {"conn"}:
        return None
    own = {"_library": None, "frames": (), "handshake_initiated": True, "__module__": __name__}
    return type(cls.__name__, (cls,), common | own)


class PlacedWebSocketProtocol(WebSocketProtocol):
    """The protocol in a server that is not the gateway's own: other applications' connections keep uvicorn's limits.

    Their compression is uvicorn's, too; the gateway's connections have none.
    """

    is_chosen = False
