"""The commands as processes: output, exit codes, and errors at the start.

test_serve.py has the tests of ``serve`` with workers, other sockets, TLS and reloading.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import httpx
import pytest
from jose import jwt

from nuropb_gateway_asgi import __version__
from nuropb_gateway_asgi.__main__ import main
from nuropb_gateway_asgi.authentication import issue_token
from nuropb_gateway_asgi.cli import commands
from tests.integration.conftest import Broker
from tests.kit.clients import CLOSE, RawClient, bearer_subprotocol, connect, refusal
from tests.kit.processes import Process, run_module, run_process
from tests.servers.processes import unavailable

SECRET = "a secret that is long enough to sign with, and no longer"
TOKEN = issue_token(SECRET, "alice")
PACKAGE = "nuropb_gateway_asgi"


@contextlib.asynccontextmanager
async def serving(*arguments: str, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """Run the gateway on a free port with the key of TOKEN, and yield its URL."""
    async with run_module(PACKAGE, *arguments, "--port", "0", settings={"JWT_KEY": SECRET, **settings}) as process:
        yield process, (await process.line(r'ws://[^\s"]+'))[0]


def http(url: str) -> str:
    return url.replace("ws://", "http://").removesuffix("/ws")


async def test_a_start_with_nothing_configured_says_how_to_go_on() -> None:
    async with run_module(PACKAGE, "serve", "--port", "0") as process:
        url = (await process.line(r"^The gateway is at (ws://127\.0\.0\.1:\d+/ws)$"))[1]
        token = (await process.line(r"^[\w-]+\.[\w-]+\.[\w-]+$"))[0]
        await process.line(f"^{http(url)}/#token={token}$")
        await process.line(r" -m nuropb_gateway_asgi call ")
        await process.line("Application startup complete")
        async with connect(url, token) as client:
            assert client.hello["user_id"] == "dev"

        script = "\n".join(line for line in process.stdout if re.search(r"^export | call ", line))
        async with run_process("/bin/sh", "-euc", script) as shell:
            assert (await shell.wait(), shell.stdout, shell.stderr) == (0, ["5"], [])

        # The token is on standard output only, not in the log.
        assert token not in "\n".join(process.stderr)
        process.signal(signal.SIGINT)
        assert await process.wait() == 0
        assert "Traceback" not in process.output


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
        # After the shutdown uvicorn raises the signal again, so that the parent process sees it.
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
        assert {"Timestamp", "SeverityText", "InstrumentationScope", "Body"} <= entries[0].keys()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MESH_URL": "amqp://guest:hunter2@127.0.0.1:5672/"}, "NUROPB_GATEWAY_JWT_KEY: not set"),
        ({"MAX_IN_FLIGHT": "many"}, "NUROPB_GATEWAY_MAX_IN_FLIGHT: not a number; expected a whole number"),
        ({"JWT_KEY": "hunter2"}, "JWT_KEY: the secret has 7 bytes; expected 32 bytes or more"),
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
            assert await in_use.wait() == 3
            assert f"port {taken} of 127.0.0.1 is in use by another program: stop it" in in_use.stderr[-1]
            assert await too_high.wait() == 2
            assert "65536 is not in the range" in too_high.stderr[-1]
            for process in (in_use, too_high):
                assert process.stdout == []
                assert "Traceback" not in process.output
    assert main(["serve", "--port", "http"]) == 2
    assert "--port" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in commands.commands)])
def test_help_has_the_exit_codes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^  Exit codes:\n    0 +\w", output, re.MULTILINE)
    assert "check" in command or "Examples:\n    " in output


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["call", "--nonsense"], ["call", "demo"], ["--nonsense"], ["token"]]
)
def test_what_is_no_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert "Usage: nuropb-gateway" in errors
    assert "Traceback" not in errors


async def test_the_shell_completes_commands_and_options() -> None:
    for words, expected in (
        ("nuropb-gateway ", {"plain,call", "plain,serve", "plain,gen-client"}),
        ("nuropb-gateway serve --", {"plain,--uds"}),
    ):
        count = words.count(" ")
        environment = {"_NUROPB_GATEWAY_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
        async with run_module(PACKAGE, environment=environment) as process:
            assert await process.wait() == 0
            assert expected <= set(process.stdout)


# --- token ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"JWT_ISSUER": "https://issuer.example", "JWT_AUDIENCE": "gateway", "JWT_USER_CLAIM": "uid"},
        {"JWT_AUDIENCE": "gateway,other", "JWT_CLIENT_ID": "app"},
        {"JWT_CLIENT_ID": "app, spa"},
    ],
    ids=["one audience", "several audiences", "client"],
)
async def test_a_token_for_development(
    settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NUROPB_GATEWAY_JWT_KEY", SECRET)
    for name, value in settings.items():
        monkeypatch.setenv(f"NUROPB_GATEWAY_{name}", value)
    arguments = ["--user", "alice", "--username", "Alice", "--lifetime", "60", "--claim", 'roles=["admin"]']
    assert main(["token", *arguments, "--claim", "note=a=b"]) == 0
    (token,) = capsys.readouterr().out.splitlines()
    claims = jwt.get_unverified_claims(token)
    assert claims["exp"] == claims["iat"] + 60
    assert (claims["roles"], claims["note"]) == (["admin"], "a=b")
    async with serving(**settings) as (_, url), connect(url, token) as client:
        assert (client.hello["user_id"], client.hello["username"]) == ("alice", "Alice")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "NUROPB_GATEWAY_JWT_KEY: not set"),
        ({"JWT_KEY": "hunter2"}, "the secret has 7 bytes; expected 32 bytes or more"),
        ({"JWT_KEY": "-----BEGIN PUBLIC KEY-----\nhunter2"}, "public key"),
        ({"JWT_KEY": SECRET, "JWT_ALGORITHMS": "HS512"}, "HS256 only"),
        ({"JWT_KEY_FILE": "/nowhere/hunter2.pem"}, "cannot be read"),
        ({"JWT_JWKS_URL": "https://issuer.example/jwks"}, "provider"),
    ],
)
def test_no_token_can_be_made(
    settings: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)  # where no gateway has kept a key
    for name, value in settings.items():
        monkeypatch.setenv(f"NUROPB_GATEWAY_{name}", value)
    assert main(["token", "--user", "alice"]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert re.fullmatch(r"nuropb-gateway: .+\n", errors)
    assert said in errors
    assert "hunter2" not in errors


def test_a_claim_has_a_name_and_a_value(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NUROPB_GATEWAY_JWT_KEY", SECRET)
    assert main(["token", "--user", "alice", "--claim", "admin"]) == 2
    assert "name=value" in capsys.readouterr().err


# --- check ------------------------------------------------------------------------------------------------------

CHECKS = ["settings", "policy", "keys", "provider", "broker"]


def examined(output: str) -> dict[str, str]:
    """Return the printed results by the names of the checks."""
    lines: dict[str, str] = {}
    for line in output.splitlines():
        name, text = line[:10].strip(), line[10:]
        if name:
            lines[name] = text
        else:
            assert text.startswith("-> ")
            lines[list(lines)[-1]] += f"\n{text}"
    assert list(lines) == CHECKS
    for text in lines.values():
        assert text.count("\n") == (1 if text.startswith("WRONG") else 0)  # each problem has a remedy
    return lines


def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **settings: str) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith("NUROPB_GATEWAY_")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(f"NUROPB_GATEWAY_{name}", value)
    status = main(["check"])
    output, errors = capsys.readouterr()
    assert errors == ""
    assert status == (0 if "WRONG" not in output else 1)
    return examined(output)


def test_a_check_of_what_needs_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = check(monkeypatch, capsys)
    assert [line.partition(":")[0] for line in found.values()] == ["ok"] * 5


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (
            {"MAX_IN_FLIGHT": "many"},
            {"settings": "MAX_IN_FLIGHT: not a number", "policy": "", "keys": "", "provider": "", "broker": ""},
        ),
        ({"EXPOSE": "orders"}, {"policy": "EXPOSE"}),
        ({"ALLOWED_ORIGINS": "app.example.com"}, {"settings": "ALLOWED_ORIGINS"}),
        ({"JWT_KEY": "hunter2"}, {"keys": "32 bytes or more", "provider": ""}),
        (
            {"MESH_URL": "amqp://127.0.0.1:1/"},
            {"keys": "JWT_KEY: not set", "provider": "", "broker": "Connect"},
        ),
        ({"MESH_URL": "amqp://127.0.0.1:1/", "JWT_KEY": SECRET}, {"broker": "\n-> start RabbitMQ at 127.0.0.1:1"}),
        ({"JWT_OIDC_ISSUER": "http://127.0.0.1:1"}, {"provider": "the discovery document: ConnectError"}),
        ({"JWT_OIDC_ISSUER": "http://id.example.com"}, {"keys": "JWT_OIDC_ISSUER", "provider": ""}),
        ({"POLICY": "/missing.toml"}, {"policy": "the file cannot be read"}),
    ],
)
def test_a_check_of_what_is_wrong(
    settings: dict[str, str],
    wrong: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = check(monkeypatch, capsys, **settings)
    assert "hunter2" not in str(found)
    for name, text in found.items():
        assert text.startswith({None: "ok: ", "": "not checked"}.get(wrong.get(name), "WRONG: "))
        assert wrong.get(name, "") in text


def test_a_check_knows_that_a_provider_s_tokens_have_to_name_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = {"JWT_OIDC_ISSUER": "http://127.0.0.1:1"}
    found = check(monkeypatch, capsys, **provider)
    assert found["keys"].startswith("ok: JWT_AUDIENCE is not set, so tokens are not checked for it; set it")
    found = check(monkeypatch, capsys, **provider, JWT_CLIENT_ID="spa")
    assert found["keys"] == "ok: issuer and audience of tokens are checked"


async def test_a_check_of_a_broker(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"checked-{secrets.token_hex(4)}"
    async with await aio_pika.connect(rabbitmq.url) as connection, connection.channel() as channel:
        queue = f"nuropb-{name}-history-orders.#"
        await channel.declare_queue(queue, durable=True, auto_delete=True)
        settings = {"MESH_URL": rabbitmq.url, "JWT_KEY": SECRET, "SERVICE_NAME": name, "HISTORY": "orders.#:1h"}
        found = await asyncio.to_thread(check, monkeypatch, capsys, **settings)
        await channel.queue_delete(queue)
    assert found["broker"].startswith("ok: RabbitMQ ")
    assert "; but events of orders.# have no history" in found["broker"]


async def test_a_check_of_permissions(
    rabbitmq: Broker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if rabbitmq.node is None:
        unavailable("the broker is not ours, so its users cannot be changed")
    node, name = rabbitmq.node, f"checked-{secrets.token_hex(4)}"
    url = node.add_vhost(name).replace("guest:guest", f"{name}:hunter2")
    node.ctl("add_user", name, "hunter2")

    async def broker(url: str = url) -> str:
        found = await asyncio.to_thread(check, monkeypatch, capsys, MESH_URL=url, JWT_KEY=SECRET)
        assert "hunter2" not in str(found)
        return found["broker"]

    assert f"rabbitmqctl set_permissions -p {name} {name} " in await broker()
    for permissions, said in (
        (("", ".*", ".*"), "exchange nuropb"),
        ((".*", ".*", ".*"), "ok: RabbitMQ"),
        ((".*", "queue", ".*"), "access to"),
    ):
        node.ctl("set_permissions", "-p", name, name, *permissions)
        found = await broker()
        assert said in found
        assert found.startswith("ok: " if said.startswith("ok") else "WRONG: ")
    assert node.list_queues(name) == []
    assert f"authenticate_user {name}" in await broker(url.replace("hunter2", "another"))
    node.ctl("delete_user", name)
    node.delete_vhost(name)
