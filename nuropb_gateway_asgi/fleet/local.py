"""Users of this process: sends to them, closes their connections and lists them, as the processes ask each other."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from ..handler_manager import Handler, HandlerManager, expiry
from ..protocol import encode_event
from ..topics import GATEWAY_TOPICS
from .results import Session

__all__ = [
    "CLOSE_CODES",
    "Count",
    "Disconnect",
    "IsOnline",
    "ListSessions",
    "LocalUsers",
    "Question",
    "Recipients",
    "Send",
]


class Recipients(Struct, omit_defaults=True):
    """Some users, one session, or without either all connections."""

    user_ids: list[str] | None = None
    session_id: str | None = None


class Send(Recipients, tag="send", kw_only=True):
    """Send an event; the answer is the number of connections. ``event`` is JSON."""

    topic: str
    event: Raw


class Disconnect(Recipients, tag="disconnect", kw_only=True):
    """Close connections; the answer is their number."""

    code: int
    reason: str


class ListSessions(Struct, tag="sessions"):
    """List the connections of a user; the answer is a list of sessions."""

    user_id: str


class Count(Struct, tag="count"):
    """Count the connections; the answer is their number, by instance id."""


class IsOnline(Struct, tag="online"):
    """Tell which of some users are connected; the answer is a list of these."""

    user_ids: list[str]


Question: TypeAlias = Send | Disconnect | ListSessions | Count | IsOnline

#: Close codes that applications may use; the gateway's own codes are among them.
CLOSE_CODES: Final = range(4000, 5000)

_encode = msgspec.json.encode
_decode_question = msgspec.json.Decoder(Question).decode


class LocalUsers:
    """Does to the connections of this process what another process, or this one, asks."""

    def __init__(self, handler_manager: HandlerManager, instance_id: str) -> None:
        self._handlers = handler_manager
        self.instance_id = instance_id

    def answer(self, question: Raw) -> bytes:
        """Do what ``question`` (JSON) asks, and return the answer (JSON).

        Raises ValueError for an unreadable question, or one that no honest process asks: they check their arguments.
        """
        try:
            asked = _decode_question(question)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ValueError(f"not a question of this version ({type(error).__name__})") from error
        if isinstance(asked, Send):
            if asked.topic in GATEWAY_TOPICS:
                raise ValueError("topic: reserved for the gateway's own events")
            text = encode_event(asked.topic, asked.event)
            handlers = self._recipients(asked)
            for handler in handlers:
                handler.send_frame(text)
            return _encode(len(handlers))
        if isinstance(asked, Disconnect):
            if asked.code not in CLOSE_CODES:
                raise ValueError("code: not a close code for applications")
            return _encode(int(self._disconnect(asked)))
        if isinstance(asked, ListSessions):
            return _encode([self._session(handler) for handler in self._handlers.get_user_handlers([asked.user_id])])
        if isinstance(asked, Count):
            return _encode({self.instance_id: len(self._handlers)})
        return _encode([user_id for user_id in asked.user_ids if self._handlers.get_connected([user_id])])

    def _recipients(self, question: Recipients) -> list[Handler]:
        if question.session_id is not None:
            handler = self._handlers.get_handler(question.session_id)
            return [] if handler is None else [handler]
        if question.user_ids is not None:
            return self._handlers.get_user_handlers(question.user_ids)
        return list(self._handlers.handlers)

    def _disconnect(self, question: Disconnect) -> int:
        if question.session_id is not None:
            return self._handlers.close(question.session_id, question.code, question.reason)
        if question.user_ids is not None:
            return self._handlers.close_user_ids(question.user_ids, question.code, question.reason)
        return self._handlers.close_all(question.code, question.reason)

    def _session(self, handler: Handler) -> Session:
        identity = handler.identity
        assert identity is not None  # noqa: S101 - it is registered
        return Session(
            session_id=handler.session_id,
            user_id=identity.user_id,
            username=identity.username,
            instance_id=self.instance_id,
            connected_at=int(handler.connected_at),
            expires_at=expiry(identity),
            connected=not self._handlers.is_parked(handler),
        )
