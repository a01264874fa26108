"""Mocked services made of an OpenAPI document: answers from its examples and schemas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ..protocol import is_service
from .definition import MethodDefinition, Response, ServiceDefinition
from .files import read_file
from .mock_file import reading
from .nodes import Flaw, Node
from .schema import Schema, example_of

__all__ = ["read_openapi"]

_VERBS: Final = ("get", "post", "put", "patch", "delete")
#: Levels of references that are followed into one schema.
MAX_REFERENCES: Final = 8
#: Schemas that the references of one schema may bring.
MAX_RESOLVED: Final = 2000
_CALL = re.compile(r"(?:/.*)?/rpc/([^/{}]+)/([^/{}]+)")


def read_openapi(path: Path) -> list[ServiceDefinition]:
    """Read the operations of a document as methods. Raises MockFileError with file, line and reason.

    A gateway's own document (``/openapi.json``) names services and methods. In others the service is the operation's
    first tag, or the title of the document, and the method is its ``operationId``; one with a dot names both.
    """
    root = read_file(path)
    return reading(path, lambda: _services(root, str(path)))


def _services(root: Node, source: str) -> list[ServiceDefinition]:
    document = root.mapping("the document")
    if "paths" not in document or not isinstance(document.get("openapi", Node(None, 0)).value, str):
        raise Flaw(root, "no OpenAPI document; expected openapi: 3.x and paths")
    plain = root.plain
    services: dict[str, dict[str, MethodDefinition]] = {}
    for path, item in document["paths"].mapping("paths").items():
        for verb in _VERBS:
            if verb not in item.mapping("a path"):
                continue
            node = item.value[verb]
            node.mapping("an operation")
            operation = node.plain
            if "text/event-stream" in str(operation.get("responses", "")):
                continue  # events are no method
            service, method = _name(path, verb, operation, plain)
            if not is_service(service):
                raise Flaw(node, f"{service[:40]!r} is no name of a service")
            services.setdefault(service, {})[method] = _method(method, operation, plain)
    if not services:
        raise Flaw(document["paths"], "no operation")
    version = str(plain.get("info", {}).get("version", "mock")) if isinstance(plain.get("info"), dict) else "mock"
    return [
        ServiceDefinition(name, source, tuple(methods.values()), version=version) for name, methods in services.items()
    ]


def _name(path: str, verb: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> tuple[str, str]:
    if (call := _CALL.fullmatch(path)) is not None:
        return call[1], call[2]
    operation_id = str(operation.get("operationId") or f"{verb}_{path.strip('/')}")
    service, dot, method = operation_id.rpartition(".")
    if not dot:
        tags, info = operation.get("tags"), document.get("info")
        title = info.get("title") if isinstance(info, dict) else None
        service = str(tags[0]) if isinstance(tags, list) and tags else str(title or "api")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", service).strip("-").lower()[:255] or "api", _method_name(method)


def _method_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")[:200] or "call"


def _method(name: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> MethodDefinition:
    parameters: dict[str, Schema] = {}
    required: list[str] = []
    listed = operation.get("parameters")
    for each in _resolved(listed, document) if isinstance(listed, list) else ():
        if isinstance(each, dict) and each.get("in") in ("query", "path") and isinstance(each.get("name"), str):
            schema = each.get("schema")
            parameters[each["name"]] = schema if isinstance(schema, dict) else {}
            if each.get("required") is True:
                required.append(each["name"])
    body = _schema_of(_resolved(operation.get("requestBody"), document), document)
    properties = body.get("properties")
    if isinstance(properties, dict):
        parameters |= {key: each for key, each in properties.items() if isinstance(each, dict)}
        names = body.get("required")
        required += [each for each in names if each in properties] if isinstance(names, list) else []
    is_open = body.get("additionalProperties") not in (None, False)
    usable = all(each.isidentifier() for each in parameters) and not is_open
    return MethodDefinition(
        name,
        str(operation.get("summary") or operation.get("description") or ""),
        parameters if usable and parameters else None,
        tuple(dict.fromkeys(required)) if usable else (),
        responses=(Response(_answer(operation, document)),),
    )


def _answer(operation: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    responses = operation.get("responses")
    for status, response in sorted(responses.items()) if isinstance(responses, dict) else ():
        if not str(status).startswith("2"):
            continue
        content = _content(_resolved(response, document))
        if "example" in content:
            return content["example"]
        examples = content.get("examples")
        if isinstance(examples, dict) and examples:
            first = _resolved(next(iter(examples.values())), document)
            return first.get("value") if isinstance(first, dict) else None
        if content:
            return example_of(_resolved(content.get("schema"), document))
    return None


def _content(part: Any) -> dict[str, Any]:
    content = part.get("content") if isinstance(part, dict) else None
    found = content.get("application/json") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _schema_of(part: Any, document: Mapping[str, Any]) -> dict[str, Any]:
    schema = _resolved(_content(part).get("schema"), document)
    return schema if isinstance(schema, dict) else {}


def _resolved(value: Any, document: Mapping[str, Any]) -> Any:
    """Return ``value`` with the references to the document followed, within limits; the others are open schemas."""
    return _followed(value, document, 0, [MAX_RESOLVED])


def _followed(value: Any, document: Mapping[str, Any], depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        return {}
    if isinstance(value, list):
        return [_followed(each, document, depth, left) for each in value]
    if not isinstance(value, dict):
        return value
    reference = value.get("$ref")
    if not isinstance(reference, str):
        return {key: _followed(each, document, depth, left) for key, each in value.items()}
    if depth >= MAX_REFERENCES or not reference.startswith("#/"):
        return {}
    found: Any = document
    for part in reference[2:].split("/"):
        found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return _followed(found if isinstance(found, dict) else {}, document, depth + 1, left)
