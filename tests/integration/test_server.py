"""Differences of the gateway's protocols for uvicorn from uvicorn's own. Attacks are in test_attacks.py."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.frames import Frame

from nuropb_gateway_asgi import server
from nuropb_gateway_asgi.handlers.direct import EXTENSION, NEVER_LATE
from nuropb_gateway_asgi.server import frame_limits, http
from nuropb_gateway_asgi.server.process import limit_event_loop
from tests.kit.clients import CLOSE, PING, PONG, TEXT, RawClient, connect, refusal
from tests.kit.gateways import RunningGateway, Site, eventually, make_gateway, run_gateway, serve
from tests.kit.waiting import in_time

BEARER = ("Authorization", "Bearer alice")


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    async with run_gateway() as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """The shared gateway, which each test must leave without connections."""
    yield shared
    await shared.is_empty()


def test_the_installed_libraries_have_all_names() -> None:
    assert server.unprotected() is None


def test_a_uvicorn_without_some_names_is_reported_and_uses_its_own_protocols() -> None:
    program = (
        "import uvicorn.protocols.http.h11_impl as http, uvicorn.protocols.websockets.websockets_sansio_impl as ws\n"
        "del http.H11Protocol.send_400_response, ws.WebSocketsSansIOProtocol.keepalive_timeout\n"
        "import nuropb_gateway_asgi.server as server\n"
        "assert server.HTTPProtocol is http.H11Protocol\n"
        "assert server.WebSocketProtocol is ws.WebSocketsSansIOProtocol\n"
        "print(server.unprotected())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    missing = "H11Protocol.send_400_response, WebSocketsSansIOProtocol.keepalive_timeout"
    assert run.stdout.endswith(f" has no {missing}\n")


def test_connections_that_cannot_be_accepted_are_logged_rarely(caplog: pytest.LogCaptureFixture) -> None:
    loop = server.new_event_loop()
    try:
        for _ in range(3):
            error = OSError(24, "Too many open files")
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
        loop.call_exception_handler({"message": "something else"})
    finally:
        loop.close()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert said == ["connections cannot be accepted: [Errno 24] Too many open files", "something else"]


def test_an_applications_own_exception_handler_stays() -> None:
    loop, told = asyncio.new_event_loop(), []
    loop.set_exception_handler(lambda loop, context: told.append(context["message"]))
    try:
        limit_event_loop(loop)
        loop.call_exception_handler({"message": "socket.accept() out of system resource"})
    finally:
        loop.close()
    assert told == ["socket.accept() out of system resource"]


@pytest.mark.parametrize(
    ("limits", "allowed", "room"),
    [
        ((1024, 524288), (11064, 524288), None),
        ((1024, -1), (11064, -1), None),
        ((65536, 524288), None, None),
        ((-1, -1), None, None),
        ((1024, 4096), (4096, 4096), 4032),
        ((10500, 10500), (10500, 10500), None),
        ((32, 32), (32, 32), 1),
    ],
)
def test_a_process_is_allowed_the_files_that_its_connections_need(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], allowed: tuple[int, int] | None, room: int | None
) -> None:
    chosen: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: chosen.append(new))
    assert server.allow_files(10000) == room
    assert chosen == ([] if allowed is None else [allowed])


# --- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("more", "status"), [(0, 101), (1, 431)])
async def test_header_lines_up_to_24_kib(running: RunningGateway, more: int, status: int) -> None:
    line = ("X", "x" * (24576 - len("X: \r\n") + more))
    async with RawClient.open(running.url) as raw:
        assert (await raw.handshake("/ws", BEARER, line)).startswith(f"HTTP/1.1 {status} ")


@pytest.mark.parametrize(("count", "status"), [(94, 101), (95, 431)])
async def test_a_hundred_header_lines(running: RunningGateway, count: int, status: int) -> None:
    async with RawClient.open(running.url) as raw:
        lines = [(f"X-{number}", "x") for number in range(count)]  # and six that make it a handshake
        assert (await raw.handshake("/ws", BEARER, *lines)).startswith(f"HTTP/1.1 {status} ")


async def test_the_longest_idle_connection_makes_room_when_files_run_out(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "most_connections", lambda: 3)
    async with connect(running.url, "alice") as client, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(RawClient.open(running.url)) for _ in range(6)]
        for raw in silent[:4]:
            assert await raw.ended() == b""
        async with connect(running.url, "bob") as other:
            assert await silent[4].ended() == b""
            await other.settled()
            await client.settled()
        await silent[5].send(b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert (await silent[5].read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_a_head_may_come_in_pieces(running: RunningGateway) -> None:
    async with RawClient.open(running.url) as raw:
        request = RawClient.upgrade("/ws", BEARER)
        for position in range(len(request)):
            await raw.send(request[position : position + 1])
        assert (await raw.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_requests_on_one_connection_and_then_a_handshake(running: RunningGateway) -> None:
    get = b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n"
    async with RawClient.open(running.url) as raw:
        await raw.send(get * 3)
        for _ in range(3):
            assert (await raw.read_until(b'{"alive":true}')).startswith(b"HTTP/1.1 200 ")
        await raw.send(RawClient.upgrade("/ws", BEARER))
        assert (await raw.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert b"hello" in (await raw.read_frame())[1]


async def test_a_request_with_an_invalid_body_is_refused(
    running: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /livez HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with RawClient.open(running.url) as raw:
        await raw.send(head + b"not a chunk\r\n")
        assert (await raw.read_until(b"\r\n")).startswith(b"HTTP/1.1 400 ")
        await raw.ended()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(
    "head",
    [
        b"POST /livez HTTP/1.1\r\nHost: gateway\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /livez HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: gateway\r\nTRANSFER-encoding: Chunked\r\ncontent-LENGTH: 0\r\n\r\n",
        # A server of HTTP/1.0 knows no chunks, so a proxy may forward them as the next request.
        b"POST /livez HTTP/1.0\r\nHost: gateway\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
async def test_a_request_with_an_ambiguous_length_is_refused_and_nothing_behind_it_is_read(
    running: RunningGateway, head: bytes
) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.send(head + b"0\r\n\r\n" + b"GET /livez HTTP/1.1\r\nHost: gateway\r\n\r\n")
        answer = await raw.ended()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"alive" not in answer


async def test_an_answer_arrives_before_the_connection_ends_however_much_was_sent(running: RunningGateway) -> None:
    async with RawClient.open(running.url, receive_buffer=2048) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 4_000_000)
        assert (await raw.read_until(b"\r\n")).startswith(b"HTTP/1.1 431 ")
        raw.finish()
        await raw.ended()


# --- deadlines --------------------------------------------------------------------------------------------------


async def test_an_unfinished_head_is_refused_after_the_deadline(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)
    for start, answer in ((b"", b""), (b"GET /livez HTTP/1.1\r\n", b"HTTP/1.1 408 ")):
        async with RawClient.open(running.url) as raw:
            await raw.send(start)
            assert (await raw.ended())[:13] == answer


async def test_an_unfinished_body_does_not_delay_the_answer(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)
    async with RawClient.open(running.url) as raw:
        await raw.send(b"POST /livez HTTP/1.1\r\nHost: gateway\r\nContent-Length: 1000\r\n\r\n{")
        assert (await raw.ended()).startswith(b"HTTP/1.1 405 ")


async def test_the_deadline_spares_connections_that_are_served(
    running: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.2)
    async with connect(running.url, "alice") as client:
        assert (await client.call("demo.slow", {"seconds": 0.6}))["error"] is None


async def test_a_client_that_does_not_read_its_answer_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEAD_TIMEOUT", 0.5)
    lost = asyncio.Event()

    async def big(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10000000")]})
        await send({"type": "http.response.body", "body": b"x" * 10_000_000})

    connection_lost = http.HTTPProtocol.connection_lost

    def on_lost(self: http.HTTPProtocol, exc: Exception | None) -> None:
        connection_lost(self, exc)
        lost.set()

    monkeypatch.setattr(http.HTTPProtocol, "connection_lost", on_lost)
    async with serve(big, send_buffer=4096) as site, open_socket(site) as raw:
        await raw.send(b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n")
        async with in_time(20):
            await lost.wait()


async def lifespan(receive: Any, send: Any) -> None:
    for _ in range(2):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


def open_socket(site: Site) -> Any:
    return RawClient.open(site.http(), receive_buffer=4096)


async def test_a_client_that_neither_reads_nor_answers_pings_is_dropped() -> None:
    gateway = make_gateway(outbox_size=2**26, write_timeout=600.0, max_in_flight=1000)
    async with (
        serve(gateway.app, send_buffer=4096, ws_ping_interval=0.3, ws_ping_timeout=0.3) as site,
        RawClient.open(site.ws(), receive_buffer=4096) as raw,
    ):
        await raw.handshake("/ws", BEARER)
        for _ in range(20):
            await raw.send_json({"type": "ping", "payload": "x" * 60000})
        await eventually(lambda: len(gateway.handler_manager) == 1)
        await eventually(lambda: len(gateway.handler_manager) == 0)


async def test_a_client_whose_answer_to_a_ping_waits_unread_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    protocols: list[server.WebSocketProtocol] = []
    start_keepalive = server.WebSocketProtocol.start_keepalive

    def started(self: server.WebSocketProtocol) -> None:
        protocols.append(self)
        start_keepalive(self)

    monkeypatch.setattr(server.WebSocketProtocol, "start_keepalive", started)
    reads = asyncio.Event()

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        await reads.wait()
        while (await receive()).get("text") != "last":
            pass
        await send({"type": "websocket.send", "text": "read"})
        await receive()

    async with (
        serve(busy, ws_ping_interval=3600.0, ws_ping_timeout=3600.0) as site,
        RawClient.open(site.ws()) as raw,
    ):
        await raw.handshake("/ws")
        await raw.send(b"".join(RawClient.frame(b"x" * 1000) for _ in range(100)))
        await eventually(lambda: protocols and protocols[0].read_paused)
        (protocol,) = protocols
        protocol.send_keepalive_ping()
        opcode, ping = await raw.read_frame()
        assert opcode == PING
        await raw.send(RawClient.frame(ping, PONG) + RawClient.frame(b"last"))
        for _ in range(3):
            protocol.keepalive_timeout()
        reads.set()
        assert await raw.read_frame() == (TEXT, b"read")
        assert protocol.pending_ping_payload is None


async def test_the_kernel_drops_a_client_that_acknowledges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    connection_made = http.HTTPProtocol.connection_made

    def watched(self: http.HTTPProtocol, transport: asyncio.Transport) -> None:
        connection_made(self, transport)
        option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        seen.append(option)

    monkeypatch.setattr(http.HTTPProtocol, "connection_made", watched)
    async with run_gateway() as running, connect(running.url, "alice"):
        assert seen == [30_000]


# --- frames -----------------------------------------------------------------------------------------------------


async def test_a_thousand_fragments_are_a_message(running: RunningGateway) -> None:
    text = b'{"type":"ping","payload":"' + b"x" * 1000 + b'"}'
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.read_frame()
        data = RawClient.frame(text[:1], fin=False)
        data += b"".join(RawClient.frame(text[n : n + 1], 0, fin=False) for n in range(1, 1020))
        await raw.send(data + RawClient.frame(text[1020:], 0))
        assert (await raw.read_frame())[1] == text.replace(b"ping", b"pong")


async def test_pings_are_answered_a_hundred_in_a_row(running: RunningGateway) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.read_frame()
        await raw.send(RawClient.frame(b"!", PING) * 100)
        for _ in range(100):
            assert await raw.read_frame() == (PONG, b"!")
        await raw.send(RawClient.frame(b"!", PING) * 20)
        assert await raw.close_code() == 4029


async def test_many_messages_in_one_piece_keep_their_order(running: RunningGateway) -> None:
    frames = [RawClient.frame(f'{{"type":"ping","payload":{number}}}'.encode()) for number in range(5000)]
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.read_frame()
        sending = asyncio.create_task(raw.send(b"".join(frames)))
        for number in range(5000):
            assert await raw.read_frame() == (TEXT, f'{{"type":"pong","payload":{number}}}'.encode())
        await sending
        await raw.send(RawClient.frame(b"\x03\xe8", CLOSE))
        assert await raw.close_code() == 1000


async def test_frames_after_invalid_utf8_change_nothing(
    running: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.send(RawClient.frame(b"\xff") + RawClient.frame(b"", PING) + RawClient.frame(b"\xff"))
        assert await raw.close_code() == 1007
    assert "Traceback" not in caplog.text


async def test_frames_after_the_end_are_not_parsed(running: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = []
    recv_frame = frame_limits.LimitedServerProtocol.recv_frame

    def watched(self: frame_limits.LimitedServerProtocol, frame: Frame) -> None:
        heard.append(frame.opcode)
        recv_frame(self, frame)

    monkeypatch.setattr(frame_limits.LimitedServerProtocol, "recv_frame", watched)
    async with RawClient.open(running.url) as raw:
        await raw.handshake("/ws", BEARER)
        await raw.send(RawClient.frame(b"binary", 2))
        assert await raw.close_code() == 1003
        with contextlib.suppress(ConnectionError):
            await raw.send(RawClient.frame(b"7") * 200_000)
        assert await raw.ended() == b""
    assert len(heard) < 20_000


async def close_on_the_first_text(heard: list[str], scope: Any, receive: Any, send: Any) -> None:
    """An application that takes its messages by the direct way."""
    if scope["type"] == "lifespan":
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        return
    direct = scope["extensions"][EXTENSION]

    def on_text(text: str) -> None:
        heard.append(text)
        direct.close(4503, "")

    await receive()
    await send({"type": "websocket.accept"})
    direct.attach(on_text, lambda: None, lambda: False, len, NEVER_LATE, bool)
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def test_text_after_the_close_frame_does_not_reach_the_application() -> None:
    heard: list[str] = []
    app = functools.partial(close_on_the_first_text, heard)
    async with serve(app, interface="asgi3") as site, RawClient.open(site.ws()) as raw:
        await raw.handshake("/ws")
        await raw.send(RawClient.frame(b"first") + RawClient.frame(b"second") + RawClient.frame(b"third"))
        assert await raw.close_code() == 4503
        await raw.send(RawClient.frame(b"fourth") + RawClient.frame(b"\x11\x97", CLOSE))
        assert await raw.ended() == b""
    assert heard == ["first"]


async def test_a_refusal_does_not_quote_the_handshake(running: RunningGateway) -> None:
    refused = await refusal(running.url, "alice", headers=[("Sec-WebSocket-Protocol", "my secret")])
    assert (refused.status, refused.body) == (400, "Bad Request\n")
