"""Clients that stop reading: their sockets leave the kernel soon after, whatever the server and the transport."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from tests.kit.clients import RawClient
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.waiting import in_time
from tests.kit.ways import BEARER, SERVE, WAYS, Running, Way, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's table of connections")

#: Seconds from the moment at which a client stops reading, or does not answer the gateway's close, to the end.
BOUND: Final = 12.0
#: With the default WRITE_TIMEOUT of 10 s, 2 s would be left for everything else, which is little on a busy machine.
#: Without rates, since the clients send as fast as they can.
SETTINGS: Final[dict[str, Any]] = {
    "WRITE_TIMEOUT": "6", "HTTP": "on", "TCP": "127.0.0.1:0", "RATE_LIMIT": "off", "RATE_LIMIT_USER": "off"
}  # fmt: skip
HEAD: Final = f"Host: gateway\r\n{BEARER[0]}: {BEARER[1]}\r\n"
BIG: Final = json.dumps({"text": "x" * 50_000})
DEFLATE: Final = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")

#: With a small buffer in the kernel, the process soon notices that a client does not read.
SERVERS: Final = {
    "serve": Way(("nuropb_gateway_asgi", "serve", "--fd", "{fd}")),
    "uvicorn": WAYS["fd"],
    "gunicorn": Way(("gunicorn", "nuropb_gateway_asgi:app", "-k", "uvicorn_worker.UvicornWorker", "-b", "fd://{fd}")),
}

#: A conversation up to the moment at which the client stops reading.
Stall: TypeAlias = Callable[[RawClient], Awaitable[None]]


def request(method: str, params: str) -> bytes:
    head = '{"type":"request","payload":{"service":"demo","method":"%s","id":"1","params":%s}}'
    return (head % (method, params)).encode()


async def flood(raw: RawClient, piece: bytes, count: int = 200) -> None:
    """Send requests until the gateway takes no more, for it cannot send the answers either."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            for _ in range(count):
                await raw.send(piece)


async def websocket(raw: RawClient) -> None:
    await raw.handshake("/ws", BEARER)
    await flood(raw, RawClient.frame(request("echo", BIG)))


async def compressed_websocket(raw: RawClient) -> None:
    assert "permessage-deflate" in await raw.handshake("/ws", BEARER, DEFLATE)
    text = json.dumps({"text": "".join(map(chr, range(0x4E00, 0x9000)))}, ensure_ascii=False)  # compresses badly
    await flood(raw, RawClient.frame(request("echo", text)))


async def websocket_that_says_goodbye(raw: RawClient) -> None:
    await websocket(raw)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await raw.send(RawClient.frame(b"\x03\xe8", 8))


async def events(raw: RawClient) -> None:
    await raw.send(f"GET /events?topic=demo.news HTTP/1.1\r\n{HEAD}\r\n".encode())
    await raw.read_until(b"event: hello")


async def answers(raw: RawClient) -> None:
    length = f"Content-Type: application/json\r\nContent-Length: {len(BIG)}\r\n\r\n"
    await flood(raw, f"POST /rpc/demo/echo HTTP/1.1\r\n{HEAD}{length}{BIG}".encode())


async def one_answer(raw: RawClient) -> None:
    length = f"Content-Type: application/json\r\nContent-Length: {len(BIG)}\r\n\r\n"
    await raw.send(f"POST /rpc/demo/echo HTTP/1.1\r\n{HEAD}{length}{BIG}".encode())
    await raw.read_until(b"HTTP/1.1 200 ")


async def lines(raw: RawClient) -> None:
    token = BEARER[1].removeprefix("Bearer ")
    await raw.send(json.dumps({"type": "authorize", "payload": {"token": token}}).encode() + b"\n")
    assert b'"topic":"hello"' in await raw.read_until(b"\n")
    await flood(raw, request("echo", BIG) + b"\n")


WEB: Final[dict[str, Stall]] = {
    "websocket": websocket,
    "goodbye": websocket_that_says_goodbye,
    "events": events,
    "answers": answers,
    "one answer": one_answer,
}


@contextlib.asynccontextmanager
async def reader(port: int) -> AsyncIterator[tuple[RawClient, int]]:
    """Connect with a small receive buffer, and yield the client and its own port."""
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        async with asyncio.timeout(DEADLINE):
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        yield RawClient(connection), connection.getsockname()[1]


def unread(port: int, client: int) -> int | None:
    """Return the bytes that the kernel holds for a client at the server's end; None if it has no such connection."""
    ends = f" 0100007F:{port:04X} 0100007F:{client:04X} "
    for line in Path("/proc/net/tcp").read_text().splitlines():
        if ends in line:
            return int(line.split()[4].partition(":")[0], 16)
    return None


async def leaves(port: int, stall: Stall, *, takes_all: bool = False) -> bool:
    """Return whether the connection of a client that stops reading ends within BOUND.

    ``takes_all`` tells that the client's kernel takes all that the gateway sends. Otherwise the time begins once it
    does not: on a busy machine the gateway answers late.
    """
    async with reader(port) as (raw, own):
        await stall(raw)
        assert unread(port, own) is not None
        if not takes_all:
            await eventually(lambda: unread(port, own))
        try:
            async with in_time(BOUND):
                while unread(port, own) is not None:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            return False
        return True


@contextlib.asynccontextmanager
async def publishing(server: Running) -> AsyncIterator[None]:
    """Publish large events, for clients that only listen, for as long as the context lasts."""

    async def publish() -> None:
        async with server.connection() as raw:
            await raw.handshake("/ws", BEARER)
            await raw.read_frame()
            frame = request("publish", json.dumps({"topic": "demo.news", "event": "x" * 50_000}))
            while True:
                await raw.send(RawClient.frame(frame))
                await raw.read_frame()

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def all_leave(server: Running, stalls: dict[str, tuple[int, Stall]]) -> None:
    async with publishing(server):
        have_left = await asyncio.gather(*(leaves(*stall) for stall in stalls.values()))
    assert [name for name, has_left in zip(stalls, have_left, strict=True) if not has_left] == []


def tcp_port(server: Running) -> int:
    (port,) = {int(line.rpartition(":")[2]) for line in server.process.stderr if "listening on t" in line}
    return port


@pytest.mark.parametrize("name", SERVERS)
async def test_a_reader_that_stalls_leaves_the_kernel(name: str, tmp_path: Path) -> None:
    async with running(SERVERS[name], tmp_path, send_buffer=4096, **SETTINGS) as server:
        assert isinstance(server.address, int)
        stalls = {name: (server.address, stall) for name, stall in WEB.items()}
        await all_leave(server, stalls | {"lines": (tcp_port(server), lines)})


async def test_a_compressed_reader_that_stalls_leaves_the_kernel(tmp_path: Path) -> None:
    async with running(SERVERS["serve"], tmp_path, "--deflate", send_buffer=4096, **SETTINGS) as server:
        assert isinstance(server.address, int)
        await all_leave(server, {"compressed": (server.address, compressed_websocket)})


async def test_a_client_that_does_not_answer_the_close_leaves_the_kernel(tmp_path: Path) -> None:
    """The gateway closes the connections of clients that answer no pings; all that it sent fits into the kernel."""
    async with running(SERVE, tmp_path, PING_INTERVAL="0.5", PING_TIMEOUT="0.5", **SETTINGS) as server:
        assert isinstance(server.address, int)

        async def closed_websocket(raw: RawClient) -> None:
            await raw.handshake("/ws", BEARER)
            assert await raw.close_code() == 4012

        assert await leaves(server.address, closed_websocket, takes_all=True)


async def test_a_slow_reader_gets_all_of_its_answer(tmp_path: Path) -> None:
    async with running(SERVE, tmp_path, **SETTINGS) as server:
        assert isinstance(server.address, int)
        async with reader(server.address) as (raw, own):
            await one_answer(raw)
            await eventually(lambda: unread(server.address, own))  # type: ignore[arg-type]
            assert (await raw.read_until(b'"}')).count(b"x") >= 50_000
