"""The contract of one caller: services, methods and topics. Pure.

A :class:`Contract` combines the descriptions of services with the policy's decisions for the caller; ``asyncapi`` and
``openapi`` write it as documents. A method that the caller may not call is left out, so its existence stays hidden.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

import msgspec

from ..authorization import Policy
from ..authorization.patterns import is_private
from ..authorization.policy import callable_methods
from ..limits.slices import METHODS_PER_SLICE
from ..protocol import Failure, is_method, is_service
from ..wire.description import CATCH_ALL, Description, describe_for_clients
from .steps import finish

if TYPE_CHECKING:
    from ..authentication import Identity

__all__ = [
    "Contract",
    "Method",
    "Place",
    "Schema",
    "Service",
    "contract_for",
    "contract_in_steps",
    "distinct_names",
    "error_schema",
]

Schema: TypeAlias = dict[str, Any]

#: JSON types of Python annotations. Any other annotation is not precise enough for a schema.
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
_UNTYPED: Final = frozenset({"", "any", "Any", "object"})
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
#: Characters that keys of an AsyncAPI document's components may not have.
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._-]+")


class Method(msgspec.Struct, frozen=True):
    """A method that the caller may call. ``parameters`` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Schema
    requires_encryption: bool = False


class Service(msgspec.Struct, frozen=True):
    """A service with the methods that the caller may call."""

    name: str
    description: str
    version: str
    methods: tuple[Method, ...]


class Contract(msgspec.Struct, frozen=True):
    """All permissions of a caller."""

    services: tuple[Service, ...] = ()
    #: Topic patterns that the caller may subscribe to, and with them every pattern that they cover.
    topics: tuple[str, ...] = ()
    #: Services that did not answer, so nothing is known about them now.
    unavailable: tuple[str, ...] = ()


class Place(msgspec.Struct, frozen=True):
    """The gateway's address for the caller: host, and the path of the mount (empty, or ``/gateway``)."""

    host: str = "localhost"
    secure: bool = False
    root: str = ""

    @classmethod
    def of(cls, host: str, *, secure: bool, root: str, otherwise: str = "localhost") -> Place:
        """Return the place that a request names, with ``otherwise`` in place of an invalid host."""
        return cls(host if _HOST.fullmatch(host) else otherwise, secure, root.rstrip("/"))

    @classmethod
    def at(cls, url: str) -> Place:
        """Return the place with this URL, which the settings have checked."""
        parts = urlsplit(url)
        return cls(parts.netloc, parts.scheme == "https", parts.path.rstrip("/"))


def contract_for(identity: Identity, policy: Policy, found: Mapping[str, Description | Failure]) -> Contract:
    """Return the contract of ``identity``: the methods of the ``found`` services that the policy allows it.

    A service that did not answer is listed as unavailable; the other services are not affected.
    """
    return finish(contract_in_steps(identity, policy, found))


def contract_in_steps(
    identity: Identity, policy: Policy, found: Mapping[str, Description | Failure]
) -> Generator[None, None, Contract]:
    """Return the contract, as :func:`contract_for`; yields between two slices of the work."""
    services, unavailable = [], []
    for name, description in sorted(found.items()):
        if not is_service(name):
            continue
        if isinstance(description, Failure):
            unavailable.append(name)
            continue
        methods = [m for m in sorted(description.methods or ()) if is_method(m) and not is_private(m)]
        described: list[Method] = []
        for start in range(0, len(methods), METHODS_PER_SLICE):
            some = methods[start : start + METHODS_PER_SLICE]
            allowed = callable_methods(policy, identity, name, some, is_gateway=description.is_gateway)
            described += _methods(description, allowed)
            yield
        if described:
            shown = describe_for_clients(description, [])
            services.append(Service(name, _text(shown["description"]), _text(shown["version"]), tuple(described)))
    topics = (topic for topic in policy.topics(identity) if topic.isprintable())
    return Contract(tuple(services), tuple(dict.fromkeys(topics)), tuple(unavailable))


def _methods(description: Description, methods: list[str]) -> Iterator[Method]:
    for name, each in describe_for_clients(description, methods)["methods"].items():
        parameters = parameters_schema(each["parameters"])
        yield Method(name, _text(each["description"]), parameters, each["requires_encryption"])


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


# --- parameters ---------------------------------------------------------------------------------------------------


def parameters_schema(parameters: Mapping[str, Any]) -> Schema:
    """Return a JSON schema of a method's parameters, as ``describe`` lists them.

    With an untyped ``kwargs`` the schema allows additional members. Without one it neither allows nor forbids them,
    because a service may call that parameter differently.
    """
    properties: dict[str, Schema] = {}
    schema: Schema = {"type": "object", "properties": properties}
    for name, spec in parameters["properties"].items():
        type_ = str(spec.get("type") or "")
        if not (name in CATCH_ALL and type_ in _UNTYPED):
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
    elif type_ not in _UNTYPED:
        schema["description"] = f"A Python {type_}, as JSON"
    if "default" in spec:
        default = schema["default"] = spec["default"]
        # A default may also be passed: `count: int = None` accepts null.
        if json_type is not None and json_type not in (types := _json_types(default)):
            schema["type"] = [json_type, types[-1]]
    return schema


def _json_types(value: object) -> Sequence[str]:
    """Return the JSON types of a value, the most general one last."""
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


# --- shared by both documents -------------------------------------------------------------------------------------


def error_schema(codes: Iterable[str]) -> Schema:
    """Return the schema of the protocol's error object."""
    return {
        "type": "object",
        "required": ["code", "description", "retryable"],
        "properties": {
            "code": {
                "type": "string",
                "description": f"For programs: one of {', '.join(codes)}, or a newer one.",
            },
            "description": {"type": "string", "description": "For people."},
            "error": {"type": "string", "description": "The NuroPb class of the error."},
            "retryable": {
                "type": "boolean",
                "description": "Whether it may be sent again: it was not delivered.",
            },
            "retry_after_ms": {"type": ["integer", "null"], "description": "Milliseconds to wait before that."},
        },
    }


def distinct_names(texts: Iterable[str], spelled: Callable[[str], str] | None = None) -> dict[str, str]:
    """Return a distinct name for each text: of letters, digits and ``._-``, or as ``spelled`` returns it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name = base = _NOT_IN_KEYS.sub("_", text) if spelled is None else spelled(text)
        number = 1
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        names[text] = name
    return names


def sentence_of(text: str) -> str:
    """Return the first line of a text, for a summary."""
    return text.partition("\n")[0].strip()
