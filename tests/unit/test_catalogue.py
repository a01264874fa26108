"""The catalogue: the services and methods that one caller may use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.exceptions import NotStartedError
from nuropb_gateway_asgi.protocol import Failure
from nuropb_gateway_asgi.wire.description import MAX_AGE_SECONDS, Description

from .fakes import FakeGateway, answers, end_call, running, until

# --- descriptions for clients ---------------------------------------------------------------------------


async def test_a_client_is_told_what_it_may_call() -> None:
    async with running(policy=ExposePolicy(["orders.get", "orders.nothing", "users.*"], [])) as gateway:
        handler = await gateway.connect()
        assert not gateway.receive(handler, "describe", id="1", trace_id="t")
        assert sorted(message.service for message in gateway.mesh.describes) == ["orders", "users"]
        gateway.mesh.describe("users", ["me"], description="People", service_version="1.2")
        assert not handler.frames
        gateway.mesh.describe("orders", ["get", "delete"])
        assert handler.frames[0]["payload"] == {
            "id": "1",
            "trace_id": "t",
            "error": None,
            "result": {
                "services": {
                    "orders": {"description": None, "version": None, "methods": {"get": DESCRIBED}},
                    "users": {"description": "People", "version": "1.2", "methods": {"me": DESCRIBED}},
                },
                "unavailable": [],
            },
        }
        gateway.assert_idle()


DESCRIBED = {
    "description": None,
    "parameters": {"type": "object", "properties": {}, "required": []},
    "requires_encryption": False,
}


async def test_one_service_is_described_when_one_is_asked_for(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    assert [message.service for message in gateway.mesh.describes] == ["orders"]
    gateway.mesh.describe("orders", ["get"])
    assert list(handler.frames[0]["payload"]["result"]["services"]) == ["orders"]


async def test_services_behind_a_wildcard_are_described_once_they_are_known(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", id="1")
    gateway.know("orders", ["get"])
    gateway.know("quiet", [])
    gateway.manager.calls.descriptions.look_up("broken", 60.0, lambda found: None)
    gateway.mesh.reply(gateway.mesh.describes[-1], {})
    gateway.receive(handler, "describe", id="2")
    first, second = (answer[1] for answer in answers(handler))
    assert first == {"services": {}, "unavailable": []}
    assert list(second["services"]) == ["orders"]


async def test_a_service_that_is_not_there_does_not_keep_the_others_back() -> None:
    async with running(policy=ExposePolicy(["orders.*", "users.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe")
        gateway.mesh.told.on_returned(gateway.mesh.describes[0].correlation_id)
        gateway.mesh.describe("users", ["me"])
        result = handler.frames[0]["payload"]["result"]
        assert (list(result["services"]), result["unavailable"]) == (["users"], ["orders"])


async def test_a_service_that_does_not_answer_does_not_keep_the_others_back() -> None:
    async with running(policy=ExposePolicy(["orders.*", "users.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", id="1")
        gateway.mesh.describe("users", ["me"])
        await gateway.pass_time(30.2, lambda: handler.frames)
        assert handler.codes == [None]
        result = handler.frames[0]["payload"]["result"]
        assert (list(result["services"]), result["unavailable"]) == (["users"], ["orders"])
        gateway.assert_idle()


@pytest.mark.parametrize(("how", "code"), [("returned", "service_unavailable"), ("failed", "mesh_unavailable")])
async def test_why_one_service_cannot_be_described_is_the_answer(gateway: FakeGateway, how: str, code: str) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders", id="1")
    await end_call(gateway, handler, gateway.mesh.describes[0], how)
    assert answers(handler) == [("1", None, code)]
    gateway.assert_idle()


async def test_a_service_that_cannot_describe_itself_has_no_methods_to_show() -> None:
    async with running(policy=ExposePolicy(["orders.get", "*.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", service="orders")
        gateway.mesh.reply(gateway.mesh.describes[0], error={"error": "NuropbException", "description": "annotations"})
        assert handler.take()[0]["payload"]["result"]["services"]["orders"]["methods"] == {}
        # No rule names this one, so none of its methods may be called.
        gateway.receive(handler, "describe", service="users", id="1")
        gateway.mesh.reply(gateway.mesh.describes[-1], error={"error": "NuropbException", "description": "annotations"})
        assert answers(handler) == [("1", None, "permission_denied")]


async def test_services_on_which_nothing_may_be_called_are_not_described() -> None:
    async with running(policy=ExposePolicy(["orders.get", "*.status"], [])) as gateway:
        handler = await gateway.connect()
        gateway.know("secret", ["put"])
        gateway.know("orders", ["put"])
        gateway.receive(handler, "describe", id="1")
        gateway.receive(handler, "describe", service="secret", id="2")
        gateway.receive(handler, "describe", service="orders", id="3")
        nothing: dict[str, Any] = {"services": {}, "unavailable": []}
        assert answers(handler) == [
            ("1", nothing, None),
            ("2", None, "permission_denied"),
            ("3", None, "permission_denied"),
        ]


# --- other gateways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["request", "command"])
async def test_a_wildcard_does_not_include_another_gateway(kind: str) -> None:
    async with running(policy=ExposePolicy(["*.*", "{x}*.*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, kind, service="other", method="revoke", id="1")  # waits for the description
        gateway.mesh.describe("other", ["revoke"], nuropb_gateway=True)
        gateway.receive(handler, kind, service="other", method="revoke", id="2")
        gateway.receive(handler, kind, service="other", method="made_up", id="3")
        gateway.receive(handler, "describe", service="other", id="4")
        assert answers(handler) == [(str(number), None, "permission_denied") for number in range(1, 5)]
        assert not gateway.mesh.calls
        gateway.receive(handler, "describe", id="5")
        assert handler.frames[-1]["payload"]["result"]["services"] == {}
        gateway.assert_idle()


async def test_a_rule_may_name_another_gateway() -> None:
    async with running(policy=ExposePolicy(["*.*", "other.c*"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "request", service="other", method="count", id="1")
        gateway.receive(handler, "request", service="other", method="revoke", id="2")
        gateway.mesh.describe("other", ["count", "revoke"], nuropb_gateway=True)
        assert [message.method for message in gateway.mesh.calls] == ["count"]
        assert answers(handler) == [("2", None, "permission_denied")]
        gateway.receive(handler, "describe", id="3")
        assert list(handler.frames[-1]["payload"]["result"]["services"]["other"]["methods"]) == ["count"]


async def test_the_host_application_may_call_another_gateway(gateway: FakeGateway) -> None:
    host = asyncio.create_task(gateway.manager.request("other", "count"))
    await until(lambda: gateway.mesh.describes)
    gateway.mesh.describe("other", ["count"], nuropb_gateway=True)
    gateway.mesh.reply(gateway.mesh.calls[0], 5)
    assert await host == 5


async def test_describing_is_refused_where_nothing_may_be_called() -> None:
    async with running(policy=ExposePolicy(["orders.get"], [])) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", service="users", id="1")
        assert answers(handler) == [("1", None, "permission_denied")]
        assert not gateway.mesh.sent
        gateway.assert_idle()


@pytest.mark.parametrize("how", ["cancel", "gone", "timeout"])
async def test_a_describe_ends_as_a_request_does(gateway: FakeGateway, how: str) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders", id="1")
    (question,) = gateway.mesh.sent
    if how == "timeout":
        await gateway.pass_time(31, lambda: handler.frames)
        assert handler.codes in (["timeout"], ["service_unavailable"])
    else:
        await end_call(gateway, handler, question, how)
        assert handler.codes == (["cancelled"] if how == "cancel" else [])
    before = len(handler.frames)
    gateway.mesh.reply(question, {"methods": {"get": {}}})
    assert len(handler.frames) == before
    gateway.assert_idle()


class BrokenPolicy(ExposePolicy):
    """A policy of the host application with one method that raises."""

    def __init__(self, broken: str) -> None:
        super().__init__(["*.*", "orders.*"], ["#"])
        self.broken = broken

    def may_call(self, identity: Identity, service: str, method: str) -> bool:
        assert self.broken != "may_call"
        return super().may_call(identity, service, method)

    def may_describe(self, identity: Identity, service: str) -> bool:
        assert self.broken != "may_describe"
        return super().may_describe(identity, service)

    def services(self, identity: Identity) -> tuple[str, ...]:
        assert self.broken != "services"
        return tuple(super().services(identity))


@pytest.mark.parametrize(
    ("broken", "service"),
    [("may_call", None), ("may_call", "orders"), ("may_describe", "orders"), ("services", None)],
)
async def test_a_policy_that_breaks_is_one_internal_answer(broken: str, service: str | None) -> None:
    policy = BrokenPolicy(broken)
    async with running(policy=policy) as gateway:
        handler = await gateway.connect()
        gateway.receive(handler, "describe", id="1", **({} if service is None else {"service": service}))
        if gateway.mesh.describes:
            gateway.mesh.describe("orders", ["get"])
        assert answers(handler) == [("1", None, "internal")]
        gateway.assert_idle()
        await gateway.pass_time(61, lambda: not gateway.manager.calls.table.deadlines)
        assert len(handler.frames) == 1
        policy.broken = ""
        gateway.receive(handler, "describe", id="1", service="orders")
        if gateway.manager.in_flight:
            gateway.mesh.describe("orders", ["get"])
        assert handler.codes == ["internal", None]


ODD_PARAMETERS = [
    {},
    {"properties": None, "required": None},
    {"properties": 5, "required": 5},
    {"properties": "ab", "required": "ab"},
    {"properties": [5, "ab", [], ["a"], [1, {}], [{}, {}]], "required": [{}, [], None]},
    {"properties": [["a", None], ["b", {"type": {}, "default": []}]], "required": ["a", {}, "a", "c"]},
    {"properties": {"a": {"type": "int"}, "b": 1}, "required": {"a": 1}},
    {"properties": [["args", {"type": ""}], ["kwargs", {}]], "required": ["args", "kwargs"]},
]


@pytest.mark.parametrize("parameters", ODD_PARAMETERS)
async def test_a_service_may_describe_its_parameters_as_oddly_as_it_likes(
    gateway: FakeGateway, parameters: dict[str, Any]
) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    gateway.mesh.describe("orders", {"get": {"parameters": parameters}})
    described = handler.frames[0]["payload"]["result"]["services"]["orders"]["methods"]["get"]["parameters"]
    assert set(described["required"]) <= set(described["properties"])
    assert not {"args", "kwargs"} & set(described["required"])


async def test_parameters_are_listed_by_name(gateway: FakeGateway) -> None:
    handler = await gateway.connect()
    gateway.receive(handler, "describe", service="orders")
    properties = [["id", {"type": "int", "description": "", "default": ""}], ["full", {"type": "", "default": False}]]
    parameters = {"type": "object", "properties": properties, "required": ["id"]}
    gateway.mesh.describe("orders", {"get": {"description": "One order", "parameters": parameters}})
    assert handler.frames[0]["payload"]["result"]["services"]["orders"]["methods"]["get"] == {
        "description": "One order",
        "parameters": {
            "type": "object",
            "properties": {"id": {"type": "int"}, "full": {"type": "any", "default": False}},
            "required": ["id"],
        },
        "requires_encryption": False,
    }


# --- descriptions for the contract ----------------------------------------------------------------------


async def test_all_services_are_asked_at_once_and_one_that_is_away_harms_nobody() -> None:
    policy = ExposePolicy(["orders.*", "stock.*", "users.me"], [])
    async with running(policy=policy) as gateway, asyncio.TaskGroup() as tasks:
        identity = await gateway.authenticator("alice")
        assert identity is not None
        asked = tasks.create_task(gateway.manager.describe_for(identity, patience=60.0))
        await until(lambda: len(gateway.mesh.describes) == 3)
        assert {message.service for message in gateway.mesh.describes} == {"orders", "stock", "users"}
        gateway.mesh.describe("orders", ["get"])
        gateway.mesh.describe("users", ["me"])
        stock = next(message for message in gateway.mesh.describes if message.service == "stock")
        gateway.mesh.told.on_returned(stock.correlation_id)
        found = await asked
        assert {name: getattr(each, "methods", None) is not None for name, each in found.items()} == {
            "orders": True,
            "stock": False,
            "users": True,
        }


async def test_nobody_waits_for_a_service_longer_than_wanted() -> None:
    async with running(policy=ExposePolicy(["orders.*", "stock.*"], [])) as gateway:
        identity = await gateway.authenticator("alice")
        assert identity is not None
        gateway.know("orders", ["get"])
        gateway.clock.now += (
            MAX_AGE_SECONDS + 1
        )  # the service is asked again; its old description serves until it answers
        found = await gateway.manager.describe_for(identity, patience=0.0)
        assert isinstance(found["orders"], Description)
        assert isinstance(found["stock"], Failure)
        gateway.mesh.describe("stock", ["count"])
        gateway.mesh.describe("orders", ["get", "put"])
        found = await gateway.manager.describe_for(identity, patience=0.0)
        assert isinstance(found["stock"], Description)


async def test_where_nothing_may_be_called_nobody_is_asked() -> None:
    async with running(policy=ExposePolicy([], [])) as gateway:
        identity = await gateway.authenticator("alice")
        assert identity is not None
        assert await gateway.manager.describe_for(identity, patience=60.0) == {}
        assert gateway.mesh.describes == []
    with pytest.raises(NotStartedError):
        await gateway.manager.describe_for(identity, patience=60.0)
