"""The gateway is stopped, by every signal and in every state, and clients come and go by the hundred."""

from __future__ import annotations

import contextlib
import gc
import os
import random
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
from tests.integration.conftest import Broker
from tests.integration.scene import Caller, Record, eventually_within, scene
from tests.kit.clients import RawClient, connect
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import Process, run_module
from tests.servers.faults import FaultProxy
from tests.servers.surviving_service import SurvivingService, host

SECRET: Final = secrets.token_urlsafe(48)
#: Seconds.
EXIT_IN_OUTAGE, SHUTDOWN = 5.0, 2.0
#: What `mount` looks like in an application of one's own.
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
        """Wait until the process has ended; how long that took."""
        await eventually_within(within + since - time.monotonic(), lambda: self.process._process.returncode is not None)
        seconds = time.monotonic() - since
        await self.process.wait()
        assert "Traceback" not in self.process.output
        return seconds


@contextlib.asynccontextmanager
async def stage(
    url: str, *arguments: str, prefix: str = "", clients: int = 4, **settings: str
) -> AsyncIterator[Stage]:
    """Run ``python -m uvicorn`` with ``arguments``."""
    name, service = f"echo-{secrets.token_hex(4)}", SurvivingService()
    arguments = arguments or ("nuropb_gateway_asgi:app",)
    workers = 2 if "--workers" in arguments else 1
    async with contextlib.AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(url))
        settings = {"MESH_URL": proxy.url, "JWT_KEY": SECRET, "EXPOSE": "*.*", "SERVICE_NAME": f"g-{name}"} | settings
        process = await stack.enter_async_context(
            run_module("uvicorn", *arguments, "--port", "0", settings=settings)
        )
        stack.push_async_callback(stop, process)
        mesh = await stack.enter_async_context(host(url, name, service))
        stack.callback(service.released.set)
        site = f"127.0.0.1:{(await process.line(r'running on http://127.0.0.1:([0-9]+)'))[1]}{prefix}"
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{site}", trust_env=False, timeout=DEADLINE)
        )
        if workers > 1:  # whichever of them is asked, it answers for itself
            await eventually(lambda: process.output.count(" mesh connected") == workers)
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
    """Have the process end its workers, if it is still there: whoever kills it leaves them behind."""
    if process._process.returncode is None:
        process.signal(signal.SIGTERM)
        with anyio.move_on_after(DEADLINE):
            while process._process.returncode is None:
                await anyio.sleep(0.02)


async def goodbye(caller: Caller) -> None:
    """Wait until the gateway has said goodbye, and when to come back."""
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
    """Nor does a call that never ends; a second signal makes it end at once."""
    drain = 60.0 if signals == 2 else 1.0
    settings = {"DRAIN_TIMEOUT": str(drain), "WRITE_TIMEOUT": "600", "MAX_IN_FLIGHT": "1000"}
    async with stage(amqp_url, clients=1, OUTBOX_SIZE=str(2**26), **settings) as set_:
        token = issue_token(SECRET, "deaf")
        async with RawClient.open(set_.url, receive_buffer=4096) as deaf:
            await deaf.handshake("/ws", ("Authorization", f"Bearer {token}"))
            for _ in range(200):
                await deaf.send_json({"type": "ping", "payload": "x" * 60_000})
            # The gateway has more for it than all buffers on the way hold.
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
    """What ``/metrics`` says: by name, with the labels' values behind it."""
    samples = {}
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            samples[" ".join((sample.name, *sample.labels.values()))] = sample.value
    return samples
