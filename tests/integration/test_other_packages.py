"""The gateway beside other packages: sniffio, gunicorn with --preload, pytest-asyncio; and a client across a fork."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import itertools
import json
import os
import re
import secrets
import signal
import sys
from pathlib import Path
from typing import Final

import httpx
import pytest

from nuropb_gateway_asgi.authentication import issue_token
from tests.kit.clients import Client, connect
from tests.kit.gateways import eventually, run_gateway
from tests.kit.processes import run_module, run_process
from tests.servers.processes import ServiceProcess, call_with_nuropb

SECRET: Final = secrets.token_urlsafe(48)

# --- sniffio ------------------------------------------------------------------------------------------------------


async def test_with_sniffio_calls_are_answered_and_sigterm_ends_the_process() -> None:
    assert importlib.metadata.version("sniffio")
    async with run_module("nuropb_gateway_asgi", "serve", "--port", "0", settings={"JWT_KEY": SECRET}) as process:
        url = (await process.line(r"^The gateway is at (\S+)"))[1]
        async with connect(url, issue_token(SECRET, "alice")) as client:
            assert await client.result("demo.add", {"a": 2, "b": 3}) == 5
            answer = await client.ask("authorize", token=issue_token(SECRET, "alice"))
            assert answer["error"] is None
            process.signal(signal.SIGTERM)
            assert (await client.closed()).code == 1012
        await process.wait()
        assert "Application shutdown complete" in process.output
        assert "Traceback" not in process.output


SERVICE: Final = """
import asyncio, logging, sys
from nuropb_gateway_asgi.mesh import serve

class Sums:
    def add(self, a: int, b: int) -> int:
        return a + b

logging.basicConfig(level=logging.INFO)
asyncio.run(serve(Sums(), sys.argv[1], service_name=sys.argv[2]))
"""


async def test_with_sniffio_a_hosted_service_answers_and_sigterm_ends_it(amqp_url: str) -> None:
    name = f"sums-{secrets.token_hex(3)}"
    async with run_process(sys.executable, "-c", SERVICE, amqp_url, name) as process:
        await process.line("mesh connected")
        answer = await asyncio.to_thread(call_with_nuropb, amqp_url, name, "add", {"a": 2, "b": 3})
        assert answer["result"] == 5
        process.signal(signal.SIGTERM)
        assert await process.wait() == 0, process.output


# --- gunicorn -----------------------------------------------------------------------------------------------------


def kill_group(pid: int) -> None:
    """Kill what is left of a process and its children: workers outlive a killed master."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


async def test_preloaded_workers_of_gunicorn_share_no_names(amqp_url: str, echo_service: ServiceProcess) -> None:
    echo, topic = echo_service.service, f"preload.{secrets.token_hex(4)}"
    settings = {
        "MESH_URL": amqp_url,
        "SERVICE_NAME": f"preload-{secrets.token_hex(3)}",
        "JWT_KEY": SECRET,
        "EXPOSE": f"{echo}.*",
        "EXPOSE_TOPICS": "preload.#",
        "HTTP": "on",
    }
    options = ("-k", "uvicorn_worker.UvicornWorker", "-w", "2", "--preload", "-b", "127.0.0.1:0")
    async with (
        run_module(
            "gunicorn", *options, "nuropb_gateway_asgi:app", settings=settings, start_new_session=True
        ) as process,
        contextlib.AsyncExitStack() as stack,
    ):
        stack.callback(kill_group, process.pid)
        port = (await process.line(r"Listening at: http://127.0.0.1:(\d+)"))[1]
        # Both workers have proven their connections to the broker, for WebSockets and for HTTP.
        await eventually(lambda: len(re.findall("mesh: revocations are read", process.output)) >= 4)
        clients: list[Client] = []
        for _ in range(100):
            token = issue_token(SECRET, "alice")
            clients.append(await stack.enter_async_context(connect(f"ws://127.0.0.1:{port}/ws", token)))
            if len({client.hello["instance_id"] for client in clients}) == 2 and len(clients) >= 8:
                break
        assert len({client.hello["instance_id"] for client in clients}) == 2
        for round_, client in itertools.product(range(6), clients):
            assert await client.result(f"{echo}.echo", {"round": round_}) == {"round": round_}
        for _ in range(12):
            async with httpx.AsyncClient(headers={"Authorization": f"Bearer {issue_token(SECRET, 'alice')}"}) as http:
                response = await http.post(f"http://127.0.0.1:{port}/rpc/{echo}/echo", json={"n": 1}, timeout=60)
                assert response.json() == {"n": 1}
        for client in clients:
            assert (await client.ask("subscribe", topics=[topic]))["error"] is None
        await clients[0].result(f"{echo}.emit", {"topic": topic, "event": {"n": 1}})
        for client in clients:
            assert (await client.event(topic))["event"] == {"n": 1}
        process.signal(signal.SIGTERM)
        for client in clients:
            await client.closed()
        assert await process.wait() == 0, process.output
        assert "Traceback" not in process.output


# --- pytest-asyncio -----------------------------------------------------------------------------------------------

FIXTURES: Final = """
import asyncio
import sys

import pytest
import pytest_asyncio

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.mesh import hosting


class Sums:
    def add(self, a, b):
        return a + b


@pytest_asyncio.fixture
async def gateway():
    gateway = Gateway(Settings(jwt_key="a secret that is long enough to sign with, and no longer", tcp="127.0.0.1:0"))
    async with gateway.lifespan():
        yield gateway


@pytest_asyncio.fixture
async def service():
    async with hosting(Sums(), "amqp://127.0.0.1:1/", service_name="sums") as manager:
        yield manager


@pytest.mark.asyncio
@pytest.mark.parametrize("n", range(2))
async def test_a_call(gateway, n):
    assert await gateway.service_mesh_manager.request("demo", "add", {"a": n, "b": 3}) == n + 3


@pytest.mark.asyncio
async def test_a_hosted_service(service):
    assert service.started
"""


async def test_fixtures_of_pytest_asyncio_enter_and_leave_in_different_tasks(tmp_path: Path) -> None:
    (tmp_path / "test_fixtures.py").write_text(FIXTURES, encoding="utf-8")
    options = ("-p", "no:anyio", "-p", "no:cacheprovider", "-W", "error", "--rootdir", str(tmp_path))
    command = ("pytest", *options, "-o", "asyncio_default_fixture_loop_scope=function")
    async with run_module(*command, cwd=tmp_path) as process:
        assert await process.wait() == 0, process.output
        assert "3 passed" in process.output


# --- a fork -------------------------------------------------------------------------------------------------------

FORK: Final = """
import json, os, sys
from nuropb_gateway_asgi.client import connect_sync

client = connect_sync(sys.argv[1], token="alice")
subscription = client.subscribe("demo.news")
pid = os.fork()
if not pid:
    errors = []
    for call in (
        lambda: client.request("demo", "add", {"a": 2, "b": 3}, timeout=1),
        lambda: client.command("demo", "add", {"a": 2, "b": 3}),
        lambda: client.describe(),
        lambda: client.subscribe("demo.news"),
        lambda: subscription.receive(timeout=1),
    ):
        try:
            call()
        except RuntimeError as error:
            errors.append(str(error))
    subscription.unsubscribe()
    client.close()
    with connect_sync(sys.argv[1], token="alice") as own:
        errors.append(own.request("demo", "add", {"a": 2, "b": 3}))
    print(json.dumps(errors), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
with client, subscription:
    client.request("demo", "publish", {"topic": "demo.news"})
    print(json.dumps(subscription.receive(timeout=20).topic), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
async def test_a_client_is_refused_in_a_forked_process_and_goes_on_in_its_own() -> None:
    async with (
        run_gateway(expose_topics=["demo.#"], expose=["demo.*"]) as gateway,
        run_process(sys.executable, "-W", "ignore", "-c", FORK, gateway.url) as process,
    ):
        assert await process.wait() == 0, process.output
        *errors, result = json.loads(process.stdout[0])
        assert len(errors) == 5
        assert all("connect after the fork" in error for error in errors)
        assert result == 5
        assert process.stdout[1:] == ['"demo.news"']
