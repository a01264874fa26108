"""Connections of the benchmark's clients: WebSockets, calls over HTTP, and streams of events.

They are asyncio protocols with only the parts of RFC 6455 and RFC 9112 that a client must have, because on a small
machine they share the processors with the server. Their masking key is zero.
"""

from __future__ import annotations

import asyncio
import base64
import os
import struct
import time
from collections import deque
from typing import Any, Final, cast

from benchmarks.dialects import Dialect, Kind

__all__ = [
    "CLOSE",
    "HOST",
    "PING",
    "PONG",
    "TEXT",
    "CallClient",
    "Client",
    "Load",
    "LoadError",
    "StreamClient",
    "client_of",
    "frame",
    "handshake_lines",
    "take_frames",
]

HOST: Final = "127.0.0.1"
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class LoadError(RuntimeError):
    """A wrong or missing answer."""


def frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    first = 0x80 | opcode
    if size < 126:
        return struct.pack(">BBI", first, 0x80 | size, 0) + payload
    if size < 65536:
        return struct.pack(">BBHI", first, 0xFE, size, 0) + payload
    return struct.pack(">BBQI", first, 0xFF, size, 0) + payload


def handshake_lines() -> tuple[str, ...]:
    """Make the headers of a WebSocket's handshake, with a new key."""
    key = base64.b64encode(os.urandom(16)).decode()
    return "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"


def take_frames(buffer: bytearray) -> list[tuple[int, bytes]]:
    """Take the complete frames of a server out of ``buffer``: the first byte and the payload of each."""
    frames = []
    start, available = 0, len(buffer)
    while available - start >= 2:
        size, body = buffer[start + 1], start + 2
        if size == 126:
            body += 2
            size = int.from_bytes(buffer[start + 2 : body], "big")
        elif size == 127:
            body += 8
            size = int.from_bytes(buffer[start + 2 : body], "big")
        if available < body + size:
            break
        frames.append((buffer[start], bytes(buffer[body : body + size])))
        start = body + size
    del buffer[:start]
    return frames


class Load:
    """State shared by all connections."""

    def __init__(self, dialect: Dialect, size: int) -> None:
        self.dialect = dialect
        self.clients: list[Client] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Answers, or deliveries of events, so far.
        self.count = 0
        self.measuring = False
        self.latencies: list[float] = []
        #: Connections that send the next requests, while each answer is followed by a request.
        self.next: deque[Client] | None = None
        #: The current event, and the number of connections that still lack it.
        self.event: dict[str, Any] = {}
        self.missing = 0
        self.arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        #: Numbers of requests for events: some servers answer them, some do not.
        self.broadcasts: set[int] = set()
        self._number = 0
        self._text = "x" * size

    def fail(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(LoadError(reason))

    def check(self) -> None:
        if self.failed.done():
            self.failed.result()

    def number(self) -> int:
        """Return a new number for a request."""
        self._number += 1
        return self._number

    @property
    def in_flight(self) -> int:
        return sum(len(client.waiting) for client in self.clients)

    # --- requests ---------------------------------------------------------------------------------------------

    def ask(self, client: Client) -> None:
        number = self.number()
        params = {"number": number, "text": self._text}
        client.ask(number, self.dialect.request(number, params), params)

    def on_answer(self, client: Client, latency: float) -> None:
        self.count += 1
        if self.measuring:
            self.latencies.append(latency)
        if self.next is not None:
            self.next.append(client)
            self.ask(self.next.popleft())

    # --- events -----------------------------------------------------------------------------------------------

    def broadcast(self, client: Client) -> asyncio.Future[None]:
        """Have ``client`` request an event to all connections; the future is done when all have it."""
        number = self.number()
        self.event = {"number": number, "text": self._text}
        self.missing = len(self.clients)
        self.arrived = asyncio.get_running_loop().create_future()
        self.broadcasts.add(number)
        client.say(self.dialect.broadcast(number, self.event))
        return self.arrived

    def on_event(self, client: Client, event: Any) -> None:
        if event != self.event or client.last_event == event["number"]:
            self.fail(f"a wrong event, or one too many: {event!r:.200}")
            return
        client.last_event = event["number"]
        self.count += 1
        self.missing -= 1
        if not self.missing:
            self.arrived.set_result(None)


class Client(asyncio.Protocol):
    """A connection to the server."""

    def __init__(self, load: Load, port: int, token: str) -> None:
        #: By the number of the request: its time of sending, and its expected answer; None for any answer.
        self.waiting: dict[int, tuple[float, dict[str, Any] | None]] = {}
        self.last_event = 0
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._load = load
        self._token = token
        self._accepted = False
        self._closing = False
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._begin()

    def _begin(self) -> None:
        """Send the handshake."""
        self._send_head(f"GET {self._load.dialect.path}", *handshake_lines(), *self._load.dialect.headers(self._token))

    def _send_head(self, request: str, *lines: str, body: bytes = b"") -> None:
        head = (f"{request} HTTP/1.1", f"Host: {HOST}:{self._port}", *lines, "", "")
        self._write("\r\n".join(head).encode() + body)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set_result(None)
        if not self._closing:
            self._load.fail(f"the server closed a connection: {error}")

    def close(self) -> None:
        """Send a close frame; the server then closes the connection."""
        self._closing = True
        self._write(frame(CLOSE, struct.pack(">H", 1000)))

    def ask(self, number: int, message: str, answer: dict[str, Any] | None = None) -> None:
        self.waiting[number] = time.perf_counter(), answer
        self.say(message)

    def say(self, message: str) -> None:
        self._write(frame(TEXT, message.encode()))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._accepted and not self._take_handshake():
            return
        for first, payload in take_frames(buffer):
            if first == 0x80 | TEXT:
                self._on_text(payload)
            elif first == 0x80 | PING:
                self._write(frame(PONG, payload))
            elif first != 0x80 | CLOSE or not self._closing:
                self._load.fail(f"unexpected frame {first:#x}: {payload[:200]!r}")

    def _take_handshake(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not self._buffer.startswith(b"HTTP/1.1 101 "):
            self._load.fail(f"the handshake was refused: {bytes(self._buffer[:200])!r}")
            return False
        del self._buffer[: end + 4]
        self._accepted = True
        greeting = self._load.dialect.greet(self._token)
        if greeting is not None:
            self.say(greeting)
        return True

    def _on_text(self, text: bytes) -> None:
        now = time.perf_counter()
        kind, number, value = self._load.dialect.read(text)
        if kind is Kind.ANSWER and number in self.waiting:
            asked, wanted = self.waiting.pop(number)
            if wanted is None:
                return
            if value == wanted:
                self._load.on_answer(self, now - asked)
                return
        elif kind is Kind.ANSWER and number in self._load.broadcasts:
            self._load.broadcasts.discard(number)
            return
        elif kind is Kind.EVENT:
            self._load.on_event(self, value)
            return
        elif kind is Kind.SEND:
            self.say(value)
            return
        elif kind is Kind.OPENED and not self.opened.done():
            self.opened.set_result(None)
            return
        elif kind is Kind.NOTHING:
            return
        self._load.fail(f"a wrong answer, or one too many: {text[:500]!r}")


class CallClient(Client):
    """A kept HTTP connection that makes calls, one after the other. Its dialect writes a path, a space and a body.

    Servers close idle connections: the next call opens another one.
    """

    def __init__(self, load: Load, port: int, token: str) -> None:
        super().__init__(load, port, token)
        self._unsent = b""
        self._connecting: asyncio.Task[object] | None = None

    def _begin(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)
        unsent, self._unsent, self._connecting = self._unsent, b"", None
        if unsent:
            super()._write(unsent)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self.waiting and not self._closing:
            self._load.fail(f"the server closed a connection with a call in flight: {error}")

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            super()._write(data)
            return
        self._unsent += data
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            self._connecting = loop.create_task(loop.create_connection(lambda: self, HOST, self._port))

    def say(self, message: str) -> None:
        path, _, text = message.partition(" ")
        body = text.encode()
        lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        self._send_head(f"POST {path}", f"Authorization: Bearer {self._token}", *lines, body=body)

    def close(self) -> None:
        """Close the connection."""
        self._closing = True
        self.closed.set_result(None)
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = bytes(buffer[:end]).lower()
            if not head.startswith(b"http/1.1 200 "):
                self._load.fail(f"a call was refused: {bytes(buffer[:500])!r}")
                return
            _, found, size = head.partition(b"\r\ncontent-length: ")
            if not found:
                self._load.fail(f"a response without a length: {head!r}")
                return
            whole = end + 4 + int(size.split(b"\r\n")[0])
            if len(buffer) < whole:
                return
            body = bytes(buffer[end + 4 : whole])
            del buffer[:whole]
            self._on_text(body)


class StreamClient(Client):
    """A stream of Server-Sent Events."""

    def _begin(self) -> None:
        self._send_head(
            f"GET {self._load.dialect.path}", "Accept: text/event-stream", f"Authorization: Bearer {self._token}"
        )

    def close(self) -> None:
        """Close the connection."""
        self._closing = True
        assert self._transport is not None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._accepted:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if not buffer.startswith(b"HTTP/1.1 200 "):
                self._load.fail(f"the stream was refused: {bytes(buffer[:500])!r}")
                return
            del buffer[: end + 4]
            self._accepted = True
            self.opened.set_result(None)
        *lines, rest = bytes(buffer).split(b"\n")
        del buffer[: len(buffer) - len(rest)]
        for line in lines:  # those of the chunks' sizes among them
            if line.startswith(b"data: "):
                self._on_text(line[6:].rstrip())


def client_of(dialect: str) -> type[Client]:
    """Return the kind of connection that a dialect is spoken on."""
    return {"calls": CallClient, "events": StreamClient}.get(dialect, Client)
