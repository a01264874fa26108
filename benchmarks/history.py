"""The cost of an event with history: CPU time of the gateway's process and of the broker, with and without a stream.

::

    python -m benchmarks.history [EVENTS]

starts a broker of its own. Each way has a few turns; the figures are medians, in microseconds for an event.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from typing import Any, Final
from uuid import uuid4

import aio_pika
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.wire import codec
from tests.servers.rabbitmq import RabbitMQNode, free_port

from .process import cpu_seconds

SECRET: Final = "a secret for this benchmark, of enough bytes"
TURNS: Final = 3
#: Events on their way to the broker at a time.
AT_ONCE: Final = 50
PAYLOAD: Final = json.dumps({"number": 1, "state": "x" * 180}).encode()
#: The ways, with the number of subscribers and the settings.
WAYS: Final[dict[str, tuple[int, dict[str, str]]]] = {
    "no subscriber, no history": (0, {}),
    "no subscriber, history": (0, {"HISTORY": "orders.#:1h"}),
    "1 subscriber, no history": (1, {}),
    "1 subscriber, history": (1, {"HISTORY": "orders.#:1h"}),
    "20 subscribers, no history": (20, {}),
    "20 subscribers, history": (20, {"HISTORY": "orders.#:1h"}),
    "1 subscriber, history, TARGETED_TOPICS as by default": (1, {"HISTORY": "orders.#:1h", "TARGETED_TOPICS": "#"}),
}


async def publish(url: str, count: int) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        exchange = await channel.get_exchange(codec.EVENTS_EXCHANGE, ensure=False)

        async def one() -> None:
            id_ = uuid4().hex
            body = codec.encode_event(
                "orders.new", PAYLOAD, context=b"{}", trace_id=id_, correlation_id=id_, target=None
            )
            headers: dict[str, Any] = {
                "nuropb_protocol": codec.PROTOCOL_VERSION,
                "nuropb_type": "event",
                "trace_id": id_,
            }
            await exchange.publish(aio_pika.Message(body, headers=headers, correlation_id=id_), "orders.new")

        for begin in range(0, count, AT_ONCE):
            await asyncio.gather(*(one() for _ in range(begin, min(begin + AT_ONCE, count))))


async def read(client: ClientConnection, count: int) -> None:
    while count:
        count -= '"topic":"orders.new"' in str(await client.recv())


async def subscribe(port: int) -> ClientConnection:
    token = issue_token(SECRET, "alice", lifetime=3600)
    client = await connect(f"ws://127.0.0.1:{port}/ws", additional_headers={"Authorization": f"Bearer {token}"})
    await client.send('{"type":"subscribe","payload":{"id":"s","topics":["orders.#"]}}')
    while '"response"' not in str(await client.recv()):
        pass
    return client


async def measure(url: str, broker: int, subscribers: int, settings: dict[str, str], count: int) -> tuple[float, float]:
    """Return the CPU time of gateway and broker for one event, in microseconds."""
    port = free_port()
    environment = {"MESH_URL": url, "JWT_KEY": SECRET, "EXPOSE_TOPICS": "#", "TARGETED_TOPICS": ""} | settings
    command = [sys.executable, "-m", "nuropb_gateway_asgi", "serve", "--port", str(port)]
    gateway = subprocess.Popen(
        command,
        env=os.environ | {f"NUROPB_GATEWAY_{name}": value for name, value in environment.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                probe = await subscribe(port)
                break
            except (OSError, InvalidStatus):  # it does not listen yet, or has no broker yet
                await asyncio.sleep(0.2)
        clients = [await subscribe(port) for _ in range(subscribers)]
        await probe.close()
        await asyncio.sleep(7.0)  # a history is followed for a moment after its last subscriber
        before = cpu_seconds(gateway.pid), cpu_seconds(broker)
        async with asyncio.timeout(300):
            await asyncio.gather(publish(url, count), *(read(client, count) for client in clients))
        after = cpu_seconds(gateway.pid), cpu_seconds(broker)
        for client in clients:
            await client.close()
    finally:
        gateway.send_signal(signal.SIGTERM)
        gateway.wait()
    return (after[0] - before[0]) * 1e6 / count, (after[1] - before[1]) * 1e6 / count


async def main(count: int) -> None:
    with RabbitMQNode() as node:
        url = node.add_vhost("benchmark")
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
        for turn in range(TURNS + 1):
            for name, (subscribers, settings) in WAYS.items():
                result = await measure(url, node.pid, subscribers, settings, count if turn else count // 10)
                if turn:  # the first one warms up
                    found[name].append(result)
                async with await aio_pika.connect(url) as connection, connection.channel() as channel:
                    await channel.queue_delete("nuropb-nuropb-gateway-history-orders.#")
        print(f"{time.strftime('%F')}, {count} events of {len(PAYLOAD)} bytes, microseconds of CPU time for an event")
        for name, results in found.items():
            gateway, broker = (statistics.median(each) for each in zip(*results, strict=True))
            print(f"| {name} | {gateway:.0f} | {broker:.0f} |")


if __name__ == "__main__":
    arguments: list[Any] = sys.argv[1:]
    asyncio.run(main(int(arguments[0]) if arguments else 10_000))
