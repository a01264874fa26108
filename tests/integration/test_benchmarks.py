"""The benchmark's service and clients do what they say, with the gateway as it is now. Nothing is measured."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks.stage import BenchmarkError, Process
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import delete_queues
from tests.kit.gateways import RunningGateway, eventually, run_gateway


@pytest.fixture
async def clients(amqp_url: str, tmp_path: Path) -> AsyncIterator[tuple[RunningGateway, Process]]:
    service, name = f"bench-{secrets.token_hex(4)}", f"gateway-{secrets.token_hex(4)}"
    settings: dict[str, Any] = {"expose": [f"{service}.*"], "expose_topics": ["bench.#"]}

    def start(stack: contextlib.ExitStack, module: str, *arguments: str) -> Process:
        process = Process(
            module, sys.executable, "-m", module, *arguments, directory=tmp_path, environment={"PYTHONUNBUFFERED": "1"}
        )
        stack.callback(process.stop)
        return process

    with contextlib.ExitStack() as stack:
        server = start(stack, "benchmarks.service", "--url", amqp_url, "--service", service)
        assert (await anyio.to_thread.run_sync(server.line, 20.0)).startswith("READY ")
        async with run_gateway(mesh_url=amqp_url, service_name=name, **settings) as running:
            await eventually(lambda: running.gateway.service_mesh_manager.connected)
            arguments = ("gateway", "--port", str(running.site.port), "--service", service)
            load = start(stack, "benchmarks.load", *arguments, "--broadcaster", f"{service}.publish")
            yield running, load
            await anyio.to_thread.run_sync(load.stop)
            await running.is_empty()
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    await delete_queues(amqp_url, mesh)


async def order(process: Process, do: str, **arguments: Any) -> Any:
    return await anyio.to_thread.run_sync(lambda: process.order(do, **arguments))


async def test_the_clients_follow_every_order(clients: tuple[RunningGateway, Process]) -> None:
    running, load = clients
    times = {"warm_up": 0.05, "seconds": 0.1}
    assert await order(load, "open", count=5) == 5
    for sample in (
        await order(load, "load", connections=2, in_flight=6, **times),
        await order(load, "load", connections=5, in_flight=3, **times),
        await order(load, "pace", connections=5, rate=200.0, **times),
    ):
        assert sample["count"] > 0
        assert sample["seconds"] >= 0.1
        assert 0 < sample["p50"] <= sample["p99"] <= sample["p99.9"]
        assert sum(sample["latencies"].values()) == pytest.approx(sample["count"], abs=10)
        assert sample["cpu"]["clients"] > 0
    assert await order(load, "subscribe") == 5
    sample = await order(load, "fan_out", **times)
    assert sample["count"] == 5 * sample["events"] > 0
    assert (await order(load, "connect", count=40))["count"] == 40
    await eventually(lambda: len(running.gateway.handler_manager) == 5)


async def test_an_answer_that_is_wrong_ends_the_clients(clients: tuple[RunningGateway, Process]) -> None:
    running, load = clients
    await order(load, "open", count=1)
    (handler,) = running.gateway.handler_manager.handlers
    handler.send_frame('{"type":"response","payload":{"trace_id":"1","result":{},"error":null}}')
    with pytest.raises(BenchmarkError, match="a wrong answer, or one too many"):
        await order(load, "load", connections=1, in_flight=1, warm_up=0.05, seconds=0.1)
