"""The latest tool calls of each user, for the console: those of this process, without arguments and results."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from ..generation_cache import GenerationCache

__all__ = ["RecentCall", "RecentCalls"]

#: Users whose calls are kept at least, and calls of each.
MAX_USERS: Final = 256
MAX_CALLS: Final = 30


class RecentCall(msgspec.Struct, frozen=True):
    """A call that has ended. ``at`` is its end, as a Unix time; ``outcome`` is "ok" or an error code."""

    at: float
    tool: str
    outcome: str
    ms: int
    trace_id: str


class RecentCalls:
    """The latest calls by user."""

    def __init__(self) -> None:
        self._calls: GenerationCache[str, deque[RecentCall]] = GenerationCache(MAX_USERS)

    def add(self, user_id: str, call: RecentCall) -> None:
        """Keep a call; the user's oldest one makes room for it."""
        self._calls.renew(user_id, lambda: deque(maxlen=MAX_CALLS)).appendleft(call)

    def of(self, user_id: str) -> Sequence[RecentCall]:
        """Return the calls of a user, the latest first."""
        return tuple(self._calls.get(user_id) or ())
