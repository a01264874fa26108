"""Sessions under a balancer that cuts connections while all processes are restarted: half a minute, or SOAK_SECONDS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import Final

import anyio

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import Record, delete_queues, delete_shared
from tests.integration.test_history import delete
from tests.kit.balancer import run_balancer
from tests.kit.processes import GatewayProcess, run_gateway_process
from tests.kit.soak import Soakers
from tests.servers.rabbitmq import free_port
from tests.servers.surviving_service import SurvivingService, host

SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "30"))
CLIENTS: Final = int(os.environ.get("SOAK_CLIENTS", "50"))
PROCESSES: Final = 4
#: Connections that the balancer cuts in a second, for each hundred clients.
CUTS: Final = 1.25
#: Seconds between two calls of a client, and between two events.
CALL_INTERVAL: Final = 5.0
EVENT_INTERVAL: Final = 1.0


async def publish(mesh: RabbitMQMesh) -> None:
    """Publish numbered events until cancelled: of a topic with history, and of one without."""
    number = 0
    while True:
        with contextlib.suppress(MeshUnavailable):
            for topic in ("news.today", "kept.today"):
                mesh.publish(topic, b"%d" % number, context=b"{}", trace_id="t", target=None)
            number += 1
        await asyncio.sleep(EVENT_INTERVAL)


async def test_nothing_is_lost_or_done_twice_while_connections_break_and_processes_are_restarted(
    amqp_url: str, record_property: Record
) -> None:
    service, unique = SurvivingService(), secrets.token_hex(4)
    settings = {
        "service_name": f"gateway-{unique}",
        "expose": "*.*",
        "expose_topics": "news.#,kept.#",
        "history": "kept.#:1h",
    }
    ports = [free_port() for _ in range(PROCESSES)]
    async with (
        host(amqp_url, f"echo-{unique}", service) as mesh,
        run_balancer(*ports) as balancer,
        contextlib.AsyncExitStack() as stack,
    ):
        soakers = Soakers(f"ws://127.0.0.1:{balancer.port}/ws", f"echo-{unique}", CLIENTS, CALL_INTERVAL)

        async def start(port: int) -> GatewayProcess:
            options = ("--port", str(port), "--goodbye-spread", "2")
            return await stack.enter_async_context(run_gateway_process(amqp_url, *options, **settings))

        processes = {port: await start(port) for port in ports}
        cuts = restarts = 0

        async def cut() -> None:
            nonlocal cuts
            while True:
                await asyncio.sleep(1 / (CUTS * CLIENTS / 100))
                cuts += balancer.cut_one()

        async def restart() -> None:
            """Restart all processes, one after the other, in two thirds of the time."""
            nonlocal restarts
            for port in ports:
                await asyncio.sleep(SECONDS / PROCESSES / 3)
                # As an orchestrator does: out of the balancer, stopped, started, and back in when it is ready.
                balancer.backends.remove(port)
                await processes[port].stop()
                assert "Traceback" not in processes[port].process.output
                processes[port] = await start(port)
                balancer.backends.append(port)
                restarts += 1

        ends = asyncio.Event()
        async with anyio.create_task_group() as chaos:
            chaos.start_soon(publish, mesh)
            async with anyio.create_task_group() as tasks:
                for client in soakers.clients:
                    tasks.start_soon(client.run, ends)
                chaos.start_soon(cut)
                async with asyncio.TaskGroup() as both:
                    both.create_task(restart())
                    both.create_task(asyncio.sleep(SECONDS))
                ends.set()
            chaos.cancel_scope.cancel()
        await delete_queues(amqp_url, mesh)
    # A service that loses its connection gets the calls again that it has not acknowledged.
    reconnections = mesh.statistics.reconnects
    await delete_shared(amqp_url, settings["service_name"])
    await delete(amqp_url, f"nuropb-{settings['service_name']}-history-kept.#")
    account = {
        "processes restarted": restarts,
        "connections cut": cuts,
        "reconnections of the service": reconnections,
        **soakers.account(service.calls),
    }
    for name, count in account.items():
        print(f"{name}: {count}")
        record_property(name, count)
    assert account["calls answered"] > 0
    assert account["sessions resumed"] > 0
    assert account["subscriptions recovered"] > 0
    # A session that was lost ends its calls with an unknown outcome, and says why; all others lose nothing.
    lost = {name: count for name, count in account.items() if name.startswith("sessions not resumed")}
    assert set(lost) <= {f"sessions not resumed: {reason}" for reason in ("expired", "overflow", "gone")}, account
    known = {
        "processes restarted",
        "connections cut",
        "reconnections of the service",
        "calls answered",
        "events delivered",
        "events with history delivered",
        "subscriptions recovered",
        "connections without a session",
        "sessions begun",
        "sessions resumed",
        *lost,
    }
    if lost:
        known.add("calls: lost")
    wrong = {name: count for name, count in account.items() if count and name not in known}
    assert wrong == {}, account
