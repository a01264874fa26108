from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from nuropb_gateway_asgi.mocks import MockFileError
from nuropb_gateway_asgi.mocks.file_service import FileService
from nuropb_gateway_asgi.mocks.files import read_file
from nuropb_gateway_asgi.mocks.mock_file import read_mocks
from nuropb_gateway_asgi.mocks.nodes import MAX_DEPTH
from nuropb_gateway_asgi.mocks.openapi import read_openapi
from nuropb_gateway_asgi.wire.services import Outcome, call_service, describe_service
from tests.kit.waiting import DEADLINE

SHOP = """\
services:
  orders:
    description: The orders of a shop
    methods:
      create:
        description: Create an order
        parameters:
          item: {type: string, minLength: 1}
          quantity: {type: integer, minimum: 1, default: 1}
        result: {type: object, required: [number]}
        when:
          - params: {item: gone}
            error: {code: invalid_params, description: "{{ params.item }} is sold out"}
          - params: {quantity: {above: 100}}
            error: permission_denied
        answer: {number: "{{ count }}", item: "{{ params.item }}", by: "{{ user_id }}", note: "no. {{ count }}"}
        events:
          - topic: orders.created
            event: {number: "{{ answer.number }}"}
      list:
        answers:
          - []
          - answer: [1]
            delay: [0.001, 0.002]
          - error: {code: service_unavailable}
      slow: {answer: no, delay: 0.001}
    events:
      - {topic: orders.tick, every: 0.05, event: {count: "{{ count }}"}, users: [alice]}
"""


def written(folder: Path, text: str, name: str = "services.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def orders(tmp_path: Path) -> FileService:
    [definition] = read_mocks(written(tmp_path, SHOP))
    return FileService(definition, random.Random(1))


async def call(service: FileService, method: str, **params: Any) -> Any:
    outcome = await outcome_of(service, method, **params)
    assert outcome.error is None, outcome.error
    return json.loads(outcome.result)


async def outcome_of(service: FileService, method: str, **params: Any) -> Outcome:
    return await call_service(service, service="orders", method=method, params=params, context={"user_id": "alice"})


@contextlib.asynccontextmanager
async def events_of(service: FileService) -> AsyncIterator[asyncio.Queue[tuple[str, Any, Any]]]:
    queue: asyncio.Queue[tuple[str, Any, Any]] = asyncio.Queue()

    def publish(topic: str, event: Any, target: list[str] | None = None) -> None:
        queue.put_nowait((topic, event, target))

    task = asyncio.create_task(service._run_(publish))
    await asyncio.sleep(0)
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# --- answers ------------------------------------------------------------------------------------------------------


async def test_an_answer_has_its_holes_filled(orders: FileService) -> None:
    assert await call(orders, "create", item="tea") == {"number": 1, "item": "tea", "by": "alice", "note": "no. 1"}
    assert (await call(orders, "create", item="tea"))["number"] == 2


async def test_a_condition_answers_before_the_others(orders: FileService) -> None:
    gone = await outcome_of(orders, "create", item="gone")
    assert gone.error == {"error": "NuropbValidationError", "description": "gone is sold out"}
    many = await outcome_of(orders, "create", item="tea", quantity=101)
    assert many.error is not None
    assert many.error["error"] == "NuropbAuthorizationError"


async def test_answers_come_in_the_order_of_the_calls_and_the_last_one_stays(orders: FileService) -> None:
    assert [await call(orders, "list") for _ in range(2)] == [[], [1]]
    assert [(await outcome_of(orders, "list")).error is None for _ in range(2)] == [False, False]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "orders.create: parameters missing: item"),
        ({"item": ""}, "item must be at least 1 character"),
        ({"item": 1}, "orders.create: parameters of the wrong type: item (expected str)"),
        (
            {"item": "tea", "quantity": True},
            "orders.create: parameters of the wrong type: quantity (expected int or None)",
        ),
        ({"item": "tea", "colour": 1}, "orders.create: parameters unknown: colour"),
    ],
)
async def test_parameters_are_checked_by_their_schemas(
    orders: FileService, params: dict[str, Any], reason: str
) -> None:
    outcome = await outcome_of(orders, "create", **params)
    assert outcome.error == {"error": "NuropbValidationError", "description": reason}


async def test_a_word_is_a_word_as_in_yaml_1_2(orders: FileService) -> None:
    assert await call(orders, "slow") == "no"


async def test_another_method_tells_which_there_are(orders: FileService) -> None:
    outcome = await outcome_of(orders, "destroy")
    assert outcome.error is not None
    assert outcome.error["description"] == "Unknown method destroy: the mock of orders has create, list, slow"


async def test_an_event_follows_its_call_and_timers_publish(orders: FileService) -> None:
    async with events_of(orders) as events, asyncio.timeout(DEADLINE):
        await call(orders, "create", item="tea")
        found = [await events.get(), await events.get()]
    assert ("orders.created", {"number": 1}, None) in found
    assert ("orders.tick", {"count": 1}, ["alice"]) in found


def test_a_mock_describes_itself(orders: FileService) -> None:
    service = describe_service(orders)
    assert service["description"] == "The orders of a shop"
    described = service["methods"]
    assert sorted(described) == ["create", "list", "slow"]
    assert described["list"]["parameters"]["properties"][0][0] == "kwargs"
    assert described["create"]["description"] == "Create an order"
    assert described["create"]["parameters"]["required"] == ["item"]
    assert dict(described["create"]["parameters"]["properties"])["quantity"]["type"] == "int"


# --- formats ------------------------------------------------------------------------------------------------------

JSON = '{"services": {"a": {"methods": {"m": {"answer": {"é": [1, -2.5e3, true, null, "\\u00e9\\n"]}}}}}}'
TOML = '[services.a.methods.m]\nanswer = {"é" = [1, -2.5e3, true, "é\\n"]}\n'


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    assert read_file(written(tmp_path, JSON, "a.json")).plain == json.loads(JSON)
    assert read_file(written(tmp_path, JSON, "a.yaml")).plain == json.loads(JSON)
    toml = read_file(written(tmp_path, TOML, "a.toml")).plain
    assert toml["services"]["a"]["methods"]["m"]["answer"]["é"] == [1, -2500.0, True, "é\n"]


# --- hostile and mistaken files -----------------------------------------------------------------------------------


def method(text: str) -> str:
    return f"services:\n  orders:\n    methods:\n      create:\n        {text}\n"


HOSTILE: list[tuple[str, str, int, str]] = [
    ("deep.yaml", "services: " + "[" * 100_000, 1, "nest"),
    ("deep.json", "[" * 100_000, 1, "nested too deeply"),
    ("deep.toml", "a = " + "[" * 100_000, 1, "nested too deeply"),
    ("laughs.yaml", "a: &a [x, x]\nb: &b [*a, *a]\n", 1, "an anchor or alias"),
    ("alias.yaml", "services:\n  a: *b\n", 2, "an anchor or alias"),
    ("tag.yaml", "services:\n  a: !!python/object/apply:os.system [ls]\n", 2, "a tag"),
    ("merge.yaml", "services:\n  <<: {a: 1}\n", 2, "unknown key"),
    ("huge.yaml", method("answer: " + "9" * 5000), 5, "a number has 5000 characters"),
    ("huge.json", '{"services":\n' + "9" * 5000 + "}", 2, "a number has 5000 characters"),
    ("huge.toml", "[services]\na = " + "9" * 5000, 1, "a number is too long"),
    ("large.yaml", method("answer: 9007199254740993"), 5, "out of range"),
    ("large.toml", "[services.a.methods.m]\nx = 1\nanswer = 9007199254740993\n", 3, "out of range"),
    ("inf.yaml", method("answer: .inf"), 5, "out of range"),
    ("nan.toml", "[services.a]\nb = nan\n", 2, "out of range"),
    ("exponent.json", '{"a":\n 1e999}', 2, "out of range"),
    ("nan.json", '{"a": NaN}', 1, "not JSON"),
    ("many.json", "[" + "1," * 60_000 + "1]", 1, "more than 50000 values"),
    ("many.yaml", "- 1\n" * 60_000, 50_000, "more than 50000 values"),
    ("twice.yaml", "services:\n  a: {}\n  a: {}\n", 3, "'a' is given twice"),
    ("twice.json", '{"services": 1,\n"services": 2}', 2, "'services' is given twice"),
    ("key.yaml", "services:\n  1: {}\n", 2, "a key is no text"),
    ("second.yaml", "services:\n---\na\n", 2, "a second document"),
    ("open.yaml", "services: {\n", 2, "not YAML"),
    ("open.json", '{"services": \n', 2, "not JSON"),
    ("after.json", '{"services": 1}\nx', 2, "text after the end"),
    ("surrogate.json", '["\\ud800"]', 1, "invalid text"),
    ("empty.yaml", "", 1, "expected a mapping"),
    ("none.yaml", "services:\n", 1, "no service|expected a mapping"),
    ("suffix.ini", "a", 1, "is no format"),
    ("name.yaml", "services:\n  'a b': {}\n", 2, "'a b' is no name of a service"),
    ("method.yaml", "services:\n  a:\n    methods:\n      _private: {}\n", 4, "is no name of a method"),
    ("method.toml", '[services.a.methods]\n"a-b" = {}\n', 2, "is no name of a method"),
    ("parameter.yaml", method("parameters: {'a b': string}"), 5, "is no name of a parameter"),
    ("unknown.yaml", method("anser: 1"), 5, "has an unknown key 'anser'; expected answer"),
    ("both.yaml", method("{answer: 1, error: timeout}"), 5, "answer and error"),
    ("code.yaml", method("error: {code: oops}"), 5, "'oops' is no error code"),
    ("delay.yaml", method("delay: [2, 1]"), 5, "delay begins above its end"),
    ("delays.yaml", method("delay: 1000000000"), 5, "delay is out of range"),
    ("text.yaml", method("delay: soon"), 5, "delay is no number"),
    ("topic.yaml", method("events: [{topic: ''}]"), 5, "topic:"),
    ("hole.yaml", method("answer: {a: '{{ parms.x }}'}"), 5, "'parms.x' stands for nothing"),
    ("result.yaml", method("{result: {type: integer}, answer: x}"), 5, "the answer must be integer"),
    ("type.yaml", method("parameters: {a: text}"), 5, "'text' is no type"),
    ("required.yaml", method("{parameters: {a: string}, required: [b]}"), 5, "'b' is required"),
    ("every.yaml", "services:\n  a:\n    events:\n      - {topic: a, every: 0}\n", 4, "every is below"),
    ("when.yaml", method("when: [{answer: 1}]"), 5, "a condition without params"),
]


@pytest.mark.parametrize(("name", "text", "line", "reason"), HOSTILE, ids=[each[0] for each in HOSTILE])
def test_a_hostile_or_mistaken_file_is_refused_with_its_line(
    tmp_path: Path, name: str, text: str, line: int, reason: str
) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(MockFileError, match=reason) as refused:
        read_mocks(path)
    assert str(refused.value).startswith(f"{path}:{line}: ")
    assert len(str(refused.value)) < 600


def test_a_file_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MockFileError, match="1048577 bytes; expected at most"):
        read_mocks(written(tmp_path, " " * (2**20 + 1)))
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(MockFileError, match=r"binary.yaml:2: a character is not UTF-8"):
        read_mocks(path)


@pytest.mark.parametrize("make", [lambda n: "[" * n + "]" * n, lambda n: '{"a":' * n + "1" + "}" * n])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_the_deepest_allowed_file_is_read(tmp_path: Path, suffix: str, make: Callable[[int], str]) -> None:
    assert read_file(written(tmp_path, make(MAX_DEPTH), f"deep.{suffix}")).plain is not None
    with pytest.raises(MockFileError, match="nested too deeply"):
        read_file(written(tmp_path, make(MAX_DEPTH + 1), f"deep.{suffix}"))


# --- OpenAPI ------------------------------------------------------------------------------------------------------

PETS = {
    "openapi": "3.0.3",
    "info": {"title": "Pet Store", "version": "2"},
    "paths": {
        "/rpc/orders/create": {"post": {"responses": {"200": {"content": {"application/json": {"example": 7}}}}}},
        "/pets/{id}": {
            "get": {
                "operationId": "showPet",
                "tags": ["pets"],
                "summary": "Show a pet",
                "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}}}
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Pet": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "name": {"type": "string", "example": "Rex"},
                    "born": {"type": "string", "format": "date"},
                    "friends": {"type": "array", "items": {"$ref": "#/components/schemas/Pet"}},
                },
            }
        }
    },
}


async def test_an_openapi_document_becomes_services_with_answers(tmp_path: Path) -> None:
    found = {each.name: each for each in read_openapi(written(tmp_path, json.dumps(PETS), "pets.json"))}
    assert sorted(found) == ["orders", "pets"]
    assert await call(FileService(found["orders"], random.Random(1)), "create") == 7
    pets = FileService(found["pets"], random.Random(1))
    pet = await call(pets, "showPet", id=3)
    assert (pet["id"], pet["name"], pet["born"]) == (1, "Rex", "2026-01-02")
    assert (await outcome_of(pets, "showPet", id="x")).error is not None


def test_a_document_whose_schemas_refer_to_themselves_is_read(tmp_path: Path) -> None:
    schemas = {
        f"S{n}": {"properties": {f"a{m}": {"$ref": f"#/components/schemas/S{m}"} for m in range(30)}} for n in range(30)
    }
    document = {
        "openapi": "3.1.0",
        "paths": {
            "/rpc/a/b": {
                "post": {
                    "responses": {
                        "200": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/S0"}}}}
                    }
                }
            }
        },
        "components": {"schemas": schemas},
    }
    assert read_openapi(written(tmp_path, json.dumps(document), "loop.json"))[0].name == "a"


@pytest.mark.parametrize(
    ("text", "reason"), [("{}", "no OpenAPI document"), ('{"openapi": "3.1.0", "paths": {}}', "no operation")]
)
def test_another_document_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(MockFileError, match=f"x.json:1: {reason}"):
        read_openapi(written(tmp_path, text, "x.json"))
