from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from nuropb_gateway_asgi import SettingsError
from nuropb_gateway_asgi.cli.dev.faults_api import faults_route
from nuropb_gateway_asgi.client import CallTimeout, MeshUnavailable, ServiceUnavailable
from nuropb_gateway_asgi.mocks.faults import FAULTS, Faults
from nuropb_gateway_asgi.testing import AsyncTestClient, TestGateway, TestMesh
from tests.kit.waiting import DEADLINE


async def outcomes(mesh: TestMesh, client: AsyncTestClient, number: int = 12) -> list[bool]:
    found = []
    for _ in range(number):
        try:
            await client.request("orders", "list")
        except ServiceUnavailable:
            found.append(False)
        else:
            found.append(True)
    return found


async def test_a_seed_repeats_a_run(mesh: TestMesh, client: AsyncTestClient) -> None:
    mesh.mock("orders", list=[])
    mesh.disturb("away", share=0.5, seed=3)
    first = await outcomes(mesh, client)
    mesh.disturb("away", share=0.5, seed=3)
    assert await outcomes(mesh, client) == first
    assert set(first) == {True, False}
    mesh.disturb("away", share=0.5, seed=4)
    assert await outcomes(mesh, client) != first
    mesh.disturb("away", on=False)
    assert all(await outcomes(mesh, client))


async def test_a_fault_of_a_service_leaves_the_others_alone(mesh: TestMesh, client: AsyncTestClient) -> None:
    mesh.mock("orders", list=[])
    mesh.mock("users", me="alice")
    mesh.disturb("away", service="orders")
    assert await client.request("users", "me") == "alice"
    with pytest.raises(ServiceUnavailable):
        await client.request("orders", "list")


async def test_replies_are_late_lost_and_doubled(mesh: TestMesh, client: AsyncTestClient) -> None:
    mesh.mock("orders", list=[])
    mesh.disturb("slow", seconds=60)
    with pytest.raises(CallTimeout):
        await client.request("orders", "list", timeout=0.2)
    mesh.disturb("slow", on=False)
    mesh.disturb("lost")
    with pytest.raises(CallTimeout):
        await client.request("orders", "list", timeout=0.2)
    mesh.disturb("lost", on=False)
    mesh.disturb("doubled")
    assert [await client.request("orders", "list") for _ in range(3)] == [[], [], []]


async def test_the_broker_is_away_and_comes_back(mesh: TestMesh, client: AsyncTestClient) -> None:
    mesh.mock("orders", list=[])
    mesh.disturb("broker_away", seconds=0.2)
    with pytest.raises(MeshUnavailable):
        await client.request("orders", "list")
    assert await client.request("orders", "list", retries=50) == []


async def test_a_burst_and_a_gap_reach_subscribers(nuropb_gateway: TestGateway) -> None:
    mesh, client = nuropb_gateway.mesh, nuropb_gateway.async_client()
    gaps: list[Any] = []
    nuropb_gateway._portal.call(lambda: client._client.on("gap", gaps.append))
    async with client.subscribe("orders.#") as events:
        assert mesh.disturb("burst", topic="orders.burst", count=50).met == 50
        assert [(await anext(events)).event for _ in range(50)] == [{"burst": n} for n in range(1, 51)]
        mesh.disturb("gap")
        mesh.publish("orders.last", 1)
        assert (await anext(events)).event == 1
    assert [gap.reason for gap in gaps] == ["overflow"]


@pytest.mark.parametrize("fault", ["cut", "slow_consumer", "drain"])
async def test_a_connection_ends_and_its_client_comes_back(nuropb_gateway: TestGateway, fault: str) -> None:
    mesh, client = nuropb_gateway.mesh, nuropb_gateway.async_client()
    mesh.mock("orders", list=[])
    back = anyio.Event()
    states: list[str] = []
    loop = asyncio.get_running_loop()

    def on_state(state: Any) -> None:
        states.append(state.name)
        if state.name == "open":
            loop.call_soon_threadsafe(back.set)

    nuropb_gateway._portal.call(lambda: client._client.on("state", on_state))
    assert mesh.disturb(fault).name == fault
    with anyio.fail_after(DEADLINE):
        await back.wait()
    assert "reconnecting" in states
    assert await client.request("orders", "list") == []


def test_a_token_expires_now(nuropb_gateway: TestGateway) -> None:
    mesh, alice, bob = nuropb_gateway.mesh, nuropb_gateway.client("alice"), nuropb_gateway.client("bob")
    mesh.mock("orders", list=[])
    assert mesh.disturb("token_expired", share=0.5, seed=1).met == 1
    ended = [False, False]
    while not any(ended):  # the gateway looks for expired tokens once a second
        time.sleep(0.01)
        ended = [client.state.name != "open" for client in (alice, bob)]
    assert sorted(ended) == [False, True]


@pytest.mark.parametrize(
    ("name", "values", "reason"),
    [
        ("nothing", {}, "no such fault"),
        ("slow", {"topic": "a"}, "does not have; expected share, seconds"),
        ("slow", {"share": 2}, "share: out of range"),
        ("slow", {"seconds": -1}, "seconds: out of range"),
        ("slow", {"seconds": float("inf")}, "seconds: out of range"),
        ("slow", {"seed": "x"}, "slow: Expected `int`"),
        ("burst", {"count": 10**9, "topic": "a"}, "count: out of range"),
        ("burst", {"topic": ""}, "topic:"),
        ("burst", {"topic": "a.*"}, "topic:"),
    ],
)
def test_a_wrong_value_is_refused_and_changes_nothing(name: str, values: dict[str, Any], reason: str) -> None:
    faults = Faults()
    with pytest.raises(SettingsError, match=reason):
        faults.set(name, **values)
    assert faults.all == list(FAULTS)


def test_the_local_api_needs_a_token_and_valid_values(nuropb_gateway: TestGateway) -> None:
    faults = Faults()
    app = Starlette(routes=[faults_route(nuropb_gateway.gateway, faults)])
    authorised = {"Authorization": f"Bearer {nuropb_gateway.token()}"}

    async def ask(wish: object, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
            return await http.post("/dev/faults", json=wish, headers=headers)

    def answer(wish: object, headers: dict[str, str] = authorised) -> tuple[int, Any]:
        response = nuropb_gateway._portal.call(ask, wish, headers)
        return response.status_code, response.json()

    assert answer({"name": "slow"}, {})[0] == answer({"name": "slow"}, {"Authorization": "Bearer x"})[0] == 401
    wrong: list[object] = [[], {"name": "nothing"}, {"name": "slow", "on": 1}, {"name": "slow", "share": 7}]
    for wish in [*wrong, {"name": "x" * 5000}]:
        status, body = answer(wish)
        assert (status, list(body)) == (400, ["description"]), wish
    assert faults.all == list(FAULTS)
    status, body = answer({"name": "slow", "share": 0.5, "seed": 3})
    assert status == 200
    [slow] = [each for each in body["faults"] if each["name"] == "slow"]
    assert (slow["on"], slow["share"], slow["seed"]) == (True, 0.5, 3)
