"""Descriptions of honest and hostile services, and the documents made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nuropb_gateway_asgi.authentication import Identity
from nuropb_gateway_asgi.authorization import ExposePolicy
from nuropb_gateway_asgi.contracts.asyncapi import asyncapi_document
from nuropb_gateway_asgi.contracts.model import Contract, Place, contract_for
from nuropb_gateway_asgi.contracts.openapi import openapi_document
from nuropb_gateway_asgi.protocol import ErrorCode, Failure
from nuropb_gateway_asgi.wire.description import Description, parse_description

__all__ = [
    "ALICE",
    "AWAY",
    "HOSTILE",
    "NASTY",
    "ORDERS",
    "PLACE",
    "asyncapi",
    "contract",
    "described",
    "edited",
    "openapi",
]

ALICE: Final = Identity(user_id="alice", username="Alice", token="alice")
PLACE: Final = Place("gateway.example:8443", secure=True, root="/gw")
AWAY: Final = Failure(ErrorCode.SERVICE_UNAVAILABLE, "It is away")


def described(service: str, methods: Mapping[str, Any], **more: Any) -> Description:
    """Describe a service by its methods: text, and parameters as (name, type) or (name, type, default)."""
    said = {}
    for name, (text, *parameters) in methods.items():
        specs = [
            (parameter, {"type": type_, **({"default": default[0]} if default else {})})
            for parameter, type_, *default in parameters
        ]
        required = [parameter for parameter, _, *default in parameters if not default]
        said[name] = {"description": text, "parameters": {"properties": specs, "required": required}}
    return parse_description(service, json.dumps({"methods": said, **more}).encode(), 0.0)


ORDERS: Final = described(
    "orders",
    {
        "get": ("One order.\n\nOf the caller.", ("number", "int")),
        "search": (
            "Orders that match.",
            ("text", "str"),
            ("limit", "int", 10),
            ("after", "float", None),
            ("states", "list", ["open"]),
            ("where", "dict", {}),
            ("exact", "bool", False),
            ("cursor", "Cursor", None),
        ),
        "note": ("", ("args", ""), ("kwargs", "")),
        "ping": (None,),
    },
    description="What was ordered.",
    service_version="2.1.0",
)

_TEXT: Final = 'Ends """ it */ here */ ${x} `y` \\ \\u0022 \x00\x1b[31m\u202e\u2028 </script> #}\n"""\nimport os  # "'
#: Names and texts that would be an injection if they became code unescaped.
HOSTILE: Final = (
    described(
        "a.b-c/d*/\"'`${}\\",
        {
            name: (_TEXT, ("class", "int"), ("self", "str", 'x"'), ("a b", "str"), ('"', "list"), ("*/", "dict", {}))
            for name in ("Any", "str", "int", "CallOptions", "Mapping", "class", "then", "constructor", "toString")
        },
        description=_TEXT,
        service_version=_TEXT,
    ),
    described("a_b_c_d", {"match": (_TEXT, ("options", "str"), ("params", "str"), ("None", "str"), ("it's", "str"))}),
    described("1st", {"command": (_TEXT,), "subscribe": (_TEXT, ("_params", "str"), ("_options", "int", None))}),
    described("command", {"client": (_TEXT, ("client", "str"), ("kwargs", "any"))}),
)


def contract(
    *services: Description, calls: str = "*.*", topics: tuple[str, ...] = ("orders.#", "users.{user_id}.*", "news")
) -> Contract:
    """Return Alice's contract with these services, and with one more that does not answer."""
    policy = ExposePolicy([calls], topics)
    found: dict[str, Description | Failure] = {each.service: each for each in services}
    return contract_for(ALICE, policy, found | {"stock": AWAY})


def asyncapi(*services: Description, **options: Any) -> dict[str, Any]:
    """Return the document, decoded from JSON."""
    document: dict[str, Any] = json.loads(json.dumps(asyncapi_document(contract(*services, **options), PLACE)))
    return document


def openapi(*services: Description, **options: Any) -> dict[str, Any]:
    """Return the document, decoded from JSON."""
    document: dict[str, Any] = json.loads(json.dumps(openapi_document(contract(*services, **options), PLACE)))
    return document


_RESERVED: Final = """
    self cls params options client command subscribe Gateway CallOptions Client Params Topic TOPICS enum
    None True False class def lambda async await yield import global nonlocal match case type print exec
    Any Mapping Sequence Final Callable bool float int str dict object super property staticmethod
    constructor prototype toString valueOf hasOwnProperty then get set static public private readonly
    declare abstract accessor override function var let const delete typeof void enum interface namespace
    break default new null this with arguments eval undefined NaN Infinity globalThis
"""
#: Names that no gateway lets through, but an edited document may contain: code, reserved words, members of every
#: object, look-alikes of ASCII letters, controls that hide or reorder text.
NASTY: Final = (
    "x(self): pass\n\nimport os\n\nclass Owned:\n    def y",
    "x() {} } owned(); class Y { z",
    'x"]; owned(); //',
    "x'); owned(); ('",
    "a\\",
    'a\\"',
    "*/ owned(); /*",
    "${owned()}",
    "`owned()`",
    "# owned",
    '"""',
    "\u0261et",
    "\u0441lient",
    "n\u202eame\u2066",
    "zero\u200bwidth",
    "a\u2028b",
    "a\x00b",
    "\x7f",
    "\U0001d5c2\U0001d5bf",
    "\ud800",
    "",
    " ",
    "1",
    "__init__",
    "__class__",
    "__proto__",
    "__debug__",
    "_client",
    "_options",
    "_more",
    "_given",
    "#client",
    *_RESERVED.split(),
)


def edited(
    methods: Sequence[str],
    parameters: Sequence[str] = (),
    *,
    service: str = "s",
    text: str = "",
    topics: Sequence[str] = (),
) -> dict[str, Any]:
    """Return a document that somebody has edited: each method has all of the parameters, and ``text`` stands wherever
    the document has text.
    """
    properties = {name: {"type": "string", "default": text, "enum": [text], "title": text} for name in parameters}
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{text.replace('~', '~0').replace('/', '~1')}"}
    message: dict[str, Any] = schema
    for step in ("params", "payload", "payload"):
        message = {"properties": {step: message}}
    operations: dict[str, Any] = {
        f"{text}{number}": {
            "description": text,
            "x-nuropb": {"service": service, "method": name},
            "messages": [{"payload": message["properties"]["payload"], "name": text}],
        }
        for number, name in enumerate(dict.fromkeys(name for name in methods if name))
    }
    operations |= {f"topic {number}": {"x-nuropb": {"topic": topic}} for number, topic in enumerate(topics) if topic}
    return {
        "asyncapi": "3.1.0",
        "info": {"title": text, "version": text},
        "x-nuropb": {"services": {service: {"description": text, "version": text}}, "unavailable": [text]},
        "operations": operations,
        "components": {"schemas": {text: {"properties": properties, "required": list(parameters)[::2]}}},
    }
