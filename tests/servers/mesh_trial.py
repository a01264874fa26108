"""A process that tries out the mesh with the aiormq that its PYTHONPATH brings, and prints the results as JSON.

Everything is done once: a request, a command, a call to no service, an event, a lost connection, a request after it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import secrets
import time
from typing import Any, Literal

import aiormq

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh, _aiormq
from nuropb_gateway_asgi.wire.interface import CallMessage, EventMessage, Reply

#: Seconds for everything.
TIMEOUT = 30.0


class Receiver:
    """Keeps the outcome of each call by its correlation id, and the latest event."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Any] = {}
        self.event: Any = None

    def expects(self, correlation_id: str) -> bool:
        return True

    def on_reply(self, reply: Reply) -> None:
        self.outcomes[reply.correlation_id] = json.loads(bytes(reply.result))

    def on_returned(self, correlation_id: str) -> None:
        self.outcomes[correlation_id] = "returned"

    def on_confirmed(self, correlation_id: str) -> None:
        self.outcomes[correlation_id] = "confirmed"

    def on_event(self, event: EventMessage) -> None:
        self.event = json.loads(bytes(event.event))

    def __getattr__(self, name: str) -> Any:
        """Ignore everything else."""
        return lambda *args, **more: None


class Service:
    """A service with one method."""

    def echo(self, text: str) -> str:
        return text


async def until(condition: Any) -> Any:
    while not (result := condition()):
        await asyncio.sleep(0.005)
    return result


async def try_out(url: str) -> dict[str, Any]:
    name = f"trial-{secrets.token_hex(4)}"
    receiver = Receiver()
    mesh = RabbitMQMesh(url, service_name=f"{name}-gateway")
    service = RabbitMQMesh(url, service_name=name, role="service")
    mesh.bind(receiver, None)
    service.bind(Receiver(), Service())

    async def call(kind: Literal["request", "command"], service: str = name) -> Any:
        id_ = secrets.token_hex(16)
        deadline = time.monotonic() + TIMEOUT
        mesh.send(CallMessage(kind, id_, "t", service, "echo", b'{"text":"hello"}', b"{}", deadline, TIMEOUT))
        return await until(lambda: receiver.outcomes.get(id_))

    results: dict[str, Any] = {}
    async with mesh, service:
        await until(lambda: mesh.connected and service.connected)
        subscribed: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        mesh.subscribe(name, subscribed.set_result)
        assert await subscribed
        results["request"] = await call("request")
        results["command"] = await call("command")
        results["to nobody"] = await call("request", f"{name}-nobody")
        mesh.publish(name, b'"news"', context=b"{}", trace_id="t", target=None)
        results["event"] = await until(lambda: receiver.event)
        for link in (mesh.publishing, mesh.consuming):
            link.abort("trial")
        await until(lambda: not mesh.connected)
        await until(lambda: mesh.connected)
        results["request after a loss"] = await call("request")
    await clean_up(url, mesh, service)
    return results


async def clean_up(url: str, *meshes: RabbitMQMesh) -> None:
    connection = aiormq.Connection(url)
    await connection.connect()
    channel = await connection.channel()
    for mesh in meshes:
        for queue in (mesh.reply_queue, mesh.event_queue, mesh.service_queue, mesh.peers.queue, mesh.peers.stream):
            await channel.queue_delete(queue)
        await channel.exchange_delete(mesh.peers.exchange)
    await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    url = parser.parse_args().url
    warnings: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    logging.getLogger().addHandler(Keep(logging.WARNING))
    results = asyncio.run(asyncio.wait_for(try_out(url), TIMEOUT))
    about_the_loss = ("mesh: publishing connection: trial", "mesh: consuming connection: trial")
    for line in about_the_loss:
        with contextlib.suppress(ValueError):
            warnings.remove(line)
    lanes = {"fast lane": _aiormq.FAST_LANE, "own sockets": _aiormq.OWN_SOCKETS}
    print(json.dumps({"results": results, "warnings": warnings, "aiormq": aiormq.__file__, **lanes}))


if __name__ == "__main__":
    main()
