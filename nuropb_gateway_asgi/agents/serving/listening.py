"""Requests that listen: the changes that a host is told of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import mcp_types as types
import msgspec
from mcp.shared.exceptions import MCPError

from ...handlers.exchange import FRAME_ID
from ...protocol import ErrorCode, encode_json, encode_subscribe
from ...topics import check_pattern, covers
from ..handler import AgentHandler
from ..tools import Tool

__all__ = ["NOTHING", "TOOLS", "Listener", "Listeners", "subscribe", "topic_of", "uri_of"]

#: Seconds between two looks whether a service describes other tools.
CHECK_INTERVAL: Final = 15.0
#: In place of a URI: other tools, and no change for CHECK_INTERVAL.
TOOLS: Final = ""
NOTHING: Final = "nothing"
_TOPIC: Final = "topic://"


def uri_of(topic: str) -> str:
    """Return the URI of a topic."""
    return _TOPIC + topic


def topic_of(uri: str) -> str:
    """Return the topic, or the pattern of topics, of a URI. Raises MCPError for any other URI."""
    topic = uri.removeprefix(_TOPIC)
    if not uri.startswith(_TOPIC) or check_pattern(topic) is not None:
        raise MCPError(types.INVALID_PARAMS, "Unknown resource; expected topic:// and a topic")
    return topic


async def subscribe(handler: AgentHandler, topic: str, *, last: int = 0) -> None:
    """Subscribe to a topic, from its ``last`` events on. Raises MCPError if that is refused."""
    answer = await handler.ask(encode_subscribe([topic], id_=FRAME_ID, trace_id=handler.trace_id, last=last))
    if answer.status != 200:
        failure = msgspec.json.decode(answer.body)
        code = types.INTERNAL_ERROR if failure["code"] != ErrorCode.PERMISSION_DENIED else types.INVALID_PARAMS
        raise MCPError(code, failure["description"], failure)


class Listener:
    """The changes that one request waits for, in its handler's topics and, with ``find_tools``, in its tools.

    A change says that something is new, not what. So many events of one topic may become one change, and a host that
    reads slowly makes nothing grow.
    """

    def __init__(self, handler: AgentHandler, find_tools: Callable[[], Awaitable[Sequence[Tool]]] | None) -> None:
        self._handler = handler
        self._find_tools = find_tools
        self._tools: Sequence[Tool] | None = None
        self._uris: dict[str, str] = {}
        #: The handler has one frame in flight.
        self._asking = asyncio.Lock()
        self._changed: dict[str, None] = {}
        self._checks = False
        self._ended = False
        self._woken = asyncio.Event()
        handler.on_event = self._on_event
        handler.on_ended = self.end

    @property
    def uris(self) -> Sequence[str]:
        """The URIs of the topics."""
        return tuple(self._uris.values())

    async def start(self) -> None:
        """Find the tools that later ones are compared with."""
        if self._find_tools is not None:
            self._tools = await self._find_tools()

    async def add(self, uri: str) -> None:
        """Listen to a topic. Raises MCPError if that is refused."""
        topic = topic_of(uri)
        async with self._asking:
            await subscribe(self._handler, topic)
            self._uris[topic] = uri

    async def remove(self, uri: str) -> None:
        """Listen to a topic no longer. Raises MCPError for a URI of no topic."""
        topic = topic_of(uri)
        async with self._asking:
            if self._uris.pop(topic, None) is not None:
                frame = {"type": "unsubscribe", "payload": {"id": FRAME_ID, "topics": [topic]}}
                await self._handler.ask(encode_json(frame))

    async def next(self) -> str | None:
        """Wait for a change: return the URI of a topic with an event, TOOLS or NOTHING. None once all has ended."""
        while True:
            if self._ended or self._handler.has_ended:
                return None
            if self._changed:
                uri = next(iter(self._changed))
                del self._changed[uri]
                return uri
            if self._checks:
                self._checks = False
                if await self._has_other_tools():
                    return TOOLS
                continue
            self._woken.clear()
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._woken.wait()
            except TimeoutError:
                return TOOLS if await self._has_other_tools() else NOTHING

    async def _has_other_tools(self) -> bool:
        if self._find_tools is None:
            return False
        before, self._tools = self._tools, await self._find_tools()
        return self._tools != before

    def check(self) -> None:
        """Compare the tools: the policy has changed."""
        self._checks = True
        self._woken.set()

    def end(self) -> None:
        """Have :meth:`next` return None."""
        self._ended = True
        self._woken.set()

    def _on_event(self, topic: str, payload: str) -> None:
        uri = self._uris.get(topic) or next((uri for of, uri in self._uris.items() if covers(of, topic)), None)
        if uri is not None:
            self._changed[uri] = None
            self._woken.set()


class Listeners:
    """The requests that listen at present."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    @contextlib.contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Have :meth:`check` reach a listener for as long as the context lasts."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def check(self) -> None:
        """Have all compare their tools: the policy has changed."""
        for listener in tuple(self._listeners):
            listener.check()
