"""Secrets in every place that a client controls, with full logging: the log must contain none of them."""

from __future__ import annotations

import base64
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from nuropb_gateway_asgi.authentication import issue_token
from tests.integration.conftest import Broker
from tests.kit.attacks import frames, handshakes
from tests.kit.clients import Client, RawClient, bearer_subprotocol, connect
from tests.kit.processes import ROOT, Process, run_forked, run_module
from tests.servers.processes import ServiceProcess, unavailable

ORIGIN = "https://app.example.com"
KEY = "kEy-that-signs-and-is-nobody-elses-business"
TOKEN = issue_token(KEY, "alice", note="a-claim-in-the-token")
NEWER = issue_token(KEY, "alice", note="a-claim-in-the-newer-token")
#: An invalid token, and the other secrets of the attacks.
ATTACK = "c2VjcmV0.b2Y.YXR0YWNrZXJz"
QUERY = "query-s3cret"
COOKIE = "session-s3cret"
PARAMS = "params-s3cret/ü"
EVENT = "event-s3cret"
METHOD = "method_s3cret"
ERROR = "error-s3cret"

LOUD = {"PYTHONPATH": f"{ROOT / 'tests' / 'kit' / 'loud'}:{ROOT}"}
SERVE = ("nuropb_gateway_asgi", "serve", "--port", "0", "--log-level", "debug")
UVICORN = (
    *("uvicorn", "nuropb_gateway_asgi:app", "--port", "0"),
    *("--log-level", "trace", "--ws-max-size", "262144"),
)
PROTOCOLS = (
    *("--http", "nuropb_gateway_asgi.server:HTTPProtocol"),
    *("--ws", "nuropb_gateway_asgi.server:WebSocketProtocol"),
)


@contextlib.asynccontextmanager
async def running(*command: str, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """Run a server with full logging, and stop it at the end."""
    settings = {"JWT_KEY": KEY, "ALLOWED_ORIGINS": ORIGIN, "AUTH_COOKIE": "session", "LOG_LEVEL": "debug"} | settings
    async with run_module(*command, settings=settings, environment=LOUD) as process:
        last = r"gateway is at ws://127\.0\.0\.1:(\d+)" if "serve" in command else r"running on http://[^:]+:(\d+)"
        yield process, f"ws://127.0.0.1:{(await process.line(last))[1]}/ws"
        process.signal(signal.SIGINT)
        await process.wait()


def spellings(secret: str) -> Iterator[str]:
    """Return all spellings of a secret that may appear in a text."""
    data = secret.encode()
    yield secret
    yield quote(secret, safe="")
    yield repr(secret)[1:-1]
    yield repr(data)[2:-1]
    yield data.hex()
    yield data.hex(" ")
    for shift in range(3):  # at each offset within the encoded data
        encoded = base64.b64encode(bytes(shift) + data).decode()[4 if shift else 0 : -4]
        yield encoded
        yield encoded.replace("+", "-").replace("/", "_")


def found(output: str, *secrets: str) -> list[str]:
    return [spelling for secret in secrets for spelling in spellings(secret) if spelling in output]


async def attack(url: str) -> None:
    """Run every attack of the tables, with the secret in it."""
    for request, status in handshakes(ATTACK).values():
        async with RawClient.open(url) as raw:
            with contextlib.suppress(OSError):
                await raw.send(request)
                if status == 101:
                    await raw.read_until(b"\r\n\r\n")
                    continue
                raw.finish()
            await raw.ended()
    for data, code in frames(ATTACK).values():
        async with RawClient.open(url) as raw:
            await raw.handshake("/ws", ("Authorization", f"Bearer {TOKEN}"))
            await raw.send(data)
            if code is not None:
                await raw.close_code()


async def talk(url: str, service: str) -> None:
    """Send tokens in every way, and secrets in every frame."""
    cookie = ("Cookie", f"other={COOKIE}; session={TOKEN}")
    asked = f"{url}?token={QUERY}&{TOKEN}"
    async with connect(asked, headers=[cookie], origin=ORIGIN) as client:
        await client.result(f"{service}.echo", {"secret": PARAMS})
    async with connect(asked, subprotocols=["nuropb.v1", bearer_subprotocol(TOKEN)]) as client:
        await say(client, service)
    async with connect(asked, hello=False) as client:
        await client.send("request", service="demo", method="echo", params={"secret": PARAMS})
        await client.send("authorize", token=TOKEN)
        await client.event("hello")
        assert (await client.ask("authorize", token=NEWER))["error"] is None
        assert (await client.ask("authorize", token=ATTACK))["error"]["code"] == "unauthenticated"


async def browse(url: str) -> str:
    """Send secrets in HTTP requests, and return all answers, the metrics included."""
    answers = ""
    async with httpx.AsyncClient(trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}) as browser:
        for path in ("/livez", "/readyz", "/metrics", "/nowhere", f"/{METHOD}"):
            answers += (
                await browser.get(url.replace("ws", "http", 1).removesuffix("/ws") + f"{path}?token={QUERY}")
            ).text
    assert "nuropb_gateway_requests_total" in answers
    return answers


async def say(client: Client, service: str) -> None:
    await client.call(f"{service}.{METHOD}", {"secret": PARAMS})
    await client.call(f"{service}.add", {"a": PARAMS, "b": PARAMS})
    await client.ask("command", service=service, method="echo", params={"secret": PARAMS})
    await client.ask("subscribe", topics=["demo.#"])
    for text in (
        f'{{"type":"request","payload":{{"service":"{service}","params":{{"secret":"{PARAMS}"}}}}}}',
        f'{{"type":"{PARAMS}"}}',
        f'"{PARAMS}"',
        PARAMS,
    ):
        await client.send_text(text)
        await client.settled()


@pytest.mark.parametrize(
    "command",
    [SERVE, UVICORN, (*UVICORN, *PROTOCOLS), (*SERVE, "--workers", "2")],
    ids=["serve", "uvicorn", "uvicorn with the protocols", "workers"],
)
async def test_no_secret_of_a_client_is_logged(command: tuple[str, ...]) -> None:
    async with running(*command) as (process, url):
        await talk(url, "demo")
        async with connect(url, TOKEN) as client:
            await client.ask("subscribe", topics=["demo.news"])
            await client.call("demo.publish", {"topic": "demo.news", "event": {"secret": EVENT}})
            await client.event("demo.news")
            await client.call("demo.publish", {"topic": f"{ERROR}..", "event": EVENT})
            await client.call("demo.fail", {"how": ERROR, "other": ERROR})
        await attack(url)
        answers = await browse(url)
    secrets = (KEY, TOKEN, TOKEN.rpartition(".")[2], NEWER, ATTACK, QUERY, COOKIE, PARAMS, EVENT, ERROR)
    assert "DEBUG" in process.output
    assert found(process.output, *secrets, bearer_subprotocol(TOKEN), "a-claim-in-the") == []
    assert found(answers, *secrets, METHOD) == []
    # Requests are logged with client, path and status.
    assert re.search(r'"WebSocket /ws" \[accepted\]', process.output)
    assert re.search(r'"GET /nowhere HTTP/1.1" 404', process.output)
    # No client can start a new line.
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", process.output) is None


HOST_APPLICATION = """
from fastapi import FastAPI
from nuropb_gateway_asgi import Gateway

gateway = Gateway()
app = FastAPI(lifespan=gateway.lifespan)
app.mount("/gw", gateway.app)

@app.get("/own")
def own():
    raise ValueError("a text that its developer needs")
"""


async def test_within_an_application_what_is_said_over_websockets_is_not_logged(tmp_path: Path) -> None:
    (tmp_path / "host_application.py").write_text(HOST_APPLICATION)
    command = ("uvicorn", "host_application:app", "--app-dir", str(tmp_path), *UVICORN[2:])
    async with running(*command) as (process, url):
        await talk(url.replace("/ws", "/gw/ws"), "demo")
        async with httpx.AsyncClient(trust_env=False) as browser:
            response = await browser.get(url.replace("ws://", "http://").replace("/ws", "/own?page=7"))
            assert response.status_code == 500
    assert found(process.output, KEY, TOKEN, NEWER, ATTACK, QUERY, COOKIE, PARAMS) == []
    # The application's own records are unchanged.
    assert '"GET /own?page=7 HTTP/1.1" 500' in process.output
    assert "ValueError: a text that its developer needs" in process.output


async def test_no_secret_of_the_mesh_is_logged(rabbitmq: Broker) -> None:
    if rabbitmq.node is None:
        unavailable("the broker is not ours, so it has no user with a password to look for")
    password = "p4ssword-of-the-gateway"
    rabbitmq.node.ctl("add_user", "gateway-that-logs", password)
    rabbitmq.node.ctl("set_permissions", "-p", rabbitmq.vhost, "gateway-that-logs", ".*", ".*", ".*")
    mesh_url = re.sub(r"//[^@]*@", f"//gateway-that-logs:{password}@", rabbitmq.url)
    with ServiceProcess(rabbitmq.url, "service-that-fails") as service:
        settings = {"MESH_URL": mesh_url, "EXPOSE": "*.*", "EXPOSE_TOPICS": "#"}
        async with running(*SERVE, **settings) as (process, url):
            await process.line("mesh: revocations are read$")
            name = service.service
            await talk(url, name)
            async with connect(url, TOKEN) as client:
                assert (await client.result(f"{name}.echo", {"secret": PARAMS})) == {"secret": PARAMS}
                assert (await client.result(f"{name}.secret", {"value": PARAMS})) == f"kept {PARAMS}"
                await client.ask("subscribe", topics=["news"])
                await client.result(f"{name}.emit", {"topic": "news", "event": {"secret": EVENT}})
                assert (await client.event("news"))["event"] == {"secret": EVENT}
                for method in ("value", "async", "validation", "authorization", "authentication", "deprecated"):
                    await client.call(f"{name}.fail_{method}", {"secret": PARAMS})
                assert await client.error_code(f"{METHOD}.{METHOD}", {"secret": PARAMS}) == "service_unavailable"
            await attack(url)
            answers = await browse(url)
    errors = ("password=hunter2", "the quantity must be positive", "only managers", "has been revoked")
    assert "DEBUG" in process.output
    assert found(process.output, KEY, password, TOKEN, PARAMS, EVENT, ATTACK, QUERY, *errors) == []
    assert 'service="other"' in answers
    assert found(answers, TOKEN, PARAMS, EVENT, ATTACK, QUERY, METHOD, *errors) == []


async def test_what_makes_a_line_of_its_own_is_escaped() -> None:
    forged = "2026 INFO: everything is fine"
    settings = {"JWT_KEY": KEY, "LOG_LEVEL": "debug", "HANDSHAKE_RATE_PER_ADDRESS": "1/min"}
    async with run_module(*SERVE, "--forwarded-allow-ips", "*", settings=settings, environment=LOUD) as process:
        url = (await process.line(r"ws://\S+"))[0]
        addresses = [f"\x9b2J{forged}", f"1.2.3.4\x85{forged}"]
        for address in addresses * 2:  # the second time exceeds the rate of handshakes, which the gateway logs
            async with RawClient.open(url) as raw:
                await raw.handshake(f"/ws?%0d%0a{forged.replace(' ', '%20')}", ("X-Forwarded-For", address))
        process.signal(signal.SIGINT)
        await process.wait()
    assert rf"\x9b2J{forged}" in process.output
    assert rf"1.2.3.4\x85{forged}" in process.output
    assert rf"too many handshakes from '1.2.3.4\x85{forged}'" in process.output
    assert re.search(r"[\x80-\x9f]", process.output) is None
    assert not any(line.startswith(forged) for line in process.output.splitlines())


async def test_a_stranger_cannot_fill_the_log_with_a_few_requests() -> None:
    settings = {"JWT_KEY": KEY, "HANDSHAKE_RATE_PER_ADDRESS": "1/min"}
    async with run_forked(*SERVE, "--forwarded-allow-ips", "*", settings=settings) as process:
        url = (await process.line(r"ws://\S+"))[0]
        before = len(process.output)
        long = "x" * 15_000
        for start in ("a", "b", "c"):  # they count as one address
            async with RawClient.open(url) as raw:
                await raw.handshake(f"/ws/{long}", ("X-Forwarded-For", start + long))
            async with RawClient.open(url) as raw:
                await raw.handshake("/ws", ("X-Forwarded-For", start + long))
        await process.line("too many handshakes from an address that is too long")
        process.signal(signal.SIGINT)
        await process.wait()
    assert len(process.output) - before < 10_000


async def test_the_lines_about_refused_requests_are_summed_up() -> None:
    async with run_forked(*SERVE, settings={"JWT_KEY": KEY}) as process:
        url = (await process.line(r"ws://\S+"))[0]
        for _ in range(150):
            async with RawClient.open(url) as raw:
                await raw.handshake("/nothing")
            async with RawClient.open(url) as raw:
                await raw.handshake("/ws", ("Authorization", "Bearer nonsense"))
        process.signal(signal.SIGINT)
        await process.wait()
    logged = len(re.findall(r'"WebSocket /|connection (?:refused|rejected)', process.output))
    left_out = re.findall(r"(\d+) lines about refused requests are left out: more than 100 in 10 s", process.output)
    assert left_out
    # For each handshake uvicorn and websockets have a line; the gateway has one for a token.
    assert logged + sum(map(int, left_out)) == 150 * 2 + 150 * 3
