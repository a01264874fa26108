"""A TCP proxy between a mesh and the broker, with a gate in each direction of each connection."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Self
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Link", "Proxy"]


class Link:
    """One connection through a proxy."""

    def __init__(self) -> None:
        #: The bytes that the client has sent so far.
        self.sent = bytearray()
        #: Set while bytes may pass, to the broker and to the client.
        self.to_broker, self.to_client = asyncio.Event(), asyncio.Event()
        self.to_broker.set()
        self.to_client.set()
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def purpose(self) -> str:
        """The purpose of the connection, from the name that its client gave it."""
        start = bytes(self.sent[:4096])
        return next((name for name in ("publish", "consume", "stream") if f" {name}".encode() in start), "")

    def cut(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


class Proxy:
    """A proxy between a mesh and the broker, which can hold bytes back and cut connections."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._url = urlsplit(url)
        self._tls = tls
        self._links: list[Link] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.refuses = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def url(self, **query: str) -> str:
        netloc = f"{self._url.username}:{self._url.password}@localhost:{self.port}"
        text = "&".join(f"{name}={value}" for name, value in query.items())
        return urlunsplit(
            self._url._replace(scheme="amqp" if self._tls is None else "amqps", netloc=netloc, query=text)
        )

    def links(self, purpose: str = "") -> list[Link]:
        return [link for link in self._links if link.purpose.startswith(purpose)]

    def link(self, purpose: str) -> Link:
        """The only connection of this purpose that is open."""
        (link,) = self.links(purpose)
        return link

    def lead_to(self, port: int) -> None:
        """Lead later connections to another port."""
        self._url = self._url._replace(netloc=f"{self._url.username}:{self._url.password}@127.0.0.1:{port}")

    def cut(self, purpose: str = "") -> None:
        for link in self.links(purpose):
            link.cut()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        broker_reader, broker_writer = await asyncio.open_connection(self._url.hostname, self._url.port or 5672)
        link = Link()
        link.writers = [writer, broker_writer]
        self._links.append(link)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, broker_writer, link.to_broker, link.sent))
                tasks.create_task(self._pump(broker_reader, writer, link.to_client, bytearray()))
        finally:
            link.cut()
            self._links.remove(link)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event, seen: bytearray
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await gate.wait()
                seen += data
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
