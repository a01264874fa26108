"""The messages by which a session moves from one process to another.

The new process first claims the session with the client's key, and subscribes to its topics. Then it takes the rest:
the old process first waits for all events that were routed to it before, so none is missing, and names those that it
delivered since the claim, so none comes twice.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from .store import Reason

__all__ = [
    "SUBJECT",
    "CallState",
    "Cancel",
    "Claim",
    "Claimed",
    "Forward",
    "Question",
    "State",
    "Take",
    "decode_question",
]


#: The subject of all questions about sessions.
SUBJECT: Final = "session"


class Claim(Struct, tag="claim"):
    """Ask for a session by its key. The answer is :class:`Claimed`."""

    key: str
    user_id: str
    received: int
    #: The instance id of the process that asks.
    instance_id: str

    def __repr__(self) -> str:
        return "Claim(key=<hidden>)"


class Claimed(Struct, omit_defaults=True):
    """The answer to a claim: the topics to subscribe to, or the reason why there is no session."""

    reason: Reason | None = None
    #: The process that has the session now.
    moved_to: str = ""
    #: Whether the number of received frames cannot be.
    bad_number: bool = False
    claim: str = ""
    topics: list[str] = []


class Take(Struct, tag="take"):
    """Take a claimed session. The answer is :class:`State`, or null if it cannot be had any more."""

    claim: str


class Forward(Struct, tag="forward"):
    """Bring the answer of a call that stayed behind to its session. ``call`` is its key among the session's calls."""

    session_id: str
    call: str
    text: str


class Cancel(Struct, tag="cancel"):
    """Abandon a call that stayed behind. The answer is null."""

    session_id: str
    call: str


class CallState(Struct, omit_defaults=True):
    """A call in flight of a session that moves. ``seconds`` are left until its deadline."""

    call: str
    id: str | None
    trace_id: str | None
    seconds: float


class State(Struct, omit_defaults=True):
    """A session as it leaves a process."""

    session_id: str
    #: The frames that the client has not got.
    kept: list[str]
    topics: list[str]
    calls: list[CallState]
    #: The ids of the events that the session got since it was claimed.
    events: list[str]
    #: The epoch and offset of the last event that it got of each history, by the history's pattern.
    positions: dict[str, tuple[str, int]] = {}


Question: TypeAlias = Claim | Take | Forward | Cancel

decode_question = msgspec.json.Decoder(Question).decode
