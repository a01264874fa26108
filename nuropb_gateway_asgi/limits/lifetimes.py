"""The maximum lifetime of connections: when to announce the end of a connection, and when to close it. Pure."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

__all__ = ["Lifetimes", "Step"]

#: The part of MAX_CONNECTION_LIFETIME by which connections may end early, so that connections of one age do not all end
#: in one moment.
JITTER: Final = 0.1

#: The next step with a connection that is too old.
Step: TypeAlias = Literal["announce", "close"]


class Lifetimes:
    """Decides when connections end: announced after ``longest`` seconds at most, and closed ``grace`` seconds later.

    Times are of one monotonic clock, in seconds, and given by the caller.
    """

    __slots__ = ("_ends", "_grace", "_longest")

    def __init__(self, longest: float, grace: float) -> None:
        self._longest = longest
        self._grace = grace
        #: The times at which to close the connections whose end was announced, by session.
        self._ends: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def check(self, session_id: str, age: float, now: float) -> Step | None:
        """Return the step that is due for a connection of ``age`` seconds, or None."""
        # By the session id, so that the jitter of a connection is the same at every check.
        if age <= self._longest * (1.0 - JITTER * (hash(session_id) % 1000) / 1000):
            return None
        ends = self._ends.get(session_id)
        if ends is None:
            self._ends[session_id] = now + self._grace
            return "announce"
        return "close" if now >= ends else None

    def forget(self, session_id: str) -> None:
        """Forget a connection that has ended."""
        self._ends.pop(session_id, None)
