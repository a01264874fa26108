"""Lines over TCP and TLS, by honest and by hostile clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest

from nuropb_gateway_asgi import CloseCode, SettingsError
from nuropb_gateway_asgi.handlers import tcp
from tests.kit.certificates import Certificate
from tests.kit.clients import RawClient
from tests.kit.gateways import RunningGateway, eventually, make_gateway, run_gateway
from tests.kit.transports import LineClient, connect_tcp

#: The limit for a line, in bytes.
LIMIT: Final = 4096
LONG: Final = {"seconds": 3600}
FREE: Final = "127.0.0.1:0"


@pytest.fixture(scope="module")
async def shared() -> AsyncIterator[RunningGateway]:
    async with run_gateway(
        tcp=FREE,
        expose=["demo.*"],
        max_message_size=LIMIT,
        outbox_size=16384,
        write_timeout=0.5,
        max_connections_per_user=5,
    ) as running:
        yield running


@pytest.fixture(scope="module")
async def impatient() -> AsyncIterator[RunningGateway]:
    """A gateway with short timeouts."""
    async with run_gateway(
        tcp=FREE, auth_timeout=0.5, ping_interval=0.2, ping_timeout=0.3, max_message_size=LIMIT
    ) as running:
        yield running


@pytest.fixture
async def running(shared: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A shared gateway that every test leaves without connections and calls."""
    yield shared
    await shared.is_empty()


@pytest.fixture
async def client(running: RunningGateway) -> AsyncIterator[LineClient]:
    async with connect_tcp(running, "alice") as client:
        yield client


def manager(running: RunningGateway) -> Any:
    return running.gateway.channels["tcp"].handler_manager


# --- honest clients -----------------------------------------------------------------------------------------------


async def test_the_frames_are_those_of_a_websocket(running: RunningGateway, client: LineClient) -> None:
    assert client.hello["user_id"] == "alice"
    assert client.hello["instance_id"] == f"{running.gateway.settings.instance_id}-tcp"
    assert await client.result("demo.add", {"a": 2, "b": 3}) == 5
    assert (await client.result("demo.whoami"))["Authorization"] == "Bearer alice"
    assert await client.error_code("hidden.method") == "permission_denied"
    assert (await client.ask("subscribe", topics=["demo.x"]))["result"] == {"topics": ["demo.x"]}
    await client.result("demo.publish", {"topic": "demo.x", "event": {"line": "a\nb"}})
    assert (await client.event("demo.x"))["event"] == {"line": "a\nb"}
    assert (await client.ask("authorize", token="alice"))["error"] is None


async def test_lines_may_come_in_pieces_or_many_at_once(client: LineClient) -> None:
    lines = b"".join(
        json.dumps({"type": "ping", "payload": number}).encode() + (b"\r\n" if number % 2 else b"\n")
        for number in range(100)
    )
    for piece in (lines[:10], lines[10:11], lines[11:]):
        await client.send_bytes(piece)
    assert [(await client.next())["payload"] for _ in range(100)] == list(range(100))


async def test_who_finishes_sending_gets_the_answers_that_are_due(running: RunningGateway) -> None:
    async with connect_tcp(running, "alice") as client:
        await client.request("demo.slow", {"seconds": 0.2}, id="1")
        call = {"type": "request", "payload": {"service": "demo", "method": "echo", "id": "2"}}
        await client.send_bytes(json.dumps(call).encode())  # without a line break at the end
        client.finish()
        closed = await client.closed()
    assert sorted(frame["payload"]["id"] for frame in closed.frames) == ["1", "2"]
    assert {frame["payload"]["error"] for frame in closed.frames} == {None}


async def test_who_says_everything_at_once_is_answered(running: RunningGateway) -> None:
    async with RawClient.open(f"tcp://127.0.0.1:{running.gateway.tcp_port}") as raw:
        await raw.send(
            b'{"type":"authorize","payload":{"token":"alice"}}\n'
            b'{"type":"request","payload":{"service":"demo","method":"add","params":{"a":2,"b":3},"id":"1"}}\n'
        )
        raw.finish()
        frames = [json.loads(line) for line in (await raw.ended()).splitlines()]
    assert [frame["type"] for frame in frames] == ["event", "response", "response"]
    assert frames[2]["payload"]["result"] == 5


async def test_a_call_ends_when_its_client_is_gone(impatient: RunningGateway) -> None:
    async with connect_tcp(impatient, "alice") as client:
        await client.request("demo.slow", LONG)
        await eventually(lambda: impatient.occupancy[2] == 1)
        client.abort()  # to the gateway this looks like the end of sending
        await impatient.is_empty()


# --- hostile clients ----------------------------------------------------------------------------------------------

UNAUTHORISED: Final[list[tuple[bytes, int]]] = [
    (b'{"type":"authorize","payload":{"token":"bad"}}\n', CloseCode.INVALID_TOKEN),
    (b'{"type":"authorize","payload":{"token":"' + b"x" * LIMIT + b'"}}\n', CloseCode.MESSAGE_TOO_BIG),
    (b"x" * 3 * LIMIT, CloseCode.MESSAGE_TOO_BIG),
    (b'{"type":"ping"}\n' * 10, CloseCode.BAD_REQUEST),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10, CloseCode.BAD_REQUEST),
    (b"\n" * 10, CloseCode.BAD_REQUEST),
    (bytes(range(256)) + b"\n" * 10, CloseCode.BAD_REQUEST),
    (b"[" * 2000 + b"\n" * 10, CloseCode.BAD_REQUEST),
]


@pytest.mark.parametrize(("data", "code"), UNAUTHORISED, ids=range(len(UNAUTHORISED)))
async def test_the_first_line_has_to_be_a_token(running: RunningGateway, data: bytes, code: int) -> None:
    async with connect_tcp(running) as client:
        await client.send_bytes(data)
        closed = await client.closed()
    assert closed.code == code
    assert closed.frames[-1]["type"] in ("error", "response")
    assert not any(frame["type"] == "event" for frame in closed.frames)


@pytest.mark.parametrize(
    "data", [b"", b'{"type":"authorize"', b'{"type":"request","payload":{"service":"demo","method":"echo"}}\n']
)
async def test_a_token_is_waited_for_only_so_long(impatient: RunningGateway, data: bytes) -> None:
    async with connect_tcp(impatient) as client:
        await client.send_bytes(data)
        assert (await client.closed()).code == CloseCode.AUTHORISATION_TIMEOUT


async def test_who_drips_a_token_is_not_waited_for(impatient: RunningGateway) -> None:
    async with connect_tcp(impatient) as client:
        ended = asyncio.create_task(client.closed())
        with contextlib.suppress(ConnectionError):
            while not ended.done():
                await client.send_bytes(b" ")
                await asyncio.wait([ended], timeout=0.02)
        assert (await ended).code in (CloseCode.AUTHORISATION_TIMEOUT, 1006)


LATER: Final[list[tuple[bytes, int]]] = [
    (b"x" * (LIMIT + 1) + b"\n", CloseCode.MESSAGE_TOO_BIG),
    (b"x" * 100 * LIMIT, CloseCode.MESSAGE_TOO_BIG),
    (b"{}\n" * 10, CloseCode.BAD_REQUEST),
    (b"\x00\xff\n" * 10, CloseCode.BAD_REQUEST),
    (b'{"type":"ping"}' * 10 + b"\n" * 10, CloseCode.BAD_REQUEST),
]


@pytest.mark.parametrize(("data", "code"), LATER, ids=range(len(LATER)))
async def test_garbage_ends_the_connection_with_its_reason(client: LineClient, data: bytes, code: int) -> None:
    await client.send_bytes(data)
    assert (await client.closed()).code == code


async def test_a_bad_line_is_answered_and_the_next_one_served(client: LineClient) -> None:
    await client.send_bytes(b'{"type":\n\x00\n{"type":"request","payload":{"id":"7"}}\n')
    assert [(await client.error())["code"] for _ in range(2)] == ["bad_request"] * 2
    assert (await client.answer("7"))["error"]["code"] == "bad_request"
    assert await client.result("demo.add", {"a": 1, "b": 1}) == 2


async def test_a_silent_client_is_pinged_and_then_hung_up_on(impatient: RunningGateway) -> None:
    async with connect_tcp(impatient, "alice") as client:
        closed = await client.closed()
    assert closed.code == CloseCode.NO_PONG
    assert {"type": "ping"} in [{"type": frame["type"]} for frame in closed.frames]


async def test_a_reader_that_does_not_keep_up_is_hung_up_on(running: RunningGateway, client: LineClient) -> None:
    handlers = manager(running)
    before = handlers.statistics.closed[CloseCode.SLOW_CONSUMER]
    async with RawClient.open(f"tcp://127.0.0.1:{running.gateway.tcp_port}", receive_buffer=4096) as raw:
        await raw.send(b'{"type":"authorize","payload":{"token":"bob"}}\n')
        await raw.read_until(b"expires_at")
        await eventually(lambda: len(handlers) == 2)
        for _ in range(20_000):
            if handlers.statistics.closed[CloseCode.SLOW_CONSUMER] > before:
                break
            handlers.send_message_to_user_ids(["bob"], {"type": "event", "payload": "x" * 8192})
            await asyncio.sleep(0)
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        await eventually(lambda: len(handlers) == 1)


async def test_a_connection_ends_with_its_token(running: RunningGateway) -> None:
    async with connect_tcp(running, "alice:for:0.7") as client:
        closed = await client.closed()
    assert (closed.code, closed.reason) == (CloseCode.TOKEN_EXPIRED, "token expired")


async def test_a_user_has_only_so_many_connections(running: RunningGateway) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(connect_tcp(running, "carol"))
        client = await stack.enter_async_context(connect_tcp(running))
        await client.send("authorize", token="carol", id="1")
        closed = await client.closed()
        assert closed.code == CloseCode.CONNECTION_LIMIT
        assert closed.frames[0]["payload"]["error"]["code"] == "too_many_requests"


async def test_handshakes_and_connections_are_limited_by_address() -> None:
    async with (
        run_gateway(tcp=FREE, handshake_rate_per_address="1/s burst 2", max_connections_per_address=2) as running,
        connect_tcp(running, "alice") as client,
        connect_tcp(running) as stranger,
    ):
        async with connect_tcp(running) as third:
            closed = await third.closed()
        assert closed.code == CloseCode.TRY_AGAIN_LATER
        assert closed.frames[0]["retry_after_ms"] == 5000
        assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
        stranger.finish()
        assert (await stranger.closed()).code == 1006


async def test_silent_connections_give_way_to_new_ones() -> None:
    async with run_gateway(tcp=FREE, max_connections=8) as running, contextlib.AsyncExitStack() as stack:
        silent = []
        for number in range(1, 5):  # each before the next one, so that it is clear which is the oldest
            silent.append(await stack.enter_async_context(connect_tcp(running)))
            await eventually(lambda number=number: len(running.gateway.handler_manager.admission) == number)  # type: ignore[misc]
        async with connect_tcp(running, "alice") as client:
            closed = await silent[0].closed()
            assert closed.code == CloseCode.TRY_AGAIN_LATER
            assert [frame["code"] for frame in closed.frames] == ["too_many_requests"]
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2


async def test_at_the_end_everybody_is_told() -> None:
    gateway = make_gateway(tcp=FREE)
    async with contextlib.AsyncExitStack() as stack:
        async with run_gateway(gateway) as stopping:
            client = await stack.enter_async_context(connect_tcp(stopping, "alice"))
            stranger = await stack.enter_async_context(connect_tcp(stopping))
            await eventually(lambda: len(gateway.handler_manager.admission) == 2)
        assert (await client.closed()).code == CloseCode.SERVICE_RESTART
        assert (await stranger.closed()).code == 1006
        assert gateway.tcp_port is None


async def test_a_port_that_is_taken_stops_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        gateway = make_gateway(tcp=f"127.0.0.1:{other.getsockname()[1]}")
        with pytest.raises(SettingsError, match=r"NUROPB_GATEWAY_TCP: cannot listen on"):
            async with gateway.lifespan():
                pass
    assert not gateway.service_mesh_manager.started


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
async def shared_tls(certificate: Certificate) -> AsyncIterator[RunningGateway]:
    async with run_gateway(
        tcp=FREE, tcp_certificate=str(certificate.certificate), tcp_certificate_key=str(certificate.key)
    ) as running:
        yield running


@pytest.fixture
async def tls(shared_tls: RunningGateway) -> AsyncIterator[RunningGateway]:
    yield shared_tls
    await shared_tls.is_empty()


async def test_tls_carries_the_same_lines(tls: RunningGateway, certificate: Certificate) -> None:
    async with connect_tcp(tls, "alice", tls=certificate.client()) as client:
        assert await client.result("demo.add", {"a": 2, "b": 3}) == 5
        tls.gateway.channels["tcp"].handler_manager.close_user_ids(["alice"])
        assert (await client.closed()).code == CloseCode.DISCONNECTED


@pytest.mark.parametrize("data", [b'{"type":"authorize","payload":{"token":"alice"}}\n', b"\x16\x03\x01\x00\x05hello"])
async def test_without_tls_nobody_is_served(tls: RunningGateway, data: bytes) -> None:
    async with RawClient.open(f"tcp://127.0.0.1:{tls.gateway.tcp_port}") as raw:
        await raw.send(data)
        assert b"{" not in await raw.ended()


async def test_a_handshake_that_does_not_end_is_given_up(
    tls: RunningGateway, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "HANDSHAKE_TIMEOUT", 0.3)
    async with RawClient.open(f"tcp://127.0.0.1:{tls.gateway.tcp_port}") as raw:
        await raw.send(b"\x16\x03\x01")
        assert await raw.ended() == b""


async def test_tls_handshakes_that_do_not_end_give_way_to_new_clients(certificate: Certificate) -> None:
    gateway = make_gateway(
        tcp=FREE,
        max_connections=4,
        tcp_certificate=str(certificate.certificate),
        tcp_certificate_key=str(certificate.key),
    )
    async with run_gateway(gateway) as running, contextlib.AsyncExitStack() as stack:
        url = f"tcp://127.0.0.1:{gateway.tcp_port}"
        dripping = [await stack.enter_async_context(RawClient.open(url)) for _ in range(2)]
        await eventually(lambda: len(gateway.handler_manager.admission) == 2)
        async with connect_tcp(running, "alice", tls=certificate.client()) as client:
            assert await client.result("demo.add", {"a": 1, "b": 1}) == 2
            assert await dripping[0].ended() == b""


async def test_a_client_without_a_common_version_is_refused(tls: RunningGateway, certificate: Certificate) -> None:
    context = certificate.client()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-SHA")  # needs an RSA certificate, which this is not
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with connect_tcp(tls, "alice", tls=context):
            pass


@pytest.mark.parametrize("settings", [{"tcp_certificate": "missing.pem"}, {"tcp_certificate_key": "key.pem"}])
def test_a_certificate_that_cannot_be_used_is_named_at_the_start(settings: dict[str, str], tmp_path: Path) -> None:
    settings = {name: str(tmp_path / value) for name, value in settings.items()}
    with pytest.raises(SettingsError, match=r"^NUROPB_GATEWAY_TCP_CERTIFICATE: "):
        make_gateway(tcp=FREE, **settings)
