"""The scene of the fault tests: a gateway behind a faulty network, a service that survives, and recording clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
import anyio
import httpx
from aiormq.exceptions import ChannelPreconditionFailed
from websockets.exceptions import ConnectionClosed

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.kit.clients import Client, Frame, connect
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, run_gateway
from tests.kit.waiting import in_time
from tests.servers.faults import FaultProxy
from tests.servers.surviving_service import SurvivingService, host

__all__ = ["Caller", "Record", "Scene", "delete_queues", "delete_shared", "eventually_within", "log_lines", "scene"]

Record = Callable[[str, object], None]

#: Loggers that report on the connection to the broker.
LOGGERS: Final = ("nuropb_gateway_asgi", "aiormq", "aio_pika", "asyncio")


class Caller:
    """A client that keeps every answer, with the time of its arrival."""

    def __init__(self, client: Client, service: str) -> None:
        self.client = client
        self.service = service
        self.answers: dict[str, list[tuple[float, Frame]]] = {}
        self.sent: dict[str, float] = {}
        #: The end of the connection; None while it is open.
        self.closed: ConnectionClosed | None = None
        self._prefix = secrets.token_hex(4)

    async def read(self) -> None:
        """Read frames, and answer pings, until the connection ends."""
        try:
            while True:
                frame = json.loads(await self.client.connection.recv())
                now = time.monotonic()
                if frame["type"] == "response":
                    self.answers.setdefault(frame["payload"]["id"], []).append((now, frame["payload"]))
                elif frame["type"] == "ping":
                    await self.client.send("pong")
                else:
                    self.client.inbox.append(frame)
        except ConnectionClosed as error:
            self.closed = error

    async def start(
        self, method: str = "echo", count: int = 1, *, service: str = "", params: Any = None, **more: Any
    ) -> list[str]:
        """Send requests without waiting for answers. Each has its id as a parameter, unless ``params`` are given."""
        ids = [f"{self._prefix}-{len(self.sent) + number}" for number in range(count)]
        for id_ in ids:
            self.sent[id_] = time.monotonic()
            name = f"{service or self.service}.{method}"
            await self.client.request(name, {"id": id_} if params is None else params, id=id_, **more)
        return ids

    async def subscribe(self, *topics: str) -> None:
        """Subscribe, and wait for the answer."""
        id_ = f"{self._prefix}-{len(self.sent)}"
        self.sent[id_] = time.monotonic()
        await self.client.send("subscribe", topics=list(topics), id=id_)
        assert await self.ended([id_]) == {"ok": 1}

    async def ended(self, ids: list[str], within: float = DEADLINE) -> Counter[str]:
        """Wait until all these requests have an answer; count the error codes, "ok" for a result."""
        await eventually_within(within, lambda: all(id_ in self.answers for id_ in ids))
        return Counter(self.code(id_) for id_ in ids)

    async def call(self, method: str = "echo", **more: Any) -> str:
        """Call, and return the error code of the answer, "ok" for a result."""
        (id_,) = ids = await self.start(method, **more)
        await self.ended(ids)
        return self.code(id_)

    def code(self, id_: str) -> str:
        """Return the error code of the first answer, "ok" for a result."""
        error = self.answers[id_][0][1]["error"]
        return "ok" if error is None else str(error["code"])

    def error(self, id_: str) -> Frame:
        """Return the error of the first answer."""
        error: Frame = self.answers[id_][0][1]["error"]
        return error

    def seconds(self, id_: str) -> float:
        """Return the seconds from the request to its first answer."""
        return self.answers[id_][0][0] - self.sent[id_]

    @property
    def doubled(self) -> int:
        """The number of requests with several answers, and of answers without a request."""
        return sum(len(frames) > 1 or id_ not in self.sent for id_, frames in self.answers.items())

    @property
    def mixed_up(self) -> int:
        """The number of results that belong to another request: the service answers with the id that it got."""
        answers = [(id_, frame) for id_, frames in self.answers.items() for _, frame in frames]
        return sum(isinstance(frame["result"], str) and frame["result"] != id_ for id_, frame in answers)

    @property
    def unanswered(self) -> int:
        return sum(id_ not in self.answers for id_ in self.sent)


@dataclass
class Scene:
    """All actors of one test, and the times of its fault."""

    proxy: FaultProxy
    running: RunningGateway
    service: SurvivingService
    service_mesh: RabbitMQMesh
    callers: list[Caller]
    http: httpx.AsyncClient
    began: float = 0.0
    noticed: float | None = None
    recovered: float | None = None

    @property
    def mesh(self) -> RabbitMQMesh:
        mesh = self.running.gateway.service_mesh_manager.mesh
        assert isinstance(mesh, RabbitMQMesh)
        return mesh

    @property
    def not_ready(self) -> str:
        """The reasons that ``/readyz`` gives; empty when the gateway is ready."""
        return "; ".join(self.running.gateway.not_ready())

    async def hold(self, count: int, **more: Any) -> list[tuple[Caller, list[str]]]:
        """Start ``count`` calls of every client that the service holds, and wait until it holds them all."""
        held = self.service.holding
        in_flight = [(caller, await caller.start("hold", count, **more)) for caller in self.callers]
        await eventually(lambda: self.service.holding == held + count * len(in_flight))
        return in_flight

    async def readyz(self) -> tuple[int, str]:
        """Return status and reasons of ``/readyz``, and check that ``/livez`` answers 200."""
        assert (await self.http.get("/livez")).status_code == 200
        response = await self.http.get("/readyz")
        return response.status_code, "; ".join(response.json()["reasons"])

    def reconnected(self) -> Callable[[], bool]:
        """Return a function that tells whether the gateway has reconnected to the broker since this call."""
        before = self.mesh.statistics.reconnects
        return lambda: self.mesh.statistics.reconnects > before

    def begin(self) -> None:
        """Note the time at which the fault begins."""
        self.began = time.monotonic()

    async def notices(self, within: float, sign: Callable[[], object] | None = None) -> None:
        """Wait until the gateway notices the fault: until ``sign`` holds, by default until it is not ready."""
        await eventually_within(within, sign or (lambda: self.not_ready))
        self.noticed = time.monotonic() - self.began

    async def recovers(self, within: float, since: float | None = None) -> None:
        """Wait until the gateway is ready and a call of every client succeeds; ``since`` is the end of the fault."""
        since = time.monotonic() if since is None else since
        async with in_time(max(within + since - time.monotonic(), within / 2)):
            while True:
                await eventually_within(within, lambda: not self.not_ready)
                codes = [await caller.call(timeout=2.0) for caller in self.callers]
                if set(codes) == {"ok"}:
                    break
        self.recovered = time.monotonic() - since

    def check(self, record: Record, name: str, in_flight: list[tuple[Caller, list[str]]] | None = None) -> None:
        """Check that no client was disconnected, no call ran twice, and each got exactly one answer, its own."""
        in_flight = in_flight or []
        facts = {
            "fault": name,
            "noticed": self.noticed,
            "recovered": self.recovered,
            "in flight": sum(len(ids) for _, ids in in_flight),
            "lost": sum(caller.code(id_) != "ok" for caller, ids in in_flight for id_ in ids),
            "doubled": sum(caller.doubled for caller in self.callers),
            "repeated": self.service.repeated,
            "dropped": sum(caller.closed is not None for caller in self.callers),
        }
        for key, value in facts.items():
            record(key, value)
        assert (facts["doubled"], facts["repeated"], facts["dropped"]) == (0, 0, 0)
        assert sum(caller.unanswered + caller.mixed_up for caller in self.callers) == 0


async def eventually_within(seconds: float, condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds; fail after ``seconds``, in which this process is let run."""
    async with in_time(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def scene(
    url: str,
    *,
    clients: int = 2,
    users: int | None = None,
    service_url: str | None = None,
    ready: bool = True,
    before: Callable[[FaultProxy], object] | None = None,
    **settings: Any,
) -> AsyncIterator[Scene]:
    """Run a gateway that reaches the broker through a proxy, a service that reaches it directly, and clients.

    ``before`` is called with the proxy before the gateway starts. The clients belong to ``users`` users, by default one
    each.
    """
    unique = secrets.token_hex(4)
    gateway_name, service_name = f"gateway-{unique}", f"echo-{unique}"
    # A busy process of clients and gateway may miss its own pongs, which no test is about.
    chosen: dict[str, Any] = {"service_name": gateway_name, "expose": ["*.*"], "request_timeout": 10.0}
    chosen |= {"ping_interval": 600.0} | settings
    service = SurvivingService()
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(url))
        if before is not None:
            before(proxy)
        running = await stack.enter_async_context(run_gateway(mesh_url=proxy.url, is_open=ready, **chosen))
        service_mesh = await stack.enter_async_context(host(service_url or url, service_name, service))
        stack.callback(service.released.set)
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=running.site.http(), trust_env=False, timeout=DEADLINE)
        )
        tasks = await stack.enter_async_context(anyio.create_task_group())
        callers = []
        for number in range(clients):
            user = f"user-{number % (users or clients)}"
            client = await stack.enter_async_context(connect(running.url, user))
            callers.append(caller := Caller(client, service_name))
            tasks.start_soon(caller.read)
        set_ = Scene(proxy, running, service, service_mesh, callers, http)
        if ready:
            await eventually(lambda: service_mesh.connected and not set_.not_ready)
            # The first call fetches the service's description, which no test is about.
            assert [await caller.call() for caller in callers] == ["ok"] * clients
        yield set_
        proxy.resume()
        proxy.accept()
    await delete_queues(service_url or url, set_.mesh, service_mesh)


async def delete_queues(url: str, *meshes: RabbitMQMesh) -> None:
    """Delete the queues and exchanges of ``meshes``, which outlive them; shared ones stay while they are used."""
    async with await aio_pika.connect(url) as connection:
        for mesh in meshes:
            async with connection.channel() as channel:
                for queue in (mesh.reply_queue, mesh.event_queue, mesh.peers.queue, mesh.dead_letters.queue):
                    await channel.queue_delete(queue)
            with contextlib.suppress(ChannelPreconditionFailed):
                async with connection.channel() as channel:
                    await channel.queue_delete(mesh.service_queue, if_unused=True)
                    # A stream has no if_unused; the service queue, deleted before, shows whether processes are left.
                    await channel.queue_delete(mesh.peers.stream)
                    await channel.exchange_delete(mesh.peers.exchange)


async def delete_shared(url: str, service_name: str) -> None:
    """Delete the queues and exchanges that the processes of a gateway share; their own queues expire."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"nuropb-{service_name}-sq")
        await channel.queue_delete(f"nuropb-{service_name}-records")
        await channel.exchange_delete(f"nuropb-{service_name}-fx")


@contextlib.contextmanager
def log_lines(caplog: Any) -> Any:
    """Capture the log records about the connection to the broker; yields a function that returns them."""
    with caplog.at_level(logging.INFO):
        caplog.clear()
        yield lambda: [record for record in caplog.records if record.name.startswith(LOGGERS)]
