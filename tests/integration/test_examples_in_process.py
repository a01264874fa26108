"""The example application, tested as users test theirs: by the fixtures of ``nuropb_gateway_asgi.testing``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from nuropb_gateway_asgi.client import InvalidParams, PermissionDenied
from nuropb_gateway_asgi.testing import AsyncTestClient, TestGateway, TestMesh
from tests.kit.processes import run_process


@pytest.fixture
def nuropb_app() -> Any:
    from examples.orders.app import app

    return app


async def test_an_order_is_made_by_the_service_of_the_example(client: AsyncTestClient, mesh: TestMesh) -> None:
    async with client.subscribe("orders.created") as created:
        order = await client.request("orders", "create", {"item": "tea", "quantity": 2})
        assert (await anext(created)).event["number"] == order["number"]
    mesh.assert_called("orders.create", {"item": "tea", "quantity": 2}, user_id="alice")
    with pytest.raises(InvalidParams, match="from 1 to 100"):
        await client.request("orders", "create", {"item": "tea", "quantity": 1000})


def test_a_user_sees_and_ships_own_orders_only(gateway: TestGateway) -> None:
    alice, bob = gateway.client("alice"), gateway.client("bob")
    number = alice.request("orders", "create", {"item": "milk"})["number"]
    assert number in [order["number"] for order in alice.request("orders", "mine")]
    assert bob.request("orders", "mine") == []
    with pytest.raises(PermissionDenied):
        bob.request("orders", "ship", {"number": number})
    alice.command("orders", "ship", {"number": number})
    assert gateway.mesh.wait_for_call("orders.ship", {"number": number}, user_id="alice").result["shipped"]


def test_the_page_of_the_example_is_served_and_counts_a_mocked_service(gateway: TestGateway) -> None:
    gateway.mesh.mock("orders", count=41)
    assert httpx.get(f"{gateway.http_url}/").text.startswith("<!doctype html>")
    assert httpx.get(f"{gateway.http_url}/statistics").json() == {"orders": 41, "connections": 0}
    token = httpx.post(f"{gateway.http_url}/sign-in", json={"name": "carol"}).json()["token"]
    gateway.mesh.mock("orders", mine=[])
    assert gateway.client(token=token).request("orders", "mine") == []
    gateway.mesh.assert_called("orders.mine", user_id="carol")


TESTS = """
import pytest
from fastapi import FastAPI

from nuropb_gateway_asgi import Gateway, Settings
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh


@pytest.fixture
def nuropb_app():
    gateway = Gateway(Settings(jwt_key="k" * 40, expose=["orders.*"]), mesh=EmbeddedMesh({}))
    app = FastAPI(lifespan=gateway.lifespan)
    app.mount("/gateway", gateway.app)
    return app


def test_plain(mesh, client):
    mesh.mock("orders", count=1)
    assert client.request("orders", "count") == 1


@pytest.mark.asyncio
async def test_pytest_asyncio(mesh, client):
    mesh.mock("orders", count=2)
    assert await client.request("orders", "count") == 2


@pytest.mark.anyio
async def test_anyio(mesh, client):
    mesh.mock("orders", count=3)
    assert await client.request("orders", "count") == 3


def test_a_fixture_of_another_plugin_keeps_its_short_name(request):
    assert request.getfixturevalue("gateway") == "of another plugin"
"""
OTHER_PLUGIN = """
import pytest


@pytest.fixture
def gateway():
    return "of another plugin"
"""


async def test_the_fixtures_work_with_pytest_asyncio_anyio_and_fastapi_and_beside_another_plugin(
    tmp_path: Path,
) -> None:
    (tmp_path / "test_orders.py").write_text(TESTS)
    (tmp_path / "other_plugin.py").write_text(OTHER_PLUGIN)
    (tmp_path / "conftest.py").write_text('import pytest\nanyio_backend = pytest.fixture(lambda: "asyncio")\n')
    plugins = ("-p", "no:cacheprovider", "-p", "nuropb_gateway_asgi.testing.plugin", "-p", "other_plugin")
    option = ("-o", "asyncio_default_fixture_loop_scope=function")
    command = (sys.executable, "-m", "pytest", "-q", "-W", "error", *plugins, *option, str(tmp_path))
    root = str(Path(__file__).parents[2])
    environment = {"PYTHONPATH": f"{tmp_path}:{root}"}
    async with run_process(*command, cwd=tmp_path, environment=environment) as process:
        assert await process.wait() == 0, process.output
    assert "4 passed" in process.output
