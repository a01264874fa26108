"""What one caller may do: the contract that is served as AsyncAPI and OpenAPI. Pure.

What services say of themselves and what the policy says of the caller become a :class:`Contract`; ``asyncapi`` and
``openapi`` make a document of it. Whoever may not call a method does not learn that there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from ..authorization import Policy
from ..authorization.patterns import is_private
from ..protocol import Failure, is_method, is_service
from ..wire.description import Description, describe_for_clients

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = ["Contract", "Method", "Place", "Schema", "Service", "contract_for", "distinct_names", "error_schema"]

Schema: TypeAlias = dict[str, Any]

#: What the annotations of Python's types are in JSON. Any other annotation says nothing that could be relied on.
_TYPES: Final[Mapping[str, str]] = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "bool": "boolean",
    "list": "array",
    "tuple": "array",
    "set": "array",
    "frozenset": "array",
    "dict": "object",
}
_ANYTHING: Final = frozenset({"", "any", "Any", "object"})
#: Parameters of these names and without a type take whatever there is, and cannot be given by their names.
_CATCH_ALL: Final = frozenset({"args", "kwargs"})
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
#: What keys of an AsyncAPI document's components may consist of.
_NO_KEY = re.compile(r"[^A-Za-z0-9._-]+")


class Method(msgspec.Struct, frozen=True):
    """A method that the caller may call. ``parameters`` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Schema
    requires_encryption: bool = False


class Service(msgspec.Struct, frozen=True):
    """A service on which there are such methods."""

    name: str
    description: str
    version: str
    methods: tuple[Method, ...]


class Contract(msgspec.Struct, frozen=True):
    """All that a caller may do."""

    services: tuple[Service, ...] = ()
    #: Topic patterns that the caller may subscribe to; whatever one of them covers is allowed as well.
    topics: tuple[str, ...] = ()
    #: Services of which nothing is known now, as they did not answer.
    unavailable: tuple[str, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """Where the caller reaches the gateway: its host, and the path that it is mounted at (empty, or ``/gateway``)."""

    host: str = "localhost"
    secure: bool = False
    root: str = ""

    @classmethod
    def of(cls, host: str, *, secure: bool, root: str, otherwise: str = "localhost") -> Place:
        """A place by what a request says of it; a host that cannot be one is not repeated."""
        return cls(host if _HOST.fullmatch(host) else otherwise, secure, root.rstrip("/"))


def contract_for(identity: Identity, policy: Policy, found: Mapping[str, Description | Failure]) -> Contract:
    """The contract of ``identity``: of all services that were ``found``, what the policy lets it call and see.

    A service that could not be asked is named as unavailable, and harms nobody else.
    """
    services, unavailable = [], []
    for name, description in sorted(found.items()):
        if not is_service(name):
            continue
        if isinstance(description, Failure):
            unavailable.append(name)
            continue
        methods = [m for m in sorted(description.methods or ()) if is_method(m) and not is_private(m)]
        allowed = [method for method in methods if policy.may_call(identity, name, method)]
        if allowed:
            services.append(_service(description, name, allowed))
    topics = (topic for topic in policy.topics(identity) if topic.isprintable())
    return Contract(tuple(services), tuple(dict.fromkeys(topics)), tuple(unavailable))


def _service(description: Description, name: str, methods: list[str]) -> Service:
    shown = describe_for_clients(description, methods)
    return Service(
        name,
        _text(shown["description"]),
        _text(shown["version"]),
        tuple(
            Method(
                method, _text(each["description"]), parameters_schema(each["parameters"]), each["requires_encryption"]
            )
            for method, each in shown["methods"].items()
        ),
    )


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


# --- parameters ---------------------------------------------------------------------------------------------------


def parameters_schema(parameters: Mapping[str, Any]) -> Schema:
    """A JSON schema of what ``describe`` says of a method's parameters.

    Where there is a ``kwargs``, it says that other members are allowed as well. Where there is none, it says nothing of
    them, as that name is only a habit.
    """
    properties: dict[str, Schema] = {}
    schema: Schema = {"type": "object", "properties": properties}
    for name, spec in parameters["properties"].items():
        type_ = str(spec.get("type") or "")
        if not (name in _CATCH_ALL and type_ in _ANYTHING):
            properties[name] = _property(type_, spec)
        elif name == "kwargs":
            schema["additionalProperties"] = True
    required = [name for name in parameters["required"] if name in properties]
    return schema | ({"required": required} if required else {})


def _property(type_: str, spec: Mapping[str, Any]) -> Schema:
    schema: Schema = {}
    json_type = _TYPES.get(type_)
    if json_type is not None:
        schema["type"] = json_type
    elif type_ not in _ANYTHING:
        schema["description"] = f"A Python {type_}, as JSON"
    if "default" in spec:
        default = schema["default"] = spec["default"]
        # Whatever a service has as its default can be given as well: `count: int = None` takes null.
        if json_type is not None and json_type not in (types := _json_types(default)):
            schema["type"] = [json_type, types[-1]]
    return schema


def _json_types(value: object) -> Sequence[str]:
    """The JSON types that a value has, the most general one last."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int):
        return ("integer", "number")
    if isinstance(value, float):
        return ("integer", "number") if value.is_integer() else ("number",)
    if isinstance(value, str):
        return ("string",)
    return ("array",) if isinstance(value, list) else ("object",)


# --- for both documents -------------------------------------------------------------------------------------------


def error_schema(codes: Iterable[str]) -> Schema:
    """The protocol's error object."""
    return {
        "type": "object",
        "required": ["code", "description", "retryable"],
        "properties": {
            "code": {
                "type": "string",
                "description": f"For programs: one of {', '.join(codes)}, or a newer one.",
            },
            "description": {"type": "string", "description": "For people."},
            "error": {"type": "string", "description": "The class that NuroPb uses for it."},
            "retryable": {"type": "boolean", "description": "It was not delivered, so it may be sent again."},
            "retry_after_ms": {"type": ["integer", "null"], "description": "How long to wait before that."},
        },
    }


def distinct_names(texts: Iterable[str], spelled: Callable[[str], str] | None = None) -> dict[str, str]:
    """A name for each of ``texts``, no two the same: of letters, digits and ``._-``, unless it is ``spelled``."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name = base = _NO_KEY.sub("_", text) if spelled is None else spelled(text)
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        names[text] = name
    return names


def sentence_of(text: str) -> str:
    """The first line of a text, for where there is room for one only."""
    return text.partition("\n")[0].strip()
