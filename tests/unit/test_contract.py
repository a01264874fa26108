"""Contracts of a caller, and their AsyncAPI and OpenAPI documents."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator

from nuropb_gateway_asgi.authorization import AuthorizedPolicy, ExposePolicy, RulePolicy, completed
from nuropb_gateway_asgi.authorization.syntax import parse_policy
from nuropb_gateway_asgi.contracts.asyncapi import asyncapi_document
from nuropb_gateway_asgi.contracts.model import Contract, Place, contract_for, distinct_names, parameters_schema
from nuropb_gateway_asgi.contracts.openapi import openapi_document
from nuropb_gateway_asgi.protocol import ErrorCode
from nuropb_gateway_asgi.wire.description import Description, MethodInfo, parse_description
from tests.kit.contracts import ALICE, AWAY, HOSTILE, ORDERS, asyncapi, contract, described, openapi


def names(found: Contract) -> list[str]:
    return [f"{service.name}.{method.name}" for service in found.services for method in service.methods]


# --- contents -----------------------------------------------------------------------------------------------------


def test_there_is_what_the_policy_allows_and_nothing_else() -> None:
    assert names(contract(ORDERS, calls="orders.*")) == ["orders.get", "orders.note", "orders.ping", "orders.search"]
    assert names(contract(ORDERS, calls="orders.get")) == ["orders.get"]
    assert contract(ORDERS, calls="users.*").services == ()
    for document in (asyncapi, openapi):
        assert "orders" not in str(document(ORDERS, calls="users.*", topics=("news",)))


def test_what_no_client_can_call_is_not_in_it() -> None:
    infos = dict.fromkeys(("_secret", "nuropb_describe", "with space", "ok"), MethodInfo())
    strange = Description("strange", 0.0, methods=infos)
    found = contract_for(ALICE, ExposePolicy(["*.*"], []), {"strange": strange, "no service": strange})
    assert names(found) == ["strange.ok"]


def test_a_service_that_did_not_answer_is_named_and_harms_nobody() -> None:
    found = contract(ORDERS)
    assert found.unavailable == ("stock",)
    assert found.services != ()
    for document in (asyncapi(ORDERS), openapi(ORDERS)):
        assert document["x-nuropb"]["unavailable"] == ["stock"]
        assert "stock" in document["info"]["description"]


def test_a_service_that_cannot_describe_itself_has_no_methods() -> None:
    assert contract_for(ALICE, ExposePolicy(["*.*"], []), {"odd": Description("odd", 0.0)}) == Contract()
    assert contract_for(ALICE, ExposePolicy(["*.*"], []), {"odd": parse_description("odd", b"[]", 0.0)}) == Contract()


@pytest.mark.parametrize(
    ("type_", "default", "schema"),
    [
        ("int", (), {"type": "integer"}),
        ("float", (), {"type": "number"}),
        ("str", ("x",), {"type": "string", "default": "x"}),
        ("bool", (False,), {"type": "boolean", "default": False}),
        ("list", ([],), {"type": "array", "default": []}),
        ("dict", ({},), {"type": "object", "default": {}}),
        ("tuple", (), {"type": "array"}),
        ("any", (), {}),
        ("", (), {}),
        ("Cursor", (), {"description": "A Python Cursor, as JSON"}),
        # A default may also be passed.
        ("int", (None,), {"type": ["integer", "null"], "default": None}),
        ("float", (1,), {"type": "number", "default": 1}),
        ("int", (1.0,), {"type": "integer", "default": 1.0}),
        ("int", (0.5,), {"type": ["integer", "number"], "default": 0.5}),
        ("str", (True,), {"type": ["string", "boolean"], "default": True}),
        ("str", ({},), {"type": ["string", "object"], "default": {}}),
    ],
)
def test_a_parameter_has_the_type_that_its_annotation_is_in_json(
    type_: str, default: tuple[Any, ...], schema: dict[str, Any]
) -> None:
    (service,) = contract(described("s", {"m": ("", ("p", type_, *default))})).services
    (method,) = service.methods
    assert method.parameters == {
        "type": "object",
        "properties": {"p": schema},
        **({} if default else {"required": ["p"]}),
    }


def test_what_takes_any_argument_says_so() -> None:
    for listed, schema in (
        ([("a", "int"), ("kwargs", "")], {"additionalProperties": True, "required": ["a"]}),
        ([("args", "")], {}),
        ([("kwargs", "dict", {})], {}),
    ):
        (service,) = contract(described("s", {"m": ("", *listed)})).services
        assert {**service.methods[0].parameters, "type": "", "properties": {}} == schema | {
            "type": "",
            "properties": {},
        }
    assert parameters_schema({"properties": {}, "required": ["ghost"]}) == {"type": "object", "properties": {}}


# --- topics -------------------------------------------------------------------------------------------------------


def test_topics_are_the_callers_own() -> None:
    assert contract(ORDERS).topics == ("orders.#", "users.alice.*", "news")


def test_of_rules_those_topics_are_named_that_nothing_denies() -> None:
    rules = RulePolicy(
        parse_policy(
            b"""
            [[rule]]
            allow = "subscribe"
            topics = ["news", "orders.#", "teams.{claim:team}.#", "users.{user_id}"]
            [[rule]]
            deny = "subscribe"
            topics = ["orders.secret"]
            [[rule]]
            allow = "subscribe"
            topics = ["staff"]
            when = { role = { in = ["staff"] } }
            """,
            "policy.toml",
        )
    )
    assert list(rules.topics(ALICE)) == ["news", "users.alice"]
    authorized = AuthorizedPolicy(rules, lambda identity, action, name, default: name != "news")
    assert list(authorized.topics(ALICE)) == ["users.alice"]


def test_a_policy_that_knows_nothing_of_topics_has_none_to_tell() -> None:
    class OnlyCalls:
        exposes_anything = True

        def may_call(self, identity: object, service: str, method: str) -> bool:
            return True

        def may_describe(self, identity: object, service: str) -> bool:
            return True

        def may_subscribe(self, identity: object, pattern: str) -> bool:
            return True

        def services(self, identity: object) -> list[str]:
            return []

    assert contract_for(ALICE, completed(OnlyCalls()), {}).topics == ()


# --- the documents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("services", [(), (ORDERS,), HOSTILE, (ORDERS, *HOSTILE)])
def test_the_openapi_document_is_valid(services: tuple[Description, ...]) -> None:
    OpenAPIV31SpecValidator(openapi(*services)).validate()


def test_the_openapi_document_says_how_to_call() -> None:
    document = openapi(ORDERS)
    assert document["servers"] == [{"url": "https://gateway.example:8443/gw"}]
    operation = document["paths"]["/rpc/orders/get"]["post"]
    assert (operation["operationId"], operation["summary"]) == ("orders.get", "One order.")
    assert operation["description"] == "One order.\n\nOf the caller."
    assert operation["requestBody"]["required"]
    assert not document["paths"]["/rpc/orders/ping"]["post"]["requestBody"]["required"]
    assert "/events" in document["paths"]
    assert "/events" not in openapi(ORDERS, topics=())["paths"]


def test_every_error_code_has_a_status_in_the_document() -> None:
    document = openapi(ORDERS)
    told = document["components"]["responses"]
    for code in ErrorCode:
        assert f"`{code.value}`" in told[str(code.http_status)]["description"]
        assert str(code.http_status) in document["paths"]["/rpc/orders/get"]["post"]["responses"]


def test_paths_are_of_what_a_url_may_have() -> None:
    paths = openapi(*HOSTILE)["paths"]
    assert len(paths) == sum(len(each.methods or ()) for each in HOSTILE) + 1
    assert all(re.fullmatch(r"/events|/rpc/[A-Za-z0-9._~%-]+/\w+", path) for path in paths)


def test_the_asyncapi_document_says_how_to_connect_and_call() -> None:
    document = asyncapi(ORDERS)
    server = document["servers"]["gateway"]
    assert (server["host"], server["protocol"], server["pathname"]) == ("gateway.example:8443", "wss", "/gw")
    assert document["channels"]["gateway"]["address"] == "/ws"
    message = document["components"]["messages"]["orders.get"]["payload"]["properties"]["payload"]["properties"]
    assert (message["service"], message["method"]) == ({"const": "orders"}, {"const": "get"})
    assert document["operations"]["orders.get"]["reply"]["messages"] == [
        {"$ref": "#/channels/gateway/messages/response"}
    ]
    assert document["operations"]["topic-users-alice-any"]["x-nuropb"] == {"topic": "users.alice.*"}


def test_a_place_repeats_no_host_that_cannot_be_one() -> None:
    for host, shown in (
        ("gateway.example", "gateway.example"),
        ("[::1]:8000", "[::1]:8000"),
        ("a@b", "else"),
        ("a/b", "else"),
        ("", "else"),
        ('"><script>', "else"),
    ):
        assert Place.of(host, secure=False, root="/gw/", otherwise="else") == Place(shown, False, "/gw")


@given(st.lists(st.text(max_size=5), unique=True, max_size=6))
def test_no_two_names_are_the_same(texts: list[str]) -> None:
    named = distinct_names(texts)
    assert list(named) == texts
    assert len(set(named.values())) == len(texts)


def test_the_documents_are_the_same_for_the_same_contract() -> None:
    found = contract(ORDERS, *HOSTILE)
    assert openapi_document(found, Place()) == openapi_document(found, Place())
    assert asyncapi_document(found, Place()) == asyncapi_document(found, Place())
    assert AWAY.code is ErrorCode.SERVICE_UNAVAILABLE
