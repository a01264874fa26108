"""A gateway that is stopped, by every signal and in every state, and clients that come and go by the hundred."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import re
import secrets
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nuropb_gateway_asgi import ErrorCode
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.handlers.websocket import WebSocketHandler
from nuropb_gateway_asgi.limits.circuits import PAUSE
from tests.integration.conftest import Broker
from tests.integration.scene import Caller, Record, eventually_within, scene
from tests.kit.clients import RawClient, connect
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import Process, run_forked, run_module
from tests.servers.faults import FaultProxy
from tests.servers.surviving_service import SurvivingService, host

SECRET: Final = secrets.token_urlsafe(48)
#: Seconds.
EXIT_IN_OUTAGE, SHUTDOWN = 8.0, 5.0
#: An application that mounts a gateway.
HOST_APPLICATION: Final = """
from starlette.applications import Starlette
from nuropb_gateway_asgi import Gateway

gateway = Gateway()
app = Starlette()
gateway.mount(app, "/gw")
"""


@dataclass
class Stage:
    """A gateway in a process of its own, a service, and clients."""

    process: Process
    url: str
    http: httpx.AsyncClient
    service: SurvivingService
    name: str
    callers: list[Caller]
    proxy: FaultProxy

    async def hold(self, count: int, **more: Any) -> list[tuple[Caller, list[str]]]:
        held = self.service.holding
        in_flight = [(caller, await caller.start("hold", count, **more)) for caller in self.callers]
        await eventually(lambda: self.service.holding == held + count * len(in_flight))
        return in_flight

    async def exits(self, within: float, since: float) -> float:
        """Wait until the process has ended; return the seconds that it took."""
        await eventually_within(within + since - time.monotonic(), lambda: self.process.returncode is not None)
        seconds = time.monotonic() - since
        await self.process.wait()
        assert "Traceback" not in self.process.output
        return seconds


@contextlib.asynccontextmanager
async def stage(url: str, *arguments: str, prefix: str = "", clients: int = 4, **settings: str) -> AsyncIterator[Stage]:
    """Run ``python -m uvicorn`` with ``arguments``."""
    name, service = f"echo-{secrets.token_hex(4)}", SurvivingService()
    arguments = arguments or ("nuropb_gateway_asgi:app",)
    workers = 2 if "--workers" in arguments else 1
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(url))
        settings = {"MESH_URL": proxy.url, "JWT_KEY": SECRET, "EXPOSE": "*.*", "SERVICE_NAME": f"g-{name}"} | settings
        run = run_forked if workers == 1 else run_module
        process = await stack.enter_async_context(run("uvicorn", *arguments, "--port", "0", settings=settings))
        stack.push_async_callback(stop, process)
        mesh = await stack.enter_async_context(host(url, name, service))
        stack.callback(service.released.set)
        site = f"127.0.0.1:{(await process.line(r'running on http://127.0.0.1:([0-9]+)'))[1]}{prefix}"
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{site}", trust_env=False, timeout=DEADLINE)
        )
        if workers > 1:  # each answers for itself
            await eventually(lambda: process.output.count("mesh: revocations are read") == workers)
        await eventually_status(http, 200)
        await eventually(lambda: mesh.connected)
        tasks = await stack.enter_async_context(anyio.create_task_group())
        callers = []
        for number in range(clients):
            token = issue_token(SECRET, f"user-{number}")
            client = await stack.enter_async_context(connect(f"ws://{site}/ws", token))
            callers.append(caller := Caller(client, name))
            tasks.start_soon(caller.read)
            assert await caller.call() == "ok"
        yield Stage(process, f"ws://{site}/ws", http, service, name, callers, proxy)


async def eventually_status(http: httpx.AsyncClient, status: int) -> None:
    """Wait until ``/readyz`` has that status."""
    with anyio.fail_after(DEADLINE):
        while (await http.get("/readyz")).status_code != status:
            await anyio.sleep(0.02)


async def stop(process: Process) -> None:
    """End the process by its own signal, if it runs: a killed one would leave its workers behind."""
    if process.returncode is None:
        process.signal(signal.SIGTERM)
        with anyio.move_on_after(DEADLINE):
            while process.returncode is None:
                await anyio.sleep(0.02)


async def goodbye(caller: Caller) -> None:
    """Wait for the goodbye frame, with the time to come back."""
    await eventually(lambda: topics(caller) == ["goodbye"])
    (frame,) = caller.client.inbox
    event = frame["payload"]["event"]
    assert event["reason"] == "draining"
    assert 0 <= event["retry_after_ms"] < 5000


def topics(caller: Caller) -> list[str]:
    return [frame["payload"]["topic"] for frame in caller.client.inbox]


def close_code(caller: Caller) -> int | None:
    return None if caller.closed is None or caller.closed.rcvd is None else caller.closed.rcvd.code


@pytest.mark.parametrize(
    ("how", "number"),
    [("alone", signal.SIGTERM), ("alone", signal.SIGINT), ("workers", signal.SIGTERM), ("mounted", signal.SIGTERM)],
)
async def test_a_stop_in_good_order(
    amqp_url: str, how: str, number: signal.Signals, tmp_path: Path, record_property: Record
) -> None:
    (tmp_path / "host_application.py").write_text(HOST_APPLICATION)
    arguments = {
        "alone": ["nuropb_gateway_asgi:app"],
        "workers": ["nuropb_gateway_asgi:app", "--workers", "2"],
        "mounted": ["host_application:app", "--app-dir", str(tmp_path)],
    }[how]
    async with stage(amqp_url, *arguments, prefix="/gw" if how == "mounted" else "") as set_:
        in_flight = await set_.hold(5)
        set_.process.signal(number)
        for caller in set_.callers:
            await goodbye(caller)
        released = time.monotonic()
        set_.service.released.set()
        for caller, ids in in_flight:
            assert await caller.ended(ids) == {"ok": 5}
        seconds = await set_.exits(10, released)
        assert [close_code(caller) for caller in set_.callers] == [1012] * 4
        assert [caller.doubled + caller.unanswered for caller in set_.callers] == [0] * 4
        record_property("fault", f"{number.name}, {how}")
        record_property("in flight", 20)
        record_property("lost", 0)
        record_property("exit after the last answer", seconds)


@pytest.mark.parametrize("calls", [0, 3])
async def test_a_stop_during_an_outage(amqp_url: str, calls: int, record_property: Record) -> None:
    async with stage(amqp_url, clients=2) as set_:
        if calls:
            await set_.hold(calls)
        set_.proxy.refuse()
        set_.proxy.cut()
        await eventually_status(set_.http, 503)
        since = time.monotonic()
        set_.process.signal(signal.SIGTERM)
        for caller in set_.callers:
            await goodbye(caller)
        seconds = await set_.exits(EXIT_IN_OUTAGE, since)
        assert [close_code(caller) for caller in set_.callers] == [1012] * 2
        record_property("fault", f"SIGTERM in an outage, {2 * calls} calls in flight")
        record_property("exit", seconds)


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_client_that_does_not_read_holds_nothing_up(
    amqp_url: str, signals: int, record_property: Record
) -> None:
    """A call that never ends does not hold it up either; a second signal ends it at once."""
    drain = 60.0 if signals == 2 else 1.0
    settings = {"DRAIN_TIMEOUT": str(drain), "WRITE_TIMEOUT": "600", "MAX_IN_FLIGHT": "1000"}
    async with stage(amqp_url, clients=1, OUTBOX_SIZE=str(2**26), **settings) as set_:
        token = issue_token(SECRET, "deaf")
        async with RawClient.open(set_.url, receive_buffer=4096) as deaf:
            await deaf.handshake("/ws", ("Authorization", f"Bearer {token}"))
            for _ in range(200):
                await deaf.send_json({"type": "ping", "payload": "x" * 60_000})
            # The gateway has more bytes for the client than all buffers on the way hold.
            with anyio.fail_after(DEADLINE):
                while (await metrics(set_.http)).get("nuropb_gateway_outbox_bytes", 0.0) < 2**20:
                    await anyio.sleep(0.05)
            await set_.hold(1, timeout=60.0)
            since = time.monotonic()
            set_.process.signal(signal.SIGTERM)
            await goodbye(set_.callers[0])
            if signals == 2:
                since = time.monotonic()
                set_.process.signal(signal.SIGTERM)
            seconds = await set_.exits(SHUTDOWN + (0.0 if signals == 2 else drain), since)
        record_property("fault", f"SIGTERM x {signals}, a client that does not read, a call without end")
        record_property("exit", seconds)


async def metrics(http: httpx.AsyncClient) -> dict[str, float]:
    """Return the metrics of WebSockets, by name and the values of all other labels."""
    samples = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            assert sample.labels.pop("transport", "websocket") == "websocket"
            samples[" ".join((sample.name, *sample.labels.values()))] = sample.value
    return samples


# --- clients that come and go -----------------------------------------------------------------------------------


class Visitor:
    """A client that leaves in the middle of something."""

    def __init__(self, url: str, service: str, random_: random.Random) -> None:
        self._url = url
        self._service = service
        self._random = random_

    async def visit(self) -> None:
        """Connect, and leave in one of these ways."""
        way = self._random.choice([self._half_a_handshake, self._no_hello, self._in_the_middle, self._in_good_order])
        with anyio.move_on_after(self._random.uniform(0.0, 0.05)):  # at any point
            await way()

    async def _half_a_handshake(self) -> None:
        request = RawClient.upgrade("/ws", ("Authorization", "Bearer visitor"))
        async with RawClient.open(self._url) as client:
            await client.send(request[: self._random.randrange(len(request))])
            client.abort()

    async def _no_hello(self) -> None:
        async with RawClient.open(self._url) as client:
            await client.send(RawClient.upgrade("/ws", ("Authorization", "Bearer visitor")))
            client.abort()

    async def _in_the_middle(self) -> None:
        async with connect(self._url, "visitor") as client:
            await client.send("subscribe", topics=[f"news.{self._random.randrange(10)}"])
            await client.request(f"{self._service}.hold", {"id": secrets.token_hex(8)}, id="held", timeout=60.0)
            await client.request(f"{self._service}.echo", {"id": secrets.token_hex(8)}, id="echo")
            client.abort()

    async def _in_good_order(self) -> None:
        async with connect(self._url, "visitor") as client:
            await client.request(f"{self._service}.hold", {"id": secrets.token_hex(8)}, id="held", timeout=60.0)
            await client.send("cancel", id="held")
            await client.call(f"{self._service}.echo", {"id": secrets.token_hex(8)})


def handlers() -> int:
    """Return the objects that are still referenced."""
    gc.collect()
    return sum(isinstance(each, WebSocketHandler) for each in gc.get_objects())


def file_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    """Return the memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.usefixtures("patient_mesh")
async def test_two_hundred_visits_leave_nothing_behind(rabbitmq: Broker, record_property: Record) -> None:
    seed = secrets.randbits(32)
    print(f"{seed=}")
    async with scene(rabbitmq.url, clients=1, max_connections_per_user=1000, expose_topics=["#"]) as set_:
        visitor = Visitor(set_.running.url, set_.callers[0].service, random.Random(seed))

        async def visits(count: int) -> tuple[int, int]:
            for _ in range(count // 10):
                async with anyio.create_task_group() as tasks:
                    for _ in range(10):
                        tasks.start_soon(visitor.visit)
            set_.service.released.set()
            assert await set_.callers[0].call() == "ok"
            await eventually(lambda: set_.running.occupancy == (1, 1, 0))
            await eventually(
                lambda: set_.mesh.subscriptions.bound == {"#"}
            )  # the targeted events of the client that is still there
            set_.service.released.clear()
            await eventually(lambda: len(asyncio.all_tasks()) <= before)
            await eventually(lambda: handlers() == 1)
            return file_descriptors(), resident()

        before = len(asyncio.all_tasks())
        unique = set_.callers[0].service.partition("-")[2]
        queues = await queues_of(rabbitmq, unique)
        descriptors, memory = await visits(50)  # caches fill
        after = await visits(200)
        record_property("fault", "200 visits")
        record_property("file descriptors", f"{descriptors} -> {after[0]}")
        record_property("memory, MiB", f"{memory / 2**20:.1f} -> {after[1] / 2**20:.1f}")
        assert after[0] <= descriptors
        assert after[1] - memory < 10 * 2**20
        assert await queues_of(rabbitmq, unique) == queues
        set_.check(record_property, "200 visits")


async def queues_of(rabbitmq: Broker, unique: str) -> list[str]:
    """Return the queues with ``unique`` in their names."""
    if rabbitmq.node is None:
        return []  # a broker that is not ours can only be asked by name
    queues = await anyio.to_thread.run_sync(rabbitmq.node.list_queues, rabbitmq.vhost)
    return sorted(queue["name"] for queue in queues if unique in queue["name"])


# --- metrics ----------------------------------------------------------------------------------------------------


CODES: Final = {code.value for code in ErrorCode} | {"ok"}


async def test_the_metrics_move_with_what_happens(amqp_url: str) -> None:
    async with scene(amqp_url, request_timeout=1.0) as set_:
        caller, other = set_.callers
        name = caller.service
        assert await caller.ended(await caller.start("fail", 3)) == {"service_error": 3}
        assert await caller.call("missing") == "method_not_found"
        invented = [secrets.token_hex(8) for _ in range(20)]
        for service in invented:
            assert await caller.call(service=service) == "service_unavailable"
        for _ in range(5):
            assert await caller.ended(await caller.start("hold", timeout=0.2)) == {"timeout": 1}
        async with RawClient.open(set_.running.url) as nobody:
            assert "401" in await nobody.handshake("/ws", ("Authorization", "Bearer bad"))
        for _ in range(10):
            await other.client.send_text("{}")
        await eventually(lambda: other.closed)
        await anyio.sleep(PAUSE)
        held = await caller.start("hold", timeout=0.9)
        values = await metrics(set_.http)
        assert {
            f"nuropb_gateway_requests_total ok {name}": 2.0,
            f"nuropb_gateway_requests_total service_error {name}": 3.0,
            f"nuropb_gateway_requests_total method_not_found {name}": 1.0,
            f"nuropb_gateway_requests_total timeout {name}": 5.0,
            "nuropb_gateway_requests_total service_unavailable other": 20.0,
            f"nuropb_gateway_request_duration_seconds_count {name}": 11.0,
            "nuropb_gateway_request_duration_seconds_count other": 20.0,
            "nuropb_gateway_handshakes_refused_total invalid_token": 1.0,
            "nuropb_gateway_connections_closed_total 4501": 1.0,
            "nuropb_gateway_connections": 1.0,
            "nuropb_gateway_mesh_connected": 1.0,
            "nuropb_gateway_mesh_blocked": 0.0,
            "nuropb_gateway_processes": 1.0,
            "nuropb_gateway_connections_limit": 10_000.0,
            "nuropb_gateway_mesh_reconnects_total": 0.0,
            "nuropb_gateway_open_circuits": 1.0,
            "nuropb_gateway_outbox_bytes": 0.0,
        }.items() <= (values | {"nuropb_gateway_mesh_reconnects_total": 0.0}).items()
        assert values["nuropb_gateway_published_total"] >= 31
        assert values["nuropb_gateway_mesh_round_trip_seconds_count"] >= 1
        assert values["nuropb_gateway_loop_lag_seconds_count"] >= 1
        await labels_are_the_operators(set_.http, {name}, invented)

        set_.service.released.set()
        await caller.ended(held)
        await eventually(lambda: not set_.running.gateway.service_mesh_manager.open_circuits)
        reconnected = set_.reconnected()
        set_.proxy.refuse()
        set_.proxy.cut()
        await eventually(lambda: set_.not_ready)
        values = await metrics(set_.http)
        assert values["nuropb_gateway_mesh_connected"] == 0
        set_.proxy.accept()
        await eventually(lambda: reconnected() and not set_.not_ready)
        values = await metrics(set_.http)
        assert values["nuropb_gateway_mesh_connected"] == 1
        assert values["nuropb_gateway_mesh_reconnects_total"] >= 1
        assert values["nuropb_gateway_dropped_total late_reply"] >= 1
        assert values["nuropb_gateway_open_circuits"] == 0
        assert values["nuropb_gateway_in_flight"] == 0


async def labels_are_the_operators(http: httpx.AsyncClient, services: set[str], invented: list[str]) -> None:
    """No value of a label comes from a client."""
    text = (await http.get("/metrics")).text
    assert not any(service in text for service in invented)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("service", "other") in services | {"other"}
            if "service" in sample.labels and "duration" not in sample.name:
                assert labels.pop("code") in CODES
            assert labels.pop("code", "1000").isdigit()
            assert labels.pop("reason", "a").replace("_", "").isalpha()
            assert labels.pop("transport", "websocket") == "websocket"
            assert labels.pop("recovered", "yes") in ("yes", "no")
            assert labels.pop("direction", "in") in ("in", "out")
            labels.pop("le", None)
            assert labels == {}


async def test_the_metrics_of_several_workers_are_added_up(
    amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    async with stage(amqp_url, "nuropb_gateway_asgi:app", "--workers", "2", clients=8) as set_:
        for caller in set_.callers:
            assert await caller.ended(await caller.start(count=10)) == {"ok": 10}
        total = f"nuropb_gateway_requests_total ok {set_.name}"
        assert (await gauges_are(set_, connections=8))[total] == 8 * 11
        # One worker dies and is replaced; then the other.
        pids = re.findall(r"Started server process \[([0-9]+)\]", set_.process.output)
        for started, pid in enumerate(pids, 3):
            os.kill(int(pid), signal.SIGKILL)
            await eventually(lambda: set_.process.output.count("mesh: revocations are read") == started)  # noqa: B023
            left = sum(caller.closed is None for caller in set_.callers)
            assert (await gauges_are(set_, connections=left))[total] == 8 * 11
        assert left == 0


async def gauges_are(set_: Stage, connections: int) -> dict[str, float]:
    """Wait for these values: a worker hands its gauges to the others every few seconds."""
    with anyio.fail_after(DEADLINE):
        while True:
            with contextlib.suppress(httpx.TransportError):  # the worker that answered before is gone
                values = await metrics(set_.http)
                found = values["nuropb_gateway_connections"], values["nuropb_gateway_mesh_connected"]
                if found == (connections, 2.0):
                    return values
            await anyio.sleep(0.1)
