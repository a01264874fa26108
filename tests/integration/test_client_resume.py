"""The JavaScript client comes back to its sessions, at the real gateway: calls and events survive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nuropb_gateway_asgi.authentication import issue_token
from tests.integration.test_fleet import SECRET, fleet
from tests.kit.balancer import run_balancer
from tests.kit.conformance import THE_END, JavaScriptDriver
from tests.kit.gateways import RunningGateway, eventually
from tests.kit.javascript import node
from tests.kit.scripted import Markers
from tests.servers.javascript import CLIENT
from tests.servers.processes import ServiceProcess


@pytest.fixture
async def two(amqp_url: str, patient_processes: None) -> AsyncIterator[list[RunningGateway]]:
    async with fleet(amqp_url, 2, expose_topics=["#"], drain_timeout=10.0) as running:
        yield running


def port_of(running: RunningGateway) -> int:
    return int(running.url.split(":")[2].split("/")[0])


@pytest.mark.parametrize(
    ("how", "to"),
    [("cut", 0), ("cut", 1), ("drain", 1)],
    ids=["at the same process", "at another process", "at another process, because of a drain"],
)
async def test_a_client_comes_back_to_its_calls_and_events(
    two: list[RunningGateway], echo_service: ServiceProcess, how: str, to: int
) -> None:
    first, second = two[0], two[to]
    publish = first.gateway.service_mesh_manager.publish_event
    events = [{"event": "s", "is": {"topic": "lab.number", "event": {"number": number}}} for number in range(105)]
    script = {
        "token": issue_token(SECRET, "alice", lifetime=600),
        "step_timeout": 20,
        "client": [
            {"subscribe": "lab.#", "as": "s"},
            {"ready": "s"},
            {"heard": "state", "is": {"name": "open"}},
            {"request": [echo_service.service, "slow", {"seconds": 0.3}], "as": "a"},
            {"request": [echo_service.service, "slow", {"seconds": 1.5}], "as": "b"},
            {"command": [echo_service.service, "slow", {"seconds": 0}], "as": "c"},
            {"result": "c", "is": None},
            {"signal": "calling"},
            {"heard": "state", "is": {"name": "open", "resumed": True}},
            {"signal": "back"},
            {"result": "a", "is": 0.3},
            {"result": "b", "is": 1.5},
            *events,
            {"silent": "s.gap"},
            {"silent": "warning"},
        ],
    }
    markers = Markers()
    async with (
        JavaScriptDriver.start(*node(), str(CLIENT / "tests" / "driver.js")) as driver,
        run_balancer(port_of(first)) as balancer,
        asyncio.TaskGroup() as tasks,
    ):
        playing = tasks.create_task(driver.run(f"ws://127.0.0.1:{balancer.port}/ws", script, markers))
        await markers.wait("calling")
        balancer.backends[:] = [port_of(second)]
        if how == "drain":
            tasks.create_task(first.gateway.drain())
        else:
            await balancer.cut()
        for number in range(5):
            await publish("lab.number", {"number": number})
        await markers.wait("back")
        for number in range(5, 105):
            await publish("lab.number", {"number": number})
        markers.set(THE_END)
        await playing
    await eventually(lambda: second.gateway.service_mesh_manager.resumption.is_idle)
