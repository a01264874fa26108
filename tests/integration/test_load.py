"""Load: many clients with many calls at a time, through a real server, a real broker and real services."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import aio_pika
import anyio
import pytest

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.kit.clients import Client, connect
from tests.kit.gateways import RunningGateway, eventually, run_gateway
from tests.servers.processes import ServiceProcess

CLIENTS: Final = 50
CALLS: Final = 200
#: Seconds after which the test fails. Ten thousand calls take ten seconds of an idle machine; nothing is measured.
PATIENCE: Final = 600.0


@pytest.fixture(scope="module")
def services(amqp_url: str) -> Iterator[list[str]]:
    """Two services, each with a prefetch of 200 calls."""
    names = [f"load-{secrets.token_hex(4)}" for _ in range(2)]
    with (
        ServiceProcess(amqp_url, names[0], prefetch=200, events=()),
        ServiceProcess(amqp_url, names[1], prefetch=200, events=()),
    ):
        yield names
    asyncio.run(delete_queues(amqp_url, *(f"nuropb-{name}-{kind}" for name in names for kind in ("sq", "dl"))))


@pytest.fixture
async def running(amqp_url: str) -> AsyncIterator[RunningGateway]:
    settings: dict[str, Any] = {
        "mesh_url": amqp_url,
        "service_name": f"gateway-{secrets.token_hex(4)}",
        "expose": ["load-*.*"],
        "max_in_flight": CALLS,
        "request_timeout": PATIENCE,
        "request_timeout_max": PATIENCE,
        # No pings: on a slow machine the test lasts longer than the interval before the first ping.
        "ping_interval": 3600.0,
    }
    async with run_gateway(**settings) as running:
        await eventually(lambda: running.gateway.service_mesh_manager.connected)
        yield running
        await running.is_empty()
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    await delete_queues(amqp_url, mesh.reply_queue, mesh.event_queue, mesh.service_queue)


async def delete_queues(url: str, *names: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for name in names:
            await channel.queue_delete(name)


@pytest.mark.usefixtures("patient_mesh")
async def test_ten_thousand_calls_of_fifty_clients_are_each_answered_once_to_their_asker(
    running: RunningGateway, services: list[str]
) -> None:
    connected = 0
    everybody_is_there = asyncio.Event()

    async def talk(number: int) -> None:
        nonlocal connected
        async with connect(running.url, f"user-{number}") as client:
            connected += 1
            if connected == CLIENTS:
                everybody_is_there.set()
            await everybody_is_there.wait()
            sender = asyncio.create_task(send(client, number))
            answers = [await client.connection.recv() for _ in range(CALLS)]
            await sender
            # All clients use the same ids; the numbers in the result prove that it belongs to this client's call.
            results: dict[str, Any] = {}
            for payload in (json.loads(answer)["payload"] for answer in answers):
                assert payload["error"] is None
                assert payload["id"] not in results
                results[payload["id"]] = payload["result"]
            assert results == {str(call): {"client": number, "call": call} for call in range(CALLS)}
            assert await client.settled() == []

    async def send(client: Client, number: int) -> None:
        for call in range(CALLS):
            service = services[call % len(services)]
            await client.request(f"{service}.echo", {"client": number, "call": call}, id=str(call))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for number in range(CLIENTS):
                tasks.start_soon(talk, number)
    statistics = running.gateway.service_mesh_manager.statistics
    assert (statistics.late_replies, statistics.unknown_replies) == (0, 0)
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    # After a loss of the connection the broker gives replies again that were not acknowledged.
    assert statistics.double_replies == 0 or mesh.statistics.reconnects > 0


async def test_a_call_of_three_seconds_delays_no_call_on_the_same_connection(
    running: RunningGateway, services: list[str]
) -> None:
    async with connect(running.url, "alice") as client:
        await client.request(f"{services[0]}.slow", {"seconds": 3}, id="slow")
        for number in range(10):
            await client.request(f"{services[number % 2]}.slow", {"seconds": 0.001}, id=f"fast {number}")
        order = [(await client.next())["payload"]["id"] for _ in range(11)]
    assert sorted(order[:10]) == sorted(f"fast {number}" for number in range(10))
    assert order[10] == "slow"
