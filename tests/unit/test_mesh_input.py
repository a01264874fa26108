"""Messages of the mesh with a poisoned value in each member: a decoder raises its own error, or none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from nuropb_gateway_asgi.authentication.revocation import decode_revocation
from nuropb_gateway_asgi.protocol import encode_json
from nuropb_gateway_asgi.routing.failures import service_failure
from nuropb_gateway_asgi.settings import Settings
from nuropb_gateway_asgi.wire import codec
from nuropb_gateway_asgi.wire.description import describe_for_clients, parse_description
from nuropb_gateway_asgi.wire.interface import CallMessage

from .fakes import make_gateway

POISON: Final[dict[str, bytes]] = {
    "nothing": b"",
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested": b"[" * 900 + b"]" * 900,
    "half": b"[",
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "too large for a float": b"1e999",
    "too large for 64 bits": str(10**30).encode(),
    "too large for an int": b"1" * 5000,
    "negative": b"-1",
    "fraction": b"1.5",
    "lone surrogate": rb'"\ud800"',
    "not UTF-8": b'"\xff"',
    "zero": rb'"\u0000"',
    "empty": b'""',
    "text": b'"x"',
    "long": b'"' + b"x" * 100_000 + b'"',
    "list": b"[1]",
    "list of large": b"[" + b"1" * 5000 + b"]",
    "object": b'{"a":1}',
    "doubled": b'{"a":1,"a":[]}',
    "object of large": b'{"a":' + b"1" * 5000 + b"}",
    "null": b"null",
    "true": b"true",
}


def with_poison(members: dict[str, Any], path: str, poison: bytes) -> bytes:
    """Encode ``members`` with ``poison`` in the place of the member at ``path``; "" is the whole."""
    if not path:
        return poison
    name, _, rest = path.partition(".")
    parts = {key: encode_json(value) for key, value in members.items()}
    parts[name] = with_poison(members.get(name, {}), rest, poison)
    return b"{%b}" % b",".join(encode_json(key) + b":" + part for key, part in parts.items())


def reply(body: bytes) -> None:
    decoded = codec.decode_reply("c", body)
    if decoded.error is not None:
        message = CallMessage("request", "c", "t", "s", "m", b"{}", b"{}", 1.0, 1.0)
        failure = service_failure(decoded.error, message, Settings(error_details="all"))
        assert len(failure.error) <= 200
        encode_json(failure.description)


def event(body: bytes) -> None:
    decoded = codec.decode_event(body)
    assert len(encode_json([decoded.topic, decoded.trace_id])) < 5000
    encode_json(decoded.target)


def service_call(body: bytes) -> None:
    codec.encode_reply(codec.decode_service_call(body), result=b"1", error=None, reply_to="q")


def description(body: bytes) -> None:
    described = parse_description("s", body, 0.0)
    encode_json(describe_for_clients(described, list(described.methods or {})))


def peer_message(body: bytes) -> None:
    make_gateway().manager.receiver.on_peer_message(body)


def record(body: bytes) -> None:
    make_gateway().manager.receiver.on_record(body)


METHOD: Final = {
    "description": "d",
    "requires_encryption": False,
    "parameters": {"type": "object", "properties": {"a": {"type": "int", "default": 1}}, "required": ["a"]},
}
MESSAGES: Final[dict[str, tuple[Callable[[bytes], object], dict[str, Any], list[str], Any]]] = {
    "reply": (
        reply,
        {"result": 1, "error": {"error": "NuropbException", "description": "d"}},
        ["result", "error", "error.error", "error.description", "error.more", "more"],
        codec.InvalidMessage,
    ),
    "event": (
        event,
        {"topic": "t", "event": 1, "context": {}, "trace_id": "t", "target": ["u"]},
        ["topic", "event", "context", "trace_id", "target", "more"],
        codec.InvalidMessage,
    ),
    "service call": (
        service_call,
        {"tag": "request", "method": "m", "params": {}, "context": {}, "trace_id": "t", "correlation_id": "c"},
        ["tag", "method", "params", "params.a", "context", "context.a", "trace_id", "correlation_id", "more"],
        codec.InvalidMessage,
    ),
    "description": (
        description,
        {"methods": {"m": METHOD}, "description": "d", "service_version": "1", "public_key": "k"},
        [
            *("methods", "methods.m", "methods.m.description", "methods.m.requires_encryption", "description"),
            *("methods.m.parameters", "methods.m.parameters.properties", "methods.m.parameters.required"),
            *("methods.m.parameters.properties.a", "methods.m.parameters.properties.a.type"),
            *("methods.m.parameters.properties.a.default", "service_version", "public_key", "nuropb_gateway", "more"),
        ],
        (),
    ),
    "revocation": (
        decode_revocation,
        {"user_id": "u", "issued_before": 1.0, "until": 2.0},
        ["user_id", "session_id", "token_id", "token", "issued_before", "until", "more"],
        ValueError,
    ),
    "record": (record, {"token_id": "j", "until": 2.0}, ["token_id", "until", "more"], ()),
    "alive": (peer_message, {"type": "alive", "sender": "a", "instance_id": "i"}, ["sender", "instance_id", "new"], ()),
    "send": (
        peer_message,
        {"type": "ask", "sender": "a", "id": "1", "question": {"type": "send", "topic": "t", "event": 1}},
        ["question", "question.topic", "question.event", "question.user_ids", "question.session_id", "question.more"],
        (),
    ),
    "disconnect": (
        peer_message,
        {"type": "ask", "sender": "a", "id": "1", "question": {"type": "disconnect", "code": 4000, "reason": "r"}},
        ["question.code", "question.reason", "question.user_ids", "question.session_id", "question.more"],
        (),
    ),
    "answer": (peer_message, {"type": "answer", "sender": "a", "id": "1", "answer": 1}, ["id", "answer"], ()),
    "news": (
        peer_message,
        {"type": "news", "sender": "a", "topic": "changed", "news": {}},
        ["topic", "news", "news.u"],
        (),
    ),
}
PLACES: Final = [(what, path) for what, (_, _, paths, _) in MESSAGES.items() for path in ("", *paths)]


@pytest.mark.parametrize(("what", "path"), PLACES)
async def test_poison_in_any_member_of_a_message_is_an_error_that_is_expected(what: str, path: str) -> None:
    decode, members, _, expected = MESSAGES[what]
    for poison in POISON.values():
        with contextlib.suppress(expected):
            decode(with_poison(members, path, poison))


@pytest.mark.parametrize("code", [-1, 0, 1000, 5000, 10**30])
async def test_a_peer_process_cannot_have_connections_closed_with_a_code_of_its_own(code: int) -> None:
    gateway = make_gateway()
    handler = await gateway.connect("alice")
    question = {"type": "disconnect", "code": code, "reason": "r"}
    ask = {"type": "ask", "sender": "a", "id": "1", "question": question}
    gateway.manager.receiver.on_peer_message(json.dumps(ask).encode())
    assert not handler.closes


@pytest.mark.parametrize("target", ['"bob"', '{"bob":1}', "1", "true"])
def test_a_target_that_is_no_list_is_named(target: str) -> None:
    with pytest.raises(codec.InvalidMessage, match=r"the event cannot be read: Expected .* - at `\$.target`"):
        codec.decode_event(b'{"topic":"t","event":1,"target":%b}' % target.encode())
