"""Clients: one on the websockets library that speaks in frames, and a bare socket for what no library would send."""

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
    """How a connection ended, and the frames that came before and were not asked for."""

    code: int
    reason: str
    frames: list[Frame]


@dataclass(frozen=True)
class Refusal:
    """The answer to a handshake that was refused."""

    status: int
    headers: Mapping[str, str]
    body: str


class Client:
    """A connection. Every wait has a deadline; frames that come out of turn wait in ``inbox`` until they are wanted."""

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
        """Send ``text``: as a text message if it is a str, else as a binary one."""
        await self.connection.send(text)

    async def send_frame(self, frame: object) -> None:
        await self.connection.send(json.dumps(frame))

    async def send(self, type_: str, /, **payload: Any) -> None:
        await self.send_frame({"type": type_, "payload": payload})

    async def request(self, name: str, params: Any = None, /, **more: Any) -> None:
        """Send a request for ``service.method`` and do not wait."""
        service, _, method = name.rpartition(".")
        await self.send("request", service=service, method=method, params={} if params is None else params, **more)

    # --- receiving

    async def next(self) -> Frame:
        """The next frame, whatever it is. Raises ConnectionClosed."""
        if self.inbox:
            return self.inbox.pop(0)
        return await self._receive()

    async def wait_for(self, wanted: Callable[[Frame], bool]) -> Frame:
        """The first frame that is ``wanted``; the others stay where they are."""
        for number, frame in enumerate(self.inbox):
            if wanted(frame):
                return self.inbox.pop(number)
        while not wanted(frame := await self._receive()):
            self.inbox.append(frame)
        return frame

    async def answer(self, id_: str) -> Frame:
        """The payload of the response to ``id_``."""
        frame = await self.wait_for(lambda frame: frame["type"] == "response" and frame["payload"].get("id") == id_)
        payload: Frame = frame["payload"]
        return payload

    async def event(self, topic: str) -> Frame:
        """The payload of the next event of ``topic``."""
        frame = await self.wait_for(lambda frame: frame["type"] == "event" and frame["payload"]["topic"] == topic)
        payload: Frame = frame["payload"]
        return payload

    async def error(self) -> Frame:
        """The next error frame."""
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
        """Send a frame, with an id unless it has one, and wait for the payload of its response."""
        payload.setdefault("id", f"ask-{next(self._ids)}")
        await self.send(type_, **payload)
        return await self.answer(payload["id"])

    async def call(self, name: str, params: Any = None, /, **more: Any) -> Frame:
        """Request ``service.method`` and wait for the payload of its response."""
        more.setdefault("id", f"call-{next(self._ids)}")
        await self.request(name, params, **more)
        return await self.answer(more["id"])

    async def result(self, name: str, params: Any = None, /, **more: Any) -> Any:
        """Request ``service.method`` and wait for its result."""
        answer = await self.call(name, params, **more)
        assert answer["error"] is None, answer["error"]
        return answer["result"]

    async def error_code(self, name: str, params: Any = None, /, **more: Any) -> str:
        """Request ``service.method`` and wait for the code of its error."""
        answer = await self.call(name, params, **more)
        assert answer["result"] is None
        code: str = answer["error"]["code"]
        return code

    async def settled(self) -> list[Frame]:
        """Wait until the gateway has handled all that was sent before; take what came meanwhile and was not wanted."""
        token = f"settled-{next(self._ids)}"
        await self.send_frame({"type": "ping", "payload": token})
        await self.wait_for(lambda frame: frame == {"type": "pong", "payload": token})
        frames, self.inbox = self.inbox, []
        return frames

    def abort(self) -> None:
        """Be gone, without a word."""
        self.connection.transport.abort()


def bearer_subprotocol(token: str) -> str:
    """How browsers send a token."""
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
    """Connect, with ``token`` in the Authorization header if given, and wait for the hello if one is due.

    ``options`` are the library's: ``ssl``, ``sock``.

    Raises InvalidStatus when the handshake is refused.
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
    """Try to connect, and be refused by an HTTP status."""
    try:
        async with connect(url, token, hello=False, **options):
            raise AssertionError("the connection was accepted")
    except InvalidStatus as error:
        response = error.response
        return Refusal(response.status_code, response.headers, bytes(response.body or b"").decode())


async def turned_away(url: str, token: str | None = None, **options: Any) -> tuple[int, Frame]:
    """Try to connect as a browser, and be refused by a close code after one error frame: both are returned."""
    async with connect(url, token, hello=False, **options) as client:
        closed = await client.closed()
    (frame,) = closed.frames
    assert frame["type"] == "error"
    return closed.code, frame


class RawClient:
    """A socket that nobody reads unless asked to, and as much of RFC 6455 as is needed to break it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Self]:
        """Connect the socket; nothing is sent. ``receive_buffer`` is for the kernel, in bytes."""
        parts = urlsplit(url)
        with socket.socket() as connection:
            connection.setblocking(False)
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            async with asyncio.timeout(DEADLINE):
                await asyncio.get_running_loop().sock_connect(connection, (parts.hostname, parts.port))
            yield cls(connection)

    async def handshake(self, path: str, *headers: tuple[str, str]) -> str:
        """Ask for an upgrade and return the head of the response."""
        await self.send(self.upgrade(path, *headers))
        return (await self.read_until(b"\r\n\r\n")).decode("latin-1")

    @staticmethod
    def upgrade(path: str, *headers: tuple[str, str]) -> bytes:
        """The request of a handshake."""
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
        """A masked frame (the mask is zero, which is as good as any)."""
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
        """What comes up to ``end``, and that too. Raises EOFError when the connection ends before."""
        while end not in self._buffer:
            await self._fill()
        return self._take(self._buffer.index(end) + len(end))

    async def read_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame (the gateway never sends fragments). Raises EOFError at the end."""
        head = await self._read(2)
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self._read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._read(8))
        return head[0] & 0x0F, await self._read(length)

    async def close_code(self) -> int | None:
        """Read up to the close frame and return its code; None when the connection ends without one."""
        try:
            while True:
                opcode, payload = await self.read_frame()
                if opcode == CLOSE:
                    return int.from_bytes(payload[:2], "big") if payload else None
        except (EOFError, ConnectionError):
            return None

    async def ended(self) -> bytes:
        """Read what is still to come, until the other side closes the connection or resets it."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                await self._fill()
        return self._take(len(self._buffer))

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """Close with a reset: the other side learns of it at once, whatever it has still to send."""
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
