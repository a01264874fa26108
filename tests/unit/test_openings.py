"""Ordinary handshakes of WebSockets, which the websockets library does not see."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from typing import Any, Final

import pytest
import uvicorn
from uvicorn.server import ServerState

from nuropb_gateway_asgi.server.http import HTTPProtocol
from nuropb_gateway_asgi.server.opening import read_opening
from nuropb_gateway_asgi.server.text_frames import decode_pong
from nuropb_gateway_asgi.server.websocket import WebSocketProtocol
from tests.kit.gateways import eventually

KEY: Final = b"dGhlIHNhbXBsZSBub25jZQ=="
HEADERS: Final = {
    b"host": b"example.com",
    b"connection": b"keep-alive, Upgrade",
    b"upgrade": b"WebSocket",
    b"sec-websocket-version": b"13",
    b"sec-websocket-key": KEY,
}


def read(*more: tuple[bytes, bytes], compresses: bool = False, **changed: bytes) -> Any:
    headers = HEADERS | {name.replace("_", "-").encode(): value for name, value in changed.items()}
    return read_opening(b"/ws", [*headers.items(), *more], compresses=compresses)


def test_an_ordinary_handshake_is_read() -> None:
    opening = read((b"sec-websocket-protocol", b"nuropb.v1, other"), (b"sec-websocket-protocol", b"third"))
    assert opening.subprotocols == ["nuropb.v1", "other", "third"]
    assert opening.response("nuropb.v1", [(b"Date", b"today")]) == (  # RFC 6455, 1.3
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\ndate: today\r\n"
        b"Sec-WebSocket-Protocol: nuropb.v1\r\n\r\n"
    )


@pytest.mark.parametrize(
    "changed",
    [
        {"upgrade": b"h2c"},
        {"connection": b"close"},
        {"connection": b"upgrade\xff"},
        {"sec_websocket_version": b"8"},
        {"sec_websocket_key": b"short"},
        {"sec_websocket_key": KEY[:-3] + b"h=="},  # bits that no encoder sets
        {"cookie": b"\x1b[2J"},
        {"sec_websocket_protocol": b"a b"},
        {"sec_websocket_protocol": b""},
        {"sec_websocket_protocol": b"\xe9"},
    ],
)
def test_any_other_handshake_is_left_to_the_library(changed: dict[str, bytes]) -> None:
    assert read(compresses=False, **changed) is None


@pytest.mark.parametrize("name", [b"connection", b"origin", b"sec-websocket-key", b"sec-websocket-version", b"upgrade"])
def test_a_header_that_comes_twice_is_left_to_the_library(name: bytes) -> None:
    assert read((name, HEADERS.get(name, b"https://a")), origin=b"https://a") is None


def test_compression_is_left_to_the_library_where_the_server_has_any() -> None:
    deflate = b"permessage-deflate"
    assert read(sec_websocket_extensions=deflate, compresses=True) is None
    assert read(sec_websocket_extensions=deflate) is not None


def test_only_a_whole_pong_of_four_bytes_is_one() -> None:
    assert decode_pong(b"\x8a\x84\0\0\0\0abcd", 0, 10) == b"abcd"
    for frame in (b"\x8a\x85\0\0\0\0abcde", b"\x89\x84\0\0\0\0abcd", b"\x8a\x04abcd"):
        assert decode_pong(frame, 0, len(frame)) is None


async def test_the_application_and_the_client_get_what_the_library_would_give_them() -> None:
    scopes: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept", "subprotocol": "b", "headers": [(b"X-More", b"1")]})
        await send({"type": "websocket.close", "code": 1000})

    config = uvicorn.Config(app, http=HTTPProtocol, ws=WebSocketProtocol, root_path="/root", lifespan="off")
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"today"), (b"server", b"s")]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: HTTPProtocol(config=config, server_state=state, app_state={"key": 1}), "127.0.0.1", 0
    )
    answers = []
    for more in ("", "Sec-WebSocket-Extensions: unknown\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        head = "".join(f"{name.decode().title()}: {value.decode()}\r\n" for name, value in HEADERS.items())
        writer.write(f"GET /a%20b?c=%ff HTTP/1.1\r\n{head}Sec-WebSocket-Protocol: a,b\r\n{more}\r\n".encode())
        answers.append(sorted((await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")))
        writer.close()
    server.close()
    await eventually(lambda: not state.connections and not state.tasks)

    ordinary, by_library = scopes
    assert "nuropb.direct" in ordinary["extensions"]
    by_library["headers"].remove((b"sec-websocket-extensions", b"unknown"))
    for scope in scopes:
        del scope["extensions"]["nuropb.direct"]
        scope["client"] = scope["client"][0]
    assert ordinary == by_library
    # The one permitted difference: uvicorn before 0.52.4 leaves the library's own Date beside the server's.
    assert answers[0] == [line for line in answers[1] if line == b"date: today" or not line.startswith(b"date:")]
    accept = base64.b64encode(
        hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    )
    assert b"sec-websocket-accept: " + accept.lower() in answers[0]
