"""The gateway behind Caddy, Traefik, Envoy and Apache, each as deploy/ has it, over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.kit.clients import bearer_subprotocol, connect, refusal
from tests.kit.gateways import eventually
from tests.kit.javascript import node
from tests.kit.processes import Process, run_process
from tests.matrix.proxies import MORE_PROXIES, run_more_proxy
from tests.servers.proxies import (
    FOR_CLIENTS,
    LARGE,
    NOT_FOR_CLIENTS,
    ORIGIN,
    PROXIES,
    TOKEN,
    Proxy,
    port_of,
    run_proxy,
    serving,
)


@dataclass(frozen=True)
class Site:
    """A proxy and the gateways behind it."""

    proxy: Proxy
    gateways: list[Process]


@pytest.fixture(params=MORE_PROXIES, scope="module")
async def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp(request.param)
    async with serving() as (gateway, url), run_more_proxy(request.param, directory, [port_of(url)]) as proxy:
        await ready(proxy)
        yield Site(proxy, [gateway])


async def ready(proxy: Proxy) -> None:
    """Wait until the proxy has its certificate, and its health checks have found a gateway."""
    async with httpx.AsyncClient(verify=proxy.tls, trust_env=False) as client, asyncio.timeout(30):
        while True:
            with contextlib.suppress(httpx.ConnectError):
                if (await client.get(proxy.url("/readyz", "https"))).status_code == 200:
                    return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("token", [TOKEN, LARGE], ids=["small token", "token of 16 KiB"])
async def test_a_token_by_every_channel(site: Site, token: str) -> None:
    url, tls = site.proxy.url(), site.proxy.tls
    async with (
        connect(url, token, ssl=tls) as by_header,
        connect(url, subprotocols=["nuropb.v1", bearer_subprotocol(token)], ssl=tls) as by_subprotocol,
        connect(url, headers=[("Cookie", f"session={token}")], origin=ORIGIN, ssl=tls) as by_cookie,
        connect(url, hello=False, ssl=tls) as by_frame,
    ):
        await by_frame.send("authorize", token=token)
        await by_frame.event("hello")
        assert by_subprotocol.subprotocol == "nuropb.v1"
        for client in (by_header, by_subprotocol, by_cookie, by_frame):
            assert await client.result("demo.echo", {"text": "x" * 60000}) == {"text": "x" * 60000}


async def test_refusals_come_through(site: Site) -> None:
    refused = await refusal(site.proxy.url(), "nobody's", ssl=site.proxy.tls)
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")


async def test_calls_and_events_over_http_come_through(site: Site) -> None:
    async with httpx.AsyncClient(
        verify=site.proxy.tls, headers={"Authorization": f"Bearer {LARGE}"}, timeout=30
    ) as client:

        async def call(method: str, **params: Any) -> Any:
            response = await client.post(site.proxy.url(f"/rpc/demo/{method}", "https"), json=params)
            return response.json() if response.status_code == 200 else response.status_code

        assert await call("echo", text="x" * 60000) == {"text": "x" * 60000}
        assert await call("echo", text="x" * 70000) == 413
        assert await call("nothing") == 404
        async with client.stream("GET", site.proxy.url("/events?topic=demo.x", "https")) as response:
            lines = response.aiter_lines()
            for topic in ("hello", "demo.x"):  # each before the next is sent, so nothing waits on the way
                if topic == "demo.x":
                    await call("publish", topic=topic)
                while f'"topic":"{topic}"' not in await anext(lines):
                    pass


async def test_the_address_is_the_one_that_the_proxy_saw(site: Site) -> None:
    forged = [("X-Forwarded-For", "192.0.2.66"), ("Forwarded", "for=192.0.2.68")]
    options: dict[str, Any] = {"ssl": site.proxy.tls, "local_addr": ("127.0.0.7", 0)}
    async with connect(site.proxy.url(), TOKEN, headers=forged, **options) as client:
        await client.settled()
        await site.gateways[0].line(r'127\.0\.0\.7:\d+ - "WebSocket /ws" \[accepted\]')
    assert "192.0.2.6" not in site.gateways[0].output


async def test_only_what_is_for_clients_is_open_to_the_outside(site: Site) -> None:
    async def status(path: str, address: str = "127.0.0.7") -> int:
        transport = httpx.AsyncHTTPTransport(verify=site.proxy.tls, local_address=address)
        async with httpx.AsyncClient(transport=transport) as browser:
            return (await browser.get(site.proxy.url(path, "https"))).status_code

    paths = (
        "/metrics",
        "//metrics",
        "/ws/../metrics",
        "/rpc/../metrics",
        "/rpc/..%2fmetrics",
        "/%6detrics",
        "/livez",
        "/",
    )
    answers = {path: await status(path) for path in paths}
    # A redirection to the plain path is as good: that is refused.
    assert {path: each for path, each in answers.items() if each not in (301, 307, 308, 400, 401, 403, 404, 405)} == {}
    assert answers["/metrics"] in (403, 404)
    assert await status("/readyz") in (403, 404)
    assert await status("/readyz", "127.0.0.1") == 200


async def test_who_comes_without_tls_is_sent_to_it(site: Site) -> None:
    async with httpx.AsyncClient(trust_env=False) as browser:
        response = await browser.get(site.proxy.url("/ws", "http"))
    assert response.status_code in (301, 308)
    assert response.headers["Location"].startswith("https://")


@contextlib.asynccontextmanager
async def run_any(name: Any, directory: Path, *ports: int, edits: dict[str, str] | None = None) -> AsyncIterator[Proxy]:
    """Run any of the six proxies before the gateways at these ports."""
    if name in PROXIES:
        running = run_proxy(name, directory, ports[0], others=ports[1:], edits=edits)
    else:
        running = run_more_proxy(name, directory, ports, edits=edits)
    async with running as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def stand_in() -> AsyncIterator[int]:
    """Run a server that answers every request with 200; yield its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npassed on")
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("name", [*PROXIES, *MORE_PROXIES])
async def test_all_proxies_pass_the_same_paths_on(name: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    async with (
        stand_in() as port,
        run_any(name, tmp_path_factory.mktemp(name), port) as proxy,
        httpx.AsyncClient(verify=proxy.tls, trust_env=False, timeout=30) as client,
    ):
        await ready(proxy)

        async def passes_on(route: str) -> bool:
            path = re.sub(r"\{[^}]*\}", "x", route)
            response = await client.get(proxy.url(path, "https"))
            return (response.status_code, response.text) == (200, "passed on")

        assert {path for path in (*FOR_CLIENTS, *NOT_FOR_CLIENTS) if await passes_on(path)} == set(FOR_CLIENTS)
        for path in ("/asyncapi.json/x", "/openapi.jsonx", "/client.js/x", "/wsx", "/eventsx"):
            assert not await passes_on(path), path


@pytest.mark.parametrize("name", [*PROXIES, *MORE_PROXIES])
async def test_calls_go_on_while_a_gateway_drains(name: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    drains = {"SHUTDOWN_DELAY": "3", "DRAIN_TIMEOUT": "5"}
    async with (
        serving(**drains) as (first, one),
        serving(**drains) as (_, two),
        run_any(name, tmp_path_factory.mktemp(name), port_of(one), port_of(two)) as proxy,
        httpx.AsyncClient(verify=proxy.tls, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as client,
    ):
        await ready(proxy)
        statuses: list[int] = []

        async def keep_calling() -> None:
            while True:
                response = await client.post(proxy.url("/rpc/demo/add", "https"), json={"a": 1, "b": 1})
                statuses.append(response.status_code)
                await asyncio.sleep(0.02)

        calling = asyncio.create_task(keep_calling())
        await eventually(lambda: len(statuses) > 20)
        first.signal(signal.SIGTERM)
        await first.wait()
        after = len(statuses)
        await eventually(lambda: len(statuses) > after + 20)
        calling.cancel()
        assert set(statuses) == {200}


#: Opens a WebSocket over HTTP/2 (RFC 8441), and prints the status and the first frame that comes.
WEBSOCKET_OVER_HTTP2 = """
import { connect } from "node:http2";
const [url, token] = process.argv.slice(1);
const session = connect(url, { rejectUnauthorized: false });
session.once("remoteSettings", ({ enableConnectProtocol }) => {
  const stream = session.request({
    ":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":path": "/ws",
    ":authority": new URL(url).host, "sec-websocket-version": "13", authorization: `Bearer ${token}`,
  });
  stream.once("response", (headers) => console.log(enableConnectProtocol, headers[":status"]));
  stream.once("data", (data) => { console.log(data.toString()); session.destroy(); });
});
"""


@pytest.mark.parametrize("name", ["haproxy", "envoy"])
async def test_a_websocket_over_http2_reaches_the_gateway(name: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp(name)
    async with serving() as (_, url):
        port = port_of(url)
        async with run_any(name, directory, port) as proxy:
            await ready(proxy)
            command = [*node(), "--input-type=module", "--eval", WEBSOCKET_OVER_HTTP2, proxy.url("", "https"), TOKEN]
            async with run_process(*command) as client:
                await client.line("true 200")
                await client.line('"type":"event".*"topic":"hello"')


#: What makes the comments of each file about the PROXY protocol its configuration.
PROXY_PROTOCOL: Final[dict[str, dict[str, str]]] = {
    "nginx": {"#listen 443": "listen 443", "    listen 443 ssl;\n": "", "from 10.0.0.0/8": "from 127.0.0.0/8"},
    "haproxy": {"    bind :443 ssl crt /etc/haproxy/gateway.example.com.pem alpn h2,http/1.1\n": "", "#bind": "bind"},
    "caddy": {
        "#listener_wrappers": "listener_wrappers",
        "\t\t#\t": "\t\t\t",
        "\t\t#}": "\t\t}",
        "allow 10.0.0.0/8": "allow 127.0.0.0/8",
    },
    "traefik": {"#proxyProtocol": "proxyProtocol", "10.0.0.0/8": "127.0.0.0/8"},
    "envoy": {"#listener_filters": "listener_filters"},
    "apache2": {"#RemoteIPProxyProtocol": "RemoteIPProxyProtocol"},
}


@pytest.mark.parametrize("name", [*PROXIES, *MORE_PROXIES])
async def test_the_address_comes_from_the_proxy_protocol_of_a_load_balancer(
    name: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    edits, directory = PROXY_PROTOCOL[name], tmp_path_factory.mktemp(name)
    async with serving() as (gateway, url), run_any(name, directory, port_of(url), edits=edits) as proxy:
        async with asyncio.timeout(30):
            while "203.0.113.9:" not in gateway.output:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await ask_by_proxy_protocol(proxy)
                await asyncio.sleep(0.1)


async def ask_by_proxy_protocol(proxy: Proxy) -> None:
    """Make a call as a load balancer passes it on for a client at 203.0.113.9."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(f"PROXY TCP4 203.0.113.9 127.0.0.1 50000 {proxy.port}\r\n".encode())
        await writer.drain()
        await writer.start_tls(proxy.tls, server_hostname="127.0.0.1")
        head = f"POST /rpc/demo/add HTTP/1.1\r\nHost: 127.0.0.1:{proxy.port}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await reader.readuntil(b"\r\n")
    finally:
        writer.close()


@pytest.mark.parametrize("name", ["traefik", "envoy"])
async def test_an_address_with_too_many_handshakes_is_put_off(
    name: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with serving() as (_, url), run_any(name, tmp_path_factory.mktemp(name), port_of(url)) as proxy:
        await ready(proxy)
        options: dict[str, Any] = {"ssl": proxy.tls, "local_addr": ("127.0.0.8", 0)}
        refused = [await refusal(proxy.url(), "nobody's", **options) for _ in range(30)]
        refused += await asyncio.gather(*(refusal(proxy.url(), "nobody's", **options) for _ in range(110)))
        # A busy machine may keep the proxy's health check from its answer, which is 503 for a while.
        assert {401, 429} <= {answer.status for answer in refused} <= {401, 429, 503}
        await ready(proxy)
        # Another address is let in.
        async with connect(proxy.url(), TOKEN, ssl=proxy.tls, local_addr=("127.0.0.9", 0)):
            pass
