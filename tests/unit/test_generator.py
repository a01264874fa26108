"""Clients generated from a document. tests/integration/test_contracts.py checks their types with mypy and tsc."""

from __future__ import annotations

import ast
import asyncio
import copy
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from nuropb_gateway_asgi.cli.gen_client import gen_client, gen_client_command
from nuropb_gateway_asgi.contracts.clients import DocumentError, Language, generate_client
from tests.kit.contracts import HOSTILE, NASTY, ORDERS, asyncapi, edited

#: click before 8.2 mixes both outputs unless told otherwise.
_SEPARATELY: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
RUNNER = CliRunner(**_SEPARATELY)


class FakeClient:
    """A client that records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def request(self, service: str, method: str, params: Any = None, **options: Any) -> None:
        self.calls.append((service, method, params, options))

    async def command(self, service: str, method: str, params: Any = None, **options: Any) -> None:
        self.calls.append(("command", service, method, params, options))

    def subscribe(self, topics: Any, callback: Any = None, **options: Any) -> None:
        self.calls.append(("subscribe", topics))


def gateway_of(text: str) -> tuple[Any, FakeClient]:
    namespace: dict[str, Any] = {"__name__": "made"}
    exec(compile(text, "made.py", "exec"), namespace)
    client = FakeClient()
    return namespace["Gateway"](client), client


def test_a_method_of_the_python_client_makes_its_call() -> None:
    gateway, client = gateway_of(generate_client(asyncapi(ORDERS), "py"))
    asyncio.run(gateway.orders.get(number=1))
    asyncio.run(gateway.orders.get({"timeout": 2.0}, number=1))
    asyncio.run(gateway.orders.search(text="x", limit=None, exact=True))
    asyncio.run(gateway.orders.note(anything=[1]))
    asyncio.run(gateway.orders.ping())
    asyncio.run(gateway.command("orders", "get", {"number": 2}))
    gateway.subscribe("news")
    assert client.calls == [
        ("orders", "get", {"number": 1}, {}),
        ("orders", "get", {"number": 1}, {"timeout": 2.0}),
        ("orders", "search", {"text": "x", "limit": None, "exact": True}, {}),
        ("orders", "note", {"anything": [1]}, {}),
        ("orders", "ping", {}, {}),
        ("command", "orders", "get", {"number": 2}, {}),
        ("subscribe", "news"),
    ]


def test_names_that_are_no_names_in_python_are_spelled_in_another_way_and_sent_as_they_are() -> None:
    gateway, client = gateway_of(generate_client(asyncapi(*HOSTILE), "py"))
    method = gateway.a_b_c_d.then
    arguments = [name for name in inspect.signature(method).parameters if name != "_options"]
    asyncio.run(method(**{name: name for name in arguments}))
    service = HOSTILE[0].service
    # Required parameters come first.
    expected = {"class": "class_", "a b": "a_b", '"': "arg_", "self": "self_", "*/": "arg__"}
    assert client.calls == [(service, "then", expected, {})]


@pytest.mark.parametrize("lang", ["py", "ts"])
def test_what_services_say_of_themselves_stays_text(lang: Language) -> None:
    text = generate_client(asyncapi(ORDERS, *HOSTILE), lang)
    if lang == "py":
        tree = ast.parse(text)
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
        assert [alias.name for node in imports for alias in node.names] == ["enum"]
    else:
        # Nothing of it may remain once comments and strings are removed.
        code = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', "", text, flags=re.DOTALL)
        assert "import os" not in code
        assert "</script" not in code
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u2028\u2029\u202e]", text)


# --- documents that were edited -----------------------------------------------------------------------------------

TEXTS = st.sampled_from(NASTY) | st.text(st.characters(), max_size=20)
NAMES = st.lists(TEXTS, min_size=1, max_size=6, unique=True)
SAFE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TYPESCRIPT = re.compile(
    r"(?P<space>\s+|/\*.*?\*/|//[^\n]*)|(?P<text>\"(?:\\.|[^\"\\\n])*\"|`(?:\\.|[^`\\$]|\$\{string\})*`)"
    r"|(?P<word>[A-Za-z_$][A-Za-z0-9_$]*)|(?P<sign>[^\w\s\"'`\\])",
    re.DOTALL | re.ASCII,
)


def python_shape(text: str) -> list[str]:
    """Return what the code does, without names, and without strings and the lines for names that hide a type."""
    tree = ast.parse(text)
    names: list[str] = []
    for node in ast.walk(tree):
        names += [
            value
            for name in ("id", "name", "attr", "arg", "module")
            if isinstance(value := getattr(node, name, None), str) and value != "collections.abc"
        ]
    assert [name for name in names if not all(map(SAFE.fullmatch, name.split(".")))] == []
    acting = (ast.Call, ast.Await, ast.Import, ast.ImportFrom, ast.Lambda, ast.Attribute, ast.stmt, ast.arg)
    kept = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, acting)]
    return [name for name in kept if name not in ("Expr", "Assign")]


def typescript_shape(text: str) -> list[str]:
    """Return the tokens, with one word for all words and strings. The text is only tokens of a safe kind."""
    shape, position = [], 0
    while position < len(text):
        token = TYPESCRIPT.match(text, position)
        assert token is not None, text[position : position + 80]
        position = token.end()
        if token.lastgroup != "space":
            shape.append(token[0] if token.lastgroup == "sign" else "word")
    return shape


@pytest.mark.parametrize("lang", ["py", "ts"])
@given(methods=NAMES, parameters=NAMES, service=TEXTS.filter(bool), text=TEXTS)
def test_no_text_of_a_document_becomes_code(
    lang: Language, methods: list[str], parameters: list[str], service: str, text: str
) -> None:
    methods = [name for name in methods if name]
    topics = [name for name in methods if not set("#*.") & set(name)]
    hostile = generate_client(edited(methods, parameters, service=service, text=text, topics=topics), lang)
    plain = [f"m{n}" for n in range(len(methods))], [f"p{n}" for n in range(len(parameters))]
    benign = generate_client(edited(*plain, topics=[f"t{n}" for n in range(len(topics))]), lang)
    shape = python_shape if lang == "py" else typescript_shape
    assert shape(hostile) == shape(benign)
    # Nothing invisible, reordered or hidden, not even in comments and strings.
    assert all(line.isprintable() for line in hostile.split("\n"))
    hostile.encode()


def test_every_nasty_name_is_sent_as_it_is() -> None:
    gateway, client = gateway_of(generate_client(edited(NASTY, NASTY), "py"))
    methods = [name for name, each in vars(type(gateway.s)).items() if inspect.iscoroutinefunction(each)]
    assert len(methods) == len(set(methods)) == len([name for name in set(NASTY) if name])
    for method in methods:
        function = getattr(gateway.s, method)
        arguments = {name: name for name in inspect.signature(function).parameters if name != "_options"}
        asyncio.run(function(**arguments))
    assert {name for _, name, _, _ in client.calls} == {name for name in NASTY if name}
    assert all(set(params) == set(NASTY) for _, _, params, _ in client.calls)


def test_a_method_that_is_listed_twice_is_refused() -> None:
    document = edited(["get"])
    document["operations"]["again"] = document["operations"]["0"]
    with pytest.raises(DocumentError, match="listed twice"):
        generate_client(document, "py")


@pytest.mark.parametrize("lang", ["py", "ts"])
def test_the_same_document_makes_the_same_client(lang: Language) -> None:
    document = asyncapi(ORDERS, *HOSTILE)
    assert generate_client(document, lang) == generate_client(copy.deepcopy(document), lang)


@pytest.mark.parametrize("lang", ["py", "ts"])
def test_of_nothing_that_may_be_called_a_client_can_be_made(lang: Language) -> None:
    assert "Gateway" in generate_client(asyncapi(topics=()), lang)


def broken(**changes: Any) -> dict[str, Any]:
    return asyncapi(ORDERS) | changes


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ([], "the document"),
        ({}, "not an AsyncAPI 3 document"),
        ({"asyncapi": "2.6.0"}, "not an AsyncAPI 3 document"),
        ({"asyncapi": "3.1.0"}, "x-nuropb"),
        (broken(operations=None), "operations"),
        (broken(operations={"a": 1}), "a: missing"),
        (broken(operations={"a": {"x-nuropb": {}}}), "a: the service"),
        (broken(operations={"a": {"x-nuropb": {"service": "s"}}}), "a: the method"),
        (broken(operations={"a": {"x-nuropb": {"service": "s", "method": "m"}}}), "a: the message is missing"),
        (broken(operations={"a": {"x-nuropb": {"topic": 1}}}), "a: the topic"),
        (broken(channels={}), "not an object"),
        (
            broken(components={"messages": {"x": {"$ref": "#/components/messages/x"}}})
            | {
                "operations": {
                    "a": {
                        "x-nuropb": {"service": "s", "method": "m"},
                        "messages": [{"$ref": "#/components/messages/x"}],
                    }
                }
            },
            "refers to itself",
        ),
    ],
)
def test_a_document_that_is_none_of_the_gateways_is_refused(document: Any, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        generate_client(document, "py")


def test_a_pattern_of_many_wildcards_does_not_take_for_ever() -> None:
    operations = {"many": {"x-nuropb": {"topic": ".".join(["#", "a"] * 99)}}}
    assert "export type Topic = string;" in generate_client(broken(operations=operations), "ts")


def test_there_are_two_languages() -> None:
    with pytest.raises(ValueError, match="expected ts or py"):
        generate_client(asyncapi(), "cobol")  # type: ignore[arg-type]


# --- the command, with files --------------------------------------------------------------------------------------


def test_a_client_is_made_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "asyncapi.json").write_text(json.dumps(asyncapi(ORDERS)))
    text = gen_client("py", str(tmp_path / "asyncapi.json"), str(tmp_path / "made.py"))
    assert (tmp_path / "made.py").read_text() == text == generate_client(asyncapi(ORDERS), "py")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.json"], "nowhere.json"),
        (["ws://127.0.0.1:1"], "a token is needed"),
        (["amqp://127.0.0.1:1"], "expected the gateway's"),
        (["http://user:secret@127.0.0.1:1"], "expected the gateway's"),
        (["http://127.0.0.1:1"], "a token is needed"),
        (["http://127.0.0.1:1", "--token", "t\nX: y"], "the token contains invalid characters"),
        (["http://127.0.0.1:1", "--token", "t"], "refused"),
        (["-"], "not JSON"),
    ],
)
def test_without_a_document_nothing_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    out = tmp_path / "made.py"
    result = RUNNER.invoke(gen_client_command, [*arguments, "--lang", "py", "--out", str(out)], input="{")
    assert result.exit_code == 1
    assert said in result.stderr
    assert not out.exists()
    assert "secret" not in result.output
