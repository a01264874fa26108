"""The gateway behind nginx and HAProxy, each as deploy/ has it, over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.kit.clients import bearer_subprotocol, connect, refusal, turned_away
from tests.kit.processes import Process
from tests.servers.proxies import LARGE, ORIGIN, PROXIES, TOKEN, Proxy, ProxyName, port_of, run_proxy, serving


@dataclass(frozen=True)
class Site:
    """A proxy and the gateway behind it."""

    proxy: Proxy
    gateway: Process
    gateway_url: str


@pytest.fixture(params=PROXIES, scope="module")
async def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp(request.param)
    async with serving() as (gateway, url), run_proxy(request.param, directory, port_of(url)) as proxy:
        yield Site(proxy, gateway, url)


@pytest.mark.parametrize("token", [TOKEN, LARGE], ids=["small token", "token of 16 KiB"])
async def test_a_token_by_every_channel(site: Site, token: str) -> None:
    assert len(LARGE) <= 16384 < len(LARGE) + 32
    url, tls = site.proxy.url(), site.proxy.tls
    cookie = ("Cookie", f"session={token}")
    async with (
        connect(url, token, ssl=tls) as by_header,
        connect(url, subprotocols=["nuropb.v1", bearer_subprotocol(token)], ssl=tls) as by_subprotocol,
        connect(url, headers=[cookie], origin=ORIGIN, ssl=tls) as by_cookie,
        connect(url, hello=False, ssl=tls) as by_frame,
    ):
        await by_frame.send("authorize", token=token)
        await by_frame.event("hello")
        assert by_subprotocol.subprotocol == "nuropb.v1"
        for client in (by_header, by_subprotocol, by_cookie, by_frame):
            assert (await client.result("demo.whoami"))["Authorization"] == f"Bearer {token}"
            assert await client.result("demo.echo", {"text": "x" * 60000}) == {"text": "x" * 60000}


async def test_refusals_come_through(site: Site) -> None:
    url, tls = site.proxy.url(), site.proxy.tls
    refused = await refusal(url, "nobody's", ssl=tls)
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await refusal(url, TOKEN, origin="https://evil.example.com", ssl=tls)).status == 403
    assert (await turned_away(url, "nobody's", origin=ORIGIN, ssl=tls))[0] == 4510


async def test_calls_and_events_over_http_come_through(site: Site) -> None:
    async with httpx.AsyncClient(verify=site.proxy.tls, headers={"Authorization": f"Bearer {LARGE}"}) as client:

        async def call(method: str, **params: Any) -> Any:
            response = await client.post(site.proxy.url(f"/rpc/demo/{method}", "https"), json=params)
            return response.json() if response.status_code == 200 else response.status_code

        assert await call("echo", text="x" * 60000) == {"text": "x" * 60000}
        assert await call("echo", text="x" * 70000) == 413
        assert await call("nothing") == 404
        url = site.proxy.url("/events?topic=demo.x", "https")
        async with client.stream("GET", url) as response:
            lines = response.aiter_lines()
            for topic in ("hello", "demo.x"):  # each before the next is sent, so nothing waits on the way
                if topic == "demo.x":
                    await call("publish", topic=topic)
                while f'"topic":"{topic}"' not in await anext(lines):
                    pass


async def test_the_address_is_the_one_that_the_proxy_saw(site: Site) -> None:
    forged = [("X-Forwarded-For", "192.0.2.66"), ("X-Forwarded-For", "192.0.2.67"), ("Forwarded", "for=192.0.2.68")]
    options: dict[str, Any] = {"ssl": site.proxy.tls, "local_addr": ("127.0.0.7", 0)}
    async with connect(site.proxy.url(), TOKEN, headers=forged, **options) as client:
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        await site.gateway.line(r'127\.0\.0\.7:\d+ - "WebSocket /ws" \[accepted\]')
    assert "192.0.2.6" not in site.gateway.output


async def test_who_is_not_a_proxy_is_not_believed() -> None:
    options: dict[str, Any] = {"headers": [("X-Forwarded-For", "192.0.2.66")], "local_addr": ("127.0.0.7", 0)}
    async with serving() as (process, url), connect(url, TOKEN, **options):
        await process.line(r'127\.0\.0\.7:\d+ - "WebSocket /ws" \[accepted\]')
        assert "192.0.2.66" not in process.output


async def test_only_what_is_for_clients_is_open_to_the_outside(site: Site) -> None:
    async def status(path: str, address: str = "127.0.0.7") -> int:
        transport = httpx.AsyncHTTPTransport(verify=site.proxy.tls, local_address=address)
        async with httpx.AsyncClient(transport=transport) as browser:
            response = await browser.get(site.proxy.url(path, "https"))
            assert "uvicorn" not in str(response.headers).lower()
            return response.status_code

    for path in (
        "/metrics",
        "/metrics/",
        "//metrics",
        "/ws/../metrics",
        "/rpc/../metrics",
        "/%6detrics",
        "/livez",
        "/",
        "/nowhere",
    ):
        assert await status(path) == 404
        assert await status(path, "127.0.0.1") == 404
    assert await status("/readyz") in (403, 404)
    assert await status("/readyz", "127.0.0.1") == 200


async def test_the_client_for_browsers_and_the_contract_come_through(site: Site) -> None:
    async with httpx.AsyncClient(verify=site.proxy.tls) as browser:

        async def get(path: str, **headers: str) -> httpx.Response:
            return await browser.get(site.proxy.url(path, "https"), headers=headers)

        for path in ("/client.js", "/client-worker.js"):
            assert (await get(path)).headers["Content-Type"].startswith("text/javascript")
        for path in ("/asyncapi.json", "/openapi.json"):
            assert (await get(path)).status_code == 401
            contract = await get(path, Authorization=f"Bearer {TOKEN}")
            assert contract.status_code == 200
            assert '"wss' in contract.text if path == "/asyncapi.json" else '"https://' in contract.text
        assert (await get("/asyncapi.json/x")).status_code == 404


async def test_who_comes_without_tls_is_sent_to_it(site: Site) -> None:
    async with httpx.AsyncClient(trust_env=False) as browser:
        response = await browser.get(site.proxy.url("/ws", "http"))
        assert response.status_code == 301
        assert response.headers["Location"].startswith(("https://127.0.0.1", "https://gateway.example.com/ws"))
        # Whoever writes a link must not be able to write a header.
        for path in ("/%0d%0aX-Forged:%20yes", "/%0aX-Forged:%20yes", "/ws?%0d%0aX-Forged:%20yes"):
            response = await browser.get(site.proxy.url(path, "http"))
            assert "X-Forged" not in response.headers
            assert response.headers["Location"].endswith(path)


async def test_the_proxy_logs_no_query(site: Site) -> None:
    async with connect(site.proxy.url("/ws?token=query-s3cret"), TOKEN, ssl=site.proxy.tls) as client:
        await client.settled()
    await refusal(site.proxy.url("/ws?token=query-s3cret"), "nobody's", ssl=site.proxy.tls)
    await site.proxy.process.line(r"GET /ws\b.* 401|401 .*GET /ws")
    assert "query-s3cret" not in site.proxy.process.output + site.gateway.output


async def test_more_handshakes_than_one_address_may_make(site: Site) -> None:
    options: dict[str, Any] = {"ssl": site.proxy.tls, "local_addr": ("127.0.0.8", 0)}
    refused = [await refusal(site.proxy.url(), "nobody's", **options) for _ in range(25)]
    refused += await asyncio.gather(*(refusal(site.proxy.url(), "nobody's", **options) for _ in range(90)))
    assert {answer.status for answer in refused} == {401, 429}


@pytest.mark.parametrize("name", PROXIES)
async def test_pings_keep_an_idle_connection_from_being_cut_off(
    name: ProxyName, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same with a second for the 75 of the file: without pings the proxy hangs up."""
    async with (
        serving(PING_INTERVAL="0.3", PING_TIMEOUT="0.3") as (_, often),
        serving(PING_INTERVAL="3600") as (_, never),
        run_proxy(name, tmp_path_factory.mktemp("often"), port_of(often), "1s") as kept,
        run_proxy(name, tmp_path_factory.mktemp("never"), port_of(never), "1s") as cut,
        connect(kept.url(), TOKEN, ssl=kept.tls) as client,
        connect(cut.url(), TOKEN, ssl=cut.tls) as idle,
    ):
        closing = asyncio.create_task(idle.closed())
        for _ in range(8):
            await client.wait_for(lambda frame: frame["type"] == "ping")
            await client.send("pong")
        assert (await closing).code == 1006
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
