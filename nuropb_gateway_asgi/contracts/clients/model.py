"""The model of a client: services, methods and topics, read from an AsyncAPI document of the gateway.

The document is untrusted: a person may have edited it, and its names and descriptions come from services. This module
keeps names as they are; the modules of the languages make sure that no name or description becomes code.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

__all__ = [
    "DocumentError",
    "Method",
    "Model",
    "Parameter",
    "Service",
    "comment_lines",
    "distinct",
    "identifier",
    "read_document",
    "service_text",
    "words_of",
]

#: JSON types, as a schema names them. Empty if the value may have any type.
Types: TypeAlias = tuple[str, ...]

_JSON_TYPES: Final = ("integer", "number", "string", "boolean", "array", "object", "null")
#: The longest chain of references that is followed. The gateway's documents have chains of two.
_MAX_REFERENCES: Final = 8
_NO_WORD = re.compile(r"[^A-Za-z0-9_]")
_WORDS = re.compile(r"[A-Za-z0-9]+")


class DocumentError(ValueError):
    """Raised for a document that is not a gateway's AsyncAPI document. The message names the missing part."""


class Parameter(NamedTuple):
    """A named argument of a method."""

    name: str
    types: Types
    required: bool


class Method(NamedTuple):
    """A method. ``is_open`` means that it takes further arguments beside its parameters."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    is_open: bool


class Service(NamedTuple):
    """A service and its methods."""

    name: str
    description: str
    version: str
    methods: tuple[Method, ...]


class Model(NamedTuple):
    """All permissions of the caller."""

    version: str
    services: tuple[Service, ...]
    topics: tuple[str, ...]
    unavailable: tuple[str, ...]


def read_document(document: object) -> Model:
    """Return the model of a document. Raises DocumentError."""
    root = _object(document, "the document")
    if not str(root.get("asyncapi", "")).startswith("3."):
        raise DocumentError("this is not an AsyncAPI 3 document")
    about = _object(root.get("x-nuropb"), "x-nuropb")
    described = _object(about.get("services"), "x-nuropb.services")
    methods: dict[str, list[Method]] = {}
    topics: list[str] = []
    for name, operation in _object(root.get("operations"), "operations").items():
        extension = _object(operation, name).get("x-nuropb")
        if isinstance(extension, Mapping) and "topic" in extension:
            topics.append(_text(extension["topic"], f"{name}: the topic"))
        elif isinstance(extension, Mapping):
            service = _text(extension.get("service"), f"{name}: the service")
            methods.setdefault(service, []).append(_method(root, name, operation, extension))
    for service, listed in methods.items():
        if len({each.name for each in listed}) < len(listed):
            raise DocumentError(f"{service}: a method is listed twice")
    services = [
        Service(name, *_about(described.get(name)), tuple(sorted(methods[name], key=lambda each: each.name)))
        for name in sorted(methods)
    ]
    info = root.get("info")
    version = info.get("version") if isinstance(info, Mapping) else None
    unavailable = about.get("unavailable")
    absent = [name for name in unavailable if isinstance(name, str)] if isinstance(unavailable, list) else []
    return Model(str(version or ""), tuple(services), tuple(topics), tuple(absent))


def _about(described: object) -> tuple[str, str]:
    about = described if isinstance(described, Mapping) else {}
    return str(about.get("description") or ""), str(about.get("version") or "")


def _method(root: Mapping[str, Any], key: str, operation: Mapping[str, Any], extension: Mapping[str, Any]) -> Method:
    name = _text(extension.get("method"), f"{key}: the method")
    messages = operation.get("messages")
    if not isinstance(messages, list) or len(messages) != 1:
        raise DocumentError(f"{key}: the message is missing")
    schema: object = messages[0]
    for step in ("payload", "properties", "payload", "properties", "params"):
        schema = _resolve(root, schema, key).get(step)
    schema = _resolve(root, schema, key)
    required = schema.get("required")
    wanted = required if isinstance(required, list) else []
    parameters = tuple(
        Parameter(each, _types(spec), each in wanted)
        for each, spec in _object(schema.get("properties", {}), f"{key}: the parameters").items()
    )
    # Required parameters come first.
    ordered = tuple(sorted(parameters, key=lambda each: not each.required))
    description = operation.get("description") or operation.get("summary") or ""
    return Method(name, str(description), ordered, schema.get("additionalProperties") is True)


def _types(spec: object) -> Types:
    named = spec.get("type") if isinstance(spec, Mapping) else None
    types = tuple(named) if isinstance(named, list) else (named,)
    return types if all(each in _JSON_TYPES for each in types) else ()


def _resolve(root: Mapping[str, Any], value: object, where: str) -> Mapping[str, Any]:
    """Return an object of the document, following references."""
    for _ in range(_MAX_REFERENCES):
        found = _object(value, where)
        reference = found.get("$ref")
        if reference is None:
            return found
        value = root
        for part in str(reference).removeprefix("#/").split("/"):
            step = part.replace("~1", "/").replace("~0", "~")
            value = _object(value, where).get(step)
    raise DocumentError(f"{where}: the reference refers to itself")


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DocumentError(f"{what}: missing, or not an object")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise DocumentError(f"{what} is missing, or not a string")
    return value


# --- shared by the languages --------------------------------------------------------------------------------------


def comment_lines(text: str) -> list[str]:
    """Return the lines of a text, without invisible characters, and without empty lines at the start and end."""
    lines = []
    for line in text.splitlines():
        visible = "".join(c if c == " " or not unicodedata.category(c).startswith(("C", "Z")) else " " for c in line)
        lines.append(visible.rstrip())
    while lines and not lines[0]:
        del lines[0]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


def service_text(service: Service) -> str:
    """Return the comment for a service: description and version."""
    version = f"Version {service.version} of {service.name}." if service.version else f"The service {service.name}."
    return f"{service.description}\n\n{version}"


def words_of(name: str) -> list[str]:
    """Return the words of a service's name, from which each language builds an identifier."""
    return _WORDS.findall(name)


def identifier(name: str, prefix: str) -> str:
    """Spell any name as an identifier of ASCII letters, digits and underscores that begins with a letter.

    Names of methods and parameters become code through this function alone. Names that begin otherwise get ``prefix``:
    leading underscores are reserved for the generated module.
    """
    word = _NO_WORD.sub("_", name)
    return word if word[:1].isalpha() else f"{prefix}{word}"


def distinct(names: Iterable[str], spell: Callable[[str], str], taken: Collection[str] = ()) -> dict[str, str]:
    """Spell each name by ``spell``, with underscores appended until it differs from all names before it."""
    spelled: dict[str, str] = {}
    used = set(taken)
    for name in names:
        word = spell(name)
        while word in used:
            word += "_"
        used.add(word)
        spelled[name] = word
    return spelled
