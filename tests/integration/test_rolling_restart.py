"""Restarts and crashes of processes behind a load balancer, under clients that call and listen all the time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import anyio
import pytest

from nuropb_gateway_asgi.client import Client, ConnectionLost, Gap, GatewayError, GatewayEvent, Goodbye, State, connect
from nuropb_gateway_asgi.exceptions import MeshUnavailable
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from tests.integration.conftest import Broker
from tests.integration.scene import Record, delete_queues, delete_shared, eventually_within
from tests.kit.balancer import Balancer, run_balancer
from tests.kit.processes import GatewayProcess, run_gateway_process, token_of
from tests.kit.waiting import DEADLINE
from tests.servers.rabbitmq import RabbitMQNode, free_port
from tests.servers.surviving_service import SurvivingService, host

#: Clients of a rolling restart: enough for each process to have forty. `make matrix` has 400.
CLIENTS: Final = int(os.environ.get("RESTART_CLIENTS", "160"))
#: Seconds between two calls of a client, and between two events.
CALL_INTERVAL: Final = 5.0
EVENT_INTERVAL: Final = 1.0
#: Seconds over which the reconnections of the clients are spread.
SPREAD: Final = 2.0
#: Seconds within which all clients have to be connected again.
PATIENCE: Final = DEADLINE


@dataclass
class Stay:
    """One connection of a client, from its beginning to its end."""

    #: The process of the connection.
    instance_id: str
    #: Number of events published before the subscription took effect; None until it does.
    published: int | None = None
    serials: list[int] = field(default_factory=list)
    goodbye: Goodbye | None = None
    #: The close code, the time of the close, and the time of the next attempt to connect.
    close_code: int | None = None
    lost_at: float = 0.0
    back_at: float = 0.0


class Caller:
    """A client that calls and listens all the time, and keeps all outcomes."""

    def __init__(self, number: int, crowd: Crowd) -> None:
        self.name = f"user-{number}"
        self.idempotent = number % 2 == 0
        #: Outcomes of calls: "ok", "mixed up" (another call's answer), "lost" with the close code, or a class of error.
        self.outcomes: Counter[str] = Counter()
        #: Events that must not happen: gaps, and warnings of the client, which warns of unknown and of second answers.
        self.complaints: list[GatewayError | Gap] = []
        self.stays: list[Stay] = []
        self._crowd = crowd
        self._calls = 0

    @property
    def listens(self) -> bool:
        """Whether it has an open connection with a subscription in force."""
        return bool(self.stays) and self.stays[-1].published is not None and self.stays[-1].close_code is None

    async def run(self) -> None:
        """Connect, call and listen, until cancelled."""
        url, token = self._crowd.url, token_of(self.name)
        # Without sessions: with them, a connection would be replaced before its end, and none would be lost.
        async with connect(url, token=token, proxy=None, open_timeout=PATIENCE, resume=False) as client:
            self._begin(client)
            client.on("state", lambda state: self._on_state(client, state))
            client.on("warning", self.complaints.append)
            client.on("goodbye", self._on_goodbye)
            client.on("gap", self._on_gap)
            async with client.subscribe("news.#", self._on_event):
                self._listen()
                while True:
                    await asyncio.sleep(CALL_INTERVAL * random.uniform(0.5, 1.5))
                    await self._call(client)

    async def _call(self, client: Client) -> None:
        self._calls += 1
        id_ = f"{self.name}.{self._calls}"
        try:
            answer = await client.request(
                self._crowd.service, "echo", {"id": id_}, timeout=20, idempotent=self.idempotent, retries=5
            )
        except ConnectionLost as error:
            self.outcomes[f"lost {error.close_code}"] += 1
        except GatewayError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes["ok" if answer == id_ else "mixed up"] += 1

    def _begin(self, client: Client) -> None:
        assert client.hello is not None
        self.stays.append(Stay(client.hello.instance_id))

    def _listen(self) -> None:
        self.stays[-1].published = self._crowd.published

    def _on_gap(self, gap: Gap) -> None:
        if gap.reason == "reconnected":
            self._listen()
        else:
            self.complaints.append(gap)

    def _on_event(self, event: GatewayEvent) -> None:
        self.stays[-1].serials.append(event.event)

    def _on_goodbye(self, goodbye: Goodbye) -> None:
        self.stays[-1].goodbye = goodbye

    def _on_state(self, client: Client, state: State) -> None:
        stay = self.stays[-1]
        if state.name == "reconnecting" and stay.close_code is None:
            assert isinstance(state.error, ConnectionLost)
            stay.close_code, stay.lost_at = state.error.close_code, time.monotonic()
        elif state.name == "connecting" and not stay.back_at:
            stay.back_at = time.monotonic()
        elif state.name == "open":
            self._begin(client)


class Crowd:
    """All clients, and the publisher of their events."""

    def __init__(self, url: str, service: str, mesh: RabbitMQMesh, count: int) -> None:
        self.url = url
        self.service = service
        self.published = 0
        self._mesh = mesh
        self.callers = [Caller(number, self) for number in range(count)]

    def publish(self) -> bool:
        """Publish one more event; return False if the publisher has no connection at the moment."""
        try:
            self._mesh.publish("news.today", b"%d" % self.published, context=b"{}", trace_id="t", target=None)
        except MeshUnavailable:
            return False
        self.published += 1
        return True

    async def keep_publishing(self) -> None:
        while True:
            self.publish()
            await asyncio.sleep(EVENT_INTERVAL)

    async def all_listen(self) -> None:
        """Wait until all clients are connected and subscribed, and get new events."""
        await eventually_within(PATIENCE, lambda: all(each.listens for each in self.callers))
        latest = self.published
        await eventually_within(PATIENCE, self.publish)
        await eventually_within(PATIENCE, lambda: all(latest in each.stays[-1].serials[-9:] for each in self.callers))

    @property
    def outcomes(self) -> Counter[str]:
        return sum((each.outcomes for each in self.callers), Counter())

    @property
    def stays(self) -> list[Stay]:
        return [stay for each in self.callers for stay in each.stays]

    def check(self, service: SurvivingService) -> None:
        """Check that no call got a second answer or that of another call, and no event was missed or came twice."""
        for caller in self.callers:
            assert caller.complaints == [], caller.name
        for stay in self.stays:
            assert all(two == one + 1 for one, two in pairwise(stay.serials)), stay
            if stay.serials and stay.published is not None:
                assert stay.serials[0] <= stay.published, stay
        # Only calls that the client marked as idempotent may have run twice.
        by_name = {caller.name: caller for caller in self.callers}
        again = [id_ for id_, count in service.calls.items() if count > 1]
        assert all(by_name[id_.partition(".")[0]].idempotent for id_ in again)

    def record(self, record: Record, service: SurvivingService) -> None:
        """Record the figures of this run."""
        for name, value in {
            **self.outcomes,
            "ran twice": service.repeated,
            "events published": self.published,
            "events delivered": sum(len(stay.serials) for stay in self.stays),
            "connections that ended": sum(stay.close_code is not None for stay in self.stays),
        }.items():
            record(name, value)


@dataclass
class Stage:
    """Processes of one gateway behind a load balancer, and their clients."""

    settings: dict[str, str]
    url: str
    options: tuple[str, ...]
    processes: dict[int, GatewayProcess]
    balancer: Balancer
    service: SurvivingService
    crowd: Crowd

    def process(self, port: int) -> contextlib.AbstractAsyncContextManager[GatewayProcess]:
        return run_gateway_process(self.url, "--port", str(port), *self.options, **self.settings)


@contextlib.asynccontextmanager
async def stage(url: str, *options: str, processes: int, clients: int) -> AsyncIterator[Stage]:
    """Run processes and clients; all clients are connected, and call and listen for as long as the context lasts."""
    service, unique = SurvivingService(), secrets.token_hex(4)
    # A busy machine makes the turns of a process long, and that is no overload.
    settings = {"service_name": f"gateway-{unique}", "expose": "*.*", "expose_topics": "news.#", "overload_delay": "0"}
    ports = [free_port() for _ in range(processes)]
    async with contextlib.AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(host(url, f"echo-{unique}", service))
        balancer = await stack.enter_async_context(run_balancer(*ports))
        crowd = Crowd(f"ws://127.0.0.1:{balancer.port}/ws", f"echo-{unique}", mesh, clients)
        set_ = Stage(settings, url, options, {}, balancer, service, crowd)
        for port in ports:
            set_.processes[port] = await stack.enter_async_context(set_.process(port))
        async with anyio.create_task_group() as tasks:
            for caller in crowd.callers:
                tasks.start_soon(caller.run)
            tasks.start_soon(crowd.keep_publishing)
            await crowd.all_listen()
            yield set_
            tasks.cancel_scope.cancel()
        await delete_queues(url, mesh)
    await delete_shared(url, settings["service_name"])


async def test_four_processes_are_restarted_one_by_one_under_many_clients(
    amqp_url: str, record_property: Record
) -> None:
    async with (
        contextlib.AsyncExitStack() as stack,
        stage(amqp_url, "--goodbye-spread", str(SPREAD), processes=4, clients=CLIENTS) as set_,
    ):
        crowd = set_.crowd
        for port, process in tuple(set_.processes.items()):
            # As an orchestrator does: out of the balancer, stopped, started, and back in when it is ready.
            set_.balancer.backends.remove(port)
            await process.stop()
            assert "Traceback" not in process.process.output
            set_.processes[port] = await stack.enter_async_context(set_.process(port))
            set_.balancer.backends.append(port)
            await crowd.all_listen()
        crowd.record(record_property, set_.service)
        crowd.check(set_.service)
        # Calls in flight are answered before the close; a client that reads the goodbye late may still lose a call.
        outcomes = crowd.outcomes
        assert set(outcomes) <= {"ok", "lost 1012"}, outcomes
        assert outcomes["lost 1012"] <= 0.05 * outcomes["ok"], outcomes
        assert all(len(caller.stays) > 1 for caller in crowd.callers)
        ended = [stay for stay in crowd.stays if stay.close_code is not None]
        assert {stay.close_code for stay in ended} == {1012}
        # Clients reconnected no earlier than they were told to, and were told different times.
        told: dict[str, Counter[int]] = {}
        for stay in ended:
            assert stay.goodbye is not None
            assert stay.back_at - stay.lost_at >= stay.goodbye.retry_after - 0.01
            told.setdefault(stay.instance_id, Counter())[int(stay.goodbye.retry_after / SPREAD * 5)] += 1
        for fifths in told.values():
            assert max(fifths.values()) <= 0.5 * fifths.total(), told


@pytest.fixture
def listed(rabbitmq: Broker, request: pytest.FixtureRequest) -> tuple[RabbitMQNode, str]:
    """A node whose queues can be listed, and one of its vhosts."""
    if rabbitmq.node is not None:
        return rabbitmq.node, rabbitmq.vhost
    return request.getfixturevalue("own_node"), "/"


async def test_a_process_that_is_killed_leaves_no_queue_and_nobody_else_notices(
    listed: tuple[RabbitMQNode, str], record_property: Record
) -> None:
    node, vhost = listed
    async with stage(node.url(vhost), "--queue-expires", "3", processes=3, clients=90) as set_:
        crowd, name = set_.crowd, re.escape(set_.settings["service_name"])

        async def queues() -> set[str]:
            found = await anyio.to_thread.run_sync(node.list_queues, vhost)
            return {each["name"] for each in found if re.fullmatch(rf"nuropb-{name}-.*-[ref]q", each["name"])}

        before = await queues()
        assert len(before) == 9
        port, mortal = next(iter(set_.processes.items()))
        instance_id = (await mortal.process.line(r"gateway (\w+) started"))[1]
        said = {each.port: len(each.process.stderr) for each in set_.processes.values()}
        mortal.kill()
        await eventually_within(PATIENCE, lambda: len([stay for stay in crowd.stays if stay.close_code]) == 30)
        await crowd.all_listen()
        with anyio.fail_after(PATIENCE):
            while len(left := await queues()) != 6:
                await anyio.sleep(0.1)
        assert left < before
        await crowd.all_listen()
        crowd.record(record_property, set_.service)
        crowd.check(set_.service)
        # The clients of the killed process connect to the other processes.
        killed = [stay for stay in crowd.stays if stay.instance_id == instance_id]
        assert [stay.close_code for stay in killed] == [1006] * 30
        assert set_.balancer.taken.count(port) == 30
        others = [caller for caller in crowd.callers if caller.stays[0].instance_id != instance_id]
        assert {len(caller.stays) for caller in others} == {1}
        assert {outcome for caller in others for outcome in caller.outcomes} == {"ok"}
        assert set(crowd.outcomes) <= {"ok", "lost 1006"}, crowd.outcomes
        for each in set_.processes.values():
            log = "\n".join(each.process.stderr[said[each.port] :])
            assert not re.search(r"WARNING|ERROR|Traceback", log), log
