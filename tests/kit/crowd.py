"""A crowd: hundreds of cheap connections that subscribe and record their events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Final, cast
from urllib.parse import urlsplit

from .clients import BINARY, CLOSE, PING, PONG, TEXT, Frame, RawClient
from .gateways import DEADLINE

__all__ = ["Listener", "crowd"]

#: Connections that are opened at the same time.
BATCH: Final = 50
#: Topics of the gateway's own events.
_NOTICES: Final = frozenset({"hello", "goodbye", "gap", "dropped", "unsubscribed"})


class Listener(asyncio.Protocol):
    """A connection that answers pings and records events in order."""

    def __init__(self, user: str, handshake: bytes, topics: Sequence[str]) -> None:
        self.user = user
        #: Topic and payload of every event of the mesh.
        self.events: list[tuple[str, Any]] = []
        #: The gateway's own events, each with the number of mesh events before it.
        self.notices: list[tuple[int, str, Any]] = []
        self.answers: dict[str, Frame] = {}
        #: The close code, once the connection has ended; 1006 without a close frame.
        self.closed: int | None = None
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._handshake = handshake
        self._topics = topics
        self._accepted = False
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    @property
    def serials(self) -> list[Any]:
        """Return the payloads of all events."""
        return [payload for _, payload in self.events]

    def told(self, topic: str) -> list[Any]:
        """Return the gateway's own events of this topic."""
        return [payload for _, name, payload in self.notices if name == topic]

    def send(self, kind: str, /, **payload: Any) -> None:
        """Send a frame."""
        self._write(TEXT, json.dumps({"type": kind, "payload": payload}).encode())

    def stall(self) -> None:
        """Stop reading: the gateway can send no more than the kernel's buffers hold."""
        assert self._transport is not None
        self._transport.pause_reading()

    def resume(self) -> None:
        """Resume reading."""
        assert self._transport is not None
        self._transport.resume_reading()

    def close(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._handshake)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = self.closed or 1006
        if not self.subscribed.done():
            self.subscribed.set_exception(ConnectionError(f"{self.user} was sent away"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._accepted:
            end = buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            assert buffer.startswith(b"HTTP/1.1 101 "), bytes(buffer)
            self._accepted = True
            del buffer[: end + 4]
        start, available = 0, len(buffer)
        while available - start >= 2:
            size, body = buffer[start + 1], start + 2
            if size >= 126:
                width = 2 if size == 126 else 8
                size = int.from_bytes(buffer[body : body + width], "big")
                body += width
            if available < body + size:
                break
            opcode, payload = buffer[start] & 0x0F, bytes(buffer[body : body + size])
            start = body + size
            self._on_message(opcode, payload)
        del buffer[:start]

    def _on_message(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self._on_frame(json.loads(payload))
        elif opcode == PING:
            self._write(PONG, payload)
        elif opcode == CLOSE:
            self.closed = struct.unpack_from("!H", payload)[0] if payload else 1005
            self._write(CLOSE, payload[:2])
        else:
            assert opcode != BINARY

    def _on_frame(self, frame: Frame) -> None:
        kind, payload = frame["type"], frame.get("payload", {})
        if kind == "ping":
            self._write(TEXT, b'{"type":"pong"}')
        elif kind == "event" and payload["topic"] not in _NOTICES:
            self.events.append((payload["topic"], payload["event"]))
        elif kind == "event":
            self.notices.append((len(self.events), payload["topic"], payload["event"]))
            if payload["topic"] == "hello":
                self.send("subscribe", topics=list(self._topics), id="subscribe")
        elif kind == "response":
            self.answers[payload["id"]] = payload
            if payload["id"] == "subscribe" and not self.subscribed.done():
                assert payload["error"] is None, payload["error"]
                self.subscribed.set_result(None)

    def _write(self, opcode: int, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(RawClient.frame(payload, opcode))


@contextlib.asynccontextmanager
async def crowd(
    url: str,
    users: Iterable[str],
    token_of: Callable[[str], str],
    topics: Sequence[str],
    *,
    receive_buffer: int | None = None,
) -> AsyncIterator[list[Listener]]:
    """Open a connection for each user, subscribed to ``topics``. ``receive_buffer`` is the kernel's, in bytes."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    listeners = [
        Listener(user, RawClient.upgrade(parts.path, ("Authorization", f"Bearer {token_of(user)}")), topics)
        for user in users
    ]
    try:
        async with asyncio.timeout(3 * DEADLINE):
            for first in range(0, len(listeners), BATCH):
                batch = listeners[first : first + BATCH]
                await asyncio.gather(*(_connect(each, address, receive_buffer) for each in batch))
                await asyncio.gather(*(each.subscribed for each in batch))
        yield listeners
    finally:
        for each in listeners:
            each.close()
        # An aborted transport is closed in the next iteration of the event loop.
        await asyncio.sleep(0)


async def _connect(listener: Listener, address: tuple[str, int], receive_buffer: int | None) -> None:
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, address)
    await loop.create_connection(lambda: listener, sock=connection)
