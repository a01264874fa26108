"""Clients for TCP (lines) and HTTP (calls and event streams)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx

from .clients import Client, Closed, Frame
from .gateways import DEADLINE, RunningGateway

__all__ = ["EventStream", "HTTPClient", "LineClient", "ServerSentEvent", "connect_tcp", "events", "http_client"]


class LineClient(Client):
    """A TCP connection with the methods of the WebSocket client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super().__init__(cast("Any", None))
        self._reader = reader
        self._writer = writer

    async def send_text(self, text: str | bytes) -> None:
        """Send a line."""
        await self.send_bytes((text.encode() if isinstance(text, str) else text) + b"\n")

    async def send_frame(self, frame: object) -> None:
        await self.send_text(json.dumps(frame))

    async def send_bytes(self, data: bytes) -> None:
        """Send any data."""
        async with asyncio.timeout(DEADLINE):
            self._writer.write(data)
            await self._writer.drain()

    def finish(self) -> None:
        """Close the sending side."""
        self._writer.write_eof()

    async def closed(self) -> Closed:
        """Read until the connection ends. The code is that of a last ``closed`` event, or 1006 without one."""
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                self.inbox.append(await self._receive())
        frames, self.inbox = self.inbox, []
        payload = frames[-1].get("payload", {}) if frames else {}
        if payload.get("topic") != "closed":
            return Closed(1006, "", frames)
        return Closed(payload["event"]["code"], payload["event"]["reason"], frames[:-1])

    async def _receive(self) -> Frame:
        async with asyncio.timeout(DEADLINE):
            line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        frame: Frame = json.loads(line)
        return frame

    def abort(self) -> None:
        self._writer.transport.abort()


@contextlib.asynccontextmanager
async def connect_tcp(
    running: RunningGateway, token: str | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[LineClient]:
    """Connect. With a ``token``, authorise and wait for hello."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", running.gateway.tcp_port, ssl=tls, server_hostname="localhost" if tls else None, limit=1 << 21
        )
    try:
        client = LineClient(reader, writer)
        if token is not None:
            await client.send("authorize", token=token, id="first")
            client.hello = (await client.event("hello"))["event"]
            assert (await client.answer("first"))["error"] is None
            assert client.inbox == []
        yield client
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(DEADLINE):
                await writer.wait_closed()


class HTTPClient(httpx.AsyncClient):
    """An HTTP client that makes calls."""

    async def call(self, name: str, params: Any = None, **headers: str) -> httpx.Response:
        """Call ``service.method``. Names of headers are written with underscores."""
        service, _, method = name.rpartition(".")
        more = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.post(f"/rpc/{service}/{method}", json={} if params is None else params, headers=more)


@contextlib.asynccontextmanager
async def http_client(running: RunningGateway, token: str | None = None) -> AsyncIterator[HTTPClient]:
    """Open an HTTP client of the gateway, with the token in a header."""
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    limits = httpx.Limits(max_connections=200)
    async with HTTPClient(
        base_url=running.site.http(),
        headers=headers,
        trust_env=False,
        timeout=DEADLINE,
        limits=limits,
        verify=False,  # there is no TLS, and loading the certificates takes long
    ) as client:
        yield client


@dataclass(frozen=True)
class ServerSentEvent:
    """An event, parsed like in a browser."""

    data: str
    id: str | None = None
    event: str | None = None
    retry: int | None = None

    @property
    def payload(self) -> Frame:
        payload: Frame = json.loads(self.data)
        return payload


class EventStream:
    """A stream of events, parsed by the specification of Server-Sent Events."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.comments: list[str] = []
        self._lines = response.aiter_lines()

    async def next(self) -> ServerSentEvent | None:
        """Return the next event or block without data, or None at the end."""
        fields: dict[str, Any] = {"data": []}
        async with asyncio.timeout(DEADLINE):
            async for line in self._lines:
                if not line:
                    if fields == {"data": []}:
                        continue  # after a comment
                    return ServerSentEvent(**fields | {"data": "\n".join(fields["data"])})
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not name:
                    self.comments.append(value)
                elif name == "data":
                    fields["data"].append(value)
                else:
                    assert name in ("id", "event", "retry")
                    fields[name] = int(value) if name == "retry" else value
        return None

    async def event(self, topic: str) -> Frame:
        """Return the payload of the next event of ``topic``, skipping other events."""
        while True:
            event = await self.next()
            assert event is not None, "the stream has ended"
            if event.data and event.payload.get("topic") == topic:
                return event.payload

    async def rest(self) -> list[Frame]:
        """Return the payloads of all events until the end."""
        payloads = []
        while (event := await self.next()) is not None:
            if event.data:
                payloads.append(event.payload)
        return payloads


@contextlib.asynccontextmanager
async def events(
    running: RunningGateway, token: str, topics: Sequence[str] = (), *, hello: bool = True, **headers: str
) -> AsyncIterator[EventStream]:
    """Open a stream of events, and read its hello."""
    more = {key.replace("_", "-"): value for key, value in headers.items()}
    async with (
        http_client(running, token) as client,
        client.stream("GET", "/events", params=[("topic", topic) for topic in topics], headers=more) as response,
    ):
        stream = EventStream(response)
        if hello:
            assert stream.status == 200
            await stream.event("hello")
        yield stream
