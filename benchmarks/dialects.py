"""Messages of the contenders' protocols, encoded and decoded. Pure.

Every client sends the same request, to echo its parameters, in the protocol of its server.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["DIALECTS", "TOPIC", "Dialect", "Kind", "Said", "make_dialect"]

#: Topic of the events to all connections.
TOPIC: Final = "bench.fan-out"


class Kind(enum.Enum):
    """Kinds of messages from a server."""

    #: The connection is ready.
    OPENED = enum.auto()
    #: ``value`` is the answer to the request ``number``.
    ANSWER = enum.auto()
    #: ``value`` is an event to all connections.
    EVENT = enum.auto()
    #: ``value`` is a text to send back now.
    SEND = enum.auto()
    #: The message needs no action.
    NOTHING = enum.auto()
    #: An error, or an unexpected message.
    WRONG = enum.auto()


class Said(NamedTuple):
    """A decoded message."""

    kind: Kind
    number: int = 0
    value: Any = None


OPENED, NOTHING, WRONG = Said(Kind.OPENED), Said(Kind.NOTHING), Said(Kind.WRONG)


class Dialect(Protocol):
    """The protocol of one kind of server."""

    path: str
    #: Whether another connection, which makes calls over HTTP, has the events published.
    publishes_by_calls: bool

    def headers(self, token: str) -> Sequence[str]:
        """Return additional header lines of the handshake."""

    def greet(self, token: str) -> str | None:
        """Return the first message after the handshake, if the protocol needs one."""

    def request(self, number: int, params: dict[str, Any]) -> str:
        """Encode a request to echo ``params``."""

    def subscribe(self, number: int) -> str | None:
        """Encode a subscription to the events of :meth:`broadcast`, or return None if the server needs none.

        The server answers it; the content of that answer does not matter.
        """

    def broadcast(self, number: int, event: dict[str, Any]) -> str:
        """Encode a request to send ``event`` to all connections; some servers answer it, some do not."""

    def read(self, text: bytes) -> Said:
        """Decode a message from the server."""


class NuropbFrames:
    """This gateway and nuropb_gw. ``service`` is the name of the echo service, ``broadcaster`` a method on the mesh."""

    path = "/ws"
    publishes_by_calls = False

    def __init__(self, service: str, broadcaster: str, *, subscribes: bool, topic: str = TOPIC) -> None:
        self._service = service
        self._topic = topic
        self._broadcaster = broadcaster
        self._subscribes = subscribes

    def headers(self, token: str) -> Sequence[str]:
        return (f"Authorization: Bearer {token}",)

    def greet(self, token: str) -> str | None:
        return None

    def request(self, number: int, params: dict[str, Any]) -> str:
        return self._call(self._service, "echo", params, number)

    def subscribe(self, number: int) -> str | None:
        if not self._subscribes:
            return None
        id_ = str(number)
        return json.dumps({"type": "subscribe", "payload": {"topics": [self._topic], "id": id_, "trace_id": id_}})

    def broadcast(self, number: int, event: dict[str, Any]) -> str:
        service, _, method = self._broadcaster.rpartition(".")
        return self._call(service, method, {"topic": self._topic, "event": event}, number)

    def read(self, text: bytes) -> Said:
        message = json.loads(text)
        kind, payload = message["type"], message.get("payload")
        if kind == "response":
            if payload["error"] is not None:
                return WRONG
            return Said(Kind.ANSWER, int(payload["trace_id"]), payload["result"])
        if kind == "ping":
            return Said(Kind.SEND, value='{"type":"pong"}')
        if kind != "event":
            return WRONG
        return OPENED if payload["topic"] == "hello" else Said(Kind.EVENT, value=payload["event"])

    @staticmethod
    def _call(service: str, method: str, params: dict[str, Any], number: int) -> str:
        # nuropb_gw reads the trace id only, and ignores the id.
        id_ = str(number)
        payload = {"service": service, "method": method, "params": params, "id": id_, "trace_id": id_}
        return json.dumps({"type": "request", "payload": payload})


class Echo(NuropbFrames):
    """The echo server: it sends the same frames back, and every event to all connections."""

    def greet(self, token: str) -> str | None:
        return json.dumps({"type": "event", "payload": {"topic": "hello", "event": {}}})

    def subscribe(self, number: int) -> str | None:
        return None

    def broadcast(self, number: int, event: dict[str, Any]) -> str:
        return json.dumps({"type": "broadcast", "payload": {"topic": TOPIC, "event": event}})

    def read(self, text: bytes) -> Said:
        message = json.loads(text)
        kind, payload = message["type"], message["payload"]
        if kind == "request":
            return Said(Kind.ANSWER, int(payload["trace_id"]), payload["params"])
        return OPENED if kind == "event" else Said(Kind.EVENT, value=payload["event"])


class SocketIO:
    """moleculer-io: Socket.IO 4 (protocol 5, Engine.IO 4) over a WebSocket from the start."""

    path = "/socket.io/?EIO=4&transport=websocket"
    publishes_by_calls = False

    def __init__(self, service: str) -> None:
        self._service = service

    def headers(self, token: str) -> Sequence[str]:
        return ()

    def greet(self, token: str) -> str | None:
        return f"40{json.dumps({'token': token})}"

    def request(self, number: int, params: dict[str, Any]) -> str:
        return self._call(number, f"{self._service}.echo", params)

    def subscribe(self, number: int) -> str | None:
        return None

    def broadcast(self, number: int, event: dict[str, Any]) -> str:
        return self._call(number, "io.broadcast", {"event": TOPIC, "args": [event]})

    def read(self, text: bytes) -> Said:
        if text.startswith(b"43"):
            start = text.index(b"[")
            error, *result = json.loads(text[start:])
            return WRONG if error is not None else Said(Kind.ANSWER, int(text[2:start]), result[0] if result else None)
        if text.startswith(b"42"):
            topic, event = json.loads(text[2:])
            return Said(Kind.EVENT, value=event) if topic == TOPIC else WRONG
        if text == b"2":
            return Said(Kind.SEND, value="3")
        if text.startswith(b"0"):
            return NOTHING
        return OPENED if text.startswith(b"40") else WRONG

    @staticmethod
    def _call(number: int, action: str, params: dict[str, Any]) -> str:
        return f"42{number}{json.dumps(['call', action, params])}"


class Stomp:
    """RabbitMQ's Web STOMP (STOMP 1.2): NuroPb's messages for the service, with one reply queue per connection.

    RabbitMQ replaces the reply queue's name by its own.
    """

    path = "/ws"
    publishes_by_calls = False

    def __init__(self, service: str) -> None:
        self._service = service

    def headers(self, token: str) -> Sequence[str]:
        return ("Sec-WebSocket-Protocol: v12.stomp",)

    def greet(self, token: str) -> str | None:
        return self._frame("CONNECT", "", "accept-version:1.2", "host:/", "login:guest", "passcode:guest")

    def request(self, number: int, params: dict[str, Any]) -> str:
        call = {"tag": "request", "service": self._service, "method": "echo", "params": params, "context": {}}
        return self._frame(
            "SEND",
            json.dumps(call),
            f"destination:/exchange/nuropb-rpc-exchange/{self._service}",
            "reply-to:/temp-queue/replies",
            f"correlation-id:{number}",
            "content-type:application/json",
        )

    def subscribe(self, number: int) -> str | None:
        return self._frame("SUBSCRIBE", "", f"id:{number}", f"receipt:{number}", f"destination:/topic/{TOPIC}")

    def broadcast(self, number: int, event: dict[str, Any]) -> str:
        return self._frame("SEND", json.dumps(event), f"destination:/topic/{TOPIC}", f"receipt:{number}")

    def read(self, text: bytes) -> Said:
        head, _, body = text.partition(b"\n\n")
        command, *lines = head.decode().split("\n")
        headers = dict(line.split(":", 1) for line in lines)
        if command == "CONNECTED":
            return OPENED
        if command == "RECEIPT":
            return Said(Kind.ANSWER, int(headers["receipt-id"]))
        if command != "MESSAGE":
            return WRONG
        message = json.loads(body.rstrip(b"\x00\n"))
        if headers["destination"] == f"/topic/{TOPIC}":
            return Said(Kind.EVENT, value=message)
        return (
            WRONG
            if message["error"] is not None
            else Said(Kind.ANSWER, int(headers["correlation-id"]), message["result"])
        )

    @staticmethod
    def _frame(command: str, body: str, *headers: str) -> str:
        return "\n".join((command, *headers, "", body)) + "\0"


class Calls:
    """Calls over HTTP: a path, a space and the parameters; the response is the result alone."""

    path = "/rpc"
    publishes_by_calls = False

    def __init__(self, service: str, topic: str = TOPIC) -> None:
        self._service = service
        self._topic = topic

    def headers(self, token: str) -> Sequence[str]:
        return ()

    def greet(self, token: str) -> str | None:
        return None

    def request(self, number: int, params: dict[str, Any]) -> str:
        return f"/rpc/{self._service}/echo {json.dumps(params)}"

    def subscribe(self, number: int) -> str | None:
        return None

    def broadcast(self, number: int, event: dict[str, Any]) -> str:
        return f"/rpc/{self._service}/publish {json.dumps({'topic': self._topic, 'event': event})}"

    def read(self, text: bytes) -> Said:
        result = json.loads(text)
        if isinstance(result, dict) and "number" in result:
            return Said(Kind.ANSWER, result["number"], result)
        return WRONG if isinstance(result, dict) and "error" in result else NOTHING


class Events(Calls):
    """Server-Sent Events, each with a topic and an event. A connection of :class:`Calls` has them published."""

    path = "/events"
    publishes_by_calls = True

    def __init__(self, service: str, topic: str = TOPIC) -> None:
        super().__init__(service, topic)
        self.path = f"/events?topic={topic}"

    def read(self, text: bytes) -> Said:
        message = json.loads(text)
        if not isinstance(message, dict):  # the answer to a call that published
            return NOTHING
        if message.get("topic") == self._topic:
            return Said(Kind.EVENT, value=message["event"])
        return NOTHING if message.get("topic") == "hello" else WRONG


def make_dialect(name: str, service: str, broadcaster: str, topic: str = TOPIC) -> Dialect:
    """Make a dialect by its name. Contenders that share a mesh need a ``topic`` each."""
    if name == "socket.io":
        return SocketIO(service)
    if name == "stomp":
        return Stomp(service)
    if name == "calls":
        return Calls(service, topic)
    if name == "events":
        return Events(service, topic)
    if name == "echo":
        return Echo(service, broadcaster, subscribes=False)
    return NuropbFrames(service, broadcaster, subscribes=name == "gateway", topic=topic)


DIALECTS: Final = ("gateway", "nuropb_gw", "echo", "socket.io", "stomp", "calls", "events")
