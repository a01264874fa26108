"""Every server of the table in docs/deployment.md, by its real command line: what works, and what is lost."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.kit.clients import bearer_subprotocol, connect, refusal, turned_away
from tests.kit.gateways import DEADLINE, eventually
from tests.kit.processes import ROOT, SECRET, Process, run_module, token_of
from tests.servers.processes import unavailable
from tests.servers.rabbitmq import free_port

APP: Final = "nuropb_gateway_asgi:app"
ORIGIN: Final = "https://app.example.com"
#: Clients of one address at a time.
PLACES: Final = 5
TOKEN: Final = token_of("alice")


@dataclass(frozen=True)
class Server:
    """A row of the table. ``{port}`` in the arguments is the port."""

    module: str
    arguments: tuple[str, ...]
    #: The package with the server, if the module is not.
    package: str = ""
    #: The status of a refused handshake: 403 without a reason from servers without ``websocket.http.response``.
    refusal: int = 401
    #: The code for a message above the server's own limit; None for a server that reads every size that was tried.
    too_big: int | None = 1009
    exit_status: int = 0

    @contextlib.asynccontextmanager
    async def run(self, **settings: str) -> AsyncIterator[Running]:
        """Run the server until the end of the context, and wait until it answers."""
        if importlib.util.find_spec(self.package or self.module) is None:
            unavailable(f"the package {self.package or self.module} is not installed")
        port = free_port()
        chosen = {"JWT_KEY": SECRET, "HTTP": "on", "ALLOWED_ORIGINS": ORIGIN} | settings
        arguments = [argument.format(port=port) for argument in self.arguments]
        async with (
            run_module(self.module, *arguments, settings=chosen, start_new_session=True) as process,
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {TOKEN}"},
                trust_env=False,
                timeout=DEADLINE,
                verify=False,  # there is no TLS, and loading the certificates takes long
            ) as http,
        ):
            try:
                await answers(http, process)
                yield Running(process, http, f"ws://127.0.0.1:{port}/ws")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # workers outlive a killed parent


@dataclass(frozen=True)
class Running:
    """A running server, and a client of its paths."""

    process: Process
    http: httpx.AsyncClient
    url: str


async def answers(http: httpx.AsyncClient, process: Process) -> None:
    """Wait until the server answers a request."""
    async with asyncio.timeout(DEADLINE):
        while True:
            with contextlib.suppress(httpx.TransportError):
                await http.get("/livez")
                return
            assert not process.ended, process.output
            await asyncio.sleep(0.05)


def uvicorn(*arguments: str) -> Server:
    # uvicorn raises the signal again that has stopped it.
    return Server("uvicorn", (APP, "--port", "{port}", *arguments), exit_status=-signal.SIGTERM)


def gunicorn(*arguments: str, **row: Any) -> Server:
    return Server("gunicorn", (APP, "--bind", "127.0.0.1:{port}", "--no-control-socket", *arguments), **row)


def hypercorn(*arguments: str, **row: Any) -> Server:
    return Server("hypercorn", (APP, "--bind", "127.0.0.1:{port}", *arguments), **row)


def granian(*arguments: str, **row: Any) -> Server:
    return Server("granian", (APP, "--port", "{port}", *arguments), **row)


SIZE: Final = ("--ws-max-size", "262144")
#: The rows with a gateway, by their names in the table.
SERVERS: Final = {
    "uvicorn": uvicorn(),
    "uvicorn --ws websockets-sansio": uvicorn("--ws", "websockets-sansio"),
    "uvicorn --ws websockets": uvicorn("--ws", "websockets", *SIZE),
    "uvicorn --ws wsproto": uvicorn("--ws", "wsproto", *SIZE),
    "gunicorn -k uvicorn_worker.UvicornWorker": gunicorn(
        "-k", "uvicorn_worker.UvicornWorker", package="uvicorn_worker"
    ),
    "gunicorn -k asgi": gunicorn("-k", "asgi", "--websocket-max-message-size", "262144", refusal=403),
    "hypercorn --workers 0": hypercorn("--workers", "0", too_big=None),
    "granian --interface asgi": granian("--interface", "asgi", too_big=None),
}
#: The rows that answer every client with 503, by their names in the table.
WITHOUT_LIFESPAN: Final = {
    "uvicorn --lifespan off": uvicorn("--lifespan", "off"),
    "granian --interface asginl": granian("--interface", "asginl"),
    "daphne": Server("daphne", (APP, "-p", "{port}"), refusal=403),
}


def test_each_row_of_the_table_is_tested_and_each_test_is_a_row() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    table = text.partition("| Server | ")[2].partition("\n\n")[0]
    rows = [match[1] for match in re.finditer(r"^\| `([^`]+)`", table, re.MULTILINE)]
    assert rows == ["nuropb-gateway serve", *SERVERS, "hypercorn", *WITHOUT_LIFESPAN]


@pytest.fixture(params=SERVERS, scope="module")
async def running(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Running, Server]]:
    server = SERVERS[request.param]
    async with server.run(MAX_CONNECTIONS_PER_ADDRESS=str(PLACES), AUTH_TIMEOUT="1") as running:
        yield running, server


async def test_calls_and_events_over_websockets(running: tuple[Running, Server]) -> None:
    url = running[0].url
    offered = ["nuropb.v1", bearer_subprotocol(token_of("bob"))]
    async with connect(url, TOKEN) as alice, connect(url, origin=ORIGIN, subprotocols=offered) as bob:
        assert (bob.hello["user_id"], bob.subprotocol) == ("bob", "nuropb.v1")
        assert (await bob.ask("subscribe", topics=["demo.news"]))["error"] is None
        await alice.result("demo.publish", {"topic": "demo.news", "event": [1]})
        assert (await bob.event("demo.news"))["event"] == [1]


async def test_calls_over_http(running: tuple[Running, Server]) -> None:
    http = running[0].http
    assert (await http.post("/rpc/demo/add", json={"a": 1, "b": 2})).json() == 3
    assert (await http.post("/rpc/demo/slow", json={"seconds": 0.1})).status_code == 200
    too_big = await http.post("/rpc/demo/echo", json={"a": "x" * 70_000})
    assert (too_big.status_code, too_big.json()["code"]) == (413, "payload_too_large")


async def test_a_stream_of_events_lasts(running: tuple[Running, Server]) -> None:
    http = running[0].http
    async with http.stream("GET", "/events", params={"topic": "demo.news"}) as stream:
        lines = stream.aiter_lines()
        for number in range(3):
            async for line in lines:
                if line.startswith(f'data: {{"topic":"demo.news","event":{number},' if number else "event: hello"):
                    break
                assert "closed" not in line
            event = {"topic": "demo.news", "event": number + 1}
            assert (await http.post("/rpc/demo/publish", json=event)).status_code == 200


async def test_a_client_that_leaves_ends_its_stream_and_its_call(running: tuple[Running, Server]) -> None:
    http = running[0].http
    calls = [asyncio.create_task(http.post("/rpc/demo/slow", json={"seconds": 3600})) for _ in range(2)]

    async def used(name: str) -> float:
        text = (await http.get("/metrics")).text
        match = re.search(rf'^nuropb_gateway_{name}{{transport="http"}} (.*)$', text, re.MULTILINE)
        return 0.0 if match is None else float(match[1])

    async with asyncio.timeout(DEADLINE):
        async with http.stream("GET", "/events"):
            while await used("in_flight") != 2 or await used("connections") != 1:
                await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        while await used("in_flight") or await used("connections"):
            await asyncio.sleep(0.05)


async def test_the_close_code_of_a_refused_page(running: tuple[Running, Server]) -> None:
    code, frame = await turned_away(running[0].url, "bad", origin=ORIGIN)
    assert (code, frame["code"]) == (4510, "unauthenticated")


async def test_a_client_without_a_token_is_told_after_its_time(running: tuple[Running, Server]) -> None:
    # A receive() has been cancelled before.
    async with connect(running[0].url, hello=False) as client:
        closed = await client.closed()
    assert (closed.code, [frame["code"] for frame in closed.frames]) == (4502, ["unauthenticated"])


async def test_the_status_of_a_refused_handshake(running: tuple[Running, Server]) -> None:
    refused = await refusal(running[0].url, "bad")
    assert refused.status == running[1].refusal
    assert refused.headers.get("WWW-Authenticate") == ("Bearer" if refused.status == 401 else None)
    assert ("A valid bearer token is required" in refused.body) is (refused.status == 401)


async def test_a_message_above_the_limit_is_explained(running: tuple[Running, Server]) -> None:
    async with connect(running[0].url, TOKEN) as client:
        await client.send_text("x" * 70_000)
        closed = await client.closed()
    assert (closed.code, [frame["code"] for frame in closed.frames]) == (1009, ["payload_too_large"])


async def test_a_message_above_the_servers_own_limit(running: tuple[Running, Server]) -> None:
    url, too_big = running[0].url, running[1].too_big
    async with connect(url, TOKEN) as client:
        with contextlib.suppress(ConnectionError):
            await client.send_text("x" * 300_000)
        closed = await client.closed()
    assert closed.code == 1009
    assert (closed.frames == []) is (too_big is not None)


async def test_the_address_of_a_client(running: tuple[Running, Server]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.suppress(InvalidStatus):
            for _ in range(PLACES + 1):  # the connections of other tests may not have ended yet
                await stack.enter_async_context(connect(running[0].url, TOKEN))
    assert "127.0.0.1 has reached MAX_CONNECTIONS_PER_ADDRESS" in running[0].process.output


@pytest.mark.parametrize("name", SERVERS)
async def test_sigterm_says_goodbye_answers_calls_and_ends_the_process(name: str) -> None:
    server = SERVERS[name]
    async with server.run(DRAIN_TIMEOUT="3600") as running:
        process, http, url = running.process, running.http, running.url
        async with connect(url, TOKEN) as client, http.stream("GET", "/events") as stream:
            lines = stream.aiter_lines()
            async for line in lines:
                if line == "event: hello":
                    break
            await client.request("demo.slow", {"seconds": 3600}, id="slow")
            await client.settled()
            process.signal(signal.SIGTERM)
            assert (await client.event("goodbye"))["event"]["reason"] == "draining"
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
            await client.send("cancel", id="slow")
            assert (await client.answer("slow"))["error"]["code"] == "cancelled"
            assert (await client.closed()).code == 1012
            rest = "".join([line async for line in lines])
            assert "event: goodbye" in rest
            assert "event: closed" in rest
        await http.aclose()
        assert await process.wait() == server.exit_status, process.output
        assert re.search(r"gateway \S+ stopped", process.output)
        assert "Traceback" not in process.output, process.output


async def test_clients_are_admitted_in_the_delay_of_a_shutdown_where_the_event_loop_takes_the_signals() -> None:
    # The next signal ends the delay, which would outlast the test.
    async with SERVERS["hypercorn --workers 0"].run(SHUTDOWN_DELAY="3600") as running:
        process = running.process
        process.signal(signal.SIGTERM)
        await process.line("draining in 3600 s: not ready, but clients are still admitted")
        assert (await running.http.get("/readyz")).json()["reasons"] == ["draining"]
        async with connect(running.url, TOKEN) as newcomer:
            process.signal(signal.SIGTERM)
            assert (await newcomer.event("goodbye"))["event"]["reason"] == "draining"
            assert (await newcomer.closed()).code == 1012
        await running.http.aclose()
        assert await process.wait() == 0


async def test_hypercorns_worker_never_hears_the_signal() -> None:
    async with hypercorn("--graceful-timeout", "1").run(PING_INTERVAL="3600") as running:
        async with connect(running.url, TOKEN) as client:
            await eventually(lambda: "Running on" in running.process.output)
            running.process.signal(signal.SIGTERM)
            if sys.version_info >= (
                3,
                12,
                1,
            ):  # asyncio's server waits for its connections, and hypercorn for the server
                assert await client.settled() == []
                return
            closed = await client.closed()
        assert (closed.frames, closed.code in (1006, 1011)) == ([], True)
        assert "draining" not in running.process.output


@pytest.mark.parametrize("name", WITHOUT_LIFESPAN)
async def test_a_server_that_runs_no_lifespan_is_named_as_the_reason(name: str) -> None:
    server = WITHOUT_LIFESPAN[name]
    async with server.run() as running:
        for _ in range(2):
            call = await running.http.post("/rpc/demo/add", json={"a": 1, "b": 2})
            assert (call.status_code, call.json()["code"]) == (503, "mesh_unavailable")
            assert call.json()["description"].startswith("The gateway was not started: its lifespan did not run")
            ready = await running.http.get("/readyz")
            assert (ready.status_code, ready.json()["reasons"]) == (503, ["the gateway was not started"])
            assert (await refusal(running.url, TOKEN)).status == (403 if server.refusal == 403 else 503)
        await running.process.line("the gateway was not started: the server did not run the lifespan. Use a server")
        assert running.process.output.count("the gateway was not started") == 1
