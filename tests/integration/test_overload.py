"""A gateway with more calls than it can do, as its clients see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from nuropb_gateway_asgi.limits.overload import Overload
from tests.kit.clients import connect
from tests.kit.gateways import RunningGateway, eventually, run_gateway

CALLS = 50


@pytest.fixture
async def running() -> AsyncIterator[RunningGateway]:
    """A gateway for which every turn of the event loop is too long, but for its first call."""
    async with run_gateway(overload_delay=1e-9) as running:
        limits = running.gateway.handler_manager.shared_limits
        await eventually(lambda: limits.overload.active)
        yield running


async def test_every_call_of_an_overload_has_an_answer_and_pings_are_answered(running: RunningGateway) -> None:
    async with connect(running.url, "alice") as client:
        codes: Counter[str | None] = Counter()
        # All in one write, so that they come in one turn.
        for number in range(CALLS):
            await client.send("request", service="demo", method="add", params={"a": 1, "b": number}, id=str(number))
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
        assert codes.keys() == {None, "too_many_requests"}
        assert codes.total() == CALLS
        statistics = running.gateway.handler_manager.statistics
        assert statistics.limited == {"overload": codes["too_many_requests"]}


async def test_a_call_over_http_gets_429_with_a_time(running: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Overload, "refuses", lambda _self: True)  # the first call of a turn is not late
    headers = {"Authorization": "Bearer alice"}
    async with httpx.AsyncClient(base_url=running.site.http(), headers=headers, trust_env=False) as http:
        response = await http.post("/rpc/demo/add", json={"a": 1, "b": 2})
    assert response.status_code == 429
    assert response.json()["code"] == "too_many_requests"
    assert int(response.headers["Retry-After"]) >= 1
