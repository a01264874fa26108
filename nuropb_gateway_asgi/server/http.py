"""HTTP/1.1 protocol for uvicorn, with limits on request heads and on idle connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..handlers.direct import CUT, RESPONSE
from ..sockets import hasten_end, set_options
from .closing import close_after_reading, cut, refusal, unsent
from .opening import read_opening
from .process import most_connections
from .watched_response import WatchedResponse

__all__ = ["HEAD_TIMEOUT", "LOOKS", "MAX_HEAD", "MAX_HEADERS", "MAX_HEADER_LINE", "STALL_TIMEOUT", "HTTPProtocol"]

#: Bytes of one line of a request's head: a token may have 16 KiB, and 22 KiB in a subprotocol.
MAX_HEADER_LINE: Final = 24576
#: Header lines of a request; websockets alone would take 128.
MAX_HEADERS: Final = 100
#: Bytes of a request's head.
MAX_HEAD: Final = 65536
#: Chunks of a body, and the bytes that each further one has on average: a chunk takes as long as 10 kB of a plain body.
MAX_CHUNKS: Final = 256
BYTES_PER_CHUNK: Final = 64
#: Seconds from the accept, or from the last response, to the end of a request's head.
HEAD_TIMEOUT: Final = 10.0
#: Seconds in which a client has to read something of its last response, and looks at it in that time.
STALL_TIMEOUT: Final = 8.0
LOOKS: Final = 4

_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")


class _Requests(h11.Connection):
    """h11's parser with limits on heads; ``refusal`` is the HTTP status for the request that it refused.

    ``max_head`` is in bytes. If it is more than MAX_HEAD, a single line may take all of it.
    """

    def __init__(self, max_head: int) -> None:
        super().__init__(h11.SERVER, max_head)
        self.refusal = HTTPStatus.BAD_REQUEST
        self._max_line = MAX_HEADER_LINE if max_head <= MAX_HEAD else max_head
        #: Chunks of the present body, and its bytes.
        self._chunks = self._bytes = 0

    def next_event(self) -> Any:
        try:
            if self.their_state is h11.IDLE:
                self._check_lines()
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._check(event)
                self._chunks = self._bytes = 0
            elif isinstance(event, h11.Data):
                self._check_chunks(event)
        except h11.RemoteProtocolError as error:
            self.refusal = HTTPStatus(error.error_status_hint)
            raise
        return event

    def _check(self, request: h11.Request) -> None:
        headers = list(request.headers)  # which makes each pair anew
        longest = max([len(name) + len(value) for name, value in headers], default=0)
        if len(headers) > MAX_HEADERS or longest + len(": \r\n") > self._max_line:
            raise h11.RemoteProtocolError("header fields too large", error_status_hint=431)
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("unknown version", error_status_hint=505)
        if len(request.target) > self._max_line:
            raise h11.RemoteProtocolError("target too long", error_status_hint=414)
        names = [name for name, _ in headers]
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            # RFC 9112, 6.1: a proxy may take the other length, and the bytes after it for a request of somebody else.
            raise h11.RemoteProtocolError("ambiguous length", error_status_hint=400)

    def _check_lines(self) -> None:
        # Before h11 parses them: 13,000 lines would hold up all other connections for 50 ms.
        unread = self.trailing_data[0]
        end = _END_OF_HEAD.search(unread)
        if unread.count(b"\n", 0, end.start() if end else len(unread)) > MAX_HEADERS + 1:
            raise h11.RemoteProtocolError("too many header lines", error_status_hint=431)

    def _check_chunks(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._bytes += len(data.data)
        if self._chunks > MAX_CHUNKS + self._bytes // BYTES_PER_CHUNK:
            # 40,000 chunks of a byte, in a single read, would hold up all other connections for a second.
            raise h11.RemoteProtocolError("too many chunks", error_status_hint=413)


class HTTPProtocol(H11Protocol):
    """HTTP/1.1. A connection without a request being served has ``HEAD_TIMEOUT`` seconds for the head of the next.

    Where uvicorn is told to keep idle connections for longer, a connection may be idle for so long between requests.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = self._requests = _Requests(self.config.h11_max_incomplete_event_size or MAX_HEAD)
        self._deadline: asyncio.TimerHandle | None = None
        self._upgraded = self._refused = self._idles = False
        #: Bytes that the client had not acknowledged when the deadline began, and looks in a row that found no less.
        self._unsent = self._looks = 0
        #: A response that may be written directly, and the callback of a client that keeps up again.
        self._watched: WatchedResponse | None = None
        self._on_writable: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline. If files run out, abort the connection that has been idle for longest."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            set_options(connection)
        if len(self.connections) > most_connections():
            # A process without free files cannot accept any connection.
            longest_idle = next(iter(_idle), self)
            longest_idle.abort()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the deadline."""
        self._stop_watching()
        hasten_end(self.transport.get_extra_info("socket"))
        scope: Any = self.scope  # None before the first request
        if scope is not None:
            # Reference cycles end now, without the garbage collector.
            for name in (CUT, RESPONSE):
                scope.get("extensions", {}).pop(name, None)
        self._on_writable = None
        if self._watched is not None:
            self._watched.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data, or drop it after a refusal."""
        if not self._refused:
            if self._idles:
                self._stop_watching()  # the head that begins has a deadline of its own
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Start the deadline of the next request."""
        self._on_writable = None
        super().on_response_complete()
        self._watch(idle_for=self.config.timeout_keep_alive)

    def abort(self) -> None:
        """Abort the connection."""
        self._stop_watching()
        self.transport.abort()

    def cut(self) -> None:
        """End the connection of a client that does not read, with the request being served."""
        if self._serving:
            self.cycle.disconnected = True  # the application has said all; uvicorn would log the missing rest
            self.cycle.message_event.set()
        self._stop_watching()
        cut(self.transport)

    @property
    def _serving(self) -> bool:
        """Whether a request is being served."""
        return not getattr(self.cycle, "response_complete", True)  # the cycle is None before the first request

    def _watch(self, idle_for: float = 0.0) -> None:
        """Let the deadline run while no request is served; for ``idle_for`` seconds if that is more and none began."""
        if self._refused:
            return
        if self._upgraded or self._serving:
            self._stop_watching()
            if self._serving:
                extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
                extensions[CUT] = self.cut
                extensions[RESPONSE] = self
        elif self._deadline is None:
            self._unsent, self._looks = unsent(self.transport), 0
            self._idles = idle_for > HEAD_TIMEOUT and not (self._unsent or self._requests.trailing_data[0])
            seconds = STALL_TIMEOUT / LOOKS if self._unsent else idle_for if self._idles else HEAD_TIMEOUT
            self._deadline = self.loop.call_later(seconds, self._on_deadline)
            _idle[self] = None

    def _stop_watching(self) -> None:
        _idle.pop(self, None)
        self._idles = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _on_deadline(self) -> None:
        self._stop_watching()
        before, left, looks = self._unsent, unsent(self.transport), self._looks + 1
        if left < before:  # a client that reads, however slowly, has its time from the end of the last response
            self._watch(self.config.timeout_keep_alive)
        elif left and looks < LOOKS:
            self._watch()
            self._looks = looks
        elif left:
            cut(self.transport)  # close() would wait for the client
        elif self._requests.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse an invalid request with the status that h11 suggests."""
        self._refuse(self._requests.refusal)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand a handshake over to the WebSocket protocol, or refuse it."""
        headers = dict(self.headers)
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if event.http_version != b"1.1":
            self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        elif event.method != b"GET" or has_body or self._requests.trailing_data[0]:
            # Data between a handshake and its response could smuggle a request past a proxy.
            self._refuse(HTTPStatus.BAD_REQUEST)
        else:
            self._upgraded = True
            if not self._open(event):
                super().handle_websocket_upgrade(event)

    def _open(self, event: h11.Request) -> bool:
        """Hand an ordinary handshake over as it was parsed; uvicorn would write it down and have it parsed again."""
        opened: Any = getattr(self.ws_protocol_class, "opened", None)
        opening = (
            None
            if opened is None
            else read_opening(event.target, self.headers, compresses=self.config.ws_per_message_deflate)
        )
        if opening is None:
            return False
        protocol = opened(self.config, self.server_state, self.app_state)
        if protocol is None:
            return False
        self.connections.discard(self)
        self.transport.set_protocol(protocol)
        protocol.open(opening, self.transport, self.server, self.client, self.scheme)
        return True

    # --- DirectResponse -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Watch the response from its head on."""
        self._watched = WatchedResponse(self._requests)

    def attach(self, on_writable: Callable[[], None], sent: bytes) -> bool:
        """Return whether parts of the body may be written directly: the response is in chunks, and as it was sent."""
        watched, self._watched = self._watched, None
        assert watched is not None  # noqa: S101 - prepare() was called
        watched.end()
        if self.scope["method"] != "GET" or self.scope["http_version"] != "1.1" or not watched.has_begun_with(sent):
            return False
        self._on_writable = on_writable
        return True

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up with reading."""
        return not self.flow.write_paused

    def write(self, body: bytes) -> None:
        """Send a part of the body as a chunk, unless the connection has ended."""
        if not (self.cycle.disconnected or self.transport.is_closing()):
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def resume_writing(self) -> None:
        """Have writers continue."""
        super().resume_writing()
        if self._on_writable is not None:
            self._on_writable()

    def _refuse(self, status: HTTPStatus) -> None:
        if self._serving:
            # The error is in the body of the request being served. The application's response has nowhere to go.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._requests.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(refusal(status))
        self.connections.discard(self)  # uvicorn's shutdown would close it again, and h11 would raise
        self._stop_watching()
        self._refused = True
        self._deadline = close_after_reading(self.transport, self.loop)


#: Connections with a running deadline, the longest idle first.
_idle: Final[dict[HTTPProtocol, None]] = {}
