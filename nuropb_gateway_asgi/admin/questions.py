"""Questions that the admin API of one process asks all processes, and their answers. JSON on the mesh."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

__all__ = [
    "LEVELS",
    "SUBJECT",
    "Circuit",
    "Circuits",
    "Connections",
    "Level",
    "ListCircuits",
    "ListConnections",
    "Question",
    "Reload",
    "Report",
    "Reset",
    "SetLevel",
    "Status",
    "User",
]

#: The subject of these questions among the processes.
SUBJECT: Final = "admin"

Level: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error", "critical")


class ListConnections(Struct, tag="connections"):
    """List connections, the oldest first: all, those of a user, or one session."""

    limit: int
    user_id: str | None = None
    session_id: str | None = None


class ListCircuits(Struct, tag="circuits"):
    """List circuits of services and error budgets of users."""


class Reset(Struct, tag="reset"):
    """Close circuits and forget failed calls: all, those of a service, or those of a user."""

    service: str | None = None
    user_id: str | None = None


class Reload(Struct, tag="reload"):
    """Read the policy again, fetch the keys, and open the audit log again, as on SIGHUP; the answer is a status."""


class SetLevel(Struct, tag="level"):
    """Set the level of the log."""

    level: Level


class Status(Struct, tag="status"):
    """Tell the status of the process."""


class Report(Struct, tag="report"):
    """Tell everything that a debug bundle has about the process."""


Question: TypeAlias = ListConnections | ListCircuits | Reset | Reload | SetLevel | Status | Report


class Connections(Struct):
    """The connections of a process: ``total`` fit the question, ``connections`` are the oldest of them."""

    total: int
    connections: list[dict[str, Any]]


class Circuit(Struct):
    """The circuit of a service: timeouts since its last answer, and whether calls fail at once."""

    service: str
    transport: str
    instance_id: str
    open: bool
    timeouts: int


class User(Struct):
    """The error budget of a user: failed calls within a minute, calls refused since, and seconds to the next minute."""

    user_id: str
    instance_id: str
    errors: int
    refusals: int
    seconds_left: float


class Circuits(Struct):
    """The circuits and error budgets of a process."""

    circuits: list[Circuit]
    budgets: list[User]
