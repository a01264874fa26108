"""The timetable of a key set: when its keys are fetched, and for how long they are used. Pure."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Freshness"]

#: For how long keys count as fresh, in seconds: at least, at most, and without a statement of the provider.
SHORTEST_LIFETIME: Final = 60.0
LONGEST_LIFETIME: Final = 3600.0
DEFAULT_LIFETIME: Final = 300.0
#: For how long keys are used while they cannot be fetched, in seconds.
LAST_RESORT: Final = 86400.0
#: Seconds between two fetches for tokens that name an unknown key; clients can make up any number of key names.
ASK_INTERVAL: Final = 30.0
#: Seconds between failed attempts, from the first to the last, each with jitter.
FIRST_RETRY: Final = 1.0
LAST_RETRY: Final = 60.0


class Freshness:
    """The time of the last fetch and of the next one.

    Times are seconds of a monotonic clock, given by the caller. ``chance``, from 0 to 1, spreads the fetches of many
    processes over time.
    """

    def __init__(self) -> None:
        #: The beginning of the last attempt, and of the last successful one.
        self.tried_at = -math.inf
        self.fetched_at = -math.inf
        #: The beginning of the next attempt.
        self.due_at = -math.inf
        self._retry = FIRST_RETRY

    def on_fetched(self, max_age: float | None, chance: float) -> None:
        """Record a successful attempt. The next one begins before the lifetime of the keys ends."""
        lifetime = DEFAULT_LIFETIME if max_age is None else min(max(max_age, SHORTEST_LIFETIME), LONGEST_LIFETIME)
        self.fetched_at = self.tried_at
        self.due_at = self.fetched_at + lifetime * (0.8 + 0.15 * chance)
        self._retry = FIRST_RETRY

    def on_failed(self, now: float, chance: float) -> None:
        """Record a failed attempt."""
        self.due_at = now + self._retry * (0.5 + 0.5 * chance)
        self._retry = min(2 * self._retry, LAST_RETRY)

    def may_ask(self, now: float) -> bool:
        """Return whether a token that names an unknown key may cause a fetch now."""
        return now - self.tried_at >= ASK_INTERVAL

    def serves(self, now: float) -> bool:
        """Return whether the present keys may still be used."""
        return now - self.fetched_at <= LAST_RESORT
