"""A caller's contract as an OpenAPI 3.1 document: its methods and topics over plain HTTP. Pure."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final
from urllib.parse import quote

from .._version import __version__
from ..limits.slices import METHODS_PER_SLICE
from ..protocol import MAX_TRACE_ID_LENGTH, ErrorCode
from .model import Contract, Method, Place, Service, distinct_names, error_schema, sentence_of
from .steps import finish

__all__ = ["openapi_document", "openapi_in_steps", "openapi_servers"]

_ABOUT: Final = (
    "The calls and subscriptions that the bearer of the token is allowed, over plain HTTP. asyncapi.json describes the "
    "same over a WebSocket."
)
_TRACE_ID_HEADER: Final = {
    "name": "X-Trace-Id",
    "in": "header",
    "description": "Identifies the call in logs. Comes back in the answer; if it is missing, the gateway makes one.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_TRACE_ID_LENGTH, "pattern": "^[ -~]+$"},
}
_PREFER_HEADER: Final = {
    "name": "Prefer",
    "in": "header",
    "description": "`wait=N`: wait at most N seconds for the answer. `respond-async`: send a command, which is "
    "answered with 202 once the mesh has taken it.",
    "schema": {"type": "string"},
    "examples": {"wait": {"value": "wait=5"}, "command": {"value": "respond-async"}},
}


def openapi_document(contract: Contract, place: Place) -> dict[str, Any]:
    """Return the document for a gateway at ``place``."""
    return finish(openapi_in_steps(contract)) | {"servers": openapi_servers(place)}


def openapi_servers(place: Place) -> list[dict[str, Any]]:
    """Return the document's ``servers``, its only member that depends on the gateway's place."""
    return [{"url": f"{'https' if place.secure else 'http'}://{place.host}{place.root}"}]


def openapi_in_steps(contract: Contract) -> Generator[None, None, dict[str, Any]]:
    """Return the document with no ``servers``; yields between two slices of the work."""
    paths: dict[str, Any] = {}
    keys = distinct_names(service.name for service in contract.services)
    for service in contract.services:
        for method in service.methods:
            path = f"/rpc/{quote(service.name, safe='')}/{quote(method.name, safe='')}"
            paths[path] = {"post": _call(service, method, f"{keys[service.name]}.{method.name}")}
            if len(paths) % METHODS_PER_SLICE == 0:
                yield
    if contract.topics:
        paths["/events"] = {"get": _events(contract)}
    description = _ABOUT
    if contract.unavailable:
        description += f"\n\nServices that did not answer, and are missing here: {', '.join(contract.unavailable)}."
    tags = [
        {"name": service.name} | ({"description": service.description} if service.description else {})
        for service in contract.services
    ]
    return {
        "openapi": "3.1.0",
        "info": {"title": "NuroPb gateway", "version": __version__, "description": description},
        "servers": [],
        "security": [{"bearer": []}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": {"Error": error_schema(ErrorCode)},
            "parameters": {"prefer": _PREFER_HEADER, "traceId": _TRACE_ID_HEADER},
            "responses": _responses(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "x-nuropb": {"unavailable": list(contract.unavailable)},
    }


def _call(service: Service, method: Method, key: str) -> dict[str, Any]:
    summary = sentence_of(method.description)
    body = {
        "description": "The method's named arguments.",
        "required": "required" in method.parameters,
        "content": {"application/json": {"schema": method.parameters}},
    }
    operation: dict[str, Any] = {
        "operationId": key,
        "summary": summary or f"Call {service.name}.{method.name}.",
        "tags": [service.name],
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in ("prefer", "traceId")],
        "requestBody": body,
        "responses": {
            "200": {"description": "The result of the method.", "content": {"application/json": {"schema": {}}}},
            "202": {"description": "The mesh has taken the command; its outcome is unknown."},
            **_errors(),
        },
        "x-nuropb": {"service": service.name, "method": method.name},
    }
    if method.description not in ("", summary):
        operation["description"] = method.description
    return operation


def _events(contract: Contract) -> dict[str, Any]:
    allowed = ", ".join(f"`{topic}`" for topic in contract.topics)
    return {
        "operationId": "events",
        "summary": "Receive events as Server-Sent Events.",
        "parameters": [
            {"$ref": "#/components/parameters/traceId"},
            {
                "name": "topic",
                "in": "query",
                "required": True,
                "description": f"Topic patterns (`*` matches one word, `#` any number of words), within {allowed}.",
                "schema": {"type": "array", "minItems": 1, "items": {"type": "string"}},
                "examples": {key: {"value": [topic]} for topic, key in distinct_names(contract.topics).items()},
            },
        ],
        "responses": {
            "200": {
                "description": "A stream of events.",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            },
            **_errors(),
        },
    }


def _errors() -> dict[str, Any]:
    """Refer to the response of every error status."""
    return {status: {"$ref": f"#/components/responses/{status}"} for status in _codes()}


def _responses() -> dict[str, Any]:
    """Return the responses of all error statuses, each with its error codes."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        status: {"description": "The `code` is " + " or ".join(f"`{code}`" for code in codes) + ".", "content": content}
        for status, codes in _codes().items()
    }


def _codes() -> dict[str, list[str]]:
    codes: dict[str, list[str]] = {}
    for code in sorted(ErrorCode, key=lambda code: code.http_status):
        codes.setdefault(str(code.http_status), []).append(code.value)
    return codes
