"""Sessions of hosts whose version begins with a handshake: their topics, and their stream of notifications."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import mcp_types as types
from mcp.shared.exceptions import MCPError
from starlette.types import Send

from ...generation_cache import GenerationCache
from ...protocol import encode_json
from ..handler import AgentHandler
from .handshake import EVENT_STREAM, event_of
from .listening import NOTHING, TOOLS, Listener, subscribe, topic_of

__all__ = ["HandshakeSession", "HandshakeSessions"]

#: Users whose sessions are kept at least, sessions of a user and topics of a session. Twice as many users with topics
#: of 255 bytes have 93 MB.
MAX_USERS: Final = 256
MAX_SESSIONS: Final = 8
MAX_TOPICS: Final = 64
#: Characters of a session's id that tell it from others; those that the gateway makes are shorter.
MAX_ID: Final = 64


class HandshakeSession:
    """The topics of a session, which a stream that comes back finds again, and its stream, if it has one here."""

    def __init__(self) -> None:
        self._uris: dict[str, None] = {}
        self._listener: Listener | None = None

    @property
    def is_listening(self) -> bool:
        """Whether the session has a stream in this process."""
        return self._listener is not None

    async def subscribe(self, handler: AgentHandler, uri: str) -> None:
        """Tell the session's stream of a topic, now or once there is one. Raises MCPError if that is refused."""
        topic = topic_of(uri)
        if uri not in self._uris and len(self._uris) >= MAX_TOPICS:
            raise MCPError(types.INVALID_PARAMS, f"A session listens to at most {MAX_TOPICS} resources")
        if self._listener is not None:
            await self._listener.add(uri)
        else:
            await subscribe(handler, topic)  # for the answer; it ends with this request
        self._uris[uri] = None

    async def unsubscribe(self, uri: str) -> None:
        """Tell of a topic no longer. Raises MCPError for a URI of no topic."""
        topic_of(uri)
        self._uris.pop(uri, None)
        if self._listener is not None:
            await self._listener.remove(uri)

    async def stream(self, listener: Listener, send: Send) -> None:
        """Send the notifications of a session until the host leaves, opens another stream, or the gateway ends it."""
        with self._listening(listener):
            await listener.start()
            await send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
            # So that the host gets the response's head at once.
            await send({"type": "http.response.body", "body": b": listening\n\n", "more_body": True})
            for uri in tuple(self._uris):
                with contextlib.suppress(MCPError):  # no longer allowed, or not now
                    await listener.add(uri)
            while (change := await listener.next()) is not None:
                body = b": nothing\n\n" if change == NOTHING else event_of(_notification(change))
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextlib.contextmanager
    def _listening(self, listener: Listener) -> Iterator[None]:
        if self._listener is not None:
            self._listener.end()  # a notification goes to one stream: that which the host has opened last
        self._listener = listener
        try:
            yield
        finally:
            if self._listener is listener:
                self._listener = None


class HandshakeSessions:
    """The sessions of this process. A session's id gives access to nothing: a user's sessions are the user's alone."""

    def __init__(self) -> None:
        self._users: GenerationCache[str, dict[str, HandshakeSession]] = GenerationCache(MAX_USERS)

    def get(self, user_id: str, session_id: str) -> HandshakeSession:
        """Return the session with this id; the oldest one without a stream makes room for it."""
        session_id = session_id[:MAX_ID]
        sessions = self._users.renew(user_id, dict)
        session = sessions.get(session_id)
        if session is None:
            if len(sessions) >= MAX_SESSIONS:
                oldest = next((id_ for id_, each in sessions.items() if not each.is_listening), None)
                if oldest is not None:
                    del sessions[oldest]
            session = sessions[session_id] = HandshakeSession()
        return session


def _notification(change: str) -> bytes:
    if change == TOOLS:
        return b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}'
    return b'{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":%b}}' % encode_json(change)
