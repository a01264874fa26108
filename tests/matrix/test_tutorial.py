"""docs/tutorial.md from its first command to its last, with the page in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.kit.pages import Page, Pages, run_pages
from tests.kit.processes import ROOT
from tests.kit.waiting import DEADLINE, eventually
from tests.kit.walk import Walk, blocks_of, walk
from tests.servers.processes import unavailable
from tests.servers.provision import find_tool
from tests.servers.rabbitmq import RabbitMQNode, free_port

PAGE: Final = ROOT / "docs" / "tutorial.md"


@pytest.fixture
def broker() -> Iterator[RabbitMQNode]:
    """A broker without queues: the service has the same name as that of the examples."""
    with RabbitMQNode() as node:
        yield node


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    async with run_pages() as running:
        yield running


def is_consumed(broker: RabbitMQNode, queue: str) -> bool:
    return any(each["name"] == queue and each["consumers"] for each in broker.list_queues())


async def ready(url: str, reader: Walk) -> None:
    """Wait until the gateway in terminal 3 lets clients in."""
    process = reader.terminal("Terminal 3")
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(url)).status_code == 200:
                    return
            assert not process.ended, process.output
            await asyncio.sleep(0.05)


async def sign_in(page: Page, name: str, password: str) -> None:
    await page.fill("Name", name)
    await page.fill("Password", password)
    await page.click("Sign in")
    await page.sees("live")


async def order(page: Page, item: str) -> None:
    await page.fill("Item", item)
    await page.click("Order")


async def order_together(pages: Pages, url: str, item: str) -> None:
    async with (
        pages.open(url, ignoreHTTPSErrors=True) as alice,
        pages.open(url, ignoreHTTPSErrors=True) as bob,
    ):
        await sign_in(alice, "alice", "wonderland")
        await alice.fill("Item", item)
        await sign_in(bob, "bob", "builder")
        await alice.sees("tea, for alice")
        await order(bob, item)
        await alice.sees(f"{item}, for bob")
        await order(alice, f"more {item}")
        await bob.sees(f"more {item}, for alice")


async def test_the_tutorial_leads_to_a_page_with_live_orders_behind_a_proxy(
    broker: RabbitMQNode, pages: Pages, tmp_path: Path
) -> None:
    if find_tool("nginx") is None:
        unavailable("nginx is not installed")
    port, tls_port = free_port(), free_port()
    replaced = {
        "amqp://guest:guest@127.0.0.1:5672/": broker.url(),
        "../nuropb-gateway-asgi": str(ROOT),
        "python3 -m venv": f"{sys.executable} -m venv",
        "8000": str(port),
        "8443": str(tls_port),
        "\nevents {}": "\nevents {}\nmaster_process off;",
    }
    async with walk(tmp_path, replaced, NUROPB_GATEWAY_URL=f"ws://127.0.0.1:{port}/ws") as reader:
        for block in blocks_of(PAGE):
            await reader.do(block)
            if "gateway" in block.title:
                await ready(f"http://127.0.0.1:{port}/readyz", reader)
            if "application" in block.title:
                await ready(f"http://127.0.0.1:{port}/gateway/readyz", reader)
            if "service" in block.title:
                await eventually(lambda: is_consumed(broker, "nuropb-orders-sq"))
            if "application" in block.title and "HTTPS_ONLY" not in (tmp_path / "shop.env").read_text():
                await order_together(pages, f"http://127.0.0.1:{port}/", "milk")
        await order_together(pages, f"https://localhost:{tls_port}/", "sugar")
