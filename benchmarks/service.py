"""Minimal-cost echo service on the mesh: ``python -m benchmarks.service --url amqp://... --service bench``.

It is one asyncio protocol that reads deliveries and writes replies by hand, in batches, and leaves the rest of AMQP to
pamqp: nuropb's own service handles one message at a time, and would limit every contender. It answers
``nuropb_describe``, ``echo`` (with its parameters) and ``publish`` (after publishing ``event`` under ``topic``), once
each. It prints READY with the broker's version when it consumes, and ends when its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import struct
import sys
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import msgspec
import pamqp.frame
from msgspec import Raw
from pamqp import commands
from pamqp.header import ProtocolHeader

from benchmarks.process import run

START_TIMEOUT = 20.0
RPC_EXCHANGE, EVENTS_EXCHANGE, DEAD_LETTER_EXCHANGE = (f"nuropb-{name}-exchange" for name in ("rpc", "events", "dl"))

FRAME = struct.Struct(">BHI")
HEADER = struct.Struct(">HHQH")
LENGTH = struct.Struct(">I")
END = b"\xce"
DELIVER = b"\x00\x3c\x00\x3c"
PUBLISH = b"\x00\x3c\x00\x28\x00\x00"


METHOD = {
    "description": None,
    "requires_encryption": False,
    "parameters": {"type": "object", "properties": [], "required": []},
}


class Call(msgspec.Struct):
    tag: str
    method: str
    params: Raw
    context: Raw
    trace_id: str | None = None


class Event(msgspec.Struct):
    topic: str
    event: Raw


decode_call = msgspec.json.Decoder(Call).decode
decode_event = msgspec.json.Decoder(Event).decode


def short(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def entry(key: str, value: str) -> bytes:
    return short(key.encode()) + b"S" + LENGTH.pack(len(value)) + value.encode()


def properties(kind: str) -> bytes:
    """Encode content type and headers of a message."""
    headers = {"nuropb_protocol": "0.1.1", "nuropb_type": kind, "nuropb_version": "0.1.8", "encrypted": ""}
    table = b"".join(entry(key, value) for key, value in headers.items()) + short(b"trace_id") + b"V"
    return short(b"application/json") + LENGTH.pack(len(table)) + table


OF_A_RESPONSE, OF_AN_EVENT = properties("response"), properties("event")


def find_addresses(header: bytes) -> tuple[bytes, bytes]:
    """Find correlation id and reply queue in a content header; the properties before them are skipped."""
    (flags,) = struct.unpack_from(">H", header, 12)
    position = 14
    for flag in (0x8000, 0x4000):
        if flags & flag:
            position += 1 + header[position]
    if flags & 0x2000:
        position += 4 + LENGTH.unpack_from(header, position)[0]
    position += bool(flags & 0x1000) + bool(flags & 0x0800)
    found = []
    for flag in (0x0400, 0x0200):
        size = header[position] if flags & flag else 0
        found.append(header[position + 1 : position + 1 + size])
        position += 1 + size if flags & flag else 0
    return found[0], found[1]


class EchoService(asyncio.Protocol):
    """The service's connection to the broker."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._buffer = bytearray()
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._header = b""
        self._body: list[bytes] = []
        self._missing = 0
        self._outgoing: list[bytes] = []
        self._room = 4096
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._description = msgspec.json.encode(
            {
                "service_name": name,
                "service_version": "1",
                "description": "Answers with what it was given.",
                "encrypted_methods": False,
                "public_key": None,
                "warnings": [],
                "methods": dict.fromkeys(("echo", "publish"), METHOD),
            }
        )

    # --- asyncio's side ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_exception(error or ConnectionError("the broker closed the connection"))

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start, available = 0, len(buffer)
        while available - start >= 8:
            kind, _, size = FRAME.unpack_from(buffer, start)
            end = start + size + 8
            if end > available:
                break
            payload = bytes(buffer[start + 7 : end - 1])
            if kind == 3:
                self._body.append(payload)
                self._missing -= size
                if not self._missing:
                    self._answer(b"".join(self._body))
            elif kind == 2:
                self._header, self._body = payload, []
                (self._missing,) = struct.unpack_from(">Q", payload, 4)
            elif kind == 1 and not payload.startswith(DELIVER):
                self._answers.put_nowait(pamqp.frame.unmarshal(bytes(buffer[start:end]))[2])
            start = end
        del buffer[:start]
        if self._outgoing:
            self._write(b"".join(self._outgoing))
            self._outgoing.clear()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    # --- setting up -------------------------------------------------------------------------------------------

    async def set_up(self, user: str, password: str, vhost: str) -> str:
        """Begin to consume; return the broker's version."""
        self._write(ProtocolHeader().marshal())
        start = await self._answers.get()
        secret = f"\x00{user}\x00{password}"
        tune = await self._call(0, commands.Connection.StartOk(mechanism="PLAIN", response=secret))
        self._room = tune.frame_max - 8
        self._send(0, commands.Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
        await self._call(0, commands.Connection.Open(vhost))
        await self._call(1, commands.Channel.Open())
        for exchange, kind in ((RPC_EXCHANGE, "direct"), (EVENTS_EXCHANGE, "topic"), (DEAD_LETTER_EXCHANGE, "fanout")):
            await self._call(1, commands.Exchange.Declare(exchange=exchange, exchange_type=kind, durable=True))
        queue = f"nuropb-{self._name}-sq"
        dead_letters: dict[str, Any] = {"x-dead-letter-exchange": DEAD_LETTER_EXCHANGE}
        await self._call(1, commands.Queue.Declare(queue=queue, durable=True, arguments=dead_letters))
        await self._call(1, commands.Queue.Bind(queue=queue, exchange=RPC_EXCHANGE, routing_key=self._name))
        await self._call(1, commands.Basic.Consume(queue=queue, no_ack=True))
        return str(start.server_properties["version"])

    def _send(self, channel: int, frame: Any) -> None:
        self._write(pamqp.frame.marshal(frame, channel))

    async def _call(self, channel: int, frame: Any) -> Any:
        self._send(channel, frame)
        answer = await self._answers.get()
        if answer.name not in frame.valid_responses and answer.name != "Connection.Tune":
            raise ConnectionError(f"{frame.name} was answered with {answer!r}")
        return answer

    # --- calls ------------------------------------------------------------------------------------------------

    def _answer(self, body: bytes) -> None:
        call = decode_call(body)
        if call.tag != "request":
            return
        correlation_id, reply_to = find_addresses(self._header)
        result, error = call.params, b"null"
        if call.method == "nuropb_describe":
            result = Raw(self._description)
        elif call.method == "publish":
            self._publish_event(decode_event(call.params), correlation_id)
            result = Raw(b"null")
        elif call.method != "echo":
            result, error = Raw(b"null"), b'{"error":"NuropbHandlingError","description":"Unknown method"}'
        reply = (
            b'{"tag":"response","result":%b,"error":%b,"correlation_id":"%b","trace_id":%b,"context":%b,'
            b'"warning":null,"reply_to":"%b"}'
        ) % (result, error, correlation_id, msgspec.json.encode(call.trace_id), call.context, reply_to)
        self._publish("", reply_to, OF_A_RESPONSE, correlation_id, reply)

    def _publish_event(self, event: Event, correlation_id: bytes) -> None:
        body = b'{"tag":"event","topic":%b,"event":%b,"context":{},"trace_id":null,"correlation_id":"%b","target":null}'
        body %= (msgspec.json.encode(event.topic), event.event, correlation_id)
        self._publish(EVENTS_EXCHANGE, event.topic.encode(), OF_AN_EVENT, correlation_id, body)

    def _publish(self, exchange: str, key: bytes, properties: bytes, correlation_id: bytes, body: bytes) -> None:
        method = PUBLISH + short(exchange.encode()) + short(key) + b"\x00"
        header = HEADER.pack(60, 0, len(body), 0x8000 | 0x2000 | 0x0400) + properties + short(correlation_id)
        self._outgoing += (FRAME.pack(1, 1, len(method)), method, END, FRAME.pack(2, 1, len(header)), header, END)
        for start in range(0, len(body), self._room):
            part = body[start : start + self._room]
            self._outgoing += (FRAME.pack(3, 1, len(part)), part, END)


async def serve(url: str, name: str) -> None:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 5672
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(START_TIMEOUT):
        transport, service = await loop.create_connection(lambda: EchoService(name), host, port)
        version = await service.set_up(parts.username or "", parts.password or "", unquote(parts.path[1:]))
    print("READY", version, flush=True)
    parent = loop.run_in_executor(None, sys.stdin.read)
    await asyncio.wait((parent, service.lost), return_when=asyncio.FIRST_COMPLETED)
    transport.abort()
    if service.lost.done():
        service.lost.result()


def main() -> None:
    parser = argparse.ArgumentParser(description="An echo service on the mesh.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--service", default="bench")
    options = parser.parse_args()
    run(serve(options.url, options.service))


if __name__ == "__main__":
    main()
