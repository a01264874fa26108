"""Slow and silent clients: pings, full outboxes, writes that do not end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nuropb_gateway_asgi import CloseCode, sockets
from tests.integration.websocket.conftest import LONG, publish
from tests.kit.clients import CLOSE, Client, RawClient, connect
from tests.kit.gateways import DEADLINE, RunningGateway, eventually, run_gateway

# --- pings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [None, 0, "", "x" * 1000, [1, {"a": []}], {"nested": {"deep": True}}])
async def test_a_ping_comes_back(client: Client, payload: Any) -> None:
    await client.send_frame({"type": "ping", "payload": payload})
    assert await client.next() == {"type": "pong", "payload": payload}


async def test_a_ping_may_be_empty(client: Client) -> None:
    await client.send_frame({"type": "ping"})
    assert await client.next() == {"type": "pong"}


async def test_who_answers_no_ping_is_hung_up_on_unless_it_never_learned_to() -> None:
    async with run_gateway(ping_interval=0.05, ping_timeout=1) as running, contextlib.AsyncExitStack() as stack:
        by_header = await stack.enter_async_context(connect(running.url, headers=[("Authorization", "Bearer :alice")]))
        by_frame = await stack.enter_async_context(connect(running.url, "alice"))
        await by_frame.request("demo.echo", trace_id="legacy")
        silent = await stack.enter_async_context(connect(running.url, "alice"))
        closed = await silent.closed()
        assert (closed.code, closed.frames) == (4012, [{"type": "ping"}])
        # Both have been silent for longer than the client that was closed.
        for legacy in (by_header, by_frame):
            await legacy.request("demo.add", {"a": 1, "b": 1}, trace_id="t")
            assert (await legacy.wait_for(lambda frame: frame.get("payload", {}).get("trace_id") == "t"))["payload"][
                "result"
            ]


@pytest.mark.parametrize("answer", [{"type": "pong"}, {"type": "pong", "payload": {"a": 1}}, {"type": "ping"}, "{"])
async def test_whatever_comes_back_shows_that_the_client_is_there(answer: Any) -> None:
    async with (
        run_gateway(ping_interval=0.02, ping_timeout=DEADLINE) as running,
        connect(running.url, "alice") as client,
    ):
        for _ in range(3):  # the next ping is sent only after an answer to the last one
            await client.wait_for(lambda frame: frame == {"type": "ping"})
            if answer == "{":
                await client.send_text("{")
            else:
                await client.send_frame(answer)
        assert await client.result("demo.echo") == {}


# --- slow consumers ---------------------------------------------------------------------------------------------

#: Buffers that are soon full. A client that takes nothing for WRITE_TIMEOUT is cut off, and reads no close frame later.
SMALL: dict[str, Any] = {
    "send_buffer": 4096, "max_message_size": 2048, "outbox_size": 16384, "write_timeout": 3600.0
}  # fmt: skip


@pytest.fixture(autouse=True)
def patient_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients read nothing for as long as a test takes: the kernel would cut them off after 30 s."""
    monkeypatch.setattr(sockets, "USER_TIMEOUT", 3600)


@contextlib.asynccontextmanager
async def reluctant(running: RunningGateway, token: str = "slow") -> AsyncIterator[RawClient]:
    """Connect a client that does not read."""
    async with RawClient.open(running.url, receive_buffer=4096) as raw:
        assert " 101 " in await raw.handshake("/ws", ("Authorization", f"Bearer {token}"))
        yield raw


async def flood(raw: RawClient, frames: int = 400) -> None:
    """Request more data than the buffers on the way hold, without reading it."""
    for number in range(frames):
        await raw.send_json({"type": "ping", "payload": f"{number:01000}"})


async def test_a_client_that_does_not_read_its_answers() -> None:
    async with run_gateway(**SMALL) as running, connect(running.url, "alice") as other, reluctant(running) as raw:
        await flood(raw)
        await eventually(lambda: running.gateway.handler_manager.statistics.closed[CloseCode.SLOW_CONSUMER] == 1)
        assert await other.result("demo.echo") == {}
        assert await raw.close_code() == 4008  # once it reads again
        await eventually(lambda: running.occupancy == (1, 1, 0))
        assert await other.settled() == []


async def test_a_client_that_does_not_read_its_events() -> None:
    count = 300
    async with (
        run_gateway(**SMALL) as running,
        connect(running.url, "alice") as publisher,
        connect(running.url, "bob") as reader,
        reluctant(running) as raw,
    ):
        await raw.send_json({"type": "subscribe", "payload": {"topics": ["demo.news"]}})
        await reader.ask("subscribe", topics=["demo.news"])
        for number in range(count):
            await publish(publisher, "demo.news", f"{number:01000}")
            assert int((await reader.event("demo.news"))["event"]) == number
        await eventually(lambda: running.gateway.handler_manager.statistics.closed[CloseCode.SLOW_CONSUMER] == 1)
        assert await raw.close_code() == 4008


@pytest.mark.parametrize("server", ["websockets-sansio", "wsproto", "hypercorn"])
async def test_a_write_that_does_not_end(server: Any) -> None:
    async with (
        run_gateway(server=server, write_timeout=0.5, send_buffer=4096) as running,
        connect(running.url, "alice") as other,
        reluctant(running) as raw,
    ):
        await raw.send_json({"type": "request", "payload": {"service": "demo", "method": "slow", "params": LONG}})
        await flood(raw)  # the answers fit into the outbox
        await eventually(lambda: running.occupancy == (1, 1, 0))
        assert running.gateway.handler_manager.statistics.closed == {CloseCode.SLOW_CONSUMER: 1}
        assert await other.result("demo.echo") == {}


async def test_a_write_that_does_not_end_while_the_connection_is_closed() -> None:
    """The write deadline still applies after the gateway has closed the connection."""
    async with run_gateway(write_timeout=0.1, send_buffer=4096) as running:
        async with reluctant(running, "slow:for:0.05") as raw:
            await flood(raw)
            await running.is_empty()
        async with reluctant(running) as raw:
            await flood(raw)
            running.gateway.handler_manager.close_all(CloseCode.DISCONNECTED)
            await running.is_empty()


async def test_a_client_that_does_not_read_and_says_goodbye() -> None:
    async with run_gateway(send_buffer=4096, write_timeout=3600) as running, reluctant(running) as raw:
        await flood(raw)
        await raw.send(raw.frame((1000).to_bytes(2, "big"), CLOSE))
        await running.is_empty()
        raw.abort()


async def test_a_client_that_does_not_read_and_is_gone() -> None:
    async with run_gateway(**SMALL) as running, reluctant(running) as raw:
        await flood(raw, 100)
        raw.abort()
        await running.is_empty()
