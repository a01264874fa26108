"""Faults of a network: a TCP proxy in front of a broker that can cut, stall, refuse, delay and throttle.

It distinguishes AMQP connections by the names that their clients give them. The gateway's end with ``publish``,
``consume`` or ``stream``.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import deque
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import anyio
from anyio.abc import TaskStatus

from tests.servers.rabbitmq import free_port

__all__ = ["FaultProxy", "ProxiedConnection"]

Purpose: TypeAlias = Literal["publish", "consume", "stream"]
Direction: TypeAlias = Literal["both", "up", "down"]

CHUNK: Final = 65536
#: connection_name is a member of a table in start-ok, the client's first frame.
NAME: Final = b"connection_name" + b"S"
#: The name of a client is looked for in its first bytes, this many.
FIRST_BYTES: Final = 4096


class ProxiedConnection:
    """One connection through the proxy: two sockets, and the faults between them."""

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._broker = socket.socket()
        self._scope = anyio.CancelScope()
        #: Set while bytes flow: to the broker (up), and to the client (down).
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._first = b""
        self._discards = False
        self._resets = True
        self._orphaned = False
        #: The client's name for the connection; "" until it has sent that.
        self.name = ""

    @property
    def purpose(self) -> str:
        """The last word of the name."""
        return self.name.rpartition(" ")[2]

    def cut(self, how: Literal["reset", "end"]) -> None:
        """End the connection for both sides, by a reset or in good order; bytes not forwarded yet are lost."""
        if how == "reset":
            self._scope.cancel()
            return
        self._discards = True
        for each in (self._client, self._broker):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_WR)
        self.flow(True)

    def orphan(self) -> None:
        """Reset the client's side. The broker's side stays open, without any traffic."""
        self._orphaned = True
        self._scope.cancel()

    def flow(self, flows: bool, direction: Direction = "both") -> None:
        """Let bytes through, or hold them back without the sender's knowledge."""
        for way, event in (("up", self._up), ("down", self._down)):
            if direction in ("both", way):
                (event.set if flows else event.clear)()

    async def run(self) -> None:
        """Forward until both sides have ended, one was reset, or a fault ends the connection."""
        loop = asyncio.get_running_loop()
        self._broker.setblocking(False)
        try:
            with self._scope, contextlib.suppress(OSError):
                await loop.sock_connect(self._broker, self._proxy.broker)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._forward, self._client, self._broker, self._up)
                    tasks.start_soon(self._forward, self._broker, self._client, self._down)
                self._resets = False
        finally:
            self._close(self._client)
            if self._orphaned:
                self._proxy.keep(self._broker)
            else:
                self._close(self._broker)

    async def _forward(self, source: socket.socket, sink: socket.socket, flows: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, CHUNK):
                if source is self._client:
                    self._look_for_name(data)
                await flows.wait()
                await self._proxy.hold_up(len(data))
                if not self._discards:
                    await loop.sock_sendall(sink, data)
            await flows.wait()
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._scope.cancel()

    def _look_for_name(self, data: bytes) -> None:
        if self.name or len(self._first) > FIRST_BYTES:
            return
        self._first += data
        _, found, rest = self._first.partition(NAME)
        if found and len(rest) >= 4 + int.from_bytes(rest[:4], "big"):
            self.name = rest[4 : 4 + int.from_bytes(rest[:4], "big")].decode()

    def _close(self, side: socket.socket) -> None:
        if self._resets:
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        side.close()


class FaultProxy:
    """Listens on a port of its own for as long as its context lasts, and forwards to the broker of an AMQP URL.

    Faults concern the connections that are open; ``purpose`` chooses those of one kind. The end of the context closes
    everything.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.broker: tuple[str, int] = (parts.hostname or "127.0.0.1", parts.port or 5672)
        self._port = free_port()
        user, _, _ = parts.netloc.rpartition("@")
        #: The URL of the broker, through the proxy.
        self.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self._port}"))
        #: Times of the monotonic clock at which the latest connections were accepted.
        self.accepted: deque[float] = deque(maxlen=10_000)
        #: Seconds by which every piece of data is delayed.
        self.delay = 0.0
        #: The limit of bytes per second in each direction of a connection.
        self.bytes_per_second: float | None = None
        self._connections: list[ProxiedConnection] = []
        self._orphans: list[socket.socket] = []
        self._stalls_new = False
        self._accepts = asyncio.Event()
        self._accepting = anyio.CancelScope()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        self._stack.callback(self._tasks.cancel_scope.cancel)
        await self._tasks.start(self._listen)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(exc_type, exc, traceback)
        for orphan in self._orphans:
            orphan.close()

    def connections(self, purpose: Purpose | None = None) -> list[ProxiedConnection]:
        """The open connections."""
        return [each for each in self._connections if purpose in (None, each.purpose)]

    def cut(self, purpose: Purpose | None = None, *, how: Literal["reset", "end"] = "reset") -> None:
        """End connections, for both sides."""
        for each in self.connections(purpose):
            each.cut(how)

    def stall(self, purpose: Purpose | None = None, *, direction: Direction = "both", new: bool = False) -> None:
        """Hold back the bytes sent on connections, to the broker (up), to its clients (down), or both.

        With ``new``, also on all connections that are made from now on.
        """
        self._stalls_new = new
        for each in self.connections(purpose):
            each.flow(False, direction)

    def resume(self) -> None:
        """End every stall; the bytes that were held back arrive now."""
        self._stalls_new = False
        for each in self._connections:
            each.flow(True)

    def orphan(self, purpose: Purpose | None = None) -> None:
        """Reset the clients' side of connections and leave the broker's side open, without a client."""
        for each in self.connections(purpose):
            each.orphan()

    def refuse(self) -> None:
        """Let the kernel refuse new connections, as on a port without a listener."""
        self._accepts.clear()
        self._accepting.cancel()

    def accept(self) -> None:
        """Take new connections, as from the start."""
        self._accepts.set()

    def accepted_since(self, moment: float) -> int:
        """Return the number of connections accepted since then."""
        return sum(each >= moment for each in self.accepted)

    # --- for the connections ----------------------------------------------------------------------------------

    async def hold_up(self, size: int) -> None:
        """Wait for as long as ``size`` bytes take."""
        seconds = self.delay + (size / self.bytes_per_second if self.bytes_per_second else 0.0)
        if seconds:
            await asyncio.sleep(seconds)

    def keep(self, orphan: socket.socket) -> None:
        """Keep a socket open to the end."""
        self._orphans.append(orphan)

    async def _listen(self, *, task_status: TaskStatus[None]) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self.accept()
        task_status.started()
        loop = asyncio.get_running_loop()
        while True:
            with listener, anyio.CancelScope() as self._accepting:
                listener.setblocking(False)
                # `sock_accept` would lose a connection that comes in the turn in which it is cancelled.
                loop.add_reader(listener, self._take, listener)
                try:
                    await anyio.sleep_forever()
                finally:
                    loop.remove_reader(listener)
            await self._accepts.wait()
            listener = socket.create_server(("127.0.0.1", self._port))

    def _take(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:  # the client has gone again
            return
        if self._tasks.cancel_scope.cancel_called:  # no task would close it
            client.close()
            return
        client.setblocking(False)
        self.accepted.append(time.monotonic())
        connection = ProxiedConnection(self, client)
        connection.flow(not self._stalls_new)
        self._tasks.start_soon(self._run, connection, name="proxied connection")

    async def _run(self, connection: ProxiedConnection) -> None:
        self._connections.append(connection)
        try:
            await connection.run()
        finally:
            self._connections.remove(connection)
