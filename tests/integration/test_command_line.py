"""The two commands, as processes: what they print, how they end, and what they say when they cannot begin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from nuropb_gateway_asgi import __version__
from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication import issue_token
from tests.kit.clients import CLOSE, RawClient, bearer_subprotocol, connect, refusal
from tests.kit.processes import Process, run_module, run_process

SECRET = "a secret that is long enough to sign with, and no longer"
TOKEN = issue_token(SECRET, "alice")
PACKAGE = "nuropb_gateway_asgi"


@contextlib.asynccontextmanager
async def serving(*arguments: str, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """The gateway on a free port, with a key of which TOKEN is, and its URL."""
    async with run_module(PACKAGE, *arguments, "--port", "0", settings={"JWT_KEY": SECRET, **settings}) as process:
        yield process, (await process.line(r"ws://\S+"))[0]


def http(url: str) -> str:
    return url.replace("ws://", "http://").removesuffix("/ws")


async def test_a_start_with_nothing_configured_says_how_to_go_on() -> None:
    async with run_module(PACKAGE, "serve", "--port", "0") as process:
        url = (await process.line(r"^The gateway is at (ws://127\.0\.0\.1:\d+/ws)$"))[1]
        token = (await process.line(r"^[\w-]+\.[\w-]+\.[\w-]+$"))[0]
        await process.line(r" -m nuropb_gateway_asgi call ")
        await process.line("Application startup complete")
        async with connect(url, token) as client:
            assert client.hello["user_id"] == "dev"

        script = "\n".join(line for line in process.stdout if re.search(r"^export | call ", line))
        async with run_process("/bin/sh", "-euc", script) as shell:
            assert (await shell.wait(), shell.stdout, shell.stderr) == (0, ["5"], [])

        # The token is shown where it was asked for, and nowhere else.
        assert token not in "\n".join(process.stderr)
        process.signal(signal.SIGINT)
        assert await process.wait() == 0
        assert "Traceback" not in process.output


async def test_calls_from_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", TOKEN)
    async with serving() as (process, url):
        assert process.stdout == ["", f"The gateway is at {url}"]
        async with run_module(
            PACKAGE, "call", url, "demo.add", '{"a": 2, "b": 3}', settings={"TOKEN": TOKEN}
        ) as caller:
            assert (await caller.wait(), caller.stdout, caller.stderr) == (0, ["5"], [])

        async def call(*arguments: str) -> tuple[int, str, str]:
            status = await asyncio.to_thread(main, ["call", url, *arguments])
            return status, *capsys.readouterr()

        for arguments, code in (
            (("demo.fail", '{"how": "validation"}'), "invalid_params"),
            (("other.method",), "permission_denied"),
            (("demo.add", "[]"), "bad_request"),
            (("demo.slow", '{"seconds": 60}', "--timeout", "0.05"), "timeout"),
        ):
            status, output, errors = await call(*arguments)
            assert (status, json.loads(output)["code"], errors) == (1, code, "")
        for arguments in (("demo.add", "{"), ("add",)):
            status, output, errors = await call(*arguments)
            assert (status, output) == (2, "")
            assert re.fullmatch(r"nuropb-gateway: .+\n", errors)
        # uvicorn alone would leave a header line of more than 8 KiB without any answer.
        for token in ("nobody's", "x" * 9000):
            monkeypatch.setenv("NUROPB_GATEWAY_TOKEN", token)
            status, output, errors = await call("demo.add")
            assert (status, output) == (2, "")
            assert "401" in errors
            assert token not in errors


def test_what_is_called_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("ws://127.0.0.1:1/ws", "http://127.0.0.1:1/ws", "nonsense"):
        assert main(["call", url, "demo.add"]) == 2
        output, errors = capsys.readouterr()
        assert output == ""
        assert re.fullmatch(r"nuropb-gateway: .+\n", errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_good_order(number: signal.Signals) -> None:
    async with serving() as (process, url), connect(url, TOKEN) as client, connect(url, TOKEN) as idle:
        await client.request("demo.slow", {"seconds": 0.5}, id="slow")
        await client.settled()
        process.signal(number)
        assert (await client.event("goodbye"))["event"]["reason"] == "draining"
        assert (await client.answer("slow"))["error"] is None
        assert (await client.closed()).code == 1012
        closed = await idle.closed()
        assert (closed.code, [frame["payload"]["topic"] for frame in closed.frames]) == (1012, ["goodbye"])
        # uvicorn raises the signal again when all is done, so that whoever waits for the process sees it.
        assert await process.wait() in (0, -number)
        assert "Traceback" not in process.output
        assert "Application shutdown complete." in process.output


async def test_no_token_is_logged_however_much_else_is() -> None:
    async with serving(LOG_LEVEL="debug") as (process, url):
        for options in ({"token": TOKEN}, {"subprotocols": ["nuropb.v1", bearer_subprotocol(TOKEN)]}):
            async with connect(url, **options) as client:
                await client.result("demo.echo")
        async with connect(url, hello=False) as client:
            await client.send("authorize", token=TOKEN)
            await client.event("hello")
        assert (await refusal(url, TOKEN + "x")).status == 401
        process.signal(signal.SIGINT)
        await process.wait()
        assert "DEBUG" in process.output
        for secret in (SECRET, TOKEN, bearer_subprotocol(TOKEN), TOKEN.rpartition(".")[2]):
            assert secret not in process.output


async def test_while_it_drains_nobody_is_let_in_and_a_second_signal_ends_it() -> None:
    async with serving() as (process, url), connect(url, TOKEN) as client:
        await client.request("demo.slow", {"seconds": 3600}, id="slow")
        await client.settled()
        async with httpx.AsyncClient(trust_env=False) as browser:
            assert (await browser.get(f"{http(url)}/readyz")).status_code == 200
            process.signal(signal.SIGTERM)
            await client.event("goodbye")
            response = await browser.get(f"{http(url)}/readyz")
            assert (response.status_code, response.json()["reasons"]) == (503, ["draining"])
            assert (await browser.get(f"{http(url)}/livez")).status_code == 200
        refused = await refusal(url, TOKEN)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        process.signal(signal.SIGTERM)
        closed = await client.closed()
        assert (closed.code, closed.frames) == (1012, [])
        await process.wait()
        assert "Traceback" not in process.output


async def test_neither_calls_that_do_not_end_nor_clients_that_do_not_read_hold_it_up() -> None:
    async with serving(DRAIN_TIMEOUT="0.1", LOG_FORMAT="json") as (process, url), contextlib.AsyncExitStack() as stack:
        for last in (b"", RawClient.frame((1000).to_bytes(2, "big"), CLOSE)):
            raw = await stack.enter_async_context(RawClient.open(url, receive_buffer=4096))
            await raw.handshake("/ws", ("Authorization", f"Bearer {TOKEN}"))
            for _ in range(100):
                await raw.send_json({"type": "ping", "payload": "x" * 60000})
            await raw.send(last)
        async with connect(url, TOKEN) as client:
            await client.request("demo.slow", {"seconds": 3600})
            await client.settled()
            process.signal(signal.SIGTERM)
            closed = await client.closed()
            assert (closed.code, [frame["type"] for frame in closed.frames]) == (1012, ["event"])
        await process.wait()
        assert "Traceback" not in process.output
        assert "Application shutdown complete." in process.output
        entries = [json.loads(line) for line in process.stderr if line.startswith("{")]
        assert {"time", "level", "logger", "message"} <= entries[0].keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MESH_URL": "amqp://guest:hunter2@127.0.0.1:5672/"}, "NUROPB_GATEWAY_JWT_KEY: it is not set"),
        ({"MAX_IN_FLIGHT": "many"}, "NUROPB_GATEWAY_MAX_IN_FLIGHT: it is not a number; allowed is a whole number"),
        ({"JWT_KEY": "hunter2"}, "JWT_KEY: a secret needs 32 bytes or more"),
    ],
)
async def test_a_setting_that_does_not_do(settings: dict[str, str], said: str) -> None:
    async with run_module(PACKAGE, "serve", "--port", "0", settings=settings) as process:
        assert await process.wait() == 2
        assert process.stdout == []
        (line,) = process.stderr
        assert said in line
        assert "hunter2" not in line


async def test_a_port_that_does_not_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        async with run_module(PACKAGE, "--port", taken) as in_use, run_module(PACKAGE, "--port", "65536") as too_high:
            assert await in_use.wait() not in (0, 1)
            assert "in use" in "\n".join(in_use.stderr)
            assert await too_high.wait() == 2
            assert too_high.stderr == ["nuropb-gateway: bind(): port must be 0-65535."]
            for process in (in_use, too_high):
                assert process.stdout == []
                assert "Traceback" not in process.output
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "--port", "http"])
    assert "--port" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"
