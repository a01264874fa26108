"""The frames that are the same for every caller, as JSON schemas for the AsyncAPI document."""

from __future__ import annotations

from typing import Final

from ..protocol import MAX_ID_LENGTH, MAX_LAST, MAX_SINCE_SECONDS, MAX_TRACE_ID_LENGTH, SUBPROTOCOL
from .model import Schema

__all__ = ["ID", "NOTICES", "POSITION", "QUESTIONS", "TRACE_ID"]

ID: Final[Schema] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_LENGTH,
    "pattern": "^[ -~]+$",
    "description": "Comes back in the answer. Must not be the id of a frame in flight.",
}
TRACE_ID: Final[Schema] = {
    "type": "string",
    "maxLength": MAX_TRACE_ID_LENGTH,
    "description": "Identifies the call in logs. If it is missing, the gateway makes one.",
}
_TOPICS: Final[Schema] = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Patterns: words separated by dots. `*` matches one word, `#` any number of words.",
}
#: The place of an event in the history of its topic.
POSITION: Final[Schema] = {
    "type": "object",
    "required": ["epoch", "offset"],
    "properties": {
        "epoch": {"type": "string", "minLength": 1, "maxLength": MAX_ID_LENGTH},
        "offset": {"type": "integer", "minimum": 0},
    },
    "description": "The place of an event in the history of its topic. Only with topics that have a history.",
}
_SINCE: Final[Schema] = {
    "type": "object",
    "additionalProperties": {
        "oneOf": [
            POSITION,
            {
                "type": "object",
                "required": ["last"],
                "properties": {"last": {"type": "integer", "minimum": 1, "maximum": MAX_LAST}},
            },
            {
                "type": "object",
                "required": ["seconds"],
                "properties": {"seconds": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SINCE_SECONDS}},
            },
        ]
    },
    "description": "Begin some of these topics in the past: behind a position, with the last events, or seconds ago.",
}
#: Frames to the gateway that get a response: by type, the summary and the schema of the payload.
QUESTIONS: Final[dict[str, tuple[str, Schema]]] = {
    "authorize": (
        "Send a token: the first one, if the handshake had none, or a newer one.",
        {"type": "object", "required": ["token"], "properties": {"token": {"type": "string"}}},
    ),
    "subscribe": (
        "Receive events of these topics from now on. Either all topics are accepted or none.",
        {"type": "object", "required": ["topics"], "properties": {"topics": _TOPICS, "since": _SINCE}},
    ),
    "unsubscribe": (
        "Receive no more events of these topics.",
        {"type": "object", "required": ["topics"], "properties": {"topics": _TOPICS}},
    ),
    "describe": (
        "List the methods that may be called: of one service, or of all.",
        {"type": "object", "properties": {"service": {"type": "string"}}},
    ),
}
#: Events of the gateway itself: by topic, the summary and the schema of the event.
NOTICES: Final[dict[str, tuple[str, Schema]]] = {
    "hello": (
        "The first frame on an authorised connection: the session, the user and the limits.",
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
        "The gateway or this connection will end soon: finish the calls in flight, and reconnect later.",
        {
            "type": "object",
            "properties": {"reason": {"type": "string"}, "retry_after_ms": {"type": "integer"}},
        },
    ),
    "gap": (
        "Events of these topics may be missing: read the current state again.",
        {"type": "object", "properties": {"reason": {"type": "string"}, "topics": _TOPICS}},
    ),
    "dropped": (
        "Events of a topic were dropped, because this client did not read them in time.",
        {"type": "object", "properties": {"count": {"type": "integer"}, "topic": {"type": "string"}}},
    ),
    "unsubscribed": (
        "These subscriptions have ended.",
        {"type": "object", "properties": {"reason": {"type": "string"}, "topics": _TOPICS}},
    ),
}
