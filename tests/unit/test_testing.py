"""The fixtures for tests of programs, on every Python: these unit tests open sockets, as the tests of users do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import unittest
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from nuropb_gateway_asgi import Gateway, Settings, SettingsError
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.client import ConnectionClosed, InvalidParams, PermissionDenied, ServiceUnavailable, SyncClient
from nuropb_gateway_asgi.mesh import with_context
from nuropb_gateway_asgi.mesh.embedded import EmbeddedMesh
from nuropb_gateway_asgi.mesh.rabbitmq import RabbitMQMesh
from nuropb_gateway_asgi.testing import AsyncTestClient, TestGateway, TestMesh, in_order, running_gateway
from nuropb_gateway_asgi.wire.errors import NuropbValidationError


class Greeter:
    """A service object with state, as a program has them."""

    _service_name = "greeter"

    @with_context
    def greet(self, ctx: dict[str, Any], word: str = "hello") -> str:
        return f"{word} {ctx['user_id']}"


# --- fixtures ---------------------------------------------------------------------------------------------------------


def test_a_mocked_call_is_answered_and_kept(mesh: TestMesh, client: SyncClient) -> None:
    mesh.mock("orders", create={"number": 1})
    assert client.request("orders", "create", {"item": "tea"}) == {"number": 1}
    call = mesh.assert_called("orders.create", {"item": "tea"}, user_id="alice")
    assert (call.done, call.result, call.kind) == (True, {"number": 1}, "request")


async def test_a_coroutine_gets_a_client_of_coroutines(mesh: TestMesh, client: AsyncTestClient) -> None:
    mesh.mock("orders", list=in_order([], [1]))
    assert [await client.request("orders", "list") for _ in range(3)] == [[], [1], [1]]
    async with client.subscribe("orders.*") as events:
        mesh.publish("orders.created", {"number": 7})
        event = await anext(events)
    assert (event.topic, event.event) == ("orders.created", {"number": 7})


def test_services_of_the_mesh_are_described_before_anybody_has_called_them(mesh: TestMesh, client: SyncClient) -> None:
    mesh.mock("orders", create={"number": 1})
    assert set(client.describe()["services"]["orders"]["methods"]) == {"create"}


def test_an_event_reaches_a_plain_function(mesh: TestMesh, client: SyncClient) -> None:
    with client.subscribe("orders.created") as events:
        mesh.publish("orders.created", 1)
        assert events.receive(timeout=10).event == 1


def test_an_exception_is_the_error_that_clients_get(mesh: TestMesh, client: SyncClient) -> None:
    mesh.mock("orders", create=NuropbValidationError("too many"))
    with pytest.raises(InvalidParams, match="too many"):
        client.request("orders", "create")


async def test_a_function_answers_from_the_parameters(mesh: TestMesh, client: AsyncTestClient) -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0)
        return 2 * n

    mesh.mock("sums", double=double, triple=lambda n: 3 * n)
    assert await client.request("sums", "double", {"n": 2}) == 4
    assert await client.request("sums", "triple", {"n": 2}) == 6
    described = (await client.describe("sums"))["services"]["sums"]["methods"]
    assert described["double"]["parameters"]["required"] == ["n"]


def test_a_service_object_gets_the_context(nuropb_gateway: TestGateway) -> None:
    nuropb_gateway.mesh.add(Greeter())
    assert nuropb_gateway.client("bob").request("greeter", "greet") == "hello bob"
    nuropb_gateway.mesh.assert_called("greeter.greet", user_id="bob")


def test_a_command_can_be_waited_for(mesh: TestMesh, client: SyncClient) -> None:
    mesh.mock("orders", ship=None)
    client.command("orders", "ship", {"number": 3})
    assert mesh.wait_for_call("orders.ship", {"number": 3}).kind == "command"


async def test_a_coroutine_waits_for_a_command(mesh: TestMesh, client: AsyncTestClient) -> None:
    mesh.mock("orders", ship=None)
    await client.command("orders", "ship")
    await mesh.until_called("orders.ship", {})
    mesh.forget_calls()
    mesh.assert_not_called("orders")


def test_a_failed_assertion_lists_the_calls_without_their_tokens(nuropb_gateway: TestGateway) -> None:
    mesh, token = nuropb_gateway.mesh, nuropb_gateway.token("alice")
    mesh.mock("orders", create=1)
    nuropb_gateway.client(token=token).request("orders", "create", {"item": "tea"})
    with pytest.raises(
        AssertionError, match=r"its calls: orders.create with params {'item': 'tea'} by user_id 'alice'"
    ):
        mesh.assert_called("orders.create", {"item": "milk"})
    with pytest.raises(AssertionError, match=r"calls of other methods: orders.create"):
        mesh.assert_called("orders.ship")
    with pytest.raises(AssertionError, match=r"orders was called; its calls: orders.create"):
        mesh.assert_not_called("orders")
    assert token not in repr(mesh.calls())


def test_a_call_of_no_service_is_kept_as_not_delivered(mesh: TestMesh, client: SyncClient) -> None:
    with pytest.raises(ServiceUnavailable):
        client.request("nobody", "there")
    assert {call.delivered for call in mesh.calls("nobody")} == {False}
    mesh.assert_not_called("nobody.there")


def test_a_mesh_can_be_switched_off_and_on(mesh: TestMesh, client: SyncClient) -> None:
    mesh.mock("orders", list=[])
    mesh.switch(on=False)
    with pytest.raises(Exception, match="mesh is not reachable"):
        client.request("orders", "list")
    mesh.switch(on=True)
    assert client.request("orders", "list") == []


def test_a_token_has_its_claims_and_its_lifetime(nuropb_gateway: TestGateway) -> None:
    mesh = nuropb_gateway.mesh
    mesh.mock("orders", list=[])
    nuropb_gateway.client("carol", roles=["admin"]).request("orders", "list")
    mesh.assert_called("orders.list", user_id="carol")
    with pytest.raises(ConnectionClosed):
        nuropb_gateway.client(token=nuropb_gateway.token("dave", lifetime=-60))


def test_a_client_without_a_socket_calls_the_application(nuropb_gateway: TestGateway) -> None:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=nuropb_gateway.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            return await http.get("/readyz")

    assert asyncio.run(get()).status_code == 200


# --- without fixtures -------------------------------------------------------------------------------------------------


def test_a_mounted_gateway_runs_within_its_application() -> None:
    async def page(request: Any) -> PlainTextResponse:
        return PlainTextResponse("a page")

    key = "a key of at least thirty-two bytes"
    gateway = Gateway(Settings(jwt_key=key, mcp="off"), mesh=EmbeddedMesh({}), policy=ExposePolicy(("*.*",), ()))
    app = Starlette(routes=[Route("/page", page)])
    gateway.mount(app, "/gw")
    for _ in range(2):
        with running_gateway(app, services={"greeter": Greeter()}) as running:
            assert "/gw/ws" in running.url
            assert running.client().request("greeter", "greet", {"word": "bye"}) == "bye alice"
            assert httpx.get(f"{running.http_url}/page").text == "a page"
        assert gateway.service_mesh_manager.mesh.host.services == {}  # type: ignore[attr-defined]


def test_settings_and_parts_are_those_of_a_gateway() -> None:
    with running_gateway(expose=["orders.list"]) as running:
        running.mesh.mock("orders", list=[], create=1)
        with pytest.raises(PermissionDenied):
            running.client().request("orders", "create")


def test_a_gateway_on_rabbitmq_is_refused_and_told_what_to_do() -> None:
    settings = Settings(mesh_url="amqp://127.0.0.1:1/", jwt_key="a key of at least thirty-two bytes")
    mesh = RabbitMQMesh(settings.mesh_url, service_name="x", instance_id="y")
    gateway = Gateway(settings, mesh=mesh, policy=ExposePolicy((), ()))
    with pytest.raises(SettingsError, match="embedded"), running_gateway(gateway=gateway):
        pass


def test_an_application_without_a_gateway_is_refused() -> None:
    with pytest.raises(SettingsError, match="no gateway is mounted"), running_gateway(Starlette()):
        pass


class TestOrders(unittest.IsolatedAsyncioTestCase):
    """A test case of unittest, with coroutines."""

    def setUp(self) -> None:
        self.gateway = self.enterContext(running_gateway())
        self.gateway.mesh.mock("orders", list=[1])

    async def test_a_call_of_a_coroutine(self) -> None:
        assert await self.gateway.async_client().request("orders", "list") == [1]

    def test_a_call_of_a_plain_function(self) -> None:
        assert self.gateway.client().request("orders", "list") == [1]


# --- what it costs those who do not use it ----------------------------------------------------------------------------


def test_the_plugin_imports_nothing_of_the_gateway_at_the_start_of_pytest() -> None:
    program = (
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import nuropb_gateway_asgi.testing.plugin\n"
        "new = {name for name in set(sys.modules) - before if not name.startswith('nuropb_gateway_asgi')}\n"
        "own = {name for name in sys.modules if name.startswith('nuropb_gateway_asgi')}\n"
        "assert not new & {'anyio', 'starlette', 'uvicorn', 'msgspec', 'asyncio', 'websockets', 'jose'}, new\n"
        "assert own == {'nuropb_gateway_asgi', 'nuropb_gateway_asgi._version', 'nuropb_gateway_asgi.testing',\n"
        "               'nuropb_gateway_asgi.testing.plugin'}, own\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
