"""The clients: WebSocket connections that ask, look at every answer, and ask again.

They do what they are told by lines on standard input, each answered with a line of JSON. ``open 1000``: open
connections until there are 1000, each of another user. ``load 32 1 0.2 1.0``: use 32 of them, with 1 request in flight
on each, and measure for 1.0 s after the first 0.2 s. They end when standard input closes.

The clients are asyncio protocols that do just what RFC 6455 asks of a client, because on a small machine they take
their time from the same processors as the server. Their masking key is zero.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import hashlib
import hmac
import json
import os
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from benchmarks.process import busy_seconds, cpu_seconds, run

HOST = "127.0.0.1"
OPEN_TIMEOUT = 30.0
ANSWER_TIMEOUT = 20.0
BATCH = 50
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class LoadError(RuntimeError):
    """An answer was wrong, or missing."""


def make_token(secret: str, user: str) -> str:
    """A bearer token that is good for an hour."""

    def encode(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    now = int(time.time())
    claims = {"sub": user, "iat": now, "exp": now + 3600}
    signed = encode(b'{"alg":"HS256","typ":"JWT"}') + b"." + encode(json.dumps(claims).encode())
    return (signed + b"." + encode(hmac.digest(secret.encode(), signed, hashlib.sha256))).decode()


def frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    first = 0x80 | opcode
    if size < 126:
        return struct.pack(">BBI", first, 0x80 | size, 0) + payload
    if size < 65536:
        return struct.pack(">BBHI", first, 0xFE, size, 0) + payload
    return struct.pack(">BBQI", first, 0xFF, size, 0) + payload


class Load:
    """What the connections have in common."""

    def __init__(self, *, echo: bool, service: str, size: int) -> None:
        self.echo = echo
        self.running = False
        self.measuring = False
        self.answers = 0
        self.latencies: list[float] = []
        self.clients: list[Client] = []
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number = 0
        self._text = "x" * size
        self._service = service

    def fail(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(LoadError(reason))

    def next_request(self) -> tuple[str, bytes, dict[str, Any]]:
        """An id, a message and the answer that it has to get."""
        self._number += 1
        id_ = f"request-{self._number}"
        params = {"number": self._number, "text": self._text}
        payload = {"service": self._service, "method": "echo", "params": params, "id": id_, "trace_id": id_}
        return id_, json.dumps({"type": "request", "payload": payload}).encode(), params

    @property
    def in_flight(self) -> int:
        return sum(len(client.waiting) for client in self.clients)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Load, port: int, token: str) -> None:
        self.waiting: dict[str, tuple[float, dict[str, Any]]] = {}
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._accepted = False
        self._closing = False
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._handshake = (
            f"GET /ws HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
            f"Authorization: Bearer {token}\r\n\r\n"
        ).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._handshake)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._closing:
            self._load.fail(f"the server closed a connection: {error}")

    def close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.write(frame(CLOSE, struct.pack(">H", 1000)))
            self._transport.close()

    def ask(self) -> None:
        id_, message, answer = self._load.next_request()
        self.waiting[id_] = time.perf_counter(), answer
        self._write(frame(TEXT, message))

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self._accepted and not self._take_handshake():
            return
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
            first, payload = buffer[start], bytes(buffer[body : body + size])
            start = body + size
            if first == 0x80 | TEXT:
                self._on_text(payload)
            elif first == 0x80 | PING:
                self._write(frame(PONG, payload))
            elif first != 0x80 | CLOSE or not self._closing:
                self._load.fail(f"unexpected frame {first:#x}: {payload[:200]!r}")
        del buffer[:start]

    def _take_handshake(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not self._buffer.startswith(b"HTTP/1.1 101 "):
            self._load.fail(f"the handshake was refused: {bytes(self._buffer[:200])!r}")
            return False
        del self._buffer[: end + 4]
        self._accepted = True
        if self._load.echo:
            self.opened.set_result(None)
        return True

    def _on_text(self, text: bytes) -> None:
        now = time.perf_counter()
        message = json.loads(text)
        kind, payload = message["type"], message.get("payload")
        if kind == "ping":
            self._write(frame(TEXT, b'{"type":"pong"}'))
            return
        if kind == "event" and payload["topic"] == "hello":
            self.opened.set_result(None)
            return
        if self._load.echo:
            result, sound = payload["params"], kind == "request"
        else:
            result, sound = payload["result"], kind == "response" and payload["error"] is None
        waited = self.waiting.pop(payload["trace_id"], None)
        if waited is None or not sound or result != waited[1]:
            self._load.fail(f"a wrong answer, or one too many: {text[:500]!r}")
            return
        self._load.answers += 1
        if self._load.measuring:
            self._load.latencies.append(now - waited[0])
        if self._load.running:
            self.ask()


def same(client: Client) -> Client:
    return client


async def open_clients(load: Load, count: int, port: int, secret: str) -> None:
    """Open connections, each of another user, until there are ``count``."""
    loop = asyncio.get_running_loop()
    while len(load.clients) < count:
        numbers = range(len(load.clients), min(len(load.clients) + BATCH, count))
        batch = [Client(load, port, make_token(secret, f"user-{number}")) for number in numbers]
        load.clients += batch
        async with asyncio.timeout(OPEN_TIMEOUT):
            await asyncio.gather(*(loop.create_connection(partial(same, client), HOST, port) for client in batch))
            opened = asyncio.gather(*(client.opened for client in batch))
            await asyncio.wait((opened, load.failed), return_when=asyncio.FIRST_COMPLETED)
        check(load)


def check(load: Load) -> None:
    if load.failed.done():
        load.failed.result()


async def pause(load: Load, seconds: float) -> None:
    """Wait, unless something fails."""
    await asyncio.wait((load.failed,), timeout=seconds)
    check(load)


async def until(load: Load, done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + ANSWER_TIMEOUT
    while not done():
        await pause(load, 0.01)
        if time.monotonic() > deadline:
            raise LoadError(otherwise)


async def measure(
    load: Load, connections: int, window: int, *, warm_up: float, seconds: float, pids: dict[str, int]
) -> dict[str, Any]:
    """One cell: ``window`` requests in flight on each of the first ``connections`` connections."""
    load.latencies.clear()
    load.running = True
    answers = load.answers
    for client in load.clients[:connections]:
        for _ in range(window):
            client.ask()
    await pause(load, warm_up)
    await until(load, lambda: load.answers > answers, "no request was answered")
    load.measuring = True
    busy, began, answers = busy_seconds(), time.perf_counter(), load.answers
    cpu = {name: cpu_seconds(pid) for name, pid in pids.items()}
    await pause(load, seconds)
    await until(load, lambda: load.answers > answers, "no request was answered")
    spent = {name: cpu_seconds(pid) - cpu[name] for name, pid in pids.items()}
    answers, lasted, busy = load.answers - answers, time.perf_counter() - began, busy_seconds() - busy
    load.measuring = load.running = False
    await until(load, lambda: not load.in_flight, "some requests were not answered")
    latencies = sorted(load.latencies)
    return {
        "requests": answers,
        "seconds": lasted,
        "cpu": spent,
        "others": max(0.0, busy - sum(spent.values())),
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
    }


async def obey(options: argparse.Namespace) -> None:
    load = Load(echo=options.echo, service=options.service, size=options.size)
    pids = {"clients": os.getpid(), **{name: int(pid) for name, pid in (each.split("=") for each in options.pid)}}
    loop = asyncio.get_running_loop()
    gc.disable()
    while True:
        line = loop.run_in_executor(None, sys.stdin.readline)
        await asyncio.wait((line, load.failed), return_when=asyncio.FIRST_COMPLETED)
        check(load)
        command, *numbers = line.result().split() or ("end",)
        if command == "end":
            return
        result: Any
        if command == "open":
            await open_clients(load, int(numbers[0]), options.port, options.secret)
            result = len(load.clients)
        else:
            connections, window, warm_up, seconds = map(float, numbers)
            result = await measure(load, int(connections), int(window), warm_up=warm_up, seconds=seconds, pids=pids)
            gc.collect()
        print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients that ask a gateway, or an echo server.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--echo", action="store_true", help="the server answers with the request itself")
    parser.add_argument("--size", type=int, default=64, help="characters of text in each request")
    parser.add_argument("--service", default="bench")
    parser.add_argument("--pid", action="append", default=[], metavar="NAME=PID", help="measure its CPU time")
    options = parser.parse_args()
    options.secret = os.environ.get("NUROPB_GATEWAY_JWT_KEY", "")
    try:
        run(obey(options))
    except (LoadError, OSError) as error:
        # At once: a thread waits for standard input.
        print(f"load: {str(error) or type(error).__name__}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
