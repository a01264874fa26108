"""Sessions under a balancer that cuts connections while processes are restarted: half a minute, or SOAK_SECONDS.

SOAK_SECONDS of 600 or more are a day of 24 hours, each of which has the same: clients that come and go, connections
that are cut, a process that is restarted, now and then an outage of the broker, and at the end a quiet moment in which
memory, files, tasks and tables are written down. One process lives through the whole day.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import anyio

from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.conftest import Broker
from tests.integration.scene import Record, delete_queues, delete_shared
from tests.integration.test_history import delete
from tests.kit.balancer import Balancer, run_balancer
from tests.kit.processes import GatewayProcess, run_gateway_process
from tests.kit.soak import Soakers, Visitor
from tests.kit.soak_table import Row, Rows, growth_of_memory, read_rows
from tests.servers.rabbitmq import RabbitMQNode, free_port
from tests.servers.surviving_service import SurvivingService, host

SECONDS: Final = float(os.environ.get("SOAK_SECONDS", "30"))
CLIENTS: Final = int(os.environ.get("SOAK_CLIENTS", "50"))
PROCESSES: Final = 4
#: The time of `make soak` is divided into the hours of a day; half a minute is one hour.
IS_DAY: Final = SECONDS >= 600
HOURS: Final = 24 if IS_DAY else 1
HOUR: Final = SECONDS / HOURS
#: Hours at whose beginning the broker closes all connections of its own vhost, and the one at which it is restarted.
OUTAGES: Final = (4, 8, 16, 20)
RESTART: Final = 12
#: Seconds of a run whose memory is judged: an hour of a shorter one has too few calls and connections.
MEMORY_SECONDS: Final = 3600
#: Connections that the balancer cuts in a second, for each hundred clients.
CUTS: Final = 1.25
#: Of so many clients, one comes and goes.
VISITOR: Final = 20
#: Seconds between two calls of a client, and between two events.
CALL_INTERVAL: Final = 5.0
EVENT_INTERVAL: Final = 1.0
#: Seconds until everything is as it was at the start: parked sessions and calls that were given up have their time.
BASELINE_TIMEOUT: Final = 150.0


#: Starts a process at a port.
Start: TypeAlias = Callable[[int], Awaitable[GatewayProcess]]


class Publisher:
    """Publishes numbered events: of a topic with history, and of one without."""

    def __init__(self, mesh: RabbitMQMesh) -> None:
        self.mesh = mesh
        self.allowed = asyncio.Event()
        self.allowed.set()

    async def run(self) -> None:
        """Publish until cancelled, whenever it is allowed."""
        number = 0
        while True:
            await self.allowed.wait()
            with contextlib.suppress(MeshUnavailable):
                for topic in ("news.today", "kept.today"):
                    self.mesh.publish(topic, b"%d" % number, context=b"{}", trace_id="t", target=None)
                number += 1
            await asyncio.sleep(EVENT_INTERVAL)

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Publish nothing for the duration of the context, and go on once the mesh is connected."""
        self.allowed.clear()
        await asyncio.sleep(EVENT_INTERVAL)  # the last events reach the broker
        yield
        while not self.mesh.connected:
            await asyncio.sleep(0.1)
        self.allowed.set()


class Day:
    """The processes of a gateway behind a balancer, and what happens to them in the course of a day."""

    def __init__(self, balancer: Balancer, soakers: Soakers, vhost: str, node: RabbitMQNode | None) -> None:
        self.balancer = balancer
        self.soakers = soakers
        self.vhost = vhost
        #: The broker's node, if it is ours.
        self.node = node
        self.processes: dict[int, GatewayProcess] = {}
        self.rows = Rows()
        self.cuts = self.restarts = self.outages = 0

    async def cut(self) -> None:
        """Cut connections at random until cancelled, while clients do not pause."""
        while True:
            await asyncio.sleep(1 / (CUTS * CLIENTS / 100))
            await self.soakers.active.wait()
            self.cuts += self.balancer.cut_one()

    async def restart(self, port: int, start: Start) -> None:
        """Restart a process as an orchestrator does: out of the balancer, stopped, started, and in when it is ready."""
        self.balancer.backends.remove(port)
        await self.processes[port].stop()
        _, found, traceback = self.processes[port].process.output.partition("Traceback")
        assert not found, traceback[:10_000]
        self.processes[port] = await start(port)
        self.balancer.backends.append(port)
        self.restarts += 1

    async def break_connections(self, hour: int, publisher: Publisher) -> None:
        """Have the broker close all connections of the vhost, or be restarted, if it is the hour for it."""
        if self.node is None or hour not in (*OUTAGES, RESTART):
            return
        # Clients go on calling. Events pause: one on its way to the broker would be lost before any gateway has it.
        async with publisher.paused():
            if hour == RESTART:
                await asyncio.to_thread(self.node.stop_app)
                await asyncio.to_thread(self.node.start_app)
            else:
                await asyncio.to_thread(self.node.ctl, "close_all_connections", "--vhost", self.vhost, "an outage")
        self.outages += 1

    async def note(self, admin: Path, title: str) -> list[Row]:
        """Add a row of figures, and return those of all processes, the one that lives through the day first."""
        running = [each.process for each in self.processes.values()]
        first, *others = await read_rows(admin, running)
        broker = None
        if self.node is not None and IS_DAY:
            broker = await asyncio.to_thread(self.node.count, self.vhost)
        self.rows.add(title, first, max(each.memory for each in others), broker)
        print(self.rows.lines()[-1], flush=True)  # for those who wait
        return [first, *others]

    async def pass_hour(
        self, hour: int, began: float, restarting: Iterator[int], start: Start, publisher: Publisher
    ) -> None:
        """Let the ``hour``-th hour pass, which began at a time of the monotonic clock."""
        await self.break_connections(hour, publisher)
        for _ in range(1 if IS_DAY else PROCESSES - 1):
            await asyncio.sleep(HOUR / PROCESSES / 3)
            await self.restart(next(restarting), start)
        await asyncio.sleep(max(0.0, began + HOUR - time.monotonic()))


async def settled(day: Day, admin: Path, at_start: Mapping[str, int]) -> list[dict[str, int]]:
    """Wait until processes without clients are as they were at the start, and return their figures.

    Of processes that were restarted only the tables are compared: files and tasks differ by the admin API, which the
    first one serves.
    """
    waits = set() if IS_DAY else {"deadlines"}  # of calls that have ended: they go by themselves, after 30 s
    end = time.monotonic() + BASELINE_TIMEOUT
    while True:
        running = [each.process for each in day.processes.values()]
        found = [row.steady() for row in await read_rows(admin, running)]
        for number, figures in enumerate(found):
            for name in waits | ({"files", "tasks"} if number else set()):
                del figures[name]
        if time.monotonic() > end or all(each.items() <= at_start.items() for each in found):
            await day.note(admin, "end")
            return found
        await asyncio.sleep(0.5)


async def test_nothing_is_lost_done_twice_or_left_while_connections_break_and_processes_are_restarted(
    rabbitmq: Broker, tmp_path: Path, record_property: Record
) -> None:
    service, unique = SurvivingService(), secrets.token_hex(4)
    vhost = f"soak-{unique}"
    node, amqp_url = rabbitmq.node if IS_DAY else None, rabbitmq.url
    if node is not None:
        amqp_url = node.add_vhost(vhost)
    admin = tmp_path / "admin"
    settings = {
        "service_name": f"gateway-{unique}",
        "expose": "*.*",
        "expose_topics": "news.#,kept.#,visits.*",
        "history": "kept.#:1h",
        "admin_listen": f"unix:{admin}",
    }
    ports = [free_port() for _ in range(PROCESSES)]
    async with (
        host(amqp_url, f"echo-{unique}", service) as mesh,
        run_balancer(*ports) as balancer,
        contextlib.AsyncExitStack() as stack,
    ):
        soakers = Soakers(f"ws://127.0.0.1:{balancer.port}/ws", f"echo-{unique}", CLIENTS, CALL_INTERVAL)
        publisher = Publisher(mesh)
        day = Day(balancer, soakers, vhost, node)

        async def start(port: int) -> GatewayProcess:
            options = ("--port", str(port), "--goodbye-spread", "2")
            return await stack.enter_async_context(run_gateway_process(amqp_url, *options, **settings))

        for port in ports:
            day.processes[port] = await start(port)
            while not admin.exists():  # the first process, which lives longest, serves the admin API
                await asyncio.sleep(0.05)
        # The first answer of the admin API makes a thread, which stays. Topics that a process tries at its start stay
        # bound for some seconds.
        while (await read_rows(admin, [each.process for each in day.processes.values()]))[0].tables["bound_topics"]:
            await asyncio.sleep(0.5)
        at_start = (await day.note(admin, "start"))[0].steady()
        restarting = itertools.cycle(ports[1:])
        ends = asyncio.Event()
        async with anyio.create_task_group() as chaos:
            chaos.start_soon(publisher.run)
            async with anyio.create_task_group() as tasks, anyio.create_task_group() as cutting:
                for client in soakers.clients:
                    tasks.start_soon(client.run, ends)
                for number in range(CLIENTS // VISITOR):
                    cutting.start_soon(Visitor(number, soakers, lingers=IS_DAY).run)
                cutting.start_soon(day.cut)
                for hour in range(1, HOURS + 1):
                    await day.pass_hour(hour, time.monotonic(), restarting, start, publisher)
                    await soakers.pause()
                    if IS_DAY:
                        await day.note(admin, str(hour))
                    soakers.active.set()
                cutting.cancel_scope.cancel()
                ends.set()
            chaos.cancel_scope.cancel()
        at_end = await settled(day, admin, at_start)
        await delete_queues(amqp_url, mesh)
    # A service that loses its connection gets the calls again that it has not acknowledged.
    reconnections = mesh.statistics.reconnects
    await delete_shared(amqp_url, settings["service_name"])
    await delete(amqp_url, f"nuropb-{settings['service_name']}-history-kept.#")
    account = {
        "processes restarted": day.restarts,
        "connections cut": day.cuts,
        "outages of the broker": day.outages,
        "reconnections of the service": reconnections,
        **soakers.account(service.calls),
    }
    for name, count in account.items():
        print(f"{name}: {count}")
        record_property(name, count)
    print(*day.rows.lines(), sep="\n")
    for client in soakers.clients:
        for what, serials in (("events", client.events), ("events with history", client.kept)):
            if serials.holes:
                print(f"{client.name} misses {what}: {serials.holes}")
    if IS_DAY:
        more, bound, line = growth_of_memory(day.rows.rows[1:-1])
        print(
            f"memory of hours 19 to 24: {more / 1024:+.0f} KiB to that of hours 3 to 8, with a bound of "
            f"{bound / 1024:.0f} KiB; {line.slope / 1024:+.1f} ± {line.error / 1024:.1f} KiB an hour"
        )
        assert more <= bound or SECONDS < MEMORY_SECONDS
    for figures in at_end:
        assert figures == {name: at_start[name] for name in figures}
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
        "outages of the broker",
        "visits",
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
    if day.outages:
        # Calls of an outage: the broker gives those that the service has not acknowledged to it once more, and the
        # gateway refuses those that it cannot send.
        known |= {"calls executed twice", "calls: MeshUnavailable", "calls: ServiceUnavailable", "calls: CallTimeout"}
    wrong = {name: count for name, count in account.items() if count and name not in known}
    assert wrong == {}, account
