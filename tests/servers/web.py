"""A web server on the loopback that answers what a test says, byte by byte, as no library would."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

__all__ = ["Answer", "WebServer", "page"]

#: Writes the answer to a request; the connection is closed when it returns.
Answer: TypeAlias = Callable[[asyncio.StreamWriter], Awaitable[None]]


class WebServer:
    """Where it is, and the heads of the requests that came."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self._scheme = scheme
        self.requests: list[str] = []
        #: The connections that were made. One that is given up early brings no request.
        self.opened = 0
        #: How many of them have ended.
        self.closed = 0

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        return f"{self._scheme}://{host}:{self.port}{path}"

    @classmethod
    @contextlib.asynccontextmanager
    async def run(cls, answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[WebServer]:
        """Serve ``answer`` to everybody."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            site.opened += 1
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                site.requests.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
                answering = asyncio.create_task(_until_closed(answer, writer))
                leaving = asyncio.create_task(reader.read())  # the client says nothing more, and hangs up
                await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
                for task in (answering, leaving):
                    task.cancel()
                await asyncio.wait([answering, leaving])
            writer.close()
            site.closed += 1

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
        site = cls(server.sockets[0].getsockname()[1], "http" if tls is None else "https")
        async with server:
            yield site


async def _until_closed(answer: Answer, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        await answer(writer)
        await writer.drain()


def page(body: bytes, *headers: str, status: str = "200 OK") -> Answer:
    """An answer in good order."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode("latin-1") + body)

    return answer
