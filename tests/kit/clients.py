"""Clients: one on the websockets library that speaks in frames, and a raw socket for invalid data."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from .gateways import DEADLINE

__all__ = [
    "Client",
    "Closed",
    "Frame",
    "RawClient",
    "Refusal",
    "bearer_subprotocol",
    "connect",
    "refusal",
    "turned_away",
]

Frame: TypeAlias = dict[str, Any]

BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT = 2, 8, 0, 9, 10, 1


@dataclass(frozen=True)
class Closed:
    """The end of a connection, and the unread frames before it."""

    code: int
    reason: str
    frames: list[Frame]


@dataclass(frozen=True)
class Refusal:
    """The HTTP answer to a refused handshake."""

    status: int
    headers: Mapping[str, str]
    body: str


class Client:
    """A connection. Every wait has a deadline. Frames that the test has not asked for yet stay in ``inbox``."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.inbox: list[Frame] = []
        self.hello: Frame = {}
        self._ids = itertools.count(1)

    @property
    def subprotocol(self) -> str | None:
        return self.connection.subprotocol

    # --- sending

    async def send_text(self, text: str | bytes) -> None:
        """Send ``text``: a str as a text message, bytes as a binary message."""
        await self.connection.send(text)

    async def send_frame(self, frame: object) -> None:
        await self.connection.send(json.dumps(frame))

    async def send(self, type_: str, /, **payload: Any) -> None:
        await self.send_frame({"type": type_, "payload": payload})

    async def request(self, name: str, params: Any = None, /, **more: Any) -> None:
        """Send a request for ``service.method`` without waiting for the answer."""
        service, _, method = name.rpartition(".")
        await self.send("request", service=service, method=method, params={} if params is None else params, **more)

    # --- receiving

    async def next(self) -> Frame:
        """Return the next frame of any type. Raises ConnectionClosed."""
        if self.inbox:
            return self.inbox.pop(0)
        return await self._receive()

    async def wait_for(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Return the first frame that is ``wanted``. Other frames stay in the inbox."""
        for number, frame in enumerate(self.inbox):
            if wanted(frame):
                return self.inbox.pop(number)
        while not wanted(frame := await self._receive()):
            self.inbox.append(frame)
        return frame

    async def answer(self, id_: str) -> Frame:
        """Return the payload of the response to ``id_``."""
        frame = await self.wait_for(lambda frame: frame["type"] == "response" and frame["payload"].get("id") == id_)
        payload: Frame = frame["payload"]
        return payload

    async def event(self, topic: str) -> Frame:
        """Return the payload of the next event of ``topic``."""
        frame = await self.wait_for(lambda frame: frame["type"] == "event" and frame["payload"]["topic"] == topic)
        payload: Frame = frame["payload"]
        return payload

    async def error(self) -> Frame:
        """Return the next error frame."""
        return await self.wait_for(lambda frame: frame["type"] == "error")

    async def closed(self) -> Closed:
        """Read until the connection ends."""
        try:
            while True:
                self.inbox.append(await self._receive())
        except ConnectionClosed as error:
            frames, self.inbox = self.inbox, []
            if error.rcvd is None:
                return Closed(1006, "", frames)
            return Closed(error.rcvd.code, error.rcvd.reason, frames)

    async def _receive(self) -> Frame:
        async with asyncio.timeout(DEADLINE):
            text = await self.connection.recv()
        assert isinstance(text, str)
        frame: Frame = json.loads(text)
        return frame

    # --- both

    async def ask(self, type_: str, /, **payload: Any) -> Frame:
        """Send a frame (with an id if it has none), and return the payload of its response."""
        payload.setdefault("id", f"ask-{next(self._ids)}")
        await self.send(type_, **payload)
        return await self.answer(payload["id"])

    async def call(self, name: str, params: Any = None, /, **more: Any) -> Frame:
        """Request ``service.method`` and return the payload of the response."""
        more.setdefault("id", f"call-{next(self._ids)}")
        await self.request(name, params, **more)
        return await self.answer(more["id"])

    async def result(self, name: str, params: Any = None, /, **more: Any) -> Any:
        """Request ``service.method`` and return its result."""
        answer = await self.call(name, params, **more)
        assert answer["error"] is None, answer["error"]
        return answer["result"]

    async def error_code(self, name: str, params: Any = None, /, **more: Any) -> str:
        """Request ``service.method`` and return the code of its error."""
        answer = await self.call(name, params, **more)
        assert answer["result"] is None
        code: str = answer["error"]["code"]
        return code

    async def settled(self) -> list[Frame]:
        """Wait until the gateway has handled all earlier frames, and return the unread frames."""
        token = f"settled-{next(self._ids)}"
        await self.send_frame({"type": "ping", "payload": token})
        await self.wait_for(lambda frame: frame == {"type": "pong", "payload": token})
        frames, self.inbox = self.inbox, []
        return frames

    def abort(self) -> None:
        """Break the connection without a close frame."""
        self.connection.transport.abort()


def bearer_subprotocol(token: str) -> str:
    """Return a token as the subprotocol by which browsers send it."""
    return "base64url.bearer.nuropb." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")


@contextlib.asynccontextmanager
async def connect(
    url: str,
    token: str | None = None,
    *,
    origin: str | None = None,
    subprotocols: Sequence[str] = (),
    headers: Sequence[tuple[str, str]] = (),
    hello: bool = True,
    **options: Any,
) -> AsyncIterator[Client]:
    """Connect, with a ``token`` in the Authorization header if given, and wait for hello if there is one.

    ``options`` are the library's: ``ssl``, ``sock``.

    Raises InvalidStatus if the handshake is refused.
    """
    more = [] if token is None else [("Authorization", f"Bearer {token}")]
    if origin is not None:
        more.append(("Origin", origin))
    async with websocket_connect(
        url,
        additional_headers=[*headers, *more],
        subprotocols=[Subprotocol(name) for name in subprotocols] or None,
        user_agent_header=None,
        compression=None,
        max_size=None,
        ping_interval=None,
        open_timeout=DEADLINE,
        close_timeout=DEADLINE,
        proxy=None,
        **options,
    ) as connection:
        client = Client(connection)
        if hello:
            client.hello = (await client.event("hello"))["event"]
            assert client.inbox == []
        yield client


async def refusal(url: str, token: str | None = None, **options: Any) -> Refusal:
    """Try to connect, and return the refusal by an HTTP status."""
    try:
        async with connect(url, token, hello=False, **options):
            raise AssertionError("the connection was accepted")
    except InvalidStatus as error:
        response = error.response
        return Refusal(response.status_code, response.headers, bytes(response.body or b"").decode())


async def turned_away(url: str, token: str | None = None, **options: Any) -> tuple[int, Frame]:
    """Try to connect as a browser, and return the close code and the error frame of the refusal."""
    async with connect(url, token, hello=False, **options) as client:
        closed = await client.closed()
    (frame,) = closed.frames
    assert frame["type"] == "error"
    return closed.code, frame


class RawClient:
    """A raw socket that is read only on request, and the part of RFC 6455 that violations of it need."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Self]:
        """Connect the socket without sending anything. ``receive_buffer`` is the kernel's, in bytes."""
        parts = urlsplit(url)
        with socket.socket() as connection:
            connection.setblocking(False)
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            async with asyncio.timeout(DEADLINE):
                await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
            yield cls(connection)

    async def handshake(self, path: str, *headers: tuple[str, str]) -> str:
        """Send a handshake, and return the head of the response."""
        await self.send(self.upgrade(path, *headers))
        return (await self.read_until(b"\r\n\r\n")).decode("latin-1")

    @staticmethod
    def upgrade(path: str, *headers: tuple[str, str]) -> bytes:
        """Return the request of a handshake."""
        usual = [
            ("Host", "127.0.0.1"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in [*usual, *headers]), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    @staticmethod
    def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True) -> bytes:
        """Return a masked frame. The mask is zero, which RFC 6455 allows."""
        first = opcode | (0x80 if fin else 0)
        if len(payload) < 126:
            head = struct.pack("!BB", first, 0x80 | len(payload))
        elif len(payload) < 65536:
            head = struct.pack("!BBH", first, 0x80 | 126, len(payload))
        else:
            head = struct.pack("!BBQ", first, 0x80 | 127, len(payload))
        return head + bytes(4) + payload

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE):
            await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def send_json(self, frame: object) -> None:
        await self.send(self.frame(json.dumps(frame).encode()))

    async def read_until(self, end: bytes) -> bytes:
        """Return the data up to and including ``end``. Raises EOFError if the connection ends before."""
        while end not in self._buffer:
            await self._fill()
        return self._take(self._buffer.index(end) + len(end))

    async def read_frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame; the gateway sends no fragments. Raises EOFError at the end."""
        head = await self._read(2)
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._read(8))
        return head[0] & 0x0F, await self._read(length)

    async def close_code(self) -> int | None:
        """Read up to the close frame, and return its code, or None if the connection ends without one."""
        try:
            while True:
                opcode, payload = await self.read_frame()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big") if payload else None
        except (EOFError, ConnectionError):
            return None

    async def ended(self) -> bytes:
        """Read until the gateway closes or resets the connection, and return the data."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self._fill()
        return self._take(len(self._buffer))

    def finish(self) -> None:
        """Close the sending side."""
        self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Reset the connection: the gateway notices at once, even while it sends."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._fill()
        return self._take(size)

    async def _fill(self) -> None:
        async with asyncio.timeout(DEADLINE):
            data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
        if not data:
            raise EOFError
        self._buffer += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken
