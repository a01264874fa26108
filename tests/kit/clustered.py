"""A gateway, a service and clients on a cluster whose nodes die."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio
import httpx

from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.scene import Caller
from tests.kit.clients import connect
from tests.kit.gateways import RunningGateway, run_gateway
from tests.servers.cluster import RabbitMQCluster
from tests.servers.rabbitmq import RabbitMQNode
from tests.servers.surviving_service import SurvivingService, host

__all__ = ["SECONDS", "Stage", "in_thread", "mesh_of", "stage", "warnings_of"]

#: Seconds that a test waits for a cluster at most; a busy machine with three nodes is slow.
SECONDS: Final = 40.0


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of a node or cluster, which blocks."""
    return await anyio.to_thread.run_sync(function, *arguments)


def mesh_of(running: RunningGateway) -> RabbitMQMesh:
    """The mesh of a gateway."""
    mesh = running.gateway.service_mesh_manager.mesh
    assert isinstance(mesh, RabbitMQMesh)
    return mesh


async def eventually(condition: Callable[[], object]) -> None:
    """Wait until ``condition`` holds."""
    with anyio.fail_after(SECONDS):
        while not condition():
            await anyio.sleep(0.01)


async def warnings_of(running: RunningGateway) -> tuple[int, list[str]]:
    """Return status and warnings of ``/readyz``."""
    async with httpx.AsyncClient(base_url=running.site.http(), trust_env=False, timeout=SECONDS) as http:
        answer = await http.get("/readyz")
    return answer.status_code, answer.json()["warnings"]


@dataclass
class Stage:
    """A gateway with a client, and a service whose queues are on other nodes than those of the gateway."""

    cluster: RabbitMQCluster
    vhost: str
    running: RunningGateway
    #: The node that holds, or leads, the gateway's queues.
    home: RabbitMQNode
    service: SurvivingService
    service_name: str
    caller: Caller

    @property
    def gateway_name(self) -> str:
        return self.running.gateway.settings.service_name

    @property
    def mesh(self) -> RabbitMQMesh:
        return mesh_of(self.running)

    @property
    def others(self) -> Sequence[RabbitMQNode]:
        """The nodes beside the home."""
        return [node for node in self.cluster.nodes if node is not self.home]

    def ready(self) -> bool:
        """Return whether the gateway is ready."""
        return not self.running.gateway.not_ready()

    async def answered(self) -> float:
        """Call until a call succeeds; return the seconds that it took."""
        began = time.monotonic()
        with anyio.fail_after(SECONDS):
            while await self.caller.call(timeout=5.0) != "ok":
                await anyio.sleep(0.05)
        return time.monotonic() - began

    async def hears(self, topic: str) -> None:
        """Publish events until one arrives: those before the queue is bound again are lost."""
        with anyio.fail_after(SECONDS):
            while not any(frame["payload"]["topic"] == topic for frame in self.caller.client.inbox):
                if self.ready():
                    await self.running.gateway.service_mesh_manager.publish_event(topic, {})
                await anyio.sleep(0.1)

    async def lose_home(self, how: Callable[[RabbitMQNode], None] = RabbitMQNode.kill) -> None:
        """Kill the node that holds the gateway's queues."""
        await in_thread(how, self.home)


@contextlib.asynccontextmanager
async def stage(cluster: RabbitMQCluster, queue_type: str, **settings: Any) -> AsyncIterator[Stage]:
    """Run a gateway, a service and a client on a vhost of their own."""
    unique = secrets.token_hex(4)
    vhost, gateway_name, service_name = f"vhost-{unique}", f"gateway-{unique}", f"echo-{unique}"
    url = await in_thread(cluster.add_vhost, vhost, queue_type)
    service = SurvivingService()
    chosen: dict[str, Any] = {"service_name": gateway_name, "expose": ["*.*"], "expose_topics": ["#"]} | settings
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(run_gateway(mesh_url=url, **chosen))
        await eventually(lambda: not running.gateway.not_ready())
        # A queue is made on the node at which its declaration comes.
        port = mesh_of(running).addresses.used["consume"].port
        (home,) = (node for node in cluster.nodes if node.port == port)
        others = [node for node in cluster.nodes if node is not home]
        service_mesh = await stack.enter_async_context(host(cluster.url(vhost, others), service_name, service))
        stack.callback(service.released.set)
        await eventually(lambda: service_mesh.connected)
        client = await stack.enter_async_context(connect(running.url, "alice"))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        caller = Caller(client, service_name)
        tasks.start_soon(caller.read)
        set_ = Stage(cluster, vhost, running, home, service, service_name, caller)
        assert await caller.call() == "ok"
        yield set_
        tasks.cancel_scope.cancel()  # it would read on until the gateway misses its pongs
