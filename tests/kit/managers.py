"""A gateway without sockets: its managers on one of the meshes, and clients that keep their frames."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import aio_pika
import anyio
import pytest

from nuropb_gateway_asgi import Identity, ServiceMeshManagerController, Settings
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.handler_manager import HandlerManager
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from nuropb_gateway_asgi.mesh.rabbitmq._lane import LaneName
from nuropb_gateway_asgi.service_mesh_manager import ServiceMeshManager
from nuropb_gateway_asgi.wire.interface import Mesh
from tests.kit.gateways import DEADLINE, eventually
from tests.unit.fakes import FakeHandler

__all__ = [
    "Client",
    "Controller",
    "EmbeddedTransport",
    "Frame",
    "Gateway",
    "Services",
    "authenticate",
    "delete_queues",
    "running",
    "settings_for_tests",
]

Frame = dict[str, Any]


class Client(FakeHandler):
    """A client's connection, with its answers by their ids."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._ids = itertools.count(1)
        self._more = asyncio.Event()
        self.on_send = self._more.set

    def send(self, kind: str, **payload: Any) -> str:
        """Send a frame and return its id."""
        payload.setdefault("id", f"{kind}-{next(self._ids)}")
        self._gateway.handlers.on_handler_message(self, json.dumps({"type": kind, "payload": payload}))
        return str(payload["id"])

    def answers(self, id_: str) -> list[Frame]:
        return [frame["payload"] for frame in self.frames if frame["payload"].get("id") == id_]

    @property
    def events(self) -> list[Frame]:
        return [frame["payload"] for frame in self.frames if frame["type"] == "event"]

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(DEADLINE):
            while not condition():
                self._more.clear()
                await self._more.wait()

    async def answer(self, id_: str) -> Frame:
        await self.until(lambda: self.answers(id_))
        return self.answers(id_)[0]

    async def ask(self, kind: str, **payload: Any) -> Frame:
        return await self.answer(self.send(kind, **payload))

    async def request(self, service: str, method: str, params: Mapping[str, Any] | None = None, **more: Any) -> Frame:
        return await self.ask("request", service=service, method=method, params=params or {}, **more)

    async def result(self, service: str, method: str, params: Mapping[str, Any] | None = None, **more: Any) -> Any:
        answer = await self.request(service, method, params, **more)
        assert answer["error"] is None
        return answer["result"]

    async def error(self, service: str, method: str, params: Mapping[str, Any] | None = None, **more: Any) -> Frame:
        answer = await self.request(service, method, params, **more)
        assert answer["result"] is None
        return dict(answer["error"])


class Controller(ServiceMeshManagerController):
    """A controller that keeps the events of its subscriptions."""

    def __init__(self) -> None:
        super().__init__(event_topic_subscriptions=["controller.#"])
        self.received: list[tuple[str, Any, Any, dict[str, Any]]] = []

    async def _handle_event_(self, topic: str, event: Any, target: Any, context: dict[str, Any]) -> None:
        self.received.append((topic, event, target, context))


class Services(NamedTuple):
    """The names of the services, and for the embedded mesh the services themselves."""

    echo: str
    stub: str
    objects: dict[str, Any]
    #: The lane of the mesh that calls them.
    lane: LaneName


class Gateway(NamedTuple):
    """The running managers of one gateway."""

    services: Services
    handlers: HandlerManager
    manager: ServiceMeshManager
    controller: Controller
    clients: list[Client]

    async def connect(self, user_id: str = "u1") -> Client:
        """Register a connection; its token is ``token-of-<user>``."""
        client = Client(self)
        await self.handlers.register(client, f"token-of-{user_id}")
        self.clients.append(client)
        return client


async def authenticate(token: str) -> Identity:
    user_id = token.removeprefix("token-of-")
    return Identity(user_id=user_id, username=user_id.upper(), token=token)


class EmbeddedTransport:
    """The part of nuropb's RMQAPI that a service publishes by, for services that nuropb does not host."""

    def __init__(self) -> None:
        self.transport = self
        self.mesh: EmbeddedMesh | None = None

    def publish_event(self, *, topic: str, event: Any, context: Any) -> None:
        self.send_message(payload={"topic": topic, "event": event, "context": context, "target": None})

    def send_message(self, *, payload: dict[str, Any]) -> None:
        assert self.mesh is not None
        context = json.dumps(payload["context"]).encode()
        event = json.dumps(payload["event"]).encode()
        self.mesh.publish(payload["topic"], event, context=context, trace_id=uuid4().hex, target=payload["target"])


async def delete_queues(url: str, *names: str) -> None:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        for name in names:
            await channel.queue_delete(name)


@contextlib.asynccontextmanager
async def running(request: pytest.FixtureRequest, services: Services, settings: Settings) -> AsyncIterator[Gateway]:
    mesh: Mesh
    url: str | None = None
    if services.objects:
        mesh = services.objects[services.echo]._api.mesh = EmbeddedMesh(
            services.objects, service_name=settings.service_name
        )
    else:
        url = request.getfixturevalue("amqp_url")
        mesh = RabbitMQMesh(
            url, service_name=settings.service_name, instance_id=settings.instance_id, lane=services.lane
        )
    policy = ExposePolicy(["*.*"], ["#"])
    handlers = HandlerManager(settings, authenticate, policy)
    controller = Controller()
    async with ServiceMeshManager(settings, handlers, mesh, policy, controller) as manager:
        gateway = Gateway(services, handlers, manager, controller, [])
        await eventually(lambda: manager.connected and handlers.revocations.complete)
        yield gateway
        # All frames that are still on their way to a client come before the answer to a later call.
        barrier = await gateway.connect("barrier")
        await barrier.result(services.echo, "echo")
        for client in gateway.clients:
            ids = [frame["payload"]["id"] for frame in client.frames if frame["type"] == "response"]
            assert len(ids) == len(set(ids)), "something was answered twice"
            assert client.closes == []
            gateway.handlers.unregister(client)
        assert manager.in_flight == 0
    if isinstance(mesh, RabbitMQMesh) and url is not None:
        await delete_queues(url, mesh.reply_queue, mesh.event_queue, mesh.service_queue)


def settings_for_tests(**values: Any) -> Settings:
    # The texts of exceptions stay in the gateway on every mesh, as they do by default with RabbitMQ.
    return Settings(service_name=f"gateway-{secrets.token_hex(4)}", **{"error_details": "nuropb"} | values)
