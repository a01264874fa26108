"""How long to wait between attempts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Backoff"]


@dataclass(frozen=True)
class Backoff:
    """Full jitter: anything up to a limit, so that clients that were lost together do not come back together.

    ``base`` is the limit before the first further attempt, in seconds; it doubles with each, up to ``cap``. ``random``
    makes numbers from 0 to 1, and is for tests.
    """

    base: float = 0.5
    cap: float = 30.0
    random: Callable[[], float] = random.random

    def delay(self, attempt: int) -> float:
        """Seconds to wait after so many attempts that failed."""
        # Beyond this many doublings any cap is reached, and a float would overflow.
        return self.random() * min(self.cap, self.base * 2.0 ** min(attempt, 64))
