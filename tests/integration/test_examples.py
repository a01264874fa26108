"""The examples, each started by its line in their README."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Final

import httpx
import pytest

from examples.orders import app
from tests.integration.scene import delete_shared
from tests.kit.browser import Browser, Tab, run_browser
from tests.kit.gateways import DEADLINE
from tests.kit.javascript import node
from tests.kit.processes import ROOT, Process, run_process
from tests.servers.processes import unavailable
from tests.servers.rabbitmq import free_port

EXAMPLES: Final = ROOT / "examples"
REACT: Final = EXAMPLES / "react"
MULTIPLICATION_SIGN: Final = "\N{MULTIPLICATION SIGN}"


def documented(part: str) -> list[str]:
    """Return the one command that contains ``part``, without its environment, run by the Python of the tests."""
    lines = re.findall(r"^\$ (?:[A-Z_]+=\S+ )*(.*)$", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    (line,) = {line for line in lines if part in line}
    command = shlex.split(line)
    assert command[0] == ".venv/bin/python"
    return [sys.executable, *command[1:]]


@contextlib.asynccontextmanager
async def application(*origins: str, **settings: str) -> AsyncIterator[str]:
    """Run the application on a free port, and yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {"ALLOWED_ORIGINS": ",".join((url, *origins)), **settings}
    async with run_process(*documented("orders.app"), "--port", str(port), settings=settings) as process:
        await process.line(r"Uvicorn running on")
        yield url
        await ends_well(process)


async def ends_well(process: Process) -> None:
    process.signal(signal.SIGTERM)
    # Plain uvicorn raises the signal again after its shutdown.
    assert await process.wait() in (0, -signal.SIGTERM), process.output
    assert "Traceback" not in process.output


@contextlib.asynccontextmanager
async def development_server(port: int, url: str) -> AsyncIterator[str]:
    """Run the server of ``npm run dev`` for the application at ``url``, and yield its URL."""
    if not (REACT / ".built").exists():
        unavailable("the React example is not there: make examples/react/.built")
    assert json.loads((REACT / "package.json").read_text())["scripts"]["dev"] == "vite"
    vite = str(REACT / "node_modules" / "vite" / "bin" / "vite.js")
    command = (*node(), vite, "--host", "127.0.0.1", "--port", str(port), "--strictPort")
    async with run_process(*command, cwd=REACT, environment={"ORDERS_URL": url, "NO_COLOR": "1"}) as process:
        await process.line(r"Local:")
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with run_browser() as running:
        yield running


async def submit(tab: Tab, form: str, **values: str) -> None:
    """Fill in a form and submit it."""
    await tab.evaluate(
        f"""(() => {{
          const form = document.querySelector("#{form}");
          for (const [name, value] of Object.entries({json.dumps(values)})) {{
            form.querySelector(`[name=${{name}}]`).value = value;
          }}
          form.requestSubmit();
        }})()"""
    )


def shows(selector: str, text: str) -> str:
    return f"[...document.querySelectorAll({selector!r})].some((each) => each.textContent.includes({text!r}))"


async def order(tab: Tab, url: str, name: str) -> None:
    """Order on a page, and have the order shipped."""
    await tab.until("document.querySelector('#sign-in')")
    await submit(tab, "sign-in", name=name)
    await tab.until(shows("[role=status]", "open"))
    assert not await tab.evaluate("document.querySelector('#sign-in')?.checkVisibility()")
    await submit(tab, "create", item="tea", quantity="1000")
    await tab.until(shows("[role=alert]", "quantity must be a number from 1 to 100"))
    await submit(tab, "create", item="tea", quantity="2")
    await tab.until(shows("#mine li", f"2 {MULTIPLICATION_SIGN} tea"))
    await tab.until(shows("#created li", f"2 {MULTIPLICATION_SIGN} tea"))
    await run_script(url, "bob", "milk")
    await tab.until(shows("#created li", f"1 {MULTIPLICATION_SIGN} milk"))
    await tab.evaluate("document.querySelector('#mine button').click()")
    await tab.until(shows("#mine li", f"2 {MULTIPLICATION_SIGN} tea (shipped)"))
    assert not await tab.evaluate(shows("#mine li", "milk"))


async def run_script(url: str, name: str, item: str) -> str:
    """Run the script to its end, and return its output."""
    *command, _, _ = documented("orders.client")
    async with run_process(*command, name, item, "--url", url) as process:
        assert await process.wait() == 0, process.output
    return process.output


async def test_the_page_and_the_react_page_order_something_and_hear_of_it(browser: Browser) -> None:
    port = free_port()
    async with (
        application(f"http://127.0.0.1:{port}") as url,
        development_server(port, url) as react,
        browser.profile() as profile,
    ):
        await order(await profile.open(f"{url}/"), url, "alice")
        await order(await profile.open(react), url, "carol")
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http:
            assert (await http.get(f"{url}/statistics")).json() == {"orders": 4, "connections": 2}
            assert (await http.post(f"{url}/sign-in", json={"name": "a b"})).status_code == 422


async def test_the_notebook_runs_from_its_first_cell_to_its_last() -> None:
    command = documented("jupyter")
    assert command[1:4] == ["-m", "jupyter", "lab"]
    async with (
        application() as url,
        run_process(
            sys.executable, "-m", "tests.kit.notebook", str(ROOT / command[4]), environment={"ORDERS_URL": url}
        ) as process,
    ):
        assert await process.wait() == 0, process.output
    assert "InvalidParams quantity must be a number from 1 to 100" in process.output
    assert "'item': 'butter'" in process.output
    assert "5 orders" in process.output


async def test_the_service_on_rabbitmq_is_called_from_the_application_and_by_the_script(amqp_url: str) -> None:
    name = f"gateway-{secrets.token_hex(4)}"
    *command, _ = documented("orders.service")
    async with (
        run_process(*command, amqp_url) as service,
        application(MESH_URL=amqp_url, SERVICE_NAME=name) as url,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as http,
    ):
        async with asyncio.timeout(DEADLINE):
            while (
                await http.get(f"{url}/statistics")
            ).status_code != 200:  # service and application are still connecting to the broker
                await asyncio.sleep(0.05)
        said = await run_script(url, "alice", "tea")
        assert "Ordered tea as number 1" in said
        assert "Number 1 is shipped; alice has 1 order" in said
        await ends_well(service)
    await delete_shared(amqp_url, name)
    await delete_shared(amqp_url, "orders")


def test_the_application_runs_beside_a_program_that_has_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(app, "PORTS", range(taken, taken + 100))
        assert taken < app.free_port() < taken + 100
