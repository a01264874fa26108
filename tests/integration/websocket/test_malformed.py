"""Malformed frames and violations of the WebSocket protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from nuropb_gateway_asgi.limits.turns import FRAMES_PER_TURN, TURNS_OF_OTHERS
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from tests.integration.websocket.conftest import LONG
from tests.kit.clients import CLOSE, CONTINUATION, PING, PONG, TEXT, Client, RawClient, connect
from tests.kit.gateways import RunningGateway, Server, make_gateway, run_gateway
from tests.kit.waiting import DEADLINE

BEARER = ("Authorization", "Bearer alice")


MALFORMED: list[str] = [
    "",
    "null",
    "[]",
    '"request"',
    "{",
    "{}",
    "{}{}",
    "NaN",
    '{"type":"request"}',
    '{"type":"request","payload":null}',
    '{"type":"request","payload":[]}',
    '{"type":"nonsense","payload":{}}',
    '{"type":"Request","payload":{"service":"demo","method":"echo"}}',
    '{"type":7,"payload":{}}',
    '{"type":"response","payload":{}}',
    '{"type":"event","payload":{"topic":"hello","event":{}}}',
    '{"type":"error"}',
    '{"type":"request","payload":{"service":"demo"}}',
    '{"type":"request","payload":{"method":"echo"}}',
    '{"type":"request","payload":{"service":"demo","method":"_run_"}}',
    '{"type":"request","payload":{"service":"demo","method":"__class__"}}',
    '{"type":"request","payload":{"service":"demo","method":""}}',
    '{"type":"request","payload":{"service":"demo","method":"a.b"}}',
    '{"type":"request","payload":{"service":"","method":"echo"}}',
    '{"type":"request","payload":{"service":"de mo","method":"echo"}}',
    '{"type":"request","payload":{"service":"d\\u00e9mo","method":"echo"}}',
    '{"type":"request","payload":{"service":7,"method":"echo"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":[]}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":null}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":"{}"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","id":7}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","id":""}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","id":"\\u00e9"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","trace_id":{}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","trace_id":"a\\nb"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":0}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":-1}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":"1"}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","timeout":NaN}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":NaN}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":-Infinity}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":1e999}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":01}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":"\\ud800"}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":18446744073709551616}}}',
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":' + "[" * 40 + "]" * 40 + "}}}",
    '{"type":"request","payload":{"service":"demo","method":"echo","params":{"a":' + "[" * 9000 + "]" * 9000 + "}}}",
    "[" * 30000,
    '{"type":"subscribe","payload":{"topics":"demo.#"}}',
    '{"type":"subscribe","payload":{"topics":[1]}}',
    '{"type":"cancel","payload":{}}',
    '{"type":"authorize","payload":{"token":null}}',
    "\ufeff{}",
    "\u0000",
]


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
async def test_what_is_no_frame_is_answered_with_bad_request(client: Client, text: str) -> None:
    await client.send_text(text)
    (answer,) = await client.settled()
    error = answer if answer["type"] == "error" else answer["payload"]["error"]
    assert (error["code"], error["retryable"]) == ("bad_request", False)


async def test_a_broken_frame_is_answered_by_its_id(client: Client) -> None:
    answer = await client.ask("request", service="demo", method="_private", id="x", trace_id="t")
    assert (answer["trace_id"], answer["error"]["code"]) == ("t", "bad_request")


async def test_broken_json_has_the_name_that_nuropb_gw_gave_it(client: Client) -> None:
    await client.send_text("{")
    error = await client.next()
    assert (error["type"], error["error"]) == ("error", "JSONDecodeError")
    assert error["description"].startswith("Error decoding JSON")


async def turns_until(count: int, handled: Callable[[], int]) -> list[int]:
    """Let the event loop run until ``handled`` is ``count``; return by how much it grew in each iteration."""
    turns = list[int]()
    async with asyncio.timeout(DEADLINE):
        while (before := handled()) < count:
            await asyncio.sleep(0)
            turns.append(handled() - before)
    return turns


def most_in_a_call(turns: list[int]) -> int:
    """Return the most frames that were handled while a call takes from its frame to its answer."""
    return max(map(sum, zip(*(turns[start:] for start in range(TURNS_OF_OTHERS)), strict=False)))


async def test_a_flood_of_frames_leaves_others_their_turn() -> None:
    """Other tasks run between the thousands of frames that arrive at once."""
    count, handled = 20_000, 0
    unlimited = run_gateway(outbox_size=2**24, rate_limit="off", rate_limit_user="off")
    async with unlimited as running, RawClient.open(running.url) as flood:
        manager = running.gateway.handler_manager
        handle = manager.on_handler_message

        def counting(handler: Any, data: Any, **more: Any) -> Any:
            nonlocal handled
            handled += 1
            return handle(handler, data, **more)

        async def read() -> None:
            for _ in range(count):
                await flood.read_frame()

        manager.on_handler_message = counting  # type: ignore[method-assign]
        await flood.handshake("/ws", ("Authorization", "Bearer mallory"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flood.send, RawClient.frame(b'{"type":"ping"}') * count)
            tasks.start_soon(read)
            turns = await turns_until(count, lambda: handled)
        assert max(turns) <= 2 * FRAMES_PER_TURN
        assert most_in_a_call(turns) < 2 * FRAMES_PER_TURN


class Lengths:
    """A service that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def measure(self, text: str) -> int:
        self.calls += 1
        return len(text)


@pytest.mark.parametrize("server", ["nuropb-gateway", "wsproto"])
@pytest.mark.parametrize("way", ["frames", "requests"])
async def test_large_messages_of_many_connections_share_a_turn(way: str, server: Server) -> None:
    lengths = Lengths()
    gateway = make_gateway(mesh=EmbeddedMesh({"lengths": lengths}), expose=["lengths.*"], http="on")
    params = json.dumps({"text": "x" * 40_000})
    frame = f'{{"type":"request","payload":{{"service":"lengths","method":"measure","params":{params}}}}}'
    headers = ("Host: h", "Authorization: Bearer mallory", "Content-Type: application/json")
    head = "\r\n".join(("POST /rpc/lengths/measure HTTP/1.1", *headers, f"Content-Length: {len(params)}", "", ""))
    data = RawClient.frame(frame.encode()) if way == "frames" else (head + params).encode()
    async with run_gateway(gateway, server=server) as running, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(RawClient.open(running.url)) for _ in range(10)]
        if way == "frames":
            for each in clients:
                await each.handshake("/ws", ("Authorization", "Bearer mallory"))
        async with anyio.create_task_group() as tasks:
            for each in clients:
                tasks.start_soon(each.send, data)
            turns = await turns_until(len(clients), lambda: lengths.calls)
        assert most_in_a_call(turns) == 1
        for each in clients:
            await each.read_until(b"40000")


async def test_ten_broken_frames_in_a_row(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        for good in ({"type": "pong"}, {"type": "cancel", "payload": {"id": "x"}}):
            for _ in range(9):
                await client.send_text("{")
            await client.send_frame(good)
        for _ in range(10):
            await client.send_text("{}")
        closed = await client.closed()
        assert closed.code == 4501
        assert [frame["code"] for frame in closed.frames] == ["bad_request"] * 28


async def test_a_binary_message(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        await client.send_text(b'{"type":"ping"}')
        assert (await client.closed()).code == 1003


async def test_a_message_that_is_too_big(running: RunningGateway) -> None:
    frame = json.dumps({"type": "request", "payload": {"service": "demo", "method": "echo", "params": {"x": ""}}})
    fits = frame.replace('""', '"' + "x" * (65536 - len(frame)) + '"')
    async with connect(running.url, "alice") as client:
        await client.send_text(fits)
        assert len((await client.next())["payload"]["result"]["x"]) == 65536 - len(frame)
        await client.send_text(fits + " ")
        closed = await client.closed()
        assert (closed.code, [frame["code"] for frame in closed.frames]) == (1009, ["payload_too_large"])
    async with connect(running.url, "alice") as client:
        await client.send_text("€" * 30000)  # bytes are counted, not characters
        assert (await client.closed()).code == 1009
    async with connect(running.url, "alice") as client:
        await client.send_text("x" * 1_000_000)  # the server's own limit
        assert (await client.closed()).code == 1009


async def test_invalid_utf8(running: RunningGateway) -> None:
    for payload in (b'{"type":"ping","payload":"\xff"}', b"\xed\xa0\x80", b"\xc3"):
        async with RawClient.open(running.url) as raw:
            await raw.handshake("/ws", BEARER)
            await raw.send(raw.frame(payload))
            assert await raw.close_code() == 1007
        await running.is_empty()


async def test_a_message_in_fragments(running: RunningGateway) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.read_frame()
        await raw.send(raw.frame(b'{"type":"pi', fin=False) + raw.frame(b"!", PING))
        await raw.send(b"".join(raw.frame(b"", CONTINUATION, fin=False) for _ in range(1000)))
        await raw.send(raw.frame(b'ng","payload":"\xc3', CONTINUATION, fin=False) + raw.frame(b'\xbc"}', CONTINUATION))
        assert await raw.read_frame() == (PONG, b"!")
        assert await raw.read_frame() == (TEXT, '{"type":"pong","payload":"ü"}'.encode())


@pytest.mark.parametrize(
    "data",
    [
        RawClient.frame(b"{}", 3),
        RawClient.frame(b"{}", CONTINUATION),
        RawClient.frame(b"{}", fin=False) + RawClient.frame(b"{}"),
        RawClient.frame(b"x" * 126, PING),
        RawClient.frame(b"", PING, fin=False),
        RawClient.frame(b"\x00", CLOSE),
        RawClient.frame(b"\x03\xee", CLOSE),
        RawClient.frame(b"\x03\xe8\xff", CLOSE),
        b"\xc1\x80\x00\x00\x00\x00",
        b"\x81\x02{}",
        b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_breaks_the_websocket_protocol_ends_the_connection(running: RunningGateway, data: bytes) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.send_json({"type": "request", "payload": {"service": "demo", "method": "slow", "params": LONG}})
        await raw.send(data)
        await raw.ended()
    await running.is_empty()
