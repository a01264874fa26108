"""A caller's contract as an AsyncAPI 3.1 document: the WebSocket with its frames, methods and topics. Pure.

``docs/contract.md`` explains the document. Members called ``x-nuropb`` are for generators of clients (:mod:`.clients`):
they hold the original names of services and methods, which the document's own keys may have to spell differently.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, Final

from .._version import __version__
from ..limits.slices import METHODS_PER_SLICE
from ..protocol import SUBPROTOCOL, ErrorCode
from .frames import ID, NOTICES, POSITION, QUESTIONS, TRACE_ID
from .model import Contract, Method, Place, Schema, Service, distinct_names, error_schema, sentence_of
from .steps import finish

__all__ = ["asyncapi_document", "asyncapi_in_steps", "asyncapi_servers"]

_CHANNEL: Final = "gateway"
_ANY_VALUE: Final[Schema] = {}
_ID_REFERENCE: Final[Schema] = {"$ref": "#/components/schemas/id"}
_IDS: Final[dict[str, Schema]] = {"id": _ID_REFERENCE, "trace_id": {"$ref": "#/components/schemas/traceId"}}
_ABOUT: Final = (
    "The calls and subscriptions that the bearer of the token is allowed. Everything uses one WebSocket, with JSON "
    "frames; many requests may be in flight, and `id` connects each response with its request."
)


def asyncapi_document(contract: Contract, place: Place, path: str = "/ws") -> dict[str, Any]:
    """Return the document for a gateway at ``place`` whose WebSocket is at ``path``."""
    return finish(asyncapi_in_steps(contract, path)) | {"servers": asyncapi_servers(place)}


def asyncapi_servers(place: Place) -> dict[str, Any]:
    """Return the document's ``servers``, its only member that depends on the gateway's place."""
    return {
        _CHANNEL: {
            "host": place.host,
            "protocol": "wss" if place.secure else "ws",
            **({"pathname": place.root} if place.root else {}),
            "security": [{"$ref": "#/components/securitySchemes/bearer"}],
        }
    }


def asyncapi_in_steps(contract: Contract, path: str) -> Generator[None, None, dict[str, Any]]:
    """Return the document with no ``servers``; yields between two slices of the work."""
    writer = _Writer()
    for kind, (summary, payload) in QUESTIONS.items():
        writer.question(kind, summary, payload)
    writer.plain()
    for topic, (summary, event) in NOTICES.items():
        writer.event(topic, {"const": topic}, summary, event)
    services = distinct_names(service.name for service in contract.services)
    for service in contract.services:
        for number, method in enumerate(service.methods, 1):
            if number % METHODS_PER_SLICE == 0:
                yield
            writer.method(f"{services[service.name]}.{method.name}", service, method)
    for topic, key in distinct_names(contract.topics, _topic_key).items():
        summary = f"Events of the topic {topic}."
        writer.event(key, _topic_schema(topic), summary, _ANY_VALUE, {"topic": topic})
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "NuroPb gateway",
            "version": __version__,
            "description": _describe(contract),
            "tags": [_tag(service) for service in contract.services],
        },
        "defaultContentType": "application/json",
        "servers": {},
        "channels": {
            _CHANNEL: {
                "address": path,
                "title": "The WebSocket",
                "description": f"Subprotocol `{SUBPROTOCOL}`. Each text message is one JSON object.",
                "servers": [{"$ref": f"#/servers/{_CHANNEL}"}],
                "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in writer.messages},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": writer.operations,
        "components": {
            "messages": writer.messages,
            "schemas": {"error": error_schema(ErrorCode), "id": ID, "traceId": TRACE_ID} | writer.schemas,
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "In the Authorization header, as the subprotocol "
                    "base64url.bearer.nuropb.<token in base64url>, or in the first frame.",
                }
            },
        },
        "x-nuropb": {
            "services": {
                service.name: {"description": service.description, "version": service.version}
                for service in contract.services
            },
            "unavailable": list(contract.unavailable),
        },
    }


class _Writer:
    """Collects messages, schemas and operations."""

    def __init__(self) -> None:
        self.messages: dict[str, Any] = {}
        self.schemas: dict[str, Schema] = {}
        self.operations: dict[str, Any] = {}

    def question(self, kind: str, summary: str, payload: Schema) -> None:
        """Add a frame to the gateway that gets a response."""
        payload = payload | {"properties": _IDS | payload["properties"]}
        self._message(kind, summary, {"const": kind}, payload, answered=True)
        self.operations[kind] = {"action": "receive", "summary": summary, **_on(kind), "reply": _on("response")}

    def plain(self) -> None:
        """Add response, error, cancel, ping and pong."""
        response = {
            "type": "object",
            "required": ["result", "error"],
            "properties": _IDS
            | {
                "result": {"description": "The result of the method."},
                "error": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/error"}]},
            },
        }
        self._message("response", "The answer to a frame.", {"const": "response"}, response, answered=True)
        error = error_schema(ErrorCode)
        error["properties"] = {"type": {"const": "error"}} | error["properties"]
        error["required"] = ["type", *error["required"]]
        summary = "An error that cannot be assigned to a frame."
        self.messages["error"] = {"name": "error", "summary": summary, "payload": error}
        self._send("error", summary)
        cancel = {"type": "object", "required": ["id"], "properties": {"id": _ID_REFERENCE}}
        self._message("cancel", "Cancel the request with this id.", {"const": "cancel"}, cancel)
        self.operations["cancel"] = {"action": "receive", **_on("cancel")}
        for kind, summary in (("ping", "Ask whether the other side is alive."), ("pong", "The answer to a ping.")):
            self._message(kind, summary, {"const": kind}, _ANY_VALUE)
            self.messages[kind]["payload"]["required"] = ["type"]
        for side, action in (("Client", "receive"), ("Gateway", "send")):
            self.operations[f"ping{side}"] = {"action": action, **_on("ping"), "reply": _on("pong")}

    def event(
        self, key: str, topic: Schema, summary: str, event: Schema, extension: dict[str, Any] | None = None
    ) -> None:
        """Add a frame that the gateway sends by itself."""
        payload = {
            "type": "object",
            "required": ["topic", "event"],
            "properties": {
                "topic": topic,
                "event": event,
                "trace_id": {"$ref": "#/components/schemas/traceId"},
                "position": POSITION,
            },
        }
        self._message(key, summary, {"const": "event"}, payload)
        self._send(key, summary, extension)

    def method(self, key: str, service: Service, method: Method) -> None:
        """Add a method of a service."""
        summary = sentence_of(method.description) or f"Call {service.name}.{method.name}."
        self.schemas[f"{key}.params"] = method.parameters
        payload = {
            "type": "object",
            "required": ["service", "method", *(["params"] if "required" in method.parameters else [])],
            "properties": _IDS
            | {
                "service": {"const": service.name},
                "method": {"const": method.name},
                "params": {"$ref": f"#/components/schemas/{key}.params"},
                "timeout": {"type": "number", "exclusiveMinimum": 0, "description": "Seconds; for a request only."},
            },
        }
        # The response to a request has the method's result; to a command, null once the mesh has taken it.
        self._message(key, summary, {"enum": ["request", "command"]}, payload, answered=True)
        self.operations[key] = {
            "action": "receive",
            "summary": summary,
            **({"description": method.description} if method.description not in ("", summary) else {}),
            "tags": [{"name": service.name}],
            **_on(key),
            "reply": _on("response"),
            "x-nuropb": {
                "service": service.name,
                "method": method.name,
                "requires_encryption": method.requires_encryption,
            },
        }

    def _message(self, key: str, summary: str, kind: Schema, payload: Schema, *, answered: bool = False) -> None:
        frame = {"type": "object", "required": ["type", "payload"], "properties": {"type": kind, "payload": payload}}
        message: dict[str, Any] = {"name": key, "summary": summary, "payload": frame}
        if answered:
            message["correlationId"] = {"location": "$message.payload#/payload/id"}
        self.messages[key] = message

    def _send(self, key: str, summary: str, extension: dict[str, Any] | None = None) -> None:
        self.operations[key] = {"action": "send", "summary": summary, **_on(key)}
        if extension is not None:
            self.operations[key]["x-nuropb"] = extension


def _on(key: str) -> dict[str, Any]:
    """Refer to the channel and message of an operation, or of its reply."""
    message = {"$ref": f"#/channels/{_CHANNEL}/messages/{key}"}
    return {"channel": {"$ref": f"#/channels/{_CHANNEL}"}, "messages": [message]}


def _describe(contract: Contract) -> str:
    if not contract.unavailable:
        return _ABOUT
    return f"{_ABOUT}\n\nServices that did not answer, and are missing here: {', '.join(contract.unavailable)}."


def _tag(service: Service) -> dict[str, str]:
    version = f"Version {service.version}." if service.version else ""
    description = "\n\n".join(filter(None, (service.description, version)))
    return {"name": service.name} | ({"description": description} if description else {})


def _topic_key(topic: str) -> str:
    """Spell a topic as a key: wildcards as words, and no dots, because the keys of methods contain a dot."""
    words = ({"*": "any", "#": "all"}.get(word, word) for word in topic.split("."))
    return "topic-" + "-".join(re.sub("[^A-Za-z0-9_]+", "_", word) for word in words)


def _topic_schema(topic: str) -> Schema:
    if "*" not in topic and "#" not in topic:
        return {"const": topic}
    description = f"Matches {topic}: `*` matches one word, `#` any number of words."
    return {"type": "string", "description": description}
