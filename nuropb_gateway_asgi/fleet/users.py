"""Users wherever they are connected: in this process and, by asking, in the other processes of the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, structs

from ..topics import check_topic
from ..wire.services import to_json
from .local import CLOSE_CODES, Count, Disconnect, IsOnline, ListSessions, LocalUsers, Question, Send
from .members import Fleet
from .results import Connections, Online, Reached, Session, Sessions
from .whereabouts import Whereabouts

__all__ = ["FleetUsers"]

#: Users that one question may name.
MAX_USERS: Final = 10_000

T = TypeVar("T")

_encode = msgspec.json.encode
_decode_count = msgspec.json.Decoder(int).decode
_decode_counts = msgspec.json.Decoder(dict[str, int]).decode
_decode_sessions = msgspec.json.Decoder(list[Session]).decode
_decode_users = msgspec.json.Decoder(list[str]).decode


class FleetUsers:
    """Sends to users, closes their connections and lists them, in all processes of the gateway.

    Every method raises ValueError or TypeError for invalid arguments. Without a mesh, only this process is asked, and
    the others are named as missing. In a large fleet, a question about users goes to the processes that have them, if
    ``whereabouts`` knows these. ``max_event`` is the size of an event in bytes.
    """

    def __init__(self, local: LocalUsers, fleet: Fleet, whereabouts: Whereabouts, max_event: int) -> None:
        self._local = local
        self._fleet = fleet
        self._whereabouts = whereabouts
        self._max_event = max_event

    async def send_to_users(self, user_ids: Iterable[str], topic: str, event: Any) -> Reached:
        """Send an event to all connections of some users."""
        return await self._reach(self._event(topic, event, user_ids=_users(user_ids)))

    async def send_to_all(self, topic: str, event: Any) -> Reached:
        """Send an event to every connection."""
        return await self._reach(self._event(topic, event))

    async def send_to_session(self, session_id: str, topic: str, event: Any) -> Reached:
        """Send an event to one connection."""
        return await self._reach(self._event(topic, event, session_id=_name(session_id, "session_id")))

    async def disconnect_users(self, user_ids: Iterable[str], code: int, reason: str) -> Reached:
        """Close all connections of some users."""
        return await self._reach(_disconnect(code, reason, user_ids=_users(user_ids)))

    async def disconnect_session(self, session_id: str, code: int, reason: str) -> Reached:
        """Close one connection."""
        return await self._reach(_disconnect(code, reason, session_id=_name(session_id, "session_id")))

    async def list_sessions(self, user_id: str) -> Sessions:
        """List the connections of a user, the oldest first."""
        answers, missing = await self._ask(ListSessions(_name(user_id, "user_id")), _decode_sessions)
        sessions = [session for answer in answers for session in answer]
        sessions.sort(key=lambda session: session.connected_at)
        return Sessions(sessions=sessions, processes=len(answers), missing=missing)

    async def count(self) -> Connections:
        """Count the connections."""
        answers, missing = await self._ask(Count(), _decode_counts)
        by_process: dict[str, int] = {}
        for answer in answers:
            by_process |= answer
        total = sum(by_process.values())
        return Connections(count=total, by_process=by_process, processes=len(answers), missing=missing)

    async def is_online(self, user_ids: Iterable[str]) -> Online:
        """Tell which of some users are connected."""
        users = _users(user_ids)
        answers, missing = await self._ask(IsOnline(users), _decode_users)
        connected = {user_id for answer in answers for user_id in answer}
        online = {user_id: user_id in connected for user_id in users}
        return Online(online=online, processes=len(answers), missing=missing)

    async def _reach(self, question: Send | Disconnect) -> Reached:
        answers, missing = await self._ask(question, _decode_count)
        return Reached(count=sum(answers), processes=len(answers), missing=missing)

    async def _ask(self, question: Question, decode: Callable[[bytes | Raw], T]) -> tuple[list[T], list[str]]:
        asked = _encode(question)
        # This process gets the question as text, too, so that no two processes understand it differently.
        own = decode(self._local.answer(Raw(asked)))
        users = _users_of(question)
        found = None if users is None else await self._whereabouts.find(users)
        if found is None:
            answers, missing = await self._fleet.ask(asked, decode)
        else:
            questions = {address: _encode(_about(question, users)) for address, users in found.items()}
            answers, missing = self._fleet.read(questions, await self._fleet.ask_each(questions), decode)
        return [own, *answers], missing

    def _event(
        self, topic: str, event: Any, *, user_ids: list[str] | None = None, session_id: str | None = None
    ) -> Send:
        reason = check_topic(_name(topic, "topic"))
        if reason is not None:
            raise ValueError(f"topic: {reason}")
        text = to_json(event)
        if len(text) > self._max_event:
            raise ValueError(f"event: more than {self._max_event} bytes")
        return Send(user_ids=user_ids, session_id=session_id, topic=topic, event=Raw(text))


def _disconnect(
    code: int, reason: str, *, user_ids: list[str] | None = None, session_id: str | None = None
) -> Disconnect:
    if code not in CLOSE_CODES:
        raise ValueError("code: not a close code for applications; give a number from 4000 to 4999")
    return Disconnect(user_ids=user_ids, session_id=session_id, code=code, reason=_name(reason, "reason", empty=True))


def _users_of(question: Question) -> list[str] | None:
    """Return the users that a question is about, or None for one that all processes have to answer."""
    if isinstance(question, ListSessions):
        return [question.user_id]
    return None if isinstance(question, Count) else question.user_ids


def _about(question: Question, user_ids: list[str]) -> Question:
    """Return the question about some of its users."""
    return question if isinstance(question, ListSessions | Count) else structs.replace(question, user_ids=user_ids)


# Arguments may come from any service, by way of the controller, and be of any type.


def _users(user_ids: Any) -> list[str]:
    if isinstance(user_ids, str | bytes) or not isinstance(user_ids, Iterable):
        raise TypeError("user_ids: not a list of user ids")
    users = list(dict.fromkeys(user_ids))
    if len(users) > MAX_USERS:
        raise ValueError(f"user_ids: more than {MAX_USERS}")
    return [_name(user_id, "user_ids") for user_id in users]


def _name(value: Any, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise TypeError(f"{name}: not a string{'' if empty else ', or an empty one'}")
    return value
