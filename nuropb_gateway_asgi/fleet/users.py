"""What can be done for users wherever they are connected: here, and by asking the other processes of the gateway."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct

from ..handler_manager import Handler, HandlerManager, expiry
from ..protocol import encode_event
from ..settings import Settings
from ..topics import check_topic
from ..wire.services import to_json
from .members import Fleet

__all__ = ["Connections", "Online", "Reached", "Session", "Sessions", "Switchboard"]

#: Users that one question may name.
MAX_USERS: Final = 10_000
#: What applications may close a connection with, the gateway's own codes among them.
CLOSE_CODES: Final = range(4000, 5000)


# --- answers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _FromProcesses:
    #: So many processes have answered, this one included.
    processes: int
    #: The instance ids of those that have not within a second. What they did, if anything, is not in here.
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reached(_FromProcesses):
    """How many connections something was done to."""

    count: int


@dataclass(frozen=True, kw_only=True)
class Session:
    """One connection. Times are whole seconds since 1970."""

    session_id: str
    user_id: str
    username: str
    instance_id: str
    connected_at: int
    expires_at: int | None


@dataclass(frozen=True, kw_only=True)
class Sessions(_FromProcesses):
    """The connections of a user."""

    sessions: list[Session]


@dataclass(frozen=True, kw_only=True)
class Connections(_FromProcesses):
    """How many connections there are; ``by_process`` has the instance ids."""

    count: int
    by_process: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Online(_FromProcesses):
    """Which of some users are connected."""

    online: dict[str, bool]


# --- questions of processes to each other -------------------------------------------------------------------------


class _Whom(Struct, omit_defaults=True):
    """Some users, one session, or without either everybody."""

    user_ids: list[str] | None = None
    session_id: str | None = None


class _Send(_Whom, tag="send", kw_only=True):
    topic: str
    event: Raw


class _Disconnect(_Whom, tag="disconnect", kw_only=True):
    code: int
    reason: str


class _ListSessions(Struct, tag="sessions"):
    user_id: str


class _Count(Struct, tag="count"):
    pass


class _IsOnline(Struct, tag="online"):
    user_ids: list[str]


_Question: TypeAlias = _Send | _Disconnect | _ListSessions | _Count | _IsOnline

_encode = msgspec.json.encode
_decode_question = msgspec.json.Decoder(_Question).decode
_decode_count = msgspec.json.Decoder(int).decode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode
_decode_sessions = msgspec.json.Decoder(list[Session]).decode
_decode_users = msgspec.json.Decoder(list[str]).decode


class Switchboard:
    """Does what is asked for to the connections of this process, and has the siblings do it to theirs.

    Everything raises ValueError or TypeError for what cannot be meant. Without a mesh it is done here alone, and the
    siblings are named as missing.
    """

    def __init__(self, settings: Settings, handler_manager: HandlerManager, fleet: Fleet) -> None:
        self._settings = settings
        self._handlers = handler_manager
        self._fleet = fleet

    async def send_to_users(self, user_ids: Iterable[str], topic: str, event: Any) -> Reached:
        """Send an event to all connections of some users."""
        return await self._reach(self._event(topic, event, user_ids=_users(user_ids)))

    async def send_to_all(self, topic: str, event: Any) -> Reached:
        """Send an event to everybody."""
        return await self._reach(self._event(topic, event))

    async def send_to_session(self, session_id: str, topic: str, event: Any) -> Reached:
        """Send an event to one connection."""
        return await self._reach(self._event(topic, event, session_id=_name(session_id, "session_id")))

    async def disconnect_users(self, user_ids: Iterable[str], code: int, reason: str) -> Reached:
        """Hang up on all connections of some users."""
        return await self._reach(_disconnect(code, reason, user_ids=_users(user_ids)))

    async def disconnect_session(self, session_id: str, code: int, reason: str) -> Reached:
        """Hang up on one connection."""
        return await self._reach(_disconnect(code, reason, session_id=_name(session_id, "session_id")))

    async def list_sessions(self, user_id: str) -> Sessions:
        """The connections of a user, the oldest first."""
        answers, missing = await self._ask(_ListSessions(_name(user_id, "user_id")))
        sessions = [session for answer in answers for session in _decode_sessions(answer)]
        sessions.sort(key=lambda session: session.connected_at)
        return Sessions(sessions=sessions, processes=len(answers), missing=missing)

    async def count(self) -> Connections:
        """How many connections there are."""
        answers, missing = await self._ask(_Count())
        by_process: dict[str, int] = {}
        for answer in answers:
            by_process |= _decode_counts(answer)
        total = sum(by_process.values())
        return Connections(count=total, by_process=by_process, processes=len(answers), missing=missing)

    async def is_online(self, user_ids: Iterable[str]) -> Online:
        """Which of some users are connected."""
        users = _users(user_ids)
        answers, missing = await self._ask(_IsOnline(users))
        connected = {user_id for answer in answers for user_id in _decode_users(answer)}
        online = {user_id: user_id in connected for user_id in users}
        return Online(online=online, processes=len(answers), missing=missing)

    # --- asking, and being asked ------------------------------------------------------------------------------

    async def _reach(self, question: _Send | _Disconnect) -> Reached:
        answers, missing = await self._ask(question)
        return Reached(count=sum(map(_decode_count, answers)), processes=len(answers), missing=missing)

    async def _ask(self, question: _Question) -> tuple[list[bytes | Raw], list[str]]:
        asked = _encode(question)
        # As text, because that is how the siblings get it, and no two processes shall understand it differently.
        own = self.answer(Raw(asked))
        answers, missing = await self._fleet.ask(asked)
        return [own, *answers], missing

    def answer(self, question: Raw) -> bytes:
        """Do what is asked to the connections of this process, and say what came of it.

        Raises msgspec.MsgspecError and ValueError for what is no question.
        """
        asked = _decode_question(question)
        if isinstance(asked, _Send):
            text = encode_event(asked.topic, asked.event)
            handlers = self._whom(asked)
            for handler in handlers:
                handler.send_frame(text)
            return _encode(len(handlers))
        if isinstance(asked, _Disconnect):
            return _encode(int(self._hang_up(asked)))
        if isinstance(asked, _ListSessions):
            return _encode([self._session(handler) for handler in self._handlers.get_user_handlers([asked.user_id])])
        if isinstance(asked, _Count):
            return _encode({self._settings.instance_id: len(self._handlers)})
        return _encode([user_id for user_id in asked.user_ids if self._handlers.get_user_handlers([user_id])])

    def _whom(self, question: _Whom) -> list[Handler]:
        if question.session_id is not None:
            handler = self._handlers.get_handler(question.session_id)
            return [] if handler is None else [handler]
        if question.user_ids is not None:
            return self._handlers.get_user_handlers(question.user_ids)
        return list(self._handlers.handlers)

    def _hang_up(self, question: _Disconnect) -> int:
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
            instance_id=self._settings.instance_id,
            connected_at=int(handler.connected_at),
            expires_at=expiry(identity),
        )

    def _event(
        self, topic: str, event: Any, *, user_ids: list[str] | None = None, session_id: str | None = None
    ) -> _Send:
        reason = check_topic(_name(topic, "topic"))
        if reason is not None:
            raise ValueError(f"topic: {reason}")
        text = to_json(event)
        if len(text) > self._settings.outbox_size:
            raise ValueError(f"event: more than {self._settings.outbox_size} bytes")
        return _Send(user_ids=user_ids, session_id=session_id, topic=topic, event=Raw(text))


def _disconnect(
    code: int, reason: str, *, user_ids: list[str] | None = None, session_id: str | None = None
) -> _Disconnect:
    if code not in CLOSE_CODES:
        raise ValueError("code: it has to be a number from 4000 to 4999")
    return _Disconnect(user_ids=user_ids, session_id=session_id, code=code, reason=_name(reason, "reason", empty=True))


# What follows may come from any service, by way of the controller, and be of any type.


def _users(user_ids: Any) -> list[str]:
    if isinstance(user_ids, str | bytes) or not isinstance(user_ids, Iterable):
        raise TypeError("user_ids: it has to be a list of user ids")
    users = list(dict.fromkeys(user_ids))
    if len(users) > MAX_USERS:
        raise ValueError(f"user_ids: more than {MAX_USERS}")
    return [_name(user_id, "user_ids") for user_id in users]


def _name(value: Any, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise TypeError(f"{name}: it has to be a string{'' if empty else ' that is not empty'}")
    return value
