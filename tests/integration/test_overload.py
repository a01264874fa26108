"""A gateway with more calls than it can do, as its clients see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from nuropb_gateway_asgi.journal.records import ACCESS_LOGGER
from nuropb_gateway_asgi.limits.overload import Overload
from tests.kit.clients import Client, connect
from tests.kit.gateways import RunningGateway, eventually, run_gateway

CALLS = 50


@pytest.fixture
async def running() -> AsyncIterator[RunningGateway]:
    """A gateway for which every turn of the event loop is too long, but for its first call."""
    async with run_gateway(overload_delay=1e-9) as running:
        limits = running.gateway.handler_manager.shared_limits
        await eventually(lambda: limits.overload.active)
        yield running


async def call_and_ping(client: Client) -> Counter[str | None]:
    """Send calls that come in one turn, with a ping among them; return the codes of their answers."""
    codes: Counter[str | None] = Counter()
    for number in range(CALLS):
        await client.send("request", service="demo", method="add", params={"a": 1, "b": number}, id=str(number))
        if number == CALLS // 2:
            await client.send("ping")
    ids: set[str] = set()
    pongs = 0
    while len(ids) < CALLS or not pongs:
        frame = await client.next()
        if frame["type"] == "pong":
            pongs += 1
            continue
        error = frame["payload"]["error"]
        codes[error and error["code"]] += 1
        ids.add(frame["payload"]["id"])
    assert codes.total() == CALLS
    return codes


async def test_every_call_of_an_overload_has_an_answer_and_pings_are_answered(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        codes = await call_and_ping(client)
        assert codes.keys() == {None, "too_many_requests"}
        statistics = running.gateway.handler_manager.statistics
        assert statistics.limited == {"overload": codes["too_many_requests"]}


async def test_a_resumable_session_counts_the_refusals_of_an_overload(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        key = (await client.ask("resume", id="r"))["result"]["key"]
        await call_and_ping(client)
        client.connection.transport.abort()
    async with connect(running.url, "alice") as client:
        # Were a refusal not counted, this would be more than the gateway has sent.
        again = await client.ask("resume", id="r", key=key, received=CALLS)
        assert again["error"] is None, again["error"]
        assert again["result"]["resumed"] is True


async def test_the_access_log_counts_the_frames_of_an_overload(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", ACCESS_LOGGER):
        async with run_gateway(overload_delay=1e-9, access_log="connections") as running:
            overload = running.gateway.handler_manager.shared_limits.overload
            await eventually(lambda: overload.active)
            async with connect(running.url, "alice") as client:
                await call_and_ping(client)
            await running.is_empty()
    (line,) = [record for record in caplog.records if record.name == ACCESS_LOGGER]
    attributes = vars(line)["attributes"]
    assert attributes["nuropb.frames_received"] == CALLS + 1
    assert attributes["nuropb.frames_sent"] == CALLS + 2  # with hello


async def test_a_call_over_http_gets_429_with_a_time(running: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overload, "refuses", lambda _self: True)  # the first call of a turn is not late
    headers = {"Authorization": "Bearer alice"}
    async with httpx.AsyncClient(base_url=running.site.http(), headers=headers, trust_env=False) as http:
        response = await http.post("/rpc/demo/add", json={"a": 1, "b": 2})
    assert response.status_code == 429
    assert response.json()["code"] == "too_many_requests"
    assert int(response.headers["Retry-After"]) >= 1
