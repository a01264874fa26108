"""A gateway with a network that can fail, a service that survives it, and clients that write everything down."""

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
from tests.servers.faults import FaultProxy
from tests.servers.surviving_service import SurvivingService, host

__all__ = ["Caller", "Record", "Scene", "delete_queues", "delete_shared", "eventually_within", "log_lines", "scene"]

Record = Callable[[str, object], None]

#: Who speaks of the connection to the broker.
LOGGERS: Final = ("nuropb_gateway_asgi", "aiormq", "aio_pika", "asyncio")


class Caller:
    """A client that keeps every answer, with the moment at which it came."""

    def __init__(self, client: Client, service: str) -> None:
        self.client = client
        self.service = service
        self.answers: dict[str, list[tuple[float, Frame]]] = {}
        self.sent: dict[str, float] = {}
        #: How the connection ended, if it did.
        self.closed: ConnectionClosed | None = None
        self._prefix = secrets.token_hex(4)

    async def read(self) -> None:
        """Take what comes, until the connection ends."""
        try:
            while True:
                frame = json.loads(await self.client.connection.recv())
                now = time.monotonic()
                if frame["type"] == "response":
                    self.answers.setdefault(frame["payload"]["id"], []).append((now, frame["payload"]))
                else:
                    self.client.inbox.append(frame)
        except ConnectionClosed as error:
            self.closed = error

    async def start(
        self, method: str = "echo", count: int = 1, *, service: str = "", params: Any = None, **more: Any
    ) -> list[str]:
        """Send requests and do not wait. The service gets each request's id as a parameter, unless ``params`` say."""
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
        """Wait until every one has an answer; the answers' error codes, "ok" for those without."""
        await eventually_within(within, lambda: all(id_ in self.answers for id_ in ids))
        return Counter(self.code(id_) for id_ in ids)

    async def call(self, method: str = "echo", **more: Any) -> str:
        """Call, and wait for the code of the answer."""
        (id_,) = ids = await self.start(method, **more)
        await self.ended(ids)
        return self.code(id_)

    def code(self, id_: str) -> str:
        """The code of the first answer."""
        error = self.answers[id_][0][1]["error"]
        return "ok" if error is None else str(error["code"])

    def error(self, id_: str) -> Frame:
        """The error of the first answer."""
        error: Frame = self.answers[id_][0][1]["error"]
        return error

    def seconds(self, id_: str) -> float:
        """From the request to the answer."""
        return self.answers[id_][0][0] - self.sent[id_]

    @property
    def doubled(self) -> int:
        """Requests with more than one answer, and answers to nobody."""
        return sum(len(frames) > 1 or id_ not in self.sent for id_, frames in self.answers.items())

    @property
    def mixed_up(self) -> int:
        """Results that belong to another request: the service answers with the id that it was given."""
        answers = [(id_, frame) for id_, frames in self.answers.items() for _, frame in frames]
        return sum(isinstance(frame["result"], str) and frame["result"] != id_ for id_, frame in answers)

    @property
    def unanswered(self) -> int:
        return sum(id_ not in self.answers for id_ in self.sent)


@dataclass
class Scene:
    """Everything of one test."""

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
        """Why, as ``/readyz`` says it; empty when it is ready."""
        return "; ".join(self.running.gateway.not_ready())

    async def hold(self, count: int, **more: Any) -> list[tuple[Caller, list[str]]]:
        """Have so many calls of every client in flight, and wait until all are with the service."""
        held = self.service.holding
        in_flight = [(caller, await caller.start("hold", count, **more)) for caller in self.callers]
        await eventually(lambda: self.service.holding == held + count * len(in_flight))
        return in_flight

    async def readyz(self) -> tuple[int, str]:
        """Status and reasons of ``/readyz``; ``/livez`` is asked, too, and is always well."""
        assert (await self.http.get("/livez")).status_code == 200
        response = await self.http.get("/readyz")
        return response.status_code, "; ".join(response.json()["reasons"])

    def reconnected(self) -> Callable[[], bool]:
        """Whether a connection to the broker has been made anew since now."""
        before = self.mesh.statistics.reconnects
        return lambda: self.mesh.statistics.reconnects > before

    def begin(self) -> None:
        """The fault begins now."""
        self.began = time.monotonic()

    async def notices(self, within: float, sign: Callable[[], object] | None = None) -> None:
        """Wait until the gateway has noticed: it says that it is not ready, unless there is another sign."""
        await eventually_within(within, sign or (lambda: self.not_ready))
        self.noticed = time.monotonic() - self.began

    async def recovers(self, within: float, since: float | None = None) -> None:
        """Wait until the gateway is ready and a call of every client succeeds; ``since``: when that became possible."""
        since = time.monotonic() if since is None else since
        with anyio.fail_after(within + since - time.monotonic()):
            while True:
                await eventually_within(within, lambda: not self.not_ready)
                codes = [await caller.call(timeout=2.0) for caller in self.callers]
                if set(codes) == {"ok"}:
                    break
        self.recovered = time.monotonic() - since

    def check(self, record: Record, name: str, in_flight: list[tuple[Caller, list[str]]] | None = None) -> None:
        """Nobody was disconnected, nothing was answered twice or to somebody else, and nothing ran twice."""
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
    """Wait until ``condition`` holds; not longer than that."""
    with anyio.fail_after(seconds):
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
    """A gateway that reaches the broker by way of a proxy, a service that does not, and clients.

    ``before`` is done to the proxy before the gateway starts. The clients are of as many ``users`` (one each, unless
    given).
    """
    unique = secrets.token_hex(4)
    gateway_name, service_name = f"gateway-{unique}", f"echo-{unique}"
    chosen: dict[str, Any] = {"service_name": gateway_name, "expose": ["*.*"], "request_timeout": 10.0} | settings
    service = SurvivingService()
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(url))
        if before is not None:
            before(proxy)
        running = await stack.enter_async_context(run_gateway(mesh_url=proxy.url, **chosen))
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
            # The services' descriptions are asked for once, and that is no part of any test.
            assert [await caller.call() for caller in callers] == ["ok"] * clients
        yield set_
        proxy.resume()
        proxy.accept()
    await delete_queues(service_url or url, set_.mesh, service_mesh)


async def delete_queues(url: str, *meshes: RabbitMQMesh) -> None:
    """Remove what ``meshes`` have declared, which would outlive them; what processes share stays while it is used."""
    async with await aio_pika.connect(url) as connection:
        for mesh in meshes:
            async with connection.channel() as channel:
                for queue in (mesh.reply_queue, mesh.event_queue, mesh.peers.queue):
                    await channel.queue_delete(queue)
            with contextlib.suppress(ChannelPreconditionFailed):
                async with connection.channel() as channel:
                    await channel.queue_delete(mesh.service_queue, if_unused=True)
                    # Of a stream the broker does not know whether it is used.
                    await channel.queue_delete(mesh.peers.stream)
                    await channel.exchange_delete(mesh.peers.exchange)


async def delete_shared(url: str, service_name: str) -> None:
    """Remove what the processes of a gateway have in common; their own queues expire."""
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        await channel.queue_delete(f"nuropb-{service_name}-sq")
        await channel.queue_delete(f"nuropb-{service_name}-records")
        await channel.exchange_delete(f"nuropb-{service_name}-fx")


@contextlib.contextmanager
def log_lines(caplog: Any) -> Any:
    """The lines that an operator sees, with their moments."""
    with caplog.at_level(logging.INFO):
        caplog.clear()
        yield lambda: [record for record in caplog.records if record.name.startswith(LOGGERS)]
