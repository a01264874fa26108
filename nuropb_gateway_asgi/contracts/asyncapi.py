"""The contract of a caller as an AsyncAPI 3.1 document: the WebSocket, its frames, methods and topics. Pure.

``docs/contract.md`` says how to read it. What a program needs to make a client of it (:mod:`.generator`) is in members
called ``x-nuropb``: the names of services and methods as they are, where the document's own keys had to be others.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .._version import __version__
from ..protocol import MAX_ID_LENGTH, MAX_TRACE_ID_LENGTH, SUBPROTOCOL, ErrorCode
from .model import Contract, Method, Place, Schema, Service, distinct_names, error_schema, sentence_of

__all__ = ["asyncapi_document"]

_CHANNEL: Final = "gateway"
_ANYTHING: Final[Schema] = {}
_TOPICS: Final[Schema] = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Patterns: words with dots in between; `*` is one word, `#` any number of them.",
}
_DESCRIPTION: Final = (
    "What the bearer of the token may call and subscribe to. All of it goes over one WebSocket, in frames of JSON; "
    "many requests may be in flight, and `id` tells whose answer a response is."
)
#: Frames that are the same whatever the caller may do: type, what it is, payload.
_TO_GATEWAY: Final[dict[str, tuple[str, Schema]]] = {
    "authorize": (
        "A token: the first one, if there was none in the handshake, or a newer one.",
        {"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}},
    ),
    "subscribe": (
        "Send events of these topics from now on. All or nothing.",
        {"type": "object", "required": ["topics"], "properties": {"topics": _TOPICS}},
    ),
    "unsubscribe": (
        "Send events of these topics no longer.",
        {"type": "object", "required": ["topics"], "properties": {"topics": _TOPICS}},
    ),
    "describe": (
        "What may be called: of one service, or of all.",
        {"type": "object", "properties": {"service": {"type": "string"}}},
    ),
}
_NOTICES: Final[dict[str, tuple[str, Schema]]] = {
    "hello": (
        "The first frame on an authorised connection: who this is, and the limits.",
        {
            "type": "object",
            "required": ["session_id", "user_id", "username", "protocol", "instance_id", "expires_at", "limits"],
            "properties": {
                "session_id": {"type": "string"},
                "user_id": {"type": "string"},
                "username": {"type": "string"},
                "protocol": {"const": SUBPROTOCOL},
                "instance_id": {"type": "string"},
                "expires_at": {"type": ["integer", "null"], "description": "Seconds since 1970."},
                "limits": {
                    "type": "object",
                    "properties": {
                        "max_message_size": {"type": "integer"},
                        "max_in_flight": {"type": "integer"},
                        "request_timeout": {"type": "number"},
                        "ping_interval": {"type": "number"},
                    },
                },
            },
        },
    ),
    "goodbye": (
        "The gateway, or this connection, will end: finish what is under way, and come back later.",
        {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "retry_after_ms": {"type": "integer"}},
        },
    ),
    "gap": (
        "Events may have been missed: look again at what these topics are about.",
        {"type": "object", "properties": {"reason": {"type": "string"}, "topics": _TOPICS}},
    ),
    "dropped": (
        "So many events of a topic were dropped, because they were not read in time.",
        {"type": "object", "properties": {"count": {"type": "integer"}, "topic": {"type": "string"}}},
    ),
    "unsubscribed": (
        "These subscriptions have ended.",
        {"type": "object", "properties": {"reason": {"type": "string"}, "topics": _TOPICS}},
    ),
}


def asyncapi_document(contract: Contract, place: Place, path: str = "/ws") -> dict[str, Any]:
    """The document, for a gateway at ``place`` whose WebSocket is at ``path``."""
    writer = _Writer()
    for kind, (summary, payload) in _TO_GATEWAY.items():
        writer.question(kind, summary, payload)
    writer.plain()
    for topic, (summary, event) in _NOTICES.items():
        writer.event(topic, {"const": topic}, summary, event)
    services = distinct_names(service.name for service in contract.services)
    for service in contract.services:
        for method in service.methods:
            writer.method(f"{services[service.name]}.{method.name}", service, method)
    for topic, key in distinct_names(contract.topics, _topic_key).items():
        summary = f"Events of the topic {topic}."
        writer.event(key, _topic_schema(topic), summary, _ANYTHING, {"topic": topic})
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "NuroPb gateway",
            "version": __version__,
            "description": _describe(contract),
            "tags": [_tag(service) for service in contract.services],
        },
        "defaultContentType": "application/json",
        "servers": {
            _CHANNEL: {
                "host": place.host,
                "protocol": "wss" if place.secure else "ws",
                **({"pathname": place.root} if place.root else {}),
                "security": [{"$ref": "#/components/securitySchemes/bearer"}],
            }
        },
        "channels": {
            _CHANNEL: {
                "address": path,
                "title": "The WebSocket",
                "description": f"Subprotocol `{SUBPROTOCOL}`. One JSON object in each text frame.",
                "servers": [{"$ref": f"#/servers/{_CHANNEL}"}],
                "messages": {key: {"$ref": f"#/components/messages/{key}"} for key in writer.messages},
                "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
            }
        },
        "operations": writer.operations,
        "components": {
            "messages": writer.messages,
            "schemas": {"error": error_schema(ErrorCode), "id": _ID, "traceId": _TRACE_ID} | writer.schemas,
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


_ID: Final[Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_LENGTH,
    "pattern": "^[ -~]+$",
    "description": "Comes back in the answer; must not be in flight.",
}
_TRACE_ID: Final[Schema] = {
    "type": "string",
    "maxLength": MAX_TRACE_ID_LENGTH,
    "description": "What to look for in the logs; the gateway makes one if it is missing.",
}


class _Writer:
    """Collects messages, schemas and operations."""

    def __init__(self) -> None:
        self.messages: dict[str, Any] = {}
        self.schemas: dict[str, Schema] = {}
        self.operations: dict[str, Any] = {}

    def question(self, kind: str, summary: str, payload: Schema) -> None:
        """A frame to the gateway that is answered with a response."""
        payload = payload | {"properties": _IDS | payload["properties"]}
        self._message(kind, summary, {"const": kind}, payload, answered=True)
        self.operations[kind] = {"action": "receive", "summary": summary, **_on(kind), "reply": _on("response")}

    def plain(self) -> None:
        """What is neither a question nor an event."""
        response = {
            "type": "object",
            "required": ["result", "error"],
            "properties": _IDS
            | {
                "result": {"description": "What the method returned."},
                "error": {"oneOf": [{"type": "null"}, {"$ref": "#/components/schemas/error"}]},
            },
        }
        self._message("response", "The answer to a frame.", {"const": "response"}, response, answered=True)
        error = error_schema(ErrorCode)
        error["properties"] = {"type": {"const": "error"}} | error["properties"]
        error["required"] = ["type", *error["required"]]
        summary = "Something is wrong that belongs to no frame that could be named."
        self.messages["error"] = {"name": "error", "summary": summary, "payload": error}
        self._send("error", summary)
        cancel = {"type": "object", "required": ["id"], "properties": {"id": _REF_ID}}
        self._message("cancel", "The answer to this request is not wanted any more.", {"const": "cancel"}, cancel)
        self.operations["cancel"] = {"action": "receive", **_on("cancel")}
        for kind, summary in (("ping", "Is the other side there?"), ("pong", "It is: the answer to a ping.")):
            self._message(kind, summary, {"const": kind}, _ANYTHING)
            self.messages[kind]["payload"]["required"] = ["type"]
        for side, action in (("Client", "receive"), ("Gateway", "send")):
            self.operations[f"ping{side}"] = {"action": action, **_on("ping"), "reply": _on("pong")}

    def event(
        self, key: str, topic: Schema, summary: str, event: Schema, extension: dict[str, Any] | None = None
    ) -> None:
        """A frame from the gateway that nobody asked for."""
        payload = {
            "type": "object",
            "required": ["topic", "event"],
            "properties": {"topic": topic, "event": event, "trace_id": {"$ref": "#/components/schemas/traceId"}},
        }
        self._message(key, summary, {"const": "event"}, payload)
        self._send(key, summary, extension)

    def method(self, key: str, service: Service, method: Method) -> None:
        """A method of a service."""
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
        # A request is answered with what the method returns, a command with null once the mesh has taken it.
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


_REF_ID: Final[Schema] = {"$ref": "#/components/schemas/id"}
_IDS: Final[dict[str, Schema]] = {"id": _REF_ID, "trace_id": {"$ref": "#/components/schemas/traceId"}}


def _on(key: str) -> dict[str, Any]:
    """Which channel and message an operation, or its reply, is about."""
    message = {"$ref": f"#/channels/{_CHANNEL}/messages/{key}"}
    return {"channel": {"$ref": f"#/channels/{_CHANNEL}"}, "messages": [message]}


def _describe(contract: Contract) -> str:
    if not contract.unavailable:
        return _DESCRIPTION
    return f"{_DESCRIPTION}\n\nServices that did not answer, and so are not in here: {', '.join(contract.unavailable)}."


def _tag(service: Service) -> dict[str, str]:
    version = f"Version {service.version}." if service.version else ""
    description = "\n\n".join(filter(None, (service.description, version)))
    return {"name": service.name} | ({"description": description} if description else {})


def _topic_key(topic: str) -> str:
    """A topic as a key, in which the wildcards are words. Without a dot, which every method's key has."""
    words = ({"*": "any", "#": "all"}.get(word, word) for word in topic.split("."))
    return "topic-" + "-".join(re.sub("[^A-Za-z0-9_]+", "_", word) for word in words)


def _topic_schema(topic: str) -> Schema:
    if "*" not in topic and "#" not in topic:
        return {"const": topic}
    return {"type": "string", "description": f"Matches {topic}: `*` is one word, `#` any number of them."}
