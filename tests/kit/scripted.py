"""A gateway that follows a script of expected and sent frames. The scripts are in ``tests/conformance``."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeAlias

from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from .gateways import DEADLINE, eventually

__all__ = ["Markers", "ScriptError", "ScriptedGateway", "Step", "difference"]

Step: TypeAlias = Mapping[str, Any]

LIMITS: Final = {"max_message_size": 65536, "max_in_flight": 64, "request_timeout": 30.0, "ping_interval": 25.0}


class ScriptError(AssertionError):
    """A violation of the script, by the client or by the gateway."""


@dataclass
class Markers:
    """Markers that synchronise both sides of a script, in place of sleeping."""

    _events: dict[str, asyncio.Event] = field(default_factory=dict)

    def set(self, name: str) -> None:
        self._events.setdefault(name, asyncio.Event()).set()

    def is_set(self, name: str) -> bool:
        return name in self._events and self._events[name].is_set()

    async def wait(self, name: str) -> None:
        await self._events.setdefault(name, asyncio.Event()).wait()


def difference(wanted: Any, given: Any, where: str = "it") -> str | None:
    """Explain how ``given`` differs from ``wanted``, or return None. Extra members are allowed."""
    if isinstance(wanted, dict) and "$between" in wanted:
        low, high = wanted["$between"]
        ok = isinstance(given, int | float) and low <= given <= high
        return None if ok else f"{where}: {given!r} is not between {low} and {high}"
    if isinstance(wanted, dict) and isinstance(given, dict):
        missing = [f"{where}.{name} is missing in {given}" for name in wanted if name not in given]
        found = (difference(value, given[name], f"{where}.{name}") for name, value in wanted.items() if name in given)
        return next(iter(missing), None) or next((reason for reason in found if reason), None)
    if isinstance(wanted, float) and isinstance(given, int | float):
        return None if abs(wanted - given) < 1e-6 else f"{where}: {given!r} instead of {wanted!r}"
    return None if wanted == given else f"{where}: {given!r} instead of {wanted!r}"


class ScriptedGateway:
    """A server for the connections of a script, one after the other."""

    def __init__(self, connections: Sequence[Sequence[Step]], markers: Markers) -> None:
        self._scripts = connections
        self._markers = markers
        self._numbers = itertools.count()
        self._pings = itertools.count(1)
        self._frames: dict[str, dict[str, Any]] = {}
        self._ended = 0
        #: Errors, in the order of their occurrence.
        self.failures: list[str] = []

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen on a free port, and return the URL."""
        async with serve_websockets(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._begin,
            subprotocols=[Subprotocol("nuropb.v1")],
            compression=None,
            ping_interval=None,
            max_size=None,
            close_timeout=1,
        ) as server:
            port = server.sockets[0].getsockname()[1]
            yield f"ws://127.0.0.1:{port}/ws"

    async def finished(self) -> None:
        """Wait until all connections have followed the script to its end, or an error occurred."""
        await eventually(lambda: self.failures or self._ended == len(self._scripts))

    def _begin(self, connection: ServerConnection, request: Request) -> Response | None:
        number = next(self._numbers)
        connection.script = number  # type: ignore[attr-defined]
        if number >= len(self._scripts):
            self.failures.append(f"connection {number + 1} is one too many")
            return connection.respond(HTTPStatus.FORBIDDEN, "one too many")
        first: Step = next(iter(self._scripts[number]), {})
        if "refuse" not in first:
            return None
        self._ended += 1
        response = connection.respond(HTTPStatus(first["refuse"]), "refused")
        response.headers.update(Headers(first.get("headers", {})))
        return response

    async def _handle(self, connection: ServerConnection) -> None:
        number: int = connection.script  # type: ignore[attr-defined]
        actor = _Connection(connection, self._frames, self._markers, self._pings)
        where = ""
        try:
            for position, step in enumerate(self._scripts[number], start=1):
                where = f"connection {number + 1}, step {position} ({json.dumps(step)[:100]})"
                async with asyncio.timeout(DEADLINE):
                    await actor.do(step)
            self._ended += 1
            where = f"connection {number + 1}, after its last step"
            await actor.nothing_more()
        except ConnectionClosed as error:
            self.failures.append(f"{where}: the client has gone: {error}")
        except TimeoutError:
            self.failures.append(f"{where}: the client did not do it in time")
        except ScriptError as error:
            self.failures.append(f"{where}: {error}")


class _Connection:
    """The gateway's end of one connection."""

    def __init__(
        self,
        connection: ServerConnection,
        frames: dict[str, dict[str, Any]],
        markers: Markers,
        pings: Any,
    ) -> None:
        self._connection = connection
        self._frames = frames
        self._markers = markers
        self._pings = pings

    async def do(self, step: Step) -> None:
        """Perform one step."""
        match step:
            case {"greet": what}:
                await self._greet(what)
            case {"token": token}:
                await self._token(token)
            case {"hello": event}:
                await self._hello(event)
            case {"expect": frame}:
                given = await self._receive(frame.get("type"))
                if reason := difference(self._filled(frame), given, "the frame"):
                    raise ScriptError(reason)
                self._frames[step.get("as", "")] = given.get("payload", {})
            case {"answer": name, "expires_in": seconds}:
                payload = {
                    "id": self._frames[name]["id"],
                    "result": {"expires_at": time.time() + seconds},
                    "error": None,
                }
                await self._send("response", payload)
            case {"answer": name, **outcome}:
                asked = self._frames[name]
                ids = {key: asked[key] for key in ("id", "trace_id") if key in asked}
                await self._send("response", ids | {"result": None, "error": None} | outcome)
            case {"session": name, "result": result}:
                ids = {"id": self._frames[name]["id"]}
                await self._send("response", ids | {"result": self._filled(result), "error": None})
            case {"events": count}:
                for number in range(count):
                    await self._send("event", {"topic": "users.alice.number", "event": number})
            case {"event": topic, **rest}:
                position = {"position": rest["position"]} if "position" in rest else {}
                await self._send("event", {"topic": topic, "event": rest.get("is", {}), "trace_id": "t-1", **position})
            case {"send": frame}:
                await self._connection.send(json.dumps(self._filled(frame)))
            case {"text": text}:
                await self._connection.send(text)
            case {"binary": text}:
                await self._connection.send(text.encode())
            case {"huge": size}:
                await self._send("event", {"topic": "huge", "event": "x" * size})
            case {"nothing": _}:
                await self._nothing()
            case {"wait": name}:
                await self._markers.wait(name)
            case {"signal": name}:
                self._markers.set(name)
            case {"closed": code}:
                await self._closed(code)
            case {"gone": _}:
                await self._closed(None)
            case {"close": code, **rest}:
                await self._connection.close(code, rest.get("reason", ""))
            case {"drop": _}:
                self._connection.transport.abort()
            case _:
                raise ScriptError("there is no such step")

    async def nothing_more(self) -> None:
        """Check that the client sends only pings and pongs until the connection ends."""
        with contextlib.suppress(ConnectionClosed):
            raise ScriptError(f"the client sent {await self._receive(None)}")

    async def _greet(self, what: Mapping[str, Any]) -> None:
        frame = await self._token(what.get("token"))
        await self._hello(what)
        if frame is not None:
            answer = {"id": frame["id"], "result": {"expires_at": None}, "error": None}
            await self._send("response", answer)

    async def _token(self, wanted: str | None) -> dict[str, Any] | None:
        """Wait for the token in the header or in the first frame, and return the frame's payload."""
        request = self._connection.request
        assert request is not None
        header = request.headers.get("Authorization")
        payload: dict[str, Any] | None = None
        if header is None:
            payload = (await self._receive("authorize"))["payload"]
        given = (payload or {}).get("token") if header is None else header.removeprefix("Bearer ")
        if wanted is not None and given != wanted:
            raise ScriptError(f"the token is {given!r} instead of {wanted!r}")
        return payload

    async def _hello(self, what: Mapping[str, Any]) -> None:
        """Send hello. ``expires_in`` is in seconds from now; ``limits`` override the defaults."""
        expires_in = what.get("expires_in")
        event = {
            "session_id": "session",
            "user_id": what.get("user_id", "alice"),
            "username": "Alice",
            "protocol": "nuropb.v1",
            "instance_id": "instance",
            "expires_at": None if expires_in is None else time.time() + expires_in,
            "limits": LIMITS | what.get("limits", {}),
        }
        if "resume" in what:
            event["resume"] = what["resume"]
        await self._send("event", {"topic": "hello", "event": event})

    async def _send(self, type_: str, payload: object) -> None:
        await self._connection.send(json.dumps({"type": type_, "payload": payload}))

    def _filled(self, value: Any) -> Any:
        """Replace ``$name.member`` by a member of an expected frame's payload."""
        if isinstance(value, dict):
            return {key: self._filled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._filled(each) for each in value]
        if isinstance(value, str) and value.startswith("$"):
            name, _, member = value[1:].partition(".")
            return self._frames[name][member]
        return value

    async def _receive(self, type_: str | None) -> dict[str, Any]:
        """Return the next frame, skipping pings and pongs unless they are wanted."""
        while True:
            text = await self._connection.recv()
            if not isinstance(text, str):
                raise ScriptError("the client sent a binary message")
            frame: dict[str, Any] = json.loads(text)
            if frame["type"] == type_ or frame["type"] not in ("ping", "pong"):
                return frame

    async def _nothing(self) -> None:
        """Check that the client has sent nothing: its pong would follow all earlier frames."""
        ping = {"type": "ping", "payload": {"number": next(self._pings)}}
        await self._connection.send(json.dumps(ping))
        given = await self._receive("pong")
        if given != {"type": "pong", "payload": ping["payload"]}:
            raise ScriptError(f"the client sent {given}")

    async def _closed(self, code: int | None) -> None:
        """Wait until the client has closed the connection, and check the code if one is given."""
        try:
            raise ScriptError(f"the client sent {await self._receive(None)}")
        except ConnectionClosed as error:
            given = error.rcvd.code if error.rcvd is not None else 1006
            if code not in (given, None):
                raise ScriptError(f"the client closed with {given} instead of {code}") from error
