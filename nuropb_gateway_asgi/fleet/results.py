"""Results over all processes of a gateway."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Connections", "Online", "Reached", "Session", "Sessions"]


@dataclass(frozen=True, kw_only=True)
class _Total:
    #: The number of processes that answered, this one included.
    processes: int
    #: The instance ids of the processes that did not answer within a second; their part is not in the result.
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Reached(_Total):
    """The number of connections that were sent to or closed."""

    count: int


@dataclass(frozen=True, kw_only=True)
class Session:
    """A connection, or a session that waits for one to come back. Times are in whole unix seconds."""

    session_id: str
    user_id: str
    username: str
    instance_id: str
    connected_at: int
    expires_at: int | None
    #: Whether the session has a connection.
    connected: bool = True


@dataclass(frozen=True, kw_only=True)
class Sessions(_Total):
    """The connections of a user."""

    sessions: list[Session]


@dataclass(frozen=True, kw_only=True)
class Connections(_Total):
    """The number of connections; ``by_process`` has it by instance id."""

    count: int
    by_process: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Online(_Total):
    """For each user asked for, whether the user is connected."""

    online: dict[str, bool]
