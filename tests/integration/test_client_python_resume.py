"""Sessions of the Python client with the real gateway: connections break, and processes stop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.client import Backoff, Client, ConnectionLost, State, connect
from tests.integration.test_fleet import SECRET, fleet
from tests.integration.test_resume import Lab, resumption, small
from tests.kit.gate_proxy import Proxy
from tests.kit.gateways import RunningGateway, eventually
from tests.servers.processes import ServiceProcess

QUICK = Backoff(0.01, 0.05)


def token() -> str:
    return issue_token(SECRET, "alice", lifetime=600)


@contextlib.asynccontextmanager
async def through(running: RunningGateway) -> AsyncIterator[tuple[Proxy, str]]:
    """Run a proxy in front of a gateway. Yields the proxy and the URL that leads through it."""
    async with Proxy(f"amqp://user:password@127.0.0.1:{running.site.port}/") as proxy:
        yield proxy, f"ws://127.0.0.1:{proxy.port}/ws"


def states(client: Client) -> list[State]:
    """Return the list of the client's states from now on."""
    found: list[State] = []
    client.on("state", found.append)
    return found


async def resumed(found: list[State]) -> State:
    """Wait until the connection is open again, and return the state."""
    await eventually(lambda: any(each.name == "open" for each in found))
    return next(each for each in found if each.name == "open")


async def test_a_call_outlives_its_connection_and_runs_once() -> None:
    lab = Lab()
    async with small(lab) as running, through(running) as (proxy, url):
        async with connect(url, token=token(), proxy=None, backoff=QUICK) as client:
            session_id = client.hello.session_id if client.hello else ""
            found = states(client)
            call = asyncio.create_task(client.request("lab", "wait", {"number": 7}))
            await eventually(lambda: lab.calls)
            proxy.cut()
            assert (await resumed(found)).resumed is True
            assert client.hello is not None
            assert client.hello.session_id == session_id
            lab.gate.set()
            assert await call == 7
        assert lab.calls == [{"number": 7}]
        await eventually(lambda: resumption(running).is_idle)


async def test_events_of_the_time_away_arrive_once_and_in_order() -> None:
    async with small(Lab()) as running, through(running) as (proxy, url):
        publish = running.gateway.service_mesh_manager.publish_event
        async with (
            connect(url, token=token(), proxy=None, backoff=QUICK) as client,
            client.subscribe("lab.#") as events,
        ):
            gaps: list[Any] = []
            events.on("gap", gaps.append)
            for number in range(300):
                if number % 100 == 50:
                    proxy.cut()
                await publish("lab.number", {"number": number})
            numbers = [(await anext(events)).event["number"] for _ in range(300)]
            assert numbers == list(range(300))
            assert not gaps


async def test_a_call_that_ran_and_whose_answer_was_lost_is_answered_without_running_again() -> None:
    lab = Lab()
    async with small(lab) as running, through(running) as (proxy, url):
        async with connect(url, token=token(), proxy=None, backoff=QUICK) as client:
            await client.request("lab", "echo", {"text": "first"})
            (link,) = [each for each in proxy.links() if each.writers]
            link.to_client.clear()
            call = asyncio.create_task(client.request("lab", "echo", {"text": "second"}))
            await eventually(lambda: len(lab.calls) == 2)
            proxy.cut()
            assert await call == "second"
        assert len(lab.calls) == 2


async def test_a_call_that_never_reached_the_gateway_is_sent_again() -> None:
    lab = Lab()
    async with small(lab) as running, through(running) as (proxy, url):
        async with connect(url, token=token(), proxy=None, backoff=QUICK) as client:
            await client.request("lab", "echo", {"text": "first"})
            (link,) = [each for each in proxy.links() if each.writers]
            link.to_broker.clear()
            call = asyncio.create_task(client.request("lab", "echo", {"text": "second"}))
            await asyncio.sleep(0)
            proxy.cut()
            assert await call == "second"
        assert [each["text"] for each in lab.calls] == ["first", "second"]


async def test_a_client_that_closes_ends_its_session() -> None:
    async with small(Lab()) as running:
        async with connect(running.url, token=token(), proxy=None) as client:
            await client.request("lab", "echo", {})
        await eventually(lambda: resumption(running).is_idle)


async def test_a_session_that_is_over_fails_its_calls_and_says_why() -> None:
    lab = Lab()
    async with (
        small(lab) as running,
        through(running) as (proxy, url),
        connect(url, token=token(), proxy=None, backoff=QUICK) as client,
    ):
        found = states(client)
        call = asyncio.create_task(client.request("lab", "wait", {"number": 1}))
        await eventually(lambda: lab.calls)
        proxy.refuses = True
        proxy.cut()
        await eventually(lambda: not len(running.gateway.handler_manager))
        resumption(running).keeper.end_all()
        proxy.refuses = False
        with pytest.raises(ConnectionLost):
            await call
        again = await resumed(found)
        assert again.resumed is False
        assert again.reason
        lab.gate.set()
        assert await client.request("lab", "echo", {"text": "x"}) == "x"


async def test_without_the_option_a_call_is_lost_with_its_connection() -> None:
    lab = Lab()
    async with small(lab) as running, through(running) as (proxy, url):
        async with connect(url, token=token(), proxy=None, backoff=QUICK, resume=False) as client:
            call = asyncio.create_task(client.request("lab", "wait", {"number": 1}))
            await eventually(lambda: lab.calls)
            proxy.cut()
            with pytest.raises(ConnectionLost):
                await call
        lab.gate.set()


# --- two processes ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient_processes")
async def test_a_client_moves_to_another_process_before_its_own_stops(
    amqp_url: str, echo_service: ServiceProcess
) -> None:
    async with fleet(amqp_url, 2, expose_topics=["#"]) as (first, second):
        publish = second.gateway.service_mesh_manager.publish_event
        async with (
            through(first) as (proxy, url),
            connect(url, token=token(), proxy=None, backoff=QUICK) as client,
            client.subscribe("lab.#") as events,
        ):
            found, gaps, warnings = states(client), list[Any](), list[Any]()
            client.on("gap", gaps.append)
            client.on("warning", warnings.append)
            slow = asyncio.create_task(client.request(echo_service.service, "slow", {"seconds": 1.0}))
            await asyncio.sleep(0)
            proxy.lead_to(second.site.port)
            publishing = asyncio.create_task(_publish(publish, 200))
            draining = asyncio.create_task(first.gateway.drain())
            numbers = [(await anext(events)).event["number"] for _ in range(200)]
            await publishing
            assert numbers == list(range(200))
            await slow
            await draining
            await eventually(lambda: found)
            assert [(each.name, each.resumed) for each in found] == [("open", True)]
            assert len(second.gateway.handler_manager) == 1
            assert not gaps
            assert not warnings
        for running in (first, second):
            await eventually(functools.partial(_is_idle, running))


def _is_idle(running: RunningGateway) -> bool:
    return resumption(running).is_idle


async def _publish(publish: Any, count: int) -> None:
    for number in range(count):
        await publish("lab.moving", {"number": number})
        await asyncio.sleep(0.002)
