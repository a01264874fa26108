"""Faults on demand, switched on in the console of ``nuropb-gateway dev`` and seen by clients."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nuropb_gateway_asgi.client import CallTimeout, Client, MeshUnavailable, ServiceUnavailable, connect
from tests.kit.pages import Page, Pages, run_pages
from tests.kit.processes import GatewayProcess, run_module

MOCKS = "services: {orders: {methods: {list: {answer: []}}}}"


@pytest.fixture(scope="module")
async def pages() -> AsyncIterator[Pages]:
    async with run_pages() as running:
        yield running


async def switch(page: Page, fault: str, word: str, **values: str) -> None:
    """Fill in the values of a fault, by their labels, and press its button."""
    for label, value in values.items():
        await page.fill(f"{label.capitalize()}: {fault}", value)
    await page.click(f"{word}: {fault}")


async def test_every_fault_is_one_click_in_the_console(pages: Pages, tmp_path: Path) -> None:
    (tmp_path / "services.yaml").write_text(MOCKS)
    arguments = ("dev", "--mock", "services.yaml", "--user", "alice", "--port", "0")
    async with run_module("nuropb_gateway_asgi", *arguments, cwd=tmp_path) as process:
        url = (await process.line(r"The gateway is at (ws://\S+)"))[1]
        link = (await process.line(r"^(http://\S+#token=(\S+))$"))[1]
        token = link.partition("#token=")[2]
        gateway = GatewayProcess(process, urlsplit(url).port or 0)
        async with pages.open(link) as page, connect(url, token=token, proxy=None) as client:
            await page.sees("Connected")
            await page.click("Faults")
            await page.sees("Replies are late")
            assert await page.accessibility_problems() == []
            await of_calls(page, client, gateway)
            await of_events(page, client)
            await of_connections(page, client)
        process.signal(signal.SIGTERM)
        await process.wait()


async def of_calls(page: Page, client: Client, gateway: GatewayProcess) -> None:
    assert await client.request("orders", "list") == []
    await switch(page, "Replies are late", "Switch on", seconds="60")
    await fails(client, CallTimeout)
    await switch(page, "Replies are late", "Switch off")
    await switch(page, "Replies are lost: calls time out", "Switch on", seed="7")
    await fails(client, CallTimeout)
    await page.sees("so far")
    await switch(page, "Replies are lost: calls time out", "Switch off")
    await switch(page, "Replies come twice", "Switch on")
    await doubles(client, gateway)
    await page.sees("so far")
    await switch(page, "Replies come twice", "Switch off")
    await switch(page, "Services are away", "Switch on", service="orders")
    await fails(client, ServiceUnavailable)
    await switch(page, "Services are away", "Switch off")
    await switch(page, "The broker is away for some seconds", "Now", seconds="2")
    await fails(client, MeshUnavailable)
    assert await client.request("orders", "list", retries=100, timeout=20) == []


async def fails(client: Client, kind: type[Exception]) -> None:
    """Call until the fault, which a click has switched on, is there."""
    async with asyncio.timeout(30):
        while True:
            try:
                await client.request("orders", "list", timeout=0.5)
            except kind:
                return


async def doubles(client: Client, gateway: GatewayProcess) -> None:
    """Call until the gateway has dropped second replies; the first ones are answers."""
    async with asyncio.timeout(30):
        while await gateway.metric("dropped_total", reason="double_reply") < 3:
            assert await client.request("orders", "list") == []


async def of_events(page: Page, client: Client) -> None:
    gaps: asyncio.Queue[Any] = asyncio.Queue()
    client.on("gap", gaps.put_nowait)
    async with client.subscribe("orders.#") as events, asyncio.timeout(30):
        await switch(page, "Many events of a topic", "Now", topic="orders.burst", events="20")
        assert [(await anext(events)).event["burst"] for _ in range(20)] == list(range(1, 21))
        await switch(page, "Clients are told that events were lost", "Now")
        assert (await gaps.get()).reason == "overflow"


async def of_connections(page: Page, client: Client) -> None:
    states: asyncio.Queue[str] = asyncio.Queue()
    client.on("state", lambda state: states.put_nowait(state.name))
    for fault in (
        "Connections are cut",
        "Connections end as those of slow consumers",
        "The gateway says goodbye, as before a restart",
    ):
        async with asyncio.timeout(30):
            await switch(page, fault, "Now")
            seen = [await states.get()]
            while seen[-1] != "open":
                seen.append(await states.get())
        assert "reconnecting" in seen
        await page.sees("Connected")
    await switch(page, "Tokens of connections expire now", "Now")
    await page.sees("The token has expired")
