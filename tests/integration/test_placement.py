"""The gateway's protocols in a uvicorn that another program configures and starts, in every way that there is."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI, Request, WebSocket
from websockets.asyncio.client import connect as connect_websocket

from nuropb_gateway_asgi.server import http
from tests.kit.clients import PING, PONG, TEXT, RawClient, connect
from tests.kit.gateways import DEADLINE, Site, make_gateway, serve
from tests.kit.ways import BEARER, WAYS, Way, running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets, file descriptors and gunicorn")

#: A token with many groups, for example.
LONG: Final = ("X-Groups", "x" * 12288)
DEFLATE: Final = ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")
PLACED: Final = "the gateway's protocols serve this uvicorn's HTTP and WebSocket connections; "


async def call(raw: RawClient) -> None:
    """Read hello, and have a call answered."""
    assert b"hello" in (await raw.read_frame())[1]
    frame = {"type": "request", "payload": {"service": "demo", "method": "add", "params": {"a": 1, "b": 2}, "id": "1"}}
    await raw.send_json(frame)
    assert b'"result":3' in (await raw.read_frame())[1]


@pytest.mark.parametrize("name", WAYS)
async def test_long_tokens_are_read_and_the_gateways_connections_take_the_direct_way(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    async with running(way, tmp_path) as server:
        for _ in range(4 * way.processes):  # each worker gets some
            async with server.connection() as raw:
                head = await raw.handshake(way.path, BEARER, LONG, DEFLATE)
                assert head.startswith("HTTP/1.1 101 ")
                assert "extensions" not in head.lower()  # a compressed connection could not take the direct way
                await call(raw)
        assert server.process.output.count(PLACED) == way.processes


@pytest.mark.parametrize("name", ["uvicorn", "mounted", "gunicorn"])
async def test_a_setting_leaves_the_connections_to_uvicorn(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    async with running(way, tmp_path, SERVER_PROTOCOLS="off") as server, server.connection() as raw:
        assert "extensions: permessage-deflate" in (await raw.handshake(way.path, BEARER, DEFLATE)).lower()
        assert "the gateway's protocols" not in server.process.output


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (("--ws", "wsproto"), "HTTP connections; "),
        (("--ws", "websockets"), "HTTP connections; "),
        (("--http", "program:Own"), "WebSocket connections; "),
        (("--http", "program:Own", "--ws", "wsproto"), None),
    ],
)
async def test_protocols_that_the_operator_has_chosen_stay(
    choice: tuple[str, ...], told: str | None, tmp_path: Path
) -> None:
    own = "from uvicorn.protocols.http.h11_impl import H11Protocol\nclass Own(H11Protocol):\n    pass\n"
    async with running(Way(WAYS["uvicorn"].command, program=own), tmp_path, *choice) as server:
        async with server.connection() as raw:
            head = await raw.handshake("/ws", BEARER, DEFLATE)
            assert ("extensions" in head.lower()) is ("--ws" in choice)
        found = re.search(r"the gateway's protocols serve this uvicorn's (.*?; )", server.process.output)
        assert (found and found[1]) == told


async def test_the_gateways_protocols_chosen_by_name_stay(tmp_path: Path) -> None:
    names = (
        "--http",
        "nuropb_gateway_asgi.server:HTTPProtocol",
        "--ws",
        "nuropb_gateway_asgi.server:WebSocketProtocol",
    )
    async with running(WAYS["uvicorn"], tmp_path, *names) as server, server.connection() as raw:
        assert "extensions: permessage-deflate" in (await raw.handshake("/ws", BEARER, LONG, DEFLATE)).lower()
        assert "the gateway's protocols" not in server.process.output


async def test_a_uvicorn_without_a_name_keeps_its_own_protocols_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import nuropb_gateway_asgi.server._uvicorn as names\n"
        "names.unplaced.__wrapped__.__code__ = (lambda: 'a name is missing').__code__\n"
    )
    async with running(WAYS["uvicorn"], tmp_path) as server, server.connection() as raw:
        assert "extensions: permessage-deflate" in (await raw.handshake("/ws", BEARER, DEFLATE)).lower()
        await server.process.line("only uvicorn's own limits: a name is missing; install")
        assert "the gateway's protocols" not in server.process.output


# --- other routes of the application ------------------------------------------------------------------------------


def make_application(*gateways: Any) -> FastAPI:
    """Make an application with routes of its own, and the gateways at /0, /1 and so on."""
    app = FastAPI()
    for number, gateway in enumerate(gateways):
        gateway.mount(app, f"/{number}")

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="chat")
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    @app.post("/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    return app


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    gateway = make_gateway(server_protocols="on", max_message_size=1024)
    async with serve(make_application(gateway), server="uvicorn", max_size=16 * 2**20) as site:  # uvicorn's default
        yield site


async def test_other_websockets_keep_compression_subprotocol_and_sizes(site: Site) -> None:
    async with connect_websocket(site.ws("/echo"), subprotocols=["chat"], proxy=None, max_size=None) as client:  # type: ignore[list-item]
        assert client.response is not None
        assert "permessage-deflate" in client.response.headers["Sec-WebSocket-Extensions"]
        assert client.subprotocol == "chat"
        text = "x" * 4_000_000
        await client.send(text)
        assert await client.recv() == text
        await client.send(["y"] * 3000)  # in as many fragments
        assert await client.recv() == "y" * 3000


async def test_other_websockets_keep_their_number_of_pings(site: Site) -> None:
    async with RawClient.open(site.ws("/echo")) as raw:
        await raw.handshake("/echo", ("Sec-WebSocket-Protocol", "chat"))
        await raw.send(RawClient.frame(b"!", PING) * 500 + RawClient.frame(b"text"))
        for _ in range(500):
            assert await raw.read_frame() == (PONG, b"!")
        assert await raw.read_frame() == (TEXT, b"text")


async def test_the_gateways_connections_have_its_limits(site: Site) -> None:
    for data, code in (
        (RawClient.frame(b"x" * 4200)[:100], 1009),
        (RawClient.frame(b"x" * 4000, fin=False) + RawClient.frame(b"x" * 200, 0), 1009),
        (RawClient.frame(b"!", PING) * 200, 4029),
        (RawClient.frame(b"x", fin=False) + RawClient.frame(b"x", 0, fin=False) * 1100, 1009),
    ):
        async with RawClient.open(site.ws()) as raw:
            await raw.handshake("/0/ws", ("Authorization", "Bearer alice"))
            await raw.send(data)
            assert await raw.close_code() == code
    async with connect(site.ws("/0/ws"), "alice") as client:  # a message slightly above the gateway's own limit
        await client.send_text("x" * 2000)
        closed = await client.closed()
        assert (closed.code, [frame["code"] for frame in closed.frames]) == (1009, ["payload_too_large"])


async def test_bodies_of_other_routes_may_be_larger_than_a_message(site: Site) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as client:
        assert (await client.post(site.http("/size"), content=b"x" * 5_000_000)).json() == 5_000_000


async def test_idle_connections_are_kept_for_as_long_as_uvicorn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.1)
    get = b"GET /openapi.json HTTP/1.1\r\nHost: site\r\n\r\n"
    app = make_application(make_gateway(server_protocols="on"))
    async with serve(app, server="uvicorn", timeout_keep_alive=60) as site, RawClient.open(site.http()) as raw:
        await raw.send(get)
        assert (await raw.read_until(b"}")).startswith(b"HTTP/1.1 200 ")
        async with RawClient.open(site.http()) as silent:
            assert await silent.ended() == b""  # after HEAD_TIMEOUT
        await raw.send(get)
        await raw.read_until(b"HTTP/1.1 200 ")
        await raw.send(b"GET / HTTP/1.1\r\n")  # a head that begins has the usual time
        assert b"HTTP/1.1 408 " in await raw.ended()


async def test_a_limit_of_heads_that_uvicorn_is_told_holds_for_each_line() -> None:
    app = make_application(make_gateway(server_protocols="on"))
    async with (
        serve(app, server="uvicorn", h11_max_incomplete_event_size=200_000) as site,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE) as client,
    ):
        answer = await client.post(site.http("/size"), headers={"X": "x" * 100_000})
        assert (answer.status_code, answer.json()) == (200, 0)


async def test_two_gateways_share_the_protocols(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "uvicorn.error")
    gateways = [make_gateway(server_protocols="on") for _ in range(2)]
    async with serve(make_application(*gateways), server="uvicorn") as site:
        assert caplog.text.count(PLACED) == 1
        for number in range(2):
            async with connect(site.ws(f"/{number}/ws"), "alice") as client:
                assert await client.result("demo.add", {"a": 1, "b": 2}) == 3


async def test_a_server_beside_keeps_its_protocols() -> None:
    plain = FastAPI()

    @plain.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()

    async with (
        serve(plain, server="uvicorn") as beside,
        serve(make_application(make_gateway(server_protocols="on")), server="uvicorn") as site,
    ):
        for each, status in ((site, b"HTTP/1.1 431 "), (beside, b"HTTP/1.1 404 ")):
            async with RawClient.open(each.http()) as raw:
                await raw.send(b"GET /none HTTP/1.1\r\nHost: site\r\n" + b"X: x\r\n" * 300 + b"\r\n")
                assert (await raw.read_until(b"\r\n")).startswith(status)
