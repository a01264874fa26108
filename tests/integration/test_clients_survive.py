"""Both clients with the real gateway and RabbitMQ through outages, restarts and expiring tokens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import anyio
import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import Scene, delete_queues, eventually_within, scene
from tests.kit.balancer import Balancer, run_balancer
from tests.kit.conformance import THE_END, Driver, JavaScriptDriver, PythonDriver
from tests.kit.gateways import eventually
from tests.kit.javascript import node
from tests.kit.processes import Process, run_forked
from tests.kit.scripted import Markers
from tests.servers.javascript import CLIENT
from tests.servers.rabbitmq import RabbitMQNode, free_port
from tests.servers.surviving_service import SurvivingService, host

SECRET: Final = "a secret that is long enough to sign with, and no longer"
#: Seconds for steps that wait until a broker or a process has restarted.
STEP_TIMEOUT: Final = 240.0


@pytest.fixture(scope="module")
async def drivers() -> AsyncIterator[list[Driver]]:
    async with JavaScriptDriver.start(*node(), str(CLIENT / "tests" / "driver.js")) as driver:
        yield [PythonDriver(), driver]


class Players:
    """Markers by which the clients and the test wait for each other."""

    def __init__(self, count: int) -> None:
        self.markers = [Markers() for _ in range(count)]

    def tell(self, name: str) -> None:
        """Set a marker for all clients."""
        for each in self.markers:
            each.set(name)

    async def reach(self, name: str) -> None:
        """Wait until all clients have set a marker."""
        for each in self.markers:
            await each.wait(name)


@contextlib.asynccontextmanager
async def playing(drivers: list[Driver], url: str, script: Mapping[str, Any]) -> AsyncIterator[Players]:
    """Run the steps of ``script`` in all clients during the context, and wait for their end."""
    script = {"step_timeout": STEP_TIMEOUT, **script}
    players = Players(len(drivers))
    async with asyncio.TaskGroup() as tasks:
        for driver, markers in zip(drivers, players.markers, strict=True):
            tasks.create_task(driver.run(url, script, markers))
        yield players
        players.tell(THE_END)


def name(set_: Scene) -> str:
    """Return the name of the service."""
    return set_.service_mesh.service_queue.removeprefix("nuropb-").removesuffix("-sq")


def publish(mesh: RabbitMQMesh, topic: str) -> None:
    mesh.publish(topic, b"{}", context=b"{}", trace_id="t-1", target=None)


async def test_an_outage_of_the_broker(own_node: RabbitMQNode, drivers: list[Driver]) -> None:
    async with scene(own_node.url(), clients=0, expose_topics=["news.#"]) as set_:
        service = name(set_)
        patient = {"retries": 1000, "timeout": 50}
        script = {
            "token": "alice",
            "options": {"backoff_base": 0.05, "backoff_cap": 0.2},
            "client": [
                {"subscribe": "news.*", "as": "s"},
                {"ready": "s"},
                {"heard": "state", "is": {"name": "open"}},
                {"keep_calling": [service, "echo"], "until": "goes"},
                {"signal": "still"},
                {"wait": "away"},
                {"request": [service, "echo"], "as": "impatient"},
                {"error": "impatient", "is": {"class": "MeshUnavailable", "retryable": True}},
                {"request": [service, "echo"], "as": "patient", **patient},
                {"signal": "waits"},
                {"result": "patient", "is": ""},
                {"keep_calling": [service, "echo"], "until": "published", **patient},
                {"event": "s", "is": {"topic": "news.back"}},
                {"silent": "state"},
                {"signal": "done"},
            ],
        }
        async with playing(drivers, set_.running.url, script) as players:
            players.tell("goes")
            await players.reach("still")
            await anyio.to_thread.run_sync(own_node.stop_app)
            await eventually(lambda: set_.not_ready)
            players.tell("away")
            await players.reach("waits")
            # The gateway reconnects last: a service that is partly reconnected would accept a call and lose its reply.
            set_.proxy.refuse()
            await anyio.to_thread.run_sync(own_node.start_app)
            await eventually_within(STEP_TIMEOUT, lambda: set_.service_mesh.connected)
            set_.proxy.accept()
            await eventually_within(STEP_TIMEOUT, lambda: not set_.not_ready)
            publish(set_.service_mesh, "news.back")
            players.tell("published")
            await players.reach("done")
        assert {id_ for id_, count in set_.service.calls.items() if count > 1} <= {""}


@contextlib.asynccontextmanager
async def gateway_process(url: str, port: int) -> AsyncIterator[Process]:
    settings = {"MESH_URL": url, "JWT_KEY": SECRET, "EXPOSE": "*.*", "EXPOSE_TOPICS": "news.#"}
    async with run_forked("nuropb_gateway_asgi", "serve", "--port", str(port), settings=settings) as process:
        yield process


async def ready(process: Process) -> None:
    await process.line("Application startup complete")
    await process.line("mesh: revocations are read")


async def restart(stack: contextlib.AsyncExitStack, process: Process, balancer: Balancer, port: int, url: str) -> None:
    """Restart one gateway, as an operator does, and wait until one of its clients has reconnected."""
    connections = len(balancer.taken)
    process.signal(signal.SIGTERM)
    assert await process.wait() == 0
    await ready(await stack.enter_async_context(gateway_process(url, port)))
    await eventually(lambda: len(balancer.taken) > connections)


async def test_a_rolling_restart(amqp_url: str, drivers: list[Driver]) -> None:
    service = SurvivingService()
    echo = f"echo-{secrets.token_hex(4)}"
    ports = [free_port(), free_port()]
    calling = {"keep_calling": [echo, "echo"], "idempotent": True, "retries": 100, "timeout": 30}
    script = {
        "token": issue_token(SECRET, "alice"),
        "client": [
            {"subscribe": "news.*", "as": "s"},
            {"ready": "s"},
            {"signal": "before"},
            calling | {"until": "restarted"},
            {"heard": "goodbye", "is": {"reason": "draining"}},
            {"heard": "state", "is": {"name": "open", "resumed": True}},
            {"silent": "s.gap"},
            {"signal": "after"},
            {"event": "s", "is": {"topic": "news.back"}},
        ],
    }
    async with contextlib.AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(host(amqp_url, echo, service))
        processes = [await stack.enter_async_context(gateway_process(amqp_url, port)) for port in ports]
        for process in processes:
            await ready(process)
        await eventually(lambda: mesh.connected)
        balancer = await stack.enter_async_context(run_balancer(*ports))
        async with playing(drivers, f"ws://127.0.0.1:{balancer.port}/ws", script) as players:
            await players.reach("before")
            assert sorted(balancer.taken) == sorted(ports)
            for port, process in zip(ports, processes, strict=True):
                await restart(stack, process, balancer, port, amqp_url)
            players.tell("restarted")
            await players.reach("after")
            publish(mesh, "news.back")
        stack.push_async_callback(delete_queues, amqp_url, mesh)
    assert service.calls
    assert service.repeated == 0


async def test_the_end_of_a_token(amqp_url: str, drivers: list[Driver]) -> None:
    async with scene(amqp_url, clients=0) as set_:
        manager = set_.running.gateway.handler_manager
        script = {
            # The second attempt replaces the token in time. The next replacement fails, so the connection ends, too.
            "token": ["alice:for:5", "bad", "alice:for:2", {"raise": "no network"}],
            "options": {"refresh_margin": 1.5, "backoff_base": 0.2, "backoff_cap": 0.4},
            "client": [
                {"heard": "state", "is": {"name": "open"}},
                {"keep_calling": [name(set_), "echo"], "until": "replaced"},
                {"heard": "warning", "is": {"class": "TokenRefreshFailed", "cause": {"class": "Unauthenticated"}}},
                {"silent": "state"},
                {"heard": "warning", "is": {"class": "TokenRefreshFailed", "cause": {"description": "no network"}}},
                {"heard": "state", "is": {"name": "reconnecting", "error": {"close_code": 4005}}},
                {"heard": "state", "is": {"name": "reconnecting", "error": {"reason": "no token"}}},
            ],
        }
        async with playing(drivers, set_.running.url, script) as players:
            await eventually(lambda: len(manager) == len(drivers))
            first = {handler.session_id: handler.identity for handler in manager.handlers}
            await eventually(lambda: all(each.identity is not first[each.session_id] for each in manager.handlers))
            assert {each.session_id for each in manager.handlers} == set(first)
            players.tell("replaced")


async def test_after_a_token_has_expired_there_is_a_new_connection_with_another(
    amqp_url: str, drivers: list[Driver]
) -> None:
    async with scene(amqp_url, clients=0) as set_:
        script = {
            "token": ["alice:for:2", {"raise": "no network"}, "alice"],
            # So late that a second attempt would come after the expiry.
            "options": {
                "refresh_margin": 0.2,
                "backoff_base": 20.0,
                "backoff_cap": 20.0,
                "random": 0.02,
                "resume": False,
            },
            "client": [
                {"heard": "state", "is": {"name": "open"}},
                {"request": [name(set_), "hold", {"id": "held"}], "as": "held"},
                {"error": "held", "is": {"class": "ConnectionLost", "close_code": 4005}},
                {"request": [name(set_), "echo", {"id": "after"}], "as": "after"},
                {"result": "after", "is": "after"},
            ],
        }
        async with playing(drivers, set_.running.url, script):
            pass
