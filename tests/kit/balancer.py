"""A tiny TCP balancer: it passes every connection on to the next backend that accepts it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

__all__ = ["Balancer", "run_balancer"]


@dataclass
class Balancer:
    """The balancer. ``backends`` are ports of the loopback address, and may change at any time."""

    port: int = 0
    backends: list[int] = field(default_factory=list)
    #: The backend of each connection.
    taken: list[int] = field(default_factory=list)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Begin to serve a connection."""
        task = asyncio.create_task(self.serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())  # also of a task that is cancelled before its first step

    async def cut(self) -> None:
        """Cut all connections."""
        tasks = tuple(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def cut_one(self) -> bool:
        """Cut one connection at random; return False if there is none."""
        if not self._connections:
            return False
        return random.choice(tuple(self._connections)).cancel()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side ends it."""
        backend = await self._connect()
        if backend is None:
            return
        other_reader, other_writer = backend
        with contextlib.closing(other_writer):
            pipes = [
                asyncio.create_task(_pipe(reader, other_writer)),
                asyncio.create_task(_pipe(other_reader, writer)),
            ]
            try:
                await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pipe in pipes:
                    pipe.cancel()
                await asyncio.wait(pipes)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        for _ in range(len(self.backends)):
            backend = self.backends.pop(0)
            self.backends.append(backend)
            with contextlib.suppress(OSError):
                connection = await asyncio.open_connection("127.0.0.1", backend)
                self.taken.append(backend)
                return connection
        return None


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def run_balancer(*backends: int) -> AsyncIterator[Balancer]:
    """Run a balancer on a free port of the loopback address."""
    balancer = Balancer(backends=list(backends))
    server = await asyncio.start_server(balancer.accept, "127.0.0.1", 0)
    balancer.port = server.sockets[0].getsockname()[1]
    try:
        yield balancer
    finally:
        server.close()
        await balancer.cut()
