"""The walk-through of docs/development-without-a-mesh.md: its files, as they are in the document, in a browser."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.kit.pages import Page, Pages, run_pages
from tests.kit.processes import run_module, run_process
from tests.servers.processes import unavailable
from tests.servers.provision import external_url, installed
from tests.servers.rabbitmq import RabbitMQNode, free_port

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "development-without-a-mesh.md"


@pytest.fixture(scope="module")
async def pages() -> AsyncIterator[Pages]:
    async with run_pages() as running:
        yield running


@pytest.fixture
def amqp_url() -> Iterator[str]:
    if (url := external_url()) is not None:
        yield url
        return
    if not installed():
        unavailable("rabbitmq-server is not installed")
    with RabbitMQNode() as node:
        yield node.add_vhost("nuropb")


def block(language: str) -> str:
    """Return the first block of a language in the document."""
    found = re.search(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


async def order(page: Page, item: str) -> None:
    await page.fill("Item", item)
    await page.click("Order")


@contextlib.asynccontextmanager
async def page_server(folder: Path, port: int) -> AsyncIterator[str]:
    command = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port))
    async with run_process(*command, cwd=folder, environment={"PYTHONUNBUFFERED": "1"}) as process:
        await process.line("Serving HTTP")
        yield f"http://127.0.0.1:{port}"


async def test_a_page_is_made_against_mocks_and_meets_the_real_service_without_a_change(
    pages: Pages, amqp_url: str, tmp_path: Path
) -> None:
    port, page_port = free_port(), free_port()
    (tmp_path / "services.yaml").write_text(block("yaml"))
    (tmp_path / "index.html").write_text(block("html").replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
    (tmp_path / "orders.py").write_text(block("python"))
    shutil.rmtree(tmp_path / ".nuropb-gateway", ignore_errors=True)
    async with page_server(tmp_path, page_port) as site:
        arguments = ("dev", "--mock", "services.yaml", "--user", "alice", "--user", "bob", "--port", str(port))
        async with run_module("nuropb_gateway_asgi", *arguments, cwd=tmp_path) as process:
            token = (await process.line(r"^http://\S+#token=(\S+)$"))[1]
            link = f"{site}/#token={token}"
            async with pages.open(link) as one, pages.open(link) as other:
                for page in (one, other):
                    await page.sees("0: bread")
                await order(one, "tea")
                for page in (one, other):
                    await page.sees("1: tea")
                await order(one, "beer")
                await one.sees("beer is sold out")
                await order(one, "")
                await one.sees("item must be at least 1 character")
            process.signal(signal.SIGTERM)
            await process.wait()
        settings = {
            "JWT_KEY": (tmp_path / ".nuropb-gateway" / "development.key").read_text().strip(),
            "EXPOSE": "orders.*",
            "EXPOSE_TOPICS": "orders.#",
            "ALLOWED_ORIGINS": site,
            "MESH_URL": amqp_url,
        }
        async with (
            run_process(sys.executable, "orders.py", amqp_url, cwd=tmp_path),
            run_module("nuropb_gateway_asgi", "serve", "--port", str(port), cwd=tmp_path, settings=settings) as process,
            pages.open(site) as page,
        ):
            await process.line("The gateway is at")
            await process.line("mesh connected")
            await page.go_to("about:blank")
            await page.go_to(link)
            await order(page, "milk")
            await page.sees("1: milk")
